"""What a report makes of a delivery, and what tracking links and their readers are."""

from __future__ import annotations

import base64
import random
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import ids
from tidings.directory.credentials import Vault
from tidings.directory.projects import Tracking
from tidings.flow.evidence import DETAIL_MAX, to_ref, to_storable
from tidings.flow.load import NO_CATEGORY, is_suppressed
from tidings.flow.receipts import (
    ENGAGEMENT_OF,
    STATUS_OF,
    Fact,
    State,
    decide_receipt,
    to_event_id,
    to_mark,
)
from tidings.flow.tracking import Signer, Token, is_machine, track_email
from tidings.model.messages import Email
from tidings.model.transitions import decide_transition
from tidings.model.words import EFFECTS, Effect, EventKind, Reason, Status
from tidings.providers.port import Report

DELIVERY = UUID("019a0000-0000-7000-8000-000000000001")
KEY = base64.b64encode(bytes(32)).decode()
OTHER_KEY = base64.b64encode(bytes([1] * 32)).decode()
BASE = "https://click.example.com"

states = st.builds(
    State,
    st.sampled_from([s for s in Status if s is not Status.sending]),
    st.none() | st.sampled_from(Reason),
    st.integers(0, 127),
    st.integers(0, 127),
)
reports = st.builds(
    Report, st.sampled_from(EventKind), reason=st.none() | st.sampled_from(Reason), machine=st.booleans()
)


@given(state=states, report=reports)
def test_reports_move_only_what_the_table_allows(state: State, report: Report) -> None:
    d = decide_receipt(state, report, category="news")
    if report.kind not in {*STATUS_OF, *ENGAGEMENT_OF, EventKind.retrying}:
        assert d.event is None
    if d.status is not None and report.kind in STATUS_OF:
        assert decide_transition(state.status, state.reason, STATUS_OF[report.kind]) is d.status
    if d.status is not None and report.kind not in STATUS_OF:  # somebody has it before them
        assert (state.status, state.reason, d.status) == (Status.failed, Reason.uncertain, Status.delivered)
        assert not report.machine or report.kind not in (EventKind.opened, EventKind.clicked)
    assert not d.engagement & state.engagement, "only bits that are new"
    assert not d.machine_engagement & state.machine_engagement
    assert not (d.engagement and d.machine_engagement)
    if d.suppress is not None:
        assert d.suppress_reason is not None
    if report.kind is EventKind.failed and report.reason is not None:
        assert d.drop_address == (EFFECTS[report.reason] is Effect.drop_address)
        assert (d.suppress == "") == (EFFECTS[report.reason] is Effect.suppress)


@given(state=states, report=reports)
def test_a_repetition_counts_nothing(state: State, report: Report) -> None:
    d = decide_receipt(state, report, category="")
    after = State(
        state.status if d.status is None else d.status,
        state.reason if d.status is None else d.reason,
        state.engagement | d.engagement,
        state.machine_engagement | d.machine_engagement,
    )
    again = decide_receipt(after, report, category="")
    assert again.counts == ()
    assert again.status is None
    assert not again.engagement
    assert not again.machine_engagement


def test_a_failure_does_not_stop_the_attempt_that_follows_it() -> None:
    waiting = State(Status.queued, None, 0, 0)
    assert decide_receipt(waiting, Report(EventKind.failed, reason=Reason.blocked), category="").status is None
    dead = decide_receipt(waiting, Report(EventKind.failed, reason=Reason.bounced), category="")
    assert dead.status is Status.failed
    assert dead.suppress == ""


def test_a_complaint_concerns_its_category_only() -> None:
    d = decide_receipt(State(Status.delivered, None, 0, 0), Report(EventKind.complained), category="news")
    assert (d.status, d.suppress, d.suppress_reason) == (None, "news", Reason.complained)


def test_a_complaint_about_a_message_without_a_type_spares_those_with_one() -> None:
    d = decide_receipt(State(Status.delivered, None, 0, 0), Report(EventKind.complained), category="")
    assert d.suppress == NO_CATEGORY
    assert is_suppressed(d.suppress, "")
    assert not is_suppressed(d.suppress, "password")
    assert is_suppressed("", "password")


