"""From a template version's content to rendered fields.

Content is `{"default_locale": "en", "channels": {"email": {"en": {"subject": "…", "text": "…"}}}}`. Which fields a
channel has is the caller's knowledge; here a field has a kind, which decides how values are escaped in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC
from typing import Any, Final, Literal, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from babel import Locale, UnknownLocaleError
from minijinja import Environment, TemplateError

from tidings.errors import FieldError, Invalid, RenderError
from tidings.model.words import Channel
from tidings.templating.filters import FILTERS, GLOBALS, USAGE, measure_printed
from tidings.templating.language import LanguageError, check_source

FUEL: Final = 1_000_000
"""Instructions of the engine in one field. The limits of filters.py are met first; this one stands behind them."""
PROVIDED: Final[Mapping[str, frozenset[str]]] = {
    "user": frozenset({"id", "locale", "time_zone", "attributes"}),
    "notification": frozenset({"id"}),
    "delivery": frozenset({"id", "channel"}),
    "links": frozenset({"unsubscribe", "preferences"}),
    "digest": frozenset({"count", "items", "key", "since", "until", "more"}),
}
"""What every template can say without the request's data."""

_LOCALE: Final = re.compile(r"[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8}){0,4}")
_FALLBACKS_KEPT: Final = 512


Kind = Literal["text", "html", "json"]
"""How values are put into a field: as they are, escaped for HTML, or as whole JSON values that bring their quotes."""

_ENDINGS: Final[Mapping[Kind, str]] = {"text": "txt", "html": "html", "json": "json"}
"""The engine chooses its escaping by the ending of a template's name."""


class Rules(Protocol):
    """What is to be known of a channel; the rules in `channels` have this shape."""

    @property
    def fields(self) -> Mapping[str, Kind]:
        """The fields that its content may have."""
        ...

    def find_problem(self, names: frozenset[str], /) -> str | None:
        """What is wrong with content that has just these fields, as a sentence; None if nothing is."""
        ...


class _Program(NamedTuple):
    field: str
    run: Callable[..., str]
    name: str
    literal_size: int


class CompiledTemplate:
    """A template version, ready to render. Immutable; may be used by several threads.

    `required` are the dotted names that the request's data must have, in whichever channel and locale is used.
    """

    def __init__(
        self,
        default_locale: str,
        programs: Mapping[Channel, Mapping[str, tuple[_Program, ...]]],
        required: frozenset[str],
        size: int,
        *,
        says_links: bool = False,
        says_digest: bool = False,
    ) -> None:
        self.default_locale: Final = default_locale
        self.required: Final = required
        self.size: Final = size
        """Characters of the sources: what keeping it costs, in proportion."""
        self.says_links: Final = says_links
        """Whether `links` are named anywhere: they are signed, so they are made only for whom they are."""
        self.says_digest: Final = says_digest
        """Whether `digest` is: what is no digest gets one of itself alone, which doubles its data."""
        self._programs: Final = programs
        self._chosen: dict[tuple[Channel, str | None], tuple[str, str]] = {}

    def __repr__(self) -> str:
        return f"<CompiledTemplate {', '.join(c.name for c in self._programs)}>"

    @property
    def channels(self) -> frozenset[Channel]:
        """The channels that there is content for."""
        return frozenset(self._programs)

    def resolve_locale(self, channel: Channel, locale: str | None) -> str:
        """The locale in which a user with `locale` gets this.

        Theirs if there is content in its language (de-AT, else de), else the default. Rendering with the
        result gives the same as rendering with `locale`.

        Raises:
            RenderError: there is no content for the channel.
        """
        return self._choose(channel, locale)[1]

    def missing(self, data: Mapping[str, Any]) -> list[str]:
        """The required names that `data` lacks, sorted."""
        return [name for name in sorted(self.required) if not _has(data, name)]

    def render(self, channel: Channel, locale: str | None, variables: Mapping[str, Any]) -> dict[str, str]:
        """The channel's fields.

        Args:
            locale: the user's, a BCP 47 tag; also decides how dates and numbers are written.
            variables: the request's data, with what is PROVIDED.

        Raises:
            RenderError: says which field and line, and why. Holds no values.
        """
        content_locale, formats = self._choose(channel, locale)
        user = variables.get("user")
        zone = user.get("time_zone") if isinstance(user, dict) else None
        fields: dict[str, str] = {}
        with USAGE.lock:
            USAGE.begin(formats, _zone(zone) if zone else UTC)
            for field, run, name, literal_size in self._programs[channel][content_locale]:
                try:
                    USAGE.charge(literal_size)
                    text = run(name, **variables)
                except BaseException as error:
                    raise _to_render_error(name.rpartition(".")[0], error) from None
                fields[field] = text
        return fields

    def _choose(self, channel: Channel, locale: str | None) -> tuple[str, str]:
        """The content's locale, and the one that formats."""
        key = (channel, locale)
        found = self._chosen.get(key)
        if found is None:
            try:
                locales = self._programs[channel]
            except KeyError:
                raise RenderError(f"the template has no content for {channel.name}") from None
            chosen = next((tag for tag in _fallbacks(locale) if tag in locales), self.default_locale)
            # German of Austria is German: its dates are written as the user has it, even in the text for "de".
            same_language = locale is not None and locale.partition("-")[0] == chosen.partition("-")[0]
            found = (chosen, locale if same_language and locale is not None and _is_known(locale) else chosen)
            if len(self._chosen) < _FALLBACKS_KEPT:
                self._chosen[key] = found
        return found


