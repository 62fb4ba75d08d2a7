"""When each part of the work can be done at the earliest: parents first, each by its own project's ticks.

A deploy does at once what is ready. What is not waits for a parent: until the parent's project runs next, or somebody
releases it; and then for the next run of its own project. How long evaluations take is not counted: these are the ticks at
which runs may begin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

from meshgate.analysis.document import Hindrance  # noqa: TC001 - attrs reads annotations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

_BY_SOMEBODY: Final = ("held",)


@frozen
class Task:
    """One model's work, and what keeps parts of it.

    Attributes:
        model: The model.
        project: Whose runs go on with it.
        deploys: Whether the deploy does what is ready of it.
        ready: Whether something of it is ready.
        hindrances: What keeps the rest; `until` is when the cause itself may end, by what the ledger knows.
        reads: The models in whose work it reads.
        rests: Not to be computed again before; None: at once.
    """

    model: str
    project: str
    deploys: bool
    ready: bool
    hindrances: tuple[Hindrance, ...] = ()
    reads: tuple[str, ...] = ()
    rests: datetime | None = None


@frozen
class When:
    """When a task can be done: some of it, all of it, and each hindrance with when its cause may be gone."""

    first_at: datetime | None
    complete_at: datetime | None
    hindrances: tuple[Hindrance, ...]


def earliest(
    tasks: Iterable[Task], now: datetime, tick: Callable[[str, datetime], datetime]
) -> dict[tuple[str, str], When]:
    """When each task can be done, by model and `deploy` or `run`.

    Args:
        tasks: Parents first, and of one model the deploy's share first.
        now: When the deploy begins, UTC.
        tick: The first run of a project at or after an instant.
    """
    found: dict[tuple[str, str], When] = {}
    latest: dict[str, When] = {}
    for task in tasks:
        # What the deploy itself does of the parents is there when it comes to the readers.
        begin = now if task.deploys else tick(task.project, max(now, task.rests or now))
        for parent in task.reads:
            above = latest.get(parent)
            if above is not None and above.complete_at is not None and not task.deploys:
                begin = max(begin, tick(task.project, above.complete_at))
        told = tuple(evolve(h, until=_until(h, latest, now, tick)) for h in task.hindrances)
        later = [None if h.until is None else tick(task.project, h.until) for h in told]
        known = [at for at in later if at is not None]
        complete = None if None in later else max([begin, *known])
        first = begin if task.ready or not later else min(known, default=None)
        by = "deploy" if task.deploys else "run"
        found[task.model, by] = latest[task.model] = When(first, complete, told)
    return found


def _until(
    hindrance: Hindrance,
    latest: dict[str, When],
    now: datetime,
    tick: Callable[[str, datetime], datetime],
) -> datetime | None:
    if hindrance.reason in _BY_SOMEBODY:
        return None
    if hindrance.parent in latest and hindrance.reason != "not_due":
        return latest[hindrance.parent].complete_at
    return tick(hindrance.parent_project, max(now, hindrance.until or now))
