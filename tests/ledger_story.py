"""A mesh of two projects as the ledger knows it, told through the ledger's own calls: no SQLMesh, no warehouse.

`upstream` (5 minutes): bronze.transactions and bronze.customers, silver.orders from the first. `downstream` (hourly):
gold.fact_sales from silver.orders, gold.sales_by_hour from it, and the dimension gold.dim_customer, which is FULL.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from meshgate.bridge.contract import installed_versions
from meshgate.db import Database, migrate
from meshgate.graph import Edge, Kind, MeshGraph, ModelNode, Window
from meshgate.interval import Interval, IntervalUnit, parse_instant
from meshgate.ledger import Lease, Ledger
from meshgate.mesh import Mesh

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

TTL = timedelta(minutes=1)
GRACE = timedelta(minutes=30)
PROJECTS = ("upstream", "downstream")


def fqn(name: str) -> str:
    """The name as SQLMesh gives it to a snapshot."""
    return ".".join(f'"{part}"' for part in ("lake", *name.split(".")))


def node(
    name: str, project: str, unit: str = "five_minute", kind: str = "incremental_by_time_range", **more: Any
) -> ModelNode:
    """A model whose history begins on 2026-01-05."""
    cron = {"five_minute": "*/5 * * * *", "hour": "@hourly", "day": "@daily"}[unit]
    start = datetime(2026, 1, 5, tzinfo=UTC)
    return ModelNode(
        fqn(name), project, f"v-{name}", Kind(kind), IntervalUnit(unit), cron, start=start, **more
    )


def mesh_graph(
    *,
    windows: dict[tuple[str, str], Window] | None = None,
    more: Iterable[ModelNode] = (),
    reads: Iterable[tuple[str, str]] = (),
) -> MeshGraph:
    """The graph above; `more` models, each of whom reads as `reads` says."""
    nodes = [
        node("bronze.transactions", "upstream"),
        node("bronze.customers", "upstream"),
        node("silver.orders", "upstream"),
        node("gold.fact_sales", "downstream", "hour"),
        node("gold.sales_by_hour", "downstream", "hour"),
        node("gold.dim_customer", "downstream", "hour", "full"),
        *more,
    ]
    pairs = [
        ("silver.orders", "bronze.transactions"),
        ("gold.fact_sales", "silver.orders"),
        ("gold.sales_by_hour", "gold.fact_sales"),
        ("gold.dim_customer", "bronze.customers"),
        *reads,
    ]
    found = windows or {}
    return MeshGraph(
        {n.name: n for n in nodes},
        [Edge(fqn(child), fqn(parent), found.get((child, parent), Window())) for child, parent in pairs],
    )


class Story:
    """A ledger, what happened to it, and the `meshgate.yaml` that names it.

    Args:
        url: An empty database.
        folder: Where `meshgate.yaml` goes.
        graph: What is promoted in `prod`.
    """

    def __init__(self, url: str, folder: Path, graph: MeshGraph | None = None) -> None:
        self.url = url
        self.folder = folder
        self.database = Database(url)
        migrate(self.database, test_clock=True)
        self.ledger = Ledger(self.database)
        self.graph = graph or mesh_graph()
        self.time("2026-01-05 00:00")
        self.ledger.sync_environment("prod", "plan-1", self.graph, PROJECTS)
        for project in PROJECTS:
            sqlmesh, sqlglot = installed_versions()
            self.ledger.save_manifest(
                project, {"overlap": "skip", "schedule": None}, sqlmesh=sqlmesh, sqlglot=sqlglot
            )
        self.ids = self.ledger.manifest("prod").version_ids

    def time(self, instant: str) -> None:
        """What the ledger's clock says from now on, for this process and for those that `config` starts."""
        self.now = parse_instant(instant)
        self.database.execute(f"SET meshgate.now = '{self.now.isoformat()}'")
        options = quote(f"-c meshgate.now={self.now:%Y-%m-%dT%H:%M:%SZ}", safe="")
        projects = [{"name": name, "path": name} for name in PROJECTS]
        config = {"ledger": {"url": f"{self.url}?options={options}"}, "projects": projects}
        (self.folder / "meshgate.yaml").write_text(json.dumps(config))  # JSON is YAML

    @contextmanager
    def mesh(self) -> Iterator[Mesh]:
        """The mesh, opened."""
        with Mesh.open(self.folder) as mesh:
            yield mesh

    def acquire(self, project: str, *, pid: int = 4711) -> Lease:
        """A run that lives."""
        lease = self.ledger.acquire(
            project,
            "prod",
            "run",
            {"host": "worker-1", "pid": pid, "engine_in_process": True},
            ttl=TTL,
            grace=GRACE,
        )
        assert isinstance(lease, Lease)
        return lease

    @contextmanager
    def run(self, project: str, state: str = "done") -> Iterator[Lease]:
        """A run that ends in a state."""
        lease = self.acquire(project)
        yield lease
        self.ledger.finish(lease.run_id, state, {"committed": 1})

    def begin(self, lease: Lease, model: str, span: str) -> Interval:
        """Claim and begin an interval, whatever its parents are like."""
        interval = Interval.parse(span)
        version = self.ids[fqn(model)]
        self.ledger.open_claims(lease.run_id, version, [interval])
        begun = self.ledger.begin(lease.run_id, version, interval, needs=[], loaded=[], environment="prod")
        assert not begun.refused
        return interval

    def commit(self, lease: Lease, model: str, span: str, **facts: Any) -> None:
        """Evaluate and record an interval."""
        interval = self.begin(lease, model, span)
        self.ledger.commit(
            lease.run_id, self.ids[fqn(model)], interval, verdict=facts.pop("verdict", "passed"), **facts
        )
        self.ledger.note_mirrored(lease.run_id, self.ids[fqn(model)], interval)

    def fail(self, lease: Lease, model: str, span: str, *, audit: str = "not_null", count: int = 3) -> None:
        """Evaluate an interval whose audit fails."""
        interval = self.begin(lease, model, span)
        self.ledger.fail(
            lease.run_id, self.ids[fqn(model)], interval, {"audits": [{"audit": audit, "count": count}]}
        )

    def upstream_until(self, end: str, *, without: str | None = None) -> None:
        """Upstream recorded its models up to an instant, without one stretch of bronze.transactions."""
        whole = f"2026-01-05/{end}"
        with self.run("upstream") as lease:
            self.commit(lease, "bronze.customers", whole)
            if without is None:
                self.commit(lease, "bronze.transactions", whole)
                self.commit(lease, "silver.orders", whole)
                return
            hole = Interval.parse(without)
            for model in ("bronze.transactions", "silver.orders"):
                self.commit(lease, model, f"2026-01-05/{hole.start:%Y-%m-%dT%H:%M}")
                self.commit(lease, model, f"{hole.end:%Y-%m-%dT%H:%M}/{end}")

    def poisoned(self) -> None:
        """04:02: everything is done but one poisoned interval of bronze.transactions and what reads it."""
        self.time("2026-01-05 03:01")
        self.upstream_until("2026-01-05T03:00")
        with self.run("downstream") as lease:
            for model in ("gold.fact_sales", "gold.sales_by_hour", "gold.dim_customer"):
                self.commit(lease, model, "2026-01-05/2026-01-05T03:00")
        self.time("2026-01-05 04:00:10")
        with self.run("upstream", "failed") as lease:
            self.commit(lease, "bronze.customers", "2026-01-05T03:00/2026-01-05T04:00")
            for model in ("bronze.transactions", "silver.orders"):
                self.commit(lease, model, "2026-01-05T03:00/2026-01-05T03:10")
                self.commit(lease, model, "2026-01-05T03:15/2026-01-05T04:00")
            self.time("2026-01-05 04:00:13")
            self.fail(lease, "bronze.transactions", "2026-01-05T03:10/2026-01-05T03:15")
        self.time("2026-01-05 04:01:02")
        with self.run("upstream", "failed") as lease:
            self.fail(lease, "bronze.transactions", "2026-01-05T03:10/2026-01-05T03:15")
        with self.run("downstream") as lease:
            self.commit(
                lease,
                "gold.dim_customer",
                "2026-01-05T03:00/2026-01-05T04:00",
                rows=12,
                duration=timedelta(seconds=1.5),
            )
        self.time("2026-01-05 04:02")
