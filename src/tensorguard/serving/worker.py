"""One FHE worker process: capped in memory and time, without secrets, gone when its gateway is.

It is started as `python -m tensorguard.serving.worker BACKEND THREADS` with a socket as its
standard input, and answers one request at a time. What a caller did wrong is refused and the worker
goes on; anything else (a bug, no memory, a crash inside a library) ends the process, and takes that
one request with it.
"""

from __future__ import annotations

import ctypes
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable

from tensorguard.crypto.trust import TrustStore
from tensorguard.errors import EX_CONFIG, NotFound, TensorGuardError, VerificationError
from tensorguard.moai import pack as packs
from tensorguard.moai.backends.base import Backend, EvaluationKeys, Model, open_backend
from tensorguard.observability import logs
from tensorguard.serving.cache import CacheKey, KeyCache, KeyShape
from tensorguard.serving.messages import (
    CheckKeys,
    Done,
    DropPack,
    Evaluate,
    KeysWanted,
    LoadPack,
    Refused,
    Reply,
    Request,
    Start,
    receive,
    send,
)
from tensorguard.wire.problems import Problem

log = logging.getLogger(__name__)

DESCRIPTOR = 0  # where the gateway puts our end of the socket pair
GRACE = 5  # seconds after which we end ourselves if the gateway, which has the clock, did not
EX_NO_MEMORY = 71  # sysexits.h: system error
MAX_MESSAGE = 1 << 40  # the gateway has checked sizes; memory is capped by the kernel
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h


class PackMissing(NotFound):
    code = "pack_not_loaded"
    remedy = "List the models again; this one was withdrawn."


class OtherPack(VerificationError):
    code = "worker_pack_mismatch"
    remedy = "Fetch the model's view again; its file was replaced."


class Worker:
    """Models and keys of one process."""

    def __init__(self, backend: Backend, start: Start) -> None:
        self._backend = backend
        self._start = start
        self._models: dict[str, Model] = {}
        self._keys = KeyCache(limit=start.cache_bytes)

    def answer(self, request: Request, body: bytes) -> tuple[Reply, bytes]:
        """Do what `request` asks. Raises `TensorGuardError` for what is the caller's fault."""
        match request:
            case LoadPack():
                return self._load(request, body), b""
            case DropPack():
                self._models.pop(request.pack_id, None)
                return Done(), b""
            case CheckKeys():
                return self._check(request, body), b""
            case Evaluate():
                return self._evaluate(request, body)
            case Start():
                raise OtherPack("a worker is started once")

    def _load(self, request: LoadPack, body: bytes) -> Done:
        began = time.perf_counter()
        files, at = {}, 0
        for name, size in request.trusted.items():
            files[name] = body[at : at + size]
            at += size
        unverified = packs.read(body[at:], limit=self._start.pack_bytes)
        pack = packs.verify(unverified, TrustStore.from_files(files))
        if pack.pack_id != request.pack_id:
            raise OtherPack("the pack is not the one that the gateway verified")
        self._models[pack.pack_id] = self._backend.load(pack)
        return Done(seconds=time.perf_counter() - began)

    def _model(self, pack_id: str) -> Model:
        model = self._models.get(pack_id)
        if model is None:
            raise PackMissing("this model is not loaded")
        return model

    def _check(self, request: CheckKeys, body: bytes) -> Done:
        began = time.perf_counter()
        model = self._model(request.pack_id)
        keys = model.load_keys(body)
        name = CacheKey(request.tenant, request.digest, KeyShape.of(model.spec))
        self._keys.put(name, keys, size=len(body))
        return Done(seconds=time.perf_counter() - began)

    def _evaluate(self, request: Evaluate, body: bytes) -> tuple[Reply, bytes]:
        began = time.perf_counter()
        model = self._model(request.pack_id)
        name = CacheKey(request.tenant, request.digest, KeyShape.of(model.spec))
        keys: EvaluationKeys | None = self._keys.get(name)
        if keys is None:
            if not request.keys_size:
                return KeysWanted(), b""
            keys = model.load_keys(body[: request.keys_size])
            self._keys.put(name, keys, size=request.keys_size)
        result = model.evaluate(keys, body[request.keys_size :])
        return Done(seconds=time.perf_counter() - began), result


def run(open_it: Callable[[], Backend]) -> int:
    """Serve the socket on `DESCRIPTOR` until the gateway closes it. Returns the exit status."""
    connection = socket.socket(fileno=DESCRIPTOR)
    logs.configure("INFO")
    try:
        first = receive(connection, limit=0)
        if first is None or not isinstance(first[0], Start):
            return EX_CONFIG
        _confine(first[0])
        return _serve(connection, Worker(open_it(), first[0]), seconds=first[0].seconds)
    except MemoryError:
        log.critical("the worker ran out of its memory limit")
        return EX_NO_MEMORY
    except (BrokenPipeError, ConnectionResetError):
        return 0  # the gateway is gone


def _serve(connection: socket.socket, worker: Worker, *, seconds: int) -> int:
    send(connection, Done())
    while (message := receive(connection, limit=MAX_MESSAGE)) is not None:
        # The gateway kills at the deadline. If it cannot, because it is dead, the kernel does:
        # a library that holds the interpreter's lock cannot delay a default-action signal.
        signal.setitimer(signal.ITIMER_REAL, seconds + GRACE)
        try:
            reply, body = worker.answer(*message)
        except TensorGuardError as error:
            reply, body = Refused(problem=Problem.of(error)), b""
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(connection, reply, body)
    return 0


def _confine(start: Start) -> None:
    """Limit this process before anything of a caller reaches it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, int(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    resource.setrlimit(resource.RLIMIT_AS, (start.memory_bytes, start.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the gateway's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main() -> int:
    """Run a worker with the backend and the number of threads that the arguments name."""
    name, threads = sys.argv[1:]
    return run(lambda: open_backend(name, threads=int(threads)))


if __name__ == "__main__":
    raise SystemExit(main())
