"""Personal rewards for verl, as a custom reward function.

    # my_reward.py
    from pref_jax.integrations import verl
    compute_score = verl.reward_function("mine", asynchronous=True)

    reward.custom_reward_function.path=my_reward.py reward.custom_reward_function.name=compute_score

The parquet's `extra_info` names the user and holds the prompt: verl hands a custom function no prompt of its own.

    {"data_source": "mine", "prompt": [{"role": "user", "content": "How long?"}], "reward_model": {"ground_truth": ""},
     "extra_info": {"user": "ada", "prompt": [{"role": "user", "content": "How long?"}]}}

Source: verl/experimental/reward_loop/reward_manager (naive, dapo, gdpo, rate_limited, remote) and
verl/trainer/ppo/reward.py as of August 2026.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pref_jax.errors import UserError
from pref_jax.integrations.scoring import Scorer, as_prompt, named, new_scorer

# Under which names data sets keep a prompt in `extra_info`, beside `prompt_column`.
PROMPTS = ("raw_prompt", "question")


def reward_function(
    source: Any,
    *,
    prompt_column: str = "prompt",
    asynchronous: bool = False,
    name: str = "compute_score",
    **options: Any,
) -> Callable[..., Any]:
    """A `compute_score(data_source, solution_str, ground_truth, extra_info)` for verl's reward managers.

    It returns `score` and, as numbers that verl logs beside it, `shared` (1 for the reward of nobody in particular),
    `empty`, with `uncertainty` the `deviation`, and with `vector` the basis rewards `basis_0`, ... and the user's
    weights for them `weight_0`, .... For a policy of one user, `algorithm.adv_estimator=gdpo`,
    `algorithm.gdpo_reward_keys=[basis_0, ...]` and `algorithm.gdpo_reward_weights=` that user's weights are GDPO of
    their reward; verl has no weights that differ by row.

    verl calls it once for each answer, from many threads or coroutines; calls that wait for one another are scored in
    one batch. The manager `remote` needs `asynchronous=False` and a folder or URL, as it sends the function to workers.

    Args:
      source: a model, the folder of a saved one, or a service's URL.
      prompt_column: the field of `extra_info` that holds the prompt, a text or chat messages.
      asynchronous: an `async` function.
      name: under which it is found.
      **options: of `pref_jax.integrations.scoring.Options`.

    Raises:
      UserError: for options that do not fit.

    Example:
      compute_score = reward_function("http://localhost:8000", uncertainty=True)
    """
    scorer = new_scorer(source, options)

    def compute_score(
        data_source: Any = None,
        solution_str: str = "",
        ground_truth: Any = None,
        extra_info: Any = None,
        **kwargs: Any,
    ) -> dict[str, float]:
        return _score(scorer, solution_str, extra_info, prompt_column)

    async def compute_score_async(
        data_source: Any = None,
        solution_str: str = "",
        ground_truth: Any = None,
        extra_info: Any = None,
        **kwargs: Any,
    ) -> dict[str, float]:
        return await asyncio.to_thread(_score, scorer, solution_str, extra_info, prompt_column)

    return named(compute_score_async if asynchronous else compute_score, name, scorer)


def _score(scorer: Scorer, text: str, extra: Any, column: str) -> dict[str, float]:
    extra = extra if isinstance(extra, Mapping) else {}
    prompt = next((extra[name] for name in (column, *PROMPTS) if extra.get(name) is not None), None)
    if prompt is None:
        there = ", ".join(map(repr, extra)) or "nothing"
        raise UserError(
            f"extra_info: no prompt under {column!r}, there is {there}; write the prompt of each row into the "
            "parquet's extra_info, or name its field with prompt_column="
        )
    scored = scorer([extra.get(scorer.options.user_column)], [as_prompt(prompt)], [text])
    found = {"score": float(scored.reward[0]), "shared": float(scored.shared[0]), "empty": float(scored.empty[0])}
    if scorer.options.uncertainty:
        found["deviation"] = float(scored.deviation[0])
    if scored.components is not None:
        found |= {f"basis_{place}": float(one) for place, one in enumerate(scored.components.basis[0])}
        found |= {f"weight_{place}": float(one) for place, one in enumerate(scored.components.weights[0])}
    return found
