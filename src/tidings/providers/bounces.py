"""What a mail that came back says: RFC 3464 delivery reports, RFC 5965 complaints, and bounces in free words.

`parse_bounce` is pure and never raises: whatever arrives at a bounce address is somebody else's text. It reads what is
there, in three forms, the surest first:

1. `message/feedback-report`: a receiver's user complained (ARF);
2. `message/delivery-status`, wherever it stands, also in a part with a wrong type or in the middle of a text (DSN);
3. a text by a mail system, in its own words: recipients by where addresses stand, the cause by wordings.

File order: what comes out, the forms, MIME. What a refusal means is told by `refusals.py`.
This room knows mails that came back; it knows no account, and not how our own ids look.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message as Entity
from email.utils import parsedate_to_datetime
from hashlib import sha256
from html import unescape
from typing import Final, Literal

import msgspec

from tidings.model.words import EventKind, Reason
from tidings.providers.refusals import REPLY, STATUS, decide_reason

MAX_MAIL: Final = 1_048_576
"""Octets that are looked at; the report and the original's header stand in front of the original's body."""

_MAX_RECIPIENTS: Final = 100
_TEXT_MAX: Final = 65_536
_BLOCK_MAX: Final = 8_192
"""Characters that are looked at of what is said about one recipient."""
_DIAGNOSTIC_MAX: Final = 500
_FIELD_MAX: Final = 4_096
_DEPTH_MAX: Final = 20


class Bounce(msgspec.Struct, frozen=True):
    """What one mail says about one recipient."""

    kind: EventKind | None
    """failed, retrying, delivered, sent (passed on to a system that reports nothing), complained or unsubscribed; None:
    nothing that moves a delivery, such as a report on failed authentication."""
    recipient: str
    """Whom we had sent to, if the report says so, else whom it was handed on to; empty if it names nobody."""
    action: str = ""
    """RFC 3464's word in lower case; derived from the status where the report lacks it. Of a complaint: `feedback`."""
    status: str = ""
    """Enhanced status code (RFC 3463), or empty."""
    reason: Reason | None = None
    """Of a failure or delay."""
    diagnostic: str = ""
    """What the receiver's server or the report said, short."""
    remote: str = ""
    """The server that said it."""
    final_recipient: str = ""
    """Where it differs from `recipient`: whom a forwarding address led to."""


class Returned(msgspec.Struct, frozen=True):
    """One bounce mail."""

    form: Literal["delivery-status", "feedback", "text"]
    bounces: tuple[Bounce, ...]
    addressees: tuple[str, ...] = ()
    """Addresses that the mail was sent to and that the original had come from: one of them may be a return path."""
    envelope_id: str = ""
    """Original-Envelope-Id: the ENVID that we gave."""
    message_ids: tuple[str, ...] = ()
    """Of the returned original, without brackets."""
    feedback_type: str = ""
    """`abuse`, `opt-out`, `fraud`, … (RFC 5965, 3.5)."""
    at: datetime | None = None
    """When it was written."""
    id: str = ""
    """The same for each copy of the same mail."""


# --- the forms --------------------------------------------------------------------------------------------------------

_KINDS: Final[dict[str, EventKind]] = {
    "failed": EventKind.failed,
    "expired": EventKind.failed,  # SendGrid's own word
    "delayed": EventKind.retrying,
    "delivered": EventKind.delivered,
    "relayed": EventKind.sent,  # to a system that makes no reports
    "expanded": EventKind.sent,  # a list: what becomes of the copies is not reported
}
_ACTION_BY_CLASS: Final = {"2": "delivered", "4": "delayed", "5": "failed"}
_FEEDBACK: Final[dict[str, EventKind]] = {
    "abuse": EventKind.complained,
    "fraud": EventKind.complained,
    "virus": EventKind.complained,
    "other": EventKind.complained,
    "opt-out": EventKind.unsubscribed,
    "opt-out-list": EventKind.unsubscribed,
    # `auth-failure` (RFC 6591), `dmarc` and `not-spam` are no complaints.
}


