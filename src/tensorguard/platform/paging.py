"""Lists page by an opaque, signed cursor: it says where to go on, for one tenant and one list only.

    def users(principal: ..., session: Database, paging: Paging) -> Page[UserView]:
        window = paging.window(principal, "users")
        rows = repository.page(after=window.after, limit=window.limit + 1)
        return window.page(rows, view=UserView.of, position=lambda row: row.username)

One row more than the limit is fetched, so that the last page is known to be the last.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Generic, TypeVar

from fastapi import Depends, Query, Request
from pydantic import BaseModel

from tensorguard.errors import InputError
from tensorguard.platform.principal import Principal
from tensorguard.platform.secrets import Secrets
from tensorguard.platform.state import state_of

Item = TypeVar("Item")
Row = TypeVar("Row")

DEFAULT_LIMIT: Final = 50
MAX_CURSOR: Final = 1024  # characters
TAG_BYTES: Final = 16


class BadCursor(InputError):
    code = "bad_cursor"
    remedy = "Start the list again without a cursor."


class Page(BaseModel, Generic[Item]):
    """Part of a list, and where it goes on; None ends it."""

    items: list[Item]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of one list of one tenant is asked for: `limit` rows after `after`."""

    after: str | None
    limit: int
    secrets: Secrets
    context: str

    def cursor(self, position: str) -> str:
        """Return the cursor that goes on after `position`."""
        return seal_cursor(self.secrets, self.context, position)

    def page(
        self, rows: Sequence[Row], *, view: Callable[[Row], Item], position: Callable[[Row], str]
    ) -> Page[Item]:
        """Render up to `limit` of the rows, which may be one more than that."""
        shown = rows[: self.limit]
        more = len(rows) > self.limit
        cursor = self.cursor(position(shown[-1])) if more else None
        return Page(items=[view(row) for row in shown], next_cursor=cursor)


@dataclass(frozen=True, slots=True)
class PageQuery:
    """What the caller asked for."""

    cursor: str | None
    limit: int
    secrets: Secrets

    def window(self, principal: Principal, name: str) -> Window:
        """Open the cursor for the caller's tenant and the list `name`. Raises `BadCursor`."""
        context = f"{principal.tenant_id}\0{name}"
        after = None if self.cursor is None else open_cursor(self.secrets, context, self.cursor)
        return Window(after, self.limit, self.secrets, context)


def page_query(
    request: Request,
    cursor: Annotated[str | None, Query(max_length=MAX_CURSOR)] = None,
    limit: Annotated[int, Query(ge=1)] = DEFAULT_LIMIT,
) -> PageQuery:
    """Read `?cursor=&limit=`; a limit over TG_MAX_PAGE is that."""
    state = state_of(request)
    return PageQuery(cursor, min(limit, state.settings.max_page), state.secrets)


Paging = Annotated[PageQuery, Depends(page_query)]


def _tag(secrets: Secrets, context: str, position: bytes) -> bytes:
    return secrets.mac("cursor", context.encode() + b"\0" + position)[:TAG_BYTES]


def seal_cursor(secrets: Secrets, context: str, position: str) -> str:
    """Return the cursor that goes on after `position`."""
    raw = position.encode()
    return base64.urlsafe_b64encode(_tag(secrets, context, raw) + raw).rstrip(b"=").decode()


def open_cursor(secrets: Secrets, context: str, cursor: str) -> str:
    """Return the position in a cursor of this very list. Raises `BadCursor`."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadCursor("this is not a cursor") from error
    tag, position = raw[:TAG_BYTES], raw[TAG_BYTES:]
    if not hmac.compare_digest(tag, _tag(secrets, context, position)):
        raise BadCursor("the cursor belongs to another list or tenant")
    return position.decode()
