"""Every route asks who calls, or stands on the list of those that do not."""

from __future__ import annotations

from typing import Any, cast

from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from tidings.web.app import OPEN, create_web
from tidings.web.deps import Deps, require
from tidings.web.inbox.door import is_inbox, of_user
from tidings.web.inbox.stream import SOCKET


def _asks(dependant: Dependant, kind: type) -> bool:
    return isinstance(dependant.call, kind) or any(_asks(inner, kind) for inner in dependant.dependencies)


def test_every_route_requires_a_scope_or_is_listed() -> None:
    class Nothing:
        """Stands for what no route touches while it is only looked at."""

        def __getattr__(self, name: str) -> Any:
            return Nothing()

    app = create_web(cast(Deps, Nothing()))
    seen = set()
    for context in iter_route_contexts(app.routes):
        assert context.path is not None
        seen.add(context.path)
        if context.path in OPEN:
            continue
        assert context.path.startswith("/api/v1/"), f"{context.path} is neither in the API nor listed as open"
        if is_inbox(context.path):
            # The edge asks for a user token on these paths and on no others. It does not see WebSockets: theirs asks at
            # the same door itself, before it accepts (tests/e2e/inbox/test_inbox_live.py sees to that).
            assert not _asks(context.dependant, require), f"{context.path} is a user's, and asks for a key's scope"
            assert _asks(context.dependant, of_user) or context.path == SOCKET, f"{context.path}: take AsUser"
        else:
            assert _asks(context.dependant, require), f"{context.path} asks for no scope: take Reader, Sender or Admin"
            assert not _asks(context.dependant, of_user), f"{context.path} is outside the inbox: no user comes here"
    assert seen >= OPEN, "a route is listed as open that does not exist"
    assert len(seen) > 10
