"""Which providers there are, and how an account's configuration becomes one.

A vendor of ours is one file and one line in `_BUILT_IN`. A third party's is a package with an entry point in the
group `tidings.providers`, named as its `spec.name`; it is imported when an account asks for it.

This room knows names and configuration models; it knows no account row and no encryption.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, cast

from pydantic import SecretStr, ValidationError

from tidings.errors import FieldError, Invalid, ProviderError
from tidings.providers.apns import ApnsProvider
from tidings.providers.apprise import AppriseProvider
from tidings.providers.brevo import BrevoProvider
from tidings.providers.discord import DiscordProvider
from tidings.providers.fcm import FcmProvider
from tidings.providers.inbox import InboxProvider
from tidings.providers.mailgun import MailgunProvider
from tidings.providers.port import Config, Provider, Surroundings
from tidings.providers.postmark import PostmarkProvider
from tidings.providers.resend import ResendProvider
from tidings.providers.sendgrid import SendGridProvider
from tidings.providers.ses import SesProvider
from tidings.providers.simulator import SimulatorProvider
from tidings.providers.slack import SlackProvider
from tidings.providers.smpp import SmppProvider
from tidings.providers.smtp import SmtpProvider
from tidings.providers.sns import SnsProvider
from tidings.providers.twilio import TwilioProvider
from tidings.providers.vonage import VonageProvider
from tidings.providers.webhook import WebhookProvider
from tidings.providers.webpush import WebPushProvider

ENTRY_POINT_GROUP: Final = "tidings.providers"

_BUILT_IN: Final[dict[str, type[Any]]] = {
    kind.spec.name: kind
    for kind in (
        ApnsProvider,
        AppriseProvider,
        BrevoProvider,
        DiscordProvider,
        FcmProvider,
        InboxProvider,
        MailgunProvider,
        PostmarkProvider,
        ResendProvider,
        SendGridProvider,
        SesProvider,
        SimulatorProvider,
        SlackProvider,
        SmppProvider,
        SmtpProvider,
        SnsProvider,
        TwilioProvider,
        VonageProvider,
        WebPushProvider,
        WebhookProvider,
    )
}


class _Registry(Mapping[str, type[Provider]]):
    """All providers by name. A third party's is imported at its first look-up, and cannot replace one of ours."""

    def __init__(self) -> None:
        self._loaded: dict[str, type[Provider]] = dict(_BUILT_IN)

    @cached_property
    def _offered(self) -> dict[str, EntryPoint]:
        return {p.name: p for p in entry_points(group=ENTRY_POINT_GROUP) if p.name not in _BUILT_IN}

    def __getitem__(self, name: str) -> type[Provider]:
        if name not in self._loaded:
            self._loaded[name] = _load(self._offered[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*_BUILT_IN, *self._offered}))

    def __len__(self) -> int:
        return len(_BUILT_IN) + len(self._offered)


def _load(offered: EntryPoint) -> type[Provider]:
    """Import a third party's provider.

    Raises:
        ProviderError: it cannot be imported, or is no provider of that name.
    """
    try:
        kind = offered.load()
        named = kind.spec.name
    except Exception as failure:
        raise ProviderError(f"the provider {offered.name} ({offered.value}) cannot be loaded: {failure}") from failure
    if named != offered.name:
        raise ProviderError(f"the entry point {offered.name} leads to a provider that is named {named}")
    return cast(type[Provider], kind)


PROVIDERS: Final[Mapping[str, type[Provider]]] = _Registry()


def parse_config(name: str, raw: Mapping[str, Any], pointer: str = "/config") -> Config:
    """An account's configuration, checked by the provider's model.

    Args:
        raw: as it came from outside, secrets in plain text.
        pointer: where `raw` stands in the caller's document (RFC 6901).

    Raises:
        Invalid: unknown provider, or fields to mend; no value that was given is repeated in it.
    """
    kind = PROVIDERS.get(name)
    if kind is None:
        known = ", ".join(PROVIDERS)
        raise Invalid(errors=[FieldError(f"there is no provider {name!r}; there are {known}", pointer="/provider")])
    try:
        return kind.spec.config.model_validate(dict(raw))
    except ValidationError as failure:
        raise Invalid(
            f"The configuration does not fit the provider {name}.",
            errors=[
                FieldError(
                    error["msg"].removeprefix("Value error, "),
                    pointer=pointer + "".join(f"/{_escape(part)}" for part in error["loc"]),
                )
                for error in failure.errors(include_url=False, include_context=False, include_input=False)
            ],
        ) from None


def _escape(part: str | int) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def split_secrets(config: Config) -> tuple[dict[str, Any], dict[str, str]]:
    """What may be stored and shown as it is (plain JSON data), and what has to be encrypted, in plain text."""
    values = {name: getattr(config, name) for name in type(config).model_fields}
    secret = {name: value.get_secret_value() for name, value in values.items() if isinstance(value, SecretStr)}
    return config.model_dump(mode="json", exclude=set(secret)), secret


def merge_secrets(name: str, public: Mapping[str, Any], secret: Mapping[str, str]) -> Config:
    """The configuration that :func:`split_secrets` took apart.

    Raises:
        Invalid: see :func:`parse_config`.
    """
    return parse_config(name, {**public, **secret})


def create(name: str, config: Config, surroundings: Surroundings) -> Provider:
    """A provider for one account; close it when the account changes.

    Raises:
        ProviderError: there is no such provider, or the configuration is another's.
    """
    kind = PROVIDERS.get(name)
    if kind is None:
        raise ProviderError(f"there is no provider {name!r}")
    if not isinstance(config, kind.spec.config):
        raise ProviderError(f"{type(config).__name__} is not the configuration of {name}")
    return kind(config, surroundings)
