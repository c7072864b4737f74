"""Decide: what planning makes of a notification at this moment. Pure: it is given everything it needs.

A notification runs the program of its type's version (`tidings.directory.steps`) until it has to wait for something:
a timer, quiet hours, a cap, the next of a fallback chain. Then a plan says where to go on and when; its job is that
timer. Each time everything is asked anew, so what counts is what users want and where they are at that moment.

On each channel the rules are asked in this order, and the first no ends it: address, preference, suppression,
template, account, quiet hours, limits. Limits come last, so that nothing that is not sent counts.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from tidings.directory.catalog import Account, TypeVersion
from tidings.directory.categories import NO_CATEGORY_RULES
from tidings.directory.limits import Limit
from tidings.directory.preferences import decide_frequency, decide_preference
from tidings.directory.quiet import Person, decide_quiet, decide_send_time
from tidings.directory.steps import EVERY_CHANNEL, Branch, First, Jump, Program, Send, Throttle, Wait
from tidings.durations import to_duration
from tidings.flow.caps import Cap, to_counter_key
from tidings.flow.facts import Facts, Past, Plan, Planned, Rules, Run, ToDigest, list_engagement
from tidings.flow.jobs import ALL_CHANNELS
from tidings.flow.load import is_suppressed
from tidings.model.conditions import holds
from tidings.model.rulings import Answer, Level, Rule, Ruling
from tidings.model.words import CHANNELS_OF_THIS_VERSION, Channel, Frequency, Priority, Reason, RunState, Status
from tidings.providers.simulator import simulated_outcome

ONE_ADDRESS: Final = frozenset({Channel.email, Channel.sms})
"""Channels on which a person is told once, at the first address, however many they have. On the others every address
is a device or an endpoint of its own."""
CHAIN_PATIENCE: Final = timedelta(days=3, hours=1)
"""How long a chain without `within` waits for an attempt to end, at most: a little longer than settling tries."""

_CHOSEN: Final = 2
"""`Run.place` of a `send` whose time was chosen and has not come."""


def to_cap(type_key: str, step: int, most: int, window: timedelta, test: bool) -> Cap:
    """A throttle step as a cap: whoever passes it takes a place."""
    limit = Limit(max=most, window=to_duration(window))
    seconds = round(window.total_seconds())
    key = to_counter_key(f"throttle:{type_key}:{step}:{seconds}", test=test)
    return Cap(Level.type, key, limit, seconds, None, Answer.no)


def list_throttles(type_: TypeVersion, test: bool) -> list[Cap]:
    """The caps that its steps ask."""
    return [to_cap(type_.key, i, t.max, t.window, test) for i, t in enumerate(type_.program) if isinstance(t, Throttle)]


class _Hold(NamedTuple):
    until: datetime
    reason: Reason


def decide_plan(facts: Facts, run: Run, rules: Rules, rng: random.Random) -> Plan:
    """What to do now, and when to go on. Pure, but for booking in the ledger and the draws from `rng`, which chooses
    among the accounts that serve an address where not all of the channel's do."""
    plan = Plan()
    program = rules.type_.program if rules.type_ is not None else EVERY_CHANNEL
    if facts.cancelled:
        return plan.end(run.step, RunState.stopped, Reason.cancelled)
    if facts.expires_at is not None and facts.expires_at <= facts.now:
        return _expire(facts, run, rules, program, plan)
    if rules.sent_before:
        plan.rulings.append(Ruling(Rule.once, Answer.no, Level.request, None, Reason.sent_before, None, facts.once_key))
        plan.planned.append(_nowhere(facts, rules, program, Status.skipped, Reason.sent_before))
        return plan.end(run.step, RunState.stopped, Reason.sent_before)
    steps = rules.type_ is not None and rules.type_.program is not EVERY_CHANNEL
    at = run
    while at.step < len(program):
        match program[at.step]:
            case Send(channels):
                waits = _send(facts, at, channels, rules, rng, plan, at.step if steps else None)
            case First() as chain:
                waits = _chain(facts, at, chain, rules, rng, plan)
            case Wait() as wait:
                waits = _wait(facts, at, wait, run.past, plan)
            case Throttle(most, window):
                waits = _throttle(facts, at, most, window, rules, plan)
                if waits is not None and not run.past and not plan.planned:
                    plan.planned.append(_nowhere(facts, rules, program, Status.skipped, Reason.capped))
            case Branch(condition, otherwise):
                met = holds(condition, rules.case)
                plan.rulings.append(Ruling(Rule.condition, Answer.go, Level.type, detail="met" if met else "not met"))
                at, waits = Run(at.step + 1 if met else otherwise, past=run.past), None
                continue
            case Jump(to):
                at, waits = Run(to, past=run.past), None
                continue
        if waits is not None:
            return waits
        at = Run(at.step + 1, past=run.past)
    if not plan.planned and not plan.digests and not plan.rulings and not run.past:
        # The type or its template lost the channels that this request allows, after it was accepted.
        plan.planned.append(_nowhere(facts, rules, program, Status.skipped, Reason.no_template))
    if plan.digests and not run.past and all(p.status is not Status.queued for p in plan.planned):
        return plan.end(len(program), RunState.digested, plan.digests[0].reason)
    return plan.end(len(program))


