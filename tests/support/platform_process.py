"""A real platform process in production, and people in its tenants, by the command line and HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from support.production import BIN, free_port, process_environment, sound_environment

PASSWORD = "a plough in the northern field"
START_SECONDS = 60


@dataclass
class Process:
    """A platform in production on PostgreSQL, behind a declared TLS proxy."""

    folder: Path
    database_url: str
    variables: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.variables = sound_environment(self.folder, self.database_url) | self.variables

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def home(self) -> Path:
        return Path(self.variables["TG_HOME"])

    @property
    def log(self) -> Path:
        return self.folder / "platform.log"

    def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [f"{BIN}/tensorguard", "platform", "serve", "--host", "127.0.0.1"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port)],
                env=process_environment(self.variables),
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/ready", timeout=10, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text()[-3000:])

    def stop(self) -> None:
        """End it by its process id."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
            self._process = None

    def restart(self, variables: Mapping[str, str] | None = None) -> None:
        """End it and start it, perhaps with another environment."""
        self.stop()
        if variables is not None:
            self.variables = dict(variables)
        self.start()

    def command(self, *words: str, **more: str) -> str:
        """Run `tensorguard` with the platform's environment and return what it printed."""
        done = subprocess.run(
            [f"{BIN}/tensorguard", *words],
            env=process_environment(self.variables | more),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sign_in(self, tenant: str, role: str) -> str:
        """Return the session token of a new person; the tenant is made if it is absent."""
        admin = f"admin-{tenant}"
        if not any(
            line.startswith(f"{tenant} / {admin}")
            for line in self.command("user", "list").splitlines()
        ):
            self.command(
                "user", "create-admin", "--tenant", tenant, "--username", admin, "--generate"
            )
        secret = self.folder / "password"
        secret.touch(mode=0o600)
        secret.write_text(PASSWORD + "\n")
        name = f"{role}-{time.monotonic_ns()}"
        options = ("--tenant", tenant, "--username", name, "--role", role)
        self.command("user", "create", *options, "--password-file", str(secret))
        answer = httpx.post(
            f"{self.url}/api/v1/auth/login",
            json={"tenant": tenant, "username": name, "password": PASSWORD},
            timeout=30,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        token: str = json.loads(answer.text)["token"]
        return token


@contextmanager
def platform_process(folder: Path, database_url: str, **variables: str) -> Iterator[Process]:
    """Run a platform while the block runs."""
    process = Process(folder, database_url, dict(variables))
    process.start()
    try:
        yield process
    finally:
        process.stop()
