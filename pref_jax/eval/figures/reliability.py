"""How often something happens against how probable it was said to be.

Axis letters: P predictions, B bins.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from pref_jax.eval.figures import canvas


class Reliability(NamedTuple):
    """Bins of about as many predictions each, from the least probable to the most.

    Attributes:
      said: float64 [B] mean probability.
      happened: float64 [B] share.
      error: float64 [B] standard error of that share.
      count: int64 [B] predictions.
    """

    said: Float[np.ndarray, " B"]
    happened: Float[np.ndarray, " B"]
    error: Float[np.ndarray, " B"]
    count: np.ndarray


def reliability(
    probability: Float[np.ndarray, " P"], happened: Bool[np.ndarray, " P"], *, bins: int = 10
) -> Reliability:
    """Cuts predictions into bins; fewer than `bins` where there are fewer predictions.

    Example:
      >>> reliability(np.array([0.1, 0.9]), np.array([False, True]), bins=2).happened
      array([0., 1.])
    """
    order = np.argsort(np.asarray(probability, np.float64), kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    said = np.array([probability[part].mean(dtype=np.float64) for part in parts])
    share = np.array([np.mean(happened[part]) for part in parts])
    count = np.array([len(part) for part in parts], np.int64)
    return Reliability(said, share, np.sqrt(share * (1 - share) / np.maximum(count, 1)), count)


@canvas.style()
def reliability_curves(curves: Mapping[str, Reliability], *, xlabel: str, ylabel: str, title: str) -> Figure:
    """Shares against probabilities, a line for each name with one standard error; the diagonal is what is right.

    Args:
      curves: by name.
      xlabel: what the probabilities are of.
      ylabel: what the shares are of.
      title: heading of the picture.
    """
    shown = {name: curve for name, curve in curves.items() if len(curve.said)}
    if not shown:
        return canvas.nothing("no predictions to show")
    labels = [canvas.clean(name) for name in shown]
    fig = canvas.new_figure(6.0, 5.0 + canvas.legend_height(labels, 6.0))
    ax = fig.subplots()
    top = 1.08 * max(float(max(curve.said.max(), (curve.happened + curve.error).max())) for curve in shown.values())
    ax.plot([0, top], [0, top], color="black", linewidth=0.9, linestyle=(0, (5, 3)))
    lines = []
    for number, curve in enumerate(shown.values()):
        look = {"color": canvas.colour(number), "marker": canvas.cycle(canvas.MARKERS, number), "markersize": 5}
        lines.append(ax.errorbar(curve.said, curve.happened, curve.error, capsize=2.5, linewidth=1.4, **look))
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, top), ylim=(0, top))
    ax.grid(True, **canvas.GRID)
    canvas.heading(fig, title, width=5.6)
    canvas.legend_below(fig, lines, labels, width=6.0)
    return fig
