"""Pictures of a table of several data sets: a panel for each, the same colour and mark for a method everywhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from pref_jax.eval import canvas
from pref_jax.eval.accuracy import Interval
from pref_jax.eval.report import duration
from pref_jax.eval.table import Block, Row

COLUMNS = 3
_PANEL = (3.6, 3.1)
_WIDTH = COLUMNS * _PANEL[0]
# Ticks of the time axis, in seconds; of a narrow one more of them.
_TIMES = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36_000.0)
_CLOSER = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 36_000.0)


@canvas.style()
def seen_unseen(blocks: Sequence[Block]) -> Figure:
    """Accuracy of seen users (across) and of unseen ones (up), with both intervals; the diagonal is dashed."""

    def draw(ax: Axes, number: int, row: Row) -> bool:
        if not {"seen", "unseen"} <= row.accuracy.keys():
            return False
        seen, unseen = row.accuracy["seen"], row.accuracy["unseen"]
        _point(ax, number, 100 * seen.mean, unseen, across=seen)
        return True

    def finish(ax: Axes) -> None:
        low, high = min(ax.get_xlim()[0], ax.get_ylim()[0]), max(ax.get_xlim()[1], ax.get_ylim()[1])
        ax.set(xlim=(low, high), ylim=(low, high), xlabel="seen users, %", ylabel="unseen users, %")
        ax.axline((low, low), slope=1, color="black", linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)

    return _points(blocks, draw, finish, "Seen and unseen users: mean accuracy and 95 % interval over users")


@canvas.style()
def against_seconds(blocks: Sequence[Block], *, side: str = "unseen") -> Figure:
    """Accuracy of the users of one side, with its interval, against the time of one seed."""

    def draw(ax: Axes, number: int, row: Row) -> bool:
        if side not in row.accuracy:
            return False
        _point(ax, number, max(row.seconds, 1e-3), row.accuracy[side])
        return True

    def finish(ax: Axes) -> None:
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        shown = [second for second in (_CLOSER if high < 200 * low else _TIMES) if low <= second <= high]
        if not shown:  # no room for any: the middle
            shown = [float(f"{(low * high) ** 0.5:.2g}")]
        ax.set_xticks(shown, [_brief(second) for second in shown])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel="time of one seed", ylabel=f"{side} users, %")

    return _points(blocks, draw, finish, f"{side.capitalize()} users: mean accuracy and 95 % interval, against time")


@canvas.style()
def against_pairs(curves: Mapping[str, Mapping[str, Mapping[int, Interval]]]) -> Figure:
    """Accuracy of users by how many pairs they gave, a row of panels for each data set.

    Methods that keep the same names in all rows are cut over panels of at most seven, so that lines can be followed.

    Args:
      curves: data set -> method -> {lowest number of pairs of the kind: accuracy}.
    """
    methods = list(dict.fromkeys(name for own in curves.values() for name in own))
    parts = [methods[i : i + 7] for i in range(0, len(methods), 7)]
    if not methods:
        return canvas.nothing("no accuracies to show")
    width = max(len(parts) * 4.2, 8.0)
    labels = [canvas.clean(name) for name in methods]
    fig = canvas.new_figure(width, 3.3 * len(curves) + 0.5 + canvas.legend_height(labels, width))
    axes = fig.subplots(len(curves), len(parts), sharey="row", squeeze=False)
    for line, (title, own) in zip(axes, curves.items(), strict=True):
        counts = sorted({count for points in own.values() for count in points})
        for ax, names in zip(line, parts, strict=True):
            if not any(own.get(name) for name in names):
                ax.set_axis_off()
                continue
            for name in names:
                _curve(ax, methods.index(name), own.get(name, {}), shift=names.index(name) - (len(names) - 1) / 2)
            ax.set_xscale("log", base=2)
            ax.set_xticks(counts, _spans(counts))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xlabel("pairs of the user")
            canvas.heading(ax, title, width=3.4, limit=60)
        line[0].set_ylabel("seen users, %")
    canvas.heading(fig, "Accuracy by the pairs a user gave, with 95 % interval over users", width=width - 0.4)
    canvas.legend_below(fig, [_handle(number) for number in range(len(labels))], labels, width=width)
    return fig


def _brief(seconds: float) -> str:
    """`duration` without digits that say nothing: 10 ms, 3 s, 2 min."""
    return duration(seconds).replace(".0 ", " ").replace(" 00 s", "").replace(" 00 min", "")


def _spans(counts: Sequence[int]) -> list[str]:
    ends = [after - 1 for after in counts[1:]]
    spans = [f"{low}" if low == end else f"{low}–{end}" for low, end in zip(counts, ends, strict=False)]
    return [*spans, f"{counts[-1]}+"]


def _curve(ax: Axes, number: int, points: Mapping[int, Interval], *, shift: float) -> None:
    # Apart by a little, so that whiskers at the same number stand beside one another.
    x = np.array(sorted(points)) * 2.0 ** (0.07 * shift)
    if not len(x):
        return
    mean = np.array([100 * points[count].mean for count in sorted(points)])
    ends = np.array([_ends(points[count]) for count in sorted(points)]).T
    ax.errorbar(x, mean, np.abs(ends - mean), **_look(number), linewidth=1.3)
    ax.grid(True, axis="y", color="#DDDDDD", linewidth=0.7)


def _points(
    blocks: Sequence[Block], draw: Callable[[Axes, int, Row], bool], finish: Callable[[Axes], None], title: str
) -> Figure:
    """A panel a data set, a point a method; `draw` says whether the row had what the point needs."""
    methods = list(dict.fromkeys(row.method for block in blocks for row in block.rows))
    if not methods:
        return canvas.nothing("no accuracies to show")
    columns = min(COLUMNS, len(blocks))
    lines = -(-len(blocks) // columns)
    width = max(columns * _PANEL[0], 6.0)
    labels = [canvas.clean(name) for name in methods]
    fig = canvas.new_figure(width, _PANEL[1] * lines + 0.5 + canvas.legend_height(labels, width))
    axes = fig.subplots(lines, columns, squeeze=False).ravel()
    for ax, block in zip(axes, blocks, strict=False):
        drawn = [draw(ax, methods.index(row.method), row) for row in block.rows]
        canvas.heading(ax, block.title, width=_PANEL[0] - 0.6, limit=60)
        ax.grid(True, color="#DDDDDD", linewidth=0.7)
        ax.set_axisbelow(True)
        if any(drawn):
            finish(ax)
        else:
            ax.text(0.5, 0.5, "nothing to show", ha="center", transform=ax.transAxes, color=canvas.GREY)
    for ax in axes[len(blocks) :]:
        ax.set_axis_off()
    canvas.heading(fig, title, width=width - 0.4)
    handles = [_handle(number, line=False) for number in range(len(labels))]
    canvas.legend_below(fig, handles, labels, width=width)
    return fig


def _point(ax: Axes, number: int, x: float, up: Interval, across: Interval | None = None) -> None:
    mean = 100 * up.mean
    y_error = np.abs(np.array(_ends(up))[:, None] - mean)
    x_error = None if across is None else np.abs(np.array(_ends(across))[:, None] - x)
    ax.errorbar([x], [mean], y_error, x_error, **{**_look(number), "linestyle": ""})


def _ends(value: Interval) -> list[float]:
    return [100 * (value.mean if end is None else end) for end in (value.low, value.high)]


def _look(number: int) -> dict[str, Any]:
    """Seven colours; each next seven methods have other marks and dashes, so no two look alike up to 28."""
    turn = number // len(canvas.COLOURS)
    return {
        "color": canvas.colour(number),
        "marker": canvas.MARKERS[(number + 2 * turn) % len(canvas.MARKERS)],
        "linestyle": canvas.cycle(canvas.DASHES, number),
        "markersize": 6,
        "markeredgecolor": "black" if turn % 2 else canvas.colour(number),
        "markeredgewidth": 0.8,
        "elinewidth": 1.0,
        "capsize": 2,
    }


def _handle(number: int, *, line: bool = True) -> Line2D:
    look = {name: value for name, value in _look(number).items() if name not in ("elinewidth", "capsize")}
    return Line2D([], [], **(look if line else {**look, "linestyle": ""}))
