"""Options: what a request says beyond its content: copies, header fields, files, media, senders, buttons.

Each channel has its own, and they touch only that channel's deliveries. They are checked when the request is accepted,
stored as one document beside it, and put over what a template makes when a delivery is rendered. All pure; the files
themselves are blobs, and here are only their names and sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from tidings.channels import CHANNELS
from tidings.channels.email import parse_header, parse_mailbox
from tidings.channels.sms import MEDIA_MAX, parse_media
from tidings.directory.blobs import BLOB_MAX, Blob, parse_blob_id, to_blob, to_blob_id
from tidings.errors import FieldError, RenderError
from tidings.model.messages import Attachment, Content, Email
from tidings.model.words import Channel

OPTIONS_LIMIT: Final = 32 * 1024
"""Bytes of `options` as JSON."""
COPIES_MAX: Final = 50
"""Recipients of copies, open and blind together."""
HEADERS_MAX: Final = 30
TAGS_MAX: Final = 10
TAG_MAX: Final = 128
SENDER_MAX: Final = 64
ATTACHMENTS_MAX: Final = 20
ATTACHMENTS_SIZE_MAX: Final = BLOB_MAX
"""Octets of all files of one message together."""

_FILENAME_MAX: Final = 255
_CONTENT_TYPE: Final = re.compile(
    r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}"
    r"(?: ?; ?[A-Za-z0-9!#$&^_.+-]{1,64}=(?:[A-Za-z0-9!#$&^_.+-]{1,64}|\"[ !#-:<-\[\]-~]{0,64}\")){0,8}"
)
_CONTENT_ID: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.@-]{1,200}")


# ---------------------------------------------------------------- as the API takes them


class EmailOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, rename={"from_": "from"}):
    """For the e-mails of a request. Addresses may be `Name <address>`."""

    cc: list[str] = []
    bcc: list[str] = []
    from_: str | None = None
    reply_to: str | None = None
    headers: dict[str, str] = {}
    tags: list[str] = []
    track_opens: bool | None = None
    track_clicks: bool | None = None


class SmsOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """For the text messages of a request; with media they are MMS."""

    media: list[str] = []
    sender: str | None = None


class Action(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A button."""

    id: str
    title: str
    url: str | None = None


class PushOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """For the push messages of a request; what is given here replaces what the template says."""

    url: str | None = None
    image: str | None = None
    data: dict[str, str] | None = None
    actions: list[Action] | None = None
    badge: int | None = None
    sound: str | None = None
    collapse_key: str | None = None
    silent: bool | None = None


