"""Qwen 3.5: most layers are gated delta nets (Yang et al. 2024, arXiv 2412.06464), the others gated attention.

A delta net has a state S for each head. A token decays it, corrects what it says of the token's key, and reads it:

    S <- exp(g) S;   S <- S + b k (v - k S)^T;   o = q S

The corrections of a chunk's tokens solve a triangular system, so that the loop runs over chunks alone. Each text of a
packed row begins with an empty state.

Every layer holds the parameters of both kinds, as layers are stacked; those of the kind that it is not are never read.

Axes: B batch, L length, D features, N heads, K features of a key, V of a value, C tokens of a chunk, F channels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32

from pref_jax.errors import UserError
from pref_jax.lm import decoder, layers
from pref_jax.lm.attention import AttentionFn, Rows
from pref_jax.lm.config import LMConfig
from pref_jax.lm.config_parts import DeltaNet
from pref_jax.lm.decoder import Context
from pref_jax.triangular import solve_lower

CHUNK = 64


class Recurrence(NamedTuple):
    """What delta nets need to know about the rows, and whether a layer of this kind is one."""

    text: Int32[Array, "B L"]
    real: Bool[Array, "B L"]
    here: Bool[Array, ""]


def _settings(config: LMConfig) -> DeltaNet:
    if config.delta is None:
        raise ValueError("this family has delta nets; LMConfig checks it")
    return config.delta


def _delta_shapes(config: LMConfig) -> dict[str, tuple[int, int]]:
    d, own = config.hidden_size, _settings(config)
    values = own.value_heads * own.value_dim
    return {
        "delta_qkv_proj": (d, 2 * own.key_heads * own.key_dim + values),
        "delta_z_proj": (d, values),
        "delta_out_proj": (values, d),
    }


def linear_shapes(config: LMConfig) -> dict[str, tuple[int, int]]:
    """Name -> (in, out) of every linear of a block; `q_proj` holds the gate of the attention's output besides."""
    shapes = decoder.linear_shapes(config)
    into, out = shapes["q_proj"]
    return {**shapes, "q_proj": (into, 2 * out), **_delta_shapes(config)}


class State(NamedTuple):
    """What a delta net keeps of a text, all of whose tokens so far are real or padding before them.

    Attributes:
      inputs: of the convolution, of the last T - 1 tokens.
      state: S of each head.
    """

    inputs: Float[Array, "B T F"]
    state: Float32[Array, "B N K V"]


def convolve(
    x: Float[Array, "B L F"],
    kernel: Float[Array, "F T"],
    text: Int32[Array, "B L"],
    before: Float[Array, "B _ F"] | None = None,
) -> Float[Array, "B L F"]:
    """Each channel's weighted sum over a token and the T - 1 before it, within its text.

    Where the rows go on from earlier ones, `before` holds the T - 1 inputs before them, of the row's first text.
    """
    size = kernel.shape[1]
    total = x * kernel[None, None, :, -1]
    for back in range(1, size):
        wide = ((0, 0), (back, 0))
        if before is None:
            earlier_text = jnp.pad(text, wide, constant_values=-1)[:, : text.shape[1]]
            earlier = jnp.pad(x, (*wide, (0, 0)))[:, : x.shape[1]]
        else:
            earlier_text = jnp.pad(text, wide, mode="edge")[:, : text.shape[1]]
            earlier = jnp.concatenate([before[:, size - 1 - back :], x], axis=1)[:, : x.shape[1]]
        same = (earlier_text == text)[:, :, None]
        total = total + jnp.where(same, earlier, 0) * kernel[None, None, :, size - 1 - back]
    return total


