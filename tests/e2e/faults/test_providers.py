"""Providers and receivers that hang, break off, refuse, slow down or talk nonsense: what becomes of the messages."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.contract.servers import Act, http_answer
from tests.e2e.faults.harness import WEBHOOK_SECRET, until
from tests.e2e.faults.receivers import MailReceiver, WebhookReceiver
from tests.e2e.faults.stack import events, open_stack
from tidings.flow.settlement import Policy
from tidings.model.words import Channel

OK = http_answer(200)
LONG = "A line of a mail that is long enough to be cut in the middle.\n" * 50


# ---------------------------------------------------------------- webhooks


@pytest.mark.parametrize("trouble", [Act.hang, Act.reset, Act.close, b"\x00\x01 what?\r\n\r\n"], ids=repr)
async def test_a_webhook_without_an_answer_is_uncertain_and_sent_again(database_dsn: str, trouble: Act | bytes) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=1) as stack,
        stack.working(),
    ):
        hooks.scripts["/u0"] = [trouble, OK]
        sent = await stack.client.send(type="note", to={"user": "u0"}, channels=["webhook"], data={"n": 1})
        shown = await stack.ended(sent.id)
        (delivery,) = shown.deliveries
        assert (delivery.status, delivery.attempts) == ("delivered", 2)
        assert events(shown) == ["requested", "queued", "uncertain", "sent", "delivered"]
        assert hooks.count() == {delivery.id: 2}
        assert not hooks.forged


@pytest.mark.parametrize("trouble", [Act.hang, Act.reset], ids=repr)
async def test_at_most_once_ends_where_nobody_knows(database_dsn: str, trouble: Act) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=1, guarantee="at_most_once") as stack,
        stack.working(),
    ):
        hooks.scripts["/u0"] = [trouble, OK]
        sent = await stack.client.send(type="note", to={"user": "u0"}, channels=["webhook"], data={"n": 1})
        shown = await stack.ended(sent.id)
        (delivery,) = shown.deliveries
        assert (delivery.status, delivery.reason) == ("failed", "uncertain")
        assert "uncertain" in events(shown)
        assert hooks.count() == {delivery.id: 1}
        assert [letter.delivery for letter in await stack.dead_letters()] == [delivery.id]


async def test_retry_after_is_obeyed(database_dsn: str) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=2) as stack,
        stack.working(),
    ):
        hooks.scripts["/u0"] = [http_answer(429, "Retry-After: 1"), OK]
        sent = await stack.client.send(type="note", to={"user": "u0"}, channels=["webhook"], data={"n": 1})
        await hooks.news.wait_until(lambda: len(hooks.receipts) == 1)
        other = await stack.client.send(type="note", to={"user": "u1"}, channels=["webhook"], data={"n": 2})
        assert (await stack.ended(other.id)).status == "delivered"  # one endpoint is slow, the others are not
        shown = await stack.ended(sent.id)
        assert shown.status == "delivered"
        assert "uncertain" not in events(shown)
        first, second = [receipt.at for receipt in hooks.receipts if receipt.path == "/u0"]
        assert 1.0 <= second - first < 3.0


async def test_a_broken_endpoint_becomes_a_dead_letter_and_a_replay_delivers_it(database_dsn: str) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=1) as stack,
        stack.working(),
    ):
        hooks.scripts["/u0"] = [http_answer(500)]
        sent = await stack.client.send(type="note", to={"user": "u0"}, channels=["webhook"], data={"n": 1})
        shown = await stack.ended(sent.id)
        (delivery,) = shown.deliveries
        assert (delivery.status, delivery.reason, delivery.attempts) == ("failed", "attempts_exhausted", 4)
        assert events(shown).count("retrying") == 3
        assert hooks.count() == {delivery.id: 4}
        (letter,) = await stack.dead_letters()
        assert (letter.delivery, letter.reason, letter.attempts) == (delivery.id, "attempts_exhausted", 4)
        assert "HTTP 500" in str(shown.timeline[-1].detail)

        hooks.scripts["/u0"] = [OK]
        assert (await stack.client.dead_letters.replay(delivery.id)).replayed == 1
        shown = await stack.ended(sent.id)
        assert shown.status == "delivered"
        assert "replayed" in events(shown)
        assert not await stack.dead_letters()
        assert hooks.count() == {delivery.id: 5}


async def test_a_slow_answer_within_the_time_is_an_answer(database_dsn: str) -> None:
    async with (
        WebhookReceiver(WEBHOOK_SECRET) as hooks,
        open_stack(database_dsn, webhook_port=hooks.port, users=1, timeout=3) as stack,
        stack.working(),
    ):
        hooks.gate.clear()
        sent = await stack.client.send(type="note", to={"user": "u0"}, channels=["webhook"], data={"n": 1})
        await hooks.news.wait_until(lambda: hooks.busy == 1)
        assert (await stack.client.get(sent.id)).status == "processing"
        hooks.gate.set()
        shown = await stack.ended(sent.id)
        assert shown.status == "delivered"
        assert shown.deliveries[0].attempts == 1
        assert len(hooks.receipts) == 1


# ---------------------------------------------------------------- mail


async def test_one_refused_recipient_bounces_alone_and_is_never_tried_again(database_dsn: str) -> None:
    async with (
        MailReceiver() as mail,
        open_stack(database_dsn, smtp_port=mail.port, users=4) as stack,
        stack.working(),
    ):
        mail.to_recipient["u1@example.com"] = [b"550 5.1.1 no such user\r\n"]
        sent = [
            await stack.client.send(type="note", to={"user": f"u{i}"}, channels=["email"], data={"n": i})
            for i in range(4)
        ]
        ended = [(await stack.ended(one.id)).deliveries[0] for one in sent]
        assert [(d.status, d.reason) for d in ended] == [
            ("sent", None),
            ("failed", "bounced"),
            ("sent", None),
            ("sent", None),
        ]
        assert set(mail.received.values()) == {1}
        assert len(mail.received) == 3
        rows = await stack.database.fetch("SELECT address, reason FROM suppression")
        assert [tuple(row) for row in rows] == [("u1@example.com", "bounced")]
        assert not await stack.dead_letters()  # nobody could mend it by trying again

        again = await stack.client.send(type="note", to={"user": "u1"}, channels=["email"], data={"n": 9})
        (delivery,) = (await stack.ended(again.id)).deliveries
        assert (delivery.status, delivery.reason) == ("skipped", "suppressed")


async def test_greylisting_is_waited_for(database_dsn: str) -> None:
    async with (
        MailReceiver() as mail,
        open_stack(database_dsn, smtp_port=mail.port, users=1) as stack,
        stack.working(),
    ):
        greylisted = b"451 4.7.1 greylisted, come back later\r\n"
        mail.to_recipient["u0@example.com"] = [greylisted, greylisted, b"250 2.1.5 ok\r\n"]
        sent = await stack.client.send(type="note", to={"user": "u0"}, channels=["email"], data={"n": 1})
        shown = await stack.ended(sent.id)
        assert (shown.status, shown.deliveries[0].attempts) == ("sent", 3)
        assert [entry.reason for entry in shown.timeline if entry.event == "retrying"] == ["greylisted"] * 2
        assert set(mail.received.values()) == {1}


async def test_a_mail_that_is_cut_in_the_middle_is_sent_again(database_dsn: str) -> None:
    async with (
        MailReceiver() as mail,
        open_stack(database_dsn, smtp_port=mail.port) as stack,
        stack.working(),
    ):
        mail.script.inside_data = Act.reset
        content = {"subject": "Long", "text": LONG}
        sent = await stack.client.send(to={"email": "ada@example.com"}, content=content)
        await mail.reached.wait()
        mail.script.inside_data = None
        shown = await stack.ended(sent.id)
        assert shown.status == "sent"
        # The kernel had taken the whole mail, so the sender cannot know where the other side stopped reading.
        assert events(shown) == ["requested", "queued", "uncertain", "sent"]
        assert list(mail.received.values()) == [1]


async def test_a_connection_that_breaks_after_the_last_dot_is_uncertain(database_dsn: str) -> None:
    async with (
        MailReceiver() as mail,
        open_stack(database_dsn, smtp_port=mail.port, users=1) as stack,
        stack.working(),
    ):
        mail.script.body = [Act.reset, b"250 2.0.0 queued\r\n"]
        sent = await stack.client.send(type="note", to={"user": "u0"}, channels=["email"], data={"n": 1})
        shown = await stack.ended(sent.id)
        assert shown.status == "sent"
        assert "uncertain" in events(shown)
        assert list(mail.received.values()) == [2]  # with one Message-ID, so that a mailbox can tell


async def test_a_mail_that_may_go_once_is_not_repeated_after_the_last_dot(database_dsn: str) -> None:
    async with (
        MailReceiver() as mail,
        open_stack(database_dsn, smtp_port=mail.port, users=1, guarantee="at_most_once") as stack,
        stack.working(),
    ):
        mail.script.body = [Act.hang, b"250 2.0.0 queued\r\n"]
        sent = await stack.client.send(type="note", to={"user": "u0"}, channels=["email"], data={"n": 1})
        (delivery,) = (await stack.ended(sent.id)).deliveries
        assert (delivery.status, delivery.reason) == ("failed", "uncertain")
        assert list(mail.received.values()) == [1]


async def test_a_server_that_hangs_before_the_mail_leaves_no_doubt(database_dsn: str) -> None:
    async with (
        MailReceiver() as mail,
        open_stack(database_dsn, smtp_port=mail.port, users=1, guarantee="at_most_once") as stack,
        stack.working(),
    ):
        mail.script.mail = [Act.hang, b"250 2.1.0 ok\r\n"]
        sent = await stack.client.send(type="note", to={"user": "u0"}, channels=["email"], data={"n": 1})
        shown = await stack.ended(sent.id)
        assert shown.status == "sent"
        assert [entry.reason for entry in shown.timeline if entry.event == "retrying"] == ["connect_failed"]
        assert list(mail.received.values()) == [1]


async def test_refused_credentials_open_the_breaker_and_cost_no_message(database_dsn: str) -> None:
    patient = {channel: Policy(20, 4, timedelta(milliseconds=20), timedelta(milliseconds=100)) for channel in Channel}
    limits = {"concurrency": 1}
    async with (
        MailReceiver() as mail,
        open_stack(database_dsn, policies=patient, smtp_port=mail.port, users=1, limits=limits) as stack,
    ):
        mail.script.mail = [b"530 5.7.0 Authentication required\r\n"]
        sent = [
            await stack.client.send(type="note", to={"user": "u0"}, channels=["email"], data={"n": i})
            for i in range(13)
        ]
        async with stack.working():

            async def opened() -> bool:
                return bool(
                    await stack.database.fetchval("SELECT count(*) FROM account_state WHERE open_until > now()")
                )

            await until(opened, 10, "the breaker opens")
            mail.script.mail = [b"250 2.1.0 ok\r\n"]
            ended = [(await stack.ended(one.id)).deliveries[0] for one in sent]
        # Ten failures in a row opened it; everything waited until the account was mended.
        assert {d.status for d in ended} == {"sent"}
        assert sum(d.attempts for d in ended) >= 13 + 10
        assert not await stack.dead_letters()
        assert sorted(mail.received.values()) == [1] * 13


async def test_another_account_takes_over_where_one_is_refused(database_dsn: str) -> None:
    async with (
        MailReceiver() as broken,
        MailReceiver() as mail,
        open_stack(database_dsn, smtp_port=broken.port, users=1) as stack,
    ):
        broken.script.mail = [b"530 5.7.0 Authentication required\r\n"]
        config = {"host": "127.0.0.1", "port": mail.port, "security": "none", "from_address": "shop@example.com"}
        await stack.client.accounts.put("spare", provider="smtp", channel="email", config=config)
        sent = [
            await stack.client.send(type="note", to={"user": "u0"}, channels=["email"], data={"n": i}) for i in range(8)
        ]
        async with stack.working():
            ended = [(await stack.ended(one.id)).deliveries[0] for one in sent]
        assert {(d.status, d.account) for d in ended} == {("sent", "spare")}
        assert not broken.received
        assert sorted(mail.received.values()) == [1] * 8


# ---------------------------------------------------------------- what never leaves the house


async def test_a_replayed_simulation_stays_a_simulation(database_dsn: str) -> None:
    async with (
        MailReceiver() as mail,
        open_stack(database_dsn, smtp_port=mail.port) as stack,
        stack.working(),
    ):
        content = {"subject": "Hi", "text": "Hello"}
        sent = await stack.client.send(to={"email": "fail@simulator.test"}, content=content)
        (delivery,) = (await stack.ended(sent.id)).deliveries
        assert (delivery.status, delivery.reason) == ("failed", "rejected")
        assert (await stack.client.dead_letters.replay(delivery.id)).replayed == 1

        async def listed_again() -> bool:
            return bool(await stack.dead_letters())

        await until(listed_again, 10, "the replayed letter is dead again")
        assert not mail.connections
