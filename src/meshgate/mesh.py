"""The Python API: one mesh, opened from its `meshgate.yaml`. What the command line does, it does through this."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from meshgate import coordinator
from meshgate.config import load
from meshgate.coordinator import Accepted, Held, Released, RunReport, Workbench
from meshgate.db import Database, migrate
from meshgate.ledger import Ledger
from meshgate.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime, timedelta
    from pathlib import Path

    from meshgate.analysis import Analysis
    from meshgate.bridge.project import SqlmeshProject
    from meshgate.config import MeshConfig, ProjectConfig
    from meshgate.coordinator.deploys import Deploys
    from meshgate.coordinator.diagnosis import Diagnosis
    from meshgate.coordinator.explain import GateAnswer, Why
    from meshgate.coordinator.leftovers import Leftovers
    from meshgate.coordinator.observe import Look
    from meshgate.coordinator.progress import Progress
    from meshgate.coordinator.restate import Preview, RequestStanding
    from meshgate.coordinator.status import Status, Wait
    from meshgate.coordinator.upkeep import Estate, Table, Upkeep
    from meshgate.coordinator.verify import Verification
    from meshgate.interval import Interval
    from meshgate.ledger import LiveRun, Request
    from meshgate.local_postgres import LocalPostgres


class Mesh:
    """Several SQLMesh projects, one ledger.

    Example:
        >>> with Mesh.open("meshgate.yaml") as mesh:  # doctest: +SKIP
        ...     report = mesh.run("downstream")
        ...     report.state
        'done'

    Args:
        config: As loaded from `meshgate.yaml`.
        check: Whether to refuse a ledger whose schema is not this version's (all verbs but `migrate` need it).
        tell: Is told what happens while a run works and waits, from whichever thread it happens in.
        given: A SQLMesh project that is open already, and is used instead of opening it.

    Attributes:
        stop: Ask it to end whatever runs, from any thread: no further batch begins.
    """

    def __init__(
        self,
        config: MeshConfig,
        *,
        check: bool = True,
        tell: Callable[[Progress], None] | None = None,
        given: SqlmeshProject | None = None,
    ) -> None:
        _log_nothing_to_stdout()
        self.config = config
        self._local: LocalPostgres | None = None
        self._given = given
        self._projects: dict[tuple[str, bool], SqlmeshProject] = {}
        self._database = Database(self._ledger_url())
        self.ledger = Ledger(self._database)
        try:
            if check:
                self._database.check_schema()
        except BaseException:
            self.close()
            raise
        self.stop = Stop()
        self._bench = Workbench(config, self.ledger, self._open_project, self.stop, tell or _nobody)

    @classmethod
    def open(
        cls,
        path: str | Path | None = None,
        *,
        check: bool = True,
        tell: Callable[[Progress], None] | None = None,
    ) -> Self:
        """Open a mesh.

        Args:
            path: `meshgate.yaml` or its folder; by default it is looked for here and in the parents.
            check: Whether to refuse a ledger of another version.
            tell: As in the constructor.

        Raises:
            ConfigError: The file is missing or wrong.
            LedgerUnreachableError: No connection.
            SchemaVersionError: Run `meshgate migrate`.
        """
        from pathlib import Path

        return cls(load(Path(path) if path is not None else None), check=check, tell=tell)

    def interrupt(self) -> None:
        """Interrupt the statements under way, where the engine can; from another thread than theirs."""
        for project in [*self._projects.values(), *([self._given] if self._given else [])]:
            project.interrupt()

    def _ledger_url(self) -> str:
        folder = self.config.ledger.local_folder
        if folder is None:
            return self.config.ledger.url
        from meshgate.local_postgres import LocalPostgres

        self._local = LocalPostgres.start(folder)
        self._local.ensure_database("meshgate")
        # The projects' own configuration finds the private server by these.
        os.environ.update(self._local.environment())
        return self._local.url("meshgate")

    def _open_project(self, project: ProjectConfig, *, load: bool) -> SqlmeshProject:
        if self._given is not None and self._given.project == project.name:
            return self._given
        from meshgate.bridge.project import SqlmeshProject

        # A long-lived process keeps what it opened to run: that costs a second, and the state is read anew each time.
        # To deploy, the files are read anew.
        key = (project.name, load)
        if load and key in self._projects:
            self._projects.pop(key).close()
        if key not in self._projects:
            self._projects[key] = SqlmeshProject(project.path, project.name, project.gateway, load=load)
        return self._projects[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        for project in self._projects.values():
            project.close()
        self._projects.clear()
        self._database.close()
        if self._local is not None:
            self._local.close()
            self._local = None

    def migrate(self) -> tuple[int, int]:
        """Create the ledger or bring it to this version; its version before (0: none) and now."""
        return migrate(self._database)

    def deploy(
        self,
        project: str,
        *,
        environment: str | None = None,
        now: datetime | None = None,
        restating: Mapping[str, Interval] | None = None,
        dropping: bool = False,
    ) -> RunReport:
        """Apply SQLMesh's plan of a project under lease, gate and ledger. See `coordinator.deploy`."""
        return coordinator.deploy(
            self._bench, project, environment=environment, now=now, restating=restating, dropping=dropping
        )

    def deploy_analysed(
        self,
        analysis: Analysis,
        checkouts: Mapping[str, Path | None] | None = None,
        *,
        now: datetime | None = None,
        dropping: bool = False,
    ) -> Deploys:
        """Deploy what was analysed, in its order, if the mesh is as it was. See `coordinator.deploys.deploy_analysed`."""
        from meshgate.coordinator.deploys import deploy_analysed

        return deploy_analysed(self._bench, analysis, checkouts, now=now, dropping=dropping)

    def run(
        self,
        project: str,
        *,
        environment: str | None = None,
        now: datetime | None = None,
        dry_run: bool = False,
        overlap: str | None = None,
        wait: timedelta | None = None,
        only: Collection[str] | None = None,
    ) -> RunReport:
        """Evaluate whatever of a project is due and ready. See `coordinator.run`."""
        return coordinator.run(
            self._bench, project,
            environment=environment, now=now, dry_run=dry_run, overlap=overlap, wait=wait, only=only,
        )  # fmt: skip

    def retry(
        self, model: str, interval: Interval | None = None, *, environment: str | None = None
    ) -> tuple[str, int]:
        """Let what failed be tried again by the next run, without its pause. See `coordinator.retry`."""
        return coordinator.retry(self._bench, model, interval, environment=environment)

    def hold(
        self,
        model: str,
        interval: Interval | None = None,
        *,
        reason: str,
        by: str,
        environment: str | None = None,
    ) -> Held:
        """Keep some time of a model from its readers. See `coordinator.hold`."""
        return coordinator.hold(self._bench, model, interval, reason=reason, by=by, environment=environment)

    def release(
        self, model: str, interval: Interval | None = None, *, by: str, environment: str | None = None
    ) -> Released:
        """Let readers have again what is held of a model. See `coordinator.release`."""
        return coordinator.release(self._bench, model, interval, by=by, environment=environment)

    def accept(
        self,
        model: str,
        interval: Interval | None = None,
        *,
        reason: str,
        by: str,
        environment: str | None = None,
    ) -> Accepted:
        """Take some time of a model as it is, though it failed or is missing. See `coordinator.accept`."""
        return coordinator.accept(self._bench, model, interval, reason=reason, by=by, environment=environment)

    def undo_accept(
        self, model: str, interval: Interval | None = None, *, by: str, environment: str | None = None
    ) -> Accepted:
        """Make due again what was accepted. See `coordinator.undo_accept`."""
        return coordinator.undo_accept(self._bench, model, interval, by=by, environment=environment)

    def leases(self) -> tuple[LiveRun, ...]:
        """Every run that lives, oldest first; also one whose lease ended and that nobody has taken over yet."""
        return self.ledger.live_runs()

    def break_lease(self, run_id: int, by: str) -> LiveRun:
        """Take a lease away by hand. See `coordinator.break_lease`."""
        return coordinator.break_lease(self._bench, run_id, by)

    def status(self, *, environment: str | None = None, now: datetime | None = None) -> Status:
        """Where every project and model is, and every root cause of what does not move.

        Args:
            environment: SQLMesh's environment; by default the one that the configured projects share.
            now: An instant in the past to stand for the present, UTC.

        Raises:
            NotDeployedError: Nothing was deployed in the environment.
        """
        from meshgate.coordinator.status import status

        return status(self._bench, environment=environment, now=now)

    def waits(self, project: str, *, environment: str, now: datetime | None = None) -> tuple[Wait, ...]:
        """Every root cause that keeps back something of one project: the part of `status` that a run reports."""
        from meshgate.coordinator.status import waits

        return waits(self._bench, project, environment, now)

    def why(
        self,
        model: str,
        interval: Interval | None = None,
        *,
        environment: str | None = None,
        now: datetime | None = None,
    ) -> Why:
        """Why an interval of a model is not there, down to the root, or how it came to be.

        Args:
            model: Its name, or the last parts of it.
            interval: Whole units of the model, UTC; by default the oldest that is due and not clean.
            environment: SQLMesh's environment; by default the one that the configured projects share.
            now: An instant in the past to stand for the present, UTC.

        Raises:
            UnknownModelError: There is no such model; names the nearest.
            IntervalError: The interval is not aligned; names the nearest one that is.
            NotDeployedError: Nothing was deployed in the environment.
        """
        from meshgate.coordinator.explain import why

        return why(self._bench, model, interval, environment=environment, now=now)

    def gate(
        self, model: str, interval: Interval, *, environment: str | None = None, now: datetime | None = None
    ) -> GateAnswer:
        """Whether an interval of a model could be evaluated now, whatever is recorded of it. Arguments as in `why`."""
        from meshgate.coordinator.explain import gate

        return gate(self._bench, model, interval, environment=environment, now=now)

    def restate(
        self,
        model: str,
        interval: Interval,
        *,
        reason: str | None = None,
        by: str | None = None,
        only_downstream: bool = False,
        rebuild: bool = False,
        source: bool = False,
        apply: bool = False,
        environment: str | None = None,
    ) -> Preview:
        """What computing some time of a model again comes to; with `apply` it is asked for.

        Args:
            model: Its name, or the last parts of it.
            interval: Which time of it, UTC; it is widened to whole units.
            reason: Why: for the history.
            by: Who asks: for the history.
            only_downstream: Whether the model is right, and only what was derived from it is asked for.
            rebuild: Whether tables that merge rows are asked for too where they read what is changed.
            source: Whether `model` is a table that no model of the mesh makes: all that read it are asked for.
            apply: Whether to make the request, which lasts until it is done or cancelled.
            environment: SQLMesh's environment; by default the one that the configured projects share.

        Raises:
            UnknownModelError: There is no such model, or source; names the nearest.
            IntervalError: The interval lies in the future.
            ConfigError: With `apply`: nothing can be computed again; says why.
            NotDeployedError: Nothing was deployed in the environment.
        """
        from meshgate.coordinator.restate import preview, request

        found = preview(
            self._bench, model, interval,
            only_downstream=only_downstream, rebuild=rebuild, source=source, environment=environment,
        )  # fmt: skip
        return request(self._bench, found, reason=reason, by=by) if apply else found

    def analyze(
        self,
        checkouts: Mapping[str, Path | None] | None = None,
        *,
        environment: str | None = None,
        now: datetime | None = None,
    ) -> Analysis:
        """What deploying some checkouts would do to the whole mesh; nothing is written. See `coordinator.analyze`."""
        from meshgate.coordinator.analyze import analyze

        return analyze(self._bench, checkouts, environment=environment, now=now)

    def leftovers(
        self,
        analysis: Analysis,
        model: str | None = None,
        *,
        reason: str | None = None,
        by: str | None = None,
        apply: bool = False,
    ) -> Leftovers:
        """What an analysis leaves as it was made; with `apply` it is asked for. See `coordinator.leftovers`."""
        from meshgate.coordinator.leftovers import ask, leftovers

        found = leftovers(self._bench, analysis, model)
        return ask(self._bench, found, reason=reason, by=by) if apply else found

    def requests(self, *, environment: str | None = None) -> tuple[Request, ...]:
        """The newest requests for restatement, and all that are open, newest first, each with its progress."""
        from meshgate.coordinator.restate import requests

        return requests(self._bench, environment)

    def request(self, request_id: int, *, environment: str | None = None) -> RequestStanding:
        """One request: how far it is, what is in its way, and what follows it. See `coordinator.restate.standing_of`."""
        from meshgate.coordinator.restate import standing_of

        return standing_of(self._bench, request_id, environment)

    def cancel_request(
        self, request_id: int, by: str, *, environment: str | None = None
    ) -> tuple[Request, bool]:
        """Take back what of a request is not done; see `coordinator.restate.cancel`."""
        from meshgate.coordinator.restate import cancel

        return cancel(self._bench, request_id, by, environment)

    def watch(
        self, project: str, *, environment: str | None = None, now: datetime | None = None
    ) -> tuple[Look, ...]:
        """Look at a project's sources, and ask for what has changed there. See `coordinator.observe.watch`."""
        from meshgate.coordinator.observe import watch

        return watch(self._bench, project, environment=environment, now=now)

    def estate(self, project: str, *, environment: str | None = None) -> Estate:
        """The tables of a project, and when they were looked after. See `coordinator.upkeep.estate`."""
        from meshgate.coordinator.upkeep import estate

        return estate(self._bench, project, environment)

    def upkeep(
        self, project: str, tables: Collection[Table] | None, *, environment: str | None = None
    ) -> AbstractContextManager[Upkeep]:
        """Keep runs out of whole tables while files of them are rewritten. See `coordinator.upkeep.upkeep`."""
        from meshgate.coordinator.upkeep import upkeep

        return upkeep(self._bench, project, tables, environment)

    def verify(self, *, ledger_only: bool = False) -> Verification:
        """Derive the ledger anew from its history, compare, and name what differs. See `coordinator.verify`."""
        from meshgate.coordinator.verify import verify

        return verify(self._bench, ledger_only=ledger_only)

    @classmethod
    def doctor(cls, path: str | Path | None = None) -> Diagnosis:
        """Look at configuration, ledger, projects and versions, and report all that is found; nothing is written.

        Args:
            path: `meshgate.yaml` or its folder; by default it is looked for here and in the parents.
        """
        from pathlib import Path

        from meshgate.coordinator.doctor import examine

        opened: list[Mesh] = []

        def connect(config: MeshConfig) -> Workbench:
            opened.append(cls(config, check=False))
            return opened[0]._bench  # noqa: SLF001 - its own class

        try:
            return examine(Path(path) if path is not None else None, connect)
        finally:
            for mesh in opened:
                mesh.close()


def _nobody(_: Progress) -> None:
    """Whom progress is told where nobody asked."""


def _log_nothing_to_stdout() -> None:
    """Where nobody configured structlog, its default would print to stdout, where results go."""
    import logging
    import sys

    import structlog

    if not structlog.is_configured():
        structlog.configure(
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        )