def parse_bounce(raw: bytes) -> Returned | None:
    """What the mail says; None if it is no bounce, complaint or delivery report: an answer by a person, say, or their
    vacation notice."""
    raw = raw[:MAX_MAIL]
    if raw.startswith(b"From "):  # a line of the mbox format
        raw = raw.partition(b"\n")[2]
    if len(_BOUNDARY.findall(raw)) > _MULTIPARTS_MAX:
        return None
    raw = _LONG_TYPE.sub(rb"\1", raw)
    try:
        mail = message_from_bytes(raw)
    except RecursionError:  # a thousand parts in one another
        return None
    parts = list(_list_parts(mail))
    original = _find_original(parts)
    found = _read_feedback(parts, original) or _read_delivery_status(parts)
    if found is None and (inner := _find_report(parts)):  # a gateway passed on somebody else's report
        original = _find_original(inner)
        found = _read_feedback(inner, original) or _read_delivery_status(inner)
    if found is None and (found := _read_text(mail, parts)) is None:
        return None
    form, bounces, fields, headers = found
    original = {**headers, **original}
    to = [
        _text_of(value)
        for name in ("to", "delivered-to", "x-original-to", "envelope-to")
        for value in mail.get_all(name, [])
    ]
    came_from = [
        original.get("return-path", ""),
        fields.get("original-mail-from", ""),
        fields.get("x-postfix-sender", ""),
    ]
    message_id = _text_of(mail.get("message-id", "")).strip()
    return Returned(
        form=form,
        bounces=tuple(bounces[:_MAX_RECIPIENTS]),
        addressees=tuple(dict.fromkeys(_find_addresses([*to, *came_from]))),
        envelope_id=fields.get("original-envelope-id", ""),
        message_ids=tuple(dict.fromkeys(_MESSAGE_ID.findall(original.get("message-id", "")))),
        feedback_type=fields.get("feedback-type", "").lower(),
        at=_parse_date(_text_of(mail.get("date", ""))),
        id=sha256(message_id.encode("utf-8", "replace") if message_id else raw).hexdigest()[:32],
    )


_Found = tuple[Literal["delivery-status", "feedback", "text"], list[Bounce], dict[str, str], dict[str, str]]
"""Form, bounces, the report's own fields, the original's header fields as far as they were seen."""


def _read_feedback(parts: list[Entity], original: dict[str, str]) -> _Found | None:
    block = next((part for part in parts if part.get_content_type() == "message/feedback-report"), None)
    if block is None:
        return None
    pairs = [pair for fields in _split_blocks(_payload_text(block)) for pair in fields]
    fields = dict(reversed(pairs))
    kind = _FEEDBACK.get(fields.get("feedback-type", "abuse").lower())
    to = [value for name, value in pairs if name in ("original-rcpt-to", "removal-recipient")] or [
        original.get("to", "")
    ]
    bounces = [Bounce(kind, address, "feedback") for address in dict.fromkeys(_find_addresses(to))]
    return "feedback", bounces or [Bounce(kind, "", "feedback")], fields, {}


def _read_delivery_status(parts: list[Entity]) -> _Found | None:
    """Of all blocks in the mail: broken systems split one recipient's fields, or put two reports into one mail."""
    blocks: list[dict[str, str]] = []
    for part in parts:
        if part.get_content_type() in ("message/delivery-status", "message/global-delivery-status"):
            blocks += (dict(reversed(pairs)) for pairs in _split_blocks(_payload_text(part)))
    if not any(_RECIPIENT_FIELDS & block.keys() for block in blocks):
        # The same fields in a text, or in a part that nobody can tell the type of.
        for part in parts:
            if part.get_content_maintype() in ("text", "multipart", "application") and not _is_original(part):
                text = _payload_text(part)
                if _FIELDS_IN_TEXT.search(text):
                    blocks += (dict(reversed(pairs)) for pairs in _split_blocks(text))
    if not any(_RECIPIENT_FIELDS & block.keys() for block in blocks):
        return None
    of_mail: dict[str, str] = {}
    recipients: list[dict[str, str]] = []
    before: dict[str, str] = {}
    for block in blocks:
        if _RECIPIENT_FIELDS & block.keys():
            if len(recipients) == _MAX_RECIPIENTS:
                break
            recipients.append({**before, **block})
            before = {}
        elif (
            recipients
            and "reporting-mta" not in block
            and not ({"action", "status"} & block.keys() & recipients[-1].keys())
        ):
            _fill(recipients[-1], block)
        elif {"action", "status", "diagnostic-code"} & block.keys():
            before = block
        _fill(of_mail, block)
    words = "" if all(fields.get("diagnostic-code") for fields in recipients) else _report_text(parts)
    found = (_to_bounce(fields, words) for fields in recipients)
    bounces = {(bounce.recipient, bounce.action, bounce.status): bounce for bounce in found}
    return "delivery-status", list(bounces.values()), of_mail, {}


