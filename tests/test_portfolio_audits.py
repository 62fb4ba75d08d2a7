"""Every audit that SQLMesh brings and a model of the portfolio names: it passes rows as they should be, and catches its fault."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from portfolio_contexts import DOWNSTREAM, PORTFOLIO, UPSTREAM, opened

sys.path.insert(0, str(PORTFOLIO))

pytest.importorskip("duckdb", reason="needs meshgate[local]")

from sqlglot import exp

BEGINNING = datetime(2026, 1, 5, tzinfo=UTC)
TIME = {
    "start": BEGINNING,
    "end": BEGINNING + timedelta(days=1),
    "execution_time": BEGINNING + timedelta(days=1),
}
OWN = {
    "most_lines_are_usable", "quantity_is_named", "amount_is_positive", "currency_is_named", "receipts_come_in_time",
    "receipts_are_sent_once", "versions_are_entered_in_time", "spans_do_not_overlap", "members_are_known", "sale_is_known",
}  # fmt: skip
"""The portfolio's own are tried each on its fault in test_portfolio_upstream.py and test_portfolio_downstream.py."""


def value(kind: str) -> str:
    """Something of a type, which no audit minds."""
    if kind == "UNKNOWN":
        return "'1'"
    if kind.startswith("TIMESTAMP"):
        return "TIMESTAMPTZ '2026-01-05 10:00:00+00'"
    if kind == "DATE":
        return "DATE '2026-01-05'"
    if kind.endswith("[]"):
        return f"CAST([] AS {kind})"
    return f"CAST('1' AS {kind})"


def faults(name: str, given: dict[str, Any], types: dict[str, str]) -> list[str]:
    """What has to be caught: queries on the rows as they should be, `good`, of which there is one."""
    if name in ("unique_values", "unique_combination_of_columns"):
        return ["FROM good UNION ALL FROM good"]
    if name == "not_null":
        named = [column.name for column in given["columns"].find_all(exp.Column)]
        assert named
        return [f"SELECT * REPLACE (NULL::{types[column]} AS {column}) FROM good" for column in named]
    if name == "number_of_rows":
        return ["FROM good LIMIT 0"]
    assert name == "forall", f"{name} has no fault here"
    return [f"SELECT * REPLACE (-1 AS {e.this.name}) FROM good" for e in given["criteria"].expressions]


def test_each_audit_of_every_model_catches_its_fault() -> None:
    """And says nothing of good rows."""
    context = opened("duckdb", UPSTREAM, DOWNSTREAM)
    engine = context.engine_adapter
    for place in ("bronze", "silver", "ops", "gold", "serving"):
        engine.execute(f"CREATE SCHEMA lake.{place}")
    tried, own = 0, set()
    for model in context.models.values():
        types = {name: kind.sql("duckdb") for name, kind in (model.columns_to_types or {}).items()}
        if model.time_column and types[model.time_column.column.name] != "DATE":
            # Of some functions SQLMesh does not know the type.
            types[model.time_column.column.name] = "TIMESTAMPTZ"
        good = ", ".join(f"{value(kind)} AS {column}" for column, kind in types.items())
        for audit, given in model.audits_with_args:
            if audit.name in OWN:
                own.add(audit.name)
                continue
            many = 3_000 if audit.name == "number_of_rows" else 1
            engine.execute(f"CREATE OR REPLACE TEMP TABLE good AS SELECT {good} FROM range({many})")
            for rows in ("FROM good", *faults(audit.name, given, types)):
                engine.execute(f"CREATE OR REPLACE TABLE {model.fqn} AS {rows}")
                query = model.render_audit_query(audit, **TIME, engine_adapter=engine, **given)
                assert bool(engine.fetchall(query)) is (rows != "FROM good"), (model.name, audit.name, rows)
            tried += 1
    assert own == OWN
    assert tried > 30
