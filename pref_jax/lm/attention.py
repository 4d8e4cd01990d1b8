"""Who sees whom in a row, and the one function that every family attends through.

Axes: B batch, L length (queries), S length (keys), N query heads, K key and value heads, H head features, D = N H,
G query heads to a key head, R rows of keys.

A row holds one text, padded left or right, or several, packed one after another: its mask is then the number of the
text that each token belongs to, from 1, with 0 at padding. Or it holds texts that begin alike, once their common
beginning (the trunk) and then what each goes on with (its branch): see `branches`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from pref_jax.lm import layers, splash

Mask = Bool[Array, "B L"] | Int32[Array, "B L"]
Queries = Float[Array, "B L N H"]
Keys = Float[Array, "B S K H"]  # and values
Allowed = Bool[Array, "B 1 L S"]
Mixed = Float[Array, "B L D"]
Sinks = Float[Array, " N"]
Bias = Float[Array, "B N L S"]
# Queries from which on TPUs the kernel is worth its start; shorter rows have few scores.
SPLASH_FROM = 256


class Rows(NamedTuple):
    """Where each token stands.

    Attributes:
      segment: the number of its text; 0: padding.
      position: its place in its text, from 0.
      branch: 0 in a trunk, which all branches of its segment read on from; else the branch's number. None where
        nothing branches.
    """

    segment: Int32[Array, "B L"]
    position: Int32[Array, "B L"]
    branch: Int32[Array, "B L"] | None = None


@runtime_checkable
class AttentionFn(Protocol):
    """What `attend` can be replaced by, for instance a kernel for TPU; same arguments, same meaning."""

    def __call__(
        self, q: Queries, k: Keys, v: Keys, allowed: Allowed, *, scale: float, softcap: float | None = None
    ) -> Mixed:
        """softmax(softcap(scale q kᵀ)) v over the allowed keys.

        gpt-oss calls it with `sinks` besides, DeBERTa with a `bias`: see `plain`.
        """
        ...


def rows(mask: Mask | Rows) -> Rows:
    """Positions count the real tokens of each text, wherever the padding is; padding before them gets 0.

    `Rows` come back as they are.
    """
    if isinstance(mask, Rows):
        return mask
    segment = mask.astype(jnp.int32)
    counted = jnp.cumsum(segment > 0, axis=1, dtype=jnp.int32)
    highest = jax.lax.cummax(segment, axis=1)
    earlier = jnp.pad(highest[:, :-1], ((0, 0), (1, 0)))
    # Texts are numbered upwards, so a new highest number begins a text; the tokens before it do not count there.
    before = jax.lax.cummax(jnp.where(segment > earlier, counted - 1, 0), axis=1)
    return Rows(segment, jnp.maximum(counted - 1 - before, 0))


def branches(parts: Int32[Array, "B L"]) -> Rows:
    """Rows of texts that begin alike; each text is the trunk and one branch.

    In a causal transformer every token of such a row gets the state that it has in its text alone. In one that looks
    both ways it does not: there the trunk would have to see its answers.

    Args:
      parts: 1 at the trunk, 2 at the first text's branch behind it, 3 at the second's, and so on; 0 at padding. Any
        of them may be missing.
    """
    within = rows(parts).position
    trunk = jnp.sum(parts == 1, axis=1, keepdims=True, dtype=jnp.int32)
    return Rows((parts > 0).astype(jnp.int32), within + jnp.where(parts > 1, trunk, 0), jnp.maximum(parts - 1, 0))


def texts(mask: Mask | Rows, count: int) -> Bool[Array, "B S L"]:
    """True at the tokens of each of a row's first `count` texts: of segment s, or of the trunk and of branch s."""
    number = jnp.arange(1, count + 1, dtype=jnp.int32)[None, :, None]
    if not isinstance(mask, Rows):
        return mask[:, None] == number
    if mask.branch is None:
        return mask.segment[:, None] == number
    branch = mask.branch[:, None]
    return (mask.segment > 0)[:, None] & ((branch == 0) | (branch == number))


def visible(rows: Rows, *, causal: bool, window: int | None = None, keys: Rows | None = None) -> Allowed:
    """True where a query (third axis) may look at a key (last axis).

    Never at padding, at another text or at another branch; not ahead if `causal`; and only at less than `window`
    positions' distance. Keys are the rows' own, or those of other rows, `keys`.
    """
    segment, position, branch = rows
    keys = rows if keys is None else keys
    allowed = (segment[:, :, None] == keys.segment[:, None, :]) & (keys.segment > 0)[:, None, :]
    if branch is not None and keys.branch is not None:
        seen = keys.branch[:, None, :]
        allowed &= (seen == 0) | (seen == branch[:, :, None])
    distance = position[:, :, None] - keys.position[:, None, :]
    if causal:
        allowed &= distance >= 0
    if window is not None and (keys is not rows or window < segment.shape[1]):
        allowed &= jnp.abs(distance) < window
    return allowed[:, None]


def attend(
    q: Queries, k: Keys, v: Keys, allowed: Allowed, *, scale: float, softcap: float | None = None, **more: Any
) -> Mixed:
    """Attention by the best means where it runs: a kernel that never holds a row's scores, or else `plain`.

    On TPUs `splash`, for rows of at least `SPLASH_FROM` queries and without bias. On NVIDIA GPUs cuDNN's, in half
    precision, for heads of 8, 16, ... 128 features, rows of even length, and without soft-cap, sinks or bias. A query
    that may look nowhere gets some finite vector of no matter.
    """
    platform = _platform()
    if platform == "tpu" and q.shape[1] >= SPLASH_FROM and "bias" not in more:
        return splash.splash(q, k, v, allowed, scale=scale, softcap=softcap, **more)
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    if platform == "cuda" and half and fits and softcap is None and not more:
        return flash(q, k, v, allowed, scale=scale)
    return plain(q, k, v, allowed, scale=scale, softcap=softcap, **more)


