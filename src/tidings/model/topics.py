"""Topic keys and patterns: `project/42/comments`, and `project/42/#` for all below. Pure.

Keys are ordered by octets, so whatever a pattern matches stands in one range of them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

TOPIC_KEY_MAX: Final = 200
"""Characters of a key."""
EVERYTHING_BELOW: Final = "#"
"""The last part of a pattern: what stands before it, and all that begins with it and a slash."""
MEMBERS: Final = "members"
"""No key ends in this part: `/topics/{key}/members` is another resource."""

_KEY: Final = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


class TopicRange(NamedTuple):
    """The keys that a pattern matches: `low <= key < high and (key == low or key >= below)`, compared by octets.

    The last part leaves out what sorts between a key and what is below it: `project/42-old`, for `project/42/#`.
    """

    low: str
    high: str
    """Exclusive."""
    below: str

    def holds(self, key: str) -> bool:
        """Whether the pattern matches this key. The characters of keys compare as their octets do."""
        return self.low <= key < self.high and (key == self.low or key >= self.below)


def parse_topic_key(text: str) -> str:
    """The key, if it may be one.

    Raises:
        ValueError: it may not; the text says what to mend.
    """
    if len(text) > TOPIC_KEY_MAX or not _KEY.fullmatch(text):
        raise ValueError(
            f"must have 1 to {TOPIC_KEY_MAX} characters: parts of a-z, A-Z, 0-9, `.`, `_` and `-`, joined by `/`"
        )
    parts = text.split("/")
    if not {".", ".."}.isdisjoint(parts):
        raise ValueError("must not have a part `.` or `..`, which no URL can carry")
    if parts[-1] == MEMBERS:
        raise ValueError(f"must not end in `{MEMBERS}`, which names the members of a topic")
    return text


@lru_cache(maxsize=4096)
def parse_pattern(text: str) -> TopicRange:
    """The range of a pattern: a key matches itself, `a/b/#` matches `a/b` and everything below, `#` everything.

    Raises:
        ValueError: it is no pattern; the text says what to mend.
    """
    if text == EVERYTHING_BELOW:
        return TopicRange("", "{", "")  # `{` follows on `z`
    head, slash, last = text.rpartition("/")
    if slash and last == EVERYTHING_BELOW:
        low = _parse_head(head)
        return TopicRange(low, low + "0", low + "/")  # `0` follows on `/`
    if "#" in text or "+" in text:
        raise ValueError("has a wildcard elsewhere; only a last part `#` is one, as in `project/42/#`")
    low = parse_topic_key(text)
    return TopicRange(low, low + "-", low)  # `-` is the first character that a longer key can go on with


def _parse_head(text: str) -> str:
    """What stands before `/#`. It may end as no key does: `project/members/#` has keys below it."""
    parse_topic_key(f"{text}/x")
    return text
