"""Apple's push service beyond what every provider has to do: HTTP/2's own faults, the token's times, published data."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from h2.errors import ErrorCodes
from joserfc import jwk, jwt

from tests.contract.cases.apns import FULL, KEY_ID, PRIVATE_KEY, PUBLIC_KEY, TEAM, TOKEN, TOPIC, config, message, vendor
from tests.contract.golden import cases, load, may_differ
from tests.contract.http2_server import Answer2, ApnsVendor, Http2Vendor, Open2, make_certificate, refuse
from tests.contract.provider_case import DELIVERY, NOW, FixedClock
from tests.contract.servers import Act, HttpRequest, free_port
from tidings.errors import Invalid
from tidings.ids import to_public
from tidings.model.messages import Deferred, Message, Push, Rejected, SendResult, Sent, Uncertain
from tidings.model.words import Channel, Reason
from tidings.providers.apns import ApnsConfig, ApnsProvider, ProviderToken, decide_result, render_payload
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport, BrokenAnswer, ConnectFailed, HttpAnswer, TargetRefused, TimedOut
from tidings.providers.http2 import STREAMS_MAX, Http2Client
from tidings.providers.port import Surroundings
from tidings.providers.registry import parse_config

KEY = to_public("dlv", DELIVERY)
HI = message(Push(body="Hi"))
LOOPBACK = Guard(["127.0.0.0/8"])


class MovableClock(FixedClock):
    def __init__(self) -> None:
        super().__init__()
        self.at = NOW

    def now(self) -> datetime:
        return self.at


@contextlib.asynccontextmanager
async def sending_to(vendor: Http2Vendor, **more: Any) -> AsyncIterator[ApnsProvider]:
    async with vendor:
        http = AiohttpTransport(LOOPBACK)
        raw = {**config(vendor.port), **more}
        provider = ApnsProvider(ApnsConfig.model_validate(raw), Surroundings(http, LOOPBACK, FixedClock()))
        try:
            yield provider
        finally:
            await provider.close()
            await http.close()


def make_tls() -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=make_certificate()[0])
    context.set_alpn_protocols(["h2"])
    return context


@contextlib.asynccontextmanager
async def client_of(vendor: Http2Vendor, **more: Any) -> AsyncIterator[Http2Client]:
    async with vendor:
        scheme = "https" if vendor.tls else "http"
        client = Http2Client(f"{scheme}://127.0.0.1:{vendor.port}", LOOPBACK, make_tls, **more)
        try:
            yield client
        finally:
            await client.close()


async def post(client: Http2Client, body: bytes = b"{}", timeout: float = 10) -> HttpAnswer:
    return await client.post("/x", [(b"a", b"b")], body, timeout=timeout, read_cap=4096)


class TestMultiplexing:
    async def test_many_streams_share_one_connection_and_answers_find_their_requests(self) -> None:
        """The server answers only when it has all of them, in the reverse of their order."""
        vendor = Http2Vendor(*(Answer2(200, str(i).encode()) for i in range(100)))
        vendor.hold = 100
        async with client_of(vendor) as client:
            answers = await asyncio.gather(*(post(client, str(i).encode()) for i in range(100)))
        assert [answer.body for answer in answers] == [str(99 - i).encode() for i in range(100)]
        assert (vendor.connections, vendor.most_at_a_time) == (1, 100)

    async def test_no_more_streams_than_the_server_allows(self) -> None:
        vendor = Http2Vendor(streams=3)
        async with client_of(vendor, connections=1) as client:
            answers = await asyncio.gather(*(post(client) for _ in range(50)))
        assert {answer.status for answer in answers} == {200}
        assert (vendor.connections, vendor.most_at_a_time) == (1, 3)

    async def test_a_second_connection_when_the_first_is_full(self) -> None:
        vendor = Http2Vendor(streams=2)
        async with client_of(vendor, connections=2) as client:
            await post(client)
            vendor.hold = 4  # answers only when four are open at a time
            answers = await asyncio.gather(*(post(client) for _ in range(4)))
        assert len(answers) == 4
        assert (vendor.connections, vendor.most_at_a_time) == (2, 2)

    async def test_no_free_stream_in_time_was_not_sent(self) -> None:
        vendor = Http2Vendor(Act.stall, streams=1)
        async with client_of(vendor, connections=1) as client:
            first = asyncio.create_task(post(client))
            await vendor.reached.wait()
            with pytest.raises(TimedOut) as caught:
                await post(client, timeout=0.05)
            assert not caught.value.sent
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first

    async def test_giving_up_one_request_leaves_the_connection_to_the_others(self) -> None:
        vendor = Http2Vendor(Act.stall, Answer2())
        async with client_of(vendor) as client:
            with pytest.raises(TimedOut) as caught:
                await post(client, timeout=1.0)  # half of it is for connecting
            assert caught.value.sent
            await asyncio.wait_for(vendor.reset_came.wait(), 5)
            assert (await post(client)).status == 200
        assert (vendor.connections, vendor.resets) == (1, 1)

    async def test_bodies_wait_for_the_windows(self) -> None:
        """300 kB through streams that take 1,000 octets at a time."""
        vendor = Http2Vendor()
        vendor.window = 1_000
        body = bytes(range(256)) * 400
        async with client_of(vendor) as client:
            await asyncio.gather(*(post(client, body) for _ in range(3)))
        assert [request.body for request in vendor.requests] == [body] * 3

    async def test_answers_may_come_before_the_body_has_left(self) -> None:
        class Hasty(Http2Vendor):
            """Answers at the first octets of a body, and never reads the rest."""

            def read_body(self, connection: Open2, stream: int, octets: int) -> None:
                self.say(connection, stream, Answer2(413))

        vendor = Hasty()
        vendor.window = 10
        async with client_of(vendor) as client:
            assert (await post(client, b"x" * 5000)).status == 413
            await asyncio.wait_for(vendor.reset_came.wait(), 5)
            assert (await post(client, b"x" * 5000)).status == 413
        assert vendor.connections == 1

    async def test_the_limit_of_streams_is_ours_too(self) -> None:
        vendor = Http2Vendor(streams=10_000)
        async with client_of(vendor, connections=1) as client:
            await asyncio.gather(*(post(client) for _ in range(2 * STREAMS_MAX)))
        assert vendor.most_at_a_time <= STREAMS_MAX


class TestFaults:
    async def test_a_goaway_frees_what_the_server_has_not_touched(self) -> None:
        """The second of two streams is above the last one that counts: it goes over another connection."""
        vendor = Http2Vendor(Answer2(goaway=1), Answer2())
        async with client_of(vendor) as client:
            assert (await post(client)).status == 200
            assert vendor.connections == 2
            assert len(vendor.requests) == 2

    async def test_streams_below_a_goaway_are_still_answered(self) -> None:
        vendor = Http2Vendor(Answer2(200, b"late", goaway=0), Answer2(200, b"new"))
        async with client_of(vendor) as client:
            assert (await post(client)).body == b"late"
            assert (await post(client)).body == b"new"
            assert vendor.connections == 2

    async def test_a_goaway_every_time_ends_as_not_sent(self) -> None:
        async with sending_to(vendor(Answer2(goaway=1))) as provider:
            result = await provider.send(HI, KEY)
            assert isinstance(result, Deferred)
            assert result.reason is Reason.connect_failed
            assert "Shutdown" in str(result.detail)

    async def test_the_connection_ends_before_an_answer(self) -> None:
        class Closing(Http2Vendor):
            def answer(self, request: HttpRequest) -> Answer2 | Act | bytes:
                return Act.close

        async with client_of(Closing()) as client:
            with pytest.raises(BrokenAnswer) as caught:
                await post(client)
            assert caught.value.sent

    async def test_a_refused_stream_is_sent_once_more(self) -> None:
        vendor = Http2Vendor(Answer2(reset=ErrorCodes.REFUSED_STREAM), Answer2())
        async with client_of(vendor) as client:
            assert (await post(client)).status == 200
        assert len(vendor.requests) == 2

    async def test_a_stream_reset_otherwise_is_uncertain(self) -> None:
        vendor_ = vendor(Answer2(reset=ErrorCodes.INTERNAL_ERROR))
        async with sending_to(vendor_) as provider:
            result = await provider.send(HI, KEY)
            assert isinstance(result, Uncertain)
            assert "INTERNAL_ERROR" in str(result.detail)
            assert len(vendor_.requests) == 1

    async def test_a_body_that_has_not_left_was_not_sent(self) -> None:
        vendor = Http2Vendor()
        vendor.window = 0  # and never opened
        async with client_of(vendor) as client:
            with pytest.raises(TimedOut) as caught:
                await post(client, timeout=1.0)  # half of it is for connecting
            assert not caught.value.sent

    async def test_a_server_that_answers_no_ping_is_dead(self) -> None:
        class Mute(Http2Vendor):
            async def take(self, connection: Any, stream: int, reader: asyncio.StreamReader) -> None:
                self.reached.set()
                await asyncio.Event().wait()  # reads nothing any more

        vendor = Mute()
        async with client_of(vendor, ping_after=0.05, ping_timeout=0.05) as client:
            with pytest.raises(BrokenAnswer, match="ping") as caught:
                await post(client)
            assert caught.value.sent

    async def test_pings_keep_a_quiet_connection(self) -> None:
        vendor = Http2Vendor(Act.stall, Answer2())
        async with client_of(vendor, ping_after=0.02, ping_timeout=5) as client:
            with pytest.raises(TimedOut):
                await post(client, timeout=0.2)
            assert (await post(client)).status == 200
            assert vendor.connections == 1

    async def test_an_idle_connection_is_closed(self) -> None:
        vendor = Http2Vendor()
        async with client_of(vendor, ping_after=0.02, idle_after=0.01) as client:
            await post(client)
            await vendor.wait_until_nobody_is_connected()
            assert (await post(client)).status == 200
            assert vendor.connections == 2

    async def test_nonsense_after_a_request_is_uncertain(self) -> None:
        async with sending_to(vendor(b"\x00\x00\x05\x0f what?" * 40)) as provider:
            assert isinstance(await provider.send(HI, KEY), Uncertain | Deferred)

    async def test_nobody_listens(self) -> None:
        client = Http2Client(f"https://127.0.0.1:{free_port()}", LOOPBACK, make_tls)
        with pytest.raises(ConnectFailed):
            await asyncio.gather(*(post(client) for _ in range(5)))
        await client.close()

    async def test_closing_tells_those_who_wait(self) -> None:
        vendor = Http2Vendor(Act.stall, streams=1)
        async with client_of(vendor, connections=1) as client:
            requests = [asyncio.create_task(post(client)) for _ in range(4)]
            await vendor.reached.wait()
            await client.close()
            results = await asyncio.gather(*requests, return_exceptions=True)
            assert isinstance(results[0], BrokenAnswer)
            assert results[0].sent
            assert {type(result) for result in results[1:]} == {ConnectFailed}

    async def test_an_answer_without_a_status_is_broken(self) -> None:
        vendor = Http2Vendor(Answer2(status="abc"))  # type: ignore[arg-type]  # on purpose
        async with client_of(vendor) as client:
            with pytest.raises(BrokenAnswer, match="status") as caught:
                await post(client)
            assert caught.value.sent

    async def test_a_closed_client_says_so(self) -> None:
        async with client_of(Http2Vendor()) as client:
            await client.close()
            with pytest.raises(ConnectFailed):
                await post(client)


class TestConnecting:
    async def test_certificates_are_checked(self) -> None:
        async with sending_to(vendor(), ca_pem=None) as provider:
            result = await provider.send(HI, KEY)
            assert isinstance(result, Deferred)
            assert result.reason is Reason.connect_failed

    async def test_inner_addresses_are_refused_unless_opened(self) -> None:
        async with vendor() as vendor_:
            client = Http2Client(f"https://127.0.0.1:{vendor_.port}", Guard(), make_tls)
            with pytest.raises(TargetRefused):
                await post(client)
            await client.close()
            assert vendor_.connections == 0

    async def test_plain_only_where_an_operator_opened_the_network(self) -> None:
        vendor = Http2Vendor(tls=False)
        async with client_of(vendor) as client:
            assert (await post(client)).status == 200
            shut = Http2Client(f"http://127.0.0.1:{vendor.port}", Guard(), make_tls)
            with pytest.raises(TargetRefused):
                await post(shut)
            await shut.close()

    async def test_a_server_without_http2_is_no_server(self) -> None:
        vendor = Http2Vendor(greeting=b"")
        make_certificate()[1].set_alpn_protocols(["http/1.1"])
        try:
            async with client_of(vendor) as client:
                with pytest.raises(ConnectFailed):
                    await post(client)
        finally:
            make_certificate()[1].set_alpn_protocols(["h2"])


class TestToken:
    def test_what_it_says(self) -> None:
        expected = {"jwt_header": {"alg": "ES256", "kid": KEY_ID}, "jwt_claims": {"iss": TEAM}}
        header = token_at(ProviderToken(make_config()), NOW)
        token = jwt.decode(header, jwk.import_key(PUBLIC_KEY, "EC"), algorithms=["ES256"])
        assert token.header == expected["jwt_header"]
        assert token.claims == {**expected["jwt_claims"], "iat": token.claims["iat"]}
        assert timedelta() <= NOW - datetime.fromtimestamp(token.claims["iat"], UTC) < timedelta(minutes=40)

    def test_it_fits_what_others_expect(self) -> None:
        data = load("apns/jwt_expectations.json")
        header = token_at(ProviderToken(make_config()), NOW)
        token = jwt.decode(header, jwk.import_key(PUBLIC_KEY, "EC"), algorithms=["ES256"])
        assert token.header.keys() - data["jwt_header_optional"].keys() == data["jwt_header"].keys()
        assert token.claims.keys() == data["jwt_claims"].keys()
        assert not token.claims.keys() & set(data["forbidden_or_unneeded_claims"])
        assert len(header.split(".")[2]) == 86  # 64 octets
        assert timedelta(minutes=20) == timedelta(seconds=data["reuse"]["refresh_not_more_often_than_s"])

    def test_all_processes_have_the_same_at_the_same_time(self) -> None:
        at = NOW
        early = ProviderToken(make_config())
        for _ in range(100):
            late = ProviderToken(make_config())  # as if just started
            assert token_at(early, at) == token_at(late, at)
            at += timedelta(minutes=7)

    def test_it_is_never_old_and_never_replaced_too_soon(self) -> None:
        token, at, changes = ProviderToken(make_config()), NOW, [NOW - timedelta(days=1)]
        last = ""
        for minute in range(600):
            if minute in (50, 290):
                token.renew(at)
            now = token_at(token, at)
            issued_at = json.loads(_decode(now.split(".")[1]))["iat"]
            assert at.timestamp() - issued_at <= 50 * 60
            if now != last:
                assert at - changes[-1] >= timedelta(minutes=20)
                changes.append(at)
                last = now
            at += timedelta(minutes=1)
        assert len(changes) > 10

    def test_one_called_stale_while_young_is_kept(self) -> None:
        token = ProviderToken(make_config())
        at = datetime.fromtimestamp(NOW.timestamp() // 2400 * 2400, UTC) + timedelta(minutes=19)
        before = token_at(token, at)
        assert not token.renew(at)
        assert token_at(token, at) == before

    async def test_a_stale_token_is_renewed_once_and_the_message_sent_again(self) -> None:
        """The server's clock is half an hour ahead of ours, and our token 39 minutes old."""
        clock = MovableClock()
        clock.at = datetime.fromtimestamp(NOW.timestamp() // 2400 * 2400, UTC) + timedelta(minutes=39)
        vendor_ = vendor(now=lambda: clock.at + timedelta(minutes=30))
        async with vendor_:
            http = AiohttpTransport(LOOPBACK)
            made = ApnsConfig.model_validate(config(vendor_.port))
            provider = ApnsProvider(made, Surroundings(http, LOOPBACK, clock))
            assert isinstance(await provider.send(HI, KEY), Sent)
            assert len(vendor_.requests) == 2
            assert isinstance(await provider.send(HI, KEY), Sent)
            assert len(vendor_.requests) == 3
            await provider.close()
            await http.close()

    async def test_a_token_that_stays_stale_is_the_accounts_fault(self) -> None:
        vendor_ = vendor(now=lambda: NOW + timedelta(days=1))
        async with sending_to(vendor_) as provider:
            result = await provider.send(HI, KEY)
            assert isinstance(result, Rejected)
            assert result.reason is Reason.unauthorized
            assert len(vendor_.requests) <= 2


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def token_at(token: ProviderToken, at: datetime) -> str:
    return token.authorize(at).decode().removeprefix("bearer ")


def make_config(**changes: str) -> ApnsConfig:
    raw = {"team_id": TEAM, "key_id": KEY_ID, "private_key": PRIVATE_KEY, "topic": TOPIC, **changes}
    return ApnsConfig.model_validate(raw)


def pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize(
    "private_key",
    [
        "not PEM",
        PRIVATE_KEY.replace("M", "!", 3),
        pem_of(ec.generate_private_key(ec.SECP384R1())),
        pem_of(rsa.generate_private_key(65537, 2048)),
        PUBLIC_KEY,
    ],
    ids=["not-pem", "broken", "another-curve", "rsa", "public"],
)
def test_keys_that_do_not_do_are_refused(private_key: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config("apns", {**config(1), "private_key": private_key})
    assert [e["pointer"] for e in caught.value.to_dict()["errors"]] == ["/config/private_key"]


class TestPublishedData:
    @pytest.mark.parametrize(
        "row",
        cases("apns/error_reasons.json", lambda data: ((row["reason"], row) for row in data["rows"])),
    )
    def test_every_reason_has_its_meaning(self, row: dict[str, Any]) -> None:
        result = decide(row["status"], {"reason": row["reason"]})
        assert row["reason"] in str(result.detail)
        dead = isinstance(result, Rejected) and result.reason is Reason.gone
        assert dead == (row["status"] == 410), "dead tokens go on the answers that mean dead, and only on those"
        if row["status"] == 403:
            assert result == Rejected(Reason.unauthorized, result.detail)
        if row["status"] >= 500:
            assert isinstance(result, Deferred)
        assert not isinstance(result, Sent | Uncertain)

    @pytest.mark.parametrize(
        "sample",
        cases(
            "apns/error_reasons.json",
            lambda data: ((f"sample-{i}", sample) for i, sample in enumerate(data["response_samples"])),
        ),
    )
    def test_samples_of_answers(self, sample: dict[str, Any]) -> None:
        result = decide_result(HttpAnswer(sample["status"], sample.get("headers", {}), sample["body"].encode()), NOW)
        if sample["status"] == 200:
            assert result == Sent(sample["headers"]["apns-id"])
        elif sample["status"] == 410:
            assert isinstance(result, Rejected)
            assert result.reason is Reason.gone
            at = datetime.fromtimestamp(sample.get("unregistered_at", 0), UTC)
            assert (f"since {at:%Y-%m-%dT%H:%M:%SZ}" in str(result.detail)) == ("unregistered_at" in sample)
        else:
            assert result == Rejected(Reason.blocked, "HTTP 400: BadDeviceToken")

    @pytest.mark.parametrize("case", cases("apns/payload_samples.json"))
    def test_payloads(self, case: dict[str, Any]) -> None:
        push = to_push(case["payload"])
        with may_differ():
            assert json.loads(render_payload(push)) == case["payload"]

    @pytest.mark.parametrize(
        "rule", cases("apns/mock_server_rules.json", lambda data: ((rule["when"], rule) for rule in data["rules"]))
    )
    async def test_the_server_of_these_tests_follows_every_rule(self, rule: dict[str, str]) -> None:
        """Each rule is broken by hand, because the adapter breaks none; what the adapter makes of the answer counts."""
        change = BREAKS[rule["when"]]
        vendor_ = vendor(expired={TOKEN: 1458114061260} if "expired" in rule["when"] else {})
        if "for this topic" in rule["when"]:
            vendor_.foreign = frozenset({TOKEN})
        request = good_request()
        change(request)
        refusal = vendor_.find_refusal(request)
        expected = rule["then"].split(" ")
        if expected == ["200"]:
            assert refusal is None
            async with sending_to(vendor_) as provider:
                assert await provider.send(HI, KEY) == Sent(str(DELIVERY).upper())
            return
        assert refusal is not None
        assert [json.loads(refusal.body)["reason"], str(refusal.status)] == expected[:2]
        assert ("timestamp" in json.loads(refusal.body)) == ("timestamp" in rule["then"])
        async with sending_to(vendor(refusal)) as provider:
            result = await provider.send(HI, KEY)
        assert result == decide(refusal.status, json.loads(refusal.body))


def decide(status: int, body: dict[str, Any]) -> SendResult:
    return decide_result(HttpAnswer(status, {}, json.dumps(body).encode()), NOW)


def to_push(payload: dict[str, Any]) -> Push:
    """Our message that comes closest to what the payload says."""
    aps = payload["aps"]
    alert = aps.get("alert", {})
    alert = {"body": alert} if isinstance(alert, str) else alert
    sound = aps.get("sound")
    return Push(
        title=alert.get("title"),
        body=alert.get("body"),
        badge=aps.get("badge"),
        sound=sound if isinstance(sound, str) else None,
        silent=aps.get("content-available") == 1,
        data=tuple((name, str(value)) for name, value in payload.items() if name != "aps"),
    )


def good_request() -> HttpRequest:
    headers = {
        "authorization": f"bearer {token_at(ProviderToken(make_config()), NOW)}",
        "apns-topic": TOPIC,
        "apns-push-type": "alert",
        "apns-priority": "10",
        "apns-id": str(DELIVERY),
    }
    return HttpRequest("POST", f"/3/device/{TOKEN}", headers, b'{"aps":{}}')


def setting(name: str, value: str) -> Any:
    def change(request: HttpRequest) -> None:
        request.headers[name] = value  # type: ignore[index]  # a dictionary here

    return change


def without(name: str) -> Any:
    return lambda request: request.headers.pop(name)


def having(**fields: Any) -> Any:
    def change(request: HttpRequest) -> None:
        for name, value in fields.items():
            setattr(request, name, value)

    return change


def stale(request: HttpRequest) -> None:
    old = token_at(ProviderToken(make_config()), NOW - timedelta(hours=2))
    request.headers["authorization"] = f"bearer {old}"  # type: ignore[index]  # a dictionary here


BREAKS: dict[str, Any] = {
    "POST /3/device/<64 hex>, apns-topic known, non-empty JSON <= 4096 bytes": having(),
    "apns-id is not a UUID": setting("apns-id", "1"),
    "method other than POST": having(method="PUT"),
    "no apns-topic": without("apns-topic"),
    "apns-collapse-id longer than 64 bytes (UTF-8)": setting("apns-collapse-id", "ä" * 33),
    "apns-priority not 10, 5 or 1": setting("apns-priority", "7"),
    "apns-push-type unknown": setting("apns-push-type", "loud"),
    "path exactly /3/device/": having(target="/3/device/"),
    "path not under /3/device/": having(target="/4/device/x"),
    "token not 64 hex digits": having(target="/3/device/xyz"),
    "token known as expired": having(),
    "token not registered for this topic": having(),
    "empty body": having(body=b""),
    "body > 4096 bytes": having(body=b"x" * 4097),
    "no authorization header": without("authorization"),
    "JWT unparsable / bad signature / unknown kid / wrong team for topic": setting("authorization", "bearer a.b.c"),
    "JWT iat older than 1 hour": stale,
}


async def test_a_payload_too_large_does_not_leave() -> None:
    vendor_ = vendor()
    async with sending_to(vendor_) as provider:
        result = await provider.send(message(Push(body="x" * 4096)), KEY)
        assert isinstance(result, Rejected)
        assert result.reason is Reason.too_large
        assert vendor_.connections == 0


async def test_an_address_of_another_vendor_does_not_leave() -> None:
    vendor_ = vendor()
    async with sending_to(vendor_) as provider:
        for to in ("fcm:abc", f"apns:{TOKEN}/../x", "apns:", TOKEN):
            result = await provider.send(Message(DELIVERY, Channel.push, to, Push(body="Hi")), KEY)
            assert isinstance(result, Rejected)
            assert result.reason is Reason.invalid_address
        assert vendor_.connections == 0


async def test_a_full_message_breaks_no_rule_of_apples() -> None:
    vendor_ = vendor(refuse(400, "BadPriority"))
    assert isinstance(vendor_, ApnsVendor)
    async with sending_to(vendor_) as provider:
        await provider.send(FULL, KEY)
        assert vendor_.find_refusal(vendor_.requests[0]) is None
