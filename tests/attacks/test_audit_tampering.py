"""Attacks on the audit trail by someone who can write to the database, or to an export."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from support.platform import Platform
from tensorguard.crypto import canonical
from tensorguard.errors import MalformedInput, TensorGuardError, VerificationError
from tensorguard.keys.provider import Algorithm, Purpose, key_id
from tensorguard.keys.signers import ProviderHybridSigner, ensure
from tensorguard.platform.audit import administration
from tensorguard.platform.audit.chain import AuditBroken
from tensorguard.platform.audit.export import AuditUnsigned, Verified
from tensorguard.platform.audit.periodic import sign_moved
from tensorguard.platform.audit.repository import AuditRepository, event_of
from tensorguard.platform.audit.service import HEAD_KEY

EVENTS = 12
SIGNED = (4, 8, 12)


def quiet(_: int) -> None:
    """Progress that nobody watches."""


@dataclass
class Trail:
    """A trail of twelve events with heads at 4, 8 and 12, and an attacker who has the database."""

    platform: Platform
    tenant_id: str
    folder: Path

    @property
    def engine(self) -> Engine:
        return self.platform.state.engine

    def sql(self, statement: str, **values: object) -> None:
        with self.engine.begin() as connection:
            found = connection.execute(text(statement), {"t": self.tenant_id, **values})
            assert found.rowcount > 0

    def append(self, count: int) -> None:
        with self.platform.session() as session:
            trail = AuditRepository(session, tenant_id=self.tenant_id)
            for _ in range(count):
                trail.append(
                    actor="user:ada",
                    action="device.revoked",
                    subject="device:arm-1",
                    now=self.platform.clock(),
                    details={"reason": "stolen"},
                )

    def verify(self, heads: tuple[Path, ...] = (), tenant: str = "acme") -> Verified:
        (found,) = administration.verify_stored(
            self.platform.settings, tenant=tenant, heads=heads, progress=quiet
        )
        return found

    @property
    def trust(self) -> Path:
        path = self.folder / "audit.pub.json"
        public = self.platform.state.keys.public_key(HEAD_KEY).hybrid()
        path.write_bytes(public.to_json(name="audit"))
        return path

    def export(self) -> Path:
        path = self.folder / "trail.jsonl"
        administration.write_export(
            self.platform.settings, tenant="acme", path=path, progress=quiet
        )
        return path

    def verify_export(self, path: Path, heads: tuple[Path, ...] = ()) -> Verified:
        return administration.verify_export(path, trust=self.trust, heads=heads, progress=quiet)

    def kept_head(self) -> Path:
        """A copy of the newest head, kept where the attacker cannot reach it."""
        with self.platform.session() as session:
            row = AuditRepository(session, tenant_id=self.tenant_id).last_head()
            assert row is not None
            path = self.folder / f"head-{row.seq}.json"
            path.write_bytes(row.envelope + b"\n")
        return path


@pytest.fixture
def trail(platform: Platform, tmp_path: Path) -> Trail:
    made = Trail(platform, platform.tenant("acme"), tmp_path)
    platform.tenant("globex")
    sign_moved(platform.state)
    made.append(SIGNED[0] - 1)
    for length in SIGNED:
        made.append(length - _length(made))
        sign_moved(platform.state)
    return made


def _length(trail: Trail) -> int:
    with trail.platform.session() as session:
        return AuditRepository(session, tenant_id=trail.tenant_id).end().seq


EDITS = {
    "time": "2031-01-01 00:00:00",
    "actor": "user:nobody",
    "action": "device.renamed",
    "subject": "device:arm-2",
    "details": '{"reason":"sold"}',
    "request_id": "forged",
    "previous": "f" * 64,
    "hash": "f" * 64,
}


def test_an_honest_trail_verifies(trail: Trail) -> None:
    found = trail.verify((trail.kept_head(),))
    assert (found.events, found.signed, found.tenant) == (EVENTS, EVENTS, "acme")
    assert trail.verify_export(trail.export(), (trail.kept_head(),)).events == EVENTS


@pytest.mark.parametrize("column", EDITS)
@pytest.mark.invariant("TG-I11")
def test_an_edited_field_is_found(trail: Trail, column: str) -> None:
    value = "TIMESTAMP" if column == "time" and trail.engine.dialect.name == "postgresql" else ""
    edit = f"{value} '{EDITS[column]}'" if value else f"'{EDITS[column]}'"
    trail.sql(f"UPDATE audit_event SET {column} = {edit} WHERE tenant_id = :t AND seq = 6")
    for check in (trail.verify, lambda: trail.verify_export(trail.export())):
        with pytest.raises(AuditBroken, match="event 6 ") as caught:
            check()
        assert caught.value.seq == 6


def test_details_that_are_no_json_any_more_are_found(trail: Trail) -> None:
    trail.sql("UPDATE audit_event SET details = '{' WHERE tenant_id = :t AND seq = 6")
    for check in (trail.verify, lambda: trail.verify_export(trail.export())):
        with pytest.raises(AuditBroken, match="event 6 was edited"):
            check()


@pytest.mark.parametrize("seq", [1, 6, 8])
def test_a_deleted_event_is_found(trail: Trail, seq: int) -> None:
    trail.sql("DELETE FROM audit_event WHERE tenant_id = :t AND seq = :s", s=seq)
    for check in (trail.verify, lambda: trail.verify_export(trail.export())):
        with pytest.raises(AuditBroken, match=f"event {seq} is missing"):
            check()


@pytest.mark.invariant("TG-I11")
def test_a_deleted_tail_is_found_against_the_last_signed_head(trail: Trail) -> None:
    cut_tail(trail, 10)
    for check in (trail.verify, lambda: trail.verify_export(trail.export())):
        with pytest.raises(AuditBroken, match="ends at event 10, but event 12 was signed"):
            check()


def test_a_tail_deleted_with_its_heads_is_found_against_a_kept_head(trail: Trail) -> None:
    kept = trail.kept_head()
    cut_tail(trail, 8)
    trail.sql("DELETE FROM audit_head WHERE tenant_id = :t AND seq > 8")
    assert trail.verify().events == 8  # nothing inside the database can show it
    for check in (trail.verify, lambda heads: trail.verify_export(trail.export(), heads)):
        with pytest.raises(AuditBroken, match="ends at event 8, but event 12 was signed"):
            check((kept,))


def test_a_tail_deleted_without_the_chain_row_is_found(trail: Trail) -> None:
    trail.append(2)
    trail.sql("DELETE FROM audit_event WHERE tenant_id = :t AND seq > 12")
    with pytest.raises(AuditBroken, match="ends at event 12, not at event 14"):
        trail.verify()


def test_events_behind_the_end_of_the_chain_are_found(trail: Trail) -> None:
    trail.append(1)
    trail.sql("UPDATE audit_chain SET seq = 12 WHERE tenant_id = :t")
    with pytest.raises(AuditBroken, match="ends at event 13, not at event 12"):
        trail.verify()


def cut_tail(trail: Trail, length: int) -> None:
    """Delete the tail and make the chain's own row agree."""
    trail.sql("DELETE FROM audit_event WHERE tenant_id = :t AND seq > :s", s=length)
    trail.sql(
        "UPDATE audit_chain SET seq = :s, hash = (SELECT hash FROM audit_event "
        "WHERE tenant_id = :t AND seq = :s) WHERE tenant_id = :t",
        s=length,
    )