class Options(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a request wants of single channels."""

    email: EmailOptions | None = None
    sms: SmsOptions | None = None
    push: PushOptions | None = None


class AttachmentRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A file for the e-mails of a request: its content here, or the id of a blob that holds it."""

    filename: str
    content_type: str
    content: bytes | None = None
    """Base64."""
    blob: str | None = None
    content_id: str | None = None
    """For an image that the HTML shows as `cid:<content_id>`."""


# ---------------------------------------------------------------- as they are stored


class File(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file by the name of its blob."""

    filename: str
    content_type: str
    hash: str
    """SHA-256, hexadecimal."""
    size: int
    content_id: str | None = None

    @property
    def digest(self) -> bytes:
        """The hash as the blob's key has it."""
        return bytes.fromhex(self.hash)


class Extras(msgspec.Struct, omit_defaults=True):
    """The options of one notification, checked and in their normal form."""

    email: EmailOptions | None = None
    sms: SmsOptions | None = None
    push: PushOptions | None = None
    attachments: tuple[File, ...] = ()

    def fields(self, channel: Channel) -> dict[str, str]:
        """What replaces the rendered fields of this channel."""
        if channel is Channel.email and self.email is not None:
            return to_field_texts({"from": self.email.from_, "reply_to": self.email.reply_to})
        if channel is Channel.sms and self.sms is not None:
            return to_field_texts({"media": " ".join(self.sms.media) or None, "sender": self.sms.sender})
        if channel is Channel.push and self.push is not None:
            return to_field_texts(msgspec.structs.asdict(self.push))
        return {}

    def complete(
        self, content: Content, read: Callable[[File], bytes | None], headers: Sequence[tuple[str, str]] = ()
    ) -> Content:
        """The content with everything that no template field says.

        Args:
            read: gives the content of a file.
            headers: further header fields for a mail that does not have them already.

        Raises:
            RenderError: a file is not kept any more.
        """
        if not isinstance(content, Email):
            return content
        asked = self.email or EmailOptions()
        own = {name.lower() for name in asked.headers}
        return msgspec.structs.replace(
            content,
            cc=tuple(asked.cc),
            bcc=tuple(asked.bcc),
            headers=(*asked.headers.items(), *(pair for pair in headers if pair[0].lower() not in own)),
            tags=tuple(asked.tags),
            track_opens=asked.track_opens,
            track_clicks=asked.track_clicks,
            attachments=tuple(_attach(file, read(file)) for file in self.attachments),
        )


_encode: Final = msgspec.json.Encoder().encode
decode_extras: Final = msgspec.json.Decoder(Extras).decode


def to_field_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as the rendered fields of a channel: text as it is, numbers and truth as JSON writes them, the rest as
    JSON. Without those that are None."""
    return {
        name: value if isinstance(value, str) else _encode(value).decode()
        for name, value in values.items()
        if value is not None
    }


def _attach(file: File, content: bytes | None) -> Attachment:
    if content is None:
        raise RenderError(f"The attachment with the blob {to_blob_id(file.digest)} is not kept any more.")
    return Attachment(file.filename, file.content_type, content, file.content_id)


# ---------------------------------------------------------------- checking


def list_blobs(attachments: Sequence[AttachmentRequest] | None) -> list[bytes]:
    """The hashes of the blobs that attachments name; what is no blob's id is told when they are checked."""
    return [h for a in attachments or () if a.blob is not None and (h := parse_blob_id(a.blob)) is not None]


def parse_options(
    options: Options | None,
    attachments: Sequence[AttachmentRequest] | None,
    channels: int,
    sizes: Mapping[bytes, int],
    errors: list[FieldError],
) -> tuple[Extras | None, tuple[Blob, ...]]:
    """The options of a request in their normal form, and the files that it brought with it.

    Args:
        channels: bits of the channels that the request may use; options for another one are a mistake. 0: not known.
        sizes: of the project's blobs among those that `list_blobs` gave.
        errors: gets every fault with its pointer.
    """
    extras = Extras()
    blobs: list[Blob] = []
    if options is not None:
        errors += [
            FieldError(f"Nothing goes by {channel.name} here.", f"/options/{channel.name}")
            for channel in (Channel.email, Channel.sms, Channel.push)
            if getattr(options, channel.name) is not None and channels and not channels >> channel & 1
        ]
        if options.email is not None:
            extras.email = _parse_email(options.email, errors)
        if options.sms is not None:
            extras.sms = _parse_sms(options.sms, errors)
        if options.push is not None:
            extras.push = options.push
            _check_push(extras, errors)
    if attachments:
        if channels and not channels >> Channel.email & 1:
            errors.append(FieldError("Attachments go with e-mails, and nothing goes by email here.", "/attachments"))
        extras.attachments = _parse_attachments(attachments, sizes, blobs, errors)
    return (extras if extras != Extras() else None), tuple(blobs)


def to_stored(extras: Extras | None) -> str | None:
    """What `notification.options` holds."""
    return None if extras is None else _encode(extras).decode()


def _parse_email(given: EmailOptions, errors: list[FieldError]) -> EmailOptions:
    at = "/options/email"

    def mailbox(text: str | None, pointer: str) -> str | None:
        try:
            return None if text is None else parse_mailbox(text)
        except ValueError as error:
            errors.append(FieldError(str(error), pointer))
            return None

    def mailboxes(texts: Sequence[str], name: str) -> list[str]:
        return [good for i, text in enumerate(texts) if (good := mailbox(text, f"{at}/{name}/{i}")) is not None]

    headers: dict[str, str] = {}
    for name, value in given.headers.items():
        pointer = f"{at}/headers/{name[:80].replace('~', '~0').replace('/', '~1')}"
        try:
            parsed = parse_header(name, value)
        except ValueError as error:
            errors.append(FieldError(str(error), pointer))
            continue
        if any(name.lower() == other.lower() for other in headers):
            errors.append(FieldError("This field is given twice.", pointer))
        headers[name] = parsed
    if len(given.headers) > HEADERS_MAX:
        errors.append(FieldError(f"At most {HEADERS_MAX} header fields are taken.", f"{at}/headers"))
    if len(given.cc) + len(given.bcc) > COPIES_MAX:
        errors.append(FieldError(f"At most {COPIES_MAX} copies are sent.", f"{at}/{'cc' if given.cc else 'bcc'}"))
    if len(given.tags) > TAGS_MAX:
        errors.append(FieldError(f"At most {TAGS_MAX} tags are taken.", f"{at}/tags"))
    for i, tag in enumerate(given.tags):
        if not (1 <= len(tag) <= TAG_MAX and tag.isprintable() and tag == tag.strip() and "," not in tag):
            said = f"A tag has 1 to {TAG_MAX} printable characters, no comma, and no spaces around it."
            errors.append(FieldError(said, f"{at}/tags/{i}"))
    return EmailOptions(
        cc=mailboxes(given.cc, "cc"),
        bcc=mailboxes(given.bcc, "bcc"),
        from_=mailbox(given.from_, f"{at}/from"),
        reply_to=mailbox(given.reply_to, f"{at}/reply_to"),
        headers=headers,
        tags=given.tags,
        track_opens=given.track_opens,
        track_clicks=given.track_clicks,
    )


def _parse_sms(given: SmsOptions, errors: list[FieldError]) -> SmsOptions:
    media: list[str] = []
    if len(given.media) > MEDIA_MAX:
        errors.append(FieldError(f"At most {MEDIA_MAX} media are taken.", "/options/sms/media"))
    for i, text in enumerate(given.media):
        try:
            media.append(parse_media(text))
        except ValueError as error:
            errors.append(FieldError(str(error), f"/options/sms/media/{i}"))
    sender = given.sender
    if sender is not None and not (
        1 <= len(sender) <= SENDER_MAX and sender.isascii() and sender.isprintable() and sender == sender.strip()
    ):
        said = f"A sender is a number or a name: 1 to {SENDER_MAX} printable ASCII characters."
        errors.append(FieldError(said, "/options/sms/sender"))
    return SmsOptions(media=media, sender=sender)


def _check_push(extras: Extras, errors: list[FieldError]) -> None:
    """Whether a message can be made with these at all; with a stand-in for what the template will say."""
    fields = extras.fields(Channel.push)
    silent = extras.push is not None and extras.push.silent
    try:
        CHANNELS[Channel.push].to_content(fields if silent else {"title": "x", **fields})
    except RenderError as error:
        errors.append(FieldError(str(error), "/options/push"))


def _parse_attachments(
    given: Sequence[AttachmentRequest], sizes: Mapping[bytes, int], blobs: list[Blob], errors: list[FieldError]
) -> tuple[File, ...]:
    if len(given) > ATTACHMENTS_MAX:
        errors.append(FieldError(f"At most {ATTACHMENTS_MAX} files go with one message.", "/attachments"))
        return ()
    files: list[File] = []
    shown: set[str] = set()
    for i, one in enumerate(given):
        at = f"/attachments/{i}"
        errors += _list_faults(one, at, shown)
        if (one.content is None) == (one.blob is None):
            errors.append(FieldError("Give the `content`, or the id of a `blob` that holds it; one of the two.", at))
            continue
        if one.content is not None:
            blob = to_blob(one.content)
            hash_, size = blob.hash, len(one.content)
            if not size:
                errors.append(FieldError("The file is empty.", f"{at}/content"))
            blobs.append(blob)
        else:
            assert one.blob is not None
            known = parse_blob_id(one.blob)
            if known is None:
                errors.append(FieldError("A blob's id is `sha256:` and 64 hexadecimal digits.", f"{at}/blob"))
                continue
            if known not in sizes:
                said = "There is no such blob in this project; store it with POST /api/v1/blobs."
                errors.append(FieldError(said, f"{at}/blob"))
                continue
            hash_, size = known, sizes[known]
        files.append(File(one.filename, one.content_type, hash_.hex(), size, one.content_id))
    if (total := sum(file.size for file in files)) > ATTACHMENTS_SIZE_MAX:
        most = ATTACHMENTS_SIZE_MAX // (1024 * 1024)
        errors.append(FieldError(f"These are {total:,} bytes; one message takes {most} MB of files.", "/attachments"))
    return tuple(files)


def _list_faults(one: AttachmentRequest, at: str, shown: set[str]) -> list[FieldError]:
    errors = []
    name = one.filename
    if not (1 <= len(name) <= _FILENAME_MAX and name.isprintable() and not set(name) & set("/\\")):
        said = f"A filename has 1 to {_FILENAME_MAX} printable characters and no slash."
        errors.append(FieldError(said, f"{at}/filename"))
    if not _CONTENT_TYPE.fullmatch(one.content_type):
        said = "Write a content type such as `application/pdf` or `text/calendar; method=REQUEST`."
        errors.append(FieldError(said, f"{at}/content_type"))
    elif one.content_type.lower().startswith(("multipart/", "message/")):
        said = "Composite types cannot be attached (RFC 2046, 5.2.1); say application/octet-stream."
        errors.append(FieldError(said, f"{at}/content_type"))
    if one.content_id is not None:
        if not _CONTENT_ID.fullmatch(one.content_id):
            said = "A content id is 1 to 200 letters, digits and signs, without spaces and angle brackets."
            errors.append(FieldError(said, f"{at}/content_id"))
        elif one.content_id in shown:
            errors.append(FieldError("Two files have this content id.", f"{at}/content_id"))
        shown.add(one.content_id)
    return errors
