"""What a transformer looks like, in one frozen record. `hf_config` makes it from Hugging Face's `config.json`."""

import dataclasses
from typing import Literal, NamedTuple

from pref_jax.errors import Faults

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "bert", "modernbert"]
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


class Traits(NamedTuple):
    """What all models of a family have in common.

    Attributes:
      causal: a token sees only those before it.
      norm_offset: norms multiply by 1 + w instead of w.
      post_norms: attention and MLP are normed once more before they are added to the residual.
      qk_norm: queries and keys are normed per head.
      scaled_embeddings: embedded tokens are multiplied by sqrt(hidden_size).
      attention_bias: whether q, k and v have biases where the model does not say.
      output_bias: whether o_proj has a bias wherever q, k and v have one.
    """

    causal: bool = True
    norm_offset: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    scaled_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = True


TRAITS: dict[str, Traits] = {
    "llama": Traits(),
    "mistral": Traits(),
    "qwen2": Traits(attention_bias=True, output_bias=False),
    "qwen3": Traits(qk_norm=True),
    "gemma": Traits(norm_offset=True, scaled_embeddings=True),
    "gemma2": Traits(norm_offset=True, scaled_embeddings=True, post_norms=True),
    "gemma3_text": Traits(norm_offset=True, scaled_embeddings=True, post_norms=True, qk_norm=True),
    "bert": Traits(causal=False, attention_bias=True),
    "modernbert": Traits(causal=False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length; `layers.rotary_frequencies` has the formulas.

    Attributes:
      kind: `linear` divides all frequencies by `factor`. `llama3` divides only those whose wavelength exceeds
        `original_max_positions / low_freq_factor`, keeps those under `original_max_positions / high_freq_factor`, and
        blends between (Llama 3.1). `yarn` divides those that turn less than `beta_slow` times in the trained length,
        keeps those above `beta_fast` turns, and blends between (arXiv 2309.00071). `longrope` divides each by a number
        of its own (arXiv 2402.13753). `dynamic` stretches rows beyond `LMConfig.max_positions` alone, so nothing here.
      factor: how many times longer.
      low_freq_factor, high_freq_factor: of `llama3`.
      original_max_positions: the trained length.
      beta_fast, beta_slow: of `yarn`.
      truncate: `yarn` blends between whole numbers of frequencies.
      attention_factor: cosines and sines are multiplied by it (`yarn`, `longrope`).
      short_factor, long_factor: of `longrope`, one for each frequency; rows here are never so long that the latter
        come in, which are kept for `config.json`.
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
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


class Pattern(NamedTuple):
    """How the layers of one kind see the other tokens.

    Attributes:
      window: tokens at least this many positions away are out of sight; None for no limit.
      theta: base wavelength of the rotary positions.
      scaling: their stretching, if any.
    """

    window: int | None
    theta: float
    scaling: RopeScaling | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Sizes and choices of one transformer. Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      family: the architecture, by the name of Hugging Face's `model_type`; see `TRAITS`.
      vocab_size: number of token ids.
      hidden_size: D.
      intermediate_size: width of the MLP.
      num_layers: number of blocks.
      num_heads: query heads.
      num_kv_heads: key and value heads; 0 stands for `num_heads`.
      head_dim: width of a head; 0 stands for `hidden_size // num_heads`.
      max_positions: the longest row the model was made for.
      norm_eps: epsilon of the norms.
      rope_theta: base wavelength of the rotary positions (all families but `bert`, whose positions are a table).
      rope_scaling: stretching of the rotary positions, if any.
      local_rope_theta: base wavelength in sliding layers; None: base and stretching are those of the others.
      local_rope_scaling: stretching in sliding layers with a base of their own, if any.
      window: reach of sliding layers, see `Pattern.window`.
      sliding_layers: one flag a layer; empty: no layer slides.
      query_scalar: attention scores are divided by its square root; None stands for `head_dim`.
      attention_softcap: scores s become c tanh(s / c); None: they stay.
      logit_softcap: the same for next-token logits.
      tie_embeddings: the next-token head is the embedding table transposed.
      lm_head: there is a next-token head; False for bare trunks, encoders and sequence classifiers.
      num_labels: outputs of the sequence-classification head `score`, 1 for a reward model; 0: no such head.
      activation: one of `ACTIVATIONS`.
      attention_bias: biases on q, k and v (and o, by `Traits.output_bias`); None: as is usual in the family.
      mlp_bias: biases on the linears of the MLP.
      type_vocab_size: token types (`bert`).
      type_separator: tokens behind the first one of this number in their text are of type 1, all others of type 0;
        None: all are of type 0. `config.json` does not tell, the tokenizer does.
      pooling: what stands for a whole text: its `last` token or the `mean` of its tokens.
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
    query_scalar: int | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    tie_embeddings: bool = True
    lm_head: bool = True
    num_labels: int = 0
    activation: str = "silu"
    attention_bias: bool | None = None
    mlp_bias: bool = False
    type_vocab_size: int = 2
    type_separator: int | None = None
    pooling: Literal["last", "mean"] = "last"
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
        faults = Faults()
        _check_sizes(self, faults)
        _check_choices(self, faults)
        faults.raise_if_any("Transformer configuration")

    @property
    def traits(self) -> Traits:
        """What the family always has."""
        return TRAITS[self.family]

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by before they meet the keys."""
        return float(self.query_scalar or self.head_dim) ** -0.5

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The kinds of layers there are, one or two, in the order of their first use."""
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
        return [near if slides else full for slides in self.sliding_layers or (False,) * self.num_layers]


def _check_sizes(config: LMConfig, faults: Faults) -> None:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads")
    for name in (*sizes, "num_kv_heads", "head_dim", "max_positions"):
        if getattr(config, name) < 1:
            faults.add(name, f"is {getattr(config, name)}", "give a positive whole number")
    if config.num_kv_heads > 0 and config.num_heads % config.num_kv_heads:
        faults.add("num_kv_heads", f"{config.num_kv_heads} does not divide {config.num_heads} heads", "use a divisor")
    if config.num_labels < 0:
        faults.add("num_labels", f"is {config.num_labels}", "give 0 for no head, 1 for a reward")
    if config.sliding_layers and len(config.sliding_layers) != config.num_layers:
        faults.add("sliding_layers", f"{len(config.sliding_layers)} flags", f"give one for each of {config.num_layers}")
    if config.sliding_layers and (config.window is None or config.window < 1):
        faults.add("window", f"is {config.window}, but some layers slide", "give their reach, from 1")


def _check_choices(config: LMConfig, faults: Faults) -> None:
    if config.activation not in ACTIVATIONS:
        faults.add("activation", f"{config.activation!r} is unknown", f"use one of {', '.join(ACTIVATIONS)}")
    if config.family != "bert" and config.head_dim % 2:
        faults.add("head_dim", f"{config.head_dim} is odd, rotary positions turn pairs", "use an even head_dim")
    for scaling in (config.rope_scaling, config.local_rope_scaling):
        if scaling is not None and scaling.kind == "longrope" and len(scaling.short_factor) != config.head_dim // 2:
            had = f"{len(scaling.short_factor)} factors for {config.head_dim // 2} frequencies"
            faults.add("rope_scaling.short_factor", had, "give one for each")
    if not config.traits.causal:
        if config.num_kv_heads != config.num_heads:
            faults.add("num_kv_heads", f"the {config.family} family has no grouped queries", "leave it out")
        if config.num_labels:
            faults.add(
                "num_labels", f"the {config.family} family has no score head here", "use 0 and a head of your own"
            )
