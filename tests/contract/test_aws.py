"""Amazon's signatures: those that we make, against its own suite and botocore; those of SNS that we check."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.contract import golden
from tests.contract.provider_case import NOW, FixedClock
from tests.contract.servers import HttpVendor
from tests.contract.sns_peer import CERTIFICATE_URL, SUBSCRIBE_URL, TOPIC, Amazon, certificate, envelope, seal
from tidings.errors import Invalid
from tidings.providers.aws import (
    MAX_AGE,
    AwsApi,
    SnsReceiver,
    derive_key,
    parse_certificate_url,
    parse_subscribe_url,
    render_authorization,
    render_canonical_request,
    render_string_to_sign,
    sign,
    to_evidence,
)
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport, HttpAnswer, TransportFailure
from tidings.providers.port import ReceiptRefused, Surroundings
from tidings.providers.registry import parse_config
from tidings.providers.ses import SesProvider

SUITE = "aws/sigv4_testsuite.json"
VECTORS = "aws/sns_signature_vectors.json"
AT = "20150830T123600Z"
SCOPE = "20150830/us-east-1/service/aws4_request"
KEY_ID, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


# --- Signature Version 4 ----------------------------------------------------------------------------------------------


def read_request(text: str) -> tuple[str, str, str, list[tuple[str, str]], bytes]:
    head, _, body = text.partition("\n\n")
    first, *lines = head.split("\n")
    method, _, rest = first.partition(" ")
    path, _, query = rest.rpartition(" ")[0].partition("?")
    headers: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith(" "):  # goes on with the value before
            name, value = headers.pop()
            headers.append((name, f"{value} {line}"))
        elif line:
            name, _, value = line.partition(":")
            headers.append((name, value))
    return method, path, query, headers, body.encode()


@pytest.mark.parametrize("case", golden.cases(SUITE))
def test_amazons_own_suite(case: dict[str, str]) -> None:
    method, path, query, headers, body = read_request(case["req"])
    if "session-token" in case["id"]:  # its request lacks the token that all that follows has
        token = next(line for line in case["creq"].split("\n") if line.startswith("x-amz-security-token:"))
        headers.append(("x-amz-security-token", token.partition(":")[2]))
    signed, canonical = render_canonical_request(method, path, query, headers, body)
    assert canonical == case["creq"]
    to_sign = render_string_to_sign(AT, SCOPE, canonical)
    assert to_sign == case["sts"]
    signature = sign(derive_key(SECRET, "20150830", "us-east-1", "service"), to_sign)
    assert render_authorization(KEY_ID, SCOPE, signed, signature) == case["authz"]


@pytest.mark.parametrize("token", [None, "AQoDYXdzEPT//////////wEX"])
@pytest.mark.parametrize("prefix", ["", "/a prefix/~x"])
async def test_what_is_sent_carries_the_signature_that_botocore_makes(token: str | None, prefix: str) -> None:
    guard = Guard(["127.0.0.0/8"])
    http = AiohttpTransport(guard)
    async with HttpVendor() as vendor:
        raw = {
            "region": "eu-west-3",
            "access_key_id": "AKIDEXAMPLE1234567",
            "secret_access_key": SECRET,
            "from_address": "a@example.com",
            "base_url": f"http://127.0.0.1:{vendor.port}{prefix}",
        }
        config = parse_config("ses", {**raw, "session_token": token} if token else raw)
        api = AwsApi(config, "email", "ses", Surroundings(http, guard, FixedClock()), SesProvider.spec)  # type: ignore[arg-type]
        await api.call("/v2/email/outbound-emails", "application/json", '{"a": "Zoë"}'.encode())
        await http.close()
    (request,) = vendor.requests
    names = request.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    theirs = AWSRequest(
        "POST",
        f"http://127.0.0.1:{vendor.port}{urlsplit(request.target).path}",
        {name: request.headers[name] for name in names if name != "host"},
        request.body,
    )
    theirs.context["timestamp"] = request.headers["x-amz-date"]
    auth = SigV4Auth(Credentials("AKIDEXAMPLE1234567", SECRET, token), "ses", "eu-west-3")
    signature = auth.signature(auth.string_to_sign(theirs, auth.canonical_request(theirs)), theirs)
    assert request.headers["authorization"].endswith(f"Signature={signature}")
    assert ("x-amz-security-token" in names) is (token is not None)


@pytest.mark.parametrize("region", ["", "EU-CENTRAL-1", "eu-central-1.evil.example", "eu/../1", "localhost"])
def test_a_region_cannot_name_another_host(region: str) -> None:
    raw = {"region": region, "access_key_id": "A" * 20, "secret_access_key": "s", "from_address": "a@example.com"}
    with pytest.raises(Invalid) as caught:
        parse_config("ses", raw)
    assert [error.pointer for error in caught.value.errors] == ["/config/region"]


# --- notifications of SNS ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases(VECTORS))
async def test_published_notifications(case: dict[str, Any]) -> None:
    fields = case["envelope"]
    url = fields.get("SigningCertURL") or fields["SigningCertUrl"]
    amazon = Amazon({url: golden.path(f"aws/{case['cert_file']}").read_bytes()})
    now = datetime.fromisoformat(fields["Timestamp"]) + timedelta(minutes=2)
    receiver = SnsReceiver(fields["TopicArn"], amazon, 1.0)
    if case["valid"]:
        opened = await receiver.open(json.dumps(fields).encode(), now)
        assert (opened.kind, opened.id, opened.message) == (fields["Type"], fields["MessageId"], fields["Message"])
        return
    with pytest.raises(ReceiptRefused):
        await receiver.open(json.dumps(fields).encode(), now)
    if "cert-url" in case["id"]:
        assert amazon.asked == []


@pytest.mark.parametrize("case", golden.cases("aws/sns_envelope_samples_docs.json"))
async def test_envelopes_of_the_developer_guide(case: dict[str, Any]) -> None:
    """Their signatures are placeholders, so they are signed anew here."""
    fields = case["payload"]
    if "Timestamp" not in fields:
        raise golden.NotOurs("not an envelope")
    now = datetime.fromisoformat(fields["Timestamp"]) + timedelta(minutes=2)
    amazon = Amazon({fields["SigningCertURL"]: certificate()})
    receiver = SnsReceiver(fields["TopicArn"], amazon, 1.0)
    with pytest.raises(ReceiptRefused, match="signature"):
        await receiver.open(json.dumps(fields).encode(), now)
    for version in ("1", "2"):
        opened = await receiver.open(seal(fields, version=version), now)
        assert (opened.kind, opened.message) == (fields["Type"], fields["Message"])
        assert opened.subscribe_url == fields.get("SubscribeURL")
    assert len(amazon.asked) == 1  # the certificate is kept


async def test_many_that_wait_for_one_certificate_fetch_it_once() -> None:
    amazon = Amazon()
    receiver = SnsReceiver(TOPIC, amazon, 1.0)
    sealed = seal(envelope("hi", NOW))
    opened = await asyncio.gather(*(receiver.open(sealed, NOW) for _ in range(20)))
    assert {one.message for one in opened} == {"hi"}
    assert amazon.asked == [("GET", CERTIFICATE_URL)]


async def test_closing_ends_what_is_being_fetched() -> None:
    class Silent(Amazon):
        async def request(self, *args: Any, **options: Any) -> HttpAnswer:
            reached.set()
            await asyncio.Event().wait()
            raise AssertionError

    reached = asyncio.Event()
    receiver = SnsReceiver(TOPIC, Silent(), 1.0)
    opening = asyncio.create_task(receiver.open(seal(envelope("hi", NOW)), NOW))
    await reached.wait()
    await receiver.close()
    with pytest.raises(TransportFailure):
        await opening


async def open_at(body: bytes, amazon: Amazon | None = None, topic: str | None = TOPIC, now: datetime = NOW) -> None:
    await SnsReceiver(topic, amazon or Amazon(), 1.0).open(body, now)


class TestRefusals:
    async def test_what_is_accepted_to_begin_with(self) -> None:
        await open_at(seal(envelope("hi", NOW)))

    async def test_another_topic_is_refused_before_anything_is_fetched(self) -> None:
        for topic in (None, TOPIC + "2"):
            amazon = Amazon()
            with pytest.raises(ReceiptRefused, match="sns_topic_arn"):
                await open_at(seal(envelope("hi", NOW)), amazon, topic)
            assert amazon.asked == []

    async def test_time_stamps(self) -> None:
        body = seal(envelope("hi", NOW))
        for now in (NOW + MAX_AGE - timedelta(seconds=2), NOW - timedelta(minutes=4)):
            await open_at(body, now=now)
        for now in (NOW + MAX_AGE, NOW - timedelta(minutes=6)):
            with pytest.raises(ReceiptRefused, match="time stamp"):
                await open_at(body, now=now)
        for stamp in ("soon", "2026-11-22T10:00:00"):
            with pytest.raises(ReceiptRefused, match="time stamp"):
                await open_at(seal(envelope("hi", NOW, Timestamp=stamp)))

    @pytest.mark.parametrize(
        ("pem", "words"),
        [
            (certificate("evil.example"), "not made out"),
            (certificate("sns.amazonaws.com.evil.example"), "not made out"),
            (certificate(None), "not made out"),
            (certificate(ends=datetime(2026, 11, 22, tzinfo=UTC)), "not in force"),
            (certificate(begins=datetime(2026, 11, 23, tzinfo=UTC)), "not in force"),
            (certificate(key=rsa.generate_private_key(65537, 1024)), "short"),
            (certificate(key=ec.generate_private_key(ec.SECP256R1())), "no RSA key"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificate"),
            (b"<html>", "no certificate"),
        ],
    )
    async def test_certificates(self, pem: bytes, words: str) -> None:
        with pytest.raises(ReceiptRefused, match=words):
            await open_at(seal(envelope("hi", NOW)), Amazon({CERTIFICATE_URL: pem}))

    async def test_a_regional_certificate_is_fine(self) -> None:
        await open_at(
            seal(envelope("hi", NOW)), Amazon({CERTIFICATE_URL: certificate("sns.eu-central-1.amazonaws.com")})
        )

    async def test_another_key(self) -> None:
        with pytest.raises(ReceiptRefused, match="signature is wrong"):
            await open_at(seal(envelope("hi", NOW), key=rsa.generate_private_key(65537, 2048)))

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"\xff",
            b"[" * 100_000,
            b'{"Type": "Notification"}',
            b'{"Type": 1}',
            seal(envelope("hi", NOW)).replace(b'"SignatureVersion": "2"', b'"SignatureVersion": "3"'),
            seal(envelope("hi", NOW)).replace(b'"Signature": "', b'"Signature": "%'),
            seal(envelope("hi", NOW)).replace(b'"hi"', b'"ho"'),
            seal(envelope("hi", NOW)).replace(b'"hi"', b'"\\ud800"'),
        ],
    )
    async def test_bodies(self, body: bytes) -> None:
        with pytest.raises(ReceiptRefused):
            await open_at(body)

    async def test_a_certificate_that_cannot_be_fetched_may_come_later(self) -> None:
        for answers in ({}, {CERTIFICATE_URL: HttpAnswer(503, {}, b"")}):
            with pytest.raises(TransportFailure):
                await open_at(seal(envelope("hi", NOW)), Amazon(answers))
        with pytest.raises(ReceiptRefused):
            await open_at(seal(envelope("hi", NOW)), Amazon({CERTIFICATE_URL: HttpAnswer(404, {}, b"")}))

    async def test_few_certificates_are_kept(self) -> None:
        urls = [CERTIFICATE_URL.replace("0123", f"{n:04}") for n in range(20)]
        amazon = Amazon(dict.fromkeys(urls, certificate()))
        receiver = SnsReceiver(TOPIC, amazon, 1.0)
        for url in urls:
            await receiver.open(seal(envelope("hi", NOW, SigningCertURL=url)), NOW)
        assert len(receiver._certificates) == 8


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url",
        "http://sns.us-east-1.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com:8443/a.pem",
        "https://sns.us-east-1.amazonaws.com:443/a.pem",
        "https://sns.us-east-1.amazonaws.com/a.txt",
        "https://sns.us-east-1.amazonaws.com/a/b.pem",
        "https://sns.us-east-1.amazonaws.com/a.pem?x=1",
        "https://sns.us-east-1.amazonaws.com/a.pem#x",
        "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription#.pem",
        "https://sns.us-east-1.amazonaws.com/a%2fb.pem",
        "https://sns.us-east-1.amazonaws.com.evil.example/a.pem",
        "https://sns.us-east-1.amazonaws.com@evil.example/a.pem",
        "https://evil.example/sns.us-east-1.amazonaws.com/a.pem",
        "https://bucket.s3.amazonaws.com/a.pem",
        "https://sns.evil.example.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com\\@evil.example/a.pem",
        "https://[::1]/a.pem",
        "//sns.us-east-1.amazonaws.com/a.pem",
    ],
)
def test_urls_that_do_not_lead_to_a_certificate_of_amazon(url: str) -> None:
    with pytest.raises(ReceiptRefused):
        parse_certificate_url(url)
    with pytest.raises(ReceiptRefused):
        parse_subscribe_url(url)


def test_urls_that_do() -> None:
    for host in ("sns.us-east-1.amazonaws.com", "sns.cn-north-1.amazonaws.com.cn", "sns.us-gov-west-1.amazonaws.com"):
        url = f"https://{host}/SimpleNotificationService-7ff5318490ec183fbaddaa2a969abfda.pem"
        assert parse_certificate_url(url) == url
        url = f"https://{host}/?Action=ConfirmSubscription&TopicArn=arn:aws:sns:x:1:y&Token=2"
        assert parse_subscribe_url(url) == url


@pytest.mark.parametrize("query", ["", "Action=Unsubscribe", "Action=ConfirmSubscription&Action=Unsubscribe"])
def test_only_confirmations_are_followed(query: str) -> None:
    with pytest.raises(ReceiptRefused):
        parse_subscribe_url(f"https://sns.us-east-1.amazonaws.com/?{query}")


async def test_confirming() -> None:
    sealed = seal(
        envelope("You have chosen …", NOW, Type="SubscriptionConfirmation", Token="2", SubscribeURL=SUBSCRIBE_URL)
    )
    amazon = Amazon()
    receiver = SnsReceiver(TOPIC, amazon, 1.0)
    opened = await receiver.open(sealed, NOW)
    await receiver.confirm(opened)
    assert amazon.asked == [("GET", CERTIFICATE_URL), ("GET", SUBSCRIBE_URL)]
    for status, failure in ((500, TransportFailure), (403, ReceiptRefused), (302, ReceiptRefused)):
        amazon.answers[SUBSCRIBE_URL] = HttpAnswer(status, {}, b"")
        with pytest.raises(failure):
            await receiver.confirm(opened)


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "InvalidSignatureException"])
def test_the_request_that_an_error_repeats_is_no_evidence(code: str) -> None:
    words = "The request signature we calculated does not match.\n\nThe String was\nx-amz-security-token:t0ken"
    said = to_evidence(HttpAnswer(403, {}, b""), code, words)
    assert "does not match" in said
    assert "t0ken" not in said
