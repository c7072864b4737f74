"""Who decides whether a user hears of something, and how often."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.directory.categories import NO_CATEGORY_RULES, Category, CategoryRules
from tidings.directory.consent import Decision
from tidings.directory.preferences import (
    NOTHING_SAID,
    UNREADABLE,
    CategoryChoice,
    Preferences,
    TypeChoice,
    TypeWithASay,
    decide_frequency,
    decide_merged,
    decide_preference,
    encode_preferences,
    list_decisions,
    parse_preferences,
)
from tidings.model.rulings import Answer, Level, Rule, Ruling
from tidings.model.words import Channel, Frequency, Reason

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)

keys = st.sampled_from(["news", "orders", "gone"])
maybe = st.sampled_from([None, True, False])
by_channel = st.dictionaries(st.sampled_from(["email", "sms", "pigeon"]), st.booleans(), max_size=3)
frequencies = st.sampled_from([None, *Frequency])
moments = st.none() | st.integers(-1_000, 1_000).map(lambda n: NOW + timedelta(seconds=n))
category_choices = st.builds(CategoryChoice, enabled=maybe, channels=by_channel, frequency=frequencies)
type_choices = st.builds(TypeChoice, enabled=maybe, channels=by_channel)
preferences = st.builds(
    Preferences,
    muted=st.booleans(),
    muted_until=moments,
    channels=by_channel,
    categories=st.dictionaries(keys, category_choices, max_size=3),
    types=st.dictionaries(keys, type_choices, max_size=3),
)
defaults = st.dictionaries(st.sampled_from([Channel.email, Channel.sms]), st.booleans(), max_size=2)
rules = st.builds(
    CategoryRules,
    key=keys,
    required=st.booleans(),
    defaults=st.dictionaries(st.sampled_from(["email", "sms"]), st.booleans(), max_size=2),
    frequency=st.sampled_from(Frequency),
)


def decide(
    said: Preferences = NOTHING_SAID,
    category: CategoryRules = NO_CATEGORY_RULES,
    *,
    type_key: str = "shipped",
    type_defaults: dict[Channel, bool] | None = None,
    project_defaults: dict[Channel, bool] | None = None,
    channel: Channel = Channel.sms,
) -> Ruling | None:
    return decide_preference(
        said,
        type_key=type_key,
        type_defaults=type_defaults or {},
        category=category,
        project_defaults=project_defaults or {},
        channel=channel,
        now=NOW,
    )


def read_the_table(
    said: Preferences,
    type_key: str,
    type_defaults: dict[Channel, bool],
    category: CategoryRules,
    project_defaults: dict[Channel, bool],
    channel: Channel,
) -> tuple[bool, Level | None]:
    """The table of docs/reference/rules.md, row by row: what each level says, the most specific first."""
    name = channel.name
    of_type = said.types.get(type_key, TypeChoice())
    of_category = said.categories.get(category.key, CategoryChoice())
    silent = said.muted and (said.muted_until is None or said.muted_until > NOW)
    table: list[list[tuple[Level, bool | None]]] = [
        [(Level.category, True if category.required else None)],
        [(Level.user, False if silent else None)],
        [(Level.user_type, of_type.channels.get(name))],
        [(Level.user_type, of_type.enabled)],
        [(Level.user_category_channel, of_category.channels.get(name))],
        [(Level.user_category, of_category.enabled), (Level.user_channel, said.channels.get(name))],
        [(Level.type, type_defaults.get(channel))],
        [(Level.category, category.defaults.get(name))],
        [(Level.project, project_defaults.get(channel))],
    ]
    for row in table:
        heard = [(level, on) for level, on in row if on is not None]
        if heard:
            # Side by side, a no beats a yes, and the first of the same opinion is named.
            level, on = min(heard, key=lambda opinion: opinion[1])
            return on, level
    return True, None


@given(preferences, keys, defaults, rules, defaults, st.sampled_from([Channel.email, Channel.sms, Channel.push]))
def test_the_merge_is_the_table(
    said: Preferences,
    type_key: str,
    type_defaults: dict[Channel, bool],
    category: CategoryRules,
    project_defaults: dict[Channel, bool],
    channel: Channel,
) -> None:
    on, level = read_the_table(said, type_key, type_defaults, category, project_defaults, channel)
    ruling = decide(
        said,
        category,
        type_key=type_key,
        type_defaults=type_defaults,
        project_defaults=project_defaults,
        channel=channel,
    )
    if level is None:
        assert ruling is None
        return
    assert ruling is not None
    assert (ruling.rule, ruling.channel, ruling.level) == (Rule.preference, channel, level)
    assert ruling.answer is (Answer.go if on else Answer.no)
    assert ruling.reason is (None if on else Reason.opted_out)
    assert ruling.detail


@given(preferences, rules)
def test_nothing_switches_off_what_is_required(said: Preferences, category: CategoryRules) -> None:
    category = msgspec.structs.replace(category, required=True)
    ruling = decide(said, category, type_defaults={Channel.sms: False}, project_defaults={Channel.sms: False})
    assert ruling is not None
    assert (ruling.answer, ruling.level) == (Answer.go, Level.category)
    assert decide_frequency(said, category) == (Frequency.instant, Level.category)


@given(preferences)
def test_a_document_is_read_back_as_it_was_said(said: Preferences) -> None:
    text = encode_preferences(said)
    again = parse_preferences(text)
    assert encode_preferences(again) == text
    assert again.muted == said.muted
    assert again.muted_until == (said.muted_until if said.muted else None)
    assert again.channels == said.channels
    assert again.categories == {k: c for k, c in said.categories.items() if c != CategoryChoice()}
    assert again.types == {k: c for k, c in said.types.items() if c != TypeChoice()}
    assert parse_preferences(text) is again, "what comes often is parsed once"


def test_documents_of_nothing_of_others_and_of_tomorrow() -> None:
    for nothing in (None, "", "{}", '{"muted": false}'):
        assert parse_preferences(nothing) is NOTHING_SAID
    odd = parse_preferences('{"categories": {"no.such": {"enabled": false}}, "channels": {"pigeon": false}, "new": 1}')
    assert decide(odd) is None
    assert parse_preferences('{"categories": {"news": {"frequency": "fortnightly"}}}') is UNREADABLE
    ruling = decide(UNREADABLE)
    assert ruling is not None
    assert ruling.answer is Answer.no, "it may hold a no"
    large = '{"channels": {"email": false, "' + "x" * 5_000 + '": true}}'
    assert parse_preferences(large) is not parse_preferences(large)
    assert parse_preferences(large).channels["email"] is False


@pytest.mark.parametrize(
    ("said", "level", "words"),
    [
        (Preferences(muted=True), Level.user, "the user muted everything"),
        (
            Preferences(muted=True, muted_until=NOW + timedelta(hours=1)),
            Level.user,
            "the user muted everything until 2026-11-22T13:00:00Z",
        ),
        (
            Preferences(types={"shipped": TypeChoice(False, {"email": True})}),
            Level.user_type,
            "the user switched this type off",
        ),
        (
            Preferences(types={"shipped": TypeChoice(True, {"sms": False})}),
            Level.user_type,
            "the user switched this type off for sms",
        ),
        (
            Preferences(categories={"news": CategoryChoice(True, {"sms": False})}),
            Level.user_category_channel,
            "the user switched the category `news` off for sms",
        ),
        (
            Preferences(categories={"news": CategoryChoice(False)}, channels={"sms": False}),
            Level.user_category,
            "the user switched the category `news` off",
        ),
        (
            Preferences(categories={"news": CategoryChoice(True)}, channels={"sms": False}),
            Level.user_channel,
            "the user switched sms off",
        ),
    ],
)
def test_a_no_says_who_said_it(said: Preferences, level: Level, words: str) -> None:
    ruling = decide(said, CategoryRules(key="news"))
    assert ruling == Ruling(Rule.preference, Answer.no, level, Channel.sms, Reason.opted_out, detail=words)


def test_a_silence_ends() -> None:
    assert decide(Preferences(muted=True, muted_until=NOW)) is None
    assert decide(Preferences(muted_until=NOW + timedelta(days=1))) is None


def test_a_frequency_is_the_users_then_the_categorys() -> None:
    said = Preferences(categories={"news": CategoryChoice(frequency=Frequency.instant)})
    weekly = CategoryRules(key="news", frequency=Frequency.weekly)
    assert decide_frequency(said, weekly) == (Frequency.instant, Level.user_category)
    assert decide_frequency(NOTHING_SAID, weekly) == (Frequency.weekly, Level.category)
    assert decide_frequency(said, CategoryRules(key="orders")) == (Frequency.instant, Level.default)


def test_the_matrix_tells_what_holds_and_what_is_locked() -> None:
    def category(key: str, **given: bool) -> Category:
        required = given.pop("required", False)
        return Category(key, key.title(), "", required, CategoryRules(key=key, required=required), NOW, NOW)

    said = Preferences(
        channels={"sms": False}, categories={"news": CategoryChoice(frequency=Frequency.daily, channels={"sms": True})}
    )
    offers = TypeWithASay("offers", CategoryRules(key="news"), {Channel.push: False})
    merged = decide_merged(
        said, [category("news"), category("security", required=True)], [offers], {Channel.webhook: False}, NOW
    )
    news, security = merged.categories
    assert {name: (cell.on, cell.level.value) for name, cell in news.channels.items()} == {
        "email": (True, "default"),
        "sms": (True, "user_category_channel"),
        "push": (True, "default"),
        "in_app": (True, "default"),
        "webhook": (False, "project"),
        "chat": (True, "default"),
    }
    assert (news.frequency.value, news.frequency.level, news.frequency.locked) == ("daily", "user_category", False)
    assert all(cell.on and cell.locked and cell.required for cell in security.channels.values())
    assert security.frequency.locked
    [row] = merged.types
    assert (row.category, row.channels["push"].on, row.channels["push"].level) == ("news", False, Level.type)


@given(preferences, preferences)
def test_every_change_is_a_decision_and_nothing_else_is(before: Preferences, after: Preferences) -> None:
    before, after = (parse_preferences(encode_preferences(said)) for said in (before, after))
    decisions = list_decisions("ada", before, after)
    places = [
        (d.channel, d.category_key, d.type_key, "frequency" in d.decision or d.decision in set(Frequency))
        for d in decisions
    ]
    assert len(set(places)) == len(places)
    assert list_decisions("ada", after, after) == []
    told = {
        (d.category_key, d.channel): d.decision for d in decisions if d.decision in ("in", "out") and d.category_key
    }
    for (category, channel), word in told.items():
        choice = after.categories[category]
        assert (choice.enabled if channel is None else choice.channels[channel.name]) is (word == "in")


def test_decisions_in_words() -> None:
    before = Preferences(
        muted=True,
        channels={"sms": False},
        categories={"news": CategoryChoice(enabled=False, frequency=Frequency.daily)},
    )
    after = Preferences(
        channels={"sms": True},
        categories={"orders": CategoryChoice(frequency=Frequency.weekly)},
        types={"offers": TypeChoice(channels={"email": False})},
    )
    assert list_decisions("ada", before, after) == [
        Decision("reset_frequency", "ada", category_key="news"),
        Decision("weekly", "ada", category_key="orders"),
        Decision("in", "ada"),
        Decision("reset", "ada", category_key="news"),
        Decision("out", "ada", channel=Channel.email, type_key="offers"),
        Decision("in", "ada", channel=Channel.sms),
    ]
