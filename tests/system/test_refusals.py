"""A real process with one violation exits with 78 in under 5 s, says why, and opens no port."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretBytes

from support.platform import Databases
from support.production import (
    BIN,
    LIMIT_SECONDS,
    free_port,
    is_open,
    process_environment,
    run_until_refusal,
    sound_environment,
)
from tensorguard.gates import GATES
from tensorguard.keys import self_test
from tensorguard.keys.file import FileKeyProvider

Change = Mapping[str, str | None]

# gate → changes to a sound environment, each of which that gate alone must catch
PLATFORM: Mapping[str, tuple[Change, ...]] = {
    "ENVIRONMENT": ({"TG_ENVIRONMENT": "prod"},),
    "SETTINGS": ({"TG_MAX_BODY_BYTES": "lots"},),
    "SECRET_KEY": (
        {"TG_SECRET_KEY": None},
        {"TG_SECRET_KEY": "not hex!"},
        {"TG_SECRET_KEY": "ab" * 16},
        {"TG_SECRET_KEY": "00" * 32},
    ),
    "KEY_MASTER": ({"TG_KEY_MASTER": None}, {"TG_KEY_MASTER": "0123456789abcdef" * 4}),
    "KEY_PROVIDER": (
        {"TG_KEY_PROVIDER": None},
        {"TG_KEY_PROVIDER": "vapour:x"},
        {"TG_KEY_PROVIDER": "file:/proc/nowhere"},
        {"TG_KEY_PROVIDER": "{disabled}"},
        {"TG_KEY_PROVIDER": "{torn}"},
        {"TG_KEY_PROVIDER": "pkcs11:token=tg?pin-source=file:/etc/hostname"},
        {
            "TG_KEY_PROVIDER": "pkcs11:token=tg?module-path=/nonexistent.so&pin-source=file:/dev/null"
        },
        {"TG_KEY_PROVIDER": "pkcs11:token=tg?module-path=/nonexistent.so&pin-value=1234"},
        {"TG_KEY_PROVIDER": "awskms:atlantis/tensorguard"},
        {"TG_KEY_PROVIDER": "awskms:"},
        {"TG_KEY_PROVIDER": "vault:https://127.0.0.1:9/transit?kv=secret&token-file=/nonexistent"},
        {"TG_KEY_PROVIDER": "vault:127.0.0.1"},
    ),
    "DATABASE_KIND": ({"DATABASE_URL": None},),
    "DATABASE_REVISION": ({"DATABASE_URL": "{empty}"}, {"DATABASE_URL": "{absent}"}),
    "HOME": ({"TG_HOME": None}, {"TG_HOME": "/nonexistent"}, {"TG_HOME": "/usr/games"}),
    "TLS": (
        {"TG_BEHIND_TLS_PROXY": None},
        {"TG_BEHIND_TLS_PROXY": None, "TG_TLS_CERT": "/etc/hostname", "TG_TLS_KEY": "/dev/null"},
    ),
    "PUBLIC_URL": ({"TG_PUBLIC_URL": None}, {"TG_PUBLIC_URL": "http://fleet.example"}),
    "ALLOWED_ORIGINS": ({"TG_ALLOWED_ORIGINS": "*"},),
    "TPM_SIMULATOR": ({"TG_ALLOW_TPM_SIMULATOR": "true"},),
    "UNSAFE_COMPONENT": ({"TG_MOAI_BACKEND": "unsafe_plain"},),
    "AGGREGATION": ({"TG_ENABLE_AGGREGATION": "true"},),
    "TRACING": ({"TG_ENABLE_OTEL": "true"},),
}
RAY: Change = {
    "TG_SERVING_POOL": "ray",
    "TG_RAY_ADDRESS": "127.0.0.1:9",
    "TG_RAY_PRIVATE_NETWORK": "true",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray binds to 127.0.0.1
}
SERVING: Mapping[str, tuple[Change, ...]] = {
    "ENVIRONMENT": ({"TG_ENVIRONMENT": "PRODUCTION"},),
    "SETTINGS": ({"TG_MAX_WORKERS": "0"},),
    "HOME": ({"TG_HOME": None},),
    "TLS": ({"TG_BEHIND_TLS_PROXY": "maybe"},),
    "MOAI_BACKEND": ({"TG_MOAI_BACKEND": "imagined"},),
    "TRUST_STORE": ({"TG_TRUST_STORE": None}, {"TG_TRUST_STORE": "/usr/games"}),
    "PACK_DIR": ({"TG_PACK_DIR": None}, {"TG_PACK_DIR": "/nonexistent"}),
    "GRANTS": ({"TG_GRANT_JWKS": None}, {"TG_GRANT_JWKS": "http://fleet.example/jwks"}),
    "SERVING_POOL": (
        {"TG_SERVING_POOL": "imagined"},
        RAY | {"TG_RAY_ADDRESS": None},
        RAY | {"TG_RAY_ADDRESS": "127.0.0.1:9"},
        RAY | {"TG_RAY_ADDRESS": "{no-ray}"},
        RAY | {"PYTHONPATH": "{without-ray}"},
    ),
    "RAY_NETWORK": (
        RAY | {"TG_RAY_PRIVATE_NETWORK": None},
        RAY | {"TG_RAY_PRIVATE_NETWORK": None, "RAY_AUTH_MODE": "token"},
        RAY | {"TG_RAY_PRIVATE_NETWORK": None, "RAY_USE_TLS": "1"},
    ),
}
AGENT: Mapping[str, tuple[Change, ...]] = {
    "ENVIRONMENT": ({"TG_ENVIRONMENT": "dev"},),
    "SETTINGS": ({"TG_AGENT_SPOOL_BYTES": "-1"},),
    "TPM_SIMULATOR": ({"TG_ALLOW_TPM_SIMULATOR": "true"},),
    "AGENT_DIR": ({"TG_AGENT_DIR": None}, {"TG_AGENT_DIR": "/usr/games"}),
    "AGENT_URL": ({"TG_AGENT_URL": "http://fleet.example"}, {"TG_AGENT_URL": "fleet"}),
}
NOT_BY_ENVIRONMENT = {"CLOCK"}  # the system clock is not ours to set; tests/unit/test_gates.py


def cases() -> Iterator[object]:
    for role, table in (("platform", PLATFORM), ("serving", SERVING)):
        for gate, changes in table.items():
            for number, change in enumerate(changes):
                yield pytest.param(role, gate, change, id=f"{role}-{gate}-{number}")


@pytest.fixture(scope="module")
def urls(postgresql_databases: Databases) -> Iterator[dict[str, str]]:
    with (
        postgresql_databases.one("postgresql", migrated=True) as ready,
        postgresql_databases.one("postgresql", migrated=False) as empty,
    ):
        yield {
            "ready": ready,
            "{empty}": empty,
            "{absent}": "postgresql+psycopg://u@127.0.0.1:9/none",
        }


def failing_custody(folder: Path, master: str) -> dict[str, str]:
    """Key folders whose self-test fails: a key that is disabled, one whose file was torn."""
    found = {}
    for name in ("disabled", "torn"):
        path = folder / name
        keys = FileKeyProvider(
            path, SecretBytes(bytes.fromhex(master)), now=lambda: datetime.now(UTC)
        )
        self_test.run(keys)
        if name == "disabled":
            keys.disable(self_test.SIGNING_KEY)
        else:
            (file,) = path.glob(f"*/{self_test.WRAPPING_KEY}.tgkey")
            file.write_bytes(file.read_bytes()[:-9])
        found[f"{{{name}}}"] = f"file:{path}"
    return found


@pytest.fixture(scope="module")
def places(
    urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Values that exist only now: databases, a port that is not Ray's, a Python without Ray."""
    without = tmp_path_factory.mktemp("python")
    (without / "ray.py").write_text("raise ImportError('no module of that name')\n")
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, and says nothing
        address = f"127.0.0.1:{server.getsockname()[1]}"
        yield {**urls, "{no-ray}": address, "{without-ray}": str(without)}


