"""Passwords: a policy for new ones, Argon2id (RFC 9106) for all, and the same time for no account.

The policy follows NIST SP 800-63B: length and no well-known word, no rules about character kinds.
"""

from __future__ import annotations

import threading
from typing import Final

from argon2 import PasswordHasher, profiles
from argon2.exceptions import InvalidHashError, VerificationError

from tensorguard.errors import InputError, Unauthenticated, Unavailable

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 1024  # characters; Argon2 reads every byte
MIN_DISTINCT: Final = 5  # "aaaaaaaaaaaa" and "121212121212" are long, not strong
WAIT_SECONDS: Final = 10.0
AT_ONCE: Final = 4  # hashes in work; each takes 64 MiB

_TRIVIAL: Final = (
    "123456789",
    "abcdefghij",
    "administrator",
    "changeme",
    "correcthorsebatterystaple",
    "iloveyou",
    "letmein",
    "passwor",
    "passw0rd",
    "p@ssw0rd",
    "qwertyuiop",
    "qwerty",
    "tensorguard",
    "trustno1",
    "welcome",
)
_MAX_BESIDE: Final = 6  # a trivial word with this little around it stays trivial

_COSTS: Final = profiles.RFC_9106_LOW_MEMORY
# A well-formed hash that no password has: checking against it costs what any check costs.
NOBODY: Final = (
    f"$argon2id$v={_COSTS.version}$m={_COSTS.memory_cost},t={_COSTS.time_cost},"
    f"p={_COSTS.parallelism}${'A' * 22}${'A' * 43}"
)


class WeakPassword(InputError):
    code = "weak_password"
    status = 422
    remedy = f"Choose a passphrase of at least {MIN_LENGTH} characters that nobody would list."


def check_policy(password: str, *, username: str) -> str:
    """Return `password` if it may become one. Raises `WeakPassword`."""
    plain = password.casefold()
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise WeakPassword(f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters")
    if len(set(plain)) < MIN_DISTINCT:
        raise WeakPassword("the password repeats a few characters")
    name = username.casefold()
    if plain in {name, name[::-1], name * (len(plain) // len(name))}:
        raise WeakPassword("the password is the username")
    for word in (name, *_TRIVIAL):
        if word in plain and len(plain) - len(word) <= _MAX_BESIDE:
            raise WeakPassword("the password is a well-known word with little around it")
    return password


class Passwords:
    """Argon2id with the RFC 9106 low-memory profile, a few at a time."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher.from_parameters(_COSTS)
        self._slots = threading.BoundedSemaphore(AT_ONCE)

    def hash(self, password: str) -> str:
        """Return the encoded hash with a fresh salt."""
        with _Slot(self._slots):
            return self._hasher.hash(password)

    def verify(self, stored: str | None, password: str) -> None:
        """Return if `password` is the one of `stored`; None takes as long and never matches.

        Raises `Unauthenticated`.
        """
        with _Slot(self._slots):
            try:
                self._hasher.verify(stored or NOBODY, password)
            except (VerificationError, InvalidHashError) as error:
                raise Unauthenticated("the credential is not valid") from error
        if stored is None:
            raise Unauthenticated("the credential is not valid")

    def is_outdated(self, stored: str) -> bool:
        """Say whether `stored` was made with other costs than today's."""
        return self._hasher.check_needs_rehash(stored)


class _Slot:
    def __init__(self, slots: threading.BoundedSemaphore) -> None:
        self._slots = slots

    def __enter__(self) -> None:
        if not self._slots.acquire(timeout=WAIT_SECONDS):
            raise Unavailable("too many sign-ins are in work", retry_after=int(WAIT_SECONDS))

    def __exit__(self, *_: object) -> None:
        self._slots.release()
