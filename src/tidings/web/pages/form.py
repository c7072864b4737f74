"""What the form of the preference page shows, and what it means when it comes back. Pure.

A form changes only what its reader changed: what they left as it was shown stays a default, and follows the defaults
when those change.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from tidings.directory.preferences import CategoryAnswer, Choices, Merged, Preferences, list_switched_on
from tidings.directory.quiet import QuietHours
from tidings.directory.users import parse_time_zone
from tidings.model.words import Channel, Frequency

FIELDS_MAX: Final = 8_000
MULTIPART_MAX: Final = 4_096
"""Octets of a form in parts. Only mail programs send such, with one field; our own page's form is no such. Parts in
parts take their parser time that grows with the square of their number."""
PAUSES: Final[Mapping[str, timedelta | None]] = {
    "pause_1": timedelta(days=1),
    "pause_7": timedelta(days=7),
    "pause_30": timedelta(days=30),
    "pause_ever": None,
}
NO_PAUSE: Final = "pause_no"
KEEP_PAUSE: Final = "pause_keep"
ONE_CLICK: Final = ("List-Unsubscribe", "One-Click")
"""The one field of a one-click unsubscription; see https://www.rfc-editor.org/rfc/rfc8058#section-3.1."""

_TIME: Final = re.compile(r"(?:[01]\d|2[0-3]):[0-5]\d")

Fields = Mapping[str, Sequence[str]]
"""What came with a form, by the field's name."""


def parse_fields(content_type: str, body: bytes) -> Fields:
    """The fields of a form, as browsers and mail programs send them; what is no form has none."""
    pairs: list[tuple[str, str]] = []
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        try:
            pairs = parse_qsl(
                body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="replace"
            )
        except ValueError:  # too many
            return {}
    elif kind == "multipart/form-data" and len(body) <= MULTIPART_MAX:
        head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace")
        try:
            message = BytesParser(policy=HTTP).parsebytes(head + body)
            parts = message.get_payload() if message.is_multipart() else []
            pairs = [pair for part in parts if isinstance(part, Message) and (pair := _parse_part(part)) is not None]
        except (ValueError, RecursionError):  # a name in an encoding that is none
            return {}
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def _parse_part(part: Message) -> tuple[str, str] | None:
    name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
    if not isinstance(name, str) or not isinstance(content, bytes):
        return None
    return name, content.decode("utf-8", "replace").removesuffix("\r\n")


def is_one_click(fields: Fields) -> bool:
    """Whether a form says what unsubscribing takes."""
    name, value = ONE_CLICK
    return value in fields.get(name, ())


# ---------------------------------------------------------------- what is shown


class Shown(msgspec.Struct, frozen=True):
    """What the page shows of a user."""

    choices: Choices
    merged: Merged
    """As if nothing were muted: what they would come back to."""
    categories: tuple[CategoryAnswer, ...]
    """Those that can be switched off come first."""
    channels: tuple[Channel, ...]
    muted: bool
    muted_until: datetime | None


def to_shown(
    choices: Choices,
    merged: Merged,
    channels: Collection[Channel],
    now: datetime,
    left: Collection[tuple[Channel, str]] = (),
) -> Shown:
    """What the page shows.

    Args:
        merged: of the choices `unmuted`.
        channels: on which this user can be reached.
        left: categories, by channel, that one of the user's addresses left before it was known to be theirs: what they
            say holds there only once they come back.
    """
    merged = msgspec.structs.replace(merged, categories=[_without(category, left) for category in merged.categories])
    said = choices.preferences
    muted = said.muted and (said.muted_until is None or now < said.muted_until)
    return Shown(
        choices,
        merged,
        tuple(sorted(merged.categories, key=lambda category: (category.required, category.name.casefold()))),
        tuple(channel for channel in Channel if channel in channels) or (Channel.email,),
        muted,
        said.muted_until if muted else None,
    )


def _without(category: CategoryAnswer, left: Collection[tuple[Channel, str]]) -> CategoryAnswer:
    gone = {channel.name for channel, key in left if key == category.key}
    if not gone or category.required:
        return category
    channels = {
        name: msgspec.structs.replace(answer, on=False) if name in gone else answer
        for name, answer in category.channels.items()
    }
    return msgspec.structs.replace(category, channels=channels)


def unmuted(said: Preferences) -> Preferences:
    """The same, without what mutes all of it."""
    return msgspec.structs.replace(said, muted=False, muted_until=None)


def find_range(quiet: QuietHours | None) -> tuple[str, str] | None:
    """Start and end of a user's quiet hours, empty where there are none; None when there is more to them than that."""
    if quiet is None:
        return "", ""
    if len(quiet.ranges) != 1 or quiet != QuietHours(ranges=quiet.ranges) or quiet.ranges[0].days:
        return None
    start, end = quiet.ranges[0].start, quiet.ranges[0].end
    return (start, end) if _TIME.fullmatch(end) else None  # 24:00 is no time that a browser's field takes


