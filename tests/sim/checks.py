"""What must be true once a simulated world has come to rest; each check names what it found wrong."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.sim.world import CAP, LEASE, RECEIPT_REASONS, SPACE, World
from tidings import ids
from tidings.flow.intervene import Cancelled
from tidings.flow.receipts import ENGAGEMENT_OF
from tidings.model.rulings import Answer, Pass
from tidings.model.transitions import decide_transition
from tidings.model.words import EFFECTS, Channel, Effect, EventKind, Priority, Reason, RunState, Status


class Facts:
    """The rows, read once."""

    def __init__(self, tables: dict[str, list[Any]]) -> None:
        self.notifications = {r["id"]: r for r in tables["notification"]}
        self.deliveries = {r["id"]: r for r in tables["delivery"]}
        self.events: dict[Any, list[Any]] = defaultdict(list)
        for r in tables["event"]:
            self.events[r["delivery_id"]].append(r)
        self.tables = tables
        self.by_tag: dict[str, list[Any]] = defaultdict(list)
        for r in tables["notification"]:
            if r["items"] is None and r["broadcast_id"] is None:
                self.by_tag[msgspec.json.decode(r["metadata"])["tag"]].append(r)
        self.runs = {r["id"]: r for r in tables["run"]}
        self.types = {r["id"]: r["type_key"] for r in tables["type_version"]}
        self.of_notification: dict[Any, list[Any]] = defaultdict(list)
        for r in tables["delivery"]:
            self.of_notification[r["notification_id"]].append(r)

    def replayed(self, delivery: Any) -> int:
        """How often: also what was sent and failed later may be sent again."""
        return sum(e["kind"] == EventKind.replayed for e in self.events[delivery["id"]])


async def load_facts(connection: Any) -> Facts:
    names = (
        "notification", "run", "delivery", "event", "job", "dead_letter", "inbox_item", "inbox_counter", "suppression",
        "history", "account", "account_usage", "type_version", "digest_window", "digest_item", "broadcast", "app_user",
    )  # fmt: skip
    tables = {name: await connection.fetch(f"SELECT * FROM {name}") for name in names}
    tables["history"].sort(key=lambda row: row["seq"])
    tables["rolled"] = await connection.fetch(
        "SELECT project_id, kind, sum(n)::int AS n FROM (SELECT project_id, kind, n FROM rollup"
        " UNION ALL SELECT project_id, kind, n FROM rollup_delta) x GROUP BY 1, 2"
    )
    return Facts(tables)


def find_faults(world: World, facts: Facts) -> Iterator[str]:
    """Every broken promise."""
    yield from _accepted(world, facts)
    yield from _at_rest(facts)
    yield from _legal(facts)
    yield from _once(world, facts)
    yield from _in_time(world, facts)
    yield from _cancelled(world, facts)
    yield from _counted(facts)
    yield from _effects(facts)
    yield from _inboxes(facts)
    yield from _quotas(facts)
    yield from _steps(facts)
    yield from _digests(facts)
    yield from _limits(facts)
    yield from _broadcasts(facts)


def _accepted(world: World, facts: Facts) -> Iterator[str]:
    for asked in world.asked:
        found = facts.by_tag[asked.tag]
        if asked.key is not None:
            if asked.refused != (not found) or len(found) > 1:
                yield f"{asked.tag}: {len(found)} notifications for one key (refused: {asked.refused})"
            if asked.answered is None and not asked.refused:
                yield f"{asked.tag}: never answered"
        elif len(found) > asked.tries:
            yield f"{asked.tag}: {len(found)} notifications for {asked.tries} requests"
        stored = {ids.to_public(ids.NOTIFICATION, n["id"]) for n in found}
        if asked.answered is not None and asked.answered not in stored:
            yield f"{asked.tag}: answered {asked.answered}, which is not stored"


def _at_rest(facts: Facts) -> Iterator[str]:
    for job in facts.tables["job"]:
        yield f"job {job['id']} is left: {dict(job)}"
    runs = {r["id"] for r in facts.tables["run"]}
    for n in facts.notifications.values():
        if n["id"] not in runs and n["cancelled_at"] is None and not is_called_off(facts, n):
            yield f"{n['id']} was never planned"
        gathered = n["id"] in runs and facts.runs[n["id"]]["state"] == RunState.digested
        spoken = facts.of_notification[n["id"]] or gathered or n["cancelled_at"] is not None
        if n["id"] in runs and not spoken and not is_called_off(facts, n):
            yield f"{n['id']} was planned without a word"
    for d in facts.deliveries.values():
        if d["status"] in (Status.queued, Status.sending):
            yield f"delivery {d['id']} is {Status(d['status']).name} without a job"
        if (d["ended_at"] is None) != (d["status"] in (Status.queued, Status.sending, Status.sent)):
            yield f"delivery {d['id']} is {Status(d['status']).name}, ended at {d['ended_at']}"
        if d["status"] in (Status.failed, Status.skipped, Status.cancelled, Status.expired) and not d["reason"]:
            yield f"delivery {d['id']} ended without a reason"


def _legal(facts: Facts) -> Iterator[str]:
    now: dict[Any, tuple[int, str | None]] = {}
    for h in facts.tables["history"]:
        before, after = h["before"], Status(h["after"])
        if before is not None:
            if now[h["id"]] != (before, h["before_reason"]):
                yield f"delivery {h['id']}: history has a hole"
            reason = Reason(h["before_reason"]) if h["before_reason"] else None
            # Queued again: for another attempt. Otherwise only its engagement changed.
            same = before == after and (after is Status.queued or h["before_reason"] == h["reason"])
            if not same and decide_transition(Status(before), reason, after) is not after:
                yield f"delivery {h['id']}: {Status(before).name} ({reason}) -> {after.name}"
        now[h["id"]] = (h["after"], h["reason"])
    for d in facts.deliveries.values():
        events = [e for e in facts.events[d["id"]] if e["kind"] != EventKind.late]
        kinds = Counter(e["kind"] for e in events if not is_receipt(e))
        if d["status"] not in (Status.skipped, Status.expired) and not events:
            yield f"delivery {d['id']} is {Status(d['status']).name} without an event"
        if kinds[EventKind.sent] + kinds[EventKind.delivered] > 1 + facts.replayed(d):
            yield f"delivery {d['id']} was sent more than once"


def _once(world: World, facts: Facts) -> Iterator[str]:
    taken = Counter(call.key for call in world.calls if call.took)
    for key, n in taken.items():
        id_ = ids.parse_public(ids.DELIVERY, key)
        d = facts.deliveries.get(id_)
        if d is None:
            yield f"{key} was sent and is not stored"
            continue
        notification = facts.notifications[d["notification_id"]]
        unsure = sum(e["kind"] == EventKind.uncertain for e in facts.events[id_])
        if n > 1 + unsure + facts.replayed(d):
            yield f"{key} was taken {n} times, {unsure} uncertain"
        if n > 1 and notification["at_most_once"] and not facts.replayed(d):
            yield f"{key} was to be sent at most once, and was taken {n} times"
        if notification["test"] or d["address"].endswith("@simulator.test"):
            yield f"{key} is a test, and left the house"
    for d in facts.deliveries.values():
        said = d["status"] in (Status.sent, Status.delivered)
        n = facts.notifications[d["notification_id"]]
        real = not n["test"] and d["channel"] != Channel.in_app and not d["address"].endswith("@simulator.test")
        if said and real and not taken[ids.to_public(ids.DELIVERY, d["id"])]:
            yield f"delivery {d['id']} is {Status(d['status']).name}, but nobody got it"


def _in_time(world: World, facts: Facts) -> Iterator[str]:
    for call in world.calls:
        d = facts.deliveries.get(ids.parse_public(ids.DELIVERY, call.key))
        if d is None:
            continue
        n = facts.notifications[d["notification_id"]]
        at = (n["send_at"] - world.begin).total_seconds() if n["send_at"] else 0.0
        if call.began < at:
            yield f"{call.key} left {at - call.began:.3f} s early"
        if n["expires_at"] is not None and not facts.replayed(d):
            late = call.began - (n["expires_at"] - world.begin).total_seconds()
            if late > LEASE.total_seconds():
                yield f"{call.key} left {late:.3f} s after it had expired"


def _cancelled(world: World, facts: Facts) -> Iterator[str]:
    for public, answer, at in world.cancels:
        id_ = ids.parse_public(ids.NOTIFICATION, public)
        deliveries = facts.of_notification[id_]
        for d in deliveries:
            key = ids.to_public(ids.DELIVERY, d["id"])
            after = [c for c in world.calls if c.key == key and c.began > at]
            if answer is Cancelled.cancelled and after:
                yield f"{key} was sent after its cancel was confirmed"
            if len(after) > 1:
                yield f"{key} was tried {len(after)} times after it was cancelled"
            if answer is Cancelled.cancelled and d["status"] not in (Status.cancelled, Status.skipped):
                yield f"{key} is {Status(d['status']).name} after its cancel was confirmed"
        stopped = facts.runs[id_]["reason"] == Reason.cancelled if id_ in facts.runs else False
        recalled = any(i["notification_id"] == id_ and i["recalled_at"] for i in facts.tables["inbox_item"])
        found = stopped or recalled or any(d["status"] == Status.cancelled for d in deliveries)
        if answer is Cancelled.partly and not found:
            yield f"{public}: partly cancelled, and nothing is"


def _counted(facts: Facts) -> Iterator[str]:
    recount: Counter[tuple[int, int]] = Counter()
    for n in facts.notifications.values():
        recount[n["project_id"], EventKind.requested] += n["items"] is None
        run = facts.runs.get(n["id"])
        passes = msgspec.json.decode(run["trail"], type=list[Pass]) if run is not None and run["trail"] else []
        for asked in passes:
            answers = {ruling.answer for ruling in asked.rulings}
            recount[n["project_id"], EventKind.held] += Answer.hold in answers
            recount[n["project_id"], EventKind.digested] += Answer.digest in answers
    for d in facts.deliveries.values():
        planned = next(h for h in facts.tables["history"] if h["id"] == d["id"] and h["before"] is None)
        recount[d["project_id"], EventKind(planned["after"]) if planned["after"] else EventKind.queued] += 1
        for e in facts.events[d["id"]]:
            if e["kind"] not in (EventKind.sent, EventKind.delivered, EventKind.late, EventKind.replayed):
                recount[d["project_id"], e["kind"]] += not is_receipt(e)
        for bits, machine in ((d["engagement"], False), (d["machine_engagement"], True)):
            for kind, bit in ENGAGEMENT_OF.items():
                if bits & bit:
                    recount[d["project_id"], EventKind.machine_opened if machine else kind] += 1
    success = (Status.sent, Status.delivered)
    for h in facts.tables["history"]:
        project = facts.deliveries[h["id"]]["project_id"]
        if h["before"] is None or h["before"] == h["after"]:
            continue
        recount[project, EventKind.sent] += h["after"] in success and h["before"] not in success
        recount[project, EventKind.delivered] += h["after"] == Status.delivered
        recount[project, EventKind.failed] += h["after"] == Status.failed and h["reason"] in RECEIPT_REASONS
    rolled = {(r["project_id"], r["kind"]): r["n"] for r in facts.tables["rolled"]}
    for place in sorted({*recount, *rolled}):
        if recount[place] != rolled.get(place, 0):
            named = EventKind(place[1]).name
            yield f"roll-up of {named} in {place[0]}: {rolled.get(place, 0)}, counted {recount[place]}"


def is_receipt(event: Any) -> bool:
    """Whether somebody reported it afterwards."""
    return event["detail"] is not None and '"receipt"' in event["detail"]


def _effects(facts: Facts) -> Iterator[str]:
    letters = {r["delivery_id"] for r in facts.tables["dead_letter"]}
    suppressed = {(r["project_id"], r["channel"], r["address"]) for r in facts.tables["suppression"]}
    for d in facts.deliveries.values():
        failed = d["status"] == Status.failed
        n = facts.notifications[d["notification_id"]]
        effect = EFFECTS[Reason(d["reason"])] if d["reason"] else Effect.none
        if d["id"] in letters and not failed:
            yield f"delivery {d['id']} is a dead letter and {Status(d['status']).name}"
        given_up = failed and n["cancelled_at"] is None and effect not in (Effect.suppress, Effect.drop_address)
        # The next of its chain took the place of one of which nobody knew: it was not given up.
        replaced = d["reason"] == Reason.uncertain and facts.types.get(n["type_version_id"]) == "chain"
        if given_up and not replaced and d["id"] not in letters:
            yield f"delivery {d['id']} failed ({d['reason']}) and is no dead letter"
        simulated = n["test"] or d["address"].endswith("@simulator.test")
        bounced = failed and effect is Effect.suppress and not simulated
        if bounced and (d["project_id"], d["channel"], d["address"]) not in suppressed:
            yield f"delivery {d['id']} bounced and {d['address']} is not suppressed"


def _inboxes(facts: Facts) -> Iterator[str]:
    items: dict[tuple[int, str], list[int]] = defaultdict(list)
    for r in facts.tables["inbox_item"]:
        items[r["project_id"], r["user_id"]].append(r["seq"])
        if r["changed_seq"] != r["seq"]:
            items[r["project_id"], r["user_id"]].append(r["changed_seq"])
    for r in facts.tables["inbox_counter"]:
        found = sorted(items[r["project_id"], r["user_id"]])
        if found != list(range(1, r["last_seq"] + 1)):
            yield f"inbox of {r['user_id']} in {r['project_id']} has gaps: {found}, last {r['last_seq']}"
    stored = Counter(r["delivery_id"] for r in facts.tables["inbox_item"])
    for d in facts.deliveries.values():
        test = facts.notifications[d["notification_id"]]["test"]
        wanted = d["channel"] == Channel.in_app and d["status"] == Status.delivered and not test
        if stored[d["id"]] != wanted:
            yield f"delivery {d['id']} is {Status(d['status']).name} and stored {stored[d['id']]} times in an inbox"


def _quotas(facts: Facts) -> Iterator[str]:
    for account in facts.tables["account"]:
        most = msgspec.json.decode(account["quotas"]).get("day", {}).get("messages")
        if most is None:
            continue
        rows = [r for r in facts.tables["account_usage"] if r["account_id"] == account["id"] and r["period"] == 1]
        if any(not 0 <= row["messages"] <= most for row in rows):
            yield f"account {account['id']} may use {most} a day: {[dict(row) for row in rows]}"
        # What is uncertain may never have begun: its worker died.
        sent = sum(
            e["account_id"] == account["id"]
            and e["kind"] in (EventKind.sent, EventKind.delivered)
            and not is_receipt(e)
            for events in facts.events.values()
            for e in events
        )
        if sent > most * len(rows):
            yield f"account {account['id']} may send {most} a day, and sent {sent} in {len(rows)} days"


LEFT = (Status.sent, Status.delivered)


def is_called_off(facts: Facts, notification: Any) -> bool:
    """Whether its broadcast was cancelled."""
    return any(
        b["id"] == notification["broadcast_id"] and b["cancelled_at"] is not None for b in facts.tables["broadcast"]
    )


def may_have_left(delivery: Any) -> bool:
    """Whether something of it is, or may be, with the user; as far as its row tells."""
    return delivery["status"] in LEFT or (
        delivery["status"] == Status.failed
        and (delivery["reason"] == Reason.uncertain or delivery["sent_at"] is not None)
    )


def of_type(facts: Facts, key: str) -> Iterator[Any]:
    """The notifications of a type that were not called off."""
    for n in facts.notifications.values():
        if facts.types.get(n["type_version_id"]) == key and n["cancelled_at"] is None:
            yield n


def _steps(facts: Facts) -> Iterator[str]:
    for run in facts.runs.values():
        if run["state"] == RunState.waiting:
            yield f"{run['id']} still waits"
    for n in of_type(facts, "steps"):
        channels = [d["channel"] for d in facts.of_notification[n["id"]]]
        reason = facts.runs[n["id"]]["reason"]
        if reason in (Reason.expired, Reason.sent_before):
            continue
        if sorted(channels) != [Channel.email, Channel.in_app]:
            yield f"{n['id']} was to be told in the inbox and by mail: {channels}"
    for n in of_type(facts, "chain"):
        if facts.runs[n["id"]]["reason"] in (Reason.expired, Reason.sent_before):
            continue
        by = {d["channel"]: d for d in facts.of_notification[n["id"]]}
        if len(by) != len(facts.of_notification[n["id"]]):
            yield f"{n['id']} took a step of its chain twice"
        email, webhook, item = (by.get(c) for c in (Channel.email, Channel.webhook, Channel.in_app))
        if email is None:
            yield f"{n['id']} left out the first of its chain"
            continue
        if webhook is None and item is None:
            yield f"{n['id']} ends with its mail {Status(email['status']).name}"
        if item is not None and not any(d is not None and may_have_succeeded(facts, d) for d in (email, webhook)):
            yield f"{n['id']} went on though its chain had failed"


def may_have_succeeded(facts: Facts, delivery: Any) -> bool:
    """Whether it ever was sent or delivered: it may have bounced since, or been tried again by an operator."""
    return any(h["id"] == delivery["id"] and h["after"] in LEFT for h in facts.tables["history"])


def _digests(facts: Facts) -> Iterator[str]:
    for table in ("digest_window", "digest_item"):
        for row in facts.tables[table]:
            yield f"{table} {dict(row)} is left"
    told: Counter[Any] = Counter()
    for n in facts.notifications.values():
        if n["items"] is None:
            continue
        digest = msgspec.json.decode(n["data"])["digest"]
        if not n["items"] or n["items"] != digest["count"] or digest["count"] != len(digest["items"]) + digest["more"]:
            yield f"digest {n['id']} of {n['items']} says {digest['count']}, and shows {len(digest['items'])}"
        if len({item["data"]["k"] for item in digest["items"]}) > 1:
            yield f"digest {n['id']} mixes keys"
        for item in digest["items"]:
            id_ = ids.parse_public(ids.NOTIFICATION, item["notification"])
            told[id_] += 1
            if facts.runs[id_]["digest_id"] != n["id"]:
                yield f"{id_} is in digest {n['id']}, and says {facts.runs[id_]['digest_id']}"
    for n in facts.notifications.values():
        run = facts.runs.get(n["id"])
        gathered = run is not None and run["state"] == RunState.digested
        late = n["expires_at"] is not None
        if gathered and not told[n["id"]] and not late:
            yield f"{n['id']} was gathered and is in no digest"
        if told[n["id"]] > gathered:
            yield f"{n['id']} is in {told[n['id']]} digests"


def _limits(facts: Facts) -> Iterator[str]:
    sent: dict[tuple[str, int, Any], list[Any]] = defaultdict(list)
    once: Counter[tuple[int, Any, str]] = Counter()
    for n in facts.notifications.values():
        key = facts.types.get(n["type_version_id"])
        left = [d for d in facts.of_notification[n["id"]] if may_have_left(d)]
        if not left or any(facts.replayed(d) for d in left):  # an operator's replay asks no limit
            continue
        who = n["user_id"] or n["to_address"]
        if key in ("capped", "spaced") and n["priority"] != Priority.critical:  # which is exempt
            sent[key, n["project_id"], (who, n["test"])].append(min(d["created_at"] for d in left))
        if n["once_key"] is not None:
            once[n["project_id"], (who, n["test"]), n["once_key"]] += 1
    for (key, project, who), times in sent.items():
        times.sort()
        if key == "capped" and len(times) > CAP:
            yield f"{who} in {project} got {len(times)} of a type that is capped at {CAP}"
        if key == "spaced" and any(b - a < SPACE for a, b in itertools.pairwise(times)):
            yield f"{who} in {project} got two of a type that is spaced, at {[str(t) for t in times]}"
    for place, n in once.items():
        if n > 1:
            yield f"{place} was to be told once, and was told {n} times"


def _broadcasts(facts: Facts) -> Iterator[str]:
    for b in facts.tables["broadcast"]:
        told = Counter(n["user_id"] for n in facts.notifications.values() if n["broadcast_id"] == b["id"])
        if any(n > 1 for n in told.values()):
            yield f"broadcast {b['id']} told somebody twice: {told}"
        everybody = sum(u["project_id"] == b["project_id"] for u in facts.tables["app_user"])
        if b["cancelled_at"] is None and len(told) != everybody:
            yield f"broadcast {b['id']} told {len(told)} of {everybody}"
        if b["expanded"] != len(told):
            yield f"broadcast {b['id']} says it told {b['expanded']}, and told {len(told)}"
