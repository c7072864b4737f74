"""The shape that every channel's file fills in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tidings.errors import RenderError
from tidings.model.messages import Content
from tidings.model.words import Channel

Kind = Literal["text", "html", "json"]
"""How values are escaped when a template puts them into a field of this kind."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class ChannelRules:
    """One channel. Lengths are in octets of UTF-8 unless said otherwise."""

    channel: Channel
    fields: Mapping[str, Kind]
    """The fields that a template of this channel may have."""
    required: frozenset[str]
    """Those that it must have."""
    one_of: frozenset[str]
    """Of these it must have at least one; empty: no such rule."""
    max_content: int
    """The largest content, all fields together."""
    parse_address: Callable[[str], str]
    """The address in its one normal form. Raises ValueError with a sentence that says what to mend."""
    build: Callable[[Mapping[str, str]], Content]
    """Content of rendered fields, when all general rules hold; see :meth:`to_content`."""

    def find_problem(self, names: frozenset[str]) -> str | None:
        """What is wrong with a template that has just these fields, as a sentence; None if nothing is."""
        if unknown := names - self.fields.keys():
            return f"{self.channel.name} has no field {sorted(unknown)[0]!r}; it has {', '.join(self.fields)}."
        if missing := self.required - names:
            return f"{self.channel.name} needs the field {sorted(missing)[0]!r}."
        if self.one_of and not self.one_of & names:
            return f"{self.channel.name} needs at least one of the fields {' and '.join(sorted(self.one_of))}."
        return None

    def to_content(self, parts: Mapping[str, str]) -> Content:
        """The channel's content from rendered fields.

        Raises:
            RenderError: a field is missing, empty, unfit (a line end in a mail header, JSON that is none), or the
                whole is too large. The sentence names the field and quotes no content.
        """
        if (problem := self.find_problem(frozenset(parts))) is not None:
            raise RenderError(problem)
        for name in self.required:
            if not parts[name].strip():
                raise RenderError(f"The field {name!r} is empty after rendering.")
        size = 0
        for name, value in parts.items():
            try:
                size += len(value.encode())
            except UnicodeEncodeError:
                raise RenderError(f"The field {name!r} holds half of a surrogate pair, which is no text.") from None
        if size > self.max_content:
            raise RenderError(
                f"The message has {size:,} octets; {self.channel.name} takes at most {self.max_content:,}."
            )
        return self.build(parts)


def refuse_control(name: str, value: str) -> str:
    """The value, stripped of spaces around it, when it may stand in a header or a single line.

    Raises:
        RenderError: it holds a line end, NUL or another control character.
    """
    value = value.strip(" ")
    if _CONTROL.search(value):
        raise RenderError(f"The field {name!r} holds a line end or another control character; it must be one line.")
    return value
