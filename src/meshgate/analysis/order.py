"""In which order projects must be deployed: what each reads of the others, now and then.

Between two deploys, the new files of one project meet the old ones of another. Whoever reads a model or a column that is
not there then cannot be evaluated. So who adds it comes before who reads it, and who removes it after who read it.
"""

from __future__ import annotations

import graphlib
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from meshgate.analysis.document import Difference, Order, Precedence, Reason

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

ALL_COLUMNS: Final = "*"
_ROWS: Final = ("query", "code", "seed", "kind", "statements")


@frozen
class Reading:
    """How a model of one project reads one of another, so far and then.

    Attributes:
        child: Who reads.
        child_project: Whose.
        parent: What.
        parent_project: Whose.
        before: The columns that it reads so far; None where it does not.
        after: The columns that it will read; None where it does not.
        makers: Of columns of the parent that come or go: the projects whose deploys make them, where a star brings them
            from somewhere else. Of any other column it is the parent's own.
    """

    child: str
    child_project: str
    parent: str
    parent_project: str
    before: frozenset[str] | None
    after: frozenset[str] | None
    makers: Mapping[str, Collection[str]] = field(factory=dict)

    def by(self, columns: Iterable[str]) -> dict[str, set[str]]:
        """Which projects' deploys make some columns of the parent come or go."""
        found: dict[str, set[str]] = {}
        for column in columns:
            for project in self.makers.get(column, (self.parent_project,)):
                found.setdefault(project, set()).add(column)
        return found


def precedences(
    readings: Iterable[Reading],
    projects: Iterable[str],
    columns: tuple[Mapping[str, Iterable[str]], Mapping[str, Iterable[str]]],
) -> tuple[Precedence, ...]:
    """What has to come before what.

    Args:
        readings: Between projects.
        projects: Whose files change: the others stay as they are.
        columns: The columns of each model so far, and then; a model that is in neither is not there.
    """
    ours = set(projects)
    return tuple(
        sorted(
            (
                found
                for reading in readings
                if reading.child_project in ours
                for found in _of(reading, columns)
                if {found.first, found.then} <= ours and found.first != found.then
            ),
            key=lambda p: (p.first, p.then, p.why, p.parent, p.child),
        )
    )


def _of(
    reading: Reading, columns: tuple[Mapping[str, Iterable[str]], Mapping[str, Iterable[str]]]
) -> Iterable[Precedence]:
    was, now = (side.get(reading.parent) for side in columns)
    up, down = reading.parent_project, reading.child_project

    def before(first: str, then: str, why: str, columns: Iterable[str] = ()) -> Precedence:
        return Precedence(first, then, why, reading.parent, reading.child, tuple(sorted(columns)))

    if was is None and now is not None and reading.after is not None:
        yield before(up, down, "reads_new_model")
    if was is not None and now is None and reading.before is not None:
        yield before(down, up, "reads_removed_model")
    if was is None or now is None:
        return
    for maker, new in reading.by((set(now) - set(was)) & (reading.after or frozenset())).items():
        yield before(maker, down, "reads_new_column", new)
    for maker, gone in reading.by((set(was) - set(now)) & (reading.before or frozenset())).items():
        yield before(down, maker, "reads_removed_column", gone)


def arrange(
    projects: Iterable[str], required: Sequence[Precedence], parents: Iterable[tuple[str, str]]
) -> Order:
    """An order of projects that keeps to what is required; where it leaves a choice, parents first, then by name.

    Args:
        projects: Which.
        required: What has to come before what.
        parents: Pairs of projects: the first is read by the second. Who is read through other projects comes first, too.
    """
    names = sorted(set(projects))
    must = sorted({(p.first, p.then) for p in required})
    wish = _through(names, parents)
    order = _sorted(names, must, wish)
    if order is None:
        return Order(_sorted(names, [], wish) or tuple(names), tuple(required), "none")
    return Order(order, tuple(required), "required" if required else "any")


def _through(names: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Which of some projects reads which, directly or through projects that are none of them."""
    readers: dict[str, set[str]] = {}
    for first, then in pairs:
        readers.setdefault(first, set()).add(then)
    found: set[tuple[str, str]] = set()
    for name in names:
        pending, seen = [name], {name}
        while pending:
            for reader in readers.get(pending.pop(), set()) - seen:
                seen.add(reader)
                if reader in names:
                    found.add((name, reader))
                else:
                    pending.append(reader)
    return sorted(found)


def _sorted(
    names: Sequence[str], must: Iterable[tuple[str, str]], wish: Iterable[tuple[str, str]]
) -> tuple[str, ...] | None:
    """None where what must be is a circle; wishes that would close one are left out, one by one."""
    kept = list(must)
    if _acyclic(names, kept) is None:
        return None
    for pair in wish:
        if set(pair) <= set(names) and pair[0] != pair[1] and _acyclic(names, [*kept, pair]) is not None:
            kept.append(pair)
    return _acyclic(names, kept)


def _acyclic(names: Sequence[str], pairs: Iterable[tuple[str, str]]) -> tuple[str, ...] | None:
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter(dict.fromkeys(names, ()))
    for first, then in pairs:
        sorter.add(then, first)
    try:
        sorter.prepare()
    except graphlib.CycleError:
        return None
    found: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        found += ready
        sorter.done(*ready)
    return tuple(found)


def reasons_of(
    reads: Mapping[str, frozenset[str]], changed: Mapping[str, Sequence[Difference]], rebuilt: Iterable[str]
) -> tuple[Reason, ...]:
    """Through which parents a change reaches a model.

    Args:
        reads: The columns that it reads of each parent.
        changed: What is different about models that were changed themselves.
        rebuilt: Models whose rows may be others for reasons further up.
    """
    above, found = set(rebuilt), []
    for parent in sorted(reads):
        if parent not in changed and parent not in above:
            continue
        told = changed.get(parent, ())
        star = ALL_COLUMNS in reads[parent]
        columns = tuple(d for d in told if d.is_column and (star or d.name in reads[parent]))
        rows = parent in above or any(d.what in _ROWS for d in told)
        found.append(Reason(parent, columns, rows, star))
    return tuple(found)
