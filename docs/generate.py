"""Writes what the documentation says of the code, from the code: `python docs/generate.py`, or `--check` to only look.

A page holds blocks between `<!-- generated: name -->` and `<!-- end -->`; everything outside of them is written by hand
and left alone. A block is a function in `BLOCKS`. An architecture test sees to it that nobody forgets to run this.

This script knows the product's tables of words; it knows no database and starts nothing.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from prometheus_client.metrics import MetricWrapperBase
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tidings import errors
from tidings.cli import Exit, app
from tidings.directory.presets import CHECKED, LAWS
from tidings.model.words import EFFECTS, Effect, Scope
from tidings.providers.port import ReceiptAuth
from tidings.providers.registry import PROVIDERS
from tidings.settings import PREFIX, Settings
from tidings.telemetry import Metrics
from tidings.web import hot
from tidings.web.app import create_web, to_openapi
from tidings.web.deps import Deps, require
from tidings.web.inbox.door import of_user

ROOT: Final = Path(__file__).resolve().parents[1]
BLOCK: Final = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


# ---------------------------------------------------------------- tables


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def _code(value: object) -> str:
    return f"`{value}`"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# ---------------------------------------------------------------- errors and reasons


def list_problems() -> list[type[errors.Problem]]:
    """The problems that the API answers with, by status."""
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.Problem)]
    return sorted((e for e in found if e is not errors.Problem), key=lambda e: e.status)


def render_errors() -> str:
    """The problem types."""
    return _table(
        ["status", "code", "title", "what it says"],
        [[str(e.status), f"[`{e.code}`](#{e.code})", e.title, e.default_message()] for e in list_problems()],
    )


_EFFECT_WORDS: Final = {
    Effect.none: "ends the delivery",
    Effect.retry: "tried again, later",
    Effect.failover: "tried again with another account, if the project has one",
    Effect.suppress: "ends the delivery; the address is not used again",
    Effect.drop_address: "ends the delivery; the address is taken from the user",
}


def render_reasons() -> str:
    """Every reason and its effect."""
    rows = [
        [f"[`{reason}`](#{reason})", _code(effect.value), _EFFECT_WORDS[effect]] for reason, effect in EFFECTS.items()
    ]
    return _table(["reason", "effect", "what follows"], rows)


# ---------------------------------------------------------------- settings

_SETTING: Final = re.compile(r"# (?P<example>example: )?(?P<name>TIDINGS_[A-Z_]+)=(?P<value>.*)")


def render_settings() -> str:
    """What `.env.example` lists, as one table for each of its sections."""
    parts: list[str] = []
    rows: list[list[str]] = []

    def close() -> None:
        if rows:
            parts.append(_table(["setting", "default", "meaning"], rows))
            rows.clear()

    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for block in (ROOT / ".env.example").read_text(encoding="utf-8").split("\n\n"):
        said: list[str] = []
        for line in block.splitlines():
            if line.startswith("# --- "):
                close()
                title = line.removeprefix("# --- ")
                said.clear()
                if "Not settings" not in title:
                    parts.append(f"### {title}")
            elif (found := _SETTING.fullmatch(line)) is not None:
                if found["name"] in known:
                    default = "" if found["example"] else _code(found["value"]) if found["value"] else "empty"
                    example = f" Example: {_code(found['value'])}." if found["example"] and found["value"] else ""
                    rows.append([_code(found["name"]), default, " ".join(said) + example])
            else:
                said.append(line.removeprefix("#").strip())
    close()
    return "\n\n".join(parts)


# ---------------------------------------------------------------- commands

_EXITS: Final = {
    Exit.ok: "done",
    Exit.failed: "something went wrong on the way, or a check of `doctor` failed",
    Exit.usage: "the command line is wrong",
    Exit.configuration: "a setting is wrong or missing",
    Exit.unreachable: "the server or the database cannot be reached; trying again later may help",
    Exit.refused: "the API said no; the message says what to mend",
    Exit.interrupted: "interrupted by Ctrl-C",
}


def render_commands() -> str:
    """Every command with its options, as `--help` has them."""
    text: str = app.generate_docs()
    # The library names the program after what is running; a test runner started with `python -m` leaks into the usage.
    text = re.sub(r"^(tidings [a-z ]+) -m \S+", r"\1", text, flags=re.MULTILINE)
    return text[text.index("## tidings ") :].rstrip()


def render_exits() -> str:
    """What the exit codes mean."""
    return _table(["code", "meaning"], [[str(int(code)), _EXITS[code]] for code in Exit])


# ---------------------------------------------------------------- providers


_RECEIPTS: Final = {
    ReceiptAuth.signature: "callbacks, signed",
    ReceiptAuth.hidden_path: "callbacks, to a secret address",
}


def render_providers() -> str:
    """The built-in providers."""
    rows = []
    for name, kind in PROVIDERS.items():
        spec = kind.spec
        written_from = f"[specification]({spec.docs})" if spec.docs.startswith("https://") else _code(spec.docs)
        receipts = _RECEIPTS[spec.receipts] if spec.receipts is not None else "–"
        if spec.receipts is None and hasattr(kind, "listen"):
            receipts = "over its own connection"
        if spec.reports:
            receipts += f": {', '.join(kind.name for kind in sorted(spec.reports))}"
        rows.append(
            [
                _code(name),
                ", ".join(c.name for c in sorted(spec.channels)),
                ", ".join(sorted(spec.capabilities)) or "–",
                receipts,
                _yes(spec.confirms_delivery),
                _yes(spec.idempotent),
                spec.verified_by or "–",
                written_from,
            ]
        )
    return _table(
        [
            "provider", "channels", "capabilities", "receipts", "confirms delivery", "idempotent", "how it is verified",
            "written from",
        ],
        rows,
    )  # fmt: skip


def render_contract_exceptions() -> str:
    """The cases of published data that do not pass."""
    listed = tomllib.loads((ROOT / "tests" / "contract" / "exceptions.toml").read_text(encoding="utf-8"))
    rows = [
        [_code(file), "all" if case == "*" else case, kind.replace("_", " "), reason]
        for file, kinds in sorted(listed.items())
        for kind, cases in kinds.items()
        for case, reason in cases.items()
    ]
    return _table(["data", "case", "how", "why"], rows)


def render_provider_configs() -> str:
    """The fields of each provider's account configuration."""
    parts = []
    for name, kind in PROVIDERS.items():
        parts.append(f"### {name}\n\n{_sentence(kind.spec.config.__doc__)}")
        fields = kind.spec.config.model_fields
        if fields:
            rows = [[_code(f), _type_words(info), _default(info), info.description or ""] for f, info in fields.items()]
            parts.append(_table(["field", "type", "default", "meaning"], rows))
    return "\n\n".join(parts)


