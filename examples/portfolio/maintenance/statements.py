"""The statements of each operation, by engine: the one place where engines differ.

| operation | Databricks | DuckLake, its local stand-in |
|---|---|---|
| optimize | OPTIMIZE, with ZORDER BY or by liquid clustering | inlined rows to files, files without deleted rows, small files together |
| vacuum | VACUUM ... RETAIN | snapshots expire and their files are deleted: of the whole catalog, there is no other way |
| analyze | ANALYZE TABLE ... COMPUTE STATISTICS | nothing: each file carries its statistics |
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from meshgate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maintenance.policy import Operation

HOUR_S = 3600


def render(dialect: str, table: str, operation: Operation) -> tuple[str, ...]:
    """What is to be executed; nothing where the engine needs none.

    Args:
        dialect: The engine's.
        table: As the engine writes it: catalog, schema, name.
        operation: What to do.

    Raises:
        ConfigError: There is no rendering for that engine.
    """
    if dialect == "databricks":
        return _databricks(table, operation)
    if dialect == "duckdb":
        return _ducklake(table, operation)
    raise ConfigError(
        f"maintenance knows Databricks and DuckLake, not {dialect}", hint="add its statements here"
    )


def is_of_all_tables(dialect: str, operation: Operation) -> bool:
    """Whether it is about everything that lies in the catalog, whichever table it is asked for."""
    return dialect == "duckdb" and operation.name == "vacuum"


def ask_predictive(dialect: str, table: str) -> str | None:
    """Asks whether the platform looks after a table by itself; None where no platform does."""
    return f"DESCRIBE TABLE EXTENDED {table}" if dialect == "databricks" else None


def is_predictive(answer: Iterable[tuple[Any, ...]]) -> bool:
    """What the answer to that says: `ENABLE`, or `ENABLE (inherited from ...)`."""
    told = {str(row[0]).strip().lower(): str(row[1]).strip().upper() for row in answer if len(row) > 1}
    return told.get("predictive optimization", "").startswith("ENABLE")


def _databricks(table: str, operation: Operation) -> tuple[str, ...]:
    if operation.name == "optimize":
        if operation.cluster:
            return (f"ALTER TABLE {table} CLUSTER BY ({_listed(operation.cluster)})", f"OPTIMIZE {table}")
        order = f" ZORDER BY ({_listed(operation.zorder)})" if operation.zorder else ""
        return (f"OPTIMIZE {table}{order}",)
    if operation.name == "vacuum":
        return (f"VACUUM {table} RETAIN {_hours(operation)} HOURS",)
    columns = f"COLUMNS {_listed(operation.columns)}" if operation.columns else "ALL COLUMNS"
    return (f"ANALYZE TABLE {table} COMPUTE STATISTICS FOR {columns}",)


def _ducklake(table: str, operation: Operation) -> tuple[str, ...]:
    catalog, schema, name = (part.replace("'", "''") for part in _parts(table))
    if operation.name == "optimize":
        return (
            f"CALL ducklake_flush_inlined_data('{catalog}', schema_name => '{schema}', table_name => '{name}')",
            f"CALL ducklake_rewrite_data_files('{catalog}', '{name}', schema => '{schema}')",
            f"CALL ducklake_merge_adjacent_files('{catalog}', '{name}', schema => '{schema}')",
        )
    if operation.name == "vacuum":
        before = f"older_than => now() - INTERVAL '{_hours(operation)} hours'"
        return (
            f"CALL ducklake_expire_snapshots('{catalog}', {before})",
            f"CALL ducklake_cleanup_old_files('{catalog}', {before})",
        )
    return ()


def _parts(table: str) -> list[str]:
    from sqlglot import exp

    found = exp.to_table(table, dialect="duckdb")
    return [found.catalog, found.db, found.name]


def _hours(operation: Operation) -> int:
    assert operation.retention is not None, "only vacuum is asked for that"  # noqa: S101
    return math.ceil(operation.retention.total_seconds() / HOUR_S)


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(columns)
