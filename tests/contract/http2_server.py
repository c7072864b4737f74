"""A vendor that speaks HTTP/2 over TLS (or without), by `h2`; and Apple's by the rules of Pushy's mock."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import ipaddress
import json
import re
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset, WindowUpdated
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame
from joserfc import jwk, jwt
from joserfc.errors import JoseError

from tests.contract.provider_case import NOW
from tests.contract.servers import Act, HttpRequest, Vendor


@cache
def make_certificate() -> tuple[str, ssl.SSLContext]:
    """A certificate for 127.0.0.1, signed by itself (PEM), and the context of a server that has it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.now().replace(hour=0, minute=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=2))
        .not_valid_after(today + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM).decode()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2"])
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(private + pem)
        file.flush()
        context.load_cert_chain(file.name)
    return pem, context


@dataclass(frozen=True)
class Answer2:
    """What is answered on one stream, and what happens to the connection after it."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    reset: ErrorCodes | None = None
    """Instead of an answer: RST_STREAM."""
    goaway: int | None = None
    """Then a GOAWAY, whose last stream is this request's and so many before it are not among those processed."""
    close: bool = False
    """Then the connection is closed."""


@dataclass
class Open2:
    """One connection's state."""

    h2: H2Connection
    writer: asyncio.StreamWriter
    heads: dict[int, Mapping[str, str]] = field(default_factory=dict)
    bodies: dict[int, bytearray] = field(default_factory=dict)
    pending: dict[int, bytes] = field(default_factory=dict)
    hanging: set[int] = field(default_factory=set)

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())


class Http2Vendor(Vendor):
    """Gives one answer after the other; the last one again and again.

    Args:
        script: answers, acts, or octets that are sent as they are, in place of all HTTP/2, when a request came.
        streams: how many it allows at a time.
        tls: whether it does TLS.
        greeting: octets that are sent in place of HTTP/2's own, after which nothing follows.
    """

    def __init__(
        self, *script: Answer2 | Act | bytes, streams: int = 100, tls: bool = True, greeting: bytes | None = None
    ) -> None:
        super().__init__()
        self.script = list(script) or [Answer2()]
        self.streams = streams
        self.tls = tls
        self.greeting = greeting
        self.window = 65_535
        """Octets of a request's body that may be on their way unread, for each stream."""
        self.requests: list[HttpRequest] = []
        self.most_at_a_time = 0
        self.resets = 0
        self.reset_came = asyncio.Event()
        self.held: list[tuple[Open2, int]] = []
        """Streams that `Act.stall` left without an answer."""
        self.held_enough = asyncio.Event()
        self.hold = 0
        """Set: so many requests are held back before any is answered, in the reverse of their order."""

    async def __aenter__(self) -> Http2Vendor:
        context = make_certificate()[1] if self.tls else None
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.greeting is not None:
            writer.write(self.greeting)
            await reader.read()
            return
        connection = Open2(H2Connection(H2Configuration(client_side=False, header_encoding="utf-8")), writer)
        h2 = connection.h2
        h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: self.streams,
                SettingCodes.INITIAL_WINDOW_SIZE: self.window,
            },
        )
        h2.initiate_connection()
        connection.flush()
        while data := await reader.read(65_536):
            for event in h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    connection.heads[event.stream_id] = {str(k): str(v) for k, v in event.headers}
                    connection.bodies[event.stream_id] = bytearray()
                    self.most_at_a_time = max(self.most_at_a_time, h2.open_inbound_streams)
                elif isinstance(event, DataReceived):
                    connection.bodies[event.stream_id] += event.data
                    self.read_body(connection, event.stream_id, event.flow_controlled_length)
                elif isinstance(event, StreamEnded):
                    await self.take(connection, event.stream_id, reader)
                elif isinstance(event, StreamReset):
                    self.resets += 1
                    self.reset_came.set()
                    connection.pending.pop(event.stream_id, None)
                    if event.stream_id in connection.hanging:
                        return  # as a server does that has no patience with clients that give up
                elif isinstance(event, WindowUpdated):
                    self.send_pending(connection)
            connection.flush()
            await writer.drain()

    def read_body(self, connection: Open2, stream: int, octets: int) -> None:
        """Let the client send as much again."""
        connection.h2.acknowledge_received_data(octets, stream)

    async def take(self, connection: Open2, stream: int, reader: asyncio.StreamReader) -> None:
        head = connection.heads.pop(stream)
        headers = {name: value for name, value in head.items() if not name.startswith(":")}
        request = HttpRequest(head[":method"], head[":path"], headers, bytes(connection.bodies.pop(stream)))
        self.requests.append(request)
        if self.hold:
            self.held.append((connection, stream))
            if len(self.held) == self.hold:
                self.hold = 0
                self.held_enough.set()
                for held, id_ in reversed(self.held):
                    self.say(held, id_, self.answer(request))
            return
        answer = self.answer(request)
        if isinstance(answer, bytes):
            connection.flush()
            connection.writer.write(answer)
        elif answer is Act.hang:
            connection.hanging.add(stream)
            self.reached.set()
        elif answer is Act.stall:
            self.held.append((connection, stream))
            self.reached.set()
        elif isinstance(answer, Act):
            await self.perform(answer, reader, connection.writer)
        else:
            self.say(connection, stream, answer)

    def answer(self, request: HttpRequest) -> Answer2 | Act | bytes:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def say(self, connection: Open2, stream: int, answer: Answer2 | Act | bytes) -> None:
        assert isinstance(answer, Answer2)
        h2 = connection.h2
        if answer.goaway is not None:
            h2._prepare_for_sending([_goaway(stream - 2 * answer.goaway)])
        if answer.reset is not None:
            h2.reset_stream(stream, answer.reset)
        elif answer.goaway is None or answer.goaway == 0:
            h2.send_headers(stream, [(":status", str(answer.status)), *answer.headers], end_stream=not answer.body)
            if answer.body:
                connection.pending[stream] = answer.body
                self.send_pending(connection)
        connection.flush()
        if answer.close:
            connection.writer.close()

    def send_pending(self, connection: Open2) -> None:
        """As much of the answers' bodies as the client's windows allow."""
        h2 = connection.h2
        for stream in list(connection.pending):
            try:
                while body := connection.pending.get(stream):
                    room = min(h2.local_flow_control_window(stream), h2.max_outbound_frame_size)
                    if room <= 0:
                        break
                    h2.send_data(stream, body[:room], end_stream=len(body) <= room)
                    connection.pending[stream] = body[room:]
            except StreamClosedError:
                del connection.pending[stream]
            else:
                if not connection.pending[stream]:
                    del connection.pending[stream]


