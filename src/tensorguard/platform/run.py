"""The platform as a process of its own: gates first, then the port."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

import uvicorn

from tensorguard.platform.app import create_app
from tensorguard.platform.state import PlatformState

TLS_PORT: Final = 8443
PLAIN_PORT: Final = 8080  # behind a proxy that ends TLS, or in development
SWITCH_SECONDS: Final = 0.001  # that a thread waits which heard from the database, for the others
SHUTDOWN_SECONDS: Final = 30  # for requests in flight

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
TRIM_BYTES: Final = 1 << 20
MMAP_BYTES: Final = 1 << 16  # a body or a column of this size goes back to the system at once


def serve(host: str, port: int | None) -> None:
    """Serve on `host` and `port`. Exits with status 78 when a gate refuses.

    Behind a declared TLS proxy on this host its X-Forwarded-For names the client, which sign-in
    throttling counts by; uvicorn trusts that header from 127.0.0.1 only.
    """
    _share_memory()
    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app()
    state: PlatformState = app.state.platform
    settings = state.settings
    _settle_memory()
    usual = TLS_PORT if settings.tls_cert is not None else PLAIN_PORT
    uvicorn.run(
        app,
        host=host,
        port=usual if port is None else port,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        proxy_headers=settings.behind_tls_proxy,
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def _share_memory() -> None:
    """Let all threads free into one pool: glibc keeps one for each, and gives none of them back."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
        mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)


def _settle_memory() -> None:
    """Give back what only the start needed, and spare the collector what stays for good.

    A full collection walks half a million objects of the modules otherwise: 60 ms in which nobody is
    answered.
    """
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
