"""Which axis of which parameter is split over which mesh axis: one ordered table, first match wins.

Stacked block parameters lead with the layer axis, which is never split.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from pref_jax.sharding import fitting

# Matched against the end of the path, so that optimiser moments and adapters find the row of their parameter.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"blocks/(q|k|v|gate|up|delta_qkv|delta_z|per_layer_gate)_proj/kernel$", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/(q|k|v|gate|up)_proj/bias$", PartitionSpec(None, "tensor")),
    (r"blocks/(o|down|delta_out|per_layer_out)_proj/kernel$", PartitionSpec(None, "tensor", "fsdp")),
    (r"(q|k|v|gate|up|delta_qkv|delta_z)_proj/a$", PartitionSpec(None, "fsdp", None)),
    (r"(q|k|v|gate|up|delta_qkv|delta_z)_proj/b$", PartitionSpec(None, None, "tensor")),
    (r"(o|down|delta_out|per_layer_out)_proj/a$", PartitionSpec(None, "tensor", None)),
    (r"(o|down|delta_out|per_layer_out)_proj/b$", PartitionSpec(None, None, "fsdp")),
    (r"experts/(gate|up|gate_up)$", PartitionSpec(None, "tensor", "fsdp", None)),
    (r"experts/down$", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"\b(per_layer_)?embed/embedding$", PartitionSpec("tensor", "fsdp")),
    (r"\bpositions/embedding$", PartitionSpec(None, "fsdp")),
    (r"\bhead/dense/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"\b(lm_head|per_layer_proj)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"", PartitionSpec()),  # norms, remaining biases, scalars: a copy on each device
)


def spec(path: str) -> PartitionSpec:
    """The first matching row of `RULES` for a path such as `blocks/q_proj/kernel`."""
    return next(spec for pattern, spec in RULES if re.search(pattern, path))


def specs(params: Any, mesh: Mesh | None = None) -> Any:
    """A tree of `PartitionSpec` like `params` (arrays or shapes).

    Given a `mesh`, an axis that it does not divide (a vocabulary of 30 522 over 8 devices) stays whole instead of
    failing later.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        found = spec(jax.tree_util.keystr(path, simple=True, separator="/"))
        return found if mesh is None else fitting(found, tuple(leaf.shape), mesh)

    return jax.tree_util.tree_map_with_path(one, params)
