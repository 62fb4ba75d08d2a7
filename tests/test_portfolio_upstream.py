"""The portfolio's upstream: its unit tests pass, it speaks Databricks, each audit catches its fault, and silver heals by itself."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

from portfolio_contexts import PORTFOLIO, UPSTREAM, opened, rendered_for_databricks

sys.path.insert(0, str(PORTFOLIO))

pytest.importorskip("duckdb", reason="needs meshgate[local]")

import psycopg2
import source
import sqlglot
from lakehouse import Lakehouse
from ruamel.yaml import YAML

from meshgate.interval import Interval, IntervalSet
from meshgate.mesh import Mesh

BROKEN = 100
"""When a till breaks, in minutes after the shop began: five of six lines are bad then."""
LINE_ITEMS = '"lake"."bronze"."line_items"'
WARNED = {
    "nulls": {"quantity_is_named", "currency_is_named"},
    "negative": {"amount_is_positive"},
    "duplicates": {"receipts_are_sent_once"},
    "late": {"receipts_come_in_time"},
}
STANDALONE = {
    "silver_accounts_for_bronze", "sales_name_what_exists", "arrivals_are_as_usual", "source_has_no_new_columns",
}  # fmt: skip


def at(minutes: int) -> datetime:
    """An instant, in minutes after the shop began, UTC."""
    return source.BEGINNING + timedelta(minutes=minutes)


def fault(text: str, start: int, end: int) -> source.Fault:
    return source.Fault.parse(f"{text}@{at(start):%Y-%m-%dT%H:%M}/{at(end):%Y-%m-%dT%H:%M}")


def test_its_unit_tests_pass() -> None:
    """Everything that silver decides, on a DuckDB in memory."""
    result = opened("duckdb", UPSTREAM).test()
    assert [f"{test}: {text}" for test, text in (*result.failures, *result.errors)] == []
    assert result.testsRun >= 13


def test_every_model_and_audit_is_rendered_for_databricks_without_an_engine() -> None:
    """In words that are Databricks' own, where the engines differ."""
    context = opened("databricks", UPSTREAM)
    said = rendered_for_databricks(context, at(0), at(5))
    assert all(
        word in said for word in ("UNIX_SECONDS", "TIMESTAMPDIFF", "EXPLODE(SEQUENCE", "ANALYZE TABLE")
    )
    assert context.standalone_audits.keys() == STANDALONE
    for audit in context.standalone_audits.values():
        written = audit.render_audit_query(start=at(0), end=at(5), execution_time=at(5)).sql("databricks")
        assert sqlglot.parse_one(written, dialect="databricks")


def test_the_columns_that_the_schema_audit_knows_are_those_of_the_source() -> None:
    """What is declared of the source, and what an audit takes for known, is the same."""
    declared = YAML(typ="safe").load(UPSTREAM / "external_models.yaml")
    columns = {column for table in declared for column in table["columns"]}
    audit = opened("databricks", UPSTREAM).standalone_audits["source_has_no_new_columns"]
    known = [
        literal.name for inside in audit.query.find_all(sqlglot.exp.In) for literal in inside.expressions
    ]
    assert set(known) == columns | {table["name"].split(".")[-1] for table in declared}


def test_a_store_has_a_new_version_whatever_of_it_changes() -> None:
    """The shop never changes one, so the columns that are watched are compared with those that there are."""
    stores = opened("duckdb", UPSTREAM).get_model("silver.stores")
    watched = {column.name for column in stores.kind.columns}
    assert watched == set(stores.columns_to_types) - {"store_id", "valid_from", "valid_to"}


