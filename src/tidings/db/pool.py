"""Connections: a pool with retried transactions, and the two dedicated connections for NOTIFY and LISTEN.

This room knows asyncpg and SQLSTATE codes. It knows no table, and it never retries anything whose outcome is unknown.

Sessions are set up once, when they connect (time-outs, UTC, no JIT), and are *not* reset between uses: that would cost
one round trip per statement. So nothing may change a pooled session: only `SET LOCAL`, only transaction-level advisory
locks, no LISTEN, no temporary tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar

import asyncpg
import structlog

from tidings.errors import CommitUnknown, DatabaseError, DatabaseUnavailable, DatabaseUnsupported

Connection: TypeAlias = asyncpg.pool.PoolConnectionProxy
Record: TypeAlias = asyncpg.Record
Result = TypeVar("Result")

MINIMUM_SERVER: Final = 14
"""Oldest major version of PostgreSQL that the SQL of this product runs on."""

_log = structlog.get_logger(__name__)

_RETRIED: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_RETRY_BASE: Final = 0.005
"""Seconds; the n-th retry waits a random time up to this times 2^n, so that two victims do not meet again."""

# SQLSTATE classes after which a COMMIT may nevertheless have happened: connection trouble (08), statement completion
# unknown (40003), operator intervention (57: shutdown, cancel while waiting for a standby), system errors (58, XX).
_UNKNOWN_CLASSES: Final = ("08", "57", "58", "XX")

# What it looks like when no connection can be had: refused, reset, DNS, time-out, and "starting up"/"too many clients".
_UNREACHABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)


class Database:
    """A pool of connections to one PostgreSQL database.

    The one-statement conveniences commit on their own. Everything that belongs together goes through
    :meth:`transaction`. Loops that run many statements in a row hold one connection with :meth:`acquire`.
    """

    __slots__ = ("_pool", "dsn", "server_version")

    def __init__(self, pool: Any, dsn: str, server_version: int) -> None:
        self._pool = pool
        self.dsn: Final = dsn
        """Holds a password: never log it."""
        self.server_version: Final = server_version
        """Major version of the server."""

    def __repr__(self) -> str:
        return f"<Database {self._pool.get_size()} of {self._pool.get_max_size()} connections>"

    @classmethod
    async def connect(
        cls,
        dsn: str,
        *,
        min_size: int = 1,
        max_size: int = 10,
        application_name: str = "tidings",
        statement_timeout: timedelta = timedelta(seconds=30),
        idle_in_transaction_timeout: timedelta = timedelta(seconds=30),
        lock_timeout: timedelta = timedelta(seconds=10),
        connect_timeout: timedelta = timedelta(seconds=10),
    ) -> Self:
        """Opens the pool and checks the server.

        Args:
            dsn: libpq URL; `?sslmode=verify-full&sslrootcert=/path/ca.pem` for TLS, `?host=/folder` for a socket.
            min_size: connections opened now and kept; `max_size` at most.
            application_name: shown in `pg_stat_activity`.
            statement_timeout: longest one statement; also the client's patience, a little later.
            idle_in_transaction_timeout: after which the server ends a session that forgot its transaction: an open
                snapshot makes every claim slower, and a forgotten lock blocks a lane.
            lock_timeout: longest wait for one lock.
            connect_timeout: longest for one new connection.

        Raises:
            DatabaseUnavailable: nothing answers there, or it refuses this role or database.
            DatabaseUnsupported: PostgreSQL is too old.
        """
        session = {
            **_session(application_name),
            "statement_timeout": str(_milliseconds(statement_timeout)),
            "idle_in_transaction_session_timeout": str(_milliseconds(idle_in_transaction_timeout)),
            "lock_timeout": str(_milliseconds(lock_timeout)),
        }
        # The server's time-out is the one that should strike; the client's is for a server that went silent.
        patience = statement_timeout.total_seconds() + 5 if statement_timeout else None
        try:
            pool = await asyncpg.create_pool(
                dsn,
                min_size=min_size,
                max_size=max_size,
                timeout=connect_timeout.total_seconds(),
                command_timeout=patience,
                server_settings=session,
                statement_cache_size=512,
                # Hot statements are prepared once per connection, not once per five minutes.
                max_cached_statement_lifetime=0,
                max_cacheable_statement_size=64 * 1024,
                max_inactive_connection_lifetime=300,
                reset=_keep_session,
            )
        except _UNREACHABLE as error:
            reason = str(error) or type(error).__name__
            raise DatabaseUnavailable(f"The database cannot be reached: {reason}") from error
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            raise DatabaseUnavailable(f"The database refuses the connection: {error}") from error
        try:
            async with pool.acquire() as connection:
                version = connection.get_server_version()
            if version.major < MINIMUM_SERVER:
                raise DatabaseUnsupported(
                    f"PostgreSQL {MINIMUM_SERVER} or newer is needed; this server is {version.major}.{version.minor}."
                )
        except BaseException:
            pool.terminate()
            raise
        return cls(pool, dsn, version.major)

    async def close(self, timeout: timedelta = timedelta(seconds=10)) -> None:
        """Closes all connections; those still in use after `timeout` are cut."""
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def fetch(self, query: str, *args: Any) -> Awaitable[list[Record]]:
        """All rows of one statement."""
        rows: Awaitable[list[Record]] = self._pool.fetch(query, *args)
        return rows

    def fetchrow(self, query: str, *args: Any) -> Awaitable[Record | None]:
        """The first row of one statement, or None."""
        row: Awaitable[Record | None] = self._pool.fetchrow(query, *args)
        return row

    def fetchval(self, query: str, *args: Any) -> Awaitable[Any]:
        """The first column of the first row of one statement, or None."""
        value: Awaitable[Any] = self._pool.fetchval(query, *args)
        return value

    def execute(self, query: str, *args: Any) -> Awaitable[str]:
        """Runs one statement (or, without arguments, a script) and gives its command tag, like `UPDATE 3`."""
        tag: Awaitable[str] = self._pool.execute(query, *args)
        return tag

    def executemany(self, query: str, args: Iterable[Sequence[Any]]) -> Awaitable[None]:
        """Runs one statement for each argument row, all in one transaction."""
        done: Awaitable[None] = self._pool.executemany(query, args)
        return done

    def acquire(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        """One connection for the length of an `async with` block."""
        held: contextlib.AbstractAsyncContextManager[Connection] = self._pool.acquire()
        return held

    async def transaction(self, work: Callable[[Connection], Awaitable[Result]], *, retries: int = 5) -> Result:
        """Runs `work` in one READ COMMITTED transaction and gives what it returned, once that is committed.

        A deadlock (40P01) or serialization failure (40001) rolls back and calls `work` again, up to `retries` times,
        after a short random wait. So `work` must build its effects afresh on every call and have none outside of
        the database. Inside, use :func:`savepoint`, not `connection.transaction()`.

        Raises:
            CommitUnknown: the connection broke during COMMIT; only looking (or an idempotency key) tells.
            DatabaseError: `work` hid a statement's failure, so there was nothing left to commit.
            Whatever `work` raises; the transaction is then rolled back. (A cancellation that strikes during COMMIT goes
            up as such, and its outcome is as unknown.)
        """
        for attempt in range(retries + 1):
            async with self._pool.acquire() as connection:
                try:
                    return await _run(connection, work)
                except _RETRIED as error:
                    if attempt == retries:
                        raise
                    _log.info("database.transaction.retried", sqlstate=error.sqlstate, attempt=attempt + 1)
            # The connection is back in the pool while we wait. Not a secret: S311 is about cryptography.
            await asyncio.sleep(random.uniform(0, _RETRY_BASE * 2**attempt))  # noqa: S311 -- spreads retries, no secret
        raise AssertionError("unreachable: the last attempt returns or raises")


async def _run(connection: Connection, work: Callable[[Connection], Awaitable[Result]]) -> Result:
    # BEGIN and COMMIT are sent by hand because COMMIT's answer matters: it is "ROLLBACK" after a failure that `work`
    # swallowed, which asyncpg's own transaction object would take for success.
    await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    try:
        result = await work(connection)
    except BaseException:
        await _roll_back(connection)
        raise
    try:
        tag = await connection.execute("COMMIT")
    except asyncpg.PostgresError as error:
        state = error.sqlstate or "XX000"
        if state.startswith(_UNKNOWN_CLASSES) or state == "40003":
            raise CommitUnknown from error
        raise  # a deferred constraint, a serialization failure: surely not committed
    except (OSError, TimeoutError, asyncpg.InterfaceError) as error:
        raise CommitUnknown from error
    if tag != "COMMIT":
        raise DatabaseError("A statement in this transaction failed and was ignored, so nothing was committed.")
    return result


async def _roll_back(connection: Connection) -> None:
    # A broken connection rolls back by itself; its error must not hide the one that is on its way up.
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        if not connection.is_closed():
            await connection.execute("ROLLBACK")


@contextlib.asynccontextmanager
async def savepoint(connection: Connection) -> AsyncIterator[None]:
    """A part of a transaction that may fail alone: its error rolls back to here and goes on upwards."""
    await connection.execute("SAVEPOINT part")
    try:
        yield
    except BaseException:
        with contextlib.suppress(asyncpg.InterfaceError, OSError):
            if not connection.is_closed():
                await connection.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part")
        raise
    await connection.execute("RELEASE SAVEPOINT part")


async def _keep_session(connection: Any) -> None:
    """Pool reset that sends nothing; see the module's docstring for what makes that safe."""