def compile_template(content: Mapping[str, Any], rules: Mapping[Channel, Rules]) -> CompiledTemplate:
    """Check and compile a version's content.

    Args:
        rules: of the channels that there are.

    Raises:
        Invalid: one error per thing to mend, each with a pointer such as `/channels/email/en/subject`.
    """
    errors: list[FieldError] = []
    default_locale, channels = _parse_content(content, rules, errors)
    programs: dict[Channel, dict[str, tuple[_Program, ...]]] = {}
    required: set[str] = set()
    size, says_links, says_digest = 0, False, False
    environment = _make_environment()
    for channel, locales in channels.items():
        for locale, sources in locales.items():
            compiled: list[_Program] = []
            for field, source in sources.items():
                kind = rules[channel].fields[field]
                program = _compile_field(environment, kind, (channel.name, locale, field), source, errors)
                if program is not None:
                    compiled.append(program[0])
                    required |= program[1]
                    size += len(source)
                    says_links = says_links or "links" in source
                    says_digest = says_digest or "digest" in source
            programs.setdefault(channel, {})[locale] = tuple(compiled)
    if errors:
        raise Invalid("The template cannot be used as it is.", errors=errors)
    return CompiledTemplate(
        default_locale, programs, frozenset(required), size, says_links=says_links, says_digest=says_digest
    )


def _parse_content(
    content: Mapping[str, Any], rules: Mapping[Channel, Rules], errors: list[FieldError]
) -> tuple[str, dict[Channel, dict[str, dict[str, str]]]]:
    """The default locale and the sources that are well-formed; the others are told in `errors`."""

    def refuse(detail: str, *path: str) -> None:
        errors.append(FieldError(detail, _pointer(*path)))

    known = ", ".join(channel.name for channel in rules)
    for unknown in sorted(set(content) - {"default_locale", "channels"}):
        refuse(f"{unknown!r} is not known here; there are default_locale and channels", unknown)
    default_locale = content.get("default_locale", "en")
    if not isinstance(default_locale, str) or not _is_known(default_locale):
        refuse("name a language as in en, de or pt-BR", "default_locale")
        default_locale = "en"
    channels = content.get("channels")
    if not isinstance(channels, Mapping) or not channels:
        refuse(f"give content for one or more of {known}", "channels")
        return default_locale, {}
    good: dict[Channel, dict[str, dict[str, str]]] = {}
    for name, locales in channels.items():
        channel = Channel.__members__.get(name)
        if channel is None:
            refuse(f"there is no channel {name!r}; there are {known}", "channels", name)
            continue
        if channel not in rules:
            refuse(f"`{name}` is not supported by this version of Tidings", "channels", name)
            continue
        if not isinstance(locales, Mapping) or default_locale not in locales:
            refuse(f"give the content in {default_locale!r}, the default locale", "channels", name)
            continue
        fields = rules[channel].fields
        for locale, sources in locales.items():
            at = ("channels", name, locale)
            if not _is_known(locale):
                refuse(f"{locale!r} is not a language such as en, de or pt-BR", *at)
                continue
            if not isinstance(sources, Mapping):
                refuse(f"give an object with {', '.join(fields)}", *at)
                continue
            kept = good.setdefault(channel, {}).setdefault(locale, {})
            for field, source in sources.items():
                if field not in fields:
                    refuse(f"there is no field {field!r}; there are {', '.join(fields)}", *at, field)
                elif not isinstance(source, str):
                    refuse("must be text", *at, field)
                else:
                    kept[field] = source
            if problem := rules[channel].find_problem(frozenset(sources) & fields.keys()):
                refuse(problem, *at)
    return default_locale, good


