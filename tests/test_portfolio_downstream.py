"""The portfolio's downstream: its unit tests pass, it speaks Databricks, each audit catches its fault, and late dimension rows reach the facts."""

from __future__ import annotations

import shutil
import sys
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

from portfolio_contexts import DOWNSTREAM, PORTFOLIO, UPSTREAM, opened, rendered_for_databricks

sys.path.insert(0, str(PORTFOLIO))

duckdb = pytest.importorskip("duckdb", reason="needs meshgate[local]")

import oracle  # noqa: E402
import psycopg2  # noqa: E402
import source  # noqa: E402
import sqlglot  # noqa: E402
from lakehouse import Lakehouse  # noqa: E402

from meshgate.mesh import Mesh  # noqa: E402

HOUR = timedelta(hours=1)


def at(minutes: int) -> datetime:
    """An instant, in minutes after the shop began, UTC."""
    return source.BEGINNING + timedelta(minutes=minutes)


@pytest.fixture(scope="module")
def databricks() -> Any:
    return opened("databricks", UPSTREAM, DOWNSTREAM)


@pytest.fixture(scope="module")
def local() -> Any:
    return opened("duckdb", UPSTREAM, DOWNSTREAM)


@pytest.mark.parametrize("projects", [(UPSTREAM, DOWNSTREAM), (DOWNSTREAM,)], ids=["with upstream", "alone"])
def test_its_unit_tests_pass(projects: tuple[Path, ...]) -> None:
    """Everything that gold and serving decide, on a DuckDB in memory; also where nothing of upstream is known, as in a fresh clone."""
    result = opened("duckdb", *projects).test(
        tests=[str(found) for found in (DOWNSTREAM / "tests").iterdir()]
    )
    assert [f"{test}: {text}" for test, text in (*result.failures, *result.errors)] == []
    assert result.testsRun >= 12


def ddl(model: Any) -> str:
    """The statement by which SQLMesh makes a model's table on Databricks; nothing is connected."""
    from sqlmesh.core.engine_adapter.databricks import DatabricksEngineAdapter

    said: list[str] = []

    class Said(DatabricksEngineAdapter):  # type: ignore[misc]
        def execute(self, expressions: Any, **_: Any) -> None:
            said.append(self._to_sql(expressions))

    adapter = Said(lambda: None, dialect="databricks")
    laid_out = {
        "partitioned_by": model.partitioned_by,
        "clustered_by": model.clustered_by,
        "table_properties": model.physical_properties,
    }
    # As SQLMesh chooses: where a type is not known, the query tells it.
    if model.annotated:
        adapter.create_table(model.name, model.columns_to_types_or_raise, **laid_out)
    else:
        adapter.ctas(model.name, model.ctas_query(), model.columns_to_types, exists=False, **laid_out)
    return said[-1]


class TestDatabricks:
    """What Databricks is told."""

    def test_every_model_and_audit_is_rendered_without_an_engine(self, databricks: Any) -> None:
        """In words that are Databricks' own, where the engines differ."""
        said = rendered_for_databricks(databricks, at(0), at(60))
        assert "HLL_SKETCH_AGG" in said
        assert "LIST_SLICE" not in said

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("gold.dim_item", "TBLPROPERTIES ('delta.deletedFileRetentionDuration'='interval 2 days')"),
            ("gold.fact_sales", "CLUSTER BY (`sold_at`, `item_key`)"),
            ("gold.store_day", "PARTITIONED BY (`sale_date`)"),
            ("serving.sales", "CLUSTER BY AUTO"),
            ("serving.sales_report", "CLUSTER BY (`sale_date`, `store_country`, `category`)"),
        ],
    )
    def test_tables_are_laid_out(self, databricks: Any, name: str, told: str) -> None:
        """Liquid clustering, partitions and retention are in the statement that makes the table."""
        text = ddl(databricks.get_model(name))
        assert told in text
        assert sqlglot.parse_one(text, dialect="databricks")


