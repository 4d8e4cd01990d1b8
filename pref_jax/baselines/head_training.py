"""Personal heads at work: their candidates, their loss, and rewards for users met in training and not.

Axis letters: B pairs of a batch, P pairs, U users, N responses, M prompts, D features, n context pairs.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pref_jax.baselines.gpo import GPO
from pref_jax.baselines.heads import Head, Known, Params
from pref_jax.baselines.hyre import HyRe
from pref_jax.baselines.i2e import I2E
from pref_jax.baselines.mrm import MRM
from pref_jax.baselines.p_ttt import PTTT, PTTTSolved
from pref_jax.baselines.pal import PALA, PALB
from pref_jax.baselines.settings import BaselinesConfig
from pref_jax.baselines.spl import SPL
from pref_jax.baselines.vpl import VPL
from pref_jax.comparisons import Comparisons
from pref_jax.data.loaders.contexts import Context, contexts
from pref_jax.train.state import LossFn, Metrics

# Each method's candidates.
HEADS: dict[str, Callable[[BaselinesConfig], list[Head]]] = {
    "I2E": lambda c: [I2E(hidden=c.hidden, size=c.embedding, shrink=shrink) for shrink in c.shrink],
    "VPL": lambda c: [VPL(hidden=c.hidden, kl_weight=weight) for weight in c.kl_weights],
    "PAL-A": lambda c: [
        PALA(hidden=c.hidden, size=c.hidden, prototypes=k, shrink=s) for k in c.prototypes for s in c.shrink
    ],
    "PAL-B": lambda c: [
        PALB(hidden=c.hidden, size=c.hidden, prototypes=k, shrink=s) for k in c.prototypes for s in c.shrink
    ],
    "GPO": lambda c: [GPO(hidden=c.hidden, blocks=c.blocks)],
    "SPL": lambda c: [
        SPL(hidden=c.hidden, kl_weight=weight, mirror=mirror) for weight in c.kl_weights for mirror in c.mirror
    ],
    "MRM": lambda c: [MRM(hidden=c.hidden, basis=c.basis, inner_lr=lr) for lr in c.inner_lr],
    "HyRe": lambda c: [HyRe(hidden=c.hidden, heads=c.ensemble)],
    "P-TTT": lambda c: [PTTT(hidden=c.hidden)],
    "P-TTT (solved)": lambda c: [PTTTSolved(hidden=c.hidden)],
}
# Users or pairs whose states are gathered at a time.
BLOCK = 256
# Parameters that learn faster than the networks: what users own, PAL's prototypes and scale, what P-TTT and MRM say of
# all users in a few numbers.
FAST = ("table", "prototypes", "scale", "log_precision", "start")


class States(NamedTuple):
    """States of texts, all standardised alike.

    Attributes:
      features: [N D] from the frozen transformer, in which contexts are encoded.
      rated: [N D] those that rewards are of; `features` again where nothing is adapted.
      prompts: [M D] of the prompts alone, from the frozen transformer.
      prompt: int [N] the prompt of each response.
    """

    features: Float[Array, "N D"]
    rated: Float[Array, "N D"]
    prompts: Float[Array, "M D"]
    prompt: Int[Array, " N"]


def batch_loss(
    head: Head,
    params: Mapping[str, Any],
    frozen: Mapping[str, Any],
    batch: Mapping[str, Array],
    h: Float[Array, "B 2 D"],
    key: Array | None,
) -> tuple[Array, Metrics]:
    """Mean loss of a batch of pairs with their contexts, and metrics "accuracy", "margin", "penalty".

    Args:
      head: the head.
      params: its parameters.
      frozen: {"features": [N D], "prompts": [M D], "prompt": [N], "number": int [U], the table's row of each}.
      batch: as from `pref_jax.data.loaders.contexts`, with "row" [B], the chosen responses.
      h: states of the chosen and the rejected texts.
      key: for the noise of training.
    """
    features = frozen["features"]
    own = params["table"][frozen["number"][batch["user"]]] if "table" in params else None
    known = Known(own, features[batch["context_chosen"]], features[batch["context_rejected"]], batch["context_mask"])
    users, penalty = head.users(params, known, batch["progress"], key)
    margin = head.margins(params, h, users, frozen["prompts"][frozen["prompt"][batch["row"]]])
    metrics = {
        "accuracy": jnp.mean((margin > 0).astype(jnp.float32)),
        "margin": jnp.mean(margin),
        "penalty": jnp.mean(penalty),
    }
    return head.reduce(head.loss(margin)) + jnp.mean(penalty), metrics


def feature_loss(head: Head) -> LossFn:
    """`batch_loss` on frozen features alone, for `pref_jax.train`; batches as from `pref_jax.data.loaders.contexts`."""

    def loss(params, frozen, batch, key):
        features = frozen["features"]
        h = jnp.stack([features[batch["chosen"]], features[batch["rejected"]]], axis=1)
        return batch_loss(head, params, frozen, {**batch, "row": batch["chosen"]}, h, key)

    return loss


def seen_rows(seen: np.ndarray) -> np.ndarray:
    """int32 [U]: each seen user's row of a table that has rows for seen users alone; 0 for the others."""
    return np.where(seen, np.cumsum(seen) - 1, 0).astype(np.int32)


def user_representations(
    head: Head,
    params: Params,
    states: States,
    known: Comparisons,
    seen: np.ndarray,
    *,
    context: int,
    seed: int,
    unseen: bool = True,
) -> Any:
    """Representations of all users, leaves lead with U: seen ones' by their rows, others' by what they answered.

    Args:
      head: the head.
      params: trained.
      states: of all texts.
      known: answers that may be used of all users.
      seen: bool [U], who has a row in the table.
      context: n, the most answers of a user that are read.
      seed: which, where there are more.
      unseen: False where nobody asks for the others: they get some row of the table, which costs nothing.
    """
    own, answers = None, contexts(known, len(seen), context, seed)
    if "table" in params:
        own = params["table"][seen_rows(seen)]
        if unseen and not seen.all():
            rest = Context(*(column[~seen] for column in answers))
            own = own.at[np.flatnonzero(~seen)].set(_adapt(head, params, states, rest))
    return _represent(head, params, states, own, answers)


@functools.partial(jax.jit, static_argnums=0)
def _adapt(head: Head, params, states: States, answers):
    def one(row):
        chosen, rejected, mask = row
        h = jnp.stack([states.rated[chosen], states.rated[rejected]], axis=1)
        return _alone(head.adapt, params, h, states.prompts[states.prompt[chosen]], mask)

    return jax.lax.map(one, tuple(answers), batch_size=BLOCK)


@functools.partial(jax.jit, static_argnums=0)
def _represent(head: Head, params, states: States, own, answers):
    def one(row):
        own, chosen, rejected, mask = row
        known = Known(own, states.features[chosen], states.features[rejected], mask)
        return _alone(lambda params, known: head.users(params, known)[0], params, known)

    return jax.lax.map(one, (own, *answers), batch_size=BLOCK)


def pair_margins(head: Head, params: Params, states: States, users: Any, pairs: Comparisons) -> np.ndarray:
    """Margins float32 [P]; `users` from `user_representations`."""
    return np.asarray(_margins(head, params, states, users, pairs.user, pairs.chosen, pairs.rejected))


@functools.partial(jax.jit, static_argnums=0)
def _margins(head: Head, params, states: States, users, user, chosen, rejected):
    def one(row):
        u, c, r = row
        h = jnp.stack([states.rated[c], states.rated[r]])
        own = jax.tree.map(lambda leaf: leaf[u], users)
        return _alone(head.margins, params, h, own, states.prompts[states.prompt[c]])

    return jax.lax.map(one, (user, chosen, rejected), batch_size=BLOCK)


def _alone(function, params, *rows):
    """A function of rows for one row: without the leading axis, in and out."""
    found = function(params, *jax.tree.map(lambda leaf: leaf[None], rows))
    return jax.tree.map(lambda leaf: leaf[0], found)
