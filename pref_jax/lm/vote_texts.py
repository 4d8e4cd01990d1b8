"""Votes as a transformer reads them: none on two texts that are the same to it, and errors that say whose they are."""

import numpy as np

from pref_jax.data.preferences import Preferences
from pref_jax.data.text.same_tokens import told, without_same_tokens
from pref_jax.data.text.tokenization import TextFaults
from pref_jax.errors import UserError
from pref_jax.lm.pair_batches import Texts, open_texts
from pref_jax.lm.text_model import TextModel
from pref_jax.progress import log


def open_votes(model: TextModel, votes: Preferences) -> tuple[Texts, Preferences]:
    """Tokenizes all responses, and leaves out votes on two texts that are the same tokens; says how many.

    Raises:
      UserError: for texts that cannot be read, naming responses and who voted on them; if all training votes are on
        equal tokens.
    """
    texts = open_vote_texts(model, votes)
    votes = without_same_tokens(votes, texts.tokens)
    if note := told(votes):
        log(f"  {note}")
    return texts, votes


def open_vote_texts(model: TextModel, votes: Preferences) -> Texts:
    """`open_texts` whose errors name responses and who voted on them.

    Raises:
      UserError: for texts that cannot be read.
    """
    try:
        return open_texts(model, votes.responses)
    except TextFaults as faults:
        raise UserError(faults.told(lambda row: _name(votes, row))) from None


def _name(votes: Preferences, row: int) -> str:
    """A response and who voted on it."""
    table = votes.comparisons
    on = (table["chosen"].to_numpy() == row) | (table["rejected"].to_numpy() == row)
    voters = [votes.users["user_id"][int(user)].as_py() for user in np.unique(table["user"].to_numpy()[on])]
    some = ", ".join(map(repr, voters[:3])) + (f" and {len(voters) - 3} more" if len(voters) > 3 else "")
    prompt = votes.responses["prompt"][row].as_py()[-1]["content"]
    return f"response {row} ({votes.responses['response_id'][row].as_py()!r}) to {prompt!r:.50}, voted on by {some}"
