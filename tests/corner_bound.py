"""How often each interval of the corner shop may have been evaluated, by what happened to it, and how often it was.

Each thing that happens justifies one more evaluation of what it touches: of a model's own time, and of whatever reads that time,
directly or not. The rest is counting. It errs towards more than needed where two things come together, never towards less.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tiny_mesh import DAY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

PARENTS: dict[str, tuple[str, ...]] = {
    "bronze.transactions": (),
    "bronze.items": (),
    "bronze.customers": (),
    "silver.orders": ("bronze.transactions",),
    "silver.items": ("bronze.items",),
    "silver.customers": ("bronze.customers",),
    "gold.dim_item": ("silver.items",),
    "gold.dim_customer": ("silver.customers",),
    "gold.fact_sales": ("silver.orders", "gold.dim_item", "gold.dim_customer"),
    "gold.sales_by_category_hour": ("gold.fact_sales", "gold.dim_item"),
}
"""Parents first. The seed, which never changes, is left out."""

WHOLE = ("gold.dim_item", "gold.dim_customer")
"""Refreshed as a whole: what changed at an instant changes everything after it."""

MOST = 60 * 24
"""Minutes after the mesh's first instant that no history reaches."""


class Evaluation(NamedTuple):
    """One evaluation by SQLMesh, whoever asked for it. Minutes after the mesh's first instant; half-open."""

    model: str
    version: str
    start: int
    end: int


def unit_of(model: str) -> int:
    """How long a model's unit is, in minutes."""
    return 60 if model.startswith("gold.") else 5


def units(model: str, start: int, end: int) -> set[int]:
    """The units that meet [start, end): each by its first minute."""
    unit = unit_of(model)
    return set(range(start // unit * unit, min(end, MOST), unit))


def short(model: str) -> str:
    """`"lake"."bronze"."items"` as the tables above say it."""
    return model.replace('"', "").removeprefix("lake.")


class Log:
    """What SQLMesh evaluates, in this process and in those forked from it after `watch`: a line before each evaluation."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._read = 0
        file.touch()

    def watch(self) -> None:
        """Write a line for each evaluation from now on."""
        from sqlmesh.core.snapshot.evaluator import SnapshotEvaluator
        from sqlmesh.utils.date import to_datetime

        plain: Callable[..., Any] = SnapshotEvaluator.evaluate

        def evaluate(this: Any, snapshot: Any, *, start: Any, end: Any, **more: Any) -> Any:
            first, last = ((to_datetime(i) - DAY).total_seconds() / 60 for i in (start, end))
            line = [short(snapshot.name), snapshot.version, math.floor(first), math.ceil(last)]
            with self.file.open("a") as out:
                out.write(json.dumps(line) + "\n")
            return plain(this, snapshot, start=start, end=end, **more)

        SnapshotEvaluator.evaluate = evaluate  # type: ignore[method-assign]

    def news(self) -> list[Evaluation]:
        """What was evaluated since the last look."""
        with self.file.open() as lines:
            lines.seek(self._read, os.SEEK_SET)
            told = lines.read()
            self._read = lines.tell()
        found = [Evaluation(*json.loads(line)) for line in told.splitlines()]
        return [evaluation for evaluation in found if evaluation.model in PARENTS]


@dataclass
class Bound:
    """What was evaluated, and what may have been.

    Attributes:
        lookback: Units before the frontier of bronze.transactions that are read again with each new one.
        done: Evaluations, by model and unit.
        allowed: Evaluations that something justifies, besides the first, by model and unit.
        refreshes: Evaluations of the tables that are refreshed as a whole.
        occasions: What justifies a refresh besides a new hour.
    """

    lookback: int = 0
    done: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    allowed: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    refreshes: Counter[str] = field(default_factory=Counter)
    occasions: Counter[str] = field(default_factory=Counter)
    frontier: int = 0

    def touch(self, model: str, start: int, end: int, *, readers: bool = True) -> None:
        """Something happened to a model's time [start, end): it and whatever reads it is evaluated once more."""
        touched = {model: units(model, 0, MOST) if model in WHOLE else units(model, start, end)}
        for reader, parents in PARENTS.items() if readers else ():
            read = [(first, parent) for parent in parents for first in touched.get(parent, ())]
            if read and reader in WHOLE:
                touched[reader] = touched.get(reader, set()) | units(reader, min(read)[0], MOST)
            elif read:
                known = [units(reader, first, first + unit_of(parent)) for first, parent in read]
                touched[reader] = touched.get(reader, set()).union(*known)
        for name, several in touched.items():
            self.allowed[name].update(several)
            self.occasions[name] += 1

    def count(self, evaluations: Iterable[Evaluation]) -> None:
        """These were made under the ledger."""
        for evaluation in evaluations:
            self.done[evaluation.model].update(units(evaluation.model, evaluation.start, evaluation.end))
            self.refreshes[evaluation.model] += evaluation.model in WHOLE

    def ran(
        self,
        evaluations: list[Evaluation],
        failed: Iterable[str],
        committed: Mapping[str, int],
    ) -> None:
        """A run or a deploy came to its end.

        Args:
            evaluations: All that it made.
            failed: Models of which something failed: their batches are halved.
            committed: The end of what it recorded, by model.
        """
        self.count(evaluations)
        for model in set(failed):
            several = [e for e in evaluations if e.model == model]
            meant = set().union(*(units(model, e.start, e.end) for e in several)) if several else set()
            for _ in range(math.ceil(math.log2(max(len(meant), 1))) + 1):
                self.allowed[model].update(meant)
        self._look_back(evaluations)
        self.frontier = max(self.frontier, committed.get("bronze.transactions", 0))

    def vanished(self, evaluations: list[Evaluation], begun: Iterable[tuple[str, int, int]]) -> None:
        """A run was killed: what it evaluated, and what it had begun, is in doubt."""
        self.count(evaluations)
        self._look_back(evaluations)
        for model, start, end in {(e.model, e.start, e.end) for e in evaluations} | set(begun):
            if model in PARENTS:
                self.touch(model, start, end)

    def foreign(self, evaluations: list[Evaluation]) -> None:
        """Somebody else evaluated this, with no idea of the ledger."""
        self._look_back(evaluations)
        for model, _, start, end in evaluations:
            self.touch(model, start, end)

    def _look_back(self, evaluations: list[Evaluation]) -> None:
        fresh = [e.start for e in evaluations if e.model == "bronze.transactions" and e.end > self.frontier]
        if self.lookback and fresh:
            first = max(min(fresh), self.frontier)
            self.touch("bronze.transactions", max(first - 5 * self.lookback, 0), first)

    def excess(self) -> list[str]:
        """What was evaluated more often than anything justifies, in words."""
        found = [
            f"{model} at minute {unit}: evaluated {count} times, justified {1 + self.allowed[model][unit]}"
            for model, counted in self.done.items()
            for unit, count in sorted(counted.items())
            if count > 1 + self.allowed[model][unit]
        ]
        hours = {model: len(self.done[model]) for model in WHOLE}
        return found + [
            f"{model}: refreshed {self.refreshes[model]} times, justified {hours[model] + self.occasions[model]}"
            for model in WHOLE
            if self.refreshes[model] > hours[model] + self.occasions[model]
        ]
