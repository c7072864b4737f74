"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.scripted_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """Answers as the test says; what it was asked is in `server.seen`."""
    server = Server()
    yield server
    server.close()