class Story:
    """Some hours of the shop with one fault after the other, and the runs between them.

    Attributes:
        lakehouse: Where it happened.
        reports: The runs, by what went wrong.
        why: What was said of the five minutes that were refused.
        standalone: How many rows each standalone audit found, by what went wrong.
    """

    def __init__(self, lakehouse: Lakehouse) -> None:
        self.lakehouse = lakehouse
        self.reports: dict[str, Any] = {}
        self.why: Any = None
        self.standalone: dict[str, Mapping[str, int]] = {}
        self.end = at(0)

    def play(self) -> None:
        """Everything."""
        with Mesh.open(PORTFOLIO, check=False) as mesh:
            mesh.migrate()
            self._until(60)
            mesh.deploy("upstream", now=at(60))
            self.standalone["clean"] = self._audits(0, 60)
            minutes = 60
            # What is asked for by chance depends on nothing but the seed: these are five minutes in which it happens.
            for text in ("nulls=0.6", "negative=0.2", "duplicates=0.5", "late=0.9"):
                self._tick(mesh, text.split("=")[0], minutes + 5, fault(text, minutes, minutes + 5))
                minutes += 5
            self._tick(mesh, "quiet", BROKEN)
            self._tick(mesh, "till", BROKEN + 5, fault("negative=1", BROKEN, BROKEN + 5))
            refused = Interval(at(BROKEN), at(BROKEN + 5))
            self.why = mesh.why(LINE_ITEMS, refused, now=at(BROKEN + 5))
            mesh.accept(LINE_ITEMS, refused, reason="the till was mended", by="test")
            self._tick(mesh, "accepted", 120, fault("orphans=1", 110, 120))
            self.standalone["orphans"] = self._audits(60, 120)
            changed = source.Fault.parse(f"schema_change@{at(120):%Y-%m-%dT%H:%M}/")
            self._tick(mesh, "burst", 180, changed, fault("burst=9", 120, 180))
            self.standalone["schema_change"] = self.standalone["burst"] = self._audits(120, 180)
            dark = fault("outage", 180, 250)
            self._tick(mesh, "outage", 240, changed, dark)
            self.standalone["outage"] = self._audits(180, 240)
            self._tick(mesh, "after", 255, changed, dark)
            self._tick(mesh, "late_items", 300, changed, fault("late_items=0.9", 255, 300))
            # What came last is seen before the next run.
            self._tick(mesh, "rest", 305, changed)

    def _until(self, minutes: int, *faults: source.Fault) -> None:
        source.generate(self.lakehouse.source, at(minutes), rate=600, faults=faults)
        self.end = at(minutes)

    def _tick(self, mesh: Mesh, name: str, minutes: int, *faults: source.Fault) -> None:
        self._until(minutes, *faults)
        self.reports[name] = mesh.run("upstream", now=at(minutes))

    def _audits(self, start: int, end: int) -> Mapping[str, int]:
        """The standalone audits, as SQLMesh evaluates them."""
        from sqlmesh import Context

        with closing(Context(paths=[str(UPSTREAM)])) as context:
            found = {}
            for name in context.standalone_audits:
                (result,) = context.snapshot_evaluator.audit(
                    snapshot=context.get_snapshot(name, raise_if_missing=True), start=at(start), end=at(end),
                    execution_time=at(end), snapshots=context.snapshots,
                )  # fmt: skip
                found[name] = result.count
        return found


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, extensions: None) -> Iterator[Story]:
    with (
        Lakehouse.start(tmp_path_factory.mktemp("upstream")) as lakehouse,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in lakehouse.environment().items():
            patch.setenv(name, value)
        told = Story(lakehouse)
        told.play()
        yield told
        lakehouse.destroy()


def warnings(report: Any) -> set[str]:
    """Which audits warned in a run."""
    return {a["audit"] for w in report.warned for a in w.detail["audits"] if a["count"] and not a["blocking"]}


@pytest.mark.portfolio
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", WARNED)
def test_an_audit_warns_of_single_bad_rows_and_nothing_is_kept_back(story: Story, kind: str) -> None:
    """Of those, and of nothing else."""
    report = story.reports[kind]
    assert (warnings(report), report.failed, report.state) == (WARNED[kind], (), "done")


@pytest.mark.portfolio
@pytest.mark.timeout(900)
def test_late_versions_of_items_are_told(story: Story) -> None:
    assert "versions_are_entered_in_time" in warnings(story.reports["late_items"])


@pytest.mark.portfolio
@pytest.mark.timeout(900)
def test_a_broken_till_is_refused_until_a_person_has_looked(story: Story) -> None:
    """The reason is named; silver waits for these five minutes only, and takes them when they are accepted."""
    report = story.reports["till"]
    (failure,) = report.failed
    assert (failure.model, failure.interval) == (LINE_ITEMS, Interval(at(BROKEN), at(BROKEN + 5)))
    assert [a["audit"] for a in failure.detail["audits"]] == ["most_lines_are_usable"]
    assert "most_lines_are_usable" in str(story.why)
    done = story.reports["accepted"].committed['"lake"."silver"."order_lines"']
    assert not IntervalSet([Interval(at(BROKEN), at(120))]) - done


@pytest.mark.portfolio
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "audit"),
    [
        ("orphans", "sales_name_what_exists"),
        ("schema_change", "source_has_no_new_columns"),
        ("burst", "arrivals_are_as_usual"),
        ("outage", "arrivals_are_as_usual"),
    ],
)
def test_a_standalone_audit_catches_what_concerns_several_tables(story: Story, kind: str, audit: str) -> None:
    """That one finds something then, and nothing where nothing is wrong."""
    assert story.standalone["clean"] == dict.fromkeys(STANDALONE, 0)
    assert story.standalone[kind][audit] > 0
    assert story.standalone[kind]["silver_accounts_for_bronze"] == 0


