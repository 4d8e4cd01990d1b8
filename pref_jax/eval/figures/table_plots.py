"""Pictures of a table of several data sets: a panel for each; methods are named where they are drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from scipy import optimize

from pref_jax.eval.figures import canvas
from pref_jax.eval.metrics import Interval
from pref_jax.eval.reporting.report import duration
from pref_jax.eval.reporting.table import SIDES, Block, Row

# Inches: of a line of text, of a panel's height and of the room for names beside it.
_LINE, _HEIGHT, _NAMES = 0.17, 3.4, 1.7
_NAME_SIZE = 8.5
_LEADER: dict[str, Any] = {
    "arrowstyle": "-",
    "linewidth": 0.5,
    "alpha": 0.7,
    "relpos": (0, 0.5),
    "shrinkA": 1,
    "shrinkB": 3,
}
# Ticks of the time axis, in seconds; of a narrow one more of them.
_TIMES = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36_000.0)
_CLOSER = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 36_000.0)


@canvas.style()
def seen_unseen(blocks: Sequence[Block], *, columns: int = 3) -> Figure:
    """Accuracy of seen and of unseen users beside each other, with intervals: methods down, the same in all panels."""
    methods = _methods(blocks)
    if not methods:
        return canvas.nothing("no accuracies to show")
    columns = min(columns, len(blocks))
    width = columns * 3.1 + _NAMES
    fig = canvas.new_figure(width, -(-len(blocks) // columns) * (1.4 * _LINE * len(methods) + 0.9) + 0.6)
    axes = canvas.panels(fig, len(blocks), columns, sharey=True)
    for place, (ax, block) in enumerate(zip(axes, blocks, strict=True)):
        _sides(ax, block, methods)
        if place % columns:
            ax.tick_params(labelleft=False)
    handles = [Line2D([], [], **_side(number)[1]) for number in range(len(SIDES))]
    canvas.heading(fig, "Seen and unseen users: mean accuracy and 95 % interval over users", width=width - 0.4)
    canvas.legend_below(fig, handles, [f"{side} users" for side in SIDES], width=width)
    return fig


def _methods(blocks: Sequence[Block]) -> list[str]:
    """All methods, in the order of the data set that has most, then of the others."""
    longest = sorted(blocks, key=lambda block: -len(block.rows))
    return list(dict.fromkeys(row.method for block in longest for row in block.rows))


def _side(number: int) -> tuple[float, dict[str, Any]]:
    """Where in its line a side's point stands, and how it looks."""
    look = {"color": canvas.colour(number), "marker": "oD"[number], "markersize": 4.5, "linestyle": ""}
    return (-0.17, 0.17)[number], look


def _sides(ax: Axes, block: Block, methods: Sequence[str]) -> None:
    rows = {row.method: row for row in block.rows}
    for number, side in enumerate(SIDES):
        shift, look = _side(number)
        for place, name in enumerate(methods):
            if name in rows and side in rows[name].accuracy:
                mean, *ends = canvas.percent([rows[name].accuracy[side]])
                ax.errorbar(mean, [place + shift], xerr=np.abs(ends - mean), elinewidth=1.1, **look)
    for place in range(0, len(methods), 2):
        ax.axhspan(place - 0.5, place + 0.5, color="#F3F3F3", zorder=0, linewidth=0)
    ax.set_yticks(range(len(methods)), [canvas.clean(name, limit=24) for name in methods])
    ax.set(ylim=(len(methods) - 0.5, -0.5), xlabel="accuracy, %")
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.grid(True, axis="x", **canvas.GRID)
    ax.set_axisbelow(True)
    canvas.heading(ax, block.title, width=3.0, limit=60)
    if not ax.containers:
        ax.text(0.5, 0.5, "nothing to show", ha="center", transform=ax.transAxes, color=canvas.GREY)


