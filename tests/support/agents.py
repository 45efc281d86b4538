"""A platform process behind a breakable wire, and agents as operators run them."""

from __future__ import annotations

import http.client
import json
import resource
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Self

import httpx
from sqlalchemy import text
from sqlalchemy.orm import Session

from support.platform import PASSWORD, hashed
from support.production import BIN, free_port, process_environment
from tensorguard.agent.spool import Spool
from tensorguard.platform.db.base import new_id
from tensorguard.platform.db.engine import engine_for
from tensorguard.platform.db.tables.people import UserAccount
from tensorguard.platform.principal import Role
from tensorguard.platform.users.tenants import create_tenant
from tensorguard.sdk import FleetClient

READY_SECONDS = 60.0
INGEST = "/api/v1/telemetry/ingest"
RETRIES = 10


def until(what: Callable[[], object], *, seconds: float = 30.0) -> None:
    """Wait until `what()` is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


class PlatformProcess:
    """`tensorguard platform serve`, which can be killed and started again on the same port."""

    def __init__(self, folder: Path, database_url: str, public_url: str, **variables: str) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.port = free_port()
        self._log = folder / "platform.log"
        home = folder / "home"
        home.mkdir(mode=0o700, exist_ok=True)
        self.variables = {
            "TG_ENVIRONMENT": "development",
            "TG_HOME": str(home),
            "DATABASE_URL": database_url,
            "TG_PUBLIC_URL": public_url,
            **variables,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [f"{BIN}/tensorguard", "platform", "serve", "--port", str(self.port)],
                env=process_environment(self.variables),
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(httpx.TransportError):
                answer = httpx.get(f"http://127.0.0.1:{self.port}/ready", timeout=2)
                if answer.status_code == httpx.codes.OK:
                    return
            time.sleep(0.05)
        raise AssertionError(self._log.read_text()[-3000:])

    def kill(self) -> None:
        """End it as a power cut does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it as an operator does."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