def delta_rule(
    q: Float[Array, "B L N K"],
    k: Float[Array, "B L N K"],
    v: Float[Array, "B L N V"],
    g: Float[Array, "B L N"],
    b: Float[Array, "B L N"],
    text: Int32[Array, "B L"],
    before: Float32[Array, "B N K V"] | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "B L N V"], Float32[Array, "B N K V"]]:
    """What the recurrence above reads for each token, and the state behind the last one, in float32.

    Args:
      q, k, v: queries, keys and values of all heads.
      g: logarithms of decays, at most 0.
      b: how far a token's key is corrected, from 0 to 1.
      text: number of each token's text; a state ends where the number changes.
      before: the state that each row's first text begins with; None: an empty one.
      chunk: C.
    """
    length = q.shape[1]
    short = -length % chunk
    heads = (q, k, v, g[..., None], b[..., None])
    # [chunks, B, N, C, features]
    wide = (jnp.pad(t.astype(jnp.float32), ((0, 0), (0, short), (0, 0), (0, 0))) for t in heads)
    parts = [t.reshape(len(t), -1, chunk, *t.shape[2:]).transpose(1, 0, 3, 2, 4) for t in wide]
    number = jnp.pad(text, ((0, 0), (0, short)), mode="edge").reshape(len(text), -1, chunk).swapaxes(0, 1)
    lower = jnp.tril(jnp.ones((chunk, chunk), bool))[None, None]

    def step(carry: tuple[Array, Array], part: Any) -> tuple[tuple[Array, Array], Array]:
        state, last = carry
        q, k, v, g, b, number = part
        total = jnp.cumsum(g, axis=2)
        # exp of what a token's mark has decayed by until a later token; and of the state's until each token.
        same = lower & (number[:, None, :, None] == number[:, None, None, :])
        faded = jnp.exp(jnp.where(same, total - total.swapaxes(2, 3), -jnp.inf))
        goes_on = (number == last[:, None])[:, None, :, None]
        begun = jnp.exp(jnp.where(goes_on, total, -jnp.inf))
        system = b * (k @ k.swapaxes(2, 3)) * faded
        right = b * (v - begun * (k @ state))
        fixed = solve_lower(system, right, unit_diagonal=True)
        out = begun * (q @ state) + ((q @ k.swapaxes(2, 3)) * faded) @ fixed
        state = begun[:, :, -1:] * state + (k * faded[:, :, -1, :, None]).swapaxes(2, 3) @ fixed
        return (state, number[:, -1]), out

    if before is None:
        before = jnp.zeros((len(q), q.shape[2], q.shape[3], v.shape[3]), jnp.float32)
    (state, _), out = jax.lax.scan(step, (before, text[:, 0]), (*parts, number))
    return out.transpose(1, 0, 3, 2, 4).reshape(len(q), -1, *v.shape[2:])[:, :length], state


