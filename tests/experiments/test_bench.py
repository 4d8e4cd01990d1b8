"""Benchmarks run, at sizes that take seconds; what they measure is not judged here."""

import json

import pytest

from experiments import bench


@pytest.mark.parametrize(
    "run",
    [
        lambda: bench.gcf_recipe(users=40, dim=8),
        lambda: bench.lore_solve(users=20, sample=2),
        lambda: bench.adapt_unseen(seen=60, unseen=40, dim=8, sample=10),
        lambda: bench.prepare(small=2000, times=2),
    ],
    ids=list(bench.BENCHMARKS),
)
def test_a_result_has_the_promised_fields(run):
    result = json.loads(json.dumps(run()))
    assert set(result) == {"name", "size", "baseline_seconds", "seconds", "ratio", "extra"}
    assert result["ratio"] == pytest.approx(result["baseline_seconds"] / result["seconds"])
    assert result["extra"].get("largest_difference", 0.0) < 1e-5


@pytest.mark.parametrize("names", [[], ["gcf_recipe", "nothing"]])
def test_unknown_names_are_told(monkeypatch, capsys, names):
    monkeypatch.setattr("sys.argv", ["bench", *names])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2
    assert "gcf_recipe" in capsys.readouterr().err
