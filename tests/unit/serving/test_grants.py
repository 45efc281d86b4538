"""The platform's keys: read when needed, kept when it is away, never asked for by a forger's whim."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from support.serving import Issuer
from tensorguard.errors import NotFound, Unauthenticated
from tensorguard.serving.grants import GrantKeysUnknown, GrantVerifier, source
from tensorguard.wire.jws import TokenRefused, UnknownSigner

PACK = "a" * 64


class Platform:
    """A key set that can change or be out of reach."""

    def __init__(self) -> None:
        self.issuer = Issuer()
        self.reads = 0
        self.away = False
        self.time = 0.0

    async def fetch(self) -> bytes:
        self.reads += 1
        if self.away:
            raise NotFound("the platform is away")
        return self.issuer.jwks().encode()

    def verifier(self) -> GrantVerifier:
        return GrantVerifier(self.fetch, now=lambda: datetime.now(UTC), monotonic=lambda: self.time)

    def bearer(self) -> str:
        return f"Bearer {self.issuer.grant(PACK)}"


def test_the_key_set_is_read_once_and_again_when_it_is_old() -> None:
    platform = Platform()

    async def work() -> None:
        verifier = platform.verifier()
        for _ in range(3):
            grant = await verifier.verify(platform.bearer())
        assert (grant.tenant, grant.packs, platform.reads) == ("tenant-a", {PACK}, 1)
        platform.time += 61
        await verifier.verify(platform.bearer())
        assert platform.reads == 2

    asyncio.run(work())


def test_a_rotated_key_is_found_at_once_and_a_withdrawn_one_soon_gone() -> None:
    platform = Platform()

    async def work() -> None:
        verifier = platform.verifier()
        old = platform.bearer()
        await verifier.verify(old)
        platform.issuer = Issuer(kid="k2")
        platform.time += 10
        await verifier.verify(platform.bearer())
        with pytest.raises(UnknownSigner):
            await verifier.verify(old)

    asyncio.run(work())


def test_invented_key_ids_do_not_make_the_gateway_ask_each_time() -> None:
    platform, forger = Platform(), Issuer(kid="invented")

    async def work() -> None:
        verifier = platform.verifier()
        await verifier.verify(platform.bearer())
        platform.time += 10
        for _ in range(50):
            with pytest.raises(UnknownSigner):
                await verifier.verify(f"Bearer {forger.grant(PACK)}")
        assert platform.reads == 2

    asyncio.run(work())


def test_an_old_set_serves_while_the_platform_is_away_but_not_forever() -> None:
    platform = Platform()

    async def work() -> None:
        verifier = platform.verifier()
        await verifier.verify(platform.bearer())
        platform.away = True
        platform.time += 600
        await verifier.verify(platform.bearer())
        platform.time += 3600
        with pytest.raises(GrantKeysUnknown):
            await verifier.verify(platform.bearer())
        platform.away = False
        platform.time += 10
        await verifier.verify(platform.bearer())

    asyncio.run(work())


def test_without_any_key_set_nobody_is_admitted(tmp_path: Path) -> None:
    async def work() -> None:
        verifier = GrantVerifier(
            source(str(tmp_path / "absent.json")),
            now=lambda: datetime.now(UTC),
            monotonic=lambda: 0,
        )
        with pytest.raises(GrantKeysUnknown) as caught:
            await verifier.verify(f"Bearer {Issuer().grant(PACK)}")
        assert caught.value.status == 503
        (tmp_path / "empty.json").write_text('{"keys":[]}')
        verifier = GrantVerifier(
            source(str(tmp_path / "empty.json")), now=lambda: datetime.now(UTC), monotonic=lambda: 0
        )
        with pytest.raises(GrantKeysUnknown):
            await verifier.check()

    asyncio.run(work())


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer a.b.c"])
def test_what_is_no_bearer_grant_is_refused(header: str | None) -> None:
    platform = Platform()

    async def work() -> None:
        with pytest.raises(Unauthenticated):
            await platform.verifier().verify(header)

    asyncio.run(work())


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "tensorguard-platform"},
        {"exp": 1},
        {"exp": 1 << 36},
        {"scope": "packs:read"},
        {"packs": []},
        {"tenant": None},
    ],
)
def test_a_grant_for_something_else_is_refused(changes: dict[str, object]) -> None:
    platform = Platform()

    async def work() -> None:
        token = platform.issuer.grant(PACK, **changes)
        with pytest.raises(TokenRefused):
            await platform.verifier().verify(f"Bearer {token}")

    asyncio.run(work())