Runner: TypeAlias = Connection | Database
"""What runs one statement: a held connection, inside its transaction if it has one, or the pool, on its own."""


class _Dedicated:
    """One connection of its own that comes back: the frame of :class:`Notifier` and :class:`Listener`."""

    def __init__(self, dsn: str, application_name: str) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to connect, in the background; a server that is away is no error."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_connected(), name=self._application_name)

    async def close(self) -> None:
        """Ends the connection."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            # Waits for the end and swallows the cancellation we asked for, but not one that is meant for us.
            await asyncio.wait([task])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _keep_connected(self) -> None:
        failures = 0
        while True:
            try:
                connection = await asyncpg.connect(
                    self._dsn, timeout=10, command_timeout=10, server_settings=_session(self._application_name)
                )
                try:
                    failures = 0
                    await self._serve(connection)
                finally:
                    connection.terminate()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                _log.warning("database.side_connection.lost", name=self._application_name, error=str(error))
            delay = min(5.0, 0.05 * 2**failures)
            failures = min(failures + 1, 10)
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 -- spreads reconnects, no secret

    async def _serve(self, connection: Any) -> None:
        """Uses a fresh connection until it breaks; returns or raises when it did."""
        raise NotImplementedError


class Notifier(_Dedicated):
    """Sends NOTIFY hints over one connection: equal ones at most once per `interval`, never in a work transaction.

    A NOTIFY inside a transaction takes a cluster-wide lock at commit, which halves commits under load; so hints are
    handed here after the commit. They are only hints: while the connection is away they wait, the newest are dropped
    past `_PENDING_MAX`, and polling finds the work all the same.
    """

    _PENDING_MAX: Final = 1_000

    def __init__(
        self,
        dsn: str,
        *,
        interval: timedelta = timedelta(milliseconds=5),
        application_name: str = "tidings-notify",
    ) -> None:
        super().__init__(dsn, application_name)
        self._interval = interval.total_seconds()
        # A dict for its order: hints leave in the order in which they came.
        self._pending: dict[tuple[str, str], None] = {}
        self._wake = asyncio.Event()

    def notify(self, channel: str, payload: str = "") -> None:
        """Hands over one hint and returns at once. Call it after the commit.

        Args:
            channel: a LISTEN channel, at most 63 bytes.
            payload: short text, less than 8,000 bytes.
        """
        if len(self._pending) < self._PENDING_MAX:
            self._pending[(channel, payload)] = None
            self._wake.set()

    async def _serve(self, connection: Any) -> None:
        send = await connection.prepare(
            "SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS hint(channel, payload)"
        )
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._pending = list(self._pending), {}
            try:
                await send.fetch([channel for channel, _ in batch], [payload for _, payload in batch])
            except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
                # Sent again after the reconnect; a hint that arrives twice does no harm.
                for channel, payload in batch:
                    self.notify(channel, payload)
                raise
            await asyncio.sleep(self._interval)


class Listener(_Dedicated):
    """Receives NOTIFY hints over one connection and calls back for each.

    Hints that were sent while the connection was away are lost, so after every connect (the first one included) the
    callback is called once per channel with the empty payload, which means "look at everything".

    Args:
        channels: channels to LISTEN on.
        on_hint: `on_hint(channel, payload)`; called in the event loop, must not block and must not raise.
    """

    _PING_AFTER: Final = 30.0
    """Seconds between two signs of life; a half-open connection is found out by the next one."""

    def __init__(
        self,
        dsn: str,
        channels: Iterable[str],
        on_hint: Callable[[str, str], None],
        *,
        application_name: str = "tidings-listen",
    ) -> None:
        super().__init__(dsn, application_name)
        self._channels = tuple(channels)
        self._on_hint = on_hint

    async def _serve(self, connection: Any) -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        for channel in self._channels:
            await connection.add_listener(
                channel, lambda _connection, _pid, name, payload: self._on_hint(name, payload)
            )
        for channel in self._channels:
            self._on_hint(channel, "")
        while not lost.is_set():
            try:
                async with asyncio.timeout(self._PING_AFTER):
                    await lost.wait()
            except TimeoutError:
                await connection.execute("SELECT 1")
        raise ConnectionResetError("the LISTEN connection was closed")


def to_loggable(error: BaseException) -> str:
    """What an error says, for a log line, without the values that driver and server quote when they refuse some."""
    if isinstance(error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError | ValueError):
        return f"a value was refused ({getattr(error, 'sqlstate', None) or 'before it was sent'})"
    return str(error)


def _session(application_name: str) -> dict[str, str]:
    """Start-up parameters of every session."""
    return {
        # 63 bytes is PostgreSQL's limit for it; longer names draw a notice on every connect.
        "application_name": application_name[:63],
        "timezone": "UTC",
        # Statements here take milliseconds; compiling them takes longer than running them.
        "jit": "off",
        # Every statement is prepared, takes its values as parameters and reaches its rows by index whatever they are.
        # So one plan serves for good: planning anew for each call cost a quarter of the end-to-end rate, and plans
        # made from the statistics of a table that was empty a minute ago are the worse ones.
        "plan_cache_mode": "force_generic_plan",
        # And it may well be made while a table is still empty. Then reading all of it looks cheapest, which it is not
        # for long; so rows are looked up one by one. Where no index helps, tables are read as a whole all the same.
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
    }


def _milliseconds(duration: timedelta) -> int:
    return round(duration / timedelta(milliseconds=1))
