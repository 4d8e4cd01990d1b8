"""Attention on TPUs by the Pallas kernel "splash" that JAX ships: no scores of a whole row are held, masked blocks cost
nothing.

JAX's kernel takes one row and one number of heads; here it meets a batch, shared key heads, rows of any length, and the
mesh that is set. What a query may see is the mask that `attention.visible` makes, so rows padded, packed or shared,
windows and both directions are all the same to it.

Axes: B batch, L length (queries), S length (keys), N query heads, K key and value heads, H head features.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from pref_jax import sharding

# A TPU's vectors have so many lanes: the smallest block, and what lengths are rounded up to.
LANES = 128
# Of queries and keys in a block; more would not fit a core's memory beside wide heads.
BLOCK = 512
_SAVED = "splash"  # what the backward pass keeps: outputs, and the logarithms of the weights' sums


def splash(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    allowed: Bool[Array, "B 1 L S"],
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B L D"]:
    """`attention.plain` by blocks, for TPUs; a query that may look nowhere gets some finite vector of no matter.

    On a mesh each device works on its own rows and heads.

    Args:
      q, k, v, allowed, scale, softcap, sinks: as of `attention.plain`.
      interpret: as plain JAX on any device, block by block; slow, for tests.
    """
    one = functools.partial(_rows, scale=scale, softcap=softcap, interpret=interpret)
    sinks = None if sinks is None else sinks.astype(jnp.float32)
    if not sharding.on_a_mesh():
        return one(q, k, v, allowed, sinks)
    mesh = jax.sharding.get_abstract_mesh()
    # Query heads go where their key heads are.
    batch, _, heads, _ = tuple(sharding.fitting(PartitionSpec(sharding.BATCH, None, "tensor", None), k.shape, mesh))
    some = PartitionSpec(batch, None, heads, None)
    specs = (some, some, some, PartitionSpec(batch), PartitionSpec(heads))
    # Whether results are the same on devices that share a row cannot be told of a kernel.
    each = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(batch, None, heads), check_vma=False)
    return each(q, k, v, allowed, sinks)


def _rows(q: Array, k: Array, v: Array, allowed: Array, sinks: Array | None, **how: object) -> Array:
    """`splash` on one device: one row after another, as the blocks that may be left out are each row's own."""
    batch, length, heads, size = q.shape
    groups = heads // k.shape[2]
    q = _padded(q).reshape(batch, -1, k.shape[2], groups, size).transpose(0, 2, 3, 1, 4)
    k, v = (_padded(t).transpose(0, 2, 1, 3) for t in (k, v))
    allowed = jnp.pad(allowed[:, 0], ((0, 0), _margin(allowed.shape[2]), _margin(allowed.shape[3])))
    sinks = None if sinks is None else sinks.reshape(-1, groups, 1)
    keep = jax.checkpoint_policies.save_only_these_names(_SAVED)
    row = jax.checkpoint(functools.partial(_row, sinks=sinks, **how), policy=keep, prevent_cse=False)
    mixed = jax.lax.map(lambda own: row(*own), (q, k, v, allowed))
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, -1, heads * size)[:, :length]


def _row(
    q: Float[Array, "K G L H"],
    k: Float[Array, "K S H"],
    v: Float[Array, "K S H"],
    allowed: Bool[Array, "L S"],
    *,
    sinks: Float[Array, "K G 1"] | None,
    scale: float,
    softcap: float | None,
    interpret: bool,
) -> Float[Array, "K G L H"]:
    """One row: all heads see the same."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels  # takes 0.2 s

    # A query that sees nothing has no weights to sum, and its gradients would not be finite.
    allowed |= (jnp.arange(allowed.shape[1]) == 0)[None] & ~allowed.any(axis=1, keepdims=True)
    of_q, of_k = (_block(length) for length in allowed.shape)
    sizes = kernels.BlockSizes(
        block_q=of_q, block_kv=of_k, block_q_dkv=of_q, block_kv_dkv=of_k, block_q_dq=of_q, block_kv_dq=of_k
    )
    attend = kernels.make_splash_mha(
        allowed[None],
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=_SAVED,
        interpret=interpret,
    )
    # JAX 0.10 makes an array of this flag, which it then asks for its truth while it traces.
    attend.fwd_mask_info = attend.fwd_mask_info._replace(is_dynamic_mask=True)

    def head(q: Array, k: Array, v: Array, sink: Array | None) -> Array:
        return attend(q[None], k[None], v[None], sinks=sink)[0]

    q = (q * scale).astype(q.dtype)
    group = jax.vmap(head, in_axes=(0, None, None, None if sinks is None else 0))
    return jax.vmap(group, in_axes=(0, 0, 0, None if sinks is None else 0))(q, k, v, sinks)


def _margin(length: int) -> tuple[int, int]:
    return 0, -length % LANES


def _padded(x: Array) -> Array:
    """Tokens [B L N H] up to a whole number of lanes."""
    return jnp.pad(x, ((0, 0), _margin(x.shape[1]), (0, 0), (0, 0)))


def _block(length: int) -> int:
    """The largest block that divides a length."""
    return next(size for size in (BLOCK, 2 * LANES, LANES) if length % size == 0)
