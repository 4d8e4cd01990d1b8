"""A workdir's guards as a user meets them: files that change, another process, votes that nobody can tell apart."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from configs import compare_small, jsonl
from experiments import compare, lore
from experiments.prepare import prepare_votes
from experiments.runner import cli
from experiments.runner.workspace import workspaces
from pref_jax.errors import UserError
from pref_jax.eval.metrics import user_accuracy
from pref_jax.files import read_json

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pref_jax.locks import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(99)
"""
STRICT = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}x"
THINK = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}<|end_of_{{ m.role }}|>{% endfor %}"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[int]:
    """Another process in the folder; its number."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"held\n"
            yield process.pid
        finally:
            process.kill()


def rows() -> list[dict[str, Any]]:
    """Of u0 to u5 every third vote is on texts whose difference the template leaves out, of `blind` every one."""
    found = []
    for user in range(7):
        for number in range(12):
            long, short = f"A long answer to {number}, which goes on.", f"Short {number}."
            pair = [long, short] if user % 2 else [short, long]
            if number % 3 == 0 or user == 6:
                pair = [f"{number} one</think>The same.", f"{number} two</think>The same."]
            name, split = "blind" if user == 6 else f"u{user}", ("train", "train", "validation", "test")[number % 4]
            row = {
                "user": name,
                "prompt": f"Question {number}?",
                "chosen": pair[0],
                "rejected": pair[1],
                "split": split,
            }
            found.append(row)
    return found


def write(path: Path, votes: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in votes))
    return path


def config_of(votes: Path, base: Path, template: Path) -> Any:
    config: Any = jsonl.get_config("linear")
    config.source.update({"path": str(votes), "unseen_fraction": 0.0})
    config.backbone.update({"name": str(base), "chat_template": str(template), "max_length": 48})
    config.lore.update({"steps": 5, "ranks": (1,), "components": (2,), "variances": (3.0,), "shared_variances": (1.0,)})
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder of votes, base, template and a finished run on them."""
    folder = tmp_path_factory.mktemp("guarded")
    tiny.reward_model(folder / "base")
    (folder / "think.jinja").write_text(THINK)
    write(folder / "votes.jsonl", rows())
    lore.run(config_of(folder / "votes.jsonl", folder / "base", folder / "think.jinja"), folder / "run")
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_votes_on_equal_tokens_are_left_out_of_training_and_scores(finished):
    config = config_of(finished / "votes.jsonl", finished / "base", finished / "think.jinja")
    work = next(workspaces(config, finished / "run"))
    table, responses = work.data.comparisons, work.data.responses["text"]
    left = [row["chosen"] for row in table.to_pylist()]
    assert len(left) == 6 * 8
    assert not any("</think>" in responses[row].as_py() for row in left)
    counts = work.data.meta["same_tokens"]
    assert sum(counts.values()) == 6 * 4 + 12
    report = (finished / "run" / "report.md").read_text()
    assert f"{counts['test']} of {counts['test'] + len(work.test_pairs.user)} test votes" in report
    (row,) = (row for row in read_json(finished / "run" / "results.json")["rows"] if row["method"] == "LoRe")
    assert row["metrics"]["same_tokens/test"] == counts["test"]
    margins = work.scores("LoRe")[0]
    assert margins.shape == work.test_pairs.user.shape
    assert (margins != 0).all()
    assert row["intervals"]["seen/accuracy"]["n"] == 6, "who has no other test votes is in no mean"
    assert user_accuracy(margins, work.test_pairs.user, 7).pairs.sum() == len(margins)
    assert np.isfinite(list(row["metrics"].values())).all()