@canvas.style()
def against_seconds(blocks: Sequence[Block], *, side: str = "unseen", columns: int = 2) -> Figure:
    """Accuracy of the users of one side, with its interval, against the time of one seed; names at the right.

    Colour and mark tell what a method is compared with, which is what it is built on.
    """
    bases = list(dict.fromkeys(_base(row) for block in blocks for row in block.rows))
    if not bases:
        return canvas.nothing("no accuracies to show")
    columns = min(columns, len(blocks))
    lines, width = -(-len(blocks) // columns), columns * (3.6 + _NAMES)
    labels = [f"{canvas.clean(name)} and what is compared with it" for name in bases]
    fig = canvas.new_figure(width, lines * (_HEIGHT + 0.3) + 0.5 + canvas.legend_height(labels, width))
    for ax, block in zip(canvas.panels(fig, len(blocks), columns), blocks, strict=True):
        _seconds(ax, [row for row in block.rows if side in row.accuracy], side, bases)
        canvas.heading(ax, block.title, width=3.4, limit=60)
    title = f"{side.capitalize()} users: mean accuracy and 95 % interval, against time"
    canvas.heading(fig, title, width=width - 0.4)
    handles = [Line2D([], [], **_base_look(number)) for number in range(len(bases))]
    canvas.legend_below(fig, handles, labels, width=width)
    return fig


def _base(row: Row) -> str:
    return row.against or row.method


def _base_look(number: int) -> dict[str, Any]:
    marker = canvas.MARKERS[number % len(canvas.MARKERS)]
    return {"color": canvas.colour(number), "marker": marker, "markersize": 6, "linestyle": ""}


def _seconds(ax: Axes, rows: Sequence[Row], side: str, bases: Sequence[str]) -> None:
    if not rows:
        ax.text(0.5, 0.5, "nothing to show", ha="center", transform=ax.transAxes, color=canvas.GREY)
        return
    points = []
    for row in rows:
        look, x = _base_look(bases.index(_base(row))), max(row.seconds, 1e-3)
        y, *ends = canvas.percent([row.accuracy[side]])
        ax.errorbar([x], y, np.abs(ends - y), **look, elinewidth=1.0, capsize=2)
        points.append((x, y[0], row.method, look["color"]))
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    shown = [second for second in (_CLOSER if high < 200 * low else _TIMES) if low <= second <= high]
    if not shown:  # no room for any: the middle
        shown = [float(f"{(low * high) ** 0.5:.2g}")]
    ax.set_xticks(shown, [_brief(second) for second in shown])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="time of one seed", ylabel=f"{side} users, %")
    ax.grid(True, **canvas.GRID)
    ax.set_axisbelow(True)
    _name(ax, points)


@canvas.style()
def against_pairs(
    curves: Mapping[str, Mapping[str, Mapping[int, Interval]]], bases: Mapping[str, Mapping[str, str]]
) -> Figure:
    """Accuracy of users by how many pairs they gave: a row for each data set, a panel for each kind of method.

    Args:
      curves: data set -> method -> {lowest number of pairs of the kind: accuracy}.
      bases: data set -> method -> what it is compared with, or itself; methods of one base share a panel.
    """
    methods = list(dict.fromkeys(name for own in curves.values() for name in own))
    kinds = list(dict.fromkeys(bases[title][name] for title, own in curves.items() for name in own))
    if not kinds:
        return canvas.nothing("no accuracies to show")
    width = max(len(kinds) * (3.8 + _NAMES), 8.0)
    fig = canvas.new_figure(width, (_HEIGHT + 0.3) * len(curves) + 0.5)
    axes = fig.subplots(len(curves), len(kinds), sharey="row", squeeze=False)
    # A method looks the same in all data sets.
    names = {kind: [m for m in methods if any(bases[t].get(m) == kind for t in curves)] for kind in kinds}
    for line, (title, own) in zip(axes, curves.items(), strict=True):
        ends = []
        for ax, kind in zip(line, kinds, strict=True):
            mine = {name: points for name, points in own.items() if bases[title][name] == kind and points}
            if not mine:
                ax.set_axis_off()
                continue
            ends.append((ax, _curves(ax, mine, names[kind])))
            canvas.heading(ax, title if len(kinds) == 1 else f"{title}, with {kind}", width=4.6, limit=80)
        for ax, points in ends:  # once all have their part in the height that they share
            _name(ax, points)
    canvas.heading(fig, "Accuracy by the pairs a user gave, with 95 % interval over users", width=width - 0.4)
    return fig


