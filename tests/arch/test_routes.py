"""Every route asks who calls, or stands on the list of those that do not."""

from __future__ import annotations

from typing import Any, cast

from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from tidings.web.app import OPEN, create_web
from tidings.web.deps import Deps, require


def _requires(dependant: Dependant) -> bool:
    return isinstance(dependant.call, require) or any(map(_requires, dependant.dependencies))


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
        assert _requires(context.dependant), f"{context.path} asks for no scope: take Reader, Sender or Admin"
    assert seen >= OPEN, "a route is listed as open that does not exist"
    assert len(seen) > 10
