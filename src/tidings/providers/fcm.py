"""Push messages by Firebase Cloud Messaging (HTTP v1): Android, and Apple devices and browsers through Firebase.

https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages/send

A service account's key signs an assertion (RFC 7523), for which Google gives an access token of an hour; the token is
shared by all sends and fetched anew before it ends, by one of them while the others wait. FCM gives no receipts: what
the device itself knows, it reports (docs/how-to/push-reports.md).

File order: configuration, the table of errors, the access token, the body, the provider.
This room knows Firebase and Google's tokens; it knows no account row and no retry policy.
"""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final
from urllib.parse import urlencode

import msgspec
from pydantic import SecretStr, field_validator

from tidings.clock import Clock
from tidings.model.messages import (
    Deferred,
    Message,
    Push,
    Rejected,
    SendResult,
    Sent,
    Throttled,
    Uncertain,
    split_scheme,
)
from tidings.model.words import Channel, Priority, Reason
from tidings.providers.api import (
    DETAIL_MAX,
    BaseUrl,
    VendorApi,
    decide_by_status,
    parse_base_url,
    parse_body,
    parse_retry_after,
    to_bad_answer,
)
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.jwt import parse_rsa_key, sign_jwt
from tidings.providers.port import Capability, Config, ProviderSpec, Surroundings, find_unsupported

_PAYLOAD_MAX: Final = 4_096  # octets of notification and data
_TTL_MAX: Final = timedelta(weeks=4)
_QUOTA_PAUSE: Final = timedelta(minutes=1)  # "at least", where no Retry-After says how long


class _ServiceAccount(msgspec.Struct):
    """What is needed of the JSON file that Google gives out for a service account's key."""

    project_id: str
    private_key_id: str
    private_key: str
    client_email: str
    token_uri: str = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address
    type: str = "service_account"


class FcmConfig(Config):
    """One Firebase project, by a service account that may send messages."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url"})

    service_account: SecretStr
    """The whole JSON file of a key: Firebase console, Project settings, Service accounts, Generate new private key."""
    base_url: BaseUrl = "https://fcm.googleapis.com"
    """Where messages are sent."""

    @field_validator("service_account")
    @classmethod
    def _check_service_account(cls, value: SecretStr) -> SecretStr:
        parse_service_account(value)
        return value


def parse_service_account(value: SecretStr) -> _ServiceAccount:
    """The fields of a service account's JSON.

    Raises:
        ValueError: it is none; the message does not contain it.
    """
    try:
        account = msgspec.json.decode(value.get_secret_value(), type=_ServiceAccount)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise ValueError("must be the JSON file of a service account's key, whole") from None
    if account.type != "service_account":
        raise ValueError("must be the key of a service account: its type says something else")
    try:
        parse_rsa_key(account.private_key)
    except ValueError as problem:
        raise ValueError(f"its private_key {problem}") from None
    if not account.project_id.replace("-", "").replace(":", "").replace(".", "").isalnum():
        raise ValueError("its project_id is not one")
    try:
        parse_base_url(account.token_uri)
    except ValueError as problem:
        raise ValueError(f"its token_uri {problem}") from None
    return account


# --- what an answer means ---------------------------------------------------------------------------------------------

# https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode, and beneath it the canonical statuses of Google's
# APIs (https://cloud.google.com/apis/design/errors#error_model), which an answer without an FCM code has alone.
_REJECTED: Final[dict[str, Reason]] = {
    "UNREGISTERED": Reason.gone,  # the only code that means "dead"
    # The token was made for another Firebase project: another account of ours may be the right one.
    "SENDER_ID_MISMATCH": Reason.blocked,
    # What Firebase needs for passing it on to Apple or a browser is wrong in its console.
    "THIRD_PARTY_AUTH_ERROR": Reason.unauthorized,
    "APNS_AUTH_ERROR": Reason.unauthorized,
    "UNAUTHENTICATED": Reason.unauthorized,
    "PERMISSION_DENIED": Reason.unauthorized,
    "NOT_FOUND": Reason.unauthorized,  # no such Firebase project: a token that is gone has the code UNREGISTERED
}
_DEFERRED: Final = frozenset({"UNAVAILABLE", "INTERNAL", "ABORTED", "CANCELLED", "UNKNOWN"})
_THROTTLED: Final = frozenset({"QUOTA_EXCEEDED", "RESOURCE_EXHAUSTED"})
_FCM_ERROR: Final = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_REQUEST: Final = "type.googleapis.com/google.rpc.BadRequest"


class FcmError(msgspec.Struct, frozen=True):
    """An error as the answer tells it; empty where it does not."""

    code: str = ""
    """FCM's own."""
    status: str = ""
    """The canonical one."""
    message: str = ""
    fields: tuple[str, ...] = ()
    """Which parts of the request are at fault."""


