"""Embedding as an experiment: any backbone, told mistakes, and SIGKILL in the middle costs nothing.

The file is its own victim: `python test_embed.py BACKBONE VOTES WORKDIR` embeds.
"""

import contextlib
import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from configs import jsonl
from experiments import embed
from experiments.prepare import prepare
from experiments.runner.workspace import workspaces
from pref_jax.data.text.tokenization import train_tokenizer
from pref_jax.errors import UserError
from pref_jax.files import read_json
from pref_jax.lm import backbone as lm
from pref_jax.lm import checkpoint, features

ROOT = Path(__file__).parents[2]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DECODER = tiny.llama(vocab_size=400, max_positions=64)
ENCODER = tiny.bert(vocab_size=400, max_positions=64)


def config_of(backbone: Path, votes: Path, **section: Any) -> Any:
    config: Any = jsonl.get_config()
    config.source.path, config.backbone.name = str(votes), str(backbone)
    config.backbone.update({"max_length": 60, "batch_size": 8, **section})
    return config


def main(backbone: str, votes: str, workdir: str) -> None:
    features.embed = functools.partial(features.embed, save_every=0.0)
    embed.run(config_of(Path(backbone), Path(votes)), Path(workdir))


@pytest.fixture(scope="module")
def votes(tmp_path_factory):
    rng = np.random.default_rng(0)

    def text(longest):
        return " ".join(rng.choice(WORDS, rng.integers(1, longest)))

    rows = [
        {"user": f"u{i % 9}", "prompt": text(20), "chosen": f"{i} {text(60)}", "rejected": f"{i} {text(9)} no"}
        for i in range(400)
    ]
    file = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name, config in {"decoder": DECODER, "encoder": ENCODER}.items():
        found[name] = tmp_path_factory.mktemp(name)
        checkpoint.save(found[name], config, jax.jit(lm.init, static_argnums=0)(config, jax.random.key(0)))
        tokenizer = train_tokenizer([" ".join(WORDS)], vocab_size=320)
        if name == "encoder":
            tokenizer.chat_template = None
        tokenizer.save_pretrained(found[name])
    return found


def prepared(workdir: Path, config: Any):
    run = next(workspaces(config, workdir))
    prepare(run)
    return run


def start(folders, votes: Path, workdir: Path) -> subprocess.Popen:
    # One device, as on a user's machine.
    command = [sys.executable, __file__, str(folders["decoder"]), str(votes), str(workdir)]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, env=environment, stderr=log, stdout=log)


def test_killed_while_it_embeds_it_goes_on_to_the_same_bytes(folders, votes, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    aside = start(folders, votes, undisturbed)
    victim, progress = start(folders, votes, killed), killed / "seed_0" / ".features.part" / "progress.json"
    end = time.monotonic() + 180
    while victim.poll() is None and not (progress.exists() and read_json(progress)["batches"] > 5):
        assert time.monotonic() < end, "the run hangs"
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "it ended before it could be killed"
    before = read_json(progress)["batches"]
    resumed = start(folders, votes, killed)
    seen = []
    while resumed.poll() is None:
        with contextlib.suppress(UserError):  # the folder has got its name
            seen.append(read_json(progress)["batches"])
        time.sleep(0.005)
    assert resumed.wait(180) == 0, killed.with_suffix(".log").read_text()[-3000:]
    assert min(seen) >= before, "what was done is done again"
    assert aside.wait(180) == 0, undisturbed.with_suffix(".log").read_text()[-3000:]
    ours, theirs = killed / "seed_0" / "features", undisturbed / "seed_0" / "features"
    assert (ours / "features.npy").read_bytes() == (theirs / "features.npy").read_bytes()
    facts = read_json(ours / "features.json")
    assert facts["tokens_per_second"] * facts["seconds"] == pytest.approx(facts["tokens"])
    same = set(facts) - {"seconds", "tokens_per_second"}
    assert {key: facts[key] for key in same} == {key: read_json(theirs / "features.json")[key] for key in same}
    assert not list(killed.rglob(".*.part"))


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_every_response_is_embedded_on_all_devices_packed_or_not(folders, votes, tmp_path, name, capfd):
    found = []
    for packing in (False, True):
        run = prepared(tmp_path / str(packing), config_of(folders[name], votes, packing=packing))
        embed.embed(run)
        found.append(run.features)
        facts = read_json(run.folder / "features" / "features.json")
        tokens = run.texts.tokens
        assert facts["truncated"] == tokens.truncated > 0
        assert (
            f"{tokens.truncated} of {len(tokens.lengths)} texts cut to their last 60 tokens" in capfd.readouterr().err
        )
    assert found[0].shape == (run.data.responses.num_rows, 16)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_layer_and_pooling_of_the_config_are_used(folders, votes, tmp_path):
    run = prepared(tmp_path, config_of(folders["decoder"], votes, layer=0, pooling="mean"))
    embed.embed(run)
    table = checkpoint.load(folders["decoder"])[1]["embed"]["embedding"]
    tokens = run.texts.tokens
    for i in (0, 7):
        own = tokens.flat[tokens.offsets[i] : tokens.offsets[i + 1]]
        np.testing.assert_allclose(run.features[i], table[own].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "section", "words"),
    [
        ("decoder", {"max_length": 65}, r"max_length is 65.*at most 64.*--config\.backbone\.max_length=64"),
        ("decoder", {"pooling": "max"}, r"pooling is 'max'; give last, first, mean, or nothing for the model's own"),
        ("decoder", {"layer": 3}, r"layer 3 of a model of 2 blocks"),
        ("decoder", {"chat_template": "none.jinja"}, r"none\.jinja: no readable chat template"),
    ],
)
def test_mistakes_in_the_config_are_told(folders, votes, tmp_path, name, section, words):
    run = prepared(tmp_path, config_of(folders[name], votes, **section))
    with pytest.raises(UserError, match=words):
        embed.embed(run)


def test_a_decoder_needs_a_chat_template_and_takes_one_from_the_config(folders, votes, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in (*folders["decoder"].glob("*.safetensors"), folders["decoder"] / "config.json"):
        (bare / file.name).symlink_to(file)
    # The encoder's tokenizer has no template.
    for file in folders["encoder"].glob("tokenizer*"):
        (bare / file.name).symlink_to(file)
    run = prepared(tmp_path / "without", config_of(bare, votes))
    with pytest.raises(UserError, match=r"bare: the tokenizer has no chat template.*--config\.backbone\.chat_template"):
        assert run.texts.tokens
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    run = prepared(tmp_path / "with", config_of(bare, votes, chat_template=str(template)))
    assert len(run.texts.tokens.lengths) == run.data.responses.num_rows


if __name__ == "__main__":
    main(*sys.argv[1:])
