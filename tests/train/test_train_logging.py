import json

import numpy as np
import pytest

from pref_jax.errors import UserError
from pref_jax.train.logging import MetricsLog, read_metrics


def open_log(folder, **options):
    return MetricsLog(folder, **{"name": "toy", "tensorboard": False, **options})


def test_lines_are_json_without_nan(tmp_path):
    with open_log(tmp_path / "run") as log:
        log.write(1, {"loss": np.float32(0.5), "bad": float("nan"), "none": None}, only_shown={"speed": 3.0})
        log.write(2, {"loss": float("inf")})
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (
        '{"name": "toy", "step": 1, "loss": 0.5, "bad": null, "none": null}\n{"name": "toy", "step": 2, "loss": null}\n'
    )
    with pytest.raises(ValueError, match="closed"):
        log.write(3, {})


@pytest.mark.parametrize("tail", ["", '{"name": "toy", "st', '{"name": "toy", "step": 2}', "\n[1]\n", "\udcff"])
def test_resuming_drops_later_and_torn_lines_of_this_name(tmp_path, tail):
    with open_log(tmp_path) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step})
    with open_log(tmp_path, name="other") as log:
        log.write(9, {"loss": 0})
    path = tmp_path / "metrics.jsonl"
    with path.open("a", errors="surrogateescape") as file:
        file.write(tail)
    with open_log(tmp_path, step=2) as log:
        log.write(3, {"loss": 33})
    lines = [(line["name"], line["step"], line["loss"]) for line in map(json.loads, path.read_text().splitlines())]
    assert lines == [("toy", 1, 1), ("toy", 2, 2), ("other", 9, 0), ("toy", 3, 33)]
    assert [line["step"] for line in read_metrics(tmp_path, "toy")] == [1, 2, 3]
    assert len(read_metrics(tmp_path)) == 4


def test_a_new_run_starts_empty_and_an_untouched_file_is_not_rewritten(tmp_path):
    with open_log(tmp_path) as log:
        log.write(1, {})
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    open_log(tmp_path, step=1).close()
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before
    open_log(tmp_path).close()
    assert read_metrics(tmp_path) == []
    assert read_metrics(tmp_path / "nowhere") == []


def test_tensorboard_files_hold_the_scores(tmp_path):
    with open_log(tmp_path, tensorboard=True) as log:
        log.write(7, {"loss": 0.25, "none": None}, only_shown={"speed": 3.0})
    (file,) = (tmp_path / "tensorboard" / "toy").iterdir()
    content = file.read_bytes()
    assert b"toy/loss" in content
    assert b"toy/speed" in content
    assert b"toy/none" not in content


def test_wandb_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        open_log(tmp_path, wandb="project")
