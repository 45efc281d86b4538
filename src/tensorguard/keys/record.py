"""The life of a key as one value: pending → active → decrypt-only → retired → destroyed, never back.

Every provider keeps such a record beside the material, and changes it only through the methods here,
so that all of them refuse the same things. At most one version is active, at most one pending.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from tensorguard.crypto import canonical
from tensorguard.crypto.hybrid import unbase64
from tensorguard.errors import MalformedInput
from tensorguard.keys.provider import (
    Algorithm,
    BadKeyId,
    BadTransition,
    KeyDestroyed,
    KeyDisabled,
    KeyId,
    KeyInfo,
    KeyNotFound,
    KeyRetired,
    KeyState,
    PublicKey,
    Purpose,
    WrongContext,
    WrongKeyUse,
    key_id,
)

FORMAT: Final = "tensorguard-key-1"
MAX_RECORD = 4 << 20  # bytes of JSON; a thousand hybrid versions
MAX_VERSIONS = 1000  # a key that rotates daily for two years
DEAD = frozenset({KeyState.retired, KeyState.destroyed})


@dataclass(frozen=True, slots=True)
class Version:
    """One version: its number counts from 1, `public` is empty for wrapping and destroyed keys."""

    number: int
    state: KeyState
    created: datetime
    public: bytes = b""
    destroy_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A key without its secrets. `generation` counts the changes."""

    key_id: KeyId
    algorithm: Algorithm
    purpose: Purpose
    versions: tuple[Version, ...]
    generation: int = 1
    disabled: bool = False

    # --- asking ---------------------------------------------------------------------------

    @property
    def active(self) -> Version | None:
        """The version in use, if there is one."""
        return next((v for v in self.versions if v.state is KeyState.active), None)

    @property
    def pending(self) -> Version | None:
        """The version that was published and is not in use yet."""
        return next((v for v in self.versions if v.state is KeyState.pending), None)

    @property
    def current(self) -> Version:
        """The active version, or the newest when none is active."""
        return self.active or self.versions[-1]

    @property
    def next_number(self) -> int:
        """The number of the next version. Raises `BadTransition` over `MAX_VERSIONS`."""
        if len(self.versions) >= MAX_VERSIONS:
            raise BadTransition(
                f"the key {self.key_id} has {MAX_VERSIONS} versions; make a new key"
            )
        return self.versions[-1].number + 1

    def version(self, number: int) -> Version:
        """Return a version. Raises `KeyNotFound`, or `KeyDestroyed` for one that is forgotten."""
        for version in self.versions:
            if version.number == number:
                return version
        if 0 < number < self.versions[-1].number:  # some custodies forget what they destroyed
            raise KeyDestroyed(f"version {number} of {self.key_id} is destroyed")
        raise KeyNotFound(f"the key {self.key_id} has no version {number}")

    def info(self, version: Version | None = None) -> KeyInfo:
        """Return what may be known, by default of the current version."""
        shown = version or self.current
        return KeyInfo(
            self.key_id,
            shown.number,
            self.algorithm,
            self.purpose,
            shown.state,
            shown.created,
            self.disabled,
            shown.destroy_at,
        )

    def public_key(self, number: int | None) -> PublicKey:
        """Return a public key. Raises `WrongKeyUse`, `KeyNotFound`, `KeyDestroyed`."""
        if not self.algorithm.signs:
            raise WrongKeyUse(f"{self.key_id} has no public key")
        version = self.current if number is None else self.version(number)
        if version.state is KeyState.destroyed:
            raise KeyDestroyed(f"version {version.number} of {self.key_id} is destroyed")
        return PublicKey(self.key_id, version.number, self.algorithm, version.public)

    def check_enabled(self) -> None:
        """Raise `KeyDisabled` if the key is disabled."""
        if self.disabled:
            raise KeyDisabled(f"the key {self.key_id} is disabled")

    def to_use(self, *, signing: bool) -> Version:
        """Return the version that signs or wraps. Raises `WrongKeyUse`, `KeyDisabled`."""
        if self.algorithm.signs is not signing:
            does = "sign messages" if signing else "wrap data keys"
            raise WrongKeyUse(f"{self.key_id} does not {does}")
        self.check_enabled()
        if self.active is None:
            raise KeyRetired(f"no version of {self.key_id} is active")
        return self.active

    def to_unwrap(self, number: int) -> Version:
        """Return the version that opens. Raises `WrongContext` for one that never wrapped."""
        if self.algorithm.signs:
            raise WrongKeyUse(f"{self.key_id} does not wrap data keys")
        self.check_enabled()
        try:
            found = self.version(number)
        except KeyNotFound as error:
            raise WrongContext("the wrapped key was not made by this key") from error
        if found.state is KeyState.pending:
            raise WrongContext("the wrapped key was not made by this key")
        if found.state is KeyState.destroyed:
            raise KeyDestroyed(f"version {number} of {self.key_id} is destroyed")
        if found.state is KeyState.retired:
            raise KeyRetired(f"version {number} of {self.key_id} is retired")
        return found

    # --- changing -------------------------------------------------------------------------

    def _with(self, *changed: Version, disabled: bool | None = None) -> Record:
        by_number = {v.number: v for v in (*self.versions, *changed)}
        return replace(
            self,
            versions=tuple(by_number[number] for number in sorted(by_number)),
            generation=self.generation + 1,
            disabled=self.disabled if disabled is None else disabled,
        )

    def staged(self, public: bytes, now: datetime, number: int = 0) -> Record:
        """Add a pending version; a custody that counts itself gives its `number`."""
        if self.pending is not None:
            raise BadTransition(f"{self.key_id} has a pending version already")
        chosen = max(number, self.next_number)
        return self._with(Version(chosen, KeyState.pending, now, public))

    def promoted(self) -> Record:
        """Make the pending version active; what was active becomes decrypt-only."""
        if self.pending is None:
            raise BadTransition(f"{self.key_id} has no pending version")
        changed = [replace(self.pending, state=KeyState.active)]
        if self.active is not None:
            changed.append(replace(self.active, state=KeyState.decrypt_only))
        return self._with(*changed)

    def rotated(self, public: bytes, now: datetime, number: int = 0) -> Record:
        """Add an active version; what was active becomes decrypt-only."""
        after = self.staged(public, now, number).promoted()
        return replace(after, generation=self.generation + 1)

    def switched(self, *, disabled: bool) -> Record:
        """Disable or enable the key."""
        return self._with(disabled=disabled)

    def retired(self, number: int) -> Record:
        """End a version that is not in use."""
        version = self.version(number)
        if version.state is KeyState.active and not self.disabled:
            raise BadTransition(f"version {number} of {self.key_id} is in use: rotate first")
        if version.state in DEAD:
            raise BadTransition(f"version {number} of {self.key_id} is {version.state} already")
        return self._with(replace(version, state=KeyState.retired))

    def doomed(self, number: int, at: datetime) -> Record:
        """Set the time at which a retired version is destroyed."""
        version = self.version(number)
        if version.state is not KeyState.retired or version.destroy_at is not None:
            raise BadTransition(f"version {number} of {self.key_id} does not wait to be destroyed")
        return self._with(replace(version, destroy_at=at))

    def spared(self, number: int, now: datetime) -> Record:
        """Call a destruction off whose time has not come."""
        version = self.version(number)
        if version.state is not KeyState.retired or version.destroy_at is None:
            raise BadTransition(f"version {number} of {self.key_id} is not to be destroyed")
        if version.destroy_at <= now:
            raise BadTransition(f"the time of version {number} of {self.key_id} has come")
        return self._with(replace(version, destroy_at=None))

    def due(self, now: datetime) -> tuple[Version, ...]:
        """Return the versions whose time has come and which are not destroyed yet."""
        return tuple(
            v
            for v in self.versions
            if v.state is KeyState.retired and v.destroy_at is not None and v.destroy_at <= now
        )

    def swept(self, now: datetime) -> Record:
        """Mark as destroyed what is due."""
        gone = [replace(v, state=KeyState.destroyed, public=b"") for v in self.due(now)]
        return self._with(*gone) if gone else self

    # --- writing --------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that `from_json` reads."""
        return {
            "algorithm": self.algorithm.value,
            "disabled": self.disabled,
            "format": FORMAT,
            "generation": self.generation,
            "key_id": self.key_id,
            "purpose": self.purpose.value,
            "versions": [
                {
                    "created": v.created.isoformat(),
                    "destroy_at": v.destroy_at.isoformat() if v.destroy_at else None,
                    "public": base64.b64encode(v.public).decode(),
                    "state": v.state.value,
                    "version": v.number,
                }
                for v in self.versions
            ],
        }

    def encode(self) -> bytes:
        """Return the canonical bytes of the record."""
        return canonical.encode(self.to_json())

    @classmethod
    def decode(cls, data: bytes, key: KeyId) -> Record:
        """Read what `encode` wrote for `key`. Raises `MalformedInput`."""
        return cls.from_json(canonical.decode(data, limit=MAX_RECORD), key)

    @classmethod
    def from_json(cls, value: Any, key: KeyId) -> Record:
        """Read the record of `key`. Raises `MalformedInput` for any other."""
        try:
            record = cls(
                key_id(value["key_id"]),
                Algorithm(value["algorithm"]),
                Purpose(value["purpose"]),
                tuple(_version(entry) for entry in value["versions"]),
                value["generation"],
                value["disabled"],
            )
        except (BadKeyId, KeyError, TypeError, ValueError) as error:
            raise MalformedInput("this is not the record of a key") from error
        if value["format"] != FORMAT or record.key_id != key:
            raise MalformedInput("the record belongs to another key")
        if type(record.generation) is not int or type(record.disabled) is not bool:
            raise MalformedInput("the record of the key has a member of another type")
        numbers = [v.number for v in record.versions]
        if not numbers or numbers != sorted(set(numbers)) or record.to_json() != value:
            raise MalformedInput("the versions of the key are not in order")
        return record


def _version(entry: dict[str, Any]) -> Version:
    if type(entry["version"]) is not int or not 0 < entry["version"] < 1 << 31:
        raise ValueError("a version is a number from 1")
    return Version(
        entry["version"],
        KeyState(entry["state"]),
        _time(entry["created"]),
        unbase64(entry["public"]),
        None if entry["destroy_at"] is None else _time(entry["destroy_at"]),
    )


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs its zone")
    return moment.astimezone(UTC)


def first(
    key: KeyId, algorithm: Algorithm, purpose: Purpose, public: bytes, now: datetime
) -> Record:
    """Return the record of a key that was just made."""
    return Record(key, algorithm, purpose, (Version(1, KeyState.active, now, public),))