# ---------------------------------------------------------------- what comes back


class Change(msgspec.Struct, frozen=True):
    """One thing that the reader changed, for showing them what was saved."""

    what: str
    """`category`, `frequency`, `pause`, `quiet` or `time_zone`."""
    value: str
    category: str = ""
    """Its name."""
    channel: Channel | None = None
    key: str = ""
    """The category's."""


class Fault(msgspec.Struct, frozen=True):
    """What cannot be taken."""

    field: str
    """The id of the control."""
    text: str
    """The key of the words."""


class Answer(msgspec.Struct, frozen=True):
    """What a form means."""

    given: dict[str, Any]
    """As `tidings.directory.preferences.apply_choices` merges it."""
    changes: tuple[Change, ...]
    faults: tuple[Fault, ...]


def parse_answer(fields: Fields, shown: Shown, now: datetime) -> Answer:
    """What the reader of a form wants, next to what holds now.

    Categories that the form did not show, because they are new, stay as they are.
    """
    given: dict[str, Any] = {}
    changes: list[Change] = []
    faults: list[Fault] = []
    asked = {key: names.split(",") for text in fields.get("shown", ()) for key, _, names in [text.partition(" ")]}
    on = set(fields.get("on", ()))
    for category in shown.categories:
        if category.required or category.key not in asked:
            continue
        _take_channels(category, asked[category.key], on, shown, given, changes)
        frequency = _first(fields, f"often:{category.key}")
        if frequency in Frequency.__members__ and frequency != category.frequency.value:
            given.setdefault("categories", {}).setdefault(category.key, {})["frequency"] = frequency
            changes.append(Change("frequency", frequency, category.name))
    _take_pause(_first(fields, "pause"), shown, now, given, changes)
    _take_quiet(fields, shown, given, changes, faults)
    _take_time_zone(fields, shown, given, changes)
    return Answer(given, tuple(changes), tuple(faults))


def _first(fields: Fields, name: str) -> str:
    values = fields.get(name, ())
    return values[0] if values else ""


def _take_channels(
    category: CategoryAnswer,
    asked: Collection[str],
    on: Collection[str],
    shown: Shown,
    given: dict[str, Any],
    changes: list[Change],
) -> None:
    for name, answer in category.channels.items():
        wanted = f"{name}:{category.key}" in on
        if name not in asked or wanted == answer.on:
            continue
        given.setdefault("categories", {}).setdefault(category.key, {}).setdefault("channels", {})[name] = wanted
        changes.append(Change("category", "on" if wanted else "off", category.name, Channel[name], category.key))
        if not wanted:
            for key in list_switched_on(shown.choices.preferences, shown.merged, category.key, name):
                given.setdefault("types", {}).setdefault(key, {}).setdefault("channels", {})[name] = False


def _take_pause(pause: str, shown: Shown, now: datetime, given: dict[str, Any], changes: list[Change]) -> None:
    if pause == NO_PAUSE:
        if shown.muted:
            given |= {"muted": None, "muted_until": None}
            changes.append(Change("pause", pause))
    elif pause in PAUSES:
        length = PAUSES[pause]
        until = None if length is None else now.replace(microsecond=0) + length
        given |= {"muted": True, "muted_until": until}
        changes.append(Change("pause", pause))


def _take_quiet(
    fields: Fields, shown: Shown, given: dict[str, Any], changes: list[Change], faults: list[Fault]
) -> None:
    before = find_range(shown.choices.quiet_hours)
    if before is None or not {"quiet_start", "quiet_end"} <= fields.keys():
        return
    start, end = (_first(fields, name).strip() for name in ("quiet_start", "quiet_end"))
    if (start, end) == before:
        return
    if not start and not end:
        given["quiet_hours"] = None
        changes.append(Change("quiet", ""))
        return
    wrong = [
        Fault(name, "error_time")
        for name, text in (("quiet_start", start), ("quiet_end", end))
        if text and not _TIME.fullmatch(text)
    ]
    if not wrong and not (start and end):
        wrong = [Fault("quiet_end" if start else "quiet_start", "error_both")]
    if not wrong and start == end:
        wrong = [Fault("quiet_end", "error_same")]
    if wrong:
        faults += wrong
        return
    given["quiet_hours"] = {"ranges": [{"start": start, "end": end}]}
    changes.append(Change("quiet", f"{start}–{end}"))


def _take_time_zone(fields: Fields, shown: Shown, given: dict[str, Any], changes: list[Change]) -> None:
    if "time_zone" not in fields:
        return
    wanted = _first(fields, "time_zone") or None
    if wanted == shown.choices.time_zone:
        return
    if wanted is not None:
        try:
            parse_time_zone(wanted)
        except ValueError:  # not from our list
            return
    given["time_zone"] = wanted
    changes.append(Change("time_zone", wanted or ""))
