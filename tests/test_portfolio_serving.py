"""What the portfolio serves: sketches that are as near as they say, whatever their size and however merged, and one file for both engines."""

from __future__ import annotations

import importlib.util
import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

PORTFOLIO = Path(__file__).resolve().parents[1] / "examples" / "portfolio"
ENGINE = Path("macros", "engine.py")
SIZES = (16, 64, 256, 1024, 4096)

duckdb = pytest.importorskip("duckdb", reason="needs meshgate[local]")


def test_both_projects_have_the_same_macros_for_engines() -> None:
    """The file is copied, as each project is deployed on its own."""
    assert (PORTFOLIO / "upstream" / ENGINE).read_text() == (PORTFOLIO / "downstream" / ENGINE).read_text()


@pytest.fixture(scope="module")
def macros() -> ModuleType:
    spec = importlib.util.spec_from_file_location("portfolio_engine", PORTFOLIO / "downstream" / ENGINE)
    assert spec is not None
    assert spec.loader is not None
    from sqlmesh.core.macros import macro

    module = importlib.util.module_from_spec(spec)
    known = macro.get_registry()
    spec.loader.exec_module(module)
    macro.set_registry(known)  # a project that is loaded later would meet them
    return module


class Sketches:
    """The two macros, as SQL for an engine."""

    def __init__(self, macros: ModuleType, size: int, engine: str = "duckdb") -> None:
        from sqlglot import exp
        from sqlmesh.core.macros import MacroEvaluator

        def said(macro: Any, column: str) -> str:
            evaluator = MacroEvaluator(dialect="databricks")
            evaluator.locals["__sqlmesh__vars__"] = {"engine": engine}
            found = macro(evaluator, exp.column(column), exp.Literal.number(size))
            return str(found.sql(engine))

        self.sketch = said(macros.distinct_sketch, "value")
        self.estimate = said(macros.distinct_estimate, "sketch")


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    with duckdb.connect() as connection:
        yield connection


def estimated(connection: Any, sketches: Sketches, parts: Iterable[tuple[int, int]]) -> int:
    """How many distinct numbers there are in half-open ranges, by a sketch of each, merged."""
    each = " UNION ALL ".join(
        f"SELECT {sketches.sketch} AS sketch FROM (SELECT 'C' || number AS value FROM range({start}, {end}) AS t(number))"
        for start, end in parts
    )
    (found,) = connection.execute(f"SELECT {sketches.estimate} FROM ({each})").fetchone()
    return int(found)


@pytest.mark.parametrize("size", SIZES)
class TestSketches:
    """Of DuckDB; those of Databricks are its own."""

    def test_few_values_are_counted_exactly(self, macros: ModuleType, connection: Any, size: int) -> None:
        """As long as a sketch is not full it has met them all; parts may overlap."""
        sketches = Sketches(macros, size)
        for count in (0, 1, size // 2, size - 1):
            assert estimated(connection, sketches, [(0, count), (count // 2, count)]) == count

    def test_many_values_are_counted_as_exactly_as_the_size_says(
        self, macros: ModuleType, connection: Any, size: int
    ) -> None:
        """The root of the mean square error over 24 populations of 20,000 is that of the size, and none is off by five times as much."""
        sketches, count = Sketches(macros, size), 20_000
        expected = math.sqrt((count - size) / (count * (size - 2)))
        errors = [
            estimated(connection, sketches, [(number * count, (number + 1) * count)]) / count - 1
            for number in range(24)
        ]
        assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 1.6 * expected
        assert max(map(abs, errors)) < 5 * expected

    def test_merged_sketches_are_the_sketch_of_all(
        self, macros: ModuleType, connection: Any, size: int
    ) -> None:
        """However the values were cut into hours, and however often one came, the estimate is that of one sketch over all."""
        sketches = Sketches(macros, size)
        whole = estimated(connection, sketches, [(0, 30_000)])
        cuts = [0, 1, size, size + 1, 7_000, 7_003, 30_000]
        assert estimated(connection, sketches, list(pairwise(cuts))) == whole
        assert estimated(connection, sketches, [(0, 20_000), (10_000, 30_000), (0, 30_000)]) == whole


def test_databricks_gets_its_own_sketches(macros: ModuleType) -> None:
    """HyperLogLog takes the binary logarithm of the size."""
    sketches = Sketches(macros, 1024, "databricks")
    assert sketches.sketch == "HLL_SKETCH_AGG(value, 10)"
    assert sketches.estimate == "HLL_SKETCH_ESTIMATE(HLL_UNION_AGG(sketch))"


def test_null_is_nobody(macros: ModuleType, connection: Any) -> None:
    """Who said no name does not count, and where nobody did the estimate is nought."""
    sketches = Sketches(macros, 16)
    for values, count in (("(NULL), ('C1'), (NULL), ('C1')", 1), ("(NULL)", 0)):
        query = f"SELECT {sketches.estimate} FROM (SELECT {sketches.sketch} AS sketch FROM (VALUES {values}) AS t(value))"
        assert connection.execute(query).fetchone() == (count,)
    assert connection.execute(
        f"SELECT {sketches.estimate} FROM (SELECT NULL::BIGINT[] AS sketch WHERE FALSE)"
    ).fetchone() == (0,)


@pytest.mark.parametrize("size", [8, 1000, 0, 4_194_304])
def test_a_size_that_databricks_cannot_have_is_refused(macros: ModuleType, size: int) -> None:
    """Also in DuckDB, where it would work: what runs locally must run there."""
    with pytest.raises(ValueError, match=f"a power of 2 from 16 to 2097152, not {size}"):
        Sketches(macros, size)
