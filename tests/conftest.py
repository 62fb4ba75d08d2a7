"""Fixtures that many test modules share: one private Postgres a session, a fresh ledger a test."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ledger_scene import empty
from meshgate.db import Database, migrate
from meshgate.errors import LocalPostgresError
from meshgate.ledger import Ledger
from meshgate.local_postgres import LocalPostgres
from meshgate.postgres_server import FSYNC_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def packages() -> Iterator[None]:
    """SQLMesh asks at each plan which packages are installed, for half a second: here they stay what they are."""
    named = "importlib.metadata" if sys.version_info >= (3, 12) else "importlib_metadata"
    installed = importlib.import_module(named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(installed, "packages_distributions", functools.cache(installed.packages_distributions))
        yield


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[LocalPostgres]:
    """A server of this session's own, shared by its workers; or that of the folder in MESHGATE_TEST_POSTGRES."""
    root: Path = tmp_path_factory.getbasetemp()
    folder = (root if worker_id == "master" else root.parent) / "postgres"
    folder = Path(os.environ.get("MESHGATE_TEST_POSTGRES", folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FSYNC_VARIABLE, "off")
        server = LocalPostgres.start(folder)
    yield server
    # The last worker to leave takes it down.
    with suppress(LocalPostgresError):
        server.destroy()


@pytest.fixture
def database_url(postgres: LocalPostgres) -> str:
    """The URL of a new, empty database."""
    return postgres.ensure_database(f"test_{uuid.uuid4().hex}")


@pytest.fixture(scope="session")
def ledger_url(postgres: LocalPostgres) -> str:
    """The URL of a ledger that many tests use one after the other; its sessions may set its clock."""
    name = f"ledger_{uuid.uuid4().hex}"
    url = postgres.ensure_database(name)
    database = Database(url)
    migrate(database, test_clock=True)
    # The server's user is called like the schema, which would hide that a function names something by halves.
    database.execute(f'ALTER DATABASE "{name}" SET search_path = pg_catalog')
    database.close()
    return url


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """An empty ledger whose clock a session may set: `SET meshgate.now = '2026-01-05 04:00Z'`."""
    database = Database(ledger_url)
    empty(database)
    yield Ledger(database)
    database.close()


@pytest.fixture(scope="session")
def extensions() -> None:
    """DuckDB's extensions, installed for this user from their wheels: nothing is fetched."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "portfolio"))
    try:
        lakehouse = importlib.import_module("lakehouse")
        lakehouse.import_extensions()
    finally:
        sys.path.pop(0)
