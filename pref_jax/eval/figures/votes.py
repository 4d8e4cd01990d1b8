"""A picture of what votes hold: kinds, votes per user, how far people agree, what lasts in their tastes."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pref_jax.eval.figures.canvas import COLOURS, GREY, GRID, clean, heading, new_figure, panels, style

_KINDS = {
    "preferred": "preferences",
    "tie": "ties",
    "both_bad": "both bad",
    "skipped": "skipped",
    "ratings": "ratings",
    "comparisons_of_ratings": "comparisons\nof ratings",
}


@style()
def votes_picture(found: dict[str, Any], name: str) -> Figure:
    """Four panels of an overview of votes.

    Args:
      found: what `pref_jax.data.checks.overview.overview` gives.
      name: of the votes.
    """
    figure = new_figure(9.0, 6.4)
    heading(figure, f"{name}: users {found['users']}, responses {found['responses']}", width=9.0)
    kinds, users, agreement, tastes = panels(figure, 4, 2)
    _bars(kinds, {word: found["votes"][kind] for kind, word in _KINDS.items() if found["votes"][kind]}, "votes")
    kinds.set_title("Kinds of votes")
    _bars(users, found["votes_per_user"]["histogram"], "users")
    users.set_title(f"Votes per user (median {found['votes_per_user']['median']:g})")
    _shares(agreement, found)
    _tastes(tastes, found["raters"])
    return figure


def _bars(ax: Axes, counts: dict[str, int], what: str) -> None:
    names = list(counts)
    ax.bar(range(len(names)), list(counts.values()), color=COLOURS[0], width=0.7)
    many = len(names) > 6
    ax.set_xticks(range(len(names)), names, rotation=45 if many else 0, ha="right" if many else "center")
    ax.set_xlim(-0.6, max(len(names), 4) - 0.4)
    ax.set_ylabel(what)
    ax.grid(axis="y", **GRID)
    ax.set_axisbelow(True)


def _shares(ax: Axes, found: dict[str, Any]) -> None:
    """What is known in advance of how often rewards of no text can be right."""
    people, look = found["agreement"], found["formatting"]
    shares = {
        "longer response chosen": found["length"]["longer_chosen"],
        "formatting alone": None if look is None else look["accuracy"],
        "others' majority": people["majority"] if people["votes"] else None,
        "two users agree": people["agree"],
        "ceiling of a shared reward": people["ceiling"],
    }
    known = [(name, 100 * share) for name, share in shares.items() if share is not None]
    ax.set_title("Agreement and biases")
    if not known:
        return _nothing(ax, "no preferences that tell")
    ax.barh(range(len(known)), [share for _, share in known], color=COLOURS[2], height=0.65)
    for place, (_, share) in enumerate(known):
        ax.text(share + 1, place, f"{share:.0f}", va="center", fontsize=9)
    ax.set_yticks(range(len(known)), [name for name, _ in known])
    ax.axvline(50, color=GREY, linewidth=0.9, linestyle="--")
    ax.set_xlim(0, 108)
    ax.set_xlabel("percent of preferences (dashed: a coin)")


def _tastes(ax: Axes, raters: dict[str, Any]) -> None:
    """Split-half correlations with their intervals."""
    names = {"length": "liking of length", "agreement_with_others": "agreement with others"}
    known = [(names[key], own) for key, own in raters.items() if own["r"] is not None]
    ax.set_title("Tastes in halves of users' votes")
    if not known:
        return _nothing(ax, "too few users with several votes")
    for place, (_, own) in enumerate(known):
        ends = [own["low"], own["high"]] if own["low"] is not None else [own["r"], own["r"]]
        ax.plot(ends, [place, place], color=COLOURS[1], linewidth=2)
        ax.plot([own["r"]], [place], "o", color=COLOURS[1], markersize=7)
    labels = [clean(f"{name} ({own['users']} users)", limit=60).replace(" (", "\n(") for name, own in known]
    ax.set_yticks(range(len(known)), labels)
    ax.set_ylim(-0.6, len(known) - 0.4)
    ax.axvline(0, color=GREY, linewidth=0.9, linestyle="--")
    ax.set_xlim(-1.02, 1.02)
    ax.set_xlabel("correlation over users, 95 % interval")


def _nothing(ax: Axes, text: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=ax.transAxes)
