"""Hooks on the road: what is told, to whom, how often, and what is done when nobody listens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from tests.db.road import KEY, LEASE, Road, make_project
from tidings import ids
from tidings.db.pool import Database
from tidings.directory.accounts import AccountPlan, put_account
from tidings.directory.audit import Actor
from tidings.directory.credentials import Vault
from tidings.directory.hooks import (
    ENDPOINT_DISABLED,
    ENDPOINT_FAILING,
    SMS_INBOUND,
    HookPlan,
    create_hook,
    delete_hook,
    load_hook,
    put_hook,
    reseal_hooks,
    rotate_hook,
)
from tidings.engine import jobs as queue
from tidings.engine.lane import SendLane
from tidings.engine.shares import Share
from tidings.errors import Conflict, Invalid, NotFound
from tidings.flow.accept import Accepted
from tidings.flow.endpoints import TOLD_AFTER, Endpoints, Sighting
from tidings.flow.hooks import (
    CONCURRENCY,
    DELAYS,
    KEPT_FOR,
    HookSender,
    forget_messages,
    list_failed_messages,
    replay_messages,
    send_test,
)
from tidings.flow.inbound import InboundRecorder
from tidings.flow.jobs import LANE_HOOKS
from tidings.flow.settle import Settler
from tidings.model.messages import Deferred, Rejected, Sent, Uncertain
from tidings.model.words import Channel, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import BrokenAnswer, HttpAnswer, TransportFailure
from tidings.providers.port import Inbound, Surroundings
from tidings.providers.webhook import verify_signature

URL = "https://app.example.com/tidings"
OTHER_KEY = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="


class Wire:
    """An HTTP transport that answers as it was told to, and remembers."""

    def __init__(self) -> None:
        self.answers: list[HttpAnswer | TransportFailure] = []
        """Given one after the other; then everything is taken."""
        self.requests: list[tuple[str, Mapping[str, str], bytes]] = []

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
        read_cap: int,
    ) -> HttpAnswer:
        self.requests.append((url, {name.lower(): value for name, value in headers.items()}, body or b""))
        answer = self.answers.pop(0) if self.answers else HttpAnswer(204, {}, b"")
        if isinstance(answer, TransportFailure):
            raise answer
        return answer

    async def close(self) -> None:
        """Nothing is open."""

    def told(self) -> list[dict[str, Any]]:
        """The bodies so far."""
        return [json.loads(body) for _, _, body in self.requests]


def status(code: int, **headers: str) -> HttpAnswer:
    return HttpAnswer(code, {name.replace("_", "-"): value for name, value in headers.items()}, b"")


class Hooked(Road):
    """A road with a lane for hooks."""

    def __init__(self, database: Database, project_id: int) -> None:
        super().__init__(database, project_id)
        self.wire = Wire()
        self.vault = Vault([KEY])
        self.actor = Actor(project_id)
        surroundings = Surroundings(http=self.wire, guard=Guard([]), clock=self.clock)
        self.hook_sender = HookSender(database, self.catalog, surroundings, self.clock)
        self.hook_lane = self.new_hook_lane()

    def new_hook_lane(self) -> SendLane[Any, Any]:
        return SendLane(
            LANE_HOOKS,
            self.hook_sender,
            self.database,
            self.clock,
            self.wakes,
            slots=400,
            lease=LEASE,
            settle_window=0.0,
        )

    async def listen(self, *events: str, key: str = "app", url: str = URL) -> str:
        plan = HookPlan(url, events or ("*",))
        _, secret = await self.database.transaction(lambda conn: create_hook(conn, self.actor, self.vault, key, plan))
        self.catalog.forget(self.project_id)
        return secret

    async def deliver(self, **body: Any) -> None:
        await self.accept(**body)
        await self.plan()
        await self.send()

    async def tell(self) -> int:
        claimed = await self.hook_lane.step()
        await self.finish(self.hook_lane)
        return claimed


@pytest.fixture
async def road(database: Database) -> Hooked:
    project_id = await database.transaction(make_project)
    return Hooked(database, project_id)


async def test_an_event_is_told_once_signed(road: Hooked) -> None:
    secret = await road.listen("delivery.sent")
    await road.deliver(metadata={"order": "A-1"})
    assert await road.tell() == 1
    [(url, headers, body)] = road.wire.requests
    assert url == URL
    verify_signature(SecretStr(secret), headers, body, road.clock.now())
    [told] = road.wire.told()
    [delivery] = await road.deliveries()
    event = await road.database.fetchrow("SELECT id, at FROM event WHERE kind = 2")
    assert event is not None
    assert told.pop("at") == event["at"].isoformat().replace("+00:00", "Z")
    assert told == {
        "id": ids.to_public(ids.EVENT, event["id"]),
        "type": "delivery.sent",
        "project": "p",
        "data": {
            "notification": ids.to_public(ids.NOTIFICATION, delivery["notification_id"]),
            "delivery": ids.to_public(ids.DELIVERY, delivery["id"]),
            "channel": "email",
            "type": "mail",
            "user": "ada",
            "status": "sent",
            "reason": None,
            "provider": "smtp",
            "attempt": 1,
            "metadata": {"order": "A-1"},
        },
    }
    assert headers["webhook-id"] == told["id"]
    assert await road.tell() == 0
    assert await road.count("hook_message") == 0
    assert await road.count("job") == 0


async def test_each_hook_hears_what_it_subscribed_to(road: Hooked) -> None:
    await road.listen("delivery.failed", key="failures", url="https://failures.example.com/")
    await road.listen("*", key="all", url="https://all.example.com/")
    road.vendor.answers = [Deferred(Reason.provider_error), Rejected(Reason.content_rejected)]
    await road.deliver()
    road.clock.move(3600)
    await road.send()
    await road.tell()
    heard = sorted((url, told["type"]) for (url, _, _), told in zip(road.wire.requests, road.wire.told(), strict=True))
    assert heard == [
        ("https://all.example.com/", "delivery.failed"),
        ("https://all.example.com/", "delivery.retrying"),
        ("https://failures.example.com/", "delivery.failed"),
    ]
    failed = next(told["data"] for told in road.wire.told() if told["type"] == "delivery.failed")
    assert (failed["status"], failed["reason"], failed["attempt"]) == ("failed", "content_rejected", 2)
    same = {told["id"] for told in road.wire.told() if told["type"] == "delivery.failed"}
    assert len(same) == 1, "an event has one id, whoever hears of it"


async def test_a_project_without_hooks_pays_nothing(road: Hooked, database: Database) -> None:
    await road.deliver()  # warm
    sent: list[str] = []
    async with AsyncExitStack() as stack:
        for _ in range(10):
            conn = await stack.enter_async_context(database.acquire())
            conn.add_query_logger(lambda record: sent.append(record.query))
    await road.accept()
    await road.plan()
    sent.clear()
    await road.send()
    assert not [query for query in sent if "hook_message" in query or "webhook_health" in query]
    assert len(sent) == 9


async def test_what_planning_skips_is_told_too(road: Hooked) -> None:
    await road.listen("delivery.skipped")
    await road.database.execute("UPDATE address SET dropped_at = now() WHERE user_id = 'ada'")
    await road.accept()
    await road.plan()
    await road.tell()
    [told] = road.wire.told()
    assert (told["data"]["status"], told["data"]["reason"], told["data"]["attempt"]) == ("skipped", "no_address", None)


async def test_what_had_expired_before_it_was_planned_is_told_too(road: Hooked) -> None:
    await road.listen("delivery.expired")
    await road.accept(expires_at=(road.clock.now() + timedelta(minutes=1)).isoformat())
    road.clock.move(120)
    await road.plan()
    await road.tell()
    [told] = road.wire.told()
    assert (told["data"]["status"], told["data"]["reason"], told["data"]["attempt"]) == ("expired", "expired", None)


async def test_an_operators_cancel_and_replay_are_told(road: Hooked) -> None:
    await road.listen("delivery.cancelled", "delivery.replayed")
    id_ = await road.accept()
    await road.plan()
    await road.intervener.cancel(road.caller, id_)
    road.vendor.answers = [Rejected(Reason.content_rejected)]
    await road.deliver()
    await road.intervener.replay(road.caller, delivery_ids=None)
    await road.tell()
    assert [told["type"] for told in road.wire.told()] == ["delivery.cancelled", "delivery.replayed"]


async def test_a_text_message_that_came_in_is_told_once(road: Hooked) -> None:
    await road.listen(SMS_INBOUND)
    inbound = InboundRecorder(road.database, road.clock)
    message = Inbound("+14155550100", "+14155550199", "Stop", provider_id="SM1", keyword="stop")
    for _ in range(2):
        await inbound.record(road.project_id, 1, Channel.sms, [message])
    await road.tell()
    [told] = road.wire.told()
    assert told["type"] == SMS_INBOUND
    assert (told["data"]["sender"], told["data"]["text"], told["data"]["keyword"]) == ("+14155550100", "Stop", "stop")


async def test_one_project_does_not_take_the_whole_lane(road: Hooked) -> None:
    await road.listen("delivery.sent")
    await road.ask(*[{"to": {"user": "ada"}, "type": "mail"}] * (CONCURRENCY + 8))
    await road.plan()
    await road.send()
    assert await road.tell() == CONCURRENCY
    assert await road.tell() == 8


async def test_another_projects_hooks_hear_nothing(road: Hooked, database: Database) -> None:
    other = Hooked(database, await database.transaction(lambda conn: make_project(conn, "q")))
    await other.listen()
    await road.deliver()
    assert await road.tell() == 0
    await other.deliver()
    assert await other.tell() == 1
    assert [told["project"] for told in other.wire.told()] == ["q"]


async def test_a_hook_that_is_off_hears_nothing(road: Hooked) -> None:
    await road.listen()
    await road.database.transaction(lambda c: put_hook(c, road.actor, "app", HookPlan(URL, ["*"], enabled=False)))
    await road.deliver()
    assert await road.count("hook_message") == 0


async def test_it_is_tried_again_for_a_day_and_then_kept(road: Hooked) -> None:
    await road.listen("delivery.sent")
    await road.deliver()
    began = road.clock.now()
    road.wire.answers = [status(404), BrokenAnswer("broke", sent=True)] * 20
    for _ in range(len(DELAYS)):
        assert await road.tell() == 1
        assert await road.tell() == 0, "not before its time"
        road.clock.move(9.95 * 3600)
    assert await road.tell() == 1
    assert road.clock.now() - began > timedelta(hours=24)
    assert len({headers["webhook-id"] for _, headers, _ in road.wire.requests}) == 1
    assert await road.count("job") == 0
    [failed] = await list_failed_messages(road.database, road.project_id, "app")
    assert (failed.event, failed.attempts, failed.detail) == ("delivery.sent", len(DELAYS) + 1, "HTTP 404")

    road.wire.answers.clear()
    assert await replay_messages(road.database, road.actor, road.clock, "app", None) == 1
    assert await replay_messages(road.database, road.actor, road.clock, "app", None) == 0
    assert await list_failed_messages(road.database, road.project_id, "app") == []
    assert await road.tell() == 1
    assert await road.count("hook_message") == 0
    assert road.wire.requests[-1][2] == road.wire.requests[0][2]


def test_the_schedule_is_about_a_day() -> None:
    assert timedelta(hours=24) < sum(DELAYS, timedelta()) < timedelta(hours=26)
    assert list(DELAYS) == sorted(DELAYS)


async def test_retry_after_is_obeyed(road: Hooked) -> None:
    await road.listen("delivery.sent")
    await road.deliver()
    road.wire.answers = [status(429, Retry_After="600")]
    await road.tell()
    road.clock.move(590)
    assert await road.tell() == 0
    road.clock.move(20)
    assert await road.tell() == 1


async def test_gone_switches_the_hook_off(road: Hooked) -> None:
    await road.listen("delivery.sent")
    await road.deliver()
    await road.deliver()
    road.wire.answers = [status(410), status(410)]
    assert await road.tell() == 2
    assert not (await load_hook(road.database, road.project_id, "app")).enabled
    assert len(await list_failed_messages(road.database, road.project_id, "app")) == 2
    rows = await road.database.fetch("SELECT actor, action FROM audit WHERE object = 'hook:app' ORDER BY id")
    assert [tuple(row) for row in rows] == [("system", "hook.create"), ("system", "hook.disable")]
    with pytest.raises(Conflict):
        await replay_messages(road.database, road.actor, road.clock, "app", None)


async def test_a_target_inside_is_refused_at_once(road: Hooked) -> None:
    await road.listen("delivery.sent", url="http://10.0.0.1/")
    await road.deliver()
    await road.tell()
    assert road.wire.requests == []
    [failed] = await list_failed_messages(road.database, road.project_id, "app")
    assert "https://" in str(failed.detail)


async def test_what_waits_when_a_hook_is_switched_off_or_deleted(road: Hooked) -> None:
    await road.listen("delivery.sent", key="off")
    await road.listen("delivery.sent", key="gone")
    await road.deliver()
    await road.database.transaction(lambda c: put_hook(c, road.actor, "off", HookPlan(URL, ["*"], enabled=False)))
    await road.database.transaction(lambda c: delete_hook(c, road.actor, "gone"))
    road.catalog.forget(road.project_id)
    assert await road.tell() == 2
    assert road.wire.requests == []
    assert await road.count("job") == 0
    [failed] = await list_failed_messages(road.database, road.project_id, "off")
    assert failed.attempts == 0
    assert await road.count("hook_message") == 1
    with pytest.raises(NotFound):
        await list_failed_messages(road.database, road.project_id, "gone")
    road.clock.move(KEPT_FOR.total_seconds() + 1)
    await forget_messages(road.database, road.clock.now())
    assert await road.count("hook_message") == 0


async def test_a_dead_worker_loses_no_message(road: Hooked) -> None:
    await road.listen("delivery.sent")
    await road.deliver()
    [waiting] = await queue.load_waiting(
        road.database, (7, 7), count=9, projects=9, after_project=0, ahead=0, now=road.clock.now()
    )
    share = Share(waiting.lane, waiting.priority, waiting.project_id, None, 1)
    assert len(await queue.claim_jobs(road.database, [share], lease=LEASE, now=road.clock.now())) == 1
    assert await road.tell() == 0
    road.clock.move(LEASE.total_seconds() + 1)
    assert await road.sweep() == 1
    road.clock.move(DELAYS[0].total_seconds() + 1)
    assert await road.tell() == 1
    assert len(road.wire.requests) == 1


async def test_a_rotated_secret_signs_beside_the_new_one_for_a_day(road: Hooked) -> None:
    old = await road.listen("delivery.sent")
    _, new = await road.database.transaction(lambda c: rotate_hook(c, road.actor, road.vault, "app"))
    assert new != old
    road.catalog.forget(road.project_id)
    await road.deliver()
    await road.tell()
    _, headers, body = road.wire.requests[-1]
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (old, new):
        verify_signature(SecretStr(secret), headers, body, road.clock.now())
    road.clock.move(48 * 3600)
    await road.deliver()
    await road.tell()
    _, headers, body = road.wire.requests[-1]
    assert len(headers["webhook-signature"].split(" ")) == 1
    verify_signature(SecretStr(new), headers, body, road.clock.now())


async def test_secrets_are_sealed_and_follow_the_master_key(road: Hooked) -> None:
    secret = await road.listen("delivery.sent")
    rows = await road.database.fetch(
        "SELECT to_jsonb(hook)::text AS t FROM hook UNION ALL SELECT after::text FROM audit"
    )
    assert not [row for row in rows if row["t"] is not None and secret[6:] in row["t"]]
    assert secret[6:] not in repr(await road.catalog.load_hooks(road.project_id))
    both = Vault([OTHER_KEY, KEY])
    assert await reseal_hooks(road.database, both) == 1
    assert await reseal_hooks(road.database, both) == 0
    await road.database.transaction(lambda c: rotate_hook(c, road.actor, Vault([OTHER_KEY]), "app"))


async def test_a_test_event(road: Hooked) -> None:
    await road.listen("delivery.failed")
    event_id = await road.database.transaction(lambda c: send_test(c, road.actor, road.clock, "app"))
    await road.tell()
    [told] = road.wire.told()
    assert (told["id"], told["type"], told["data"]) == (ids.to_public(ids.EVENT, event_id), "hook.test", {})


async def test_what_nobody_can_subscribe_to_is_refused_by_name(road: Hooked) -> None:
    for url, events, pointer in (
        (URL, ["delivery.sent", "delivery.eaten"], "/events/1"),
        (URL, ["hook.test"], "/events/0"),
        ("ftp://example.com/", ["*"], "/url"),
        ("https://ada:pw@example.com/", ["*"], "/url"),
    ):
        with pytest.raises(Invalid) as caught:
            await road.listen(*events, url=url)
        assert caught.value.errors[0].pointer == pointer
    await road.listen()
    with pytest.raises(Conflict):
        await road.listen()


# ---------------------------------------------------------------- endpoints

ENDPOINT = "https://receiver.example.com/hook"


async def see(road: Hooked, endpoints: Endpoints, reason: Reason | None, address: str = ENDPOINT) -> None:
    seen = Sighting(road.project_id, address, "ada", reason)
    await road.database.transaction(lambda conn: endpoints.apply(conn, [seen], road.clock.db_now()))


async def test_an_endpoint_that_fails_for_days_is_told_of_once(road: Hooked) -> None:
    await road.listen(ENDPOINT_FAILING)
    endpoints = Endpoints(road.clock)
    since = road.clock.now()
    for _ in range(4):
        await see(road, endpoints, Reason.provider_error)
        assert await road.tell() == 0
        road.clock.move(TOLD_AFTER.total_seconds() / 3.9)
    other_worker = Endpoints(road.clock)
    for worker in (endpoints, other_worker, endpoints):
        await see(road, worker, Reason.connect_failed)
    await road.tell()
    [told] = road.wire.told()
    assert told["type"] == ENDPOINT_FAILING
    assert (told["data"]["address"], told["data"]["reason"]) == (ENDPOINT, "provider_error")
    assert told["data"]["failing_since"][:16] == since.isoformat()[:16]


async def test_one_success_begins_the_days_anew(road: Hooked) -> None:
    await road.listen(ENDPOINT_FAILING)
    first, second = Endpoints(road.clock), Endpoints(road.clock)
    await see(road, first, Reason.provider_error)
    road.clock.move(TOLD_AFTER.total_seconds())
    await see(road, second, None)  # another worker hears the answer
    assert await road.count("webhook_health") == 0
    await see(road, first, Reason.provider_error)
    await road.tell()
    assert road.wire.requests == []
    assert await road.count("webhook_health") == 1


async def test_neither_pace_nor_content_speaks_against_an_endpoint(road: Hooked) -> None:
    endpoints = Endpoints(road.clock)
    for reason in (Reason.throttled, Reason.too_large, Reason.suppressed, Reason.expired):
        await see(road, endpoints, reason)
    assert await road.count("webhook_health") == 0


async def test_an_endpoint_that_is_gone_is_told_of(road: Hooked) -> None:
    await road.listen(ENDPOINT_DISABLED)
    await see(road, Endpoints(road.clock), Reason.gone)
    await road.tell()
    [told] = road.wire.told()
    assert told["type"] == ENDPOINT_DISABLED
    assert told["data"] == {"channel": "webhook", "address": ENDPOINT, "user": "ada", "reason": "gone"}


async def test_settling_sees_endpoints(road: Hooked) -> None:
    account = AccountPlan("webhook", "webhook", {"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
    await road.database.transaction(lambda c: put_account(c, road.actor, road.vault, "webhooks", account))
    road.catalog.forget(road.project_id)
    lane = road.new_lane(Channel.webhook)
    # Plain HTTP is refused without a connection; the simulator's addresses say nothing of an endpoint.
    for url in ("http://192.0.2.1/hook", "https://fail.simulator.test/hook"):
        [answer] = await road.ask({"to": {"webhook": url}, "content": {"payload": {"a": 1}}})
        assert isinstance(answer, Accepted), answer.to_dict()
    await road.plan()
    assert await lane.step() == 2
    await road.finish(lane)
    rows = await road.database.fetch("SELECT project_id, address, reason, told_at FROM webhook_health")
    assert [tuple(row) for row in rows] == [(road.project_id, "http://192.0.2.1/hook", "target_refused", None)]


async def test_what_was_noted_of_an_endpoint_and_not_stored_is_noted_again(road: Hooked) -> None:
    account = AccountPlan("webhook", "webhook", {"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
    await road.database.transaction(lambda c: put_account(c, road.actor, road.vault, "webhooks", account))
    road.catalog.forget(road.project_id)
    broken = iter([True])

    async def break_once(name: str) -> None:
        if name == "settle.commit" and next(broken, False):
            raise asyncpg.DeadlockDetectedError

    settler = Settler(road.database, road.catalog, road.meter, road.clock, checkpoint=break_once)
    road.settler = settler
    road.sender = road.new_sender()
    lane = road.new_lane(Channel.webhook)
    [answer] = await road.ask({"to": {"webhook": "http://192.0.2.1/hook"}, "content": {"payload": {"a": 1}}})
    assert isinstance(answer, Accepted), answer.to_dict()
    await road.plan()
    assert await lane.step() == 1
    await road.finish(lane)
    assert not list(broken), "it broke"
    assert await road.count("webhook_health") == 1


async def test_an_endpoint_that_works_is_looked_at_once_a_minute(road: Hooked, database: Database) -> None:
    endpoints = Endpoints(road.clock)
    await see(road, endpoints, None)
    sent: list[str] = []
    async with AsyncExitStack() as stack:
        for _ in range(10):
            conn = await stack.enter_async_context(database.acquire())
            conn.add_query_logger(lambda record: sent.append(record.query))
    for _ in range(3):
        await see(road, endpoints, None)
    assert not [query for query in sent if "webhook_health" in query]


async def test_an_answer_is_settled_for_each_result(road: Hooked) -> None:
    """What follows from an answer, without the network."""
    await road.listen()
    [hook] = await road.catalog.load_hooks(road.project_id)
    job = queue.Job(road.caller.key_id, road.project_id, 3, LANE_HOOKS, 2, 0, 1, None, None)
    decide = road.hook_sender.decide
    assert decide(job, hook, Sent()).retry is None
    assert decide(job, hook, Rejected(Reason.gone)).disable == hook.id
    for result in (Uncertain(), Rejected(Reason.rejected), Rejected(Reason.too_large), Deferred(Reason.provider_error)):
        retry = decide(job, hook, result).retry
        assert retry is not None
        assert (retry.attempt, retry.account_id) == (1, None)
    last = job._replace(attempt=len(DELAYS))
    assert decide(last, hook, Uncertain("no answer")).failed == "no answer"
