"""A group of batches is stored in one transaction; each gets the answer that it would get alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final

import numpy as np
from sqlalchemy import event
from sqlalchemy.orm import Session

from tensorguard.errors import TensorGuardError
from tensorguard.platform.telemetry.cache import KnownDays, KnownSeries
from tensorguard.platform.telemetry.points import Document, Points
from tensorguard.platform.telemetry.repository import BatchRepository, SeriesRepository
from tensorguard.platform.telemetry.rows import DAY, Rows
from tensorguard.platform.telemetry.stores import DOCUMENTS, SAMPLES, Claim, SampleStore
from tensorguard.wire.telemetry import Answer

UNUSED: Final = -1  # no series has this id; a series all of whose samples were refused is not made


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What makes a retry recognisable: the sender's key or, without one, the body itself."""

    key: bytes
    body: bytes

    @classmethod
    def of(cls, body: bytes, given: str | None) -> BatchKey:
        """Return the key of a decompressed body and the key that its sender gave it."""
        digest = hashlib.sha256(body).digest()
        if given is None:
            return cls(digest, digest)
        return cls(hashlib.sha256(b"key\0" + given.encode()).digest(), digest)


@dataclass(frozen=True, slots=True)
class Sender:
    """Whose batch it is. `token_id` is set when the credential must be looked at again."""

    tenant_id: str
    actor: str
    device_id: str | None
    token_id: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """One request, read and checked."""

    sender: Sender
    key: BatchKey
    points: Points
    media: str
    body: bytes  # kept until it is answered: it may have to be taken apart
    received: datetime

    @property
    def identity(self) -> tuple[str, str, bytes]:
        """What only one batch may have."""
        return self.sender.tenant_id, self.sender.actor, self.key.key


Outcome = Answer | TensorGuardError
NOBODY: Final[Mapping[int, TensorGuardError]] = MappingProxyType({})
Check = Callable[[Session, Sequence[Batch]], dict[int, TensorGuardError]]


class NoLongerAllowed(Exception):
    """Some of the batches, by their place, may no longer be written."""

    def __init__(self, refused: Mapping[int, TensorGuardError]) -> None:
        super().__init__(f"{len(refused)} batches may no longer be written")
        self.refused = refused


