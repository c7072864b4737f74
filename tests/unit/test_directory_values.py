"""What may stand in the directory: user ids, locales, time zones, attributes; and cursors through its lists."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.directory.users import parse_attributes, parse_locale, parse_time_zone, parse_user_id
from tidings.errors import Invalid
from tidings.web.deps import PageRequest, fingerprint, parse_idempotency_key


@pytest.mark.parametrize(
    ("text", "locale"),
    [("de", "de"), ("de_at", "de-AT"), ("EN-us", "en-US"), ("zh-Hant-TW", "zh-Hant-TW"), ("sr_latn", "sr-Latn")],
)
def test_locales_get_their_usual_spelling(text: str, locale: str) -> None:
    assert parse_locale(text) == locale
    assert parse_locale(locale) == locale


@pytest.mark.parametrize("text", ["", "x", "xx", "de-XX", "de-", "../x", "d" * 5000, "dé", "de\0", "root-x"])
def test_what_is_no_locale(text: str) -> None:
    with pytest.raises(ValueError, match="not a known locale"):
        parse_locale(text)


def test_time_zones_are_those_of_the_database() -> None:
    assert parse_time_zone("Europe/Vienna") == "Europe/Vienna"
    for text in ("", "localtime", "europe/vienna", "../UTC", "posix/UTC", "UTC\0", "CET-1"):
        with pytest.raises(ValueError, match="not a known time zone"):
            parse_time_zone(text)


@given(st.text(min_size=1, max_size=300))
def test_user_ids_hold_no_control_characters(text: str) -> None:
    try:
        assert parse_user_id(text) == text
    except ValueError:
        assert len(text) > 255 or text in (".", "..") or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


def test_attributes_are_bounded() -> None:
    assert parse_attributes({"a": "\\u0000"}) == {"a": "\\u0000"}
    for wrong in ({"a": "x" * 16_384}, {"a": ["\0"]}, {"\0": 1}):
        with pytest.raises(ValueError, match=r"kB|NUL"):
            parse_attributes(wrong)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=100))
def test_a_cursor_leads_back_to_its_place(place: str) -> None:
    page = PageRequest(1, None).cut([place, "more"], lambda row: row, "users")
    assert page["items"] == [place]
    assert PageRequest(1, page["next_cursor"]).after(str, "users") == place
    for kind, listing in ((str, "others"), (int, "users"), (UUID, "users")):
        with pytest.raises(Invalid):
            PageRequest(1, page["next_cursor"]).after(kind, listing)


def test_a_cursor_takes_what_the_list_is_ordered_by() -> None:
    place = uuid4()
    cursor = PageRequest(1, None).cut([place, place], lambda row: row, "keys")["next_cursor"]
    assert PageRequest(1, cursor).after(UUID, "keys") == place
    assert PageRequest(2, None).cut([1, 2], lambda row: row, "x")["next_cursor"] is None


@given(st.text(max_size=400))
def test_no_text_is_a_cursor_by_chance(text: str) -> None:
    with pytest.raises(Invalid):
        PageRequest(1, text).after(str, "users")


def test_the_same_request_has_the_same_fingerprint() -> None:
    one = fingerprint("POST", "/keys", b'{"a": 1, "b": [1.0, "x"]}')
    assert fingerprint("POST", "/keys", b'{"b":[1.0,"\\u0078"],"a":1}') == one
    for other in (("POST", "/other", b'{"a": 1, "b": [1.0, "x"]}'), ("POST", "/keys", b'{"a": 1, "b": ["x", 1.0]}')):
        assert fingerprint(*other) != one
    assert fingerprint("POST", "/keys", b"") != one


def test_idempotency_keys_come_quoted_or_bare() -> None:
    assert parse_idempotency_key(None) is None
    assert parse_idempotency_key('"k-1"') == parse_idempotency_key(" k-1 ") == "k-1"
    for wrong in ("", '""', "x" * 256, "é", "a\tb"):
        with pytest.raises(Invalid):
            parse_idempotency_key(wrong)
