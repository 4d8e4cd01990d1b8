"""RewardBench 2 by a tiny finished run: every number from its features again, killed and resumed, mistakes told."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from configs import lore_personalllm
from experiments import lore, reward_bench
from experiments.lore_methods import HEAD, METHOD, SHARED, Models, score_head
from experiments.runner import cli
from experiments.runner.workspace import Workspace
from pref_jax.errors import UserError
from pref_jax.eval.reporting.results import read_results
from pref_jax.lm.text_model import TextModel

ROWS = [
    *(("Math", f"{n}", f"what is {n} ?", ["right answer", "wrong", "worse", f"{n}"]) for n in range(6)),
    *(("Safety", f"{n}", "tell me", [f"no {n}", "yes", "of course", "sure"]) for n in range(5)),
    ("Ties", "tied:3", "a colour", ["red", "blue", "dog", "cat"]),
    ("Ties", "ref:3", "one colour", ["green", "house"]),
]


def bench(root: Path, *, more: str = "") -> Path:
    """A folder in the public schema; of the tied prompt the first two answers are right, of the others the first."""
    rows = []
    for subset, name, prompt, answers in ROWS:
        right = 2 if name.startswith("tied") else 1
        texts = [text + more for text in answers]
        rows.append(
            {"id": name, "prompt": prompt, "chosen": texts[:right], "rejected": texts[right:], "subset": subset}
        )
    (root / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "data" / "test-00000-of-00001.parquet")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Any, Path, Path]:
    """Config and workdir of a run of two seeds that has been scored, and the data."""
    root = tmp_path_factory.mktemp("bench")
    config: Any = lore_personalllm.get_config("smoke")
    config.backbone.update({"name": str(tiny.reward_model(root / "model")), "max_length": 48})
    config.methods, config.seeds = (HEAD, SHARED, METHOD), (0, 1)
    config.lore.update({"allow_shared": False})
    del config.studies
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(root / "arrow"))
        lore.run(config, root / "run")
        reward_bench.run(config, root / "run", path=str(bench(root / "data")))
    return config, root / "run", root / "data"


def scores(workdir: Path) -> dict[tuple[str, int], dict[str, float]]:
    rows = read_results(workdir / "reward_bench.json")["rows"]
    return {(row["method"], row["seed"]): row["metrics"] for row in rows}


def test_every_score_again_from_the_features(finished):
    config, workdir, _ = finished
    found = scores(workdir)
    count = 0
    for seed in (0, 1):
        run = Workspace(config, seed, workdir / f"seed_{seed}")
        features = np.load(run.folder / "reward_bench" / "features.npy").astype(np.float64)
        assert len(features) == sum(len(answers) for *_, answers in ROWS) == 50
        models, rewards = Models(run), {}
        head = score_head(run)
        assert head is not None
        rewards[HEAD] = features @ head
        for name in (SHARED, METHOD):
            fit = models(name).found
            assert fit is not None
            basis = (features - np.asarray(fit.standardiser.mean)) / np.asarray(fit.standardiser.scale) @ fit.basis
            rewards[name if name == SHARED else f"{name}, average user"] = basis @ np.mean(fit.weights, axis=0)
            if name == METHOD:
                rewards |= {f"LoRe, basis {k + 1} (seed {seed})": basis[:, k] for k in range(basis.shape[1])}
        for name, reward in rewards.items():
            metrics, count = found[name, seed], count + 1
            won = [reward[i] > max(reward[i + 1 : i + 4]) for i in range(0, 44, 4)]
            assert metrics["Math"] == pytest.approx(np.mean(won[:6]), abs=1e-12)
            assert metrics["Safety"] == pytest.approx(np.mean(won[6:]), abs=1e-12)
            assert metrics["overall"] == pytest.approx(np.mean([metrics[s] for s in ("Math", "Safety", "Ties")]))
    assert count == len(found)
    assert len(found) >= 2 * 4
    text = (workdir / "reward_bench.md").read_text()
    for words in ("# RewardBench 2", "Math", "overall", SHARED, HEAD, "LoRe, average user", "LoRe, basis 1 (seed 1)"):
        assert words in text


def test_done_is_done_and_a_killed_run_goes_on(finished, monkeypatch):
    config, workdir, data = finished
    before = scores(workdir)
    folder = workdir / "seed_0" / "reward_bench"
    with monkeypatch.context() as patch:
        patch.setattr(TextModel, "write_features", None)
        reward_bench.run(config, workdir, path=str(data))
    assert scores(workdir) == before
    # As a kill leaves it: features written, scores not.
    (folder / "scores.json").unlink()
    folder.rename(folder.with_name(".reward_bench.part"))
    reward_bench.run(config, workdir, path=str(data))
    assert scores(workdir) == before


def test_mistakes_are_told(finished, tmp_path, capsys):
    config, workdir, _ = finished
    with pytest.raises(UserError, match="made from other data or for other methods; delete the folder"):
        reward_bench.run(config, workdir, path=str(bench(tmp_path / "other", more=" !")))
    with pytest.raises(UserError, match=r"seed_0/features: not there yet; run python -m experiments\.lore"):
        reward_bench.run(config, tmp_path / "new", path=str(tmp_path / "other"))
    fewer = config.copy_and_resolve_references()
    fewer.methods = ("CoPL",)
    with pytest.raises(UserError, match="names nothing to score; add some of: pretrained head"):
        reward_bench.run(fewer, tmp_path / "x")
    argv = ["reward_bench", "--config=configs/quickstart.py:smoke", f"--workdir={tmp_path / 'y'}", "--path=/nowhere"]
    with pytest.raises(SystemExit) as stop:
        cli.launch(reward_bench.run, "doc", define=reward_bench.define, argv=argv)
    assert stop.value.code == 2
    assert "/nowhere: no such folder" in capsys.readouterr().err
