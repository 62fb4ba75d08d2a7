"""Compares the portfolio's tables, row by row, with what they must contain: `python oracle.py --upto 2026-01-05T03:00`.

What they must contain is computed in `expectation.py` from the source alone. Of `ops.arrivals` only that each five minutes were looked at
once: what it tells is how the source was then. Of `silver.stores` only what holds now, as `gold.dim_store`: the source has no more.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from expectation import NOBODY, UNKNOWN, Expectation, Source, may_be_missing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from expectation import Row
    from lakehouse import LakeFacts

INSTANTS = (
    "interval_start",
    "slot",
    "occurred_at",
    "created_at",
    "updated_at",
    "loaded_at",
    "refunded_at",
    "sold_at",
    "sale_hour",
    "valid_from",
    "valid_to",
)
KEYS = {"item_key": "gold.dim_item", "customer_key": "gold.dim_customer"}
"""The surrogate keys, and the dimension in which each is looked up."""


@dataclass(frozen=True)
class Table:
    """A table that is compared.

    Attributes:
        name: As `gold.fact_sales`.
        columns: Those that are compared.
        key: Those that name a row.
        time: The one that says to what time a row belongs; None: all rows are compared.
        computed: SQL for columns that are not compared as they are.
    """

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    time: str | None
    computed: Mapping[str, str] = field(default_factory=dict)


def _table(name: str, key: str, time: str | None, columns: str, **computed: str) -> Table:
    names = key.split()
    return Table(name, tuple(dict.fromkeys([*names, *columns.split()])), tuple(names), time, computed)


_LINE = "channel quantity unit_price discount amount currency amount_eur"
_FACT = f"receipt_no item_key customer_key store_id date_key sold_at {_LINE}"
_SOLD = f"{_FACT} item_id item_name category store_name store_country sale_date customer_country segment customer_id"
_ITEM = "name description category list_price"
_CUSTOMER = "name email city country segment"
_SUMS = "receipts lines quantity revenue_eur"
TABLES = (
    _table(
        "bronze.transactions", "transaction_id", "occurred_at",
        "receipt_no store_id customer_id channel currency status occurred_at created_at updated_at",
    ),
    _table(
        "bronze.line_items", "transaction_id line_no", "occurred_at",
        "item_id quantity unit_price discount amount occurred_at created_at updated_at",
    ),
    _table(
        "bronze.refunds", "refund_id", "refunded_at",
        "transaction_id line_no quantity amount reason refunded_at created_at updated_at",
    ),
    _table("bronze.item_versions", "item_id updated_at", "updated_at", f"{_ITEM} loaded_at"),
    _table("bronze.customer_versions", "customer_id updated_at", "updated_at", f"{_CUSTOMER} loaded_at"),
    _table("bronze.stores", "store_id", "created_at", "name city country currency created_at updated_at"),
    _table("bronze.currencies", "currency", None, "euro_per_unit"),
    _table("ops.arrivals", "interval_start", "interval_start", ""),
    _table("ops.lateness", "slot", "slot", "receipts late_receipts max_lateness_seconds"),
    _table(
        "silver.order_lines", "transaction_id line_no", "occurred_at",
        f"receipt_no store_id customer_id status item_id occurred_at updated_at {_LINE}",
    ),
    _table("silver.rejected_lines", "transaction_id line_no", "occurred_at", "reason occurred_at"),
    _table(
        "silver.refunds", "refund_id", "refunded_at", "transaction_id line_no quantity amount reason refunded_at"
    ),
    _table("silver.item_versions", "item_id updated_at", "updated_at", f"{_ITEM} loaded_at"),
    _table("silver.customer_versions", "customer_id updated_at", "updated_at", f"{_CUSTOMER} loaded_at"),
    _table("silver.customers", "customer_id", "updated_at", f"{_CUSTOMER} updated_at"),
    _table("gold.dim_date", "date_key", None, "date year quarter month day weekday is_weekend iso_week"),
    _table("gold.dim_item", "item_key", "valid_from", f"item_id {_ITEM} valid_from valid_to"),
    _table("gold.dim_customer", "customer_key", "valid_from", f"customer_id {_CUSTOMER} valid_from valid_to"),
    _table("gold.dim_store", "store_id", None, "name city country currency"),
    _table("gold.fact_sales", "transaction_id line_no", "sold_at", _FACT),
    _table(
        "gold.fact_refunds", "refund_id", "refunded_at",
        "transaction_id line_no item_key store_id quantity amount_eur reason sold_at refunded_at",
    ),
    _table("gold.store_day", "sale_date store_id", None, _SUMS),
    _table(
        "gold.item_day", "sale_date item_id", "sale_date", "price_at_end_of_day quantity revenue_eur refunded_eur",
        sale_date="CAST(sale_date AS DATE)",
    ),
    _table("serving.sales", "transaction_id line_no", "sold_at", _SOLD),
    _table("serving.receipts", "transaction_id", "sold_at", "store_id store_country sold_at lines revenue_eur items"),
    _table(
        "serving.sales_report", "sale_hour store_country category", "sale_hour", f"sale_date {_SUMS} customers",
        # A sketch that is not full has met them all.
        customers="LEN(customers_sketch)",
    ),
    *(_table(f"serving.sales_{c}", "transaction_id line_no", "sold_at", _SOLD) for c in ("de", "fr", "gb")),
    _table("serving.current_items", "item_id", None, f"{_ITEM} valid_from"),
)  # fmt: skip
BY_NAME = {table.name: table for table in TABLES}


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
        unexpected: The keys of rows that it must not have.
        double: The keys of rows that it has once too often, each as often as it is too many.
        different: The cells that differ, of rows that are in both.
    """

    table: str
    rows_expected: int
    rows_found: int
    missing: tuple[tuple[object, ...], ...] = ()
    unexpected: tuple[tuple[object, ...], ...] = ()
    double: tuple[tuple[object, ...], ...] = ()
    different: tuple[Difference, ...] = ()

    @property
    def right(self) -> bool:
        """Whether there is no difference at all."""
        return not (self.missing or self.unexpected or self.double or self.different)

    @property
    def rows_wrong(self) -> int:
        """Of the rows that are in both, how many differ in some cell."""
        return len({difference.key for difference in self.different})

    def __str__(self) -> str:
        if self.right:
            return f"{self.table}: {self.rows_found} rows, all right"
        counts = {
            "missing": len(self.missing),
            "double": len(self.double),
            "unexpected": len(self.unexpected),
            "wrong": self.rows_wrong,
        }
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"{self.table}: {self.rows_found} rows instead of {self.rows_expected}: {said}"

    def examples(self, most: int = 3) -> list[str]:
        """Some of what is wrong, in words."""
        said = [
            f"{what} {' '.join(map(str, key))}"
            for what in ("missing", "double", "unexpected")
            for key in getattr(self, what)[:most]
        ]
        return said + [
            f"{' '.join(map(str, d.key))}: {d.column} is {d.found!r} instead of {d.expected!r}"
            for d in self.different[:most]
        ]