def _curves(
    ax: Axes, own: Mapping[str, Mapping[int, Interval]], methods: Sequence[str]
) -> list[tuple[float, float, str, str]]:
    """Draws a line for each method, by its place in `methods`, and gives what `_name` names: their ends."""
    counts = sorted({count for points in own.values() for count in points})
    ends = []
    for name, points in own.items():
        number = methods.index(name)
        # Apart by a little, so that whiskers at the same number stand beside one another.
        shift = 2.0 ** (0.6 * ((number + 0.5) / len(methods) - 0.5))
        x = np.array(sorted(points)) * shift
        y, *reach = canvas.percent(points[count] for count in sorted(points))
        ax.errorbar(x, y, np.abs(reach - y), **_look(number), linewidth=1.3)
        ends.append((x[-1], y[-1], name, canvas.colour(number)))
    ax.set_xscale("log", base=2)
    ax.set_xticks(counts, _spans(counts))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(labelleft=True)
    ax.set(xlabel="pairs of the user", ylabel="seen users, %")
    ax.grid(True, axis="y", **canvas.GRID)
    ax.set_axisbelow(True)
    return ends


def spread(
    wanted: Float64[np.ndarray, "P"], gap: float, low: float | int, high: float | int
) -> Float64[np.ndarray, "P"]:
    """Places for labels, in the order of `wanted`, at least `gap` apart and within low and high where there is room.

    Those of least squared distance to what was wanted (isotonic regression).
    """
    order = np.argsort(wanted, kind="stable")
    level = optimize.isotonic_regression(wanted[order] - gap * np.arange(len(wanted))).x
    found = np.empty(len(wanted))
    found[order] = np.clip(level, low, max(low, high - gap * (len(wanted) - 1))) + gap * np.arange(len(wanted))
    return found


def _name(ax: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Names of points (x, y, name, colour) down the right side, a thin line from each to its point."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)  # names must not move the axis
    heights = (np.array([y for _, y, _, _ in points], np.float64) - low) / (high - low)
    places = spread(heights, gap=_LINE * 0.85 / (_HEIGHT - 0.7), low=0.0, high=1.0)
    for (x, y, name, colour), place in zip(points, places, strict=True):
        ax.annotate(
            canvas.clean(name, limit=24),
            (x, y),
            (1.05, place),
            textcoords="axes fraction",
            va="center",
            fontsize=_NAME_SIZE,
            arrowprops={"color": colour, **_LEADER},
        )


def _brief(seconds: float) -> str:
    """`duration` without digits that say nothing: 10 ms, 3 s, 2 min."""
    return duration(seconds).replace(".0 ", " ").replace(" 00 s", "").replace(" 00 min", "")


def _spans(counts: Sequence[int]) -> list[str]:
    ends = [after - 1 for after in counts[1:]]
    spans = [f"{low}" if low == end else f"{low}–{end}" for low, end in zip(counts, ends, strict=False)]
    return [*spans, f"{counts[-1]}+"]


def _look(number: int) -> dict[str, Any]:
    """Seven colours; each next seven methods have other marks and dashes, so no two look alike up to 28."""
    turn = number // len(canvas.COLOURS)
    return {
        "color": canvas.colour(number),
        "marker": canvas.MARKERS[(number + 2 * turn) % len(canvas.MARKERS)],
        "linestyle": canvas.cycle(canvas.DASHES, number),
        "markersize": 5,
        "markeredgecolor": "black" if turn % 2 else canvas.colour(number),
        "markeredgewidth": 0.8,
        "elinewidth": 0.8,
        "capsize": 2,
    }