def _unit(x: Array) -> Array:
    """Vectors of length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)


class Block(decoder.Block):
    """A decoder's block whose first half is a delta net or gated attention."""

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        own = _settings(config)
        self.q_proj = layers.linear(*linear_shapes(config)["q_proj"], bias=False, dtype=dtype, rngs=rngs)
        for name, (d, f) in _delta_shapes(config).items():
            setattr(self, name, layers.linear(d, f, bias=False, dtype=dtype, rngs=rngs))
        self.delta_a, self.delta_b = (
            layers.linear(config.hidden_size, own.value_heads, bias=False, dtype=dtype, rngs=rngs) for _ in range(2)
        )
        channels = _delta_shapes(config)["delta_qkv_proj"][1]
        self.delta_conv = nnx.Param(layers.KERNEL_INIT(rngs.params(), (channels, 1, own.kernel), dtype))
        self.delta_bias = nnx.Param(jnp.ones((own.value_heads,), dtype))
        self.delta_decay = nnx.Param(jnp.zeros((own.value_heads,), dtype))
        self.delta_norm = layers.RMSNorm(own.value_dim, eps=config.norm_eps, offset=False, dtype=dtype)

    def _attention(self, h: Array, context: Context, linear: layers.LinearFn, attend: AttentionFn) -> Array:
        def delta(h: Array) -> tuple[Array, Any]:
            out, state = self._delta(h, context, linear)
            kv = jnp.zeros((*h.shape[:2], self.config.num_kv_heads, self.config.head_dim), h.dtype)
            return out, {"k": kv, "v": kv, **state._asdict()} if context.keep else None

        def gated(h: Array) -> tuple[Array, Any]:
            new = {}

            def look(q: Array, k: Array, v: Array, *rest: Array, **more: Any) -> Array:
                new.update(k=k, v=v)
                return attend(q, k, v, *rest, **more)

            out = self._gated(h, context, linear, look)
            return out, {**new, **self._before(context, h)._asdict()} if context.keep else None

        out, kept = jax.lax.cond(context.recurrence.here, delta, gated, h)
        if context.keep:
            context.keep(kept)
        return out

    def _before(self, context: Context, h: Array) -> State:
        """The state before these tokens."""
        if context.earlier is not None:
            return State(context.earlier["inputs"], context.earlier["state"])
        own = _settings(self.config)
        inputs = jnp.zeros((len(h), own.kernel - 1, linear_shapes(self.config)["delta_qkv_proj"][1]), h.dtype)
        return State(inputs, jnp.zeros((len(h), own.value_heads, own.key_dim, own.value_dim), jnp.float32))

    def _gated(self, h: Array, context: Context, linear: layers.LinearFn, attend: AttentionFn) -> Array:
        both = linear(self, "q_proj", h).reshape(*h.shape[:2], self.config.num_heads, 2, self.config.head_dim)
        gate = jax.nn.sigmoid(both[..., 1, :].reshape(*h.shape[:2], -1))

        def gated(block: nnx.Module, name: str, x: Array) -> Array:
            if name == "q_proj":
                return both[..., 0, :].reshape(*x.shape[:2], -1)
            return linear(block, name, x * gate if name == "o_proj" else x)

        return super()._attention(h, context, gated, attend)

    def _delta(self, h: Array, context: Context, linear: layers.LinearFn) -> tuple[Array, State]:
        own, before = _settings(self.config), self._before(context, h)
        h = jnp.where(context.recurrence.real[:, :, None], h, 0)
        inputs = linear(self, "delta_qkv_proj", h)
        earlier = None if context.earlier is None else before.inputs
        mixed = convolve(inputs, self.delta_conv[...][:, 0], context.recurrence.text, earlier)
        mixed = layers.activation(self.config.activation)(mixed)
        keys = own.key_heads * own.key_dim
        q, k, v = jnp.split(mixed, (keys, 2 * keys), axis=-1)
        shape = (*h.shape[:2], own.key_heads, own.key_dim)
        q, k = (jnp.repeat(_unit(t.reshape(shape)), own.value_heads // own.key_heads, axis=2) for t in (q, k))
        v = v.reshape(*h.shape[:2], own.value_heads, own.value_dim)
        rate = jax.nn.softplus(self.delta_a(h).astype(jnp.float32) + self._row(self.delta_bias))
        g = -jnp.exp(self._row(self.delta_decay)) * rate
        b = jax.nn.sigmoid(self.delta_b(h))
        real = context.recurrence.real[:, :, None]
        out, state = delta_rule(
            q * own.key_dim**-0.5,
            k,
            v,
            jnp.where(real, g, 0),
            jnp.where(real, b, 0),
            context.recurrence.text,
            before.state,
            chunk=1 if h.shape[1] == 1 else CHUNK,
        )
        z = linear(self, "delta_z_proj", h).reshape(v.shape)
        out = self.delta_norm(out.astype(h.dtype)).astype(jnp.float32) * jax.nn.silu(z.astype(jnp.float32))
        last = jnp.concatenate([before.inputs, inputs], axis=1)[:, inputs.shape[1] :]
        return linear(self, "delta_out_proj", out.astype(h.dtype).reshape(*h.shape[:2], -1)), State(last, state)

    def _row(self, param: nnx.Param) -> Array:
        return param[...].astype(jnp.float32)[None, None]


class Frame(decoder.Frame):
    """A decoder's."""

    def enter(self, tokens: Int32[Array, "B L"], rows: Rows) -> tuple[Float[Array, "B L D"], tuple[Any, ...]]:
        """Embedded tokens, and for each kind of layer what it needs to know about the rows.

        Raises:
          UserError: if texts of a row branch: a state goes on into one of them only.
        """
        if rows.branch is not None:
            raise UserError(f"a {self.config.family} model reads each text in a row of its own; use share_prefix=False")
        x, contexts = super().enter(tokens, rows)
        real, text = rows.segment > 0, jax.lax.cummax(rows.segment, axis=1)
        here = (jnp.asarray(pattern.theta is None) for pattern in self.config.patterns)
        return x, tuple(
            own._replace(recurrence=Recurrence(text, real, kind)) for own, kind in zip(contexts, here, strict=True)
        )
