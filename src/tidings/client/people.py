"""What can be asked about users: themselves, what they want to hear, and what they are in. As in `requests`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

from tidings.client.calls import Call, ChannelName, Listing, ask, delete, encode, get, given, put, to_path, to_query
from tidings.client.records import (
    Added,
    Consent,
    Erased,
    InboxItem,
    Membership,
    PreferenceLink,
    Preferences,
    Removed,
    Segment,
    SegmentCount,
    SegmentMember,
    Topic,
    User,
    UserToken,
)


class PreferencesRequest(TypedDict, total=False):
    """What a user says. In a patch what is left out stays, and None takes back what was said."""

    muted: bool | None
    muted_until: datetime | str | None
    channels: Mapping[ChannelName, bool | None]
    categories: Mapping[str, Mapping[str, Any] | None]
    """By category: `enabled`, `channels`, `frequency`."""
    types: Mapping[str, Mapping[str, Any] | None]
    quiet_hours: Mapping[str, Any] | None
    time_zone: str | None


class ConsentRequest(TypedDict, total=False):
    """How you came to know what the user wants, for the record."""

    wording: str
    ip: str
    user_agent: str


# ---------------------------------------------------------------- users


def put_user(
    id: str,
    *,
    locale: str | None = None,
    time_zone: str | None = None,
    region: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    addresses: Mapping[str, str | Sequence[str]] | None = None,
) -> Call[User]:
    """Create a user or replace what is known about them. Addresses that are not given stay as they are.

    Args:
        region: ISO 3166, such as `US-FL`: where they are, for the law that holds there.
    """
    body = given(locale=locale, time_zone=time_zone, region=region, attributes=attributes, addresses=addresses)
    return put(to_path("users", id), User, body)


def get_user(id: str) -> Call[User]:
    """One user."""
    return get(to_path("users", id), User)


def list_users(*, limit: int | None = None) -> Listing[User]:
    """All users."""
    return Listing(path=to_path("users"), item=User, query=to_query(limit=limit))


def delete_user(id: str) -> Call[None]:
    """Forget a user and their addresses."""
    return delete(to_path("users", id))


def put_addresses(id: str, addresses: Mapping[str, str | Sequence[str]]) -> Call[User]:
    """Replace the whole set of a user's addresses: channel to one value or several."""
    return put(to_path("users", id, "addresses"), User, addresses)


def list_inbox(
    id: str,
    *,
    unread: bool = False,
    archived: bool = False,
    category: str | None = None,
    limit: int | None = None,
) -> Listing[InboxItem]:
    """A user's in-app items, newest first: all that are not archived, only the unread ones, or the archived ones."""
    query = to_query(
        unread="true" if unread else None, archived="true" if archived else None, category=category, limit=limit
    )
    return Listing(path=to_path("users", id, "inbox"), item=InboxItem, query=query)


def create_token(id: str, *, expires_after: str = "1h") -> Call[UserToken]:
    """A token with which the user's browser or app reads and marks their own inbox, for at most `24h`."""
    return ask(to_path("users", id, "tokens"), UserToken, {"expires_after": expires_after})


def export_user(id: str) -> Call[dict[str, Any]]:
    """Everything that is known of a user, as one document. It may be large."""
    return get(to_path("users", id, "export"), dict[str, Any])


def erase_user(id: str, *, suppressions: bool = False) -> Call[Erased]:
    """Erase a user from every table; of what was sent there remains that it was. Repeating it is safe.

    Args:
        suppressions: those of their addresses as well; then the next import makes them reachable again.
    """
    return ask(to_path("users", id, "erase"), Erased, {"suppressions": suppressions})


# ---------------------------------------------------------------- what they want to hear


def get_preferences(id: str) -> Call[Preferences]:
    """What a user said, and what holds for them in every category, with who decided it."""
    return get(to_path("users", id, "preferences"), Preferences)


def put_preferences(
    id: str, said: PreferencesRequest | Mapping[str, Any], *, consent: ConsentRequest | None = None
) -> Call[Preferences]:
    """Replace what a user said: what is left out is said no more."""
    return put(to_path("users", id, "preferences"), Preferences, {**said, **given(consent=consent)})


