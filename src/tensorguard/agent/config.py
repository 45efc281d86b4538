"""Where the agent keeps its things and how much it may use; one process at a time delivers."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tensorguard.agent.spool import FILE, Spool
from tensorguard.crypto.files import UnsafeFile, private_folder
from tensorguard.errors import Conflict
from tensorguard.settings import Settings, default_home
from tensorguard.wire.telemetry import MAX_LISTED

LOCK: Final = "agent.lock"


class AgentRunning(Conflict):
    code = "agent_running"
    remedy = "Stop the agent of this folder first, or let it do the work."


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything an agent needs to know."""

    folder: Path
    socket: Path
    spool_bytes: int
    batch_rows: int
    interval: float
    system_seconds: float
    url: str | None = None
    name: str | None = None
    token_file: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the configuration of a machine; the folder defaults to one under `TG_HOME`."""
        folder = settings.agent_dir or (settings.home or default_home()) / "agent"
        return cls(
            folder=folder,
            socket=settings.agent_socket or folder / "agent.sock",
            spool_bytes=settings.agent_spool_bytes,
            batch_rows=min(settings.agent_batch_rows, MAX_LISTED),
            interval=float(settings.agent_interval_seconds),
            system_seconds=float(settings.agent_system_seconds),
            url=settings.agent_url,
            name=settings.agent_name,
            token_file=settings.agent_token_file,
        )

    @property
    def identity(self) -> Path:
        """The folder of the device's key and certificate."""
        return self.folder / "identity"

    def open_spool(self) -> Spool:
        """Open the spool, making the folder if it is absent."""
        private_folder(self.folder)
        return Spool(self.folder / FILE, max_bytes=self.spool_bytes)


class FolderLock:
    """Held by the one process that delivers; the kernel lets go of it when that process ends."""

    def __init__(self, folder: Path) -> None:
        private_folder(folder)
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(folder / LOCK, flags, 0o600)
        except OSError as error:
            raise UnsafeFile(f"{folder / LOCK} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise AgentRunning(f"an agent works in {folder} already") from error

    def release(self) -> None:
        """Let another process deliver."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
