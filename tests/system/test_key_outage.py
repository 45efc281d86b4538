"""A custody that goes away while the platform serves: typed refusals, no fallback, back without restart."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from support.keys import bao, credentials, kms_endpoint, prefix, private_file
from support.platform import Databases
from support.platform_process import Process, platform_process

NOTICED_SECONDS = 5.0
BODY = {"message": base64.b64encode(b"a message").decode()}


class Line:
    """A TCP line to a server that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.mend()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Close everything: whoever connects is refused."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()


@contextmanager
def custody(kind: str, folder: Path) -> Iterator[tuple[Line, dict[str, str]]]:
    """A line to OpenBao or to the KMS server, and the variables of a platform at its end."""
    origin = bao().url if kind == "vault" else kms_endpoint()
    line = Line(int(origin.rpartition(":")[2]))
    near = f"http://127.0.0.1:{line.port}"
    if kind == "vault":
        token = private_file(folder / "vault-token", bao().root)
        uri = f"vault:{near}/transit?kv=secret&prefix={prefix()}&token-file={token}"
        yield line, {"TG_KEY_PROVIDER": uri}
    else:
        uri = f"awskms:eu-central-1/{prefix()}?endpoint={near}"
        yield line, {"TG_KEY_PROVIDER": uri, **credentials()}
    line.cut()


def wait_for(url: str, status: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if httpx.get(f"{url}/ready", timeout=20, trust_env=False).status_code == status:
            return
        time.sleep(0.1)
    raise AssertionError(f"/ready did not answer {status}")


def sign(process: Process, token: str) -> httpx.Response:
    return httpx.post(
        f"{process.url}/api/v1/keys/release/sign",
        json=BODY,
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
        trust_env=False,
    )


@pytest.mark.parametrize("kind", ["vault", "awskms"])
def test_a_custody_that_is_cut_off_and_comes_back(
    kind: str, postgresql_databases: Databases, tmp_path: Path
) -> None:
    with (
        custody(kind, tmp_path) as (line, variables),
        postgresql_databases.one("postgresql", migrated=True) as database,
        platform_process(tmp_path, database, **variables) as process,
    ):
        token = process.sign_in("acme", "security")
        headers = {"Authorization": f"Bearer {token}"}
        body = {"name": "release", "purpose": "token-signing", "algorithm": "ES256"}
        made = httpx.post(
            f"{process.url}/api/v1/keys", json=body, headers=headers, timeout=30, trust_env=False
        )
        assert made.status_code == 201, made.text
        assert sign(process, token).status_code == 200

        line.cut()
        wait_for(process.url, 503, NOTICED_SECONDS)
        refused = sign(process, token)
        assert (refused.status_code, refused.json()["code"]) == (503, "key_custody_down")
        assert "signature" not in refused.text
        assert not list(process.home.glob("**/*.tgkey"))  # no fallback to files
        alive = httpx.get(f"{process.url}/health", timeout=10, trust_env=False)
        assert alive.status_code == 200

        line.mend()
        wait_for(process.url, 200, NOTICED_SECONDS)
        assert sign(process, token).status_code == 200
        trail = process.command("audit", "verify", "--tenant", "acme")
        assert "events hold" in trail
