"""Messages of the pack registry."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class PackView(BaseModel):
    """A registered pack. `retired` ends the grants that name it."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)

    pack_id: str
    name: str
    version: str
    size: int
    signer_name: str
    signer_key_id: str
    created: datetime
    retired: datetime | None