def decide_digest(facts: Facts, rules: Rules) -> Frequency | None:
    """Whether a notification that has just come goes into a digest: by the frequency that the user wants (as told), or
    by its type's own rule (`instant`); None: not at all. Pure.

    What would reach nobody is not gathered: it is refused at once, with its reason.
    """
    type_ = rules.type_
    if type_ is None or facts.items is not None or facts.cancelled or rules.sent_before:
        return None
    if facts.expires_at is not None and facts.expires_at <= facts.now:
        return None
    frequency = Frequency.instant
    if facts.user_id is not None and facts.priority != Priority.critical:
        frequency, _ = decide_frequency(rules.said, type_.rules)
    if frequency is Frequency.instant and type_.digest is None:
        return None
    if not any(
        _targets(facts, channel, type_.category) and not _is_out(_ask_preference(facts, channel, rules))
        for channel in _list_channels(facts, rules, (), type_.program)
    ):
        return None
    return frequency


# ------------------------------------------------------------ instructions: each says the wait, or None to go on


def _send(
    facts: Facts,
    at: Run,
    named: Sequence[Channel],
    rules: Rules,
    rng: random.Random,
    plan: Plan,
    step: int | None,
) -> Plan | None:
    channels = _list_channels(facts, rules, named, ())
    if at.pending:
        channels = [channel for channel in channels if at.pending >> channel & 1]
    if at.place == _CHOSEN and at.until is not None and facts.now < at.until:  # woken by what became of an earlier step
        return plan.wait(at, at.until, Reason.send_time)
    type_ = rules.type_
    if type_ is not None and type_.send_time is not None and not at.place and facts.priority != Priority.critical:
        ruling = decide_send_time(
            type_.send_time, rules.hours, person=_to_person(facts), default_zone=rules.settings.time_zone, now=facts.now
        )
        if ruling is not None:
            plan.rulings.append(ruling)
            if ruling.until is not None and ruling.until > facts.now:
                mask = sum(1 << channel for channel in channels)
                return plan.wait(Run(at.step, _CHOSEN, mask), ruling.until, Reason.send_time)
    held: list[tuple[Channel, _Hold]] = []
    for channel in channels:
        hold = _ask(facts, channel, rules, rng, plan, step)
        if hold is not None:
            held.append((channel, hold))
    if not held:
        return None
    first = min((hold for _, hold in held), key=lambda hold: hold.until)
    return plan.wait(Run(at.step, 1, sum(1 << channel for channel, _ in held)), first.until, first.reason)


