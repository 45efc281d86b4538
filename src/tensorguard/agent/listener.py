"""JSON lines from standard input and from a Unix socket, in one loop with one commit per round.

A sender that ends its side of the socket is answered `{"taken": n, "unreadable": m}` after the
commit. When the spool takes nothing the loop waits and reads nothing: pipes and sockets fill, and
their writers wait. Lines, connections and buffers are bounded.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Final

from tensorguard.agent.records import MAX_LINE, BadSample, Record, parse_line
from tensorguard.agent.schema import SpoolUnavailable
from tensorguard.agent.spool import Spool
from tensorguard.errors import ConfigurationError

READ: Final = 64 * 1024  # bytes of one source in one round
MAX_SENDERS: Final = 64
PAUSE: Final = 0.25  # seconds between looks at the stop event, and between tries of a full disk
LOG_EVERY: Final = 10.0  # seconds between two complaints about unreadable lines

log = logging.getLogger(__name__)


class SocketUnusable(ConfigurationError):
    code = "agent_socket"
    remedy = "Set TG_AGENT_SOCKET to a path of at most 107 bytes in a folder of this user."


@dataclass(slots=True)
class Sender:
    """One source of lines and what became of them."""

    descriptor: int
    peer: socket.socket | None = None
    rest: bytearray = field(default_factory=bytearray)
    overlong: bool = False
    taken: int = 0
    unreadable: int = 0


def bind(path: Path) -> socket.socket:
    """Return a listening Unix socket with mode 0600; a dead one of ours is replaced."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketUnusable(f"{path} is not a socket")
        path.unlink()
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
        listening.listen(MAX_SENDERS)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise SocketUnusable(f"{path} cannot be listened on: {error.strerror or error}") from error
    finally:
        os.umask(before)
    return listening


class Listener:
    """Reads lines into the spool until it is told to stop."""

    def __init__(
        self,
        spool: Spool,
        *,
        path: Path | None,
        stdin: int | None,
        wake: Callable[[], None],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._spool = spool
        self._wake = wake
        self._now_ns = now_ns
        self._path = path
        self._listening = bind(path) if path is not None else None
        self._selector = selectors.PollSelector()
        self._open = 0
        self._complained = float("-inf")
        self.stdin_ended = Event()
        if self._listening is not None:
            self._selector.register(self._listening, selectors.EVENT_READ, None)
        if stdin is None:
            self.stdin_ended.set()
        else:
            self._selector.register(stdin, selectors.EVENT_READ, Sender(stdin))

    def run(self, stop: Event) -> None:
        """Take lines until `stop`; then close everything."""
        try:
            while not stop.is_set():
                self._round(stop)
        finally:
            self._close()

    def _round(self, stop: Event) -> None:
        made: list[Record] = []
        ended: list[Sender] = []
        unreadable = 0
        for key, _ in self._selector.select(PAUSE):
            if key.data is None:
                self._accept()
                continue
            sender: Sender = key.data
            before = sender.unreadable
            if not self._read(sender, made):
                ended.append(sender)
            unreadable += sender.unreadable - before
        if not self._keep(made, unreadable, stop):
            log.warning("stopped before the disk took what was read", extra={"samples": len(made)})
            ended = []
        if made:
            self._wake()
        for sender in ended:
            self._end(sender)

    def _keep(self, made: list[Record], unreadable: int, stop: Event) -> bool:
        while made or unreadable:
            try:
                if unreadable:
                    self._spool.count_unreadable(unreadable)
                    unreadable = 0
                if made:
                    self._spool.put(made)
            except SpoolUnavailable as error:
                self._complain(str(error))
                if stop.wait(PAUSE):
                    return False
            else:
                break
        return True

    def _accept(self) -> None:
        assert self._listening is not None  # noqa: S101 -- only it is registered without a sender
        with suppress(OSError):
            peer, _ = self._listening.accept()
            peer.setblocking(False)
            sender = Sender(peer.fileno(), peer)
            self._selector.register(peer, selectors.EVENT_READ, sender)
            self._open += 1
        if self._open >= MAX_SENDERS:
            self._selector.unregister(self._listening)  # the rest wait to be accepted

    def _read(self, sender: Sender, made: list[Record]) -> bool:
        try:
            data = os.read(sender.descriptor, READ)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        *lines, rest = (sender.rest + data).split(b"\n")
        if not data and rest:
            lines, rest = [rest], bytearray()  # the last line may lack its end
        for line in lines:
            self._take(sender, bytes(line), made)
        sender.rest = bytearray(rest)
        if len(sender.rest) > MAX_LINE:
            sender.overlong, sender.rest = True, bytearray()
        return bool(data)

    def _take(self, sender: Sender, line: bytes, made: list[Record]) -> None:
        if sender.overlong:  # this is the end of a line that was given up
            sender.overlong = False
            self._refuse(sender, f"the line has over {MAX_LINE} bytes")
        elif line.strip():
            try:
                made.append(parse_line(line, now_ns=self._now_ns()))
            except BadSample as error:
                self._refuse(sender, str(error))
            else:
                sender.taken += 1

    def _refuse(self, sender: Sender, reason: str) -> None:
        sender.unreadable += 1
        self._complain(reason)

    def _complain(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._complained >= LOG_EVERY:
            self._complained = now
            log.warning("a line was not taken", extra={"reason": reason})

    def _end(self, sender: Sender) -> None:
        if sender.peer is None:
            self._selector.unregister(sender.descriptor)
            self.stdin_ended.set()
            return
        self._selector.unregister(sender.peer)
        answer = json.dumps({"taken": sender.taken, "unreadable": sender.unreadable})
        with suppress(OSError):  # who does not wait for the answer does not get it
            sender.peer.send(answer.encode() + b"\n")
        sender.peer.close()
        self._open -= 1
        if self._open == MAX_SENDERS - 1 and self._listening is not None:
            self._selector.register(self._listening, selectors.EVENT_READ, None)

    def _close(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Sender) and key.data.peer is not None:
                key.data.peer.close()
        self._selector.close()
        if self._listening is not None and self._path is not None:
            self._listening.close()
            self._path.unlink(missing_ok=True)
