"""What arrives becomes columns of good samples and a list of reasons; one bad sample harms no other.

Decoders have a fast way, which takes columns whose every sample is good or raises `NotPlain`, and a
slow one that takes sample by sample and keeps what was refused, with the reason, as a letter.

Two samples belong to the same series when name, unit, kind and all labels are equal. The label
`device` is ours: it is the device whose credentials wrote the series, and nobody can claim another.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from tensorguard.errors import InputError, TooLarge
from tensorguard.platform.telemetry.cache import Identity, KnownSeries, Pending, RawKey
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

MAX_LETTER = 64 * 1024  # bytes of one refused sample that are kept
MAX_LETTERS = 1024 * 1024  # bytes of one request's refused samples that are kept

FUTURE_REASON: Final = "its time is more than 5 minutes in the future"
OLD_REASON: Final = "its time is older than what is kept"
NOT_FINITE: Final = "the value is not a finite number"

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class TooManyPoints(TooLarge):
    code = "too_many_points"
    remedy = "Send smaller batches, or ask the operator to raise TG_MAX_BATCH_POINTS."


class Refused(InputError):
    """One sample is not stored; the reason goes into the answer."""

    code = "sample_refused"
    remedy = "Correct the sample as the reason says and send it in a new batch."


class NotPlain(Exception):
    """The fast way does not understand this request, or refuses something in it."""


class Kind(StrEnum):
    """What the values of a series mean."""

    gauge = "gauge"
    counter = "counter"  # cumulative and monotonic
    total = "total"  # cumulative, may fall
    delta = "delta"  # each number is the change since the one before
    text = "text"
    flag = "flag"  # true or false
    histogram = "histogram"  # cumulative
    histogram_delta = "histogram_delta"
    exponential = "exponential"  # an exponential histogram, cumulative
    exponential_delta = "expo_delta"
    summary = "summary"


DOCUMENT_KINDS: Final = frozenset(Kind) - {Kind.gauge, Kind.counter, Kind.total, Kind.delta}


@dataclass(frozen=True, slots=True)
class Rules:
    """What is taken now from this caller. Times are nanoseconds since 1970."""

    oldest: int
    newest: int
    max_points: int
    max_labels: int
    tenant_id: str
    device_id: str | None

    @property
    def too_many_labels(self) -> str:
        """The reason why a series with too many labels is refused."""
        return f"it has more than {self.max_labels} labels"


@dataclass(frozen=True, slots=True)
class Letter:
    """A refused sample as a request of its own, in the media type of the one that it came in."""

    reason: str
    payload: bytes | None  # None when it is too large to keep


Document = tuple[int, int, str]  # series, time, JSON


class Points:
    """The samples of one request. A series is its id or, below 0, -1 - its place in `pending`."""

    def __init__(self, rules: Rules, known: KnownSeries) -> None:
        self.rules = rules
        self.known = known
        self.series = array("q")
        self.times = array("q")
        self.values = array("d")
        self.documents: list[Document] = []
        self.pending: list[Pending] = []
        self.rejections: list[Rejection] = []
        self.letters: list[Letter] = []
        self.rejected = 0
        self.seen = 0  # samples of the request so far, good or bad
        self.ignored = 0  # of these, marks that are no samples
        self._letter_bytes = 0
        self._slots: dict[Hashable, int | str] = {}
        self._raw: dict[RawKey, int] = {}

    @property
    def good(self) -> int:
        """How many samples are to be stored."""
        return len(self.times) + len(self.documents)

    def expect(self, count: int) -> None:
        """Refuse a request with more samples than the limit, before they are looked at."""
        if count > self.rules.max_points:
            raise TooManyPoints(f"a batch may have at most {self.rules.max_points} samples")

    def find(self, raw: RawKey) -> int | None:
        """Return the series that was sent as `raw` before, in this request or an earlier one."""
        found = self.known.raw.get(raw)
        if found is None:
            found = self._raw.get(raw)
        if found is None:
            pending = self.known.pending.get(raw)
            if pending is not None:
                found = self._await(raw, pending)
        return found

    def learn(
        self, raw: RawKey, name: str, unit: str, kind: Kind, labels: Mapping[str, str]
    ) -> int:
        """Return a new series, known as `raw` from its commit on. Raises `NotPlain`."""
        if len(labels) > self.rules.max_labels:
            raise NotPlain
        try:
            identity = _identity(name, unit, kind, labels, self.rules.device_id)
        except Refused as refused:
            raise NotPlain from refused
        pending = Pending(identity, raw)
        self.known.pending.put(raw, pending)
        return self._await(raw, pending)

    def _await(self, raw: RawKey, pending: Pending) -> int:
        self.pending.append(pending)
        slot = self._raw[raw] = -len(self.pending)
        return slot

    def slot(self, name: str, unit: str, kind: Kind, labels: Mapping[str, str]) -> int | str:
        """Return a series, or the reason why it cannot be one."""
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
                self.pending.append(Pending(identity))
                slot = -len(self.pending)
            self._slots[found] = slot
        return slot

    def take(self, series: Integers, times: Integers, values: Floats) -> None:
        """Take columns whose every sample is good. Raises `NotPlain` when one is not."""
        self.expect(len(times))
        if len(times) == 0:
            return
        if times.min() < self.rules.oldest or times.max() > self.rules.newest:
            raise NotPlain
        if not np.isfinite(values).all():
            raise NotPlain
        self.series.frombytes(series.tobytes())
        self.times.frombytes(times.tobytes())
        self.values.frombytes(values.tobytes())
        self.seen += len(times)

    def refusal(self, slot: int | str, time: int) -> str | None:
        """Return why a sample of this series and time is not stored, or None."""
        if isinstance(slot, str):
            return slot
        if time > self.rules.newest:
            return FUTURE_REASON
        return OLD_REASON if time < self.rules.oldest else None

    def add(
        self, slot: int | str, time: int, value: float, letter: Callable[[], bytes | None]
    ) -> None:
        """Take the next sample of the request, or note why not."""
        finite = isinstance(slot, str) or math.isfinite(value)
        reason = self.refusal(slot, time) if finite else NOT_FINITE
        if reason is not None or isinstance(slot, str):
            self.reject(reason or "", letter)
            return
        self.seen += 1
        self.series.append(slot)
        self.times.append(time)
        self.values.append(value)

    def add_document(
        self, slot: int | str, time: int, value: str, letter: Callable[[], bytes | None]
    ) -> None:
        """Take the next sample, whose value is JSON, or note why not."""
        reason = self.refusal(slot, time)
        if reason is not None or isinstance(slot, str):
            self.reject(reason or "", letter)
            return
        self.seen += 1
        self.documents.append((slot, time, value))

    def reject(self, reason: str, letter: Callable[[], bytes | None]) -> None:
        """Note that the next sample of the request is not stored."""
        if len(self.rejections) < MAX_LISTED:
            self.rejections.append(Rejection(self.seen, reason))
            self._keep(reason, letter())
        self.rejected += 1
        self.seen += 1

    def ignore(self) -> None:
        """Pass over a mark that is no sample."""
        self.seen += 1
        self.ignored += 1

    def _keep(self, reason: str, payload: bytes | None) -> None:
        if payload is not None:
            fits = len(payload) <= MAX_LETTER
            if not fits or self._letter_bytes + len(payload) > MAX_LETTERS:
                payload = None
            else:
                self._letter_bytes += len(payload)
        self.letters.append(Letter(reason, payload))


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
    return Identity.of(name, unit, kind, owned)


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
