"""User tokens: with one, a browser or an app reads and marks its own user's inbox, says what they want to hear, and
can do nothing else.

A token reads `tdu_<project>.<claims>.<signature>`: the project's key to look at, the claims as MessagePack and an
HMAC-SHA256 of everything before it, both in base64url. It is signed with a key derived from the master key for this
purpose and project alone; with several master keys the first signs and all verify, so rotating one ends no session.

Nothing is stored. A token ends when its time is over (a day at most), or when its user is deleted: it names the moment
at which the user was made, so it does not come to life again when the same id is given to somebody else.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import msgspec

from tidings.clock import Clock
from tidings.db.pool import Database
from tidings.db.sql import load_queries
from tidings.directory.credentials import Place, Vault
from tidings.errors import NotFound, Unauthenticated

_queries: Final = load_queries(__package__, "tokens.sql")
_LOAD_TOKEN_USER: Final = _queries.load_token_user
_LIST_ORIGINS: Final = _queries.list_origins

PREFIX: Final = "tdu_"
TOKEN_LIFE_MAX: Final = timedelta(hours=24)
FRESH_FOR: Final = 4.0
"""Seconds for which a user is believed to be there without looking again."""
_KNOWN_MAX: Final = 10_000
_TOKEN_MAX: Final = 3_000
"""Characters; a cookie holds 4,096 with its name."""

_FORM: Final = re.compile(r"tdu_([a-z0-9][a-z0-9-]{0,39})\.([A-Za-z0-9_-]{1,2000})\.([A-Za-z0-9_-]{43})")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PURPOSE: Final = "inbox"
_NOT_VALID: Final = "This user token is not valid."
NONE_GIVEN: Final = (
    "A user token is needed: send it as `Authorization: Bearer tdu_…`, or from a page in the cookie `tidings_inbox`."
)


class Token(msgspec.Struct, frozen=True):
    """A token that was issued."""

    token: str
    expires_at: datetime


class UserCaller(msgspec.Struct, frozen=True):
    """Whom a request comes from: a user of one project."""

    project_id: int
    project_key: str
    user_id: str
    born: datetime
    """When the user was made."""
    expires_at: datetime
    """When the token ends."""
    origins: frozenset[str]
    """From which origins pages of the project may call."""

    @property
    def owner(self) -> tuple[int, str]:
        """Whose inbox."""
        return self.project_id, self.user_id


class _Claims(msgspec.Struct, frozen=True, array_like=True):
    """What a token says."""

    purpose: str
    project_id: int
    user_id: str
    born: int
    """Microseconds since 1970."""
    expires: int
    """Microseconds since 1970."""


class _Known(msgspec.Struct, frozen=True):
    """What is remembered of a user; `born` None: there is none."""

    fresh_until: float  # on the monotonic clock
    born: datetime | None
    project_key: str
    origins: frozenset[str]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Claims).decode


class Tokens:
    """Issues user tokens and recognises them, from memory where it can."""

    def __init__(self, database: Database, vault: Vault, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[tuple[int, str], _Known] = {}
        self._origins: frozenset[str] = frozenset()
        self._origins_until = 0.0
        self._turn = asyncio.Lock()
        self._keys = lru_cache(maxsize=1024)(lambda project_id: vault.derive(Place("user token", project_id, _PURPOSE)))

    async def issue(self, project_id: int, user_id: str, life: timedelta) -> Token:
        """A new token of the user's.

        Raises:
            NotFound: this project has no such user.
        """
        known = await self._look_up((project_id, user_id))
        if known.born is None:
            raise NotFound("There is no such user in this project.")
        expires_at = self._clock.now() + min(life, TOKEN_LIFE_MAX)
        claims = _Claims(_PURPOSE, project_id, user_id, _to_microseconds(known.born), _to_microseconds(expires_at))
        head = f"{PREFIX}{known.project_key}.{_to_text(_encode(claims))}"
        signature = _sign(self._keys(project_id)[0], head)
        return Token(f"{head}.{_to_text(signature)}", expires_at)

    async def authenticate(self, text: str) -> UserCaller:
        """The user whose token this is.

        Raises:
            Unauthenticated: it is none of ours, has expired, or its user is gone. Why, is told for genuine ones only.
            DatabaseError: the user is not in memory and the database cannot be asked.
        """
        match = _FORM.fullmatch(text) if len(text) <= _TOKEN_MAX else None
        if match is None:
            raise Unauthenticated(_NOT_VALID)
        try:
            claims = _decode(_to_bytes(match[2]))
            signature = _to_bytes(match[3])
        except (binascii.Error, msgspec.MsgspecError, UnicodeDecodeError):
            raise Unauthenticated(_NOT_VALID) from None
        head = text[: match.start(3) - 1]
        # Each key is tried, and in constant time: neither which one it was nor how near one came can be told.
        right = False
        for key in self._keys(claims.project_id):
            right |= hmac.compare_digest(_sign(key, head), signature)
        if not right or claims.purpose != _PURPOSE:
            raise Unauthenticated(_NOT_VALID)
        expires_at = _EPOCH + timedelta(microseconds=claims.expires)
        if expires_at <= self._clock.now():
            raise Unauthenticated(f"This user token expired at {expires_at:%Y-%m-%dT%H:%M:%SZ}; ask for a new one.")
        owner = (claims.project_id, claims.user_id)
        known = self._known.get(owner)
        if known is None or known.fresh_until <= self._clock.monotonic():
            known = await self._look_up(owner)
        if known.born is None or _to_microseconds(known.born) != claims.born:
            raise Unauthenticated("The user of this token has been deleted.")
        return UserCaller(claims.project_id, known.project_key, claims.user_id, known.born, expires_at, known.origins)

    async def knows_origin(self, origin: str) -> bool:
        """Whether some project lets pages of this origin call. All of them are kept: whoever asks has shown no token
        yet, and must not be able to make us ask the database as often as they please."""
        if self._origins_until <= self._clock.monotonic():
            async with self._turn:
                asked_at = self._clock.monotonic()
                if self._origins_until <= asked_at:
                    rows = await self._database.fetch(_LIST_ORIGINS)
                    self._origins = frozenset(row["origin"] for row in rows)
                    self._origins_until = asked_at + FRESH_FOR
        return origin in self._origins

    def forget(self, project_id: int, user_id: str) -> None:
        """Looks at the user again next time: for the process in which they were deleted."""
        self._known.pop((project_id, user_id), None)

    async def _look_up(self, owner: tuple[int, str]) -> _Known:
        asked_at = self._clock.monotonic()
        row = await self._database.fetchrow(_LOAD_TOKEN_USER, *owner)
        if row is None:
            known = _Known(asked_at + FRESH_FOR, None, "", frozenset())
        else:
            known = _Known(asked_at + FRESH_FOR, row["born"], row["project_key"], _parse_origins(row["origins"]))
        self._known.pop(owner, None)
        if len(self._known) >= _KNOWN_MAX:
            self._known.pop(next(iter(self._known)))
        self._known[owner] = known
        return known


def _parse_origins(text: str | None) -> frozenset[str]:
    listed = msgspec.json.decode(text) if text is not None else None
    return (
        frozenset(origin for origin in listed if isinstance(origin, str)) if isinstance(listed, list) else frozenset()
    )


def _sign(key: bytes, head: str) -> bytes:
    return hmac.digest(key, head.encode(), hashlib.sha256)


def _to_microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _to_bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
