"""The programs of a run, lowered for devices that need not be there: shapes in place of arrays.

Axes: B pairs or rows of a batch, L tokens of a row, U users, N responses, n pairs of a user, C features of a user.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from copl_jax.graph import signed_graph
from copl_jax.graph import training as graph_training
from copl_jax.reward import load_balancing, reward_model
from copl_jax.reward import training as reward_training
from experiments.deep import model_of
from experiments.runner.workspace import Workspace, training
from lore_jax import deep
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from pref_jax.errors import UserError
from pref_jax.lm import backbone, features, int8, sharding_rules
from pref_jax.lm.config import LMConfig
from pref_jax.mesh import batch_sharding, batch_shards, replicated
from pref_jax.train.loop import jit_step
from pref_jax.train.state import LossFn, TrainState, make_step, optimizer, optimizer_by_group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a program's shapes hang on beside the config.

    Attributes:
      users, responses, votes: of the data set, seen users' votes alone.
      tokens: of a text under its prompt.
      shared: with how many of them the two texts of a pair begin alike.
    """

    users: int = 10_000
    responses: int = 60_000
    votes: int = 100_000
    tokens: int = 1024
    shared: int = 0

    def __post_init__(self):
        if min(self.users, self.responses, self.votes, self.tokens) < 1 or not 0 <= self.shared < self.tokens:
            raise UserError(f"{self}: sizes are at least 1, and fewer tokens are shared than a text has")


class Planned(NamedTuple):
    """A program, and what its products come to by hand.

    Attributes:
      lowered: not compiled yet.
      useful: operations of products of the weights with all tokens, each once, over all devices; None where there is no
        count by hand.
      rows: what a call does: pairs, texts, votes.
      unit: their name.
    """

    lowered: jax.stages.Lowered
    useful: float | None
    rows: int
    unit: str


def programs(work: Workspace, sizes: Sizes) -> Mapping[str, Callable[[], Planned]]:
    """What the methods of a config run on accelerators, by name; each is lowered when it is called."""
    found: dict[str, Callable[[], Planned]] = {}
    methods = set(work.config.methods)
    if "CoPL" in methods:
        found["graph round"] = lambda: graph_round(work, sizes)
    if methods & {"CoPL", "group oracle", "shared reward"}:
        found["reward step"] = lambda: reward_step(work, sizes)
        found["scoring"] = lambda: scoring(work, sizes)
    if "deep LoRe" in methods:
        found["deep LoRe step"] = lambda: deep_step(work, sizes)
    found["features"] = lambda: text_features(work, sizes)
    found["solver"] = lambda: solver(work, sizes)
    return found


def reward_step(work: Workspace, sizes: Sizes) -> Planned:
    """One training step of CoPL's reward model."""
    settings, lm, mesh = work.reward, work.text.config, work.mesh
    own, config = settings.training, settings.model(lm)
    base = base_shapes(work)
    dim = work.graph.dim
    init = functools.partial(reward_model.init, config, jax.random.key(0), embedding_dim=dim)
    batch = {"user": jax.ShapeDtypeStruct((own.batch_size,), jnp.int32)}
    batch |= _pairs(own.batch_size, sizes, lm, share=own.share_prefix)
    table = _copied(jax.ShapeDtypeStruct((sizes.users, dim), jnp.float32), mesh)
    steps = own.optimizer.num_steps
    trainer = load_balancing.optimizer(config.gate, optimizer(own.optimizer), num_steps=steps)
    frozen = {"base": base, "users": table}
    lowered = _step(init, frozen, reward_model.make_loss(config), trainer, batch, own.accumulate, mesh)
    # Forward, and backward to the inputs alone: the weights are frozen.
    return Planned(lowered, 2 * forward_operations(lm, _tokens(batch), sizes.tokens), own.batch_size, "pairs")


def scoring(work: Workspace, sizes: Sizes) -> Planned:
    """Rewards of a batch of texts, each for a user."""
    settings, lm, mesh = work.reward, work.text.config, work.mesh
    config, rows = settings.model(lm), _rows(settings.training.eval_batch_size, mesh)
    dim = work.graph.dim
    params = jax.eval_shape(lambda: reward_model.init(config, jax.random.key(0), embedding_dim=dim))
    table = jax.ShapeDtypeStruct((sizes.users, dim), jnp.float32)
    texts = _texts(rows, sizes, mesh)
    route = _cut(jax.ShapeDtypeStruct((rows,), jnp.int32), mesh)
    given = _copied(params, mesh), base_shapes(work), _copied(table, mesh)
    with jax.set_mesh(mesh):
        lowered = reward_training.table_rewards.lower(config, *given, *texts, route)
    return Planned(lowered, forward_operations(lm, rows * sizes.tokens, sizes.tokens), rows, "texts")


def text_features(work: Workspace, sizes: Sizes) -> Planned:
    """Pooled states of a batch of texts."""
    lm, mesh = work.text.config, work.mesh
    rows = _rows(work.config.backbone.batch_size, mesh)
    texts = _texts(rows, sizes, mesh)
    with jax.set_mesh(mesh):
        lowered = features.pooled.lower(lm, base_shapes(work), *texts, layer=work.text.layer)
    return Planned(lowered, forward_operations(lm, rows * sizes.tokens, sizes.tokens), rows, "texts")


