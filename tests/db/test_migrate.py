"""Migrations: once, whoever calls; from any path; and without slowing down those who only look."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tidings
from tidings.db.migrate import current_revision, migrate, pending
from tidings.errors import DatabaseUnavailable


async def test_many_migrators_apply_each_revision_once(empty_dsn: str) -> None:
    assert await current_revision(empty_dsn) is None
    waiting = await pending(empty_dsn)
    assert waiting[0] == "0001"
    applied = await asyncio.gather(*(migrate(empty_dsn) for _ in range(4)))
    assert sorted(applied, key=len) == [[], [], [], waiting]
    assert await current_revision(empty_dsn) == waiting[-1]
    assert await pending(empty_dsn) == []


async def test_the_package_may_lie_in_an_odd_path(empty_dsn: str, tmp_path: Path) -> None:
    home = tmp_path / "100%s sure, it's odd"
    shutil.copytree(Path(tidings.__file__).parent, home / "tidings", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import asyncio, sys, tidings.db.migrate as m; assert m.__file__.startswith(sys.argv[1]), m.__file__;"
        "print(asyncio.run(m.migrate(sys.argv[2])))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(home), empty_dsn, env={**os.environ, "PYTHONPATH": str(home)}
    )
    assert await process.wait() == 0
    assert await pending(empty_dsn) == []


def test_looking_at_the_revision_does_not_load_alembic() -> None:
    script = "import sys, tidings.db.migrate; sys.exit('alembic' in sys.modules or 'sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


async def test_no_server() -> None:
    with pytest.raises(DatabaseUnavailable):
        await migrate("postgresql://tidings@127.0.0.1:1/tidings")
