"""Tracking: links and a pixel that tell when a mail is opened and clicked, and the address at which a device reports;
and the links with which somebody leaves a category, or chooses what they get.

Everything that such a link needs is in its token: kind, project, delivery and target, signed. So a link works for as
long as the signing key is kept, also when the message has long been dropped; it leads where the message said and
nowhere else; and nobody can make one.

Opens and clicks are watched only where the project turned it on; never in messages of required categories, nor of types
that forbid it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cached_property
from html import escape, unescape
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

import msgspec

from tidings.directory.credentials import Place, Vault
from tidings.directory.projects import Project, Tracking
from tidings.flow.load import Delivery
from tidings.model.messages import Email, Message, Push
from tidings.model.words import Channel, EventKind

_VERSION: Final = 1
_MAC: Final = 16  # octets of the signature that are kept: 128 bits
_HEAD: Final = 1 + 1 + 4 + 16
_URL_MAX: Final = 2_000
TOKEN_MAX: Final = 4_096
"""Characters of a token, more than any of ours."""

_KINDS: Final = {EventKind.opened: b"o", EventKind.clicked: b"c", EventKind.delivered: b"r"}
_NOBODY: Final = UUID(int=0)
FIELD_MAX: Final = 850
"""Characters of a header field that all mail servers and vendors carry in one line; RFC 5322, 2.1.1 has 998."""

# Templates and what is put into them may be anything, and a worker serves every project: each character is looked at
# once. A tag that never ends is still one match, after which the search goes on behind it.
_TAG: Final = re.compile(r"""<a(?=\s)((?:[^>"']++|"[^"]*+"|'[^']*+')*+)>?""", re.IGNORECASE)
_HREF: Final = re.compile(
    r"""(?<![^\s"'/])href\s*+=\s*+("[^"]*+"|'[^']*+')|"[^"]*+"|'[^']*+'""",  # not inside of another attribute's value
    re.IGNORECASE,
)
_UNTRACKED: Final = re.compile(r"\bdata-tidings-track\s*=\s*[\"']?(?:off|false|no)\b", re.IGNORECASE)
_BODY_END: Final = re.compile(r"</body\s*>", re.IGNORECASE)


class Token(NamedTuple):
    """What a link says of itself."""

    kind: EventKind
    """opened (the pixel), clicked (a link), delivered (a device's report, which says itself what happened)."""
    project_id: int
    delivery: UUID
    url: str = ""


Page = Literal["u", "p"]
"""The page to unsubscribe on, and the one to choose preferences on."""


class Guest(msgspec.Struct, frozen=True):
    """Whom a link to a page speaks for."""

    page: Page
    project_id: int
    delivery: UUID | None = None
    """In whose message it stood; None: the application asked for it."""
    user_id: str | None = None
    channel: Channel = Channel.email
    address: str | None = None
    """Where it went; only of somebody who is no user."""
    category: str = ""
    """What is unsubscribed from."""
    test: bool = False
    """It stood in a test message: it changes nothing."""
    expires_at: datetime | None = None
    """Whole seconds."""


class _Claims(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What is said of a guest besides project and delivery; fields are only ever added at the end."""

    user_id: str | None = None
    channel: int = int(Channel.email)
    category: str = ""
    address: str | None = None
    test: bool = False
    expires: int = 0
    """Seconds since 1970; 0: never."""


_encode_claims: Final = msgspec.msgpack.Encoder().encode
_decode_claims: Final = msgspec.msgpack.Decoder(_Claims).decode


class Signer:
    """Makes tokens and believes only its own."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._keys: dict[int, tuple[bytes, ...]] = {}

    def _keys_of(self, project_id: int) -> tuple[bytes, ...]:
        keys = self._keys.get(project_id)
        if keys is None:
            if len(self._keys) >= 10_000:  # projects are named by tokens, which anybody may make up
                self._keys.clear()
            keys = self._keys[project_id] = self._vault.derive(Place("tracking", project_id, ""))
        return keys

    def sign(self, token: Token) -> str:
        """The token as it stands in a URL."""
        return self._seal(_KINDS[token.kind], token.project_id, token.delivery, token.url.encode())

    def read(self, text: str, kind: EventKind) -> Token | None:
        """What a token of this kind says; None when it is not one of ours, or leads to no web page."""
        found = self._open(text, _KINDS[kind])
        if found is None:
            return None
        project_id, delivery, rest = found
        url = rest.decode("utf-8", "replace")
        if kind is EventKind.clicked and not is_web_page(url):
            return None
        return Token(kind, project_id, delivery, url)

    def invite(self, guest: Guest) -> str:
        """A guest's token as it stands in a URL."""
        expires = 0 if guest.expires_at is None else int(guest.expires_at.timestamp())
        claims = _Claims(guest.user_id, int(guest.channel), guest.category, guest.address, guest.test, expires)
        return self._seal(guest.page.encode(), guest.project_id, guest.delivery or _NOBODY, _encode_claims(claims))

    def recognise(self, text: str, page: Page, now: datetime) -> Guest | None:
        """Whom a token for this page speaks for; None when it is not one of ours, or its time is over."""
        found = self._open(text, page.encode())
        if found is None:
            return None
        project_id, delivery, rest = found
        try:
            claims = _decode_claims(rest)
            channel = Channel(claims.channel)
        except (msgspec.MsgspecError, ValueError):  # signed by a newer Tidings
            return None
        expires_at = datetime.fromtimestamp(claims.expires, UTC) if claims.expires else None
        if expires_at is not None and expires_at <= now:
            return None
        return Guest(
            page,
            project_id,
            None if delivery == _NOBODY else delivery,
            claims.user_id,
            channel,
            claims.address,
            claims.category,
            claims.test,
            expires_at,
        )

    def mark_form(self, guest: Guest) -> str:
        """What a form that was made for this guest says of itself; nobody else's says it."""
        said = b"form " + self.invite(guest).encode()
        return hashlib.blake2b(said, key=self._keys_of(guest.project_id)[0], digest_size=_MAC).hexdigest()

    def _seal(self, kind: bytes, project_id: int, delivery: UUID, rest: bytes) -> str:
        said = bytes((_VERSION,)) + kind + project_id.to_bytes(4, "big") + delivery.bytes + rest
        mac = hashlib.blake2b(said, key=self._keys_of(project_id)[0], digest_size=_MAC).digest()
        return base64.urlsafe_b64encode(said + mac).rstrip(b"=").decode()

    def _open(self, text: str, kind: bytes) -> tuple[int, UUID, bytes] | None:
        """Project, delivery and the rest of what a token says; None when it is not one of ours, or of another kind."""
        if len(text) > TOKEN_MAX:
            return None
        try:
            raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error, ValueError):
            return None
        if len(raw) < _HEAD + _MAC or raw[0] != _VERSION or raw[1:2] != kind:
            return None
        said, mac = raw[:-_MAC], raw[-_MAC:]
        project_id = int.from_bytes(said[2:6], "big")
        good = False
        for key in self._keys_of(project_id):  # all of them: how long it takes tells nothing
            good |= hmac.compare_digest(hashlib.blake2b(said, key=key, digest_size=_MAC).digest(), mac)
        return (project_id, UUID(bytes=bytes(said[6:_HEAD])), said[_HEAD:]) if good else None


def is_web_page(url: str) -> bool:
    """Whether a link may lead there: http or https, with a host."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and len(url) <= _URL_MAX


def track_email(email: Email, signer: Signer, tracking: Tracking, base: str, project_id: int, delivery: UUID) -> Email:
    """The mail with its links leading over us, and with a pixel, as far as the project wants it. Pure.

    Only links of the HTML part that are written as `<a href="http…">` are followed; one with
    `data-tidings-track="off"` is left alone.

    Args:
        base: what the links begin with, without a slash at its end.
    """
    if email.html is None or not (tracking.opens or tracking.clicks):
        return email
    html = source = email.html
    if tracking.clicks:

        def follow(tag: re.Match[str]) -> str:
            inside = tag[1]
            link = next((found for found in _HREF.finditer(inside) if found[1] is not None), None)
            if link is None or not tag[0].endswith(">") or _UNTRACKED.search(inside):
                return tag[0]
            url = unescape(link[1][1:-1]).strip()
            if not is_web_page(url) or url.startswith(base + "/"):
                return tag[0]
            token = signer.sign(Token(EventKind.clicked, project_id, delivery, url))
            start = tag.start(1)
            return (
                source[tag.start() : start + link.start(1)]
                + f'"{base}/c/{token}"'
                + source[start + link.end(1) : tag.end()]
            )

        html = _TAG.sub(follow, source)
    if tracking.opens:
        token = signer.sign(Token(EventKind.opened, project_id, delivery))
        pixel = f'<img src="{escape(base)}/o/{token}" alt="" width="1" height="1" style="display:none">'
        ends = [found.start() for found in _BODY_END.finditer(html)]
        at = ends[-1] if ends else len(html)
        html = html[:at] + pixel + html[at:]
    return msgspec.structs.replace(email, html=html)


class Links:
    """The links of one delivery to our pages, made when they are asked for."""

    def __init__(self, signer: Signer, base: str, delivery: Delivery, category: str) -> None:
        self._signer = signer
        self._base = base
        self._delivery = delivery
        self._category = category

    @cached_property
    def unsubscribe(self) -> str:
        """Where its reader leaves its category, on its channel; empty where that cannot be left."""
        if not self._category:
            return ""
        d = self._delivery
        address = d.address if d.user_id is None else None
        guest = Guest("u", d.project_id, d.id, d.user_id, d.channel, address, self._category, d.test)
        return f"{self._base}/u/{self._signer.invite(guest)}"

    @cached_property
    def preferences(self) -> str:
        """Where its reader chooses what they get. Who is no user has only one choice: to leave."""
        d = self._delivery
        if d.user_id is None:
            return self.unsubscribe
        return f"{self._base}/p/{self._signer.invite(Guest('p', d.project_id, d.id, d.user_id, test=d.test))}"

    def list_fields(self, own: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
        """The header fields that let a mail program unsubscribe with one click.

        https://www.rfc-editor.org/rfc/rfc2369#section-3.2, https://www.rfc-editor.org/rfc/rfc8058#section-3.1

        Args:
            own: names of the fields that the request sets. Where it has a List-Unsubscribe of its own there are none:
                a click would be promised on behalf of an address that is not ours.
        """
        if not self.unsubscribe or any(name.lower().startswith("list-unsubscribe") for name in own):
            return ()
        field = f"<{self.unsubscribe}>"
        if len(field) > FIELD_MAX:
            return ()
        if not field.startswith("<https:"):  # RFC 8058 asks for HTTPS
            return (("List-Unsubscribe", field),)
        return (("List-Unsubscribe", field), ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"))


class Tracker:
    """Makes messages tell what becomes of them, in a worker, and lead to our pages.

    Args:
        public_url: how the outside reaches the API; without it, and without a domain of the project's, nothing is
            tracked.
    """

    def __init__(self, vault: Vault, public_url: str | None) -> None:
        self._signer = Signer(vault)
        self._public_url = public_url.rstrip("/") if public_url is not None else None

    def follow(self, message: Message, project: Project, *, tracked: bool) -> Message:
        """The message, with its links and pixel (e-mail) or its address for reports (push).

        Args:
            tracked: its type and category allow that opens and clicks are watched.
        """
        if isinstance(message.content, Push):
            if self._public_url is None:
                return message
            token = self._signer.sign(Token(EventKind.delivered, project.id, message.delivery))
            return msgspec.structs.replace(message, report_url=f"{self._public_url}/r/{token}")
        tracking = project.settings.tracking
        base = tracking.domain or self._public_url
        if not tracked or base is None or not isinstance(message.content, Email):
            return message
        content = track_email(message.content, self._signer, tracking, base, project.id, message.delivery)
        return msgspec.structs.replace(message, content=content)

    def link(self, delivery: Delivery, project: Project | None, category: str) -> Links | None:
        """The links of a delivery to our pages; None when nobody outside can reach them.

        Args:
            project: if its own domain is to be used, should it have one.
            category: that its reader may leave; empty when there is none, or it is required.
        """
        base = (project.settings.tracking.domain if project is not None else None) or self._public_url
        return None if base is None else Links(self._signer, base, delivery, category)

    def callback_url(self, path: str | None) -> str | None:
        """The whole address of a callback."""
        return None if path is None or self._public_url is None else self._public_url + path


# ---------------------------------------------------------------- who opened it

_PREFETCH: Final = ("purpose", "sec-purpose", "x-purpose", "x-moz")
_PROGRAMS: Final = re.compile(
    r"bot\b|crawl|spider|preview|scan|prefetch|headless|phantomjs|python|curl|wget|java/|okhttp|go-http|libwww"
    r"|barracuda|proofpoint|mimecast|fireeye|symantec|cloudmark|safelinks|trendmicro|forcepoint|sophos|zscaler"
    r"|slackbot|whatsapp|telegram|skypeuripreview|facebookexternalhit|bingpreview|yahoomailproxy",
    re.IGNORECASE,
)
"""Words of user agents that are programs: crawlers, link scanners of mail gateways, previewers.

GoogleImageProxy is not among them: Gmail fetches a picture through it when a person opens the mail."""
_BARE: Final = re.compile(r"Mozilla/5\.0\s*")
"""All that Apple's Mail Privacy Protection says of itself; it fetches every picture, opened or not.
https://support.apple.com/guide/iphone/use-mail-privacy-protection-iphf084865c7/ios"""


def is_machine(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a program fetched this rather than a person: by its method, its headers or its name. Pure.

    Args:
        headers: names in lower case.
    """
    if method != "GET":
        return True
    if any("prefetch" in headers.get(name, "").lower() or headers.get(name) == "preview" for name in _PREFETCH):
        return True
    agent = headers.get("user-agent", "").strip()
    return not agent or bool(_BARE.fullmatch(agent)) or bool(_PROGRAMS.search(agent))
