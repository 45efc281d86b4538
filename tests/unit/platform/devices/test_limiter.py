"""Failed enrolments slow their sender down, nobody else, and take bounded memory."""

from datetime import UTC, datetime, timedelta

import pytest

from tensorguard.errors import NotFound, Throttled
from tensorguard.platform.devices import limiter
from tensorguard.platform.devices.limiter import FailureLimiter

START = datetime(2030, 1, 1, tzinfo=UTC)


def fail(failures, client, moment=START):
    with pytest.raises(NotFound), failures.attempt(client, lambda: moment):
        raise NotFound("no such token")


def test_only_failures_count():
    failures = FailureLimiter(free=2)
    for _ in range(10):
        with failures.attempt("a", lambda: START):
            pass
    fail(failures, "a")
    fail(failures, "a")
    with pytest.raises(Throttled) as refused, failures.attempt("a", lambda: START):
        pass
    assert 0 < refused.value.retry_after <= 61
    fail(failures, "b")


def test_the_window_passes():
    failures = FailureLimiter(free=1)
    fail(failures, "a")
    fail(failures, "a", START + timedelta(minutes=1))


def test_the_oldest_client_makes_room():
    failures = FailureLimiter(free=1)
    for number in range(limiter.MAX_CLIENTS + 5):
        fail(failures, f"c{number}")
    assert len(failures._clients) == limiter.MAX_CLIENTS
    fail(failures, "c0")
