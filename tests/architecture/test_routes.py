"""Every route of both apps is authorised by a dependency, or stands on the written public list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from support.platform import Platform
from tensorguard.platform import app as platform_app

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
KNOWN = {
    "platform": {
        ("GET", "/api/v1/devices/{device_id}"),
        ("POST", "/v1/metrics"),
        ("POST", "/oauth/token"),
        ("GET", "/api/v1/audit/{seq}"),
        ("GET", "/api/v1/telemetry/query"),
    },
    "serving": {
        ("GET", "/v1/models"),
        ("PUT", "/v1/evaluation-keys/{sha256}"),
        ("POST", "/v1/models/{name}/infer"),
    },
}


def authorised(dependant: Any) -> bool:
    own = hasattr(dependant.call, "scope")
    return own or any(authorised(inner) for inner in dependant.dependencies)


def walk(app: FastAPI) -> dict[tuple[str, str], bool]:
    found = {}
    for route in iter_route_contexts(app.routes):
        for method in set(route.methods or METHODS) & METHODS:
            dependant = getattr(route, "dependant", None)
            found[method, route.path] = dependant is not None and authorised(dependant)
    return found


@pytest.mark.invariant("TG-I07")
def test_platform_routes(sqlite_platform: Platform) -> None:
    check(walk(sqlite_platform.app), platform_app.PUBLIC_ROUTES, KNOWN["platform"])


def check(
    found: dict[tuple[str, str], bool],
    public: frozenset[tuple[str, str]],
    known: set[tuple[str, str]],
) -> None:
    assert known <= found.keys()  # the walk cannot pass empty
    assert {route for route, protected in found.items() if not protected} == public


def test_anonymous_callers_get_401_from_every_other_route(sqlite_platform: Platform) -> None:
    request: Callable[..., Any] = sqlite_platform.client.request
    for (method, path), protected in walk(sqlite_platform.app).items():
        if not protected:
            continue
        place = path.replace("{seq}", "1")
        place = "/".join("x" if part.startswith("{") else part for part in place.split("/"))
        response = request(method, place, content=b"")
        assert response.status_code == 401, (method, path, response.status_code)
        if method != "HEAD":
            assert response.json()["code"] == "unauthenticated"
