"""Preferences: what a user wants to hear, on which channels, how often; and who decides when several have a say.

Pure but for loading and writing. The order of the merge is `decide_preference`'s; docs/reference/rules.md has it as a
table. What users say is kept even where it names a category or a type that does not exist (any more): it counts as soon
as there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import msgspec
import structlog

from tidings.db.pool import Connection, Database, Record
from tidings.db.sql import load_queries
from tidings.directory import consent
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.categories import NO_CATEGORY_RULES, Category, CategoryRules, list_categories, to_rules
from tidings.directory.consent import Decision, Origin
from tidings.directory.projects import load_project
from tidings.directory.quiet import QuietHours, parse_quiet
from tidings.directory.users import parse_time_zone
from tidings.errors import FieldError, Invalid, NotFound, escape
from tidings.model.rulings import Answer, Level, Rule, Ruling
from tidings.model.words import Channel, Frequency, Reason

_queries: Final = load_queries(__package__, "preferences.sql")
_LOAD_CHOICES: Final = _queries.load_choices
_LOCK_CHOICES: Final = _queries.lock_choices
_APPLY_CHOICES: Final = _queries.apply_choices
_LIST_REQUIRED_CATEGORIES: Final = _queries.list_required_categories
_LIST_REQUIRED_TYPES: Final = _queries.list_required_types
_LIST_TYPES_WITH_A_SAY: Final = _queries.list_types_with_a_say

log = structlog.get_logger(__name__)

PREFERENCES_MAX: Final = 16 * 1024
"""Octets of what one user said, as JSON."""
MATRIX_MAX: Final = 500
"""Categories, and types, of which the merged preferences tell."""
_KEPT: Final = 4_096
"""Parsed documents that are kept, and the octets of the largest one that is."""


class CategoryChoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a user said of a category."""

    enabled: bool | None = None
    """On every channel; None: nothing said."""
    channels: dict[str, bool] = {}
    frequency: Frequency | None = None


class TypeChoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a user said of a single type."""

    enabled: bool | None = None
    channels: dict[str, bool] = {}


class Preferences(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that a user said; what was not said is not in it. Stored as `app_user.preferences`."""

    muted: bool = False
    """Nothing that is not required, for good or until `muted_until`."""
    muted_until: datetime | None = None
    channels: dict[str, bool] = {}
    categories: dict[str, CategoryChoice] = {}
    types: dict[str, TypeChoice] = {}


NOTHING_SAID: Final = Preferences()
UNREADABLE: Final = Preferences(muted=True)
"""Of a document that this version does not understand. It may hold a no, so nothing is sent that is not required."""

_NO_CHOICE: Final = CategoryChoice()
_decode: Final = msgspec.json.Decoder(Preferences).decode


def parse_preferences(text: str | None) -> Preferences:
    """The stored document; texts that come often are parsed once."""
    if not text or text == "{}":
        return NOTHING_SAID
    return _parse_often(text) if len(text) <= _KEPT else _parse(text)


def _parse(text: str) -> Preferences:
    try:
        said = _decode(text)
    except msgspec.MsgspecError as error:
        # Written by a newer Tidings, during an upgrade. It must not stop the batch that it is looked at in.
        log.error("directory.preferences.unreadable", error=str(error))
        return UNREADABLE
    return NOTHING_SAID if said == NOTHING_SAID else said


_parse_often: Final = lru_cache(maxsize=_KEPT)(_parse)


def encode_preferences(said: Preferences) -> str:
    """The document as it is stored: `parse_preferences` reads it back. What says nothing is left out."""
    return msgspec.json.encode(_prune(said)).decode()


def _prune(said: Preferences) -> Preferences:
    return msgspec.structs.replace(
        said,
        # The end of a silence that is not there says nothing.
        muted_until=said.muted_until if said.muted else None,
        categories={key: choice for key, choice in said.categories.items() if choice != CategoryChoice()},
        types={key: choice for key, choice in said.types.items() if choice != TypeChoice()},
    )


# ---------------------------------------------------------------- the merge

_NAMES: Final = {channel: channel.name for channel in Channel}
_WORDS: Final = {True: "on", False: "off"}


