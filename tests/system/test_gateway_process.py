"""The gateway as operators run it: started, fed with packs, hurt, and stopped."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from support.production import free_port, process_environment, run_until_refusal
from support.serving import Gateway, Issuer, Site, alive, gateway, network, sample, until
from tensorguard.sdk import InferenceClient, ModelChanged, PackNotPinned, RemoteProblem

pytestmark = pytest.mark.xdist_group("gateway")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(tmp_path_factory.mktemp("gateway") / "home")
    made.add("squared", network(2, squared=True))
    return made


@pytest.fixture(scope="module")
def started(site: Site) -> Iterator[Gateway]:
    command = (str(BIN / "tensorguard"), "serving", "serve")
    with gateway(site, command, TG_MAX_WORKERS="2") as running:
        yield running


def client(running: Gateway, *packs: str, keys: Path | None = None) -> InferenceClient:
    return InferenceClient(
        running.url,
        lambda: running.site.issuer.grant(*packs),
        keys_path=keys,
        unsafe_plain_keys=True,
    )


@pytest.fixture(scope="module")
def squared(started: Gateway) -> str:
    return next(iter(packs_of(started)))


def packs_of(running: Gateway) -> list[str]:
    rows = [json.loads(line) for line in running.log.read_text().splitlines()]
    return [row["pack"] for row in rows if row["event"] == "a pack is served"]


def test_a_model_is_evaluated_on_what_the_gateway_cannot_read(
    started: Gateway, squared: str, tmp_path: Path
) -> None:
    with client(started, squared, keys=tmp_path / "arm.keys") as sdk:
        assert [model.name for model in sdk.models()] == ["squared"]
        model = sdk.open("squared", pack_id=squared)
        for seed in range(5):
            expected = network(2, squared=True).raw(sample(seed)[None])[0]
            assert np.abs(model.predict(sample(seed)) - expected).max() < 1e-2
        timing = model.last_timing
    assert timing is not None
    assert timing.evaluate_ms is not None
    assert timing.evaluate_ms > 0
    assert timing.network_ms is not None
    assert timing.bytes_up > 10_000
    with client(started, squared, keys=tmp_path / "arm.keys") as sdk:
        assert sdk.open("squared").upload_keys() is False  # the same keys, uploaded once


def test_another_pack_than_the_pinned_one_is_refused(started: Gateway, squared: str) -> None:
    with client(started, squared) as sdk, pytest.raises(PackNotPinned):
        sdk.open("squared", pack_id="0" * 64)


def test_keys_that_the_gateway_lost_are_uploaded_again(started: Gateway, squared: str) -> None:
    with client(started, squared) as sdk:
        model = sdk.open("squared")
        model.predict(sample(1))
        for path in (started.site.home / "evaluation-keys").glob("*/*"):
            path.unlink()
        model.predict(sample(1))


def test_packs_come_change_and_go_without_a_restart(started: Gateway, squared: str) -> None:
    site = started.site
    new = site.add("late", network(5))
    (site.packs / "broken.moai").write_bytes(b"broken")
    until(lambda: new in packs_of(started), seconds=20)
    until(lambda: started.metric("tensorguard_serving_packs_refused_total") == 1, seconds=20)
    with client(started, squared, new) as sdk:
        model = sdk.open("late")
        model.predict(sample(1))
        (site.packs / "late-1.0.moai").unlink()
        until(lambda: started.metric("tensorguard_serving_packs") == 1, seconds=20)
        with pytest.raises(ModelChanged):
            model.predict(sample(1))
        sdk.open("squared").predict(sample(1))
    (site.packs / "broken.moai").unlink()


def test_a_killed_worker_is_replaced_and_counted(started: Gateway, squared: str) -> None:
    before = started.deaths()
    workers = started.workers()
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    with client(started, squared) as sdk:
        sdk.open("squared").predict(sample(1))
    until(lambda: started.deaths() == before + 2, seconds=20)
    until(lambda: len(started.workers()) == 2, seconds=20)
    with started.client() as http:
        until(lambda: http.get("/ready").status_code == 200, seconds=20)


def test_callers_at_once_all_get_their_own_answers(started: Gateway, squared: str) -> None:
    failures: list[str] = []

    def call(tenant: str) -> None:
        token = started.site.issuer.grant(squared, tenant=tenant)
        with InferenceClient(started.url, lambda: token) as sdk:
            model = sdk.open("squared")
            for seed in range(5):
                expected = network(2, squared=True).raw(sample(seed)[None])[0]
                error = np.abs(model.predict(sample(seed)) - expected).max()
                if error > 1e-2:
                    failures.append(f"{tenant} {seed} {error}")

    threads = [threading.Thread(target=call, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []


def test_the_gateway_process_has_no_library_that_could_decrypt(started: Gateway) -> None:
    maps = Path(f"/proc/{started.process.pid}/maps").read_text()
    assert "libpython" in maps or "python" in maps
    assert "tenseal" not in maps
    worker = Path(f"/proc/{started.workers()[0]}/maps").read_text()
    assert "tenseal" in worker


def test_ready_says_what_is_missing(tmp_path: Path) -> None:
    site = Site(tmp_path / "home")
    (site.home / "jwks.json").unlink()
    with gateway(site) as running, running.client() as http:
        answer = http.get("/ready")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["checks"] == {
            "packs": "none is loaded",
            "workers": "ok",
            "grant_keys": "not known",
        }
        refused = http.get("/v1/models", headers={"Authorization": f"Bearer {site.issuer.grant()}"})
        assert (refused.status_code, refused.json()["code"]) == (503, "grant_keys_unknown")


def test_the_key_set_can_come_from_the_platform(tmp_path: Path) -> None:
    site = Site(tmp_path / "home")
    pack = site.add("linear", network(1))
    (site.home / "jwks.json").unlink()
    old, served = site.issuer, [site.issuer]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = served[-1].jwks().encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as platform:
        thread = threading.Thread(target=platform.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{platform.server_port}/.well-known/jwks.json"
        with gateway(site, TG_GRANT_JWKS=url) as running:
            with running.client(old.grant(pack)) as http:
                assert http.get("/v1/models").status_code == 200
            served.append(Issuer(kid="k2"))
            time.sleep(5.1)  # invented key ids may not make the gateway ask more often
            with running.client(served[-1].grant(pack)) as http:
                assert http.get("/v1/models").status_code == 200
            with running.client(old.grant(pack)) as http:
                assert http.get("/v1/models").status_code == 401
        platform.shutdown()
        thread.join()


def test_workers_end_when_the_gateway_is_killed(tmp_path: Path) -> None:
    with gateway(Site(tmp_path / "home"), TG_MAX_WORKERS="2") as running:
        workers = running.workers()
        assert len(workers) == 2
        running.process.kill()
        running.process.wait()
        until(lambda: not any(alive(pid) for pid in workers), seconds=10)


@pytest.mark.parametrize("how", ["empty", "malformed"])
def test_an_unusable_trust_store_refuses_to_start(tmp_path: Path, how: str) -> None:
    site = Site(tmp_path / "home")
    path = site.trust / "publisher.pub.json"
    if how == "empty":
        path.unlink()
    else:
        path.write_text("{}")
    port = free_port()
    ended = run_until_refusal(
        (str(BIN / "tensorguard"), "serving", "serve", "--port", str(port)),
        {"TG_ENVIRONMENT": "development", "TG_HOME": str(site.home)},
        port,
    )
    assert ended.status == 78, ended.output
    assert "[PRODUCTION GATE FAILED: TRUST_STORE]" in ended.output
    assert not ended.port_was_open


def test_infer_from_the_command_line(started: Gateway, squared: str, tmp_path: Path) -> None:
    token = tmp_path / "grant"
    token.write_text(started.site.issuer.grant(squared))
    token.chmod(0o600)
    inputs = tmp_path / "x.csv"
    np.savetxt(inputs, np.array([sample(1), sample(2)]), delimiter=",")
    command = [
        *(str(BIN / "tensorguard"), "infer", "--url", started.url, "--model", "squared"),
        *("--input", str(inputs), "--token-file", str(token), "--keys", str(tmp_path / "keys")),
        *("--output", str(tmp_path / "y.npy"), "--json"),
    ]
    custody = process_environment(
        {
            "TG_KEY_PROVIDER": f"file:{tmp_path / 'custody'}",
            "TG_KEY_MASTER": secrets.token_hex(32),
        }
    )

    def infer(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    refused = infer(process_environment({}))  # unset means production: no secret key in plain
    assert refused.returncode == 78
    assert "would hold a secret key in plain" in refused.stderr
    assert not (tmp_path / "keys").exists()
    for _ in range(2):  # the keystore is made, then opened
        done = infer(custody)
        assert done.returncode == 0, done.stderr
    assert b"TGHE" not in (tmp_path / "keys").read_bytes()
    report = json.loads(done.stdout)
    expected = network(2, squared=True).raw(np.array([sample(1), sample(2)]))
    assert np.abs(np.array(report["outputs"]) - expected).max() < 1e-2
    assert np.array_equal(np.load(tmp_path / "y.npy"), np.array(report["outputs"]))
    assert report["pack_id"] == squared
    assert report["n"] == 2
    assert report["latency_ms"]["server"]["p50"] > 0
    token.write_text("nonsense")
    done = infer(custody)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "hint: " in done.stderr


def test_a_refused_request_is_a_typed_error_with_the_servers_remedy(started: Gateway) -> None:
    sdk = InferenceClient(started.url, lambda: "no grant")
    with sdk, pytest.raises(RemoteProblem) as caught:
        sdk.models()
    assert (caught.value.status, caught.value.code) == (401, "token_refused")
    assert "fresh token" in caught.value.remedy
    assert caught.value.problem.request_id
