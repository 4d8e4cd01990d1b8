"""Benchmarks run, at sizes that take seconds; what they measure is not judged here."""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import tiny
from services import need_postgres

from experiments import bench
from experiments.benchmarks import (
    adapt,
    asking,
    backbone,
    device,
    experts,
    first_call,
    fuzz,
    graph,
    invariance,
    joint,
    loading,
    online,
    prefix,
    prepare,
    ragged,
    reference,
    sampling,
    service_crash,
    service_hostile,
    service_load,
    solver,
    store_crash,
    store_speed,
)
from experiments.benchmarks.measure import merged, result
from experiments.benchmarks.training import Case
from pref_jax.errors import UserError

TINY = tuple(Case(lm, pairs=3, length=10) for lm in (tiny.llama(lm_head=False), tiny.bert(num_layers=1)))
RUNS = {
    "gcf_recipe": lambda: graph.gcf_recipe(users=40, dim=8, seeds=1),
    "gcf_paper_size": lambda: graph.gcf_paper_size(users=50, prompts=60, dim=8, steps=1, layers=("linear",)),
    "gcf_scale": lambda: graph.gcf_scale((320, 640), dim=4),
    "gcf_layers": lambda: graph.gcf_layers(users=20, prompts=20, dim=4, seeds=(3, 4), layers=("gcf", "linear")),
    "first_call": lambda: first_call.first_call(sizes=(), searches=("quick", "quick")),
    "start_up": lambda: first_call.start_up(rounds=1),
    "quickstart": lambda: first_call.quickstart("smoke"),
    "lore_solve": lambda: solver.lore_solve(users=20, sample=2, scales=(30,), streamed=(40,)),
    "heavy_tail": lambda: ragged.heavy_tail((400, 800), users=50, most=300, steps=2),
    "lore_online": lambda: online.lore_online(users=12, rank=2, trials=2, drifting=5, change=4, after=5),
    "lore_active": lambda: asking.lore_active(users=8, pairs=30, rank=2, trials=2, sample=3, each=4),
    "adapt": lambda: adapt.adapt_unseen((40, 60), dim=8, sample=10),
    "experts": lambda: experts.mixture_step(TINY, rounds=1, each=1),
    "store_speed": lambda: store_speed.store_speed(seconds=0.05, filled=20),
    "store_crash": lambda: store_crash.store_crash(kills=1),
    "fuzz": lambda: fuzz.fuzz(files=3, formats=("JSON lines",)),
    "prepare": lambda: prepare.prepare(small=2000, times=2),
    "prefix_pairs": lambda: prefix.prefix_pairs(
        (Case(tiny.llama(), pairs=4, length=16),), (0.6, 0.8), rounds=1, each=1, size=10
    ),
    "invariance": lambda: invariance.invariance(texts=12, alone=2, programs=40, length=64),
    "service_load": lambda: _service_load(),
    "service_crash": lambda: service_crash.service_crash(kills=1, seconds=0.3, stores=("postgresql",)),
    "service_hostile": lambda: service_hostile.service_hostile(requests=200, slow=0),
    "sampling": lambda: sampling.sampling((sampling.Case(tiny.llama(), 5, 6, 4),), rounds=1),
    "backbone_step": lambda: backbone.backbone_step(TINY, rounds=1, each=1),
    "load_memory": lambda: loading.load_memory(tiny.llama(), (("bfloat16", 0.01),), repeats=1),
    "device": lambda: device.device("copl:smoke", ("reward step",)),
    "lore_fit": lambda: joint.lore_fit((joint.Case(20, 6, 8, 3),), steps=30, sample=1),
}


def _service_load():
    with tempfile.TemporaryDirectory() as folder:
        base = str(tiny.reward_model(Path(folder) / "base"))
        return service_load.service_load(3, 1.0, ("sqlite",), base, times=20)


# How far the two sides may be apart in what they compute.
DISTANCES = ("largest_difference", "vectors_apart", "answers_apart")
# What services must not do, beside what their benchmarks count as faults.
FAULTS = ("errors", "acknowledged_without", "crashes", "victims_lost", "errors_logged", "texts_logged", "status_5xx")


def need_torch():
    for name in ("torch", "peft"):
        pytest.importorskip(name, reason="comparison with torch needs the extra `parity`")


# Each starts processes, servers or compilations that take about a minute.
SLOW = (
    "quickstart",
    "first_call",
    "service_crash",
    "service_load",
    "service_hostile",
    "device",
    "experts",
    "gcf_layers",
)
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in bench.BENCHMARKS]


@pytest.mark.parametrize("name", NAMES)
def test_results_have_the_promised_fields(name):
    if name in ("backbone_step", "load_memory", "lore_fit"):
        need_torch()
    if name == "load_memory" and not sys.platform.startswith("linux"):
        pytest.skip("memory is read from /proc")
    if name.startswith("store") or name == "service_crash":
        need_postgres()
    rows = json.loads(json.dumps(RUNS[name]()))
    assert len({row["size"] for row in rows}) == len(rows) > 0
    for row in rows:
        assert set(row) == {"name", "size", "baseline_seconds", "seconds", "ratio", "extra"}
        assert row["name"] == name
        assert row["ratio"] == pytest.approx(row["baseline_seconds"] / row["seconds"])
        assert all(row["extra"].get(distance, 0.0) < 1e-5 for distance in DISTANCES)
        faults = {*service_crash.FAULTS, *service_hostile.FAULTS, *FAULTS} & row["extra"].keys()
        assert {fault: row["extra"][fault] for fault in faults} == dict.fromkeys(faults, 0)


@pytest.mark.parametrize("library", ["torch", "peft"])
def test_a_missing_reference_is_told(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"{library} is not installed: make parity"):
        reference.library(library)


@pytest.mark.parametrize("names", [[], ["gcf_recipe", "nothing"]])
def test_unknown_names_are_told(monkeypatch, capsys, names):
    monkeypatch.setattr("sys.argv", ["bench", *names])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2
    assert "gcf_recipe" in capsys.readouterr().err


def sized(name, *sizes, seconds=1.0):
    return [result(name, size, 2.0, seconds) for size in sizes]


def test_results_that_are_not_measured_anew_stay_in_their_places():
    old = [*sized("gone", "s"), *sized("b", "s"), *sized("a", "s", "m")]
    new = sized("a", "m", "l", seconds=4.0)
    assert [(row["name"], row["size"], row["seconds"]) for row in merged(old, new, ["a", "b"])] == [
        ("a", "m", 4.0),
        ("a", "l", 4.0),
        ("b", "s", 1.0),
        ("gone", "s", 1.0),
    ]


def test_the_file_keeps_what_was_measured_when_a_later_benchmark_fails(monkeypatch, capsys, tmp_path):
    def fails():
        raise UserError("no torch: make parity")

    out = tmp_path / "bench.json"
    monkeypatch.setattr(bench, "BENCHMARKS", {"a": lambda: sized("a", "s", "m"), "b": fails})
    monkeypatch.setattr("sys.argv", ["bench", "all", f"--out={out}"])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert "error: no torch: make parity" in told.err
    assert "2.00" in told.out
    assert [row["size"] for row in json.loads(out.read_text())] == ["s", "m"]


def test_a_file_of_something_else_is_not_overwritten(monkeypatch, capsys, tmp_path):
    out = tmp_path / "results.json"
    out.write_text('{"rows": []}')
    monkeypatch.setattr("sys.argv", ["bench", "prepare", f"--out={out}"])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2
    assert "holds no list of results" in capsys.readouterr().err
    assert out.read_text() == '{"rows": []}'
