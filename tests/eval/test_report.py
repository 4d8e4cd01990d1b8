"""results.json survives reruns and refuses broken files; tables and report.md say what they should."""

import json

import numpy as np
import pytest

from pref_jax.errors import UserError
from pref_jax.eval.figures import plots
from pref_jax.eval.metrics import Interval
from pref_jax.eval.reporting import report, results


def _interval(mean, half=0.02, over="users"):
    return Interval(mean=mean, low=mean - half, high=mean + half, n=10, over=over, left_out=1)


def _row(method="bt", seed=0, mean=0.7, **changes):
    metrics = {
        "seen/accuracy": _interval(mean),
        "unseen/accuracy": _interval(mean - 0.1),
        "seen/log_loss": Interval(mean=0.5, low=None, high=None, n=40, over="pairs"),
        "seen/group/a|b": _interval(mean),
    }
    return results.result_row(**{"method": method, "seed": seed, "metrics": metrics, "seconds": 2.5, **changes})


def test_file_is_exactly_the_design(tmp_path):
    path = tmp_path / "results.json"
    results.write_results(path, dataset="toy", rows=[_row()])
    found = json.loads(path.read_text())
    assert set(found) == {"dataset", "rows", "versions"}
    assert found["dataset"] == "toy"
    (row,) = found["rows"]
    assert set(row) == {"method", "seed", "metrics", "intervals", "seconds"}
    assert row["metrics"]["seen/accuracy"] == 0.7
    expected = {"low": 0.7 - 0.02, "high": 0.7 + 0.02, "n": 10, "over": "users", "left_out": 1}
    assert row["intervals"]["seen/accuracy"] == expected
    assert {"python", "jax", "device", "cores"} <= found["versions"].keys()


def test_rerun_replaces_its_own_rows_only(tmp_path):
    path = tmp_path / "results.json"
    results.write_results(path, dataset="toy", rows=[_row(mean=0.1), _row("copl"), _row(seed=1)])
    results.write_results(path, dataset="toy", rows=[_row(mean=0.9), _row("lore")])
    rows = results.read_results(path)["rows"]
    assert [(r["method"], r["seed"]) for r in rows] == [("bt", 0), ("copl", 0), ("bt", 1), ("lore", 0)]
    assert rows[0]["metrics"]["seen/accuracy"] == 0.9


def test_other_data_and_bad_rows_leave_the_file_alone(tmp_path):
    path = tmp_path / "results.json"
    results.write_results(path, dataset="toy", rows=[_row()])
    before = path.read_text()
    with pytest.raises(UserError, match="holds results on 'toy', not on 'other'"):
        results.write_results(path, dataset="other", rows=[_row()])
    with pytest.raises(UserError, match="'x' is nan, no number"):
        results.write_results(path, dataset="toy", rows=[_row(metrics={"x": float("nan")})])
    with pytest.raises(UserError, match="same method and seed"):
        results.write_results(path, dataset="toy", rows=[_row(), _row()])
    assert path.read_text() == before


def _with(**changes):
    return {"dataset": "toy", "rows": [{**_row(), **changes}], "versions": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ([], "holds a list"),
        ({}, "3 faults"),
        ({"dataset": "toy", "rows": [3], "versions": {}}, r"rows\[0\]: a int, not an object"),
        (_with(method=""), "`method` is missing"),
        (_with(seed="0"), "`seed` is missing"),
        (_with(seed=True), "`seed` is missing"),
        (_with(seconds=-1), "`seconds` is missing"),
        (_with(metrics=None), "`metrics` is missing"),
        (_with(metrics={"a": "0.5"}), "metric 'a' is '0.5'"),
        (_with(intervals=[]), "`intervals` is no object"),
        (_with(intervals={"a": {"low": None, "high": 1.0, "n": 1, "over": "users"}}), "interval 'a' is malformed"),
        (_with(intervals={"a": {"low": 0.0}}), "interval 'a' is malformed"),
    ],
)
def test_broken_files_are_explained(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        results.read_results(path)


def test_nan_in_a_file_and_a_missing_file(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(UserError, match="no such file"):
        results.read_results(path)
    path.write_text(json.dumps(_with(metrics={"a": float("nan")})))
    with pytest.raises(UserError, match="metric 'a' is nan"):
        results.read_results(path)


def test_intervals_are_optional_when_read(tmp_path):
    row = _row()
    del row["intervals"]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"dataset": "toy", "rows": [row], "versions": {}}))
    summary = results.by_method(results.read_results(path)["rows"])
    assert summary["bt"]["seen/accuracy"].half_width is None