def _fill(fields: dict[str, str], more: dict[str, str]) -> None:
    """In place: a report of a hundred thousand blocks must not be copied for each of them."""
    for name, value in more.items():
        fields.setdefault(name, value)


_RECIPIENT_FIELDS: Final = {"final-recipient", "original-recipient", "x-actual-recipient"}
_FIELDS_IN_TEXT: Final = re.compile(r"^(final|original)-recipient:", re.IGNORECASE | re.MULTILINE)


def _to_bounce(fields: dict[str, str], words: str) -> Bounce:
    """
    Args:
        words: the text for people, where a report's fields tell no cause.
    """
    final = _strip_type(fields.get("final-recipient") or fields.get("x-actual-recipient", ""))
    recipient = _strip_type(fields.get("original-recipient", ""))
    if "@" not in recipient:
        recipient = final
    said = " ".join(fields.get("diagnostic-code", "").split())
    status = STATUS.search(fields.get("status", "")) or STATUS.search(said)
    code = status[1] if status else ""
    action = fields.get("action", "").partition("(")[0].strip().lower()
    if not action:
        reply = REPLY.search(said)
        action = _ACTION_BY_CLASS.get(code[:1] or (reply[1][0] if reply else "5"), "failed")
    kind = _KINDS.get(action)
    if not said and words:
        at = max(words.find(final), 0)
        said = " ".join(words[at : at + _BLOCK_MAX].split())[:_DIAGNOSTIC_MAX]
    return Bounce(
        kind=kind,
        recipient=recipient,
        action=action,
        status=code,
        reason=decide_reason(_most_telling(code, said), said)
        if kind in (EventKind.failed, EventKind.retrying)
        else None,
        diagnostic=said[:_DIAGNOSTIC_MAX],
        remote=_strip_type(fields.get("remote-mta", ""))[:253],
        final_recipient=final if final != recipient else "",
    )


def _most_telling(code: str, said: str) -> str:
    """The status, but the one that the receiver gave where the report says only "something" (x.0.0)."""
    found = STATUS.search(said)
    return found[1] if found is not None and code[1:] == ".0.0" else code


# Who writes bounces, and what they call them.
_DAEMON: Final = re.compile(
    r"mailer[-_ ]?daemon|post[-_]?master|mail[ .-]?(delivery|deliver|system|router|server)|\bmta\b|mail daemon|<>",
    re.IGNORECASE,
)
_SUBJECT: Final = re.compile(
    r"undeliver|un-?delivered|returned (mail|to sender|e-?mail)|(mail|delivery|message|e-?mail|sending).{0,24}"
    r"(fail|error|status|problem|delay|notif|report|not)|fail(ure|ed).{0,12}(notice|delivery|mail)"
    r"|(could|can) ?not be delivered"
    r"|non.?delivery|not delivered|unzustellbar|bounce",
    re.IGNORECASE,
)
_REPLY_BY_PERSON: Final = re.compile(
    r"out of (the )?office|auto(matic)?[ -]?(reply|response|antwort)|vacation", re.IGNORECASE
)
_DELAY: Final = re.compile(
    r"warning message only|will (be retried|continue|keep trying|try again)|not yet been delivered|delayed|delay\b"
    r"|no action is required|still trying|do not need to resend",
    re.IGNORECASE,
)
_DELIVERED: Final = re.compile(
    r"successfully delivered|delivery (was )?successful|has been (successfully )?delivered|was successfully",
    re.IGNORECASE,
)


