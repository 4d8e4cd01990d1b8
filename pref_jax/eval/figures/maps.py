"""Pictures of what a model has learnt: users in the plane, their weights, experts by gate.

Axis letters: U users, D features, K basis, S answers, G gates (or layers), E experts.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pref_jax.eval.figures import canvas

_MOST_GROUPS = 12


@canvas.style()
def embedding_map(
    embeddings: Float[Array | np.ndarray, "U D"],
    groups: Sequence[str | None],
    seen: Bool[Array | np.ndarray, "U"],
    *,
    title: str = "User embeddings",
) -> Figure:
    """Users on the first two principal components of their embeddings, coloured by group.

    Seen users are dots, unseen users hollow triangles. The components come from all users at once; each axis tells the
    share of the variance that it explains. Past 12 groups the smaller ones are drawn together, as "other groups".

    Args:
      embeddings: float [U, D].
      groups: U names or None.
      seen: bool [U].
      title: heading of the picture.
    """
    points, explained = principal_plane(np.asarray(embeddings))
    known = np.asarray(seen, dtype=bool)
    if not len(points):
        return canvas.nothing("no users to show")
    labels, colours, code = _group_colours(groups)
    fig = canvas.new_figure(8.0, max(5.0, 0.24 * (len(labels) + 6)))
    ax = fig.subplots()
    # In one random order, so that no group is drawn over all the others.
    shuffled = np.random.default_rng(0).permutation(len(points))
    size = float(np.clip(14_000 / len(points), 8, 36))
    dots, triangles = shuffled[known[shuffled]], shuffled[~known[shuffled]]
    paint = np.array(colours)[code]
    ax.scatter(*points[dots].T, s=size, marker="o", c=paint[dots], linewidths=0)
    ax.scatter(
        *points[triangles].T, s=max(size, 24), marker="^", facecolors="none", edgecolors=paint[triangles].tolist()
    )
    _map_legend(fig, labels, colours, known)
    ax.set_xlabel(f"component 1 ({explained[0]:.0%} of variance)")
    ax.set_ylabel(f"component 2 ({explained[1]:.0%} of variance)")
    ax.margins(0.06)
    canvas.heading(ax, title, width=5.5)
    return fig


@canvas.style()
def user_weights(
    weights: Float[Array | np.ndarray, "U K"],
    groups: Sequence[str | None],
    seen: Bool[Array | np.ndarray, "U"],
    *,
    title: str = "Weights of users",
) -> Figure:
    """Each user's weight on each basis reward; groups side by side, each with a bar at its mean.

    Seen users are dots, unseen users hollow triangles, coloured as in `embedding_map`.

    Args:
      weights: float [U, K].
      groups: U names or None.
      seen: bool [U].
      title: heading of the picture.
    """
    table, known = np.asarray(weights).astype(np.float64), np.asarray(seen, dtype=bool)
    if not table.size:
        return canvas.nothing("no users to show")
    labels, colours, code = _group_colours(groups)
    size, width = table.shape[1], 0.84 / len(labels)
    fig = canvas.new_figure(float(np.clip(4.5 + 0.9 * size, 6, 14)), max(4.0, 0.24 * (len(labels) + 6)))
    ax = fig.subplots()
    # Apart from each other sideways, where equal weights would hide one another.
    aside = np.random.default_rng(0).uniform(-0.38, 0.38, len(table))
    middle = np.arange(size)[None] + width * (np.arange(len(labels)) - (len(labels) - 1) / 2)[:, None]
    place, paint = middle[code] + width * aside[:, None], np.repeat(np.array(colours)[code], size)
    area, dots = float(np.clip(9_000 / len(table), 6, 30)), np.repeat(known, size)
    x, y = place.ravel(), table.ravel()
    ax.scatter(x[dots], y[dots], s=area, marker="o", c=paint[dots], linewidths=0, alpha=0.7)
    ax.scatter(x[~dots], y[~dots], s=max(area, 18), marker="^", facecolors="none", edgecolors=paint[~dots].tolist())
    for group, centre in enumerate(middle):
        mean = table[code == group].mean(axis=0)
        ax.hlines(mean, centre - 0.45 * width, centre + 0.45 * width, colors="black", linewidth=1.6, zorder=4)
    _map_legend(fig, labels, colours, known)
    ax.set_xticks(range(size), [str(k + 1) for k in range(size)])
    ax.set(xlabel="basis reward", ylabel="weight", xlim=(-0.55, size - 0.45))
    canvas.heading(ax, title, width=fig.get_figwidth() - 2.6)
    return fig


@canvas.style()
def weight_paths(
    users: Mapping[str, tuple[Float[Array | np.ndarray, "S K"], Float[Array | np.ndarray, "S K"]]],
    *,
    title: str = "Weights of new users",
) -> Figure:
    """How users' weights settle: one panel per user, one line per basis reward, a band where the weight lies with 95 %.

    Args:
      users: name -> mean [S, K] and standard deviation [S, K] of the weights, before any answer and after each.
      title: heading of the picture.
    """
    series = {name: tuple(np.asarray(part, np.float64) for part in pair) for name, pair in users.items()}
    if not any(mean.size for mean, _ in series.values()):
        return canvas.nothing("no weights to show")
    labels = [f"basis reward {k + 1}" for k in range(max(mean.shape[1] for mean, _ in series.values()))]
    columns = min(3, len(series))
    width = max(3.4 * columns, 5.0)
    fig = canvas.new_figure(width, 2.9 * -(-len(series) // columns) + 0.6 + canvas.legend_height(labels, width))
    axes = canvas.panels(fig, len(series), columns, sharey=True)
    for number, (ax, (name, (mean, deviation))) in enumerate(zip(axes, series.items(), strict=True)):
        _paths(ax, mean, deviation)
        canvas.heading(ax, name, width=2.6, limit=60)
        ax.set(xlabel="answers given", ylabel="" if number % columns else "weight")
    canvas.heading(fig, title, width=width - 0.4)
    handles = [Line2D([], [], **_stroke(k)) for k in range(len(labels))]
    canvas.legend_below(fig, handles, labels, width=width)
    return fig


@canvas.style()
def expert_usage(
    usage: Shaped[Array | np.ndarray, "G E"] | Mapping[str, Shaped[Array | np.ndarray, "G E"]],
    *,
    gates: Sequence[str] | None = None,
    title: str = "Share of users sent to each expert",
) -> Figure:
    """Heat map with numbers: the percentage of a gate's users (or tokens) that each expert receives.

    Args:
      usage: counts or shares [G, E], each row scaled to 100 % here (a row of zeros stays zero); or one such table a
        group, all of one shape, drawn as one panel each.
      gates: G names of the rows; "gate 0", "gate 1", ... by default.
      title: heading of the picture.
    """
    given = usage if isinstance(usage, Mapping) else {"": usage}
    tables = {name: _shares(np.asarray(table, dtype=np.float64)) for name, table in given.items()}
    if not tables or not next(iter(tables.values())).size:
        return canvas.nothing("no experts to show")
    num_gates, num_experts = next(iter(tables.values())).shape
    names = [canvas.clean(name, limit=28) for name in (gates or [f"gate {g}" for g in range(num_gates)])]
    panel = max(1.6, 0.42 * num_experts)
    lines_down = -(-len(tables) // max(1, int(11 / (panel + 0.3))))
    columns = -(-len(tables) // lines_down)
    width = max(4.5, columns * (panel + 0.3) + 1.4 + 0.08 * max(map(len, names)))
    fig = canvas.new_figure(width, lines_down * (0.27 * num_gates + 0.75) + 0.6)
    axes = canvas.panels(fig, len(tables), columns, sharex=True, sharey=True)
    top = max(float(table.max()) for table in tables.values()) or 1.0
    for ax, (name, shares) in zip(axes, tables.items(), strict=True):
        _heat(ax, shares, top)
        ax.set_xticks(range(num_experts))
        ax.set_yticks(range(num_gates), names)
        ax.tick_params(length=0, labelbottom=True)
        if name:
            canvas.heading(ax, name, width=panel, limit=40)
    label = f"%; {100 / num_experts:.3g} if even"
    fig.colorbar(axes[0].images[0], ax=fig.axes, label=label, fraction=0.04, aspect=12)
    fig.supxlabel("expert", fontsize=10)
    canvas.heading(fig, title, width=width - 0.5)
    return fig


def principal_plane(points: Float[np.ndarray, "U D"]) -> tuple[Float[np.ndarray, "U 2"], tuple[float, float]]:
    """Coordinates [U, 2] on the first two principal components and the shares of variance that they explain.

    A component's sign is that of its largest loading, so that pictures of the same data look the same. Where there is
    no second component (or no variance at all) its coordinates and its share are 0.
    """
    plane = np.zeros((len(points), 2))
    if not points.size:
        return plane, (0.0, 0.0)
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    # [D, D] rather than [U, U]: there are many users and few features.
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    vectors = vectors * np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0))
    plane[:, : min(2, points.shape[1])] = centred @ vectors[:, :2]
    shares = np.append(values, 0.0)[:2] / (values.sum() or 1.0)
    return plane, (float(shares[0]), float(shares[1]))


def _group_colours(groups: Sequence[str | None]) -> tuple[list[str], list[str], Int[np.ndarray, "U"]]:
    """Labels and colours of the legend's groups, and for each user the position of theirs."""
    counts = Counter(groups)
    largest = [name for name, _ in counts.most_common() if name is not None][:_MOST_GROUPS]
    # "group 2" before "group 10".
    kept = sorted(largest, key=lambda name: [int(p) if i % 2 else p for i, p in enumerate(re.split(r"([0-9]+)", name))])
    labels = [f"{canvas.clean(name, limit=28)} ({counts[name]})" for name in kept]
    colours = [canvas.shade(number) for number in range(len(kept))]
    position = {name: number for number, name in enumerate(kept)}
    others = sum(n for name, n in counts.items() if name is not None and name not in position)
    for label, colour, number in (("other groups", canvas.PALE, others), ("no group", canvas.GREY, counts[None])):
        if number:
            labels.append(f"{label} ({number})")
            colours.append(colour)
    rest = len(kept)
    code = {name: position.get(name, rest) for name in counts if name is not None} | {None: rest + (others > 0)}
    return labels, colours, np.array([code[name] for name in groups], dtype=np.int64)


