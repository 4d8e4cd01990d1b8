"""States of the two texts of a pair, from a row for each text or from one row that they share.

Axes: B pairs, L length, D features, S soft tokens.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from pref_jax.errors import UserError
from pref_jax.graded import Gaps, Graded, losses_by_gaps
from pref_jax.lm import attention, backbone, lora
from pref_jax.lm.backbone import ApplyAdapter, Params
from pref_jax.lm.config import LMConfig


def pair_states(
    config: LMConfig,
    params: Params,
    batch: Mapping[str, Array],
    adapters: Mapping[str, Any] | None = None,
    apply_adapter: ApplyAdapter = lora.apply,
    *,
    remat: str = "none",
    soft: Float[Array, "B S D"] | None = None,
) -> Float[Array, "B 2 D"]:
    """Pooled float32 states of the chosen and of the rejected text of each pair.

    Args:
      config: the transformer.
      params: its parameters.
      batch: {"chosen": int32 [B L], "chosen_mask": bool [B L], "rejected", "rejected_mask"}; or, for decoders,
        {"tokens": int32 [B L], "parts": int32 [B L]} with rows that both texts of a pair share, as from
        `pref_jax.data.text.shared_prefix`. Both give the same. Other entries are not read.
      adapters: as for `backbone.hidden_states`. What is bound to rows is bound to B of them if the texts share rows,
        else to 2B, those of chosen and rejected in turn.
      apply_adapter: as there.
      remat: as there.
      soft: embeddings that both texts of each pair begin with, before their own tokens.

    Raises:
      UserError: if the transformer is an encoder and the texts of a pair share a row.
    """
    if "parts" in batch:
        if not config.shares_prefix:
            raise UserError(
                f"reward: a {config.family} model reads a prompt otherwise under each answer, so the texts of a pair "
                "cannot share a row; give each a row of its own (share_prefix=False in its section of the config)"
            )
        tokens, parts = soften(batch["tokens"], batch["parts"], soft)
        rows = attention.branches(parts)
        hidden = backbone.hidden_states(config, params, tokens, rows, adapters, apply_adapter, remat=remat, soft=soft)
        return backbone.pool(config, hidden, rows, 2)
    # Chosen and rejected of a pair lie next to each other: however B is cut over devices, no row has to move.
    tokens = _interleave(batch["chosen"], batch["rejected"])
    mask = _interleave(batch["chosen_mask"], batch["rejected_mask"])
    if soft is not None:
        soft = _interleave(soft, soft)
    tokens, mask = soften(tokens, mask, soft)
    hidden = backbone.hidden_states(config, params, tokens, mask, adapters, apply_adapter, remat=remat, soft=soft)
    return backbone.pool(config, hidden, mask).reshape(-1, 2, config.hidden_size)


def text_states(
    config: LMConfig,
    params: Params,
    tokens: Int[Array, "B L"],
    mask: Shaped[Array, "B L"],
    adapters: Mapping[str, Any] | None = None,
    apply_adapter: ApplyAdapter = lora.apply,
    *,
    remat: str = "none",
    soft: Float[Array, "B S D"] | None = None,
) -> Float[Array, "B D"]:
    """Pooled float32 state of each text; arguments as for `pair_states` and `backbone.hidden_states`."""
    tokens, mask = soften(tokens, mask, soft)
    hidden = backbone.hidden_states(config, params, tokens, mask, adapters, apply_adapter, remat=remat, soft=soft)
    return backbone.pool(config, hidden, mask)


def pairwise_loss(
    scores: Float[Array, "B 2"], batch: Mapping[str, Array] | None = None, gaps: Gaps | None = None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Bradley-Terry: mean of -log sigmoid(chosen - rejected) of rewards of both texts; "accuracy" and "margin".

    Args:
      scores: rewards of chosen and rejected.
      batch: where it has the fields of `pref_jax.graded.Graded`, the loss is the mean of that module's, and the metrics
        are means over decided votes, 0 without one.
      gaps: trainable thresholds, as from `pref_jax.graded.begin_gaps`.
    """
    margin = scores[:, 0] - scores[:, 1]
    if batch is not None and "lower" in batch:
        graded = Graded(*(batch[name] for name in Graded._fields))
        decided = graded.decided.astype(jnp.float32)
        share = decided / jnp.maximum(jnp.sum(decided), 1)
        metrics = {"accuracy": jnp.sum(share * (margin > 0)), "margin": jnp.sum(share * margin)}
        return jnp.mean(losses_by_gaps(margin, graded, gaps or {})), metrics
    metrics = {"accuracy": jnp.mean((margin > 0).astype(jnp.float32)), "margin": jnp.mean(margin)}
    return -jnp.mean(jax.nn.log_sigmoid(margin)), metrics


def init_head(config: LMConfig, base: Mapping[str, Any] | None, key: Key[Array, ""]) -> dict[str, Float[Array, "..."]]:
    """A linear reward head {"w": [D], "b": []}, float32: the base's own `score` if that reads what is pooled here, else
    N(0, 0.02²).
    """
    if base is not None and config.num_labels == 1 and config.reads_score:
        score = base["score"]
        bias = jnp.asarray(score["bias"][0], jnp.float32) if "bias" in score else jnp.zeros(())
        return {"w": jnp.asarray(score["kernel"][:, 0], jnp.float32), "b": bias}
    return {"w": 0.02 * jax.random.normal(key, (config.hidden_size,)), "b": jnp.zeros(())}


def apply_head(head: Mapping[str, Array], states: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
    """The head's reward of each state."""
    return states @ head["w"] + head["b"]


def soften(
    tokens: Int[Array, "B L"], where: Shaped[Array, "B L"], soft: Float[Array, "B S D"] | None
) -> tuple[Int[Array, "B LS"], Shaped[Array, "B LS"]]:
    """Rows with room for `soft` before their own tokens, which must not be padded on the left.

    Args:
      tokens: ids.
      where: bool, True at real tokens; or the parts of shared rows, whose trunk grows.
      soft: embeddings; None leaves the rows as they are.
    """
    if soft is None:
        return tokens, where
    room = ((0, 0), (soft.shape[1], 0))
    return jnp.pad(tokens, room), jnp.pad(where, room, constant_values=1)


def _interleave(first: Array, second: Array) -> Array:
    """[B ...] twice -> [2B ...], rows in turn."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])
