"""Fixtures that tests share. PostgreSQL that is missing is an error, never a skip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_socket

if TYPE_CHECKING:  # the platform is imported by the tests that want one
    from support.platform import Clock, Databases, Platform
    from support.postgresql import Cluster
    from tensorguard.settings import Settings

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray binds to 127.0.0.1; read on import
BACKENDS = ("sqlite", "postgresql")
UNIT = Path(__file__).parent / "unit"


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Unit tests open no socket but Unix ones (an event loop has a pair of its own)."""
    if item.path.is_relative_to(UNIT) and not item.get_closest_marker("enable_socket"):
        pytest_socket.disable_socket(allow_unix_socket=True)
    else:
        pytest_socket.enable_socket()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """One cluster per test process."""
    from support.postgresql import cluster

    with cluster() as running_cluster:
        yield running_cluster


@pytest.fixture(scope="session")
def sqlite_databases(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    from support.platform import Databases

    return Databases(tmp_path_factory.mktemp("sqlite"), None)


@pytest.fixture(scope="session")
def postgresql_databases(
    tmp_path_factory: pytest.TempPathFactory, postgresql: Cluster
) -> Databases:
    from support.platform import Databases

    return Databases(tmp_path_factory.mktemp("postgresql"), postgresql)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn."""
    return request.param


def _databases(request: pytest.FixtureRequest, backend: str) -> Databases:
    return request.getfixturevalue(f"{backend}_databases")


@pytest.fixture
def database_url(request: pytest.FixtureRequest, backend: str) -> Iterator[str]:
    """The URL of a fresh database at the newest migration, on each kind in turn."""
    with _databases(request, backend).one(backend, migrated=True) as url:
        yield url


@pytest.fixture
def empty_database_url(request: pytest.FixtureRequest, backend: str) -> Iterator[str]:
    """The URL of a fresh database without any table, on each kind in turn."""
    with _databases(request, backend).one(backend, migrated=False) as url:
        yield url


@pytest.fixture
def sqlite_url(sqlite_databases: Databases) -> Iterator[str]:
    """The URL of a fresh migrated SQLite database, for tests that need only one kind."""
    with sqlite_databases.one("sqlite", migrated=True) as url:
        yield url


@pytest.fixture
def clock() -> Clock:
    from support.platform import Clock

    return Clock()


@pytest.fixture
def platform_settings(database_url: str, tmp_path: Path) -> Settings:
    from support.platform import settings_for

    return settings_for(database_url, tmp_path / "home")


@pytest.fixture
def platform(platform_settings: Settings, clock: Clock) -> Iterator[Platform]:
    """A running platform, on each kind of database in turn."""
    from support.platform import running

    with running(platform_settings, clock) as started:
        yield started


@pytest.fixture
def sqlite_platform(sqlite_url: str, tmp_path: Path, clock: Clock) -> Iterator[Platform]:
    """A running platform on SQLite, for tests where the database makes no difference."""
    from support.platform import running, settings_for

    with running(settings_for(sqlite_url, tmp_path / "home"), clock) as started:
        yield started