def parse_error(answer: HttpAnswer) -> FcmError:
    """What an answer outside of 2xx says; tolerates everything."""
    body = parse_body(answer)
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return FcmError()
    code, fields = "", []
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        match detail:
            case {"@type": kind, "errorCode": str(found)} if kind == _FCM_ERROR:
                code = found
            case {"@type": kind, "fieldViolations": list(violations)} if kind == _BAD_REQUEST:
                fields += [str(v.get("field", "")) for v in violations if isinstance(v, dict)]
    status, message = error.get("status"), error.get("message")
    return FcmError(
        code=code,
        status=status if isinstance(status, str) else "",
        message=message[:DETAIL_MAX] if isinstance(message, str) else "",
        fields=tuple(fields),
    )


def decide_result(answer: HttpAnswer, now: datetime) -> SendResult:
    """What FCM's answer means: by its code, else by its status, else by that of HTTP."""
    if 200 <= answer.status < 300:
        body = parse_body(answer)
        name = body.get("name") if isinstance(body, dict) else None
        return Sent(name) if isinstance(name, str) and name else to_bad_answer(answer)
    error = parse_error(answer)
    said = " ".join(filter(None, (f"HTTP {answer.status}", error.code or error.status, error.message)))[:DETAIL_MAX]
    retry_after = parse_retry_after(answer.headers.get("Retry-After"), now)
    for word in (error.code, error.status):
        if (reason := _REJECTED.get(word)) is not None:
            return Rejected(reason, said)
        if word in _DEFERRED:
            return Deferred(Reason.provider_error, retry_after, said)
        if word in _THROTTLED:
            return Throttled(retry_after or _QUOTA_PAUSE, said)
        if word == "INVALID_ARGUMENT":
            return Rejected(_decide_invalid(error), said)
    return decide_by_status(answer, now, error.message)


def _decide_invalid(error: FcmError) -> Reason:
    """Whose fault it is. Only what says that it is the token's may cost the user the address."""
    message = error.message.lower()
    if "message.token" in error.fields or "registration token" in message:
        return Reason.invalid_address
    if "too big" in message or "too large" in message:
        return Reason.too_large
    return Reason.rejected


# --- the access token -------------------------------------------------------------------------------------------------

_SCOPE: Final = "https://www.googleapis.com/auth/firebase.messaging"
_AUDIENCE: Final = "https://oauth2.googleapis.com/token"
_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_ASSERTION_TTL: Final = timedelta(hours=1)
_EARLY: Final = timedelta(minutes=5)
"""A token is replaced so long before it ends, or after nine tenths of a short life."""
_PASSING: Final = frozenset({"internal_failure", "server_error", "temporarily_unavailable"})


class _NoToken(Exception):
    """There is no access token; `result` is what that means for the message."""

    def __init__(self, result: SendResult) -> None:
        super().__init__()
        self.result = result


class AccessToken:
    """Google's access token for a service account (https://developers.google.com/identity/protocols/oauth2/service-account)."""

    def __init__(self, account: _ServiceAccount, api: VendorApi, clock: Clock) -> None:
        self._account = account
        self._key = parse_rsa_key(account.private_key)
        self._api = api
        self._clock = clock
        self._token: str | None = None
        self._fresh_until = datetime.min.replace(tzinfo=UTC)
        self._fetching: asyncio.Task[str] | None = None

    async def get(self, *, but_not: str | None = None) -> str:
        """The token.

        Args:
            but_not: one that FCM has just refused.

        Raises:
            _NoToken: Google gave none.
        """
        if self._token is not None and self._token != but_not and self._clock.now() < self._fresh_until:
            return self._token
        if (fetching := self._fetching) is None:
            fetching = self._fetching = asyncio.create_task(self._fetch())
            fetching.add_done_callback(_look_at)
        try:
            return await asyncio.shield(fetching)  # whoever gives up does not take it away from the others
        except asyncio.CancelledError:
            if fetching.cancelled():
                raise _NoToken(Deferred(Reason.connect_failed, detail="the account was closed")) from None
            raise

    async def _fetch(self) -> str:
        try:
            now = self._clock.now()
            form = urlencode({"grant_type": _GRANT, "assertion": self.render_assertion(now)})
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            try:
                answer = await self._api.call("", headers=headers, body=form.encode())
            except TransportFailure as failure:
                result = to_result(failure)
                if isinstance(result, Uncertain):  # about the token, not the message: nothing of that was sent
                    result = Deferred(Reason.connect_failed, detail=result.detail)
                raise _NoToken(result) from None
            self._token, ttl = parse_token(answer, now)
            self._fresh_until = now + max(ttl - _EARLY, ttl * 0.9)
            return self._token
        finally:
            self._fetching = None

    def render_assertion(self, now: datetime) -> str:
        """The signed claim that we are the service account."""
        issued_at = int(now.timestamp())
        claims = {
            "iss": self._account.client_email,
            "aud": _AUDIENCE,
            "scope": _SCOPE,
            "iat": issued_at,
            "exp": issued_at + int(_ASSERTION_TTL.total_seconds()),
        }
        return sign_jwt(self._key, claims, kid=self._account.private_key_id)

    async def close(self) -> None:
        if (fetching := self._fetching) is not None:
            fetching.cancel()
            await asyncio.wait([fetching])


