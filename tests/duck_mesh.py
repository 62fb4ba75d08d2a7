"""The smallest mesh of two real SQLMesh projects: one DuckDB file, state and ledger in one Postgres database.

Faster than `tiny_mesh`, for one process only, and with whatever models a test writes down. The source is the table
`raw.events` in the same file: `id`, `ts`, `value`, one row a minute.
"""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import duckdb

from meshgate.mesh import Mesh
from tiny_mesh import at

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

Rows = list[tuple[Any, ...]]


def naive(minutes: float) -> datetime:
    """An instant as DuckDB's TIMESTAMP has it."""
    return at(minutes).replace(tzinfo=None)


def ranged(
    name: str, query: str, *, kind: str = "", model: str = "", cron: str = "@hourly", column: str = "ts"
) -> str:
    """The file of an incremental-by-time-range model."""
    return (
        f"MODEL (name {name}, kind INCREMENTAL_BY_TIME_RANGE (time_column {column}, partition_by_time_column FALSE"
        f"{', ' + kind if kind else ''}), cron '{cron}'{', ' + model if model else ''});\n{query}\n"
    )


def copied(name: str, parent: str, **facts: str) -> str:
    """A model that takes over the rows of an interval as they are."""
    return ranged(name, f"SELECT id, ts, value FROM {parent} WHERE ts >= @start_dt AND ts < @end_dt", **facts)


class DuckMesh:
    """Two projects, `upstream` and `downstream`, in a folder, or more.

    Args:
        folder: Where everything goes.
        postgres: The server for state and ledger.
        upstream: Files of that project by their path in it.
        downstream: The same.
        more: The same of further projects, by name.
        settings: What each project's configuration has besides, by project.
    """

    def __init__(
        self,
        folder: Path,
        postgres: LocalPostgres,
        *,
        upstream: Mapping[str, str],
        downstream: Mapping[str, str] | None = None,
        more: Mapping[str, Mapping[str, str]] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.folder = folder
        self.postgres = postgres
        self.key = uuid.uuid4().hex[:12]
        self.state_url = postgres.ensure_database(f"duck_{self.key}")
        self.warehouse = folder / "house.duckdb"
        self.sql(
            "CREATE SCHEMA raw; CREATE TABLE raw.events (id BIGINT PRIMARY KEY, ts TIMESTAMP, value BIGINT)"
        )
        files = {"upstream": upstream, "downstream": downstream or {}, **(more or {})}
        self.projects = tuple(files)
        for project, texts in files.items():
            self.write(
                project,
                "config.yaml",
                json.dumps(self.config(project) | dict((settings or {}).get(project, {}))),
            )
            for path, text in texts.items():
                self.write(project, path, text)
        self.write_mesh({})

    def config(self, project: str) -> dict[str, Any]:
        """The configuration of a SQLMesh project."""
        pg = self.postgres
        state = {
            "type": "postgres",
            "host": pg.host,
            "port": pg.port,
            "user": pg.user,
            "password": pg.password,
        }
        return {
            "project": project,
            "gateways": {
                "local": {
                    "connection": {"type": "duckdb", "database": str(self.warehouse)},
                    "state_connection": {**state, "database": f"duck_{self.key}"},
                }
            },
            "default_gateway": "local",
            "model_defaults": {"dialect": "duckdb", "start": "2026-01-05"},
            "disable_anonymized_analytics": True,
        }

    def write(self, project: str, path: str, text: str) -> None:
        """Write or replace a file of a project; a model goes by its name alone."""
        file = self.folder / project / (path if "." in path else f"models/{path}.sql")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def write_mesh(self, projects: Mapping[str, Mapping[str, Any]], **ledger: Any) -> None:
        """Write meshgate.yaml, with what each project has besides its name and path."""
        # Tests run twice for one instant: what failed is not left alone, unless they say so.
        at_once = {"retry": {"first": "0s"}}
        listed = [{"name": p, "path": p, **at_once, **projects.get(p, {})} for p in self.projects]
        mesh = {"ledger": {"url": self.state_url, **ledger}, "projects": listed}
        (self.folder / "meshgate.yaml").write_text(json.dumps(mesh))

    def sql(self, statement: str, parameters: list[Any] | None = None) -> Rows:
        """Run a statement in the warehouse."""
        with duckdb.connect(str(self.warehouse)) as connection:
            return connection.execute(statement, parameters).fetchall()

    def feed(self, start: int, end: int) -> None:
        """One row a minute, its value 1."""
        rows = ", ".join(f"({m}, '{naive(m)}', 1)" for m in range(start, end))
        self.sql(f"INSERT OR IGNORE INTO raw.events VALUES {rows}")

    def set_value(self, minute: int, value: int) -> None:
        """Change the row of a minute in the source."""
        self.sql("UPDATE raw.events SET value = ? WHERE id = ?", [value, minute])

    def table(self, name: str) -> Rows:
        """The rows of a table, in order of its first columns."""
        return self.sql(f"SELECT * FROM {name} ORDER BY ALL")

    @contextmanager
    def mesh(self) -> Iterator[Mesh]:
        """The mesh, opened; its ledger is made if there is none."""
        with Mesh.open(self.folder, check=False) as mesh:
            mesh.migrate()
            yield mesh