def deep_step(work: Workspace, sizes: Sizes) -> Planned:
    """One training step of deep LoRe."""
    section, lm, mesh = work.config.deep, work.text.config, work.mesh
    settings = training(section, "deep", batch_size=section.users_per_batch)
    config = model_of(work)
    users, each = section.users_per_batch, section.pairs_per_user
    flat = _pairs(users * each, sizes, lm, share=settings.share_prefix)
    batch = {name: jax.ShapeDtypeStruct((users, each, leaf.shape[1]), leaf.dtype) for name, leaf in flat.items()}
    batch["mask"] = jax.ShapeDtypeStruct((users, each), jnp.bool_)
    batch["support"] = jax.ShapeDtypeStruct((users, section.splits, each), jnp.bool_)
    trainer = optimizer_by_group(settings.optimizer, ("prior",), lr_mult=section.prior_lr_mult)
    init = functools.partial(deep.init, config, jax.random.key(0))
    frozen = {"base": base_shapes(work)}
    lowered = _step(init, frozen, deep.make_loss(config), trainer, batch, settings.accumulate, mesh)
    return Planned(lowered, 2 * forward_operations(lm, _tokens(flat), sizes.tokens), users * each, "pairs")


def graph_round(work: Workspace, sizes: Sizes) -> Planned:
    """Some epochs of the graph's training and a look at the validation votes."""
    graph, train = signed_graph.shapes(sizes.votes, sizes.users, max(2, sizes.responses))
    validation = signed_graph.batch_shapes(max(1, sizes.votes // 10))
    config = dataclasses.replace(work.graph, nodes="table")
    lowered = graph_training.lower_round(config, graph, train, validation, work.mesh)
    return Planned(lowered, None, sizes.votes, "votes")


def solver(work: Workspace, sizes: Sizes, rank: int = 8) -> Planned:
    """Weights of all users from flat votes, by LoRe's exact solver."""
    mesh = work.mesh
    shape = jax.ShapeDtypeStruct
    z = _cut(shape((sizes.votes // batch_shards(mesh) * batch_shards(mesh), rank), jnp.float32), mesh)
    user = _cut(shape(z.shape[:1], jnp.int32), mesh)
    mean, precision = (_copied(shape(size, jnp.float32), mesh) for size in ((rank,), (rank, rank)))

    def solve(z: jax.Array, user: jax.Array, mean: jax.Array, precision: jax.Array) -> Any:
        return solve_weights(z, None, Prior(mean, precision), user=user, num_users=sizes.users)

    with jax.set_mesh(mesh):
        return Planned(jax.jit(solve).lower(z, user, mean, precision), None, sizes.votes, "votes")


def forward_operations(lm: LMConfig, tokens: int, length: int) -> float:
    """Operations of a forward pass over so many tokens in rows of this length: two for each weight of a linear and
    token, and attention's two products over all L x L places (what a causal model does not look at is counted too).
    """
    linears = sum(math.prod(shape) for shape in backbone.linear_shapes(lm).values())
    heads = lm.num_heads * lm.head_dim
    return float(tokens) * lm.num_layers * (2 * linears + 4 * length * heads)


def _step(
    init: Callable[[], Any],
    frozen: Any,
    loss: LossFn,
    trainer: optax.GradientTransformation,
    batch: Mapping[str, Any],
    accumulate: int,
    mesh: Mesh,
) -> jax.stages.Lowered:
    """A training step, as `pref_jax.train.loop` compiles it."""

    def begin() -> TrainState:
        params = init()
        return TrainState(jnp.zeros((), jnp.int32), params, trainer.init(params), jax.random.key(0))

    state = _copied(jax.eval_shape(begin), mesh)
    step = make_step(loss, trainer, accumulate=accumulate)
    shards = batch_shards(mesh)
    rows = next(iter(batch.values())).shape[0]
    if rows % (accumulate * shards):
        raise UserError(
            f"{rows} rows of a step in {accumulate} micro-batches over {shards} parts of the mesh do not come out "
            "even; change the batch size, accumulate or the mesh"
        )
    with jax.set_mesh(mesh):
        return jit_step(step, state, frozen, mesh).lower(state, frozen, _cut(dict(batch), mesh))


def base_shapes(work: Workspace) -> Any:
    """The frozen transformer's parameters, cut as they are loaded."""
    how = work.text.settings.weights
    shapes = backbone.shapes(work.text.config, how["dtype"])
    found = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(work.mesh, spec)),
        shapes,
        sharding_rules.specs(shapes, work.mesh),
    )
    return int8.shapes(found) if how["in_bytes"] else found


def _pairs(rows: int, sizes: Sizes, lm: LMConfig, *, share: bool) -> dict[str, Any]:
    """Token rows of so many pairs, each text apart or both together, whichever is less work."""
    together = 2 * sizes.tokens - sizes.shared
    if share and sizes.shared and lm.shares_prefix and together <= lm.max_positions:
        shape = jax.ShapeDtypeStruct((rows, together), jnp.int32)
        return {"tokens": shape, "parts": shape}
    ids = jax.ShapeDtypeStruct((rows, sizes.tokens), jnp.int32)
    mask = jax.ShapeDtypeStruct((rows, sizes.tokens), jnp.bool_)
    return {"chosen": ids, "chosen_mask": mask, "rejected": ids, "rejected_mask": mask}


def _tokens(batch: Mapping[str, Any]) -> int:
    """Tokens of a batch of pairs, padding among them."""
    return sum(math.prod(leaf.shape) for name, leaf in batch.items() if name in ("tokens", "chosen", "rejected"))


def _texts(rows: int, sizes: Sizes, mesh: Mesh) -> Any:
    """Tokens and mask of so many texts."""
    shape = (rows, sizes.tokens)
    return _cut((jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)), mesh)


def _copied(tree: Any, mesh: Mesh) -> Any:
    place = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def _cut(tree: Any, mesh: Mesh) -> Any:
    place = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def _rows(asked: int, mesh: Mesh) -> int:
    shards = batch_shards(mesh)
    return -(-asked // shards) * shards
