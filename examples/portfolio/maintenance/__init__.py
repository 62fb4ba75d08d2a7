"""Maintenance of the portfolio's tables: OPTIMIZE, VACUUM, ANALYZE by policy, guarded by the ledger.

python -m maintenance upstream            prints what is due and the statements, and does nothing
python -m maintenance upstream --apply    does it
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from maintenance.policy import read
from maintenance.work import do, tasks_of
from meshgate.config import parse_duration
from meshgate.errors import ConfigError, EvaluationError, MeshgateError, StoppedError
from meshgate.mesh import Mesh
from meshgate.stop import on_signals

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent


def run(argv: Sequence[str]) -> int:
    """The command: 0 done, or left to the next time; 1 something failed, or it was stopped.

    Raises:
        MeshgateError: It could not even begin.
    """
    parser = argparse.ArgumentParser(
        prog="python -m maintenance", description="Look after the tables of a project."
    )
    parser.add_argument("project", help="whose tables")
    parser.add_argument("--config", default=str(HERE.parent), help="meshgate.yaml or its folder")
    parser.add_argument("--policies", default=str(HERE / "tables.yaml"), help="what is done to which tables")
    parser.add_argument("--environment", help="SQLMesh's environment; by default the project's own")
    parser.add_argument(
        "--wait", default="10m", help="how long to wait for tables that runs have, such as 10m"
    )
    parser.add_argument("--anyway", action="store_true", help="also what is not due yet")
    parser.add_argument("--apply", action="store_true", help="do it; without, only print")
    given = parser.parse_args(argv)
    policies, wait = read(Path(given.policies)), parse_duration(given.wait)
    with Mesh.open(given.config) as mesh:
        estate = mesh.estate(given.project, environment=given.environment)
        tasks = tasks_of(estate, policies)
        if given.anyway:
            tasks = tuple(replace(task, due=True) for task in tasks)
        due = [task for task in tasks if task.due]
        for task in due:
            last = f"{task.last:%Y-%m-%d %H:%MZ}" if task.last else "never"
            print(f"{task.operation.name} {task.table.display} (last {last})")
            for statement in task.statements:
                print(f"  {statement};")
        print(f"{len(due)} of {len(tasks)} operations are due")
        if not given.apply:
            print("nothing was done: --apply does it")
            return 0
        with on_signals(mesh.stop, lambda: timedelta(0), mesh.interrupt, _tell):
            outcome = do(mesh, given.project, given.environment, due, estate.dialect, wait, _tell)
        print(f"{outcome.done} done, {outcome.busy} left to the next time, {outcome.failed} failed")
        if mesh.stop.requested:
            raise StoppedError(f"stopped by {mesh.stop.reason}")
        return 1 if outcome.failed else 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The command line; what goes wrong is a line and an exit code."""
    try:
        return run(sys.argv[1:])
    except MeshgateError as error:
        _tell(f"error: {error}")
        return error.exit_code


def job() -> None:
    """The entry point of a Databricks task: any SystemExit would fail it, so it raises where something failed, and returns.

    Raises:
        MeshgateError: What went wrong.
    """
    try:
        code = run(sys.argv[1:])
    except SystemExit as error:  # argparse
        if error.code:
            raise ConfigError(
                "the task's parameters are wrong", hint="see `python -m maintenance --help`"
            ) from None
        return
    if code:
        raise EvaluationError("maintenance of some tables failed; see above which")
