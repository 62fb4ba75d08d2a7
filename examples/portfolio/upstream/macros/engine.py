"""What differs between the engines, in one place: Databricks, and DuckDB on a laptop.

The models are written in the dialect of Databricks, and SQLMesh translates them. What it cannot translate, or translates into something that
answers otherwise, is a macro here. Which engine it is says the variable `engine` of the gateway in config.yaml; without one, Databricks. The
same file is in both projects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp, parse_one
from sqlmesh import macro

if TYPE_CHECKING:
    from sqlmesh.core.macros import MacroEvaluator


def on_duckdb(evaluator: MacroEvaluator) -> bool:
    """Whether a model is rendered for the engine of the laptop."""
    return evaluator.var("engine", "databricks") == "duckdb"


def either(
    evaluator: MacroEvaluator, duckdb: str, databricks: str, **parts: exp.Expression
) -> exp.Expression:
    """Choose one of two texts, each in its engine's own words; `{name}` stands for a part."""
    text, dialect = (duckdb, "duckdb") if on_duckdb(evaluator) else (databricks, "databricks")
    written = {name: part.sql(dialect=dialect) for name, part in parts.items()}
    return parse_one(text.format(**written), dialect=dialect)


@macro()
def five_minutes(evaluator: MacroEvaluator, instant: exp.Expression) -> exp.Expression:
    """Give the beginning of the five minutes that hold an instant, UTC."""
    return either(
        evaluator,
        # Not by seconds since 1970: DuckDB rounds them where Spark cuts them off.
        "TIME_BUCKET(INTERVAL '5' MINUTE, {instant})",
        "TIMESTAMP_SECONDS(UNIX_SECONDS({instant}) DIV 300 * 300)",
        instant=instant,
    )


@macro()
def seconds_between(evaluator: MacroEvaluator, start: exp.Expression, end: exp.Expression) -> exp.Expression:
    """Count the whole seconds that have passed from one instant to another."""
    return either(
        evaluator,
        # DuckDB's DATE_DIFF counts the beginnings of seconds instead.
        "DATESUB('second', {start}, {end})",
        "TIMESTAMPDIFF(SECOND, {start}, {end})",
        start=start,
        end=end,
    )


@macro()
def surrogate_key(evaluator: MacroEvaluator, *parts: exp.Expression) -> exp.Expression:  # noqa: ARG001 - SQLMesh gives it
    """Make a key of texts: equal ones for equal texts, on either engine."""
    texts = [exp.cast(part, "text", dialect="databricks") for part in parts]
    return exp.func("MD5", exp.ConcatWs(expressions=[exp.Literal.string("|"), *texts]))


@macro()
def analyzed_daily(
    evaluator: MacroEvaluator, table: exp.Expression, start: exp.Expression
) -> exp.Expression | None:
    """Renew the statistics of a table on Databricks in the first five minutes of a day; nothing in DuckDB, which has them at hand."""
    if on_duckdb(evaluator) or start.name[11:16] != "00:00":
        return None
    return parse_one(
        f"ANALYZE TABLE {table.sql('databricks')} COMPUTE STATISTICS FOR ALL COLUMNS", dialect="databricks"
    )


@macro()
def distinct_sketch(
    evaluator: MacroEvaluator, column: exp.Expression, size: exp.Expression
) -> exp.Expression:
    """Sketch the distinct values of a column of text: an aggregate that is small, and can be merged with others. Null does not count.

    HyperLogLog on Databricks. In DuckDB the `size` smallest hashes of the values: where hashes are spread evenly, the largest of these tells
    how dense they lie. Either has a standard error of about 1 / sqrt(size).

    Args:
        evaluator: SQLMesh's.
        column: What is counted.
        size: How many entries a sketch has at most: a power of 2, 16 to 2097152. Sketches that are merged have the same.
    """
    number = int(size.name)
    if not 16 <= number <= 2**21 or number & (number - 1):
        raise ValueError(f"the size of a sketch is a power of 2 from 16 to 2097152, not {number}")
    return either(
        evaluator,
        # 60 bits of an MD5: DuckDB's own hash may be another one in its next release.
        "COALESCE(LIST_SLICE(LIST_SORT(LIST_DISTINCT(LIST(CAST('0x' || LEFT(MD5({column}), 15) AS BIGINT)))), "
        f"1, {number}), CAST([] AS BIGINT[]))",
        f"HLL_SKETCH_AGG({{column}}, {number.bit_length() - 1})",
        column=column,
    )


@macro()
def distinct_estimate(
    evaluator: MacroEvaluator, sketch: exp.Expression, size: exp.Expression
) -> exp.Expression:
    """Estimate how many distinct values a column of sketches saw together: an aggregate.

    Args:
        evaluator: SQLMesh's.
        sketch: What `distinct_sketch` gave.
        size: With which size.
    """
    merged = "LIST_SLICE(LIST_SORT(LIST_DISTINCT(FLATTEN(LIST({sketch})))), 1, " + size.name + ")"
    return either(
        evaluator,
        # What is not full has met them all.
        f"CAST(CASE WHEN COALESCE(LEN({merged}), 0) < {size.name} THEN COALESCE(LEN({merged}), 0) "
        f"ELSE ROUND(({size.name} - 1) / ({merged}[{size.name}] / POWER(2, 60))) END AS BIGINT)",
        "HLL_SKETCH_ESTIMATE(HLL_UNION_AGG({sketch}))",
        sketch=sketch,
    )
