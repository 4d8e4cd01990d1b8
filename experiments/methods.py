"""Every method of the tables, one record each: its name, what it may read, what it is compared with, how it runs."""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pref_jax.data.preferences import Preferences

GROUPS, ANSWERS = "groups", "test answers and groups"
SHARED, SHARED_FEATURES = "shared reward", "shared (features)"
HEADS = ("I2E", "VPL", "PAL-A", "PAL-B", "GPO", "SPL", "MRM", "HyRe", "P-TTT", "P-TTT (solved)")
# What is made of comparisons alone, and of decided ones alone.
PAIRS, DECIDED = "ratings that make no pair", "ties, strengths and ratings that make no pair"


@dataclasses.dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
      name: of its row in tables.
      function: "module:function", called with a `Workspace` and the name.
      sentence: what it is, for reports.
      on_features: it reads frozen features, and is compared with the shared reward on these.
      reads: what it may see beyond votes: `GROUPS`, other people's `ANSWERS`, or nothing.
      ignores: kinds of votes that it makes nothing of, among ties, strengths and ratings, in words.
    """

    name: str
    function: str
    sentence: str
    on_features: bool = False
    reads: str = ""
    ignores: str = ""

    def run(self, work: Any) -> None:
        """Trains and scores one seed, unless that is done."""
        module, _, function = self.function.partition(":")
        getattr(importlib.import_module(module), function)(work, self.name)


_COPL, _LORE, _BASELINES = "experiments.copl:", "experiments.lore:lore", "experiments.baselines:"
_HEADS = {
    "I2E": "an embedding for each seen user, read by a network; unseen users get those of like-minded seen ones.",
    "VPL": "a variational encoder of a user's votes; a network on the adapted transformer reads its latent.",
    "PAL-A": "closeness to a user's ideal point, a mixture of prototypes; of a new user the mixture alone is fitted.",
    "PAL-B": "likeness to a user's ideal answer to the prompt, a mixture of networks; else as PAL-A.",
    "GPO": "a transformer reads a user's votes in its context and rates a text; nothing is tuned for a new user.",
    "SPL": "VPL guided by mirrored users, with a flow and a decoder that its latent scales.",
    "MRM": "basis rewards, a user's weights by one step from a learned start; trained on hard users (RPO).",
    "HyRe": "an ensemble of heads, weighed by how likely each makes a user's votes.",
    "P-TTT": "fast weights of one layer: the sum of a user's differences of hidden features.",
    "P-TTT (solved)": "the same fast weights, but the exact mode given the user's votes in place of the sum.",
}
_RECORDS = (
    Method(
        SHARED,
        _BASELINES + "shared",
        "one Bradley-Terry reward for all users: the transformer with plain LoRA.",
        ignores=PAIRS,
    ),
    Method(
        "group oracle",
        _COPL + "oracle",
        "the same transformer told each user's true group, one expert per group: what knowing them is worth.",
        reads=GROUPS,
        ignores=PAIRS,
    ),
    Method(
        "CoPL",
        _COPL + "copl",
        "user embeddings from the graph of votes choose LoRA experts; unseen users by two-hop neighbours.",
        ignores=PAIRS,
    ),
    Method(
        "CoPL (features)",
        _COPL + "on_features",
        "the same user embeddings gate linear experts on frozen features: the graph without the transformer's experts.",
        on_features=True,
        ignores=PAIRS,
    ),
    Method(
        "CoPL (balancing loss)",
        _COPL + "balanced",
        "CoPL with a loss for even use of the experts (Switch Transformers).",
        ignores=PAIRS,
    ),
    Method(
        "CoPL (balancing bias)",
        _COPL + "balanced",
        "CoPL with biases of the gates that move towards even use (loss-free balancing).",
        ignores=PAIRS,
    ),
    Method(
        "CoPL + shrinkage",
        _BASELINES + "shrunk",
        "CoPL mixed with the shared reward, by how much was decided on prompts that neither was trained on.",
        ignores=PAIRS,
    ),
    Method(
        "pretrained head",
        _LORE,
        "the score head that the frozen reward model came with; it learns nothing.",
        on_features=True,
    ),
    Method(
        SHARED_FEATURES,
        _LORE,
        "one linear Bradley-Terry reward on the frozen features that LoRe uses.",
        on_features=True,
    ),
    Method(
        "oracle (features)",
        _LORE,
        "one linear Bradley-Terry reward per true group on the same features.",
        on_features=True,
        reads=GROUPS,
    ),
    Method(
        "per-user model",
        _LORE,
        "a linear reward for each user alone on the same features, its prior chosen by held-out votes.",
        on_features=True,
        ignores=DECIDED,
    ),
    Method(
        "LoRe (published)",
        _LORE,
        "the published recipe on the same features: one Adam over basis and weights, no shrinkage.",
        on_features=True,
        ignores=DECIDED,
    ),
    Method(
        "LoRe",
        _LORE,
        "a low-rank basis of rewards on frozen features; an unseen user's weights are solved in closed form.",
        on_features=True,
    ),
    Method(
        "LoRe (principal)",
        _LORE,
        "weights solved as LoRe's on principal directions of the votes' differences, a basis that is not fitted (DRM).",
        on_features=True,
    ),
    Method(
        "deep LoRe",
        "experiments.deep:deep_lore",
        "LoRe's basis on an adapted transformer, trained through the solver of the users' weights.",
        ignores=DECIDED,
    ),
    Method(
        "leave-one-out majority",
        _BASELINES + "majority",
        "what most other people chose on the very same test pair; ties count half.",
        reads=ANSWERS,
        ignores=DECIDED,
    ),
    *(Method(name, _BASELINES + "head_on_transformer", text, ignores=DECIDED) for name, text in _HEADS.items()),
    Method(
        "P-RLHF",
        _BASELINES + "soft_prompts",
        "a soft prompt for each seen user before the text; unseen users share a generic one.",
        ignores=DECIDED,
    ),
    *(
        Method(
            f"{name} (features)",
            _BASELINES + "head_on_features",
            f"{name} on the frozen features; its choices by held-out votes.",
            on_features=True,
            ignores=DECIDED,
        )
        for name in HEADS
    ),
    Method(
        "formatting-only",
        _BASELINES + "formatting_only",
        "a check, no rival: a regression on lengths, lines, marks and capitals, which reads no word.",
        ignores=DECIDED,
    ),
)
METHODS: dict[str, Method] = {record.name: record for record in _RECORDS}


def ignored(data: Preferences, methods: Sequence[str]) -> list[str]:
    """Which methods make nothing of some kind of votes that the data has to learn from, a sentence for each kind.

    Example:
      "VPL, GPO: ignore ties, strengths and ratings that make no pair (this data has 12 ties)."
    """
    pairs = data.pairs(("train", "validation"), ties=True)
    counts = {"ties": int(pairs.tie.sum()), "strengths": int(np.isfinite(pairs.strength).sum())}
    counts["ratings"] = len(data.rated(("train", "validation")).user)
    found: dict[str, list[str]] = {}
    for name in methods:
        words = METHODS[name].ignores if name in METHODS else ""
        if any(count and kind in words for kind, count in counts.items()):
            found.setdefault(words, []).append(name)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return [f"{', '.join(names)}: ignore {words} (this data has {told})." for words, names in found.items()]


def compared_with(name: str, methods: Sequence[str]) -> str:
    """The shared reward that a method is compared with: on the same frozen features, or on the adapted transformer.

    The other of the two where only that one ran; "" for the shared reward itself, and where there is none.
    """
    if name in (SHARED, SHARED_FEATURES):
        return ""
    wanted = (SHARED_FEATURES, SHARED) if METHODS[name].on_features else (SHARED, SHARED_FEATURES)
    return next((other for other in wanted if other in methods), "")
