"""What is meant for later, what is called off, and what comes too late."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.contract.servers import http_answer
from tests.e2e.faults.harness import WEBHOOK_SECRET, drained, until
from tests.e2e.faults.receivers import WebhookReceiver
from tests.e2e.faults.stack import Stack, events, open_stack


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def note(stack: Stack, n: int = 1, **more: Any) -> str:
    sent = await stack.client.send(type="note", to={"user": "u0"}, channels=["webhook"], data={"n": n}, **more)
    return sent.id


async def test_a_scheduled_notification_leaves_at_its_time(database_dsn: str) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=1) as stack,
        stack.working(),
    ):
        at = soon(1)
        later = await stack.client.send(type="note", to={"user": "u0"}, channels=["webhook"], data={"n": 1}, send_at=at)
        assert later.status == "scheduled"
        now = await note(stack, 2)
        await stack.ended(now)
        assert (await stack.client.get(later.id)).deliveries == []
        shown = await stack.ended(later.id)
        assert shown.status == "delivered"
        assert shown.deliveries[0].delivered_at is not None
        assert at <= shown.deliveries[0].delivered_at < at + timedelta(seconds=2)
        assert [receipt.body for receipt in hooks.receipts] == [b'{"n": 2}', b'{"n": 1}']


async def test_what_is_cancelled_before_its_time_never_leaves(database_dsn: str) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=1) as stack,
        stack.working(),
    ):
        id_ = await note(stack, send_at=soon(0.5))
        assert (await stack.client.cancel(id_)).result == "cancelled"
        assert (await stack.client.cancel(id_)).result == "cancelled"  # definite: the same answer again
        assert await stack.database.fetchval("SELECT count(*) FROM job") == 0
        # One that was accepted later and is due later has come: the cancelled one would have been there.
        await stack.ended(await note(stack, 2, send_at=soon(0.6)))
        assert [receipt.body for receipt in hooks.receipts] == [b'{"n": 2}']
        shown = await stack.client.get(id_)
        assert (shown.status, shown.deliveries) == ("cancelled", [])


async def test_a_cancel_after_the_fact_says_so(database_dsn: str) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=1) as stack,
        stack.working(),
    ):
        id_ = await note(stack)
        assert (await stack.ended(id_)).status == "delivered"
        assert (await stack.client.cancel(id_)).result == "too_late"
        assert (await stack.client.get(id_)).status == "delivered"


async def test_what_is_cancelled_in_flight_is_not_tried_again(database_dsn: str) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=1, timeout=5) as stack,
        stack.working(),
    ):
        hooks.scripts["/u0"] = [http_answer(503), http_answer(200)]
        hooks.gate.clear()
        id_ = await note(stack)
        await hooks.news.wait_until(lambda: hooks.busy == 1)
        assert (await stack.client.cancel(id_)).result == "too_late"
        hooks.gate.set()
        (delivery,) = (await stack.ended(id_)).deliveries
        assert (delivery.status, delivery.reason) == ("cancelled", "cancelled")
        assert len(hooks.receipts) == 1
        assert not await stack.dead_letters()


async def test_cancels_that_race_with_sending_are_right_about_it(database_dsn: str) -> None:
    """`cancelled` means that nobody was told and nobody will be."""
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=1) as stack,
        stack.working(),
    ):
        ids: dict[int, str] = {}

        async def send_and_cancel(n: int) -> tuple[int, str]:
            ids[n] = id_ = await note(stack, n)
            await asyncio.sleep(n % 20 / 1000)  # somewhere between planning, claiming, sending and settling
            return n, (await stack.client.cancel(id_)).result

        answers = dict(await asyncio.gather(*(send_and_cancel(n) for n in range(100))))
        await drained(stack.database)
        told = {int(receipt.body[6:-1]) for receipt in hooks.receipts}
        assert len(told) == len(hooks.receipts)
        assert set(answers.values()) <= {"cancelled", "too_late"}
        assert not {n for n, answer in answers.items() if answer == "cancelled"} & told
        # What was claimed just when the cancel came may still not have been sent; then it says so.
        states = [(await stack.client.get(id_)).status for id_ in ids.values()]
        assert states.count("cancelled") == len(answers) - len(told)
        assert states.count("delivered") == len(told)


async def test_what_has_expired_is_not_sent(database_dsn: str) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=1) as stack,
    ):
        expires_at = soon(0.3)
        id_ = await note(stack, expires_at=expires_at)

        async def past() -> bool:
            return time.time() > expires_at.timestamp()

        await until(past, 5, "it has expired")
        async with stack.working():
            (delivery,) = (await stack.ended(id_)).deliveries
        assert (delivery.status, delivery.reason) == ("expired", "expired")
        assert not hooks.receipts


async def test_no_retry_is_planned_beyond_the_expiry(database_dsn: str) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=1) as stack,
        stack.working(),
    ):
        hooks.scripts["/u0"] = [http_answer(429, "Retry-After: 60")]
        id_ = await note(stack, expires_at=soon(20))
        shown = await stack.ended(id_)
        assert (shown.status, shown.deliveries[0].reason) == ("expired", "expired")
        assert events(shown)[-1] == "expired"
        assert len(hooks.receipts) == 1
