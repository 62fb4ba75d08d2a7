"""Every table of the corner shop against the source, when the history has changed what some of them compute."""

from __future__ import annotations

import sys
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

from tiny_mesh import at

sys.path.insert(0, str(Path(__file__).resolve().parent / "corner_shop"))

import corner_oracle as oracle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lakehouse import Lakehouse


def gold(
    lakehouse: Lakehouse, minutes: int, factor: Mapping[str, int], folder: Path
) -> list[oracle.TableVerdict]:
    """The gold tables by the corner shop's own oracle, told of the changes."""
    plain = oracle._facts, oracle.RATES
    rates = folder / "rates.csv"
    head, *lines = plain[1].read_text().splitlines()
    parts = [line.split(",") for line in lines]
    at_rate = head.split(",").index("euro_per_unit")
    for part in parts:
        part[at_rate] = str(Decimal(part[at_rate]) * factor["amount"])
    rates.write_text("\n".join([head, *(",".join(part) for part in parts)]) + "\n")

    def facts(*given: Any) -> list[oracle.Row]:
        return [row | {"quantity": row["quantity"] * factor["quantity"]} for row in plain[0](*given)]

    try:
        oracle._facts, oracle.RATES = facts, rates
        return oracle.compare(lakehouse.source, lakehouse.lake, at(minutes // 60 * 60))
    finally:
        oracle._facts, oracle.RATES = plain


def below(
    lakehouse: Lakehouse, minutes: int, factor: Mapping[str, int]
) -> Iterator[tuple[str, set[Any], set[Any]]]:
    """Bronze and silver: each table, what it holds, what it should."""
    keys = {"transactions": "occurred_at", "items": "updated_at", "customers": "updated_at"}
    found: dict[str, list[dict[str, Any]]] = {}
    with psycopg2.connect(lakehouse.source) as connection, connection.cursor() as cursor:
        cursor.execute("set time zone 'UTC'")
        for table, column in keys.items():
            rows = oracle._fetch(cursor, table)
            found[table] = [row for row in rows if row[column] < at(minutes)]
    connection.close()
    with lakehouse.lake.connect() as lake:
        for table, rows in found.items():
            facts = "delivery_id, " + ("amount, status" if table == "transactions" else "name")
            held = lake.execute(f"SELECT {facts} FROM lake.bronze.{table}").fetchall()
            assert len(held) == len(set(held)), table
            yield f"bronze.{table}", set(held), {tuple(row[f] for f in facts.split(", ")) for row in rows}
        held = lake.execute("SELECT transaction_id, amount_eur, status FROM lake.silver.orders").fetchall()
        assert len(held) == len(set(held))
        with oracle.RATES.open() as lines:
            rate = {r["currency"]: Decimal(r["euro_per_unit"]) for r in oracle.csv.DictReader(lines)}
        cent = Decimal("0.01")
        latest = oracle._latest(found["transactions"], "transaction_id")
        yield "silver.orders", set(held), {
            (r["transaction_id"], (r["amount"] * rate[r["currency"]] * factor["amount"]).quantize(cent, ROUND_HALF_UP), r["status"])
            for r in latest
        }  # fmt: skip
        for what in ("item", "customer"):
            held = lake.execute(
                f"SELECT {what}_id, name, epoch_us(updated_at) FROM lake.silver.{what}s"
            ).fetchall()
            latest = oracle._latest(found[f"{what}s"], f"{what}_id", "updated_at")
            assert len(held) == len(set(held)), what
            yield f"silver.{what}s", set(held), {
                (r[f"{what}_id"], r["name"], round(r["updated_at"].timestamp() * 10**6)) for r in latest
            }  # fmt: skip
