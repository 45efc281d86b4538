"""The registry takes verified packs, whole and once; everything else leaves no row and no file."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.devices import Fleet, access_token, bearer, events
from support.packs import foreign_pack, pack_bytes, trust_folder
from support.platform import running
from tensorguard.platform.db.tables.packs import Pack
from tensorguard.platform.packs import service
from tensorguard.platform.principal import Role


@pytest.fixture
def registry(platform_settings, clock, tmp_path):
    with running(platform_settings, clock, trust_store=trust_folder(tmp_path / "t")) as platform:
        yield platform


@pytest.fixture
def engineer(registry):
    return registry.caller(Role.engineer)


def upload(platform, headers, data, media="application/octet-stream"):
    return platform.client.post(
        "/api/v1/packs", content=data, headers={**headers, "content-type": media}
    )


def stored(platform):
    """Return the number of rows, and the files."""
    folder = platform.settings.home / "packs"
    with platform.session() as session:
        rows = session.query(Pack).count()
    return rows, [path for path in folder.rglob("*") if path.is_file()]


def test_a_registered_pack_comes_back_as_the_bytes_that_went_in(registry, engineer):
    data = pack_bytes()
    made = upload(registry, engineer, data)
    assert made.status_code == 201, made.text
    view = made.json()
    assert (view["name"], view["version"], view["size"]) == ("tiny", "1.0", len(data))
    assert view["signer_name"] == "tests"
    path = f"/api/v1/packs/{view['pack_id']}"
    viewer = registry.caller(Role.viewer)
    assert registry.client.get(path, headers=viewer).json() == view
    content = registry.client.get(f"{path}/content", headers=viewer)
    assert content.content == data
    assert content.headers["content-type"] == "application/octet-stream"
    rows, files = stored(registry)
    assert (rows, len(files)) == (1, 1)
    assert files[0].stat().st_mode & 0o777 == 0o600
    assert ("pack.registered", f"pack:{view['pack_id']}") in events(registry)


def test_a_device_may_fetch_its_tenants_packs(registry, engineer):
    pack_id = upload(registry, engineer, pack_bytes()).json()["pack_id"]
    device = Fleet(registry).enrol()
    content = registry.client.get(
        f"/api/v1/packs/{pack_id}/content", headers=bearer(access_token(registry, device))
    )
    assert content.content == pack_bytes()


def test_the_same_pack_again_is_the_same_pack(registry, engineer):
    first = upload(registry, engineer, pack_bytes())
    again = upload(registry, engineer, pack_bytes())
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert stored(registry)[0] == 1


def test_the_same_pack_ten_times_at_once_is_stored_once(registry, engineer):
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: upload(registry, engineer, pack_bytes()), range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
    rows, files = stored(registry)
    assert (rows, len(files)) == (1, 1)


def edited(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


BAD = {
    "empty": lambda: b"",
    "garbage": lambda: b"PK\x03\x04" + b"\0" * 500,
    "truncated": lambda: pack_bytes()[:-1],
    "appended": lambda: pack_bytes() + b"\0",
    "edited in the middle": lambda: edited(pack_bytes(), len(pack_bytes()) // 2),
    "signed by a stranger": foreign_pack,
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_pack_is_refused_and_nothing_is_stored(registry, engineer, kind):
    before = events(registry)
    refused = upload(registry, engineer, BAD[kind]())
    assert 400 <= refused.status_code < 500, refused.text
    assert refused.json()["remedy"]
    assert stored(registry) == (0, [])
    assert events(registry) == before


def test_an_edit_at_any_place_is_refused(registry, engineer):
    data = pack_bytes()
    for position in range(0, len(data), max(1, len(data) // 40)):
        assert upload(registry, engineer, edited(data, position)).status_code in {400, 422}
    assert stored(registry) == (0, [])


def test_an_oversized_pack_is_refused(platform_settings, clock, tmp_path):
    limits = {"trust_store": trust_folder(tmp_path / "t"), "max_pack_bytes": 1000}
    with running(platform_settings, clock, **limits) as platform:
        headers = platform.caller(Role.engineer)
        assert upload(platform, headers, pack_bytes()).status_code == 413
        assert stored(platform) == (0, [])


def test_another_media_type_is_refused(registry, engineer):
    assert upload(registry, engineer, pack_bytes(), "application/zip").status_code == 415


def test_without_a_trust_store_no_pack_is_accepted(platform):
    refused = upload(platform, platform.caller(Role.engineer), pack_bytes())
    assert (refused.status_code, refused.json()["code"]) == (503, "registry_closed")
    assert "TG_TRUST_STORE" in refused.json()["remedy"]


def test_an_empty_trust_store_accepts_nothing(platform_settings, clock, tmp_path):
    (tmp_path / "empty").mkdir()
    with running(platform_settings, clock, trust_store=tmp_path / "empty") as platform:
        refused = upload(platform, platform.caller(Role.engineer), pack_bytes())
        assert refused.json()["code"] == "registry_closed"


@pytest.mark.parametrize("role", [Role.viewer, Role.operator, Role.security])
def test_who_may_not_write_packs_registers_none(registry, role):
    assert upload(registry, registry.caller(role), pack_bytes()).status_code == 403


@pytest.mark.invariant("TG-I08")
def test_another_tenants_pack_is_not_found(registry, engineer):
    pack_id = upload(registry, engineer, pack_bytes()).json()["pack_id"]
    rival = registry.caller(Role.admin, "rival")
    for method, path in (
        ("GET", f"/api/v1/packs/{pack_id}"),
        ("GET", f"/api/v1/packs/{pack_id}/content"),
        ("DELETE", f"/api/v1/packs/{pack_id}"),
    ):
        assert registry.client.request(method, path, headers=rival).status_code == 404
    assert registry.client.get("/api/v1/packs", headers=rival).json()["items"] == []
    assert upload(registry, rival, pack_bytes()).status_code == 201  # their own copy


def test_a_retired_pack_does_not_come_back(registry, engineer):
    pack_id = upload(registry, engineer, pack_bytes()).json()["pack_id"]
    path = f"/api/v1/packs/{pack_id}"
    first = registry.client.delete(path, headers=engineer)
    second = registry.client.delete(path, headers=engineer)
    assert first.json()["retired"] is not None
    assert first.json() == second.json()
    again = upload(registry, engineer, pack_bytes())
    assert (again.status_code, again.json()["code"]) == (409, "pack_retired")
    assert [action for action, _ in events(registry)].count("pack.retired") == 1


def test_more_active_packs_than_a_grant_can_name_are_refused(registry, engineer):
    first = upload(registry, engineer, pack_bytes()).json()["pack_id"]
    tenant = registry.tenant("acme")
    with registry.session() as session:
        row = session.get_one(Pack, (tenant, first))
        columns = {c.name: getattr(row, c.name) for c in Pack.__table__.columns}
        for number in range(service.MAX_PACKS - 1):
            session.add(Pack(**{**columns, "pack_id": format(number, "064x")}))
    before = stored(registry)
    refused = upload(registry, engineer, pack_bytes("2.0"))
    assert (refused.status_code, refused.json()["code"]) == (409, "registry_full")
    assert stored(registry) == before


def test_content_that_was_changed_on_the_disk_is_not_served(registry, engineer):
    view = upload(registry, engineer, pack_bytes()).json()
    (path,) = stored(registry)[1]
    path.write_bytes(edited(pack_bytes(), 100))
    answer = registry.client.get(f"/api/v1/packs/{view['pack_id']}/content", headers=engineer)
    assert (answer.status_code, answer.json()["code"]) == (503, "pack_content_lost")
    path.unlink()
    answer = registry.client.get(f"/api/v1/packs/{view['pack_id']}/content", headers=engineer)
    assert answer.status_code == 503


def test_the_digest_of_the_archive_is_recorded(registry, engineer):
    pack_id = upload(registry, engineer, pack_bytes()).json()["pack_id"]
    with registry.session() as session:
        row = session.get_one(Pack, (registry.tenant("acme"), pack_id))
        assert row.sha256 == hashlib.sha256(pack_bytes()).hexdigest()
