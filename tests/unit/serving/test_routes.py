"""Every route of the gateway is authorised or listed as public."""

from __future__ import annotations

from pathlib import Path

from fastapi.routing import APIRoute, iter_route_contexts

from support.serving import Site
from tensorguard.serving.app import PUBLIC_ROUTES, create_app
from tensorguard.serving.auth import RequireGrant
from tensorguard.settings import Settings
from tensorguard.wire import grants, serving


def scopes_of(route: APIRoute) -> set[str]:
    return {
        dependency.call.scope
        for dependency in route.dependant.dependencies
        if isinstance(dependency.call, RequireGrant)
    }


def test_every_route_needs_a_grant_or_is_listed_public(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    app = create_app(
        Settings.from_environment({"TG_ENVIRONMENT": "development", "TG_HOME": str(site.home)})
    )
    public, guarded = set(), set()
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        assert isinstance(route, APIRoute)
        for method in route.methods:
            place = (method, context.path)
            (guarded if scopes_of(route) == {grants.SCOPE} else public).add(place)
    assert public == PUBLIC_ROUTES
    assert ("POST", "/v1/models/{name}/infer") in guarded
    assert ("PUT", "/v1/evaluation-keys/{sha256}") in guarded


def test_the_scope_is_the_one_that_the_platform_grants() -> None:
    assert serving.SCOPE == grants.SCOPE
