"""Maintenance of whole tables that leaves their rows as they are (OPTIMIZE, VACUUM, ANALYZE), beside runs.

It reserves the whole of each table like a run does, and never begins: so no run begins anything in it meanwhile, no gate is
opened or closed, and what is left of one that dies is given back with its lease: docs/decisions/0060.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from attrs import frozen

from meshgate.coordinator.leased import leased
from meshgate.errors import LeaseLostError, MeshgateError, RunInProgressError
from meshgate.ledger import WHOLE, Busy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from datetime import datetime

    from meshgate.bridge.project import SqlmeshProject
    from meshgate.config import ProjectConfig
    from meshgate.coordinator.run import Workbench
    from meshgate.lease import LeaseKeeper


@frozen
class Table:
    """A table of a project, and when it was looked after.

    Attributes:
        version_id: Which version's, in the ledger.
        display: The model, as people write it.
        physical: The table in the warehouse, as the engine writes it.
        done: When which operation was done last, UTC.
    """

    version_id: int
    display: str
    physical: str
    done: Mapping[str, datetime]


@frozen
class Estate:
    """What there is to look after in a project.

    Attributes:
        dialect: The engine's.
        tables: The tables that an environment promotes, in the order of their names.
        now: The ledger's clock, UTC.
        longest: How long whoever reads or writes may still need files that nobody refers to any more: the grace of a lost run, or
            the longest run that the ledger remembers.
    """

    dialect: str
    tables: tuple[Table, ...]
    now: datetime
    longest: timedelta


class Upkeep:
    """Tables that nobody else writes until this ends."""

    def __init__(self, bench: Workbench, opened: SqlmeshProject, run_id: int, keeper: LeaseKeeper) -> None:
        self._bench = bench
        self._opened = opened
        self._run_id = run_id
        self._keeper = keeper

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement in the warehouse, where the engine can limit it no longer than `ledger.statement_timeout`; what it answers.

        Raises:
            LeaseLostError: The tables are not ours any more; the statement may have been interrupted.
            ProjectError: It failed.
        """
        self._alive()
        try:
            return self._opened.statement(statement, self._bench.config.ledger.statement_timeout_s)
        except MeshgateError:
            self._alive()
            raise

    def done(self, table: Table, operation: str, detail: Mapping[str, Any] | None = None) -> None:
        """Remember that an operation was done to a table.

        Raises:
            LeaseLostError: It is not ours any more.
        """
        self._alive()
        self._bench.ledger.note_maintenance(self._run_id, table.version_id, operation, detail or {})

    def _alive(self) -> None:
        if not self._keeper.alive():
            raise LeaseLostError(f"maintenance {self._run_id} has lost its lease", run_id=self._run_id)


def estate(bench: Workbench, name: str, environment: str | None = None) -> Estate:
    """What there is to look after in a project, as it is now; nothing is written.

    Raises:
        NotDeployedError: Nothing was deployed in the environment.
    """
    project = bench.project(name)
    target = bench.target(project, environment)
    manifest = bench.ledger.manifest(target)
    opened = bench.open_project(project, load=False)
    ids = manifest.version_ids
    done: dict[int, dict[str, datetime]] = {}
    for (version, operation), at in bench.ledger.maintained(ids.values()).items():
        done.setdefault(version, {})[operation] = at
    tables = [
        Table(ids[model], manifest.graph[model].display, physical, done.get(ids[model], {}))
        for model, (version, physical) in opened.tables(target).items()
        if model in ids and manifest.graph[model].version == version
    ]
    ordered = tuple(sorted(tables, key=lambda table: table.display))
    return Estate(opened.dialect, ordered, bench.ledger.clock(), _longest(bench))


def _longest(bench: Workbench) -> timedelta:
    return max(timedelta(seconds=bench.config.ledger.grace_s), bench.ledger.longest_run())


@contextmanager
def upkeep(
    bench: Workbench, name: str, tables: Collection[Table] | None, environment: str | None = None
) -> Iterator[Upkeep]:
    """Reserve whole tables, all or none, until the block ends; also such as are not promoted any more.

    Args:
        bench: Configuration, ledger, projects.
        name: The project in whose name it is done, and whose connection is used.
        tables: Which; None for all that the environment promotes, of every project.
        environment: SQLMesh's environment; the project's own by default.

    Raises:
        RunInProgressError: A run, a deploy or other maintenance has one of them.
    """
    project = bench.project(name)
    target = bench.target(project, environment)
    manifest = bench.ledger.manifest(target)
    if tables is None:
        ids = {
            v: manifest.graph[n].display
            for n, v in manifest.version_ids.items()
            if manifest.graph[n].kind.recorded
        }
    else:
        ids = {table.version_id: table.display for table in tables}
    opened = bench.open_project(project, load=False)
    with _lease(bench, project, target, opened) as (run_id, keeper):
        state, error = "failed", None
        try:
            _reserve(bench, run_id, ids)
            yield Upkeep(bench, opened, run_id, keeper)
            state = "done"
        except RunInProgressError:
            state = "nothing_to_do"
            raise
        except BaseException as problem:
            error = str(problem)[:500]
            raise
        finally:
            bench.ledger.finish(run_id, state, {}, error)


def _reserve(bench: Workbench, run_id: int, ids: Mapping[int, str]) -> None:
    for version, display in sorted(ids.items()):
        (answer,) = bench.ledger.open_claims(run_id, version, [WHOLE], whole=True)
        if answer.refused_by is not None:
            raise RunInProgressError(
                f"run {answer.refused_by} has {display}",
                hint="wait for its end, or see `meshgate lease`",
                run_id=answer.refused_by,
            )


@contextmanager
def _lease(
    bench: Workbench, project: ProjectConfig, target: str, opened: SqlmeshProject
) -> Iterator[tuple[int, LeaseKeeper]]:
    with leased(
        bench, project, target, "maintenance", None, engine_in_process=opened.engine_in_process,
        warehouse=project.warehouse, on_lost=opened.interrupt,
    ) as held:  # fmt: skip
        assert not isinstance(held, Busy)  # noqa: S101 - maintenance is in nobody's way, nor anybody in its
        lease, keeper = held
        yield lease.run_id, keeper
