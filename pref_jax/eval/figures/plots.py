"""Pictures for reports: scores and learning here, maps of users and experts from `maps`; `save` writes any of them.

Axis letters: S steps, E experts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from pref_jax.eval.figures import canvas
from pref_jax.eval.figures.canvas import save
from pref_jax.eval.figures.maps import embedding_map, expert_usage, user_weights, weight_paths
from pref_jax.eval.metrics import Interval
from pref_jax.eval.reporting.results import by_method

__all__ = [
    "accuracy_bars",
    "embedding_map",
    "expert_usage",
    "few_shot",
    "gate_curves",
    "learning_curves",
    "save",
    "sweep",
    "user_weights",
    "weight_paths",
]

_KINDS = {"accuracy": "all pairs", "common": "common", "controversial": "controversial"}
_SIDES = {"seen": "seen users", "unseen": "unseen users"}


@canvas.style()
def accuracy_bars(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy of each method on all, common and controversial pairs, for seen and for unseen users.

    Bars start at 50 %, the score of a coin (dashed line), and carry their 95 % interval: over seeds for a method with
    several of them, else over users. Pairs or users of which no row tells are left out of the picture.

    Args:
      rows: rows of `results.json`.
    """
    summary = by_method(rows)
    present = {name for values in summary.values() for name in values}
    sides = [side for side in _SIDES if any(f"{side}/{kind}" in present for kind in _KINDS)]
    shown = {f"{side}/{kind}" for side in _SIDES for kind in _KINDS}
    kinds = [kind for kind in _KINDS if any(f"{side}/{kind}" in present for side in sides)]
    if not sides:
        return canvas.nothing("no accuracies to show")
    labels = [canvas.clean(method) for method in summary]
    # Side by side while the bars stay wide enough to tell apart, one above the other beyond that.
    stacked = len(labels) > 5
    width = 9.0
    height = (2.7 * len(sides) if stacked else 3.4) + 0.6 + canvas.legend_height(labels, width)
    fig = canvas.new_figure(width, height)
    shape = (len(sides), 1) if stacked else (1, len(sides))
    axes = fig.subplots(*shape, sharey=True, squeeze=False).ravel()
    for ax, side in zip(axes, sides, strict=True):
        _bars(ax, [[values.get(f"{side}/{kind}") for kind in kinds] for values in summary.values()])
        ax.set_xticks(range(len(kinds)), [_KINDS[kind] for kind in kinds])
        ax.set_title(_SIDES[side])
        if stacked or ax is axes[0]:
            ax.set_ylabel("accuracy, %")
    _percent_limits(axes[0])
    overs = {v.over for values in summary.values() for name, v in values.items() if name in shown and v.low is not None}
    interval = f" and 95 % interval over {' or '.join(sorted(overs))}" if overs else ""
    canvas.heading(fig, f"Mean accuracy{interval}", width=width)
    canvas.legend_below(fig, [_patch(number) for number in range(len(labels))], labels, width=width)
    return fig


