"""Rotation under load, and what is left on the disk: a real platform, a real PostgreSQL, real requests."""

from __future__ import annotations

import base64
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretBytes
from sqlalchemy import make_url

from support.platform import Databases
from support.platform_process import PASSWORD, Process, platform_process
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import Algorithm, KeyState, PublicKey, key_id

pytestmark = pytest.mark.xdist_group("key-rotation")

EACH, THREADS, ROTATIONS = 1000, 4, 3
MESSAGE = b"a message"
SECRET_VALUE = "the-webhook-credential-of-acme"


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@dataclass
class Load:
    """What two threads per operation did while the keys rotated."""

    process: Process
    client: httpx.Client
    signatures: list[dict[str, Any]] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    data_key: dict[str, str] = field(default_factory=dict)
    token: str = ""

    def post(self, path: str, body: object = None) -> httpx.Response:
        return self.client.post(f"/api/v1/keys/{path}", json=body)

    def sign(self) -> None:
        answer = self.post("release/sign", {"message": b64(MESSAGE)})
        if answer.status_code == 200:
            self.signatures.append(answer.json())
        else:
            self.failures.append(answer.text)

    def unwrap(self) -> None:
        answer = self.post("rest/unwrap", {"wrapped": self.data_key["wrapped"]})
        if answer.status_code == 200:
            self.opened.append(answer.json()["plaintext"])
        else:
            self.failures.append(answer.text)

    def rotate(self) -> None:
        for name in ("release", "rest"):
            if (answer := self.post(f"{name}/rotate")).status_code != 200:
                self.failures.append(answer.text)


@pytest.fixture(scope="module")
def load(
    postgresql_databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Load]:
    folder = tmp_path_factory.mktemp("platform")
    with (
        postgresql_databases.one("postgresql", migrated=True) as url,
        platform_process(folder, url, TG_KEY_POLICY_SECONDS="1") as process,
    ):
        token = process.sign_in("acme", "security")
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(
            base_url=process.url, headers=headers, timeout=60, trust_env=False
        ) as client:
            yield worked(Load(process, client, token=token))


