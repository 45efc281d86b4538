"""What others write, in one process: an ORM endpoint, and one that does a COPY per request.

    python -m tensorguard.bench.telemetry_peers DATABASE_URL PORT

Both take our JSON and keep the ids of series in memory; neither knows retries, devices or newest
values. So whatever they lose by, they do not lose it there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, cast

import msgspec
import numpy as np
import psycopg
import uvicorn
from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel
from sqlalchemy.orm import Session, sessionmaker

from tensorguard.platform.db.engine import engine_for
from tensorguard.platform.db.tables.telemetry import SampleRow
from tensorguard.platform.telemetry.rows import Rows, copy_bytes
from tensorguard.wire.telemetry import Batch


class SampleIn(BaseModel):
    """A sample as a pydantic model."""

    name: str
    value: float
    ts: int
    labels: dict[str, str] = {}
    unit: str = ""


class BatchIn(BaseModel):
    """A batch as a pydantic model."""

    samples: list[SampleIn]


class Ids:
    """Ids of series, given in order of appearance."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}

    def of(self, name: str, labels: dict[str, str]) -> int:
        """Return the id of a series."""
        key = (name, tuple(labels.items()))
        return self._ids.setdefault(key, len(self._ids) + 1)


def _session(request: Request) -> Iterator[Session]:
    with request.app.state.sessions.begin() as opened:
        yield opened


async def _body(request: Request) -> bytes:
    return await request.body()


Database = Annotated[Session, Depends(_session, scope="function")]
RawBody = Annotated[bytes, Depends(_body)]
_DECODER = msgspec.json.Decoder(Batch)


def _orm(batch: BatchIn, request: Request, database: Database) -> dict[str, int]:
    ids: Ids = request.app.state.ids
    database.add_all(
        SampleRow(series_id=ids.of(row.name, row.labels), ts=row.ts, value=row.value)
        for row in batch.samples
    )
    return {"stored": len(batch.samples)}


def _per_request(raw: RawBody, request: Request, database: Database) -> dict[str, int]:
    ids: Ids = request.app.state.ids
    samples = _DECODER.decode(raw).samples
    rows = Rows(
        np.array([ids.of(row.name, row.labels) for row in samples], dtype=np.int64),
        np.array([row.ts for row in samples], dtype=np.int64),
        np.array([row.value for row in samples], dtype=np.float64),
        np.zeros(len(samples), dtype=np.int64),
    )
    driver = cast("psycopg.Connection", database.connection().connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy("COPY sample FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(copy_bytes(rows))
    return {"stored": len(samples)}


def build(database_url: str) -> FastAPI:
    """Return the application."""
    app = FastAPI()
    app.state.sessions = sessionmaker(engine_for(database_url))
    app.state.ids = Ids()
    app.post("/orm")(_orm)
    app.post("/per-request")(_per_request)
    return app


def main() -> None:
    """Serve on loopback until ended."""
    url, port = sys.argv[1:]
    uvicorn.run(build(url), host="127.0.0.1", port=int(port), log_level="error", access_log=False)


if __name__ == "__main__":
    main()
