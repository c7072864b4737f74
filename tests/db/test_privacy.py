"""Export and erase: everything that is known of a user, in every table."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.db.road import Road, make_project
from tidings import ids
from tidings.db.pool import Database
from tidings.directory import consent
from tidings.directory.audit import Actor, apply_audit
from tidings.directory.suppressions import put_suppression
from tidings.directory.topics import apply_members
from tidings.directory.users import put_user
from tidings.errors import Forbidden, NotFound
from tidings.flow.inbound import InboundRecorder
from tidings.flow.privacy import COVERAGE, PAGE, REQUEST_PAGES, SETTLED_AFTER, Eraser, export_user
from tidings.flow.receipts import Fact, Receiver
from tidings.model.messages import Sent
from tidings.model.words import Channel, EventKind
from tidings.providers.port import Inbound, Report

USER = "zz-marker"
EMAIL = "zz-marker@example.com"
PHONE = "+15550109999"
URL = "https://example.com/zz-marker"
MARKS = (USER, EMAIL, PHONE)


@pytest.fixture
async def road(database: Database) -> Road:
    return Road(database, await database.transaction(make_project))


def eraser(road: Road) -> Eraser:
    return Eraser(road.database, road.intervener, road.clock)


async def make_user(road: Road, user: str = USER, *, email: str = EMAIL) -> None:
    addresses = {Channel.email: [email], Channel.sms: [PHONE], Channel.webhook: [URL]} if user == USER else {}
    addresses = addresses or {Channel.email: [email]}
    await road.database.transaction(
        lambda conn: put_user(
            conn, Actor(road.project_id), user, locale="de", attributes={"name": "zz-marker"}, addresses=addresses
        )
    )


async def list_tables(database: Database) -> set[str]:
    rows = await database.fetch(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
    )
    return {row["relname"] for row in rows}


async def find_marks(database: Database) -> dict[str, list[str]]:
    """The rows that name the user anywhere, by table."""
    found: dict[str, list[str]] = {}
    for table in sorted(await list_tables(database)):
        rows = await database.fetch(f'SELECT t::text AS row FROM "{table}" t')
        if naming := [row["row"] for row in rows if any(mark in row["row"] for mark in MARKS)]:
            found[table] = naming
    return found


async def fill(road: Road) -> UUID:
    """A user who has left traces everywhere; gives a notification that was sent to them."""
    await make_user(road)
    project_id = road.project_id
    road.vendor.answers = [Sent("zz-marker-provider")]
    sent = await road.accept(
        to={"user": USER}, data={"secret": "zz-marker"}, metadata={"m": "zz-marker"}, once="zz-marker"
    )
    await road.plan()
    await road.send()
    [delivery] = await road.deliveries(sent)
    key = ids.to_public(ids.DELIVERY, delivery["id"])
    report = Report(EventKind.complained, key=key, detail={"who": EMAIL}, address=EMAIL)
    await Receiver(road.database, road.meter, road.clock).record([Fact(project_id, delivery["account_id"], report)])
    await road.accept(to={"user": USER}, type="item")
    await road.plan()
    await road.send(Channel.in_app)
    later = road.clock.now() + timedelta(days=1)
    await road.accept(to={"user": USER}, send_at=later, data={"secret": "zz-marker"})
    stop = Inbound(PHONE, "+15550001", "STOP it", "in-1", keyword="stop")
    await InboundRecorder(road.database, road.clock).record(project_id, 1, Channel.sms, [stop])

    async def more(conn: Any) -> None:
        actor = Actor(project_id)
        await apply_members(conn, actor, "news", [USER])
        await put_suppression(conn, actor, Channel.email, EMAIL, "", "asked by phone")
        await consent.record(conn, project_id, [consent.Decision("out", user_id=USER)], consent.Origin("user", "page"))
        # As older versions wrote them.
        await apply_audit(conn, actor, "user.put", f"user:{USER}", after={"addresses": {"email": [EMAIL]}})
        window, broadcast = (
            ids.new_id(road.clock.now(), road.clock.random),
            ids.new_id(road.clock.now(), road.clock.random),
        )
        await conn.execute(
            "INSERT INTO user_engagement (project_id, user_id, channel, opened) VALUES ($1, $2, 1, 3)", project_id, USER
        )
        await conn.execute(
            "INSERT INTO digest_window VALUES ($1, $2, $3, 'k', 1, now(), now(), now(), 'digested')",
            window, project_id, f"u:{USER}",
        )  # fmt: skip
        await conn.execute("INSERT INTO digest_item VALUES ($1, $2, $3)", project_id, window, sent)
        await conn.execute(
            "INSERT INTO cap_counter (project_id, target, key) VALUES ($1, $2, 'k'), ($1, $3, 'k')",
            project_id, f"u:{USER}", f"1:{EMAIL}",
        )  # fmt: skip
        await conn.execute(
            "INSERT INTO send_once (project_id, target, key, notification_id) VALUES ($1, $2, 'welcome', $3)",
            project_id, f"u:{USER}", sent,
        )  # fmt: skip
        await conn.execute(
            "INSERT INTO webhook_health (project_id, address, reason) VALUES ($1, $2, 'rejected')", project_id, URL
        )
        await conn.execute(
            "INSERT INTO early_receipt (account_id, provider_id, project_id, mark, report)"
            " VALUES (1, 'x', $1, gen_random_uuid(), $2)",
            project_id, json.dumps({"kind": 1, "address": EMAIL}),
        )  # fmt: skip
        await conn.execute(
            "INSERT INTO hook_message (id, project_id, hook_id, event_id, event, body) VALUES ($1, $2, 1, $1, 'e', $3)",
            ids.child_id(sent, road.clock.random), project_id, json.dumps({"data": {"user": USER}}),
        )  # fmt: skip
        await conn.execute(
            "INSERT INTO dead_letter (project_id, delivery_id, notification_id, channel, reason, attempts)"
            " VALUES ($1, $2, $3, 1, 'rejected', 1)",
            project_id, delivery["id"], sent,
        )  # fmt: skip
        await conn.execute("UPDATE run SET trail = $1 WHERE id = $2", json.dumps([{"detail": EMAIL}]), sent)
        await conn.execute(
            "INSERT INTO broadcast (id, project_id, type_version_id, audience, priority, lanes, status, estimated)"
            " VALUES ($1, $2, 1, $3, 3, 2, 1, 1)",
            broadcast, project_id, json.dumps({"to": {"users": ["ada", USER]}, "exclude": {"users": [USER]}}),
        )  # fmt: skip
        await conn.execute(
            "INSERT INTO broadcast_cohort (id, project_id, broadcast_id, due_at, after_user, ended_at)"
            " VALUES (gen_random_uuid(), $1, $2, now(), $3, now())",
            project_id, broadcast, USER,
        )  # fmt: skip

    await road.database.transaction(more)
    return sent


async def export(road: Road, user: str = USER) -> Any:
    pieces = await export_user(road.database, road.project_id, user, road.clock.now())
    return json.loads(b"".join([piece async for piece in pieces]))


async def test_every_table_says_what_an_erasure_does_in_it(database: Database) -> None:
    assert await list_tables(database) == COVERAGE.keys(), "say in flow/privacy.py what becomes of a user in this table"


async def test_an_export_holds_everything(road: Road) -> None:
    sent = await fill(road)
    found = await export(road)
    assert found["user"]["attributes"] == {"name": "zz-marker"}
    assert {(a["channel"], a["value"]) for a in found["addresses"]} == {
        ("email", EMAIL), ("sms", PHONE), ("webhook", URL)
    }  # fmt: skip
    assert len(found["notifications"]) == 3
    [mail] = [n for n in found["notifications"] if n["id"] == ids.to_public(ids.NOTIFICATION, sent)]
    assert mail["data"] == {"secret": "zz-marker"}
    assert mail["trail"] == [{"detail": EMAIL}]
    [delivery] = mail["deliveries"]
    assert (delivery["channel"], delivery["status"], delivery["address"]) == ("email", "sent", EMAIL)
    assert delivery["engagement"] == ["complained"]
    assert delivery["dead_letter_at"] is not None
    assert {event["kind"] for event in mail["events"]} == {"sent", "complained"}
    assert mail["hook_messages"][0]["body"] == {"data": {"user": USER}}
    assert found["inbox"][0]["title"] == "Hello"
    assert [topic["key"] for topic in found["topics"]] == ["news"]
    assert {c["source"] for c in found["consents"]} == {"page", "receipt"}
    assert [c["wording"] for c in found["address_consents"]] == ["STOP it (to +15550001)"]
    assert found["received_messages"][0]["body"] == "STOP it"
    for name in (
        "suppressions", "digests", "limits", "once", "audit", "broadcasts", "engagement", "failing_endpoints",
        "waiting_receipts",
    ):  # fmt: skip
        assert found[name], name
    # Nothing that names them is missing: every table with a mark shows in the document.
    marked = (await find_marks(road.database)).keys() - {"inbox_counter", "broadcast_cohort", "provider_ref"}
    shown_as = {
        "app_user": "user", "address": "addresses", "consent": "consents", "topic_member": "topics",
        "user_engagement": "engagement", "inbox_item": "inbox", "notification": "notifications",
        "delivery": "notifications", "event": "notifications", "run": "notifications", "hook_message": "notifications",
        "early_receipt": "waiting_receipts", "inbound_message": "received_messages", "suppression": "suppressions",
        "webhook_health": "failing_endpoints", "digest_window": "digests", "cap_counter": "limits",
        "send_once": "once", "broadcast": "broadcasts", "audit": "audit",
    }  # fmt: skip
    assert marked == shown_as.keys()
    assert all(found[shown_as[table]] for table in marked)


async def test_an_erased_user_stands_in_no_table(road: Road) -> None:
    sent = await fill(road)
    before = await road.recount()
    assert await eraser(road).erase(road.caller, USER, suppressions=False)
    left = await find_marks(road.database)
    assert left.pop("suppression"), "a no outlives the next import"
    assert all(row.startswith(f"({road.project_id},{USER},") for row in left.pop("inbox_counter"))
    trail = left.pop("audit")
    assert not [row for row in trail if EMAIL in row and "suppression" not in row]
    assert {table: len(rows) for table, rows in left.items()} == {"erasure": 1}
    # That something was sent stays, and is still counted.
    [delivery] = await road.deliveries(sent)
    assert (delivery["address"], delivery["provider_id"]) == ("", None)
    assert await road.count("notification") == 3
    assert {kind: n for kind, n in (await road.recount()).items() if kind in before} == before
    assert await road.count("job") == 0, "what had not left was cancelled"
    with pytest.raises(NotFound):
        await export(road)
    # A worker looks again, and then forgets whom it was about.
    await eraser(road).resume()
    assert await road.count("erasure") == 1
    road.clock.move(SETTLED_AFTER.total_seconds() + 150)
    await eraser(road).resume()
    assert await road.count("erasure") == 0


async def test_suppressions_go_when_asked_for(road: Road) -> None:
    await fill(road)
    await eraser(road).erase(road.caller, USER, suppressions=True)
    left = await find_marks(road.database)
    assert left.keys() == {"inbox_counter", "audit", "erasure"}
    assert not [row for row in left["audit"] if EMAIL in row]


async def test_others_keep_what_is_theirs(road: Road) -> None:
    await fill(road)
    await make_user(road, "other", email=EMAIL)
    await road.accept(to={"user": "other"})
    await road.plan()
    await road.send()
    await road.database.execute("UPDATE suppression SET reason = 'manual'")
    kept = await road.count("suppression")
    await eraser(road).erase(road.caller, USER, suppressions=True)
    assert await road.database.fetchval("SELECT count(*) FROM cap_counter WHERE target = $1", f"1:{EMAIL}") == 1
    assert await road.database.fetchval("SELECT count(*) FROM suppression WHERE address = $1", EMAIL) > 0
    assert await road.count("suppression") == kept - 1, "the one of the phone was theirs alone"
    found = await export(road, "other")
    assert found["notifications"][0]["deliveries"][0]["address"] == EMAIL


async def test_what_is_being_sent_is_left_until_it_was(road: Road) -> None:
    await make_user(road)
    road.vendor.may_answer.clear()
    notification = await road.accept(to={"user": USER})
    await road.plan()
    lane = road.lanes[Channel.email]
    await lane.step()
    await road.vendor.called.wait()
    assert not await eraser(road).erase(road.caller, USER, suppressions=False)
    assert (await road.deliveries(notification))[0]["address"] == EMAIL
    road.vendor.answers = [Sent("zz-marker-provider")]
    road.vendor.may_answer.set()
    await road.finish(lane)
    road.clock.move(200)
    await eraser(road).resume()
    assert (await find_marks(road.database)).keys() <= {"inbox_counter", "audit"}
    [delivery] = await road.deliveries(notification)
    assert delivery["address"] == ""
    # A receipt that comes after that writes nothing.
    key = ids.to_public(ids.DELIVERY, delivery["id"])
    report = Report(EventKind.failed, key=key, detail={"who": EMAIL}, address=EMAIL)
    assert not await Receiver(road.database, road.meter, road.clock).record(
        [Fact(road.project_id, delivery["account_id"], report)]
    )
    assert (await find_marks(road.database)).keys() <= {"inbox_counter", "audit"}


async def test_a_user_with_many_notifications_is_erased_page_by_page(road: Road) -> None:
    await make_user(road)
    n = PAGE * REQUEST_PAGES + 100
    made = [ids.id_from_ms(int(road.clock.now().timestamp() * 1000) + i, road.clock.random) for i in range(n)]
    await road.database.execute(
        "INSERT INTO notification (id, project_id, user_id, priority, data)"
        " SELECT id, $2, $3, 3, '{\"x\": \"zz-marker\"}' FROM unnest($1::uuid[]) AS x (id)",
        made, road.project_id, USER,
    )  # fmt: skip
    await road.database.execute(
        "INSERT INTO delivery (id, project_id, notification_id, channel, status, address)"
        " SELECT id, $2, id, 1, 3, $3 FROM unnest($1::uuid[]) AS x (id)",
        made, road.project_id, EMAIL,
    )  # fmt: skip
    assert not await eraser(road).erase(road.caller, USER, suppressions=False)
    assert await road.database.fetchval("SELECT count(*) FROM notification WHERE user_id IS NOT NULL") == 100
    # Whoever asks again goes on where it ended.
    assert await eraser(road).erase(road.caller, USER, suppressions=False)
    assert (await find_marks(road.database)).keys() <= {"inbox_counter", "audit", "erasure"}


async def test_whoever_gets_the_id_next_is_somebody_else(road: Road) -> None:
    await make_user(road)
    await road.accept(to={"user": USER}, data={"old": 1})
    await eraser(road).erase(road.caller, USER, suppressions=False)
    await make_user(road)
    await road.database.execute("UPDATE app_user SET created_at = $1 WHERE id = $2", road.clock.now(), USER)
    road.clock.move(1)
    await road.accept(to={"user": USER}, data={"new": 1})
    road.clock.move(SETTLED_AFTER.total_seconds() + 200)
    await eraser(road).resume()
    assert await road.count("erasure") == 0
    found = await export(road)
    assert [notification["data"] for notification in found["notifications"]] == [{"new": 1}]
    assert found["addresses"]


async def test_texts_and_complaints_stand_in_the_consents(road: Road) -> None:
    said = [Inbound(PHONE, "+15550001", word.upper(), word, keyword=word) for word in ("stop", "help", "start")]
    recorder = InboundRecorder(road.database, road.clock)
    for message in (*said, said[0]):  # a vendor repeats itself
        await recorder.record(road.project_id, 1, Channel.sms, [message])
    rows = await road.database.fetch("SELECT decision, actor, source, wording, address FROM consent ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("out", "user", "sms", "STOP (to +15550001)", PHONE),
        ("in", "user", "sms", "START (to +15550001)", PHONE),
    ]
    notification = await road.accept()
    await road.plan()
    await road.send()
    [delivery] = await road.deliveries(notification)
    key = ids.to_public(ids.DELIVERY, delivery["id"])
    for number in ("1", "2"):
        report = Report(EventKind.complained, key=key, event_id=number)
        await Receiver(road.database, road.meter, road.clock).record(
            [Fact(road.project_id, delivery["account_id"], report)]
        )
    [row] = await road.database.fetch("SELECT * FROM consent WHERE source = 'receipt'")
    assert (row["user_id"], row["address"], row["category_key"]) == ("ada", "ada@example.com", "general")
    assert (row["decision"], row["channel"]) == ("out", Channel.email)


async def test_nobody_is_erased_by_a_test_key(road: Road) -> None:
    with pytest.raises(Forbidden):
        await eraser(road).erase(road.new_caller(test=True), USER, suppressions=False)


async def test_the_trail_can_be_blanked_and_nothing_else(road: Road) -> None:
    await make_user(road)
    await road.database.execute("UPDATE audit SET before = NULL, after = NULL WHERE object = $1", f"user:{USER}")
    for change in (
        "after = '{}'",
        "object = 'x', before = NULL, after = NULL",
        "at = now(), before = NULL, after = NULL",
    ):
        with pytest.raises(asyncpg.RaiseError, match="never changed"):
            await road.database.execute(f"UPDATE audit SET {change}")
    with pytest.raises(asyncpg.RaiseError, match="never changed"):
        await road.database.execute("DELETE FROM audit")
