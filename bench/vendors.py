"""End to end to vendors' APIs: Twilio, FCM, APNs and Web Push, each played by a stub that only says yes.

The stub for APNs is nghttpd (Debian's nghttp2-server), since no server of ours speaks HTTP/2 fast enough; it counts
nothing, so there the deliveries alone are counted. The others are the benchmark's HTTP sink.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, Final, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from bench.rows import Row, Scale, measure_end_to_end
from bench.stage import Process, Sink, Stage
from tidings.client import AsyncClient
from tidings.model.words import Status
from tidings.providers.jwt import to_base64url
from tidings.providers.registry import PROVIDERS

USERS: Final = 200
CONTENT: Final = {
    "default_locale": "en",
    "channels": {
        "sms": {"en": {"text": "Hi {{ user.attributes.first_name }}, your order {{ order }} is on its way: {{ url }}"}},
        "push": {
            "en": {
                "title": "Your order {{ order }} is on its way",
                "body": "Hi {{ user.attributes.first_name }}, it left our house.",
                "url": "{{ url }}",
                "collapse_key": "order",
            }
        },
    },
}


@dataclass(frozen=True)
class Played:
    """A vendor that is being played."""

    port: int
    sink: Sink | None
    """None: it counts nothing."""
    ca_pem: str = ""


@dataclass(frozen=True)
class Vendor:
    """One vendor's row."""

    name: str
    title: str
    channel: Literal["sms", "push"]
    bar: float
    play: Callable[[Stage], contextlib.AbstractAsyncContextManager[Played]]
    config: Callable[[Played], dict[str, Any]]
    address: Callable[[int, Played], Any]


@contextlib.asynccontextmanager
async def _http(stage: Stage, name: str, *arguments: str) -> AsyncIterator[Played]:
    sink = await Sink.open(f"{name} stub", stage.folder / f"{name}.log", "http", *arguments)
    try:
        yield Played(sink.port, sink)
    finally:
        await sink.stop()


def _play_twilio(stage: Stage) -> contextlib.AbstractAsyncContextManager[Played]:
    return _http(stage, "twilio", "--status", "201", "--body", '{"sid": "SM{n}", "status": "queued"}')


def _play_fcm(stage: Stage) -> contextlib.AbstractAsyncContextManager[Played]:
    return _http(stage, "fcm", "--body", '{"name": "projects/bench/messages/{n}"}', "--token-path", "/token")


def _play_push_service(stage: Stage) -> contextlib.AbstractAsyncContextManager[Played]:
    return _http(stage, "webpush", "--status", "201", "--body", "")


@contextlib.asynccontextmanager
async def _play_apns(stage: Stage) -> AsyncIterator[Played]:
    program = find_nghttpd()
    if program is None:
        raise RuntimeError("nghttpd is not installed: apt-get install nghttp2-server")
    key, certificate = _make_certificate()
    folder = stage.folder / "apns"
    folder.mkdir()
    (folder / "key.pem").write_bytes(key)
    (folder / "cert.pem").write_bytes(certificate)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = await Process.start(
        "apns stub",
        ["--address=127.0.0.1", "--echo-upload", f"--htdocs={folder}", str(port),
         str(folder / "key.pem"), str(folder / "cert.pem")],
        log=stage.folder / "apns.log",
        program=program,
    )  # fmt: skip
    try:
        await _wait_for_tls(port, certificate.decode())
        yield Played(port, None, certificate.decode())
    finally:
        await process.stop()
        shutil.rmtree(folder)


