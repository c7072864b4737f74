"""What the documentation says of the code is true: generated blocks, names to explain, links, commands."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from tidings.cli import app
from tidings.flow.request import Request
from tidings.model.words import CHANNELS_OF_THIS_VERSION, EventKind, Reason, Status

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_blocks_are_in_step(generate: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_every_reason_is_explained() -> None:
    assert set(Reason) <= _anchors(REFERENCE / "reasons.md")


def test_every_problem_is_explained(generate: ModuleType) -> None:
    """The `type` of a problem ends in the anchor of its paragraph."""
    assert {problem.code for problem in generate.list_problems()} <= _anchors(REFERENCE / "errors.md")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("statuses.md", {status.name for status in Status}),
        ("statuses.md", {kind.name for kind in EventKind}),
        ("channels.md", {channel.name for channel in CHANNELS_OF_THIS_VERSION}),
        ("api.md", {field.encode_name for field in msgspec.structs.fields(Request)}),
    ],
)
def test_a_table_names_them_all(page: str, words: set[str]) -> None:
    rows = [line for line in (REFERENCE / page).read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    first = {word for row in rows for word in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert words <= first


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in _anchors(file), f"{target}: there is no such heading"


def test_every_page_is_in_the_navigation() -> None:
    def pages(item: Any) -> set[str]:
        if isinstance(item, str):
            return {item}
        return set().union(*map(pages, item.values() if isinstance(item, dict) else item))

    listed = pages(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"])
    assert listed == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_commands_that_are_shown_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    commands = {name for name in app if not name.startswith("-")}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        code = "\n".join([*re.findall(r"```sh\n(.*?)```", text, re.DOTALL), *re.findall(r"`([^`\n]+)`", text)])
        for target in re.findall(r"(?:^|\s)make ([a-z]+)", code, re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"
        for command in re.findall(r"(?:^|[\s/])tidings ([a-z]+)", code, re.MULTILINE):
            assert command in commands, f"{page.name}: tidings {command}"


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
