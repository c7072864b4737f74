"""The inbox without a database: what marks do, buttons of items, the bell's tags, commands and places of streams."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import ids
from tidings.channels import CHANNELS
from tidings.errors import Invalid, RenderError
from tidings.flow.inbox import Bell, InboxItem, Mark, decide_engagement, decide_mark, to_tag
from tidings.model.messages import InApp, InAppAction
from tidings.model.words import Channel, Engagement
from tidings.web.inbox.stream import parse_command, parse_place

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NEW = InboxItem("dlv_1", 1, 1, "ntf_1", "t", "", None, (), None, NOON, None, None, None, None)


@given(st.lists(st.sampled_from(Mark), max_size=12))
def test_marks_keep_their_order_of_meaning(marks: list[Mark]) -> None:
    item, shown = NEW, 0
    for n, mark in enumerate(marks):
        now = NOON + timedelta(seconds=n)
        marked = decide_mark(item, mark, now)
        if marked is not None:
            assert decide_mark(marked, mark, now + timedelta(days=1)) is None, "the same mark again changes nothing"
            shown |= decide_engagement(item, marked)
            item = marked
        assert not item.read_at or item.seen_at, "read, and not seen"
        match mark:
            case Mark.seen:
                assert item.seen_at
            case Mark.read:
                assert item.read_at
            case Mark.click:
                assert item.clicked_at
                assert item.read_at
            case Mark.unread:
                assert item.read_at is None
            case Mark.archive:
                assert item.archived_at
            case Mark.unarchive:
                assert item.archived_at is None
    for mark, bit in (
        (Mark.read, Engagement.read),
        (Mark.click, Engagement.clicked),
        (Mark.archive, Engagement.archived),
    ):
        assert bool(shown & bit) == bool({mark} & set(marks) or (mark is Mark.read and Mark.click in marks))


def _build(**fields: str) -> InApp:
    content = CHANNELS[Channel.in_app].to_content({"title": "t", **fields})
    assert isinstance(content, InApp)
    return content


def test_buttons() -> None:
    given = [{"id": "open", "title": " Open ", "url": "/orders/1"}, {"id": "later", "title": "Später"}]
    assert _build(actions=json.dumps(given)).actions == (
        InAppAction("open", "Open", "/orders/1"),
        InAppAction("later", "Später"),
    )
    for none in ("", " \n", "null", "[]"):
        assert _build(actions=none).actions == ()


@pytest.mark.parametrize(
    "actions",
    [
        "{}",
        "x",
        "[1]",
        '[{"id": "a"}]',
        [{"id": "a", "title": "A", "style": "red"}],
        [{"id": "a", "title": "A"}, {"id": "a", "title": "B"}],
        [{"id": "a b", "title": "A"}],
        [{"id": "", "title": "A"}],
        [{"id": "a", "title": " "}],
        [{"id": "a", "title": "A\nB"}],
        [{"id": "a", "title": "A" * 101}],
        [{"id": "a", "title": "A", "url": "javascript:alert(1)"}],
        [{"id": "a", "title": "A", "url": "//evil.example.net"}],
        [{"id": f"a{n}", "title": "A"} for n in range(6)],
        "[" * 5_000,
    ],
)
def test_buttons_that_are_refused(actions: Any) -> None:
    with pytest.raises(RenderError, match="actions"):
        _build(actions=actions if isinstance(actions, str) else json.dumps(actions))


def test_one_hint_names_many_inboxes() -> None:
    owners = [(n % 7, f"user-{n}") for n in range(2_500)]
    sent: list[tuple[str, str]] = []
    heard: set[str] = set()
    bell = Bell(lambda channel, payload: sent.append((channel, payload)))
    bell.listen(lambda tags: heard.update(tags or ()))
    bell.ring([*owners, *owners])
    assert len(sent) == 3
    assert all(len(payload) < 8_000 for _, payload in sent)
    for _, payload in sent:
        bell.hear(payload)
    assert heard == {to_tag(owner) for owner in owners}
    assert len(heard) == len(owners)
    bell.ring([])
    assert len(sent) == 3


def test_a_bell_alone_rings_at_home_and_an_empty_hint_means_everybody() -> None:
    heard: list[Any] = []
    bell = Bell()
    bell.listen(heard.append)
    bell.ring([(1, "ada")])
    bell.hear("")
    assert heard == [{to_tag((1, "ada"))}, None]


def test_places() -> None:
    assert parse_place(None) is None
    assert parse_place("") is None
    assert parse_place("42") == 42
    for wrong in ("x", "-1", "4 2", "٤", "1" * 19):
        with pytest.raises(Invalid):
            parse_place(wrong)


@given(st.text(max_size=200))
def test_any_command_is_one_or_is_refused(text: str) -> None:
    try:
        parse_command(text)
    except Invalid:
        return
    assert isinstance(json.loads(text), dict)


def test_commands() -> None:
    public = "dlv_01jd5k2y7qe3gvw3c1h2k4m6n8"
    assert parse_command(json.dumps({"read": [public], "seen": []})) == {
        Mark.read: [ids.parse_public(ids.DELIVERY, public)],
        Mark.seen: [],
    }
    for wrong in (None, "", "[]", '{"read": ["x"]}', '{"read": "x"}', '{"forget": []}', "{" + " " * 17_000 + "}"):
        with pytest.raises(Invalid):
            parse_command(wrong)
