"""Data that vendors and independent implementations published, as parameters of tests.

The data are not part of this repository: `TIDINGS_CONTRACTS` names their folder, and without it their tests are
skipped by name. A case that does not pass is listed with its reason in `exceptions.toml`; it is run all the same and
has to fail in the way that it is listed under, so that the list holds nothing that has been mended, and hides nothing
that broke since.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS30Validator, OAS31Validator

ROOT = Path(os.environ["TIDINGS_CONTRACTS"]) if os.environ.get("TIDINGS_CONTRACTS") else None
LISTED: dict[str, dict[str, dict[str, str]]] = tomllib.loads(
    (Path(__file__).parent / "exceptions.toml").read_text("utf-8")
)
"""By file, by kind (see `KINDS`), then by case: why it does not pass."""


class NotOurs(Exception):
    """The case says something that a message of ours cannot say."""


class Refused(AssertionError):
    """We do not take what they take: to send it, or to read it."""


class Taken(AssertionError):
    """We take what they do not."""


class Differs(AssertionError):
    """Both take it, and ours comes out otherwise."""


KINDS: Mapping[str, type[Exception]] = {"not_ours": NotOurs, "refused": Refused, "taken": Taken, "differs": Differs}
"""How a listed case may fail. Of a file under `unused`, whose case `*` stands for all of it, nothing is run."""


def check_taken(ours: bool, theirs: bool, told: object) -> None:
    """Whether it is taken is the same with us and with them.

    Raises:
        Refused, Taken: it is not; with what we made of it.
    """
    if ours is not theirs:
        raise (Refused if theirs else Taken)(told)


@contextmanager
def may_differ() -> Iterator[None]:
    """Around the assertions that hold what came out of ours against theirs: those that a case may be listed for.

    Raises:
        Differs: in place of an assertion's own error.
    """
    try:
        yield
    except AssertionError as problem:
        raise Differs(str(problem)) from problem


def _number(data: Any) -> Iterable[tuple[str, Any]]:
    return ((str(case.get("name") or case.get("id") or i), case) for i, case in enumerate(data["cases"]))


@cache
def load(file: str) -> Any:
    """The content of a data file such as `twilio/signature_vectors.json`; skips the test where there is none."""
    if ROOT is None:
        pytest.skip("TIDINGS_CONTRACTS is not set: the published data are not at hand")
    return json.loads((ROOT / file).read_text(encoding="utf-8"))


def path(file: str) -> Path:
    """Where a data file is; skips the test where there is none."""
    if ROOT is None:
        pytest.skip("TIDINGS_CONTRACTS is not set: the published data are not at hand")
    return ROOT / file


def cases(
    file: str,
    pick: Callable[[Any], Iterable[tuple[str, Any]]] = _number,
) -> list[Any]:
    """The cases of a file for `pytest.mark.parametrize`, each under its name; one skipped case without the data.

    Args:
        pick: names and cases, of the file's content. Names are made unique by a number where they repeat.
    """
    if ROOT is None:
        return [pytest.param(None, id=file, marks=pytest.mark.skip(reason="TIDINGS_CONTRACTS is not set"))]
    listed = {
        case: pytest.mark.xfail(strict=True, raises=KINDS[kind], reason=reason)
        for kind, reasons in LISTED.get(file, {}).items()
        if kind != "unused"
        for case, reason in reasons.items()
    }
    seen: dict[str, int] = {}
    params = []
    for name, case in pick(load(file)):
        seen[name] = seen.get(name, 0) + 1
        unique = name if seen[name] == 1 else f"{name} ({seen[name]})"
        params.append(pytest.param(case, id=unique, marks=[listed[unique]] if unique in listed else []))
    assert set(listed) <= {p.id for p in params}, f"exceptions.toml names cases of {file} that do not exist"
    return params


def check_body(
    file: str, path: str, body: Any, *, method: str = "post", content_type: str = "application/json"
) -> None:
    """Hold a request body against the vendor's own OpenAPI description.

    Args:
        path: as the description has it, with its placeholders.
        body: the decoded body: of a form, names to texts.

    Raises:
        AssertionError: with everything that does not fit.
    """
    description = load(file)
    request = description["paths"][path][method]["requestBody"]
    if "$ref" in request:
        request = description["components"]["requestBodies"][request["$ref"].rpartition("/")[2]]
    content = request["content"]
    schema = {**content[content_type]["schema"], "components": description.get("components", {})}
    validator = OAS31Validator if str(description.get("openapi", "")).startswith("3.1") else OAS30Validator
    errors = [f"{e.json_path}: {e.message}" for e in validator(schema).iter_errors(body)]
    assert not errors, errors