def parse_token(answer: HttpAnswer, now: datetime) -> tuple[str, timedelta]:
    """The token that Google's answer holds, and how long it is good for.

    Raises:
        _NoToken: it holds none.
    """
    said = "no access token"
    match parse_body(answer):
        case {"access_token": str(token), "expires_in": int(seconds)} if answer.status == 200 and token.isprintable():
            return token, timedelta(seconds=max(0, min(seconds, 86_400)))
        case {"error": str(error), **rest}:
            said = f"no access token: {error}: {rest.get('error_description', '')}"[:DETAIL_MAX]
            if error in _PASSING:
                raise _NoToken(Deferred(Reason.provider_error, detail=said))
    if 200 <= answer.status < 300:
        raise _NoToken(Deferred(Reason.bad_answer, detail=f"{said}: the answer holds none"))
    result = decide_by_status(answer, now, said)
    if isinstance(result, Rejected):
        result = Rejected(Reason.unauthorized, result.detail)
    elif isinstance(result, Uncertain):  # about the token: nothing of the message was sent
        result = Deferred(Reason.provider_error, detail=result.detail)
    raise _NoToken(result)


def _look_at(fetching: asyncio.Task[str]) -> None:
    """Everybody who waited may have given up, and asyncio complains of a failure that nobody has seen."""
    if not fetching.cancelled():
        fetching.exception()


# --- the body ---------------------------------------------------------------------------------------------------------


def render_message(message: Message, push: Push, token: str, now: datetime) -> dict[str, Any]:
    """FCM's `Message`: what all platforms share, and a block for each with what it calls differently."""
    data = dict(push.data) | _without_none(
        tidings_url=push.url,
        tidings_actions=_render_actions(push) if push.actions else None,
        tidings_report=message.report_url,
    )
    body: dict[str, Any] = {"token": token}
    if not push.silent:
        shown = _without_none(title=push.title, body=push.body, image=push.image)
        if shown:
            body["notification"] = shown
    if data:
        body["data"] = data
    ttl = None if message.expires_at is None else min(max(message.expires_at - now, timedelta()), _TTL_MAX)
    body["android"] = _render_android(message, push, ttl)
    body["apns"] = _render_apns(message, push)
    body["webpush"] = _render_webpush(message, push, ttl)
    return body


def _render_actions(push: Push) -> str:
    return msgspec.json.encode([_without_none(**msgspec.to_builtins(action)) for action in push.actions]).decode()


def _render_android(message: Message, push: Push, ttl: timedelta | None) -> dict[str, Any]:
    urgent = message.priority <= (Priority.high if push.silent else Priority.medium)
    block = _without_none(
        priority="HIGH" if urgent else "NORMAL",
        ttl=None if ttl is None else f"{int(ttl.total_seconds())}s",
        collapseKey=push.collapse_key,
    )
    # The collapse key works while the device is out of reach; the tag replaces what it already shows.
    tag = None if push.silent else push.collapse_key
    if shown := _without_none(tag=tag, sound=push.sound, notificationCount=push.badge):
        block["notification"] = shown
    return block


def _render_apns(message: Message, push: Push) -> dict[str, Any]:
    headers = {
        "apns-push-type": "background" if push.silent else "alert",
        "apns-priority": "5" if push.silent or message.priority is Priority.low else "10",
    }
    if message.expires_at is not None:
        headers["apns-expiration"] = str(int(message.expires_at.timestamp()))
    if push.collapse_key is not None and push.collapse_key.isascii():
        headers["apns-collapse-id"] = push.collapse_key
    aps = _without_none(badge=push.badge, sound=push.sound)
    if push.silent:
        aps["content-available"] = 1
    elif push.image or push.actions or message.report_url:
        aps["mutable-content"] = 1
    block: dict[str, Any] = {"headers": headers}
    if aps:
        block["payload"] = {"aps": aps}
    if push.image is not None:
        block["fcmOptions"] = {"image": push.image}
    return block


