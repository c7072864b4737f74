"""Pages: their languages, what forms say, the tokens of guests, and the links and header fields of messages."""

from __future__ import annotations

import base64
import random
import string
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import ids
from tidings.directory.credentials import Vault
from tidings.directory.preferences import (
    NOTHING_SAID,
    CategoryAnswer,
    ChannelAnswer,
    Choices,
    FrequencyAnswer,
    Merged,
    Preferences,
)
from tidings.directory.projects import Project, ProjectSettings, Tracking
from tidings.directory.quiet import QuietHours, Range
from tidings.flow.load import Delivery
from tidings.flow.tracking import FIELD_MAX, Guest, Signer, Token, Tracker
from tidings.model.rulings import Level
from tidings.model.words import Channel, EventKind, Frequency, Status
from tidings.providers.mime import MAX_LINE
from tidings.web.pages.form import Change, find_range, is_one_click, parse_answer, parse_fields, to_shown
from tidings.web.pages.words import choose_words, load_words

KEY = base64.b64encode(bytes(range(32))).decode()
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ID = ids.new_id(NOW, random.Random(1))


# ---------------------------------------------------------------- languages


def test_every_language_says_everything() -> None:
    known = load_words()
    assert {"en", "de", "fr", "es", "pt", "it", "nl"} <= known.keys()

    def places(text: str) -> list[str]:
        return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)

    english = known["en"].texts
    for language, words in known.items():
        assert words.texts.keys() == english.keys(), language
        for key, text in words.texts.items():
            assert text.strip() == text != "", f"{language}: {key}"
            assert places(text) == places(english[key]), f"{language}: {key}"
        assert words("direction") == ("rtl" if language in ("ar", "he") else "ltr")
    for channel in Channel:
        assert f"channel_{channel.name}" in english
    for frequency in Frequency:
        assert f"frequency_{frequency.value}" in english


@pytest.mark.parametrize(
    ("locale", "accept", "language"),
    [
        (None, "", "en"),
        (None, "de-AT,de;q=0.9,en;q=0.8", "de"),
        (None, "xx,fr;q=0.1,nl;q=0.7", "nl"),
        (None, "fr;q=0,it", "it"),
        (None, "fr;q=no,*;q=x", "en"),
        ("pt-BR", "de", "pt"),
        ("tlh", "de", "de"),
    ],
)
def test_the_language_is_the_users_or_the_browsers(locale: str | None, accept: str, language: str) -> None:
    assert choose_words(locale, accept).language == language


@given(st.text(max_size=200))
def test_any_accepted_language_is_survived(accept: str) -> None:
    assert choose_words(None, accept).language in load_words()


# ---------------------------------------------------------------- forms


def test_a_name_in_an_encoding_that_is_none_is_no_field() -> None:
    body = b"--x\r\nContent-Disposition: form-data; name*=idna'x'%ff\r\n\r\na\r\n--x--\r\n"
    assert parse_fields("multipart/form-data; boundary=x", body) == {}


@given(st.sampled_from(["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"]), st.binary())
def test_any_body_is_survived(kind: str, body: bytes) -> None:
    assert is_one_click(parse_fields(kind, body)) is False


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b"List-Unsubscribe=One-Click"),
        ("Application/X-WWW-Form-Urlencoded; charset=UTF-8", b"a=b&List-Unsubscribe=One-Click"),
        (
            'multipart/form-data; boundary="a b"',
            b'--a b\r\ncontent-disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--a b--',
        ),
    ],
)
def test_a_click_is_understood_in_either_form(kind: str, body: bytes) -> None:
    """RFC 8058, section 3.2: multipart/form-data, or application/x-www-form-urlencoded."""
    assert is_one_click(parse_fields(kind, body))


def shown(said: Preferences = NOTHING_SAID, *, required: bool = False, **choices: Any) -> Any:
    answers = {
        channel.name: ChannelAnswer(channel is not Channel.sms, Level.default, "", required, required)
        for channel in Channel
    }
    often = FrequencyAnswer(Frequency.instant, Level.default, required)
    merged = Merged([CategoryAnswer("news", "News", "", required, answers, often)], [])
    return to_shown(Choices(said, **choices), merged, {Channel.email, Channel.sms}, NOW)


