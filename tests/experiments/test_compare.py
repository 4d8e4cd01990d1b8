"""Several data sets in one table: its numbers, what methods may read, taking a run up again, publishing."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest

from configs import compare_small
from experiments import compare
from experiments.methods import compared_with
from experiments.reporting import checks, table
from experiments.runner import test_labels
from experiments.runner.workspace import workspaces
from pref_jax import compile_cache
from pref_jax.data import preferences
from pref_jax.errors import UserError
from pref_jax.eval.reporting import report
from pref_jax.files import read_json, write_json

ROOT = Path(__file__).parents[2]
METHODS = {
    "uf_p_2_avg": (
        "shared reward",
        "CoPL",
        "CoPL (features)",
        "shared (features)",
        "oracle (features)",
        "LoRe (principal)",
        "VPL (features)",
        "formatting-only",
    ),
    "personalllm": ("shared (features)", "formatting-only", "leave-one-out majority"),
}


def _config(decoders: Path) -> Any:
    config: Any = compare_small.get_config("smoke")
    config.decoders = str(decoders)
    for name in list(config.datasets):
        if name in METHODS:
            config.datasets[name].methods = METHODS[name]
        elif name != "crowdrag":
            del config.datasets[name]
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Any:
    return _config(tmp_path_factory.mktemp("decoders"))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("compare") / "run"
    compare.run(config, workdir, str(workdir.parent / "RESULTS.md"))
    return workdir


def _results(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "results.json").read_text())


def _run(config: Any, workdir: Path, name: str) -> Any:
    return next(workspaces(config.datasets[name].copy_and_resolve_references(), workdir / name))


def test_the_table_holds_what_the_margins_say(config, finished):
    found = _results(finished)
    assert list(found["datasets"]) == ["personalllm", "uf_p_2_avg"]
    assert list(found["left_out"]) == ["Crowd RAG 2025, overall quality"]
    for (name, methods), block in zip(sorted(METHODS.items()), found["table"], strict=True):
        data = preferences.load(finished / name / "seed_0" / "data")
        test, shown = data.pairs("test"), _run(config, finished, name).data.pairs("test")
        assert [row["method"] for row in block["rows"]] == list(methods)
        for row in block["rows"]:
            margins, facts = _run(config, finished, name).scores(row["method"])
            by_user: dict[int, list[float]] = {}
            for p in range(len(test.user)):
                own = margins[p] if shown.chosen[p] == test.chosen[p] else -margins[p]
                by_user.setdefault(int(test.user[p]), []).append(1.0 if own > 0 else 0.5 if own == 0 else 0.0)
            for side in ("seen", "unseen"):
                mine = [np.mean(right) for user, right in by_user.items() if data.seen[user] == (side == "seen")]
                assert row["accuracy"][side]["mean"] == pytest.approx(np.mean(mine))
                assert row["accuracy"][side]["n"] == len(mine)
            assert row["seconds"] == facts["seconds"]
    rows = {row["method"]: row for row in found["table"][1]["rows"]}
    assert {name: row["against"] for name, row in rows.items()} == {
        "shared reward": "",
        "CoPL": "shared reward",
        "CoPL (features)": "shared (features)",
        "shared (features)": "",
        "oracle (features)": "shared (features)",
        "LoRe (principal)": "shared (features)",
        "VPL (features)": "shared (features)",
        "formatting-only": "shared reward",
    }
    gap = rows["CoPL"]["gap"]["seen"]
    difference = rows["CoPL"]["accuracy"]["seen"]["mean"] - rows["shared reward"]["accuracy"]["seen"]["mean"]
    assert gap["value"]["mean"] == pytest.approx(difference)
    assert gap["value"]["low"] <= gap["value"]["mean"] <= gap["value"]["high"]
    assert gap["p"] <= gap["corrected"] <= 1
    assert rows["CoPL"]["parameters"] == 8
    assert rows["CoPL"]["context"] == 4
    assert rows["oracle (features)"]["parameters"] == rows["shared reward"]["context"] == 0


def _side_mean(margins: np.ndarray, pairs: Any, members: np.ndarray) -> float:
    """Mean over users of one side of their shares of right pairs."""
    own = [margins[pairs.user == user] for user in np.flatnonzero(members) if (pairs.user == user).any()]
    return float(np.mean([np.mean(np.where(part == 0, 0.5, part > 0)) for part in own]))


def test_controls_are_what_the_margins_say(config, finished):
    found = {own["method"]: own for own in _results(finished)["controls"]["uf_p_2_avg"]}
    assert list(found) == list(METHODS["uf_p_2_avg"])
    work = _run(config, finished, "uf_p_2_avg")
    data = preferences.load(finished / "uf_p_2_avg" / "seed_0" / "data")
    pairs, shown = data.pairs("test"), work.data.pairs("test")
    turn = np.where(shown.chosen == pairs.chosen, 1, -1)
    for name in ("CoPL", "CoPL (features)", "LoRe (principal)", "VPL (features)"):
        mixed = work.controls(name)["shuffled"] * turn
        margins, base = (work.scores(other)[0] * turn for other in (name, compared_with(name, METHODS["uf_p_2_avg"])))
        assert not np.array_equal(mixed, margins)
        for side, members in (("seen", data.seen), ("unseen", ~data.seen)):
            own, other, theirs = (_side_mean(part, pairs, members) for part in (margins, mixed, base))
            assert found[name]["gain"][side]["mean"] == pytest.approx(own - theirs)
            assert found[name]["shuffled"][side]["mean"] == pytest.approx(other - theirs)
        reversed_margins, late = work.controls(name)["reversed"] * turn, ~data.seen[pairs.user]
        assert np.isfinite(reversed_margins[late]).all()
        asked = late & (margins != 0)
        turned = np.mean(np.sign(margins[asked]) == -np.sign(reversed_margins[asked]))
        assert found[name]["turned"] == pytest.approx(turned)
    assert found["VPL (features)"]["active"] is not None
    assert found["LoRe (principal)"]["active"] is None
    assert found["shared (features)"]["turned"] is None
    texts = data.responses["text"].to_pylist()
    longer = np.array([len(texts[c]) - len(texts[r]) for c, r in zip(pairs.chosen, pairs.rejected, strict=True)])
    halves = []
    for half in (longer > 0, longer < 0):
        margins = work.scores("CoPL")[0] * turn
        users = np.unique(pairs.user[half])
        halves.append(np.mean([np.mean(margins[half & (pairs.user == user)] > 0) for user in users]))
    assert found["CoPL"]["length"] == pytest.approx(np.mean(halves), abs=1e-6)
    assert "## Controls" in (finished / "report.md").read_text()
    assert "split-half reliability of choosing the longer text" in (finished / "controls.md").read_text()


def test_shuffled_users_get_the_parameters_of_another(config, finished):
    """Of linear experts, by the users' directions that the trained parameters give."""
    work = _run(config, finished, "uf_p_2_avg")
    other, margins = work.another_user, work.scores("CoPL (features)")[0]
    mixed, pairs = work.controls("CoPL (features)")["shuffled"], work.test_pairs
    for p in range(len(pairs.user)):
        same = (pairs.user == other[pairs.user[p]]) & (pairs.chosen == pairs.chosen[p])
        same &= pairs.rejected == pairs.rejected[p]
        for q in np.flatnonzero(same):
            assert mixed[p] == pytest.approx(margins[q], rel=1e-4, abs=1e-5)


