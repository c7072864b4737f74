"""Fixtures of the unit tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for the modules beside this file that are no tests

from scripted_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """Answers as the test says; what it was asked is in `server.seen`."""
    server = Server()
    yield server
    server.close()