def _read_text(mail: Entity, parts: list[Entity]) -> _Found | None:
    sender, subject = _text_of(mail.get("from", "")), _text_of(mail.get("subject", ""))
    named = _find_addresses(_text_of(value) for value in mail.get_all("x-failed-recipients", []))
    failed = list(dict.fromkeys(named))[:_MAX_RECIPIENTS]
    by_system = bool(_DAEMON.search(sender)) or _text_of(mail.get("return-path", "")).strip() == "<>" or not sender
    if not failed and (not (by_system or _SUBJECT.search(subject)) or _REPLY_BY_PERSON.search(subject)):
        return None
    text, headers = _cut_original(_report_text(parts))
    ours = {*_find_addresses([sender, *(_text_of(v) for v in mail.get_all("to", []))])}
    blocks = _split_by_recipient(text, failed, ours)
    if not blocks and (to := _find_addresses([headers.get("to", "")])):
        blocks = [(address, text) for address in to]
    elif not blocks:
        blocks = [("", text)]
    whole = _Whole(f"{subject}\n{text}")
    bounces = [_judge(address, block, whole) for address, block in blocks[:_MAX_RECIPIENTS]]
    known = [bounce for bounce in bounces if bounce is not None]
    return ("text", known, {}, headers) if known else None


def _report_text(parts: list[Entity]) -> str:
    """What is written for people."""
    texts = [
        _payload_text(part)
        for part in parts
        if part.get_content_maintype() in ("text", "multipart") and not _is_original(part)
    ]
    return "\n".join(texts)[:_TEXT_MAX].replace("\r\n", "\n")


class _Whole:
    """Subject and text of one mail; what is asked of them is the same for every recipient, and found once."""

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        self.status = STATUS.search(self.text)
        self.reply = REPLY.search(self.text)
        self.delivered = bool(_DELIVERED.search(self.text))
        self.delayed = bool(_DELAY.search(self.text))
        self.bounce = bool(_SUBJECT.search(text))


def _judge(recipient: str, block: str, whole: _Whole) -> Bounce | None:
    """None: the words say nothing of a failure."""
    said = " ".join(block[:_BLOCK_MAX].split())
    status, reply = STATUS.search(said), REPLY.search(said)
    if status is None and reply is None and decide_reason("", said) is Reason.rejected:
        said, status, reply = whole.text, whole.status, whole.reply
    code = status[1] if status else ""
    reason = decide_reason(code, said)
    if whole.delivered and not (status and code[0] != "2") and reply is None:
        return Bounce(EventKind.delivered, recipient, "delivered", code)
    if reason is Reason.rejected and not code and reply is None and not whole.bounce:
        return None
    kind = EventKind.retrying if whole.delayed and not code.startswith("5") else EventKind.failed
    at = max(said.find(recipient), 0) if recipient else 0
    return Bounce(
        kind,
        recipient,
        "delayed" if kind is EventKind.retrying else "failed",
        code,
        reason,
        said[at : at + _DIAGNOSTIC_MAX],
    )


# Whoever writes to a bounce address chooses the text: all runs are bounded, so that no pattern takes long.
_LOCAL: Final = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~.-"
_ADDRESS: Final = re.compile(rf"(?<![{_LOCAL}])[{_LOCAL}]{{1,64}}@[A-Za-z0-9](?:[A-Za-z0-9.-]{{0,252}}[A-Za-z0-9])?")
_AT_LINE_START: Final = re.compile(
    rf"^[\s>*<\"'-]{{0,40}}(?:to:|for:|recipient:|address:)?\s{{0,8}}[<\"'(]{{0,3}}({_ADDRESS.pattern})", re.IGNORECASE
)
_AFTER_WORDS: Final = re.compile(
    r"\b(?:to|for|recipients?(?: address)?(?: was)?|errors|following address\S{0,9}|address|user|mailbox)"
    rf"[:\s]{{1,8}}[<\"'(\[]{{0,3}}({_ADDRESS.pattern})",
    re.IGNORECASE,
)
_GENERATED: Final = re.compile(rf"generated from ({_ADDRESS.pattern})")


