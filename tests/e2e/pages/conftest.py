"""A shop whose messages lead to the pages."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
async def shop(tenant: Any) -> Any:
    """A project with three categories besides `general`, and Ada, who has an e-mail address and a phone."""
    for key, body in {
        "news": {"name": "News <b>", "description": "What is new & good"},
        "orders": {"name": "Orders"},
        "security": {"name": "Security", "required": True},
    }.items():
        assert (await tenant.put(f"/api/v1/categories/{key}", body)).status_code == 201
    addresses = {"email": ["ada@example.com"], "sms": ["+436641234567"]}
    assert (await tenant.put("/api/v1/users/ada", {"addresses": addresses})).status_code == 201
    return tenant
