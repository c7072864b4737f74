"""Events as they come in where Tidings is run: API processes and a worker over one database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.faults.harness import Project, System, drained, make_project, open_system
from tidings.db.pool import Database

EVENT: dict[str, Any] = {"specversion": "1.0", "source": "/shop", "type": "com.shop.order.shipped"}


@pytest.fixture
async def project(database: Database) -> Project:
    return await make_project(database, users=3)


@pytest.fixture
async def system(database_dsn: str, tmp_path: Path) -> AsyncIterator[System]:
    async with open_system(database_dsn, tmp_path) as system:
        yield system


async def test_events_are_told_once_whichever_process_takes_them(
    system: System, project: Project, database: Database
) -> None:
    (_, at_one), (_, at_two) = await system.api(), await system.api()
    await system.worker()
    async with httpx.AsyncClient(trust_env=False, headers=project.headers, timeout=30) as client:
        rule = {
            "event": {"type": "com.shop.order.*", "source": "/shop"},
            "when": {"data": "order.total", "at_least": 10},
            "type": "note",
            "to": {"user": "data.customer"},
            "data": {"n": "data.order.number"},
        }
        made = await client.put(f"{at_one}/api/v1/event_rules/orders", json=rule)
        assert made.status_code == 201, made.text
        events = [
            {**EVENT, "id": str(n), "data": {"customer": f"u{n % 3}", "order": {"number": n, "total": n}}}
            for n in range(30)
        ]
        headers = {"content-type": "application/cloudevents-batch+json"}

        async def deliver(url: str) -> Any:
            # Until the hint has told this process of the rule: it answers, and makes nothing.
            async with asyncio.timeout(20):
                while True:
                    answer = await client.post(
                        f"{url}/api/v1/events", content=httpx.Request("POST", url, json=events).content, headers=headers
                    )
                    assert answer.status_code == 202, answer.text
                    results = answer.json()["results"]
                    if results[10]["notifications"]:
                        return results
                    await asyncio.sleep(0.05)

        first, second = await asyncio.gather(deliver(at_one), deliver(at_two))
        assert [len(result["notifications"]) for result in first] == [0] * 10 + [1] * 20
        names = [[made["id"] for result in results for made in result["notifications"]] for results in (first, second)]
        assert names[0] == names[1], "both are told of the same notifications"
        await drained(database)
        inbox = (await client.get(f"{at_one}/api/v1/users/u1/inbox")).json()["items"]
        assert sorted(item["title"] for item in inbox) == sorted(f"Note {n}" for n in range(10, 30) if n % 3 == 1)
