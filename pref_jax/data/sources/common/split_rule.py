"""The rule that splits bring-your-own rows which name no split, and users who are not said to be seen or unseen.

Axis letters: P rows, U users, Q prompts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from pref_jax.data.splits import at_most, draw, hold_out

RULE = (
    "A given split or seen stays. Of the other users, the unseen fraction is drawn. Rows without a split: those on a "
    "prompt that given rows only test are test; of the prompts without any given split the test fraction is drawn, and "
    "a drawn prompt goes back to training where a user would keep no training pair; of the seen users' other rows the "
    "validation fraction is drawn, leaving each user one for training; the rest is train (context, for unseen users)."
)


class Assigned(NamedTuple):
    """What the rule made.

    Attributes:
      split: [P] words.
      seen: bool [U].
      counts: what was given and what was drawn, for meta.
    """

    split: np.ndarray
    seen: Bool[np.ndarray, "U"]
    counts: dict[str, int]


def assign_splits(
    user: Int[np.ndarray, "P"],
    prompt: Int[np.ndarray, "P"],
    split: Sequence[str | None],
    seen: Sequence[bool | None],
    fractions: dict[str, Any],
    rng: np.random.Generator,
) -> Assigned:
    """Fills in splits and seen flags by `RULE`.

    A user whose open rows all lie on prompts that given rows only test keeps no training pair; `build` reports that.

    Args:
      user: number of each row's user.
      prompt: number of each row's prompt.
      split: given word of each row, or None.
      seen: given flag of each user, or None.
      fractions: 'validation', 'test', 'unseen'.
      rng: of all draws.
    """
    words = np.array([word or "" for word in split], dtype="U10")
    is_open = words == ""
    flags = np.array([flag is not False for flag in seen])
    undecided = np.flatnonzero([flag is None for flag in seen])
    flags[undecided[draw(len(undecided), fractions["unseen"], rng)]] = False

    count = int(prompt.max(initial=-1)) + 1
    tested, trained = np.zeros(count, bool), np.zeros(count, bool)
    tested[prompt[words == "test"]] = True
    trained[prompt[~is_open & (words != "test")]] = True
    free = np.flatnonzero(~tested & ~trained)
    drawn = np.zeros(count, bool)
    drawn[free[draw(len(free), fractions["test"], rng)]] = True

    # Users left without any row to train on get one of their drawn prompts back.
    left = is_open & ~drawn[prompt] & ~(tested & ~trained)[prompt]
    fed = np.bincount(user[left | (words == "train")], minlength=len(flags)) > 0
    back = np.unique(prompt[at_most(user, is_open & drawn[prompt] & ~fed[user], 1, rng)])
    drawn[back] = False

    words[is_open & (drawn | (tested & ~trained))[prompt]] = "test"
    given_train = np.bincount(user[words == "train"], minlength=len(flags)) > 0
    rest = (words == "") & flags[user]
    # A user with a given training row can lend all open rows to validation; the others keep one.
    words[hold_out(user, rest, fractions["validation"], rng, keep=~given_train)] = "validation"
    words[words == ""] = "train"
    counts = {
        "rows_with_given_split": int((~is_open).sum()),
        "rows_assigned": int(is_open.sum()),
        "users_with_given_seen": len(flags) - len(undecided),
        "users_assigned": len(undecided),
        "prompts_drawn_for_test": int(drawn.sum()),
        "prompts_given_back_to_training": len(back),
        "prompts_in_test_and_training": int((tested & trained).sum()),
    }
    return Assigned(words, flags, counts)
