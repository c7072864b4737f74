"""Slack, by incoming webhooks.

https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks/

The webhook's URL holds its own secret. It is the address (`slack:https://hooks.slack.com/services/…`), or the account's
own one, which addresses call by the account's `name` (`slack:default`). Slack tells nothing of a message once it has
taken it, and does not give it an id.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar, Final
from urllib.parse import urlsplit

import msgspec
from pydantic import Field, SecretStr, field_validator

from tidings.model.messages import Chat, Deferred, Message, Rejected, SendResult, Sent, Throttled, split_scheme
from tidings.model.words import Channel, Reason
from tidings.providers.api import BaseUrl, VendorApi, decide_by_status, parse_retry_after, to_bad_answer
from tidings.providers.http import HttpAnswer, TransportFailure, to_result
from tidings.providers.port import Capability, Config, ProviderSpec, Surroundings, find_unsupported

HOSTS: Final = ("hooks.slack.com", "hooks.slack-gov.com")
TEXT_MAX: Final = 40_000
"""Characters; Slack cuts off what is longer. https://docs.slack.dev/reference/methods/chat.postMessage/#truncating"""
_NAME: Final = r"^[a-z0-9][a-z0-9_.-]{0,63}$"

_REASONS: Final = {
    # What the answer's body says. https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks/#handling_errors
    "invalid_payload": Reason.content_rejected,
    "no_text": Reason.content_rejected,
    "too_many_attachments": Reason.content_rejected,
    "invalid_blocks": Reason.content_rejected,
    "invalid_attachments": Reason.content_rejected,
    "msg_too_long": Reason.too_large,
    "user_not_found": Reason.gone,
    "channel_not_found": Reason.gone,
    "no_service": Reason.gone,  # the webhook was revoked, or its app uninstalled
    "no_service_id": Reason.gone,
    "no_active_hooks": Reason.gone,
    "no_team": Reason.gone,
    "team_disabled": Reason.gone,
    "invalid_token": Reason.gone,
    "channel_is_archived": Reason.rejected,  # somebody may open it again
    "action_prohibited": Reason.rejected,  # an administrator forbids it
    "posting_to_general_channel_denied": Reason.rejected,
}


class SlackConfig(Config):
    """An account for Slack. Without a webhook of its own it serves addresses that are webhooks themselves."""

    webhook_url: SecretStr | None = None
    """`https://hooks.slack.com/services/…`: where messages to the account's `name` go."""
    name: Annotated[str, Field(pattern=_NAME)] = "default"
    """What addresses call that webhook: `slack:default`."""
    base_url: BaseUrl | None = None
    """Called in the place of Slack's own host, such as a proxy."""

    guards_secrets: ClassVar[frozenset[str]] = frozenset({"base_url"})

    @field_validator("webhook_url")
    @classmethod
    def _check_webhook_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and find_host(url.get_secret_value()) is None:
            raise ValueError("must be a webhook of Slack: https://hooks.slack.com/services/…")
        return url

    def serves(self, target: str) -> bool:
        """Webhooks as such, and its own by its name."""
        return target.startswith("https://") or (self.webhook_url is not None and target == self.name)


def find_host(url: str) -> tuple[str, str] | None:
    """Host and path of a webhook's URL; None if it is none of Slack's."""
    try:
        split = urlsplit(url)
        plain = split.scheme == "https" and split.netloc in HOSTS  # no port, no credentials
    except ValueError:
        return None
    if not plain or not split.path.startswith("/services/") or split.query or split.fragment or not url.isprintable():
        return None
    return split.netloc, split.path


class SlackProvider:
    """POSTs messages to incoming webhooks."""

    spec: ClassVar[ProviderSpec] = ProviderSpec(
        name="slack",
        channels=frozenset({Channel.chat}),
        config=SlackConfig,
        capabilities=frozenset({Capability.heading, Capability.url, Capability.payload}),
        idempotent=False,
        confirms_delivery=False,
        timeout=timedelta(seconds=15),
        docs="https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks/",
        per_address=True,
        schemes=frozenset({"slack"}),
        verified_by="a stub with the documented answers; the published description has no incoming webhooks, so only"
        " Slack itself can confirm them",
    )

    def __init__(self, config: SlackConfig, surroundings: Surroundings) -> None:
        self._config = config
        self._clock = surroundings.clock
        self._apis = {host: VendorApi(config.base_url or f"https://{host}", surroundings, self.spec) for host in HOSTS}

    async def send(self, message: Message, key: str) -> SendResult:
        if (refused := find_unsupported(self.spec, message)) is not None:
            return refused
        assert isinstance(message.content, Chat)
        target = split_scheme(message.to)[1]
        named = target == self._config.name and self._config.webhook_url is not None
        url = self._config.webhook_url.get_secret_value() if named and self._config.webhook_url else target
        found = find_host(url)
        if found is None:
            return Rejected(Reason.no_account, "the account has no webhook of this name")
        body = render_body(message.content)
        if len(str(body["text"])) > TEXT_MAX:
            return Rejected(Reason.too_large, f"Slack takes at most {TEXT_MAX:,} characters")
        host, path = found
        try:
            answer = await self._apis[host].call(
                path, headers={"Content-Type": "application/json"}, body=msgspec.json.encode(body)
            )
        except TransportFailure as failure:
            return to_result(failure)
        return self._decide(answer, named=named)

    def _decide(self, answer: HttpAnswer, *, named: bool) -> SendResult:
        """What an answer means. A webhook that is the account's own, and gone, is the account's fault."""
        said = answer.body[:200].decode("utf-8", "replace").strip()
        if answer.status == 200:
            return Sent() if said == "ok" else to_bad_answer(answer)
        now = self._clock.now()
        if answer.status == 429:
            # A webhook has a pace of its own: one message a second. https://docs.slack.dev/apis/web-api/rate-limits/
            after = parse_retry_after(answer.headers.get("Retry-After"), now)
            return Throttled(after, "HTTP 429") if named else Deferred(Reason.throttled, after, "HTTP 429")
        if 400 <= answer.status < 500 and (reason := _REASONS.get(said)) is not None:
            if reason is Reason.gone and named:
                reason = Reason.unauthorized
            return Rejected(reason, f"HTTP {answer.status}: {said}")
        if answer.status == 500 and said == "rollup_error":
            return Rejected(Reason.content_rejected, "HTTP 500: rollup_error")
        result = decide_by_status(answer, now)
        if isinstance(result, Rejected) and result.reason is Reason.unauthorized and not named:
            # Whatever it is, it is about this webhook and not about the account.
            return Rejected(Reason.rejected, result.detail)
        return result

    async def close(self) -> None:
        """The connections belong to the transport, which all accounts share."""


def render_body(content: Chat) -> dict[str, object]:
    """The request: the text with its heading above, and the template's own fields over them.

    https://docs.slack.dev/messaging/formatting-message-text/#escaping
    """
    text = escape(content.text)
    if content.title is not None and content.url is not None:
        text = f"*<{escape(content.url)}|{escape(content.title)}>*\n{text}"
    elif content.title is not None:
        text = f"*{escape(content.title)}*\n{text}"
    elif content.url is not None:
        text = f"{text}\n<{escape(content.url)}>"
    body: dict[str, object] = {"text": text}
    if content.payload is not None:
        body |= msgspec.json.decode(content.payload, type=dict[str, object])
    return body


def escape(text: str) -> str:
    """Text in which nothing is markup, nor a mention: Slack gives a meaning to these three characters."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