def _split_by_recipient(text: str, failed: list[str], ours: set[str]) -> list[tuple[str, str]]:
    """Each recipient with the lines that are about it: from its first mention to where another one is named."""
    lines = text.split("\n")
    starts: dict[str, int] = {}
    seen: set[str] = set()
    marks: list[tuple[int, str]] = []
    for pattern in (_ADDRESS,) if failed else (_AT_LINE_START, _AFTER_WORDS, _ADDRESS):
        for number, line in enumerate(lines):
            for match in pattern.finditer(line):
                address = match[match.lastindex or 0]
                if failed and address not in failed:
                    continue
                elsewhere = "//" in line[: match.start()] or (pattern is _ADDRESS and _DAEMON.match(address))
                if not failed and (address in ours or elsewhere):
                    continue
                marks.append((number, address.lower()))
                if address.lower() not in seen and len(starts) < _MAX_RECIPIENTS:
                    seen.add(address.lower())
                    starts[address] = number
        if starts:
            break
    for address in failed:
        starts.setdefault(address, 0)
    blocks = {}
    for address, start in sorted(starts.items(), key=lambda item: item[1]):
        ends = (number for number, other in marks if number > start and other != address.lower())
        block = "\n".join(lines[start : next(ends, len(lines))])
        # Exim names where an alias led to, then the alias; what we had sent to is the alias.
        found = _GENERATED.search(block)
        blocks[found[1] if found and not failed else address] = block
    return list(blocks.items())


_HEADER_LINE: Final = re.compile(r"^([A-Za-z][A-Za-z0-9-]{1,60}):(?:[ \t]|$)(.*)$")
_TELLING: Final = {
    "received",
    "return-path",
    "message-id",
    "mime-version",
    "dkim-signature",
    "date",
    "from",
    "to",
    "content-type",
}


def _cut_original(text: str) -> tuple[str, dict[str, str]]:
    """The report's own words, and the header of the original that stands below them, by lower-case name.

    The header is the first run of at least three header fields of which two are such as every mail has.
    """
    lines = text.split("\n")
    start = 0
    while start < len(lines):
        if not _HEADER_LINE.match(lines[start].lstrip()):
            start += 1
            continue
        headers: dict[str, str] = {}
        name, end, count = "", start, 0
        while end < len(lines) and lines[end].strip():
            line = lines[end]
            if found := _HEADER_LINE.match(line.lstrip()):
                name, count = found[1].lower(), count + 1
                headers.setdefault(name, found[2])
            elif line[:1] in " \t" and name:
                if len(headers[name]) < _FIELD_MAX:
                    headers[name] += " " + line.strip()
            else:
                break
            end += 1
        if count >= 3 and len(_TELLING & headers.keys()) >= 2:
            return "\n".join(lines[:start]), headers
        start = max(end, start + 1)
    return text, {}


# The parser takes time by the square of parts in one another and of parameters of a type; no real mail has as many.
_MULTIPARTS_MAX: Final = 50
_BOUNDARY: Final = re.compile(rb"boundary\*?0?\*?\s?=", re.IGNORECASE)
_LONG_TYPE: Final = re.compile(
    rb"^(content-(?:type|disposition):(?:[^\r\n]|\r?\n[ \t]){2000})(?:[^\r\n]|\r?\n[ \t])++",
    re.IGNORECASE | re.MULTILINE,
)

# --- MIME -------------------------------------------------------------------------------------------------------------

_MESSAGE_ID: Final = re.compile(r"<([^<>\s]{3,250})>")
_LINE_END: Final = re.compile(r"<br\s?/?>|</(?:p|div|tr|li)>", re.IGNORECASE)
_MARKUP: Final = re.compile(r"<(?![^<>]*@)[^<>]*>")


def _list_parts(mail: Entity, depth: int = 0) -> Iterator[Entity]:
    """All parts, in order, without those of returned originals; what cannot be taken apart comes whole."""
    payload = _payload_of(mail)
    if mail.get_content_maintype() == "message" or not isinstance(payload, list) or depth > _DEPTH_MAX:
        yield mail
        return
    for part in payload:
        if isinstance(part, Entity):
            yield from _list_parts(part, depth + 1)


_ORIGINALS: Final = {
    "message/rfc822",
    "message/global",
    "text/rfc822-headers",
    "message/global-headers",
    "text/rfc822-header",
}


def _is_original(part: Entity) -> bool:
    return part.get_content_type() in _ORIGINALS


