"""Personal rewards for OpenRLHF, as a file for `--reward.remote_url`.

    # my_reward.py
    from pref_jax.integrations import openrlhf
    reward_func = openrlhf.reward_function("mine")

    --reward.remote_url my_reward.py --data.label_key user

Only the label can name the user: a user's id, or an object {"user": "ada", "prompt": messages}, which also spares
reading the prompt out of what the policy's template made of it. The service answers OpenRLHF's own requests as well:
`--reward.remote_url http://localhost:8000/get_reward`.

Source: openrlhf/utils/agent.py (SingleTurnAgentExecutor) of OpenRLHF 0.9 to 0.11. Errors of a reward function are
only logged there, and the reward stays empty.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pref_jax.errors import UserError
from pref_jax.integrations.rendered import answer_of, as_messages, without_end
from pref_jax.integrations.scoring import Scored, Scorer, as_prompt, named, new_scorer


def reward_function(
    source: Any, *, prompt_column: str = "prompt", tensors: bool = True, name: str = "reward_func", **options: Any
) -> Callable[..., dict[str, Any]]:
    """A `reward_func(queries, prompts, labels)` for OpenRLHF.

    A query is the prompt and the answer with the policy's special tokens; the answer is what follows the prompt. It
    returns `rewards`, `scores` for dynamic filtering, sigmoid(reward), in 0..1: with `centre` the probability that the
    answer is preferred to a middling one, and in `extra_logs` `shared` (1 for the reward of nobody in particular),
    `empty`, with `uncertainty` the `deviation`, with `vector` the basis rewards `basis_0`, ....

    OpenRLHF calls it with one answer at a time, from many threads; calls that wait for one another are scored in one
    batch.

    Args:
      source: a model, the folder of a saved one, or a service's URL.
      prompt_column: the field of a label that holds the prompt, where labels are objects.
      tensors: torch tensors in place of lists, as OpenRLHF wants them of a function; lists where torch is missing.
      name: under which it is found.
      **options: of `pref_jax.integrations.scoring.Options`; `user_column` is a field of labels that are objects.

    Raises:
      UserError: for options that do not fit.

    Example:
      reward_func = reward_function("mine", reference="votes.jsonl", centre=True, scale=True)
    """
    scorer = new_scorer(source, options)
    as_tensor = _tensor if tensors and importlib.util.find_spec("torch") is not None else np.ndarray.tolist

    def reward_func(
        queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        labels = [None] * len(queries) if labels is None else labels
        rows = [
            _row(scorer, prompt_column, *one, place)
            for place, one in enumerate(zip(queries, prompts, labels, strict=True))
        ]
        scored = scorer(*zip(*rows, strict=True)) if rows else scorer([], [], [])
        logs = {key: as_tensor(value) for key, value in _logs(scorer, scored).items()}
        # By tanh, which does not overflow.
        scores = 0.5 * (1 + np.tanh(scored.reward / 2))
        return {"rewards": as_tensor(scored.reward), "scores": as_tensor(scores), "extra_logs": logs}

    return named(reward_func, name, scorer)


def _row(scorer: Scorer, column: str, query: str, prompt: str, label: Any, place: int) -> tuple[Any, Any, str]:
    """User, prompt and answer."""
    fields = label if isinstance(label, Mapping) else {scorer.options.user_column: label}
    text = answer_of(query, prompt)
    if text is None:
        raise UserError(f"query {place}: does not begin with its prompt, so where the answer begins is not known")
    given = fields.get(column)
    return (
        fields.get(scorer.options.user_column),
        as_messages(prompt) if given is None else as_prompt(given),
        without_end(text),
    )


def _logs(scorer: Scorer, scored: Scored) -> dict[str, np.ndarray]:
    found = {"shared": scored.shared.astype(float), "empty": scored.empty.astype(float)}
    if scorer.options.uncertainty:
        found["deviation"] = scored.deviation
    if scored.components is not None:
        found |= {f"basis_{place}": one for place, one in enumerate(scored.components.basis.T)}
    return found


def _tensor(values: np.ndarray) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.float32)
