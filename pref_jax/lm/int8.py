"""Frozen matrices in a byte a number, each column of its own scale: for bases that do not fit otherwise.

Only the blocks' linears are held so, which are nearly all of a large model; embeddings, norms and biases stay as they
are. A layer's matrices are widened when it is read, one layer at a time, and no gradient goes into them.

Axes: Z layers, D in features, F out features.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Float, Float32, Int8

from pref_jax.errors import UserError

_HELD = re.compile(r"^blocks/\w+_proj/kernel$")
_MOST = 127


class Int8Kernel(NamedTuple):
    """A matrix as `values` times `scale`, column by column; with layers first, or one layer's slice."""

    values: Int8[Array, "*Z D F"]
    scale: Float32[Array, "*Z 1 F"]


def holds(path: str) -> bool:
    """Whether a parameter of this path, such as "blocks/q_proj/kernel", can be held in bytes."""
    return _HELD.match(path) is not None


def quantise(kernel: Float[Array, "*Z D F"]) -> Int8Kernel:
    """The nearest bytes, a column's largest number being 127; a column of zeros keeps them.

    No number is off by more than half its column's scale.

    Example:
      >>> quantise(jnp.array([[1.0, 0.0], [-2.0, 0.0]])).values.tolist()
      [[64, 0], [-127, 0]]
    """
    wide = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-2, keepdims=True) / _MOST
    values = jnp.round(wide / jnp.where(scale > 0, scale, 1))
    return Int8Kernel(values.astype(jnp.int8), scale)


def quantise_in_place(kernel: jax.Array) -> Int8Kernel:
    """`quantise` on the devices where the kernel lies."""
    return _compiled(kernel.sharding)(kernel)


@functools.lru_cache(maxsize=64)
def _compiled(place: Sharding) -> Any:
    return jax.jit(quantise, out_shardings=places(place))


def places(kernel: Sharding) -> Any:
    """An `Int8Kernel` of where its parts lie if the matrix would lie there: scales are cut as its columns are."""
    if not isinstance(kernel, NamedSharding):
        return Int8Kernel(kernel, kernel)  # pyright: ignore[reportArgumentType]
    layers, _, columns = (*kernel.spec, None, None, None)[:3]
    scale = NamedSharding(kernel.mesh, PartitionSpec(layers, None, columns))
    return Int8Kernel(kernel, scale)  # pyright: ignore[reportArgumentType]


def shapes(tree: Any) -> Any:
    """Parameters as shapes with shardings, as they are once held: for programs that are compiled without weights."""

    def held(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Any:
        if not holds(jax.tree_util.keystr(path, simple=True, separator="/")):
            return leaf
        assert leaf.sharding is not None, "the caller places them"
        return jax.tree.map(
            lambda part, place: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=place),
            jax.eval_shape(quantise, leaf),
            places(leaf.sharding),
        )

    return jax.tree_util.tree_map_with_path(held, tree)


def widened(tree: Any, dtype: Any) -> Any:
    """The tree with every `Int8Kernel` as a matrix of this dtype; other leaves stay."""

    def widen(leaf: Any) -> Any:
        if not isinstance(leaf, Int8Kernel):
            return leaf
        values = jax.lax.stop_gradient(leaf.values.astype(jnp.float32) * leaf.scale)
        return values.astype(dtype)

    return jax.tree.map(widen, tree, is_leaf=lambda leaf: isinstance(leaf, Int8Kernel))


def need_floats(params: Any, where: str) -> None:
    """Raises `UserError` for parameters that have matrices in bytes: what is written or merged has to be exact."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Int8Kernel))
    if any(isinstance(leaf, Int8Kernel) for leaf in leaves):
        raise UserError(f"{where}: the base is held in bytes (dtype int8); open it in bfloat16 or float32 for this")