def _find_original(parts: Iterable[Entity]) -> dict[str, str]:
    """Header fields of the returned original, first ones first, by lower-case name."""
    for part in parts:
        if _is_original(part):
            payload = _payload_of(part)
            if isinstance(payload, list) and payload and isinstance(payload[0], Entity):
                pairs = [(name.lower(), _text_of(value)) for name, value in payload[0].items()]
            else:
                pairs = next(iter(_split_blocks(_payload_text(part))), [])
            return dict(reversed(pairs))
    return {}


def _find_report(parts: Iterable[Entity]) -> list[Entity]:
    """The parts of a report that was attached as a mail."""
    for part in parts:
        payload = _payload_of(part)
        inner = payload[0] if _is_original(part) and isinstance(payload, list) and payload else None
        if isinstance(inner, Entity) and inner.get_content_type() == "multipart/report":
            return list(_list_parts(inner))
    return []


def _payload_of(part: Entity) -> object:
    """As the parser has it: parts, or a text. It reads the charset on the way, which may be nonsense in many ways."""
    try:
        return part.get_payload()
    except (LookupError, TypeError, ValueError):
        return ""


def _payload_text(part: Entity) -> str:
    payload = _payload_of(part)
    if isinstance(payload, list):  # `message/*`, which the parser has taken apart
        return "\n".join(_to_text(inner) for inner in payload if isinstance(inner, Entity))
    try:
        data = part.get_payload(decode=True)
        text = data.decode(part.get_content_charset("utf-8"), "replace") if isinstance(data, bytes) else str(payload)
    except (LookupError, TypeError, ValueError):
        text = str(payload)
    if part.get_content_type() == "text/html":
        text = unescape(_MARKUP.sub(" ", _LINE_END.sub("\n", _cut_elements(text))))
    return _mend(text)


def _to_text(entity: Entity) -> str:
    """Header and body; the parser's own writer gives up on much that its reader takes."""
    payload = _payload_of(entity)
    head = "\n".join(f"{name}: {value}" for name, value in entity.raw_items())
    return _mend(f"{head}\n\n{payload if isinstance(payload, str) else ''}")


def _mend(text: str) -> str:
    """Without lone surrogates, which the parser uses for octets that it could not decode."""
    return text.encode("utf-8", "replace").decode()


def _cut_elements(html: str) -> str:
    """Without style sheets and scripts; what is never closed goes to the end."""
    for name in ("style", "script"):
        lowered, kept, at = html.lower(), [], 0
        while (start := lowered.find(f"<{name}", at)) >= 0:
            kept.append(html[at:start])
            end = lowered.find(f"</{name}", start)
            at = end if end >= 0 else len(html)
        html = "".join([*kept, html[at:]])
    return html


def _split_blocks(text: str) -> list[list[tuple[str, str]]]:
    """Runs of header fields between empty lines, unfolded; lines that are no fields are left out."""
    blocks: list[list[tuple[str, str]]] = [[]]
    for line in text.replace("\r\n", "\n").split("\n"):
        if not line.strip():
            if blocks[-1]:
                blocks.append([])
        elif (found := _FIELD.match(line)) and line[0] not in " \t":
            blocks[-1].append((found[1].lower(), found[2].strip()))
        elif blocks[-1] and len(blocks[-1][-1][1]) < _FIELD_MAX:
            # Folded, or the rest of a value that was broken without being indented.
            name, value = blocks[-1][-1]
            blocks[-1][-1] = (name, f"{value} {line.strip()}")
    return [block for block in blocks if block]


_FIELD: Final = re.compile(r"^([A-Za-z][A-Za-z0-9-]{1,60})[ \t]*:[ \t]*(.*)$")


def _text_of(value: object) -> str:
    """A header field's value; the parser gives an object for one with foreign octets."""
    return " ".join(_mend(str(value)).split())


def _strip_type(value: str) -> str:
    """`rfc822; ada@example.com` without its type, brackets and comments."""
    kind, semicolon, rest = value.partition(";")
    text = rest if semicolon and "@" not in kind else value
    found = _ADDRESS.search(text)
    return found[0] if found else text.strip(" <>")


def _find_addresses(values: Iterable[str]) -> list[str]:
    return [found for value in values for found in _ADDRESS.findall(value)]


def _parse_date(value: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(value)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None