def _sentence(doc: str | None) -> str:
    return " ".join((doc or "").split("\n\n")[0].split())


def _type_words(info: FieldInfo) -> str:
    text = str(info.annotation)
    if SecretStr.__name__ in text:
        return "secret text"
    text = re.sub(r"typing\.|<class '|'>|tidings\.[a-z_.]+\.", "", text).replace(" | None", "")
    # What a checked type is made of; a function among its checks would print its address, which is never the same.
    text = re.sub(r"(?:Optional\[)?Annotated\[(\w+), .*\]", r"\1", text)
    text = re.sub(r"<enum '(\w+)", r"\1", text)
    if (chosen := re.fullmatch(r"Literal\[(.*)\]", text)) is not None:
        return ", ".join(_code(word.strip(" '")) for word in chosen[1].split(","))
    if isinstance(info.annotation, type) and hasattr(info.annotation, "__members__"):
        return ", ".join(_code(member.value) for member in cast(Any, info.annotation))
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(text, text)


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "required"
    return "" if info.default is None else _code(json.dumps(info.default))


# ---------------------------------------------------------------- metrics


def render_metrics() -> str:
    """Every metric of a process."""
    rows = []
    for collector in vars(Metrics()).values():
        if isinstance(collector, MetricWrapperBase):
            family = next(iter(collector.describe()))
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = ", ".join(map(_code, collector._labelnames))  # the library has no public way to ask
            rows.append([_code(name), family.type, labels, family.documentation])
    return _table(["metric", "type", "labels", "what it counts"], rows)


# ---------------------------------------------------------------- the API


class _Nothing:
    """Stands for what no route touches while it is only described."""

    def __getattr__(self, name: str) -> Any:
        return _Nothing()


def render_api() -> str:
    """Every operation by noun, then every body and answer."""
    web = create_web(cast(Deps, _Nothing()))
    document = to_openapi(web, hot.to_openapi())
    # The acceptor asks for the scope of the hot routes itself.
    needs = {(path, "post"): _to_words(Scope.send) for path in (hot.ONE, hot.ALIAS, hot.BATCH)}
    for context in iter_route_contexts(web.routes):
        for method in context.methods or ():
            if (need := _need_of(context.dependant)) is not None:
                # The document has no `:path`, which lets a parameter hold slashes.
                needs[(context.path or "").replace(":path}", "}"), method.lower()] = need
    parts = []
    for tag in sorted(document["tags"], key=lambda tag: (tag["name"] != "notifications", tag["name"])):
        parts.append(f"## {tag['name'].capitalize()}")
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if tag["name"] in operation["tags"]:
                    parts.append(_render_operation(path, method, operation, needs[path, method]))
    parts.append("## Bodies and answers")
    for name, schema in sorted(document["components"]["schemas"].items()):
        if not name.startswith("Page_"):
            parts.append(_render_schema(name, schema))
    return "\n\n".join(parts)


def _need_of(dependant: Dependant) -> str | None:
    """What a caller must show, in words."""
    if isinstance(dependant.call, require):
        return _to_words(dependant.call.scope)
    if isinstance(dependant.call, of_user):
        return "User token."
    return next(filter(None, map(_need_of, dependant.dependencies)), None)


def _to_words(scope: Scope) -> str:
    return f"Scope `{scope.value}`."


