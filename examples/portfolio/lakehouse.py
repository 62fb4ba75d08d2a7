"""The lakehouse of the example on one machine: a private Postgres, and DuckLake in place of Databricks.

One Postgres server holds what would be three services: the database `sales` (the shop's source), the database `lake`
(the catalog of DuckLake, whose data are Parquet files in a folder), and the database `meshgate` (SQLMesh's state in the
schema `sqlmesh`, the ledger in the schema `meshgate`).

Around any command, or until Ctrl-C (then it prints what another shell needs)::

    python lakehouse.py -- sqlmesh -p upstream plan --execution-time "2026-01-05 02:00:00"
    python lakehouse.py
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import duckdb
import source

from meshgate import local_postgres
from meshgate.local_postgres import LocalPostgres

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

HERE = Path(__file__).resolve().parent
HOME = HERE / ".meshgate"
"""Where `ledger: {url: local}` in meshgate.yaml has its server too."""

SOURCE, LAKE, STATE = "sales", "lake", "meshgate"


@dataclass(frozen=True)
class LakeFacts:
    """What it takes to attach the DuckLake.

    Attributes:
        catalog: The URL of the catalog's Postgres database, with the password.
        data: The folder of the Parquet files.
    """

    catalog: str = field(repr=False)
    data: Path

    def connect(self, *, read_only: bool = True) -> duckdb.DuckDBPyConnection:
        """Open a DuckDB with the lake attached as `lake`: the name that the views in it use."""
        import_extensions()
        connection = duckdb.connect()
        connection.execute("LOAD ducklake; LOAD postgres; SET TimeZone = 'UTC'")
        options = f"DATA_PATH '{self.data}'" + (", READ_ONLY" if read_only else "")
        connection.execute(f"ATTACH 'ducklake:postgres:{self.catalog}' AS lake ({options})")
        return connection


class Lakehouse:
    """A user of the lakehouse in one folder; its server runs at least until `close`.

    Attributes:
        folder: Where everything lies.
        server: The private Postgres.
        source: The URL of the shop's database.
        state: The URL of the database of SQLMesh's state and of the ledger.
        lake: What it takes to attach the DuckLake.
    """

    def __init__(self, folder: Path, server: LocalPostgres) -> None:
        self.folder = folder
        self.server = server
        self.source = server.url(SOURCE)
        self.state = server.url(STATE)
        self.lake = LakeFacts(server.url(LAKE), folder / "lake")

    @classmethod
    def start(cls, folder: Path = HOME) -> Lakehouse:
        """Attach to the lakehouse of `folder`; make what is missing: server, databases, source tables, extensions.

        Raises:
            meshgate.errors.LocalPostgresError: There are no binaries, or the server does not start.
        """
        folder = folder.resolve()
        server = LocalPostgres.start(folder)
        try:
            for database in (SOURCE, LAKE, STATE):
                server.ensure_database(database)
            lakehouse = cls(folder, server)
            lakehouse.lake.data.mkdir(parents=True, exist_ok=True)
            source.create_tables(lakehouse.source)
            import_extensions()
        except BaseException:
            server.close()
            raise
        return lakehouse

    def environment(self) -> dict[str, str]:
        """The variables that the two config.yaml, meshgate.yaml and the fake source read."""
        return self.server.environment() | {
            "PORTFOLIO_LAKE": str(self.lake.data),
            "SOURCE_URL": self.source,
            "MESHGATE_LEDGER_URL": self.state,
            "SQLMESH__DISABLE_ANONYMIZED_ANALYTICS": "true",
        }

    def close(self) -> None:
        """Stop using the lakehouse; safe to repeat."""
        self.server.close()

    def destroy(self) -> None:
        """Delete the lakehouse with everything in it.

        Raises:
            meshgate.errors.LocalPostgresError: Somebody else uses it; nothing was deleted.
        """
        self.server.destroy()
        shutil.rmtree(self.lake.data, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def import_extensions() -> None:
    """Install DuckDB's extensions `ducklake` and `postgres` for this user, from the wheels if they are there.

    DuckDB keeps them in `~/.duckdb`. So one call makes `extensions:` in config.yaml load without a network, also for
    the plain `sqlmesh` command.
    """
    with duckdb.connect() as connection:
        for name in ("ducklake", "postgres_scanner"):
            state = connection.execute(
                "SELECT installed FROM duckdb_extensions() WHERE extension_name = ?", [name]
            )
            if state.fetchone() == (True,):
                continue
            try:
                from duckdb_extensions import import_extension

                import_extension(name, con=connection)
            except ImportError:
                # No wheel for this platform: DuckDB fetches it from its own repository.
                connection.execute(f"INSTALL {name}")


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted, or while a command runs; returns the exit code."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    if cut > 1 or argv[:1] == ["--help"]:
        sys.stderr.write("usage: python lakehouse.py [FOLDER] [-- COMMAND...]\n")
        return 2
    with Lakehouse.start(Path(argv[0]) if cut else HOME) as lakehouse:
        os.environ.update(lakehouse.environment())
        if not argv[cut + 1 :]:
            own = lakehouse.environment().keys() - lakehouse.server.environment().keys()
            sys.stdout.writelines(f"export {name}={shlex.quote(os.environ[name])}\n" for name in sorted(own))
        return local_postgres.main([str(lakehouse.folder), *argv[cut:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
