"""Blobs on a real database: named by their content, apart for each project, kept while they may be needed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tidings.db.pool import Database
from tidings.directory.blobs import (
    FORGET_BATCH,
    KEPT_LONGER,
    Shelf,
    claim_blobs,
    forget_blobs,
    parse_blob_id,
    put_blobs,
    to_blob,
    to_blob_id,
)
from tidings.directory.projects import create_project

PICTURE, LETTER = to_blob(b"picture"), to_blob(b"a letter")


@pytest.fixture
async def project(database: Database) -> int:
    return (await database.transaction(lambda conn: create_project(conn, "p", ""))).id


async def age(database: Database, span: timedelta) -> None:
    await database.execute("UPDATE blob SET used_at = used_at - $1::interval", span)


def test_an_id_says_what_is_in_it() -> None:
    text = to_blob_id(PICTURE.hash)
    assert parse_blob_id(text) == PICTURE.hash
    for wrong in (text.upper(), text[:-1], text + "0", f" {text}", "sha256:", PICTURE.hash.hex()):
        assert parse_blob_id(wrong) is None


async def test_a_project_has_its_own(database: Database, project: int) -> None:
    other = (await database.transaction(lambda conn: create_project(conn, "q", ""))).id
    await put_blobs(database, project, [PICTURE, LETTER, PICTURE])
    await put_blobs(database, project, [PICTURE])
    assert await claim_blobs(database, project, [PICTURE.hash, LETTER.hash]) == {PICTURE.hash: 7, LETTER.hash: 8}
    assert await claim_blobs(database, other, [PICTURE.hash]) == {}
    assert await claim_blobs(database, project, []) == {}
    shelf = Shelf(database)
    [taken] = await shelf.take_some([{(other, PICTURE.hash): 7}])
    assert taken
    assert shelf.get((other, PICTURE.hash)) is None
    assert await database.fetchval("SELECT count(*) FROM blob") == 2


async def test_what_is_named_stays_and_what_is_not_goes(database: Database, project: int) -> None:
    await put_blobs(database, project, [PICTURE, LETTER])
    await age(database, timedelta(days=80))
    assert await claim_blobs(database, project, [LETTER.hash]) == {LETTER.hash: 8}
    await age(database, timedelta(days=20))
    await forget_blobs(database, datetime.now(UTC) - timedelta(days=100) + KEPT_LONGER + timedelta(minutes=1))
    assert await claim_blobs(database, project, [PICTURE.hash, LETTER.hash]) == {LETTER.hash: 8}
    await put_blobs(database, project, [to_blob(str(n).encode()) for n in range(FORGET_BATCH + 5)])
    await age(database, timedelta(days=200))
    await asyncio.gather(*(forget_blobs(database, datetime.now(UTC) - timedelta(days=90)) for _ in range(2)))
    assert await database.fetchval("SELECT count(*) FROM blob") == 0


async def test_many_claim_the_same_at_once_and_all_find_it(database: Database, project: int) -> None:
    await put_blobs(database, project, [PICTURE, LETTER])
    await age(database, timedelta(days=1))
    hashes = [PICTURE.hash, LETTER.hash]
    told = await asyncio.gather(*(claim_blobs(database, project, hashes) for _ in range(8)))
    assert all(len(found) == 2 for found in told)


async def test_a_shelf_holds_each_once_and_no_more_than_it_has_room_for(database: Database, project: int) -> None:
    await put_blobs(database, project, [PICTURE, LETTER])
    picture, letter = {(project, PICTURE.hash): 7}, {(project, LETTER.hash): 8}
    shelf = Shelf(database, room=10)
    assert await shelf.take_some([picture, letter, picture]) == [True, False, True]
    assert shelf.get((project, PICTURE.hash)) == b"picture"
    waiting = asyncio.create_task(shelf.take(letter))
    shelf.give_back(picture)
    await asyncio.sleep(0)
    # Somebody waits: nobody is let in before, however small.
    assert await shelf.take_some([picture]) == [False]
    assert not waiting.done()
    shelf.give_back(picture)
    async with asyncio.timeout(5):
        await waiting
    assert shelf.get((project, LETTER.hash)) == b"a letter"
    assert shelf.get((project, PICTURE.hash)) is None
    broken_off = asyncio.create_task(shelf.take(picture))
    await asyncio.sleep(0)
    broken_off.cancel()
    with pytest.raises(asyncio.CancelledError):
        await broken_off
    shelf.give_back(letter)
    assert await shelf.take_some([letter]) == [True]


async def test_what_is_larger_than_the_shelf_goes_alone(database: Database, project: int) -> None:
    await put_blobs(database, project, [PICTURE])
    shelf = Shelf(database, room=3)
    assert await shelf.take_some([{(project, PICTURE.hash): 7}, {(project, LETTER.hash): 8}]) == [True, False]
