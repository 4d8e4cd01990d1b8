"""One rendering: training, scoring and an export in transformers see the same tokens, and read the same one."""

import dataclasses
import datetime
import functools
import html
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from public_templates import TEMPLATES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pref_jax.cli import main
from pref_jax.data.text import chat_templates
from pref_jax.data.text.tokenization import load_tokenizer, tokenize_responses
from pref_jax.errors import UserError
from pref_jax.lm import backbone, checkpoint, classifier, rendering
from pref_jax.lm.config import LMConfig
from pref_jax.lm.text_model import as_responses, open_text

LENGTH = 400
LIKES = re.compile(r"<[|｜/]?[\w▁]+[|｜]?>|\[/?[A-Z_]+\]")
USER, CALL = {"role": "user", "content": "How long do  eggs take,\nin 2024?"}, {"function": {"name": "clock"}}
DIALOGUES = {
    "plain": ([USER], "Six minutes, ça va?"),
    "system": ([{"role": "system", "content": "Be brief."}, USER], "Six."),
    "turns": ([USER, {"role": "assistant", "content": "How soft?"}, {"role": "user", "content": "Soft."}], " 5 min \n"),
    "thinking": ([USER], "<think>\nThey say seven.\n</think>\n\nSix."),
    "reasoning": ([USER, {"role": "assistant", "content": "5", "reasoning_content": "Hm."}, USER], "No, six."),
    "tool": (
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": '{"minutes": "6"}', "name": "clock"},
        ],
        "Six.",
    ),
}
# Dialogues that a template refuses, as it does in transformers.
REFUSED = {("gemma2", "system"), ("gemma2", "tool")}
# What a template passes over, by dialogue: what transformers renders lacks it too, and we say so.
LEFT_OUT = {
    ("phi4", "tool"): "tool", ("zephyr", "tool"): "tool", ("olmo2", "tool"): "tool", ("deepseek-r1", "tool"): "tool",
    ("deepseek-r1", "thinking"): "assistant",
}  # fmt: skip


def made(name, folder):
    """A tokenizer of the template's own control tokens, as a model's folder holds it."""
    template, bos, eos, begins = TEMPLATES[name]
    control = sorted({*LIKES.findall(template), *([bos] if bos else []), eos, "<|pad|>"} - {"<think>", "</think>"})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["How long do eggs take? Six minutes."] * 2, trainer)
    tokenizer.add_special_tokens(control)
    if begins:
        place = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, place)])
    whole = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos, chat_template=template
    )
    whole.save_pretrained(folder)
    return folder


@pytest.fixture
def noon(monkeypatch):
    """transformers' clock stands still on the day that our renderings name."""

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return chat_templates.DAY

    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Frozen)


def their_ids(tokenizer, prompt, answer, **more):
    chat = [*prompt, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(chat, return_dict=False, **more)


def in_parts(prompt):
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in prompt]