def compare(
    source: str, lake: LakeFacts, upto: datetime, *, tables: Collection[str] | None = None
) -> list[TableVerdict]:
    """Compare the tables of `prod`, row by row, with what the source says now.

    Args:
        source: The shop's database.
        lake: Where the tables are.
        upto: Up to which instant (UTC, exclusive, a whole hour) the tables claim to be complete. Later rows are not looked at.
        tables: Which ones; by default all that there are.

    Returns:
        One verdict for each, bronze first.
    """
    unknown = set(tables or ()) - BY_NAME.keys()
    if unknown:
        raise ValueError(f"not compared: {', '.join(sorted(unknown))}")
    asked = [table for table in TABLES if tables is None or table.name in tables]
    found = _found([*asked, *(BY_NAME[name] for name in KEYS.values() if BY_NAME[name] not in asked)], lake)
    shop = Source.read(source)
    customers = {(row["customer_id"], row["updated_at"]) for row in shop.customer_versions}
    seen = {(row["customer_id"], row["valid_from"]) for row in found["gold.dim_customer"]}
    missed = (customers - seen) & may_be_missing(shop.customer_versions)
    expected = Expectation(shop, upto, missed).tables()
    return [_judge(table, expected[table.name], _claimed(table, found[table.name], upto)) for table in asked]