def test_files_are_those_promised(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.json",
        "results.json",
        "table.md",
        "controls.md",
        "table.tex",
        "report.md",
        "plots",
        "compiled",
        *METHODS,
    }
    assert {path.name for path in (finished / "plots").iterdir()} == {"pairs.png", "seen_unseen.png", "seconds.png"}
    report = (finished / "report.md").read_text()
    assert (finished / "table.md").read_text().strip() in report
    assert "no folder was named for its files (--config.datasets.crowdrag.source.path=DIR)" in report
    assert "**formatting-only**: a check" in report
    assert "none of 450 test pairs is on a prompt of training pairs" in report
    assert report.count("](plots/") == 3
    assert all(f"({name}/report.md)" in report for name in METHODS)
    assert "## Leakage checks" in (finished / "uf_p_2_avg" / "report.md").read_text()


def test_published_with_command_machine_and_pictures(finished):
    text, folder = (finished.parent / "RESULTS.md").read_text(), finished.parent
    assert "python -m experiments.compare" in text
    assert "- jax: " + jax.__version__ in text
    assert "The command that ended the run took" in text
    assert (finished / "table.md").read_text().strip() in text
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert sorted(links) == [
        f"results/run/{name}" for name in ("pairs.png", "results.json", "seconds.png", "seen_unseen.png", "table.tex")
    ]
    assert all((folder / link).is_file() for link in links)
    whole, kept = read_json(finished / "results.json"), read_json(folder / "results/run/results.json")
    assert kept["table"] == whole["table"]
    for name, own in whole["datasets"].items():
        assert [row["metrics"] for row in kept["datasets"][name]["rows"]] == [row["metrics"] for row in own["rows"]]


