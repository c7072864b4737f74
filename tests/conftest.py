"""Fixtures that every tier may use: a real PostgreSQL, and a fresh, migrated database for each test.

`TIDINGS_TEST_DATABASE_URL` names an existing server (a role that may create databases); without it, each test process
starts a private one. Databases are cloned from a template, which takes some ten milliseconds.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from hypothesis import settings

from tidings.db.embedded import EmbeddedServer
from tidings.db.migrate import migrate
from tidings.db.partitions import ensure_partitions
from tidings.db.pool import Database

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("tidings", deadline=None)
settings.load_profile("tidings")

# Nobody minds if a test database is lost with the machine's power.
VOLATILE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "64MB"}

_number = itertools.count(1)


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A short folder that also the unprivileged user who runs PostgreSQL can enter (pytest's own is 0700)."""
    folder = Path(tempfile.mkdtemp(prefix="tidings-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_dsn(server_folder: Path) -> Iterator[str]:
    """URL of the server that holds the test databases."""
    if existing := os.environ.get("TIDINGS_TEST_DATABASE_URL"):
        yield existing
        return
    with EmbeddedServer(server_folder / "postgres", VOLATILE) as server:
        yield server.dsn


@pytest.fixture(scope="session")
def template_database(postgres_dsn: str) -> Iterator[str]:
    """Name of the migrated database that tests get copies of; it has the partitions around today."""
    name = f"tidings_test_{os.getpid()}_template"

    async def make() -> None:
        await _run_sql(postgres_dsn, f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}")
        dsn = with_database(postgres_dsn, name)
        await migrate(dsn)
        async with (
            await Database.connect(dsn, application_name="tidings-test") as migrated,
            migrated.acquire() as connection,
        ):
            await ensure_partitions(connection, datetime.now(UTC), days_ahead=2)

    asyncio.run(make())
    yield name
    asyncio.run(_run_sql(postgres_dsn, f"DROP DATABASE {name}"))


@pytest.fixture
async def database_dsn(postgres_dsn: str, template_database: str) -> AsyncIterator[str]:
    """URL of a fresh copy of the template; dropped afterwards, whoever is still connected."""
    name = f"tidings_test_{os.getpid()}_{next(_number)}"
    await _clone(postgres_dsn, name, template_database)
    yield with_database(postgres_dsn, name)
    await _run_sql(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def empty_dsn(postgres_dsn: str) -> AsyncIterator[str]:
    """URL of a fresh database with nothing in it."""
    name = f"tidings_test_{os.getpid()}_{next(_number)}"
    await _run_sql(postgres_dsn, f"CREATE DATABASE {name}")
    yield with_database(postgres_dsn, name)
    await _run_sql(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    """A pool on a fresh, migrated database."""
    async with await Database.connect(database_dsn, application_name="tidings-test") as connected:
        yield connected


def with_database(dsn: str, name: str) -> str:
    """The same server's URL for another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


async def _clone(dsn: str, name: str, template: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        # Copying files is three times as fast as logging pages, for a small template; PostgreSQL 14 does it anyway.
        strategy = "STRATEGY file_copy" if connection.get_server_version().major >= 15 else ""
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} {strategy}")
    finally:
        await connection.close()


async def _run_sql(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()
