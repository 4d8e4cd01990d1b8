"""The table's numbers against ones worked out by hand, its Markdown and LaTeX by structure."""

import re
from typing import Any

import numpy as np
import pytest
import scipy.optimize

from pref_jax.eval import bootstrap
from pref_jax.eval.figures import canvas, table_plots
from pref_jax.eval.metrics import Interval
from pref_jax.eval.reporting import report, table
from pref_jax.eval.reporting.table import Block, Gap, Row


def _draw_by_hand(seeds: list[np.ndarray], users: list[list[str]], resamples: int, seed: int) -> np.ndarray:
    """Resampled means [B M] one user at a time, from the draw that `resampled_means` documents."""
    rng, everyone = np.random.default_rng(seed), sorted({name for names in users for name in names})
    found = []
    for row in rng.integers(len(everyone), size=(resamples, len(everyone))):
        means = []
        for own, names in zip(seeds, users, strict=True):
            drawn = [names.index(everyone[number]) for number in row if everyone[number] in names]
            if drawn:
                means.append([sum(scores[u] for u in drawn) / len(drawn) for scores in own])
        found.append(np.mean(means, axis=0))
    return np.array(found)


def test_comparison_equals_one_worked_out_by_hand():
    rng = np.random.default_rng(int.from_bytes(np.random.default_rng().bytes(4), "little"))
    names = ["shared", "good", "same", "other"]
    seeds = [rng.random((4, users)).round(2) for users in (7, 4)]
    for own in seeds:
        own[1] += 1.5
        own[2] = own[0]
    accuracies = {name: [own[m] for own in seeds] for m, name in enumerate(names)}
    against = {name: "shared" for name in names[1:]} | {"shared": "absent"}
    # "c" is in the second seed alone, the others of it in both.
    users = [["a", "b", "d", "e", "f", "g", "h"], ["g", "c", "a", "b"]]
    values, gaps = table.compared(accuracies, [np.array(names) for names in users], against, resamples=99, seed=5)
    draws = _draw_by_hand(seeds, users, 99, 5)
    p = {}
    for m, name in enumerate(names):
        mean = (sum(seeds[0][m]) / 7 + sum(seeds[1][m]) / 4) / 2
        low, high = np.quantile(draws[:, m], [0.025, 0.975])
        assert (values[name].mean, values[name].low, values[name].high) == pytest.approx((mean, low, high))
        assert (values[name].n, values[name].over) == (8, "users")
        if m:
            gap = draws[:, m] - draws[:, 0]
            assert gaps[name].value.low == pytest.approx(np.quantile(gap, 0.025))
            assert gaps[name].value.high == pytest.approx(np.quantile(gap, 0.975))
            p[name] = min(1, 2 * (1 + min(sum(gap <= 1e-12), sum(gap >= -1e-12))) / 100)
            assert gaps[name].p == pytest.approx(p[name])
    assert set(gaps) == set(names[1:])
    assert (gaps["good"].p, gaps["same"].p) == (0.02, 1)
    assert gaps["same"].value.mean == gaps["same"].value.low == gaps["same"].value.high == 0
    assert gaps["good"].corrected == pytest.approx(0.06), "three methods"
    assert not gaps["good"].significant


def test_blocks_of_draws_are_one_draw(monkeypatch):
    seeds, users = [np.random.default_rng(1).random((3, 11))], [np.arange(11)]
    whole = bootstrap.resampled_means(seeds, users, resamples=50, seed=2)
    monkeypatch.setattr(bootstrap, "_BLOCK", 40)
    np.testing.assert_allclose(bootstrap.resampled_means(seeds, users, resamples=50, seed=2), whole, rtol=1e-12)


@pytest.mark.parametrize("people", ["others in each seed", "the same in all", "some in several"])
def test_intervals_cover(people):
    """Of 200 sets of users about 95 % have the true mean within; p of no difference is below 5 % in about 5 %.

    Of the same people in all seeds most of what makes a user easy, or fond of a method, comes back in every seed.
    """
    rng = np.random.default_rng(8)
    inside, rejected = 0, 0
    for trial in range(200):
        taste = rng.normal(0, 0.1, (2, 80))
        names = {
            "others in each seed": [np.arange(60) + 1000 * s for s in range(3)],
            "the same in all": [np.arange(60)] * 3,
            "some in several": [rng.permutation(80)[:40] for _ in range(3)],
        }[people]
        again = people != "others in each seed"
        seeds = [0.7 + again * taste[:, own % 1000] + rng.normal(0, 0.05, (2, len(own))) for own in names]
        values, gaps = table.compared(
            {"a": [s[0] for s in seeds], "b": [s[1] for s in seeds]}, names, {"b": "a"}, resamples=200, seed=trial
        )
        assert values["a"].low is not None
        assert values["a"].high is not None
        inside += values["a"].low <= 0.7 <= values["a"].high
        rejected += gaps["b"].p < 0.05
    assert 175 <= inside <= 199
    assert 1 <= rejected <= 25


