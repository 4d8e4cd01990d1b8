"""Users with votes of every kind, and what they lose by the definitions, in NumPy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from lore_jax.comparisons import make_table
from lore_jax.fitting.reading import row_arguments
from lore_jax.ratings import PRECISION
from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.likelihood import Scale

USERS, RESPONSES, BASIS = 40, 30, 3
# As the tables hold it.
LAMBDA = float(np.float32(PRECISION))
SCALE = Scale(ties=True, edges=(2.0, 3.0))
GAPS, LOG_SCALE = np.array([0.2, -0.5, 0.4]), np.float64(0.3)


class Crowd:
    """Users with votes of every kind, and of each degenerate sort: none, ties alone, one rating, contradictions .."""

    def __init__(self, seed=0, ranked=True, rated=True):
        self.rng = rng = np.random.default_rng(seed)
        self.rewards = rng.normal(size=(RESPONSES + 1, BASIS)) * 1.5
        self.rewards[RESPONSES] = 0
        self.rewards[:3] *= 1e3
        user, chosen, rejected, tie, strength, choice, rating = [], [], [], [], [], [], []
        for u in range(USERS):
            kind = u % 8
            for v in range({0: 0, 2: 0}.get(kind, int(rng.integers(1, 7)))):
                a, b = rng.choice(np.arange(3 * (kind != 7), RESPONSES), 2, replace=False)
                both = [(a, b), (b, a)] if kind == 3 else [(a, b)]
                for one, other in both:
                    user.append(u)
                    chosen.append(one)
                    rejected.append(other)
                    tie.append(kind == 1 or rng.random() < 0.3)
                    strength.append(np.nan if tie[-1] else rng.choice([1, 2, 3, np.nan]))
                    choice.append(-1)
                if ranked and kind in (4, 5, 7) and v < 2:
                    some = rng.choice(np.arange(3 * (kind != 7), RESPONSES), 4, replace=False)
                    for other in some[1:]:
                        user.append(u)
                        chosen.append(some[0])
                        rejected.append(other)
                        tie.append(False)
                        strength.append(np.nan)
                        choice.append(100 * u + v)
            for _ in range({2: 1, 4: 3, 6: 2}.get(kind, 0) if rated else 0):
                rating.append((u, rng.integers(RESPONSES), rng.normal() * 2))
        order = rng.permutation(len(user))
        columns = (np.array(x)[order] for x in (user, chosen, rejected))
        self.votes = Comparisons(
            *columns,
            tie=np.array(tie)[order],
            strength=np.array(strength, np.float32)[order],
            choice=np.array(choice)[order] if ranked else None,
        )
        parts = np.array(rating or [(0, 0, 0)])[: len(rating)]
        self.ratings = Ratings(parts[:, 0].astype(int), parts[:, 1].astype(int), parts[:, 2].astype(np.float32))
        both = (self.ratings, None) if rated else None
        self.table = make_table(self.votes, None, USERS, RESPONSES, scale=SCALE, ratings=both)
        self.z = self.rewards[np.asarray(self.table.chosen)] - self.rewards[np.asarray(self.table.rejected)]

    def rows(self, gaps=GAPS):
        """Keyword arguments of the solvers; within `enable_x64`."""
        scales = {"gaps": jnp.asarray(gaps), "log_scale": jnp.asarray(LOG_SCALE)}
        rows = row_arguments(self.table.extras, self.table.train, scales, self.table.owner)
        return {"z": jnp.asarray(self.z), **rows}

    def losses(self, user, margin_of, ends, log_scale: Any = LOG_SCALE):
        """-log likelihood of a user's votes, from the definitions; `margin_of` maps (response, response) to margins."""
        ends, total = np.concatenate([ends, [np.inf]]), 0.0
        mine = self.votes.take(self.votes.user == user)
        choice = np.full(len(mine.user), -1) if mine.choice is None else mine.choice
        for c, r, tie, s, own in zip(mine.chosen, mine.rejected, mine.tie, mine.strength, choice, strict=True):
            m = margin_of(c, r)
            level = np.searchsorted(SCALE.edges, s, side="right") if np.isfinite(s) else 0
            low, high = (-ends[0], ends[0]) if tie else (ends[level], ends[level + 1] if np.isfinite(s) else np.inf)
            if own < 0:
                total += np.logaddexp(0, low - m) + np.logaddexp(0, m - high) - np.log(-np.expm1(low - high))
        for number in np.unique(choice[choice >= 0]):
            rows = mine.take(choice == number)
            margins = np.stack([margin_of(c, r) for c, r in zip(rows.chosen, rows.rejected, strict=True)])
            odds: Any = logsumexp(np.concatenate([np.zeros_like(margins[:1]), -margins]), axis=0)
            total += odds
        known = self.ratings.user == user
        for response, rating in zip(self.ratings.response[known], self.ratings.rating[known], strict=True):
            total += 0.5 * LAMBDA * (np.exp(log_scale) * float(rating) - margin_of(response, RESPONSES)) ** 2
        return total

    def energy(self, user, ends, mean, precision):
        """The objective of one user's weights."""

        def value(w):
            gap = w - mean
            loss = self.losses(user, lambda c, r: (self.rewards[c] - self.rewards[r]) @ w, ends)
            return loss + 0.5 * gap @ precision @ gap

        return value
