"""The complete portfolio: its oracle notices what is wrong, its soak and its demo end with right tables, and what its README shows runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTFOLIO = Path(__file__).resolve().parents[1] / "examples" / "portfolio"
sys.path.insert(0, str(PORTFOLIO))

pytest.importorskip("duckdb", reason="needs meshgate[local]")

import oracle  # noqa: E402
import source  # noqa: E402
from expectation import Expectation, Source, may_be_missing  # noqa: E402
from lakehouse import Lakehouse  # noqa: E402

from meshgate.mesh import Mesh  # noqa: E402

HOUR = timedelta(hours=1)
BEGINNING = source.BEGINNING
END = BEGINNING + 5 * HOUR
"""Refunds come three hours after their sale, at the earliest."""
FAULTS = [
    source.Fault.parse(text)
    for text in ("late=0.2", "duplicates=0.1", "nulls=0.1", "negative=0.05", "orphans=0.1", "late_items=0.3")
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lakehouse]:
    """Both projects deployed after five minutes, and run after two and after five hours that have faults of every sort."""
    folder = tmp_path_factory.mktemp("portfolio")
    with Lakehouse.start(folder) as lakehouse, pytest.MonkeyPatch.context() as patch:
        for name, value in lakehouse.environment().items():
            patch.setenv(name, value)
        with Mesh.open(PORTFOLIO, check=False) as mesh:
            mesh.migrate()
            for now in (BEGINNING + source.SLOT, BEGINNING + 2 * HOUR, END):
                source.generate(lakehouse.source, now, rate=1_200, faults=FAULTS)
                for project in ("upstream", "downstream"):
                    does = mesh.deploy if now - BEGINNING == source.SLOT else mesh.run
                    report = does(project, now=now)
                    assert report.exit_code == 0, report
        yield lakehouse
        lakehouse.destroy()


def compare(lakehouse: Lakehouse, **options: Any) -> dict[str, oracle.TableVerdict]:
    verdicts = oracle.compare(lakehouse.source, lakehouse.lake, END, **options)
    return {verdict.table: verdict for verdict in verdicts}


def wrong_tables(lakehouse: Lakehouse) -> dict[str, str]:
    return {name: str(verdict) for name, verdict in compare(lakehouse).items() if not verdict.right}


@contextmanager
def table_of(lakehouse: Lakehouse, name: str) -> Iterator[tuple[Any, str]]:
    """Give a connection that may write, and the physical table behind a name; undo what was done to it."""
    schema, view = name.split(".")
    with lakehouse.lake.connect(read_only=False) as connection:
        (text,) = connection.execute(
            "SELECT sql FROM duckdb_views() WHERE schema_name = ? AND view_name = ?", [schema, view]
        ).fetchone()
        table = text.rstrip("; \n").split(" FROM ")[-1]
        connection.execute(f"CREATE TEMP TABLE saved AS FROM {table}")
        try:
            yield connection, table
        finally:
            connection.execute(f"BEGIN; DELETE FROM {table}; INSERT INTO {table} FROM saved; COMMIT")


TABLES_OF_ROWS = [
    t for t in oracle.TABLES if not re.match(r"gold.dim_store|serving.(sales_(..)|current)", t.name)
]


@pytest.mark.portfolio
class TestOracle:
    """What the tables must contain is computed from the source, and each sort of difference is found."""

    def test_every_table_is_right(self, made: Lakehouse) -> None:
        """All tables have rows, but the one of whole days, and exactly those that the oracle computes from the source."""
        verdicts = compare(made)
        assert list(verdicts) == [table.name for table in oracle.TABLES]
        assert wrong_tables(made) == {}
        assert [name for name, verdict in verdicts.items() if not verdict.rows_found] == ["gold.item_day"]

    def test_every_table_of_the_projects_is_compared(self, made: Lakehouse) -> None:
        """But one, of which the source knows the present only; that is compared as gold.dim_store."""
        with made.lake.connect() as connection:
            views = connection.execute(
                "SELECT DISTINCT schema_name || '.' || view_name FROM duckdb_views() "
                "WHERE database_name = 'lake' AND schema_name NOT LIKE 'sqlmesh\\_\\_%' ESCAPE '\\'"
            ).fetchall()
        assert {name for (name,) in views} - {table.name for table in oracle.TABLES} == {"silver.stores"}

    @pytest.mark.parametrize("table", TABLES_OF_ROWS, ids=lambda table: table.name)
    def test_planted_differences_are_found(self, made: Lakehouse, table: oracle.Table) -> None:
        """A row deleted, a row doubled and each column changed are found, by key."""
        if table.name == "gold.item_day":
            pytest.skip("has no rows before the first day is over")

        def found() -> oracle.TableVerdict:
            return compare(made, tables=[table.name])[table.name]

        # Which thing, and from when on: that is what the key of a dimension says, and it is compared as that.
        named = {*table.key, table.time} | (
            {"item_id", "customer_id"} if table.name in oracle.KEYS.values() else set()
        )
        plain = [name for name in table.columns if name not in table.computed]
        by = ", ".join(table.key)
        first = f"WHERE ({by}) = (SELECT ({by}) FROM {{}} ORDER BY {by} LIMIT 1)"
        changed: dict[str, str] = {}
        with table_of(made, table.name) as (connection, physical):
            here = first.format(physical)
            types = dict(
                connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE {physical})").fetchall()
            )
            assert found().right
            connection.execute(f"CREATE TEMP TABLE one AS FROM {physical} {here}")
            connection.execute(f"DELETE FROM {physical} {here}")
            missing = found()
            assert (len(missing.missing), missing.double, missing.unexpected) == (1, (), ())
            connection.execute(f"INSERT INTO {physical} FROM one")
            connection.execute(f"INSERT INTO {physical} FROM one")
            if table.name not in oracle.KEYS.values():
                double = found()
                assert (double.missing, len(double.double), double.unexpected) == ((), 1, ())
            for column in plain:
                if column in named:
                    continue
                value = planted(column, types[column])
                connection.execute(f"DELETE FROM {physical} {here}")
                connection.execute(f"INSERT INTO {physical} SELECT * REPLACE ({value} AS {column}) FROM one")
                seen = found()
                changed[column] = (
                    "" if {d.column for d in seen.different} == {column} else str(seen.different)
                )
        assert {column: said for column, said in changed.items() if said} == {}
        assert found().right


def planted(column: str, kind: str) -> str:
    """Another value for a column."""
    if kind == "VARCHAR":
        return "'planted'"
    if kind.startswith("TIMESTAMP"):
        return f"coalesce({column}, TIMESTAMP '2026-01-05 01:00') + INTERVAL 1 MICROSECOND"
    if kind == "DATE":
        return f"{column} + 1"
    if kind == "BOOLEAN":
        return f"NOT {column}"
    if kind.endswith("[]"):
        return f"list_reverse({column}) || {column}"
    return f"coalesce({column}, 0) + 1"


class TestExpectation:
    """Rules that the oracle applies, on rows of one's own."""

    @staticmethod
    def expected(**changed: Any) -> dict[str, list[dict[str, Any]]]:
        rows = shop_rows() | changed
        return Expectation(Source(**rows), BEGINNING + 24 * HOUR).tables()

    def test_a_receipt_sent_twice_counts_once(self) -> None:
        """The one that was noted first counts, and the other's lines are rejected, whatever else is wrong with them."""
        rows = shop_rows()
        again = {**rows["transactions"][0], "transaction_id": "T1-again", "created_at": at(61)}
        lines = [
            *rows["line_items"],
            {**rows["line_items"][0], "transaction_id": "T1-again", "quantity": None},
        ]
        found = self.expected(transactions=[again, *rows["transactions"]], line_items=lines)
        assert [row["transaction_id"] for row in found["gold.fact_sales"]] == ["T1"]
        rejected = [(row["transaction_id"], row["reason"]) for row in found["silver.rejected_lines"]]
        assert rejected == [("T1-again", "sent twice")]

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            ({"quantity": None, "amount": None}, "no quantity"),
            ({"amount": None}, "no amount"),
            ({"amount": Decimal("-1.00")}, "no amount"),
            ({"amount": Decimal("0.00")}, "no amount"),
        ],
    )
    def test_what_cannot_be_used_is_rejected(self, fault: dict[str, Any], reason: str) -> None:
        """With its reason, and nothing of it is sold; its refund has no known sale."""
        found = self.expected(line_items=[{**shop_rows()["line_items"][0], **fault}])
        assert [row["reason"] for row in found["silver.rejected_lines"]] == [reason]
        assert found["gold.fact_sales"] == found["serving.sales_report"] == []
        assert [row["item_key"] for row in found["gold.fact_refunds"]] == ["unknown"]

    def test_a_missing_currency_is_the_stores(self) -> None:
        """Pounds in London; half a cent is rounded up."""
        found = self.expected(transactions=[{**shop_rows()["transactions"][0], "currency": None}])
        (line,) = found["silver.order_lines"]
        assert (line["currency"], line["amount_eur"]) == ("GBP", Decimal("11.64"))

    def test_the_version_that_begins_at_the_sale_counts(self) -> None:
        """From `valid_from` on, up to but without `valid_to`."""
        (before,) = self.expected()["gold.fact_sales"]
        assert before["item_key"] == ("I1", at(0))
        rows = shop_rows()
        versions = [*rows["item_versions"], {**rows["item_versions"][0], "updated_at": at(60)}]
        (after,) = self.expected(item_versions=versions)["gold.fact_sales"]
        assert after["item_key"] == ("I1", at(60))

    def test_nobody_and_unknown_differ(self) -> None:
        """Who said no name is nobody; who said one that the register does not have is unknown."""
        for customer, key in ((None, "nobody"), ("C999999", "unknown")):
            (fact,) = self.expected(
                transactions=[{**shop_rows()["transactions"][0], "customer_id": customer}]
            )["gold.fact_sales"]
            assert fact["customer_key"] == key

    def test_an_unsold_item_has_its_day(self) -> None:
        """With the price at the end of the day, and what was given back on that day."""
        found = self.expected(line_items=[], refunds=[])
        assert [(row["item_id"], row["quantity"]) for row in found["gold.item_day"]] == [("I1", 0)]
        (row,) = self.expected()["gold.item_day"]
        assert (row["quantity"], row["revenue_eur"], row["refunded_eur"]) == (
            1,
            Decimal("11.64"),
            Decimal("5.82"),
        )

    def test_only_versions_that_were_never_the_present_at_an_hour_may_be_missing(self) -> None:
        """Followed within the hour in which it was entered, or entered late together with its successor."""
        (first,) = shop_rows()["customer_versions"]
        second, third = (
            {**first, "updated_at": at(minute), "loaded_at": at(loaded)}
            for minute, loaded in ((70, 200), (190, 190))
        )
        assert may_be_missing([first, second]) == set()
        assert may_be_missing([first, second, third]) == {("C1", at(70))}
        assert may_be_missing([first, {**second, "updated_at": at(59), "loaded_at": at(59)}]) == {
            ("C1", at(0))
        }


