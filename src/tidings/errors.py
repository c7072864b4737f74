"""Every error that Tidings raises on purpose, as one tree.

    TidingsError
    ├── SettingsError               the configuration is wrong; the process does not start
    ├── DatabaseError
    │   ├── DatabaseUnsupported     server too old, foreign data folder, schema not migrated
    │   ├── DatabaseUnavailable     no connection to be had
    │   └── CommitUnknown           the connection broke during COMMIT: it may have happened or not
    ├── RenderError                 a template could not produce a message from this data
    ├── ProviderError               a provider was configured or used wrongly (never a vendor's answer)
    ├── TransportFailure            no complete answer came over the network (in providers/guard.py and http.py)
    └── Problem                     an answer to an API caller (RFC 9457), one subclass per `type`
        ├── Malformed 400   ├── Unauthenticated 401  ├── Forbidden 403   ├── NotFound 404
        ├── MethodNotAllowed 405  ├── Conflict 409   ├── IdempotencyBusy 409  ├── TooLarge 413
        ├── ConfirmationNeeded 409
        ├── UnsupportedMediaType 415  ├── Invalid 422  ├── IdempotencyMismatch 422
        ├── Internal 500    ├── Unavailable 503
        └── TooManyRequests 429
            ├── RateLimited  └── Runaway

The first line of an error's docstring is its default message. A Problem's `code` is stable and is the anchor of its
paragraph in docs/reference/errors.md.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec

ERRORS_TOLD: Final = 50
"""Things to mend that one answer lists. A small request can have very many, and they are longer than itself."""


class TidingsError(Exception):
    """Something in Tidings went wrong."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).default_message())

    @classmethod
    def default_message(cls) -> str:
        """The first line of the class's docstring."""
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0]


class SettingsError(TidingsError):
    """The configuration is not usable."""

    code = "settings"


class DatabaseError(TidingsError):
    """The database could not do what was asked."""

    code = "database"


class DatabaseUnsupported(DatabaseError):
    """This database cannot be used by this version of Tidings."""

    code = "database-unsupported"


class DatabaseUnavailable(DatabaseError):
    """The database cannot be reached."""

    code = "database-unavailable"


class CommitUnknown(DatabaseError):
    """The connection was lost during COMMIT; the transaction may have happened or not."""

    code = "commit-unknown"


class RenderError(TidingsError):
    """The template could not be rendered with this data."""

    code = "render"


class ProviderError(TidingsError):
    """The provider cannot be used this way."""

    code = "provider"


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing to mend: where (an RFC 6901 JSON pointer, or a parameter's name) and what."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


def escape(part: str | int) -> str:
    """A name as it stands in a JSON pointer (RFC 6901, section 3)."""
    return str(part).replace("~", "~0").replace("/", "~1")


class Problem(TidingsError):
    """The request could not be carried out."""

    code = "problem"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Problem"

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: list[FieldError] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail or self.default_message()
        self.errors = errors or []
        self.retry_after = retry_after
        """Seconds after which the caller may try again; becomes the `Retry-After` header."""

    def to_dict(self) -> dict[str, Any]:
        """The RFC 9457 problem details object."""
        body: dict[str, Any] = {
            "type": f"https://tidings.dev/errors#{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = [msgspec.to_builtins(e) for e in self.errors[:ERRORS_TOLD]]
            if (more := len(self.errors) - ERRORS_TOLD) > 0:
                body["errors"].append({"detail": f"and {more} more"})
        return body


class Malformed(Problem):
    """The request body is not valid JSON in UTF-8."""

    code, status, title = "malformed", 400, "Malformed request"


class Unauthenticated(Problem):
    """An API key is needed: send it as `Authorization: Bearer <key>`."""

    code, status, title = "unauthenticated", 401, "Not authenticated"


class Forbidden(Problem):
    """This API key may not do that."""

    code, status, title = "forbidden", 403, "Not allowed"


class NotFound(Problem):
    """There is no such thing in this project."""

    code, status, title = "not-found", 404, "Not found"


class MethodNotAllowed(Problem):
    """This path does not answer to this method."""

    code, status, title = "method-not-allowed", 405, "Method not allowed"


class Conflict(Problem):
    """The thing is not in a state that allows this."""

    code, status, title = "conflict", 409, "Conflict"


class IdempotencyBusy(Problem):
    """The first request with this idempotency key is still being worked on; repeat in a moment."""

    code, status, title = "idempotency-busy", 409, "Still in progress"


class ConfirmationNeeded(Problem):
    """This is for more users than may be told without a confirmation; repeat it with `confirm` set to their number."""

    code, status, title = "confirmation-needed", 409, "Confirmation needed"

    def __init__(self, count: int = 0, above: int = 0) -> None:
        said = f"This is for {count:,} users; above {above:,}, set `confirm` to their number ({count})."
        super().__init__(said if count else None)
        self.count = count

    def to_dict(self) -> dict[str, Any]:
        """With the number of users as `count`."""
        return {**super().to_dict(), "count": self.count}


class TooLarge(Problem):
    """The request is larger than allowed."""

    code, status, title = "too-large", 413, "Too large"


class UnsupportedMediaType(Problem):
    """Send JSON, with `Content-Type: application/json`."""

    code, status, title = "unsupported-media-type", 415, "Unsupported media type"


class Invalid(Problem):
    """The request cannot be accepted as it is."""

    code, status, title = "invalid", 422, "Invalid request"


class IdempotencyMismatch(Problem):
    """This idempotency key was used before with another request; use a new key for a new request."""

    code, status, title = "idempotency-mismatch", 422, "Idempotency key reused"


class TooManyRequests(Problem):
    """Too many requests; slow down."""

    code, status, title = "too-many-requests", 429, "Too many requests"


class RateLimited(TooManyRequests):
    """This API key has used up its requests of this minute."""

    code, status, title = "rate-limited", 429, "Rate limit reached"


class Runaway(TooManyRequests):
    """This looks like a loop gone wild: too many notifications of one type to one user in a minute."""

    code, status, title = "runaway", 429, "Runaway loop"


class Internal(Problem):
    """Something broke on our side; it has been logged. Repeating with the same idempotency key is safe."""

    code, status, title = "internal", 500, "Internal error"


class Unavailable(Problem):
    """The service cannot answer now; repeat the request with the same idempotency key."""

    code, status, title = "unavailable", 503, "Unavailable"
