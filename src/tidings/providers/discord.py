"""Discord, by webhooks.

https://docs.discord.com/developers/resources/webhook#execute-webhook

The webhook's URL holds its own secret. It is the address (`discord:https://discord.com/api/webhooks/<id>/<token>`), or
the account's own one, which addresses call by the account's `name` (`discord:default`). We wait for the message to be
stored, so that the answer has its id; Discord tells nothing of it afterwards. Nobody is mentioned, whatever the text.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final

import msgspec
from pydantic import Field, SecretStr, field_validator

from tidings.model.messages import Chat, Deferred, Message, Rejected, SendResult, Sent, Throttled, split_scheme
from tidings.model.words import Channel, Reason
from tidings.providers.api import (
    RETRY_AFTER_MAX,
    BaseUrl,
    VendorApi,
    decide_by_status,
    parse_body,
    parse_retry_after,
    to_bad_answer,
)
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.port import Capability, Config, ProviderSpec, Surroundings, find_unsupported

TEXT_MAX: Final = 2_000
"""Characters of `content`."""
TITLE_MAX: Final = 256
URL_MAX: Final = 2_048
_NAME: Final = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
_WEBHOOK: Final = re.compile(
    r"https://(?:(?:ptb|canary)\.)?discord(?:app)?\.com/api(?:/v\d{1,2})?"
    r"(?P<path>/webhooks/\d{10,24}/[A-Za-z0-9_-]{10,200})(?:\?(?P<thread>thread_id=\d{10,24}))?"
)

_REASONS: Final = {
    # https://docs.discord.com/developers/topics/opcodes-and-status-codes#json-json-error-codes
    10003: Reason.gone,  # Unknown Channel
    10015: Reason.gone,  # Unknown Webhook
    50027: Reason.gone,  # Invalid webhook token
    40005: Reason.too_large,  # Request entity too large
    50006: Reason.content_rejected,  # Cannot send an empty message
    50035: Reason.content_rejected,  # Invalid form body
    50109: Reason.content_rejected,  # The request body contains invalid JSON
    200000: Reason.content_rejected,  # Message was blocked by automatic moderation
    200001: Reason.content_rejected,  # Title was blocked by automatic moderation
    220001: Reason.rejected,  # Webhooks posted to forum channels must have a thread_name or thread_id
    220003: Reason.rejected,  # Webhooks can only create threads in forum channels
}


class DiscordConfig(Config):
    """An account for Discord. Without a webhook of its own it serves addresses that are webhooks themselves."""

    webhook_url: SecretStr | None = None
    """`https://discord.com/api/webhooks/…`: where messages to the account's `name` go."""
    name: Annotated[str, Field(pattern=_NAME)] = "default"
    """What addresses call that webhook: `discord:default`."""
    base_url: BaseUrl = "https://discord.com/api"
    """Where Discord's API is, such as behind a proxy."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url"})

    @field_validator("webhook_url")
    @classmethod
    def _check_webhook_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _WEBHOOK.fullmatch(url.get_secret_value()):
            raise ValueError("must be a webhook of Discord: https://discord.com/api/webhooks/<id>/<token>")
        return url

    def serves(self, target: str) -> bool:
        """Webhooks as such, and its own by its name."""
        return target.startswith("https://") or (self.webhook_url is not None and target == self.name)


class DiscordProvider:
    """POSTs messages to webhooks."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="discord",
        channels=frozenset({Channel.chat}),
        config=DiscordConfig,
        capabilities=frozenset({Capability.heading, Capability.url, Capability.payload}),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=15),
        docs="https://docs.discord.com/developers/resources/webhook#execute-webhook",
        per_address=True,
        schemes=frozenset({"discord"}),
        verified_by="Discord's own OpenAPI description, and a stub with the documented answers",
    )

    def __init__(self, config: DiscordConfig, surroundings: Surroundings) -> None:
        self._config = config
        self._clock = surroundings.clock
        self._api = VendorApi(config.base_url, surroundings, self.spec)

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        assert isinstance(message.content, Chat)
        content = message.content
        if len(content.text) > TEXT_MAX or len(content.title or "") > TITLE_MAX or len(content.url or "") > URL_MAX:
            limits = f"{TEXT_MAX:,} characters of text, {TITLE_MAX} of title and {URL_MAX:,} of URL"
            return Rejected(Reason.too_large, f"Discord takes at most {limits}")
        target = split_scheme(message.to)[1]
        named = target == self._config.name and self._config.webhook_url is not None
        found = _WEBHOOK.fullmatch(
            self._config.webhook_url.get_secret_value() if named and self._config.webhook_url else target
        )
        if found is None:
            return Rejected(Reason.no_account, "the account has no webhook of this name")
        query = "?wait=true" + (f"&{found['thread']}" if found["thread"] else "")
        try:
            answer = await self._api.call(
                found["path"] + query,
                headers={"Content-Type": "application/json"},
                body=msgspec.json.encode(render_body(content)),
            )
        except TransportFailure as failure:
            return to_result(failure)
        return self._decide(answer, named=named)

    def _decide(self, answer: HttpAnswer, *, named: bool) -> SendResult:
        """What an answer means. A webhook that is the account's own, and gone, is the account's fault."""
        status, said = answer.status, parse_body(answer)
        if status == 204:
            return Sent()
        if 200 <= status < 300:
            id_ = said.get("id") if isinstance(said, dict) else None
            return Sent(id_) if isinstance(id_, str) and id_.isdigit() else to_bad_answer(answer)
        fields = said if isinstance(said, dict) else {}
        code = fields.get("code")
        words = f"{code}" if isinstance(code, int) else None
        now = self._clock.now()
        if status == 429:
            after = _parse_after(fields.get("retry_after")) or parse_retry_after(answer.headers.get("Retry-After"), now)
            # Each webhook has a pace of its own, unless it says that the limit is that of all.
            if named or fields.get("global") is True:
                return Throttled(after, "HTTP 429")
            return Deferred(Reason.throttled, after, "HTTP 429")
        if 400 <= status < 500 and isinstance(code, int) and (reason := _REASONS.get(code)) is not None:
            if reason is Reason.gone and named:
                reason = Reason.unauthorized
            return Rejected(reason, f"HTTP {status}: {code}")
        result = decide_by_status(answer, now, words)
        if isinstance(result, Rejected) and result.reason is Reason.unauthorized and not named:
            # Whatever it is, it is about this webhook and not about the account.
            return Rejected(Reason.rejected, result.detail)
        return result

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


def _parse_after(seconds: object) -> timedelta | None:
    """The answer's `retry_after`: seconds, with a fraction."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        return None
    return timedelta(seconds=min(float(seconds), RETRY_AFTER_MAX.total_seconds()))


def render_body(content: Chat) -> dict[str, Any]:
    """The request: the text, an embed for the heading, and the template's own fields over them. Mentions stay text,
    unless those fields say otherwise."""
    body: dict[str, Any] = {"content": content.text, "allowed_mentions": {"parse": []}}
    if content.title is not None or content.url is not None:
        embed = {"title": content.title or (content.url or "")[:TITLE_MAX]}
        if content.url is not None:
            embed["url"] = content.url
        body["embeds"] = [embed]
    if content.payload is not None:
        body |= msgspec.json.decode(content.payload, type=dict[str, Any])
    return body