@pytest.mark.portfolio
@pytest.mark.timeout(900)
def test_the_accounts_audit_notices_a_line_that_got_lost(story: Story) -> None:
    """And one that is there twice."""
    with story.lakehouse.lake.connect(read_only=False) as connection:
        (view,) = connection.execute(
            "SELECT sql FROM duckdb_views() WHERE schema_name = 'silver' AND view_name = 'order_lines'"
        ).fetchone()
        table = view.rstrip("; \n").split(" FROM ")[-1]
        inside = f"occurred_at < '{at(60)}'"
        connection.execute(f"CREATE TEMP TABLE kept AS FROM {table} WHERE {inside}")
        try:
            connection.execute(f"DELETE FROM {table} WHERE {inside}")
            connection.execute(f"INSERT INTO {table} FROM kept OFFSET 1")
            lost = story._audits(0, 60)["silver_accounts_for_bronze"]
            connection.execute(f"INSERT INTO {table} FROM kept")
            twice = story._audits(0, 60)["silver_accounts_for_bronze"]
        finally:
            connection.execute(f"DELETE FROM {table} WHERE {inside}")
            connection.execute(f"INSERT INTO {table} FROM kept")
        (count,) = connection.execute("SELECT COUNT(*) FROM kept").fetchone()
    assert (lost, twice) == (1, count - 1)


