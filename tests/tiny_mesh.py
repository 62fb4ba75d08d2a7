"""A mesh of two tiny SQLMesh projects for end-to-end tests: real SQLMesh, DuckLake or Postgres, a real ledger.

`upstream` (5 minutes): bronze.events from the source, silver.events from it. `downstream` (hourly): gold.hourly, the
count and the sum of an hour. The oracle is the source itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import psycopg2
from psycopg2.extras import execute_values

from meshgate.interval import Interval
from meshgate.mesh import Mesh

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshgate.local_postgres import LocalPostgres

DAY = datetime(2026, 1, 5, tzinfo=UTC)
REPOSITORY = Path(__file__).parents[1]

BRONZE = """
MODEL (name bronze.events, kind INCREMENTAL_BY_TIME_RANGE (time_column ts, partition_by_time_column FALSE),
  cron '*/5 * * * *', audits (value_is_positive));
SELECT id, ts, value FROM {source}.events WHERE ts >= @start_dt AND ts < @end_dt
"""
SILVER = """
MODEL (name silver.events, kind INCREMENTAL_BY_TIME_RANGE (time_column ts, partition_by_time_column FALSE),
  cron '*/5 * * * *');
SELECT id, ts, value FROM bronze.events WHERE ts >= @start_dt AND ts < @end_dt
"""
GOLD = """
MODEL (name gold.hourly, kind INCREMENTAL_BY_TIME_RANGE (time_column hour, partition_by_time_column FALSE),
  cron '@hourly');
SELECT DATE_TRUNC('hour', ts)::TIMESTAMP AS hour, COUNT(*)::BIGINT AS events, SUM(value)::BIGINT AS total
FROM silver.events WHERE ts >= @start_dt AND ts < @end_dt GROUP BY 1
"""
AUDIT = "AUDIT (name value_is_positive); SELECT * FROM @this_model WHERE value < 0"


def at(minutes: float) -> datetime:
    """The instant so many minutes after the mesh's first."""
    return DAY + timedelta(minutes=minutes)


def span(start: float, end: float) -> Interval:
    """An interval, in minutes after the mesh's first instant."""
    return Interval(at(start), at(end))