def _compile_field(
    environment: Environment,
    kind: Kind,
    place: tuple[str, str, str],
    source: str,
    errors: list[FieldError],
) -> tuple[_Program, set[str]] | None:
    """The program and the names that it needs from the data; None when `errors` tells why not."""
    name = f"{'/'.join(place)}.{_ENDINGS[kind]}"
    pointer = _pointer("channels", *place)
    try:
        checked = check_source(source, json=kind == "json")
        environment.add_template(name, checked.program)
        used = environment.undeclared_variables_in_str(source, nested=True)
    except LanguageError as error:
        errors.append(FieldError(f"line {error.line}: {error}", pointer))
        return None
    except TemplateError as error:
        errors.append(FieldError(f"line {error.line}: {_explain(error)}", pointer))
        return None
    except UnicodeEncodeError:
        errors.append(FieldError("the text is not valid Unicode", pointer))
        return None
    required: set[str] = set()
    for path in used:
        head, _, tail = path.partition(".")
        if head in PROVIDED:
            member = tail.partition(".")[0]
            if member and member not in PROVIDED[head]:
                known = ", ".join(f"{head}.{m}" for m in sorted(PROVIDED[head]))
                errors.append(FieldError(f"there is no {head}.{member}; there are {known}", pointer))
        elif head not in GLOBALS:
            needed = _needed(path, checked.unguarded, checked.guarded, checked.defaulted)
            if needed:
                required.add(needed)
    program = _Program(place[2], environment.render_template, name, checked.literal_size)
    return program, required


def _needed(path: str, unguarded: frozenset[str], guarded: frozenset[str], defaulted: frozenset[str]) -> str | None:
    """What of `path` the data must have: all of it, its parent when only the last name may be missing, or nothing."""
    parts = path.split(".")
    for length in range(1, len(parts) + 1):
        prefix = ".".join(parts[:length])
        if prefix in guarded or (prefix in defaulted and prefix not in unguarded):
            # `a.b|default(…)` covers a missing b, and not a missing a
            return ".".join(parts[: length - 1]) or None
    return path


def _make_environment() -> Environment:
    environment = Environment(
        fuel=FUEL,
        undefined_behavior="strict",
        debug=False,  # with it, errors quote the data
        pycompat=False,
        finalizer=measure_printed,
        filters=FILTERS,
        globals=GLOBALS,
    )
    for name in ("debug", "dict", "namespace"):
        environment.remove_global(name)
    # As an argument, `select("in", …)`, it would be quadratic in one step. The operator stays.
    environment.remove_test("in")
    return environment


def _pointer(*path: str) -> str:
    """The JSON pointer (RFC 6901)."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def _to_render_error(place: str, error: BaseException) -> BaseException:
    """What to raise for an error of the engine or of a filter; without values, for it is stored and logged."""
    if isinstance(error, RenderError):
        return RenderError(f"{place}: {error}")
    if isinstance(error, TemplateError):
        return RenderError(f"{place}, line {error.line}: {_explain(error)}")
    if isinstance(error, Exception):
        # A filter was given what it cannot take, data are nested too deep, or a text is not valid Unicode.
        return RenderError(f"{place}: {type(error).__name__}")
    if type(error).__name__ == "PanicException":  # the engine's bug; its class cannot be imported
        return RenderError(f"{place}: the template engine gave up")
    return error


def _explain(error: TemplateError) -> str:
    """The engine's short message without its place, which is told in front of it."""
    message = error.message.rpartition(" (in ")[0] or error.message
    return message[:300]


def _has(data: Mapping[str, Any], path: str) -> bool:
    value: Any = data
    for part in path.split("."):
        if not isinstance(value, dict):
            # A list or a text has no names; what the template does with it shows when it is rendered.
            return value is not None
        if part not in value:
            return False
        value = value[part]
    return True


def _fallbacks(locale: str | None) -> Iterator[str]:
    while locale:
        yield locale
        locale = locale.rpartition("-")[0]


def _is_known(tag: object) -> bool:
    """Whether `tag` is a BCP 47 tag of a locale that there are formats for."""
    if not isinstance(tag, str) or not _LOCALE.fullmatch(tag):
        return False
    try:
        Locale.parse(tag, sep="-")
    except (ValueError, UnknownLocaleError):
        return False
    return True


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)  # cached by the class itself
    except (ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
        raise RenderError("the user's time zone is not known here") from None
    except KeyError:
        raise RenderError("the user's time zone is not known here") from None