def patch_preferences(
    id: str, changes: PreferencesRequest | Mapping[str, Any], *, consent: ConsentRequest | None = None
) -> Call[Preferences]:
    """Change what a user said: what is left out stays, None takes it back."""
    body = encode({**changes, **given(consent=consent)})
    return Call(method="PATCH", path=to_path("users", id, "preferences"), answer=Preferences, body=body)


def list_consents(id: str, *, limit: int | None = None) -> Listing[Consent]:
    """What a user decided, when, from where, and what they were shown; newest first."""
    return Listing(path=to_path("users", id, "consents"), item=Consent, query=to_query(limit=limit))


def create_preference_link(id: str, *, expires_after: str | None = None) -> Call[PreferenceLink]:
    """A link to the page on which the user chooses. Whoever has it can choose for them, so the key needs the scope
    `manage`.

    Args:
        expires_after: a duration such as `30d`; without, it does not end.
    """
    return ask(to_path("users", id, "preference_link"), PreferenceLink, given(expires_after=expires_after))


# ---------------------------------------------------------------- topics


def _to_topic(key: str, *more: str) -> str:
    return to_path("topics", *key.split("/"), *more)


def put_topic(key: str, *, name: str | None = None) -> Call[Topic]:
    """Create a topic or name it anew; its key is of parts joined by `/`, such as `project/42/comments`."""
    return put(_to_topic(key), Topic, given(name=name))


def get_topic(key: str) -> Call[Topic]:
    """One topic."""
    return get(_to_topic(key), Topic)


def list_topics(*, pattern: str | None = None, limit: int | None = None) -> Listing[Topic]:
    """All topics, or those of a pattern such as `project/42/#`."""
    return Listing(path=to_path("topics"), item=Topic, query=to_query(pattern=pattern, limit=limit))


def delete_topic(key: str) -> Call[None]:
    """Remove a topic with its memberships."""
    return delete(_to_topic(key))


def list_topic_members(key: str, *, limit: int | None = None) -> Listing[Membership]:
    """Who is in a topic."""
    return Listing(path=_to_topic(key, "members"), item=Membership, query=to_query(limit=limit))


def add_topic_members(key: str, users: Sequence[str]) -> Call[Added]:
    """Subscribe up to 1,000 users; the topic is made if there is none."""
    return put(_to_topic(key, "members"), Added, {"users": users})


def remove_topic_members(key: str, users: Sequence[str]) -> Call[Removed]:
    """Unsubscribe up to 1,000 users; the topic stays."""
    return Call(method="DELETE", path=_to_topic(key, "members"), answer=Removed, body=encode({"users": users}))


def list_topics_of(id: str, *, limit: int | None = None) -> Listing[Membership]:
    """The topics that a user is in."""
    return Listing(path=to_path("users", id, "topics"), item=Membership, query=to_query(limit=limit))


# ---------------------------------------------------------------- segments


def put_segment(
    key: str, condition: Mapping[str, Any], *, name: str | None = None, tracked: bool | None = None
) -> Call[Segment]:
    """Create or change a segment: whoever meets the condition is in it.

    Args:
        condition: for example `{"all": [{"user": "plan", "is": "pro"}, {"topic": "news"}]}`.
        tracked: it is counted in the background, and analytics tell its members apart.
    """
    return put(to_path("segments", key), Segment, given(condition=condition, name=name, tracked=tracked))


def get_segment(key: str) -> Call[Segment]:
    """One segment."""
    return get(to_path("segments", key), Segment)


def list_segments(*, limit: int | None = None) -> Listing[Segment]:
    """All segments, by key."""
    return Listing(path=to_path("segments"), item=Segment, query=to_query(limit=limit))


def delete_segment(key: str) -> Call[None]:
    """Remove a segment; nothing becomes of its members."""
    return delete(to_path("segments", key))


def list_segment_members(key: str, *, limit: int | None = None) -> Listing[SegmentMember]:
    """Who meets the condition now."""
    return Listing(path=to_path("segments", key, "members"), item=SegmentMember, query=to_query(limit=limit))


def preview_segment(condition: Mapping[str, Any]) -> Call[SegmentCount]:
    """How many users meet a condition now, and some of them. Nothing is stored."""
    return ask(to_path("segments", "preview"), SegmentCount, {"condition": condition})
