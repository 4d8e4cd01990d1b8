"""Response nodes that texts describe: what a response is before anybody votes on it.

A response's row of the table is t_r + x_r W and its bias b_r + x_r v, with x_r features of its text of a frozen
transformer, standardised and divided by the square root of their number, so that |x_r| is about 1 and W has the prior
of the table's entries. A response that the graph does not know has no edges and no own row: its embedding is x_r W.

Axes: N responses, F features, D features of an embedding.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from copl_jax.graph.settings import GCFConfig
from copl_jax.graph.signed_graph import SignedGraph, unique_edges
from pref_jax.comparisons import Comparisons
from pref_jax.standardiser import fit_standardiser

# Voters of a response, on average, from which "auto" leaves texts out: between 2, where texts gave CoPL 8 points, and
# 8, where they cost it one (results/sharing).
VOTERS = 4.0


class TextMap(NamedTuple):
    """From features of a text to a response's embedding and bias.

    Attributes:
      mean, scale: float32 [F], what standardises features.
      map: float32 [F D], W.
      bias: float32 [F], v.
    """

    mean: Float32[np.ndarray, " F"]
    scale: Float32[np.ndarray, " F"]
    map: Float32[np.ndarray, "F D"]
    bias: Float32[np.ndarray, " F"]


def settle(config: GCFConfig, train: Comparisons, *, texts: bool) -> GCFConfig:
    """The config with "auto" nodes decided: by their texts too where a response has fewer voters than `VOTERS`.

    Args:
      config: any.
      train: the graph's votes.
      texts: whether there are any.

    Example:
      >>> from copl_jax.graph.settings import linear_config
      >>> votes = Comparisons(np.array([0, 1]), np.array([0, 2]), np.array([1, 3]))
      >>> settle(linear_config(), votes, texts=True).nodes
      'both'
    """
    if config.nodes != "auto":
        return config
    responses = np.concatenate([train.chosen, train.rejected])
    _, voted_on = unique_edges(np.tile(train.user, 2), responses, int(responses.max(initial=-1)) + 1)
    shared = len(voted_on) >= VOTERS * len(np.unique(voted_on))
    return dataclasses.replace(config, nodes="table" if shared or not texts or not config.priors else "both")


def describe(graph: SignedGraph, features: Float[np.ndarray, "N F"]) -> tuple[SignedGraph, TextMap]:
    """The graph with its responses' features, and a map that knows how these are standardised, itself still 0.

    Raises:
      UserError: for features that are not finite.
    """
    standardiser = fit_standardiser(features)
    size = features.shape[1]
    # The factor that makes |x| about 1 is part of the scale.
    scale = np.asarray(standardiser.scale) * np.float32(np.sqrt(size))
    text = TextMap(np.asarray(standardiser.mean), scale, np.zeros((size, 0), np.float32), np.zeros(size, np.float32))
    degrees: Any = graph.positive.nodes
    rows = np.zeros((len(degrees["degree"]), size), np.float32)
    rows[int(graph.num_users) :][: len(features)] = standardised(text, features)
    return graph._replace(features=rows), text


def standardised(text: TextMap, features: Float[np.ndarray, "N F"]) -> Float32[np.ndarray, "N F"]:
    """x of each response."""
    return ((features - text.mean) / text.scale).astype(np.float32)


def embed_texts(
    text: TextMap, features: Float[np.ndarray, "N F"]
) -> tuple[Float32[np.ndarray, "N D"], Float32[np.ndarray, " N"]]:
    """Embeddings and biases of responses that the graph does not know."""
    rows = standardised(text, features)
    return rows @ text.map, rows @ text.bias