class TestAudits:
    """Each audit of gold, on rows that it is there for."""

    @pytest.fixture
    def lake(self) -> Iterator[Any]:
        with duckdb.connect() as connection:
            connection.execute(
                "SET TimeZone = 'UTC'; ATTACH ':memory:' AS lake; CREATE SCHEMA lake.gold; CREATE SCHEMA lake.serving"
            )
            yield connection

    @pytest.mark.parametrize(
        ("name", "columns", "right", "wrong", "caught"),
        [
            (
                "gold.dim_item", "item_key, item_id, valid_from, valid_to",
                "('a', 'I', 1, 2), ('b', 'I', 2, NULL), ('c', 'J', 1, NULL)", "('d', 'I', 3, NULL)", {"spans_do_not_overlap"},
            ),
            ("gold.dim_item", "item_key, item_id, valid_from, valid_to", "('a', 'I', 1, 2), ('b', 'I', 2, NULL)", "('b', 'J', 2, NULL)", {"unique_values"}),
            (
                "gold.dim_customer", "customer_key, customer_id, valid_from, valid_to",
                "('a', 'C', 1, 2), ('b', 'C', 2, NULL)", "('c', 'C', 1.5, 1.7)", {"spans_do_not_overlap"},
            ),
            (
                "gold.fact_sales", "transaction_id, line_no, item_key, customer_key, quantity, amount_eur",
                "('T', 1, 'a', 'nobody', 1, 1.0)", "('T', 2, 'a', 'unknown', 1, 1.0)", {"members_are_known"},
            ),
            (
                "gold.fact_sales", "transaction_id, line_no, item_key, customer_key, quantity, amount_eur",
                "('T', 1, 'a', 'nobody', 1, 1.0)", "('T', 1, 'a', 'nobody', 1, 1.0)", {"unique_combination_of_columns"},
            ),
            (
                "gold.fact_sales", "transaction_id, line_no, item_key, customer_key, quantity, amount_eur",
                "('T', 1, 'a', 'nobody', 1, 1.0)", "('T', 2, 'a', 'nobody', 1, -1.0)", {"forall"},
            ),
            (
                "gold.fact_refunds", "refund_id, item_key, sold_at", "('R', 'a', 1)", "('S', 'a', NULL)", {"sale_is_known"},
            ),
            (
                "serving.sales", "transaction_id, line_no, store_country, sale_date",
                "('T', 1, 'DE', 1)", "('T', 2, NULL, 1)", {"not_null"},
            ),
        ],
    )  # fmt: skip
    def test_it_catches_its_fault_and_nothing_else(
        self, local: Any, lake: Any, name: str, columns: str, right: str, wrong: str, caught: set[str]
    ) -> None:
        """Rows as they should be fail no audit; with a bad one those fail that name it."""
        model = local.get_model(name)
        audits = [
            (audit, model.render_audit_query(audit, start=at(0), end=at(60), execution_time=at(60), **args))
            for audit, args in model.audits_with_args
        ]
        time = (
            f", TIMESTAMP '{at(5):%Y-%m-%d %H:%M}'::TIMESTAMPTZ AS {model.time_column.column.name}"
            if model.time_column
            else ""
        )
        if time and model.time_column.column.name in columns:
            time = ""
        for rows, failing in ((right, set()), (f"{right}, {wrong}", caught)):
            lake.execute(
                f"CREATE OR REPLACE TABLE lake.{name} AS SELECT *{time} FROM (VALUES {rows}) AS t({columns})"
            )
            found = {audit.name for audit, query in audits if lake.execute(query.sql("duckdb")).fetchall()}
            assert found == failing


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The two projects and their meshgate.yaml, to be changed."""
    for name in ("upstream", "downstream", "meshgate.yaml"):
        there = PORTFOLIO / name
        (shutil.copytree if there.is_dir() else shutil.copy)(there, tmp_path / name)
    return tmp_path


def moves(lakehouse: Lakehouse, since: datetime, heard: datetime, but: str = "") -> str:
    """A customer who bought something after an instant moved at it, and the shop hears of it later; who."""
    with closing(psycopg2.connect(lakehouse.source)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "select customer_id from shop.transactions where occurred_at between %s and %s and customer_id <> %s"
            " and status <> 'cancelled' order by occurred_at desc limit 1",
            [since + timedelta(minutes=5), since + HOUR / 2, but],
        )
        (found,) = cursor.fetchone()
        cursor.execute(
            "insert into shop.customer_versions select customer_id, name, email, 'Wien', 'AT', segment, %s, %s from shop.customers where customer_id = %s",
            [since, heard, found],
        )
    return str(found)


@pytest.mark.portfolio
@pytest.mark.timeout(900)
def test_facts_follow_a_dimension_row_that_comes_late_because_of_its_validity(
    tmp_path_factory: pytest.TempPathFactory, copied: Path
) -> None:
    """With the validity of the dimension the facts are right; with `none` in its place they stay wrong.

    A customer's move is heard of after their purchases were recorded. Nothing that the facts read over time is computed again by that:
    only the columns that say from when to when a row holds tell that the past has changed.
    """
    with Lakehouse.start(tmp_path_factory.mktemp("late")) as lakehouse, pytest.MonkeyPatch.context() as patch:
        for name, value in lakehouse.environment().items():
            patch.setenv(name, value)
        source.generate(lakehouse.source, at(60), rate=300)

        def wrong() -> dict[str, Any]:
            verdicts = oracle.compare(
                lakehouse.source, lakehouse.lake, at(60), tables=["gold.dim_customer", "gold.fact_sales"]
            )
            return {verdict.table: verdict for verdict in verdicts if not verdict.right}

        def follow(mesh: Mesh, minutes: int) -> None:
            # The refresh tells what it changed when the facts of its run are planned already: they follow in the next.
            for now in (at(minutes), at(minutes + 60)):
                for name in ("upstream", "downstream"):
                    assert mesh.run(name, now=now).failed == ()

        with Mesh.open(copied, check=False) as mesh:
            mesh.migrate()
            for name in ("upstream", "downstream"):
                assert mesh.deploy(name, now=at(60)).exit_code == 0
            first = moves(lakehouse, at(20), heard=at(62))
            follow(mesh, 120)
            assert wrong() == {}

        text = (copied / "meshgate.yaml").read_text()
        (copied / "meshgate.yaml").write_text(
            text.replace("    validity:\n", "    validity:\n      gold.dim_customer: none\n")
        )
        with Mesh.open(copied, check=False) as mesh:
            mesh.deploy("downstream", now=at(180))
            moves(lakehouse, at(20), heard=at(182), but=first)
            follow(mesh, 240)
        assert set(wrong()) == {"gold.fact_sales"}
        assert {d.column for d in wrong()["gold.fact_sales"].different} == {"customer_key"}
        lakehouse.destroy()
