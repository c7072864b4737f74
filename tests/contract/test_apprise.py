"""Apprise beyond what every provider has to do: what its plugins are kept from."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tests.contract.cases import apprise as case
from tests.contract.provider_case import FixedClock
from tests.contract.servers import HttpVendor, http_answer
from tidings.errors import Invalid
from tidings.model.messages import Chat, Rejected, SendResult, Sent, Uncertain
from tidings.model.words import Reason
from tidings.providers.apprise import SCHEMES, list_reachable
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Surroundings
from tidings.providers.registry import create, parse_config


async def send(url: str, guard: Guard) -> SendResult:
    http = AiohttpTransport(guard)
    provider = create("apprise", parse_config("apprise", {"url": url}), Surroundings(http, guard, FixedClock()))
    try:
        return await provider.send(case.message(Chat("Hi")), "dlv_x")
    finally:
        await provider.close()
        await http.close()


def is_refused(result: SendResult) -> bool:
    return isinstance(result, Rejected) and result.reason is Reason.target_refused


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0"])
async def test_inner_targets_are_refused(host: str) -> None:
    async with HttpVendor() as vendor:
        assert is_refused(await send(f"json://{host}:{vendor.port}/", Guard()))
        assert vendor.connections == 0


async def test_a_proxy_of_the_environment_is_no_way_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async with HttpVendor() as vendor:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{vendor.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        assert is_refused(await send("json://192.0.2.1/", Guard()))
        assert vendor.connections == 0


async def test_redirects_are_not_followed_even_if_the_url_asks_for_it() -> None:
    async with HttpVendor() as inner, HttpVendor() as vendor:
        vendor.script = [http_answer(307, f"Location: http://127.0.0.1:{inner.port}/")]
        assert not isinstance(await send(f"json://127.0.0.1:{vendor.port}/?redirect=yes", Guard(["127.0.0.0/8"])), Sent)
        assert len(vendor.requests) == 1
        assert inner.connections == 0


async def test_passwords_of_this_machine_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`requests` would take them from ~/.netrc."""
    secrets = tmp_path / "netrc"
    secrets.write_text("machine 127.0.0.1 login ada password of-this-machine\n")
    monkeypatch.setenv("NETRC", str(secrets))
    async with HttpVendor() as vendor:
        assert await send(f"json://127.0.0.1:{vendor.port}/", Guard(["127.0.0.0/8"])) == Sent()
        assert "authorization" not in vendor.requests[0].headers


@pytest.mark.parametrize(
    "url",
    [
        "",
        "json",
        "json://",
        "dbus://",
        "gnome://",
        "macosx://",
        "windows://",
        "syslog://",
        "rsyslog://127.0.0.1",
        "mailto://u:p@example.com",
        "file:///etc/passwd",
        "fcm://project@key/?keyfile=/etc/passwd",
        "https://example.com/",
    ],
)
def test_other_services_are_refused_and_the_url_is_not_repeated(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("apprise", {"url": url})
    [error] = caught.value.errors
    assert error.pointer == "/config/url"
    assert "://" not in url or url not in str(caught.value.to_dict())


async def test_an_url_that_apprise_does_not_understand() -> None:
    result = await send("tgram://not-a-token", Guard())
    assert isinstance(result, Rejected)
    assert result.reason is Reason.unauthorized


def test_there_are_over_a_hundred_services_and_all_speak_http() -> None:
    from apprise.manager_plugins import NotificationManager

    services = list_reachable()
    assert len(services) > 100
    assert {scheme for schemes in services.values() for scheme in schemes} == SCHEMES, "Apprise does not know them all"
    manager = NotificationManager()  # type: ignore[no-untyped-call]  # Apprise's, without types
    for scheme in SCHEMES:
        assert hasattr(sys.modules[manager[scheme].__module__], "requests"), scheme


class Endless(HttpVendor):
    """Answers for ever: in large pieces, or in small ones that keep a socket's time from running out."""

    def __init__(self, piece: bytes, pause: float = 0.0) -> None:
        super().__init__()
        self.piece = piece
        self.pause = pause
        self.written = 0
        self.gone = asyncio.Event()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        try:
            while True:
                writer.write(self.piece)
                await writer.drain()
                self.written += len(self.piece)
                await asyncio.sleep(self.pause)
        finally:
            self.gone.set()


async def test_no_more_of_an_answer_is_read_than_anybody_needs() -> None:
    async with Endless(bytes(64 * 1024)) as vendor:
        assert isinstance(await send(f"json://127.0.0.1:{vendor.port}/", Guard(["127.0.0.0/8"])), Uncertain)
        async with asyncio.timeout(5):
            await vendor.gone.wait()
        assert vendor.written < 32 * 1024 * 1024  # what the kernels hold between us


async def test_who_does_not_come_to_an_end_is_hung_up_on() -> None:
    guard = Guard(["127.0.0.0/8"])
    http = AiohttpTransport(guard)
    around = Surroundings(http, guard, FixedClock(), timeout=timedelta(seconds=0.5))
    async with Endless(b"x", 0.01) as vendor:
        provider = create("apprise", parse_config("apprise", {"url": f"json://127.0.0.1:{vendor.port}/"}), around)
        assert isinstance(await provider.send(case.message(Chat("Hi")), "dlv_x"), Uncertain)
        async with asyncio.timeout(5):
            await vendor.gone.wait()
        await provider.close()
    await http.close()
