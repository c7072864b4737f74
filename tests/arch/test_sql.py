"""Every statement binds its project, and every table has one room that writes it.

Which room may import which is import-linter's (`make check`); what this file adds is what imports do not show.
"""

from __future__ import annotations

import re
from pathlib import Path

from tidings.db.sql import parse_queries

SOURCE = Path(__file__).parents[2] / "src" / "tidings"
BLOCKS = [
    query
    for path in sorted(SOURCE.rglob("*.sql"))
    if "migrations" not in path.parts
    for query in parse_queries(path.read_text(encoding="utf-8"), str(path.relative_to(SOURCE)))
]

WRITERS = {
    "engine": "job account_state account_usage project_pace",
    "flow": """
        broadcast broadcast_cohort digest_window digest_item
        notification run delivery event provider_ref dead_letter suppression inbox_counter inbox_item
        dimension rollup_delta rollup idempotency
        hook_message webhook_health early_receipt inbound_message
        cap_counter user_engagement send_once
        address""",  # settling drops one that the provider calls gone
    "directory": """
        project api_key key_budget app_user address category template template_version type type_version account audit
        account_state blob hook suppression
        inbox_item inbox_counter
        consent user_engagement
        topic topic_member segment segment_slot
        event_rule erasure""",
    # An account's state is born with it; deleting a user empties their inbox and forgets how active they were;
    # some suppress and lift by hand.
    "web": "idempotency",  # the hot routes claim keys in their group commit, all others one by one
}
"""The tables that each room may write. A table that nobody may write belongs to nobody: give it to one room."""

WRITE = re.compile(r"\b(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM)\s+(?:ONLY\s+)?([a-z_]+)")


def test_every_block_binds_its_project_or_says_why_not() -> None:
    loose = [f"{q.source}: {q.name}" for q in BLOCKS if not (q.binds_project or q.any_project)]
    assert not loose, "bind project_id, or say `-- any project: <reason>`"


def test_every_table_is_written_by_its_room_only() -> None:
    trespasses = [
        f"{query.source}: {query.name} writes {table}"
        for query in BLOCKS
        for table in WRITE.findall(re.sub(r"--[^\n]*", "", query.text))
        if table not in WRITERS.get(query.source.partition("/")[0], "").split()
    ]
    assert not trespasses


def test_every_block_is_run() -> None:
    for query in BLOCKS:
        users = (SOURCE / query.source).parent.glob("*.py")
        used = re.compile(rf"\.{query.name}\b")
        assert any(used.search(path.read_text(encoding="utf-8")) for path in users), f"{query.source}: {query.name}"


def test_no_statement_that_writes_stands_in_python() -> None:
    for path in SOURCE.rglob("*.py"):
        found = re.search(r"INSERT INTO|DELETE FROM|UPDATE [a-z_]+ SET", path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(SOURCE)}: {found[0]} belongs in a .sql file"
