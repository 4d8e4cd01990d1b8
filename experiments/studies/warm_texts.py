"""Methods that read the texts of known responses, on the votes of `experiments.studies.warm_ratings`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import copl_jax
from copl_jax.model import CoPLConfig
from copl_jax.reward.linear_experts import LinearExperts
from copl_jax.reward.training import RewardSettings
from experiments.studies.warm_ratings import WarmWorld
from pref_jax.baselines import shared
from pref_jax.data.preferences import Preferences, build
from pref_jax.errors import UserError
from pref_jax.eval.held_out import margins
from pref_jax.lm.text_model import TextModel, open_text
from pref_jax.train.method import TrainingConfig
from pref_jax.train.state import OptimizerConfig

Margins = tuple[np.ndarray, np.ndarray]  # of the test pairs of seen and of unseen people
MEANINGS = {
    "shared reward on texts": "one LoRA adapter and a linear head on the transformer, for everyone",
    "CoPL on texts": "the default graph, then experts in the transformer that its embeddings choose",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How texts are read and rewards of them trained, alike for all methods.

    Attributes:
      base: the transformer: a folder, a `package:` path or a hub id; "": no method reads texts.
      blocks: its lowest ones that are kept; 0: all.
      max_length: tokens of a text; longer ones lose their beginning.
      batch_size: votes of a step.
      num_steps: of the training.
      lr: its largest learning rate.
      head_steps: of CoPL's head on frozen features, before it.
    """

    base: str = ""
    blocks: int = 0
    max_length: int = 128
    batch_size: int = 32
    num_steps: int = 100
    lr: float = 1e-3
    head_steps: int = 1000

    def training(self) -> TrainingConfig:
        """The recipe."""
        recipe = OptimizerConfig(
            lr=self.lr, num_steps=self.num_steps, weight_decay=1e-3, warmup_fraction=0.03, clip=1.0
        )
        return TrainingConfig(optimizer=recipe, batch_size=self.batch_size)


def open_base(config: TextConfig) -> TextModel:
    """The transformer, or its lowest blocks, as transformers reads a checkpoint of fewer layers.

    Raises:
      UserError: for a decoder, whose last norm would meet states that it does not know, or more blocks than there are.
    """
    text = open_text(config.base, max_length=config.max_length)
    if not config.blocks:
        return text
    lm, params = text.config, text.params
    if lm.traits.causal or not 1 <= config.blocks <= lm.num_layers:
        raise UserError(f"text.blocks={config.blocks}: give 1 to {lm.num_layers} blocks of an encoder, or 0 for all")
    lowest = jax.tree.map(lambda leaf: leaf[: config.blocks], params["blocks"])
    cut = dataclasses.replace(text)
    known = {"config": dataclasses.replace(lm, num_layers=config.blocks), "params": {**params, "blocks": lowest}}
    cut.__dict__.update(known, folder=text.folder, tokenizer=text.tokenizer)
    return cut


class Texts(NamedTuple):
    """The prompt and the text of each of the N responses."""

    prompt: str
    responses: Sequence[str]


def preferences(world: WarmWorld, texts: Texts) -> Preferences:
    """The world's votes as tables; unseen people's rows follow those of the seen."""
    parts = {"train": world.train, "validation": world.validation, "test": world.test}
    late = {"train": world.context, "test": world.unseen_test}
    shifted = [part._replace(user=part.user + world.num_seen) for part in late.values()]
    every = [*parts.values(), *shifted]
    split = np.repeat([*parts, *late], [len(part.user) for part in every])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in every]) for name in ("user", "chosen", "rejected")
    }
    people, count = world.num_seen + world.num_unseen, len(texts.responses)
    return build(
        {
            "user_id": [f"person {row}" for row in range(people)],
            "group": [None] * people,
            "seen": np.arange(people) < world.num_seen,
        },
        {
            "response_id": [f"response {row}" for row in range(count)],
            "prompt": [[{"role": "user", "content": texts.prompt}]] * count,
            "text": list(texts.responses),
        },
        columns | {"split": split, "controversial": np.zeros(len(split), bool)},
        {"source": "pairs of ratings", "rule": "experiments.studies.warm_ratings"},
    )


def _margins(model: Any, votes: Preferences) -> Margins:
    seen, unseen = (margins(model, votes, votes.pairs("test", seen=who)) for who in (True, False))
    return seen, unseen


def _shared(votes: Preferences, config: TextConfig, seed: int) -> Margins:
    own: dict[str, Any] = {"text": open_base(config), "seed": seed}
    return _margins(shared.fit(votes, config=shared.FitConfig(training=config.training()), **own), votes)


def _copl(votes: Preferences, config: TextConfig, seed: int) -> Margins:
    own: dict[str, Any] = {"text": open_base(config), "seed": seed}
    settings = CoPLConfig(
        reward=RewardSettings(training=config.training(), head=LinearExperts(steps=config.head_steps))
    )
    return _margins(copl_jax.fit(votes, config=settings, **own), votes)


METHODS: dict[str, Callable[[Preferences, TextConfig, int], Margins]] = {
    "shared reward on texts": _shared,
    "CoPL on texts": _copl,
}
