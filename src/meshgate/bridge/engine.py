"""What SQLMesh does not do with its connections to the engine: limit statements, interrupt them, and wait for those of the dead."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlmesh.core.engine_adapter import EngineAdapter

_LIMIT = "meshgate_limit"
_MOST = 2**31 - 1  # milliseconds that Postgres takes
_LAKES = "meshgate_lakes"
_REMOTE = ("postgres", "mysql", "motherduck")
# Whoever commits to a DuckLake has inserted a snapshot, and holds that lock until Postgres has done with the commit.
_WAIT = """
DO $$ DECLARE lake regclass; BEGIN
    PERFORM set_config('lock_timeout', '{milliseconds}', true);
    FOR lake IN SELECT oid FROM pg_class WHERE relname = 'ducklake_snapshot' AND relkind = 'r'
                AND has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(oid, 'UPDATE, DELETE') LOOP
        EXECUTE format('LOCK TABLE %s IN SHARE MODE', lake);
    END LOOP;
END $$
"""


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


def outlast_commits(adapter: EngineAdapter, longest_s: float) -> None:
    """Wait until every commit to a DuckLake that is under way in its catalog's Postgres is over.

    A process may be gone while the server is still busy with the commit that it had asked for. Who writes the same rows again
    would delete what it sees, which is not yet what the dead has written, and both would stay. See docs/decisions/0064.

    Raises:
        duckdb.Error: One took longer than a statement may.
    """
    pool = getattr(adapter, "_connection_pool", None)
    if adapter.dialect != "duckdb" or pool is None:
        return
    lakes = pool.get_attribute(_LAKES)
    if lakes is None:
        attached = adapter.cursor.execute(
            "SELECT database_name FROM duckdb_databases() WHERE type = 'ducklake' AND NOT readonly AND path LIKE 'postgres:%'"
        )
        lakes = [name for (name,) in attached.fetchall()]
        pool.set_attribute(_LAKES, lakes)
    wait = _WAIT.format(milliseconds=min(max(1, int(longest_s * 1000)), _MOST))
    for lake in lakes:
        adapter.cursor.execute("CALL postgres_execute(?, ?)", [f"__ducklake_metadata_{lake}", wait])


def ends_with_its_process(connection: Any) -> bool:
    """Whether nothing of an engine can write any more once its process is gone, but what `outlast_commits` waits for.

    Args:
        connection: SQLMesh's configuration of the connection.
    """
    if connection.type_ != "duckdb":  # MotherDuck speaks DuckDB elsewhere
        return False
    attached = dict(getattr(connection, "catalogs", None) or {})
    # Only the first one is written to, unless a model says otherwise; but a lake is attached to be written.
    return all(
        _is_here(catalog)
        for n, catalog in enumerate(attached.values())
        if n == 0 or _kind(catalog) == "ducklake"
    )


def _is_here(catalog: Any) -> bool:
    if getattr(catalog, "read_only", False):
        return True
    path = _path(catalog)
    if _kind(catalog) == "ducklake":
        return not path.removeprefix("ducklake:").startswith(("mysql:", "md:"))
    return _kind(catalog) not in _REMOTE and not path.startswith("md:")


def _kind(catalog: Any) -> str:
    return str(getattr(catalog, "type", "ducklake" if _path(catalog).startswith("ducklake:") else "duckdb"))


def _path(catalog: Any) -> str:
    return str(getattr(catalog, "path", catalog))


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
