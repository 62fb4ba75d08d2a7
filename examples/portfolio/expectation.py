"""What the portfolio's tables must contain, computed a second time: from the source alone, in plain Python.

It shares nothing with the models but the file of exchange rates, so an error in either shows as a difference. Surrogate keys are not
computed again: in their place stands what they have to lead to, the thing and the instant from which its version holds.
"""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
from source import BEGINNING, SLOT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

RATES = Path(__file__).resolve().parent / "upstream" / "seeds" / "currencies.csv"
CENT = Decimal("0.01")
UNKNOWN, NOBODY = "unknown", "nobody"
REFUNDED_WITHIN = timedelta(days=5)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)

Row = dict[str, Any]
Member = tuple[str, datetime]
"""A version of a thing: which thing, and from when on it holds."""


@dataclass(frozen=True)
class Source:
    """The rows of the shop's tables, as they are now. Instants are UTC."""

    transactions: list[Row]
    line_items: list[Row]
    refunds: list[Row]
    item_versions: list[Row]
    customer_versions: list[Row]
    stores: list[Row]

    @classmethod
    def read(cls, dsn: str) -> Source:
        """All of them, of one instant."""
        with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
            cursor.execute("set transaction isolation level repeatable read")
            cursor.execute("set time zone 'UTC'")
            return cls(**{name: _fetch(cursor, name) for name in cls.__dataclass_fields__})


def _fetch(cursor: Any, table: str) -> list[Row]:
    cursor.execute(f"select * from shop.{table}")
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def rates() -> dict[str, Decimal]:
    """Euro for one unit of each currency."""
    with RATES.open(encoding="utf-8", newline="") as lines:
        return {line["currency"]: Decimal(line["euro_per_unit"]) for line in csv.DictReader(lines)}


class Versions:
    """The versions of things, each with the span in which it holds."""

    def __init__(self, rows: Iterable[Row], key: str) -> None:
        self.rows: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            self.rows[row[key]].append(row)
        for versions in self.rows.values():
            versions.sort(key=lambda row: row["updated_at"])

    def at(self, identity: str, instant: datetime) -> Row | None:
        """The version that holds at an instant."""
        versions = self.rows.get(identity, [])
        position = bisect_right(versions, instant, key=lambda row: row["updated_at"])
        return versions[position - 1] if position else None

    def before(self, identity: str, end: datetime) -> Row | None:
        """The last version that begins before an instant."""
        found = [row for row in self.rows[identity] if row["updated_at"] < end]
        return found[-1] if found else None

    def spans(self) -> Iterable[tuple[Row, datetime | None]]:
        """Each version, and when it ends."""
        for versions in self.rows.values():
            for row, following in zip(versions, [*versions[1:], None], strict=True):
                yield row, following["updated_at"] if following else None


def may_be_missing(versions: Iterable[Row]) -> set[Member]:
    """Versions of customers of which an hourly reader of the register need never have heard.

    The register holds the present only. So a version that was followed by another before the hour was over in which it was entered
    was never there at the end of an hour.
    """
    missed = set()
    for history in Versions(versions, "customer_id").rows.values():
        for position, row in enumerate(history):
            seen = _hour(row["loaded_at"]) + HOUR
            if any(later["loaded_at"] < seen for later in history[position + 1 :]):
                missed.add((row["customer_id"], row["updated_at"]))
    return missed


