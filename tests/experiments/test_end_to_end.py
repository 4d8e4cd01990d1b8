"""The whole road on the tiny world: it ends, resumes after SIGKILL to the same numbers, and refuses bad folders."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import quickstart
from copl_jax.io import checkpoint
from experiments import compare, export
from experiments.runner import cli
from experiments.runner.workspace import workspaces
from pref_jax.data import preferences
from pref_jax.errors import UserError
from pref_jax.eval.reporting.results import read_results
from pref_jax.lm.checkpoint import load_config

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "experiments.quickstart", "--config=configs/quickstart.py:smoke"]
# One device, as on a user's machine: the tests' own fake devices would divide the sums otherwise.
ENVIRONMENT = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
# Stages leave these; the run is killed soon after each appears, that is within the next stage.
MARKS = ("data", "pretrain/checkpoints", "graph", "copl/checkpoints", "copl/model")


def _config(variant: str = "") -> Any:
    return quickstart.get_config(variant)


def _metrics(workdir: Path) -> list:
    rows = read_results(workdir / "results.json")["rows"]
    return [(row["method"], row["seed"], row["metrics"], row["intervals"]) for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("road") / "run"
    done = subprocess.run(
        [*COMMAND, f"--workdir={workdir}"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def test_every_promised_file_is_there(undisturbed):
    found = {path.name for path in undisturbed.iterdir()}
    assert {"config.json", "results.json", "report.md", "plots"} <= found
    methods = {row["method"] for row in read_results(undisturbed / "results.json")["rows"]}
    assert methods == set(_config().methods)
    pictures = {path.name for path in (undisturbed / "plots").iterdir()}
    assert pictures == {"accuracy.png", "embeddings.png", "graph.png", "training.png", "experts.png", "gates.png"}
    report = (undisturbed / "report.md").read_text()
    assert all(f"plots/{name}" in report for name in pictures)
    assert (undisturbed / "seed_0" / "copl" / "metrics.jsonl").is_file()


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_in_the_same_numbers(undisturbed, tmp_path):
    workdir, kills = tmp_path / "run", 0
    for mark in MARKS:
        process = subprocess.Popen(
            [*COMMAND, f"--workdir={workdir}"],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (workdir / "seed_0" / mark).is_dir():
            time.sleep(0.02)
        time.sleep(0.3)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= len(MARKS) - 1
    done = subprocess.run(
        [*COMMAND, f"--workdir={workdir}"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert _metrics(workdir) == _metrics(undisturbed)
    assert not list(workdir.rglob(".*.part"))


def test_a_finished_run_repeated_changes_no_number(undisturbed):
    before = _metrics(undisturbed)
    config = _config("smoke")
    compare.run(config, undisturbed)
    assert _metrics(undisturbed) == before


def test_another_config_does_not_write_into_a_runs_folder(undisturbed):
    config = _config("smoke")
    config.source.seen_users = 25
    with pytest.raises(UserError, match=r"source\.seen_users: there 24, now 25"):
        list(workspaces(config, undisturbed))


def test_unknown_methods_and_bad_seeds_are_told(tmp_path):
    config = _config("smoke")
    config.methods = ("CoPL", "CoPI")
    with pytest.raises(UserError, match="unknown CoPI"):
        compare.run(config, tmp_path / "a")
    config = _config("smoke")
    config.seeds = ()
    with pytest.raises(UserError, match="seeds"):
        compare.run(config, tmp_path / "b")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("seed_0/backbone/model.safetensors", "model.safetensors"),
        ("seed_0/data/comparisons.arrow", "comparisons.arrow"),
        ("seed_0/features/features.npy", "features.npy"),
    ],
)
def test_a_truncated_file_is_told_and_named(undisturbed, tmp_path, damage, words):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", str(undisturbed), str(workdir)], check=True)
    file = workdir / damage
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for folder in ("lore", "copl"):
        subprocess.run(["rm", "-r", str(workdir / "seed_0" / folder / "scores")], check=True)
    with pytest.raises(UserError, match=words):
        compare.run(_config("smoke"), workdir)


def test_results_hold_what_the_margins_say(undisturbed):
    facts = json.loads((undisturbed / "seed_0/copl/scores/facts.json").read_text())
    usage = np.array(next(iter(facts["expert_usage"].values())))
    np.testing.assert_allclose(usage.sum(axis=1), 1)
    assert len(facts["gates"]) == len(usage) == facts["num_gates"]
    assert sum(facts["dead_experts_by_gate"]) == facts["dead_experts"]


def _export(capsys, *flags: str) -> str:
    """What the command says; a user's mistake raises SystemExit."""
    argv = ["export", "--config=configs/quickstart.py:smoke", *flags]
    cli.launch(export.run, "doc", define=export.define, argv=argv)
    return capsys.readouterr().out


def test_one_users_reward_model_is_exported(undisturbed, tmp_path, capsys):
    user = preferences.load(undisturbed / "seed_0" / "data").users["user_id"].to_pylist()[3]
    workdir, out = f"--workdir={undisturbed}", tmp_path / "out"
    assert user in _export(capsys, workdir, f"--user={user}", f"--out={out}")
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert config["base_model_name_or_path"] == str(undisturbed / "seed_0" / "backbone")
    _export(capsys, workdir, f"--out={out}", "--seed=0")
    lm = load_config(undisturbed / "seed_0" / "backbone")
    inside, outside = (checkpoint.load(folder, lm) for folder in (undisturbed / "seed_0/copl/model/adapters", out))
    assert inside.config == outside.config
    jax.tree.map(np.testing.assert_array_equal, inside.params, outside.params)
    # Unseen users, who joined after training, are in the exported table.
    assert inside.user_embeddings is not None
    assert outside.user_embeddings is not None
    seen = np.linalg.norm(inside.user_embeddings, axis=1) > 0
    np.testing.assert_array_equal(outside.user_embeddings[seen], inside.user_embeddings[seen])
    assert (np.linalg.norm(outside.user_embeddings, axis=1) > 0).all()
    _export(capsys, workdir, f"--user={user}", f"--out={out}", "--method=shared reward")
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    for flags, words in (
        ([f"--out={out}", "--user=nobody"], "--user=nobody: not in"),
        ([], "no --out given"),
        ([f"--out={out}", "--seed=9"], "config.seeds has 0"),
        ([f"--out={out}", "--method=LoRe"], "run python -m experiments.compare"),
        ([f"--out={undisturbed}"], "holds other things than an export, such as config.json"),
        ([f"--out={undisturbed / 'config.json'}"], "is a file"),
    ):
        with pytest.raises(SystemExit) as stop:
            _export(capsys, workdir, *flags)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
