"""Named points at which a simulation injects faults; in production they do nothing.

The names are `stage.before`, `stage.commit` (the statements are done, the transaction is not) and `stage.after`, for
the stages accept, plan, claim, send and settle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Checkpoint = Callable[[str], Awaitable[None]]


async def no_checkpoint(_: str) -> None:
    """The production form: nothing happens here."""