def at(minutes: int) -> Any:
    return BEGINNING + timedelta(minutes=minutes)


def shop_rows() -> dict[str, list[dict[str, Any]]]:
    """One sale of one thing to one customer, and a refund of half of it."""
    times = {"created_at": at(60), "updated_at": at(60)}
    person = {"name": "Ada", "email": "a@b.example", "city": "Leeds", "country": "GB", "segment": "consumer"}
    thing = {"name": "Kettle", "description": "plain", "category": "kitchen", "list_price": Decimal("10.00")}
    receipt = {
        "transaction_id": "T1",
        "receipt_no": "S1/1",
        "store_id": "S1",
        "customer_id": "C1",
        "channel": "store",
    }
    return {
        "transactions": [
            {**receipt, "currency": "GBP", "status": "refunded", "occurred_at": at(60), **times}
        ],
        "line_items": [
            {
                "transaction_id": "T1", "line_no": 1, "item_id": "I1", "quantity": 1, "unit_price": Decimal("10.00"),
                "discount": Decimal("0.00"), "amount": Decimal("10.00"), "occurred_at": at(60), **times,
            }
        ],
        "refunds": [
            {
                "refund_id": "R1", "transaction_id": "T1", "line_no": 1, "quantity": 1, "amount": Decimal("5.00"),
                "reason": "broken", "refunded_at": at(120), **times,
            }
        ],
        "item_versions": [{"item_id": "I1", **thing, "updated_at": at(0), "loaded_at": at(0)}],
        "customer_versions": [{"customer_id": "C1", **person, "updated_at": at(0), "loaded_at": at(0)}],
        "stores": [{"store_id": "S1", "name": "Soho", "city": "London", "country": "GB", "currency": "GBP", "created_at": at(0)}],
    }  # fmt: skip


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[Path]:
    """The folder, copied, so that nothing of it lies where another test or a person works."""
    folder = tmp_path / "portfolio"
    shutil.copytree(PORTFOLIO, folder, ignore=shutil.ignore_patterns(".*", "logs", "__pycache__"))
    yield folder
    for home in (folder / ".meshgate", folder / ".meshgate-soak"):
        if home.exists():
            Lakehouse.start(home).destroy()


