"""One opened SQLMesh project: what its state says, and how it evaluates what it is handed."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import evolve

from meshgate.bridge.contract import check_hooks, check_version, installed_versions
from meshgate.errors import EvaluationError, MeshgateError, ProjectError

check_version()  # before the import, which may fail in ways that name neither the cause nor the cure

from sqlmesh.core import constants as c  # noqa: E402
from sqlmesh.core.environment import Environment, EnvironmentNamingInfo  # noqa: E402
from sqlmesh.core.snapshot import (  # noqa: E402
    DeployabilityIndex,
    SnapshotChangeCategory,
    SnapshotIntervals,
)
from sqlmesh.utils.errors import NoChangesPlanError  # noqa: E402

from meshgate.bridge.definitions import definitions  # noqa: E402
from meshgate.bridge.dropped import Dropped, dropped  # noqa: E402
from meshgate.bridge.engine import ends_with_its_process, interrupt, statement  # noqa: E402
from meshgate.bridge.failures import evaluation_error, said_of_node, sentence  # noqa: E402
from meshgate.bridge.queries import Rendered, rendered  # noqa: E402
from meshgate.bridge.quiet import QuietConsole, quiet  # noqa: E402
from meshgate.bridge.removals import removals  # noqa: E402
from meshgate.bridge.scheduler import GatedContext, Journal  # noqa: E402
from meshgate.bridge.settings import read_config  # noqa: E402
from meshgate.bridge.sources import prints  # noqa: E402
from meshgate.bridge.translate import Promoted, milliseconds, pairs, promoted  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path

    from sqlmesh.core.context import Context
    from sqlmesh.core.plan import Plan
    from sqlmesh.core.snapshot import Snapshot

    from meshgate.bridge.queries import Bounds
    from meshgate.interval import Interval, IntervalSet

check_hooks()

if "MAX_FORK_WORKERS" not in os.environ:
    # Children that SQLMesh forks outlive a killed run and keep its connections open: docs/decisions/0030.
    c.MAX_FORK_WORKERS = 1


class SqlmeshProject:
    """A SQLMesh project, opened for running (from state alone) or for deploying (from its files).

    Args:
        path: The folder of the project.
        project: The `project:` key that it must have.
        gateway: Which gateway to use, or None for its default.
        load: Whether to load the models' files; a run does not need them.
        given: A context that is open already, whose configuration was read.

    Raises:
        ProjectError: The folder is no SQLMesh project, has another key, or its state cannot be used.
    """

    def __init__(
        self, path: Path, project: str, gateway: str | None, *, load: bool, given: Context | None = None
    ) -> None:
        self.project = project
        self.path = path
        self._console = QuietConsole()
        self._context: Context
        if given is not None:
            self._context = given
            self._state = given.state_sync
            return
        found = read_config(path).project
        if found != project:
            raise ProjectError(
                f"the SQLMesh project in {path} has `project: {found}`" if found else
                f"the SQLMesh project in {path} has no `project:` key",
                hint=f"meshgate.yaml calls it {project!r}: write `project: {project}` into its config.yaml, or change meshgate.yaml",
            )  # fmt: skip
        with self._quiet(), self._named("cannot be opened"):
            self._context = GatedContext(paths=[str(path)], gateway=gateway, load=load)
            # Opening the state checks that its versions are this SQLMesh's.
            self._state = self._context.state_sync

    def _quiet(self) -> AbstractContextManager[Any]:
        return quiet(self._console)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Name the project in whatever SQLMesh raises."""
        try:
            yield
        except MeshgateError:
            raise
        except Exception as error:
            raise ProjectError(
                f"the SQLMesh project {self.project!r} in {self.path} {what}: {sentence(error)}",
                project=self.project,
            ) from error

    @property
    def warnings(self) -> tuple[str, ...]:
        """What SQLMesh warned of so far."""
        return tuple(self._console.warnings)

    @property
    def versions(self) -> tuple[str, str]:
        """The versions of SQLMesh and SQLGlot in use."""
        return installed_versions()

    @property
    def engine_in_process(self) -> bool:
        """Whether the engine dies with this process, so that a dead process cannot still be writing."""
        return ends_with_its_process(self._context.connection_config)

    @property
    def gateways(self) -> tuple[str, ...]:
        """The gateways that the project configures."""
        return tuple(self._context.config.gateways)

    @property
    def state_schema(self) -> str:
        """The schema of SQLMesh's own tables."""
        return str(self._context.config.get_state_schema(self._context.gateway) or c.SQLMESH)

    def local_models(self) -> tuple[str, ...]:
        """The names of the models and standalone audits in the project's own files (needs `load`)."""
        models = {n: m for n, m in self._context.models.items() if not m.kind.is_external}
        nodes = models | dict(self._context.standalone_audits)
        return tuple(name for name, node in nodes.items() if node.project == self.project)

    def definitions(self) -> dict[str, str]:
        """What the project's own files say of each of its models, as a digest (needs `load`)."""
        nodes = [*self._context.models.values(), *self._context.standalone_audits.values()]
        said = definitions(nodes, self._context._environment_statements)  # noqa: SLF001 - no public name
        return {name: text for name, (project, text) in said.items() if project == self.project}

    def promoted_definitions(self, environment: str) -> tuple[bool, dict[str, tuple[str, str]]]:
        """Project and definition of all that an environment promotes; a new one begins as production is.

        Returns:
            Whether there is such an environment, and its last plan was carried through; and the definitions, read now.
        """
        found = self._environment(environment)
        begun = found or self._environment(c.PROD)
        with self._named("has a state that cannot be read"):
            held = self._state.get_snapshots(begun.snapshots).values() if begun is not None else ()
            said = self._state.get_environment_statements(begun.name) if begun is not None else ()
            return bool(found and found.finalized_ts), definitions((s.node for s in held), said)

    def loaded(self, now: datetime) -> Promoted:
        """What the project's files say now, with the other projects' models as SQLMesh's state has them (needs `load`).

        Args:
            now: Where relative starts are counted from, UTC.
        """
        with self._named("cannot be looked at"), self._quiet():
            snapshots = list(self._context.snapshots.values())
            return promoted(snapshots, plan_id=None, finalized=False, now=now)

    def queries(self, bounds: Bounds) -> dict[str, Rendered]:
        """All models by name; the project's own, and those that are looked through, with their queries (needs `load`).

        Args:
            bounds: For which intervals, and which times of execution, to render a model, by its interval unit.
        """
        with self._named("cannot be looked at"), self._quiet():
            return {
                name: rendered(
                    model,
                    self.path,
                    bounds
                    if model.project == self.project or model.kind.is_view or model.kind.is_embedded
                    else None,
                )
                for name, model in self._context.models.items()
            }

    def _environment(self, name: str) -> Environment | None:
        with self._named("has a state that cannot be read"):
            return self._state.get_environment(Environment.sanitize_name(name))

    def _snapshots(self, environment: Environment) -> list[Snapshot]:
        with self._named("has a state that cannot be read"):
            found = list(self._state.get_snapshots(environment.snapshots).values())
            # What the caching reader hands out is shared and may be old.
            self._state.refresh_snapshot_intervals(found)
            return found

    def promoted(self, environment: str, now: datetime) -> Promoted | None:
        """What the environment promotes and what SQLMesh has recorded, read now; None where it does not exist.

        Args:
            environment: SQLMesh's environment.
            now: Where relative starts are counted from, UTC.
        """
        found = self._environment(environment)
        if found is None:
            return None
        snapshots = self._snapshots(found)
        with self._named("has a state that cannot be read"):
            # Later than the intervals: what is removed in between is found again at the next look, or now.
            removed = removals(self._state, snapshots)
        held = promoted(snapshots, plan_id=found.plan_id, finalized=bool(found.finalized_ts), now=now)
        return evolve(held, removed=removed)

    def record(self, environment: str, name: str, version: str, interval: Interval) -> None:
        """Write an interval into SQLMesh's own record, as if it had been evaluated.

        Args:
            environment: SQLMesh's environment.
            name: The model.
            version: Its version; where the environment promotes another one by now, nothing is written.
            interval: Half-open, UTC.
        """
        found = self._environment(environment)
        for snapshot in self._snapshots(found) if found is not None else ():
            if (snapshot.name, snapshot.version) == (name, version):
                with self._named("has a state that cannot be written"):
                    self._state.add_snapshots_intervals([_addition(snapshot, interval)])

    def postpone_restatements(self, environment: str, until: Mapping[str, datetime]) -> None:
        """Tell SQLMesh's own record when models are computed again by themselves next: what is asked for is not done twice.

        Args:
            environment: SQLMesh's environment.
            until: The next tick of each model's `auto_restatement_cron`, UTC.
        """
        found = self._environment(environment)
        snapshots = self._snapshots(found) if found is not None else []
        with self._named("has a state that cannot be written"):
            self._state.update_auto_restatements(
                {s.name_version: milliseconds(until[s.name]) for s in snapshots if s.name in until}
            )

    def prints(
        self, table: str, time_column: str, updated_at: str | None, time: Interval, bucket_s: int
    ) -> dict[int, tuple[int, str | None]]:
        """What a table of the warehouse looks like: how many rows, and the latest change, by buckets of time.

        Args:
            table: Its name, as the mesh knows it.
            time_column: By which it is cut into buckets.
            updated_at: A column that grows with each change, or None.
            time: Where to look, half-open, UTC; whole buckets.
            bucket_s: How long a bucket is, seconds.

        Returns:
            By the second since 1970 at which a bucket begins; buckets without rows are left out.

        Raises:
            ProjectError: The warehouse cannot answer.
        """
        with self._named(f"cannot look at {table.replace(chr(34), '')}"), self._quiet():
            return prints(self._context.engine_adapter, table, time_column, updated_at, time, bucket_s)

    @property
    def dialect(self) -> str:
        """The engine's dialect."""
        return str(self._context.engine_adapter.dialect)

    def tables(self, environment: str) -> dict[str, tuple[str, str]]:
        """The version of each of the project's models that has a table of its own, and that table, as the engine writes it."""
        found = self._environment(environment)
        snapshots = self._snapshots(found) if found is not None else []
        own = [s for s in snapshots if s.is_model and s.node.project == self.project]
        return {s.name: (s.version, s.table_name()) for s in own if not s.is_symbolic and not s.is_view}

    def statement(self, sql: str, longest_s: float) -> list[tuple[Any, ...]]:
        """Run a statement in the warehouse as it stands, for so many seconds at most; what it answers. Failed: ProjectError."""
        with self._named("had a statement that failed"), self._quiet():
            return statement(self._context.engine_adapter, sql, longest_s)

    def previews(self, environment: str) -> frozenset[str]:
        """The models of which the environment shows a preview in a table of its own, made by its deploy.

        Their intervals are not those of the version that production has, and the ledger does not keep them.
        """
        found = self._environment(environment)
        if found is None or found.naming_info.name == c.PROD:
            return frozenset()
        snapshots = self._snapshots(found)
        index = _deployability(found.naming_info, snapshots)
        return frozenset(s.name for s in snapshots if not index.is_deployable(s))

    def execute(
        self, environment: str, work: Mapping[str, IntervalSet], journal: Journal, *, now: datetime
    ) -> None:
        """Evaluate exactly these intervals of these models, parents first.

        Args:
            environment: SQLMesh's environment.
            work: Intervals by model; only the project's own models.
            journal: Is asked before and told after each batch.
            now: SQLMesh's execution time, UTC.

        Raises:
            LeaseLostError: The run may not go on.
            EvaluationError: SQLMesh stopped for a reason that is not one interval's own.
        """
        found = self._environment(environment)
        if found is None:
            raise ProjectError(f"SQLMesh has no environment {environment!r}")
        snapshots = {s.name: s for s in self._snapshots(found)}
        # A deploy may have replaced what the run planned for, in the moment between.
        for name in [n for n in work if n not in snapshots or snapshots[n].version != journal.version(n)]:
            journal.superseded(name)
            work = {n: pieces for n, pieces in work.items() if n != name}
        naming: EnvironmentNamingInfo = found.naming_info
        index = _deployability(naming, snapshots.values())
        with self._quiet(), self._under(journal):
            scheduler = self._context.create_scheduler(snapshots.values(), self._context.snapshot_evaluator)
            try:
                errors, _ = scheduler.run_merged_intervals(
                    merged_intervals={
                        snapshots[name]: pairs(ranges) for name, ranges in work.items() if ranges
                    },
                    deployability_index=index,
                    environment_naming_info=naming,
                    execution_time=milliseconds(now),
                    run_environment_statements=True,
                )
            except MeshgateError:
                raise
            except (
                Exception
            ) as error:  # a signal, a statement of before_all or after_all, an engine that is gone
                raise EvaluationError(
                    f"SQLMesh stopped the run of {self.project!r}: {sentence(error)}", project=self.project
                ) from error
        if errors:
            raise evaluation_error(errors)

    @contextmanager
    def _under(self, journal: Journal) -> Iterator[None]:
        self._context.journal = journal
        try:
            yield
        finally:
            self._context.journal = None

    def deploy(
        self,
        environment: str,
        journal: Journal,
        *,
        now: datetime,
        judge: Callable[[Collection[Dropped]], None] = lambda _: None,
    ) -> bool:
        """Plan the project's files against the environment and apply the plan under the journal.

        A change that SQLMesh cannot categorise is taken for a breaking one: it computes more, never too little.

        Args:
            environment: SQLMesh's environment.
            journal: Is asked before and told after each batch.
            now: SQLMesh's execution time, UTC.
            judge: Is told what the plan takes away of other projects, before anything is changed; raises to stop it.

        Returns:
            Whether the plan had anything to do.

        Raises:
            EvaluationError: The plan failed; the environment still promotes what it did before.
            ProjectError: The project cannot be planned.
        """
        with self._quiet(), self._under(journal):
            with self._named("cannot be planned"):
                builder = self._context.plan_builder(environment, execution_time=now, skip_tests=False)
                try:
                    plan = builder.build()
                except NoChangesPlanError:
                    raise ProjectError(
                        f"there is no environment {environment!r}, and none to make: the files of {self.project!r} say what prod has",
                        hint="name an environment that is there, or change something",
                        project=self.project,
                    ) from None
                for snapshot in plan.uncategorized:
                    builder.set_choice(snapshot, SnapshotChangeCategory.BREAKING)
                plan = builder.build()
                held = promoted(list(plan.snapshots.values()), plan_id=plan.plan_id, finalized=False, now=now)
                taken = self._taken(plan)
            journal.foresee(held)
            judge(taken)
            if not plan.context_diff.has_changes and not plan.requires_backfill:
                return False
            self._console.failures = []
            try:
                self._context.apply(plan)
            except MeshgateError:
                raise
            except Exception as error:
                # SQLMesh says on its console which model failed, and why; what it raises says only that one did.
                said = "; ".join(map(said_of_node, self._console.failures[:3])) or sentence(error)
                left = self._environment(environment)
                hint = (
                    "mend the cause and deploy again: the environment is half changed, and no project runs on it until then"
                    if left is not None and not left.finalized_ts
                    else "the environment promotes what it did before; mend the cause and deploy again"
                )
                raise EvaluationError(
                    f"the plan of {self.project!r} for {environment!r} was not applied: {said}", hint=hint
                ) from error
        return True

    def _taken(self, plan: Plan) -> tuple[Dropped, ...]:
        """What a plan takes away of other projects."""
        diff = plan.context_diff
        gone = self._state.get_snapshots(diff.removed_snapshots).values() if diff.removed_snapshots else ()
        found = {s.node.project for s in (*plan.snapshots.values(), *gone) if s.node.project}
        ours = (self.project,)
        return dropped(plan, ours, gone, found - set(ours), exists=not diff.is_new_environment)

    def interrupt(self) -> None:
        """Interrupt the statements under way, where the driver can; from another thread than theirs."""
        interrupt(self._context.engine_adapters.values())

    def close(self) -> None:
        """Close the connections to state and warehouse."""
        self._context.close()


def _deployability(naming: EnvironmentNamingInfo, snapshots: Collection[Snapshot]) -> DeployabilityIndex:
    """Which models' evaluations go into the table of their version."""
    if naming.name == c.PROD:
        return DeployabilityIndex.all_deployable()
    index = DeployabilityIndex.create(snapshots)
    for snapshot in snapshots:
        # What production has is read from its table, and has no preview, whichever change once led to it.
        if not snapshot.is_paused and index.is_representative(snapshot):
            index = index.with_deployable(snapshot)
    return index


def _addition(snapshot: Snapshot, interval: Interval) -> SnapshotIntervals:
    return SnapshotIntervals(
        name=snapshot.name,
        identifier=snapshot.identifier,
        version=snapshot.version,
        dev_version=snapshot.dev_version,
        intervals=pairs([interval]),
    )
