"""The corner shop, on which many tests stand: its source is deterministic, its models are right, and its oracle would notice."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CORNER_SHOP = Path(__file__).resolve().parent / "corner_shop"
sys.path[:0] = [str(CORNER_SHOP), str(CORNER_SHOP.parents[1] / "examples" / "portfolio")]

duckdb = pytest.importorskip("duckdb", reason="needs meshgate[local]")


import corner_oracle as oracle  # noqa: E402
import psycopg2  # noqa: E402
import tills  # noqa: E402
from lakehouse import Lakehouse  # noqa: E402

HOUR = timedelta(hours=1)
BEGINNING = tills.BEGINNING
END = BEGINNING + 2 * HOUR


@pytest.fixture(scope="module")
def lakehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lakehouse]:
    folder = tmp_path_factory.mktemp("corner-shop")
    with Lakehouse.start(folder) as started, pytest.MonkeyPatch.context() as patch:
        for name, value in started.environment().items():
            patch.setenv(name, value)
        tills.create_tables(started.source)
        yield started
        started.destroy()


@contextmanager
def database(lakehouse: Lakehouse, name: str) -> Iterator[str]:
    url = lakehouse.server.ensure_database(name)
    tills.create_tables(url)
    yield url


def content(url: str) -> dict[str, list[Any]]:
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        rows = {}
        for table in tills.TABLES.values():
            cursor.execute(f"select * from public.{table} order by delivery_id")
            rows[table] = cursor.fetchall()
    connection.close()
    return rows


def plan(project: str, **options: Any) -> None:
    from sqlmesh import Context

    context = Context(paths=str(CORNER_SHOP / project))
    try:
        context.plan(auto_apply=True, no_prompts=True, **options)
    finally:
        context.close()


class TestSource:
    """The generated shop."""

    def test_one_seed_writes_equal_rows_whatever_the_pieces(self, lakehouse: Lakehouse) -> None:
        """Two databases filled with one seed are equal, one of them in pieces, twice and out of order."""
        with database(lakehouse, "once") as once, database(lakehouse, "pieces") as pieces:
            written = tills.generate(once, BEGINNING, END, seed=7)
            for start, end in ((BEGINNING + HOUR, END), (BEGINNING, BEGINNING + HOUR), (BEGINNING, END)):
                tills.generate(pieces, start, end, seed=7)
            assert content(once) == content(pieces)
            assert written == sum(len(rows) for rows in content(once).values())

    def test_another_seed_writes_other_rows(self) -> None:
        """The seed matters."""
        assert list(tills.rows_of(BEGINNING, 1)) != list(tills.rows_of(BEGINNING, 2))

    def test_the_shop_looks_like_a_shop(self) -> None:
        """Each five minutes of a day bring 20 to 60 sales, inside them, of things and people that exist."""
        items, customers, kinds = set(), set(), set()
        for number in range(288):
            slot = BEGINNING + number * tills.SLOT
            rows = list(tills.rows_of(slot))
            items |= {row.item_id for row in rows if isinstance(row, tills.Item)}
            customers |= {row.customer_id for row in rows if isinstance(row, tills.Customer)}
            sales = [row for row in rows if isinstance(row, tills.Transaction)]
            assert 20 <= len({row.transaction_id for row in sales}) <= 60
            assert {row.item_id for row in sales} <= items
            assert {row.customer_id for row in sales} <= customers
            assert all(slot <= row.occurred_at < row.loaded_at < slot + tills.SLOT for row in sales)
            assert all(row.amount > 0 for row in sales)
            kinds |= {(row.delivery_id[-1], row.status) for row in sales}
        assert kinds == {("1", "completed"), ("2", "completed"), ("2", "cancelled")}

    def test_a_span_that_is_not_whole_is_refused(self) -> None:
        """Half a slot cannot be generated, nor time before the beginning."""
        for start in (BEGINNING + timedelta(minutes=3), BEGINNING - tills.SLOT):
            with pytest.raises(ValueError, match="whole five minutes"):
                tills.generate("", start, END)

    @pytest.mark.parametrize("kind", ["amount", "currency"])
    def test_repair_undoes_poison(self, lakehouse: Lakehouse, kind: Any) -> None:
        """After the repair every row is what it was, and generating again in between repairs nothing."""
        with database(lakehouse, "poison") as url:
            tills.generate(url, BEGINNING, BEGINNING + tills.SLOT)
            before = content(url)
            tills.poison(url, BEGINNING, BEGINNING + tills.SLOT, kind)
            assert tills.generate(url, BEGINNING, BEGINNING + tills.SLOT) == 0
            assert content(url) != before
            assert tills.repair(url, BEGINNING, BEGINNING + tills.SLOT) == 1
            assert content(url) == before


@pytest.fixture(scope="module")
def planned(lakehouse: Lakehouse) -> Lakehouse:
    """Two simulated hours, planned with plain SQLMesh by upstream and then by downstream; the shop is an hour ahead."""
    tills.generate(lakehouse.source, BEGINNING, END + HOUR)
    for project in ("upstream", "downstream"):
        plan(project, execution_time=END)
    return lakehouse


def compare(lakehouse: Lakehouse, **options: Any) -> dict[str, oracle.TableVerdict]:
    options.setdefault("upto", END)
    return {verdict.table: verdict for verdict in oracle.compare(lakehouse.source, lakehouse.lake, **options)}


def wrong_tables(lakehouse: Lakehouse, **options: Any) -> set[str]:
    return {name for name, verdict in compare(lakehouse, **options).items() if not verdict.right}


@contextmanager
def fact_table(lakehouse: Lakehouse) -> Iterator[tuple[Any, str]]:
    """Give a connection that may write, and the physical table behind gold.fact_sales; undo what was done to it."""
    with lakehouse.lake.connect(read_only=False) as connection:
        (view,) = connection.execute(
            "SELECT sql FROM duckdb_views() WHERE schema_name = 'gold' AND view_name = 'fact_sales'"
        ).fetchone()
        table = view.rstrip("; \n").split(" FROM ")[-1]
        connection.execute(f"CREATE TEMP TABLE saved AS FROM {table}")
        try:
            yield connection, table
        finally:
            connection.execute(f"BEGIN; DELETE FROM {table}; INSERT INTO {table} FROM saved; COMMIT")


@pytest.mark.slow
class TestModels:
    """The two projects under plain SQLMesh. Each test leaves the tables right."""

    def test_gold_is_right_after_a_plan_of_each_project(self, planned: Lakehouse) -> None:
        """Every gold table has rows, and exactly those that the oracle computes from the source."""
        verdicts = compare(planned)
        assert list(verdicts) == [table.name for table in oracle.TABLES]
        assert all(verdict.right and verdict.rows_found for verdict in verdicts.values()), verdicts

    def test_what_arrives_late_is_a_difference_until_it_is_restated(self, planned: Lakehouse) -> None:
        """Late sales and a late item make gold wrong; a restatement of bronze over their hour makes it right."""
        hour = BEGINNING + HOUR
        touched = tills.write_late(planned.source, hour, hour + tills.SLOT, arrived=END + tills.SLOT)
        assert touched == [hour]
        since = hour + timedelta(minutes=7)
        assert tills.write_late_item(planned.source, since, arrived=END + tills.SLOT) == hour + tills.SLOT
        assert wrong_tables(planned) == {"gold.dim_item", "gold.fact_sales", "gold.sales_by_category_hour"}
        assert wrong_tables(planned, upto=hour) == set()
        late = ["bronze.transactions", "bronze.items"]
        plan("upstream", restate_models=late, start=hour, end=END, execution_time=END)
        assert wrong_tables(planned) == set()

    def test_a_poisoned_sale_fails_its_own_interval_until_it_is_repaired(self, planned: Lakehouse) -> None:
        """Bronze refuses the interval of the poisoned sale, and takes it after the repair."""
        from sqlmesh import Context
        from sqlmesh.core.context import CompletionStatus

        start, end = END, END + tills.SLOT
        only_bronze: dict[str, Any] = {
            "select_models": ["bronze.transactions"],
            "no_auto_upstream": True,
            "skip_janitor": True,
        }
        context = Context(paths=str(CORNER_SHOP / "upstream"))
        try:
            for kind in ("amount", "currency"):
                tills.poison(planned.source, start, end, kind)
                assert context.run(execution_time=end, **only_bronze) is CompletionStatus.FAILURE
                assert tills.repair(planned.source, start, end) == 1
            assert context.run(execution_time=end, **only_bronze) is CompletionStatus.SUCCESS
        finally:
            context.close()

    def test_the_oracle_sees_each_sort_of_planted_difference(self, planned: Lakehouse) -> None:
        """A row deleted, a cell changed and a row doubled are each found, by key, and nothing else is."""
        with fact_table(planned) as (connection, table):
            rows = connection.execute(
                f"SELECT transaction_id, quantity FROM {table} ORDER BY sold_at LIMIT 3"
            ).fetchall()
            (deleted, _), (changed, quantity), (doubled, _) = rows
            connection.execute(f"DELETE FROM {table} WHERE transaction_id = '{deleted}'")
            connection.execute(f"UPDATE {table} SET quantity = 99 WHERE transaction_id = '{changed}'")
            connection.execute(f"INSERT INTO {table} FROM {table} WHERE transaction_id = '{doubled}'")
            assert wrong_tables(planned) == {"gold.fact_sales"}
            fact = compare(planned)["gold.fact_sales"]
            assert fact.missing == ((deleted,),)
            assert fact.unexpected == ((doubled,),)
            assert fact.different == (oracle.Difference((changed,), "quantity", quantity, 99),)
            # What the table does not claim is not compared.
            first_hour = {"gold.fact_sales": [(BEGINNING, BEGINNING + HOUR)]}
            assert wrong_tables(planned, upto={"gold.fact_sales": END}, without=first_hour) == set()
            assert wrong_tables(planned, upto={"gold.fact_sales": BEGINNING}) == set()
        assert wrong_tables(planned) == set()