def _chain(facts: Facts, at: Run, chain: First, rules: Rules, rng: random.Random, plan: Plan) -> Plan | None:
    allowed = set(_list_channels(facts, rules, chain.channels, ()))
    place = at.place
    if place and not at.pending:
        channel = chain.channels[place - 1]
        mine = [p for p in at.past if p.step == at.step and p.channel == channel]
        if any(_succeeded(p, rules, timed=chain.within is not None) for p in mine):
            return None
        under_way = [p for p in mine if p.status in (Status.queued, Status.sent)]
        if under_way and at.until is not None and facts.now < at.until:
            return plan.wait(at, at.until, None)
        plan.withdrawn += [p.id for p in under_way if p.status == Status.queued]
        said = "not delivered in time" if under_way else "failed"
        plan.rulings.append(Ruling(Rule.chain, Answer.no, Level.type, channel, None, None, said))
        place += 1
    elif not place:
        place = 1
    later: list[tuple[int, _Hold]] = []
    for number in range(place, len(chain.channels) + 1):
        channel = chain.channels[number - 1]
        if channel not in allowed:
            continue
        before, digests = len(plan.planned), len(plan.digests)
        hold = _ask(facts, channel, rules, rng, plan, at.step)
        if hold is not None:
            later.append((number, hold))
            if chain.within is None or hold.until <= facts.now + chain.within:
                break
        elif len(plan.digests) > digests:
            return None
        elif any(p.status is Status.queued for p in plan.planned[before:]):
            until = facts.now + (chain.within or CHAIN_PATIENCE)
            return plan.wait(Run(at.step, number), until, None)
    if later:  # everything else was in vain, so the one whose time comes first
        number, hold = min(later, key=lambda entry: entry[1].until)
        return plan.wait(Run(at.step, number, 1 << chain.channels[number - 1]), hold.until, hold.reason)
    answer = Answer.go if chain.go_on else Answer.stop
    plan.rulings.append(Ruling(Rule.chain, answer, Level.type))
    return None if chain.go_on else plan.end(at.step, RunState.stopped)


def _wait(facts: Facts, at: Run, wait: Wait, past: Sequence[Past], plan: Plan) -> Plan | None:
    met = list_engagement(past) & set(wait.unless)
    if met:
        plan.rulings.append(Ruling(Rule.engagement, Answer.stop, Level.type, detail=", ".join(sorted(met))))
        return plan.end(at.step, RunState.stopped)
    if not at.place:
        return plan.wait(Run(at.step, 1), facts.now + wait.time, None)
    if at.until is not None and facts.now < at.until:
        return plan.wait(at, at.until, None)
    return None


def _throttle(facts: Facts, at: Run, most: int, window: timedelta, rules: Rules, plan: Plan) -> Plan | None:
    assert rules.type_ is not None  # content without one has no such step
    cap = to_cap(rules.type_.key, at.step, most, window, facts.test)
    ruling = rules.ledger.ask(facts.project_id, facts.target, (cap,), facts.id, None, facts.now)
    if ruling is not None:
        plan.rulings.append(ruling)
        if ruling.answer is not Answer.go:
            return plan.end(at.step, RunState.stopped, Reason.capped)
    rules.ledger.book(facts.project_id, facts.target, (cap,), facts.id, None, facts.now)
    return None


# ------------------------------------------------------------ one channel


