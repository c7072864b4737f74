"""Messages that go out to a vendor and whose fate comes back: through the API, the worker, the vendor's stub, a signed
callback, and what the next message then does. The stubs say what the vendors' documentation says."""

from __future__ import annotations

import base64
import hmac
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import httpx
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.e2e.faults.stack import Stack, events, open_stack

PUBLIC = "https://tidings.example.com"
SENDER, PHONE = "+15005550006", "+14155552671"
AUTH_TOKEN = "0123456789abcdef0123456789abcdef"


class Stub:
    """A vendor that answers as its handler says, and keeps what it was sent."""

    def __init__(self) -> None:
        self.port = 0
        self.taken: list[dict[str, str]] = []
        self._numbers = itertools.count(1)
        self.dead: set[str] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Stub]:
        app = web.Application()
        app.router.add_post("/2010-04-01/Accounts/{sid}/Messages.json", self._twilio)
        app.router.add_post("/v3/mail/send", self._sendgrid)
        app.router.add_post("/token", self._token)
        app.router.add_post("/v1/projects/shop/messages:send", self._fcm)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _twilio(self, request: web.Request) -> web.Response:
        self.taken.append({name: str(value) for name, value in (await request.post()).items()})
        return web.json_response({"sid": f"SM{next(self._numbers):032x}", "status": "queued"}, status=201)

    async def _sendgrid(self, request: web.Request) -> web.Response:
        self.taken.append((await request.json())["personalizations"][0]["custom_args"])
        return web.Response(status=202, headers={"X-Message-Id": f"m-{next(self._numbers)}"})

    async def _token(self, request: web.Request) -> web.Response:
        return web.json_response({"access_token": "t", "expires_in": 3600, "token_type": "Bearer"})

    async def _fcm(self, request: web.Request) -> web.Response:
        message = (await request.json())["message"]
        self.taken.append(message)
        if message["token"] not in self.dead:
            return web.json_response({"name": f"projects/shop/messages/{next(self._numbers)}"})
        detail = {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": "UNREGISTERED"}
        error = {"code": 404, "message": "Requested entity was not found.", "status": "NOT_FOUND", "details": [detail]}
        return web.json_response({"error": error}, status=404)


@asynccontextmanager
async def stage(dsn: str) -> AsyncIterator[tuple[Stack, Stub, httpx.AsyncClient]]:
    """Everything at work, and a client that calls back as the vendors do."""
    async with (
        Stub().open() as stub,
        open_stack(dsn, public_url=PUBLIC, users=1) as stack,
        stack.working(),
        httpx.AsyncClient(transport=httpx.ASGITransport(stack.app), base_url="http://127.0.0.1") as vendor,
    ):
        yield stack, stub, vendor


async def callback_url(stack: Stack, account: str) -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(stack.app), base_url="http://127.0.0.1") as client:
        answer = await client.get(f"/api/v1/accounts/{account}", headers=stack.project.headers)
    url: str = answer.json()["callback_url"]
    return url


# ---------------------------------------------------------------- a text message, and STOP


def twilio_signature(url: str, form: dict[str, str]) -> str:
    said = url + "".join(name + form[name] for name in sorted(form))
    return base64.b64encode(hmac.digest(AUTH_TOKEN.encode(), said.encode(), "sha1")).decode()


async def twilio_calls(vendor: httpx.AsyncClient, url: str, **form: str) -> int:
    """Twilio's POST to an address of ours, through whatever proxy stands in front."""
    headers = {"X-Twilio-Signature": twilio_signature(url, form), "Content-Type": "application/x-www-form-urlencoded"}
    answer = await vendor.post(url.removeprefix(PUBLIC), content=urlencode(form), headers=headers)
    return answer.status_code


async def test_a_text_message_is_followed_and_stop_is_obeyed(database_dsn: str) -> None:
    async with stage(database_dsn) as (stack, stub, vendor):
        config = {
            "account_sid": "AC" + "0" * 32,
            "auth_token": AUTH_TOKEN,
            "senders": [SENDER],
            "base_url": stub.url,
        }
        await stack.client.accounts.put("twilio", provider="twilio", channel="sms", config=config)

        async def tell() -> Any:
            sent = await stack.client.send(to={"phone": PHONE}, content={"text": "Your order is on its way."})
            return await stack.ended(sent.id)

        first = await tell()
        assert first.status == "sent"
        [form] = stub.taken
        assert (form["To"], form["From"], form["Body"]) == (PHONE, SENDER, "Your order is on its way.")
        status = {"MessageSid": "SM" + "0" * 31 + "1", "To": PHONE, "From": SENDER, "AccountSid": "AC" + "0" * 32}
        forged = await vendor.post(form["StatusCallback"].removeprefix(PUBLIC), data={"MessageStatus": "delivered"})
        assert forged.status_code == 403
        for said in ("sent", "delivered", "delivered", "sent"):  # doubled, and out of order
            code = await twilio_calls(vendor, form["StatusCallback"], MessageStatus=said, **status)
            assert code == 200
        shown = await stack.client.get(first.id)
        assert shown.status == "delivered"
        assert [e for e in events(shown) if e != "sent"] == ["requested", "queued", "delivered"]

        url = await callback_url(stack, "twilio")
        inbound = {"MessageSid": "SM1", "From": PHONE, "To": SENDER, "NumMedia": "0"}
        assert await twilio_calls(vendor, url, Body="Stop", **inbound) == 200
        barred = await tell()
        assert [(d.status, d.reason) for d in barred.deliveries] == [("failed", "opted_out")]
        assert len(stub.taken) == 1, "nothing went out"
        assert await twilio_calls(vendor, url, Body="START", **{**inbound, "MessageSid": "SM2"}) == 200
        assert (await tell()).status == "sent"


