"""A mesh of three projects whose boundaries form a diamond: crm → sales → finance, and crm → finance.

`sales` is downstream and upstream at once. `finance` may have a SQLMesh state of its own, where what it reads of the
others are tables that nobody makes. Real SQLMesh, DuckLake, Postgres; one mesh is built, and copies of its files are changed.
"""

from __future__ import annotations

import json
import shutil
import uuid
from typing import TYPE_CHECKING, Any

from meshgate.mesh import Mesh
from tiny_mesh import TinyMesh, at

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

PROJECTS = ("crm", "sales", "finance")
SCHEDULES = {"crm": "*/5 * * * *", "sales": "*/15 * * * *", "finance": "10 * * * *"}
BUILT = 125
"""The minute at which everything was deployed and evaluated."""

_BY_TIME = "kind INCREMENTAL_BY_TIME_RANGE (time_column {0}, partition_by_time_column FALSE{1})"
_READ = "ts >= @start_dt AND ts < @end_dt"


def by_time(name: str, cron: str, query: str, *, column: str = "ts", more: str = "", kind: str = "") -> str:
    """The file of a model by time."""
    return f"MODEL (name {name}, {_BY_TIME.format(column, kind)}, cron '{cron}'{more});\n{query}\n"


MODELS = {
    "crm/models/countries.sql": "MODEL (name crm.countries, kind SEED (path '../seeds/countries.csv'), cron '*/5 * * * *', "
    "columns (country TEXT, vat INT));\n",
    "crm/models/customers.sql": by_time(
        "crm.customers", "*/5 * * * *",
        f"SELECT id::BIGINT AS id, ts::TIMESTAMP AS ts, (id % 3)::INT AS country_id, @doubled(value)::BIGINT AS score FROM source.public.events WHERE {_READ}",
        more=", owner anna",
    ),
    "sales/models/orders.sql": by_time(
        "sales.orders", "*/15 * * * *",
        f"SELECT id::BIGINT AS id, ts::TIMESTAMP AS ts, country_id::INT AS country_id, score::BIGINT AS amount FROM crm.customers WHERE {_READ}",
        more=", owner bert",
    ),
    "sales/models/by_country.sql": by_time(
        "sales.by_country", "@hourly",
        f"SELECT DATE_TRUNC('hour', ts)::TIMESTAMP AS hour, country_id::INT AS country_id, SUM(amount)::BIGINT AS amount FROM sales.orders WHERE {_READ} GROUP BY 1, 2",
        column="hour",
    ),
    "sales/models/history.sql": by_time(
        "sales.history", "@hourly", f"SELECT id::BIGINT AS id, ts::TIMESTAMP AS ts, amount::BIGINT AS amount FROM sales.orders WHERE {_READ}",
        kind=", forward_only TRUE, on_destructive_change ALLOW",
    ),
    "finance/models/revenue.sql": by_time(
        "finance.revenue", "@hourly",
        "SELECT DATE_TRUNC('hour', o.ts)::TIMESTAMP AS hour, SUM(o.amount)::BIGINT AS amount, SUM(c.score)::BIGINT AS score FROM sales.orders AS o "
        "JOIN crm.customers AS c ON o.id = c.id WHERE o.ts >= @start_dt AND o.ts < @end_dt AND c.ts >= @start_dt AND c.ts < @end_dt GROUP BY 1",
        column="hour", more=", owner clara, audits (not_null(columns := (hour)))",
    ),
    "finance/models/summary.sql": "MODEL (name finance.summary, kind FULL, cron '@hourly');\n"
    "SELECT COUNT(*)::BIGINT AS hours, SUM(amount)::BIGINT AS amount FROM finance.revenue\n",
    "finance/models/rates.sql": "MODEL (name finance.rates, kind FULL, cron '@hourly');\n"
    "SELECT country::TEXT AS country, vat::INT AS vat FROM crm.countries\n",
    "finance/models/trail.sql": by_time(
        "finance.trail", "@hourly", f"SELECT id::BIGINT AS id, ts::TIMESTAMP AS ts, amount::BIGINT AS amount FROM sales.history WHERE {_READ}",
    ),
}  # fmt: skip
SEED = "country,vat\nAT,20\nDE,19\n"
MACRO = (
    "from sqlmesh import macro\n\n\n@macro()\ndef doubled(evaluator, value):\n    return f'({value} * 2)'\n"
)
AUDIT = "AUDIT (name positive); SELECT * FROM @this_model WHERE amount < 0"


