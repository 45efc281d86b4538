"""One request, one transaction: committed before the answer leaves, or nothing happened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from tensorguard.platform.state import state_of


def request_session(request: Request) -> Iterator[Session]:
    """Commit on success, roll back on any exception.

    It must be used with `scope="function"`, so that the commit comes before the response; with the
    default scope a client sees 200 for a commit that failed.
    """
    with state_of(request).sessions.begin() as session:
        yield session


Database = Annotated[Session, Depends(request_session, scope="function")]
