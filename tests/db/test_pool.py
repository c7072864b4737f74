"""Transactions that are retried, commits whose outcome is unknown, sessions that are limited, hints that coalesce."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.db.proxy import Cut, proxy, through
from tidings.db.pool import Connection, Database, Listener, Notifier, savepoint, to_loggable
from tidings.errors import CommitUnknown, DatabaseError, DatabaseUnavailable, DatabaseUnsupported


@pytest.fixture
async def table(database: Database) -> str:
    await database.execute("CREATE TABLE box (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)")
    await database.execute("INSERT INTO box SELECT generate_series(1, 2)")
    return "box"


async def test_a_transaction_commits_and_gives_what_the_work_returned(database: Database, table: str) -> None:
    assert await database.transaction(lambda c: c.fetchval("UPDATE box SET n = 7 WHERE id = 1 RETURNING n")) == 7
    assert await database.fetchval("SELECT n FROM box WHERE id = 1") == 7
    assert [row["id"] for row in await database.fetch("SELECT id FROM box ORDER BY id")] == [1, 2]
    assert (await database.fetchrow("SELECT 1 AS one"))["one"] == 1  # type: ignore[index]
    await database.executemany("INSERT INTO box VALUES ($1, $2)", [(3, 3), (4, 4)])
    assert await database.execute("DELETE FROM box WHERE id > 2") == "DELETE 2"


async def test_an_error_rolls_back_and_goes_up(database: Database, table: str) -> None:
    async def work(connection: Connection) -> None:
        await connection.execute("UPDATE box SET n = 1")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await database.transaction(work)
    assert await database.fetchval("SELECT sum(n) FROM box") == 0


async def test_a_cancelled_transaction_is_rolled_back_and_its_connection_is_usable(
    database: Database, table: str
) -> None:
    async def work(connection: Connection) -> None:
        await connection.execute("UPDATE box SET n = 1")
        await connection.execute("SELECT pg_sleep(20)")

    async with await Database.connect(database.dsn, max_size=1) as narrow:
        task = asyncio.create_task(narrow.transaction(work))
        # The server ignores a cancel request that overtakes its statement, so first see that it is running.
        while not await database.fetchval("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')"):
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await narrow.fetchval("SELECT sum(n) FROM box") == 0


async def test_deadlocked_transactions_both_succeed(database: Database, table: str) -> None:
    both_hold_one = asyncio.Barrier(2)
    calls = 0

    async def work(connection: Connection, first: int, second: int) -> None:
        nonlocal calls
        calls += 1
        await connection.execute("SET LOCAL deadlock_timeout = '10ms'")
        await connection.execute("UPDATE box SET n = n + 1 WHERE id = $1", first)
        if calls <= 2:
            await both_hold_one.wait()
        await connection.execute("UPDATE box SET n = n + 1 WHERE id = $1", second)

    await asyncio.gather(
        database.transaction(lambda c: work(c, 1, 2)),
        database.transaction(lambda c: work(c, 2, 1)),
    )
    assert calls == 3
    assert [row["n"] for row in await database.fetch("SELECT n FROM box")] == [2, 2]


async def test_retries_end(database: Database) -> None:
    calls = 0

    async def work(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        await connection.execute("DO $$ BEGIN RAISE 'no' USING ERRCODE = '40001'; END $$")

    with pytest.raises(asyncpg.SerializationError):
        await database.transaction(work, retries=2)
    assert calls == 3


async def test_a_hidden_failure_is_no_success(database: Database, table: str) -> None:
    async def work(connection: Connection) -> None:
        await connection.execute("UPDATE box SET n = 1")
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute("INSERT INTO box VALUES (1)")

    with pytest.raises(DatabaseError, match="nothing was committed"):
        await database.transaction(work)
    assert await database.fetchval("SELECT sum(n) FROM box") == 0


async def test_a_savepoint_fails_alone(database: Database, table: str) -> None:
    async def work(connection: Connection) -> None:
        async def fail() -> None:
            async with savepoint(connection):
                await connection.execute("UPDATE box SET n = 100")
                await connection.execute("INSERT INTO box VALUES (1)")

        await connection.execute("UPDATE box SET n = 1")
        with pytest.raises(asyncpg.UniqueViolationError):
            await fail()
        async with savepoint(connection):
            await connection.execute("UPDATE box SET n = n + 1")

    await database.transaction(work)
    assert await database.fetchval("SELECT sum(n) FROM box") == 4


async def test_a_constraint_that_fails_in_commit_is_a_definite_no(database: Database) -> None:
    await database.execute("CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    async def work(connection: Connection) -> None:
        await connection.execute("INSERT INTO late VALUES (1), (1)")

    with pytest.raises(asyncpg.UniqueViolationError):
        await database.transaction(work)


async def test_a_connection_lost_in_commit_is_unknown_and_not_repeated(database: Database, table: str) -> None:
    calls = 0

    def cut_at_commit(data: bytes) -> bytes:
        if b"COMMIT\0" in data:
            raise Cut
        return data

    async def work(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        await connection.execute("UPDATE box SET n = n + 1")

    async with proxy(database.dsn, to_server=cut_at_commit) as port:
        broken = await Database.connect(through(database.dsn, port, sslmode="disable"), min_size=0, max_size=1)
        with pytest.raises(CommitUnknown):
            await broken.transaction(work)
        await broken.close(timedelta(seconds=1))
    assert calls == 1
    # This time it did happen. The lock waits for the other session's end, so the sum is final.
    assert await database.fetchval("SELECT n FROM box WHERE id = 1 FOR UPDATE") == 1


async def test_a_connection_lost_before_commit_is_a_definite_no(database: Database, table: str) -> None:
    def cut_at_update(data: bytes) -> bytes:
        if b"UPDATE box" in data:
            raise Cut
        return data

    async with proxy(database.dsn, to_server=cut_at_update) as port:
        broken = await Database.connect(through(database.dsn, port, sslmode="disable"), min_size=0, max_size=1)
        with pytest.raises((asyncpg.PostgresConnectionError, OSError)):
            await broken.transaction(lambda c: c.execute("UPDATE box SET n = 1"))
        await broken.close(timedelta(seconds=1))


async def test_sessions_are_limited(database_dsn: str) -> None:
    limited = await Database.connect(
        database_dsn,
        application_name="limited",
        statement_timeout=timedelta(milliseconds=50),
        idle_in_transaction_timeout=timedelta(seconds=7),
        lock_timeout=timedelta(milliseconds=1500),
    )
    async with limited:
        shown = [
            await limited.fetchval(f"SHOW {name}")
            for name in ("application_name", "idle_in_transaction_session_timeout", "lock_timeout", "timezone", "jit")
        ]
        assert shown == ["limited", "7s", "1500ms", "UTC", "off"]
        with pytest.raises(asyncpg.QueryCanceledError):
            await limited.execute("SELECT pg_sleep(10)")
        assert limited.server_version >= 14


async def test_nobody_there(database_dsn: str) -> None:
    async with proxy(database_dsn) as port:
        dead = port
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
        await Database.connect(through(database_dsn, dead))


async def test_a_refusal_does_not_show_the_password(database_dsn: str) -> None:
    async with proxy(database_dsn) as port:
        wrong = through(database_dsn, port, sslmode="disable").replace("://", "://nobody-we-know-", 1)
        with pytest.raises(DatabaseUnavailable) as caught:
            await Database.connect(wrong)
        assert str(urlsplit(wrong).password) not in str(caught.value)
        assert "nobody-we-know" in str(caught.value)


async def test_an_old_server_is_refused(database: Database) -> None:
    version = (await database.fetchval("SHOW server_version")).split()[0].encode()
    old = b"13" + version[2:]

    def pretend(data: bytes) -> bytes:
        return data.replace(b"server_version\0" + version, b"server_version\0" + old)

    async with proxy(database.dsn, to_client=pretend) as port:
        with pytest.raises(DatabaseUnsupported, match=r"PostgreSQL 14 or newer is needed; this server is 13\."):
            await Database.connect(through(database.dsn, port, sslmode="disable"))


class Hints:
    """Collects hints and lets a test wait for a number of them."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def __call__(self, channel: str, payload: str) -> None:
        self.seen.append((channel, payload))
        self._changed.set()

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.seen) < count:
                self._changed.clear()
                await self._changed.wait()


