"""What a transformer looks like, in one frozen record. `hf_config` makes it from Hugging Face's `config.json`."""

import dataclasses
from typing import Literal

from pref_jax.errors import Faults
from pref_jax.lm.config_parts import (
    UNSCALED,
    DeltaNet,
    Disentangled,
    Experts,
    Gemma4,
    Multipliers,
    Pattern,
    RopeScaling,
)
from pref_jax.lm.families import TRAITS, UNCLASSIFIED, Family, Traits

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Sizes and choices of one transformer. Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      family: the architecture, by the name of Hugging Face's `model_type`; see `families.TRAITS`.
      vocab_size: number of token ids.
      hidden_size: D.
      intermediate_size: width of the MLP.
      num_layers: number of blocks.
      num_heads: query heads.
      num_kv_heads: key and value heads; 0 stands for `num_heads`.
      head_dim: width of a head; 0 stands for `hidden_size // num_heads`.
      max_positions: the longest row the model was made for.
      norm_eps: epsilon of the norms.
      rope_theta: base wavelength of the rotary positions (of decoders and ModernBERT; others have a table).
      rope_scaling: stretching of the rotary positions, if any.
      local_rope_theta: base wavelength in sliding layers; None: base and stretching are those of the others.
      local_rope_scaling: stretching in sliding layers with a base of their own, if any.
      window: reach of sliding layers, see `Pattern.window`.
      sliding_layers: one flag a layer; empty: no layer slides.
      still_layers: one flag a layer, true where nothing is rotated; empty: all rotate. With `delta`, these layers have
        a delta net in place of attention.
      delta: the delta nets' sizes (`qwen3_5_text`).
      gemma4: sizes of its layers that see everything, and what else it has (`gemma4_text`).
      rotary_dim: how many of a head's features are rotated, the first ones; 0 stands for `head_dim`.
      bidirectional: tokens of a decoder see those behind them too.
      experts: of the MLP, if it has any.
      multipliers: numbers that states are multiplied by.
      disentangled: how attention depends on distances (`deberta-v2`).
      absolute_positions: a table of positions is added to the embedded tokens (of `deberta-v2`; BERT always has it).
      query_scalar: attention scores are divided by its square root; None stands for `head_dim`.
      attention_softcap: scores s become c tanh(s / c); None: they stay.
      logit_softcap: the same for next-token logits.
      tie_embeddings: the next-token head is the embedding table transposed.
      lm_head: there is a next-token head; False for bare trunks, encoders and sequence classifiers.
      num_labels: outputs of the sequence-classification head `score`, 1 for a reward model; 0: no such head.
      head_activation: of an encoder's head, which has a dense layer before `score`: "tanh" or one of `ACTIVATIONS`.
      head_pooling: which state that dense layer reads, the `first` token's or the `mean`.
      head_bias: the dense layer has a bias.
      activation: one of `ACTIVATIONS`.
      attention_bias: biases on q, k and v (and o, by `Traits.output_bias`); None: as is usual in the family.
      mlp_bias: biases on the linears of the MLP.
      type_vocab_size: token types (encoders with a table of positions).
      type_separator: tokens behind the first one of this number in their text are of type 1, all others of type 0;
        None: all are of type 0. `config.json` does not tell, the tokenizer does.
      pooling: what stands for a whole text: its `last` token, its `first` one, or the `mean` of its tokens.
      bos_token_id: carried along for `config.json`, of no effect here.
      eos_token_id: the same.
      pad_token_id: the same; transformers finds the last token of a row by it.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int = 0
    head_dim: int = 0
    max_positions: int = 2048
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    local_rope_scaling: RopeScaling | None = None
    window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    still_layers: tuple[bool, ...] = ()
    delta: DeltaNet | None = None
    gemma4: Gemma4 | None = None
    rotary_dim: int = 0
    bidirectional: bool = False
    experts: Experts | None = None
    multipliers: Multipliers = UNSCALED
    disentangled: Disentangled | None = None
    absolute_positions: bool = True
    query_scalar: int | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    tie_embeddings: bool = True
    lm_head: bool = True
    num_labels: int = 0
    head_activation: str = "tanh"
    head_pooling: Literal["first", "mean"] = "first"
    head_bias: bool = True
    activation: str = "silu"
    attention_bias: bool | None = None
    mlp_bias: bool = False
    type_vocab_size: int = 2
    type_separator: int | None = None
    pooling: Literal["last", "first", "mean"] = "last"
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // max(self.num_heads, 1))
        if self.attention_bias is None:
            object.__setattr__(self, "attention_bias", self.traits.attention_bias)
        if not any(self.sliding_layers):
            object.__setattr__(self, "sliding_layers", ())
            object.__setattr__(self, "window", None)
        if not any(self.still_layers):
            object.__setattr__(self, "still_layers", ())
        faults = Faults()
        _check_sizes(self, faults)
        _check_choices(self, faults)
        faults.raise_if_any("Transformer configuration")

    @property
    def traits(self) -> Traits:
        """What the family always has, and whether this model is causal."""
        own = TRAITS[self.family]
        return own._replace(causal=False) if self.bidirectional else own

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by before they meet the keys."""
        own = self.multipliers.attention
        return float(self.query_scalar or self.head_dim) ** -0.5 if own is None else own

    @property
    def shares_prefix(self) -> bool:
        """Texts that begin alike can be read from one row."""
        return self.traits.causal and self.delta is None

    @property
    def own_keys(self) -> int:
        """So many layers, the first ones, have keys and values of their own; those above read theirs."""
        return self.num_layers - (self.gemma4.shared_layers if self.gemma4 else 0)

    @property
    def rotated(self) -> int:
        """How many of a head's features are rotated."""
        return self.rotary_dim or self.head_dim

    @property
    def position_offset(self) -> int:
        """The row of the table of positions in which position 0 stands."""
        return (self.pad_token_id or 0) + 1 if self.traits.padded_positions else 0

    @property
    def dense_head(self) -> bool:
        """There is a dense layer before `score`, as encoders have it."""
        return bool(self.num_labels) and not TRAITS[self.family].causal

    @property
    def reads_score(self) -> bool:
        """Pooled states are what the model's own `score` reads."""
        return bool(self.num_labels) and self.pooling == (self.head_pooling if self.dense_head else "last")

    @property
    def as_classifier(self) -> bool:
        """transformers has a sequence classifier whose last linear reads what is pooled here."""
        last = TRAITS[self.family].causal and self.pooling == "last" and self.family not in UNCLASSIFIED
        return last or (self.dense_head and self.reads_score)

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The kinds of layers there are, in the order of their first use."""
        return tuple(dict.fromkeys(self._layer_patterns()))

    @property
    def layer_patterns(self) -> tuple[int, ...]:
        """For each layer, its place in `patterns`."""
        found = self.patterns
        return tuple(found.index(pattern) for pattern in self._layer_patterns())

    def _layer_patterns(self) -> list[Pattern]:
        full = Pattern(None, self.rope_theta, self.rope_scaling)
        local = self.local_rope_theta
        near = Pattern(self.window, local or self.rope_theta, self.local_rope_scaling if local else self.rope_scaling)
        none = (False,) * self.num_layers
        found = [near if slides else full for slides in self.sliding_layers or none]
        pairs = zip(found, self.still_layers or none, strict=True)
        return [Pattern(pattern.window, None, None) if still else pattern for pattern, still in pairs]


def _check_sizes(config: LMConfig, faults: Faults) -> None:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads")
    for name in (*sizes, "num_kv_heads", "head_dim", "max_positions"):
        if getattr(config, name) < 1:
            faults.add(name, f"is {getattr(config, name)}", "give a positive whole number")
    if config.num_kv_heads > 0 and config.num_heads % config.num_kv_heads:
        faults.add("num_kv_heads", f"{config.num_kv_heads} does not divide {config.num_heads} heads", "use a divisor")
    if config.num_labels < 0:
        faults.add("num_labels", f"is {config.num_labels}", "give 0 for no head, 1 for a reward")
    for name in ("sliding_layers", "still_layers"):
        flags = getattr(config, name)
        if flags and len(flags) != config.num_layers:
            faults.add(name, f"{len(flags)} flags", f"give one for each of {config.num_layers}")
    if config.sliding_layers and (config.window is None or config.window < 1):
        faults.add("window", f"is {config.window}, but some layers slide", "give their reach, from 1")


def _check_choices(config: LMConfig, faults: Faults) -> None:
    own = TRAITS.get(config.family, Traits())
    if config.activation not in ACTIVATIONS:
        faults.add("activation", f"{config.activation!r} is unknown", f"use one of {', '.join(ACTIVATIONS)}")
    if config.dense_head and config.head_activation not in (*ACTIVATIONS, "tanh"):
        known = ", ".join((*ACTIVATIONS, "tanh"))
        faults.add("head_activation", f"{config.head_activation!r} is unknown", f"use one of {known}")
    if own.kind in ("decoder", "delta", "gemma4") and (config.rotated % 2 or config.rotated > config.head_dim):
        had = f"{config.rotated} of a head's {config.head_dim} features are to turn in pairs"
        faults.add("head_dim", had, "use an even number of them")
    for scaling in (config.rope_scaling, config.local_rope_scaling):
        if scaling is not None and scaling.kind == "longrope" and len(scaling.short_factor) != config.rotated // 2:
            had = f"{len(scaling.short_factor)} factors for {config.rotated // 2} frequencies"
            faults.add("rope_scaling.short_factor", had, "give one for each")
    if not own.causal and config.num_kv_heads != config.num_heads:
        faults.add("num_kv_heads", f"the {config.family} family has no grouped queries", "leave it out")
    for name, kind in (("disentangled", "deberta"), ("delta", "delta"), ("gemma4", "gemma4")):
        if (own.kind == kind) != (getattr(config, name) is not None):
            families = ", ".join(family for family, traits in TRAITS.items() if traits.kind == kind)
            faults.add(name, f"belongs to {families}, and to it alone", "give it there and nowhere else")
    if config.delta is not None and config.delta.value_heads % config.delta.key_heads:
        had = f"{config.delta.key_heads} key heads do not divide {config.delta.value_heads} value heads"
        faults.add("delta", had, "use a divisor")
    if config.experts is not None and not 1 <= config.experts.per_token <= config.experts.count:
        had = f"{config.experts.per_token} of {config.experts.count} a token"
        faults.add("experts", had, "give from 1 to all of them")
    if config.gemma4 is not None:
        _check_gemma4(config, config.gemma4, faults)


def _check_gemma4(config: LMConfig, own: Gemma4, faults: Faults) -> None:
    if own.full_head_dim < 2 or own.full_head_dim % 2:
        faults.add("gemma4.full_head_dim", f"is {own.full_head_dim}", "give an even number from 2")
    less, more = sorted((config.num_kv_heads, own.full_kv_heads))
    if less < 1 or more % less or config.num_heads % more:
        had = f"{less} and {more} key heads in the two kinds of layers, for {config.num_heads} heads"
        faults.add("gemma4.full_kv_heads", had, "use numbers that divide each other and the heads")
    kinds = config.sliding_layers or (False,) * config.num_layers
    if not 0 <= own.shared_layers < config.num_layers or set(kinds[: config.own_keys]) != set(kinds):
        had = f"{own.shared_layers} of {config.num_layers} layers read others' keys"
        faults.add("gemma4.shared_layers", had, "leave a layer of each kind before them")