def _found(tables: Iterable[Table], lake: LakeFacts) -> dict[str, list[Row]]:
    """The tables' rows; in place of a surrogate key stands the version that it leads to."""
    with lake.connect() as connection:
        found = {table.name: _rows(connection, table) for table in tables}
    for key, dimension in KEYS.items():
        what = key.removesuffix("_key")
        members: dict[Any, Any] = {UNKNOWN: UNKNOWN, NOBODY: NOBODY}
        for row in found[dimension]:
            member = (row[f"{what}_id"], row["valid_from"])
            # A key that leads to two versions leads to none.
            members[row[key]] = member if members.get(row[key], member) == member else f"several {row[key]}"
        for rows in found.values():
            for row in rows:
                if key in row:
                    row[key] = members.get(row[key], f"no such key {row[key]}")
    return found


def _rows(connection: Any, table: Table) -> list[Row]:
    # As microseconds: DuckDB's Python client would want another library for instants.
    columns = ", ".join(
        f"{table.computed[name]} AS {name}"
        if name in table.computed
        else f"epoch_us({name}) AS {name}"
        if name in INSTANTS
        else f'"{name}"'
        for name in table.columns
    )
    rows = connection.execute(f"SELECT {columns} FROM lake.{table.name}").fetchall()
    return [
        {
            name: _instant(value) if name in INSTANTS else value
            for name, value in zip(table.columns, row, strict=True)
        }
        for row in rows
    ]


def _instant(microseconds: int | None) -> datetime | None:
    if microseconds is None:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def _claimed(table: Table, rows: Iterable[Row], upto: datetime) -> list[Row]:
    """Cut rows to what the table claims.

    A dimension that was refreshed later than `upto` is cut to what it would have said then: a version whose end was not known yet has
    none.
    """
    claimed = []
    for row in rows:
        instant = row[table.time] if table.time else None
        if instant is not None and (
            instant >= upto if isinstance(instant, datetime) else instant >= upto.date()
        ):
            continue
        if "valid_to" in row and row["valid_to"] is not None and row["valid_to"] >= upto:
            row = row | {"valid_to": None}  # noqa: PLW2901
        claimed.append(row)
    return claimed


def _judge(table: Table, expected: Sequence[Row], found: Sequence[Row]) -> TableVerdict:
    def key(row: Row) -> tuple[object, ...]:
        return tuple(row[column] for column in table.key)

    wanted = {key(row): row for row in expected}
    counts = Counter(map(key, found))
    surplus = counts - Counter(map(key, expected))
    # Of rows with one key each is compared: one that is right does not hide one that is wrong.
    different = [
        Difference(key(row), column, wanted[key(row)][column], row[column])
        for row in found
        if key(row) in wanted
        for column in table.columns
        if row[column] != wanted[key(row)][column]
    ]
    return TableVerdict(
        table=table.name,
        rows_expected=len(expected),
        rows_found=len(found),
        missing=_sorted(k for k in wanted if k not in counts),
        unexpected=_sorted(k for k in surplus.elements() if k not in wanted),
        double=_sorted(k for k in surplus.elements() if k in wanted),
        different=tuple(sorted(different, key=lambda d: (str(d.key), d.column))),
    )


def _sorted(keys: Iterable[tuple[object, ...]]) -> tuple[tuple[object, ...], ...]:
    return tuple(sorted(keys, key=str))


def main(argv: Sequence[str]) -> int:
    """Judge the lakehouse of this folder, or that of PORTFOLIO_HOME; 0 if every table is right."""
    from pathlib import Path

    from lakehouse import HOME, Lakehouse

    if len(argv) != 2 or argv[0] != "--upto":
        sys.stderr.write("usage: python oracle.py --upto 2026-01-05T03:00\n")
        return 2
    upto = datetime.fromisoformat(argv[1])
    with Lakehouse.start(Path(os.environ.get("PORTFOLIO_HOME", HOME))) as lakehouse:
        verdicts = compare(
            lakehouse.source, lakehouse.lake, upto.replace(tzinfo=UTC) if upto.tzinfo is None else upto
        )
    for verdict in verdicts:
        sys.stdout.write(f"{verdict}\n" + "".join(f"  {line}\n" for line in verdict.examples()))
    return 0 if all(verdict.right for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