def test_the_same_people_in_three_seeds_are_no_three_times_as_many():
    rng = np.random.default_rng(3)
    own = rng.normal(0.7, 0.1, (1, 50))
    once, thrice = (
        table.compared({"a": [own[0]] * count}, [np.arange(50)] * count, {}, seed=1)[0]["a"] for count in (1, 3)
    )
    assert (thrice.low, thrice.high, thrice.n) == pytest.approx((once.low, once.high, 50))
    assert once.half_width == pytest.approx(1.96 * own.std() / 50**0.5, rel=0.08)


def test_a_resample_without_anybody_of_a_seed_is_the_others():
    seeds = [np.array([[1.0]]), np.array([[0.0, 0.0, 0.0]])]
    draws = bootstrap.resampled_means(seeds, [np.array(["x"]), np.array(["p", "q", "r"])], resamples=4000)
    assert set(draws[:, 0].tolist()) == {0.0, 0.5, 1.0}


def test_rounding_is_no_difference():
    assert bootstrap.two_sided(np.array([1e-17, 3e-17, 0.0, 1e-16])) == 1
    assert bootstrap.two_sided(np.full(99, 0.01)) == 0.02


def test_holm_by_hand():
    found = bootstrap.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9})
    # Sorted: d 0.005 x 5, a 0.01 x 4, c 0.03 x 3, b 0.04 x 2 (not below c's), e 0.9 x 1.
    assert found == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.025, "e": 0.9})
    assert list(found) == list("abcde")
    assert bootstrap.holm({}) == {}
    assert bootstrap.holm({"a": 0.4, "b": 0.5}) == {"a": 0.8, "b": 0.8}


def test_one_user_has_no_interval_and_nothing_significant():
    values, gaps = table.compared(
        {"a": [np.array([0.5])] * 2, "b": [np.array([1.0])] * 2}, [np.array(["u"])] * 2, {"b": "a"}, resamples=400
    )
    assert values["a"].low is None
    assert gaps["b"].value.mean == 0.5
    assert not gaps["b"].significant


@pytest.mark.parametrize(("people", "significant"), [(2, False), (5, False), (6, True)])
def test_few_users_who_agree_are_no_proof(people, significant):
    ids, worse = np.arange(people).astype(str), np.linspace(0.3, 0.5, people)
    _, gaps = table.compared({"a": [worse], "b": [worse + 0.2]}, [ids], {"b": "a"}, resamples=4000)
    assert gaps["b"].p == max(2 / 4001, 2.0 ** (1 - people))
    assert gaps["b"].significant == significant


def _interval(mean: float, width: float = 0.02) -> Interval:
    return Interval(mean=mean, low=mean - width, high=mean + width, n=9, over="users")


def _blocks() -> list[Block]:
    plain = Row(
        method="shared reward",
        against="",
        accuracy={"seen": _interval(0.6), "unseen": _interval(0.55)},
        gap={},
        seconds=3.0,
        parameters=0,
        context=0,
    )
    gap = {
        "seen": Gap(value=_interval(0.2), p=0.0005, corrected=0.001),
        "unseen": Gap(value=_interval(-0.0301), p=0.4, corrected=0.8),
    }
    odd = Row(
        method=r"50%_a & b|c #1 {x} ~^\ $y",
        against="shared reward",
        accuracy={"seen": _interval(0.8), "unseen": Interval(mean=0.52, low=None, high=None, n=1, over="users")},
        gap=gap,
        seconds=125.0,
        parameters=5.5,
        context=None,
    )
    return [
        Block(title="A & B", seeds=[0, 1], rows=[plain, odd], notes=["100 % of <texts>"]),
        Block(title="[C]", seeds=[4], rows=[plain]),
    ]


