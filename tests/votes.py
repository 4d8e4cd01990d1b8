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
    prompts = data.responses["prompt"].to_pylist()
    assert all([message["role"] for message in prompt] == ["user"] for prompt in prompts)
    flags = data.comparisons["controversial"].to_pylist()
    return [
        Vote(user, said[0], chosen, rejected, split, flag)
        for (user, said, chosen, rejected, split), flag in zip(dialogues(data), flags, strict=True)
    ]


def check_seeds(read: Callable[[int], Preferences], folder: Path) -> None:
    """The same seed saves the same bytes, another seed draws otherwise."""

    def saved(place: int, seed: int) -> dict[str, bytes]:
        tables.save(read(seed), folder / f"out-{place}")
        return {file.name: file.read_bytes() for file in sorted((folder / f"out-{place}").iterdir())}

    one, again, other = (saved(place, seed) for place, seed in enumerate((1, 1, 2)))
    assert len(one) == 5
    assert one == again
    assert one["comparisons.arrow"] != other["comparisons.arrow"]
