"""What an operator does with a platform: fleets, one-time tokens, devices, packs.

with FleetClient(url, lambda: token) as fleet:
    arms = fleet.ensure_fleet("arms")
    enrolment = fleet.create_enrolment(arms.id)
"""

from __future__ import annotations

import ssl
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec
from pydantic import BaseModel, ValidationError

from tensorguard.errors import Unavailable, VerificationError
from tensorguard.sdk.transport import TokenProvider, Transport
from tensorguard.wire.devices import (
    DEFAULT_ENROLMENT_SECONDS,
    DeviceView,
    EnrolmentView,
    FleetView,
    NewEnrolment,
    NewFleet,
    NewRevocation,
)
from tensorguard.wire.packs import PackView

TIMEOUT: Final = 60.0  # seconds without a byte
PAGE: Final = 100
MAX_PAGES: Final = 10_000  # a million devices; a server that pages on for ever is broken

View = TypeVar("View", bound=BaseModel)


class AnswerUnreadable(VerificationError):
    code = "platform_answer"
    remedy = "Check the platform's URL and that its version fits this client's."


class EnrolmentLost(Unavailable):
    code = "enrolment_lost"
    remedy = "Make another enrolment token; the lost one expires unused."


class _Page(msgspec.Struct, frozen=True):
    items: tuple[msgspec.Raw, ...]
    next_cursor: str | None


class FleetClient:
    """Speaks for a person, with a session or API token."""

    def __init__(
        self,
        url: str,
        token_provider: TokenProvider,
        *,
        verify: ssl.SSLContext | None = None,
        http: httpx.BaseTransport | None = None,
    ) -> None:
        self._transport = Transport(url, token_provider, timeout=TIMEOUT, verify=verify, http=http)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._transport.close()

    def fleets(self) -> Iterator[FleetView]:
        """Yield the tenant's fleets."""
        return self._list("/api/v1/fleets", FleetView)

    def ensure_fleet(self, name: str) -> FleetView:
        """Return the fleet of this name, made if it was absent."""
        known = next((fleet for fleet in self.fleets() if fleet.name == name), None)
        return known or self._create("/api/v1/fleets", NewFleet(name=name), FleetView)

    def create_enrolment(
        self, fleet_id: str, *, expires_in: int = DEFAULT_ENROLMENT_SECONDS
    ) -> EnrolmentView:
        """Make a one-time enrolment token. Raises `EnrolmentLost` if its only answer was."""
        body = NewEnrolment(fleet_id=fleet_id, expires_in=expires_in)
        made = self._create("/api/v1/enrolments", body, EnrolmentView)
        if made.token is None:
            raise EnrolmentLost("the connection broke before the token arrived")
        return made

    def devices(self) -> Iterator[DeviceView]:
        """Yield the tenant's devices."""
        return self._list("/api/v1/devices", DeviceView)

    def revoke(self, device_id: str, *, reason: str = "") -> DeviceView:
        """Revoke a device; revoking again changes nothing."""
        path = f"/api/v1/devices/{quote(device_id, safe='')}/revocation"
        return self._create(path, NewRevocation(reason=reason), DeviceView)

    def register_pack(self, data: bytes) -> PackView:
        """Register a signed model pack; again, it is the same one."""
        return _view(
            self._transport.request(
                "POST",
                "/api/v1/packs",
                content=data,
                headers={"Content-Type": "application/octet-stream"},
            ).body,
            PackView,
        )

    def packs(self) -> Iterator[PackView]:
        """Yield the tenant's packs."""
        return self._list("/api/v1/packs", PackView)

    def pack_content(self, pack_id: str) -> bytes:
        """Return a pack's archive; verify it before use."""
        path = f"/api/v1/packs/{quote(pack_id, safe='')}/content"
        return self._transport.request("GET", path).body

    def retire_pack(self, pack_id: str) -> PackView:
        """Take a pack out of new grants."""
        path = f"/api/v1/packs/{quote(pack_id, safe='')}"
        return _view(self._transport.request("DELETE", path).body, PackView)

    def _create(self, path: str, body: BaseModel, kind: type[View]) -> View:
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        content = body.model_dump_json().encode()
        return _view(
            self._transport.request("POST", path, content=content, headers=headers).body, kind
        )

    def _list(self, path: str, kind: type[View]) -> Iterator[View]:
        query: dict[str, str | int] = {"limit": PAGE}
        for _ in range(MAX_PAGES):
            body = self._transport.request("GET", f"{path}?{urlencode(query)}").body
            try:
                page = msgspec.json.decode(body, type=_Page)
            except (msgspec.DecodeError, RecursionError) as error:
                raise AnswerUnreadable("the platform's answer is no page of a list") from error
            for item in page.items:
                yield _view(bytes(item), kind)
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor


def _view(body: bytes, kind: type[View]) -> View:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise AnswerUnreadable(f"the platform's answer is no {kind.__name__}") from error
