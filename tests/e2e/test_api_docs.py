"""What the application says about itself: OpenAPI, the offline page, health, metrics, logs, traces."""

from __future__ import annotations

import re
from typing import Any

import structlog
from openapi_spec_validator import OpenAPIV31SpecValidator

from tidings.telemetry import parse_traceparent
from tidings.web.app import to_openapi

REPEATABLE = re.compile(
    r"/(blobs|cancel|check|import|erase|events|explain|lift|preference_link"
    r"|replay|preview|publish|rollback|tokens)$|^/api/v1/inbox/"
)
"""POSTs that do the same when repeated, by their nature: they take no Idempotency-Key."""


async def test_the_openapi_document_is_valid_and_complete(api: Any) -> None:
    answer = await api.client.get("/openapi.json")
    document = answer.json()
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            where = f"{method} {path}"
            user = path.startswith("/api/v1/inbox")
            assert operation["security"] == ([{"user": []}, {"cookie": []}] if user else [{"key": []}]), where
            assert {"401", "403", "422", "429", "500", "503"} <= operation["responses"].keys(), where
            assert operation.get("description"), where
            assert operation.get("tags"), where
            if method == "post" and not REPEATABLE.search(path):
                names = {parameter["name"].lower() for parameter in operation.get("parameters", ())}
                assert "idempotency-key" in names, where
    assert "HTTPValidationError" not in answer.text


async def test_a_fragment_of_hot_routes_is_merged(api: Any) -> None:
    extra = {
        "paths": {
            "/api/v1/notifications": {
                "post": {
                    "tags": ["notifications"],
                    "description": "Sends.",
                    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/New"}}}},
                    "responses": {"202": {"description": "Accepted"}},
                }
            }
        },
        "components": {"schemas": {"New": {"type": "object"}}},
        "tags": [{"name": "notifications", "description": "The road."}],
    }
    document = to_openapi(api.app, extra)
    OpenAPIV31SpecValidator(document).validate()
    assert document["paths"]["/api/v1/notifications"]["post"]["responses"]["415"]
    assert {"name": "notifications", "description": "The road."} in document["tags"]


async def test_the_page_needs_nothing_from_elsewhere(api: Any) -> None:
    page = await api.client.get("/docs")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert not [link for link in links if "//" in link]
    for asset in ("docs/docs.js", "docs/docs.css"):
        assert asset in links
        answer = await api.client.get(f"/{asset}")
        assert answer.status_code == 200
        assert "http" not in answer.text
    assert (await api.client.get("/docs/secrets.txt")).status_code == 404
    assert (await api.client.get("/docs/..%2Fapp.py")).status_code == 404


async def test_health(api: Any) -> None:
    assert (await api.client.get("/healthz")).json() == {"status": "ok"}
    assert (await api.client.head("/healthz")).status_code == 200
    assert (await api.client.get("/readyz")).status_code == 200
    api.not_ready["partitions"] = "one day ahead; two are needed"
    answer = await api.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"database": "ok", "partitions": "one day ahead; two are needed"}


async def test_metrics_count_templates_not_paths(tenant: Any) -> None:
    await tenant.put("/api/v1/users/somebody", {})
    await tenant.get("/api/v1/nowhere")
    text = (await tenant.api.client.get("/metrics")).text
    assert 'tidings_http_requests_total{method="PUT",route="/api/v1/users/{user_id}",status="201"} 1.0' in text
    assert 'route="unmatched",status="404"' in text
    assert "somebody" not in text


async def test_one_log_line_a_request_without_what_it_is_about(tenant: Any) -> None:
    with structlog.testing.capture_logs() as lines:
        await tenant.put("/api/v1/users/somebody?x=query", {"addresses": {"email": "ada@example.com"}})
    [line] = [line for line in lines if line["event"] == "http.request"]
    assert line["route"] == "/api/v1/users/{user_id}"
    assert (line["method"], line["status"], line["project"]) == ("PUT", 201, "shop")
    for told in ("somebody", "ada@example.com", "query", tenant.token):
        assert told not in str(lines)


async def test_the_trace_goes_on(tenant: Any) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    parent = f"00-{trace_id}-00f067aa0ba902b7-01"
    answer = await tenant.get("/api/v1/project", headers={"traceparent": parent})
    assert answer.headers["traceparent"].startswith(f"00-{trace_id}-")
    assert answer.headers["traceparent"] != parent
    fresh = await tenant.get("/api/v1/project", headers={"traceparent": "junk"})
    assert parse_traceparent(fresh.headers["traceparent"])


async def test_answers_are_not_to_be_stored_or_framed(tenant: Any) -> None:
    for answer in (await tenant.get("/api/v1/project"), await tenant.api.client.get("/api/v1/project")):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
