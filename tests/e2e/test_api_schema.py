"""Schemathesis against the documented API on a real socket: nothing breaks, nothing undocumented is answered."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import uvicorn


async def test_the_api_answers_as_it_is_documented(tenant: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # asyncio sets this only on sockets that name TCP as their protocol; without it each answer waits 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(tenant.api.app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/openapi.json"),
                *("--header", f"Authorization: Bearer {tenant.token}"),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--seed", "7", "--no-color"),
                # A document cannot say what an address or a template is; what fits it may still be refused with 422.
                *("--exclude-checks", "positive_data_acceptance"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            told, _ = await process.communicate()
        finally:
            server.should_exit = True
            await serving
    assert process.returncode == 0, told.decode()