@dataclass(frozen=True, slots=True)
class GroupWriter:
    """Stores groups. `check` says, by position, which batches may no longer be written."""

    store: SampleStore
    series: KnownSeries
    days: dict[str, KnownDays]
    check: Check

    def write(
        self,
        session: Session,
        batches: Sequence[Batch],
        now: datetime,
        *,
        careful: bool,
        refused: Mapping[int, TensorGuardError] = NOBODY,
    ) -> list[Outcome]:
        """Store the batches that are new; return an outcome for each. The caller commits.

        Raises `Overlap` unless `careful`, and `NoLongerAllowed` when others than those in `refused`
        may not write: the caller rolls back, and begins anew with what it learned.
        """
        outcomes: list[Outcome | None] = [refused.get(place) for place in range(len(batches))]
        mine = self._claim(session, batches, outcomes, now)
        if mine:
            answers = self._store(session, [batches[place] for place in mine], now, careful)
            for place, answer in zip(mine, answers, strict=True):
                outcomes[place] = answer
        first = {batches[place].identity: place for place in mine}
        for place, batch in enumerate(batches):
            if outcomes[place] is None:
                outcomes[place] = _repeated(session, batch, batches, outcomes, first)
        # last, so that nothing is revoked between this and the commit but in its own moment
        found = self.check(session, batches)
        if found.keys() - refused.keys():
            raise NoLongerAllowed(found)
        return [outcome for outcome in outcomes if outcome is not None]

    def _claim(
        self,
        session: Session,
        batches: Sequence[Batch],
        outcomes: Sequence[Outcome | None],
        now: datetime,
    ) -> list[int]:
        """Return the places of the batches that nobody sent before."""
        claims: dict[tuple[str, str, bytes], tuple[int, Claim]] = {}
        for place, batch in enumerate(batches):
            if outcomes[place] is None and batch.identity not in claims:
                points = batch.points
                claims[batch.identity] = (
                    place,
                    Claim(*batch.identity, batch.key.body, points.good, points.rejected),
                )
        ordered = [claims[identity][1] for identity in sorted(claims)]  # one order: no deadlock
        if not ordered:
            return []
        taken = self.store.claim(session, ordered, now)
        return sorted(place for identity, (place, _) in claims.items() if identity in taken)

    def _store(
        self,
        session: Session,
        batches: Sequence[Batch],
        now: datetime,
        careful: bool,  # noqa: FBT001 - as `write` was told
    ) -> list[Answer]:
        places = self._resolve(session, batches, now)
        accepted = self._numbers(session, batches, places, careful=careful)
        for place, count in enumerate(self._documents(session, batches, places)):
            accepted[place] += count
        answers = []
        for batch, count in zip(batches, accepted, strict=True):
            points = batch.points
            answer = Answer(count, points.good - count, points.rejections, points.rejected)
            answers.append(answer)
            repository = BatchRepository(session, tenant_id=batch.sender.tenant_id)
            if count != points.good or points.rejected:
                repository.settle(principal=batch.sender.actor, key=batch.key.key, answer=answer)
            if points.letters:
                repository.keep(batch.sender, batch.media, points.letters, now=now)
        return answers

    def _resolve(
        self, session: Session, batches: Sequence[Batch], now: datetime
    ) -> list[list[int]]:
        """Return the ids of each batch's pending series that are used; new series are made."""
        wanted: dict[str, dict[bytes, tuple[str, object]]] = {}
        keys: list[list[bytes | None]] = []
        found: dict[str, dict[bytes, int]] = {}
        for batch in batches:
            tenant_id, points = batch.sender.tenant_id, batch.points
            keys.append([])
            if not points.pending:
                continue
            used = {slot for slot in points.series if slot < 0}
            used |= {slot for slot, _, _ in points.documents if slot < 0}
            for place, pending in enumerate(points.pending):
                key = pending.identity.key if -1 - place in used else None
                keys[-1].append(key)
                if key is not None:
                    wanted.setdefault(tenant_id, {})[key] = (tenant_id, pending.identity)
        for tenant_id, identities in wanted.items():
            ids = self.series.find(tenant_id, identities)
            missing = [identities[key][1] for key in identities if key not in ids]
            if missing:
                repository = SeriesRepository(session, tenant_id=tenant_id)
                ids |= repository.resolve(missing, now=now)  # type: ignore[arg-type]
            found[tenant_id] = ids
        self._remember(session, batches, keys, found)
        return [
            [UNUSED if key is None else found[batch.sender.tenant_id][key] for key in batch_keys]
            for batch, batch_keys in zip(batches, keys, strict=True)
        ]

    def _remember(
        self,
        session: Session,
        batches: Sequence[Batch],
        keys: Sequence[Sequence[bytes | None]],
        found: dict[str, dict[bytes, int]],
    ) -> None:
        if not found:
            return

        def committed(_: Session) -> None:
            for tenant_id, ids in found.items():
                self.series.put(tenant_id, ids)
            for batch, batch_keys in zip(batches, keys, strict=True):
                ids = found.get(batch.sender.tenant_id, {})
                for pending, key in zip(batch.points.pending, batch_keys, strict=False):
                    if key is not None and pending.raw is not None:
                        self.series.raw.put(pending.raw, ids[key])
                        self.series.pending.drop(pending.raw)

        event.listen(session, "after_commit", committed, once=True)

    def _numbers(
        self,
        session: Session,
        batches: Sequence[Batch],
        ids: Sequence[Sequence[int]],
        *,
        careful: bool,
    ) -> list[int]:
        total = sum(len(batch.points.times) for batch in batches)
        if total == 0:
            return [0] * len(batches)
        series = np.concatenate([_resolved(b.points, i) for b, i in zip(batches, ids, strict=True)])
        times = np.concatenate([np.frombuffer(b.points.times, dtype=np.int64) for b in batches])
        values = np.concatenate([np.frombuffer(b.points.values, dtype=np.float64) for b in batches])
        counts = [len(batch.points.times) for batch in batches]
        rows = Rows.of(series, times, values, np.repeat(np.arange(len(batches)), counts))
        self._open_days(session, SAMPLES, rows.days())
        kept = self.store.insert(session, rows, careful=careful)
        self.store.advance(session, rows.newest())
        return kept.per_batch(len(batches))

    def _documents(
        self, session: Session, batches: Sequence[Batch], ids: Sequence[Sequence[int]]
    ) -> list[int]:
        accepted = [0] * len(batches)
        owners: dict[tuple[int, int], int] = {}
        rows: list[Document] = []
        for place, (batch, found) in enumerate(zip(batches, ids, strict=True)):
            for slot, time, value in batch.points.documents:
                series = slot if slot > 0 else found[-1 - slot]
                if (series, time) not in owners:
                    owners[series, time] = place
                    rows.append((series, time, value))
        if rows:
            self._open_days(session, DOCUMENTS, sorted({time // DAY for _, time, _ in rows}))
            for pair in self.store.insert_documents(session, rows):
                accepted[owners[pair]] += 1
        return accepted

    def _open_days(self, session: Session, table: str, days: list[int]) -> None:
        known = self.days[table]
        missing = known.missing(days)
        if missing:
            self.store.prepare(session, table, missing)
            event.listen(session, "after_commit", lambda _: known.put(missing), once=True)


def _resolved(points: Points, ids: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    series = np.frombuffer(points.series, dtype=np.int64)
    if not points.pending or not len(series) or series.min() > 0:
        return series
    new = np.asarray(ids, dtype=np.int64)
    return np.where(series > 0, series, new[np.clip(-1 - series, 0, None)])


def _repeated(
    session: Session,
    batch: Batch,
    batches: Sequence[Batch],
    outcomes: Sequence[Outcome | None],
    first: dict[tuple[str, str, bytes], int],
) -> Outcome:
    """Return the answer that the same batch got, in this group or before."""
    repository = BatchRepository(session, tenant_id=batch.sender.tenant_id)
    place = first.get(batch.identity)
    try:
        if place is not None:
            repository.same_body(batches[place].key.body, batch.key.body)
            return outcomes[place] or Answer(0, 0)
        return repository.answer_of(
            principal=batch.sender.actor, key=batch.key.key, body=batch.key.body
        )
    except TensorGuardError as refused:
        return refused
