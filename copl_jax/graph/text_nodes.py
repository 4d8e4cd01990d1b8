"""Response nodes that texts describe: what a response is before anybody votes on it.

A response's row of the table is t_r + x_r W and its bias b_r + x_r v, with x_r features of its text of a frozen
transformer, standardised and divided by the square root of their number, so that |x_r| is about 1 and W has the prior
of the table's entries. A response that the graph does not know has no edges and no own row: its embedding is x_r W.

Axes: N responses, F features, D features of an embedding.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from copl_jax.graph.signed_graph import SignedGraph
from pref_jax.standardiser import fit_standardiser


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
