"""Steps: what a type does, one after the other, and the program that planning runs of it.

A notification pins its type's version, so a program never changes under a run; `run.step` is an index into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

from tidings.directory.limits import LIMIT_MAX
from tidings.durations import parse_duration, to_duration
from tidings.errors import FieldError, escape
from tidings.model.conditions import parse_condition
from tidings.model.words import Channel


class Send(NamedTuple):
    """On all of these channels; none: on every channel that the template covers."""

    channels: tuple[Channel, ...]


class First(NamedTuple):
    """On one after the other, until one succeeds."""

    channels: tuple[Channel, ...]
    within: timedelta | None
    """How long each may take to succeed; None: until it failed for good, and `sent` is success."""
    go_on: bool
    """What follows also runs when none succeeded."""


class Wait(NamedTuple):
    """Let time pass, or stop when the user was faster."""

    time: timedelta
    unless: tuple[str, ...]
    """Of UNLESS; none: just let time pass (`delay`)."""


class Branch(NamedTuple):
    """Go on at `otherwise` unless the condition holds."""

    condition: Mapping[str, Any]
    """tidings.model.conditions, in its normal form."""
    otherwise: int


class Jump(NamedTuple):
    """Go on at another place."""

    to: int


class Throttle(NamedTuple):
    """Stop when this target passed this step `max` times in `window`."""

    max: int
    window: timedelta


Instruction = Send | First | Wait | Branch | Jump | Throttle
Program = tuple[Instruction, ...]

EVERY_CHANNEL: Final[Program] = (Send(()),)
"""The program of a type without steps."""

UNLESS: Final = ("delivered", "seen", "read", "opened", "clicked", "acknowledged")
"""What a wait may be ended by; `acknowledged` is read or clicked."""

STEPS_MAX: Final = 20
"""Steps of a type, those inside of an `if` included."""
DEPTH_MAX: Final = 3
"""`if` inside of `if`."""


def parse_steps(raw: object, at: str, errors: list[FieldError], *, longest: timedelta) -> list[dict[str, Any]]:
    """Steps as a caller gives them, in their normal form.

    - `{"send": ["push", "in_app"]}`: on all of them.
    - `{"first": ["sms", "email"], "within": "5m", "otherwise": "stop"}`: one after the other until one succeeds;
      whether what follows runs when none did says `otherwise`: `stop` (which is the default) or `continue`.
    - `{"wait": "10m", "unless": "seen"}`: go on after ten minutes, stop if it was seen meanwhile.
    - `{"delay": "10m"}`: go on after ten minutes.
    - `{"if": condition, "then": [steps], "else": [steps]}`: see `tidings.model.conditions`.
    - `{"throttle": {"max": 1, "window": "1h"}}`: stop when this was passed that often.

    Args:
        longest: a wait or delay lasts at most so long.
    """
    steps = _parse_list(raw, at, errors, longest, 0)
    if _count(steps) > STEPS_MAX:
        errors.append(FieldError(f"has more than {STEPS_MAX} steps", at))
    if not errors and _sum_waits(steps) > longest:
        said = f"its waits add up to more than {to_duration(longest)}, a day less than notifications are kept"
        errors.append(FieldError(said, at))
    return steps


def _count(steps: list[dict[str, Any]]) -> int:
    return sum(1 + _count(step.get("then", [])) + _count(step.get("else", [])) for step in steps)


def _sum_waits(steps: list[dict[str, Any]]) -> timedelta:
    """The longest that a run may wait for its steps, quiet hours and limits aside."""
    total = timedelta(0)
    for step in steps:
        for name, times in (("wait", 1), ("delay", 1), ("within", len(step.get("first", ())))):
            if name in step:
                total += parse_duration(step[name]) * times
        total += max(_sum_waits(step.get("then", [])), _sum_waits(step.get("else", [])))
    return total


def _parse_list(raw: object, at: str, errors: list[FieldError], longest: timedelta, depth: int) -> list[dict[str, Any]]:
    if not isinstance(raw, list):
        errors.append(FieldError("must be a list of steps", at))
        return []
    if len(raw) > STEPS_MAX:
        errors.append(FieldError(f"has more than {STEPS_MAX} steps", at))
        return []
    steps = [_parse_step(step, f"{at}/{i}", errors, longest, depth) for i, step in enumerate(raw)]
    return [step for step in steps if step is not None]


_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "send": frozenset({"send"}),
    "first": frozenset({"first", "within", "otherwise"}),
    "wait": frozenset({"wait", "unless"}),
    "delay": frozenset({"delay"}),
    "if": frozenset({"if", "then", "else"}),
    "throttle": frozenset({"throttle"}),
}
_SUBJECTS: Final = frozenset({"data", "user", "engaged"})


def _parse_step(
    raw: object, at: str, errors: list[FieldError], longest: timedelta, depth: int
) -> dict[str, Any] | None:
    if not isinstance(raw, Mapping):
        errors.append(FieldError('must be an object such as {"send": ["email"]}', at))
        return None
    kinds = [kind for kind in _FIELDS if kind in raw]
    if len(kinds) != 1:
        errors.append(FieldError(f"must have exactly one of {', '.join(f'`{k}`' for k in _FIELDS)}", at))
        return None
    [kind] = kinds
    before = len(errors)
    errors += [
        FieldError(f"is not known in a step `{kind}`", f"{at}/{escape(str(name))}")
        for name in raw
        if name not in _FIELDS[kind]
    ]
    step: dict[str, Any]
    match kind:
        case "send" | "first":
            step = {kind: _parse_channels(raw[kind], f"{at}/{kind}", errors)}
            if raw.get("within") is not None:
                step["within"] = _parse_time(raw["within"], f"{at}/within", errors, longest)
            if kind == "first":
                step["otherwise"] = raw.get("otherwise", "stop")
                if step["otherwise"] not in ("stop", "continue"):
                    errors.append(FieldError("must be `stop` or `continue`", f"{at}/otherwise"))
        case "wait":
            step = {"wait": _parse_time(raw["wait"], f"{at}/wait", errors, longest)}
            unless = raw.get("unless")
            if unless is None:
                errors.append(
                    FieldError("says what ends the wait, such as `seen`; without, write `delay`", f"{at}/unless")
                )
            named = unless if isinstance(unless, list) else [unless]
            wrong = [name for name in named if name is not None and name not in UNLESS]
            errors += [FieldError(f"must be one of {', '.join(UNLESS)}", f"{at}/unless") for _ in wrong]
            step["unless"] = named
        case "delay":
            step = {"delay": _parse_time(raw["delay"], f"{at}/delay", errors, longest)}
        case "if":
            condition = parse_condition(raw["if"], f"{at}/if", errors, subjects=_SUBJECTS)
            if depth == DEPTH_MAX:
                errors.append(FieldError(f"`if` stands in `if` more than {DEPTH_MAX} deep", at))
                return None
            step = {"if": condition}
            for name in ("then", "else"):
                if raw.get(name) is not None:
                    step[name] = _parse_list(raw[name], f"{at}/{name}", errors, longest, depth + 1)
            if not step.get("then") and not step.get("else"):
                errors.append(FieldError("needs steps in `then` or `else`", at))
        case _:
            step = {"throttle": _parse_throttle(raw["throttle"], f"{at}/throttle", errors, longest)}
    return step if len(errors) == before else None


def _parse_channels(raw: object, at: str, errors: list[FieldError]) -> list[str]:
    if not isinstance(raw, list) or not raw:
        errors.append(FieldError("must be a list of one or more channels", at))
        return []
    for i, channel in enumerate(raw):
        if not isinstance(channel, str) or channel not in Channel.__members__:
            errors.append(FieldError(f"must be one of {', '.join(Channel.__members__)}", f"{at}/{i}"))
        elif channel in raw[:i]:
            errors.append(FieldError(f"`{channel}` is named twice", f"{at}/{i}"))
    return raw


def _parse_time(raw: object, at: str, errors: list[FieldError], longest: timedelta) -> str:
    try:
        span = parse_duration(raw if isinstance(raw, str) else "")
    except ValueError:
        errors.append(FieldError("must be a duration such as 90s, 10m, 2h or 2d", at))
        return ""
    if not timedelta(seconds=1) <= span <= longest:
        errors.append(
            FieldError(f"must be from 1s to {to_duration(longest)}, a day less than notifications are kept", at)
        )
    return to_duration(span)


def _parse_throttle(raw: object, at: str, errors: list[FieldError], longest: timedelta) -> dict[str, Any]:
    if not isinstance(raw, Mapping) or set(raw) - {"max", "window"} or "window" not in raw:
        errors.append(FieldError('must be an object such as {"max": 1, "window": "1h"}', at))
        return {}
    most = raw.get("max", 1)
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= LIMIT_MAX:
        errors.append(FieldError(f"must be from 1 to {LIMIT_MAX:,}", f"{at}/max"))
    return {"max": most, "window": _parse_time(raw["window"], f"{at}/window", errors, longest)}


def compile_steps(steps: Sequence[Mapping[str, Any]]) -> Program:
    """The program of steps in their normal form.

    Raises:
        LookupError: they are of a newer Tidings.
    """
    program: list[Instruction] = []
    _compile(steps, program)
    return tuple(program) or EVERY_CHANNEL


def _compile(steps: Sequence[Mapping[str, Any]], program: list[Instruction]) -> None:
    for step in steps:
        match step:
            case {"send": channels}:
                program.append(Send(tuple(Channel[name] for name in channels)))
            case {"first": channels}:
                within = step.get("within")
                program.append(
                    First(
                        tuple(Channel[name] for name in channels),
                        parse_duration(within) if within else None,
                        step["otherwise"] == "continue",
                    )
                )
            case {"wait": time}:
                program.append(Wait(parse_duration(time), tuple(step["unless"])))
            case {"delay": time}:
                program.append(Wait(parse_duration(time), ()))
            case {"throttle": {"max": most, "window": window}}:
                program.append(Throttle(most, parse_duration(window)))
            case {"if": condition}:
                at = len(program)
                program.append(Jump(0))  # its place; what it leads to is not known yet
                _compile(step.get("then", ()), program)
                if step.get("else"):
                    end = len(program)
                    program.append(Jump(0))
                    program[at] = Branch(condition, len(program))
                    _compile(step["else"], program)
                    program[end] = Jump(len(program))
                else:
                    program[at] = Branch(condition, len(program))
            case _:
                raise LookupError(f"the step {step!r} is not known")


def list_channels(program: Program) -> frozenset[Channel]:
    """The channels that a program names; none: every channel that the template covers."""
    return frozenset(c for i in program if isinstance(i, Send | First) for c in i.channels)