@dataclass
class Wire:
    """Carries HTTP from an agent to the platform; it can be cut, and it repeats what it carries.

    Every tenth batch is sent ten times at once; with `swallow` answers are lost on their way back.
    """

    target: Callable[[], int]
    port: int = field(default_factory=free_port)
    repeat_every: int = 0
    swallow_every: int = 0
    batches: int = 0
    repeated: int = 0
    swallowed: int = 0
    disagreements: list[str] = field(default_factory=list)
    _server: _Server | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """What agents connect to."""
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> None:
        """Let connections in."""
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _carry(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                answer = wire.carry(self.command, self.path, dict(self.headers.items()), body)
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, content = answer
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in {"transfer-encoding", "content-length", "connection"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                self._carry()

            def do_POST(self) -> None:
                self._carry()

            def do_DELETE(self) -> None:
                self._carry()

            def handle(self) -> None:
                with suppress(OSError):
                    super().handle()

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def cut(self) -> None:
        """Refuse connections; those that are open end at their next request."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()

    def carry(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes] | None:
        """Return the platform's answer, None when there is none."""
        if self._server is None:
            return None
        if path != INGEST:
            return self._once(method, path, headers, body)
        with self._lock:
            self.batches += 1
            number = self.batches
        if self.repeat_every and number % self.repeat_every == 0:
            with ThreadPoolExecutor(RETRIES) as pool:
                asked = [
                    pool.submit(self._once, method, path, headers, body) for _ in range(RETRIES)
                ]
                answers = [one.result() for one in asked]
            told = {one[2] for one in answers if one is not None and one[0] == httpx.codes.OK}
            if len(told) > 1:
                self.disagreements.append(repr(told))
            self.repeated += 1
            answer = next((one for one in answers if one is not None and one[2] in told), None)
        else:
            answer = self._once(method, path, headers, body)
        if self.swallow_every and number % self.swallow_every == 0:
            self.swallowed += 1
            return None
        return answer if self._server is not None else None

    def _once(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes] | None:
        connection = http.client.HTTPConnection("127.0.0.1", self.target(), timeout=30)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


class AgentProcess:
    """`tensorguard agent run` on a folder."""

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        self.folder = folder
        self._options = options
        self._log = folder.parent / f"{folder.name}.log"
        self.variables = {
            "TG_ENVIRONMENT": "development",
            "TG_AGENT_DIR": str(folder),
            **variables,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, stdin: int | None = None) -> Self:
        """Start it and wait until its socket listens."""
        sock = self.folder / "agent.sock"
        sock.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [f"{BIN}/tensorguard", "agent", "run", *self._options],
                env=process_environment(self.variables),
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=log,
                stderr=log,
            )
        if "--no-socket" not in self._options:
            until(lambda: sock.exists() or self.process.poll() is not None)
            assert self.process.poll() is None, self._log.read_text()[-3000:]
        return self

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as systemd does; return its exit status."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode if self.process is not None else 0

    def rss(self) -> int:
        """Return the most memory that it ever had in use, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def status(self) -> dict:
        """Return what `tensorguard agent status --json` says."""
        return json.loads(self.command("agent", "status", "--json"))

    def waiting(self) -> int:
        """Return how many samples are not settled."""
        with Spool(self.folder / "spool.db", max_bytes=1 << 40) as spool:
            return spool.waiting()

    def command(self, *words: str, status: int = 0) -> str:
        """Run a `tensorguard` command for this agent and return what it printed."""
        done = subprocess.run(
            [f"{BIN}/tensorguard", *words],
            env=process_environment(self.variables),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout


@dataclass
class Site:
    """One platform, its database and the wire in front of it."""

    folder: Path
    database_url: str
    wire: Wire
    platform: PlatformProcess
    token: str = ""
    agents: list[AgentProcess] = field(default_factory=list)

    def sign_in(self) -> None:
        """Make an admin and sign in."""
        engine = engine_for(self.database_url)
        with Session(engine) as session, session.begin():
            now = datetime.now(UTC)
            tenant = create_tenant(session, "acme", actor="operator:test", now=now)
            session.add(
                UserAccount(
                    id=new_id(),
                    tenant_id=tenant.id,
                    username="ada",
                    password_hash=hashed(PASSWORD),
                    role=Role.admin.value,
                    disabled=False,
                    failed_logins=0,
                    locked_until=None,
                    created=now,
                )
            )
        engine.dispose()
        body = {"tenant": "acme", "username": "ada", "password": PASSWORD}
        answer = httpx.post(f"{self.wire.url}/api/v1/auth/login", json=body, timeout=30)
        assert answer.status_code == httpx.codes.OK, answer.text
        self.token = answer.json()["token"]

    @property
    def token_file(self) -> Path:
        """A file with the admin's token."""
        path = self.folder / "admin.token"
        if not path.exists():
            path.touch(0o600)
            path.write_text(self.token)
        return path

    def agent(self, name: str, *options: str, **variables: str) -> AgentProcess:
        """Return an agent that will enrol under `name` when it is started."""
        with FleetClient(self.wire.url, lambda: self.token) as fleet:
            made = fleet.create_enrolment(fleet.ensure_fleet("arms").id)
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        token = self.folder / f"{name}.token"
        token.touch(0o600)
        token.write_text(made.token or "")
        agent = AgentProcess(
            folder,
            *options,
            TG_AGENT_URL=self.wire.url,
            TG_AGENT_NAME=name,
            TG_AGENT_TOKEN_FILE=str(token),
            **variables,
        )
        self.agents.append(agent)
        return agent

    def rows(self, name: str) -> list[float]:
        """Return the values that are stored of the series called `name`, every row of them."""
        engine = engine_for(self.database_url)
        query = "SELECT value FROM sample JOIN series ON series.id = series_id WHERE name = :name"
        with engine.connect() as connection:
            found = [float(row[0]) for row in connection.execute(text(query), {"name": name})]
        engine.dispose()
        return found


@contextmanager
def site(folder: Path, database_url: str, **variables: str) -> Iterator[Site]:
    """Start a platform behind a wire, with an admin signed in."""
    holder: list[PlatformProcess] = []
    wire = Wire(lambda: holder[0].port)
    platform = PlatformProcess(folder / "platform", database_url, wire.url, **variables)
    holder.append(platform)
    made = Site(folder, database_url, wire, platform)
    try:
        platform.start()
        wire.connect()
        made.sign_in()
        yield made
    finally:
        for agent in made.agents:
            agent.stop()
        wire.cut()
        platform.stop()


def say(path: Path, lines: Sequence[dict]) -> dict:
    """Send JSON lines to an agent's socket; return its answer, which comes after the commit."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(60)
        peer.connect(str(path))
        peer.sendall("".join(json.dumps(line) + "\n" for line in lines).encode())
        peer.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := peer.recv(4096):
            answer += chunk
    return json.loads(answer)


def limit_files(pid: int, size: int) -> tuple[int, int]:
    """Let a process write no file past `size` bytes, as a full disk would; return the limit before."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    return before
