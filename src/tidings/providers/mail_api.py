"""What the HTTP APIs of all mail vendors have in common: checked addresses and fields, and how bounces are read.

A vendor's own file lays the parts out as the vendor wants them. What would start a header field of somebody else's
choice is refused here, whatever the vendor would do with it.

This room knows e-mail; it knows no vendor, no connection and no account.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from email_validator import EmailNotValidError, validate_email
from pydantic import SecretStr

from tidings.model.messages import Attachment, Email, Message, Rejected
from tidings.model.words import Reason
from tidings.providers.mime import MailRefused, parse_envelope_address, parse_mailbox
from tidings.providers.port import Capability
from tidings.providers.refusals import decide_reason
from tidings.providers.smtp_talk import Reply, Stage, decide_result

MAIL_CAPABILITIES: Final = frozenset(
    {
        Capability.html,
        Capability.text,
        Capability.headers,
        Capability.reply_to,
        Capability.cc,
        Capability.bcc,
        Capability.attachments,
        Capability.tags,
        Capability.metadata,
    }
)
"""What every mail vendor of ours can do."""
KEY_FIELD: Final = "tidings_delivery"
"""The name under which vendors carry the delivery's public id and give it back; within Postmark's 20 characters."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_NEEDS_QUOTES: Final = re.compile(r"[()<>@,;:\\\".\[\]]")
_CREDENTIAL: Final = re.compile(r"[\x21-\x7e]{1,512}")

# Said by the message in fields of their own, or the vendor's to set (RFC 5322, 3.6).
_OWN_FIELDS: Final = frozenset(
    {"from", "sender", "to", "cc", "bcc", "subject", "date", "message-id", "reply-to", "mime-version"}
    | {"return-path", "received", "dkim-signature"}
)


class Address(msgspec.Struct, frozen=True):
    """A parsed `Name <address>`, nothing encoded but the domain."""

    address: str
    name: str = ""

    @property
    def formatted(self) -> str:
        """One text, the name in quotes where RFC 5322 wants them. Characters beyond ASCII stay what they are."""
        if not self.name:
            return self.address
        if _NEEDS_QUOTES.search(self.name):
            return '"' + re.sub(r'(["\\])', r"\\\1", self.name) + f'" <{self.address}>'
        return f"{self.name} <{self.address}>"


class MailParts(msgspec.Struct, frozen=True):
    """Who an e-mail is from and to, and its further header fields: all checked."""

    sender: Address
    to: str
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]
    reply_to: Address | None
    headers: tuple[tuple[str, str], ...]


def parse_address(field: str, text: str) -> Address:
    """The address in `text`: `Name <address>`, `"Name" <address>` or an address.

    Raises:
        MailRefused: it is none of these; says so of `field`.
    """
    address = parse_mailbox(field, text).address
    name, bracket, _ = text.strip().rpartition("<")
    name = name.strip() if bracket else ""
    if len(name) >= 2 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    elif "@" in name and "," in name:
        raise MailRefused(f"{field}: several addresses, where one is expected; a name with these signs needs quotes")
    return Address(address, name)


def parse_parts(message: Message, default_sender: str) -> MailParts | Rejected:
    """The parts of an e-mail, or the refusal that names what has to be mended.

    Nobody is named twice: a copy for somebody who gets the mail anyway is left out, as some vendors refuse such mails.
    """
    email = message.content
    assert isinstance(email, Email)
    try:
        to = parse_envelope_address("to", message.to)
    except MailRefused as no:
        return Rejected(Reason.invalid_address, str(no))
    try:
        _refuse_control("subject", email.subject)
        seen = {to.lower()}
        return MailParts(
            sender=parse_address("from", email.from_ or default_sender),
            to=to,
            cc=_parse_copies("cc", email.cc, seen),
            bcc=_parse_copies("bcc", email.bcc, seen),
            reply_to=parse_address("reply_to", email.reply_to) if email.reply_to is not None else None,
            headers=tuple(_check_field(name, value) for name, value in email.headers),
        )
    except MailRefused as no:
        return Rejected(Reason.content_rejected, str(no))


def _parse_copies(field: str, texts: tuple[str, ...], seen: set[str]) -> tuple[Address, ...]:
    copies = []
    for text in texts:
        copy = parse_address(field, text)
        if copy.address.lower() not in seen:
            seen.add(copy.address.lower())
            copies.append(copy)
    return tuple(copies)