def test_the_same_report_has_the_same_event_and_another_one_another() -> None:
    one = Fact(1, 7, Report(EventKind.delivered, provider_id="m-1", detail={"raw": 1}))
    assert to_mark(one) == to_mark(Fact(1, 7, Report(EventKind.delivered, provider_id="m-1", detail={"raw": 2})))
    assert to_mark(one) != to_mark(Fact(1, 8, one.report))
    assert to_mark(one) != to_mark(Fact(1, 7, Report(EventKind.failed, provider_id="m-1")))
    named = [Fact(1, 7, Report(EventKind.opened, event_id=id_)) for id_ in ("a", "b")]
    assert to_mark(named[0]) != to_mark(named[1])
    event = to_event_id(DELIVERY, to_mark(one))
    low, high = ids.family_range(DELIVERY)
    assert low <= event <= high
    assert event.version == 7


# ---------------------------------------------------------------- tokens and links


def test_tokens_tell_what_was_signed_and_only_that() -> None:
    signer = Signer(Vault([KEY]))
    token = Token(EventKind.clicked, 3, DELIVERY, "https://example.com/ü?a=1&b=2")
    text = signer.sign(token)
    assert signer.read(text, EventKind.clicked) == token
    assert signer.read(text, EventKind.opened) is None, "a link is not a pixel"
    assert Signer(Vault([OTHER_KEY])).read(text, EventKind.clicked) is None
    assert Signer(Vault([OTHER_KEY, KEY])).read(text, EventKind.clicked) == token, "old links live on after a rotation"


@given(st.data())
def test_a_changed_token_is_refused(data: st.DataObject) -> None:
    signer = Signer(Vault([KEY]))
    raw = bytearray(base64.urlsafe_b64decode(signer.sign(Token(EventKind.opened, 3, DELIVERY)) + "=="))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    assert signer.read(base64.urlsafe_b64encode(raw).decode().rstrip("="), EventKind.opened) is None


@given(st.text(max_size=60))
def test_nonsense_is_no_token(text: str) -> None:
    assert Signer(Vault([KEY])).read(text, EventKind.opened) is None


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "//evil.example", "ftp://a/b", "https://"])
def test_a_signed_link_still_leads_to_a_web_page_only(url: str) -> None:
    signer = Signer(Vault([KEY]))
    assert signer.read(signer.sign(Token(EventKind.clicked, 1, DELIVERY, url)), EventKind.clicked) is None


HTML = (
    '<html><body><p>Hi</p><a class="b" href="https://example.com/?a=1&amp;b=2">go</a>'
    "<A HREF='http://example.com/x'>x</A><a href=\"mailto:a@example.com\">m</a><a href='#top'>t</a>"
    '<a href="https://example.com/secret" data-tidings-track="off">s</a></body></html>'
)


def test_links_lead_over_us_and_the_pixel_stands_before_the_end() -> None:
    signer = Signer(Vault([KEY]))
    email = track_email(Email("s", html=HTML), signer, Tracking(True, True), BASE, 3, DELIVERY)
    assert email.html is not None
    links = [part.split('"', 1)[0] for part in email.html.split(f'"{BASE}/c/')[1:]]
    read = [signer.read(link, EventKind.clicked) for link in links]
    assert [token.url for token in read if token] == ["https://example.com/?a=1&b=2", "http://example.com/x"]
    assert 'href="mailto:a@example.com"' in email.html
    assert "href='#top'" in email.html
    assert 'href="https://example.com/secret"' in email.html
    assert email.html.index(f"{BASE}/o/") < email.html.index("</body>")


@pytest.mark.parametrize(("opens", "clicks"), [(False, False), (True, False), (False, True)])
def test_only_what_the_project_wants_is_tracked(opens: bool, clicks: bool) -> None:
    email = Email("s", html=HTML)
    tracked = track_email(email, Signer(Vault([KEY])), Tracking(opens, clicks), BASE, 3, DELIVERY)
    assert tracked.html is not None
    assert (f"{BASE}/o/" in tracked.html) == opens
    assert (f"{BASE}/c/" in tracked.html) == clicks
    assert (tracked == email) == (not opens and not clicks)
    text = msgspec.structs.replace(email, html=None, text="https://example.com")
    assert track_email(text, Signer(Vault([KEY])), Tracking(True, True), BASE, 3, DELIVERY) == text


