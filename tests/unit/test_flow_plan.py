"""Planning as a decision: who is told where, and a reason for every no."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import ids
from tidings.channels import CHANNELS
from tidings.directory.catalog import Account, TemplateVersion, TypeVersion
from tidings.directory.projects import NO_SETTINGS
from tidings.directory.steps import compile_steps
from tidings.flow.caps import Ledger
from tidings.flow.decide import ONE_ADDRESS, decide_plan
from tidings.flow.facts import START, Facts, Planned, Rules
from tidings.model.words import Channel, Priority, Reason, Status
from tidings.providers.port import Config
from tidings.providers.registry import parse_config
from tidings.templating import compile_template

RNG = random.Random(1)
NOTIFICATION = ids.new_id(datetime(2031, 3, 14, tzinfo=UTC), RNG)
NOW = datetime(2031, 3, 14, 12, tzinfo=UTC)
USER = Facts(
    id=NOTIFICATION,
    project_id=1,
    type_version_id=5,
    user_id="ada",
    to_channel=None,
    to_address=None,
    priority=Priority.medium,
    channels=None,
    test=False,
    locale=None,
    cancelled=False,
    expires_at=None,
    user_exists=True,
    user_locale="de-AT",
    address_channels=[Channel.email, Channel.email, Channel.webhook, Channel.webhook],
    addresses=["first@example.com", "second@example.com", "https://example.com/a", "https://example.com/b"],
    suppressed=[None] * 4,
    to_suppressed=None,
    items=None,
    once_key=None,
    preferences=None,
    quiet_hours=None,
    time_zone=None,
    region=None,
    segments=None,
    now=NOW,
)
DIRECT = USER._replace(
    type_version_id=None, user_id=None, to_channel=1, to_address="ada@example.com", user_exists=False, user_locale=None
)


def template(*channels: Channel) -> TemplateVersion:
    sources: dict[Channel, Any] = {
        Channel.email: {"en": {"subject": "Hi", "text": "Hi"}, "de": {"subject": "Hallo", "text": "Hallo"}},
        Channel.in_app: {"en": {"title": "Hi"}},
        Channel.webhook: {"en": {"body": "{}"}},
    }
    content = {"default_locale": "en", "channels": {c.name: sources[c] for c in channels}}
    compiled = compile_template(content, CHANNELS)
    return TemplateVersion(3, 1, "t", 1, frozenset(), frozenset(channels), compiled)


def type_(*steps: tuple[Channel, ...]) -> TypeVersion:
    program = compile_steps([{"send": [c.name for c in step]} for step in steps])
    return TypeVersion(5, 1, "k", 1, "orders", False, Priority.medium, False, "t", program, None, False, None)


def decide(
    facts: Facts,
    kind: TypeVersion | None,
    published: TemplateVersion | None,
    accounts: Mapping[Channel, Sequence[Account]],
    rng: random.Random,
) -> list[Planned]:
    """The deliveries that the first planning makes where nobody has set any rule."""
    rules = Rules(kind, published, accounts, NO_SETTINGS, {}, Ledger({}))
    return decide_plan(facts, START, rules, rng).planned


def account(id_: int, channel: Channel, *, test: bool = False) -> Account:
    return Account(id_, 1, str(id_), channel, "x", Config(), 100, None, 1, 9, test, 1)


ALL = (Channel.email, Channel.in_app, Channel.webhook)
ACCOUNTS = {c: (account(c, c), account(10 + c, c, test=True)) for c in ALL}
TEMPLATE = template(*ALL)


def test_without_steps_every_channel_of_the_template_is_used_in_the_users_language() -> None:
    planned = decide(USER, type_(), TEMPLATE, ACCOUNTS, RNG)
    assert [(p.channel, p.address, p.status) for p in planned] == [
        (Channel.email, "first@example.com", Status.queued),
        (Channel.in_app, "ada", Status.queued),
        (Channel.webhook, "https://example.com/a", Status.queued),
        (Channel.webhook, "https://example.com/b", Status.queued),
    ]
    # Where there is German text, dates and numbers are Austrian.
    assert [p.locale for p in planned] == ["de-AT", "en", "en", "en"]
    assert all(p.account_id is None and p.template_version_id == 3 for p in planned)
    [asked] = decide(USER._replace(locale="en"), type_((Channel.email,)), TEMPLATE, ACCOUNTS, RNG)
    assert asked.locale == "en"


def test_steps_order_and_narrow() -> None:
    steps = type_((Channel.in_app,), (Channel.email, Channel.in_app))
    planned = decide(USER, steps, TEMPLATE, ACCOUNTS, RNG)
    assert [(p.step, p.channel) for p in planned] == [(0, Channel.in_app), (1, Channel.email), (1, Channel.in_app)]
    only = USER._replace(channels=1 << Channel.email)
    assert [p.channel for p in decide(only, steps, TEMPLATE, ACCOUNTS, RNG)] == [Channel.email]


@pytest.mark.parametrize(
    ("facts", "accounts", "status", "reason"),
    [
        (USER._replace(expires_at=NOW), ACCOUNTS, Status.expired, Reason.expired),
        (USER._replace(user_exists=False), ACCOUNTS, Status.skipped, Reason.user_deleted),
        (
            USER._replace(address_channels=None, addresses=None, suppressed=None),
            ACCOUNTS,
            Status.skipped,
            Reason.no_address,
        ),
        (USER._replace(suppressed=[""] * 4), ACCOUNTS, Status.skipped, Reason.suppressed),
        (USER, {}, Status.skipped, Reason.no_account),
        (USER, {Channel.email: (account(11, Channel.email, test=True),)}, Status.skipped, Reason.no_account),
        (USER._replace(test=True), {Channel.email: (account(1, Channel.email),)}, Status.skipped, Reason.no_account),
        (DIRECT._replace(to_suppressed=""), ACCOUNTS, Status.skipped, Reason.suppressed),
    ],
)
def test_every_no_has_its_reason(facts: Facts, accounts: Any, status: Status, reason: Reason) -> None:
    kind = type_((Channel.email,)) if facts.type_version_id else None
    [planned] = decide(facts, kind, TEMPLATE if kind else None, accounts, RNG)
    assert (planned.status, planned.reason) == (status, reason)


def test_a_template_that_lost_the_channel_is_a_reason_too() -> None:
    [planned] = decide(USER, type_((Channel.email,)), template(Channel.in_app), ACCOUNTS, RNG)
    assert planned.reason is Reason.no_template
    only_mail = USER._replace(channels=1 << Channel.email)
    [planned] = decide(only_mail, type_(), template(Channel.in_app), ACCOUNTS, RNG)
    assert (planned.channel, planned.reason) == (Channel.email, Reason.no_template)


def test_a_suppressed_address_gives_way_to_the_next_one() -> None:
    facts = USER._replace(suppressed=["", None, None, None])
    [planned] = decide(facts, type_((Channel.email,)), TEMPLATE, ACCOUNTS, RNG)
    assert planned.address == "second@example.com"


def test_what_is_simulated_is_pinned_to_the_simulator() -> None:
    [planned] = decide(USER._replace(test=True), type_((Channel.email,)), TEMPLATE, ACCOUNTS, RNG)
    assert planned.account_id == 11
    [planned] = decide(DIRECT._replace(to_address="bounce@simulator.test"), None, None, ACCOUNTS, RNG)
    assert planned.account_id == 11


def push_account(id_: int, provider: str, *, weight: int = 100) -> Account:
    return msgspec.structs.replace(account(id_, Channel.push), provider=provider, weight=weight)


DEVICES = USER._replace(
    type_version_id=None, channels=1 << Channel.push, address_channels=[Channel.push] * 3,
    addresses=["fcm:a", "apns:" + "0" * 64, "simulator:deliver"], suppressed=[None] * 3,
)  # fmt: skip


def test_a_device_gets_an_account_of_its_vendor() -> None:
    accounts = {
        Channel.push: (
            push_account(1, "fcm"), push_account(2, "apns"), push_account(3, "apns", weight=0),
            account(9, Channel.push, test=True),
        )
    }  # fmt: skip
    planned = decide(DEVICES, None, None, accounts, RNG)
    assert [(p.address.partition(":")[0], p.account_id) for p in planned] == [("fcm", 1), ("apns", 2), ("simulator", 9)]
    only_apple = {Channel.push: accounts[Channel.push][1:]}
    assert [(p.reason, p.account_id) for p in decide(DEVICES, None, None, only_apple, RNG)] == [
        (Reason.no_account, None),
        (None, None),  # every live account serves it: the claim chooses
        (None, 9),
    ]


def test_a_room_gets_the_account_that_it_names() -> None:
    webhook = "https://hooks.slack.com/services/T0/B0/x"
    configs = [{"webhook_url": webhook}, {"webhook_url": webhook, "name": "ops"}, {}]
    accounts = {
        Channel.chat: tuple(
            msgspec.structs.replace(
                account(n, Channel.chat), provider="slack", config=parse_config("slack", config), weight=1
            )
            for n, config in enumerate(configs, 1)
        )
    }

    def chosen(address: str) -> set[int | None]:
        rooms = DEVICES._replace(
            channels=1 << Channel.chat, address_channels=[Channel.chat], addresses=[address], suppressed=[None]
        )
        return {decide(rooms, None, None, accounts, RNG)[0].account_id for _ in range(20)}

    assert chosen("slack:default") == {1}
    assert chosen("slack:ops") == {2}
    assert chosen(f"slack:{webhook}") == {None}
    [nobody] = decide(DIRECT._replace(to_channel=Channel.chat, to_address="slack:dev"), None, None, accounts, RNG)
    assert nobody.reason is Reason.no_account


def test_accounts_of_one_vendor_share_by_their_weights() -> None:
    accounts = {
        Channel.push: (push_account(1, "fcm", weight=3), push_account(2, "fcm", weight=1), push_account(4, "apns"))
    }
    one = DEVICES._replace(address_channels=[Channel.push], addresses=["fcm:a"], suppressed=[None])
    rng = random.Random(5)
    chosen = Counter(decide(one, None, None, accounts, rng)[0].account_id for _ in range(1_000))
    assert chosen.keys() == {1, 2}
    assert 2.3 < chosen[1] / chosen[2] < 3.9


def test_a_cancelled_notification_makes_nothing() -> None:
    assert decide(USER._replace(cancelled=True), type_(), TEMPLATE, ACCOUNTS, RNG) == []


@given(
    steps=st.lists(st.lists(st.sampled_from(ALL), min_size=1, unique=True), max_size=3),
    covers=st.sets(st.sampled_from(ALL), min_size=1),
    has=st.sets(st.sampled_from(ALL)),
    channels=st.none() | st.sets(st.sampled_from(ALL), min_size=1),
    expired=st.booleans(),
    exists=st.booleans(),
    test=st.booleans(),
    suppressed=st.lists(st.sampled_from([None, "", "news", "general"]), min_size=4, max_size=4),
)
def test_everybody_is_told_or_it_is_said_why_not(
    steps: list[list[Channel]],
    covers: set[Channel],
    has: set[Channel],
    channels: set[Channel] | None,
    expired: bool,
    exists: bool,
    test: bool,
    suppressed: list[str | None],
) -> None:
    mask = None if channels is None else sum(1 << c for c in channels)
    facts = USER._replace(
        channels=mask, expires_at=NOW if expired else None, user_exists=exists, test=test, suppressed=suppressed
    )
    kind = type_(*(tuple(step) for step in steps))
    planned = decide(facts, kind, template(*sorted(covers)), {c: ACCOUNTS[c] for c in has}, RNG)
    assert planned
    for p in planned:
        assert (p.status is Status.queued) == (p.reason is None)
        assert channels is None or p.channel in channels
        if p.status is Status.queued:
            assert p.channel in has
            assert p.channel in covers
            assert p.address
            assert (p.account_id is not None) == test
            assert not expired
            assert exists
    assert len({(p.step, p.channel, p.address) for p in planned}) == len(planned)
    for channel in ONE_ADDRESS:
        found = [p.step for p in planned if p.channel is channel]
        assert len(set(found)) == len(found)