class DiamondMesh(TinyMesh):
    """Three projects in a folder, with databases of their own.

    Args:
        folder: Where the projects and the lake's files go.
        postgres: The server for source, lake catalog, states and ledger.
        separate: Whether `finance` has a state of its own.
        policies: Added to each project's part of meshgate.yaml.
    """

    def __init__(
        self,
        folder: Path,
        postgres: LocalPostgres,
        *,
        separate: bool = False,
        policies: dict[str, Any] | None = None,
    ) -> None:
        self.separate = separate
        super().__init__(folder, postgres, policies=policies)

    def _write_projects(self, settings: dict[str, str], policies: dict[str, Any]) -> None:
        self.policies = {**policies, "stale_throttle": "0s"}
        if self.separate:
            self.postgres.ensure_database(f"own_{self.key}")
        for file, text in {
            **MODELS, "crm/seeds/countries.csv": SEED, "crm/macros/__init__.py": "", "crm/macros/doubled.py": MACRO,
            "finance/audits/positive.sql": AUDIT,
        }.items():  # fmt: skip
            path = self.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self._write_configs(settings)

    def _write_configs(self, settings: dict[str, str]) -> None:
        pg = self.postgres
        for project in PROJECTS:
            own = self.separate and project == "finance"
            state = {
                "type": "postgres",
                "host": pg.host,
                "port": pg.port,
                "user": pg.user,
                "password": pg.password,
            }
            config = {
                "project": project,
                "gateways": {
                    "local": {
                        "connection": self._connection(),
                        "state_connection": {**state, "database": f"{'own' if own else 'led'}_{self.key}"},
                    }
                },
                "default_gateway": "local",
                "model_defaults": {"dialect": "duckdb", "start": "2026-01-05"},
                "disable_anonymized_analytics": True,
            }
            (self.folder / project / "config.yaml").write_text(json.dumps(config))
        projects = [
            {"name": name, "path": name, "schedule": SCHEDULES[name], **self.policies} for name in PROJECTS
        ]
        mesh = {"ledger": {"url": self.state_url, **settings}, "projects": projects}
        (self.folder / "meshgate.yaml").write_text(json.dumps(mesh))

    def build(self) -> DiamondMesh:
        """Deploy and evaluate everything up to `BUILT`."""
        self.feed(0, 300)
        with self.mesh() as mesh:
            for project in PROJECTS:
                mesh.deploy(project, now=at(BUILT))
        return self

    def copy(self, to: Path) -> Path:
        """A copy of the files, to be changed; the databases are the same."""
        shutil.copytree(
            self.folder, to, ignore=shutil.ignore_patterns("data", ".cache", "logs", "__pycache__")
        )
        return to

    def clone(self, to: Path, files: Path) -> DiamondMesh:
        """The same mesh once more, with databases of its own, and the files of a copy: what is deployed there stays there.

        The lake's files are shared: nobody ever changes one.
        """
        twin = object.__new__(DiamondMesh)
        vars(twin).update(vars(self))
        twin.folder, twin.key = to, uuid.uuid4().hex[:12]
        shutil.copytree(files, to)
        for kind in ("src", "led", "lake", *(("own",) if self.separate else ())):
            self.sql_outside(
                self.postgres.url("postgres"), f"CREATE DATABASE {kind}_{twin.key} TEMPLATE {kind}_{self.key}"
            )
        twin.source_url, twin.state_url, twin.lake_url = (
            self.postgres.url(f"{kind}_{twin.key}") for kind in ("src", "led", "lake")
        )
        twin.source_database = twin.source_url
        twin._write_configs({})
        return twin

    @classmethod
    def over(cls, files: Path, folder: Path, postgres: LocalPostgres, *, separate: bool) -> DiamondMesh:
        """A new mesh with the files of a copy, and nothing evaluated yet."""
        found = cls(folder, postgres, separate=separate)
        for project in PROJECTS:
            shutil.rmtree(folder / project)
            shutil.copytree(files / project, folder / project)
        found._write_configs({})
        return found

    @property
    def databases(self) -> tuple[str, ...]:
        """The URLs of all its databases."""
        kinds = ("src", "led", "lake", *(("own",) if self.separate else ()))
        return tuple(self.postgres.url(f"{kind}_{self.key}") for kind in kinds)


def rows_of(url: str) -> dict[str, list[str]]:
    """Every row of every table of a database, as text, in order."""
    tables = TinyMesh.sql(
        url,
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
        "WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1",
    )
    return {
        name: [row[0] for row in TinyMesh.sql(url, f"SELECT t::text FROM {name} t ORDER BY 1")]
        for (name,) in tables
    }


def edit(root: Path, file: str, *changes: tuple[str, str]) -> None:
    """Replace text in a file of a copy; what is not there is a mistake of the test."""
    path = root / file
    text = path.read_text()
    for old, new in changes:
        assert old in text, (file, old)
        text = text.replace(old, new)
    path.write_text(text)


def write(root: Path, file: str, text: str) -> None:
    """Write a file of a copy."""
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


def remove(root: Path, *files: str) -> None:
    """Remove files of a copy."""
    for file in files:
        (root / file).unlink()


def opened(folder: Path) -> Mesh:
    """The mesh of a folder."""
    return Mesh.open(folder)


def named(root: Path, projects: Iterable[str]) -> dict[str, Path | None]:
    """Checkouts by project."""
    return {project: root / project for project in projects}