@pytest.mark.parametrize("name", ["votes.jsonl", "think.jinja", "base/model.safetensors", "base/tokenizer.json"])
def test_a_finished_run_refuses_changed_files(copied, name):
    # The workdir's config names the first folder, whose files the copies stand in for.
    config = config_of(copied / "votes.jsonl", copied / "base", copied / "think.jinja")
    workdir = copied / "run"
    text = (workdir / "config.json").read_text().replace(str(read_json(workdir / "config.json")["source"]["path"]), "@")
    base = str(read_json(workdir / "config.json")["backbone"]["name"])
    text = text.replace(base[: -len("/base")], str(copied)).replace("@", str(copied / "votes.jsonl"))
    (workdir / "config.json").write_text(text)
    list(workspaces(config, workdir))
    file = copied / name
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"{name} is not the file that \S+ was made from; use a new workdir, or put"):
        lore.run(config, workdir)
    file.write_bytes(before)
    list(workspaces(config, workdir))


def test_files_may_be_mended_until_something_is_made_of_them(finished, tmp_path):
    own = Path(shutil.copytree(finished / "base", tmp_path / "base"))
    (tmp_path / "own.jinja").write_text(STRICT)
    bad = {**rows()[1], "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]}
    config = config_of(write(tmp_path / "votes.jsonl", [{"user": "u0"}]), own, tmp_path / "own.jinja")
    with pytest.raises(UserError, match=r"votes\.jsonl:1"):
        lore.run(config, tmp_path / "run")
    write(tmp_path / "votes.jsonl", [*rows(), bad])
    with pytest.raises(
        UserError, match=r"(?s)take 2 of \d+ texts:\n  response \d+ .* to 'Why\?', voted on by 'u0': no"
    ):
        lore.run(config, tmp_path / "run")
    (tmp_path / "own.jinja").write_text("{{ 1 // 0 }}")
    with pytest.raises(UserError, match=r"(?s)ZeroDivisionError.*and \d+ more"):
        lore.run(config, tmp_path / "run")
    write(tmp_path / "votes.jsonl", rows())
    with pytest.raises(UserError, match=r"votes\.jsonl is not the file"):  # tables have been made
        lore.run(config, tmp_path / "run")


def test_a_test_of_equal_tokens_alone_is_an_error(finished, tmp_path):
    votes = [row for row in rows() if row["split"] != "test" or "</think>" in row["chosen"]]
    config = config_of(write(tmp_path / "votes.jsonl", votes), finished / "base", finished / "think.jinja")
    with pytest.raises(UserError, match=r"all 9 test votes are on two texts that are the same tokens"):
        prepare_votes(next(workspaces(config, tmp_path / "run")))


# --- another process ---


def test_a_second_command_is_told_who_is_there(tmp_path, capsys):
    argv = ["prog", "--config=configs/jsonl.py:linear", f"--workdir={tmp_path}"]
    ran = []
    with held(tmp_path) as pid:
        with pytest.raises(SystemExit) as stop:
            cli.launch(lambda config, workdir: ran.append(workdir), "doc", argv=argv)
        assert stop.value.code == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: {tmp_path} is in use by process {pid} on ")
        assert "Traceback" not in told
    assert ran == []
    cli.launch(lambda config, workdir: ran.append(workdir), "doc", argv=argv)
    assert ran == [tmp_path]


def test_processes_that_share_the_work_hold_their_own_data_sets(tmp_path, monkeypatch):
    config: Any = compare_small.get_config("smoke")
    done: list[str] = []
    config.keep_compiled = False
    monkeypatch.setattr(compare, "train", lambda own, workdir: done.append(workdir.name))
    monkeypatch.setattr(compare, "_tabulate", lambda *_: done.append("table"))
    first, second = [name for name in config.datasets if config.datasets[name].source.get("path", None) != ""][:2]
    with held(tmp_path / first) as pid:
        compare.run(config, tmp_path, only=[second])
        assert done == [second]
        for only in ([first], [second, first], []):
            with pytest.raises(UserError, match=rf"{first} is in use by process {pid} on"):
                compare.run(config, tmp_path, only=only)
        assert done == [second], "the first is left alone"
    monkeypatch.setattr(compare, "SHORTLY", 0.0)
    with held(tmp_path), pytest.raises(UserError, match="in use"):  # a process that does all of it
        compare.run(config, tmp_path, only=[second])
    compare.run(config, tmp_path)
    assert done[-1] == "table"