def test_taken_up_again_it_ends_in_the_same_table(config, finished):
    before = _results(finished)
    run = _run(config, finished, "uf_p_2_avg")
    for name in ("LoRe (principal)", "shared reward"):
        shutil.rmtree(run.method_folder(name) / "scores")
    # A process before this one has trained it, in a thousand seconds.
    model = run.method_folder("shared reward") / "model" / "model.json"
    write_json(model, {**read_json(model), "seconds": 1000.0})
    assert not test_labels.late(run)
    compare.run(config, finished)
    after = _results(finished)
    for block in (*before["table"], *after["table"]):
        for row in block["rows"]:
            if row["method"] in ("LoRe (principal)", "shared reward"):
                del row["seconds"]
    assert 1000 < run.scores("shared reward")[1]["seconds"] < 1300
    assert after["table"] == before["table"]
    assert after["datasets"]["personalllm"]["rows"] == before["datasets"]["personalllm"]["rows"]


# --- what methods may read ---


def test_answers_are_read_last_and_only_by_those_who_may(config, finished):
    for name, methods in METHODS.items():
        run = _run(config, finished, name)
        lines = test_labels.reads(run)
        table_reads = [line for line in lines if line["reader"] == test_labels.TABLE]
        assert list(table_reads[0]["scored"]) == list(methods), (
            "all methods had their scores before the table read answers"
        )
        others = {line["reader"] for line in lines} - {test_labels.TABLE}
        assert others <= {"oracle (features)", "report on experts", "leave-one-out majority"}
        assert not checks.readers(run).found
    for line in test_labels.reads(_run(config, finished, "uf_p_2_avg")):
        assert (line["what"] == test_labels.GROUPS) == (line["reader"] != test_labels.TABLE)


def test_a_method_that_asks_for_answers_is_told(config, finished, tmp_path):
    shutil.copytree(finished / "personalllm", tmp_path / "personalllm")
    run = _run(config, tmp_path, "personalllm")
    test_labels.load_test_labels(run, "shared (features)")
    found = checks.readers(run)
    assert found.found
    assert "shared (features) should not have read what they read" in found.text
    assert "may leak" in checks.notes([run])[0]
    shutil.rmtree(run.method_folder("shared (features)"))
    (run.folder / test_labels.FILE).write_text("")
    test_labels.answered(run)
    shutil.copytree(finished / "personalllm/seed_0/shared_features", run.folder / "shared_features")
    assert test_labels.late(run) == ["shared (features)"]


def test_a_method_that_was_run_again_is_told_if_it_says_other_things(config, finished, tmp_path):
    shutil.copytree(finished / "personalllm", tmp_path / "personalllm")
    run = _run(config, tmp_path, "personalllm")
    path = run.method_folder("shared (features)") / "scores" / "margins.npy"
    margins = np.load(path)
    np.save(path, margins.copy())
    assert not test_labels.late(run)
    margins[0] = np.nextafter(margins[0], np.inf)
    np.save(path, margins)
    assert test_labels.late(run) == ["shared (features)"]
    assert "scored otherwise, after the table's answers had been read: shared (features)" in checks.readers(run).text