def variables_of(folder: Path, urls: Mapping[str, str], change: Change) -> dict[str, str | None]:
    sound = sound_environment(folder, urls["ready"])
    if change.get("TG_KEY_PROVIDER") in {"{disabled}", "{torn}"}:
        urls = {**urls, **failing_custody(folder, sound["TG_KEY_MASTER"])}
    return sound | {name: urls.get(value or "", value) for name, value in change.items()}


def uvicorn(role: str, port: int) -> list[str]:
    app = f"tensorguard.{role}.app:create_app"
    return [f"{BIN}/uvicorn", app, "--factory", "--host", "127.0.0.1", "--port", str(port)]


def cli(role: str, port: int) -> list[str]:
    return [f"{BIN}/tensorguard", role, "serve", "--host", "127.0.0.1", "--port", str(port)]


def test_every_gate_is_violated_somewhere() -> None:
    named = PLATFORM.keys() | SERVING.keys() | AGENT.keys() | NOT_BY_ENVIRONMENT
    assert {gate.id for gate in GATES} == named


@pytest.mark.parametrize(("role", "gate", "change"), [*cases()])
@pytest.mark.invariant("TG-I06")
def test_one_violation_refuses(
    role: str, gate: str, change: Change, places: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    ended = run_until_refusal(uvicorn(role, port), variables_of(tmp_path, places, change), port)
    assert ended.status == 78, ended.output
    assert ended.seconds < LIMIT_SECONDS
    assert not ended.port_was_open
    assert f"[PRODUCTION GATE FAILED: {gate}]" in ended.output
    assert "REMEDIATION: " in ended.output
    report = next(line for line in ended.output.splitlines() if line.startswith('{"error"'))
    assert [row["id"] for row in json.loads(report)["gates"]] == [gate]
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("gate", "change"), [(gate, change) for gate, changes in AGENT.items() for change in changes]
)
def test_one_violation_refuses_an_agent(gate: str, change: Change, tmp_path: Path) -> None:
    sound = {
        "TG_ENVIRONMENT": "production",
        "TG_AGENT_DIR": str(tmp_path),
        "TG_AGENT_URL": "https://fleet.example",
    }
    command = [f"{BIN}/tensorguard", "agent", "run"]
    ended = run_until_refusal(command, sound | change, free_port())
    assert ended.status == 78, ended.output
    assert ended.seconds < LIMIT_SECONDS
    report = next(line for line in ended.output.splitlines() if line.startswith('{"error"'))
    assert [row["id"] for row in json.loads(report)["gates"]] == [gate]
    assert not (tmp_path / "spool.db").exists()
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("role", ["platform", "serving"])
@pytest.mark.parametrize("start", [uvicorn, cli])
@pytest.mark.parametrize("word", [None, "prod"])
def test_an_empty_environment_and_a_wrong_word_refuse(
    role: str, start: object, word: str | None
) -> None:
    port = free_port()
    ended = run_until_refusal(start(role, port), {"TG_ENVIRONMENT": word}, port)
    assert ended.status == 78, ended.output
    assert ended.seconds < LIMIT_SECONDS
    assert not ended.port_was_open
    assert "REMEDIATION: " in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    "command",
    [
        "db upgrade",
        "db current",
        "user create-admin --tenant t --username u --generate",
        "keys list",
        "audit verify --tenant t",
        "doctor --role platform",
    ],
)
def test_administration_commands_refuse_too(command: str) -> None:
    ended = run_until_refusal([f"{BIN}/tensorguard", *command.split()], {}, free_port())
    assert ended.status == 78, ended.output
    assert ended.seconds < LIMIT_SECONDS
    assert "SECRET_KEY" in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("role", ["platform", "serving"])
