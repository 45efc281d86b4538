"""The pack folder: what verifies is served, what does not harms nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from support.serving import Site, network, pack_bytes, pack_id
from tensorguard.crypto.hybrid import SoftwareHybridSigner
from tensorguard.errors import MalformedInput, TensorGuardError, Unavailable
from tensorguard.serving.catalogue import Catalogue, ModelUnknown, version_order
from tensorguard.serving.pool import Answer, Job, PoolStatus


class FakePool:
    """A pool that loads everything, or what it is told not to."""

    def __init__(self) -> None:
        self.loaded: dict[str, bytes] = {}
        self.refuses: TensorGuardError | None = None

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def load(self, pack_id: str, data: bytes) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.loaded[pack_id] = data

    async def drop(self, pack_id: str) -> None:
        del self.loaded[pack_id]

    async def check_keys(self, pack_id: str, tenant: str, digest: str, frame: bytes) -> None:
        raise MalformedInput("no keys here")

    async def evaluate(self, job: Job) -> Answer:
        raise Unavailable("no evaluation here")

    def status(self) -> PoolStatus:
        return PoolStatus(wanted=1, alive=1, waiting=0)


class Bench:
    def __init__(self, site: Site, max_packs: int = 4) -> None:
        self.site, self.pool, self.refused = site, FakePool(), 0
        self.catalogue = Catalogue(
            site.packs,
            site.trust,
            self.pool,
            max_packs=max_packs,
            pack_bytes=1 << 20,
            on_refused=self._count,
        )

    def _count(self) -> None:
        self.refused += 1

    def scan(self) -> set[str]:
        asyncio.run(self.catalogue.scan())
        assert set(self.pool.loaded) == set(self.catalogue._served)
        return set(self.pool.loaded)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Site(tmp_path / "site"))


def test_packs_come_and_go_with_their_files(bench: Bench) -> None:
    assert bench.scan() == set()
    first = bench.site.add("m", network(1))
    assert bench.scan() == {first}
    second = bench.site.add("m", network(2), version="1.1")
    assert bench.scan() == {first, second}
    (bench.site.packs / "m-1.0.moai").unlink()
    assert bench.scan() == {second}
    assert bench.refused == 0


def _stranger(site: Site) -> bytes:
    return pack_bytes(SoftwareHybridSigner.generate(), network(1), name="bad")


def _tampered(site: Site) -> bytes:
    data = bytearray(pack_bytes(site.signer, network(1), name="bad"))
    data[len(data) // 2] ^= 1
    return bytes(data)


def _truncated(site: Site) -> bytes:
    return pack_bytes(site.signer, network(1), name="bad")[:-100]


BAD: dict[str, Callable[[Site], bytes]] = {
    "empty": lambda _: b"",
    "no archive": lambda _: b"x" * 1000,
    "oversized": lambda _: b"x" * (1 << 21),
    "stranger": _stranger,
    "tampered": _tampered,
    "truncated": _truncated,
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.invariant("TG-I16")
def test_a_bad_pack_is_refused_once_and_the_others_keep_working(bench: Bench, kind: str) -> None:
    good = bench.site.add("good", network(1))
    (bench.site.packs / "bad.moai").write_bytes(BAD[kind](bench.site))
    assert [bench.scan() for _ in range(3)] == [{good}] * 3
    assert bench.refused == 1


def test_a_link_to_a_pack_elsewhere_is_refused(bench: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "outside.moai"
    outside.write_bytes(pack_bytes(bench.site.signer, network(1), name="m"))
    (bench.site.packs / "m.moai").symlink_to(outside)
    assert bench.scan() == set()
    assert bench.refused == 1


def test_a_refused_file_is_tried_again_when_it_changed(bench: Bench) -> None:
    data = pack_bytes(bench.site.signer, network(1), name="m")
    path = bench.site.packs / "m.moai"
    path.write_bytes(data[:100])  # somebody is still copying
    assert bench.scan() == set()
    path.write_bytes(data)
    assert bench.scan() == {pack_id(data)}


def test_a_second_pack_under_one_name_and_version_waits_for_the_first_to_go(bench: Bench) -> None:
    first = bench.site.add("m", network(1))
    other = pack_bytes(bench.site.signer, network(2), name="m")
    (bench.site.packs / "other.moai").write_bytes(other)
    assert bench.scan() == {first}
    (bench.site.packs / "m-1.0.moai").unlink()
    assert bench.scan() == {pack_id(other)}


def test_the_number_of_packs_is_bounded(tmp_path: Path) -> None:
    bench = Bench(Site(tmp_path / "site"), max_packs=2)
    for number in range(3):
        bench.site.add(f"m{number}", network(number))
    assert len(bench.scan()) == 2
    assert bench.refused == 1


def test_a_pack_that_no_worker_can_load_now_is_tried_again(bench: Bench) -> None:
    bench.pool.refuses = Unavailable("no worker")
    added = bench.site.add("m", network(1))
    assert bench.scan() == set()
    bench.pool.refuses = None
    assert bench.scan() == {added}
    assert bench.refused == 0


def test_a_signer_who_left_the_trust_store_signs_nothing_that_is_served(bench: Bench) -> None:
    added = bench.site.add("m", network(1))
    assert bench.scan() == {added}
    publisher = bench.site.trust / "publisher.pub.json"
    kept = publisher.read_bytes()
    public = SoftwareHybridSigner.generate().public_key
    (bench.site.trust / "other.pub.json").write_bytes(public.to_json(name="other"))
    assert bench.scan() == {added}
    publisher.unlink()
    assert bench.scan() == set()
    publisher.write_bytes(kept)
    assert bench.scan() == {added}


def test_models_are_found_by_grant_name_and_version(bench: Bench) -> None:
    versions = ("1.9", "1.10", "1.10-rc1")
    ids = {v: bench.site.add("m", network(1), version=v) for v in versions}
    bench.scan()
    find = bench.catalogue.model
    assert find("m", None, set(ids.values())).pack_id == ids["1.10"]
    assert find("m", "1.9", set(ids.values())).pack_id == ids["1.9"]
    assert find("m", None, {ids["1.9"]}).pack_id == ids["1.9"]
    for name, version, granted in (
        ("m", "1.10", {ids["1.9"]}),
        ("m", "2", set(ids.values())),
        ("n", None, set(ids.values())),
        ("m", None, set()),
    ):
        with pytest.raises(ModelUnknown):
            find(name, version, granted)
    listed = bench.catalogue.models(set(ids.values()))
    assert [served.view.version for served in listed] == ["1.10", "1.10-rc1", "1.9"]


def test_versions_are_ordered_as_people_count() -> None:
    ordered = ["0.9", "1.0-rc1", "1.0-rc2", "1.0", "1.0.1", "1.2", "1.10", "2"]
    mixed = [ordered[i] for i in (3, 7, 0, 5, 2, 6, 1, 4)]
    assert sorted(mixed, key=version_order) == ordered


def test_a_replaced_file_is_swapped_in_one_step(bench: Bench) -> None:
    """Whoever looks while the new pack is loaded still finds the old one; afterwards the new one."""
    old = bench.site.add("m", network(1))
    bench.scan()
    new = pack_id(pack_bytes(bench.site.signer, network(2), name="m"))
    seen: list[str] = []
    load, drop = bench.pool.load, bench.pool.drop

    class Watched(FakePool):
        async def load(self, pack_id: str, data: bytes) -> None:
            await load(pack_id, data)
            seen.append(bench.catalogue.model("m", None, {old, new}).pack_id)

        async def drop(self, pack_id: str) -> None:
            seen.append(bench.catalogue.model("m", None, {old, new}).pack_id)
            await drop(pack_id)

    watched = Watched()
    watched.loaded = bench.pool.loaded
    bench.catalogue._pool = bench.pool = watched
    bench.site.add("m", network(2))
    assert bench.scan() == {new}
    assert seen == [old, new]


def test_a_file_that_is_replaced_while_no_worker_answers_keeps_the_old_pack(bench: Bench) -> None:
    old = bench.site.add("m", network(1))
    bench.scan()
    new = bench.site.add("m", network(2))
    bench.pool.refuses = Unavailable("no worker answers")
    assert bench.scan() == {old}
    bench.pool.refuses = None
    assert bench.scan() == {new}


def test_a_file_that_is_replaced_by_a_bad_one_is_no_longer_served(bench: Bench) -> None:
    bench.site.add("m", network(1))
    bench.scan()
    (bench.site.packs / "m-1.0.moai").write_bytes(b"broken")
    assert bench.scan() == set()
    assert bench.refused == 1


def test_a_signer_who_was_removed_is_gone_even_where_no_worker_answers(bench: Bench) -> None:
    bench.site.add("m", network(1))
    bench.scan()
    other = SoftwareHybridSigner.generate().public_key
    (bench.site.trust / "publisher.pub.json").write_bytes(other.to_json(name="other"))
    bench.pool.refuses = Unavailable("no worker answers")
    assert bench.scan() == set()