def _ask(
    facts: Facts, channel: Channel, rules: Rules, rng: random.Random, plan: Plan, step: int | None
) -> _Hold | None:
    """Ask every rule about a channel: adds deliveries or a digest to the plan, or says until when to wait."""
    type_ = rules.type_

    def skip(address: str, reason: Reason) -> None:
        plan.planned.append(Planned(channel, address, Status.skipped, reason, step=step))

    targets = _targets(facts, channel, type_.category if type_ is not None else "")
    if facts.user_id is not None and not facts.user_exists:
        skip("", Reason.user_deleted)
        return None
    if not targets:
        skip("", Reason.no_address)
        return None
    ruling = _ask_preference(facts, channel, rules)
    if ruling is not None:
        plan.rulings.append(ruling)
        if ruling.answer is Answer.no:
            skip(targets[0][0], Reason.opted_out)
            return None
    usable = rules.accounts.get(channel, ())
    planned = [_plan_one(facts, channel, address, out, rules, usable, rng, step) for address, out in targets]
    if all(p.status is not Status.queued for p in planned):
        plan.planned += planned
        return None
    ruling = _ask_quiet(facts, channel, targets[0][0], rules)
    if ruling is not None:
        plan.rulings.append(ruling)
        if ruling.until is not None and ruling.answer is Answer.hold:
            gathers = type_ is not None and type_.quiet == "digest" and facts.items is None
            if not gathers:
                return _Hold(ruling.until, Reason.quiet_hours)
            plan.digests.append(ToDigest(1 << channel, Reason.quiet_hours, ruling.until))
            return None
    if rules.caps:
        ruling = rules.ledger.ask(facts.project_id, facts.target, rules.caps, facts.id, channel, facts.now)
        if ruling is not None:
            plan.rulings.append(ruling)
            if ruling.answer is Answer.no or (ruling.until is None and ruling.answer is not Answer.go):
                plan.planned += [Planned(channel, p.address, Status.skipped, Reason.capped, step=step) for p in planned]
                return None
            if ruling.until is not None and ruling.answer is Answer.digest and facts.items is None:
                plan.digests.append(ToDigest(1 << channel, Reason.capped, ruling.until))
                return None
            if ruling.until is not None and ruling.answer in (Answer.hold, Answer.digest):
                return _Hold(ruling.until, Reason.capped)
        rules.ledger.book(facts.project_id, facts.target, rules.caps, facts.id, channel, facts.now)
    plan.planned += planned
    return None


def _ask_preference(facts: Facts, channel: Channel, rules: Rules) -> Ruling | None:
    type_ = rules.type_
    if type_ is None or facts.user_id is None:
        return None
    return decide_preference(
        rules.said,
        type_key=type_.key,
        type_defaults=type_.defaults,
        category=type_.rules,
        project_defaults=rules.defaults,
        channel=channel,
        now=facts.now,
    )


def _is_out(ruling: Ruling | None) -> bool:
    return ruling is not None and ruling.answer is Answer.no


def _ask_quiet(facts: Facts, channel: Channel, address: str, rules: Rules) -> Ruling | None:
    type_ = rules.type_
    category = type_.rules if type_ is not None else NO_CATEGORY_RULES
    project = rules.settings.quiet_hours
    if rules.quiet is None and category.quiet_hours is None and project is None:
        return None
    if type_ is not None and type_.quiet == "ignore":
        return None
    person = _to_person(facts)
    if channel is Channel.sms:
        person = Person(person.time_zone, person.region, address)
    return decide_quiet(
        rules.quiet,
        category.quiet_hours,
        project,
        person=person,
        default_zone=rules.settings.time_zone,
        channel=channel,
        priority=Priority(facts.priority),
        required=category.required,
        now=facts.now,
    )


def _plan_one(
    facts: Facts,
    channel: Channel,
    address: str,
    suppressed: bool,
    rules: Rules,
    accounts: Sequence[Account],
    rng: random.Random,
    step: int | None,
) -> Planned:
    type_, template = rules.type_, rules.template
    if suppressed:
        return Planned(channel, address, Status.skipped, Reason.suppressed, step=step)
    locale = None
    if type_ is not None:
        if template is None or channel not in template.channels:
            return Planned(channel, address, Status.skipped, Reason.no_template, step=step)
        locale = template.resolve_locale(channel, facts.locale or facts.user_locale)
    pinned: int | None = None
    if facts.test or simulated_outcome(channel, address) is not None:
        simulators = [a for a in accounts if a.test]
        if not simulators:
            return Planned(channel, address, Status.skipped, Reason.no_account, step=step)
        pinned = simulators[0].id
    else:
        live = [a for a in accounts if not a.test and a.weight > 0]
        serving = [a for a in live if a.serves(address)]
        if not serving:
            return Planned(channel, address, Status.skipped, Reason.no_account, step=step)
        if len(serving) < len(live):
            pinned = rng.choices(serving, [a.weight for a in serving])[0].id
    return Planned(
        channel,
        address,
        template_version_id=template.id if template else None,
        locale=locale,
        account_id=pinned,
        step=step,
    )


