"""/api/v1/topics: named sets of users. Keys may hold slashes, so `…/members` comes before `…/{key}`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from tidings.directory import topics, users
from tidings.directory.topics import MEMBERS_MAX, Membership, Topic
from tidings.directory.users import USER_ID_MAX, parse_user_id
from tidings.model.topics import EVERYTHING_BELOW, TOPIC_KEY_MAX, parse_pattern, parse_topic_key
from tidings.web.deps import Admin, Given, Paging, Reader
from tidings.web.fields import Body, Page, UserId, View

router = APIRouter(tags=["topics"])

TopicKey = Annotated[
    str,
    Path(description="The topic's key, such as `project/42/comments`."),
    AfterValidator(lambda text: parse_topic_key(unquote(text))),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": TOPIC_KEY_MAX, "examples": ["project/42/comments"]}),
]


def _check_pattern(text: str) -> str:
    parse_pattern(text)
    return text


class TopicBody(Body):
    """A topic as a caller gives it."""

    name: Annotated[str, Field(max_length=200)] = ""
    """For people to read."""


class TopicView(View):
    """A topic."""

    key: str
    name: str
    created_at: datetime
    updated_at: datetime


def _check_user_id(value: Any) -> Any:
    return parse_user_id(value) if isinstance(value, str) else value


class MembersBody(Body):
    """Users to add or to remove."""

    users: Annotated[
        list[
            Annotated[
                str,
                BeforeValidator(_check_user_id),
                WithJsonSchema({"type": "string", "minLength": 1, "maxLength": USER_ID_MAX}),
            ]
        ],
        Field(min_length=1, max_length=MEMBERS_MAX, examples=[["u-42", "u-43"]]),
    ]


class AddedView(View):
    """What became of users who were to be added."""

    added: int
    already: int
    """They were in the topic before."""
    unknown: list[str]
    """No users of this project. They were not added; the others were."""


class RemovedView(View):
    """What became of users who were to be removed."""

    removed: int


class MemberView(View):
    """A user in a topic."""

    topic: str
    user: str
    since: datetime


@router.get("/topics", response_model=Page[TopicView])
async def list_topics(
    deps: Given,
    caller: Reader,
    page: Paging,
    pattern: Annotated[
        str,
        AfterValidator(_check_pattern),
        Query(max_length=TOPIC_KEY_MAX + 2, description="A key, `project/42/#` for it and all below, or `#` for all."),
    ] = EVERYTHING_BELOW,
) -> Any:
    """Topics, by key."""
    listing = f"topics:{pattern}"
    after = page.after(str, listing)
    found = await topics.list_topics(deps.database, caller.project_id, pattern=pattern, after=after, limit=page.fetch)
    return page.cut(found, lambda topic: topic.key, listing)


@router.get("/topics/{key:path}/members", response_model=Page[MemberView])
async def list_members(deps: Given, caller: Reader, key: TopicKey, page: Paging) -> Any:
    """Who is in a topic, by user id."""
    await topics.load_topic(deps.database, caller.project_id, key)
    listing = f"members:{key}"
    after = page.after(str, listing)
    found = await topics.list_members(deps.database, caller.project_id, key, after=after, limit=page.fetch)
    return page.cut(found, lambda member: member.user, listing)


@router.put("/topics/{key:path}/members", response_model=AddedView)
async def add_members(deps: Given, caller: Admin, key: TopicKey, body: MembersBody) -> topics.Subscribed:
    """Adds up to 1,000 users to a topic, which is made if there is none. Who is in it already stays."""
    return await deps.database.transaction(lambda conn: topics.apply_members(conn, caller.actor, key, body.users))


@router.delete("/topics/{key:path}/members")
async def remove_members(deps: Given, caller: Admin, key: TopicKey, body: MembersBody) -> RemovedView:
    """Removes up to 1,000 users from a topic. The topic stays."""
    removed = await deps.database.transaction(lambda conn: topics.delete_members(conn, caller.actor, key, body.users))
    return RemovedView(removed=removed)


@router.get("/topics/{key:path}", response_model=TopicView)
async def get_topic(deps: Given, caller: Reader, key: TopicKey) -> Topic:
    """One topic."""
    return await topics.load_topic(deps.database, caller.project_id, key)


@router.put(
    "/topics/{key:path}", response_model=TopicView, responses={201: {"model": TopicView, "description": "Made"}}
)
async def put_topic(deps: Given, caller: Admin, key: TopicKey, body: TopicBody, response: Response) -> Topic:
    """Makes a topic (201) or names it anew (200)."""
    topic, made = await deps.database.transaction(lambda conn: topics.put_topic(conn, caller.actor, key, body.name))
    response.status_code = 201 if made else 200
    return topic


@router.delete("/topics/{key:path}", status_code=204)
async def delete_topic(deps: Given, caller: Admin, key: TopicKey) -> None:
    """Removes a topic, and whoever is in it from it."""
    await deps.database.transaction(lambda conn: topics.delete_topic(conn, caller.actor, key))


@router.get("/users/{user_id}/topics", response_model=Page[MemberView])
async def list_topics_of(deps: Given, caller: Reader, user_id: UserId, page: Paging) -> Any:
    """The topics that a user is in, by key."""
    await users.load_user(deps.database, caller.project_id, user_id)
    listing = f"topics-of:{user_id}"
    after = page.after(str, listing)
    found = await topics.list_topics_of(deps.database, caller.project_id, user_id, after=after, limit=page.fetch)

    def place(membership: Membership) -> str:
        return membership.topic

    return page.cut(found, place, listing)
