"""What every provider has to do. A registered provider without a file in `cases/` fails here."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.contract.provider_case import DELIVERY, Answer, FixedClock, ProviderCase
from tests.contract.servers import Vendor, free_port
from tidings.directory.accounts import list_secret_fields
from tidings.errors import Invalid
from tidings.ids import to_public
from tidings.model.messages import Deferred, Message, Rejected, SendResult, Sent, Uncertain
from tidings.model.words import Reason
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Provider, Surroundings
from tidings.providers.registry import PROVIDERS, create, merge_secrets, parse_config, split_secrets

KEY = to_public("dlv", DELIVERY)
CASES: dict[str, ProviderCase] = {
    path.stem: importlib.import_module(f"tests.contract.cases.{path.stem}").CASE
    for path in sorted((Path(__file__).parent / "cases").glob("*.py"))
}
CONNECTING = [name for name, case in CASES.items() if case.vendor is not None]


@contextlib.asynccontextmanager
async def running(name: str, port: int, timeout: timedelta | None = None) -> AsyncIterator[Provider]:
    """The provider, configured for a vendor on this port; with another time limit if one is given."""
    guard = Guard(["127.0.0.0/8"])
    http = AiohttpTransport(guard)
    surroundings = Surroundings(http, guard, FixedClock())
    config = parse_config(name, CASES[name].config(port))
    if timeout is None:
        provider = create(name, config, surroundings)
    else:
        kind = PROVIDERS[name]
        quick = type(kind.__name__, (kind,), {"spec": dataclasses.replace(kind.spec, timeout=timeout)})
        provider = quick(config, surroundings)
    try:
        yield provider
    finally:
        await provider.close()
        await http.close()


@contextlib.asynccontextmanager
async def against(vendor: Vendor, name: str, timeout: timedelta | None = None) -> AsyncIterator[Provider]:
    async with vendor, running(name, vendor.port, timeout) as provider:
        yield provider


def excuse(name: str, test: str) -> None:
    """Skip the test if the provider's case says that it cannot hold."""
    if reason := CASES[name].excused.get(test):
        pytest.skip(reason)


def bare(result: SendResult) -> SendResult:
    """The result without its evidence."""
    changes: dict[str, Any] = {"detail": None}
    if isinstance(result, Sent):
        changes["provider_id"] = None
    return msgspec.structs.replace(result, **changes)


def test_each_provider_has_a_case_and_each_case_a_provider() -> None:
    assert set(CASES) == set(PROVIDERS)


