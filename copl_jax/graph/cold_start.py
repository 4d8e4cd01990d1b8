"""Embeddings of unseen users from their few answers, without training (CoPL, arXiv 2503.01658).

The neighbours N(u*) of an unseen user are the seen users who share a chosen response. Each is scored by how well its
embedding explains the unseen user's pairs,

    l_u = mean over u*'s pairs of log sigmoid(ê_u·e_p - ê_u·e_n),    e_u* = sum over N(u*) of softmax(l / 0.07)_u ê_u

and nobody else is looked at. Where votes are of other kinds, l_u is minus the weighted mean of their losses
(`pref_jax.graded`); a tie makes no neighbours, but counts in l_u. The host finds neighbours by sparse expansion, a
chunk of unseen users at a time; the device scores them in tiles of a fixed width, a block of tiles at a time. No array
is unseen x seen.

Axes: U users, N responses, M unseen users, P pairs, D features, Q (unseen, seen) neighbours of a chunk, T tiles,
W width of a tile, J pairs of an unseen user (padded), E thresholds.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from copl_jax.graph.signed_graph import bucket, unique_edges
from copl_jax.graph.training import normalised
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.graded import FittedScale, Graded, grade, losses
from pref_jax.ragged import expand, ranges, starts

_WIDTH = 32  # neighbours a tile: wide enough for a matrix product, narrow enough to waste little
_BLOCK = 32  # tiles scored together: 2 MB of embeddings at D = 512, which stays in cache
_CHUNK = 1 << 20  # neighbours expanded at a time


class ColdStart(NamedTuple):
    """What `adapt` returns, one row for each unseen user asked for.

    Attributes:
      embeddings: float [M D], convex combinations of seen users' embeddings, not scaled to length 1.
      used_all_users: bool [M], True where no seen user shares a chosen response, so that all seen users were scored;
      without
        any pair they all score alike and the embedding is their mean.
      num_neighbours: int32 [M], size of N(u*) before widening.
    """

    embeddings: Float[np.ndarray, "M D"]
    used_all_users: Bool[np.ndarray, " M"]
    num_neighbours: Int32[np.ndarray, " M"]


def cold_start(
    *,
    users: Float[np.ndarray, "U D"],
    responses: Float[np.ndarray, "N D"],
    seen: Bool[np.ndarray, " U"],
    train_pairs: Comparisons,
    context: Comparisons,
    unseen: Int[np.ndarray, " M"],
    scale: FittedScale | None = None,
    temperature: float = 0.07,
) -> ColdStart:
    """Embeds unseen users.

    Nothing is trained and nothing remembered: when a user has answered again, call it with all of the answers. A seen
    user is refreshed likewise, who is then one of the neighbours too, as far as the own embedding explains the answers.

    Args:
      users: normalised embeddings, as `recipe.fit` gives them; rows of users that are not seen are not read.
      responses: raw embeddings.
      seen: which users have an embedding.
      train_pairs: the pairs of the graph; those of users not seen are left out.
      context: the unseen users' pairs; those of users not in `unseen` are left out.
      unseen: user rows to embed, distinct; seen ones are refreshed.
      scale: how the context's ties, strengths and choices are read; None: all its pairs are preferences.
      temperature: of the softmax over neighbours.

    Raises:
      UserError: if nobody is seen, `unseen` has a user twice, or the temperature is not positive.
    """
    if not seen.any():
        raise UserError("adapt: no seen users, of whose embeddings unseen users' are made; train some first")
    if len(np.unique(unseen)) < len(unseen):
        raise UserError("adapt: a user stands in `unseen` more than once; ask for each once")
    if not temperature > 0:
        raise UserError(f"adapt: temperature is {temperature}; it must be above 0")
    everyone = np.flatnonzero(seen).astype(np.int32)
    pairs = _sort_by_owner(context, grade(context, None if scale is None else scale.scale), unseen, len(users))
    reading = _Reading((_padded(users), _padded(responses)), scale, temperature)
    embeddings = np.empty((len(unseen), users.shape[1]), users.dtype)
    embeddings[pairs.count == 0] = users[everyone].mean(axis=0)

    num_neighbours = np.zeros(len(unseen), np.int32)
    for some, of, neighbour in _neighbours(pairs, train_pairs, seen, len(responses)):
        size = np.bincount(of, minlength=len(some))
        num_neighbours[some] = size
        embeddings[some[size > 0]] = _embed(reading, pairs, some, of, neighbour)[size > 0]
    widened = num_neighbours == 0
    for some in _chunks(np.flatnonzero(widened & (pairs.count > 0)), np.full(len(unseen), len(everyone))):
        of, neighbour = np.repeat(np.arange(len(some)), len(everyone)), np.tile(everyone, len(some))
        embeddings[some] = _embed(reading, pairs, some, of, neighbour)
    return ColdStart(embeddings=embeddings, used_all_users=widened, num_neighbours=num_neighbours)


def reembed_seen_users(
    *,
    users: Float[np.ndarray, "U D"],
    responses: Float[np.ndarray, "N D"],
    seen: Bool[np.ndarray, " U"],
    train_pairs: Comparisons,
    scale: FittedScale | None = None,
) -> Float[np.ndarray, "U D"]:
    """Seen users embedded again from their own pairs, by `adapt` as unseen users are, and scaled to length 1.

    With few answers a user the graph's own embedding of some lies among people of another taste; neighbours who explain
    the answers better bring it back. And gates then learn from the kind of embedding that they get for unseen users,
    but for its length: theirs is below 1 where neighbours disagree.
    Arguments as in `adapt`; rows of users that are not seen stay as they are.

    Raises:
      UserError: if nobody is seen.
    """
    who = np.flatnonzero(seen)
    tables: dict[str, Any] = {"users": users, "responses": responses, "seen": seen, "scale": scale}
    embedded = cold_start(**tables, train_pairs=train_pairs, context=train_pairs, unseen=who).embeddings
    fresh = users.copy()
    fresh[who] = normalised(embedded)
    return fresh


class _Context(NamedTuple):
    """The unseen users' pairs, those of one user side by side: `count` [M] of them from `first` [M] on."""

    owner: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    first: np.ndarray
    count: np.ndarray
    tie: np.ndarray
    graded: Graded | None