def _goaway(last_stream: int) -> GoAwayFrame:
    frame = GoAwayFrame(0)
    frame.last_stream_id = max(0, last_stream)
    frame.error_code = ErrorCodes.NO_ERROR
    frame.additional_data = b'{"reason":"Shutdown"}'
    return frame


# --- Apple ------------------------------------------------------------------------------------------------------------

PUSH_TYPES = {"alert", "background", "location", "voip", "complication", "fileprovider", "mdm", "liveactivity"}


def refuse(status: int, reason: str, **more: object) -> Answer2:
    return Answer2(status, json.dumps({"reason": reason, **more}).encode())


class ApnsVendor(Http2Vendor):
    """Checks each request by the rules of `apns/mock_server_rules.json`, in their order, and then follows the script.

    Args:
        keys: the PEM of the public key of each key id.
    """

    def __init__(
        self,
        *script: Answer2 | Act | bytes,
        keys: Mapping[str, str],
        team: str,
        topic: str,
        expired: Mapping[str, int] = {},
        foreign: frozenset[str] = frozenset(),
        now: Callable[[], datetime] = lambda: NOW,
        **more: object,
    ) -> None:
        super().__init__(*script, **more)  # type: ignore[arg-type]  # handed through
        self.keys = keys
        self.team = team
        self.topic = topic
        self.expired = expired
        """Dead tokens, and since when, in milliseconds."""
        self.foreign = foreign
        """Tokens of another application."""
        self.now = now

    def answer(self, request: HttpRequest) -> Answer2 | Act | bytes:
        refusal = self.find_refusal(request)
        if refusal is not None:
            return refusal
        answer = super().answer(request)
        if isinstance(answer, Answer2) and answer.status == 200 and "apns-id" in request.headers:
            return dataclasses.replace(answer, headers=(("apns-id", request.headers["apns-id"].upper()),))
        return answer

    def find_refusal(self, request: HttpRequest) -> Answer2 | None:
        headers = request.headers
        if "apns-id" in headers:
            try:
                UUID(headers["apns-id"])
            except ValueError:
                return refuse(400, "BadMessageId")
        if request.method != "POST":
            return refuse(405, "MethodNotAllowed")
        if not headers.get("apns-topic"):
            return refuse(400, "MissingTopic")
        if len(headers.get("apns-collapse-id", "").encode()) > 64:
            return refuse(400, "BadCollapseId")
        if headers.get("apns-priority", "10") not in ("10", "5", "1"):
            return refuse(400, "BadPriority")
        if headers.get("apns-push-type", "alert") not in PUSH_TYPES:
            return refuse(400, "InvalidPushType")
        if request.target == "/3/device/":
            return refuse(400, "MissingDeviceToken")
        if not request.target.startswith("/3/device/"):
            return refuse(404, "BadPath")
        token = request.target.removeprefix("/3/device/")
        if not re.fullmatch("[0-9a-fA-F]{64}", token):
            return refuse(400, "BadDeviceToken")
        if token in self.expired:
            return refuse(410, "Unregistered", timestamp=self.expired[token])
        if token in self.foreign:
            return refuse(400, "DeviceTokenNotForTopic")
        if not request.body:
            return refuse(400, "PayloadEmpty")
        if len(request.body) > 4096:
            return refuse(413, "PayloadTooLarge")
        return self.find_token_refusal(headers)

    def find_token_refusal(self, headers: Mapping[str, str]) -> Answer2 | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if not token or scheme != "bearer":
            return refuse(403, "MissingProviderToken")
        try:
            kid = json.loads(_decode(token.split(".")[0]))["kid"]
            claims = jwt.decode(token, jwk.import_key(self.keys[kid], "EC"), algorithms=["ES256"]).claims
            issued_at = int(claims["iat"])
        except (JoseError, KeyError, ValueError, IndexError):
            return refuse(403, "InvalidProviderToken")
        if claims["iss"] != self.team or headers["apns-topic"] != self.topic:
            return refuse(403, "InvalidProviderToken")
        if self.now().timestamp() - issued_at > 3600:
            return refuse(403, "ExpiredProviderToken")
        return None


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
