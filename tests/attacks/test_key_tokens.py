"""Attacks on PKCS#11 custody, and tokens that go and come back, against SoftHSM2."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute, ObjectClass

from support.keys import CONTEXT, Clock, prefix, private_file, softhsm
from tensorguard.errors import TensorGuardError
from tensorguard.keys import self_test
from tensorguard.keys.pkcs11 import Pkcs11KeyProvider, open_pkcs11
from tensorguard.keys.pkcs11_token import REOPEN
from tensorguard.keys.pkcs11_uri import UnusableUri, parse
from tensorguard.keys.provider import (
    Algorithm,
    KeyCustodyDenied,
    KeyCustodyDown,
    KeyNotFound,
    KeyProviderUnusable,
    KeyUnusable,
    Purpose,
    WrongContext,
    key_id,
)
from tensorguard.keys.signers import ensure

KEY, KEK, HYBRID = key_id("signer"), key_id("kek"), key_id("hybrid")
TOKEN = "token=tg;object=x?module-path=/m.so&pin-source=file:/pin"


@pytest.fixture
def provider() -> Pkcs11KeyProvider:
    provider = open_pkcs11(softhsm().rest(prefix()), now=lambda: datetime.now(UTC))
    provider.create(KEY, algorithm=Algorithm.es256, purpose=Purpose.fleet_ca)
    provider.create(KEK, algorithm=Algorithm.aes256_gcm, purpose=Purpose.data_at_rest)
    provider.create(HYBRID, algorithm=Algorithm.hybrid, purpose=Purpose.pack_signing)
    return provider


def put_back() -> None:
    away = softhsm().folder / "away"
    away.rename(softhsm().folder / "tokens" / "back")
    time.sleep(REOPEN)


# --- reading what must not be read --------------------------------------------------------


def test_key_bytes_cannot_be_read_from_the_token(provider: Pkcs11KeyProvider) -> None:
    def objects(session: pkcs11.Session) -> list[pkcs11.Object]:
        kinds = (ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY)
        return [o for kind in kinds for o in session.get_objects({Attribute.CLASS: kind})]

    def attempt(session: pkcs11.Session) -> int:
        count = 0
        for item in objects(session):
            if not str(item[Attribute.LABEL]).startswith(provider._prefix):
                continue
            count += 1
            assert item[Attribute.SENSITIVE]
            assert not item[Attribute.EXTRACTABLE]
            with pytest.raises(pkcs11.exceptions.AttributeSensitive):
                item[Attribute.VALUE]
            for attribute in (Attribute.EXTRACTABLE, Attribute.SENSITIVE):
                with pytest.raises(pkcs11.PKCS11Error):
                    item[attribute] = not item[attribute]
        return count

    assert provider._token.use(attempt) == 4  # P-256, AES, and both of the hybrid key


def test_token_files_hold_neither_pin_nor_seed(provider: Pkcs11KeyProvider) -> None:
    pin = softhsm().pin.read_bytes().strip()
    for path in softhsm().folder.joinpath("tokens").rglob("*"):
        if path.is_file():
            assert pin not in path.read_bytes()


# --- the PIN ----------------------------------------------------------------------------------


def test_wrong_pin_while_logged_in(provider: Pkcs11KeyProvider, tmp_path: Path) -> None:
    wrong = private_file(tmp_path / "pin", "000000")
    with pytest.raises(KeyCustodyDenied):
        open_pkcs11(softhsm().rest("x", wrong), now=lambda: datetime.now(UTC))
    provider.sign(KEY, b"message")


def test_pin_in_the_uri() -> None:
    for place in (f"{TOKEN}&pin-value=1234", "token=tg;pin-value=1234?module-path=/m.so"):
        with pytest.raises(UnusableUri) as refused:
            parse(place)
        assert "1234" not in str(refused.value)


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_pin_file_readable_by_others(tmp_path: Path, mode: int) -> None:
    pin = private_file(tmp_path / "pin", softhsm().pin.read_text())
    pin.chmod(mode)
    with pytest.raises(KeyProviderUnusable):
        open_pkcs11(softhsm().rest("x", pin), now=lambda: datetime.now(UTC))


def test_pin_from_a_descriptor_works_twice() -> None:
    reader, writer = os.pipe()
    os.write(writer, softhsm().pin.read_bytes())
    os.close(writer)
    rest = softhsm().rest(prefix()).partition("&")[0] + f"&pin-source=fd:{reader}"
    for _ in range(2):
        self_test.run(open_pkcs11(rest, now=lambda: datetime.now(UTC)))
    os.close(reader)


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "object=x?module-path=/m.so&pin-source=file:/pin",
        "token=tg?pin-source=file:/pin",
        "token=tg?module-path=m.so&pin-source=file:/pin",
        "token=tg?module-path=/m.so",
        "token=tg?module-path=/m.so&pin-source=file:pin",
        "token=tg?module-path=/m.so&pin-source=|cat /pin",
        "token=tg?module-path=/m.so&pin-source=fd:x",
        "token=tg;token=other?module-path=/m.so&pin-source=file:/pin",
        "token=tg;slot-id=1?module-path=/m.so&pin-source=file:/pin",
        "token=tg;object=../x?module-path=/m.so&pin-source=file:/pin",
        "token=%ff?module-path=/m.so&pin-source=file:/pin",
        "x" * 5000,
    ],
)
def test_uri_that_says_too_little_or_too_much(rest: str) -> None:
    with pytest.raises(UnusableUri):
        parse(rest)


def test_percent_encoding_of_rfc_7512() -> None:
    uri = parse("token=My%20token%3b1?module-path=/m.so&pin-source=file:///run/pin")
    assert (uri.label, uri.pin_source) == ("My token;1", "file:/run/pin")


def test_module_that_is_no_module(tmp_path: Path) -> None:
    for module in (tmp_path / "absent.so", Path("/etc/hostname")):
        rest = f"token=tg?module-path={module}&pin-source=file:{softhsm().pin}"
        with pytest.raises(KeyProviderUnusable):
            open_pkcs11(rest, now=lambda: datetime.now(UTC))


def test_token_that_is_not_there() -> None:
    rest = softhsm().rest("x").replace("token=tg", "token=other")
    with pytest.raises(KeyCustodyDown):
        open_pkcs11(rest, now=lambda: datetime.now(UTC))


# --- what others put on the token -------------------------------------------------------------


def test_two_objects_with_the_label_of_a_key(provider: Pkcs11KeyProvider) -> None:
    label = provider._label(KEK, 1)
    provider._token.use(
        lambda session: session.generate_key(pkcs11.KeyType.AES, 256, label=label, store=True)
    )
    provider._token.handles.clear()
    with pytest.raises(KeyUnusable):
        provider.wrap(KEK, b"k" * 32, CONTEXT)


def test_removed_object_and_damaged_record(provider: Pkcs11KeyProvider) -> None:
    provider._token.use(lambda session: provider._erase(session, provider._label(KEY, 1)))
    with pytest.raises(KeyUnusable):
        provider.sign(KEY, b"message")

    def damage(session: pkcs11.Session) -> None:
        ((_, item),) = provider._stored(session, KEK)
        item.copy({Attribute.LABEL: f"{provider._prefix}/other"})

    provider._token.use(damage)
    with pytest.raises(KeyUnusable):
        provider.describe(key_id("other"))


def test_sealed_half_of_another_hybrid_key(provider: Pkcs11KeyProvider) -> None:
    """The seed of one key under the label of another does not open: its context names its key."""
    other = key_id("other-hybrid")
    provider.create(other, algorithm=Algorithm.hybrid, purpose=Purpose.pack_signing)

    def swap(session: pkcs11.Session) -> None:
        labels = [f"{provider._label(key, 1)}/ml-dsa-65" for key in (HYBRID, other)]
        mine, theirs = (provider._find(session, ObjectClass.DATA, label) for label in labels)
        mine.destroy()
        theirs.copy({Attribute.LABEL: labels[0]})
        provider._token.handles.clear()

    provider._token.use(swap)
    with pytest.raises(KeyUnusable):
        provider.sign(HYBRID, b"message")


def test_an_older_record_left_by_a_crash_is_not_taken(provider: Pkcs11KeyProvider) -> None:
    old = provider._read(KEK, fresh=True)
    provider.rotate(KEK)
    provider.retire(KEK, 1)
    provider._token.use(
        lambda session: session.create_object(
            {
                Attribute.CLASS: ObjectClass.DATA,
                Attribute.APPLICATION: "tensorguard",
                Attribute.LABEL: f"{provider._prefix}/{KEK}",
                Attribute.TOKEN: True,
                Attribute.PRIVATE: True,
                Attribute.VALUE: old.encode(),
            }
        )
    )
    assert provider._read(KEK, fresh=True).version(1).state == "retired"


# --- a token that goes and comes back ---------------------------------------------------------


@pytest.mark.usefixtures("lost")
class TestLostToken:
    """Every use is refused while the token is away; nothing is made anew; it works when back."""

    @pytest.fixture
    def lost(self) -> Iterator[Pkcs11KeyProvider]:
        self.opened = open_pkcs11(softhsm().rest(prefix()), now=lambda: datetime.now(UTC))
        self_test.run(self.opened)
        self.opened.create(KEY, algorithm=Algorithm.hybrid, purpose=Purpose.pack_signing)
        self.opened.create(KEK, algorithm=Algorithm.aes256_gcm, purpose=Purpose.data_at_rest)
        self.wrapped = self.opened.wrap(KEK, b"k" * 32, CONTEXT)
        place, away = softhsm().token, softhsm().folder / "away"
        place.rename(away)
        yield self.opened
        if away.exists():
            put_back()

    def test_red_at_once_and_green_without_restart(self) -> None:
        provider = self.opened
        for _ in range(3):
            for use in (
                lambda: self_test.run(provider),
                lambda: provider.sign(KEY, b"message"),
                lambda: provider.unwrap(KEK, self.wrapped, CONTEXT),
                lambda: provider.rotate(KEK),
                lambda: provider._read(KEY, fresh=True),
                provider.list_keys,
                lambda: ensure(provider, key_id("new"), Algorithm.es256, Purpose.token_signing),
            ):
                begun = time.monotonic()
                with pytest.raises(TensorGuardError) as refused:
                    use()
                assert isinstance(refused.value, KeyCustodyDown)
                assert time.monotonic() - begun < 5
        put_back()
        self_test.run(provider)
        assert provider.unwrap(KEK, self.wrapped, CONTEXT) == b"k" * 32
        provider.verify(KEY, b"message", provider.sign(KEY, b"message"))
        with pytest.raises(KeyNotFound):
            provider.describe(key_id("new"))

    def test_a_wrong_pin_on_return_is_tried_once(self) -> None:
        good = softhsm().pin.read_text()
        try:
            softhsm().pin.write_text("000000")
            with pytest.raises(KeyCustodyDown):
                self.opened.sign(KEY, b"message")
            put_back()
            for _ in range(20):  # more would lock the token
                with pytest.raises(KeyCustodyDenied):
                    self.opened.sign(KEY, b"message")
        finally:
            softhsm().pin.write_text(good)
        time.sleep(REOPEN)
        self.opened.sign(KEY, b"message")


# --- threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("run", range(20))
def test_eight_threads_sign_and_unwrap(provider: Pkcs11KeyProvider, run: int) -> None:
    """300 signatures by each of 8 threads: no crash of the module, no mixed-up result."""
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    public = provider.public_key(KEY)

    def work(thread: int) -> None:
        for count in range(300):
            message = f"{run} {thread} {count}".encode()
            value = provider.sign(KEY, message).value
            if count % 10 == 0:
                public.verify(message, value)
                assert provider.unwrap(KEK, wrapped, CONTEXT) == b"k" * 32

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_threads_with_tampered_blobs_do_not_disturb_each_other(
    provider: Pkcs11KeyProvider,
) -> None:
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    forged = wrapped[:-1] + bytes([wrapped[-1] ^ 1])

    def work(thread: int) -> None:
        for _ in range(50):
            if thread % 2:
                with pytest.raises(WrongContext):
                    provider.unwrap(KEK, forged, CONTEXT)
            else:
                assert provider.unwrap(KEK, wrapped, CONTEXT) == b"k" * 32

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_large_messages_are_signed(provider: Pkcs11KeyProvider) -> None:
    message = secrets.token_bytes(200_000)
    for key in (KEY, HYBRID):
        provider.verify(key, message, provider.sign(key, message))


def test_changes_of_another_provider_are_noticed(provider: Pkcs11KeyProvider) -> None:
    clock = Clock()
    other = Pkcs11KeyProvider(
        provider._token, provider._prefix, now=clock, monotonic=clock.monotonic
    )
    wrapped = other.wrap(KEK, b"k" * 32, CONTEXT)
    provider.rotate(KEK)
    assert other.unwrap(KEK, provider.wrap(KEK, b"n" * 32, CONTEXT), CONTEXT) == b"n" * 32
    assert other.unwrap(KEK, wrapped, CONTEXT) == b"k" * 32