@lru_cache(maxsize=4_096)
def _to_ruling(on: bool, level: Level, channel: Channel, detail: str) -> Ruling:
    if on:
        return Ruling(Rule.preference, Answer.go, level, channel, detail=detail)
    return Ruling(Rule.preference, Answer.no, level, channel, Reason.opted_out, detail=detail)


def decide_preference(
    said: Preferences,
    *,
    type_key: str,
    type_defaults: Mapping[Channel, bool],
    category: CategoryRules,
    project_defaults: Mapping[Channel, bool],
    channel: Channel,
    now: datetime,
) -> Ruling | None:
    """Whether a user hears of a type on a channel; None: nobody had an opinion, so yes. Pure.

    The first of these that says anything decides; where two are named side by side, a no beats a yes:

    1. the category is required: yes
    2. the user muted everything: no
    3. the user of the type on the channel, then of the type
    4. the user of the category on the channel
    5. the user of the category, and the user of the channel
    6. the defaults of the type, the category, the project, one after the other

    A no has the reason `opted_out` and the level that said it.
    """
    name = _NAMES[channel]
    if category.required:
        return _to_ruling(True, Level.category, channel, f"the category `{category.key}` is required")
    if said is not NOTHING_SAID:
        ruling = _decide_by_user(said, type_key, category.key, channel, name, now)
        if ruling is not None:
            return ruling
    if (on := type_defaults.get(channel)) is not None:
        return _to_ruling(on, Level.type, channel, f"the type's default for {name} is {_WORDS[on]}")
    if (on := category.defaults.get(name)) is not None:
        detail = f"the default of the category `{category.key}` for {name} is {_WORDS[on]}"
        return _to_ruling(on, Level.category, channel, detail)
    if (on := project_defaults.get(channel)) is not None:
        return _to_ruling(on, Level.project, channel, f"the project's default for {name} is {_WORDS[on]}")
    return None


def _decide_by_user(
    said: Preferences, type_key: str, category_key: str, channel: Channel, name: str, now: datetime
) -> Ruling | None:
    if said.muted and (said.muted_until is None or now < said.muted_until):
        until = "" if said.muted_until is None else f" until {said.muted_until:%Y-%m-%dT%H:%M:%SZ}"
        return _to_ruling(False, Level.user, channel, f"the user muted everything{until}")
    if (of_type := said.types.get(type_key)) is not None:
        if (on := of_type.channels.get(name)) is not None:
            return _to_ruling(on, Level.user_type, channel, f"the user switched this type {_WORDS[on]} for {name}")
        if (on := of_type.enabled) is not None:
            return _to_ruling(on, Level.user_type, channel, f"the user switched this type {_WORDS[on]}")
    of_category = said.categories.get(category_key, _NO_CHOICE)
    if (on := of_category.channels.get(name)) is not None:
        detail = f"the user switched the category `{category_key}` {_WORDS[on]} for {name}"
        return _to_ruling(on, Level.user_category_channel, channel, detail)
    of_all, of_channel = of_category.enabled, said.channels.get(name)
    if of_all is not None and (of_all is False or of_channel is not False):
        detail = f"the user switched the category `{category_key}` {_WORDS[of_all]}"
        return _to_ruling(of_all, Level.user_category, channel, detail)
    if of_channel is not None:
        return _to_ruling(of_channel, Level.user_channel, channel, f"the user switched {name} {_WORDS[of_channel]}")
    return None


def decide_frequency(said: Preferences, category: CategoryRules) -> tuple[Frequency, Level]:
    """How often the user hears of a category, and who said so. Required categories are instant. Pure."""
    if category.required:
        return Frequency.instant, Level.category
    if said is not NOTHING_SAID:
        frequency = said.categories.get(category.key, _NO_CHOICE).frequency
        if frequency is not None:
            return frequency, Level.user_category
    if category.frequency is not Frequency.instant:
        return category.frequency, Level.category
    return Frequency.instant, Level.default


# ---------------------------------------------------------------- what holds, shown


class Choices(msgspec.Struct, frozen=True):
    """What a user said, with what else is theirs to say."""

    preferences: Preferences = NOTHING_SAID
    quiet_hours: QuietHours | None = None
    time_zone: str | None = None


