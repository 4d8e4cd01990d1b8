"""New users of the layer `linear`: their embeddings given those of responses, solved and not trained.

Under the layer a user's embedding is the own row of the table plus what the responses voted on pass on,

    e_u = t_u + m_u,    m_u = d (sum over chosen r of a_ur s_r - sum over rejected r of a_ur s_r),

with s_r the sum of r's embeddings before each layer and d the layer's decay. Given the responses, the votes' likelihood
and t_u ~ N(0, 1/λ) make the posterior of e_u log-concave; its mode (`pref_jax.user_modes`) is

    e_u = argmin over e of sum over u's votes of loss(e·(e_p - e_n) + b_p - b_n) + λ/2 |e - m_u|².

A user of few votes is what the neighbours' votes say, one of many votes what the own ones do, as among seen users.

Axes: M users to solve, N responses, D features.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from copl_jax.graph.edge_weights import edge_votes
from copl_jax.graph.message_passing import DECAY
from copl_jax.graph.signed_graph import SignedGraph, merged_weights, unique_edges
from copl_jax.graph.text_nodes import TextMap, embed_texts
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.files import read_json, write_json
from pref_jax.graded import FittedScale
from pref_jax.likelihood import Scale
from pref_jax.user_modes import solve_modes


class ResponseTable(NamedTuple):
    """What users are solved from.

    Attributes:
      embeddings: float [N D].
      bias: float [N].
      messages: float [N D], s.
      degrees: float [N 2], the sums of the weights of a response's positive and negative edges.
      prior: λ.
      edges: "distinct" or "counted", see `signed_graph.build`.
      text: what embeds responses by their texts; None where nodes have none.
    """

    embeddings: Float[np.ndarray, "N D"]
    bias: Float[np.ndarray, " N"]
    messages: Float[np.ndarray, "N D"]
    degrees: Float[np.ndarray, "N 2"]
    prior: float
    edges: str
    text: TextMap | None = None


# The arrays of a table beside the embeddings, as a saved model keeps them, and those of its map of texts.
COLUMNS = ("bias", "messages", "degrees")
TEXT_COLUMNS = tuple(f"text_{name}" for name in TextMap._fields)


def columns(table: ResponseTable) -> dict[str, np.ndarray]:
    """The arrays of a table beside the embeddings by name, see `ResponseTable`."""
    text = {} if table.text is None else dict(zip(TEXT_COLUMNS, table.text, strict=True))
    return {name: getattr(table, name) for name in COLUMNS} | text


def from_columns(embeddings: np.ndarray, found: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> ResponseTable:
    """The table of what `columns` gave, its prior and its edges."""
    text = TextMap(*(found[name] for name in TEXT_COLUMNS)) if TEXT_COLUMNS[0] in found else None
    bias, messages, degrees = (found[name] for name in COLUMNS)
    return ResponseTable(embeddings, bias, messages, degrees, about["prior"], about["edges"], text)


def with_texts(table: ResponseTable, features: Float[np.ndarray, "M F"]) -> ResponseTable:
    """The table with M more responses, which nobody in the graph voted on, at its end.

    Raises:
      UserError: if the table knows no texts.
    """
    if table.text is None:
        raise UserError("with_texts: the graph's nodes have no texts; fit it with nodes='text' or 'both'")
    embeddings, bias = embed_texts(table.text, features)
    # A node without edges passes on its own row, if anything is passed on at all.
    passed = embeddings * np.any(table.messages)
    rows: tuple[np.ndarray, ...] = (embeddings, bias, passed, np.zeros((len(features), 2), table.degrees.dtype))
    embeddings, bias, messages, degrees = (np.concatenate(pair) for pair in zip(table[:4], rows, strict=True))
    return ResponseTable(embeddings, bias, messages, degrees, table.prior, table.edges, table.text)


def save_table(folder: Path, table: ResponseTable) -> None:
    """Writes what `load_table` reads: the columns as .npy, the numbers as `table.json`."""
    for name, values in {"embeddings": table.embeddings, **columns(table)}.items():
        np.save(folder / f"{name}.npy", values)
    write_json(folder / "table.json", {"prior": table.prior, "edges": table.edges})


def load_table(folder: Path) -> ResponseTable | None:
    """The folder's table; None if it has none."""
    if not (folder / "table.json").exists():
        return None
    names = (name for name in ("embeddings", *COLUMNS, *TEXT_COLUMNS) if (folder / f"{name}.npy").exists())
    found = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in names}
    return from_columns(found["embeddings"], found, read_json(folder / "table.json"))


def response_degrees(graph: SignedGraph) -> Float[np.ndarray, "N 2"]:
    """The sums of the weights of each response's positive and negative edges."""
    rows = slice(int(graph.num_users), int(graph.num_users) + int(graph.num_responses))
    found = []
    for sign in (graph.positive, graph.negative):
        edges: Any = sign.edges
        real = np.asarray(edges["weight"]) > 0
        weight = np.where(real, np.exp(edges["log_weight"]) if "log_weight" in edges else 1.0, 0.0)
        found.append(np.bincount(np.asarray(sign.receivers), weight, int(sum(sign.n_node)))[rows])
    return np.stack(found, axis=1)


def solve_users(
    table: ResponseTable, votes: Comparisons, users: Int[np.ndarray, " M"], *, scale: FittedScale | None = None
) -> Float[np.ndarray, "M D"]:
    """Embeddings of users by their votes, not scaled to length 1; 0 for users without votes.

    Nothing is trained and nothing remembered: when a user has voted again, call it with all of the votes.

    Args:
      table: of the graph's responses.
      votes: pairs of rows of the table; those of users not in `users` are left out.
      users: numbers of users, distinct.
      scale: how ties, strengths and choices are read; None: all pairs are preferences.

    Raises:
      UserError: if a row is out of range.
    """
    place = np.full(int(max(users.max(initial=-1), votes.user.max(initial=-1))) + 1, -1)
    place[users] = np.arange(len(users))
    own = votes.take(place[votes.user] >= 0)
    own = own._replace(user=place[own.user])
    tables: Any = {"embeddings": table.embeddings, "bias": table.bias, "precision": table.prior}
    return solve_modes(prior_means(table, own, len(users), scale), own, **tables, scale=scale)


def prior_means(
    table: ResponseTable, votes: Comparisons, num_users: int, scale: FittedScale | None
) -> Float[np.ndarray, "M D"]:
    """m of each user, as a graph with these users in it would have it, but for the responses' own degrees."""
    read, given = (Scale(), Comparisons(*votes[:3])) if scale is None else (scale.scale, votes)
    rows = edge_votes(given, read, edges=table.edges)
    means = np.zeros((num_users, table.messages.shape[1]))
    count = len(table.messages)
    for side, (response, sign) in enumerate(((rows.chosen, 1), (rows.rejected, -1))):
        user, to = unique_edges(rows.user, response, count)
        weight = merged_weights(rows.user, response, rows.weight[:, side], count, table.edges)
        # A response that the graph has no such edge of gets the one of this user.
        degree = np.maximum(table.degrees[to, side], weight)
        weight = weight / np.sqrt(np.bincount(user, weight, num_users)[user] * degree)
        means += sign * (sparse.csr_matrix((weight, (user, to)), (num_users, count)) @ table.messages)
    return (DECAY * means).astype(table.messages.dtype)
