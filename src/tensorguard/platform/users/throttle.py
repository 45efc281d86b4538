"""Sign-in gets slower with every failure: per account and per client address, across restarts.

An account that exists counts on its own row; one that does not counts in `login_failure`, so that
both answer alike. Counting of real accounts cannot be pushed out by flooding the table.

Lock order, everywhere: the address, then the account, then the audit trail.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from tensorguard.errors import Throttled
from tensorguard.platform.db.tables.people import LoginFailure, UserAccount
from tensorguard.platform.db.upsert import insert_if_absent
from tensorguard.platform.secrets import Secrets

ACCOUNT_FREE: Final = 5  # failures before an account locks
ADDRESS_FREE: Final = 20  # failures before an address locks; many people share one
FIRST_LOCK: Final = timedelta(seconds=30)  # doubles with each further failure
LONGEST_LOCK: Final = timedelta(minutes=15)
FORGET_AFTER: Final = timedelta(hours=1)
MAX_ROWS: Final = 10_000  # addresses and absent accounts that are remembered
PURGE_BATCH: Final = 100
IPV6_NETWORK: Final = 64  # one subscriber has that many bits to rotate through


def lock_time(failures: int, free: int) -> timedelta:
    """Return for how long the given number of failures locks."""
    if failures < free:
        return timedelta(0)
    doubled = FIRST_LOCK * (1 << min(failures - free, 16))
    return min(doubled, LONGEST_LOCK)


def network(address: str) -> str:
    """Return what one client can hold: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if parsed.version == 4:  # noqa: PLR2004 - IPv4
        return str(parsed)
    return str(ipaddress.ip_network((parsed, IPV6_NETWORK), strict=False))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to sign in, with the counters that it moves already locked."""

    account: LoginFailure | UserAccount
    address: LoginFailure
    now: datetime

    def check(self) -> None:
        """Return if the attempt may be made. Raises `Throttled`."""
        waits = [
            (row.locked_until - self.now).total_seconds()
            for row in (self.address, self.account)
            if row.locked_until is not None and row.locked_until > self.now
        ]
        if waits:
            raise Throttled("too many failed sign-ins", retry_after=int(max(waits)) + 1)

    def failed(self) -> bool:
        """Count a failure; return whether it locked the account."""
        self.address.failures += 1
        self.address.last = self.now
        wait = lock_time(self.address.failures, ADDRESS_FREE)
        self.address.locked_until = self.now + wait if wait else None
        account = self.account
        if isinstance(account, UserAccount):
            failures = account.failed_logins = account.failed_logins + 1
        else:
            failures = account.failures = account.failures + 1
            account.last = self.now
        wait = lock_time(failures, ACCOUNT_FREE)
        account.locked_until = self.now + wait if wait else None
        return bool(wait)

    def succeeded(self) -> None:
        """Forget the failures of the account. Those of the address stay: it may hold others."""
        if isinstance(self.account, UserAccount):
            self.account.failed_logins = 0
            self.account.locked_until = None


class Throttle:
    """The counters, in the caller's transaction."""

    def __init__(self, session: Session, secrets: Secrets, *, now: datetime) -> None:
        self._session = session
        self._secrets = secrets
        self._now = now

    def lock_address(self, address: str) -> LoginFailure:
        """Return the counter of a client address, locked."""
        self._purge()
        return self._counter(f"address\0{network(address)}")

    def absent_account(self, tenant: str, username: str) -> LoginFailure:
        """Return the counter of an account that does not exist, locked."""
        return self._counter(f"account\0{tenant}\0{username}")

    def _counter(self, name: str) -> LoginFailure:
        key = self._secrets.mac("throttle", name.encode()).hex()
        values = {"key": key, "failures": 0, "last": self._now, "locked_until": None}
        insert_if_absent(self._session, LoginFailure, values)
        row = self._session.get_one(LoginFailure, key, with_for_update=True, populate_existing=True)
        if self._now - row.last >= FORGET_AFTER:
            row.failures, row.locked_until = 0, None
        return row

    def _purge(self) -> None:
        old = (
            select(LoginFailure.key)
            .where(LoginFailure.last < self._now - FORGET_AFTER)
            .order_by(LoginFailure.last)
            .limit(PURGE_BATCH)
            .with_for_update(skip_locked=True)
        )
        extra = (
            select(LoginFailure.key)
            .order_by(LoginFailure.last.desc())
            .offset(MAX_ROWS)
            .limit(PURGE_BATCH)
            .with_for_update(skip_locked=True)
        )
        for query in (old, extra):
            keys = list(self._session.scalars(query))
            if keys:
                self._session.execute(delete(LoginFailure).where(LoginFailure.key.in_(keys)))