class ChannelAnswer(msgspec.Struct, frozen=True):
    """Whether a user hears of something on a channel."""

    on: bool
    level: Level
    detail: str
    required: bool
    locked: bool
    """The user cannot change it."""


class FrequencyAnswer(msgspec.Struct, frozen=True):
    """How often a user hears of a category."""

    value: Frequency
    level: Level
    locked: bool


class CategoryAnswer(msgspec.Struct, frozen=True):
    """What holds for a user in a category."""

    key: str
    name: str
    description: str
    required: bool
    channels: dict[str, ChannelAnswer]
    frequency: FrequencyAnswer


class TypeAnswer(msgspec.Struct, frozen=True):
    """What holds for a user of a type."""

    key: str
    category: str
    required: bool
    channels: dict[str, ChannelAnswer]


class Merged(msgspec.Struct, frozen=True):
    """What holds for a user, whoever said so."""

    categories: list[CategoryAnswer]
    types: list[TypeAnswer]
    """Those that the user, or the type itself, has a say on of their own."""


class TypeWithASay(msgspec.Struct, frozen=True):
    """What the merge needs to know of a type."""

    key: str
    rules: CategoryRules
    defaults: Mapping[Channel, bool]


def decide_merged(
    said: Preferences,
    categories: Sequence[Category],
    types: Sequence[TypeWithASay],
    project_defaults: Mapping[Channel, bool],
    now: datetime,
) -> Merged:
    """What holds for a user of each category and type, on every channel. Pure."""

    def decide(key: str, defaults: Mapping[Channel, bool], rules: CategoryRules) -> dict[str, ChannelAnswer]:
        answers = {}
        for channel in Channel:
            ruling = decide_preference(
                said,
                type_key=key,
                type_defaults=defaults,
                category=rules,
                project_defaults=project_defaults,
                channel=channel,
                now=now,
            )
            on, level, detail = True, Level.default, "nobody says otherwise"
            if ruling is not None:
                on, level, detail = ruling.answer is Answer.go, ruling.level, ruling.detail or ""
            answers[channel.name] = ChannelAnswer(on, level, detail, required=rules.required, locked=rules.required)
        return answers

    def decide_often(rules: CategoryRules) -> FrequencyAnswer:
        return FrequencyAnswer(*decide_frequency(said, rules), locked=rules.required)

    return Merged(
        categories=[
            CategoryAnswer(
                key=category.key,
                name=category.name,
                description=category.description,
                required=category.required,
                channels=decide("", {}, category.rules),
                frequency=decide_often(category.rules),
            )
            for category in categories
        ],
        types=[
            TypeAnswer(type_.key, type_.rules.key, type_.rules.required, decide(type_.key, type_.defaults, type_.rules))
            for type_ in types
        ],
    )


def list_switched_on(said: Preferences, merged: Merged, category_key: str, channel_name: str) -> list[str]:
    """The types of a category that the user switched on there themselves: their word for a type is nearer than one for
    the category, so they come on after that is switched off. Pure."""
    found = []
    for type_ in merged.types:
        choice = said.types.get(type_.key) if type_.category == category_key else None
        if choice is not None and choice.channels.get(channel_name, choice.enabled):
            found.append(type_.key)
    return found


# ---------------------------------------------------------------- loading and writing


async def load_choices(db: Database | Connection, project_id: int, user_id: str) -> Choices:
    """What a user said.

    Raises:
        NotFound: this project has no such user.
    """
    return _to_choices(await db.fetchrow(_LOAD_CHOICES, project_id, user_id))


async def load_merged(db: Database | Connection, project_id: int, said: Preferences, now: datetime) -> Merged:
    """What holds for a user who said this, of the first MATRIX_MAX categories and types by key."""
    project = await load_project(db, project_id)
    categories = await list_categories(db, project_id, limit=MATRIX_MAX)
    rows = await db.fetch(_LIST_TYPES_WITH_A_SAY, project_id, list(said.types), MATRIX_MAX)
    types = []
    for row in rows:
        # A type whose category was deleted: in none, as the catalog sees it.
        rules = NO_CATEGORY_RULES if row["rules"] is None else to_rules("", row["required"], row["rules"])
        rules = msgspec.structs.replace(rules, key=row["category_key"])
        types.append(TypeWithASay(row["key"], rules, _to_defaults(msgspec.json.decode(row["defaults"]))))
    return decide_merged(said, categories, types, _to_defaults(project.settings.defaults), now)