@pytest.mark.parametrize("name", CASES)
class TestEveryProvider:
    def test_spec_is_complete(self, name: str) -> None:
        spec = PROVIDERS[name].spec
        assert spec.name == name
        assert spec.channels
        assert spec.docs
        assert spec.timeout > timedelta()
        assert spec.config.__doc__
        assert PROVIDERS[name].__doc__

    def test_configuration_survives_being_split_for_storage(self, name: str) -> None:
        case = CASES[name]
        config = parse_config(name, case.config(1025))
        public, secret = split_secrets(config)
        stored = json.loads(json.dumps(public))
        assert merge_secrets(name, stored, secret) == config
        assert set(secret) <= set(list_secret_fields(name)), "a secret that would not be shown as a placeholder"
        for value in case.secrets:
            assert value not in json.dumps(public)
            assert value not in repr(config) + str(config)

    def test_configuration_errors_name_the_field_and_repeat_no_value(self, name: str) -> None:
        raw = {**CASES[name].config(1025), "unknown/field": "do-not-repeat"}
        with pytest.raises(Invalid) as caught:
            parse_config(name, raw)
        problem = caught.value.to_dict()
        assert [e["pointer"] for e in problem["errors"]] == ["/config/unknown~1field"]
        for value in [*CASES[name].secrets, "do-not-repeat"]:
            assert value not in json.dumps(problem)

    async def test_messages_arrive(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        case = CASES[name]
        caplog.set_level(logging.DEBUG)
        vendor = case.vendor() if case.vendor else None
        async with vendor or contextlib.nullcontext(), running(name, vendor.port if vendor else 1) as provider:
            port = vendor.port if vendor else 1
            messages: dict[str, Message] = {"minimal": case.message(port), **case.more_messages(port)}
            assert {"minimal", "full", "non-ascii"} <= set(messages)
            for message in messages.values():
                result = await provider.send(message, KEY)
                assert isinstance(result, Sent), result
                if vendor is not None:
                    case.check(vendor, message, KEY)
            for value in case.secrets:
                assert value not in caplog.text
                assert value not in repr(provider)

    async def test_what_was_not_declared_is_refused_by_name(self, name: str) -> None:
        case = CASES[name]
        vendor = case.vendor() if case.vendor else None
        async with vendor or contextlib.nullcontext(), running(name, vendor.port if vendor else 1) as provider:
            result = await provider.send(case.undeclared(vendor.port if vendor else 1), KEY)
            assert isinstance(result, Rejected)
            assert result.reason is Reason.unsupported
            assert result.detail
            assert vendor is None or vendor.connections == 0

    async def test_can_be_closed_twice_and_unused(self, name: str) -> None:
        async with running(name, 1) as provider:
            await provider.close()


@pytest.mark.parametrize(
    ("name", "answer"),
    [pytest.param(name, a, id=f"{name}: {a.label}") for name, case in CASES.items() for a in case.answers],
)
async def test_documented_answer(name: str, answer: Answer) -> None:
    vendor = answer.vendor()
    async with against(vendor, name) as provider:
        result = await provider.send(CASES[name].message(vendor.port), KEY)
        assert bare(result) == answer.expected, result


@pytest.mark.parametrize("name", CONNECTING)
class TestProvidersThatConnect:
    async def test_nobody_listens(self, name: str) -> None:
        port = free_port()
        async with running(name, port) as provider:
            result = await provider.send(CASES[name].message(port), KEY)
            assert bare(result) == Deferred(Reason.connect_failed)

    async def test_no_answer_after_sending_is_uncertain(self, name: str) -> None:
        make = CASES[name].hangs_after_send
        assert make is not None
        vendor = make()
        async with against(vendor, name, timedelta(milliseconds=400)) as provider:
            result = await provider.send(CASES[name].message(vendor.port), KEY)
            assert vendor.reached.is_set()
            assert isinstance(result, Uncertain)

    async def test_reset_after_sending_is_uncertain(self, name: str) -> None:
        make = CASES[name].resets_after_send
        assert make is not None
        vendor = make()
        async with against(vendor, name) as provider:
            assert isinstance(await provider.send(CASES[name].message(vendor.port), KEY), Uncertain)

    async def test_garbage_is_survived(self, name: str) -> None:
        make = CASES[name].garbage
        assert make is not None
        vendor = make()
        async with against(vendor, name) as provider:
            result = await provider.send(CASES[name].message(vendor.port), KEY)
            assert isinstance(result, Deferred | Uncertain)
            assert result.detail

    async def test_oversize_answer_is_cut_off(self, name: str) -> None:
        make = CASES[name].oversize
        assert make is not None
        vendor = make()
        async with against(vendor, name) as provider:
            result = await provider.send(CASES[name].message(vendor.port), KEY)
            assert len(json.dumps(msgspec.to_builtins(result))) < 1000

    async def test_cancelled_send_leaves_a_working_provider(self, name: str) -> None:
        excuse(name, "test_cancelled_send_leaves_a_working_provider")
        make = CASES[name].hangs_after_send
        assert make is not None
        vendor = make()
        async with against(vendor, name) as provider:
            sending = asyncio.create_task(provider.send(CASES[name].message(vendor.port), KEY))
            await vendor.reached.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await vendor.wait_until_nobody_is_connected()
            vendor.reached.clear()
            again = asyncio.create_task(provider.send(CASES[name].message(vendor.port), KEY))
            await vendor.reached.wait()
            again.cancel()
            with pytest.raises(asyncio.CancelledError):
                await again

    async def test_sends_share_a_connection(self, name: str) -> None:
        excuse(name, "test_sends_share_a_connection")
        case = CASES[name]
        assert case.vendor is not None
        vendor = case.vendor()
        async with against(vendor, name) as provider:
            for _ in range(3):
                assert isinstance(await provider.send(case.message(vendor.port), KEY), Sent)
            assert vendor.connections == 1

    async def test_close_releases_everything(self, name: str) -> None:
        case = CASES[name]
        assert case.vendor is not None
        vendor = case.vendor()
        async with vendor:
            async with running(name, vendor.port) as provider:
                sends = (provider.send(case.message(vendor.port), KEY) for _ in range(3))
                assert all(isinstance(r, Sent) for r in await asyncio.gather(*sends))
            await vendor.wait_until_nobody_is_connected()