def test_doctor_lists_every_gate_with_pass_or_fail_and_remedy(
    role: str, urls: dict[str, str], tmp_path: Path
) -> None:
    expected = {gate.id: gate.remedy for gate in GATES if role in gate.roles}
    command = [f"{BIN}/tensorguard", "doctor", "--role", role, "--json"]

    def report(change: Change, status: int) -> dict[str, dict[str, str]]:
        folder = tmp_path / str(status)
        folder.mkdir()
        variables = process_environment(variables_of(folder, urls, change))
        done = subprocess.run(command, env=variables, capture_output=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr
        return {row["id"]: row for row in json.loads(done.stdout)["gates"]}

    sound = report({}, 0)
    assert {name: row["remedy"] for name, row in sound.items()} == expected
    assert {row["result"] for row in sound.values()} == {"pass"}
    broken = report({"TG_HOME": None, "TG_ALLOW_TPM_SIMULATOR": "true"}, 78)
    failed = {name for name, row in broken.items() if row["result"] == "fail"}
    assert failed == {"HOME", "TPM_SIMULATOR"}
    assert all(broken[name]["detail"] for name in failed)


@pytest.mark.parametrize("role", ["platform", "serving"])
def test_sound_production_starts_and_ends(role: str, urls: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    variables = process_environment(variables_of(tmp_path, urls, {}))
    process = subprocess.Popen(uvicorn(role, port), env=variables)
    try:
        deadline = time.monotonic() + 30
        while not is_open(port) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert is_open(port)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in {0, -signal.SIGTERM}
