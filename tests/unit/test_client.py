"""The Python client against a real HTTP server that follows a script of answers and failures."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from tests.unit.scripted_server import Server, Step
from tidings import client as tidings
from tidings.client import requests
from tidings.client.attempts import Patience, Retries, parse_retry_after


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def time_() -> Time:
    return Time()


Connect = Callable[..., tidings.Client]


@pytest.fixture
def connect(server: Server, time_: Time) -> Iterator[Connect]:
    opened: list[tidings.Client] = []

    def connect(**options: Any) -> tidings.Client:
        own: dict[str, Any] = {"api_key": "tdg_demo_k_s3cret", "url": server.url, "rng": random.Random(1)}
        client = tidings.Client(sleep=time_.sleep, monotonic=time_.monotonic, **own | options)
        opened.append(client)
        return client

    yield connect
    for client in opened:
        client.close()


def problem(status: int, code: str = "x", **more: Any) -> Step:
    body = {"type": f"https://tidings.dev/errors#{code}", "title": "Title", "status": status, "detail": "Mend it."}
    return Step(status, body | more.pop("body", {}), **more)


ACCEPTED = Step(202, {"id": "ntf_1", "status": "queued"})
DONE = Step(204)


def test_send_speaks_the_api(server: Server, connect: Connect) -> None:
    server.steps = [ACCEPTED]
    at = datetime(2030, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=2)))
    accepted = connect().send(
        type="order_shipped",
        to={"user": "u-42"},
        data={"order": "Ä-1"},
        priority="high",
        channels=["email"],
        send_at=at,
        idempotency_key="order-1",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert accepted == tidings.Accepted(id="ntf_1", status="queued", idempotent_replayed=False)
    [seen] = server.seen
    assert (seen.method, seen.path) == ("POST", "/api/v1/notifications")
    assert seen.headers["authorization"] == "Bearer tdg_demo_k_s3cret"
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["idempotency-key"] == "order-1"
    assert seen.headers["traceparent"].startswith("00-0af7")
    assert seen.json == {
        "type": "order_shipped",
        "to": {"user": "u-42"},
        "data": {"order": "Ä-1"},
        "priority": "high",
        "channels": ["email"],
        "send_at": "2030-01-02T03:04:00+02:00",
    }


def test_naive_times_are_refused_before_anything_is_sent(server: Server, connect: Connect) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        connect().send(to={"user": "u"}, type="t", send_at=datetime(2030, 1, 1))
    with pytest.raises(ValueError, match="aware"):
        list(connect().list(since=datetime(2030, 1, 1)))
    assert server.seen == []


@pytest.mark.parametrize(
    "failure",
    [
        problem(429),
        problem(502),
        problem(503, "unavailable"),
        problem(504),
        problem(409, "idempotency-busy"),
        Step(instead="reset"),
        Step(instead="garbage"),
        Step(503, b"<html>nginx</html>"),
    ],
    ids=["429", "502", "503", "504", "busy", "reset", "garbage", "not json"],
)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_repeats_with_one_key(server: Server, time_: Time, kind: str, failure: Step, connect: Connect) -> None:
    server.steps = [failure, failure, ACCEPTED]
    if kind == "sync":
        accepted = connect().send(to={"user": "u"}, type="t")
    else:

        async def run() -> tidings.Accepted:
            async with tidings.AsyncClient(
                server.url, "k", sleep=time_.sleep_async, monotonic=time_.monotonic, rng=random.Random(1)
            ) as client:
                return await client.send(to={"user": "u"}, type="t")

        accepted = asyncio.run(run())
    assert accepted.id == "ntf_1"
    assert len(server.seen) == 3
    assert len({seen.headers["idempotency-key"] for seen in server.seen}) == 1
    assert len({seen.body for seen in server.seen}) == 1
    assert len(time_.slept) == 2
    assert time_.slept[0] <= 0.2
    assert time_.slept[1] <= 0.4


def test_a_silent_server_is_tried_again(server: Server, connect: Connect) -> None:
    server.steps = [Step(instead="hang"), ACCEPTED]
    client = connect(retries=Retries(timeout=0.05))
    assert client.send(to={"user": "u"}, type="t").id == "ntf_1"
    assert len(server.seen) == 2


def test_two_calls_have_two_keys(server: Server, connect: Connect) -> None:
    server.steps = [ACCEPTED]
    client = connect()
    client.send(to={"user": "u"}, type="t")
    client.send(to={"user": "u"}, type="t")
    assert len({seen.headers["idempotency-key"] for seen in server.seen}) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500])
def test_a_definite_no_is_not_repeated(server: Server, time_: Time, status: int, connect: Connect) -> None:
    server.steps = [problem(status)]
    with pytest.raises(tidings.TidingsAPIError) as caught:
        connect().send(to={"user": "u"}, type="t", idempotency_key="k-1")
    assert caught.value.status == status
    assert caught.value.idempotency_key == "k-1"
    assert len(server.seen) == 1
    assert time_.slept == []


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (problem(401), tidings.Unauthenticated),
        (problem(403), tidings.Forbidden),
        (problem(404), tidings.NotFound),
        (problem(409, "conflict"), tidings.Conflict),
        (problem(409, "idempotency-busy"), tidings.IdempotencyBusy),
        (problem(422, "invalid"), tidings.Invalid),
        (problem(422, "idempotency-mismatch"), tidings.IdempotencyMismatch),
        (problem(413), tidings.RequestRefused),
        (problem(429), tidings.RateLimited),
        (problem(500), tidings.ServerFailed),
        (problem(503), tidings.Unavailable),
        (Step(302, b"", {"Location": "https://elsewhere.example/"}), tidings.RequestRefused),
        (Step(200, b"<html>a log-in page</html>"), tidings.ServerFailed),
    ],
)
def test_errors_by_meaning(server: Server, step: Step, kind: type[Exception], connect: Connect) -> None:
    server.steps = [step]
    with pytest.raises(tidings.TidingsAPIError) as caught:
        connect(retries=Retries(attempts=1)).get("ntf_1")
    assert type(caught.value) is kind


def test_the_message_says_what_to_mend(server: Server, connect: Connect) -> None:
    errors = [
        {"detail": "is not an e-mail address", "pointer": "/to/email"},
        {"detail": "too large", "parameter": "limit"},
    ]
    server.steps = [problem(422, "invalid", body={"errors": errors, "unheard": "of"})]
    with pytest.raises(tidings.Invalid) as caught:
        connect().send(to={"email": "x"}, type="t")
    assert str(caught.value) == ("422 Title: Mend it.\n  - /to/email: is not an e-mail address\n  - limit: too large")
    assert caught.value.code == "invalid"
    assert caught.value.errors[0].pointer == "/to/email"


def test_retry_after_is_obeyed(server: Server, time_: Time, connect: Connect) -> None:
    server.steps = [problem(429, headers={"Retry-After": "7"}), ACCEPTED]
    connect().send(to={"user": "u"}, type="t")
    assert 7 <= time_.slept[0] <= 7.2


def test_attempts_are_bounded(server: Server, connect: Connect) -> None:
    server.steps = [problem(503)]
    with pytest.raises(tidings.Unavailable):
        connect(retries=Retries(attempts=4)).get("ntf_1")
    assert len(server.seen) == 4


def test_the_deadline_bounds_the_waiting(server: Server, time_: Time, connect: Connect) -> None:
    server.steps = [problem(429, headers={"Retry-After": "3600"})]
    with pytest.raises(tidings.RateLimited) as caught:
        connect().get("ntf_1")
    assert caught.value.retry_after == 3600
    assert time_.slept == []


def test_nobody_there(time_: Time, connect: Connect) -> None:
    with pytest.raises(tidings.TidingsConnectionError, match="is the API running") as caught:
        connect(url="http://127.0.0.1:1", retries=Retries(attempts=3)).send(to={"user": "u"}, type="t")
    assert caught.value.idempotency_key
    assert len(time_.slept) == 2


def test_delete_whose_first_answer_was_lost(server: Server, connect: Connect) -> None:
    server.steps = [Step(instead="reset"), problem(404)]
    connect().users.delete("u")
    server.steps = [problem(404)]
    with pytest.raises(tidings.NotFound):
        connect().users.delete("u")


def test_batch_in_chunks_with_outcomes_in_order(server: Server, connect: Connect) -> None:
    first: list[dict[str, Any]] = [{"id": f"ntf_{n}", "status": "queued"} for n in range(999)]
    first.insert(500, {"problem": {"type": "https://x/#invalid", "title": "T", "status": 422, "detail": "d"}})
    server.steps = [Step(202, {"results": first}), Step(202, {"results": [{"id": "ntf_last", "status": "queued"}]})]
    outcomes = connect().send_batch([{"to": {"user": f"u{n}"}, "type": "t"} for n in range(1001)])
    assert len(outcomes) == 1001
    assert isinstance(outcomes[500], tidings.Problem)
    assert outcomes[500].code == "invalid"
    assert outcomes[1000] == tidings.Accepted(id="ntf_last", status="queued")
    sent = [seen.json["notifications"] for seen in server.seen]
    assert [len(chunk) for chunk in sent] == [1000, 1]
    assert len({item["idempotency_key"] for chunk in sent for item in chunk}) == 1001
    assert [item["to"]["user"] for chunk in sent for item in chunk] == [f"u{n}" for n in range(1001)]


def test_batches_are_cut_by_size_too() -> None:
    big = {"to": {"user": "u"}, "type": "t", "data": {"x": "y" * 6_000_000}}
    calls = list(requests.plan_batches([big] * 5))
    assert [len(json.loads(call.body or b"")["notifications"]) for call in calls] == [2, 2, 1]
    assert list(requests.plan_batches([])) == []


def test_an_interrupted_batch_tells_how_far_it_got(server: Server, connect: Connect) -> None:
    answered = [{"id": f"ntf_{n}", "status": "queued"} for n in range(1000)]
    server.steps = [Step(202, {"results": answered}), problem(503)]
    with pytest.raises(tidings.BatchInterrupted, match="1000 of 1500") as caught:
        connect(retries=Retries(attempts=2)).send_batch([{"to": {"user": "u"}, "type": "t"}] * 1500)
    assert len(caught.value.results) == 1000
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, tidings.Unavailable)


def test_pages_are_followed(server: Server, connect: Connect) -> None:
    at = "2026-01-01T00:00:00Z"
    server.steps = [
        Step(200, {"items": [{"id": "ntf_1", "status": "sent", "created_at": at}], "next_cursor": "a b"}),
        Step(200, {"items": [], "next_cursor": "c"}),
        Step(200, {"items": [{"id": "ntf_2", "status": "new-in-2031", "created_at": at}], "next_cursor": None}),
    ]
    found = list(connect().list(user="u", since=datetime(2026, 1, 1, tzinfo=UTC)))
    assert [(n.id, n.status) for n in found] == [("ntf_1", "sent"), ("ntf_2", "new-in-2031")]
    assert [seen.query.get("cursor") for seen in server.seen] == [None, ["a b"], ["c"]]
    assert server.seen[0].query == {"user": ["u"], "since": ["2026-01-01T00:00:00+00:00"]}


def test_a_users_inbox_and_token(server: Server, connect: Connect) -> None:
    at = "2026-01-01T00:00:00Z"
    item = {"id": "dlv_1", "seq": 3, "title": "T", "actions": [{"id": "a", "title": "A", "url": None}], "read_at": None}
    server.steps = [Step(200, {"items": [item]}), Step(201, {"token": "tdu_p.x.y", "expires_at": at})]
    client = connect()
    [found] = client.users.inbox("ada", unread=True, category="news")
    assert (found.seq, found.actions[0].title, found.read_at) == (3, "A", None)
    assert server.seen[0].query == {"unread": ["true"], "category": ["news"]}
    assert client.users.create_token("ada", expires_after="10m").token == "tdu_p.x.y"
    assert server.seen[1].path == "/api/v1/users/ada/tokens"


def test_preferences_can_be_taken_back(server: Server, connect: Connect) -> None:
    on = {"on": False, "level": "user_category", "detail": "the user …", "required": False, "locked": False}
    frequency = {"value": "instant", "level": "default", "locked": False}
    category = {"key": "news", "name": "News", "channels": {"email": on}, "frequency": frequency}
    shown = {"said": {"muted": False, "channels": {}}, "categories": [category], "types": []}
    server.steps = [Step(200, shown)]
    client = connect()
    found = client.users.patch_preferences(
        "ada", {"categories": {"news": None}, "quiet_hours": None}, consent={"wording": "Forget it"}
    )
    assert not found.categories[0].channels["email"].on
    client.users.put_preferences("ada", found.said)
    assert [(seen.method, seen.path) for seen in server.seen] == [
        ("PATCH", "/api/v1/users/ada/preferences"),
        ("PUT", "/api/v1/users/ada/preferences"),
    ]
    told = {"categories": {"news": None}, "quiet_hours": None, "consent": {"wording": "Forget it"}}
    assert [seen.json for seen in server.seen] == [told, shown["said"]]


def test_topics_keep_their_slashes(server: Server, connect: Connect) -> None:
    server.steps = [Step(200, {"added": 1, "unknown": ["zoe"]}), Step(200, {"removed": 1}), Step(200, {"items": []})]
    client = connect()
    assert client.topics.add("project/42/a b", ["ada", "zoe"]).unknown == ["zoe"]
    assert client.topics.remove("project/42", ["ada"]).removed == 1
    assert list(client.topics.list(pattern="project/42/#")) == []
    assert [(seen.method, seen.path) for seen in server.seen] == [
        ("PUT", "/api/v1/topics/project/42/a%20b/members"),
        ("DELETE", "/api/v1/topics/project/42/members"),
        ("GET", "/api/v1/topics"),
    ]
    assert server.seen[1].json == {"users": ["ada"]}
    assert server.seen[2].query == {"pattern": ["project/42/#"]}


def test_an_answer_to_a_repeated_delete_is_not_made_up(server: Server, connect: Connect) -> None:
    """Where a DELETE has an answer, "not found" is no answer."""
    server.steps = [Step(instead="reset"), problem(404, "not-found")]
    with pytest.raises(tidings.NotFound):
        connect().topics.remove("gone", ["ada"])


def test_events_and_explanations(server: Server, connect: Connect) -> None:
    made = {"rule": "r", "id": "ntf_1", "status": "queued"}
    refused = {"rule": "r", "problem": {"type": "x#invalid", "title": "T", "status": 422, "detail": "D"}}
    ruling = {"rule": "limit", "answer": "no", "channel": "sms", "level": "type", "detail": "3 of 3 in 1d", "text": "…"}
    channel = {"channel": "sms", "address": "", "outcome": "skipped", "reason": "capped", "rules": [ruling]}
    server.steps = [
        Step(202, {"results": [{"id": "e-1", "notifications": [made, refused]}, {"id": None, "problem": {}}]}),
        Step(200, {"id": "ntf_1", "status": "skipped", "text": "…", "channels": [channel], "passes": []}),
        Step(200, {"status": "refused", "text": "…", "problem": {"status": 422, "type": "x#invalid"}}),
    ]
    client = connect()
    [first, second] = client.events.send([{"specversion": "1.0", "id": "e-1", "source": "/s", "type": "t"}, {}]).results
    assert [(m.id, m.problem and m.problem.code) for m in first.notifications] == [("ntf_1", None), (None, "invalid")]
    assert second.problem is not None
    assert server.seen[0].headers["content-type"] == "application/cloudevents-batch+json"
    assert client.explain("ntf_1").channels[0].rules[0].detail == "3 of 3 in 1d"
    asked = client.what_if({"type": "t", "to": {"user": "ada"}}, at="2030-01-01T22:00:00Z")
    assert asked.problem is not None
    assert server.seen[2].path == "/api/v1/explain"
    assert server.seen[2].json == {"notification": {"type": "t", "to": {"user": "ada"}}, "at": "2030-01-01T22:00:00Z"}
    with pytest.raises(ValueError, match="at has no time zone"):
        client.what_if({"type": "t", "to": {"user": "ada"}}, at=datetime(2030, 1, 1))


async def test_the_async_client_does_the_same(server: Server) -> None:
    server.steps = [
        Step(200, {"items": [{"id": "ada"}], "next_cursor": "2"}),
        Step(200, {"items": [{"id": "grace", "addresses": {"email": ["g@example.com"]}}]}),
        Step(202, {"results": [{"id": "ntf_1", "status": "queued"}]}),
        DONE,
    ]
    async with tidings.AsyncClient(server.url, "k") as client:
        users = [user async for user in client.users.list()]
        assert [user.id for user in users] == ["ada", "grace"]
        assert users[1].addresses == {"email": ["g@example.com"]}
        assert len(await client.send_batch([{"to": {"user": "u"}, "type": "t"}])) == 1
        await client.users.delete("ada")
    assert [seen.method for seen in server.seen] == ["GET", "GET", "POST", "DELETE"]


@pytest.mark.parametrize(
    ("id", "path"),
    [
        ("a/b", "/api/v1/users/a%2Fb"),
        ("..", "/api/v1/users/%2E%2E"),
        ("ü?x#y", "/api/v1/users/%C3%BC%3Fx%23y"),
        ("a.b", "/api/v1/users/a.b"),
    ],
)
def test_ids_stay_data(server: Server, id: str, path: str, connect: Connect) -> None:
    server.steps = [Step(200, {"id": id})]
    connect().users.get(id)
    assert server.seen[0].path == path


def test_both_clients_offer_every_request() -> None:
    """What the API can be asked is asked the same way in both worlds."""

    def methods(owner: object) -> set[str]:
        names = {name for name in dir(owner) if not name.startswith("_")} - {"run", "pages", "close"}
        return {name for name in names if callable(getattr(owner, name))}

    sync, asynchronous = tidings.Client(), tidings.AsyncClient()
    try:
        assert methods(sync) == methods(asynchronous)
        groups = {name for name in vars(sync) if not name.startswith("_")}
        assert groups == {name for name in vars(asynchronous) if not name.startswith("_")}
        for group in groups:
            assert methods(getattr(sync, group)) == methods(getattr(asynchronous, group)), group
    finally:
        sync.close()
        asyncio.run(asynchronous.close())


def test_readiness_no_is_an_answer(server: Server, connect: Connect) -> None:
    server.steps = [Step(503, {"status": "not ready", "checks": {"partitions": "1 day ahead"}})]
    assert connect().readiness().status == "not ready"
    assert len(server.seen) == 1


def test_the_environment_configures(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("TIDINGS_API_KEY", "tdg_from_env")
    monkeypatch.setenv("TIDINGS_URL", server.url + "/")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # not for our own machine
    server.steps = [Step(200, {"key": "demo"})]
    with tidings.Client() as client:
        assert client.project().key == "demo"
    assert server.seen[0].path == "/api/v1/project"
    assert server.seen[0].headers["authorization"] == "Bearer tdg_from_env"


def test_the_key_is_in_no_repr(server: Server, connect: Connect) -> None:
    client = connect()
    created = tidings.CreatedKey(id="key_1", name="n", key="tdg_demo_k_s3cret")
    server.steps = [problem(401)]
    with pytest.raises(tidings.Unauthenticated) as caught:
        client.get("x")
    shown = (
        repr(client) + repr(client.users) + repr(client._at) + repr(created) + repr(caught.value) + repr(client._http)
    )
    assert "s3cret" not in shown


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://user:pass@host", "http://x?y=1"])
def test_a_url_that_cannot_be_one(url: str) -> None:
    with pytest.raises(ValueError, match="not the address"):
        tidings.Client(url, "k")


@pytest.mark.parametrize("key", ["a b", "a\n", "schlüssel"])
def test_a_key_that_cannot_be_one(key: str) -> None:
    with pytest.raises(ValueError, match="copy it again") as caught:
        tidings.Client(api_key=key)
    assert key not in str(caught.value)


def test_retry_after_forms() -> None:
    now = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    assert parse_retry_after("120") == 120
    assert parse_retry_after("Sun, 22 Nov 2026 12:01:30 GMT", now) == 90
    assert parse_retry_after("Sun, 22 Nov 2026 11:00:00 GMT", now) == 0
    assert parse_retry_after("Sun, 22 Nov 2026 12:01:30 -0000", now) == 90
    for nonsense in (None, "", "soon", "-5", "1.5", "9" * 40, "٣"):
        assert parse_retry_after(nonsense, now) is None


def test_waits_grow_and_are_capped() -> None:
    retries = Retries(attempts=50, first_wait=1, longest_wait=8, deadline=10_000)
    patience = Patience(retries, now=0)
    failure = tidings.TidingsConnectionError("gone")
    rng = random.Random(7)
    longest = []
    for _ in range(40):
        patience.begin(0)
        longest.append(max(patience.decide_wait(failure, 0, rng) for _ in range(200)))
    assert longest[0] <= 1 < longest[2] <= 4
    assert 7 < max(longest) <= 8


def test_retries_are_checked() -> None:
    with pytest.raises(ValueError, match="attempts"):
        Retries(attempts=0)
