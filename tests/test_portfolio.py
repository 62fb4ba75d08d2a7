"""The example in examples/portfolio: its source is deterministic, its models are right, and its oracle would notice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTFOLIO = Path(__file__).resolve().parents[1] / "examples" / "portfolio"
sys.path.insert(0, str(PORTFOLIO))

duckdb = pytest.importorskip("duckdb", reason="needs meshgate[local]")


import oracle  # noqa: E402
import psycopg2  # noqa: E402
import source  # noqa: E402
from lakehouse import Lakehouse  # noqa: E402

HOUR = timedelta(hours=1)
BEGINNING = source.BEGINNING
END = BEGINNING + 2 * HOUR


@pytest.fixture(scope="module")
def lakehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lakehouse]:
    folder = tmp_path_factory.mktemp("portfolio")
    with Lakehouse.start(folder) as started, pytest.MonkeyPatch.context() as patch:
        for name, value in started.environment().items():
            patch.setenv(name, value)
        yield started
        started.destroy()


@contextmanager
def database(lakehouse: Lakehouse, name: str) -> Iterator[str]:
    url = lakehouse.server.ensure_database(name)
    source.create_tables(url)
    yield url


def content(url: str) -> dict[str, list[Any]]:
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        rows = {}
        for table in source.TABLES.values():
            cursor.execute(f"select * from public.{table} order by delivery_id")
            rows[table] = cursor.fetchall()
    connection.close()
    return rows


def plan(project: str, **options: Any) -> None:
    from sqlmesh import Context

    context = Context(paths=str(PORTFOLIO / project))
    try:
        context.plan(auto_apply=True, no_prompts=True, **options)
    finally:
        context.close()


class TestSource:
    """The generated shop."""

    def test_one_seed_writes_equal_rows_whatever_the_pieces(self, lakehouse: Lakehouse) -> None:
        """Two databases filled with one seed are equal, one of them in pieces, twice and out of order."""
        with database(lakehouse, "once") as once, database(lakehouse, "pieces") as pieces:
            written = source.generate(once, BEGINNING, END, seed=7)
            for start, end in ((BEGINNING + HOUR, END), (BEGINNING, BEGINNING + HOUR), (BEGINNING, END)):
                source.generate(pieces, start, end, seed=7)
            assert content(once) == content(pieces)
            assert written == sum(len(rows) for rows in content(once).values())

    def test_another_seed_writes_other_rows(self) -> None:
        """The seed matters."""
        assert list(source.rows_of(BEGINNING, 1)) != list(source.rows_of(BEGINNING, 2))

    def test_the_shop_looks_like_a_shop(self) -> None:
        """Each five minutes of a day bring 20 to 60 sales, inside them, of things and people that exist."""
        items, customers, kinds = set(), set(), set()
        for number in range(288):
            slot = BEGINNING + number * source.SLOT
            rows = list(source.rows_of(slot))
            items |= {row.item_id for row in rows if isinstance(row, source.Item)}
            customers |= {row.customer_id for row in rows if isinstance(row, source.Customer)}
            sales = [row for row in rows if isinstance(row, source.Transaction)]
            assert 20 <= len({row.transaction_id for row in sales}) <= 60
            assert {row.item_id for row in sales} <= items
            assert {row.customer_id for row in sales} <= customers
            assert all(slot <= row.occurred_at < row.loaded_at < slot + source.SLOT for row in sales)
            assert all(row.amount > 0 for row in sales)
            kinds |= {(row.delivery_id[-1], row.status) for row in sales}
        assert kinds == {("1", "completed"), ("2", "completed"), ("2", "cancelled")}

    def test_a_span_that_is_not_whole_is_refused(self) -> None:
        """Half a slot cannot be generated, nor time before the beginning."""
        for start in (BEGINNING + timedelta(minutes=3), BEGINNING - source.SLOT):
            with pytest.raises(ValueError, match="whole five minutes"):
                source.generate("", start, END)

    @pytest.mark.parametrize("kind", ["amount", "currency"])
    def test_repair_undoes_poison(self, lakehouse: Lakehouse, kind: Any) -> None:
        """After the repair every row is what it was, and generating again in between repairs nothing."""
        with database(lakehouse, "poison") as url:
            source.generate(url, BEGINNING, BEGINNING + source.SLOT)
            before = content(url)
            source.poison(url, BEGINNING, BEGINNING + source.SLOT, kind)
            assert source.generate(url, BEGINNING, BEGINNING + source.SLOT) == 0
            assert content(url) != before
            assert source.repair(url, BEGINNING, BEGINNING + source.SLOT) == 1
            assert content(url) == before


@pytest.fixture(scope="module")
def planned(lakehouse: Lakehouse) -> Lakehouse:
    """Two simulated hours, planned with plain SQLMesh by upstream and then by downstream; the shop is an hour ahead."""
    source.generate(lakehouse.source, BEGINNING, END + HOUR)
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
        touched = source.write_late(planned.source, hour, hour + source.SLOT, arrived=END + source.SLOT)
        assert touched == [hour]
        since = hour + timedelta(minutes=7)
        assert source.write_late_item(planned.source, since, arrived=END + source.SLOT) == hour + source.SLOT
        assert wrong_tables(planned) == {"gold.dim_item", "gold.fact_sales", "gold.sales_by_category_hour"}
        assert wrong_tables(planned, upto=hour) == set()
        late = ["bronze.transactions", "bronze.items"]
        plan("upstream", restate_models=late, start=hour, end=END, execution_time=END)
        assert wrong_tables(planned) == set()

    def test_a_poisoned_sale_fails_its_own_interval_until_it_is_repaired(self, planned: Lakehouse) -> None:
        """Bronze refuses the interval of the poisoned sale, and takes it after the repair."""
        from sqlmesh import Context
        from sqlmesh.core.context import CompletionStatus

        start, end = END, END + source.SLOT
        only_bronze: dict[str, Any] = {
            "select_models": ["bronze.transactions"],
            "no_auto_upstream": True,
            "skip_janitor": True,
        }
        context = Context(paths=str(PORTFOLIO / "upstream"))
        try:
            for kind in ("amount", "currency"):
                source.poison(planned.source, start, end, kind)
                assert context.run(execution_time=end, **only_bronze) is CompletionStatus.FAILURE
                assert source.repair(planned.source, start, end) == 1
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


@pytest.mark.slow
def test_what_the_readme_shows_runs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each command of the README ends well, in a fresh copy of the folder, and prints what is printed there."""
    folder = tmp_path / "portfolio"
    shutil.copytree(PORTFOLIO, folder, ignore=shutil.ignore_patterns(".*", "logs", "__pycache__"))
    request.addfinalizer(lambda: Lakehouse.start(folder / ".meshgate").destroy())
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MESHGATE_LEDGER", "PORTFOLIO"))
    }
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    blocks = re.findall(
        r"^```console\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 2
    for block in blocks:
        for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            assert shown in {"", done.stdout}, command
    assert shown.count("all right") == len(oracle.TABLES)
