"""What arrives becomes columns of good samples and a list of reasons; one bad sample harms no other.

Two samples belong to the same series when name, unit, kind and all labels are equal. The label
`device` is ours: it is the device whose credentials wrote the series, and nobody can claim another.
"""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from tensorguard.crypto import canonical
from tensorguard.errors import InputError, TooLarge
from tensorguard.wire.telemetry import (
    MAX_LABEL_KEY,
    MAX_LABEL_VALUE,
    MAX_LISTED,
    MAX_NAME,
    MAX_UNIT,
    NANOSECONDS,
    Rejection,
)

DEVICE_LABEL: Final = "device"
MAX_LABEL_BYTES = 16_384  # all labels of one series; they are in memory and in an index
FUTURE = 5 * 60 * NANOSECONDS  # clocks differ; a sample from further ahead is a wrong clock

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class TooManyPoints(TooLarge):
    code = "too_many_points"
    remedy = "Send smaller batches, or ask the operator to raise TG_MAX_BATCH_POINTS."


class Refused(InputError):
    """One sample is not stored; the reason goes into the answer."""

    code = "sample_refused"
    remedy = "Correct the sample as the reason says and send it in a new batch."


class Kind(StrEnum):
    """What the numbers of a series mean."""

    gauge = "gauge"
    counter = "counter"  # cumulative and monotonic
    total = "total"  # cumulative, may fall
    delta = "delta"  # each number is the change since the one before


class Identity(NamedTuple):
    """What makes two samples belong to the same series. `labels` are sorted by name."""

    name: str
    unit: str
    kind: Kind
    labels: tuple[tuple[str, str], ...]

    def key(self) -> bytes:
        """Return the SHA-256 over the canonical form of all four."""
        return hashlib.sha256(canonical.encode([*self[:3], dict(self.labels)])).digest()


@dataclass(frozen=True, slots=True)
class Rules:
    """What is taken now from this caller. Times are nanoseconds since 1970."""

    oldest: int
    newest: int
    max_points: int
    max_labels: int
    device_id: str | None

    @property
    def too_many_labels(self) -> str:
        """The reason why a series with too many labels is refused."""
        return f"it has more than {self.max_labels} labels"


class Points:
    """The samples of one request: series by position, then three columns of equal length."""

    def __init__(self, rules: Rules) -> None:
        self.identities: list[Identity] = []
        self.series = array("q")
        self.times = array("q")
        self.values = array("d")
        self.rejections: list[Rejection] = []
        self.rejected = 0
        self.rules = rules
        self.seen = 0  # samples of the request so far, good or bad
        self._slots: dict[tuple[str, str, Kind, tuple[tuple[str, str], ...]], int | str] = {}

    def expect(self, count: int) -> None:
        """Refuse a request with more samples than the limit, before they are looked at."""
        if count > self.rules.max_points:
            raise TooManyPoints(f"a batch may have at most {self.rules.max_points} samples")

    def slot(self, name: str, unit: str, kind: Kind, labels: Mapping[str, str]) -> int | str:
        """Return the position of a series, or the reason why it cannot be one."""
        if len(labels) > self.rules.max_labels:
            return self.rules.too_many_labels
        found = (name, unit, kind, tuple(sorted(labels.items())))
        slot = self._slots.get(found)
        if slot is None:
            try:
                identity = _identity(name, unit, kind, labels, self.rules.device_id)
            except Refused as refused:
                slot = str(refused)
            else:
                slot = len(self.identities)
                self.identities.append(identity)
            self._slots[found] = slot
        return slot

    def add(self, slot: int | str, time: int, value: float) -> None:
        """Take the next sample of the request, or note why not."""
        if isinstance(slot, str):
            self.reject(slot)
        elif not math.isfinite(value):
            self.reject("the value is not a finite number")
        elif time > self.rules.newest:
            self.reject("its time is more than 5 minutes in the future")
        elif time < self.rules.oldest:
            self.reject("its time is older than what is kept")
        else:
            self.seen += 1
            self.series.append(slot)
            self.times.append(time)
            self.values.append(value)

    def reject(self, reason: str) -> None:
        """Note that the next sample of the request is not stored."""
        if len(self.rejections) < MAX_LISTED:
            self.rejections.append(Rejection(self.seen, reason))
        self.rejected += 1
        self.seen += 1


def _identity(
    name: str, unit: str, kind: Kind, labels: Mapping[str, str], device_id: str | None
) -> Identity:
    _check_word("the name", name, MAX_NAME)
    if unit:
        _check_word("the unit", unit, MAX_UNIT)
    size = 0
    for key, value in labels.items():
        _check_word("a label's name", key, MAX_LABEL_KEY)
        if len(value) > MAX_LABEL_VALUE:
            raise Refused(f"a label's value is longer than {MAX_LABEL_VALUE} characters")
        if "\0" in value:
            raise Refused("a label's value holds a NUL character")
        size += len(_utf8(key)) + len(_utf8(value))
    if size > MAX_LABEL_BYTES:
        raise Refused(f"its labels have more than {MAX_LABEL_BYTES} bytes together")
    owned = _owned(dict(labels), device_id)
    return Identity(name, unit, kind, tuple(sorted(owned.items())))


def _owned(labels: dict[str, str], device_id: str | None) -> dict[str, str]:
    if device_id is None:
        if DEVICE_LABEL in labels:
            raise Refused("only a device's own credentials may write the label `device`")
        return labels
    if labels.setdefault(DEVICE_LABEL, device_id) != device_id:
        raise Refused("the label `device` names another device than the one that sent it")
    return labels


def _check_word(what: str, text: str, limit: int) -> None:
    if not text:
        raise Refused(f"{what} is empty")
    if len(text) > limit:
        raise Refused(f"{what} is longer than {limit} characters")
    if _CONTROL.search(text):
        raise Refused(f"{what} holds a control character")
    _utf8(text)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Refused("a text is not Unicode") from error
