"""A vendor's HTTP API, as one account calls it: where it is, how long it may take, what its status codes mean.

What is left for a vendor's own file is the vendor: how a message becomes its request, and its own tables of codes.

This room knows HTTP APIs in general; it knows no vendor, no retry policy and no project.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Final

import msgspec
from pydantic import AfterValidator
from yarl import URL

from tidings.model.messages import Deferred, Rejected, SendResult, Throttled, Uncertain
from tidings.model.words import Reason
from tidings.providers.http import HttpAnswer, TargetRefused, TransportFailure
from tidings.providers.port import ProviderSpec, Surroundings

READ_CAP: Final = 64 * 1024
"""Octets of an answer that are read: an API that confirms a message has no more to say."""
DETAIL_MAX: Final = 500
"""Characters of a vendor's words that are kept as evidence."""
RETRY_AFTER_MAX: Final = timedelta(days=1)

_PLAIN: Final = re.compile(r"http://(?P<host>\[[^\]]*\]|[^/:?#]+)(?::(?P<port>\d{1,5}))?(?=[/?#]|$)", re.IGNORECASE)


def parse_base_url(text: str) -> str:
    """The URL that an API's paths are put behind, without a slash at its end.

    Raises:
        ValueError: not http or https, no host, or with credentials, query or fragment.
    """
    try:
        url = URL(text.strip())
    except ValueError:
        raise ValueError("must be a URL such as https://api.example.com") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must start with https:// and a host")
    if url.raw_user is not None or url.raw_password is not None or url.raw_query_string or url.raw_fragment:
        raise ValueError("must have no credentials, query or fragment")
    return str(url).rstrip("/")


BaseUrl = Annotated[str, AfterValidator(parse_base_url)]
"""The field type of an API's base URL. A model that has one names it in `guards_secrets`."""


class VendorApi:
    """Calls one API. Many calls may be in flight; they share the connections of the process.

    Args:
        base_url: as :func:`parse_base_url` gave it. Without TLS only where an operator opened the network.
    """

    def __init__(self, base_url: str, surroundings: Surroundings, spec: ProviderSpec) -> None:
        self._base = base_url
        self._http = surroundings.http
        self._guard = surroundings.guard
        self._timeout = surroundings.time_for(spec)

    async def call(
        self,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        method: str = "POST",
        read_cap: int = READ_CAP,
    ) -> HttpAnswer:
        """Make one call.

        Raises:
            TransportFailure: no complete answer came; see `http.to_result`.
        """
        if self._base.startswith("http://"):
            found = _PLAIN.match(self._base)
            if found is None or not await self._guard.permits_plain(found["host"], int(found["port"] or 80)):
                raise TargetRefused("the API's URL has to start with https://")
        return await self._http.request(
            method, self._base + path, headers=headers, body=body, timeout=self._timeout, read_cap=read_cap
        )

    async def check(self, path: str, *, headers: Mapping[str, str], method: str = "GET") -> str | None:
        """What is wrong with the account, by a call that only reads: a sentence; None if the vendor knows us."""
        try:
            answer = await self.call(path, headers=headers, method=method)
        except TransportFailure as failure:
            return str(failure)
        return to_complaint(answer)


def to_complaint(answer: HttpAnswer) -> str | None:
    """What the answer to a call that only reads says is wrong with the account; None: nothing."""
    if 200 <= answer.status < 300:
        return None
    if answer.status in (401, 403):
        return f"the vendor does not accept the credentials (HTTP {answer.status})"
    if answer.status == 404 or 300 <= answer.status < 400:
        return f"the vendor does not know the account, or the URL is not that of its API (HTTP {answer.status})"
    return f"the vendor cannot say (HTTP {answer.status})"


def decide_by_status(answer: HttpAnswer, now: datetime, detail: str | None = None) -> SendResult:
    """What an answer outside of 2xx means, as far as its status says; vendors look at their own codes first.

    | status   | result                                                                       |
    |----------|------------------------------------------------------------------------------|
    | 401, 403 | Rejected(unauthorized): another account may do it                            |
    | 402      | Rejected(quota_exceeded)                                                     |
    | 408, 425 | Deferred(provider_error)                                                     |
    | 413      | Rejected(too_large)                                                          |
    | 429      | Throttled, for as long as `Retry-After` says                                 |
    | 404, 405 and 3xx | Rejected(unauthorized): the account's URL or domain is wrong         |
    | other 4xx | Rejected(rejected)                                                          |
    | 504      | Uncertain: what stands behind the gateway may have taken it                  |
    | 5xx, 1xx | Deferred(provider_error)                                                     |
    """
    status = answer.status
    said = f"HTTP {status}" + (f": {detail[:DETAIL_MAX]}" if detail else "")
    if status in (401, 403, 404, 405) or 300 <= status < 400:
        return Rejected(Reason.unauthorized, said)
    if status == 402:
        return Rejected(Reason.quota_exceeded, said)
    if status == 413:
        return Rejected(Reason.too_large, said)
    retry_after = parse_retry_after(answer.headers.get("Retry-After"), now)
    if status == 429:
        return Throttled(retry_after, said)
    if 400 <= status < 500 and status not in (408, 425):
        return Rejected(Reason.rejected, said)
    if status == 504:
        return Uncertain(said)
    return Deferred(Reason.provider_error, retry_after, said)


def parse_body(answer: HttpAnswer) -> Any:
    """The answer's JSON; None where it is none."""
    try:
        return msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def to_bad_answer(answer: HttpAnswer) -> Uncertain:
    """A success whose body cannot be understood: the vendor may have taken the message."""
    return Uncertain(f"HTTP {answer.status} with a body that is not the vendor's")


def parse_retry_after(value: str | None, now: datetime) -> timedelta | None:
    """How long `Retry-After` (RFC 9110, 10.2.3: seconds or a date) asks us to wait, at most a day; None if unusable."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(timedelta(seconds=int(value[:9])), RETRY_AFTER_MAX)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return min(max(at - now, timedelta()), RETRY_AFTER_MAX)
