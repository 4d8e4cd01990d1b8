"""What every fit of texts shares: votes on equal tokens, files that change, workdirs in use, texts that are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import copl_jax
import lore_jax
from copl_jax.graph.settings import fast_config
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.routing import GateConfig
from copl_jax.reward.training import RewardSettings
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax import fitting
from pref_jax.errors import UserError
from pref_jax.train.method import TrainingConfig
from pref_jax.train.state import OptimizerConfig

QUICK = LoReConfig.quick(ranks=(1,), components=(), variances=(3.0,), shared_variances=(1.0,), steps=10)
TINY = copl_jax.CoPLConfig(
    graph=fast_config(dim=4, num_layers=2, epochs=4),
    reward=RewardSettings(
        training=TrainingConfig(optimizer=OptimizerConfig(lr=1e-2, num_steps=2), batch_size=8),
        experts=ExpertsConfig(num_experts=2, rank=2),
        gate=GateConfig(hidden=4),
    ),
)
FITS = {"lore": (lore_jax.fit, QUICK), "copl": (copl_jax.fit, TINY)}
# Leaves out what stands before </think>, as templates of reasoning models do.
THINK = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}<|end_of_{{ m.role }}|>{% endfor %}"
STRICT = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}x{% endfor %}"
EACH = pytest.mark.parametrize("method", list(FITS))


def vote(user: str, number: int, chosen: str, rejected: str) -> dict[str, Any]:
    split = "validation" if number % 4 == 3 else "train"
    return {"user": user, "prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected, "split": split}


def rows(users: int = 4) -> list[dict[str, Any]]:
    texts = ("Short {}.", "A long answer to {}, which goes on.")
    return [
        vote(f"u{user}", number, *(text.format(number) for text in texts[:: 1 if user % 2 else -1]))
        for user in range(users)
        for number in range(8)
    ]


def silent(user: str, count: int) -> list[dict[str, Any]]:
    """Votes on answers that differ in what the template leaves out."""
    return [vote(user, number, f"{number}</think>The same.", "So it is.</think>The same.") for number in range(count)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")


@pytest.fixture
def template(tmp_path) -> Path:
    (tmp_path / "think.jinja").write_text(THINK)
    return tmp_path / "think.jinja"


def write(path: Path, votes: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in votes))
    return path


def fit(method: str, votes: Any, base: Path, **how: Any) -> Any:
    function, config = FITS[method]
    return function(votes, base=str(base), config=config, **how)


@EACH
def test_votes_on_equal_tokens_train_nothing_and_are_told(method, base, template, capsys):
    plain = fit(method, rows(), base, chat_template=str(template))
    assert "left out" not in capsys.readouterr().err
    mixed = fit(method, rows() + silent("u1", 5) + silent("nobody", 3), base, chat_template=str(template))
    told = (
        "left out: 7 of 31 training votes, 1 of 9 validation votes, on two texts that are the same tokens to the model"
    )
    assert told in capsys.readouterr().err
    assert mixed.facts["same_tokens"] == {"train": 7, "validation": 1, "test": 0}
    assert "same_tokens" not in plain.facts
    users, candidates = [None, *plain.users, "nobody"], ["Short 1.", "Something else."]
    found = {user: np.asarray(mixed.score(user, "Question 1?", candidates)) for user in users}
    assert all(np.isfinite(values).all() for values in found.values())
    if method == "lore":
        for user in plain.users:
            np.testing.assert_allclose(plain.score(user, "Question 1?", candidates), found[user], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"all 3 training votes are on two texts that are the same tokens"):
        fit(method, silent("ada", 3), base, chat_template=str(template))


@EACH
def test_changed_files_are_refused_by_name(method, base, template, tmp_path):
    own = Path(shutil.copytree(base, tmp_path / "own"))
    path, work = write(tmp_path / "votes.jsonl", rows()), tmp_path / "work"
    how = {"workdir": work, "chat_template": str(template)}
    first = fit(method, path, own, **how).score("u1", "Question 1?", ["Short 1."])
    whole = {file: file.read_bytes() for file in (path, template, own / "tokenizer.json", own / "model.safetensors")}
    damaged = bytearray(whole[own / "model.safetensors"])
    damaged[-1] ^= 1
    changed = {
        path: "".join(reversed(path.read_text().splitlines(keepends=True))).encode(),
        template: THINK.replace("split", "strip").encode(),
        own / "tokenizer.json": whole[own / "tokenizer.json"] + b"\n",
        own / "model.safetensors": bytes(damaged),
    }
    for file, words in changed.items():
        file.write_bytes(words)
        with pytest.raises(
            UserError, match=rf"{file.name} is not the file that \S*work was made from; use a new workdir"
        ):
            fit(method, path, own, **how)
        file.write_bytes(whole[file])
    moved = Path(shutil.move(work, tmp_path / "moved"))
    again = fit(method, path, own, **{**how, "workdir": moved}).score("u1", "Question 1?", ["Short 1."])
    assert first.tobytes() == again.tobytes()


@EACH
def test_refused_dialogues_name_responses_and_users_and_may_be_mended(method, base, tmp_path):
    (tmp_path / "strict.jinja").write_text(STRICT)
    bad = {**vote("eve", 5, "One.", "Two."), "prompt": [{"role": "system", "content": "Be brief."}, *_asked("Why?")]}
    path, how = write(tmp_path / "votes.jsonl", [*rows(), bad]), {"workdir": tmp_path / "work"}
    with pytest.raises(UserError) as error:
        fit(method, path, base, chat_template=str(tmp_path / "strict.jinja"), **how)
    told = str(error.value)
    assert "does not take 2 of 18 texts" in told
    assert told.count("to 'Why?', voted on by 'eve': no system") == 2
    (tmp_path / "strict.jinja").write_text(THINK)
    write(path, rows())
    fit(method, path, base, chat_template=str(tmp_path / "strict.jinja"), **how)


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@EACH
def test_a_workdir_is_held_while_it_is_fitted(method, base, tmp_path, monkeypatch):
    held = []
    kept = fitting.open_votes if method == "copl" else lore_jax.model.open_votes

    def watched(*args):
        held.append((tmp_path / "work" / ".lock.json").exists())
        return kept(*args)

    monkeypatch.setattr(fitting if method == "copl" else lore_jax.model, "open_votes", watched)
    fit(method, rows(), base, workdir=tmp_path / "work")
    assert held == [True]
    assert not (tmp_path / "work" / ".lock.json").exists()
