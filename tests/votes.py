"""Tables of preferences as plain rows of text, for comparing with what was worked out by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pref_jax.data import preferences as tables
from pref_jax.data.preferences import Preferences


class Vote(NamedTuple):
    """One comparison in words; `prompt` is its only message."""

    user: str
    prompt: str
    chosen: str
    rejected: str
    split: str
    controversial: bool | None


def dialogues(data: Preferences) -> list[tuple[str, tuple[str, ...], str, str, str]]:
    """(user, contents of the prompt's messages, chosen, rejected, split) of every pair."""
    users, responses = data.users["user_id"].to_pylist(), data.responses.to_pylist()
    found = []
    for row in data.comparisons.to_pylist():
        chosen, rejected = responses[row["chosen"]], responses[row["rejected"]]
        assert chosen["prompt"] == rejected["prompt"]
        said = tuple(message["content"] for message in chosen["prompt"])
        found.append((users[row["user"]], said, chosen["text"], rejected["text"], row["split"]))
    return found


def votes(data: Preferences) -> list[Vote]:
    """Every pair of data whose prompts are one message of the user."""
    assert all(message["role"] == "user" for prompt in data.responses["prompt"].to_pylist() for message in prompt)
    found = zip(dialogues(data), data.comparisons["controversial"].to_pylist(), strict=True)
    return [Vote(user, *said, *rest, flag) for (user, said, *rest), flag in found]


def check_seeds(read: Callable[[int], Preferences], folder: Path) -> None:
    """The same seed saves the same bytes, another seed draws otherwise."""

    def saved(place: int, seed: int) -> dict[str, bytes]:
        tables.save(read(seed), folder / f"out-{place}")
        return {file.name: file.read_bytes() for file in sorted((folder / f"out-{place}").iterdir())}

    one, again, other = (saved(place, seed) for place, seed in enumerate((1, 1, 2)))
    assert len(one) == 4
    assert one == again
    assert one["comparisons.arrow"] != other["comparisons.arrow"]