@given(st.text(alphabet="<>a href='\"=/:.&;#\n", max_size=300), st.integers(0, 1000))
def test_any_html_is_survived(html: str, seed: int) -> None:
    random.Random(seed)
    tracked = track_email(Email("s", html=html), Signer(Vault([KEY])), Tracking(True, True), BASE, 3, DELIVERY)
    assert tracked.html is not None
    assert f"{BASE}/o/" in tracked.html


FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.mark.parametrize(
    ("method", "headers", "machine"),
    [
        ("GET", {"user-agent": FIREFOX}, False),
        ("GET", {"user-agent": "Mozilla/5.0 (Windows NT 5.1) (via ggpht.com GoogleImageProxy)"}, False),
        ("HEAD", {"user-agent": FIREFOX}, True),
        ("GET", {}, True),
        ("GET", {"user-agent": "Mozilla/5.0"}, True),
        ("GET", {"user-agent": FIREFOX, "sec-purpose": "prefetch;prerender"}, True),
        ("GET", {"user-agent": FIREFOX, "purpose": "preview"}, True),
        ("GET", {"user-agent": "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)"}, True),
        ("GET", {"user-agent": "Barracuda Sentinel (EE)"}, True),
        ("GET", {"user-agent": "python-requests/2.32"}, True),
    ],
)
def test_machines_are_known_by_what_they_say(method: str, headers: dict[str, str], machine: bool) -> None:
    assert is_machine(method, headers) is machine


@pytest.mark.parametrize(
    "unit", ["<a ", '<a "', "<a '\"", "<a href ", '<a href="http://example.com/" ', "<a href", "</body"]
)
def test_no_html_takes_long(unit: str) -> None:
    """These took hours: a worker serves all projects, and their templates are their own."""
    html = unit * (1_000_000 // len(unit))
    tracked = track_email(Email("s", html=html), Signer(Vault([KEY])), Tracking(False, True), BASE, 3, DELIVERY)
    assert tracked.html == html  # nothing in it ends


@pytest.mark.parametrize(
    ("html", "followed"),
    [
        ('<a href="https://example.com/">', True),
        ("<A\nclass=x title=\"a > b\" HREF = 'https://example.com/' id=y>", True),
        ("<a title=\"href='https://example.com/'\">", False),
        ('<a data-href="https://example.com/">', False),
        ('<a href="/x" data-href="https://example.com/">', False),
        ('<a href="https://example.com/"', False),
        ('<abbr href="https://example.com/">', False),
        ('<a href="https://example.com/" data-tidings-track=off>', False),
    ],
)
def test_what_counts_as_a_link(html: str, followed: bool) -> None:
    tracked = track_email(Email("s", html=html), Signer(Vault([KEY])), Tracking(False, True), BASE, 3, DELIVERY)
    assert tracked.html is not None
    assert (f"{BASE}/c/" in tracked.html) == followed
    assert followed or tracked.html == html


@pytest.mark.parametrize("id_", [None, "", "<a@b.example>", "x" * 500])
def test_usual_ids_of_vendors_are_stored_as_they_are(id_: str | None) -> None:
    assert to_ref(id_) == id_


@pytest.mark.parametrize("id_", ["a\0b", "x" * 501, "\udcff" * 600])
def test_ids_that_could_not_be_stored_are_stored_as_their_hash(id_: str) -> None:
    ref = to_ref(id_)
    assert ref is not None
    assert ref.startswith("sha256:")
    assert ref == to_ref(id_)


def test_a_large_detail_is_cut_once_for_all_reports_that_share_it() -> None:
    large, small = {"words": "x" * 5_000_000}, {"words": "x"}
    reports = [Report(EventKind.delivered, detail=detail) for detail in (large, large, small)]
    cut: dict[int, Any] = {}
    first, second, third = (to_storable(report, cut) for report in reports)
    assert first.detail is second.detail
    assert len(msgspec.json.encode(first.detail)) <= DETAIL_MAX
    assert third is reports[2]
