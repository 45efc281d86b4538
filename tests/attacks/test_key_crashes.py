"""kill -9 at random points of create, rotate and rewrap: no key is ever torn, lost or unreadable."""

from __future__ import annotations

import random
import secrets
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretBytes

import support.keys
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import WrapContext, key_id

KILLS = 200
PER_FOLDER = 20  # a rewrap seals every key: few keys keep the points dense
LONGEST = 40_000  # microseconds; a round of create, rotate and two rewraps takes about as long
CONTEXT = WrapContext("crash", "test")


def check(folder: Path, masters: list[SecretBytes], acknowledged: dict[str, int]) -> None:
    """Everything that was acknowledged is there, and all of it works."""
    provider = FileKeyProvider(
        folder, masters[0], next_master=masters[1], now=lambda: datetime.now(UTC)
    )
    found = {info.key_id: info for info in provider.list_keys()}
    for key, version in acknowledged.items():
        assert found[key_id(key)].version >= version
    for key, info in found.items():
        for version in provider.versions(key):
            if info.algorithm.signs:
                provider.public_key(key, version.version)
        if info.algorithm.signs:
            provider.verify(key, b"message", provider.sign(key, b"message"))
        else:
            wrapped = provider.wrap(key, b"k" * 32, CONTEXT)
            assert provider.unwrap(key, wrapped, CONTEXT) == b"k" * 32


def test_kill_at_200_random_points_of_create_rotate_and_rewrap(tmp_path: Path) -> None:
    chance = random.Random(20260501)
    script = Path(support.keys.__file__).with_name("keys_crash.py")
    process = subprocess.Popen(
        [sys.executable, "-P", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    interrupted, finished, longest = 0, 0, LONGEST
    with process:
        for folder in (tmp_path / str(i) for i in range(KILLS // PER_FOLDER)):
            masters = [secrets.token_bytes(32) for _ in range(2)]
            words = [master.hex() for master in masters]
            acknowledged: dict[str, int] = {}
            for _ in range(PER_FOLDER):
                before = sum(acknowledged.values())
                print(folder, *words, chance.randrange(longest), file=process.stdin)
                for said in filter(None, process.stdout.readline().strip().split(";")):
                    key, version = said.split()[:2]
                    assert key != "FAILED", said
                    acknowledged[key] = int(version)
                if sum(acknowledged.values()) == before:
                    longest += LONGEST // 20  # a busy machine needs more time for the same points
                if not folder.exists():
                    continue  # killed before it began
                check(folder, [SecretBytes(master) for master in masters], acknowledged)
                interrupted += (folder / "rewrap.tgkeys").exists()
            finished += sum(acknowledged.values())
        process.stdin.close()
    assert finished >= KILLS // 10  # the kills did fall into creates and rotates,
    assert interrupted >= KILLS // 20  # and into rewraps


def test_a_rewrap_that_was_killed_goes_on_and_leaves_only_the_new_master(tmp_path: Path) -> None:
    """Stopped after any number of keys, in either half, it ends with all keys under the new master."""
    from tensorguard.keys.provider import Algorithm, KeyUnusable, Purpose

    class Killed(BaseException):
        pass

    old, new = (SecretBytes(secrets.token_bytes(32)) for _ in range(2))
    folder = tmp_path / "keys"
    provider = FileKeyProvider(folder, old, now=lambda: datetime.now(UTC))
    keys = [key_id(f"key-{i}") for i in range(6)]
    for key in keys:
        provider.create(key, algorithm=Algorithm.ed25519, purpose=Purpose.pack_signing)
    signatures = {key: provider.sign(key, b"m") for key in keys}
    for stop in keys[:-1]:

        def progress(key: str, stop: str = stop) -> None:
            if key == stop:
                raise Killed

        try:
            provider.master_rewrap(new, progress=progress)
        except Killed:
            pass
        else:
            raise AssertionError("the rewrap was not stopped")
        fresh = FileKeyProvider(folder, old, now=lambda: datetime.now(UTC))
        for key in keys:
            fresh.verify(key, b"m", signatures[key])
        assert provider.rotate(stop).version == 2  # a change between two attempts is not lost
    assert provider.master_rewrap(new) >= 1
    assert provider.master_rewrap(new) == 0
    after = FileKeyProvider(folder, new, now=lambda: datetime.now(UTC))
    for key in keys:
        after.verify(key, b"m", signatures[key])
    assert [after.describe(key).version for key in keys] == [2] * 5 + [1]
    assert len(list(folder.glob("*/index.tgkeys"))) == 1
    assert not (folder / "rewrap.tgkeys").exists()
    try:
        FileKeyProvider(folder, old, now=lambda: datetime.now(UTC)).sign(keys[0], b"m")
    except KeyUnusable:
        pass
    else:
        raise AssertionError("the old master still opens the folder")