def _check_field(name: str, value: str) -> tuple[str, str]:
    lowered = name.lower()
    if not _FIELD_NAME.fullmatch(name) or lowered in _OWN_FIELDS or lowered.startswith("content-"):
        raise MailRefused(f"headers: the field name {name[:64]!r} is not allowed")
    _refuse_control(f"headers: {name}", value)
    return name, value


def _refuse_control(field: str, value: str) -> None:
    if _CONTROL.search(value):
        raise MailRefused(f"{field}: control characters (such as line ends or NUL) are not allowed in a mail header")


def to_base64(attachment: Attachment) -> str:
    """The file as JSON APIs take it."""
    return base64.b64encode(attachment.content).decode("ascii")


def to_json(body: Any) -> bytes:
    """The body of a request. Half of a surrogate pair, which UTF-8 cannot carry, becomes a question mark."""
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:
        return msgspec.json.encode(_without_surrogates(body))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_surrogates(item) for item in value]
    return value


def check_sender(text: str) -> str:
    """For an account's `from_address`.

    Raises:
        ValueError: it is neither `Name <address>` nor an address.
    """
    parse_mailbox("from_address", text)
    return text


def check_credential(secret: SecretStr) -> SecretStr:
    """For keys and tokens that go into a header field.

    Raises:
        ValueError: it has characters that no vendor's has; the message does not contain it.
    """
    if not _CREDENTIAL.fullmatch(secret.get_secret_value()):
        raise ValueError("must be 1 to 512 printable ASCII characters without spaces")
    return secret


# --- what receipts say ------------------------------------------------------------------------------------------------

_REPLY: Final = re.compile(
    r"\s*(?:smtp;\s*)?(?:(?P<code>[45]\d\d)(?:[ -]+|$))?(?:(?P<enhanced>[45]\.\d{1,3}\.\d{1,3})(?=\s|$))?"
)
_NO_MORE_THAN_NO: Final = frozenset({Reason.rejected, Reason.provider_error, Reason.connect_failed})


def decide_reply_reason(text: str, code: str = "", enhanced: str = "") -> Reason | None:
    """What a receiving server's refusal means: a permanent one by the tables of `refusals.py`, a temporary one (4xx) as
    if our own connection had heard it.

    Args:
        text: what it said: `550 5.1.1 unknown user`, or less.
        code: the basic code, where the vendor gives it apart; what stands in `text` is preferred.
        enhanced: the enhanced code, likewise.

    Returns:
        None if it says no more than "no".
    """
    found = _REPLY.match(text)
    assert found is not None  # everything in it is optional
    codes = _REPLY.match(f"{found['code'] or code} {found['enhanced'] or enhanced}")
    assert codes is not None
    basic, status = codes["code"] or "", codes["enhanced"] or ""
    if (basic or status).startswith("4"):
        # 400 says nothing by itself: then the enhanced code alone decides.
        reply = Reply(int(basic or "400"), status)
        reason = getattr(decide_result(reply, Stage.rcpt), "reason", Reason.throttled)
    else:
        reason = decide_reason(status, text if found["code"] else f"{basic} {text}")
    if reason is Reason.unauthorized:  # said to the vendor, not to our account
        return Reason.blocked
    return None if reason in _NO_MORE_THAN_NO else reason


def parse_object(value: Any) -> dict[str, Any]:
    """A JSON object; an empty one for anything else, so that a receipt's missing parts read as missing."""
    return value if isinstance(value, dict) else {}


def parse_text(value: Any) -> str | None:
    """A text that says something; numbers, which some vendors use for ids, as text."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def parse_recipient(value: Any) -> str | None:
    """Whom an event is about, the domain in Unicode as deliveries and their copies have it."""
    text = parse_text(value)
    if text is None or "xn--" not in text.lower():
        return text
    try:
        return validate_email(text, check_deliverability=False, test_environment=True).normalized
    except EmailNotValidError:
        return text


def parse_unix(value: Any) -> datetime | None:
    """Seconds since 1970, or milliseconds where the number is too large for seconds; a number or its text."""
    try:
        seconds = float(value)
        # 1e11 seconds is the year 5138, 1e11 milliseconds is 1973.
        return datetime.fromtimestamp(seconds / 1000 if seconds > 1e11 else seconds, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None
