"""Two projects that send at the same time: neither sees, uses or disturbs what is the other's."""

from __future__ import annotations

import httpx
import pytest

from tests.contract.servers import http_answer
from tests.e2e.faults.harness import WEBHOOK_SECRET, make_project
from tests.e2e.faults.receivers import WebhookReceiver
from tests.e2e.faults.stack import open_stack
from tidings.client import AsyncClient, Invalid, NotFound, Problem


async def test_neither_reaches_what_is_the_others(database_dsn: str) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, key="one", webhook_port=hooks.port, users=1) as stack,
        stack.working(),
    ):
        other = await make_project(stack.database, key="two", webhook_port=hooks.port)
        transport = httpx.ASGITransport(stack.app)
        async with AsyncClient("http://127.0.0.1", other.token, transport=transport) as stranger:
            # The same idempotency key is two keys.
            content = {"payload": {"n": 1}}
            to = {"webhook": f"http://127.0.0.1:{hooks.port}/hook"}
            mine = await stack.client.send(to=to, content=content, idempotency_key="same")
            theirs = await stranger.send(to=to, content=content, idempotency_key="same")
            assert mine.id != theirs.id
            assert not theirs.idempotent_replayed

            # A user and a type of the other project do not exist.
            with pytest.raises(Invalid):
                await stranger.send(type="note", to={"user": "u0"}, data={"n": 1})
            stored = await stack.database.fetchval("SELECT count(*) FROM notification WHERE project_id = $1", other.id)
            (outcome,) = await stranger.send_batch([{"type": "note", "to": {"user": "u0"}, "data": {"n": 1}}])
            assert isinstance(outcome, Problem)
            assert stored == 1

            # Neither a notification nor a dead letter.
            hooks.scripts["/u0"] = [http_answer(400)]
            sent = await stack.client.send(type="note", to={"user": "u0"}, channels=["webhook"], data={"n": 1})
            (delivery,) = (await stack.ended(sent.id)).deliveries
            assert delivery.status == "failed"
            with pytest.raises(NotFound):
                await stranger.get(sent.id)
            with pytest.raises(NotFound):
                await stranger.cancel(sent.id)
            with pytest.raises(NotFound):
                await stranger.dead_letters.replay(delivery.id)
            assert (await stranger.dead_letters.replay_many([delivery.id])).replayed == 0
            assert (await stranger.dead_letters.replay_all()).replayed == 0
            assert [letter async for letter in stranger.dead_letters.list()] == []
            assert [shown.id async for shown in stranger.list()] == [theirs.id]
            assert [letter.delivery for letter in await stack.dead_letters()] == [delivery.id]
            assert (await stack.client.get(sent.id)).status == "failed"


async def test_one_that_overloads_itself_does_not_hold_up_the_other(database_dsn: str) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, key="one", webhook_port=hooks.port, users=1, timeout=5) as stack,
    ):
        other = await make_project(stack.database, key="two", webhook_port=hooks.port)
        await stack.client.send_batch(
            {"type": "note", "to": {"user": "u0"}, "channels": ["webhook"], "data": {"n": n}} for n in range(2_000)
        )
        hooks.latency = 0.05
        transport = httpx.ASGITransport(stack.app)
        async with AsyncClient("http://127.0.0.1", other.token, transport=transport) as client, stack.working():
            await hooks.news.wait_until(lambda: len(hooks.receipts) >= 64)
            to = {"webhook": f"http://127.0.0.1:{hooks.port}/two"}
            await client.send(to=to, content={"payload": {"n": 1}})
            await hooks.news.wait_until(lambda: any(receipt.path == "/two" for receipt in hooks.receipts))
            assert len(hooks.receipts) < 1_500