class _Reading(NamedTuple):
    """What all chunks are read with: the padded tables of users and responses, the scale, the temperature."""

    tables: tuple[Array, Array]
    scale: FittedScale | None
    temperature: float


def _ties(pairs: Comparisons) -> np.ndarray:
    return np.zeros(len(pairs.user), bool) if pairs.tie is None else np.asarray(pairs.tie, bool)


def _sort_by_owner(context: Comparisons, graded: Graded | None, unseen: np.ndarray, num_users: int) -> _Context:
    position = np.full(num_users, -1, np.int32)
    position[unseen] = np.arange(len(unseen), dtype=np.int32)
    owner = position[context.user]
    order = np.argsort(owner, kind="stable")
    order = order[owner[order] >= 0]
    count = np.bincount(owner[order], minlength=len(unseen))
    return _Context(
        owner=owner[order],
        chosen=context.chosen[order],
        rejected=context.rejected[order],
        first=starts(count),
        count=count,
        tie=_ties(context)[order],
        graded=None if graded is None else Graded(*(column[order] for column in graded)),
    )


def _chunks(rows: np.ndarray, cost: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts `rows` where their summed `cost` passes a multiple of `_CHUNK`; each part holds at least one row."""
    passed = starts(cost[rows])
    cuts = np.flatnonzero(np.diff(passed // _CHUNK)) + 1
    return (part for part in np.split(rows, cuts) if len(part))


def _neighbours(
    pairs: _Context, train_pairs: Comparisons, seen: np.ndarray, num_responses: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Two hops, unseen user - chosen response - seen user, for a chunk of unseen users with pairs at a time.

    Yields:
      The chunk's rows, ascending; then for each distinct neighbour, in order: whose it is (position in the chunk) and
      its user row.
    """
    of_seen = seen[train_pairs.user] & ~_ties(train_pairs)
    user, response = unique_edges(train_pairs.user[of_seen], train_pairs.chosen[of_seen], num_responses)
    by_response = user[np.argsort(response, kind="stable")]
    degree = np.bincount(response, minlength=num_responses)
    start = starts(degree)
    owner, chosen = unique_edges(pairs.owner[~pairs.tie], pairs.chosen[~pairs.tie], num_responses)
    cost = pairs.count + np.bincount(owner, weights=degree[chosen], minlength=len(pairs.count)).astype(np.int64)
    for some in _chunks(np.flatnonzero(pairs.count), cost):
        edges = slice(*np.searchsorted(owner, [some[0], some[-1] + 1]))
        count = degree[chosen[edges]]
        neighbour = by_response[expand(start[chosen[edges]], count)]
        of = np.repeat(np.searchsorted(some, owner[edges]), count)
        code = np.unique(of * np.int64(len(seen)) + neighbour)
        yield some, code // len(seen), (code % len(seen)).astype(np.int32)


def _embed(reading: _Reading, pairs: _Context, some: np.ndarray, of: np.ndarray, neighbour: np.ndarray) -> np.ndarray:
    """Embeddings [len(some) D] from the neighbours listed; rows without any are 0."""
    size = np.bincount(of, minlength=len(some))
    tiles = -(-size // _WIDTH)
    first_tile = starts(tiles)
    slot = first_tile[of] * _WIDTH + ranges(size)
    num_tiles = bucket(int(tiles.sum()), smallest=8 * _BLOCK)  # such buckets are multiples of _BLOCK
    tile_users = np.full(num_tiles * _WIDTH, -1, np.int32)
    tile_users[slot] = neighbour
    num_owners = bucket(len(some) + 1)  # one more, to own the padding tiles
    tile_owner = np.full(num_tiles, num_owners - 1, np.int32)
    tile_owner[: tiles.sum()] = np.repeat(np.arange(len(some)), tiles)

    column = np.arange(bucket(int(pairs.count.max()), smallest=4))
    real = np.zeros((num_owners, len(column)), bool)
    real[: len(some)] = column < pairs.count[some, None]
    index = np.zeros(real.shape, np.int64)
    index[: len(some)] = pairs.first[some, None] + column
    index[~real] = 0
    graded, ends, ties, dtype = None, None, False, reading.tables[0].dtype
    if pairs.graded is not None and reading.scale is not None:
        graded, ties = Graded(*(column[index] for column in pairs.graded)), reading.scale.scale.ties
        ends = jnp.asarray(reading.scale.thresholds, dtype)
    embedded = _score(
        *reading.tables,
        tile_users.reshape(num_tiles, _WIDTH),
        tile_owner,
        pairs.chosen[index],
        pairs.rejected[index],
        real,
        jnp.asarray(reading.temperature, dtype),
        graded,
        ends,
        ties=ties,
    )
    return np.asarray(embedded)[: len(some)]


@functools.partial(jax.jit, static_argnames="ties")
def _score(
    users: Float[Array, "U D"],
    responses: Float[Array, "N D"],
    tile_users: Int32[Array, "T W"],
    tile_owner: Int32[Array, " T"],
    chosen: Int32[Array, "M J"],
    rejected: Int32[Array, "M J"],
    real: Bool[Array, "M J"],
    temperature: Float[Array, ""],
    graded: Graded | None,
    ends: Float[Array, " E"] | None,
    *,
    ties: bool,
) -> Float[Array, "M D"]:
    """Scores each tile's users (-1: nobody) on the pairs of the tile's owner, and sums them by softmax."""
    counts = jnp.maximum(jnp.sum(real, axis=1), 1)
    if graded is not None:
        total = jnp.sum(jnp.where(real, graded.weight, 0), axis=1)
        counts = jnp.where(total > 0, total, 1)
    user_blocks = tile_users.reshape(-1, _BLOCK, _WIDTH)

    def likelihoods(block):
        block_users, owner = block
        differences = responses[chosen[owner]] - responses[rejected[owner]]
        margins = jnp.einsum("twd,tjd->twj", users[block_users], differences)
        if graded is None or ends is None:
            fits = jax.nn.log_sigmoid(margins)
        else:
            fits = -losses(margins, jax.tree.map(lambda column: column[owner][:, None, :], graded), ends, ties=ties)
        fits = jnp.where(real[owner][:, None, :], fits, 0)
        return jnp.sum(fits, axis=-1) / counts[owner][:, None]

    scores = jax.lax.map(likelihoods, (user_blocks, tile_owner.reshape(-1, _BLOCK)))
    scores = scores.reshape(tile_users.shape) / temperature
    # A finite floor, not -inf: in padding tiles nobody is real, and -inf minus -inf would be NaN.
    scores = jnp.where(tile_users >= 0, scores, jnp.finfo(scores.dtype).min / 2)
    segments = jnp.repeat(tile_owner, _WIDTH)
    weights: Any = jraph.segment_softmax(scores.reshape(-1), segments, len(real), indices_are_sorted=True)
    weights = jnp.where(tile_users >= 0, weights.reshape(tile_users.shape), 0)

    def mixtures(block):
        block_users, block_weights = block
        return jnp.einsum("tw,twd->td", block_weights, users[block_users])

    mixed = jax.lax.map(mixtures, (user_blocks, weights.reshape(user_blocks.shape)))
    return jraph.segment_sum(mixed.reshape(-1, users.shape[1]), tile_owner, len(real), indices_are_sorted=True)


def _padded(table: np.ndarray) -> Array:
    """The table with rows of zeros, at least one, up to a bucket: a few more users compile nothing again.

    Row -1, which stands for nobody, is one of the zeros; users that are not seen may hold anything.
    """
    return jnp.asarray(np.pad(table, ((0, bucket(len(table) + 1) - len(table)), (0, 0))))
