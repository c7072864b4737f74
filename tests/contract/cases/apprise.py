import json
import warnings

from tests.contract.provider_case import DELIVERY, Answer, ProviderCase
from tests.contract.servers import Act, HttpVendor, http_answer
from tidings.model.messages import Chat, Deferred, Message, Rejected, Sent, Throttled, Uncertain
from tidings.model.words import Channel, Reason
from tidings.providers.apprise import list_reachable

# Some of its plugins import what the next Python lacks; that is for them to mend, so it is done before tests listen.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    list_reachable()

TOKEN = "s3cret-t0ken"


def message(content: Chat) -> Message:
    return Message(DELIVERY, Channel.chat, "apprise:default", content)


def check(vendor: HttpVendor, sent: Message, key: str) -> None:
    request = vendor.requests[-1]
    assert isinstance(sent.content, Chat)
    assert (request.method, request.target.rstrip("/")) == ("POST", f"/{TOKEN}")
    body = json.loads(request.body)
    assert body["title"] == (sent.content.title or "")
    assert body["message"] == "\n".join(filter(None, [sent.content.text, sent.content.url]))


def answers(status: int, expected: object) -> Answer:
    return Answer(str(status), lambda: HttpVendor(http_answer(status)), expected)  # type: ignore[arg-type]  # one of the results


BLOCKS = "Apprise blocks in a thread, which nothing ends before its socket's time is up"

CASE = ProviderCase(
    # The generic JSON service; Apprise's own URL asks for redirects and no certificates, and gets neither.
    config=lambda port: {"url": f"json://127.0.0.1:{port}/{TOKEN}?redirect=yes&verify=no"},
    secrets=[TOKEN],
    message=lambda port: message(Chat("Hi")),
    more_messages=lambda port: {
        "full": message(Chat("On its way", title="Order A-1", url="https://shop.example.com/?a=1&b=2")),
        "non-ascii": message(Chat("Zoë 🎉")),
    },
    undeclared=lambda port: message(Chat("Hi", payload=b"{}")),
    check=check,
    vendor=HttpVendor,
    answers=[
        answers(200, Sent()),
        answers(204, Sent()),
        Answer(
            "302",
            lambda: HttpVendor(http_answer(302, "Location: http://127.0.0.1:1/")),
            Rejected(Reason.unauthorized),
        ),
        answers(400, Rejected(Reason.rejected)),
        answers(401, Rejected(Reason.unauthorized)),
        answers(404, Rejected(Reason.unauthorized)),
        answers(413, Rejected(Reason.too_large)),
        answers(429, Throttled()),
        answers(500, Deferred(Reason.provider_error)),
        answers(504, Uncertain()),
    ],
    hangs_after_send=lambda: HttpVendor(Act.hang),
    resets_after_send=lambda: HttpVendor(Act.reset),
    garbage=lambda: HttpVendor(b"\x00\xff 220 what is this\r\n\r\n"),
    oversize=lambda: HttpVendor(http_answer(200, body=b"x" * 5_000_000)),
    excused={
        "test_sends_share_a_connection": "Apprise's plugins open a connection for each request",
        "test_cancelled_send_leaves_a_working_provider": BLOCKS,
    },
)