async def apply_choices(
    conn: Connection, actor: Actor, user_id: str, given: Mapping[str, Any], origin: Origin, *, merge: bool
) -> Choices:
    """Writes what a user says now, under their lock, with one consent for every decision that changed.

    Args:
        given: `muted`, `muted_until`, `channels`, `categories`, `types`, `quiet_hours`, `time_zone`, as JSON has them.
        merge: what is not given stays, and None takes back what was said (RFC 7396). Else everything is replaced by
            what is given, but for a time zone that is not.

    Raises:
        NotFound: this project has no such user.
        Invalid: one error per thing to mend; among them, to switch off what is required.
    """
    errors = await _refuse_required(conn, actor.project_id, given)
    before = _to_choices(await conn.fetchrow(_LOCK_CHOICES, actor.project_id, user_id))
    after = _parse_choices(before, given, merge, errors)
    if errors:
        raise Invalid("These preferences cannot be kept as they are.", errors=errors)
    if after == before:
        return before
    await conn.execute(
        _APPLY_CHOICES,
        actor.project_id,
        user_id,
        encode_preferences(after.preferences),
        None if after.quiet_hours is None else msgspec.json.encode(after.quiet_hours).decode(),
        after.time_zone,
    )
    decisions = list_decisions(user_id, before.preferences, after.preferences)
    await consent.record(conn, actor.project_id, decisions, origin)
    await apply_audit(conn, actor, "user.put_preferences", f"user:{user_id}", before=before, after=after)
    return after


def list_decisions(user_id: str, before: Preferences, after: Preferences) -> list[Decision]:
    """What was decided between two states of a user's preferences. Pure."""
    old, new = dict(_list_said(before)), dict(_list_said(after))
    decisions = []
    for place in sorted({*old, *new}, key=lambda place: tuple(part or "" for part in place)):
        was, is_ = old.get(place), new.get(place)
        kind, channel, category_key, type_key = place
        if was == is_ or (channel is not None and channel not in Channel.__members__):
            continue
        if kind == "mute":
            # To end a silence is not to say nothing: what was said before it counts again.
            word = "in" if is_ is None else "out"
        elif is_ is None:
            word = "reset_frequency" if kind == "frequency" else "reset"
        else:
            word = is_
        decisions.append(
            Decision(
                word,
                user_id,
                channel=None if channel is None else Channel[channel],
                category_key=category_key,
                type_key=type_key,
            )
        )
    return decisions


_Place = tuple[str, str | None, str | None, str | None]
"""What is decided on: kind, channel, category, type."""


def _list_said(said: Preferences) -> Iterator[tuple[_Place, str]]:
    words = {True: "in", False: "out"}
    if said.muted:
        yield ("mute", None, None, None), f"out {said.muted_until}"
    for channel, on in said.channels.items():
        yield ("on", channel, None, None), words[on]
    for key, of_category in said.categories.items():
        if of_category.enabled is not None:
            yield ("on", None, key, None), words[of_category.enabled]
        for channel, on in of_category.channels.items():
            yield ("on", channel, key, None), words[on]
        if of_category.frequency is not None:
            yield ("frequency", None, key, None), of_category.frequency.value
    for key, of_type in said.types.items():
        if of_type.enabled is not None:
            yield ("on", None, None, key), words[of_type.enabled]
        for channel, on in of_type.channels.items():
            yield ("on", channel, None, key), words[on]