JUDGED = """
WITH heads AS (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY receipt_no, occurred_at ORDER BY created_at, transaction_id) AS delivery
  FROM shop.transactions WHERE occurred_at < {end}
), judged AS (
  SELECT l.*, h.receipt_no, h.store_id, h.customer_id, h.channel, h.status, COALESCE(h.currency, s.currency) AS currency,
    GREATEST(h.updated_at, l.updated_at) AS changed_at,
    CASE WHEN delivery > 1 THEN 'sent twice' WHEN quantity IS NULL THEN 'no quantity'
         WHEN amount IS NULL OR amount <= 0 THEN 'no amount' END AS refused
  FROM shop.line_items l JOIN heads h USING (transaction_id) JOIN shop.stores s USING (store_id)
)
"""
LINE = "transaction_id, line_no, receipt_no, store_id, customer_id, channel, status, item_id, quantity, unit_price, discount, amount, currency"
ITEM = "item_id, name, description, category, list_price"
CUSTOMER = "customer_id, name, email, city, country, segment"
EURO = (
    "ROUND(amount * CASE currency WHEN 'EUR' THEN 1 WHEN 'GBP' THEN 1.163500 WHEN 'USD' THEN 0.921700 END, 2)"
)
LATENESS = """
WITH receipts AS (
  SELECT TO_TIMESTAMP(FLOOR(EXTRACT(EPOCH FROM occurred_at) / 300) * 300) AS slot, FLOOR(EXTRACT(EPOCH FROM created_at - occurred_at))::bigint AS late
  FROM shop.transactions WHERE occurred_at < {end}
)
"""
EXPECTED = {
    "silver.order_lines": (
        f"{JUDGED} SELECT {LINE}, {EURO}, occurred_at, changed_at FROM judged WHERE refused IS NULL",
        f"{LINE}, amount_eur, occurred_at, updated_at",
    ),
    "silver.rejected_lines": (
        f"{JUDGED} SELECT transaction_id, line_no, refused, occurred_at FROM judged WHERE refused IS NOT NULL",
        "transaction_id, line_no, reason, occurred_at",
    ),
    "silver.refunds": (
        "SELECT refund_id, transaction_id, line_no, quantity, amount, reason, refunded_at FROM shop.refunds WHERE amount > 0 AND refunded_at < {end}",
        "refund_id, transaction_id, line_no, quantity, amount, reason, refunded_at",
    ),
    "silver.item_versions": (
        f"SELECT {ITEM}, updated_at, loaded_at FROM shop.item_versions WHERE updated_at < {{end}}",
        f"{ITEM}, updated_at, loaded_at",
    ),
    "silver.customer_versions": (
        f"SELECT {CUSTOMER}, updated_at, loaded_at FROM shop.customer_versions WHERE updated_at < {{end}}",
        f"{CUSTOMER}, updated_at, loaded_at",
    ),
    "silver.customers": (
        f"SELECT DISTINCT ON (customer_id) {CUSTOMER}, updated_at, loaded_at FROM shop.customer_versions WHERE updated_at < {{end}} ORDER BY 1, updated_at DESC",
        f"{CUSTOMER}, updated_at, loaded_at",
    ),
    "ops.lateness": (
        f"{LATENESS} SELECT slot, COUNT(*), COUNT(*) FILTER (WHERE late > 300), MAX(late) FROM receipts GROUP BY 1",
        "slot, receipts, late_receipts, max_lateness_seconds",
    ),
}


@pytest.mark.portfolio
@pytest.mark.timeout(900)
@pytest.mark.parametrize("table", EXPECTED)
def test_in_the_end_every_table_is_what_the_source_says(story: Story, table: str) -> None:
    """After every fault, with nobody's help but one acceptance: by plain SQL on the source."""
    query, columns = EXPECTED[table]
    with closing(psycopg2.connect(story.lakehouse.source)) as connection, connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
        cursor.execute(query.format(end=f"timestamptz '{story.end}'"))
        expected = sorted(tuple(map(str, row)) for row in cursor.fetchall())
    with story.lakehouse.lake.connect() as connection:
        kinds = connection.execute(f"DESCRIBE SELECT {columns} FROM lake.{table}").fetchall()
        # As text: DuckDB's Python client would want another library for instants.
        texts = [
            f"STRFTIME({name}, '%Y-%m-%d %H:%M:%S.%f')" if kind.startswith("TIMESTAMP") else name
            for name, kind, *_ in kinds
        ]
        found = connection.execute(f"SELECT {', '.join(texts)} FROM lake.{table}").fetchall()
    assert sorted(tuple(map(str, row)) for row in found) == [tuple(map(padded, row)) for row in expected]
    assert expected


def padded(text: str) -> str:
    """An instant as the other side writes it."""
    if text.endswith("+00:00"):
        text = text.removesuffix("+00:00")
        return text if "." in text else f"{text}.000000"
    return text


@pytest.mark.portfolio
@pytest.mark.timeout(900)
def test_arrivals_are_observed_once_for_each_five_minutes(story: Story) -> None:
    """One row each, also where nothing came; and what was seen adds up to the receipts, less what the source changed before it was seen."""
    with story.lakehouse.lake.connect() as connection:
        rows = connection.execute(
            "SELECT COUNT(*), COUNT(DISTINCT interval_start), SUM(receipts) FROM lake.ops.arrivals"
        ).fetchone()
    with closing(psycopg2.connect(story.lakehouse.source)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM shop.transactions")
        (receipts,) = cursor.fetchone()
    slots = (story.end - at(0)) // source.SLOT
    assert rows[:2] == (slots, slots)
    assert 0.9 * receipts < rows[2] <= receipts