@canvas.style()
def learning_curves(
    curves: Mapping[str, tuple[Any, Any]],
    *,
    ylabel: str = "loss",
    xlabel: str = "step",
    title: str = "",
    panels: bool | None = None,
) -> Figure:
    """Values against steps, one line per name; steps on a logarithmic axis where they span more than a factor of 50.

    Args:
      curves: name -> (steps [S], values [S]).
      panels: True for one small panel per name, False for shared axes; by default panels from eight names on.
    """
    series = {name: (np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in curves.items() if len(x)}
    if not series:
        return canvas.nothing("no curves to show")
    if not (len(series) > 7 if panels is None else panels):
        labels = [canvas.clean(name) for name in series]
        fig = canvas.new_figure(8.0, 4.4 + canvas.legend_height(labels, 8.0))
        ax = fig.subplots()
        lines = [_curve(ax, number, *values) for number, values in enumerate(series.values())]
        canvas.legend_below(fig, lines, labels, width=8.0)
        axes = [ax]
        ax.set(xlabel=xlabel, ylabel=ylabel)
    else:
        columns = min(3, len(series))
        fig = canvas.new_figure(3.2 * columns, 2.4 * -(-len(series) // columns) + 0.5)
        axes = canvas.panels(fig, len(series), columns, sharex=True, sharey=True)
        for number, (ax, (name, values)) in enumerate(zip(axes, series.items(), strict=True)):
            _curve(ax, 0, *values)
            canvas.heading(ax, name, width=2.1, limit=40)
            # The panel below may be missing in the last row.
            ax.tick_params(labelbottom=number + columns >= len(series))
        fig.supxlabel(xlabel, fontsize=10)
        fig.supylabel(ylabel, fontsize=10)
    _log_steps(axes, np.concatenate([x for x, _ in series.values()]))
    if title:
        canvas.heading(fig, title, width=fig.get_figwidth() - 0.4)
    return fig


def few_shot(curves: Mapping[str, Mapping[int, Interval]], *, title: str = "Unseen users") -> Figure:
    """`sweep` over the number of context pairs a user has given."""
    return sweep(curves, xlabel="context pairs per user", title=title)


@canvas.style()
def sweep(
    curves: Mapping[str, Mapping[Any, Interval]],
    *,
    xlabel: str,
    title: str,
    levels: Mapping[str, Interval] | None = None,
) -> Figure:
    """Accuracy against something that was varied, with a band for the 95 % interval.

    Args:
      curves: method -> {number on the horizontal axis: Interval of the accuracy}.
      xlabel: what the number is.
      title: heading of the picture.
      levels: methods that do not depend on it, drawn across; their intervals as whiskers at the right.
    """
    series = {name: sorted(points.items()) for name, points in curves.items() if points}
    if not series:
        return canvas.nothing("no accuracies to show")
    labels = [canvas.clean(name) for name in (*series, *(levels or {}))]
    fig = canvas.new_figure(8.0, 4.4 + canvas.legend_height(labels, 8.0))
    ax = fig.subplots()
    lines = []
    for number, points in enumerate(series.values()):
        x = np.array([pairs for pairs, _ in points])
        mean, low, high = canvas.percent(value for _, value in points)
        lines += _line(ax, number, x, mean, marked=True)
        ax.fill_between(x, low, high, color=canvas.colour(number), alpha=0.15, linewidth=0)
    lines += [_across(ax, len(series) + i, value, i) for i, value in enumerate((levels or {}).values())]
    _coin(ax)
    _percent_limits(ax)
    _pair_ticks(ax, sorted({pairs for points in series.values() for pairs, _ in points}))
    ax.set(xlabel=xlabel, ylabel="accuracy, %")
    canvas.heading(ax, title, width=6.5)
    canvas.legend_below(fig, lines, labels, width=8.0)
    return fig


@canvas.style()
def gate_curves(
    steps: Sequence[int],
    usage: Sequence[Sequence[float]] | np.ndarray,
    entropy: Sequence[float] | np.ndarray,
    *,
    title: str = "Experts while training",
) -> Figure:
    """What gates did while they were trained: how much each expert was used, and how decided the gates were.

    Dashed lines tell what even use would be, and the entropy of gates that know nothing.

    Args:
      steps: S steps.
      usage: [S, E], fractions of the choices that fell on each expert, mean over gates.
      entropy: [S], mean entropy of the gates' probabilities in nats.
      title: heading of the picture.
    """
    shares = 100 * np.asarray(usage, float)
    if not shares.size:
        return canvas.nothing("no experts to show")
    x, count = np.asarray(steps, float), shares.shape[1]
    labels = [f"expert {e}" for e in range(count)]
    fig = canvas.new_figure(9.0, 6.0 + canvas.legend_height(labels, 9.0))
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(1.7, 1.0))
    lines = [_curve(top, number, x, shares[:, number]) for number in range(count)]
    _level(top, 100 / count, "even use")
    top.set_ylim(0, 1.08 * max(float(np.nanmax(shares)), 200 / count))
    top.set_ylabel("choices, %")
    _curve(bottom, 0, x, np.asarray(entropy, float)).set_color(canvas.GREY)
    _level(bottom, float(np.log(count)), "undecided")
    bottom.set_ylim(0, 1.25 * max(float(np.log(count)), 0.1))
    bottom.set(xlabel="step", ylabel="entropy, nats")
    _log_steps([top, bottom], x)
    canvas.heading(fig, title, width=8.6)
    canvas.legend_below(fig, lines, labels, width=9.0)
    return fig


def _level(ax: Axes, height: float, text: str) -> None:
    """A dashed line across, named in the margin."""
    ax.axhline(height, color="black", linewidth=0.9, linestyle=(0, (5, 3)), zorder=1.5)
    where = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
    ax.annotate(text, (1, height), xycoords=("axes fraction", "data"), **where)


def _across(ax: Axes, number: int, value: Interval, place: int) -> Line2D:
    """A level of its own colour and dash, its interval beside the axes' right edge."""
    look: Any = {"color": canvas.colour(number), "linewidth": 1.5}
    (mean, *ends), where = canvas.percent([value])[:, 0], 1.012 + 0.018 * place
    line = ax.axhline(mean, linestyle=canvas.DASHES[1 + number % (len(canvas.DASHES) - 1)], **look)
    ax.plot([where, where], ends, transform=ax.get_yaxis_transform(), clip_on=False, marker="_", **look)
    return line


def _coin(ax: Axes) -> None:
    """The dashed line of a coin's score; over bars, so that it can be followed from end to end."""
    ax.axhline(50, color="black", linewidth=0.9, linestyle=(0, (5, 3)), zorder=1.5)


def _percent_limits(ax: Axes) -> None:
    """Keeps the axis within 0 .. 100 %, whatever an interval from two values says, and at least 10 % high."""
    low, high = ax.get_ylim()
    ax.set_ylim(max(min(low, 44), -1), min(max(high, 56), 101))


def _patch(number: int) -> Patch:
    hatch = canvas.cycle(canvas.HATCHES, number)
    return Patch(facecolor=canvas.colour(number), edgecolor="white", hatch=hatch, linewidth=0)


def _bars(ax: Axes, table: list[list[Interval | None]]) -> None:
    """One bar for each method (row of `table`) in each kind (column), with whiskers; no bar where there is none."""
    width = min(0.84 / len(table), 0.3)
    for number, cells in enumerate(table):
        there = [(k, cell) for k, cell in enumerate(cells) if cell is not None]
        x = np.array([k + (number - (len(table) - 1) / 2) * width for k, _ in there])
        mean, *ends = canvas.percent(cell for _, cell in there)
        hatch, face = canvas.cycle(canvas.HATCHES, number), canvas.colour(number)
        ax.bar(x, mean - 50, width * 0.92, bottom=50, color=face, hatch=hatch, edgecolor="white", linewidth=0)
        # The dot shows where a bar of no height is.
        dot = {"marker": "o", "markersize": 3.5, "markerfacecolor": face, "markeredgecolor": "black", "linestyle": ""}
        ax.errorbar(x, mean, np.abs(ends - mean), ecolor="black", elinewidth=1.1, capsize=2.5, **dot)
    _coin(ax)
    ax.set_xlim(-0.55, len(table[0]) - 0.45)
    ax.tick_params(axis="x", length=0)
    ax.yaxis.grid(True, **canvas.GRID)
    ax.set_axisbelow(True)


def _line(ax: Axes, number: int, x: np.ndarray, y: np.ndarray, *, marked: bool) -> list[Line2D]:
    marker = canvas.MARKERS[number % len(canvas.MARKERS)] if marked else None
    dash = canvas.cycle(canvas.DASHES, number)
    return ax.plot(x, y, color=canvas.colour(number), linestyle=dash, linewidth=1.7, marker=marker, markersize=5)


def _curve(ax: Axes, number: int, steps: np.ndarray, values: np.ndarray) -> Line2D:
    ax.grid(True, **canvas.GRID)
    # Short curves would be hard to see, or a single point invisible, without markers.
    return _line(ax, number, steps, values, marked=len(steps) <= 12)[0]


def _pair_ticks(ax: Axes, counts: list[Any]) -> None:
    """A tick at each number that was tried, doublings at equal distances; plain ticks if they are many."""
    if counts[0] > 0 and counts[-1] >= 8 * counts[0]:
        ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    if len(counts) <= 10:
        ax.set_xticks(counts, [f"{count:g}" for count in counts])
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _log_steps(axes: Sequence[Axes], steps: np.ndarray) -> None:
    positive = steps[steps > 0]
    wide = len(positive) > 0 and positive.max() >= 50 * positive.min()
    for ax in axes:
        if not wide:
            ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
            continue
        if (steps <= 0).any():
            ax.set_xscale("symlog", linthresh=positive.min())
        else:
            ax.set_xscale("log")
        ax.xaxis.set_major_formatter(ScalarFormatter())
