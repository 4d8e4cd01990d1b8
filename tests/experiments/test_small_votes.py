"""From a few votes to a report: no shape of one to three users, prompts and votes ends in a traceback or a NaN."""

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import jsonl
from experiments import compare
from experiments.runner.workspace import workspaces
from pref_jax.errors import UserError
from tests import tiny

LORE = {"ranks": (1,), "components": (), "clusters": 0, "shared_variances": (0.1, 1.0), "variances": (3.0,)}
NO_TEST = "no vote can be kept for a test"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.reward_model(tmp_path_factory.mktemp("base") / "model")


def votes(users: int, prompts: int, each: int, how: str = "alike") -> list[dict[str, Any]]:
    """`each` votes of every user on each prompt, of three responses: all alike, opposed by turns, or contradicting."""
    rows = []
    for user, prompt, vote in itertools.product(range(users), range(prompts), range(each)):
        pair = [("red", "blue"), ("red", "green"), ("blue", "green")][0 if how == "contradicting" else vote % 3]
        turned = (how == "opposed" and user % 2) or (how == "contradicting" and vote % 2)
        chosen, rejected = pair[::-1] if turned else pair
        rows.append({"user": f"u{user}", "prompt": f"q{prompt}", "chosen": chosen, "rejected": rejected})
    return rows


def config(base: Path, path: Path, rows: list[dict[str, Any]], methods: tuple[str, ...]) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: Any = jsonl.get_config()
    found.methods, found.source.path, found.backbone.name = methods, str(path), str(base)
    found.backbone.max_length, found.reward.optimizer.num_steps, found.graph.epochs = 32, 2, 5
    found.baselines.steps = (2, 3)
    found.reward.head.steps = 4
    found.lore = ConfigDict(LORE)
    return found


def run(config: Any, workdir: Path) -> dict[str, Any]:
    """The results; every file in JSON is read, and must hold neither NaN nor infinity."""

    def bad(word: str) -> None:
        raise AssertionError(f"{word} in a file")

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        compare.run(config, workdir)
    for file in workdir.rglob("*.json"):
        json.loads(file.read_text(), parse_constant=bad)
    assert "nan" not in (workdir / "report.md").read_text().lower().split()
    return json.loads((workdir / "results.json").read_text())


SHAPES = itertools.product((1, 2, 3), (1, 3), (1, 2))
HOW = itertools.cycle(("alike", "contradicting", "opposed", "opposed", "contradicting"))


@pytest.mark.parametrize(
    ("users", "prompts", "each", "how"), [(*shape, how) for shape, how in zip(SHAPES, HOW, strict=False)]
)
def test_linear_methods(base, tmp_path, users, prompts, each, how):
    rows = votes(users, prompts, each, how)
    settings = config(base, tmp_path / "votes.jsonl", rows, ("shared (features)", "per-user model", "LoRe"))
    if prompts * (1 if how == "contradicting" else each) == 1:
        with pytest.raises(UserError, match=NO_TEST):
            run(settings, tmp_path / "run")
        return
    found = {row["method"]: row["metrics"] for row in run(settings, tmp_path / "run")["rows"]}
    assert set(found) == set(settings.methods)
    (work,) = workspaces(settings, tmp_path / "run")
    if work.data.seen.sum() == 1:
        assert found["LoRe"]["seen/accuracy"] == found["shared (features)"]["seen/accuracy"]
        assert np.array_equal(work.scores("LoRe")[0], work.scores("shared (features)")[0])


@pytest.mark.parametrize(("users", "prompts", "each", "chooses"), [(1, 1, 2, False), (3, 1, 3, True)])
def test_methods_on_the_transformer(base, tmp_path, users, prompts, each, chooses):
    rows = votes(users, prompts, each, "opposed")
    methods = ("shared reward", "CoPL", "CoPL + shrinkage", "VPL (features)", "formatting-only")
    settings = config(base, tmp_path / "votes.jsonl", rows, methods)
    found = run(settings, tmp_path / "run")
    assert {row["method"] for row in found["rows"]} == set(methods)
    (work,) = workspaces(settings, tmp_path / "run")
    facts = work.scores("CoPL + shrinkage")[1]
    assert ("fallback" in facts) != chooses
    assert chooses or np.array_equal(work.scores("CoPL + shrinkage")[0], work.scores("shared reward")[0])
    assert chooses or "CoPL + shrinkage: no vote is held out" in (tmp_path / "run" / "report.md").read_text()