# ---------------------------------------------------------------- a mail that bounces


async def test_a_bounce_reported_by_a_vendor_suppresses_the_address(database_dsn: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    async with stage(database_dsn) as (stack, stub, vendor):
        config = {
            "api_key": "SG.secret",
            "from_address": "shop@example.com",
            "base_url": stub.url,
            "webhook_public_key": base64.b64encode(public).decode(),
        }
        await stack.client.accounts.put("sendgrid", provider="sendgrid", channel="email", config=config)
        content = {"subject": "Hello", "text": "Hello"}
        sent = await stack.client.send(to={"email": "gone@example.com"}, content=content, metadata={"order": "A-1"})
        assert (await stack.ended(sent.id)).status == "sent"
        [custom_args] = stub.taken
        assert custom_args["order"] == "A-1"
        url = await callback_url(stack, "sendgrid")
        timestamp = str(int(stack.core.clock.now().timestamp()))
        body = json.dumps(
            [
                {
                    "event": "bounce", "type": "bounce", "email": "gone@example.com", "status": "5.1.1",
                    "reason": "550 5.1.1 no such user", "sg_event_id": "e-1", "sg_message_id": "m-1.x",
                    "timestamp": int(timestamp), **custom_args,
                }
            ]
        ).encode()  # fmt: skip
        headers = {
            "X-Twilio-Email-Event-Webhook-Timestamp": timestamp,
            "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(
                key.sign(timestamp.encode() + body, ec.ECDSA(SHA256()))
            ).decode(),
        }
        for wrong in ({}, {**headers, "X-Twilio-Email-Event-Webhook-Timestamp": str(int(timestamp) - 1)}):
            assert (await vendor.post(url.removeprefix(PUBLIC), content=body, headers=wrong)).status_code == 403
        for _ in range(2):
            assert (await vendor.post(url.removeprefix(PUBLIC), content=body, headers=headers)).status_code == 200
        shown = await stack.client.get(sent.id)
        [delivery] = shown.deliveries
        assert (delivery.status, delivery.reason) == ("failed", "bounced")
        assert events(shown).count("failed") == 1
        again = await stack.client.send(to={"email": "gone@example.com"}, content=content)
        [skipped] = (await stack.ended(again.id)).deliveries
        assert (skipped.status, skipped.reason) == ("skipped", "suppressed")
        assert len(stub.taken) == 1


# ---------------------------------------------------------------- a device that is gone


async def test_a_dead_device_is_taken_from_its_user_and_the_other_is_told(database_dsn: str) -> None:
    account = {
        "type": "service_account",
        "project_id": "shop",
        "private_key_id": "1",
        "private_key": rsa.generate_private_key(65537, 2048)
        .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        .decode(),
        "client_email": "shop@shop.iam.gserviceaccount.com",
    }
    async with stage(database_dsn) as (stack, stub, vendor):
        account["token_uri"] = f"{stub.url}/token"
        config = {"service_account": json.dumps(account), "base_url": stub.url}
        await stack.client.accounts.put("fcm", provider="fcm", channel="push", config=config)
        content = {"default_locale": "en", "channels": {"push": {"en": {"title": "Hi", "body": "There is news."}}}}
        await stack.client.templates.put("news", name="News")
        made = await stack.client.templates.create_version("news", content)
        await stack.client.templates.publish("news", made.version)
        await stack.client.types.put("news", category="general", template="news")
        await stack.client.users.put("ada", addresses={"push": ["fcm:alive", "fcm:dead"]})
        stub.dead.add("dead")
        sent = await stack.client.send(type="news", to={"user": "ada"})
        shown = await stack.ended(sent.id)
        assert {(d.address, d.status, d.reason) for d in shown.deliveries} == {
            ("fcm:alive", "sent", None),
            ("fcm:dead", "failed", "gone"),
        }
        assert (await stack.client.users.get("ada")).addresses["push"] == ["fcm:alive"]
        [told] = [message for message in stub.taken if message["token"] == "alive"]
        report = told["data"]["tidings_report"]  # type: ignore[index]  # an object, in what FCM is given
        for event in ("delivered", "opened"):
            answer = await vendor.post(report.removeprefix(PUBLIC), json={"event": event})
            assert answer.status_code == 204
        [alive] = [d for d in (await stack.client.get(sent.id)).deliveries if d.address == "fcm:alive"]
        assert (alive.status, alive.engagement) == ("delivered", ["opened"])