def test_a_form_says_only_what_was_changed() -> None:
    fields = {"shown": ["news email,sms"], "on": ["sms:news"], "often:news": ["daily"], "pause": ["pause_no"]}
    answer = parse_answer(fields, shown(), NOW)
    assert answer.given == {"categories": {"news": {"channels": {"email": False, "sms": True}, "frequency": "daily"}}}
    assert answer.changes == (
        Change("category", "off", "News", Channel.email, "news"),
        Change("category", "on", "News", Channel.sms, "news"),
        Change("frequency", "daily", "News"),
    )
    assert parse_answer({**fields, "on": ["email:news"], "often:news": ["instant"]}, shown(), NOW).given == {}
    assert parse_answer(fields, shown(required=True), NOW).given == {}
    assert parse_answer({"on": []}, shown(), NOW).given == {}, "what was not shown was not switched off"


def test_a_break_ends_when_it_is_said_to() -> None:
    for pause, until in (("pause_1", NOW + timedelta(days=1)), ("pause_ever", None)):
        assert parse_answer({"pause": [pause]}, shown(), NOW).given == {"muted": True, "muted_until": until}
    muted = Preferences(muted=True, muted_until=NOW + timedelta(hours=1))
    assert parse_answer({"pause": ["pause_keep"]}, shown(muted), NOW).given == {}
    assert parse_answer({"pause": ["pause_no"]}, shown(muted), NOW).given == {"muted": None, "muted_until": None}
    over = Preferences(muted=True, muted_until=NOW)
    assert parse_answer({"pause": ["pause_no"]}, shown(over), NOW).given == {}, "it is over by itself"


NIGHT = Range("22:00", "07:00")


@pytest.mark.parametrize(
    ("quiet", "simple"),
    [
        (None, ("", "")),
        (QuietHours((NIGHT,)), ("22:00", "07:00")),
        (QuietHours(), None),
        (QuietHours((NIGHT, NIGHT)), None),
        (QuietHours((Range("22:00", "24:00"),)), None),
        (QuietHours((Range("22:00", "07:00", ("sat",)),)), None),
        (QuietHours((NIGHT,), channels=("sms",)), None),
        (QuietHours((NIGHT,), exempt=()), None),
    ],
)
def test_only_simple_quiet_hours_are_asked(quiet: QuietHours | None, simple: tuple[str, str] | None) -> None:
    assert find_range(quiet) == simple
    answer = parse_answer({"quiet_start": ["01:00"], "quiet_end": ["02:00"]}, shown(quiet_hours=quiet), NOW)
    assert answer.faults == ()
    assert answer.given == ({} if simple is None else {"quiet_hours": {"ranges": [{"start": "01:00", "end": "02:00"}]}})


# ---------------------------------------------------------------- guests

GUESTS = st.builds(
    Guest,
    page=st.sampled_from(["u", "p"]),
    project_id=st.integers(0, 2**31 - 1),
    delivery=st.none() | st.just(ID),
    user_id=st.none() | st.text(min_size=1, max_size=255),
    channel=st.sampled_from(Channel),
    address=st.none() | st.text(max_size=320),
    category=st.text(max_size=64),
    test=st.booleans(),
    expires_at=st.none() | st.just(NOW + timedelta(seconds=1)),
)


@given(GUESTS)
def test_a_guest_is_who_the_token_says(guest: Guest) -> None:
    signer = Signer(Vault([KEY]))
    text = signer.invite(guest)
    assert signer.recognise(text, guest.page, NOW) == guest
    assert signer.recognise(text, "p" if guest.page == "u" else "u", NOW) is None
    assert (signer.recognise(text, guest.page, NOW + timedelta(seconds=1)) is None) == (guest.expires_at is not None)
    assert Signer(Vault([base64.b64encode(bytes(32)).decode()])).recognise(text, guest.page, NOW) is None