@pytest.mark.parametrize("kind", DIALOGUES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_transformers_own_rendering(name, kind, tmp_path, noon, capsys):
    prompt, answer = DIALOGUES[kind]
    ours = load_tokenizer(made(name, tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = as_responses([prompt], [answer])
    if (name, kind) in REFUSED:
        with pytest.raises(UserError, match="the chat template does not take 1 of 1 texts"):
            tokenize_responses(ours, rows, max_length=LENGTH)
        return
    found = tokenize_responses(ours, rows, max_length=LENGTH).flat.tolist()
    if name == "llava":  # transformers passes over strings here; in parts it sees what we see
        wanted = their_ids(theirs, in_parts(prompt), [{"type": "text", "text": answer}])
    else:
        wanted = their_ids(theirs, prompt, answer)
    assert found == wanted
    bos = TEMPLATES[name][1]
    if bos and TEMPLATES[name][0].count("bos_token") and bos != TEMPLATES[name][2]:
        assert found.count(theirs.convert_tokens_to_ids(bos)) == 1
        assert found[0] == theirs.convert_tokens_to_ids(bos)
    told = capsys.readouterr().err
    assert ("leaves out text" in told) == ((name, kind) in LEFT_OUT), told
    assert f"of role {LEFT_OUT.get((name, kind), '')}" in told or (name, kind) not in LEFT_OUT
    again = tokenize_responses(ours, as_responses([in_parts(prompt)], [answer]), max_length=LENGTH)
    assert again.flat.tolist() == found


@pytest.mark.parametrize("name", ["llama3.1", "smollm3", "gpt-oss"])
def test_no_day_changes_a_token(name, tmp_path, monkeypatch):
    ours, rows = load_tokenizer(made(name, tmp_path)), as_responses(["How?"], ["So."])
    before = tokenize_responses(ours, rows, max_length=LENGTH).flat
    real = datetime.datetime

    class Other(real):
        @classmethod
        def now(cls, tz=None):
            return real(2031, 1, 2)

    theirs = their_ids(ours, [{"role": "user", "content": "How?"}], "So.")
    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Other)
    np.testing.assert_array_equal(tokenize_responses(ours, rows, max_length=LENGTH).flat, before)
    assert their_ids(ours, [{"role": "user", "content": "How?"}], "So.") != theirs
    assert {"26", "2024"} <= set(re.findall(r"\w+", str(ours.decode(before))))


def test_what_was_fixed_once_stays(tmp_path):
    for name in TEMPLATES:
        tokenizer = load_tokenizer(made(name, tmp_path / name))
        tokenizer.chat_template = once = chat_templates.fixed(tokenizer)
        assert chat_templates.fixed(tokenizer) == once
        assert (once == TEMPLATES[name][0]) == (name not in ("llama3.1", "smollm3", "gpt-oss", "llava"))


SIZES: Any = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}


@pytest.fixture(scope="module")
def scored():
    """One decoder for all tokenizers, with more tokens than any has; its parameters, head, and rewards of rows."""
    config = LMConfig(family="llama", vocab_size=512, max_positions=LENGTH, **SIZES)
    params = jax.jit(backbone.init, static_argnums=0)(config, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf * 4, params)
    weight = np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32)
    states = jax.jit(functools.partial(backbone.hidden_states, config))

    def rewards(table) -> list[float]:
        """The rewards of our states at the texts' last tokens."""
        tokens, lengths = np.zeros((2, LENGTH), np.int32), np.diff(table.offsets)
        for row, ids in zip(tokens, np.split(table.flat, table.offsets[1:-1]), strict=True):
            row[: len(ids)] = ids
        mask = np.arange(LENGTH) < lengths[:, None]
        hidden = np.asarray(states(params, jnp.asarray(tokens), jnp.asarray(mask)))
        return [float(hidden[row, length - 1] @ weight[0]) for row, length in enumerate(lengths)]

    return config, params, weight, rewards


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_export_is_read_at_the_same_token_by_transformers(name, tmp_path, scored):
    torch = pytest.importorskip("torch", reason="transformers' own classifiers are in torch")
    tokenizer = load_tokenizer(made(name, tmp_path / "base"))
    prompts, answers = zip(*(DIALOGUES[kind] for kind in ("plain", "turns")), strict=True)
    table = tokenize_responses(tokenizer, as_responses(prompts, answers), max_length=LENGTH)
    config, params, weight, rewards = scored
    pad: Any = tokenizer.pad_token_id
    config = dataclasses.replace(config, pad_token_id=pad)
    classifier.save_classifier(tmp_path / "out", config, params, weight, labels=["reward"], tokenizer=tokenizer)
    ids = np.split(table.flat, table.offsets[1:-1])
    ours = rewards(table)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chats = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(prompts, answers, strict=True)]
    texts = theirs.apply_chat_template(chats, tokenize=False)
    assert [theirs(text, add_special_tokens=False)["input_ids"] for text in texts] == [one.tolist() for one in ids]
    bos = TEMPLATES[name][1]
    if bos is None or bos in texts[0]:  # and no second beginning of sequence
        assert theirs(texts)["input_ids"] == [one.tolist() for one in ids]
    for side in ("left", "right"):
        batch = theirs(texts, add_special_tokens=False, padding=True, padding_side=side, return_tensors="pt")
        with torch.no_grad():
            found = model(**batch.to(model.device)).logits[:, 0].numpy()
        np.testing.assert_allclose(found, ours, rtol=1e-4, atol=1e-4)
    cut = theirs(texts, add_special_tokens=False, truncation=True, max_length=12)["input_ids"]
    short = tokenize_responses(tokenizer, as_responses(prompts, answers), max_length=12)
    assert cut == [one.tolist() for one in np.split(short.flat, short.offsets[1:-1])]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random decoder with the tokenizer of Qwen 2.5's template."""
    folder = made("qwen2.5", tmp_path_factory.mktemp("base"))
    size = len(load_tokenizer(folder))
    config = LMConfig(family="llama", vocab_size=size, max_positions=LENGTH, lm_head=False, **SIZES)
    checkpoint.save(folder, config, jax.jit(backbone.init, static_argnums=0)(config, jax.random.key(0)))
    return folder


def test_each_token_has_its_role_and_the_scored_one_is_the_last(base):
    text = open_text(str(base))
    rows = as_responses([DIALOGUES["turns"][0], "How?"], ["Soft 🙂.", "It is <|im_end|> so."])
    found, literal = rendering.render(text, rows)
    by_role = {role: "".join(p.text for p in found.pieces if p.role == role) for role in rendering.COLOURS}
    assert by_role["user"] == "How long do  eggs take,\nin 2024?Soft."
    assert by_role["assistant"] == "How soft?Soft 🙂."
    assert by_role["template"].startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user"
    )
    assert "".join(piece.text for piece in found.pieces) == text.tokenizer.decode([p.number for p in found.pieces])
    assert found.read == len(found.pieces) - 1
    assert (found.cut, literal.cut) == (0, 0)
    assert {piece.role for piece in literal.pieces} == {"unknown"}
    short = rendering.render(open_text(str(base), max_length=9), rows)[0]
    assert short.pieces == found.pieces[-9:]
    assert short.cut == len(found.pieces) - 9
    mean = rendering.render(open_text(str(base), pooling="mean"), rows)[0]
    assert mean.read is None
    assert "mean of all" in rendering.summary(mean)


def test_the_command_shows_tokens_in_a_table_in_colours_and_in_a_page(base, tmp_path, capsys, monkeypatch):
    votes = tmp_path / "votes.jsonl"
    line = {"user": "ada", "prompt": "Is 1 < 2 & 3?", "chosen": "<b>Yes</b>.", "rejected": "No."}
    votes.write_text(json.dumps(line) + "\n")
    assert main(["data", "render", str(votes), "--base", str(base), "--count", "1"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall("<- score", out)) == 1
    assert re.search(r"\d+  user +'Is'|\d+  user +'I'", out)
    assert "\033" not in out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["data", "render", str(votes), "--base", str(base)]) == 0
    assert "\033[38;5;75m" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["data", "render", str(votes), "--base", str(base), "--html", str(page)]) == 0
    shown = html.unescape(re.sub("<[^>]*>", "", page.read_text()))
    assert "Is 1 < 2 & 3?" in shown
    assert "<b>Yes" in shown
    assert "<b>" not in page.read_text()
    assert main(["data", "render", str(votes), "--base", str(base), "--first", "2"]) == 2
    assert "there are 2 responses" in capsys.readouterr().err
