"""The gateway as a process of its own: one process, for its workers are what uses the cores."""

from __future__ import annotations

import uvicorn

from tensorguard.serving.app import create_app
from tensorguard.serving.state import ServingState

SHUTDOWN_SECONDS = 30  # for requests in flight; an evaluation takes no longer by default


def serve(host: str, port: int) -> None:
    """Serve on `host` and `port`. Exits with status 78 when a gate refuses."""
    app = create_app()
    state: ServingState = app.state.serving
    settings = state.settings
    uvicorn.run(
        app,
        host=host,
        port=port,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
