"""Amazon SES and SNS as moto plays them: another implementation of both APIs, which knows nothing of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from email import message_from_string, policy
from typing import Any
from uuid import UUID

import pytest
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.server import ThreadedMotoServer
from moto.ses.models import ses_backends
from moto.sns.models import sns_backends

from tidings.clock import SystemClock
from tidings.model.messages import Attachment, Email, Message, Rejected, SendResult, Sent, Sms
from tidings.model.words import Channel, Reason
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Provider, Surroundings
from tidings.providers.registry import create, parse_config

REGION = "eu-central-1"
DELIVERY = UUID("019a0000-0000-7000-8000-000000000001")
KEY = "dlv_01k8000000e008000000000001"


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """Its base URL. One server for all, with what it was told forgotten before and after."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    ses_backends.reset()
    sns_backends.reset()
    ses_backends[DEFAULT_ACCOUNT_ID][REGION].verify_email_identity("shop@example.com")
    yield f"http://{host}:{port}"
    ses_backends.reset()
    sns_backends.reset()
    server.stop()


@asynccontextmanager
async def provider(name: str, moto: str, **config: Any) -> AsyncIterator[Provider]:
    guard = Guard(["127.0.0.0/8"])
    http = AiohttpTransport(guard)
    whole = {
        "region": REGION,
        "access_key_id": "AKIAIOSFODNN7EXAMPLE",
        "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "base_url": moto,
        **config,
    }
    made = create(name, parse_config(name, whole), Surroundings(http, guard, SystemClock()))
    try:
        yield made
    finally:
        await made.close()
        await http.close()


async def send_mail(moto: str, email: Email) -> SendResult:
    message = Message(DELIVERY, Channel.email, "ann@example.net", email, metadata=(("order", "A-1"),))
    async with provider("ses", moto, from_address="The Shop <shop@example.com>") as ses:
        return await ses.send(message, KEY)


def sent_mails() -> dict[str, Any]:
    return {mail.id: mail for mail in ses_backends[DEFAULT_ACCOUNT_ID][REGION].sent_messages}


async def test_simple_mail(moto: str) -> None:
    email = Email("Grüße", text="Hello", html="<p>Hello</p>", cc=("carl@example.com",), bcc=("archive@example.com",))
    result = await send_mail(moto, email)
    assert isinstance(result, Sent), result
    mail = sent_mails()[str(result.provider_id)]
    assert (mail.source, mail.subject, mail.body) == ("The Shop <shop@example.com>", "Grüße", "<p>Hello</p>")
    assert mail.destinations == {
        "ToAddresses": ["ann@example.net"],
        "CcAddresses": ["carl@example.com"],
        "BccAddresses": ["archive@example.com"],
    }


async def test_raw_mail(moto: str) -> None:
    file = Attachment("Rechnung für Zoë.pdf", "application/pdf", b"%PDF-")
    result = await send_mail(
        moto, Email("Grüße", text="Zoë 🎉", html="<b>Zoë</b>", headers=(("X-A", "ä"),), attachments=(file,))
    )
    assert isinstance(result, Sent), result
    raw = sent_mails()[str(result.provider_id)]
    assert set(raw.destinations) == {"ann@example.net"}  # from the request, and once more from the mail
    mail = message_from_string(raw.raw_data, policy=policy.default)
    assert (mail["Subject"], mail["X-A"], mail["To"]) == ("Grüße", "ä", "ann@example.net")
    body = mail.get_body(("plain",))
    assert body is not None
    assert body.get_content().strip() == "Zoë 🎉"
    (attached,) = mail.iter_attachments()
    assert (attached.get_filename(), attached.get_content()) == ("Rechnung für Zoë.pdf", b"%PDF-")


async def test_a_sender_that_is_not_verified(moto: str) -> None:
    result = await send_mail(moto, Email("Hi", text="Hello", from_="mallory@example.org"))
    assert isinstance(result, Rejected), result
    assert result.reason is Reason.unauthorized
    assert "not verified" in str(result.detail)


async def test_text_message(moto: str) -> None:
    message = Message(DELIVERY, Channel.sms, "+4915112345678", Sms("Grüße & 🎉 = 100 % +"))
    async with provider("sns", moto, senders=["Shop"], max_price="0.50") as sns:
        result = await sns.send(message, KEY)
    assert isinstance(result, Sent), result
    texts = sns_backends[DEFAULT_ACCOUNT_ID][REGION].sms_messages
    assert texts[str(result.provider_id)] == ("+4915112345678", "Grüße & 🎉 = 100 % +")


async def test_a_number_that_is_none(moto: str) -> None:
    async with provider("sns", moto) as sns:
        result = await sns.send(Message(DELIVERY, Channel.sms, "nobody", Sms("Hi")), KEY)
    assert isinstance(result, Rejected), result
    assert result.reason is Reason.invalid_address
    assert str(result.detail).startswith("HTTP 400 InvalidParameter: ")
