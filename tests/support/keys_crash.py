"""A process that changes keys until it is killed.  python -P keys_crash.py  (one command per line)

    FOLDER MASTER NEW MICROSECONDS    fork a child that creates, rotates and rewraps in FOLDER; kill it
                                      (SIGKILL) after so long; answer with what it had finished

Forking spares a Python start per kill. The child acknowledges each finished change on a pipe, so that
the parent can insist that nothing acknowledged is lost.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretBytes

from tensorguard.errors import TensorGuardError
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import Algorithm, Purpose, key_id


def now() -> datetime:
    return datetime.now(UTC)


def change(folder: str, master: str, new: str, acknowledge: int) -> None:
    """Create and rotate under whichever master is in force, and rewrap between the two."""
    masters = [SecretBytes(bytes.fromhex(text)) for text in (master, new)]
    provider = FileKeyProvider(Path(folder), masters[0], next_master=masters[1], now=now)
    number = len(provider.list_keys())
    while True:
        key = key_id(f"key-{number}")
        algorithm = list(Algorithm)[number % len(Algorithm)]
        provider.create(key, algorithm=algorithm, purpose=Purpose.data_at_rest)
        os.write(acknowledge, f"{key} 1\n".encode())
        version = provider.rotate(key).version
        os.write(acknowledge, f"{key} {version}\n".encode())
        for target in reversed(masters):
            provider.master_rewrap(target)
        number += 1


def main() -> None:
    for line in sys.stdin:
        folder, master, new, delay = line.split()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                change(folder, master, new, writer)
            except (TensorGuardError, OSError) as error:
                os.write(writer, f"FAILED {type(error).__name__} {error}\n".encode())
            finally:
                os._exit(1)
        os.close(writer)
        time.sleep(int(delay) / 1e6)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = b""
        while select.select([reader], [], [], 0)[0] and (chunk := os.read(reader, 65536)):
            said += chunk
        os.close(reader)
        print(said.decode().replace("\n", ";"), flush=True)


if __name__ == "__main__":
    main()
