"""The look of all pictures: figures without pyplot, colours that colour-blind readers can tell apart, saving.

Beyond the seven colours, hatches, markers and line styles tell further series apart.
"""

import contextlib
import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from jaxtyping import Float64
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pref_jax.eval.metrics import Interval

DPI = 150
# Okabe and Ito's palette without its yellow and black, which are hard to see on white or on text; grey for the rest.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F")
HATCHES = ("", "////", "....", "xxxx")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
GREY = "#4D4D4D"
PALE = "#BDBDBD"
GRID: dict[str, Any] = {"color": "#DDDDDD", "linewidth": 0.7}

_STYLE = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "normal",
    "axes.labelsize": 10.0,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "hatch.linewidth": 0.8,
    "text.usetex": False,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The settings under which every picture is drawn and saved; they do not outlive the block.

    They start from matplotlib's defaults, so that a user's own settings change no picture. Also a decorator.
    """
    # rc_context would not put the backend back: a notebook keeps its own.
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    settings: Any = defaults | _STYLE
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, whose layout makes room for labels, titles and legends."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def panels(fig: Figure, count: int, columns: int, **sharing: Any) -> list[Axes]:
    """`count` axes in rows of `columns`; what is left over of the last row is blank."""
    axes = fig.subplots(-(-count // columns), columns, squeeze=False, **sharing).ravel()
    for ax in axes[count:]:
        ax.set_axis_off()
    return list(axes[:count])


def percent(values: Iterable[Interval]) -> Float64[np.ndarray, "3 n"]:
    """Means and both ends in percent; where there is no interval the ends are the mean."""
    rows = [(v.mean, v.mean if v.low is None else v.low, v.mean if v.high is None else v.high) for v in values]
    return 100 * np.array(rows, np.float64).reshape(-1, 3).T


def save(fig: Figure, path: str | Path) -> Path:
    """Writes `fig` as a PNG at 150 dots an inch, at once: readers see the old picture or the new one.

    Returns:
      `path`, to be embedded in a report.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with style():
        fig.savefig(part, format="png", dpi=DPI)
    os.replace(part, path)
    return path


def colour(number: int) -> str:
    """Colour of the series with that number; repeats after seven, where hatches or dashes change."""
    return COLOURS[number % len(COLOURS)]


def shade(number: int) -> str:
    """Colour of the group with that number where only colour can tell: the hues, then the same hues darkened."""
    hues = COLOURS[:-1]
    red, green, blue = matplotlib.colors.to_rgb(hues[number % len(hues)])
    dark = 0.5 ** (number // len(hues))
    return matplotlib.colors.to_hex((red * dark, green * dark, blue * dark))


def cycle(choices: Sequence[str], number: int) -> str:
    """A hatch or dash for the series with that number: changes when the colours begin again."""
    return choices[number // len(COLOURS) % len(choices)]


def clean(text: str, *, limit: int = 40) -> str:
    """A name as a label: one line, at most `limit` characters (the middle gives way), no formulas by accident."""
    text = " ".join(str(text).split())
    if len(text) > limit:
        head = (limit - 1) // 2
        text = f"{text[: limit - 1 - head]}…{text[-head:]}"
    # matplotlib reads $ as the start of a formula, and leaves labels that start with _ out of legends.
    text = text.replace("$", r"\$")
    return f"\u200a{text}" if text.startswith("_") else text


def heading(target: Figure | Axes, text: str, *, width: float, limit: int = 200) -> None:
    """Sets the title, wrapped to `width` inches so that it is never cut off."""
    wrapped = textwrap.fill(clean(text, limit=limit), max(12, int(width * 12)))
    if isinstance(target, Figure):
        target.suptitle(wrapped, fontsize=12)
    else:
        target.set_title(wrapped)


def legend_height(labels: Sequence[str], width: float) -> float:
    """Inches that `legend_below` will take in a figure of that width."""
    return 0.23 * -(-len(labels) // _columns(labels, width)) + 0.15


def legend_below(fig: Figure, handles: Sequence[Artist | Any], labels: Sequence[str], *, width: float) -> None:
    """A legend under all axes, with as many columns as fit."""
    if labels:
        columns = _columns(labels, width)
        fig.legend(list(handles), list(labels), loc="outside lower center", ncols=columns, columnspacing=1.4)


def nothing(text: str) -> Figure:
    """A small figure that says that there is nothing to show, in place of empty axes."""
    fig = new_figure(5.0, 2.0)
    ax = fig.subplots()
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color=GREY)
    return fig


def _columns(labels: Sequence[str], width: float) -> int:
    # About 12.5 characters to the inch at this size, and the room of 6 for the handle and the gap.
    longest = max((len(label) for label in labels), default=1) + 6
    return max(1, min(len(labels), int(width * 12.5 / longest)))
