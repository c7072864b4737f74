"""`.env.example` lists every setting with its default, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tidings.settings import PREFIX, Settings

EXAMPLE = Path(__file__).parents[2] / ".env.example"
LINE = re.compile(r"# (?P<example>example: )?(?P<name>TIDINGS_[A-Z_]+)=(?P<value>.*)")
OF_THE_CLIENT = {"TIDINGS_URL", "TIDINGS_API_KEY"}


def lines() -> list[tuple[str, str, bool]]:
    found = [LINE.fullmatch(line) for line in EXAMPLE.read_text().splitlines()]
    return [(m["name"], m["value"], bool(m["example"])) for m in found if m]


def test_every_setting_is_listed_once() -> None:
    names = [name for name, _, _ in lines()]
    assert sorted(names) == sorted({PREFIX + name.upper() for name in Settings.model_fields} | OF_THE_CLIENT)


def test_the_values_are_the_defaults(tmp_path: Path) -> None:
    class Defaults(Settings):
        """The settings without the environment that the tests run in."""

        model_config = SettingsConfigDict(**{**Settings.model_config, "env_file": None})

        @classmethod
        def settings_customise_sources(cls, settings_cls: type[BaseSettings], **sources: object) -> tuple:  # type: ignore[override, type-arg]
            return (sources["init_settings"], sources["dotenv_settings"])

    env = tmp_path / "env"
    env.write_text("".join(f"{name}={value}\n" for name, value, example in lines() if not example))
    loaded = Defaults(_env_file=env)  # type: ignore[call-arg]
    assert loaded.model_dump() == Defaults().model_dump()
    assert all(getattr(loaded, name.removeprefix(PREFIX).lower()) is None for name in examples())


def examples() -> set[str]:
    return {name for name, _, example in lines() if example} - OF_THE_CLIENT


def test_every_setting_is_explained() -> None:
    blocks = EXAMPLE.read_text().split("\n\n")
    for block in blocks:
        said = [line for line in block.splitlines() if not LINE.fullmatch(line)]
        assert said or "example: TIDINGS_URL" in block, block


def test_nothing_in_it_is_a_secret() -> None:
    secrets = {PREFIX + name.upper() for name, field in Settings.model_fields.items() if SecretStr in str_args(field)}
    for name, value, example in lines():
        if name in secrets:
            assert example
            assert value == "" or "example.com" in value


def str_args(field: object) -> tuple[object, ...]:
    annotation = getattr(field, "annotation", None)
    return (annotation, *getattr(annotation, "__args__", ()))
