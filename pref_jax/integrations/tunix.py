"""Personal rewards for tunix's learners (GRPO, DAPO, GDPO, agentic), as a reward function or a file for its command.

    from pref_jax.integrations import tunix
    reward = tunix.reward_function("mine")
    GRPOLearner(rl_cluster=cluster, reward_fns=[reward], algo_config=config)

A column `user` of the data set reaches the function as every other column does. For the command put
`personal_reward = tunix.reward_function(...)` into a file named in `reward_functions`, with `verl_compatible: false`.

Source: tunix/rl/reward_manager.py (sequence-level) and tunix/cli/config.py as of August 2026.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pref_jax.errors import UserError
from pref_jax.integrations.groups import check_vector, in_groups
from pref_jax.integrations.rendered import as_messages, without_end
from pref_jax.integrations.scoring import as_prompt, named, new_scorer


def reward_function(
    source: Any,
    *,
    prompt_column: str = "",
    name: str = "personal_reward",
    group_size: int | None = None,
    **options: Any,
) -> Callable[..., list[float]]:
    """A `reward_fn(prompts, completions, **columns)` for tunix's reward manager.

    tunix has no place for further columns; `last` of the function is what it last returned, as
    `pref_jax.integrations.scoring.Scored` with the posterior standard deviations and who got the shared reward.

    With `vector` the rewards are those of normalise-then-sum with each user's own weights, as of `trl.reward_function`.

    Args:
      source: a model, the folder of a saved one, or a service's URL.
      prompt_column: the column that holds the prompt as text or chat messages; empty: it is read out of the prompts
        that the policy was given, which are rendered by its chat template.
      name: in metrics.
      group_size: with `vector`, completions of a prompt (`num_generations`); None: those of one prompt and user that
        follow one another.
      **options: of `pref_jax.integrations.scoring.Options`.

    Raises:
      UserError: for options that do not fit.

    Example:
      reward = reward_function("mine", reference="votes.jsonl", centre=True, scale=True)
    """
    scorer = new_scorer(source, options)
    check_vector(scorer.options)

    def reward_fn(prompts: Sequence[str], completions: Sequence[str], **kwargs: Any) -> list[float]:
        given = kwargs.get(prompt_column) if prompt_column else None
        if prompt_column and given is None:
            raise UserError(f"prompt_column: there is no column {prompt_column!r}, but {', '.join(kwargs) or 'none'}")
        asked = [as_messages(str(one)) for one in prompts] if given is None else [as_prompt(one) for one in given]
        users = kwargs.get(scorer.options.user_column)
        users = [None] * len(prompts) if users is None else list(users)
        scored = scorer(users, asked, [without_end(str(text)) for text in completions])
        vars(reward_fn)["last"] = scored
        return in_groups(scored, users, asked, group_size)

    return named(reward_fn, name, scorer)
