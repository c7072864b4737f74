"""Named SQL: loads the `.sql` file that stands beside its owner and hands out its blocks as attributes.

A file is a row of blocks. A block starts with `-- name: some_name`; the comment lines right after it say what it does.
The block's name is the name of the Python function that runs it.

    -- name: load_user
    -- The user, or no row.
    SELECT ... FROM app_user WHERE project_id = $1 AND id = $2

This room knows text only: no connection, no table. An architecture test walks the blocks of every file and asks each
whether it binds its project, or says why not (`-- any project: <reason>`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

_NAME: Final = re.compile(r"^--[ \t]*name:[ \t]*(?P<name>\S+)[ \t]*$", re.MULTILINE)
_IDENTIFIER: Final = re.compile(r"[a-z][a-z0-9_]*")
_EXEMPTION: Final = re.compile(r"^any project:\s*(?P<reason>\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Query:
    """One block, as tests look at it."""

    name: str
    """Name of the block, and of the function that runs it."""
    text: str
    comment: str
    """The comment lines that follow the name, without their dashes."""
    source: str
    """File name, for messages."""

    @property
    def binds_project(self) -> bool:
        """Whether the text names the column `project_id` outside of its comments."""
        return re.search(r"\bproject_id\b", re.sub(r"--[^\n]*", "", self.text)) is not None

    @property
    def any_project(self) -> str | None:
        """The reason that the block gives (`-- any project: <reason>`) for not binding a project, if it gives one."""
        found = _EXEMPTION.search(self.comment)
        return found["reason"] if found else None


class Queries:
    """The blocks of one file, immutable: `queries.block_name` is a block's text, iteration gives the blocks."""

    __slots__ = ("_blocks", "_source", "_texts")

    _blocks: tuple[Query, ...]
    _source: str
    _texts: Mapping[str, str]

    def __init__(self, source: str, blocks: Iterable[Query]) -> None:
        object.__setattr__(self, "_source", source)
        object.__setattr__(self, "_blocks", tuple(blocks))
        # Plain str, always the same object: the driver takes no other and finds its prepared statement by identity.
        object.__setattr__(self, "_texts", {block.name: block.text for block in self._blocks})

    def __getattr__(self, name: str) -> str:
        try:
            return self._texts[name]
        except KeyError:
            known = ", ".join(sorted(self._texts)) or "nothing"
            raise AttributeError(f"{self._source} has no block named {name!r}; it has {known}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"the queries of {self._source} cannot be changed")

    def __iter__(self) -> Iterator[Query]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def __repr__(self) -> str:
        return f"<Queries {self._source}: {len(self._blocks)} blocks>"


def load_queries(package: str | None, file_name: str) -> Queries:
    """The blocks of `file_name` in the folder of `package`, read and parsed once, when the owner is imported.

    Asking the result for a block that does not exist raises `AttributeError`, so an owner that binds its blocks at
    module level (`CLAIM_JOBS = queries.claim_jobs`) fails at import.

    Args:
        package: `__package__` of the owner.
        file_name: `claim.sql`.

    Raises:
        ValueError: text before the first name, a name twice, a name that is no Python identifier, an empty block.
    """
    if not package:
        raise ValueError(f"{file_name} is asked for by a module outside of any package")
    text = files(package).joinpath(file_name).read_text(encoding="utf-8")
    return parse_queries(text, f"{package.replace('.', '/')}/{file_name}")


def parse_queries(text: str, source: str) -> Queries:
    """The blocks of one file's text; see :func:`load_queries` for the errors."""
    marks = list(_NAME.finditer(text))
    head = text[: marks[0].start()] if marks else text
    if any(line.strip() and not line.lstrip().startswith("--") for line in head.splitlines()):
        raise ValueError(f"{source}: statements stand before the first '-- name:' line")
    blocks: dict[str, Query] = {}
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        name = mark["name"]
        if not _IDENTIFIER.fullmatch(name):
            raise ValueError(f"{source}: {name!r} is no function name")
        if name in blocks:
            raise ValueError(f"{source}: the block {name!r} stands there twice")
        body = text[mark.end() : following.start() if following else len(text)].strip("\n")
        comment, statement = _split_comment(body)
        if not statement:
            raise ValueError(f"{source}: the block {name!r} is empty")
        blocks[name] = Query(name, statement, comment, source)
    return Queries(source, blocks.values())


def _split_comment(body: str) -> tuple[str, str]:
    """The leading comment lines without dashes, and the statement, without a closing semicolon."""
    lines = body.splitlines()
    count = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("--")), len(lines))
    comment = "\n".join(line.removeprefix("--").strip() for line in lines[:count] if line.strip())
    # A trailing semicolon would make an empty second statement, which the extended protocol refuses.
    return comment, "\n".join(lines[count:]).strip().rstrip(";").rstrip()
