"""Blobs: files that go with messages, named by what is in them.

A blob's id is the hash of its content, so storing it twice is storing it once, and what a notification names can never
change. Projects do not share them: nobody learns from an id whether somebody else has the same file.

Requests name blobs without a reference that the database would know of; a blob is kept until nothing that has named it
can be sent any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from tidings.db.pool import Connection, Database
from tidings.db.sql import load_queries

_queries: Final = load_queries(__package__, "blobs.sql")
_PUT_BLOBS: Final = _queries.put_blobs
_CLAIM_BLOBS: Final = _queries.claim_blobs
_LOAD_BLOBS: Final = _queries.load_blobs
_FORGET_BLOBS: Final = _queries.forget_blobs

BLOB_MAX: Final = 10 * 1024 * 1024
"""Octets of one blob; also of all that go with one message."""
KEPT_LONGER: Final = timedelta(days=5)
"""Beyond the retention of notifications: the day that a partition spans, and the last retries of what was replayed just
before it went."""
FORGET_BATCH: Final = 100

_ID: Final = re.compile(r"sha256:([0-9a-f]{64})")


class Blob(NamedTuple):
    """A file and its name."""

    hash: bytes
    content: bytes


Place = tuple[int, bytes]
"""A blob's project and hash."""


def to_blob(content: bytes) -> Blob:
    """The content with its hash."""
    return Blob(hashlib.sha256(content).digest(), content)


def to_blob_id(hash_: bytes) -> str:
    """As the API shows it: `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hash_.hex()}"


def parse_blob_id(text: str) -> bytes | None:
    """The hash in a blob's id; None if it is none."""
    found = _ID.fullmatch(text)
    return bytes.fromhex(found[1]) if found is not None else None


async def put_blobs(db: Database | Connection, project_id: int, blobs: Iterable[Blob]) -> None:
    """Store blobs; those that are there already are marked as used."""
    chosen = {blob.hash: blob.content for blob in blobs}
    if chosen:
        await db.execute(_PUT_BLOBS, project_id, list(chosen), list(chosen.values()))


async def claim_blobs(db: Database | Connection, project_id: int, hashes: Collection[bytes]) -> dict[bytes, int]:
    """The sizes of those among these that the project has; they will be kept for a request that names them now."""
    sizes: dict[bytes, int] = {}
    for _ in range(2):  # the second time for those that somebody else was just marking as used
        if lacking := sorted(set(hashes) - sizes.keys()):
            rows = await db.fetch(_CLAIM_BLOBS, project_id, lacking)
            sizes.update((row["hash"], row["size"]) for row in rows)
    return sizes


async def forget_blobs(database: Database, before: datetime) -> None:
    """Delete the blobs that no request has named since `before`, the time from which notifications are kept."""
    while await database.fetchval(_FORGET_BLOBS, before - KEPT_LONGER, FORGET_BATCH) == FORGET_BATCH:
        pass


# ---------------------------------------------------------------- on their way out


class _Kept:
    __slots__ = ("content", "holders")

    def __init__(self) -> None:
        self.holders = 0
        self.content: bytes | None = None


class Shelf:
    """Blobs in the memory of a worker while messages carry them: each once, and together within `room` octets.

    Whoever takes some gives them back. What finds no room waits for its turn, so that a queue of large attachments
    slows itself down and does not fill the memory.
    """

    def __init__(self, database: Database, *, room: int = 64 * 1024 * 1024) -> None:
        self._database = database
        self._room = room
        self._used = 0
        self._kept: dict[Place, _Kept] = {}
        self._turn = asyncio.Lock()
        """First come, first served: else small ones would overtake a large one for ever."""
        self._freed = asyncio.Event()

    async def take_some(self, asked: Sequence[Mapping[Place, int]]) -> list[bool]:
        """Those of `asked` that there is room for now, loaded in one query; each a set of places with their sizes."""
        taken = [not self._turn.locked() and self._reserve(sizes) for sizes in asked]
        try:
            await self._fill({place for sizes, ok in zip(asked, taken, strict=True) if ok for place in sizes})
        except BaseException:
            for sizes, ok in zip(asked, taken, strict=True):
                if ok:
                    self.give_back(sizes)
            raise
        return taken

    async def take(self, sizes: Mapping[Place, int]) -> None:
        """Wait until there is room, and load."""
        async with self._turn:
            while not self._reserve(sizes):
                self._freed.clear()
                await self._freed.wait()
        try:
            await self._fill(sizes.keys())
        except BaseException:
            self.give_back(sizes)
            raise

    def get(self, place: Place) -> bytes | None:
        """The content of one that was taken; None if the project has no such blob any more."""
        kept = self._kept.get(place)
        return kept.content if kept is not None else None

    def give_back(self, sizes: Mapping[Place, int]) -> None:
        """Those of one `take` are not needed any more."""
        for place, size in sizes.items():
            kept = self._kept[place]
            kept.holders -= 1
            if not kept.holders:
                del self._kept[place]
                self._used -= size
        self._freed.set()

    def _reserve(self, sizes: Mapping[Place, int]) -> bool:
        more = sum(size for place, size in sizes.items() if place not in self._kept)
        if self._used and self._used + more > self._room:
            return False
        for place, size in sizes.items():
            kept = self._kept.get(place)
            if kept is None:
                kept = self._kept[place] = _Kept()
                self._used += size
            kept.holders += 1
        return True

    async def _fill(self, places: Collection[Place]) -> None:
        lacking = sorted(place for place in places if self._kept[place].content is None)
        if not lacking:
            return
        rows = await self._database.fetch(_LOAD_BLOBS, [p for p, _ in lacking], [h for _, h in lacking])
        for row in rows:
            # Loaded twice at once at worst; the second is dropped.
            kept = self._kept.get((row["project_id"], row["hash"]))
            if kept is not None and kept.content is None:
                kept.content = row["content"]
