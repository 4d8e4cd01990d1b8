"""Sizes of the baselines and what each may choose from by held-out votes. Imports no JAX: configs read it."""

import dataclasses

from pref_jax.errors import Faults


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselinesConfig:
    """Sizes and choices. A tuple is chosen from by held-out votes on frozen features; elsewhere its first stands.

    Attributes:
      context: the most answers of a user that an encoder reads at once.
      hidden: width of encoders and reward networks.
      embedding: numbers of a user's embedding in I2E.
      shrink: weights of the prior on what a user owns, in I2E and PAL.
      kl_weights: beta of VPL and SPL.
      mirror: weights of SPL's guidance by mirrored users.
      basis: rewards of MRM's basis.
      inner_lr: rates of MRM's inner step.
      ensemble: heads of HyRe.
      prototypes: of PAL.
      blocks: of GPO's transformer.
      soft_tokens: that stand for a user in P-RLHF.
      generic_share: of P-RLHF's training pairs that are read as of nobody in particular.
      user_lr_mult: learning rate of what a user owns, and of PAL's prototypes and scale, in that of the networks: few
        pairs move each user's row.
      batch_size, steps, lr, weight_decay: of the training on frozen features; `steps` is chosen from.
    """

    context: int = 8
    hidden: int = 128
    embedding: int = 16
    shrink: tuple[float, ...] = (0.01,)
    kl_weights: tuple[float, ...] = (1e-4,)
    mirror: tuple[float, ...] = (0.1,)
    basis: int = 8
    inner_lr: tuple[float, ...] = (1.0,)
    ensemble: int = 16
    prototypes: tuple[int, ...] = (4, 2)
    blocks: int = 2
    soft_tokens: int = 4
    generic_share: float = 0.5
    user_lr_mult: float = 30.0
    batch_size: int = 128
    steps: tuple[int, ...] = (200,)
    lr: float = 1e-3
    weight_decay: float = 0.01

    def __post_init__(self):
        faults = Faults()
        sizes = ("context", "hidden", "embedding", "basis", "ensemble", "blocks", "soft_tokens", "batch_size")
        for name in sizes:
            if getattr(self, name) < 1:
                faults.add(name, f"is {getattr(self, name)}", "give a whole number from 1")
        for name in ("shrink", "kl_weights", "mirror", "inner_lr", "prototypes", "steps"):
            if not getattr(self, name):
                faults.add(name, "is empty", "give at least one value to choose from")
        if not 0 <= self.generic_share <= 1:
            faults.add("generic_share", f"is {self.generic_share}", "give a part, from 0 to 1")
        faults.raise_if_any("BaselinesConfig")
