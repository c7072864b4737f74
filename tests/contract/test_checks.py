"""Whether an account's credentials hold: what providers ask their vendors, and what they make of the answers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import pytest

from tests.contract.provider_case import FixedClock, ProviderCase
from tests.contract.servers import Act, HttpVendor, SmtpScript, SmtpVendor, Vendor, http_answer
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import CannotCheck, Surroundings
from tidings.providers.registry import PROVIDERS, create, parse_config

ASKED = {
    "sendgrid": ("GET", "/v3/scopes"),
    "mailgun": ("GET", "/v3/domains/"),
    "postmark": ("GET", "/server"),
    "resend": ("GET", "/domains"),
    "brevo": ("GET", "/v3/account"),
    "twilio": ("GET", "/2010-04-01/Accounts/"),
    "vonage": ("GET", "/account/get-balance"),
    "ses": ("GET", "/v2/email/account"),
    "sns": ("POST", "/"),
    "fcm": ("POST", "/token"),
}
"""What each provider asks its vendor: it reads, and sends nothing."""
TOKEN = b'{"access_token": "ya29.x", "expires_in": 3599, "token_type": "Bearer"}'


async def check(name: str, vendor: Vendor, **changes: Any) -> str | None:
    case: ProviderCase = importlib.import_module(f"tests.contract.cases.{name}").CASE
    guard = Guard(["127.0.0.0/8"])
    http = AiohttpTransport(guard)
    async with vendor:
        raw: Mapping[str, Any] = {**case.config(vendor.port), **changes}
        provider = create(name, parse_config(name, raw), Surroundings(http, guard, FixedClock()))
        try:
            complaint: str | None = await provider.check()  # type: ignore[attr-defined]  # optional, see port.py
        finally:
            await provider.close()
            await http.close()
    assert not any(secret in (complaint or "") for secret in case.secrets)
    return complaint


@pytest.mark.parametrize("name", ASKED)
async def test_a_vendor_that_knows_the_account(name: str) -> None:
    vendor = HttpVendor(http_answer(200, "Content-Type: application/json", body=TOKEN if name == "fcm" else b"{}"))
    assert await check(name, vendor) is None
    [request] = vendor.requests
    method, target = ASKED[name]
    assert request.method == method
    assert request.target.startswith(target)


@pytest.mark.parametrize("status", [401, 403, 404, 302, 429, 500])
@pytest.mark.parametrize("name", ASKED)
async def test_a_vendor_that_does_not(name: str, status: int) -> None:
    complaint = await check(name, HttpVendor(http_answer(status, body=b"{}")))
    assert complaint is not None
    assert str(status) in complaint


@pytest.mark.parametrize("name", ASKED)
async def test_a_vendor_that_hangs_up(name: str) -> None:
    assert await check(name, HttpVendor(Act.close))


async def test_credentials_that_may_only_send() -> None:
    restricted = b'{"statusCode": 401, "name": "restricted_api_key", "message": "restricted to only send emails"}'
    assert await check("resend", HttpVendor(http_answer(401, body=restricted))) is None
    with pytest.raises(CannotCheck):
        await check("ses", HttpVendor(http_answer(403, "x-amzn-ErrorType: AccessDeniedException", body=b"{}")))
    denied = b"<ErrorResponse><Error><Code>AuthorizationError</Code></Error></ErrorResponse>"
    with pytest.raises(CannotCheck):
        await check("sns", HttpVendor(http_answer(403, body=denied)))
    wrong = b"<ErrorResponse><Error><Code>InvalidClientTokenId</Code></Error></ErrorResponse>"
    assert await check("sns", HttpVendor(http_answer(403, body=wrong)))
    application = {
        "application_id": "a",
        "private_key": importlib.import_module("tests.contract.cases.fcm").PRIVATE_KEY,
    }
    with pytest.raises(CannotCheck):
        await check("vonage", HttpVendor(), api="messages", api_secret=None, **application)
    vendor = HttpVendor(http_answer(200, body=b"{}"))
    assert await check("twilio", vendor, api_key_sid="SK" + "0" * 32, api_key_secret="s") is None
    assert "/Messages.json" in vendor.requests[0].target


async def test_a_mail_server() -> None:
    vendor = SmtpVendor()
    assert await check("smtp", vendor) is None
    assert not any(command.startswith(b"MAIL") for command in vendor.commands)
    refused = await check("smtp", SmtpVendor(SmtpScript(greeting=b"554 5.7.1 not you\r\n")))
    assert refused == "the server says 554"
    assert await check("smtp", SmtpVendor(SmtpScript(greeting=Act.close)))


def test_nobody_claims_to_check_who_is_not_tested_here() -> None:
    assert {name for name, kind in PROVIDERS.items() if hasattr(kind, "check")} == {*ASKED, "smtp"}