class Expectation:
    """The rows that the tables must have.

    Args:
        source: The shop.
        upto: What happened from this instant (UTC, a whole hour) on is left out.
        missed: Versions of customers that an hourly register has not seen.
    """

    def __init__(self, source: Source, upto: datetime, missed: Collection[Member] = ()) -> None:
        self.source = source
        self.upto = upto
        self._rates = rates()
        self._stores = {row["store_id"]: row for row in source.stores}
        self.items = Versions((r for r in source.item_versions if r["updated_at"] < upto), "item_id")
        self.customers = Versions(
            (
                row
                for row in source.customer_versions
                if row["updated_at"] < upto and (row["customer_id"], row["updated_at"]) not in missed
            ),
            "customer_id",
        )
        self._lines, self._rejected = self._cleaned()
        self._facts = [self._fact(line) for line in self._lines if line["status"] != "cancelled"]
        self._sold = [self._flat(fact) for fact in self._facts]
        self._refunds = list(self._fact_refunds())

    def tables(self) -> dict[str, list[Row]]:
        """All of them, by name."""
        slots = (self.upto - BEGINNING) // SLOT
        return {
            **self._bronze(),
            "ops.lateness": list(self._lateness()),
            "ops.arrivals": [{"interval_start": BEGINNING + slot * SLOT} for slot in range(slots)],
            "silver.order_lines": self._lines,
            "silver.rejected_lines": self._rejected,
            "silver.refunds": self._silver_refunds(),
            "silver.item_versions": [r for rows in self.items.rows.values() for r in rows],
            "silver.customer_versions": [
                r for r in self.source.customer_versions if r["updated_at"] < self.upto
            ],
            "silver.customers": self._register(),
            "gold.dim_date": list(_days(date(2025, 1, 1), date(2031, 1, 1))),
            "gold.dim_item": list(_dimension(self.items, "item")),
            "gold.dim_customer": list(_dimension(self.customers, "customer")),
            "gold.dim_store": [row for row in self.source.stores if row["created_at"] < self.upto],
            "gold.fact_sales": self._facts,
            "gold.fact_refunds": self._refunds,
            "gold.store_day": self._store_days(),
            "gold.item_day": list(self._item_days()),
            "serving.sales": self._sold,
            "serving.receipts": self._receipts(),
            "serving.sales_report": self._report(),
            **{
                f"serving.sales_{country}": [
                    row for row in self._sold if row["store_country"] == country.upper()
                ]
                for country in ("de", "fr", "gb")
            },
            "serving.current_items": [
                {**row, "valid_from": row["updated_at"]} for row, end in self.items.spans() if end is None
            ],
        }

    # -- bronze

    def _bronze(self) -> dict[str, list[Row]]:
        happens = {
            "transactions": "occurred_at",
            "line_items": "occurred_at",
            "refunds": "refunded_at",
            "item_versions": "updated_at",
            "customer_versions": "updated_at",
            "stores": "created_at",
        }
        return {
            f"bronze.{name}": [row for row in getattr(self.source, name) if row[time] < self.upto]
            for name, time in happens.items()
        } | {"bronze.currencies": [{"currency": c, "euro_per_unit": r} for c, r in self._rates.items()]}

    def _lateness(self) -> Iterable[Row]:
        slots = defaultdict(list)
        for head in self.source.transactions:
            if head["occurred_at"] < self.upto:
                slot = BEGINNING + (head["occurred_at"] - BEGINNING) // SLOT * SLOT
                slots[slot].append((head["created_at"] - head["occurred_at"]) // timedelta(seconds=1))
        for slot, seconds in slots.items():
            late = sum(passed > SLOT.total_seconds() for passed in seconds)
            yield {
                "slot": slot,
                "receipts": len(seconds),
                "late_receipts": late,
                "max_lateness_seconds": max(seconds),
            }

    # -- silver

    def _cleaned(self) -> tuple[list[Row], list[Row]]:
        heads = {
            row["transaction_id"]: row for row in self.source.transactions if row["occurred_at"] < self.upto
        }
        firsts: dict[tuple[str, datetime], Row] = {}
        for head in sorted(heads.values(), key=lambda head: (head["created_at"], head["transaction_id"])):
            firsts.setdefault((head["receipt_no"], head["occurred_at"]), head)
        lines, rejected = [], []
        for line in self.source.line_items:
            found = heads.get(line["transaction_id"])
            if found is None:
                continue
            head = found
            if firsts[head["receipt_no"], head["occurred_at"]] is not head:
                reason = "sent twice"
            elif line["quantity"] is None:
                reason = "no quantity"
            elif line["amount"] is None or line["amount"] <= 0:
                reason = "no amount"
            else:
                lines.append(self._line(head, line))
                continue
            rejected.append({**line, "reason": reason})
        return lines, rejected

    def _line(self, head: Row, line: Row) -> Row:
        currency = head["currency"] or self._stores[head["store_id"]]["currency"]
        return {
            **head,
            **line,
            "currency": currency,
            "amount_eur": self._euro(line["amount"], currency),
            "updated_at": max(head["updated_at"], line["updated_at"]),
        }

    def _euro(self, amount: Decimal, currency: str) -> Decimal | None:
        rate = self._rates.get(currency)
        return None if rate is None else (amount * rate).quantize(CENT, ROUND_HALF_UP)

    def _silver_refunds(self) -> list[Row]:
        return [
            row
            for row in self.source.refunds
            if row["refunded_at"] < self.upto and row["amount"] is not None and row["amount"] > 0
        ]

    def _register(self) -> list[Row]:
        versions = Versions(
            (row for row in self.source.customer_versions if row["updated_at"] < self.upto), "customer_id"
        )
        return [history[-1] for history in versions.rows.values()]

    # -- gold

    def _fact(self, line: Row) -> Row:
        return {
            **line,
            "item_key": _member(self.items.at(line["item_id"], line["occurred_at"]), "item_id"),
            "customer_key": NOBODY
            if line["customer_id"] is None
            else _member(self.customers.at(line["customer_id"], line["occurred_at"]), "customer_id"),
            "date_key": int(f"{line['occurred_at']:%Y%m%d}"),
            "sold_at": line["occurred_at"],
        }

    def _fact_refunds(self) -> Iterable[Row]:
        lines = {(line["transaction_id"], line["line_no"]): line for line in self._lines}
        for refund in self._silver_refunds():
            line = lines.get((refund["transaction_id"], refund["line_no"]))
            if line is not None and line["occurred_at"] < refund["refunded_at"] - REFUNDED_WITHIN:
                line = None
            if line is None:
                found: Row = {"item_key": UNKNOWN, "store_id": None, "amount_eur": None, "sold_at": None}
            else:
                found = {
                    "item_key": _member(self.items.at(line["item_id"], line["occurred_at"]), "item_id"),
                    "store_id": line["store_id"],
                    "amount_eur": self._euro(refund["amount"], line["currency"]),
                    "sold_at": line["occurred_at"],
                }
            yield {**refund, **found}

    def _store_days(self) -> list[Row]:
        groups = _grouped(self._facts, lambda fact: (fact["sold_at"].date(), fact["store_id"]))
        return [
            {"sale_date": day, "store_id": store, **_sums(group)} for (day, store), group in groups.items()
        ]

    def _item_days(self) -> Iterable[Row]:
        sold = _grouped(self._facts, lambda fact: (fact["sold_at"].date(), _thing(fact["item_key"])))
        given_back = _grouped(self._refunds, lambda row: (row["refunded_at"].date(), _thing(row["item_key"])))
        first = min(
            (row["updated_at"] for rows in self.items.rows.values() for row in rows), default=self.upto
        )
        midnight = datetime.combine(first.date(), datetime.min.time(), UTC)
        while midnight + DAY <= self.upto:
            for item in self.items.rows:
                version = self.items.before(item, midnight + DAY)
                if version is None:
                    continue
                facts, refunds = (found.get((midnight.date(), item), []) for found in (sold, given_back))
                yield {
                    "sale_date": midnight.date(),
                    "item_id": item,
                    "price_at_end_of_day": version["list_price"],
                    "quantity": sum(fact["quantity"] for fact in facts),
                    "revenue_eur": sum((fact["amount_eur"] for fact in facts), Decimal(0)),
                    "refunded_eur": sum((row["amount_eur"] for row in refunds), Decimal(0)),
                }
            midnight += DAY

    # -- serving

    def _flat(self, fact: Row) -> Row:
        item = None if fact["item_key"] == UNKNOWN else self.items.at(fact["item_id"], fact["sold_at"])
        customer = None
        if fact["customer_key"] not in (UNKNOWN, NOBODY):
            customer = self.customers.at(fact["customer_id"], fact["sold_at"])
        store = self._stores[fact["store_id"]]
        return {
            **fact,
            "item_id": item["item_id"] if item else UNKNOWN,
            "item_name": item["name"] if item else UNKNOWN,
            "category": item["category"] if item else UNKNOWN,
            "store_name": store["name"],
            "store_country": store["country"],
            "sale_date": fact["sold_at"].date(),
            **{name: customer[name] if customer else None for name in ("customer_id", "segment")},
            "customer_country": customer["country"] if customer else None,
        }

    def _receipts(self) -> list[Row]:
        receipts = []
        for (receipt,), group in _grouped(self._sold, lambda row: (row["transaction_id"],)).items():
            lines = sorted(group, key=lambda row: row["line_no"])
            shown = ("line_no", "item_id", "category", "quantity", "amount_eur")
            receipts.append(
                {
                    **{name: lines[0][name] for name in ("store_id", "store_country", "sold_at")},
                    "transaction_id": receipt,
                    "lines": len(lines),
                    "revenue_eur": sum(line["amount_eur"] for line in lines),
                    "items": [{name: line[name] for name in shown} for line in lines],
                }
            )
        return receipts

    def _report(self) -> list[Row]:
        groups = _grouped(
            self._sold, lambda row: (_hour(row["sold_at"]), row["store_country"], row["category"])
        )
        return [
            {
                "sale_hour": hour,
                "store_country": country,
                "category": category,
                **_sums(group),
                "sale_date": hour.date(),
                "customers": len({row["customer_id"] for row in group} - {None}),
            }
            for (hour, country, category), group in groups.items()
        ]


def _member(version: Row | None, key: str) -> Member | str:
    return UNKNOWN if version is None else (version[key], version["updated_at"])


def _thing(member: Member | str) -> str:
    return member if isinstance(member, str) else member[0]


def _dimension(versions: Versions, what: str) -> Iterable[Row]:
    for row, end in versions.spans():
        key = _member(row, f"{what}_id")
        yield {**row, f"{what}_key": key, "valid_from": row["updated_at"], "valid_to": end}


def _sums(facts: Collection[Row]) -> Row:
    return {
        "receipts": len({fact["transaction_id"] for fact in facts}),
        "lines": len(facts),
        "quantity": sum(fact["quantity"] for fact in facts),
        "revenue_eur": sum((fact["amount_eur"] for fact in facts), Decimal(0)),
    }


def _days(first: date, end: date) -> Iterable[Row]:
    day = first
    while day < end:
        yield {
            "date_key": int(f"{day:%Y%m%d}"),
            "date": day,
            "year": day.year,
            "quarter": (day.month + 2) // 3,
            "month": day.month,
            "day": day.day,
            "weekday": day.isoweekday(),
            "is_weekend": day.isoweekday() > 5,
            "iso_week": day.isocalendar().week,
        }
        day += DAY


def _hour(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)


def _grouped(rows: Iterable[Row], key: Any) -> Mapping[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups
