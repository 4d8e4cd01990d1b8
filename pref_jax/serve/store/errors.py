"""What a store raises: errors for people, never a database's own."""

from pref_jax.errors import UserError


class VoteConflictError(UserError):
    """An id that is taken: by another vote, or by a vote of somebody else. Nothing was stored."""


class StoreUnavailableError(UserError):
    """The database cannot answer now. Whatever was asked for is safe to ask again: votes are known by their ids.

    Attributes:
      reason: "gone", "silent", "locked", "full", "readonly", "damaged" or "failed".
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason
