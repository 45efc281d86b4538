"""Each gate refuses its violation, all are reported at once, and a sound configuration passes."""

from __future__ import annotations

import dataclasses
import io
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tensorguard.gates import GATES, GateFailure, Probes, Role, enforce, inspect, weakness
from tensorguard.settings import Settings

GOOD_PROBES = Probes(
    key_provider=lambda _: None, database_revision=lambda _: None, trust_store=lambda _: None
)


@pytest.fixture
def sound(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    packs = tmp_path / "packs"
    packs.mkdir()
    jwks = tmp_path / "jwks.json"
    jwks.write_text("{}")
    return {
        "TG_ENVIRONMENT": "production",
        "TG_SECRET_KEY": secrets.token_hex(32),
        "TG_KEY_MASTER": secrets.token_hex(32),
        "TG_KEY_PROVIDER": f"file:{home}/keys",
        "DATABASE_URL": "postgresql+psycopg://u:p@h/d",
        "TG_HOME": str(home),
        "TG_PUBLIC_URL": "https://fleet.example",
        "TG_BEHIND_TLS_PROXY": "true",
        "TG_TRUST_STORE": str(packs),
        "TG_PACK_DIR": str(packs),
        "TG_GRANT_JWKS": str(jwks),
        "TG_AGENT_DIR": str(home),
    }


VIOLATIONS: Mapping[str, tuple[Role, dict[str, str | None], Probes]] = {
    "ENVIRONMENT": (Role.client, {"TG_ENVIRONMENT": "prod"}, GOOD_PROBES),
    "SETTINGS": (Role.client, {"TG_MAX_BODY_BYTES": "lots"}, GOOD_PROBES),
    "SECRET_KEY": (Role.platform, {"TG_SECRET_KEY": None}, GOOD_PROBES),
    "KEY_MASTER": (Role.platform, {"TG_KEY_MASTER": "00" * 32}, GOOD_PROBES),
    "KEY_PROVIDER": (Role.platform, {"TG_KEY_PROVIDER": None}, GOOD_PROBES),
    "DATABASE_KIND": (Role.platform, {"DATABASE_URL": "sqlite:///x.db"}, GOOD_PROBES),
    "DATABASE_REVISION": (
        Role.platform,
        {},
        Probes(key_provider=lambda _: None, database_revision=lambda _: "behind"),
    ),
    "HOME": (Role.platform, {"TG_HOME": "/nonexistent"}, GOOD_PROBES),
    "TLS": (Role.platform, {"TG_BEHIND_TLS_PROXY": None}, GOOD_PROBES),
    "PUBLIC_URL": (Role.platform, {"TG_PUBLIC_URL": "http://fleet.example"}, GOOD_PROBES),
    "ALLOWED_ORIGINS": (Role.platform, {"TG_ALLOWED_ORIGINS": "*"}, GOOD_PROBES),
    "TPM_SIMULATOR": (Role.platform, {"TG_ALLOW_TPM_SIMULATOR": "true"}, GOOD_PROBES),
    "UNSAFE_COMPONENT": (
        Role.platform,
        {},
        Probes(components=("unsafe_accept_all",), key_provider=lambda _: None),
    ),
    "MOAI_BACKEND": (Role.serving, {"TG_MOAI_BACKEND": "imagined"}, GOOD_PROBES),
    "AGGREGATION": (Role.platform, {"TG_ENABLE_AGGREGATION": "true"}, GOOD_PROBES),
    "TRACING": (Role.platform, {"TG_ENABLE_OTEL": "true"}, GOOD_PROBES),
    "TRUST_STORE": (Role.serving, {"TG_TRUST_STORE": None}, GOOD_PROBES),
    "PACK_DIR": (Role.serving, {"TG_PACK_DIR": "/nonexistent"}, GOOD_PROBES),
    "GRANTS": (Role.serving, {"TG_GRANT_JWKS": "http://fleet.example/jwks"}, GOOD_PROBES),
    "SERVING_POOL": (Role.serving, {"TG_SERVING_POOL": "imagined"}, GOOD_PROBES),
    "RAY_NETWORK": (
        Role.serving,
        {"TG_SERVING_POOL": "ray", "TG_RAY_ADDRESS": "10.0.0.1:6379"},
        GOOD_PROBES,
    ),
    "AGENT_DIR": (Role.agent, {"TG_AGENT_DIR": None}, GOOD_PROBES),
    "AGENT_URL": (Role.agent, {"TG_AGENT_URL": "http://fleet.example"}, GOOD_PROBES),
    "CLOCK": (Role.client, {}, Probes(now=lambda: datetime(1970, 1, 1, tzinfo=UTC))),
}


def settings_of(sound: dict[str, str], change: Mapping[str, str | None]) -> Settings:
    merged = {**sound, **change}
    return Settings.from_environment({k: v for k, v in merged.items() if v is not None})


def test_every_gate_has_a_violating_example() -> None:
    assert VIOLATIONS.keys() == {gate.id for gate in GATES}


@pytest.mark.parametrize(
    "role", [Role.platform, Role.serving, Role.agent, Role.operator, Role.client]
)
def test_sound_settings_start(sound: dict[str, str], role: Role) -> None:
    enforce(settings_of(sound, {}), role, GOOD_PROBES)


@pytest.mark.parametrize("gate", VIOLATIONS)
@pytest.mark.invariant("TG-I02")
def test_each_gate_refuses_its_violation_alone(sound: dict[str, str], gate: str) -> None:
    role, change, probes = VIOLATIONS[gate]
    with pytest.raises(GateFailure) as failure:
        enforce(settings_of(sound, change), role, probes)
    assert [finding.gate.id for finding in failure.value.findings] == [gate]
    assert f"[PRODUCTION GATE FAILED: {gate}]" in str(failure.value)
    assert "REMEDIATION: " in str(failure.value)


def test_all_violations_are_reported_at_once(sound: dict[str, str]) -> None:
    bad = settings_of(sound, {"TG_SECRET_KEY": None, "TG_HOME": None, "DATABASE_URL": None})
    with pytest.raises(GateFailure) as failure:
        enforce(bad, Role.platform, GOOD_PROBES)
    assert {f.gate.id for f in failure.value.findings} == {"SECRET_KEY", "HOME", "DATABASE_KIND"}


def test_report_is_a_line_of_json_then_text(sound: dict[str, str]) -> None:
    stream = io.StringIO()
    with pytest.raises(GateFailure) as failure:
        enforce(settings_of(sound, {"TG_HOME": None}), Role.platform, GOOD_PROBES)
    failure.value.report(stream)
    first, second, *_ = stream.getvalue().splitlines()
    assert json.loads(first)["gates"][0]["id"] == "HOME"
    assert second.startswith("[PRODUCTION GATE FAILED: HOME]")


@pytest.mark.parametrize("word", ["development", "research"])
def test_development_relaxes_only_what_is_not_always(sound: dict[str, str], word: str) -> None:
    for gate, (role, change, probes) in VIOLATIONS.items():
        if gate in {"ENVIRONMENT", "SETTINGS"}:
            continue
        settings = settings_of(sound, {**change, "TG_ENVIRONMENT": word})
        findings = [f for f in inspect(settings, role, probes) if f.applies and f.detail]
        row = next(g for g in GATES if g.id == gate)
        assert bool(findings) == row.always, gate


def test_the_simulator_is_admitted_in_research_only(sound: dict[str, str]) -> None:
    for word, expected in (("development", True), ("research", False)):
        settings = settings_of(sound, {"TG_ALLOW_TPM_SIMULATOR": "true", "TG_ENVIRONMENT": word})
        finding = next(
            f for f in inspect(settings, Role.platform, GOOD_PROBES) if f.gate.id == "TPM_SIMULATOR"
        )
        assert (finding.detail is not None) == expected


@pytest.mark.parametrize(
    "secret",
    [
        b"",
        b"\0" * 32,
        b"ab" * 16,
        bytes(range(32)),
        bytes(range(0, 64, 2)),
        b"changeme" + secrets.token_bytes(32),
        b"correct horse battery staple, and more",
        secrets.token_bytes(31),
        secrets.token_bytes(12) * 3,
    ],
    ids=["empty", "zeros", "pair", "count", "steps", "default", "text", "short", "repeated"],
)
@pytest.mark.invariant("TG-I03")
def test_weak_secrets_are_named(secret: bytes) -> None:
    assert weakness(secret)


def test_random_secrets_pass() -> None:
    assert [weakness(secrets.token_bytes(32)) for _ in range(500)] == [None] * 500


def test_ray_is_asked_for_only_where_its_network_is_safe_and_never_replaced(
    sound: dict[str, str],
) -> None:
    asked: list[str | None] = []

    def ray(settings: Settings) -> str:
        asked.append(settings.ray_address)
        return "Nothing answers."

    probes = dataclasses.replace(GOOD_PROBES, ray=ray)
    cluster = {"TG_SERVING_POOL": "ray", "TG_RAY_ADDRESS": "10.0.0.1:6379"}
    enforce(settings_of(sound, {}), Role.serving, probes)
    with pytest.raises(GateFailure) as caught:
        enforce(settings_of(sound, cluster), Role.serving, probes)
    assert [finding.gate.id for finding in caught.value.findings] == ["RAY_NETWORK"]
    assert asked == []
    for safe in (
        {"TG_RAY_PRIVATE_NETWORK": "true"},
        {"RAY_AUTH_MODE": "token", "RAY_USE_TLS": "1"},
    ):
        with pytest.raises(GateFailure, match="Nothing answers"):
            enforce(settings_of(sound, cluster | safe), Role.serving, probes)
    development = {**cluster, "TG_ENVIRONMENT": "development"}
    with pytest.raises(GateFailure, match="Nothing answers"):
        enforce(settings_of(sound, development), Role.serving, probes)
    assert len(asked) == 3
