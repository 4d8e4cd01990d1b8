"""What the model knows of each user, kept equal to a function of the model as loaded and the user's stored votes.

A user is set back to what the loaded model knew, and given all votes in their order: the same to the bit whatever came
between. All of this runs in the model's thread.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pref_jax import saved
from pref_jax.errors import UserError
from pref_jax.locks import hold
from pref_jax.personal import PersonalReward, Question, Scores
from pref_jax.progress import log
from pref_jax.serve.faults import unknown_user
from pref_jax.serve.store.lines import as_line
from pref_jax.serve.store.records import TEACHING, StoredVote

# Seconds to wait for another process that changes the same folder.
SAVING = 10.0


@dataclasses.dataclass
class Applied:
    """A user whose votes the model was given.

    Attributes:
      revision: of the votes.
      snapshot: what the loaded model knew of the user.
      votes: how many there are of any kind.
      how: how the reward was found, in words.
    """

    revision: int
    snapshot: Any | None
    votes: int
    how: str


class Removal(NamedTuple):
    """What removing a user from the model came to: whether the loaded model knew them, and whether its folder now
    knows them no longer; if not, why not."""

    known: bool
    saved: bool
    why: str


class UserStates:
    """Users of a model in memory."""

    def __init__(self, model: PersonalReward, folder: Path | None):
        """Of a model as it was loaded from a folder; None: it lies nowhere."""
        self._model, self._folder = model, folder
        self._applied: dict[str, Applied] = {}
        self._stamp = _stamp(folder)
        self._facts = None if folder is None else _facts(folder)

    def applied(self, user: str) -> Applied | None:
        """What was last given to the model of a user; None: nothing, it is as loaded. Any thread may ask."""
        return self._applied.get(user)

    @property
    def folder_changed(self) -> bool:
        """Whether somebody has saved another model in the folder. Any thread may ask."""
        return _stamp(self._folder) != self._stamp

    def apply(
        self, user: str, revision: int, votes: Sequence[StoredVote], read: Callable[[pa.Table], np.ndarray] | None
    ) -> None:
        """Makes what the model knows of a user that of the loaded model and these votes."""
        before = self._applied.get(user)
        snapshot = self._model.snapshot_user(user) if before is None else before.snapshot
        self._model.restore_user(user, snapshot)
        rows = [as_line(user, vote) for vote in votes if vote.choice in TEACHING]
        how = "no vote teaches anything yet"
        if rows:
            try:
                how = self._model.add_votes(user, rows, read=read).how
            except UserError as error:
                # Ties alone, where the model reads none; votes on texts it does not take were left out before.
                self._model.restore_user(user, snapshot)
                how = f"the votes teach this model nothing ({type(error).__name__})"
        if votes or revision:
            self._applied[user] = Applied(revision, snapshot, len(votes), how)
        else:
            self._applied.pop(user, None)

    def known(self, user: str) -> bool:
        """Whether the user is known to the model, or has votes."""
        applied = self._applied.get(user)
        return self._model.knows(user) or (applied is not None and applied.votes > 0)

    def whose(self, user: str | None) -> str | None:
        """The user as the model knows them; None for one whose votes have taught it nothing.

        Raises:
          RefusedError: if the user is not known.
        """
        if user is None or self._model.knows(user):
            return user
        if not self.known(user):
            raise unknown_user()
        return None

    def rewards(self, users: Sequence[str | None], rows: Sequence[Any], *, uncertainty: bool) -> Scores:
        """Rewards of rows of `PersonalReward.read`."""
        who = [self.whose(user) for user in users]
        return self._model.rewards_of(who, np.stack(rows), uncertainty=uncertainty)

    def questions(self, user: str, first: Sequence[Any], second: Sequence[Any], count: int) -> list[Question] | None:
        """Pairs to ask, as `PersonalReward.select_pairs` selects them."""
        who = self.whose(user) if self.known(user) else None
        return self._model.select_pairs(who, np.stack(first), np.stack(second), count)

    def margins(self, user: str, first: Sequence[Any], second: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Of pairs [P] by how much the first is preferred: by the user, by nobody; and deviations of the former."""
        who, rows = self.whose(user), np.stack([*first, *second])
        own, everyone = (
            np.asarray(self._model.rewards_of([name] * len(rows), rows, uncertainty=False).mean, np.float64)
            for name in (who, None)
        )
        count = len(first)
        deviations = self._model.margin_deviations(who, rows[:count], rows[count:])
        return own[:count] - own[count:], everyone[:count] - everyone[count:], deviations

    def describe(self, user: str) -> dict[str, Any]:
        """What the model believes of a user; empty for one of whom it knows nothing."""
        who = self.whose(user)
        return {} if who is None else self._model.describe_user(who)

    # --- removal ---

    def remove(self, user: str) -> Removal:
        """Removes a user from memory, and from the folder if that knows them."""
        applied = self._applied.pop(user, None)
        if applied is not None:
            self._model.restore_user(user, applied.snapshot)
        if not self._model.knows(user):
            return Removal(known=False, saved=True, why="")
        self._as_loaded()
        try:
            self._model.remove_user(user)
        except UserError as error:
            return Removal(known=True, saved=False, why=str(error))
        return self._save()

    def sync(self) -> None:
        """Removes users who have gone from the folder, by another replica or by `pref remove-user`."""
        stamp = _stamp(self._folder)
        if self._folder is None or stamp is None or stamp == self._stamp:
            return
        self._stamp = stamp
        if _facts(self._folder) != self._facts:
            log(f"{self._folder}: holds another model now; start the service again to serve it")
            return
        left = saved.users(self._folder)
        gone = [user for user in self._loaded_users() if user not in left]
        if gone:
            self._as_loaded()
        for user in gone:
            self._model.remove_user(user)

    def _loaded_users(self) -> list[str]:
        new = {user for user, applied in self._applied.items() if applied.snapshot is None}
        return [user for user in self._model.users if user not in new]

    def _as_loaded(self) -> None:
        """Sets the model back to what was loaded; users are computed again when they are next asked for."""
        for user, applied in self._applied.items():
            self._model.restore_user(user, applied.snapshot)
        self._applied.clear()

    def _save(self) -> Removal:
        if self._folder is None:
            return Removal(known=True, saved=True, why="")
        try:
            with hold(self._folder, beside=True, wait=SAVING):
                self.sync()
                if _facts(self._folder) != self._facts:
                    fix = f"run pref remove-user {self._folder}"
                    return Removal(known=True, saved=False, why=f"the folder holds another model now; {fix}")
                self._model.save(self._folder)
                self._stamp = _stamp(self._folder)
        except (UserError, OSError) as error:
            return Removal(known=True, saved=False, why=str(error))
        return Removal(known=True, saved=True, why="")


def _stamp(folder: Path | None) -> tuple[int, int, int] | None:
    """By which another list of users is told from the one that was read."""
    try:
        found = os.stat(folder / saved.USERS) if folder is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)


def _facts(folder: Path) -> Any:
    """What a folder says of its model, users apart."""
    about = saved.about(folder)
    return {name: about[name] for name in ("kind", "base", "model")}
