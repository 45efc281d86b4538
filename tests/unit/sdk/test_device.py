"""The device's side: enrol once, keep the key private, renew tokens in time, send them nowhere odd."""

import json
import stat

import httpx
import pytest

from support.devices import Fleet
from support.packs import pack_bytes, trust_folder
from support.platform import running, settings_for
from tensorguard.errors import TensorGuardError
from tensorguard.platform.principal import Role
from tensorguard.sdk.device import (
    AlreadyEnrolled,
    AnswerRefused,
    DeviceIdentity,
    IdentityUnusable,
    NotEnrolled,
    http_client,
)
from tensorguard.sdk.fleet import FleetClient
from tensorguard.sdk.token_files import TokenUnreadable, read_token
from tensorguard.sdk.transport import InsecureUrl, ServerUnreachable
from tensorguard.wire.grants import verify_grant
from tensorguard.wire.jws import KeySet
from tensorguard.wire.problems import RemoteProblem

URL = "http://127.0.0.1"


class Bridge(httpx.BaseTransport):
    """Carries requests into a `Platform` and counts them."""

    def __init__(self, platform):
        self.platform = platform
        self.seen = []
        self.broken = 0

    def handle_request(self, request):
        self.seen.append(request.url.path)
        if self.broken:
            self.broken -= 1
            raise httpx.ConnectError("no route", request=request)
        answer = self.platform.client.request(
            request.method,
            str(request.url),
            content=request.read(),
            headers=dict(request.headers),
        )
        return httpx.Response(
            answer.status_code, headers=dict(answer.headers), content=answer.content
        )


@pytest.fixture
def registry(sqlite_url, tmp_path, clock):
    settings = settings_for(sqlite_url, tmp_path / "home")
    with running(settings, clock, trust_store=trust_folder(tmp_path / "t")) as platform:
        yield platform


@pytest.fixture
def bridge(registry):
    return Bridge(registry)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "identity"


