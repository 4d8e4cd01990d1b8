"""What a service refuses, as an answer: one shape for all routes, that of OpenAI's and vLLM's errors."""

from pref_jax.errors import UserError
from pref_jax.serve.store.errors import StoreUnavailableError, VoteConflictError

# The word of each status in answers.
KINDS = {
    400: "invalid_request",
    401: "no_key",
    403: "not_allowed",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    409: "conflict",
    413: "too_large",
    415: "invalid_request",
    421: "wrong_host",
    422: "invalid_request",
    429: "too_many",
    500: "internal",
    503: "unavailable",
}


class RefusedError(Exception):
    """A request that is not answered as asked.

    Attributes:
      status: of HTTP.
      message: for people; never a text of anybody else.
      where: the field at fault, if one is.
      retry: seconds after which to try again, if that helps.
      allow: the methods that the route has, with 405.
    """

    def __init__(
        self, status: int, message: str, *, where: str | None = None, retry: float | None = None, allow: str = ""
    ):
        super().__init__(message)
        self.status, self.message, self.where, self.retry, self.allow = status, message, where, retry, allow

    def body(self) -> dict[str, object]:
        """The answer."""
        kind = KINDS.get(self.status, "invalid_request")
        return {"error": {"message": self.message, "type": kind, "param": self.where, "code": self.status}}

    def headers(self) -> dict[str, str]:
        """Of the answer."""
        retry = {} if self.retry is None else {"retry-after": str(max(1, round(self.retry)))}
        challenge = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return retry | challenge | ({"allow": self.allow} if self.allow else {})


def unknown_user() -> RefusedError:
    """The same whether there is no such user or the key is not theirs."""
    return RefusedError(404, "no such user; send votes first, or score with user null", where="user")


def refusal(error: Exception) -> RefusedError | None:
    """The answer to an error that the request or the database is at fault for; None for faults of our own."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, StoreUnavailableError):
        return RefusedError(
            503, f"the store cannot answer ({error.reason}); it is safe to send the same again", retry=1.0
        )
    if isinstance(error, VoteConflictError):
        return RefusedError(409, str(error), where="id")
    return RefusedError(422, str(error)) if isinstance(error, UserError) else None
