"""What a template may say: a subset of Jinja, checked token by token before the engine sees it.

minijinja keeps no file access and no Python internals from templates by itself, and its fuel ends endless loops. It
does not bound memory: `{% set a = a ~ a %}` sixty times, a format width of a billion, or `"x" * 10**8` take the
process down, and an allocation that fails in the engine cannot be caught. So this module allows only what can be
bounded, and rewrites each tag so that its size is:

- values grow only by `~` and `+`, at most `MAX_OPERATIONS` times in a tag, and by the filters of filters.py;
- whatever is printed, bound (`set`), looped over (`for`) or tested (`if`) after an operation passes through the filter
  `_bounded`, which measures it and looks at the clock; all that is printed passes the engine's finalizer;
- every turn of a loop calls `_tick` with the length of the literal text in its body.

Thereby each step adds at most a bounded amount to what was bounded before. Macros, blocks, includes, method calls,
mutable namespaces and the like are refused by name, with what to write instead.

This module knows the grammar of tags. It knows neither the engine's API nor what the filters do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MAX_SOURCE: Final = 256 * 1024
"""Characters of one field."""
MAX_TOKENS: Final = 200
"""Tokens of one tag. Bounds the depth of the engine's syntax tree, which it walks recursively."""
MAX_OPERATIONS: Final = 16
"""Growing operators (`~`, `+`) and filters in one tag, each."""
MAX_DEPTH: Final = 32
"""Tags open at one place."""
MAX_BRANCHES: Final = 64
"""`elif` of one `if`; the engine nests them."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILTERS: Final = _words(
    # the engine's own, whose result is at most as large as what they are given
    "abs bool capitalize count d default dictsort first float groupby int items last length lines list lower max min "
    "reject rejectattr reverse round select selectattr sort split string sum title trim unique upper urlencode "
    # ours, see filters.py
    "date datetime format indent join map money number percent replace time times tojson truncate"
)
TESTS: Final = _words(
    "boolean defined divisibleby endingwith eq equalto even false float ge greaterthan gt integer iterable le "
    "lessthan lower lt mapping ne none number odd sameas sequence startingwith string true undefined upper"
)
FUNCTIONS: Final = frozenset({"range"})
METHODS: Final = frozenset({"cycle", "changed"})
"""Of `loop`. Methods of data are Python's own and could change the data, so there are none."""

_REFUSED_TAGS: Final = {
    "autoescape": "escaping follows from the field and cannot be switched",
    "block": "templates stand alone",
    "call": "macros are not supported",
    "do": "there is nothing to do but to print",
    "extends": "templates stand alone",
    "filter": "apply the filter to the value: {{ value|filter }}",
    "from": "templates stand alone",
    "import": "templates stand alone",
    "include": "templates stand alone",
    "macro": "macros are not supported",
    "raw": 'print braces as a string: {{ "{{" }}',
    "with": "use {% set %}",
}
_REFUSED_FILTERS: Final = {
    "safe": "values are always escaped",
    "escape": "values are always escaped where the field needs it",
    "e": "values are always escaped where the field needs it",
}
_REFUSED_OPERATORS: Final = {
    "*": "use the filter: {{ price|times(quantity) }}",
    "**": "powers are not supported",
    "{": "literal objects are not supported; put them into the data",
    "}": "literal objects are not supported; put them into the data",
}
_CLOSES: Final = {"endif": "if", "endfor": "for", "endset": "set"}
_GROWS: Final = frozenset({"~", "+"})
_COMPUTES: Final = _GROWS | _words("| in == != < <= > >=")
"""What can take long or become large; `in` walks a whole list."""
_KEYWORDS: Final = _words("and or not in is if else elif for set true false none True False None recursive loop")

_OPENING: Final = re.compile(r"\{[{%#]")
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
      | (?P<end>[-+]?[%}]\})
      | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<number>\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w))
      | (?P<name>[^\W\d]\w*)
      | (?P<operator>\*\*|//|==|!=|<=|>=|[-+*/%~<>=()\[\],.:|{}])""",
    re.VERBOSE | re.DOTALL,
)