def test_table_as_a_literal():
    rows = [_row(), _row("x|y", mean=0.8, metrics={"seen/accuracy": 0.8})]
    names = ["seen/accuracy", "seen/log_loss", "unseen/controversial"]
    assert report.table(rows, names) == (
        "| method | seen/accuracy | seen/log_loss | unseen/controversial |\n"
        "| ------ | ------------: | ------------: | -------------------: |\n"
        "| bt     |    70.0 ± 2.0 |         0.500 |                    – |\n"
        "| x\\|y   |          80.0 |             – |                    – |\n"
        "\n"
        "Accuracies in percent. Log-losses in nats. ± is half of the 95 % interval over users.\n"
    )
    assert report.table(rows, names[:1], style="plain") == (
        "method  seen/accuracy\n"
        "------  -------------\n"
        "bt         70.0 ± 2.0\n"
        "x|y              80.0\n"
        "\n"
        "Accuracies in percent. ± is half of the 95 % interval over users.\n"
    )


def test_table_over_seeds_says_so():
    rows = [_row(seed=s, mean=m) for s, m in enumerate((0.6, 0.7, 0.8))]
    text = report.table(rows)
    # Student t of 2 degrees of freedom, 4.3027, times 0.1 / sqrt(3).
    assert "| 70.0 ± 24.8 |" in " ".join(text.split())
    assert "interval over seeds." in text
    mixed = report.table([*rows, _row("copl"), _row("lore"), _row("lore", seed=1)])
    assert "interval over seeds (over users for copl)." in mixed


@pytest.mark.parametrize("style", ["markdown", "plain"])
def test_table_of_nothing(style):
    assert report.table([], style=style).startswith(("| method |", "method"))
    assert report.MISSING in report.table([_row(metrics={})], ["seen/accuracy"], style=style)


def test_report_holds_all_parts(tmp_path):
    found = results.write_results(tmp_path / "results.json", dataset="toy", rows=[_row(), _row("copl", seconds=4000)])
    picture = plots.save(plots.accuracy_bars(found["rows"]), tmp_path / "plots" / "all bars.png")
    path = report.write_report(
        tmp_path,
        found,
        title="A comparison",
        meanings={"bt": "one reward for everyone"},
        findings=["CoPL wins."],
        plots=[(picture, "Accuracy of both")],
        sections=[
            report.Section("A study", "What was found.", [(picture, "The same again")]),
            report.Section("B", "c"),
        ],
    )
    text = path.read_text()
    assert path == tmp_path / "report.md"
    for part in (
        "# A comparison\n",
        "Data set: toy.",
        "70.0 ± 2.0",
        "### By group",
        "seen/group/a\\|b",
        "- **bt**: one reward for everyone\n- **copl**\n",
        "- CoPL wins.",
        "## A study\n\nWhat was found.\n\n![The same again](plots/all%20bars.png)\n\nThe same again\n\n## B\n\nc\n\n",
        "## Pictures\n\n![Accuracy of both](plots/all%20bars.png)",
        "1 h 07 min",
        f"- jax: {found['versions']['jax']}",
    ):
        assert part in text
    assert "\n\n\n" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0052, "5.2 ms"),
        (0, "0.0 ms"),
        (31, "31.0 s"),
        (59.99, "1 min 00 s"),
        (245, "4 min 05 s"),
        (7380, "2 h 03 min"),
    ],
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


def test_numpy_numbers_are_written(tmp_path):
    numbers = {"seed": np.int64(3), "metrics": {"x": np.float32(0.5)}, "seconds": np.float32(1)}
    row = results.result_row(method="m", **numbers)
    results.write_results(tmp_path / "results.json", dataset="toy", rows=[row])


def test_one_metric_across_data_sets():
    rows = [_row(seed=seed, mean=mean) for seed, mean in enumerate((0.7, 0.72, 0.74))]
    found = [{"dataset": "a|b", "rows": rows}, {"dataset": "other", "rows": [*rows, _row("copl", mean=0.9)]}]
    text = report.across(found, "seen/accuracy")
    head, _, first, second = text.splitlines()[:4]
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["seen/accuracy", "bt", "copl"]
    assert [cell.strip() for cell in first.replace("\\|", "!").split("|")[1:-1]] == [
        "a!b",
        "72.0 ± 5.0",
        report.MISSING,
    ]
    assert [cell.strip() for cell in second.split("|")[1:-1]] == ["other", "72.0 ± 5.0", "90.0 ± 2.0"]
    assert "over seeds (over users for copl (other))" in text
    some = report.across(found, "seen/accuracy", ["bt"])
    assert some.splitlines()[0] == "| seen/accuracy |         bt |"


def test_curves_of_several_points_and_what_is_missing(tmp_path):
    path = tmp_path / "one.json"
    assert results.missing(path, ["bt", "copl"], 0) == ["bt", "copl"]
    one = results.write_results(path, dataset="one", rows=[_row(), _row("copl")])
    assert results.missing(path, ["copl", "lore", "bt"], 0) == ["lore"]
    assert results.missing(path, ["copl"], 1) == ["copl"]
    two = results.write_results(tmp_path / "two.json", dataset="two", rows=[_row()])
    curves = results.curves({8: two, 4: one}, "seen/accuracy", ["copl", "bt", "lore"])
    value = results.by_method(one["rows"])["bt"]["seen/accuracy"]
    assert curves == {"copl": {4: value}, "bt": {8: value, 4: value}, "lore": {}}
    assert results.curves({4: one}, "no/such", ["bt"]) == {"bt": {}}