class TinyMesh:
    """Two projects in a folder, with databases of their own.

    Args:
        folder: Where the projects and the lake's files go.
        postgres: The server for source, lake catalog, state and ledger.
        engine: `ducklake`, or `postgres` where delete+insert must be seen to double rows.
        settings: Added to the `ledger:` part of meshgate.yaml.
        policies: Added to each project's part of it. Failures are not left alone, unless it says so: tests run twice
            for one instant.
    """

    def __init__(
        self,
        folder: Path,
        postgres: LocalPostgres,
        *,
        engine: str = "ducklake",
        settings: dict[str, str] | None = None,
        policies: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.postgres = postgres
        self.engine = engine
        self.key = uuid.uuid4().hex[:12]
        self.source_url = postgres.ensure_database(f"src_{self.key}")
        self.state_url = postgres.ensure_database(f"led_{self.key}")
        self.lake_url = postgres.ensure_database(f"lake_{self.key}")
        self.data.mkdir(parents=True)
        self.source = "raw" if engine == "postgres" else "source.public"
        schema = "raw" if engine == "postgres" else "public"
        self.source_database = self.lake_url if engine == "postgres" else self.source_url
        self.sql(
            self.source_database,
            f"CREATE SCHEMA IF NOT EXISTS {schema}; "
            f"CREATE TABLE {schema}.events (id BIGINT PRIMARY KEY, ts TIMESTAMP NOT NULL, value BIGINT NOT NULL)",
        )
        self.schema = schema
        self._write_projects(settings or {}, {"retry": {"first": "0s"}, **(policies or {})})

    def _connection(self) -> dict[str, Any]:
        pg = self.postgres
        facts = {"host": pg.host, "port": pg.port, "user": pg.user, "password": pg.password}
        if self.engine == "postgres":
            return {"type": "postgres", **facts, "database": f"lake_{self.key}"}
        words = " ".join(f"{k}={v}" for k, v in facts.items())
        return {
            "type": "duckdb",
            "extensions": ["ducklake", "postgres"],
            "connector_config": {"TimeZone": "UTC"},
            "catalogs": {
                "lake": {
                    "type": "ducklake",
                    "path": f"postgres:{words} dbname=lake_{self.key}",
                    "data_path": str(self.data),
                },
                "source": {"type": "postgres", "path": f"{words} dbname=src_{self.key}", "read_only": True},
            },
        }

    def _write_projects(self, settings: dict[str, str], policies: dict[str, Any]) -> None:
        pg = self.postgres
        for project in ("upstream", "downstream"):
            config = {
                "project": project,
                "gateways": {
                    "local": {
                        "connection": self._connection(),
                        "state_connection": {
                            "type": "postgres", "host": pg.host, "port": pg.port, "user": pg.user,
                            "password": pg.password, "database": f"led_{self.key}",
                        },
                    }
                },
                "default_gateway": "local",
                "model_defaults": {
                    "dialect": "postgres" if self.engine == "postgres" else "duckdb", "start": "2026-01-05",
                },
                "disable_anonymized_analytics": True,
            }  # fmt: skip
            root = self.folder / project
            for part in ("models", "audits"):
                (root / part).mkdir(parents=True)
            (root / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        self.write("upstream", "bronze", BRONZE.format(source=self.source))
        self.write("upstream", "silver", SILVER)
        self.write("downstream", "gold", GOLD)
        (self.folder / "upstream/audits/positive.sql").write_text(AUDIT)
        mesh = {
            "ledger": {"url": self.state_url, **settings},
            "projects": [
                {"name": "upstream", "path": "upstream", "schedule": "*/5 * * * *", **policies},
                {"name": "downstream", "path": "downstream", "schedule": "0 * * * *", **policies},
            ],
        }
        (self.folder / "meshgate.yaml").write_text(json.dumps(mesh))

    def write(self, project: str, name: str, sql: str) -> None:
        """Write or replace a model's file."""
        (self.folder / project / "models" / f"{name}.sql").write_text(sql)

    # The source and the oracle

    @staticmethod
    def sql(url: str, statement: str, rows: list[tuple[Any, ...]] | None = None) -> list[tuple[Any, ...]]:
        """Run a statement in one of the Postgres databases."""
        connection = psycopg2.connect(url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '20s'")
                if rows is not None:
                    execute_values(cursor, statement, rows)
                    return []
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    @staticmethod
    def sql_outside(url: str, statement: str) -> None:
        """Run a statement that must not be in a transaction."""
        connection = psycopg2.connect(url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()

    def feed(self, start: float, end: float, *, every: float = 1.0) -> None:
        """Write one event a minute (by default) between two instants, in minutes; doing it twice changes nothing."""
        count = int((end - start) / every)
        stamps = [start + i * every for i in range(count)]
        rows = [(int(m * 60), at(m).replace(tzinfo=None), 1 + int(m) % 7) for m in stamps]
        self.sql(
            self.source_database,
            f"INSERT INTO {self.schema}.events VALUES %s ON CONFLICT (id) DO NOTHING",
            rows,
        )

    def poison(self, minute: float) -> None:
        """Make the event of a minute one that the audit rejects."""
        self._set(minute, "-abs(value)")

    def repair(self, minute: float) -> None:
        """Make it good again."""
        self._set(minute, "abs(value)")

    def change(self, start: float, end: float) -> None:
        """Mend the source between two instants, in minutes: what was read of it before is wrong now."""
        first, last = (at(m).replace(tzinfo=None) for m in (start, end))
        change = f"UPDATE {self.schema}.events SET value = value + 100"
        self.sql(self.source_database, f"{change} WHERE ts >= '{first}' AND ts < '{last}'")

    def _set(self, minute: float, value: str) -> None:
        self.sql(
            self.source_database,
            f"UPDATE {self.schema}.events SET value = {value} WHERE id = {int(minute * 60)}",
        )

    def expected(self, upto: float) -> dict[str, list[tuple[Any, ...]]]:
        """What the tables hold when everything before an instant is done, straight from the source."""
        rows = self.sql(
            self.source_database,
            f"SELECT id, ts, value FROM {self.schema}.events WHERE ts < '{at(upto).replace(tzinfo=None)}' ORDER BY id",
        )
        hours: dict[datetime, tuple[int, int]] = {}
        for _, stamp, value in rows:
            hour = stamp.replace(minute=0, second=0)
            if hour + timedelta(hours=1) <= at(upto).replace(tzinfo=None):
                count, total = hours.get(hour, (0, 0))
                hours[hour] = (count + 1, total + value)
        return {
            "bronze.events": rows,
            "silver.events": rows,
            "gold.hourly": [(h, *facts) for h, facts in sorted(hours.items())],
        }

    def table(self, name: str) -> list[tuple[Any, ...]]:
        """The rows of a table of the warehouse, in order."""
        if self.engine == "postgres":
            return self.sql(self.lake_url, f"SELECT * FROM {name} ORDER BY 1")
        with duckdb.connect() as connection:
            connection.execute("LOAD ducklake; LOAD postgres")
            pg = self.postgres
            connection.execute(
                f"ATTACH 'ducklake:postgres:host={pg.host} port={pg.port} user={pg.user} password={pg.password} "
                f"dbname=lake_{self.key}' AS lake (DATA_PATH '{self.data}', READ_ONLY)"
            )
            return connection.execute(f"SELECT * FROM lake.{name} ORDER BY 1").fetchall()

    def check(self, upto: float) -> None:
        """Assert that every table equals the one computed from the source."""
        for name, rows in self.expected(upto).items():
            assert self.table(name) == rows, name

    # meshgate, its command line, and plain SQLMesh

    @contextmanager
    def mesh(self) -> Iterator[Mesh]:
        """The mesh, opened; its ledger is made if there is none."""
        with Mesh.open(self.folder, check=False) as mesh:
            mesh.migrate()
            yield mesh

    def command(self, *arguments: str, python: str | None = None) -> list[str]:
        """The command line of a `meshgate` process, or of one that runs `python` first."""
        prelude = f"{python}\n" if python else ""
        code = f"{prelude}from meshgate.cli import main\nmain()"
        return [sys.executable, "-c", code, "--config", str(self.folder), *arguments]

    def cli(
        self, *arguments: str, python: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `meshgate` as a process of its own."""
        done = subprocess.run(
            self.command(*arguments, python=python),
            capture_output=True, text=True, timeout=120, check=False, env=self.environment(),
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    @staticmethod
    def environment() -> dict[str, str]:
        """What a process of the mesh needs."""
        return {**os.environ, "SQLMESH__DISABLE_ANONYMIZED_ANALYTICS": "true", "COLUMNS": "160"}

    @contextmanager
    def plain(self, *projects: str, load: bool = False) -> Iterator[Any]:
        """A plain SQLMesh context, as somebody else would use it."""
        from sqlmesh.core.console import NoopConsole, get_console, set_console
        from sqlmesh.core.context import Context

        before = get_console()
        set_console(NoopConsole())
        context = Context(paths=[str(self.folder / p) for p in projects], load=load)
        try:
            yield context
        finally:
            context.close()
            set_console(before)