def environment() -> dict[str, str]:
    """That of a person who has just cloned the repository."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MESHGATE_LEDGER", "MESHGATE_LOCAL", "PORTFOLIO"))
    }
    return kept | {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "MESHGATE_LOCAL_FSYNC": "off"}


@pytest.mark.portfolio
class TestWholeProcesses:
    """What a person starts."""

    @pytest.mark.timeout(900)
    def test_the_demo_ends_with_right_tables(self, copied: Path) -> None:
        """Two hours of it: upstream late, a tick started twice; plain SQLMesh loses rows."""
        done = subprocess.run(
            [sys.executable, "demo.py", "--hours", "2"],
            cwd=copied, env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "every row of every table is right" in done.stdout
        assert "skipped, as another run of it lives" in done.stdout
        assert f"{copied}/.meshgate/dashboard/index.html" in done.stdout.replace("\n", "")
        counts = re.search(r"rows: (\d+) missing, (\d+) double", done.stdout)
        assert counts is not None, done.stdout
        # How many are double depends on how exactly the two runs meet.
        assert int(counts[1]) > 0

    @pytest.mark.timeout(900)
    def test_a_soak_that_is_killed_goes_on(self, copied: Path) -> None:
        """Killed with its processes in the middle of a tick, and started again: it ends with right tables, and does not begin anew."""
        soak = [sys.executable, "soak.py", "--hours", "2", "--rate", "1500"]
        with subprocess.Popen(
            soak, cwd=copied, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as killed:
            assert killed.stdout is not None
            for line in killed.stdout:
                if line.startswith("01-05 01:00"):
                    break
            else:
                pytest.fail("it ended too early")
            os.killpg(killed.pid, signal.SIGKILL)
        done = subprocess.run(
            soak, cwd=copied, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("going on after 1")
        assert "most_lines_are_usable" in done.stdout
        other = subprocess.run(
            [*soak, "--seed", "2"], cwd=copied, env=environment(), capture_output=True, text=True, check=False
        )
        assert other.returncode == 2
        assert "--anew" in other.stderr

    def test_what_the_readme_shows_runs(self, copied: Path) -> None:
        """Each command of the README ends well, in a fresh copy of the folder, and prints what is printed there."""
        blocks = re.findall(
            r"^```console\n(.*?)^```", (copied / "README.md").read_text(), re.MULTILINE | re.DOTALL
        )
        for block in blocks:
            for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE):
                done = subprocess.run(
                    ["bash", "-c", command], cwd=copied, env=environment(),
                    capture_output=True, text=True, timeout=240, check=False,
                )  # fmt: skip
                assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
                assert shown in {"", done.stdout}, command