async def _refuse_required(conn: Connection, project_id: int, given: Mapping[str, Any]) -> list[FieldError]:
    """An error for every word in `given` that would switch off something required.

    A category that becomes required later is sent all the same: planning asks again.
    """
    errors: list[FieldError] = []
    categories = {key: faults for key, choice in _parts(given, "categories") if (faults := _list_noes(choice))}
    if categories:
        for row in await conn.fetch(_LIST_REQUIRED_CATEGORIES, project_id, list(categories)):
            detail = f"the category `{row['key']}` is required: it cannot be switched off or told later"
            errors += [FieldError(detail, f"/categories/{escape(row['key'])}{at}") for at in categories[row["key"]]]
    types = {key: faults for key, choice in _parts(given, "types") if (faults := _list_noes(choice))}
    if types:
        for row in await conn.fetch(_LIST_REQUIRED_TYPES, project_id, list(types)):
            detail = f"the type's category `{row['category_key']}` is required: it cannot be switched off"
            errors += [FieldError(detail, f"/types/{escape(row['key'])}{at}") for at in types[row["key"]]]
    return errors


def _parts(given: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, choice in (given.get(name) or {}).items():
        if isinstance(choice, Mapping):
            yield key, choice


def _list_noes(choice: Mapping[str, Any]) -> list[str]:
    """Where a choice says less than everything at once."""
    noes = ["/enabled"] if choice.get("enabled") is False else []
    noes += [f"/channels/{name}" for name, on in (choice.get("channels") or {}).items() if on is False]
    if choice.get("frequency") not in (None, Frequency.instant.value):
        noes.append("/frequency")
    return noes


def _parse_choices(before: Choices, given: Mapping[str, Any], merge: bool, errors: list[FieldError]) -> Choices:
    given = dict(given)
    time_zone = before.time_zone
    if "time_zone" in given:
        time_zone = given.pop("time_zone")
        if time_zone is not None:
            try:
                time_zone = parse_time_zone(time_zone)
            except ValueError as problem:
                errors.append(FieldError(str(problem), "/time_zone"))
    quiet_hours = before.quiet_hours if merge else None
    if "quiet_hours" in given:
        raw = given.pop("quiet_hours")
        quiet_hours = None if raw is None else parse_quiet(raw, "/quiet_hours", errors)
    base = msgspec.to_builtins(before.preferences, builtin_types=(datetime,)) if merge else {}
    document = _merge(base, given)
    if given.get("muted_until") is not None and not document.get("muted"):
        errors.append(FieldError("goes with `muted`: true", "/muted_until"))
    try:
        preferences = _prune(msgspec.convert(document, Preferences))
        new = msgspec.convert(_merge({}, given), Preferences)
    except msgspec.ValidationError as problem:
        errors.append(FieldError(str(problem)))
        return before
    for at, channels in _list_channels(new):
        for name in channels:
            if name not in Channel.__members__:
                detail = f"must be one of {', '.join(Channel.__members__)}"
                errors.append(FieldError(detail, f"{at}/channels/{escape(name)}"))
    if len(encode_preferences(preferences)) > PREFERENCES_MAX:
        errors.append(FieldError(f"all of them together must be at most {PREFERENCES_MAX // 1024} kB of JSON", ""))
    return Choices(NOTHING_SAID if preferences == NOTHING_SAID else preferences, quiet_hours, time_zone)


def _list_channels(said: Preferences) -> Iterator[tuple[str, Mapping[str, bool]]]:
    yield "", said.channels
    for key, of_category in said.categories.items():
        yield f"/categories/{escape(key)}", of_category.channels
    for key, of_type in said.types.items():
        yield f"/types/{escape(key)}", of_type.channels


def _merge(document: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the patch merged into it; see https://www.rfc-editor.org/rfc/rfc7396#section-2."""
    merged = dict(document)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            inner = merged.get(name)
            merged[name] = _merge(inner if isinstance(inner, Mapping) else {}, value)
        else:
            merged[name] = value
    return merged


def _to_choices(row: Record | None) -> Choices:
    if row is None:
        raise NotFound("There is no such user in this project.")
    quiet = row["quiet_hours"]
    return Choices(
        parse_preferences(row["preferences"]),
        None if quiet is None else msgspec.json.decode(quiet, type=QuietHours),
        row["time_zone"],
    )


def _to_defaults(named: Mapping[str, bool]) -> dict[Channel, bool]:
    """By channel; what a newer Tidings knows besides is left out."""
    return {Channel[name]: on for name, on in named.items() if name in Channel.__members__}
