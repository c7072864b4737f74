"""Migrations: Alembic walks the revisions, each of which runs the hand-written `.sql` file beside it.

This room knows revisions and locks; what a revision does is in `migrations/versions`. There are no downgrades: a
release expands the schema, a later one contracts it, so that two neighbouring releases can run at the same time.

Alembic and SQLAlchemy are imported inside the functions: together they cost a quarter of a second of start-up, and the
API, the workers and the CLI import this module for nothing but a look at the revision.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from tidings.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

_LOCK: Final = 0x7469_6469_6E67_7301
"""Advisory lock ("tidings", 1): one migrator at a time in a database."""

_LOCK_TIMEOUT: Final = "5s"
"""A migration that waits for a table lock makes everybody queue behind it; better it fails and is repeated."""

_STATEMENT_TIMEOUT: Final = "15min"


async def migrate(dsn: str) -> list[str]:
    """Brings the schema to the newest revision; any number of processes may call this at once.

    Each revision commits on its own. Gives the revisions that this call applied, oldest first.

    Raises:
        DatabaseUnavailable: nothing answers at `dsn`.
        asyncpg.PostgresError, sqlalchemy.exc.SQLAlchemyError: a statement failed; its revision left no trace.
    """
    from alembic import command
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    config = _config()

    def upgrade(connection: Any) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    guard = await _connect(dsn)
    try:
        # Polled, not waited for (ASYNC110 knows events of this process only): a waiting statement holds a snapshot, and
        # CREATE INDEX CONCURRENTLY in the migrating process would wait for that snapshot while we wait for its lock.
        while not await guard.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):  # noqa: ASYNC110 -- see above
            await asyncio.sleep(0.05)
        before = await _revision(guard)
        waiting = _pending(before)
        if waiting:
            # asyncpg opens the connection itself: its DSN knows sockets and TLS files that SQLAlchemy's URL does not.
            engine = create_async_engine(
                "postgresql+asyncpg://", async_creator=lambda: _connect(dsn), poolclass=NullPool
            )
            try:
                async with engine.connect() as connection:
                    await connection.run_sync(upgrade)
                    await connection.commit()
            finally:
                await engine.dispose()
        return waiting
    finally:
        await guard.close()


async def current_revision(dsn: str) -> str | None:
    """The revision that the schema is at, or None for an empty database."""
    connection = await _connect(dsn)
    try:
        return await _revision(connection)
    finally:
        await connection.close()


async def pending(dsn: str) -> list[str]:
    """Revisions that :func:`migrate` would apply, oldest first."""
    return _pending(await current_revision(dsn))


def apply_script(revision_file: str) -> None:
    """Runs the `.sql` file beside a revision's Python file; for `upgrade()` of a revision, with its `__file__`.

    The text goes to the server as one script, so that function bodies and DO blocks need no splitting here.
    """
    from alembic import op

    script = Path(revision_file).with_suffix(".sql").read_text(encoding="utf-8")
    connection = op.get_bind()
    # The first of these also makes SQLAlchemy's driver begin the transaction, which the raw connection then is in.
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'")
    adapted: Any = connection.connection.dbapi_connection
    adapted.run_async(lambda raw: raw.execute(script))


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    # As a package resource, not as a path: paths would be interpolated (`%`) and split (blanks).
    config.set_main_option("script_location", "tidings.db:migrations")
    return config


def _pending(current: str | None) -> list[str]:
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(_config())
    return [revision.revision for revision in script.iterate_revisions("head", current or "base")][::-1]


async def _revision(connection: Any) -> str | None:
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return revision


async def _connect(dsn: str) -> Any:
    try:
        return await asyncpg.connect(
            dsn, timeout=10, server_settings={"application_name": "tidings-migrate", "timezone": "UTC"}
        )
    except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError) as error:
        raise DatabaseUnavailable(f"The database cannot be reached: {str(error) or type(error).__name__}") from error
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise DatabaseUnavailable(f"The database refuses the connection: {error}") from error
