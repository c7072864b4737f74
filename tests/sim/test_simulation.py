"""The road under faults: many seeds, each a world of API and worker processes that crash, freeze and lose connections.

`TIDINGS_SIM_SEEDS=n` runs more seeds, `TIDINGS_SIM_SEED=n` one of them again: everything that happens follows from the
seed, the interleaving of the transactions included.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import structlog

from tests.sim.checks import find_faults, load_facts
from tests.sim.virtual import VirtualLoop, admin_connection
from tests.sim.world import (
    HISTORY,
    LEASE,
    OWNER,
    Api,
    People,
    Postman,
    Process,
    WorkerProcess,
    World,
    midnight_is_near,
    settle_in,
)
from tidings.db.pool import Database

CHAOS_ENDS = 16.0
"""Virtual seconds; afterwards nothing fails any more, and the world has to come to rest."""
REST_BY = 300.0

ONE = os.environ.get("TIDINGS_SIM_SEED")
SEEDS = [int(ONE)] if ONE else range(int(os.environ.get("TIDINGS_SIM_SEEDS", "50")))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_promise_is_broken(seed: int, postgres_dsn: str, template_database: str) -> None:
    random.seed(seed)  # the pool of connections spreads its retries with the module's generator
    loop = VirtualLoop(random.Random(f"turns {seed}"))
    loop.set_task_factory(_owned)
    with (
        asyncio.Runner(loop_factory=lambda: loop) as runner,
        structlog.testing.capture_logs(),
    ):
        broken = runner.run(simulate(loop, seed, postgres_dsn, template_database))
    if broken:
        shown = "\n  ".join(broken[:20])
        pytest.fail(
            f"seed {seed}: {len(broken)} broken promises (again: make sim SEED={seed})\n  {shown}", pytrace=False
        )


async def simulate(loop: VirtualLoop, seed: int, server: str, template: str) -> list[str]:
    """One world from its beginning to its rest; answers with the promises that were broken."""
    name = f"{template}_sim_{seed}"
    dsn = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    with loop.real():
        async with admin_connection(server) as admin:
            await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    try:
        world = World(loop, dsn, seed, midnight_is_near(seed))
        with loop.real():
            loop.admin = await asyncpg.connect(dsn)
            await loop.admin.execute(HISTORY)
            async with await Database.connect(dsn) as database:
                await settle_in(world, database)
        broken = await run(world)
        with loop.real():
            facts = await load_facts(loop.admin)
        return [*broken, *find_faults(world, facts)]
    finally:
        with loop.real():
            if loop.admin is not None:
                loop.admin.terminate()
            async with admin_connection(server) as admin:
                await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def run(world: World) -> list[str]:
    """Let everybody live until the work is done."""
    loop, rng = world.loop, world.rng("fate")
    world.chaos = rng.choice((0.3, 1.0, 2.0))
    names = itertools.count(1)

    async def start(kind: type[Process]) -> Process:
        process = kind(world, f"{kind.__name__.lower()}-{next(names)}")
        with loop.real():
            await process.start()
        return process

    apis = [await start(Api) for _ in range(2)]
    workers = [await start(WorkerProcess) for _ in range(rng.choice((1, 2, 2, 3)))]
    people = People(world, apis)  # type: ignore[arg-type]  # they are Api processes
    lives = [asyncio.create_task(people.live(CHAOS_ENDS)) for _ in range(2)]
    postman = Postman(world, apis)  # type: ignore[arg-type]  # the same
    post = asyncio.create_task(postman.live())
    broken: list[str] = []
    try:
        while loop.time() < REST_BY:
            await asyncio.sleep(rng.uniform(0.5, 1.5))
            if loop.time() > CHAOS_ENDS:
                world.chaos = 0.0
            elif rng.random() < 0.12 * world.chaos:
                victim = rng.choice(apis + workers + workers)
                if rng.random() < 0.7:
                    victim.frozen_until = loop.time() + rng.uniform(0.5, 2.0) * LEASE.total_seconds()
                    world.faults.append(f"{victim.name} froze")
                else:
                    await victim.crash()
            for group in (apis, workers):
                for i, process in enumerate(group):
                    if process.dead:
                        group[i] = await start(type(process))
            left = (await loop.ask("SELECT count(*) FROM job"))[0][0]
            if not left and loop.time() > CHAOS_ENDS and all(life.done() for life in lives) and postman.idle:
                break
        else:
            broken.append(f"not at rest after {REST_BY} s")
        if post.done():
            post.result()
        post.cancel()
        for life in lives:
            if life.done():
                life.result()
            life.cancel()
    finally:
        world.chaos = 0.0
        for process in (*apis, *workers):
            await process.crash()
    return broken


def _owned(loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
    """Tasks belong to the process that starts them, and do not start in a dead one."""
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **more)
    owner = OWNER.get()
    if owner is not None:
        owner.tasks.add(task)
        task.add_done_callback(owner.tasks.discard)
        if owner.dead:
            task.cancel()
    return task
