"""Personal rewards for TRL's GRPOTrainer and RLOOTrainer, and votes as TRL's data sets.

A data set of prompts with a column `user` is all that they need: TRL hands every column to the reward function.

    from trl import GRPOConfig, GRPOTrainer
    from pref_jax.integrations import trl

    trainer = GRPOTrainer("Qwen/Qwen3-0.6B", reward_funcs=trl.reward_function("mine"), train_dataset=trl.prompts(votes))

Source: trl/trainer/grpo_trainer.py of TRL 1.10 to 1.16.
"""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pref_jax.data.messages import as_chat
from pref_jax.data.schema import OUTCOMES, in_splits
from pref_jax.data.votes import as_preferences
from pref_jax.errors import UserError
from pref_jax.integrations.groups import check_vector, in_groups
from pref_jax.integrations.scoring import Scored, Scorer, dialogue, named, new_scorer
from pref_jax.progress import log

RewardFunction = Callable[..., Any]


def reward_function(
    source: Any,
    *,
    asynchronous: bool = False,
    name: str = "personal_reward",
    group_size: int | None = None,
    **options: Any,
) -> RewardFunction:
    """A reward function of TRL's signature, for `reward_funcs`.

    It logs "{name}/shared", the share of answers that got the reward of nobody in particular, "{name}/empty",
    "{name}/constant" (see `alarm`), and with `uncertainty` the mean "{name}/deviation" and a column of that name.

    With `vector` the rewards are those of normalise-then-sum (GDPO) with each user's own weights: every basis reward is
    normalised in its group of completions, then weighted and summed. `GRPOConfig(scale_rewards="batch")` makes of them
    what TRL's `multi_objective_aggregation="normalize_then_sum"` makes of K functions; that setting itself has one
    set of weights for all users, see `basis_functions`. Every process must have whole groups.

    Args:
      source: a model, the folder of a saved one, or a service's URL.
      asynchronous: an `async` function, which TRL runs beside its other ones.
      name: in logs.
      group_size: with `vector`, completions of a prompt (`num_generations`); None: those of one prompt and user that
        follow one another.
      **options: of `pref_jax.integrations.scoring.Options`.

    Raises:
      UserError: for options that do not fit.

    Example:
      reward = reward_function("mine", reference="votes.jsonl", centre=True, scale=True)
      GRPOTrainer(model, reward_funcs=reward, train_dataset=dataset)
    """
    scorer = new_scorer(source, options)
    check_vector(scorer.options)

    def score(prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[float]:
        scored, rows = _score(scorer, prompts, completions, columns)
        _tell(scorer, scored, name, columns)
        asked = [prompt for prompt, _ in rows]
        return in_groups(scored, _users(scorer, prompts, columns), asked, group_size)

    def reward_func(prompts: Any, completions: Any, completion_ids: Any = None, **columns: Any) -> list[float]:
        return score(prompts, completions, columns)

    async def reward_func_async(prompts: Any, completions: Any, completion_ids: Any = None, **columns: Any):
        return await asyncio.to_thread(score, prompts, completions, columns)

    return named(reward_func_async if asynchronous else reward_func, name, scorer)


def basis_functions(source: Any, user: str | None, **options: Any) -> tuple[list[RewardFunction], list[float]]:
    """K reward functions, one for each basis reward, and one user's weights for them: for a policy of one user.

    With `multi_objective_aggregation="normalize_then_sum"` this is GDPO of the user's reward, with "sum_then_normalize"
    GRPO of it. For a policy of several users, whose weights differ by row, take `reward_function(vector=True)`.

    Args:
      source: a model, or the folder of a saved one.
      user: whose weights; None: nobody's.
      **options: of `pref_jax.integrations.scoring.Options`; neither centre nor scale.

    Returns:
      Functions for `reward_funcs` and numbers for `GRPOConfig(reward_weights=...)`; a batch is read once for all.

    Raises:
      UserError: for unknown users, options that do not fit, or a method without basis rewards.

    Example:
      functions, weights = basis_functions("mine", "ada")
      config = GRPOConfig(reward_weights=weights, multi_objective_aggregation="normalize_then_sum")
      GRPOTrainer(model, reward_funcs=functions, args=config, train_dataset=dataset)
    """
    scorer = new_scorer(source, {"unknown": "error", **options, "vector": True})
    if scorer.options.centre or scorer.options.scale:
        raise UserError("basis_functions: centre and scale are of the whole reward; leave them out")
    probe = scorer([user], ["?"], ["!"]).components
    assert probe is not None
    weights = probe.weights[0].tolist()
    lock, kept = threading.Lock(), dict[str, Any]()

    def batch(prompts: Sequence[Any], completions: Sequence[Any]) -> Scored:
        with lock:
            key = (list(prompts), list(completions))
            if kept.get("key") != key:
                rows = [dialogue(*pair) for pair in zip(prompts, completions, strict=True)]
                scored = scorer([user] * len(rows), *zip(*rows, strict=True)) if rows else scorer([], [], [])
                kept.update(key=key, scored=scored)
            return kept["scored"]

    def function(place: int) -> RewardFunction:
        def reward_func(prompts: Any, completions: Any, completion_ids: Any = None, **columns: Any) -> list[float]:
            scored = batch(prompts, completions)
            if scored.components is None:
                return scored.reward.tolist()
            return scored.components.basis[:, place].tolist()

        return named(reward_func, f"basis_{place}", scorer)

    return [function(place) for place in range(len(weights))], weights


def _users(scorer: Scorer, prompts: Sequence[Any], columns: dict[str, Any]) -> list[Any]:
    users = columns.get(scorer.options.user_column)
    return [None] * len(prompts) if users is None else list(users)


def _score(
    scorer: Scorer, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]
) -> tuple[Scored, list[tuple[Any, str]]]:
    rows = [dialogue(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    users = _users(scorer, prompts, columns)
    return scorer(users, [prompt for prompt, _ in rows], [text for _, text in rows]), rows


def _tell(scorer: Scorer, scored: Scored, name: str, columns: dict[str, Any]) -> None:
    """Logs through TRL where it lends a hand."""
    count, metric, extra = len(scored.reward), columns.get("log_metric"), columns.get("log_extra")
    if metric is not None and count:
        metric(f"{name}/shared", float(scored.shared.mean()))
        metric(f"{name}/empty", float(scored.empty.mean()))
        metric(f"{name}/constant", float(scorer.alarm.raised))
        if scorer.options.uncertainty:
            metric(f"{name}/deviation", float(scored.deviation.mean()))
    if extra is not None and scorer.options.uncertainty:
        extra(f"{name}/deviation", scored.deviation.tolist())


def dataset(given: Any, *, split: str | tuple[str, ...] = ("train", "validation"), margin: bool = False) -> Any:
    """Votes as a TRL data set of preferences, for its RewardTrainer or DPOTrainer, with the user as a column.

    Args:
      given: votes in any form that `pref_jax.read_votes` takes.
      split: of which splits.
      margin: also a column `margin`, the strength of each vote; 0 where it has none.

    Returns:
      `datasets.Dataset` of user, prompt, chosen and rejected, the last three as lists of chat messages. What has no
      place in it is left out, and told: ties, pairs of which both are bad, skipped ones, ratings of single responses.

    Raises:
      UserError: for votes that cannot be read, or if there is no preference among them.

    Example:
      >>> rows = [{"user": "ada", "prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No."}]
      >>> dataset(rows)[0]["chosen"]
      [{'role': 'assistant', 'content': 'Blue.'}]
    """
    import datasets

    tables = as_preferences(given)
    pairs = tables.pairs(split)
    users, responses = tables.users["user_id"].to_pylist(), tables.responses.to_pylist()
    splits = (split,) if isinstance(split, str) else split
    here = tables.comparisons.filter(in_splits(tables.comparisons["split"], splits))
    if left := here.num_rows - len(pairs.user):
        log(f"dataset: {left} votes are no preferences ({', '.join(OUTCOMES[1:])}), which TRL has no place for")
    if not len(pairs.user):
        raise UserError("dataset: no preference in these votes and splits; give votes with chosen and rejected")
    rows = [
        {
            "user": users[user],
            "prompt": as_chat(responses[chosen]["prompt"]),
            "chosen": as_chat([_answer(responses[chosen])]),
            "rejected": as_chat([_answer(responses[rejected])]),
        }
        for user, chosen, rejected in zip(pairs.user, pairs.chosen, pairs.rejected, strict=True)
    ]
    if margin:
        strength = np.zeros(len(rows)) if pairs.strength is None else np.nan_to_num(pairs.strength)
        rows = [{**row, "margin": float(value)} for row, value in zip(rows, strength, strict=True)]
    return datasets.Dataset.from_list(rows)


def votes(rows: Iterable[Mapping[str, Any]], *, user: str = "") -> list[dict[str, Any]]:
    """Rows of a TRL data set of preferences as votes, for `pref_jax.read_votes`.

    That reads most such sets as they are, if they have a column `user`. This gives what may be missing: a user, and of
    plain texts without a prompt the prompt, which is their common beginning, up to a space.

    Args:
      rows: a `datasets.Dataset`, or dicts.
      user: whose votes rows without a user are; empty: they stay without one, which `read_votes` reports.

    Example:
      >>> votes([{"chosen": "The sky is blue.", "rejected": "The sky is green."}], user="ada")
      [{'user': 'ada', 'prompt': 'The sky is', 'chosen': ' blue.', 'rejected': ' green.'}]
    """
    found = []
    for given in rows:
        row = {**({"user": user} if user else {}), **given}
        chosen, rejected = row.get("chosen"), row.get("rejected")
        if row.get("prompt") is None and isinstance(chosen, str) and isinstance(rejected, str):
            equal = (one == other for one, other in zip(chosen, rejected, strict=False))
            end = chosen.rfind(" ", 0, sum(itertools.takewhile(bool, equal)))
            if end > 0:
                own = {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}
                row = {**{name: value for name, value in row.items() if name not in own}, **own}
        found.append(row)
    return found


def _answer(response: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": response["text"], "extra": response["extra"]}


def prompts(given: Any, users: Sequence[str] | None = None) -> Any:
    """Distinct prompts of votes (`given`) for GRPOTrainer, each for those who voted on it, or for all of `users`.

    Returns:
      `datasets.Dataset` of prompt (chat messages) and user, in order of appearance.

    Raises:
      UserError: for votes that cannot be read.

    Example:
      >>> rows = [{"user": "ada", "prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No."}]
      >>> prompts(rows, ["ada", "bo"])["user"][:]
      ['ada', 'bo']
    """
    import datasets

    tables = as_preferences(given)
    ids, texts = tables.users["user_id"].to_pylist(), tables.responses["prompt"].to_pylist()
    pairs = tables.comparisons.to_pylist()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in pairs:
        prompt = texts[pair["chosen"]]
        for user in [ids[pair["user"]]] if users is None else users:
            found.setdefault((repr(prompt), user), {"prompt": as_chat(prompt), "user": user})
    return datasets.Dataset.from_list(list(found.values()))
