"""What a user wants to hear, at the door of their own inbox; with the bodies and views that other routes share."""

from __future__ import annotations

import ipaddress
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field

from tidings.db.pool import Connection
from tidings.directory.audit import Actor
from tidings.directory.consent import USER_AGENT_MAX, WORDING_MAX, Origin
from tidings.directory.preferences import Choices, Merged, apply_choices, load_choices, load_merged
from tidings.web.deps import Deps, Given
from tidings.web.fields import Body, Key, Moment, View
from tidings.web.inbox.door import AsUser
from tidings.web.rules import ChannelName, QuietRule

router = APIRouter(prefix="/inbox", tags=["inbox"])

FrequencyName: TypeAlias = Literal["instant", "hourly", "daily", "weekly"]
Wording = Annotated[str, Field(min_length=1, max_length=WORDING_MAX)]


# ---------------------------------------------------------------- bodies


class CategoryChoiceBody(Body):
    """What a user says of a category; null, or left out: nothing."""

    enabled: bool | None = None
    """On every channel."""
    channels: dict[ChannelName, bool | None] = Field(default={}, examples=[{"sms": False}])
    frequency: FrequencyName | None = None


class TypeChoiceBody(Body):
    """What a user says of a single type; null, or left out: nothing."""

    enabled: bool | None = None
    channels: dict[ChannelName, bool | None] = Field(default={})


class PreferencesBody(Body):
    """What a user says. In a PATCH what is left out stays, and null takes back what was said."""

    muted: bool | None = None
    """Nothing that is not required."""
    muted_until: Moment | None = None
    """With `muted`: only until then."""
    channels: dict[ChannelName, bool | None] = Field(default={}, examples=[{"sms": False}])
    categories: dict[Key, CategoryChoiceBody | None] = Field(
        default={}, examples=[{"general": {"frequency": "weekly"}}]
    )
    types: dict[Key, TypeChoiceBody | None] = Field(default={})
    quiet_hours: QuietRule | None = None
    """When not to be disturbed; they take the place of those of category and project."""
    time_zone: Annotated[str, Field(max_length=64, examples=["Europe/Vienna"])] | None = None
    """The user's own. Left out, it stays, in a PUT too."""

    def to_given(self) -> dict[str, Any]:
        """What was given, as the directory takes it."""
        own = {"quiet_hours", *(set(type(self).model_fields) - set(PreferencesBody.model_fields))}
        given = self.model_dump(exclude_unset=True, exclude=own)
        if "quiet_hours" in self.model_fields_set:
            given["quiet_hours"] = None if self.quiet_hours is None else self.quiet_hours.to_raw()
        return given


class OwnPreferencesBody(PreferencesBody):
    """What a user says of their own preferences: what is left out stays, and null takes back what was said."""

    wording: Wording | None = None
    """What they were shown, for the record of consents."""


# ---------------------------------------------------------------- views


class CategoryChoiceView(View):
    """What a user said of a category."""

    enabled: bool | None
    channels: dict[str, bool]
    frequency: str | None


class TypeChoiceView(View):
    """What a user said of a type."""

    enabled: bool | None
    channels: dict[str, bool]


class SaidView(View):
    """What a user said, and nothing else: a PUT takes it as it is."""

    muted: bool
    muted_until: datetime | None
    channels: dict[str, bool]
    categories: dict[str, CategoryChoiceView]
    types: dict[str, TypeChoiceView]
    quiet_hours: QuietRule | None
    time_zone: str | None


class ChannelAnswerView(View):
    """Whether the user hears of something on a channel, and who decided."""

    on: bool
    level: str
    """`user_type`, `user_category_channel`, `user_category`, `user_channel`, `user` (muted), `type`, `category`,
    `project`, or `default`: nobody said otherwise."""
    detail: str
    """In words."""
    required: bool
    locked: bool
    """The user cannot change it."""


class FrequencyAnswerView(View):
    """How often the user hears of a category, and who decided."""

    value: str
    level: str
    locked: bool


class CategoryAnswerView(View):
    """What holds for the user in a category."""

    key: str
    name: str
    description: str
    required: bool
    channels: dict[str, ChannelAnswerView]
    frequency: FrequencyAnswerView


class TypeAnswerView(View):
    """What holds for the user of a type."""

    key: str
    category: str
    required: bool
    channels: dict[str, ChannelAnswerView]


class PreferencesView(View):
    """What a user said, and what follows from it together with the defaults."""

    said: SaidView
    categories: list[CategoryAnswerView]
    """The first 500, by key."""
    types: list[TypeAnswerView]
    """Those that the user said something of, or that have defaults of their own; the first 500, by key."""

    @classmethod
    def of(cls, choices: Choices, merged: Merged) -> PreferencesView:
        """Both together."""
        said = choices.preferences
        return cls.model_validate(
            {
                "said": {
                    **{name: getattr(said, name) for name in msgspec.structs.asdict(said)},
                    "quiet_hours": choices.quiet_hours,
                    "time_zone": choices.time_zone,
                },
                "categories": merged.categories,
                "types": merged.types,
            }
        )


# ---------------------------------------------------------------- routes


async def show(deps: Deps, project_id: int, user_id: str) -> PreferencesView:
    """A user's preferences, for themselves and for the application.

    Raises:
        NotFound: this project has no such user.
    """
    choices = await load_choices(deps.database, project_id, user_id)
    return PreferencesView.of(
        choices, await load_merged(deps.database, project_id, choices.preferences, deps.clock.now())
    )


async def change(
    deps: Deps, actor: Actor, user_id: str, body: PreferencesBody, origin: Origin, *, merge: bool
) -> PreferencesView:
    """Writes a user's preferences; see `tidings.directory.preferences.apply_choices`."""
    given, now = body.to_given(), deps.clock.now()

    async def work(conn: Connection) -> PreferencesView:
        choices = await apply_choices(conn, actor, user_id, given, origin, merge=merge)
        return PreferencesView.of(choices, await load_merged(conn, actor.project_id, choices.preferences, now))

    return await deps.database.transaction(work)


@router.get("/preferences", response_model=PreferencesView)
async def get_own_preferences(deps: Given, user: AsUser) -> PreferencesView:
    """What the user said, and what holds for them in every category and on every channel."""
    return await show(deps, *user.owner)


@router.patch("/preferences", response_model=PreferencesView)
async def patch_own_preferences(
    deps: Given, user: AsUser, body: OwnPreferencesBody, request: Request
) -> PreferencesView:
    """Changes what the user said: what is left out stays, null takes it back. What is required cannot be switched
    off (422)."""
    agent = request.headers.get("user-agent")
    origin = Origin("user", "inbox", body.wording, public_ip(request), agent and agent[:USER_AGENT_MAX])
    return await change(deps, Actor(user.project_id, "user"), user.user_id, body, origin, merge=True)


def public_ip(request: Request) -> str | None:
    """The address that the request came from, unless it can only be that of a proxy of ours."""
    host = request.client.host if request.client is not None else ""
    try:
        return host if ipaddress.ip_address(host).is_global else None
    except ValueError:
        return None
