"""Hooks over HTTP: made, changed, rotated, tried, replayed; and told by a running worker over real sockets."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

from aiohttp import web
from pydantic import SecretStr

from tidings.clock import SystemClock
from tidings.directory.hooks import EVENTS
from tidings.engine.lane import SendLane
from tidings.engine.wakes import Wakes
from tidings.flow.hooks import HookSender
from tidings.flow.jobs import LANE_HOOKS
from tidings.model.words import Scope
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Surroundings
from tidings.providers.webhook import verify_signature

HOOK = {"key": "app", "url": "https://app.example.com/tidings", "events": ["delivery.sent", "delivery.failed"]}


async def test_a_hook_is_made_changed_and_removed(tenant: Any) -> None:
    made = await tenant.post("/api/v1/hooks", HOOK)
    assert made.status_code == 201, made.text
    secret = made.json()["secret"]
    assert secret.startswith("whsec_")
    assert made.json()["enabled"] is True
    shown = (await tenant.get("/api/v1/hooks/app")).json()
    assert "secret" not in shown
    assert shown == {name: value for name, value in made.json().items() if name != "secret"}
    assert [hook["key"] for hook in (await tenant.get("/api/v1/hooks")).json()["items"]] == ["app"]

    change = {"url": "https://app.example.com/other", "events": ["*"], "enabled": False, "description": "Ours"}
    changed = (await tenant.put("/api/v1/hooks/app", change)).json()
    assert {name: changed[name] for name in change} == change
    assert (await tenant.put("/api/v1/hooks/app", change)).json() == changed, "again changes nothing"
    assert (await tenant.put("/api/v1/hooks/none", change)).status_code == 404
    assert (await tenant.post("/api/v1/hooks", HOOK)).status_code == 409

    rotated = (await tenant.post("/api/v1/hooks/app/rotate")).json()
    assert rotated["secret"] not in (secret, None)
    assert rotated["previous_until"] is not None
    trail = (await tenant.get("/api/v1/audit", params={"object": "hook:app"})).json()["items"]
    assert [entry["action"] for entry in reversed(trail)] == ["hook.create", "hook.put", "hook.rotate"]
    for text in (secret, rotated["secret"]):
        assert text[6:] not in (await tenant.get("/api/v1/audit")).text

    assert (await tenant.delete("/api/v1/hooks/app")).status_code == 204
    assert (await tenant.delete("/api/v1/hooks/app")).status_code == 404


async def test_a_repetition_shows_no_secret(tenant: Any) -> None:
    once = {"Idempotency-Key": "hook-1"}
    first = await tenant.post("/api/v1/hooks", HOOK, headers=once)
    second = await tenant.post("/api/v1/hooks", HOOK, headers=once)
    assert second.json() == {**first.json(), "secret": None}
    kept = await tenant.api.deps.database.fetchval("SELECT answer FROM idempotency")
    assert first.json()["secret"] not in kept


async def test_wrong_hooks_are_refused(tenant: Any) -> None:
    for change, pointer in (
        ({"url": "ftp://example.com"}, "/url"),
        ({"url": ""}, "/url"),
        ({"events": []}, "/events"),
        ({"events": ["delivery.eaten"]}, "/events/0"),
        ({"events": ["sms.inbound", "requested"]}, "/events/1"),
        ({"key": "No spaces"}, "/key"),
        ({"enabled": "yes"}, "/enabled"),
        ({"secret": "mine"}, "/secret"),
    ):
        answer = await tenant.post("/api/v1/hooks", {**HOOK, **change})
        assert answer.status_code == 422, change
        assert answer.json()["errors"][0]["pointer"] == pointer, answer.text
    every = await tenant.post("/api/v1/hooks", {**HOOK, "events": list(EVENTS)})
    assert every.status_code == 201


async def test_who_may(tenant: Any) -> None:
    reader = await tenant.with_scopes(Scope.read, Scope.send)
    assert (await reader.get("/api/v1/hooks")).status_code == 403
    assert (await reader.post("/api/v1/hooks", HOOK)).status_code == 403
    tester = await tenant.with_scopes(*Scope, test=True)
    assert (await tester.post("/api/v1/hooks", HOOK)).status_code == 403
    await tenant.post("/api/v1/hooks", HOOK)
    other = await tenant.api.new_project("other")
    assert (await other.get("/api/v1/hooks")).json()["items"] == []
    for method, path, body in (
        ("GET", "", None),
        ("PUT", "", {"url": HOOK["url"], "events": ["*"]}),
        ("DELETE", "", None),
        ("POST", "/rotate", None),
        ("POST", "/test", None),
        ("GET", "/messages", None),
        ("POST", "/messages/replay", {}),
    ):
        answer = await other.request(method, f"/api/v1/hooks/app{path}", json=body)
        assert answer.status_code == 404, (method, path)


async def test_there_is_an_end_to_hooks(tenant: Any) -> None:
    answers = [await tenant.post("/api/v1/hooks", {**HOOK, "key": f"hook-{n}"}) for n in range(21)]
    assert [answer.status_code for answer in answers] == [201] * 20 + [409]


async def test_an_endpoint_is_told_over_real_sockets(tenant: Any) -> None:
    """Answers 500 first: what failed is told again, and what was given up can be replayed."""
    told: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()
    statuses = [500]

    async def take(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        told.put_nowait((headers, await request.read()))
        return web.Response(status=statuses.pop(0) if statuses else 204)

    application = web.Application()
    application.router.add_post("/tidings", take)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]

    deps = tenant.api.deps
    guard = Guard(["127.0.0.0/8"])
    transport = AiohttpTransport(guard)
    clock, wakes, stop = SystemClock(), Wakes(), asyncio.Event()
    sender = HookSender(deps.database, deps.catalog, Surroundings(transport, guard, clock), clock)
    lane: SendLane[Any, Any] = SendLane(
        LANE_HOOKS, sender, deps.database, clock, wakes, slots=16, lease=timedelta(seconds=60), settle_window=0.0
    )
    running = asyncio.create_task(lane.run(stop))
    try:
        url = f"http://127.0.0.1:{port}/tidings"
        secret = (await tenant.post("/api/v1/hooks", {**HOOK, "url": url})).json()["secret"]
        sent = await tenant.post("/api/v1/hooks/app/test")
        assert sent.status_code == 202
        headers, body = await asyncio.wait_for(told.get(), 10)
        verify_signature(SecretStr(secret), headers, body, clock.now())
        assert headers["webhook-id"] == sent.json()["id"] == json.loads(body)["id"]

        # The owner gives up before the schedule does.
        await lane.settling.drain()
        await deps.database.execute("DELETE FROM job")
        await deps.database.execute("UPDATE hook_message SET failed_at = now(), attempts = 1, detail = 'HTTP 500'")
        [failed] = (await tenant.get("/api/v1/hooks/app/messages")).json()["items"]
        assert (failed["event_id"], failed["event"], failed["detail"]) == (sent.json()["id"], "hook.test", "HTTP 500")
        wrong = await tenant.post("/api/v1/hooks/app/messages/replay", {"messages": ["x"]})
        assert wrong.json()["errors"][0]["pointer"] == "/messages/0"
        again = await tenant.post("/api/v1/hooks/app/messages/replay", {"messages": [failed["id"]]})
        assert again.json() == {"replayed": 1}
        _, same = await asyncio.wait_for(told.get(), 10)
        assert same == body
        assert (await tenant.get("/api/v1/hooks/app/messages")).json()["items"] == []
    finally:
        stop.set()
        wakes.local(LANE_HOOKS)
        await running
        await lane.drain(5)
        await transport.close()
        await runner.cleanup()