class LanguageError(ValueError):
    """A source says what it may not. `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class Token(NamedTuple):
    """One word of a tag; `start` and `end` are offsets in the source."""

    kind: str
    text: str
    start: int
    end: int


@dataclass
class _Tag:
    """A piece `{{ … }}` or `{% … %}`; `inner` ends before the closing mark."""

    printing: bool
    start: int
    inner_end: int
    end: int
    tokens: list[Token]


@dataclass(frozen=True)
class Checked:
    """A source that may run."""

    program: str
    """The source with its measures written in; line numbers are those of the source."""
    literal_size: int
    """Characters outside of tags."""
    unguarded: frozenset[str]
    """Dotted names that are used somewhere without `default`."""
    guarded: frozenset[str]
    """Dotted names that are somewhere asked for with `is defined`."""
    defaulted: frozenset[str]
    """Dotted names that are somewhere given a `default`."""


@dataclass
class _Open:
    """A tag that waits for its end; a loop also for the size of its body."""

    name: str
    line: int
    body_start: int = 0
    literal_before: int = 0
    branches: int = 0
    tick_at: int = -1
    trims: str = ""


@dataclass
class _Names:
    unguarded: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)
    defaulted: set[str] = field(default_factory=set)


def check_source(source: str, *, json: bool = False) -> Checked:
    """Check one field's source and write its measures in.

    Args:
        json: the field is a JSON document; then no tag may stand inside one of its strings, because a value brings its
            own quotes.

    Raises:
        LanguageError: with the line and what to write instead.
    """
    if len(source) > MAX_SOURCE:
        raise LanguageError(1, f"the text is longer than {MAX_SOURCE:,} characters")
    if "\0" in source:
        raise LanguageError(source.count("\n", 0, source.index("\0")) + 1, "the text contains a NUL character")
    edits: list[tuple[int, str]] = []
    stack: list[_Open] = []
    names = _Names()
    literals = 0
    quoted = False
    position = 0
    for piece in _pieces(source):
        literal = source[position : piece.start]
        literals += len(literal)
        if json:
            quoted = _inside_json_string(literal, quoted)
            if quoted:
                # Statements too: with a quote in one branch only, nobody could tell what is inside of a string.
                raise LanguageError(
                    _line(source, piece.start),
                    'a value brings its own quotes in JSON; write {{ "Order " ~ id }} instead of "Order {{ id }}"',
                )
        position = piece.end
        if not piece.tokens:
            continue
        if not piece.printing and (reason := _REFUSED_TAGS.get(piece.tokens[0].text)):
            name = piece.tokens[0].text
            raise LanguageError(_line(source, piece.start), f"{{% {name} %}} is not supported: {reason}")
        _check_expression(source, piece, names)
        if json and piece.tokens[0].text == "set" and _find(piece.tokens, "=") is None:
            # Captured text counts as finished JSON, and a filter such as `reverse` would unfinish it.
            raise LanguageError(_line(source, piece.start), "in JSON, write {% set name = value %}")
        if piece.printing:
            _bound(piece.tokens, edits)
        else:
            _check_statement(source, piece, stack, edits, literals)
    literals += len(source) - position
    if stack:
        raise LanguageError(stack[-1].line, f"{{% {stack[-1].name} %}} is not closed by {{% end{stack[-1].name} %}}")
    return Checked(
        program=_apply(source, edits),
        literal_size=literals,
        unguarded=frozenset(names.unguarded),
        guarded=frozenset(names.guarded),
        defaulted=frozenset(names.defaulted),
    )


def _pieces(source: str) -> Iterator[_Tag]:
    """The tags and comments in order; a comment has no tokens."""
    position = 0
    while opening := _OPENING.search(source, position):
        start = opening.start()
        if opening[0] == "{#":
            end = source.find("#}", start + 2)
            if end < 0:
                raise LanguageError(_line(source, start), "the comment {# is not closed by #}")
            position = end + 2
            yield _Tag(False, start, end, position, [])
            continue
        printing = opening[0] == "{{"
        tokens: list[Token] = []
        at = start + 2
        if source[at : at + 1] in ("-", "+"):
            at += 1
        while True:
            match = _TOKEN.match(source, at)
            if match is None:
                what = f"{source[at]!r} cannot stand there" if at < len(source) else f"{opening[0]} is not closed"
                raise LanguageError(_line(source, min(at, len(source) - 1)), what)
            kind = match.lastgroup or ""
            if kind == "end" and match[0].endswith("}}") is printing:
                break
            if kind == "end":
                raise LanguageError(_line(source, at), f"{opening[0]} is closed by the wrong mark {match[0]}")
            if kind != "space":
                tokens.append(Token(kind, match[0], at, match.end()))
            at = match.end()
        if not tokens:
            raise LanguageError(_line(source, start), "the tag is empty")
        position = match.end()
        yield _Tag(printing, start, at, position, tokens)


def _check_expression(source: str, tag: _Tag, names: _Names) -> None:
    tokens = tag.tokens
    line = _line(source, tag.start)
    if len(tokens) > MAX_TOKENS:
        raise LanguageError(line, f"the tag has more than {MAX_TOKENS} words and signs; split it with {{% set %}}")
    if sum(t.text in _GROWS for t in tokens if t.kind == "operator") > MAX_OPERATIONS:
        raise LanguageError(line, f"the tag has more than {MAX_OPERATIONS} of ~ and +; split it with {{% set %}}")
    if sum(t.text == "|" for t in tokens if t.kind == "operator") > MAX_OPERATIONS:
        raise LanguageError(line, f"the tag has more than {MAX_OPERATIONS} filters; split it with {{% set %}}")
    for i, token in enumerate(tokens):
        before = tokens[i - 1].text if i and tokens[i - 1].kind in ("operator", "name") else ""
        after = tokens[i + 1].text if i + 1 < len(tokens) and tokens[i + 1].kind == "operator" else ""
        if token.kind == "operator" and (reason := _REFUSED_OPERATORS.get(token.text)):
            raise LanguageError(_line(source, token.start), f"{token.text} is not allowed: {reason}")
        if token.text == "(" and token.kind == "operator":
            previous = tokens[i - 1] if i else None
            if previous is not None and (previous.text in (")", "]") or previous.kind in ("string", "number")):
                raise LanguageError(_line(source, token.start), "only range(…), filters and tests take arguments")
        if token.kind != "name":
            continue
        if token.text.startswith("_"):
            raise LanguageError(_line(source, token.start), f"the name {token.text} is reserved")
        if before == "|":
            if token.text not in FILTERS:
                reason = _REFUSED_FILTERS.get(token.text, "there are " + ", ".join(sorted(FILTERS)))
                raise LanguageError(_line(source, token.start), f"there is no filter {token.text!r}: {reason}")
        elif _is_test(tokens, i):
            if token.text not in TESTS:
                known = ", ".join(sorted(TESTS))
                raise LanguageError(_line(source, token.start), f"there is no test {token.text!r}: there are {known}")
        elif after == "(" and (before == "." or token.text not in _KEYWORDS):
            allowed = METHODS if before == "." else FUNCTIONS
            if token.text not in allowed:
                raise LanguageError(
                    _line(source, token.start), f"{token.text}(…) cannot be called; use the filter, as in value|name(…)"
                )
        elif after == "(" and token.text == "loop":
            raise LanguageError(_line(source, token.start), "recursive loops are not supported")
    _collect_names(tokens, names)


def _is_test(tokens: list[Token], i: int) -> bool:
    """Whether token `i` stands after `is` or `is not`."""
    if not i or tokens[i].text == "not":
        return False
    if tokens[i - 1].text == "not" and i > 1:
        i -= 1
    # a name after a dot is an attribute, whatever it is called
    return tokens[i - 1].text == "is" and not (i > 1 and tokens[i - 2].text == ".")


def _collect_names(tokens: list[Token], names: _Names) -> None:
    """Note each dotted name, and whether a `default` or an `is defined` stands directly behind it."""
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token.kind != "name" or token.text in _KEYWORDS or (i and tokens[i - 1].text in (".", "|")):
            i += 1
            continue
        path = [token.text]
        while i + 2 < len(tokens) and tokens[i + 1].text == "." and tokens[i + 2].kind == "name":
            path.append(tokens[i + 2].text)
            i += 2
        following = [t.text for t in tokens[i + 1 : i + 4]]
        dotted = ".".join(path)
        if following[:2] in (["|", "default"], ["|", "d"]):
            names.defaulted.add(dotted)
        elif following[:1] == ["is"] and {"defined", "undefined"} & set(following[1:3]):
            names.guarded.add(dotted)
        else:
            names.unguarded.add(dotted)
        i += 1


def _check_statement(source: str, tag: _Tag, stack: list[_Open], edits: list[tuple[int, str]], literals: int) -> None:
    name = tag.tokens[0].text
    line = _line(source, tag.start)
    rest = tag.tokens[1:]
    if name in _CLOSES:
        if not stack or stack[-1].name != _CLOSES[name]:
            raise LanguageError(line, f"{{% {name} %}} closes nothing that is open here")
        opened = stack.pop()
        if opened.tick_at >= 0:
            size = literals - opened.literal_before
            edits.append((opened.tick_at, f"{{% set _t = _tick({size}) {opened.trims}%}}"))
        return
    if name in ("elif", "else"):
        if not stack or stack[-1].name not in ("if", "for"):
            raise LanguageError(line, f"{{% {name} %}} stands outside of an if")
        stack[-1].branches += 1
        if stack[-1].branches > MAX_BRANCHES:
            raise LanguageError(line, f"an if has more than {MAX_BRANCHES} branches")
        if name == "elif":
            _bound(rest, edits)
        return
    if name in ("break", "continue"):
        return
    if len(stack) >= MAX_DEPTH:
        raise LanguageError(line, f"tags are nested more than {MAX_DEPTH} deep")
    if name == "if":
        _bound(rest, edits)
        stack.append(_Open("if", line))
    elif name == "for":
        split = _find(rest, "in")
        if split is None:
            raise LanguageError(line, "write {% for item in items %}")
        if any(t.text == "recursive" for t in rest):
            raise LanguageError(line, "recursive loops are not supported")
        condition = _find(rest[split + 1 :], "if")
        iterated = rest[split + 1 :] if condition is None else rest[split + 1 : split + 1 + condition]
        _bound(iterated, edits)
        if condition is not None:
            _bound(rest[split + 2 + condition :], edits)
        # the tick takes over the mark that trims the white space after the tag
        trims = source[tag.inner_end] if source[tag.inner_end] in "-+" else ""
        stack.append(_Open("for", line, literal_before=literals, tick_at=tag.end, trims=trims))
    elif name == "set":
        split = _find(rest, "=")
        targets = rest if split is None else rest[:split]
        if any(t.text == "." for t in targets):
            raise LanguageError(line, "{% set %} takes a plain name")
        if split is None:
            stack.append(_Open("set", line))
        else:
            _bound(rest[split + 1 :], edits)
    else:
        raise LanguageError(line, f"there is no tag {name!r}")


def _bound(expression: list[Token], edits: list[tuple[int, str]]) -> None:
    """Measure the expression's value if it computes anything."""
    if any(t.text in _COMPUTES for t in expression):
        edits.append((expression[0].start, "("))
        edits.append((expression[-1].end, ")|_bounded"))


def _find(tokens: list[Token], text: str) -> int | None:
    """The index of the first token `text` outside of brackets."""
    depth = 0
    for i, token in enumerate(tokens):
        if token.kind == "operator" and token.text in "([":
            depth += 1
        elif token.kind == "operator" and token.text in ")]":
            depth -= 1
        elif depth == 0 and token.text == text and token.kind != "string":
            return i
    return None


def _apply(source: str, edits: list[tuple[int, str]]) -> str:
    parts: list[str] = []
    position = 0
    for at, text in sorted(edits, key=lambda edit: edit[0]):
        parts += (source[position:at], text)
        position = at
    parts.append(source[position:])
    return "".join(parts)


def _inside_json_string(literal: str, quoted: bool) -> bool:
    """Whether a JSON document is inside a string after `literal`."""
    escaped = False
    for char in literal:
        if escaped:
            escaped = False
        elif char == "\\" and quoted:
            escaped = True
        elif char == '"':
            quoted = not quoted
    return quoted


def _line(source: str, position: int) -> int:
    return source.count("\n", 0, position) + 1
