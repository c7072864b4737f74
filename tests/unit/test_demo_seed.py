"""The demo's templates render, in every channel and language, for every user and for nobody in particular."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tidings.channels import CHANNELS
from tidings.demo.keeping import FILE_NAME, DemoSecrets, load_demo_secrets, save_demo_secrets
from tidings.demo.seed import CATEGORIES, TOLD, USERS, Told
from tidings.model.messages import Email, InApp, Webhook
from tidings.templating import compile_template

DATA = {
    "welcome": {"product": "Tidings <& Co>"},
    "reset_password": {"url": "https://example.com/reset?token=a&b=c"},
    "order_shipped": {"order": 'A-1"<b>', "url": "https://example.com/track/A-1"},
}
NOBODY: dict[str, Any] = {"id": None, "locale": None, "time_zone": None, "attributes": {}}


@pytest.mark.parametrize("told", TOLD, ids=lambda told: told.key)
@pytest.mark.parametrize("user", [*USERS, None])
def test_every_message_renders(told: Told, user: str | None) -> None:
    compiled = compile_template({"default_locale": "en", "channels": told.channels}, CHANNELS)
    person = {"id": user, **USERS[user]} if user else NOBODY
    variables = {**DATA[told.key], "user": person, "notification": {"id": "ntf_1"}}
    assert compiled.missing(DATA[told.key]) == []
    german = person["locale"] == "de-AT"
    for channel in compiled.channels:
        fields = compiled.render(channel, person["locale"], variables)
        content = CHANNELS[channel].to_content(fields)
        match content:
            case Email(text=text, html=html):
                assert text is not None
                assert html is not None
                assert ("Hallo" if german else "Hello") in text
                assert ("Alan" if german else str(person["attributes"].get("first_name", ""))) in html
                assert "<b>" not in html
                assert "{" not in text + html
                assert f'lang="{"de" if german else "en"}"' in html
            case InApp(title=title):
                assert title
            case Webhook(body=body):
                assert b"order_shipped" in body


@pytest.mark.parametrize("told", TOLD, ids=lambda told: told.key)
def test_what_the_templates_need_the_schemas_demand(told: Told) -> None:
    compiled = compile_template({"default_locale": "en", "channels": told.channels}, CHANNELS)
    assert compiled.required == set(told.type["schema"]["required"])
    validator = jsonschema_rs.validator_for(told.type["schema"])
    assert validator.is_valid(DATA[told.key])
    assert not validator.is_valid({})
    assert told.type["category"] in {category["key"] for category in CATEGORIES}


def test_secrets_are_kept_for_the_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert load_demo_secrets(folder) is None
    secrets = DemoSecrets(api_key="tdg_demo_x", webhook_secret="whsec_y", api_url="http://127.0.0.1:8000")
    save_demo_secrets(folder, secrets)
    assert load_demo_secrets(folder) == secrets
    assert stat.S_IMODE((folder / FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]
    (folder / FILE_NAME).write_text("{broken")
    assert load_demo_secrets(folder) is None
    assert "tdg_" not in repr(secrets)
    assert "whsec" not in repr(secrets)
