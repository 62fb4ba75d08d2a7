"""What is due, and doing it: one reservation per table, so that runs are kept out no longer than its statements take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maintenance.policy import check_retention, policy_of
from maintenance.statements import ask_predictive, is_of_all_tables, is_predictive, render
from meshgate.errors import LeaseLostError, MeshgateError, RunInProgressError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime, timedelta

    from maintenance.policy import Operation, Policy
    from meshgate.coordinator.upkeep import Estate, Table
    from meshgate.mesh import Mesh

PAUSE_S = 2.0


@dataclass(frozen=True)
class Task:
    """An operation on a table.

    Attributes:
        table: Which.
        operation: What.
        statements: In the engine's words.
        last: When it was done last, UTC.
        due: Whether it is time again.
        whole_catalog: Whether it concerns every table, so that nobody may work on any.
    """

    table: Table
    operation: Operation
    statements: tuple[str, ...]
    last: datetime | None
    due: bool
    whole_catalog: bool


@dataclass
class Outcome:
    """What became of the tasks that were due: done, left to the next time as a run had the table, failed."""

    done: int = 0
    busy: int = 0
    failed: int = 0
    passed_over: int = 0


def tasks_of(estate: Estate, policies: tuple[Policy, ...]) -> tuple[Task, ...]:
    """Everything that the policies ask for, table by table; what is about the whole catalog once, at the end.

    Raises:
        ConfigError: A retention is shorter than somebody may need the files.
    """
    check_retention(policies, estate.longest)
    found: list[Task] = []
    catalogs: dict[str, Task] = {}
    for table in estate.tables:
        policy = policy_of(policies, table.display)
        for operation in policy.operations if policy else ():
            statements = render(estate.dialect, table.physical, operation)
            if not statements:
                continue
            last = table.done.get(operation.name)
            due = last is None or estate.now - last >= operation.every
            whole = is_of_all_tables(estate.dialect, operation)
            task = Task(table, operation, statements, last, due, whole)
            if not whole:
                found.append(task)
                continue
            # Of several that would do the same to the catalog, the one that keeps files longest.
            other = catalogs.get(operation.name)
            if other is None or (operation.retention or estate.longest) > (
                other.operation.retention or estate.longest
            ):
                catalogs[operation.name] = task
    return (*found, *catalogs.values())


def do(
    mesh: Mesh,
    project: str,
    environment: str | None,
    tasks: Iterable[Task],
    dialect: str,
    wait: timedelta,
    say: Callable[[str], None],
) -> Outcome:
    """Do what is due. A table that a run has is waited for, and then left to the next time.

    A statement that fails is told, and the next table is done. Killed, it leaves nothing behind but a reservation that ends with
    its lease, or when the next run finds its process gone.
    """
    outcome = Outcome()
    until = time.monotonic() + wait.total_seconds()
    left = [task for task in tasks if task.due]
    while left and not mesh.stop.requested:
        again: list[Task] = []
        for task in left:
            if mesh.stop.requested:
                break
            said = f"{task.operation.name} {task.table.display}"
            tables = None if task.whole_catalog else [task.table]
            try:
                with mesh.upkeep(project, tables, environment=environment) as upkeep:
                    asked = ask_predictive(dialect, task.table.physical)
                    if asked is not None and is_predictive(upkeep.execute(asked)):
                        outcome.passed_over += 1
                        say(f"passed over {said}: predictive optimisation is on")
                        continue
                    for statement in task.statements:
                        upkeep.execute(statement)
                    upkeep.done(task.table, task.operation.name, {"statements": list(task.statements)})
            except RunInProgressError as error:
                again.append(task)
                if time.monotonic() >= until:
                    say(f"left {said} to the next time: {error.message}")
            except LeaseLostError as error:
                outcome.failed += 1
                say(f"stopped {said}: {error.message}")
            except MeshgateError as error:
                outcome.failed += 1
                say(f"failed {said}: {error.message}")
            else:
                outcome.done += 1
                say(f"done {said}")
        left = again
        if time.monotonic() >= until:
            break
        if left:
            time.sleep(PAUSE_S)
    outcome.busy = len(left)
    return outcome
