"""An overview of votes in words: what was understood, and what methods can hope for."""

from typing import Any

# Correlations whose interval lies above 0 are told as found; of raters this many votes say something.
FEW = 5


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what `overview.overview` found, in the order of a report; what there is none of is left out."""
    votes, spread, sharing = found["votes"], found["votes_per_user"], found["sharing"]
    kinds = [f"{votes[kind]} {word}" for kind, word in _KINDS.items() if votes[kind]]
    told = {
        "format": found.get("format", ""),
        "source": found["source"],
        "users": str(found["users"]),
        "prompts": str(found["prompts"]),
        "responses": f"{found['responses']}, of {found['length']['characters']['median']:.0f} characters (median)",
        "votes": ", ".join(kinds) or "none",
        "strengths": f"{votes['strengths'][0]:g} to {votes['strengths'][1]:g}" if votes["strengths"] else "",
        "votes per user": f"{spread['least']} to {spread['most']}, median {spread['median']:g}",
        "users by votes": ", ".join(f"{name}: {count}" for name, count in spread["histogram"].items()),
        "sharing": f"{sharing['responses_of_two_users']:.0%} of responses were judged by two users or more, "
        f"each by {sharing['users_per_response']:.1f} on average",
        "repeated": _repeated(found["agreement"]),
        "majority": _majority(found["agreement"]),
        "raters": "; ".join(filter(None, (_reliability(found["raters"][key], word) for key, word in _TASTES.items()))),
        "length": _share("the longer response is chosen in {} of preferences", found["length"]["longer_chosen"]),
        "formatting": _formatting(found["formatting"]),
        "time": _time(found["time"]),
        "left out": ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in found["left_out"].items()),
    }
    return [(name, text) for name, text in told.items() if text]


def sentences(found: dict[str, Any]) -> list[str]:
    """What shared and personal rewards can reach on these votes, as far as the votes tell."""
    return [text for text in (_shared(found), _personal(found), _graph(found), _few(found)) if text]


_KINDS = {
    "preferred": "preferences",
    "tie": "ties",
    "both_bad": "of two bad responses",
    "skipped": "skipped",
    "ratings": "ratings",
    "comparisons_of_ratings": "comparisons made of them",
    "choices": "choices out of several",
    "with_strength": "with a strength",
}
_TASTES = {"length": "liking of length", "agreement_with_others": "agreement with others"}


def _share(text: str, value: float | None) -> str:
    return "" if value is None else text.format(f"{value:.1%}")


def _repeated(found: dict[str, Any]) -> str:
    if not found["repeated"]:
        return ""
    return f"{found['repeated']} judgements of a pair by a user who had judged it; {found['opposite']} pairs both ways"


def _majority(found: dict[str, Any]) -> str:
    if not found["votes"]:
        return ""
    where = f" ({found['majority_where_known']:.1%} where the others have one)" if found["majority_known"] else ""
    return f"the others' majority predicts {found['majority']:.1%} of preferences{where}"


def _reliability(found: dict[str, Any], word: str) -> str:
    if found["r"] is None:
        return ""
    ends = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    whole = "" if found["reliability"] is None else f", reliability {found['reliability']:.2f}"
    who = f"{found['users']} users of {found['least_votes']} votes or more"
    return f"{word} in one half of a user's votes and in the other: r = {found['r']:.2f}{ends}{whole} ({who})"


def _formatting(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not judged: that takes preferences on two prompts"
    most = f"; most by {', '.join(found['most'])}" if found["most"] and found["low"] > 0.5 else ""
    return f"predicts {found['accuracy']:.1%} [{found['low']:.1%}, {found['high']:.1%}] on prompts held out{most}"


def _time(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    without = f"; {found['without']} votes without" if found["without"] else ""
    return f"{found['first'][:10]} to {found['last'][:10]}{without}"


def _shared(found: dict[str, Any]) -> str:
    people = found["agreement"]
    if not people["votes"]:
        return "No two users judged the same pair, so nothing tells how far people agree."
    agree, ceiling = people["agree"], people["ceiling"]
    text = f"Two users agree on {agree:.0%} of the pairs that both judged"
    if ceiling < 0.55:
        return f"{text}: a shared reward can hardly beat chance, and whatever can be learnt is personal."
    return f"{text}: a shared reward can be right on {max(agree, 0.5):.0%} to {ceiling:.0%} of them, and no more."


def _personal(found: dict[str, Any]) -> str:
    """By tastes whose correlation is known."""
    known = {word: found["raters"][key] for key, word in _TASTES.items() if found["raters"][key]["r"] is not None}
    if not known:
        return "Too few users gave several votes to tell whether tastes differ and last."
    lasting = [word for word, own in known.items() if own["low"] is not None and own["low"] > 0]
    if lasting:
        return f"Users differ in their {' and '.join(lasting)} and stay so: a personal reward has something to learn."
    return (
        "What users like in one half of their votes hardly shows in the other: a personal reward has little to learn, "
        "or needs more votes."
    )


def _graph(found: dict[str, Any]) -> str:
    share = found["sharing"]["users_who_share_a_response"]
    if share < 0.1:
        return (
            "Hardly anyone judged a response that others judged: CoPL's graph connects nobody; LoRe reads texts alone."
        )
    mean = found["sharing"]["users_per_response"]
    return (
        f"{share:.0%} of users share a response with others ({mean:.1f} users a response), so CoPL's graph can connect "
        "them; LoRe needs no sharing."
    )


def _few(found: dict[str, Any]) -> str:
    median = found["votes_per_user"]["median"]
    if median > FEW:
        return ""
    most = f"{median:g} vote{'s' * (median != 1)}"
    return f"Half of the users gave {most} at most: their rewards will stay close to the shared one."