def worked(load: Load) -> Load:
    for name, purpose, algorithm in (
        ("release", "pack-signing", "Ed25519"),
        ("both", "pack-signing", None),
        ("ca", "token-signing", "ES256"),
        ("rest", "data-at-rest", None),
    ):
        body = {"name": name, "purpose": purpose, "algorithm": algorithm}
        assert load.client.post("/api/v1/keys", json=body).status_code == 201
    load.data_key = load.post("rest/data-keys").json()
    stored = load.client.put("/api/v1/secrets/webhook", json={"value": SECRET_VALUE})
    assert stored.status_code == 201
    with ThreadPoolExecutor(THREADS + 1) as pool:
        jobs = [pool.submit(work) for _ in range(EACH) for work in (load.sign, load.unwrap)]
        for number in range(ROTATIONS):
            jobs[(number + 1) * len(jobs) // (ROTATIONS + 1)].result()
            load.rotate()
        for job in jobs:
            job.result()
    return load


def test_no_request_fails_while_the_keys_rotate(load: Load) -> None:
    assert load.failures == []
    assert (len(load.signatures), len(load.opened)) == (EACH, EACH)
    versions = Counter(made["version"] for made in load.signatures)
    assert set(versions) == {1, 2, 3, 4}
    assert set(load.opened) == {load.data_key["plaintext"]}


def test_the_published_keys_verify_every_signature(load: Load) -> None:
    found = load.client.get("/api/v1/keys/release/public-keys").json()["versions"]
    keys = {
        row["kid"]: PublicKey(
            key_id("release"),
            row["version"],
            Algorithm(row["algorithm"]),
            base64.urlsafe_b64decode(row["jwk"]["x"] + "="),
        )
        for row in found
    }
    for made in load.signatures:
        keys[made["kid"]].verify(MESSAGE, base64.b64decode(made["signature"]))


def test_old_material_opens_until_it_is_retired(load: Load) -> None:
    wrapped = {"wrapped": load.data_key["wrapped"]}
    assert load.post("rest/unwrap", wrapped).status_code == 200
    assert load.post("rest/versions/1/retire").status_code == 200
    refused = load.post("rest/unwrap", wrapped)
    assert (refused.status_code, refused.json()["code"]) == (409, "key_retired")
    assert load.post("release/versions/1/retire").status_code == 200
    test_the_published_keys_verify_every_signature(load)


def test_every_use_is_in_the_trail_and_the_trail_holds(load: Load) -> None:
    found = load.process.command("audit", "verify", "--tenant", "acme", "--json")
    assert '"result": "ok"' in found
    actions: Counter[str] = Counter()
    cursor: str | None = None
    while True:
        query = {"limit": "500"} | ({"cursor": cursor} if cursor else {})
        page = load.client.get("/api/v1/audit", params=query).json()
        actions.update(row["action"] for row in page["items"])
        if (cursor := page["next_cursor"]) is None:
            break
    assert actions["key.signed"] == EACH
    assert actions["key.unwrapped"] >= EACH
    assert actions["key.rotated"] == 2 * ROTATIONS


def private_bytes(process: Process) -> dict[str, bytes]:
    """Every secret that the platform works with, by a name."""
    master = bytes.fromhex(process.variables["TG_KEY_MASTER"])
    provider = FileKeyProvider(
        process.home / "keys", SecretBytes(master), now=lambda: datetime.now(UTC)
    )
    found = {"master": master, "root": bytes.fromhex(process.variables["TG_SECRET_KEY"])}
    for info in provider.list_keys():
        for version in provider.versions(info.key_id):
            if version.state is KeyState.destroyed:
                continue
            raw = provider._key(
                provider._read(info.key_id), provider._read(info.key_id).version(version.version)
            ).private
            for part in range(0, len(raw), 32):
                found[f"{info.key_id}.{version.version}.{part}"] = raw[part : part + 32]
    return found


def spellings(raw: bytes) -> set[bytes]:
    """The ways in which bytes may lie in a file: raw, hex, base64 at each of three offsets."""
    ways = {raw, raw.hex().encode(), raw.hex().upper().encode()}
    for offset in range(3):
        inner = base64.b64encode(b"\0" * offset + raw)[4 * bool(offset) : -4]
        ways |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return ways


def dump(database_url: str) -> bytes:
    url = make_url(database_url)
    program = max(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))
    host, name = str(url.query["host"]), str(url.database)
    done = subprocess.run(
        [program, "-h", host, "-U", str(url.username), name],
        capture_output=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_no_private_byte_is_on_the_disk_or_in_the_database(load: Load) -> None:
    secrets = private_bytes(load.process)
    assert len(secrets) >= 14
    secrets |= {
        "data key": base64.b64decode(load.data_key["plaintext"]),
        "stored secret": SECRET_VALUE.encode(),
        "session": load.token.encode(),
        "password": PASSWORD.encode(),
    }
    stored = dump(load.process.database_url)
    assert b"COPY public.keyring " in stored
    assert b"COPY public.tenant_secret " in stored
    places = {"the database": stored, "the log": load.process.log.read_bytes()}
    places |= {
        str(path): path.read_bytes() for path in load.process.home.rglob("*") if path.is_file()
    }
    assert len(places) > 8
    for place, content in places.items():
        assert b"PRIVATE KEY" not in content, place
        for name, raw in secrets.items():
            for way in spellings(raw):
                assert way not in content, f"{name} in {place}"


def test_the_search_would_find_what_it_looks_for(tmp_path: Path) -> None:
    raw = bytes(range(40, 72))
    for before in (b"", b"x", b"xy"):
        text = base64.b64encode(before + raw + b"tail")
        assert any(way in text for way in spellings(raw)), before
    assert raw.hex().encode() in spellings(raw)
