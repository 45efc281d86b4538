"""A gateway as a real process on loopback, small packs for it, and a platform key that grants."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx
import jwt
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from support.production import free_port, process_environment
from tensorguard.crypto.hybrid import SoftwareHybridSigner
from tensorguard.moai.compile.build import build_pack, compile_network
from tensorguard.moai.compile.network import Activation, Dense, Network
from tensorguard.moai.pack import read
from tensorguard.moai.plan import Layout
from tensorguard.wire.grants import TYPE

FEATURES, HIDDEN, OUTPUTS = 4, 4, 2
START_SECONDS = 60


def network(seed: int, *, squared: bool = False) -> Network:
    """Return a small random network: one linear layer, or two with a square between them."""
    random = np.random.default_rng(seed)
    square = Activation("polynomial", (0.0, 0.5, 0.25))
    last = Dense("last", random.normal(size=(OUTPUTS, HIDDEN)), random.normal(size=OUTPUTS), None)
    layers = (last,)
    if squared:
        first = Dense(
            "first", random.normal(size=(HIDDEN, FEATURES)), random.normal(size=HIDDEN), square
        )
        layers = (first, last)
    return Network(
        steps=layers,
        mean=np.zeros(FEATURES),
        std=np.ones(FEATURES),
        output_scale=np.ones(OUTPUTS),
        output_offset=np.zeros(OUTPUTS),
    )


def pack_bytes(
    signer: SoftwareHybridSigner,
    model: Network,
    *,
    name: str,
    version: str = "1.0",
    layout: Layout = "blocks",
) -> bytes:
    """Return a signed pack of `model`, calibrated on the cube [-1, 1]."""
    calibration = np.random.default_rng(0).uniform(-1, 1, size=(256, FEATURES))
    calibration[0], calibration[1] = -1, 1
    compiled = compile_network(model, calibration, layout=layout)
    return build_pack(compiled, name=name, version=version, signer=signer)


def pack_id(data: bytes) -> str:
    return read(data, limit=1 << 30).pack_id


def sample(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, size=FEATURES)


@dataclass
class Issuer:
    """A platform's token-signing key."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    kid: str = "k1"

    def jwks(self) -> str:
        raw = self.key.public_key().public_bytes_raw()
        x = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
        entry = {"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": x, "use": "sig"}
        return json.dumps({"keys": [entry]})

    def grant(self, *packs: str, tenant: str = "tenant-a", **changes: object) -> str:
        """Return a grant for `packs`; `changes` replace claims, and None removes one."""
        now = int(time.time())
        claims = {
            "iss": "https://platform.example",
            "sub": "device-1",
            "aud": "tensorguard-serving",
            "tenant": tenant,
            "kind": "device",
            "scope": "serving:infer",
            "packs": list(packs),
            "iat": now,
            "exp": now + 300,
            "jti": "j1",
        } | changes
        given = {name: value for name, value in claims.items() if value is not None}
        headers = {"kid": self.kid, "typ": TYPE}
        return jwt.encode(given, self.key, algorithm="EdDSA", headers=headers)


@dataclass
class Site:
    """The folders of one gateway."""

    home: Path
    signer: SoftwareHybridSigner = field(default_factory=SoftwareHybridSigner.generate)
    issuer: Issuer = field(default_factory=Issuer)

    def __post_init__(self) -> None:
        for folder in (self.home, self.packs, self.trust):
            folder.mkdir(mode=0o700, exist_ok=True)
        public = self.signer.public_key.to_json(name="publisher")
        (self.trust / "publisher.pub.json").write_bytes(public)
        (self.home / "jwks.json").write_text(self.issuer.jwks())

    @property
    def packs(self) -> Path:
        return self.home / "packs"

    @property
    def trust(self) -> Path:
        return self.home / "trust"

    def add(
        self, name: str, model: Network, *, version: str = "1.0", layout: Layout = "blocks"
    ) -> str:
        """Put a pack into the folder, whole at once. Returns its id."""
        data = pack_bytes(self.signer, model, name=name, version=version, layout=layout)
        temporary = self.packs / f".{name}-{version}"
        temporary.write_bytes(data)
        temporary.rename(self.packs / f"{name}-{version}.moai")
        return pack_id(data)


@dataclass
class Gateway:
    """A running gateway process."""

    site: Site
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self, token: str | None = None, **options: object) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)

    def metric(self, line: str) -> float:
        """Return the value of the metric line that starts with `line`."""
        with self.client() as client:
            text = client.get("/metrics").text
        found = [row for row in text.splitlines() if row.startswith(line + " ")]
        assert found, f"{line} is not in {text}"
        return float(found[0].rsplit(" ", 1)[1])

    def deaths(self) -> float:
        return sum(
            self.metric(f'tensorguard_serving_worker_deaths_total{{cause="{cause}"}}')
            for cause in ("crash", "deadline")
        )

    def workers(self) -> list[int]:
        """Return the process ids of its children."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@contextlib.contextmanager
def gateway(site: Site, command: tuple[str, ...] = (), **variables: str) -> Iterator[Gateway]:
    """Start a gateway for `site` in development, wait until it is ready, and end it by its id."""
    port = free_port()
    log = site.home / "gateway.log"
    program = command or (
        sys.executable,
        *("-m", "uvicorn", "tensorguard.serving.app:create_app", "--factory"),
    )
    environment = process_environment(
        {"TG_ENVIRONMENT": "development", "TG_HOME": str(site.home), **variables}
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=output,
        )
    running = Gateway(site, f"http://127.0.0.1:{port}", process, log)
    try:
        until(lambda: _answers(running), what=log.read_text)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(running: Gateway) -> bool:
    assert running.process.poll() is None, running.log.read_text()
    try:
        return httpx.get(f"{running.url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def until(
    condition: Callable[[], object], *, seconds: float = START_SECONDS, what: object = ""
) -> None:
    """Wait for `condition`, a bounded time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(what() if callable(what) else what)
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@dataclass
class Shared:
    """The gateway that all attack tests of one test process share, with two packs."""

    gateway: Gateway
    linear: str
    squared: str

    def grant(self, **changes: object) -> str:
        return self.gateway.site.issuer.grant(self.linear, self.squared, **changes)


@cache
def shared_gateway(backend: str) -> Shared:
    """Start the shared gateway with this backend once; it ends with this test process."""
    stack = contextlib.ExitStack()
    folder = Path(stack.enter_context(_private_temporary()))
    site = Site(folder)
    linear = site.add("linear", network(1))
    squared = site.add("squared", network(2, squared=True))
    started = stack.enter_context(gateway(site, TG_MOAI_BACKEND=backend, TG_NATIVE_THREADS="2"))
    _at_exit(stack)
    return Shared(started, linear, squared)


def _private_temporary() -> contextlib.AbstractContextManager[str]:
    import tempfile

    return tempfile.TemporaryDirectory(prefix="tg-gateway-")


def _at_exit(stack: contextlib.ExitStack) -> None:
    import atexit

    owner = os.getpid()
    atexit.register(lambda: stack.close() if os.getpid() == owner else None)
