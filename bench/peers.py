"""The peers: what the same machine does with less to do.

- Celery moving an *empty* task over Redis: no database, no durability, no work;
- a bare aiohttp loop that does only the provider call, 64 at a time.

    python -m bench.peers aiohttp PORT COUNT
    python -m bench.peers publish COUNT          (with BENCH_REDIS_PORT)
    celery -A bench.peers worker                 (with BENCH_REDIS_PORT)
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
import uvloop

CHECKOUT: Final = Path(__file__).resolve().parents[1]
REDIS_PORT: Final = "BENCH_REDIS_PORT"
_BODY: Final = b'{"event": "order_shipped", "order": "A-1", "user": "u-1"}'


async def run_aiohttp(port: int, count: int) -> float:
    """Calls per second of the bare loop, in a process of its own."""
    return float(await _run("-m", "bench.peers", "aiohttp", str(port), str(count)))


async def _call(port: int, count: int) -> float:
    left = count
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64), trust_env=False) as session:

        async def work() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                headers = {"Content-Type": "application/json", "webhook-id": str(left)}
                async with session.post(f"http://127.0.0.1:{port}/", data=_BODY, headers=headers) as answer:
                    await answer.read()

        await asyncio.gather(*(work() for _ in range(64)))  # connections
        left = count
        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(64)))
        return count / (time.perf_counter() - began)


def celery_version() -> str:
    """The installed version."""
    from importlib.metadata import version

    return version("celery")


async def run_celery(folder: Path, count: int) -> tuple[float, float] | None:
    """Tasks a second that one process publishes, and that a worker with a process a core takes; None without Redis."""
    server = _find_redis()
    if server is None:
        return None
    port = _free_port()
    environment = {**os.environ, REDIS_PORT: str(port)}
    with (folder / "redis.log").open("wb") as log, (folder / "celery.log").open("wb") as celery_log:
        redis = await asyncio.create_subprocess_exec(
            server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
        try:
            await _wait_for_port(port)
            published = float(await _run("-m", "bench.peers", "publish", str(count), env=environment))
            worker = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "celery", "-A", "bench.peers", "worker", "--loglevel", "error",
                "--concurrency", str(os.cpu_count() or 1), "--without-gossip", "--without-mingle",
                stdin=asyncio.subprocess.DEVNULL, stdout=celery_log, stderr=celery_log, cwd=CHECKOUT, env=environment,
            )  # fmt: skip
            try:
                consumed = float(await _run("-m", "bench.peers", "consumed", str(count), env=environment))
            finally:
                worker.terminate()
                await worker.wait()
        finally:
            redis.terminate()
            await redis.wait()
    return published, consumed


def _find_redis() -> str | None:
    """The path of redis-server; Debian's package is installed for it when we may do that."""
    if (found := shutil.which("redis-server")) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "redis-server"]
        subprocess.run(install, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        found = shutil.which("redis-server")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _wait_for_port(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return


async def _run(*arguments: str, env: dict[str, str] | None = None) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, cwd=CHECKOUT, env=env
    )
    try:
        out, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed")
    return json.loads(out)  # type: ignore[no-any-return]  # a number, printed below


# ---------------------------------------------------------------- within the peers' own processes


def _make_celery() -> Any:
    from celery import Celery  # type: ignore[import-untyped]  # it has no types

    app = Celery("bench.peers", broker=f"redis://127.0.0.1:{os.environ[REDIS_PORT]}/0")
    app.conf.update(task_ignore_result=True, worker_hijack_root_logger=False)

    @app.task(name="empty")  # type: ignore[untyped-decorator]  # Celery has no types
    def empty() -> None:
        """Nothing."""

    return app


if REDIS_PORT in os.environ:
    app = _make_celery()
    """What `celery -A bench.peers` looks for."""


def _publish(count: int) -> float:
    """Publish `count` tasks; the first hundred warm up."""
    task = app.tasks["empty"]
    for _ in range(100):
        task.delay()
    began = time.perf_counter()
    for _ in range(count):
        task.delay()
    return count / (time.perf_counter() - began)


def _watch_consuming(count: int) -> float:
    """Tasks per second that a worker takes off the queue, from a tenth of `count` on to the end."""
    from redis import Redis

    redis = Redis(port=int(os.environ[REDIS_PORT]))
    full = count + 100
    first: tuple[float, int] | None = None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        left = int(redis.llen("celery"))
        if first is None and left < full * 0.9:
            first = time.perf_counter(), left
        if left == 0 and first is not None:
            return first[1] / (time.perf_counter() - first[0])
        time.sleep(0.005)
    raise RuntimeError("the Celery worker did not finish")


def main() -> None:
    match sys.argv[1:]:
        case ["aiohttp", port, count]:
            print(json.dumps(uvloop.run(_call(int(port), int(count)))))
        case ["publish", count]:
            print(json.dumps(_publish(int(count))))
        case ["consumed", count]:
            print(json.dumps(_watch_consuming(int(count))))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