def _platform() -> str:
    """Where the program will run: on the mesh that is set, whose devices need not be here, or by default."""
    device: Any = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    if device.platform in ("gpu", "cuda"):
        return "rocm" if device.device_kind.startswith("AMD") else "cuda"
    return device.platform


def flash(q: Queries, k: Keys, v: Keys, allowed: Allowed, *, scale: float, softcap: float | None = None) -> Mixed:
    """`jax.nn.dot_product_attention` by cuDNN, which never holds the scores of a whole row; half precision only.

    Raises:
      NotImplementedError: if a soft-cap is asked for: cuDNN has none.
    """
    if softcap is not None:
        raise NotImplementedError("cuDNN's attention has no soft-cap; use `plain`")
    mixed = jax.nn.dot_product_attention(q, k, v, mask=allowed, scale=scale, implementation="cudnn")
    return mixed.reshape(*q.shape[:2], -1)


def plain(
    q: Queries,
    k: Keys,
    v: Keys,
    allowed: Allowed,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Sinks | None = None,
    bias: Bias | None = None,
) -> Mixed:
    """Attention by matrix products, with the softmax in float32; heads are joined again on the way out.

    N / K query heads share each key head. A query that may look nowhere gets the plain mean of all values.

    Args:
      q, k, v, allowed, scale, softcap: as for `AttentionFn`.
      sinks: the score of a key beside all others, which every head has and whose value is zero.
      bias: added to the scores.
    """
    part = Part(k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), allowed)
    return over_parts(q, [part], scale=scale, softcap=softcap, sinks=sinks, bias=bias)


class Part(NamedTuple):
    """Some of the keys that queries look at, and their values, heads first.

    With fewer rows than there are queries' rows, consecutive rows of queries share a row of keys, and `allowed` has
    one query for each of them.
    """

    k: Float[Array, "R K S H"]
    v: Float[Array, "R K S H"]
    allowed: Bool[Array, "R 1 _ S"]


class _Seen(NamedTuple):
    """Of some keys: the highest score, the sum of all weights exp(score - highest), and the values so weighed."""

    highest: Float[Array, "B K G L 1"]
    total: Float[Array, "B K G L 1"]
    mixed: Float[Array, "B K G L H"]


def over_parts(
    q: Queries,
    parts: Sequence[Part],
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Sinks | None = None,
    bias: Bias | None = None,
) -> Mixed:
    """`plain` over keys that lie in several arrays, which are never put together; a `bias` is for a single part.

    If queries' rows share keys, every row has one query.
    """
    b, length, n, _ = q.shape
    groups = n // parts[0].k.shape[1]
    # Heads first (G query heads to a key head), so that every product is over plain matrices: on CPU, products that
    # leave the heads in the middle cost five times as much.
    q = (q * scale).astype(q.dtype).reshape(b, length, -1, groups, q.shape[-1]).transpose(0, 2, 3, 1, 4)
    sink = None if sinks is None else sinks.astype(jnp.float32).reshape(1, -1, groups, 1, 1)
    seen = [_see(q, part, softcap, bias, sink) for part in parts]
    highest, total, mixed = seen[0]
    for other in seen[1:]:
        most = jnp.maximum(highest, other.highest)
        ours, theirs = jnp.exp(highest - most), jnp.exp(other.highest - most)
        highest, total, mixed = most, total * ours + other.total * theirs, mixed * ours + other.mixed * theirs
    if sink is not None:
        total = total + jnp.exp(sink - highest)
    mixed = (mixed / total).astype(parts[0].v.dtype)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(b, length, -1)


def _see(q: Array, part: Part, softcap: float | None, bias: Bias | None, sink: Array | None) -> _Seen:
    """What queries [B K G L H] see of a part."""
    rows, each = len(part.k), len(q) // len(part.k)
    if each > 1:  # rows that share keys become queries of one row
        q = q.reshape(rows, each, *q.shape[1:4], -1)[:, :, :, :, 0].transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bkglh,bksh->bkgls", q, part.k, preferred_element_type=jnp.float32)
    scores = layers.softcap(scores, softcap)
    if bias is not None:
        scores = scores + bias.reshape(scores.shape)
    scores = scores + jnp.where(part.allowed, 0.0, -1e30)[:, :, None]
    highest = scores.max(axis=-1, keepdims=True)
    if sink is not None:
        highest = jnp.maximum(highest, sink)
    highest = jax.lax.stop_gradient(highest)
    # Normalising after the product with v divides H numbers a query instead of S, and halves the backward pass
    # against jax.nn.dot_product_attention on CPU. The shift cancels out, so no gradient goes through it.
    weights = jnp.exp(scores - highest)
    mixed = jnp.einsum("bkgls,bksh->bkglh", weights.astype(part.v.dtype), part.v, preferred_element_type=jnp.float32)
    seen = _Seen(highest, weights.sum(axis=-1, keepdims=True), mixed)
    if each == 1:
        return seen
    # Back to a row for each query.
    return _Seen(*(t.transpose(0, 3, 1, 2, 4).reshape(rows * each, *t.shape[1:3], 1, -1) for t in seen))
