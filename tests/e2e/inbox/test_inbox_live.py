"""Live streams of the inbox on a real socket: server-sent events, WebSocket, resuming, draining, limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.e2e.inbox.visitors import COOKIE, LISTED, OTHER, Events, fill, sign_in, to_uuids
from tidings.flow.inbox import Mark
from tidings.web.inbox.live import End
from tidings.web.server import serve

GRACE = timedelta(seconds=20)


class Served:
    """The API on a socket."""

    def __init__(self, tenant: Any, url: str, client: httpx.AsyncClient) -> None:
        self.tenant = tenant
        self.url = url
        self.client = client

    @contextlib.asynccontextmanager
    async def events(self, token: str, *, after: int | str | None = None, **headers: str) -> AsyncIterator[Events]:
        given = {"authorization": f"Bearer {token}", **headers}
        if after is not None:
            given["last-event-id"] = str(after)
        async with self.client.stream("GET", f"{self.url}/api/v1/inbox/stream", headers=given, timeout=15) as answer:
            assert answer.status_code == 200, await answer.aread()
            yield Events(answer)

    async def no_streams(self) -> None:
        """Waits until none is open."""
        gauge = "tidings_inbox_streams 0.0"
        async with asyncio.timeout(10):
            while gauge not in self.tenant.api.deps.metrics.render().decode():
                await asyncio.sleep(0.01)

    def socket(self, token: str | None, query: str = "", **options: Any) -> connect:
        protocols = [Subprotocol(word) for word in ("tidings.inbox", token) if word is not None]
        address = f"ws{self.url.removeprefix('http')}/api/v1/inbox/socket{query}"
        return connect(address, subprotocols=protocols, proxy=None, **options)


@pytest.fixture
async def served(tenant: Any) -> AsyncIterator[Served]:
    api = tenant.api
    async with (
        serve(api.front, "127.0.0.1", 0, GRACE, draining=api.draining) as url,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        yield Served(tenant, url, client)


async def hear(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(10):
        told: dict[str, Any] = json.loads(await socket.recv())
        return told


# ---------------------------------------------------------------- server-sent events


async def test_a_stream_tells_what_happens(served: Served) -> None:
    tenant, token = served.tenant, await sign_in(served.tenant)
    await fill(tenant, "ada", ["before"])
    async with served.events(token) as stream:
        assert stream.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.answer.headers["cache-control"] == "no-store"
        assert await stream.next() == ("counts", {"total": 1, "unseen": 1, "unread": 1})
        assert stream.last_id == "1"
        assert 1_000 <= stream.retry <= 4_000

        [id_] = await fill(tenant, "ada", ["news"], body="two\nlines", url="/x")
        name, item = await stream.next()
        assert (name, item["id"], item["seq"], item["body"]) == ("item", id_, 2, "two\nlines")
        assert await stream.next() == ("counts", {"total": 2, "unseen": 2, "unread": 2})

        await served.client.post(
            f"{served.url}/api/v1/inbox/items/{id_}/read", headers={"authorization": f"Bearer {token}"}
        )
        name, item = await stream.next()
        assert (name, item["id"], item["title"]) == ("update", id_, "news")
        assert item["read_at"]
        assert await stream.next() == ("counts", {"total": 2, "unseen": 1, "unread": 1})
        assert stream.last_id == "3"


async def test_a_stream_goes_on_where_it_was(served: Served) -> None:
    """Without loss and without repetition, whatever happens between and wherever it breaks off."""
    tenant, token = served.tenant, await sign_in(served.tenant)
    expected, got = [], []
    async with served.events(token) as stream:
        await stream.next()
        expected += await fill(tenant, "ada", ["0"])
        got += [await stream.next()]
        last = stream.last_id  # the counts were on their way
    for n in range(1, 30, 5):
        expected += await fill(tenant, "ada", [str(m) for m in range(n, n + 5)])
        async with served.events(token, after=last) as stream:
            for _ in range(3):
                got += [await stream.next()]
                if got[-1][0] == "counts":
                    got.pop()
            last = stream.last_id
    async with served.events(token, after=last) as stream:
        while len(got) < len(expected):
            event = await stream.next()
            if event[0] != "counts":
                got.append(event)
        last = stream.last_id
    assert [name for name, _ in got] == ["item"] * 31
    assert [item["id"] for _, item in got] == expected

    # Marked while nobody looked: what was told before comes as an update, once, in order of change.
    inbox = tenant.api.deps.inbox
    await inbox.mark_all((tenant.project_id, "ada"), Mark.read, up_to=3)
    new = await fill(tenant, "ada", ["last"])
    async with served.events(token, after=last) as stream:
        names = [(name, data.get("id")) for name, data in await stream.take(5)]
    assert names == [("update", id_) for id_ in expected[:3]] + [("item", new[0]), ("counts", None)]


async def test_what_was_marked_before_it_was_told_is_told(served: Served) -> None:
    """An item whose own number was skipped, since it has changed, comes under its newer number."""
    tenant, token = served.tenant, await sign_in(served.tenant)
    made = await fill(tenant, "ada", [str(n) for n in range(60)])
    async with served.events(token, after=0) as stream:
        assert (await stream.next())[1]["id"] == made[0]
        await tenant.api.deps.inbox.mark((tenant.project_id, "ada"), to_uuids(made[50:51]), Mark.seen)
        seen = {made[0]}
        while len(seen) < 60:
            name, data = await stream.next()
            if name != "counts":
                assert data["id"] not in seen
                seen.add(data["id"])
    assert seen == set(made)


async def test_numbers_that_are_none_of_ours(served: Served) -> None:
    token = await sign_in(served.tenant)
    await fill(served.tenant, "ada", ["one"])
    headers = {"authorization": f"Bearer {token}"}
    for wrong in ("x", "-1", "1.5", "9" * 40):
        answer = await served.client.get(f"{served.url}/api/v1/inbox/stream?after={wrong}", headers=headers)
        assert answer.status_code == 422, wrong
    async with served.events(token, after=10_000) as stream:  # of a database that was restored, say
        await stream.next()
        assert stream.last_id == "1"


async def test_everybody_hears_only_their_own(served: Served) -> None:
    tenant = served.tenant
    ada, bob = await sign_in(tenant, "ada"), await sign_in(tenant, "bob")
    async with served.events(ada) as one, served.events(ada) as two, served.events(bob) as other:
        for stream in (one, two, other):
            await stream.next()
        await fill(tenant, "ada", ["for Ada"])
        await fill(tenant, "bob", ["for Bob"])
        for stream, title in ((one, "for Ada"), (two, "for Ada"), (other, "for Bob")):
            assert (await stream.next())[1]["title"] == title
            assert (await stream.next())[1]["total"] == 1


async def test_silence_is_filled_with_comments(served: Served) -> None:
    served.tenant.api.deps.live.heartbeat = 0.05
    token = await sign_in(served.tenant)
    async with served.events(token) as stream:
        await stream.next()
        lines = []
        async with asyncio.timeout(10):
            async for line in stream._lines:
                lines.append(line)
                if len(lines) == 4:
                    break
    assert set(lines) == {":", ""}


async def test_a_stream_ends_with_its_token_or_its_user(served: Served) -> None:
    tenant = served.tenant
    short, long = await sign_in(tenant, life="1s"), await sign_in(tenant)
    async with served.events(short) as brief, served.events(long) as stream:
        assert (await brief.take(2))[1] == ("end", None)
        assert brief.comments == [End.expired.value]
        await stream.next()
        await tenant.delete("/api/v1/users/ada")
        assert await stream.next() == ("end", None)
        assert stream.comments == [End.deleted.value]


async def test_a_slow_reader_holds_nothing_up_and_misses_nothing(served: Served) -> None:
    """It takes nothing while far more is stored than sockets hold; then it gets all of it."""
    tenant, token = served.tenant, await sign_in(served.tenant)
    quick = await sign_in(tenant, "bob")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]), limit=2**16)
    with contextlib.closing(writer):
        writer.write(
            f"GET /api/v1/inbox/stream?after=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        await reader.readuntil(b"counts")
        body = "x" * 50_000
        made = [id_ for n in range(10) for id_ in await fill(tenant, "ada", [f"{n}-{m}" for m in range(30)], body=body)]
        async with served.events(quick) as stream:  # others are told meanwhile
            await stream.next()
            await fill(tenant, "bob", ["news"])
            assert (await stream.next())[1]["title"] == "news"
        found: list[str] = []
        rest = b""
        async with asyncio.timeout(30):
            while len(found) < len(made):
                chunk = await reader.read(2**16)
                assert chunk, f"it was cut off after {len(found)}"
                parts = (rest + chunk).split(b'"id":"dlv_')
                found += [f"dlv_{part[:26].decode()}" for part in parts[1:-1]]
                rest = b'"id":"dlv_' + parts[-1] if len(parts) > 1 else rest + chunk
                if len(found) == len(made) - 1 and b"counts" in rest:
                    found.append(f"dlv_{rest[10:36].decode()}")
    assert found == made


async def test_who_takes_nothing_is_cut_off(served: Served) -> None:
    tenant, token = served.tenant, await sign_in(served.tenant)
    tenant.api.deps.live.send_max = 0.2
    _, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]), limit=2**10)
    with contextlib.closing(writer):
        writer.write(
            f"GET /api/v1/inbox/stream?after=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        for n in range(10):
            await fill(tenant, "ada", [f"{n}-{m}" for m in range(30)], body="x" * 50_000)
        await served.no_streams()
    async with served.events(token, after=0) as stream:
        assert (await stream.next())[1]["title"] == "0-0"


async def test_a_user_may_have_so_many_streams(served: Served) -> None:
    served.tenant.api.deps.live.user_streams_max = 2
    token = await sign_in(served.tenant)
    headers = {"authorization": f"Bearer {token}"}
    async with served.events(token) as one, served.events(token) as two:
        await one.next()
        await two.next()
        answer = await served.client.get(f"{served.url}/api/v1/inbox/stream", headers=headers)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
    await served.no_streams()
    async with served.events(token) as again:
        await again.next()


async def test_streams_end_when_the_server_stops(tenant: Any) -> None:
    token = await sign_in(tenant)
    async with httpx.AsyncClient(trust_env=False) as client:
        serving = serve(tenant.api.front, "127.0.0.1", 0, GRACE, draining=tenant.api.draining)
        url = await serving.__aenter__()
        server = Served(tenant, url, client)
        async with server.events(token) as stream, server.socket(token) as socket:
            await stream.next()
            await hear(socket)
            async with asyncio.timeout(5):  # far less than the grace that they would have
                await serving.__aexit__(None, None, None)
            assert await stream.next() == ("end", None)
            with pytest.raises(ConnectionClosed):
                await hear(socket)
            assert socket.close_code == 1012


# ---------------------------------------------------------------- WebSocket


async def test_a_socket_tells_and_obeys(served: Served) -> None:
    tenant, token = served.tenant, await sign_in(served.tenant)
    one, two = await fill(tenant, "ada", ["one", "two"])
    async with served.socket(token) as socket:
        assert socket.subprotocol == "tidings.inbox"
        assert await hear(socket) == {"event": "counts", "id": 2, "data": {"total": 2, "unseen": 2, "unread": 2}}
        await socket.send(json.dumps({"seen": [one, two], "read": [two]}))
        told = [await hear(socket) for _ in range(2)]
        while told[-1]["event"] != "counts" or told[-1]["data"]["unread"] != 1:
            told.append(await hear(socket))
        assert told[-1]["data"] == {"total": 2, "unseen": 0, "unread": 1}
        assert {t["data"]["id"] for t in told if t["event"] == "update"} == {one, two}
        await fill(tenant, "ada", ["three"])
        assert (await hear(socket))["data"]["title"] == "three"
    async with served.socket(token, "?after=2") as socket:
        names = [(await hear(socket))["event"] for _ in range(4)]
        assert names == ["update", "update", "item", "counts"]


async def test_a_socket_says_what_is_wrong_with_a_command(served: Served) -> None:
    token = await sign_in(served.tenant)
    unknown = "dlv_" + "0" * 26
    async with served.socket(token) as socket:
        await hear(socket)
        for wrong in ("", "x", "[]", '{"burn": []}', '{"read": "all"}', '{"read": ["ntf_1"]}', "[" * 5_000):
            await socket.send(wrong)
            assert (await hear(socket))["data"]["status"] == 422, wrong
        await socket.send(b"\x00\x01")
        assert (await hear(socket))["event"] == "problem"
        await socket.send(json.dumps({"read": [unknown] * 101}))
        assert "100" in (await hear(socket))["data"]["detail"]
        await socket.send(json.dumps({"read": [unknown]}))  # of what is not there nothing is told
        await fill(served.tenant, "ada", ["one"])
        assert (await hear(socket))["event"] == "item"


async def test_a_socket_bounds_size_and_pace(served: Served) -> None:
    token = await sign_in(served.tenant)
    async with served.socket(token) as socket:
        await hear(socket)
        await socket.send("x" * 20_000)
        with pytest.raises(ConnectionClosed):
            await hear(socket)
        assert socket.close_code == 1009
    async with served.socket(token) as socket:
        await hear(socket)
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200):
                await socket.send('{"read": []}')
        async with asyncio.timeout(10):
            await socket.wait_closed()
        assert socket.close_code == 1008


async def test_who_may_open_a_socket(served: Served) -> None:
    tenant = served.tenant
    await tenant.put("/api/v1/project/settings", {"origins": [LISTED]})
    token = await sign_in(tenant)
    cookie: dict[str, Any] = {"additional_headers": {"cookie": f"{COOKIE}={token}"}}
    for good in (
        served.socket(token),
        served.socket(token, origin=LISTED),
        served.socket(token, origin=served.url),
        served.socket(None, origin=LISTED, **cookie),
        served.socket(None, additional_headers={"authorization": f"Bearer {token}"}),
    ):
        async with good as socket:
            assert (await hear(socket))["event"] == "counts"
    for status, bad in (
        (401, served.socket(None)),
        (401, served.socket("tdu_shop.x.y")),
        (401, served.socket(None, f"?token={token}")),
        (403, served.socket(token, origin=OTHER)),
        (403, served.socket(None, origin=OTHER, **cookie)),
        (403, served.socket(None, **cookie)),
        (403, served.socket(None, additional_headers={"authorization": f"Bearer {tenant.token}"})),
        (422, served.socket(token, "?after=x")),
    ):
        with pytest.raises(InvalidStatus) as refused:
            await bad.__aenter__()
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body or b"")["status"] == status


async def test_a_socket_ends_with_its_token(served: Served) -> None:
    token = await sign_in(served.tenant, life="1s")
    async with served.socket(token) as socket:
        await hear(socket)
        with pytest.raises(ConnectionClosed):
            await hear(socket)
        assert (socket.close_code, socket.close_reason) == (1008, End.expired.value)
