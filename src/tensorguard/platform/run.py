"""The platform as a process of its own: gates first, then the port."""

from __future__ import annotations

import ctypes
from typing import Final

import uvicorn

from tensorguard.platform.app import create_app
from tensorguard.platform.state import PlatformState

TLS_PORT: Final = 8443
PLAIN_PORT: Final = 8080  # behind a proxy that ends TLS, or in development
SHUTDOWN_SECONDS: Final = 30  # for requests in flight

M_TRIM_THRESHOLD, M_ARENA_MAX = -1, -8  # malloc.h
TRIM_BYTES: Final = 1 << 20


def serve(host: str, port: int | None) -> None:
    """Serve on `host` and `port`. Exits with status 78 when a gate refuses.

    Behind a declared TLS proxy on this host its X-Forwarded-For names the client, which sign-in
    throttling counts by; uvicorn trusts that header from 127.0.0.1 only.
    """
    _share_memory()
    app = create_app()
    state: PlatformState = app.state.platform
    settings = state.settings
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
