"""A worker process with a backend that needs no cryptography; a body's first bytes say what to do.

It is started by tests as `python fake_worker.py`; everything but the backend is the real worker.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tensorguard.errors import MalformedInput
from tensorguard.moai.pack import VerifiedPack
from tensorguard.moai.spec import ModelSpec
from tensorguard.serving import worker


@dataclass(frozen=True)
class FakeKeys:
    parameters_id: bytes
    frame: bytes


@dataclass(frozen=True)
class FakeModel:
    spec: ModelSpec

    def load_keys(self, frame: bytes) -> FakeKeys:
        if frame.startswith(b"bad"):
            raise MalformedInput("these are no keys")
        return FakeKeys(self.spec.parameters.id, frame)

    def evaluate(self, keys: FakeKeys, frame: bytes) -> bytes:
        command, _, argument = frame.partition(b" ")
        match command:
            case b"bad":
                raise MalformedInput("this is no ciphertext")
            case b"crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case b"bug":
                raise ZeroDivisionError
            case b"sleep":
                time.sleep(float(argument))
            case b"spin":  # holds the interpreter's lock, as a foreign library does
                end = time.monotonic() + float(argument)
                while time.monotonic() < end:
                    sum(range(100_000))
            case b"eat":
                return bytes(bytearray(int(argument)))[:1]
            case b"environment":
                return repr(sorted(os.environ)).encode()
            case b"limits":
                return Path("/proc/self/limits").read_bytes()
            case b"files":
                return repr(
                    sorted(str(p.readlink()) for p in Path("/proc/self/fd").iterdir() if p.exists())
                ).encode()
            case b"connect":
                with socket.socket() as probe:
                    probe.connect(("127.0.0.1", int(argument)))
            case _:
                pass
        return str(os.getpid()).encode() + b":" + keys.frame + b":" + frame


@dataclass(frozen=True)
class FakeBackend:
    name: str = "fake"

    def load(self, pack: VerifiedPack) -> FakeModel:
        if pack.spec.name == "refused":
            raise MalformedInput("this backend does not like the pack")
        return FakeModel(pack.spec)


if __name__ == "__main__":
    sys.exit(worker.run(FakeBackend))