def rewrite(trail: Trail, first: int) -> None:
    """Edit an event and compute every later hash anew, as a patient attacker does."""
    with trail.platform.session() as session:
        repository = AuditRepository(session, tenant_id=trail.tenant_id)
        rows = repository.page(after=first - 1, limit=100)
        rows[0].details = '{"reason":"lost"}'
        previous = rows[0].previous
        for row in rows:
            row.previous = previous
            row.hash = previous = event_of(row).digest()
    trail.sql("UPDATE audit_chain SET hash = :h WHERE tenant_id = :t", h=previous)


def test_a_rewritten_history_is_found_against_a_signed_head(trail: Trail) -> None:
    rewrite(trail, 6)
    for check in (trail.verify, lambda: trail.verify_export(trail.export())):
        with pytest.raises(AuditBroken, match="event 8 is not the one that was signed"):
            check()


def test_a_history_rewritten_without_its_heads_is_found_against_a_kept_head(trail: Trail) -> None:
    kept = trail.kept_head()
    rewrite(trail, 6)
    trail.sql("DELETE FROM audit_head WHERE tenant_id = :t AND seq > 4")
    with pytest.raises(AuditBroken, match="event 12 is not the one that was signed"):
        trail.verify((kept,))


def test_a_tampered_trail_is_never_signed(trail: Trail) -> None:
    trail.append(2)
    trail.sql("UPDATE audit_event SET actor = 'x' WHERE tenant_id = :t AND seq = 13")
    assert sign_moved(trail.platform.state) == 0
    with pytest.raises(AuditBroken, match="event 13 was edited"):
        trail.verify()


def test_a_head_of_another_key_is_refused(trail: Trail, tmp_path: Path) -> None:
    from tensorguard.crypto.hybrid import SoftwareHybridSigner

    stranger = tmp_path / "stranger.pub.json"
    stranger.write_bytes(SoftwareHybridSigner.generate().public_key.to_json(name="stranger"))
    path = trail.export()
    with pytest.raises(AuditBroken, match="does not verify"):
        administration.verify_export(path, trust=stranger, progress=quiet)


