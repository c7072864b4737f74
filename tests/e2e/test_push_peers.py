"""Push against servers that others wrote: web-push-testing, which decrypts what it gets, and nghttpd, which is HTTP/2.

Both are skipped by name where their program cannot be had: npm for the first, nghttpd (Debian: nghttp2-server) for the
second.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tidings.channels import CHANNELS
from tidings.clock import SystemClock
from tidings.model.messages import Message, Push, PushAction, Rejected, Sent
from tidings.model.words import Channel, Reason
from tidings.providers.apns import ApnsConfig, ApnsProvider
from tidings.providers.guard import Guard
from tidings.providers.http import AiohttpTransport
from tidings.providers.port import Surroundings
from tidings.providers.webpush import WebPushConfig, WebPushProvider

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "web-push-testing@1.2.2"
HERE = Guard(["127.0.0.0/8", "::1/128"])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem_of(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@contextlib.asynccontextmanager
async def running(*command: str, port: int) -> AsyncIterator[None]:
    """A server, from when it listens until it is told to end."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    await writer.wait_closed()
                    break
                assert process.returncode is None, f"{command[0]} ended with {process.returncode}"
                await asyncio.sleep(0.02)  # it does not say when it listens
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


@pytest.fixture(scope="module")
def push_service() -> str:
    """web-push-testing's server script, installed once into .tools/npm."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm is not installed: web-push-testing cannot be had")
    folder = ROOT / ".tools" / "npm"
    script = folder / "node_modules" / "web-push-testing" / "src" / "bin" / "server.js"
    if not script.exists():
        command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm cannot install web-push-testing: {done.stderr[-300:]}")
    return str(script)


async def test_web_push_testing_decrypts_what_we_send(push_service: str) -> None:
    port = free_port()
    http = AiohttpTransport(HERE)
    config = WebPushConfig.model_validate({"private_key": pem_of(make_key()), "subject": "mailto:push@shop.example"})
    stranger = WebPushConfig.model_validate({"private_key": pem_of(make_key()), "subject": "mailto:x@shop.example"})
    provider, other = (WebPushProvider(c, Surroundings(http, HERE, SystemClock())) for c in (config, stranger))
    push = Push(
        title="Versandt 📦",
        body="Zoë, dein Paket ist unterwegs",
        url="https://shop.example/orders/A-1",
        data=(("order", "A-1"),),
        actions=(PushAction("track", "Verfolgen"),),
        collapse_key="order-A-1",
    )
    async with running("node", push_service, str(port), port=port), aiohttp.ClientSession() as browser:

        async def ask(path: str, body: object) -> object:
            async with browser.post(f"http://127.0.0.1:{port}{path}", json=body) as answer:
                assert answer.status == 200, await answer.text()
                text = await answer.text()
                return json.loads(text)["data"] if text.startswith("{") else None

        options = {"userVisibleOnly": "true", "applicationServerKey": config.public_key}
        subscription = await ask("/subscribe", options)
        assert isinstance(subscription, dict)
        message = Message(
            uuid4(),
            Channel.push,
            CHANNELS[Channel.push].parse_address(json.dumps(subscription)),
            push,
            report_url="https://tidings.example/r/signed",
        )
        assert isinstance(await provider.send(message, "dlv_1"), Sent)
        assert isinstance(await provider.send(message, "dlv_1"), Sent)
        # A key that the browser did not subscribe with.
        assert isinstance(await other.send(message, "dlv_1"), Rejected)
        received = await ask("/get-notifications", {"clientHash": subscription["clientHash"]})
        assert isinstance(received, dict)
        assert [json.loads(text) for text in received["messages"]] == [
            {
                "title": "Versandt 📦",
                "body": "Zoë, dein Paket ist unterwegs",
                "url": "https://shop.example/orders/A-1",
                "tag": "order-A-1",
                "actions": [{"id": "track", "title": "Verfolgen"}],
                "data": {"order": "A-1", "tidings_report": "https://tidings.example/r/signed"},
            }
        ] * 2
        await ask(f"/expire-subscription/{subscription['clientHash']}", {})
        gone = await provider.send(message, "dlv_1")
        assert isinstance(gone, Rejected)
        assert gone.reason is Reason.gone
    await http.close()


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Key and certificate for 127.0.0.1, signed by itself."""
    key = make_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    key_file, certificate_file = folder / "key.pem", folder / "certificate.pem"
    key_file.write_text(pem_of(key))
    certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    return key_file, certificate_file


async def test_hundreds_of_streams_on_one_connection_to_nghttpd(tmp_path: Path, debian: Any) -> None:
    nghttpd = debian("nghttp2-server", "nghttpd")
    key_file, certificate_file = write_certificate(tmp_path)
    token = "ab" * 32
    device = tmp_path / "3" / "device" / token
    device.parent.mkdir(parents=True)
    device.write_bytes(b"")  # it answers a POST like a GET, with the file
    port = free_port()
    files = (str(key_file), str(certificate_file))
    http = AiohttpTransport(HERE)
    config = ApnsConfig.model_validate(
        {
            "team_id": "ABCDE12345",
            "key_id": "KEYID67890",
            "private_key": pem_of(make_key()),
            "topic": "com.example.app",
            "base_url": f"https://127.0.0.1:{port}",
            "ca_pem": certificate_file.read_text(),
            "max_connections": 1,
        }
    )
    provider = ApnsProvider(config, Surroundings(http, HERE, SystemClock()))
    async with running(nghttpd, "-d", str(tmp_path), "-a", "127.0.0.1", "-m", "50", str(port), *files, port=port):
        messages = [
            Message(uuid4(), Channel.push, f"apns:{token}", Push("Hi", "x" * (i * 8 % 3900))) for i in range(500)
        ]
        results = await asyncio.gather(*(provider.send(message, "dlv_1") for message in messages))
        assert {type(result) for result in results} == {Sent}
        missing = await provider.send(Message(uuid4(), Channel.push, "apns:" + "cd" * 32, Push("Hi")), "dlv_1")
        assert isinstance(missing, Rejected)  # nghttpd's 404
        await provider.close()
    await http.close()
