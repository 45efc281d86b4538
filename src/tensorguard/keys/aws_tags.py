"""The record of a key in the tags of its KMS keys, readable by whoever audits the account.

Only the newest version that says so is active: a rotation is done the moment its alias exists.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from tensorguard.keys.provider import Algorithm, KeyId, KeyState, KeyUnusable, Purpose
from tensorguard.keys.record import Record, Version

TAG: Final = "tensorguard:"
TAG_CHARACTERS: Final = 256


def split(name: str, text: str) -> dict[str, str]:
    """Cut a text into as many tags as it needs."""
    starts = range(0, len(text), TAG_CHARACTERS)
    return {f"{name}-{i}": text[at : at + TAG_CHARACTERS] for i, at in enumerate(starts)}


def joined(tags: Mapping[str, str], name: str) -> str:
    """Undo `split`."""
    parts: list[str] = []
    while (part := tags.get(f"{name}-{len(parts)}")) is not None:
        parts.append(part)
    return "".join(parts)


def state_tags(record: Record, version: Version) -> dict[str, str]:
    """Return the tags that change."""
    return {"disabled": str(record.disabled).lower(), "state": version.state.value}


def all_tags(record: Record, version: Version, seal: str, sealed: bytes) -> dict[str, str]:
    """Return every tag of a version; `seal` and `sealed` belong to a hybrid key."""
    return {
        "algorithm": record.algorithm.value,
        "created": version.created.isoformat(),
        "key": record.key_id,
        "purpose": record.purpose.value,
        "seal": seal,
        "version": str(version.number),
        **state_tags(record, version),
        **split("public", base64.b64encode(version.public).decode()),
        **split("sealed", base64.b64encode(sealed).decode()),
    }


def read_version(
    key: KeyId, number: int, tags: Mapping[str, str], state: Mapping[str, Any]
) -> Version:
    try:
        if (tags["key"], tags["version"]) != (key, str(number)):
            raise KeyUnusable(f"the alias of version {number} of {key} names another key")
        public = base64.b64decode(joined(tags, "public"), validate=True)
        created = datetime.fromisoformat(tags["created"])
        version = Version(number, KeyState(tags["state"]), created, public)
    except (KeyError, ValueError) as error:
        raise KeyUnusable(f"the tags of version {number} of {key} are damaged") from error
    if state["KeyState"] == "PendingDeletion":
        at = state["DeletionDate"].astimezone(UTC)
        return replace(version, state=KeyState.retired, destroy_at=at)
    return version


def read_record(key: KeyId, tags: Mapping[str, str], versions: list[Version]) -> Record:
    """Read a key from the tags of its newest version. Raises `KeyUnusable`."""
    newest_active = max((v.number for v in versions if v.state is KeyState.active), default=0)
    settled = tuple(
        replace(v, state=KeyState.decrypt_only)
        if v.state is KeyState.active and v.number < newest_active
        else v
        for v in versions
    )
    try:
        algorithm, purpose = Algorithm(tags["algorithm"]), Purpose(tags["purpose"])
    except (KeyError, ValueError) as error:
        raise KeyUnusable(f"the tags of the key {key} are damaged") from error
    return Record(key, algorithm, purpose, settled, disabled=tags.get("disabled") == "true")


def switched_off(active: Version, versions: list[Version], newest: Mapping[str, Any]) -> bool:
    """Say whether someone disabled the active KMS key behind our back, as far as was read."""
    return active.number == versions[-1].number and newest["KeyState"] == "Disabled"
