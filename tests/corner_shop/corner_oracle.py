"""What the gold tables must contain, computed a second time: from the source alone, in plain Python.

It shares nothing with the models but the file of exchange rates, so an error in either shows as a difference.
"""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lakehouse import LakeFacts

RATES = Path(__file__).resolve().parent / "upstream" / "seeds" / "currencies.csv"

Row = dict[str, Any]
Span = tuple[datetime, datetime]


@dataclass(frozen=True)
class Table:
    """A gold table: which columns name a row, and which column says to what time it belongs."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    time: str
    versioned: bool = False


DIM_ITEM = Table(
    "gold.dim_item",
    ("item_key", "item_id", "name", "category", "list_price", "valid_from", "valid_to"),
    ("item_key",),
    "valid_from",
    versioned=True,
)
DIM_CUSTOMER = Table(
    "gold.dim_customer",
    ("customer_key", "customer_id", "name", "country", "segment", "valid_from", "valid_to"),
    ("customer_key",),
    "valid_from",
    versioned=True,
)
FACT_SALES = Table(
    "gold.fact_sales",
    ("transaction_id", "item_key", "customer_key", "quantity", "amount", "currency", "amount_eur", "sold_at"),
    ("transaction_id",),
    "sold_at",
)
SALES_BY_CATEGORY_HOUR = Table(
    "gold.sales_by_category_hour",
    ("sale_hour", "category", "sales", "quantity", "revenue_eur"),
    ("sale_hour", "category"),
    "sale_hour",
)
TABLES = (DIM_ITEM, DIM_CUSTOMER, FACT_SALES, SALES_BY_CATEGORY_HOUR)


@dataclass(frozen=True)
class Difference:
    """One cell of one row that is in both, and differs."""

    key: tuple[object, ...]
    column: str
    expected: object
    found: object


@dataclass(frozen=True)
class TableVerdict:
    """How a table compares with what it must contain.

    Attributes:
        table: The table, as `gold.fact_sales`.
        rows_expected: The number of rows that it must have in the compared time.
        rows_found: The number of rows that it has there.
        missing: The keys of rows that it lacks.
        unexpected: The keys of rows that it must not have; a row that is there twice is once unexpected.
        different: The cells that differ, of rows that are in both.
    """

    table: str
    rows_expected: int
    rows_found: int
    missing: tuple[tuple[object, ...], ...]
    unexpected: tuple[tuple[object, ...], ...]
    different: tuple[Difference, ...]

    @property
    def right(self) -> bool:
        """Whether there is no difference at all."""
        return not (self.missing or self.unexpected or self.different)

    def __str__(self) -> str:
        if self.right:
            return f"{self.table}: {self.rows_found} rows, all right"
        return (
            f"{self.table}: {self.rows_found} rows instead of {self.rows_expected}: {len(self.missing)} missing,"
            f" {len(self.unexpected)} unexpected, {len(self.different)} cells different"
        )


def compare(
    dsn_source: str,
    lake: LakeFacts,
    upto: datetime | Mapping[str, datetime],
    *,
    without: Mapping[str, Sequence[Span]] | None = None,
) -> list[TableVerdict]:
    """Compare the gold tables of `prod`, row by row, with what the source says now.

    Args:
        dsn_source: The shop's database.
        lake: Where the tables are.
        upto: Up to which instant (UTC, exclusive, a whole hour) the tables claim to be complete: one for all, or one
            for each table by name; a table that is not named is not compared. Later rows are not looked at.
        without: Spans, half-open, UTC, by table, in which the table claims nothing: not looked at either. For the
            tables partitioned by time.

    Returns:
        One verdict for each compared table, dimensions first.
    """
    frontier = dict(upto) if isinstance(upto, Mapping) else {table.name: upto for table in TABLES}
    unknown = (frontier.keys() | (without or {}).keys()) - {table.name for table in TABLES}
    if unknown:
        raise ValueError(f"not gold tables: {', '.join(sorted(unknown))}")
    expected = expected_rows(dsn_source)
    found = _found_rows(lake, [table for table in TABLES if table.name in frontier])
    verdicts = []
    for table in TABLES:
        if table.name in frontier:
            limits = frontier[table.name], tuple((without or {}).get(table.name, ()))
            verdicts.append(
                _judge(
                    table,
                    _claimed(table, expected[table.name], *limits),
                    _claimed(table, found[table.name], *limits),
                )
            )
    return verdicts


def expected_rows(dsn_source: str) -> dict[str, list[Row]]:
    """Compute all rows of all gold tables from the source, without any limit in time."""
    with closing(psycopg2.connect(dsn_source)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("set time zone 'UTC'")
        transactions = _fetch(cursor, "transactions")
        items = _dimension(_fetch(cursor, "items"), "item", ("name", "category", "list_price"))
        customers = _dimension(_fetch(cursor, "customers"), "customer", ("name", "country", "segment"))
    facts = _facts(transactions, items, customers)
    return {
        DIM_ITEM.name: items,
        DIM_CUSTOMER.name: customers,
        FACT_SALES.name: facts,
        SALES_BY_CATEGORY_HOUR.name: _hours(facts, items),
    }


def _fetch(cursor: Any, table: str) -> list[Row]:
    cursor.execute(f"select * from public.{table}")
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _latest(deliveries: Iterable[Row], *key: str) -> list[Row]:
    """Of the deliveries with one key, keep the one that was loaded last."""
    kept: dict[tuple[Any, ...], Row] = {}
    for row in sorted(deliveries, key=lambda row: (row["loaded_at"], row["delivery_id"])):
        kept[tuple(row[column] for column in key)] = row
    return list(kept.values())


def _dimension(deliveries: Iterable[Row], what: str, attributes: Sequence[str]) -> list[Row]:
    histories: dict[str, list[Row]] = defaultdict(list)
    for version in _latest(deliveries, f"{what}_id", "updated_at"):
        histories[version[f"{what}_id"]].append(version)
    rows = []
    for identity, history in histories.items():
        history.sort(key=lambda version: version["updated_at"])
        ends = [version["updated_at"] for version in history[1:]] + [None]
        for version, end in zip(history, ends, strict=True):
            row = {
                f"{what}_key": f"{identity}@{version['updated_at']:%Y%m%d%H%M%S}",
                f"{what}_id": identity,
                "valid_from": version["updated_at"],
                "valid_to": end,
            }
            rows.append(row | {attribute: version[attribute] for attribute in attributes})
    return rows


class _Lookup:
    """Which version of something held at an instant."""

    def __init__(self, rows: Iterable[Row], what: str) -> None:
        self._versions: dict[str, list[tuple[datetime, str]]] = defaultdict(list)
        for row in rows:
            self._versions[row[f"{what}_id"]].append((row["valid_from"], row[f"{what}_key"]))
        for versions in self._versions.values():
            versions.sort()

    def at(self, identity: str, instant: datetime) -> str:
        versions = self._versions.get(identity, [])
        position = bisect_right(versions, instant, key=lambda version: version[0])
        return versions[position - 1][1] if position else "unknown"


def _facts(transactions: Iterable[Row], items: Iterable[Row], customers: Iterable[Row]) -> list[Row]:
    with RATES.open(encoding="utf-8", newline="") as lines:
        rates = {line["currency"]: Decimal(line["euro_per_unit"]) for line in csv.DictReader(lines)}
    item_at, customer_at = _Lookup(items, "item"), _Lookup(customers, "customer")
    facts = []
    for sale in _latest(transactions, "transaction_id"):
        if sale["status"] != "completed":
            continue
        rate, amount = rates.get(sale["currency"]), sale["amount"]
        euro = (
            None
            if rate is None or amount is None
            else (amount * rate).quantize(Decimal("0.01"), ROUND_HALF_UP)
        )
        facts.append(
            {
                "transaction_id": sale["transaction_id"],
                "item_key": item_at.at(sale["item_id"], sale["occurred_at"]),
                "customer_key": customer_at.at(sale["customer_id"], sale["occurred_at"]),
                "quantity": sale["quantity"],
                "amount": amount,
                "currency": sale["currency"],
                "amount_eur": euro,
                "sold_at": sale["occurred_at"],
            }
        )
    return facts


def _hours(facts: Iterable[Row], items: Iterable[Row]) -> list[Row]:
    categories = {row["item_key"]: row["category"] for row in items}
    groups: dict[tuple[datetime, str], list[Row]] = defaultdict(list)
    for fact in facts:
        hour = fact["sold_at"].replace(minute=0, second=0, microsecond=0)
        groups[hour, categories.get(fact["item_key"], "unknown")].append(fact)
    return [
        {
            "sale_hour": hour,
            "category": category,
            "sales": len(group),
            "quantity": sum(fact["quantity"] for fact in group),
            "revenue_eur": sum(fact["amount_eur"] or Decimal(0) for fact in group),
        }
        for (hour, category), group in groups.items()
    ]


def _found_rows(lake: LakeFacts, tables: Iterable[Table]) -> dict[str, list[Row]]:
    found = {}
    with lake.connect() as connection:
        for table in tables:
            # As microseconds: DuckDB's Python client would want another library for instants.
            times = {"valid_from", "valid_to", "sold_at", "sale_hour"}
            columns = ", ".join(
                f"epoch_us({name}) AS {name}" if name in times else name for name in table.columns
            )
            rows = connection.execute(f"SELECT {columns} FROM lake.{table.name}").fetchall()
            found[table.name] = [
                {
                    name: _instant(value) if name in times else value
                    for name, value in zip(table.columns, row, strict=True)
                }
                for row in rows
            ]
    return found


def _instant(microseconds: int | None) -> datetime | None:
    return (
        None
        if microseconds is None
        else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    )


def _claimed(table: Table, rows: Iterable[Row], upto: datetime, without: Sequence[Span]) -> list[Row]:
    """Cut rows to what the table claims: before `upto`, outside `without`.

    A dimension that was refreshed later than `upto` is cut to what it would have said then: a version whose end was
    not known yet has none.
    """
    claimed = []
    for row in rows:
        instant = row[table.time]
        if instant >= upto or any(start <= instant < end for start, end in without):
            continue
        if table.versioned and row["valid_to"] is not None and row["valid_to"] >= upto:
            claimed.append(row | {"valid_to": None})
        else:
            claimed.append(row)
    return claimed


def _judge(table: Table, expected: Sequence[Row], found: Sequence[Row]) -> TableVerdict:
    def keyed(rows: Sequence[Row]) -> dict[tuple[object, ...], Row]:
        return {tuple(row[column] for column in table.key): row for row in rows}

    def counted(rows: Sequence[Row]) -> Counter[tuple[object, ...]]:
        return Counter(tuple(row[column] for column in table.key) for row in rows)

    missing, unexpected = counted(expected) - counted(found), counted(found) - counted(expected)
    wanted, there = keyed(expected), keyed(found)
    different = [
        Difference(key, column, row[column], there[key][column])
        for key, row in sorted(wanted.items())
        if key in there
        for column in table.columns
        if row[column] != there[key][column]
    ]
    return TableVerdict(
        table=table.name,
        rows_expected=len(expected),
        rows_found=len(found),
        missing=tuple(sorted(missing.elements())),
        unexpected=tuple(sorted(unexpected.elements())),
        different=tuple(different),
    )
