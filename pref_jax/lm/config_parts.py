"""The records that `config.LMConfig` is made of where a family has more than sizes."""

import dataclasses
from typing import Literal, NamedTuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length; `layers.rotary_frequencies` has the formulas.

    Attributes:
      kind: `linear` divides all frequencies by `factor`. `llama3` divides only those whose wavelength exceeds
        `original_max_positions / low_freq_factor`, keeps those under `original_max_positions / high_freq_factor`, and
        blends between (Llama 3.1). `yarn` divides those that turn less than `beta_slow` times in the trained length,
        keeps those above `beta_fast` turns, and blends between (arXiv 2309.00071). `longrope` divides each by a number
        of its own (arXiv 2402.13753). `dynamic` stretches rows beyond `LMConfig.max_positions` alone, so nothing here.
        `proportional` divides all by `factor` and stops those beyond the first `share` of them (Gemma 4).
      factor: how many times longer.
      low_freq_factor, high_freq_factor: of `llama3`.
      original_max_positions: the trained length.
      beta_fast, beta_slow: of `yarn`.
      truncate: `yarn` blends between whole numbers of frequencies.
      attention_factor: cosines and sines are multiplied by it (`yarn`, `longrope`).
      short_factor, long_factor: of `longrope`, one for each frequency; rows here are never so long that the latter
        come in, which are kept for `config.json`.
      query_beta: queries at position p are multiplied by 1 + beta log(1 + floor(p / original_max_positions)), as in
        Llama 4 and Ministral 3.
      share: of `proportional`, from 0 to 1.
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn", "longrope", "proportional"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    query_beta: float = 0.0
    share: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """An MLP of which each token runs through a few parts only.

    Attributes:
      count: how many parts there are; `config.LMConfig.intermediate_size` is the width of each.
      per_token: how many a token runs through, those of the highest router scores.
      scores: the parts' weights are a softmax over the `chosen` ones, or over `all`, or over all and then `normalised`
        to sum to 1.
      clamp: gate and up are kept within it, and the gate is a sigmoid of 1.702 times itself (gpt-oss); None: a gated
        MLP like any other.
    """

    count: int
    per_token: int
    scores: Literal["chosen", "all", "normalised"] = "normalised"
    clamp: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disentangled:
    """How DeBERTa's attention scores depend on the distance of two tokens (arXiv 2006.03654, equation 4).

    Attributes:
      max_distance: distances are told apart up to this one.
      buckets: those beyond half of it are told apart by their logarithm only; 0: all are.
      scores: which products with a distance's vector are added, `c2p` the query's and `p2c` the key's.
      normed: the distances' vectors are normed.
    """

    max_distance: int
    buckets: int = 0
    scores: tuple[str, ...] = ("c2p", "p2c")
    normed: bool = False

    @property
    def span(self) -> int:
        """Distances have vectors from -span to span - 1."""
        return self.buckets or self.max_distance


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaNet:
    """Sizes of the gated delta nets that stand in place of attention in some layers; `delta` has the formulas.

    Attributes:
      key_heads, value_heads: consecutive value heads share a key head.
      key_dim, value_dim: widths of a head.
      kernel: so many tokens are mixed before.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma4:
    """What Gemma 4 has besides; `gemma4` has the formulas.

    Attributes:
      full_head_dim, full_kv_heads: sizes in layers that see everything; `config.LMConfig.head_dim` and `num_kv_heads`
        are those in sliding layers.
      keys_as_values: layers that see everything have no projection of values, but norm the projected keys.
      shared_layers: so many layers, the last ones, read the keys and values of the last layer of their kind before
        them.
      wide_shared: the MLP of these is twice as wide.
      per_layer: width of a token's embedding for each layer; 0: there are none.
    """

    full_head_dim: int
    full_kv_heads: int
    keys_as_values: bool = False
    shared_layers: int = 0
    wide_shared: bool = False
    per_layer: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Granite's: of embedded tokens, of what is added to the residual, of attention scores (None: as usual), and what
    next-token logits are divided by.
    """

    embedding: float = 1.0
    residual: float = 1.0
    attention: float | None = None
    logits: float = 1.0


UNSCALED = Multipliers()


class Pattern(NamedTuple):
    """How the layers of one kind see the other tokens.

    Attributes:
      window: tokens at least this many positions away are out of sight; None for no limit.
      theta: base wavelength of the rotary positions; None: tokens are not told their positions.
      scaling: their stretching, if any.
    """

    window: int | None
    theta: float | None
    scaling: RopeScaling | None