def _render_operation(path: str, method: str, operation: Mapping[str, Any], need: str) -> str:
    told = " ".join((operation.get("description") or operation["summary"]).split())
    lines = [f"### {method.upper()} {path}", "", f"{told.rstrip('.')}. {need}", ""]
    parameters = {p["name"].lower(): p for p in operation.get("parameters", ()) if p["in"] != "path"}
    if "cursor" in parameters:
        lines.append("- Paged: `limit`, `cursor`.")
    if "idempotency-key" in parameters:
        lines.append("- Takes an `Idempotency-Key`.")
    for name, parameter in parameters.items():
        if name not in ("limit", "cursor", "idempotency-key", "traceparent"):
            lines.append(f"- `?{name}=` {_shape(parameter['schema'])}. {parameter.get('description', '')}".rstrip())
    if body := operation.get("requestBody"):
        (kind, content), *_ = body["content"].items()
        shape = _shape(content["schema"]) if kind == "application/json" else f"a file, as `{kind}`"
        lines.append(f"- Body: {shape}.")
    for status, answer in operation["responses"].items():
        if status < "300":
            content = answer.get("content")
            if content and "application/json" not in content:
                shape = f"`{next(iter(content))}`. {answer['description'].rstrip('.')}"
            else:
                shape = _shape(content["application/json"]["schema"]) if content else "no content"
            lines.append(f"- {status}: {shape}.")
    return "\n".join(lines)


def _render_schema(name: str, schema: Mapping[str, Any]) -> str:
    title = f"### {name}\n\n{_sentence(schema.get('description'))}"
    if "properties" not in schema:
        return f"{title}\n\n{_shape(schema)}"
    required = schema.get("required", ())
    rows = [
        [
            _code(field),
            _shape(shape),
            "required" if field in required else _code(json.dumps(shape["default"])) if shape.get("default") else "",
            shape.get("description", ""),
        ]
        for field, shape in schema["properties"].items()
    ]
    return f"{title}\n\n" + _table(["field", "type", "default", "meaning"], rows)


def _shape(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name.startswith("Page_"):
            of = name.removeprefix("Page_").rstrip("_")
            return f"a page of [{of}](#{of.lower()})"
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_shape(s) for s in schema["anyOf"] if s.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(map(_code, schema["enum"]))
    match schema.get("type"):
        case "array":
            return f"list of {_shape(schema.get('items', {}))}"
        case "string":
            return "time" if schema.get("format") == "date-time" else "text"
        case "integer":
            return "whole number"
        case "boolean":
            return "true or false"
        case "object":
            inner = schema.get("properties")
            return "object with " + ", ".join(f"`{n}`: {_shape(s)}" for n, s in inner.items()) if inner else "object"
        case None:
            return "anything"
        case other:
            return str(other)


# ---------------------------------------------------------------- speed


def render_speed() -> str:
    """The newest benchmark results of this checkout, or how to get some; for the README, which stands at the top."""
    results = ROOT / "bench" / "results"
    table, picture = results / "latest.md", results / "latest.svg"
    if not table.is_file():
        return "`make bench` writes the table and the picture that belong here."
    shown = "![Measured speed against the bars](bench/results/latest.svg)\n\n" if picture.is_file() else ""
    return shown + table.read_text(encoding="utf-8").strip()


# ---------------------------------------------------------------- blocks and pages

# ---------------------------------------------------------------- quiet hours by law


def render_laws() -> str:
    """What the presets are made of."""
    rows = []
    for law in LAWS.values():
        hours = "; ".join(f"{', '.join(h.days)} {h.start}–{h.end}".strip() for h in law.hours)
        rows.append([_code(law.place), hours, law.name, f"[{'read' if law.read else 'told'}]({law.source})"])
    return _table(["where", "quiet", "rule", f"source, {CHECKED}"], rows)


BLOCKS: Final[Mapping[str, Callable[[], str]]] = {
    "api": render_api,
    "commands": render_commands,
    "errors": render_errors,
    "exits": render_exits,
    "laws": render_laws,
    "metrics": render_metrics,
    "providers": render_providers,
    "contract-exceptions": render_contract_exceptions,
    "provider-configs": render_provider_configs,
    "reasons": render_reasons,
    "settings": render_settings,
    "speed": render_speed,
}


def list_pages() -> Iterator[Path]:
    """The pages that may hold blocks."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def render_page(text: str) -> str:
    """The page with its blocks anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found['name']]()}\n{found[3]}", text)


def main(arguments: list[str]) -> int:
    """Writes the pages, or with `--check` tells which are out of step."""
    stale = []
    for page in list_pages():
        text = page.read_text(encoding="utf-8")
        fresh = render_page(text)
        if fresh != text:
            stale.append(page.relative_to(ROOT))
            if "--check" not in arguments:
                page.write_text(fresh, encoding="utf-8")
    if stale and "--check" in arguments:
        sys.stderr.write(f"out of step: {', '.join(map(str, stale))}; run `python docs/generate.py`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