def _targets(facts: Facts, channel: Channel, category: str) -> list[tuple[str, bool]]:
    """The addresses to tell on this channel, each with whether it is suppressed for this category."""
    if facts.to_channel is not None:
        return (
            [(facts.to_address or "", is_suppressed(facts.to_suppressed, category))]
            if channel == facts.to_channel
            else []
        )
    if channel is Channel.in_app:
        return [(facts.user_id, False)] if facts.user_id is not None else []
    if not facts.address_channels or facts.addresses is None or facts.suppressed is None:
        return []
    found = [
        (address, is_suppressed(streams, category))
        for of, address, streams in zip(facts.address_channels, facts.addresses, facts.suppressed, strict=True)
        if of == channel
    ]
    if channel in ONE_ADDRESS and len(found) > 1:
        good = [target for target in found if not target[1]]
        return good[:1] or found[:1]
    return found


def _list_channels(facts: Facts, rules: Rules, named: Sequence[Channel], program: Program) -> list[Channel]:
    """The channels that a step may use: those it names, else those of the template; of these what the request
    allows."""
    allowed = ALL_CHANNELS if facts.channels is None else facts.channels
    if facts.to_channel is not None:
        allowed &= 1 << facts.to_channel
    named = named or list(dict.fromkeys(c for i in program if isinstance(i, Send | First) for c in i.channels))
    if named:
        channels: Collection[Channel] = named
    elif rules.template is not None:
        channels = sorted(rules.template.channels)
    elif facts.to_channel is not None:
        channels = (Channel(facts.to_channel),)
    else:
        channels = CHANNELS_OF_THIS_VERSION if facts.channels is not None else ()
    return [channel for channel in channels if allowed >> channel & 1]


def _to_person(facts: Facts) -> Person:
    phone = None
    if facts.time_zone is None and facts.address_channels and facts.addresses:
        phone = next(
            (a for c, a in zip(facts.address_channels, facts.addresses, strict=True) if c == Channel.sms), None
        )
    return Person(facts.time_zone, facts.region, phone)


def _expire(facts: Facts, run: Run, rules: Rules, program: Program, plan: Plan) -> Plan:
    plan.rulings.append(Ruling(Rule.expiry, Answer.stop, Level.request, None, Reason.expired))
    named: Sequence[Channel] = ()
    if run.step < len(program):
        instruction = program[run.step]
        named = instruction.channels if isinstance(instruction, Send | First) else ()
    late = [c for c in _list_channels(facts, rules, named, ()) if run.pending >> c & 1]
    plan.planned += [Planned(c, "", Status.expired, Reason.expired, step=run.step) for c in late]
    if not plan.planned and not run.past:
        plan.planned += [
            Planned(c, "", Status.expired, Reason.expired) for c in _list_channels(facts, rules, (), program)
        ] or [_nowhere(facts, rules, program, Status.expired, Reason.expired)]
    return plan.end(run.step, RunState.stopped, Reason.expired)


def _nowhere(facts: Facts, rules: Rules, program: Program, status: Status, reason: Reason) -> Planned:
    """The delivery that shows why nothing is sent at all."""
    allowed = ALL_CHANNELS if facts.channels is None else facts.channels
    channel = next(
        iter(_list_channels(facts, rules, (), program)), next((c for c in Channel if allowed >> c & 1), Channel.email)
    )
    return Planned(channel, "", status, reason)


def _succeeded(past: Past, rules: Rules, *, timed: bool) -> bool:
    """Whether a chain needs no further attempt. Where a step says how long to wait, `sent` is only success when nothing
    better can be known of that account."""
    if past.status == Status.delivered or past.engagement:
        return True
    if past.status != Status.sent:
        return False
    if not timed:
        return True
    account = next((a for a in rules.accounts.get(Channel(past.channel), ()) if a.id == past.account_id), None)
    return account is None or not account.tells_delivery