def test_a_head_signed_by_another_key_of_ours_is_refused(trail: Trail) -> None:
    from tensorguard.crypto import dsse
    from tensorguard.platform.audit.chain import HEAD_TYPE, Head

    keys = trail.platform.state.keys
    other = ensure(keys, key_id("packs"), Algorithm.hybrid, Purpose.pack_signing)
    signer = ProviderHybridSigner(keys, other, purpose=Purpose.pack_signing)
    forged = Head(trail.tenant_id, 12, "f" * 64, "2030-01-01T00:00:00+00:00")
    envelope = dsse.seal(forged.statement(), payload_type=HEAD_TYPE, signer=signer)
    trail.sql(
        "UPDATE audit_head SET envelope = :e, hash = :h WHERE tenant_id = :t AND seq = 12",
        e=envelope,
        h=forged.hash,
    )
    with pytest.raises(AuditBroken, match="head of event 12 does not verify"):
        trail.verify()


def test_another_tenants_trail_and_heads_do_not_stand_in(trail: Trail) -> None:
    globex = trail.platform.tenant("globex")
    trail.sql(
        "UPDATE audit_head SET envelope = (SELECT envelope FROM audit_head h "
        "WHERE h.tenant_id = :g) WHERE tenant_id = :t AND seq = 4",
        g=globex,
    )
    with pytest.raises(AuditBroken, match="event 4"):
        trail.verify()
    with pytest.raises(AuditBroken, match="which is not here"):
        trail.verify((trail.kept_head(),), tenant="globex")


# --- exports -----------------------------------------------------------------------------------

Lines = list[bytes]


def _without_heads(lines: Lines) -> Lines:
    return [line for line in lines if b'"type":"head"' not in line]


def _swap(lines: Lines) -> Lines:
    lines[2], lines[3] = lines[3], lines[2]
    return lines


def _cut(lines: Lines) -> Lines:
    """Drop the tail, its heads, and make header and end agree."""
    events = [n for n, line in enumerate(lines) if b'"type":"event"' in line][:3]
    header = json.loads(lines[0]) | {"seq": 3, "hash": json.loads(lines[events[-1]])["hash"]}
    end = {"events": 3, "type": "end"}
    return [canonical.encode(header), *(lines[n] for n in events), canonical.encode(end)]


MUTATIONS: dict[str, tuple[Callable[[Lines], Lines], type[TensorGuardError]]] = {
    "nothing": (lambda lines: lines[:0], MalformedInput),
    "no header": (lambda lines: lines[1:], MalformedInput),
    "no end": (lambda lines: lines[:-1], AuditBroken),
    "no head at all": (_without_heads, AuditUnsigned),
    "no event": (lambda lines: [lines[0], lines[-1]], AuditBroken),
    "two swapped": (_swap, AuditBroken),
    "one twice": (lambda lines: lines[:2] + lines[1:], AuditBroken),
    "cut and made to agree": (_cut, AuditUnsigned),
    "more after the end": (lambda lines: [*lines, lines[1]], MalformedInput),
    "not canonical": (lambda lines: [lines[0] + b" ", *lines[1:]], MalformedInput),
    "an unknown line": (lambda lines: [lines[0], b'{"type":"note"}', *lines[1:]], MalformedInput),
    "a huge line": (lambda lines: [lines[0], b'"' + b"x" * 300_000 + b'"'], MalformedInput),
    "binary": (lambda lines: [b"\xff\x00" * len(lines)], MalformedInput),
    "deep": (lambda lines: [lines[0], b"[" * 5000], MalformedInput),
}


ONE_KIND = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)  # a file is a file


@ONE_KIND
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutated_export_is_refused(trail: Trail, name: str) -> None:
    mutate, expected = MUTATIONS[name]
    path = trail.export()
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(line + b"\n" for line in mutate(lines)))
    with pytest.raises(expected):
        trail.verify_export(path)


@ONE_KIND
def test_an_export_without_its_last_head_says_how_far_it_is_signed(trail: Trail) -> None:
    path, kept = trail.export(), trail.kept_head()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2] + lines[-1:]))
    assert trail.verify_export(path).signed == 8
    assert trail.verify_export(path, (kept,)).signed == 12


@ONE_KIND
def test_every_single_byte_edit_of_an_export_is_refused(trail: Trail) -> None:
    path = trail.export()
    data = path.read_bytes()
    for position in range(0, len(data), max(1, len(data) // 120)):
        edited = bytearray(data)
        edited[position] ^= 1
        path.write_bytes(edited)
        header = position < data.index(b"\n")
        try:
            found = trail.verify_export(path)
        except (VerificationError, MalformedInput):
            continue
        # Only the unsigned words of the header, its time and the tenant's name, prove nothing.
        assert header
        assert found.events == EVENTS


@ONE_KIND
def test_an_export_is_private(trail: Trail) -> None:
    assert trail.export().stat().st_mode & 0o777 == 0o600
