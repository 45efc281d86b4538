"""Signs of life for systemd (sd_notify(3)), over its datagram socket; nothing without one."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

from tensorguard.settings import Settings

MICROSECONDS: Final = 1_000_000


class Notifier:
    """Tells the service manager what the agent does."""

    def __init__(self, address: str | None, watchdog_usec: int | None) -> None:
        self._address = f"\0{address[1:]}" if address and address[0] == "@" else address
        self.watchdog_seconds = (watchdog_usec or 0) / MICROSECONDS

    @classmethod
    def of(cls, settings: Settings) -> Notifier:
        """Return the notifier of this process's service manager."""
        return cls(settings.notify_socket, settings.watchdog_usec)

    def tell(self, state: str) -> None:
        """Send a state such as `READY=1`; a manager that is gone is no error."""
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.sendto(state.encode(), self._address)