async def test_equal_hints_coalesce_and_keep_their_order(database_dsn: str) -> None:
    hints = Hints()
    async with Listener(database_dsn, ["lane"], hints), Notifier(database_dsn) as notifier:
        await hints.wait(1)
        assert hints.seen == [("lane", "")]
        for _ in range(500):
            notifier.notify("lane", "email")
            notifier.notify("lane", "sms")
        await hints.wait(3)
        notifier.notify("lane", "last")
        await hints.wait(4)
    assert hints.seen[1:] == [("lane", "email"), ("lane", "sms"), ("lane", "last")]


@pytest.mark.parametrize("victim", ["tidings-listen", "tidings-notify"])
async def test_side_connections_come_back(database: Database, victim: str) -> None:
    hints = Hints()
    async with Listener(database.dsn, ["lane"], hints), Notifier(database.dsn) as notifier:
        await hints.wait(1)
        notifier.notify("lane", "before")
        await hints.wait(2)
        killed = await database.fetchval(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = $1"
            " AND datname = current_database()",
            victim,
        )
        assert killed == 1
        if victim == "tidings-listen":
            await hints.wait(3)
            assert hints.seen[2] == ("lane", "")  # look at everything: hints may have been lost
        notifier.notify("lane", "after")
        await hints.wait(len(hints.seen) + 1 if hints.seen[-1] != ("lane", "after") else len(hints.seen))
        assert hints.seen[-1] == ("lane", "after")


async def test_side_connections_wait_for_a_server_that_is_away(database_dsn: str) -> None:
    async with proxy(database_dsn) as port:
        dead = through(database_dsn, port)
    async with Notifier(dead) as notifier, Listener(dead, ["lane"], Hints()):
        for number in range(5_000):
            notifier.notify("lane", str(number))


async def test_many_short_transactions_share_few_connections(database: Database, table: str) -> None:
    async def add(connection: Connection) -> Any:
        return await connection.execute("UPDATE box SET n = n + 1 WHERE id = 1")

    await asyncio.gather(*(database.transaction(add) for _ in range(100)))
    assert await database.fetchval("SELECT n FROM box WHERE id = 1") == 100


async def test_refused_values_do_not_reach_a_log_line(database: Database) -> None:
    for query, value in (("SELECT $1::int", "ada@example.com"), ("SELECT ($1::text)::int", "ada@example.com")):
        with pytest.raises((asyncpg.DataError, ValueError)) as refused:
            await database.fetchval(query, value)
        assert "ada" in str(refused.value)
        assert "ada" not in to_loggable(refused.value)