@given(GUESTS, st.data())
def test_a_changed_token_names_nobody(guest: Guest, data: st.DataObject) -> None:
    signer = Signer(Vault([KEY]))
    raw = bytearray(base64.urlsafe_b64decode(signer.invite(guest) + "=="))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert signer.recognise(base64.urlsafe_b64encode(raw).decode().rstrip("="), guest.page, NOW) is None


def test_a_link_that_tells_opens_is_no_guest() -> None:
    signer = Signer(Vault([KEY]))
    text = signer.sign(Token(EventKind.clicked, 1, ID, "https://example.com/"))
    assert signer.recognise(text, "u", NOW) is None
    assert signer.read(signer.invite(Guest("u", 1, ID, "ada")), EventKind.clicked) is None


# ---------------------------------------------------------------- links and header fields


def delivery(user_id: str | None = "ada", *, test: bool = False) -> Delivery:
    return Delivery(
        id=ID, project_id=3, notification_id=ID, channel=Channel.email, status=Status.queued,
        address="ada@example.com", template_version_id=None, locale=None, variant=None, reason=None,
        type_version_id=None, user_id=user_id, data=None, content=None, at_most_once=False, test=test,
        expires_at=None, cancelled=False, expired=False, suppressed=None, user_deleted=False, queued_at=NOW,
        user_time_zone=None, user_attributes=None,
    )  # fmt: skip


def project(domain: str | None = None) -> Project:
    return Project(3, "shop", "Shop", NOW, ProjectSettings(tracking=Tracking(domain=domain)))


def test_links_lead_to_the_projects_domain_or_to_us() -> None:
    tracker = Tracker(Vault([KEY]), "https://tidings.example.com/")
    for where, base in (
        (project("https://click.example.com"), "https://click.example.com"),
        (None, "https://tidings.example.com"),
    ):
        links = tracker.link(delivery(), where, "news")
        assert links is not None
        assert links.unsubscribe.startswith(f"{base}/u/")
        assert links.preferences.startswith(f"{base}/p/")
        guest = Signer(Vault([KEY])).recognise(links.unsubscribe.rpartition("/")[2], "u", NOW)
        assert guest == Guest("u", 3, ID, "ada", Channel.email, None, "news")
    assert Tracker(Vault([KEY]), None).link(delivery(), project(), "news") is None


def test_who_is_no_user_is_known_by_the_address() -> None:
    links = Tracker(Vault([KEY]), "https://t.example").link(delivery(None, test=True), None, "news")
    assert links is not None
    assert links.preferences == links.unsubscribe
    guest = Signer(Vault([KEY])).recognise(links.unsubscribe.rpartition("/")[2], "u", NOW)
    assert guest == Guest("u", 3, ID, None, Channel.email, "ada@example.com", "news", test=True)


def test_header_fields_promise_one_click() -> None:
    links = Tracker(Vault([KEY]), "https://t.example").link(delivery(), None, "news")
    assert links is not None
    assert links.list_fields() == (
        ("List-Unsubscribe", f"<{links.unsubscribe}>"),
        ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
    )
    assert links.list_fields(["X-A", "list-unsubscribe"]) == (), "never a click on behalf of another address"


def test_header_fields_promise_nothing_that_does_not_hold() -> None:
    required = Tracker(Vault([KEY]), "https://t.example").link(delivery(), None, "")
    assert required is not None
    assert (required.unsubscribe, required.list_fields()) == ("", ())
    assert required.preferences
    plain = Tracker(Vault([KEY]), "http://localhost:8080").link(delivery(), None, "news")
    assert plain is not None
    assert [name for name, _ in plain.list_fields()] == ["List-Unsubscribe"], "RFC 8058 asks for HTTPS"
    long = Tracker(Vault([KEY]), "https://t.example").link(delivery("ü" * 255), None, "news" * 16)
    assert long is not None
    assert all(len(value) <= FIELD_MAX for _, value in long.list_fields())


def test_a_field_fits_a_line_for_every_usual_id() -> None:
    links = Tracker(Vault([KEY]), "https://" + "a" * 60 + ".example").link(delivery("x" * 255), None, "n" * 64)
    assert links is not None
    assert links.list_fields()
    assert FIELD_MAX < MAX_LINE - 100
    assert UUID(int=0) != ID
