"""What SQLMesh does not do with its connections to the engine: limit statements, and interrupt them."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlmesh.core.engine_adapter import EngineAdapter

_LIMIT = "meshgate_limit"
_MOST = 2**31 - 1  # milliseconds that Postgres takes


def limit_statements(adapter: EngineAdapter, longest_s: float) -> None:
    """Let the engine give up statements of this thread's session that take longer.

    A lost run's last statement is over when the grace is, which is no shorter. Where the engine is in the process,
    there is nothing to limit: it ends with it.
    """
    milliseconds = min(max(1, int(longest_s * 1000)), _MOST)
    seconds = max(1, math.ceil(milliseconds / 1000))  # 0 would be no limit
    statement = {
        "postgres": f"SET statement_timeout = {milliseconds}",
        "redshift": f"SET statement_timeout = {milliseconds}",
        "databricks": f"SET STATEMENT_TIMEOUT = {seconds}",
        "snowflake": f"ALTER SESSION SET STATEMENT_TIMEOUT_IN_SECONDS = {seconds}",
    }.get(adapter.dialect)
    pool = getattr(adapter, "_connection_pool", None)
    if statement is None or pool is None or getattr(adapter, "is_spark_session_connection", False):
        return
    if pool.get_attribute(_LIMIT) != longest_s:
        adapter.cursor.execute(statement)
        pool.set_attribute(_LIMIT, longest_s)


def statement(adapter: EngineAdapter, sql: str, longest_s: float) -> list[tuple[Any, ...]]:
    """Run a statement as it stands, outside of any transaction; what it answers, if it does."""
    limit_statements(adapter, longest_s)
    adapter.execute(sql)
    try:
        return [tuple(row) for row in adapter.cursor.fetchall()]
    except Exception:  # noqa: BLE001 - drivers raise whatever they raise where there is no answer to fetch
        return []


def interrupt(adapters: Iterable[EngineAdapter]) -> None:
    """Interrupt the statements under way in all threads, where the driver has a way to."""
    for adapter in adapters:
        for thing in _open(getattr(adapter, "_connection_pool", None)):
            for way in ("interrupt", "cancel"):  # DuckDB's word; Postgres's and Databricks's
                if callable(stop := getattr(thing, way, None)):
                    with suppress(Exception):  # it may have ended by itself
                        stop()
                    break


def _open(pool: Any) -> Iterator[Any]:
    for one in ("_cursor", "_connection"):
        if (found := getattr(pool, one, None)) is not None:
            yield found
    for several in ("_thread_cursors", "_thread_connections"):
        yield from list(getattr(pool, several, {}).values())
