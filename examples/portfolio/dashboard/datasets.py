"""The datasets of both dashboards: a file of SQL each, in the dialect of Databricks, and how the local engine reads it."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlglot import exp, parse_one

if TYPE_CHECKING:
    import duckdb
    from lakehouse import Lakehouse

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "datasets"
DOWNSTREAM = HERE.parent / "downstream"
CONFIG = DOWNSTREAM / "config.yaml"


def names() -> tuple[str, ...]:
    """Every dataset, by its file."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.sql")))


def text(name: str) -> str:
    """A dataset's SQL, in the dialect of Databricks."""
    return (FOLDER / f"{name}.sql").read_text(encoding="utf-8")


def title(name: str) -> str:
    """What a dataset is: the comment on its first line."""
    return text(name).splitlines()[0].removeprefix("--").strip()


def local(name: str) -> str:
    """A dataset's SQL for DuckDB: translated, with the sketches as `macros/engine.py` makes them there."""
    return str(parse_one(text(name), dialect="databricks").transform(_sketch).sql(dialect="duckdb"))


def connect(lakehouse: Lakehouse) -> duckdb.DuckDBPyConnection:
    """The lake, to read; and the database of the ledger as the catalog `ledger`, as federation shows it."""
    connection = lakehouse.lake.connect()
    connection.execute(f"ATTACH '{lakehouse.state}' AS ledger (TYPE postgres, READ_ONLY)")
    connection.execute("USE lake")
    return connection


def rows(connection: duckdb.DuckDBPyConnection, name: str) -> list[dict[str, Any]]:
    """A dataset's rows, by column; instants are UTC, without saying so."""
    found = connection.sql(local(name))
    # DuckDB's Python client would want another library for instants with a time zone.
    shown = (
        f'CAST("{column}" AS TIMESTAMP) AS "{column}"'
        if str(kind) == "TIMESTAMP WITH TIME ZONE"
        else f'"{column}"'
        for column, kind in zip(found.columns, found.types, strict=True)
    )
    return [dict(zip(found.columns, row, strict=True)) for row in found.project(", ".join(shown)).fetchall()]


def _sketch(node: exp.Expression) -> exp.Expression:
    """The estimate of merged sketches: the one thing that sqlglot cannot translate."""
    if _called(node) != "HLL_SKETCH_ESTIMATE":
        return node
    merged = _argument(node)
    if _called(merged) != "HLL_UNION_AGG":
        raise ValueError(
            f"only HLL_SKETCH_ESTIMATE(HLL_UNION_AGG(...)) runs on the local engine, not {node.sql()}"
        )
    engine = SimpleNamespace(var=lambda name, default=None: {"engine": "duckdb"}.get(name, default))
    made: exp.Expression = _engine().distinct_estimate(engine, _argument(merged), exp.Literal.number(_size()))
    return made


def _called(node: exp.Expression) -> str:
    return (
        str(node.name).upper()
        if isinstance(node, exp.Anonymous)
        else node.sql_name()
        if isinstance(node, exp.Func)
        else ""
    )


def _argument(node: exp.Expression) -> exp.Expression:
    found: exp.Expression = node.expressions[0] if isinstance(node, exp.Anonymous) else node.this
    return found


@cache
def _engine() -> Any:
    """`macros/engine.py` of downstream, which is no package that could be imported by its name.

    Its macros are not left with SQLMesh's, where another project that is loaded in this process would meet them.
    """
    from sqlmesh.core.macros import macro

    spec = importlib.util.spec_from_file_location("portfolio_engine", DOWNSTREAM / "macros" / "engine.py")
    assert spec is not None  # noqa: S101 - it has a loader for files
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    known = macro.get_registry()
    try:
        spec.loader.exec_module(module)
    finally:
        macro.set_registry(known)
    return module


@cache
def _size() -> int:
    """How many entries a sketch of the report has."""
    found = re.search(r"^\s+sketch_size: (\d+)", CONFIG.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{CONFIG} does not say how large sketches are: variables: sketch_size")
    return int(found[1])
