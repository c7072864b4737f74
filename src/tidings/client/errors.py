"""What a caller of the client can catch.

    TidingsClientError
    ├── TidingsConnectionError      no answer was to be had
    ├── BatchInterrupted            a long batch got only so far; its `results` tell how far
    └── TidingsAPIError             the API said no
        ├── Unauthenticated 401   ├── Forbidden 403      ├── NotFound 404
        ├── Conflict 409          └── IdempotencyBusy
        ├── Invalid 422           └── IdempotencyMismatch
        ├── RateLimited 429
        ├── RequestRefused        every other 4xx: malformed, too large, wrong content type
        └── ServerFailed 5xx      └── Unavailable 502, 503, 504

The message of each says what to mend. None of them holds the API key or the body that was sent.
"""

from __future__ import annotations

from typing import Final

from tidings.client.answers import Accepted, FieldError, Problem


class TidingsClientError(Exception):
    """The client could not do what was asked."""

    retryable: bool = False
    """The same request, with the same idempotency key, may succeed later."""
    retry_after: float | None = None
    """Seconds that the server asked to wait."""
    idempotency_key: str | None = None
    """The key that the failed request carried: repeat with it, and nothing is sent twice."""


class TidingsConnectionError(TidingsClientError):
    """No answer from the server. It may or may not have done what was asked."""

    retryable = True


class TidingsAPIError(TidingsClientError):
    """The API refused; the fields are those of its problem details (RFC 9457)."""

    def __init__(
        self, *, status: int, type: str, title: str, detail: str, errors: list[FieldError] | None = None
    ) -> None:
        self.status: Final = status
        self.type: Final = type
        self.title: Final = title
        self.detail: Final = detail
        self.errors: Final = errors or []
        lines = [f"{status} {title}: {detail}" if detail else f"{status} {title}"]
        lines += [f"  - {error}" for error in self.errors]
        super().__init__("\n".join(lines))

    @property
    def code(self) -> str:
        """The stable last part of `type`, such as `not-found`; every code has a paragraph in the error reference."""
        return self.type.rpartition("#")[2]


class RequestRefused(TidingsAPIError):
    """The request itself was not acceptable: malformed, too large, of the wrong kind."""


class Unauthenticated(TidingsAPIError):
    """The API key is missing, unknown, expired or revoked."""


class Forbidden(TidingsAPIError):
    """The API key lacks the scope."""


class NotFound(TidingsAPIError):
    """There is no such thing in the key's project."""


class Conflict(TidingsAPIError):
    """The thing is not in a state that allows this."""


class IdempotencyBusy(Conflict):
    """Another request with this idempotency key is still at work."""

    retryable = True


class Invalid(TidingsAPIError):
    """Fields of the request are wrong; `errors` points to each."""


class IdempotencyMismatch(Invalid):
    """The idempotency key was used before for another request."""


class RateLimited(TidingsAPIError):
    """Too many requests."""

    retryable = True


class ServerFailed(TidingsAPIError):
    """Something broke on the server's side."""


class Unavailable(ServerFailed):
    """The server, or something in front of it, cannot answer now."""

    retryable = True


class BatchInterrupted(TidingsClientError):
    """A batch of several requests failed in the middle; `__cause__` says why.

    `results` holds the outcome of the first items, in order. The items from `len(results)` on have no known outcome:
    repeat exactly those. Items that carry their own `idempotency_key` are not sent twice by that.
    """

    def __init__(self, results: list[Accepted | Problem], total: int, cause: TidingsClientError) -> None:
        self.results: Final = results
        self.retryable = cause.retryable
        self.retry_after = cause.retry_after
        super().__init__(f"{len(results)} of {total} items were answered, then: {cause}")


_BY_CODE: Final[dict[str, type[TidingsAPIError]]] = {
    "idempotency-busy": IdempotencyBusy,
    "idempotency-mismatch": IdempotencyMismatch,
}
_BY_STATUS: Final[dict[int, type[TidingsAPIError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: Invalid,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def to_error(problem: Problem) -> TidingsAPIError:
    """The exception for a problem."""
    kind = _BY_CODE.get(problem.code) or _BY_STATUS.get(problem.status)
    if kind is None:
        kind = ServerFailed if problem.status >= 500 else RequestRefused
    return kind(
        status=problem.status, type=problem.type, title=problem.title, detail=problem.detail, errors=problem.errors
    )
