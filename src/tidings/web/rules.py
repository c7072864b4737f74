"""What rules look like in bodies and answers: defaults by channel, quiet hours, limits, digests, the hour to send at.

Types, categories, projects and users have them in the same form. Only the form is said here; what the values may be is
said, and checked, in the directory.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, Strict, WithJsonSchema

from tidings.directory.steps import STEPS_MAX, UNLESS
from tidings.model.words import CHANNELS_OF_THIS_VERSION

ChannelName: TypeAlias = Literal["email", "sms", "push", "in_app", "webhook", "chat"]
Bool = Annotated[bool, Strict()]

_DURATION: Final = {"type": "string", "pattern": r"^\d{1,9}(ms|s|m|h|d|w)$"}
DurationText = Annotated[str, WithJsonSchema(_DURATION)]
TimeOfDay = Annotated[str, WithJsonSchema({"type": "string", "pattern": r"^\d\d:\d\d$"})]

Defaults = dict[ChannelName, Bool]
"""By channel."""


class Rule(BaseModel):
    """A rule, as it is given and as it is shown."""

    # Both, so not strict: what the directory keeps in tuples and enums is shown as lists and words.
    model_config = ConfigDict(extra="forbid", frozen=True, from_attributes=True, use_attribute_docstrings=True)

    def to_raw(self) -> dict[str, Any]:
        """As the directory parses it."""
        return self.model_dump(exclude_none=True)


class QuietRange(Rule):
    """From one time of day to another, over midnight where the end is before the start. The same twice is never."""

    start: TimeOfDay = Field(examples=["22:00"])
    end: TimeOfDay = Field(examples=["07:00"])
    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = []
    """On which it starts; none: every day."""


class QuietRule(Rule):
    """When nobody is to be disturbed."""

    ranges: list[QuietRange] = []
    preset: str | None = None
    """A jurisdiction's hours, by name."""
    channels: list[ChannelName] = []
    """None given: every channel but `in_app` and `webhook`."""
    time_zone: str | None = None
    """None: the user's."""
    exempt: list[Literal["critical", "required"]] = ["critical"]
    """What goes through: messages of priority `critical`, categories that are `required`."""


class LimitRule(Rule):
    """At most `max` notifications for a user in any `window`."""

    max: Annotated[int, Strict()]
    window: DurationText = Field(examples=["1d"])
    per: Literal["user"] = "user"
    channel: ChannelName | None = None
    """Only messages on this channel count and are stopped; none: a notification counts once, whatever its channels."""
    category: str | None = None
    """Of a project's limit: only this category's."""
    then: Literal["drop", "defer", "digest"] = "drop"
    """What becomes of those beyond: dropped, put off until there is room, put together in a digest."""
    exempt: list[Literal["critical", "required"]] = ["critical", "required"]
    """What neither counts nor is stopped."""


class DigestRule(Rule):
    """How a type is digested: with a `window` or by `cron`."""

    window: DurationText | None = Field(default=None, examples=["15m"])
    """From the first item on; with `sliding` from the newest one on."""
    sliding: Bool = False
    at_most: DurationText | None = None
    """Of a sliding window: closed so long after its first item at the latest."""
    cron: str | None = None
    """Five fields, in the user's time zone."""
    key: str | None = None
    """A dotted name in `data`; items with different values, and those without one, form digests of their own."""
    first: Literal["gather", "now"] = "gather"
    """`now`: the first item goes at once, what follows in the window is gathered."""
    max: Annotated[int, Strict()] = 50
    """At most so many items reach the template, the newest ones."""


class SendTimeRule(Rule):
    """Send at the hour at which the user was active before."""

    within: DurationText = "24h"
    """Never later than this."""
    fallback: TimeOfDay | None = None
    """A time of day in the user's zone, for those of whom little is known; none: at once."""
    at_least: Annotated[int, Strict()] = 5
    """So many engagements make a habit."""


_CHANNELS: Final = {
    "type": "array",
    "minItems": 1,
    "uniqueItems": True,
    "items": {"enum": [channel.name for channel in CHANNELS_OF_THIS_VERSION]},
}
_INNER_STEPS: Final = {"type": ["array", "null"], "items": {"type": "object"}, "maxItems": STEPS_MAX}


def _to_step(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required.split(),
        "additionalProperties": False,
        "properties": properties,
    }


STEPS_SCHEMA: Final = WithJsonSchema(
    {
        "type": "array",
        "maxItems": STEPS_MAX,
        "items": {
            "anyOf": [
                _to_step("send", send=_CHANNELS),
                _to_step(
                    "first",
                    first=_CHANNELS,
                    within={"anyOf": [_DURATION, {"type": "null"}]},
                    otherwise={"enum": ["stop", "continue"]},
                ),
                _to_step(
                    "wait unless",
                    wait=_DURATION,
                    unless={"anyOf": [{"enum": list(UNLESS)}, {"type": "array", "items": {"enum": list(UNLESS)}}]},
                ),
                _to_step("delay", delay=_DURATION),
                _to_step("if", **{"if": {"type": "object"}, "then": _INNER_STEPS, "else": _INNER_STEPS}),
                _to_step(
                    "throttle", throttle=_to_step("window", max={"type": "integer", "minimum": 1}, window=_DURATION)
                ),
            ]
        },
    }
)
"""See `tidings.directory.steps.parse_steps`."""