def _map_legend(fig: Figure, labels: list[str], colours: list[str], seen: np.ndarray) -> None:
    entries = [
        (label, Line2D([], [], marker="o", linestyle="", color=c)) for label, c in zip(labels, colours, strict=True)
    ]
    entries.append(("", Line2D([], [], linestyle="")))
    if seen.any():
        entries.append((f"seen ({seen.sum()})", Line2D([], [], marker="o", linestyle="", color=canvas.GREY)))
    if not seen.all():
        triangle = Line2D([], [], marker="^", linestyle="", color=canvas.GREY, markerfacecolor="none")
        entries.append((f"unseen ({(~seen).sum()})", triangle))
    fig.legend([handle for _, handle in entries], [label for label, _ in entries], loc="outside right upper")


def _stroke(number: int) -> dict[str, Any]:
    """Colour, marker and dash of the basis reward with that number."""
    marker, dash = canvas.MARKERS[number % len(canvas.MARKERS)], canvas.cycle(canvas.DASHES, number)
    return {"color": canvas.colour(number), "marker": marker, "markersize": 4.5, "linestyle": dash, "linewidth": 1.7}


def _paths(ax: Axes, mean: np.ndarray, deviation: np.ndarray) -> None:
    steps = np.arange(len(mean))
    for number, (line, spread) in enumerate(zip(mean.T, 1.96 * deviation.T, strict=True)):
        ax.plot(steps, line, **_stroke(number))
        ax.fill_between(steps, line - spread, line + spread, color=canvas.colour(number), alpha=0.15, linewidth=0)
    ax.grid(True, **canvas.GRID)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def _shares(counts: np.ndarray) -> np.ndarray:
    total = counts.sum(axis=1, keepdims=True)
    return counts / np.where(total > 0, total, 1.0)


def _heat(ax: Axes, shares: np.ndarray, top: float) -> None:
    ax.imshow(100 * shares, cmap="cividis", vmin=0, vmax=100 * top, aspect="auto")
    ax.spines[:].set_visible(False)
    for (gate, expert), share in np.ndenumerate(shares):
        ink = "black" if share > 0.55 * top else "white"
        ax.text(expert, gate, f"{100 * share:.0f}", ha="center", va="center", fontsize=9, color=ink)
