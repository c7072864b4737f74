"""House rules that no tool knows: where the environment is read, names, sizes, silenced checks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tidings.telemetry import Metrics

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tidings"
FILES = sorted(SOURCE.rglob("*.py"))

READ_THE_ENVIRONMENT = {
    "settings.py": "all settings, for everybody",
    "cli/reach.py": "where the API is, for the commands that are its clients",
    "client/clients.py": "the same for programs; the client knows no settings",
}

LINES = 600
LONGER = {
    "db/embedded.py": "one supervisor, whose steps have to be read together",
}
"""Files with more than `LINES` lines, and why they are not two."""

FORBIDDEN = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "service", "services", "misc"}


def _name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


VENDORS_WORDS = re.compile("service_?account", re.IGNORECASE)
"""What a vendor calls a thing is its name: Google's service accounts."""


def _words(name: str) -> set[str]:
    name = VENDORS_WORDS.sub("", name)
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def test_only_settings_read_the_environment() -> None:
    reads = re.compile(r"\bos\.(environ|getenv)\b|\bfrom os import .*(environ|getenv)")
    assert {
        _name(path) for path in FILES if reads.search(path.read_text(encoding="utf-8"))
    } == READ_THE_ENVIRONMENT.keys()


def test_names_say_what_a_thing_is() -> None:
    for path in FILES:
        names = {part.removesuffix(".py") for part in path.relative_to(SOURCE).parts}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
        assert not {name for name in names if _words(name) & FORBIDDEN}, _name(path)


def test_modules_say_what_they_are() -> None:
    silent = [_name(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


def test_long_files_are_listed_with_a_reason() -> None:
    long = {_name(path) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > LINES}
    assert long == LONGER.keys(), "split it, or say why it is one thing; take it off the list when it is short again"


def test_silenced_checks_have_a_reason_beside_them() -> None:
    bare = re.compile(r"# type: ignore(\[[\w, -]+\])?\s*$|# noqa(: ?[A-Z0-9, ]+)?\s*$", re.MULTILINE)
    found = [
        f"{_name(path)}: {silenced[0]}"
        for path in FILES
        for silenced in bare.finditer(re.sub(r"^# ruff: noqa.*$", "", path.read_text(encoding="utf-8"), flags=re.M))
    ]
    assert not found


def test_nothing_is_left_to_do() -> None:
    for path in FILES:
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text(encoding="utf-8")), _name(path)


def test_every_metric_is_counted_somewhere() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in FILES)
    for name in vars(Metrics()):
        if not name.startswith("_") and name != "registry":
            assert re.search(rf"metrics\.{name}\b|self\.{name}\.", code), f"{name} is declared and never counted"
