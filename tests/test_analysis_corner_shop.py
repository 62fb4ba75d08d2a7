"""What an analysis says of changes of the corner shop's two projects: models, ranges, projects, order."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from analysis_cases import Case, told
from diamond_mesh import edit, named, remove, write
from meshgate.analysis import parse
from meshgate.interval import Interval, IntervalSet
from meshgate.mesh import Mesh
from meshgate.report import data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshgate.graph import MeshGraph

CORNER_SHOP = Path(__file__).resolve().parent / "corner_shop"
sys.path[:0] = [str(CORNER_SHOP), str(CORNER_SHOP.parents[1] / "examples" / "portfolio")]

pytest.importorskip("duckdb", reason="needs meshgate[local]")

import tills  # noqa: E402
from lakehouse import Lakehouse  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("analysis-corner-shop")]

BUILT = tills.BEGINNING + timedelta(minutes=125)
NOW = tills.BEGINNING + timedelta(minutes=135)
ORDERS, ITEMS = "upstream/models/silver/orders.sql", "upstream/models/silver/items.sql"
CUSTOMERS, TRANSACTIONS = "upstream/models/silver/customers.sql", "upstream/models/bronze/transactions.sql"
FACT, BY_HOUR = "downstream/models/gold/fact_sales.sql", "downstream/models/gold/sales_by_category_hour.sql"
DIM_ITEM, DIM_CUSTOMER = "downstream/models/gold/dim_item.sql", "downstream/models/gold/dim_customer.sql"
UP, DOWN, BOTH = ("upstream",), ("downstream",), ("upstream", "downstream")
PER_HOUR = """MODEL (name gold.orders_per_hour, kind INCREMENTAL_BY_TIME_RANGE (time_column hour, partition_by_time_column FALSE), cron '@hourly');
SELECT DATE_TRUNC('HOUR', occurred_at) AS hour, CAST(COUNT(*) AS BIGINT) AS orders FROM silver.orders
WHERE occurred_at BETWEEN @start_dt AND @end_dt GROUP BY 1
"""


def _rename_model(root: Path) -> None:
    text = (root / ITEMS).read_text()
    remove(root, ITEMS)
    write(root, "upstream/models/silver/articles.sql", text.replace("silver.items", "silver.articles"))
    edit(root, DIM_ITEM, ("silver.items", "silver.articles"))


def _rename_column(root: Path) -> None:
    edit(root, CUSTOMERS, ("  segment,\n  updated_at,", "  segment AS tier,\n  updated_at,"))
    edit(root, DIM_CUSTOMER, ("  segment,", "  tier AS segment,"))


def _new_column(root: Path) -> None:
    edit(root, ORDERS, ("  ranked.status,", "  ranked.status,\n  ranked.delivery_id,"))
    edit(root, FACT, ("  orders.currency,", "  orders.currency,\n  orders.delivery_id,"))


def _drop_fact(root: Path) -> None:
    remove(root, FACT, "downstream/audits/fact_sales.sql", BY_HOUR)
    edit(root, ORDERS, ("  ranked.status,\n", ""))


CASES = tuple(
    evolve(case, book="analysis_corner_shop.txt")
    for case in (
        Case("nothing", BOTH, lambda _: None),
        Case("breaking", UP, lambda root: edit(root, ORDERS, ("ranked.amount * currencies", "2 * ranked.amount * currencies"))),
        Case("an added column", UP, lambda root: edit(root, TRANSACTIONS, ("  status,", "  status,\n  'till' AS channel,"))),
        Case("a removed column that the other project reads", UP, lambda root: edit(root, ORDERS, ("  ranked.status,\n", "")), deploys=False),
        Case("a removed column that nobody reads", UP, lambda root: edit(root, ITEMS, ("  updated_at,\n  loaded_at\nFROM ranked", "  updated_at\nFROM ranked"))),
        Case("a renamed model, its reader with it", BOTH, _rename_model, deploys=False),
        Case("a renamed column, its reader with it", BOTH, _rename_column, deploys=False),
        Case("a new boundary", DOWN, lambda root: write(root, "downstream/models/gold/orders_per_hour.sql", PER_HOUR)),
        Case("a slower cron", DOWN, lambda root: edit(root, DIM_ITEM, ("@hourly", "@daily"))),
        Case("an earlier start", UP, lambda root: edit(root, TRANSACTIONS, ("cron '*/5 * * * *',", "cron '*/5 * * * *', start '2026-01-04 22:00:00',"))),
        Case(
            "forward-only", DOWN,
            lambda root: edit(root, BY_HOUR, ("batch_size 24", "batch_size 24, forward_only TRUE"), ("SUM(sales.quantity)", "SUM(sales.quantity + 1)")),
        ),
        Case("an audit", UP, lambda root: edit(root, "upstream/audits/transactions.sql", ("amount <= 0", "amount < 0"))),
        Case("a view in place of a table", DOWN, lambda root: edit(root, DIM_ITEM, ("kind FULL", "kind VIEW"))),
        Case("a seed", UP, lambda root: edit(root, "upstream/seeds/currencies.csv", ("1.163500", "1.170000"))),
        Case("a removed model that the other project reads", UP, lambda root: remove(root, ORDERS), deploys=False),
        Case("two projects: a new column and who reads it", BOTH, _new_column),
        Case("two projects: readers go, and what they read", BOTH, _drop_fact),
        Case("a column that is not there", DOWN, lambda root: edit(root, FACT, ("  orders.currency,", "  orders.valuta AS currency,")), deploys=False),
        Case("a batch size", UP, lambda root: edit(root, ORDERS, ("batch_size 288", "batch_size 144"))),
    )
)  # fmt: skip


BOUNDED = (
    "breaking", "an added column", "a removed column that the other project reads", "a seed", "an earlier start",
    "two projects: a new column and who reads it",
)  # fmt: skip


@contextmanager
def shop(folder: Path, files: Path, changed: datetime, *, hours: int = 3) -> Iterator[tuple[Mesh, Lakehouse]]:
    """A lake of its own, and both projects of some files deployed at an instant; the shop is ahead."""
    with Lakehouse.start(folder) as started, pytest.MonkeyPatch.context() as patch:
        for name, value in started.environment().items():
            patch.setenv(name, value)
        tills.create_tables(started.source)
        tills.generate(started.source, tills.BEGINNING, tills.BEGINNING + timedelta(hours=hours))
        with Mesh.open(files, check=False) as mesh:
            mesh.migrate()
            for project in BOTH:
                mesh.deploy(project, now=changed)
            yield mesh, started
        started.destroy()


def copied(files: Path, to: Path) -> Path:
    """The files, without what SQLMesh keeps beside them."""
    shutil.copytree(files, to, ignore=shutil.ignore_patterns(".meshgate", ".cache", "logs", "__pycache__"))
    return to


@pytest.fixture(scope="module")
def corner_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mesh, Path]]:
    """Both projects deployed and evaluated up to minute 125. The mesh, and its files."""
    folder = tmp_path_factory.mktemp("analysis-corner-shop")
    files = copied(CORNER_SHOP, folder / "files")
    with shop(folder, files, BUILT) as (mesh, _):
        yield mesh, files


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=() if c.name in BOUNDED else pytest.mark.analysis) for c in CASES],
)
def test_models_ranges_projects_and_order(corner_shop: tuple[Mesh, Path], case: Case, tmp_path: Path) -> None:
    """Each change is told as `analysis_corner_shop.txt` has it, and what may not be deployed is refused."""
    mesh, files = corner_shop
    root = copied(files, tmp_path / "files")
    case.change(root)
    found = mesh.analyze(named(root, case.projects), now=NOW)
    assert told(found) == case.expected(separate=False)
    assert found.refused is not case.deploys


RUNS = (("upstream", 185), ("downstream", 190), ("upstream", 245), ("downstream", 250))
DAY = (("upstream", 1445), ("downstream", 1450), ("upstream", 1450), ("downstream", 1455))
"""For what is due once a day: both sides have got to the end of it."""


@pytest.mark.analysis
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES if c.deploys])
def test_deployed_as_analysed_every_table_is_a_recomputations(case: Case, tmp_path: Path) -> None:
    """What a change leaves is asked for; then both projects run. The other side never was anything else than the changed files."""
    ticks = DAY if case.name == "a slower cron" else RUNS
    hours = 25 if ticks is DAY else 5
    files = copied(CORNER_SHOP, tmp_path / "files")
    tables: dict[str, list[tuple[Any, ...]]] = {}
    with shop(tmp_path / "one", files, BUILT, hours=hours) as (mesh, started):
        case.change(files)
        found = mesh.analyze(named(files, case.projects), now=NOW)
        document = json.loads(data.dumped(data.analyze(found)))
        mesh.deploy_analysed(parse(document, "FILE"), now=NOW)
        asked = mesh.leftovers(found, apply=True)
        left = {one.left.model for one in asked.models if one.preview is None}
        graph = tick(mesh, ticks)
        left |= {name for name in graph.order() if {e.parent for e in graph.parents(name)} & left}
        compared = [n for n in graph.order() if graph[n].version and graph[n].kind.recorded and n not in left]
        tables = {name: rows(started, name) for name in compared}
        assert mesh.verify().differences == ()
    # A copy: beside its files SQLMesh keeps snapshots as one state has them, and gives them to another state too.
    fresh = copied(files, tmp_path / "fresh")
    with shop(tmp_path / "other", fresh, NOW, hours=hours) as (mesh, started):
        tick(mesh, ticks)
        for name, found_rows in tables.items():
            assert found_rows == rows(started, name), name
    assert tables


def tick(mesh: Mesh, ticks: tuple[tuple[str, int], ...]) -> MeshGraph:
    """Run each project at its minutes."""
    for project, minute in ticks:
        report = mesh.run(project, now=tills.BEGINNING + timedelta(minutes=minute))
        assert not report.failed, report.failed
    return mesh.ledger.manifest("prod").graph


def rows(started: Lakehouse, name: str) -> list[tuple[Any, ...]]:
    """A table, in an order that does not depend on when it was written."""
    with started.lake.connect() as connection:
        return sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=str)


def test_the_plan_of_one_checkout_is_that_of_all_and_the_analysis_says_the_same(
    corner_shop: tuple[Mesh, Path], tmp_path: Path
) -> None:
    """`docs/explanation/complete-version.md`: what SQLMesh's own plan changes and backfills, by both ways of loading it."""
    from sqlmesh import Context

    mesh, files = corner_shop
    root = copied(files, tmp_path / "files")

    def planned(*projects: str) -> tuple[dict[str, str], dict[str, IntervalSet]]:
        context = Context(paths=[root / name for name in projects])
        try:
            plan = context.plan_builder("prod", execution_time=BUILT, skip_tests=True).build()
            changes = {s.name: s.change_category.name.lower() for s in plan.modified_snapshots.values()}
            missing = {
                context.get_snapshot(m.snapshot_id.name, raise_if_missing=True).name: IntervalSet(
                    Interval(epoch + start * ms, epoch + end * ms) for start, end in m.intervals
                )
                for m in plan.missing_intervals
            }
        finally:
            context.close()
        return changes, missing

    epoch, ms = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
    assert planned(*BOTH) == ({}, {})
    edit(root, ORDERS, ("  ranked.status,", "  UPPER(ranked.status) AS status,"))
    changes, missing = planned(*BOTH)
    assert planned(*UP) == (changes, missing)
    found = mesh.analyze(named(root, UP), now=BUILT)
    assert {c.model: c.category for c in found.changes} == changes
    assert {w.model: w.range for w in found.work} == missing
    assert {w.project for w in found.work} == set(BOTH)