def _render_webpush(message: Message, push: Push, ttl: timedelta | None) -> dict[str, Any]:
    urgency = "normal" if message.priority is Priority.medium else "low"
    headers = {"Urgency": "high" if message.priority <= Priority.high else urgency}
    if ttl is not None:
        headers["TTL"] = str(int(ttl.total_seconds()))
    block: dict[str, Any] = {"headers": headers}
    shown = _without_none(tag=None if push.silent else push.collapse_key)
    if push.actions:
        shown["actions"] = [{"action": action.id, "title": action.title} for action in push.actions]
    if shown:
        block["notification"] = shown
    if push.url is not None and push.url.startswith("https://"):  # FCM takes no other
        block["fcmOptions"] = {"link": push.url}
    return block


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


class FcmProvider:
    """Push messages through a Firebase project."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="fcm",
        channels=frozenset({Channel.push}),
        config=FcmConfig,
        capabilities=frozenset(
            {
                Capability.data,
                Capability.url,
                Capability.image,
                Capability.actions,
                Capability.badge,
                Capability.sound,
                Capability.collapse_key,
                Capability.silent,
            }
        ),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=15),
        docs="https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages/send",
        schemes=frozenset({"fcm"}),
        verified_by=(
            "Google's own description of the API (discovery document), answers of Firebase's Admin SDKs and those "
            "parts of their requests that Tidings has words for (few: 14 of 24 are listed), the token exchange of "
            "Google's auth library. Only Google can confirm that it takes the service account"
        ),
    )

    def __init__(self, config: FcmConfig, surroundings: Surroundings) -> None:
        account = parse_service_account(config.service_account)
        # The token comes first and is part of the same send, so it has a third of the time, and the message the rest.
        timeout = timedelta(seconds=surroundings.time_for(self.spec))
        to_token = dataclasses.replace(surroundings, timeout=timeout / 3)
        to_send = dataclasses.replace(surroundings, timeout=timeout * 2 / 3)
        token_api = VendorApi(parse_base_url(account.token_uri), to_token, self.spec)
        self._token = AccessToken(account, token_api, surroundings.clock)
        self._api = VendorApi(config.base_url, to_send, self.spec)
        self._path = f"/v1/projects/{account.project_id}/messages:send"
        self._clock = surroundings.clock
        self._timeout = timeout.total_seconds()

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        assert isinstance(message.content, Push)
        scheme, token = split_scheme(message.to)
        if scheme != "fcm" or not token:
            return Rejected(Reason.invalid_address, "not a registration token of FCM's")
        content = render_message(message, message.content, token, self._clock.now())
        size = sum(len(msgspec.json.encode(content.get(part, ""))) for part in ("notification", "data"))
        if size > _PAYLOAD_MAX:
            return Rejected(Reason.too_large, f"notification and data have {size} octets; FCM takes {_PAYLOAD_MAX}")
        body = msgspec.json.encode({"message": content})
        handed_over = False
        try:
            async with asyncio.timeout(self._timeout):
                access = await self._token.get()
                handed_over = True
                answer = await self._call(access, body)
                if answer.status == 401 and not parse_error(answer).code:
                    # Our token is not taken any more; with a code of FCM's it would be about other credentials.
                    handed_over = False
                    access = await self._token.get(but_not=access)
                    handed_over = True
                    answer = await self._call(access, body)
        except _NoToken as no:
            return no.result
        except TransportFailure as failure:
            return to_result(failure)
        except TimeoutError:
            detail = f"no answer within {self._timeout:g} s"
            return Uncertain(detail) if handed_over else Deferred(Reason.connect_failed, detail=detail)
        return decide_result(answer, self._clock.now())

    async def check(self) -> str | None:
        """Fetches an access token from Google; a token is not given for a key that was taken back."""
        try:
            await self._token.get()
        except _NoToken as no:
            return getattr(no.result, "detail", None) or "no access token"
        return None

    async def _call(self, access: str, body: bytes) -> HttpAnswer:
        headers = {"Authorization": f"Bearer {access}", "Content-Type": "application/json"}
        return await self._api.call(self._path, headers=headers, body=body)

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""
        await self._token.close()
