"""Trained reward heads in the weights of a checkpoint, whatever its `config.json` says of them.

Merging scripts leave `architectures: [...ForCausalLM]` beside a `score`, and trainers have names of their own. One
linear map of the last token's state is taken as `score`; what cannot be is told.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from pref_jax.lm.config import LMConfig
from pref_jax.lm.stored_tensors import Tensor

# Linear heads of decoders, the most trusted name first: transformers, OpenRLHF and others, TRL.
_LINEAR = ("score", "reward_head", "value_head", "v_head", "value_head.summary", "v_head.summary", "rm_head")
# Keys of any head that we know by name; none of them is surplus.
PATTERN = r"(score|reward_head|value_head|v_head|rm_head)(\.summary)?\.(weight|bias)"
# Of encoders: the dense layer and the linear behind it, as their classifiers in transformers call them.
ENCODERS = {
    "bert": ("pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
    "deberta-v2": ("pooler.dense", "classifier"),
    "modernbert": ("head.dense", "classifier"),
}


def score_module(config: LMConfig) -> str:
    """The last linear of this family's sequence classifier in transformers."""
    return ENCODERS[config.family][1] if config.family in ENCODERS else "score"


_LOOSE = re.compile(r"(classifier|score)(\.(dense|out_proj))?\.weight")


class Found(NamedTuple):
    """What the weights hold of heads.

    Attributes:
      key: of the linear map [labels, D] that is taken as `score`, as the tables of `weights` spell keys; None: none is.
      labels: its outputs.
      left_out: sentences about what is not taken, and why.
    """

    key: str | None
    labels: int
    left_out: tuple[str, ...]


def find(config: LMConfig, tensors: Mapping[str, Tensor]) -> Found:
    """The head to take.

    Args:
      config: the transformer, as `config.json` has it.
      tensors: by their keys without prefixes.
    """
    there = {key: tensor for key, tensor in tensors.items() if len(tensor.shape) == 2 or key.endswith(".bias")}
    if config.family in ENCODERS:
        return _find_dense(config, there)
    fitting, told = [], []
    for key in (f"{name}.weight" for name in _LINEAR):
        if key in there and there[key].shape[1] == config.hidden_size:
            fitting.append(key)
        elif key in there and not (key == "score.weight" and config.num_labels):
            told.append(f"{key} {list(there[key].shape)} is left out: it does not read {config.hidden_size} features")
    told += [f"{key} is left out: {fitting[0]} is taken as the reward head" for key in fitting[1:]]
    if not fitting:
        return Found(None, 0, tuple(told))
    key, labels = fitting[0], there[fitting[0]].shape[0]
    if re.sub(r"weight$", "bias", key) in there:
        told.append(f"{key.removesuffix('weight')}bias is left out: it moves all rewards alike")
    if labels > 1:
        told.append(f"{key} has {labels} outputs, none of which is the reward; rewards begin without it")
    return Found(key, labels, tuple(told))


def _find_dense(config: LMConfig, there: Mapping[str, Tensor]) -> Found:
    """The head of an encoder, whole or not at all."""
    dense, score = (f"{name}.weight" for name in ENCODERS[config.family])
    if dense in there and score in there:
        labels = there[score].shape[0]
        several = f"{score} has {labels} outputs, none of which is the reward; rewards begin without it"
        return Found(score, labels, (several,) if labels > 1 else ())
    why = f"a {config.family} classifier has {dense} and {score}, and this checkpoint has not both"
    loose = [key for key in there if _LOOSE.fullmatch(key)]
    return Found(None, 0, tuple(f"{key} {list(there[key].shape)} is left out: {why}" for key in loose))
