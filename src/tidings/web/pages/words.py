"""The languages of the pages: one file each in `locales/`, all with the same words."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

import msgspec

DEFAULT: Final = "en"
_ASKED_MAX: Final = 20
"""Languages of a request that are looked at."""


class Words:
    """What the pages say in one language."""

    def __init__(self, language: str, texts: Mapping[str, str]) -> None:
        self.language: Final = language
        self.texts: Final = texts

    def __call__(self, key: str, **values: str) -> str:
        """A text, with these values in it."""
        return self.texts[key].format_map(values) if values else self.texts[key]


@cache
def load_words() -> Mapping[str, Words]:
    """By language."""
    found = {}
    for file in files(__package__).joinpath("locales").iterdir():
        language, _, ending = file.name.partition(".")
        if ending == "json":
            found[language] = Words(language, msgspec.json.decode(file.read_bytes(), type=dict[str, str]))
    return found


def choose_words(locale: str | None, accept: str) -> Words:
    """The words for somebody: in their own language, else in one that their browser asks for, else in English.

    Args:
        locale: the user's, if it is known.
        accept: the header `Accept-Language` (https://www.rfc-editor.org/rfc/rfc9110#section-12.5.4).
    """
    known = load_words()
    for tag in (locale or "", *_list_asked(accept)):
        if (found := known.get(tag.partition("-")[0].lower())) is not None:
            return found
    return known[DEFAULT]


def _list_asked(accept: str) -> list[str]:
    """The languages that a browser asks for, the best one first."""
    asked: list[tuple[float, int, str]] = []
    for part in accept.split(",", _ASKED_MAX)[:_ASKED_MAX]:
        tag, _, parameter = part.partition(";")
        name, _, value = parameter.partition("=")
        try:
            weight = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            continue
        if weight > 0:  # 0: not this one
            asked.append((-weight, len(asked), tag.strip()))
    return [tag for *_, tag in sorted(asked)]