class Time:
    """A monotonic clock that sleeping moves on."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds

    def sleep(self, seconds):
        self.seconds += seconds


@pytest.fixture
def enrol(registry, bridge, folder, clock):
    def enrolled():
        return DeviceIdentity.enrol(
            url=URL,
            token=Fleet(registry).enrolment(),
            name="arm-7",
            folder=folder,
            http=http_client(transport=bridge),
            now=clock,
        )

    return enrolled


def test_an_enrolled_device_gets_tokens_after_a_restart(enrol, registry, bridge, folder, clock):
    device_id = enrol().device_id
    again = DeviceIdentity.load(folder, http=http_client(transport=bridge), now=clock)
    assert again.device_id == device_id
    headers = {"Authorization": f"Bearer {again.access_token()}"}
    assert registry.client.get("/api/v1/packs", headers=headers).status_code == 200


def test_the_private_key_is_ours_alone(enrol, folder):
    enrol()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {
        "device.key",
        "device.crt",
        "ca.crt",
        "device.json",
    }
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_that_others_can_read_is_not_used(enrol, folder):
    enrol()
    (folder / "device.key").chmod(0o644)
    with pytest.raises(TensorGuardError, match="read by others"):
        DeviceIdentity.load(folder)


def test_a_folder_enrols_once(enrol, bridge):
    enrol()
    seen = len(bridge.seen)
    with pytest.raises(AlreadyEnrolled):
        enrol()
    assert len(bridge.seen) == seen


def test_a_refused_enrolment_leaves_the_folder_free(enrol, bridge, folder, clock):
    client = http_client(transport=bridge)
    with pytest.raises(RemoteProblem, match="token is not valid") as refused:
        DeviceIdentity.enrol(
            url=URL, token="tge_x", name="arm", folder=folder, http=client, now=clock
        )
    assert refused.value.code == "enrolment_refused"
    with pytest.raises(NotEnrolled):
        DeviceIdentity.load(folder)
    assert enrol().device_id


def test_a_token_is_held_and_renewed_before_its_end(enrol, registry, bridge, folder, clock):
    enrol()
    now = Time()
    loaded = DeviceIdentity.load(folder, http=http_client(transport=bridge), now=clock)
    identity = DeviceIdentity(
        loaded.record, loaded._key, http=http_client(transport=bridge), now=clock, monotonic=now
    )
    bridge.seen.clear()
    first = identity.access_token()
    now.sleep(539)
    assert identity.access_token() == first
    now.sleep(1)
    assert identity.access_token() != first
    assert bridge.seen == ["/oauth/token"] * 2
    identity.forget_tokens()
    identity.access_token()
    assert len(bridge.seen) == 3


def test_a_grant_names_the_registered_packs(enrol, registry, bridge, clock):
    identity = enrol()
    with pytest.raises(RemoteProblem) as refused:
        identity.serving_grant()
    assert refused.value.code == "invalid_target"
    session = registry.caller(Role.engineer)["Authorization"].removeprefix("Bearer ")
    with FleetClient(URL, lambda: session, http=bridge) as client:
        pack = client.register_pack(pack_bytes())
        assert client.register_pack(pack_bytes()) == pack
        assert client.pack_content(pack.pack_id) == pack_bytes()
    keys = KeySet.from_json(registry.client.get("/.well-known/jwks.json").content)
    assert verify_grant(identity.serving_grant(), keys, clock()).packs == {pack.pack_id}


def test_a_lost_connection_is_tried_again_with_a_fresh_assertion(enrol, bridge, folder, clock):
    enrol()
    loaded = DeviceIdentity.load(folder, http=http_client(transport=bridge), now=clock)
    now = Time()
    identity = DeviceIdentity(
        loaded.record,
        loaded._key,
        http=http_client(transport=bridge),
        now=clock,
        monotonic=now,
        sleep=now.sleep,
    )
    bridge.broken = 2
    assert identity.access_token()
    identity.forget_tokens()
    bridge.broken = 3
    with pytest.raises(ServerUnreachable):
        identity.access_token()


def test_a_revoked_device_is_told(enrol, registry, bridge):
    identity = enrol()
    operator = registry.caller(Role.operator)["Authorization"].removeprefix("Bearer ")
    with FleetClient(URL, lambda: operator, http=bridge) as client:
        assert [device.name for device in client.devices()] == ["arm-7"]
        assert client.revoke(identity.device_id, reason="stolen").revoked is not None
    with pytest.raises(RemoteProblem) as refused:
        identity.access_token()
    assert (refused.value.status, refused.value.code) == (401, "invalid_client")


def test_fleets_are_made_once_and_listed_over_pages(registry, bridge):
    operator = registry.caller(Role.operator)["Authorization"].removeprefix("Bearer ")
    with FleetClient(URL, lambda: operator, http=bridge) as client:
        first = client.ensure_fleet("arms")
        assert client.ensure_fleet("arms") == first
        for number in range(105):
            client.ensure_fleet(f"fleet-{number:03}")
        assert len(list(client.fleets())) == 106
        assert client.create_enrolment(first.id).token.startswith("tge_")


@pytest.mark.parametrize("url", ["http://platform.example", "ftp://x", "", "platform.example"])
def test_a_one_time_token_is_not_sent_in_clear(folder, url):
    with pytest.raises(InsecureUrl):
        DeviceIdentity.enrol(url=url, token="tge_x", name="arm", folder=folder)
    assert not folder.exists()


def answering(content, status=201):
    def handle(request):
        return httpx.Response(status, content=content)

    return http_client(transport=httpx.MockTransport(handle))


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10_000, b"x" * 100_000])
def test_an_answer_that_is_no_enrolment_is_refused(folder, content):
    with pytest.raises(AnswerRefused):
        DeviceIdentity.enrol(url=URL, token="t", name="arm", folder=folder, http=answering(content))
    assert not (folder / "device.json").exists()


def test_a_certificate_for_another_key_is_refused(registry, folder):
    other = Fleet(registry).enrol()
    body = {**other.answer, "token_endpoint": f"{URL}/oauth/token"}
    with pytest.raises(AnswerRefused, match="another key"):
        DeviceIdentity.enrol(
            url=URL, token="t", name="arm", folder=folder, http=answering(json.dumps(body).encode())
        )


@pytest.mark.parametrize("name", ["device.key", "device.json"])
def test_a_damaged_identity_is_unusable(enrol, folder, name):
    enrol()
    (folder / name).write_bytes(b"damaged")
    with pytest.raises(IdentityUnusable):
        DeviceIdentity.load(folder)


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"x" * 9000, b"\xff"])
def test_a_file_that_holds_no_token_is_refused(tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(TokenUnreadable):
        read_token(path)


def test_a_token_file_is_private(tmp_path):
    path = tmp_path / "token"
    path.write_text("tgs_x\n")
    path.chmod(0o600)
    assert read_token(path) == "tgs_x"
    path.chmod(0o644)
    with pytest.raises(TensorGuardError, match="read by others"):
        read_token(path)
