"""Each file of the published data is held against something, or stands on the list with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import golden

LATER = {
    "bounces": "mails; tests/contract/test_bounces.py reads the whole folder",
}
"""Folders that no test names file by file."""

TESTS = Path(__file__).parents[1]


def test_every_published_file_is_used_or_listed() -> None:
    if golden.ROOT is None:
        pytest.skip("TIDINGS_CONTRACTS is not set: the published data are not at hand")
    code = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py"))
    files = {
        str(path.relative_to(golden.ROOT))
        for path in golden.ROOT.rglob("*")
        if path.is_file() and path.name != "SOURCES.md" and path.relative_to(golden.ROOT).parts[0] not in LATER
    }
    listed = {file for file, kinds in golden.LISTED.items() if "unused" in kinds}
    exist = files | {str(folder) for file in files for folder in Path(file).parents}
    assert sorted(listed - exist) == [], "these do not exist"
    silent = sorted(file for file in files if not {file, *map(str, Path(file).parents)} & listed and file not in code)
    assert silent == [], 'use them in a test, or list them in exceptions.toml under "unused"'