def find_nghttpd() -> str | None:
    """Where nghttpd is; installed by apt when we may."""
    if (found := shutil.which("nghttpd")) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "nghttp2-server"]
        subprocess.run(install, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        found = shutil.which("nghttpd")
    return found


async def _wait_for_tls(port: int, ca_pem: str) -> None:
    context = ssl.create_default_context(cadata=ca_pem)
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                writer.close()
                return
            await asyncio.sleep(0.05)


def _make_certificate() -> tuple[bytes, bytes]:
    """A key and a certificate for 127.0.0.1, for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _to_pem(key), certificate.public_bytes(Encoding.PEM)


def _to_pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem


def _twilio_config(played: Played) -> dict[str, Any]:
    return {
        "account_sid": "AC" + "0" * 32,
        "auth_token": "0" * 32,
        "senders": [{"id": "+15005550006", "kind": "long_code"}],
        "base_url": f"http://127.0.0.1:{played.port}",
    }


def _fcm_config(played: Played) -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = {
        "type": "service_account",
        "project_id": "bench",
        "private_key_id": "1",
        "private_key": _to_pem(key).decode(),
        "client_email": "bench@bench.iam.gserviceaccount.com",
        "token_uri": f"http://127.0.0.1:{played.port}/token",
    }
    return {
        "service_account": msgspec.json.encode(account).decode(),
        "base_url": f"http://127.0.0.1:{played.port}",
    }


def _apns_config(played: Played) -> dict[str, Any]:
    return {
        "team_id": "TEAM000001",
        "key_id": "KEY0000001",
        "private_key": _to_pem(ec.generate_private_key(ec.SECP256R1())).decode(),
        "topic": "com.example.bench",
        "base_url": f"https://127.0.0.1:{played.port}",
        "ca_pem": played.ca_pem,
        "max_connections": 1,
    }


def _web_push_config(played: Played) -> dict[str, Any]:
    return {
        "private_key": _to_pem(ec.generate_private_key(ec.SECP256R1())).decode(),
        "subject": "mailto:bench@example.com",
    }


_BROWSER: Final = to_base64url(
    ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
)


def _subscription(n: int, played: Played) -> str:
    return f"webpush:http://127.0.0.1:{played.port}/push/{n}#{_BROWSER}.{to_base64url(n.to_bytes(16, 'big'))}"


VENDORS: Final = (
    Vendor(
        "e2e_twilio", "Twilio (text messages)", "sms", 3_000, _play_twilio, _twilio_config,
        lambda n, _: f"+1415555{n:04}",
    ),
    Vendor("e2e_fcm", "FCM (push)", "push", 3_000, _play_fcm, _fcm_config, lambda n, _: f"fcm:bench-{n}"),
    Vendor(
        "e2e_apns", "APNs (push, one HTTP/2 connection, TLS)", "push", 2_000, _play_apns, _apns_config,
        lambda n, _: f"apns:{n:064x}",
    ),
    Vendor("e2e_webpush", "Web Push (encrypted)", "push", 2_000, _play_push_service, _web_push_config, _subscription),
)  # fmt: skip


@contextlib.asynccontextmanager
async def on_stage(stage: Stage, vendor: Vendor) -> AsyncIterator[Played]:
    """The vendor, an account with it and users to tell; afterwards the account is gone again."""
    async with vendor.play(stage) as played, AsyncClient(stage.api_url, stage.api_key) as client:
        await client.templates.put("told", name="Told")
        made = await client.templates.create_version("told", CONTENT)
        await client.templates.publish("told", made.version)
        for channel in ("sms", "push"):
            await client.types.put(
                f"told_{channel}", category="orders", template="told", steps=[{"send": [channel]}], priority="medium"
            )
        provider = vendor.name.removeprefix("e2e_")
        await client.accounts.put(
            provider, provider=provider, channel=vendor.channel, config=vendor.config(played), concurrency=256
        )
        gate = asyncio.Semaphore(8)

        async def put_user(n: int) -> None:
            async with gate:
                await client.users.put(
                    f"told-{n}",
                    attributes={"first_name": f"Ada {n}"},
                    addresses={vendor.channel: [vendor.address(n, played)]},
                )

        async with asyncio.TaskGroup() as group:
            for n in range(USERS):
                group.create_task(put_user(n))
        try:
            yield played
        finally:
            await client.accounts.put(
                provider, provider=provider, channel=vendor.channel, config=vendor.config(played), enabled=False
            )
            await client.accounts.delete(provider)


def to_batches(vendor: Vendor, count: int) -> list[msgspec.Raw]:
    """`count` notifications in requests of a thousand."""
    return [
        msgspec.Raw(
            msgspec.json.encode(
                {
                    "notifications": [
                        {
                            "type": f"told_{vendor.channel}",
                            "to": {"user": f"told-{n % USERS}"},
                            "data": {"order": f"A-{n}", "url": f"https://shop.example.com/orders/A-{n}"},
                        }
                        for n in range(start, start + 1_000)
                    ]
                }
            )
        )
        for start in range(0, count, 1_000)
    ]


async def measure_vendors(stage: Stage, scale: Scale) -> list[Row]:
    """Accepted in batches, planned, rendered, handed to each vendor's stub, answered, settled."""
    rows = []
    for vendor in VENDORS:
        async with on_stage(stage, vendor) as played:
            rows.append(
                await measure_end_to_end(
                    stage,
                    scale,
                    name=vendor.name,
                    title=f"End to end to {vendor.title}",
                    bodies=lambda n, vendor=vendor: to_batches(vendor, n),  # type: ignore[misc]  # bound now
                    sink=played.sink,
                    n=scale.vendor,
                    status=vendor_status(vendor),
                    bar=vendor.bar,
                )
            )
    return rows


def vendor_status(vendor: Vendor) -> Status:
    """What a delivery is once the vendor has said yes."""
    spec = PROVIDERS[vendor.name.removeprefix("e2e_")].spec
    return Status.delivered if spec.confirms_delivery else Status.sent