def test_markdown_has_a_block_for_each_data_set():
    lines = table.markdown(_blocks()).splitlines()
    assert [line for line in lines if line.startswith("#")] == ["### A & B", "### [C]"]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {len(table.HEAD)}
    cells = [cell.strip() for cell in rows[3]]
    assert cells[1:4] == ["shared reward", "80.0 [78.0, 82.0]", "+20.0 [+18.0, +22.0]*"]
    assert cells[4:] == ["52.0", "−3.0 [−5.0, −1.0]", "2 min 05 s", "5.5", report.MISSING]
    assert [cell.strip() for cell in rows[2]][5:] == [report.MISSING, "3.0 s", "0", "0"]
    assert "- 100 % of <texts>" in lines
    assert "Seeds 0, 1." in lines
    assert "Seed 4." in lines


def _structure(text: str) -> tuple[list[str], list[list[str]]]:
    """Environments in the order they open, all closed again; cells of every row of every tabular."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    opened, stack = [], []
    for kind, name in re.findall(r"(?<!\\)\\(begin|end)\{([a-z*]+)\}", body):
        if kind == "begin":
            opened.append(name)
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    tabulars = re.findall(r"\\begin\{tabular\}\{(l*r*)\}(.*?)\\end\{tabular\}", body, re.S)
    rows = []
    for columns, inside in tabulars:
        lines = [line for line in re.split(r"\\\\\n", inside) if not re.fullmatch(r"\s*\\bottomrule\s*", line)]
        rows += [re.split(r"(?<!\\)&", re.sub(r"\\(top|mid)rule", "", line)) for line in lines]
        assert all(len(row) == len(columns) for row in rows)
    return opened, rows


def test_latex_is_well_formed_and_escaped():
    text = table.latex(_blocks())
    opened, rows = _structure(text)
    assert opened == ["table*", "tabular"] * 2
    assert len(rows) == 2 * 1 + 3
    assert rows[2][0].strip() == (
        r"50\%\_a \& b\textbar{}c \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$y"
    )
    assert rows[2][5].strip() == "$-$3.0 [$-$5.0, $-$1.0]"
    # Braces balance, and the specials of TeX stand nowhere bare.
    bare = re.sub(r"\\[\\&%$#_{}]", "", text.split("\n", 1)[1])
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"[%#_~^<>|\"]", re.sub(r"\\(label|begin|end|caption|setlength)\{[a-z:*0-9]*\}?", "", bare))
    assert bare.count("$") % 2 == 0
    assert r"\toprule" in text
    assert text.isascii()
    assert not re.search(r"\\\\\s*\[", text), "a bracket after a row's end would be its argument"
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(set(labels)) == len(labels) == 2
    for package in re.findall(r"\\usepackage\{(.*?)\}", text):
        assert package == "booktabs"


@pytest.mark.parametrize(
    ("text", "want"),
    [("a\nb", "a b"), ("“q”", "``q''"), ("x…", r"x\dots{}"), ("–", "--"), ('"', "''"), ("\\&", r"\textbackslash{}\&")],
)
def test_tex_letter_by_letter(text, want):
    assert table.tex(text) == want


def test_json_tells_significance():
    found = table.as_json(_blocks()[0])
    gaps = found["rows"][1]["gap"]
    assert (gaps["seen"]["significant"], gaps["unseen"]["significant"]) == (True, False)
    assert gaps["seen"]["value"]["mean"] == 0.2


def _texts(fig) -> list[str]:
    return [text.get_text() for ax in fig.axes for text in (ax.title, ax.xaxis.label, ax.yaxis.label)]


def test_pictures_show_every_method_with_its_interval(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"method {i}" for i in range(17)]
    blocks = [
        Block(
            title=title,
            seeds=[0],
            rows=[
                Row(
                    method=name,
                    against="",
                    accuracy={side: _interval(float(rng.uniform(0.5, 0.9))) for side in ("seen", "unseen")},
                    gap={},
                    seconds=float(rng.uniform(0.005, 90)),
                    parameters=1,
                    context=1,
                )
                for name in names
            ],
        )
        for title in ("one", "two", "three", "four")
    ]
    curves = {"two": {name: {1: _interval(0.5), 4: _interval(0.6), 8: _interval(0.7)} for name in names}}
    figures = {
        "seen_unseen": table_plots.seen_unseen(blocks),
        "seconds": table_plots.against_seconds(blocks),
        "pairs": table_plots.against_pairs(curves, {"two": {name: names[n > 8] for n, name in enumerate(names)}}),
    }
    for name, fig in figures.items():
        assert canvas.save(fig, tmp_path / f"{name}.png").stat().st_size > 10_000
    for name in ("seen_unseen", "seconds"):
        assert {"one", "two", "three", "four"} <= set(_texts(figures[name]))
        (legend,) = figures[name].legends
        assert len(legend.get_texts()) == (2 if name == "seen_unseen" else 17)
    both: Any = figures["seen_unseen"].axes[0]
    assert [label.get_text() for label in both.get_yticklabels()] == names
    values = [row.accuracy[side] for side in ("seen", "unseen") for row in blocks[0].rows]
    assert [line.lines[0].get_xdata()[0] for line in both.containers] == pytest.approx([100 * v.mean for v in values])
    whiskers = [sorted(line.lines[2][0].get_segments()[0][:, 0]) for line in both.containers]
    np.testing.assert_allclose(whiskers, [[100 * v.mean - 2, 100 * v.mean + 2] for v in values])
    # Every point is named, in the order of their heights, and no name lies on another.
    named = figures["seconds"].axes[1].texts
    assert {text.get_text() for text in named} == set(names)
    height = {row.method: row.accuracy["unseen"].mean for row in blocks[1].rows}
    order = sorted(named, key=lambda text: text.get_position()[1])
    assert [text.get_text() for text in order] == sorted(names, key=lambda name: height[name])
    assert np.diff([text.get_position()[1] for text in order]).min() > 0.04
    panels: Any = figures["pairs"].axes
    left, right = panels
    assert [text.get_text() for text in left.texts + right.texts] == names
    assert left.get_title() == "two, with method 0"
    assert [label.get_text() for label in left.get_xticklabels()] == ["1–3", "4–7", "8+"]
    drawn = left.containers[0]
    np.testing.assert_allclose(drawn.lines[0].get_ydata(), [50, 60, 70])
    whisker = drawn.lines[2][0].get_segments()[1][:, 1]
    np.testing.assert_allclose(sorted(whisker), [58, 62])
    for ax in (left, right):  # the last change of the shared height is seen by both
        assert ax.get_ylim()[0] < 48 < 72 < ax.get_ylim()[1]
    looks = {(line.lines[0].get_color(), line.lines[0].get_linestyle()) for line in left.containers}
    assert len(looks) == 9, "no two lines of a panel look alike"


def test_labels_are_spread_as_little_as_can_be():
    np.testing.assert_allclose(table_plots.spread(np.array([0.1, 0.9, 0.5]), 0.1, 0, 1), [0.1, 0.9, 0.5])
    np.testing.assert_allclose(table_plots.spread(np.array([0.5, 0.5, 0.9]), 0.1, 0, 1), [0.45, 0.55, 0.9])
    np.testing.assert_allclose(table_plots.spread(np.array([1.0, 1.0, 0.0]), 0.2, 0, 1), [0.8, 1.0, 0.0])
    np.testing.assert_allclose(table_plots.spread(np.full(4, 0.5), 0.5, 0, 1), [0, 0.5, 1, 1.5])  # no room: from below
    wanted = np.random.default_rng(5).random(12)
    found = table_plots.spread(wanted, 0.05, 0, 1)
    assert np.diff(np.sort(found)).min() > 0.05 - 1e-9
    assert (np.argsort(found) == np.argsort(wanted)).all()
    best = scipy.optimize.minimize(
        lambda places: ((places - np.sort(wanted)) ** 2).sum(),
        np.linspace(0, 1, 12),
        constraints={"type": "ineq", "fun": lambda places: np.diff(places) - 0.05},
        bounds=[(0, 1)] * 12,
    )
    np.testing.assert_allclose(np.sort(found), best.x, atol=2e-3)


def test_pictures_of_nothing_say_so():
    empty = Row(method="a", against="", accuracy={}, gap={}, seconds=1.0, parameters=0, context=0)
    fig = table_plots.seen_unseen([Block(title="x", seeds=[0], rows=[empty])])
    assert "nothing to show" in [text.get_text() for text in fig.axes[0].texts]
    assert table_plots.against_pairs({}, {}).axes[0].texts[0].get_text() == "no accuracies to show"
