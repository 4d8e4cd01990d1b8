"""Users like oneself: votes of the nearest users as a reward, without training.

Each user is a row of signed votes, chosen less rejected, of length 1; s_uv is the cosine of two rows. A response is
worth to u what its nearest users say of it, beside what all users do,

    r_u(x) = b_x + w sum over v in the K nearest users of s_uv S_vx,

with b the Bradley-Terry values (Herlocker et al., An Algorithmic Framework for Collaborative Filtering, 1999).

Axis letters: U users, V users asked for, N responses, P pairs.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from scipy import sparse

from pref_jax.comparisons import Comparisons, decided
from pref_jax.item_values import choose_item_values, log_likelihoods

NEAREST, WEIGHTS = (10, 30, 100, 300), (0.3, 1.0, 3.0, 10.0)
_BLOCK = 1024  # users asked for at a time


class Neighbours(NamedTuple):
    """What is known of the users: signed votes [U N], each row of length 1; values [N], K and w."""

    votes: sparse.csr_matrix
    values: Float64[np.ndarray, " N"]
    nearest: int
    weight: float


def fit(train: Comparisons, validation: Comparisons, *, num_users: int, num_responses: int) -> Neighbours:
    """Chooses K and w by the loss of the validation votes; ties are left out."""
    train, validation = decided(train), decided(validation)
    values, _ = choose_item_values(train, validation, num_responses)
    votes = signed_votes(train, num_users, num_responses)
    best, lowest = Neighbours(votes, values, NEAREST[0], WEIGHTS[0]), np.inf
    for nearest in NEAREST:
        told = _told(votes, votes, nearest, validation)
        for weight in WEIGHTS:
            loss = -log_likelihoods(_values(values, validation) + weight * told).mean()
            if loss < lowest:
                best, lowest = Neighbours(votes, values, nearest, weight), loss
    return best


def margins(known: Neighbours, own: Comparisons, pairs: Comparisons, *, num_users: int) -> Float[np.ndarray, " P"]:
    """By how much each pair's chosen response is worth more to its user than the rejected one.

    Args:
      known: the users who are asked.
      own: votes of those for whom they are, who may be among them.
      pairs: rows of the same users.
      num_users: V.
    """
    asked = signed_votes(decided(own), num_users, len(known.values))
    return _values(known.values, pairs) + known.weight * _told(known.votes, asked, known.nearest, pairs)


def signed_votes(votes: Comparisons, num_users: int, num_responses: int) -> sparse.csr_matrix:
    """Chosen less rejected of each user, of length 1; 0 for users without votes."""
    sign = np.repeat([1.0, -1.0], len(votes.user))
    where = np.tile(votes.user, 2), np.concatenate([votes.chosen, votes.rejected])
    found = sparse.csr_matrix((sign, where), (num_users, num_responses))
    length = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.where(length > 0, length, 1)) @ found)


def _values(values: np.ndarray, pairs: Comparisons) -> np.ndarray:
    return values[pairs.chosen] - values[pairs.rejected]


def _told(known: sparse.csr_matrix, asked: sparse.csr_matrix, nearest: int, pairs: Comparisons) -> np.ndarray:
    """float64 [P]: the neighbours' part of each pair's margin, but for the weight."""
    found = np.zeros(len(pairs.user))
    num_asked: int = asked.indptr.size - 1
    for first in range(0, num_asked, _BLOCK):
        similar: Any = asked[first : first + _BLOCK] @ known.T
        near = similar.toarray()
        if nearest < near.shape[1]:
            np.put_along_axis(near, np.argpartition(-near, nearest, axis=1)[:, nearest:], 0.0, axis=1)
        here = np.flatnonzero((pairs.user >= first) & (pairs.user < first + _BLOCK))
        summed: Any = sparse.csr_matrix(np.maximum(near, 0)) @ known
        told = summed.toarray()
        row = pairs.user[here] - first
        found[here] = told[row, pairs.chosen[here]] - told[row, pairs.rejected[here]]
    return found
