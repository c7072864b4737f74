"""The named-SQL loader: what a file may look like, and what it refuses."""

from __future__ import annotations

import pytest

from tidings.db.sql import load_queries, parse_queries

TEXT = """-- What this file is about.

-- name: load_one
-- The row, or none.
-- any project: the key names its project.
SELECT 1; -- one

-- name: load_two
SELECT 2 FROM box
-- within
WHERE project_id = $1;
"""


def test_blocks_are_attributes_without_their_comments() -> None:
    queries = parse_queries(TEXT, "box.sql")
    assert queries.load_two == "SELECT 2 FROM box\n-- within\nWHERE project_id = $1"
    assert queries.load_one is queries.load_one
    assert type(queries.load_one) is str  # the driver takes nothing else
    assert [(block.name, block.binds_project, block.any_project) for block in queries] == [
        ("load_one", False, "the key names its project."),
        ("load_two", True, None),
    ]


def test_a_wrong_name_says_which_there_are() -> None:
    queries = parse_queries(TEXT, "box.sql")
    with pytest.raises(AttributeError, match=r"box\.sql has no block named 'load_three'; it has load_one, load_two"):
        _ = queries.load_three
    with pytest.raises(AttributeError, match="cannot be changed"):
        queries.load_one = "SELECT 3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT 1;\n-- name: later\nSELECT 2", "before the first"),
        ("-- name: twice\nSELECT 1\n-- name: twice\nSELECT 2", "stands there twice"),
        ("-- name: not-a-name\nSELECT 1", "no function name"),
        ("-- name: nothing\n-- but words\n", "is empty"),
    ],
)
def test_broken_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_queries(text, "broken.sql")


def test_files_are_found_beside_their_owner() -> None:
    assert {block.name for block in load_queries("tidings.db", "partitions.sql")} >= {"list_partitions", "any_job"}
    with pytest.raises(FileNotFoundError):
        load_queries("tidings.db", "missing.sql")
    with pytest.raises(ValueError, match="outside of any package"):
        load_queries(None, "partitions.sql")
