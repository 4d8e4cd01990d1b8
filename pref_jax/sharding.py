"""How arrays lie on a mesh: specs that fit a shape, and pins for the compiler.

Mesh axes: `data` (batch only), `fsdp` (batch, and parameters gathered when used), `tensor` (features within a layer).
"""

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Shaped

BATCH = ("data", "fsdp")
ROWS = PartitionSpec(BATCH)


def fitting(wanted: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """`wanted` without the mesh axes that are absent from `mesh` or do not divide their axis of `shape`."""
    kept = []
    for size, names in zip(shape, tuple(wanted) + (None,) * len(shape), strict=False):
        names = (names,) if isinstance(names, str) else names or ()
        names = tuple(name for name in names if name in mesh.shape)
        parts = 1
        for name in names:
            parts *= mesh.shape[name]
        kept.append((names[0] if len(names) == 1 else names or None) if size % parts == 0 else None)
    return PartitionSpec(*kept)


def constrain(x: Shaped[Array, "..."], wanted: PartitionSpec = ROWS) -> Shaped[Array, "..."]:
    """Pins an array to axes of the mesh set by `jax.set_mesh`, activations to the batch axes; without one, no change.

    Otherwise the compiler may follow the parameters' `fsdp` axis and split features where the batch should be split.
    """
    if not on_a_mesh():
        return x
    return jax.lax.with_sharding_constraint(x, fitting(wanted, x.shape, jax.sharding.get_abstract_mesh()))


def on_a_mesh() -> bool:
    """Whether `jax.set_mesh` has set a mesh over whose axes the compiler cuts arrays (all of them automatic)."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and all(kind == AxisType.Auto for kind in mesh.axis_types)