def test_no_methods_margins_change_with_test_answers_or_groups(config, finished, tmp_path):
    """Every test answer turned round and every group another's: the same margins to the bit, but for the oracle."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("personalllm"))
    run = _run(config, workdir, "uf_p_2_avg")
    data = preferences.load(run.folder / "data")
    before = {name: run.scores(name)[0] for name in METHODS["uf_p_2_avg"]}
    frame = data.comparisons.to_pandas()
    test = frame["split"] == "test"
    frame.loc[test, ["chosen", "rejected"]] = frame.loc[test, ["rejected", "chosen"]].to_numpy()
    groups = np.array(data.groups)
    users = data.users.set_column(1, "group", pa.array(groups[np.random.default_rng(4).permutation(len(groups))]))
    comparisons = pa.Table.from_pandas(frame, schema=data.comparisons.schema, preserve_index=False)
    other = preferences.build(users, data.responses, comparisons, data.meta)
    for path in run.folder.iterdir():
        if path.is_dir() and path.name != "features":
            shutil.rmtree(path)
    preferences.save(other, run.folder / "data")
    with compile_cache.kept_in(workdir / "compiled"):
        compare.train(run.config, workdir / "uf_p_2_avg")
    for name, margins in before.items():
        same = np.array_equal(run.scores(name)[0], margins)
        assert same == (name != "oracle (features)"), name


def test_notes_tell_what_is_read_in_part_and_what_times_leave_out(config, finished):
    run = _run(config, finished, "personalllm")
    one, (method, other, *_) = test_labels.answered(run), METHODS["personalllm"]
    facts = {**one.facts, method: {**one.facts[method], "most_context_pairs": 3, "was_resumed": True}}
    facts[other] = {**facts[other], "most_context_pairs": 4}  # nobody gave more
    run_config: Any = run.config
    found = table.block(table.DataSet("x", run_config, run.folder.parent, [one._replace(facts=facts)])).notes
    assert f"{method}: of users known by their pairs at most 3 pairs each are read, drawn at random" in found
    assert f"{method}, seed 0: killed and taken up again, its time is of the rest alone" in found
    spent = read_json(run.folder / "features" / "features.json")["seconds"]
    assert any(f"took {report.duration(spent)} per seed, which their times leave out" in note for note in found)
    assert sum(other in note for note in found) == 0


def test_users_by_pairs_are_counted_once_each(config, finished):
    run = _run(config, finished, "uf_p_2_avg")
    one = test_labels.answered(run)
    turned = one._replace(margins={name: -margins for name, margins in one.margins.items()})
    alone, both = (table.by_pairs(every, ["LoRe (principal)"])["LoRe (principal)"] for every in ([one], [one, turned]))
    given = np.bincount(one.data.pairs(("train", "validation")).user, minlength=one.data.num_users)
    for low, high in ((1, 2), (2, 4), (4, 8)):
        members = one.data.seen & (given >= low) & (given < high)
        assert (low in alone) == (members.sum() >= table.FEWEST)
        if low in alone:
            assert alone[low].n == both[low].n == members.sum()
            # Each user's mean over a seed and its opposite: one half, without any doubt.
            assert (both[low].mean, both[low].low, both[low].high) == pytest.approx((0.5, 0.5, 0.5))


def _names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return found | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_the_doors_to_answers_and_groups_are_these():
    """Whoever opens one must be named here."""
    sources = {
        str(path.relative_to(ROOT / "experiments")): _names(path) for path in (ROOT / "experiments").rglob("*.py")
    }
    sources = {name: found for name, found in sources.items() if not name.startswith("benchmarks/")}
    of = {
        word: {name for name, found in sources.items() if word in found} for word in ("load_test_labels", "load_groups")
    }
    assert of["load_test_labels"] == {
        "baselines.py",  # the leave-one-out majority, its rule: other people's votes on the same pair
        "copl.py",  # `load`, for readers of a finished run
        "lore_methods.py",  # studies, scored at once
        "prepare.py",  # counts of the tables
        "vote_kinds_real.py",  # the report, once all methods have predicted
    }
    assert of["load_groups"] == {"copl.py"}  # the oracles, and reports on experts
    loads = {
        name for name in sources if "preferences.load(" in (ROOT / "experiments" / name).read_text(encoding="utf-8")
    }
    assert loads == {"runner/workspace.py", "runner/test_labels.py"}


# --- the rest ---


@pytest.mark.parametrize(
    ("method", "methods", "want"),
    [
        ("CoPL", ("shared reward", "CoPL", "shared (features)"), "shared reward"),
        ("VPL (features)", ("shared reward", "shared (features)"), "shared (features)"),
        ("LoRe", ("shared reward",), "shared reward"),
        ("CoPL", ("CoPL",), ""),
        ("shared reward", ("shared reward", "shared (features)"), ""),
        ("shared (features)", ("shared reward", "shared (features)"), ""),
    ],
)
def test_whom_a_method_is_compared_with(method, methods, want):
    assert compared_with(method, methods) == want


def test_data_sets_without_files_are_left_out_and_none_at_all_is_told(config, tmp_path):
    named: Any = _config(tmp_path)
    named.crowdrag_path = "somewhere"
    there, absent = table.present(named)
    assert (there["crowdrag"].source.path, absent) == ("somewhere", {})
    for name in METHODS:
        del named.datasets[name]
    named.crowdrag_path = ""
    with pytest.raises(UserError, match=r"Crowd RAG.*--config\.datasets\.crowdrag\.source\.path"):
        table.present(named)
    single: Any = config.datasets["personalllm"].copy_and_resolve_references()
    with pytest.raises(UserError, match="several data sets"):
        compare.run(single, tmp_path / "x", "RESULTS.md")


def test_kept_programs_are_found_again_and_settings_put_back(tmp_path):
    settings: Any = jax.config
    before = settings.jax_compilation_cache_dir
    script = (
        "import sys, pathlib, jax, jax.numpy as jnp\n"
        "from pref_jax import compile_cache\n"
        "jax.jit(lambda x: x + 1)(1.0)\n"  # JAX has made up its mind by now
        "compile_cache._SETTINGS['jax_persistent_cache_min_compile_time_secs'] = 0\n"
        "seen = []\n"
        "jax.monitoring.register_event_listener(lambda name, **kw: seen.append(name))\n"
        "with compile_cache.kept_in(pathlib.Path(sys.argv[1])):\n"
        "    print(jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 3)))[0, 0])\n"
        "print(sum('cache_hits' in name for name in seen), jax.config.jax_compilation_cache_dir)\n"
    )
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        said.append(done.stdout.split())
        assert "error" not in done.stderr.lower(), done.stderr
    assert said[0][0] == said[1][0]
    assert int(said[0][1]) == 0
    assert int(said[1][1]) > 0
    assert said[0][2] == str(before)
    assert len(list(tmp_path.iterdir())) == 1, "one folder for this kind of processor"
