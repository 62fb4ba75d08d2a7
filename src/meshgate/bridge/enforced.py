"""Plain `sqlmesh run` and `sqlmesh plan` under the ledger, through the scheduler in a project's configuration.

SQLMesh asks its configured scheduler for two things: the state of a context, and who evaluates a plan. What is handed
out here leads both to an `Authority`, which does what `meshgate run` and `meshgate deploy` do, on SQLMesh's own
context, with its console and the plan that the user has agreed to. What cannot be done that way is refused.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sqlmesh.core.config.root import Config
from sqlmesh.core.config.scheduler import BuiltInSchedulerConfig
from sqlmesh.core.environment import EnvironmentNamingInfo
from sqlmesh.core.plan import PlanEvaluator
from sqlmesh.core.scheduler import CompletionStatus, Scheduler
from sqlmesh.core.state_sync.base import DelegatingStateSync
from sqlmesh.utils.date import now as process_time
from sqlmesh.utils.date import to_datetime
from sqlmesh.utils.errors import SQLMeshError
from sqlmesh.utils.yaml import load as load_yaml

from meshgate.bridge.project import SqlmeshProject
from meshgate.bridge.scheduler import GatedContext, GatedScheduler, HeldState
from meshgate.bridge.translate import interval, promoted
from meshgate.errors import MeshgateError, ProjectError
from meshgate.graph import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from datetime import datetime

    from sqlmesh.core.plan.definition import EvaluatablePlan
    from sqlmesh.core.snapshot import Snapshot

    from meshgate.bridge.dropped import Dropped
    from meshgate.bridge.scheduler import Journal
    from meshgate.interval import Interval

_ATTRIBUTE = "_meshgate_seat"
# What `sqlmesh run` may be told beyond the environment and the models: what stands here has no meaning under the ledger.
_UNSUPPORTED = {
    "start": "--start",
    "end": "--end",
    "ignore_cron": "--ignore-cron",
    "restatements": "restatements",
    "start_override_per_model": "a start for single models",
    "end_override_per_model": "an end for single models",
}


class Authority(Protocol):
    """Under whose rules plain SQLMesh works. Raises MeshgateError to refuse."""

    def run(
        self, project: EnforcedProject, environment: str, instant: datetime, only: Collection[str] | None
    ) -> bool | None:
        """Run a project as `meshgate run` does; whether it went well, None where there was nothing to do."""

    def apply(
        self,
        project: EnforcedProject,
        environment: str,
        instant: datetime,
        restating: Mapping[str, Interval],
    ) -> None:
        """Apply the project's plan as `meshgate deploy` does; what it restates is asked for first."""


class _Seat:
    """Where a context's journal sits while a run or a plan works under it."""

    def __init__(self, context: Any, authority: Authority) -> None:
        self.context = context
        self.authority = authority
        self.journal: Journal | None = None

    def create_scheduler(self, snapshots: Iterable[Snapshot], snapshot_evaluator: Any) -> Scheduler:
        """In the place of the context's own hook."""
        context, journal = self.context, self.journal
        facts = {
            "default_catalog": context.default_catalog,
            "max_workers": context.concurrent_tasks,
            "console": context.console,
            "notification_target_manager": context.notification_target_manager,
        }
        if journal is None:
            return _AskingScheduler(snapshots, snapshot_evaluator, context.state_sync, seat=self, **facts)
        held = HeldState(context.state_sync, journal.project)
        return GatedScheduler(snapshots, snapshot_evaluator, held, journal=journal, **facts)

    def project(self, plan: EvaluatablePlan | None = None) -> EnforcedProject:
        """The context as a project of the mesh.

        Raises:
            ProjectError: It is several, or has no key.
        """
        if len(self.context.configs) > 1:
            raise ProjectError(
                "several SQLMesh projects in one call do not go under the ledger",
                hint="call `sqlmesh` once for each project; the ledger sees to what they read of each other",
            )
        if not self.context.config.project:
            raise ProjectError(
                f"the SQLMesh project in {self.context.path} has no `project:` key",
                hint="give it the name that meshgate.yaml has for it",
            )
        return EnforcedProject(self, plan)


class EnforcedState(DelegatingStateSync):  # type: ignore[misc]
    """SQLMesh's state, which asks before an environment is made to promote something else."""

    def __init__(self, state_sync: Any, seat: _Seat) -> None:
        super().__init__(state_sync)
        self._seat = seat

    def __getattr__(self, name: str) -> Any:
        if name == "state_sync":  # before there is one
            raise AttributeError(name)
        return getattr(self.state_sync, name)

    def promote(self, *args: Any, **kwargs: Any) -> Any:
        """Replace what an environment promotes."""
        journal = self._seat.journal
        if journal is None:
            raise SQLMeshError(
                "an environment is promoted outside a plan, and the ledger would not know of it"
            )
        journal.promoting()
        return self.state_sync.promote(*args, **kwargs)


class _AskingScheduler(Scheduler):  # type: ignore[misc]
    """SQLMesh's scheduler where no run is under way: a run begins here, under the ledger."""

    def __init__(self, *args: Any, seat: _Seat, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seat = seat

    def run(self, environment: str | EnvironmentNamingInfo, *args: Any, **asked: Any) -> CompletionStatus:
        """SQLMesh's hook: everything that is due of an environment."""
        with _as_sqlmesh():
            _refuse(
                [name for key, name in _UNSUPPORTED.items() if asked.get(key)] + ["a range"] * bool(args),
                "sqlmesh run",
                "what is due and ready is decided by the ledger; `meshgate restate` computes a range again",
            )
            name = environment.name if isinstance(environment, EnvironmentNamingInfo) else environment
            only = asked.get("selected_snapshots")
            done = self._seat.authority.run(
                self._seat.project(), name, _instant(asked.get("execution_time")), only
            )
        if done is None:
            return CompletionStatus.NOTHING_TO_DO
        return CompletionStatus.SUCCESS if done else CompletionStatus.FAILURE

    def run_merged_intervals(self, **kwargs: Any) -> Any:
        """SQLMesh's hook: nothing reaches it here but audits."""
        if not kwargs.get("audit_only"):
            raise SQLMeshError(
                "models are evaluated outside a run or a plan, and the ledger would not know of it"
            )
        return super().run_merged_intervals(**kwargs)


class _EnforcedPlans(PlanEvaluator):  # type: ignore[misc]
    """Applies SQLMesh's plans under the ledger."""

    def __init__(self, seat: _Seat) -> None:
        self._seat = seat

    def evaluate(self, plan: EvaluatablePlan, circuit_breaker: Any = None) -> None:
        """SQLMesh's hook: apply a plan."""
        with _as_sqlmesh():
            _refuse(
                ["--empty-backfill"] * plan.empty_backfill,
                "sqlmesh plan",
                "it would record what nobody has computed; `meshgate accept` takes an interval as it is, with a reason",
            )
            _refuse(
                ["--restate-model"] * bool(plan.restatements and plan.is_dev),
                f"sqlmesh plan {plan.environment.name}",
                f"`meshgate restate MODEL --environment {plan.environment.name}` does it",
            )
            project = self._seat.project(plan)
            project.circuit_breaker = circuit_breaker
            self._seat.authority.apply(
                project,
                plan.environment.name,
                _instant(plan.execution_time),
                _asked(plan, project.planned(), project.project),
            )


class EnforcedProject(SqlmeshProject):
    """SQLMesh's own context as a project of the mesh, and the plan that it is about to apply."""

    def __init__(self, seat: _Seat, plan: EvaluatablePlan | None) -> None:
        super().__init__(
            Path(seat.context.path), str(seat.context.config.project), None, load=False, given=seat.context
        )
        self._seat = seat
        self._plan = plan
        self.circuit_breaker: Any = None

    def _quiet(self) -> Any:
        return nullcontext()  # SQLMesh's own console tells

    @contextmanager
    def _under(self, journal: Journal) -> Iterator[None]:
        self._seat.journal = journal
        try:
            yield
        finally:
            self._seat.journal = None

    def planned(self) -> list[Snapshot]:
        """The snapshots that the plan would promote, with fresh intervals."""
        assert self._plan is not None  # noqa: S101 - only plans ask
        new = {s.snapshot_id: s for s in self._plan.new_snapshots}
        old = [s for s in self._plan.environment.snapshots if s.snapshot_id not in new]
        found = [*new.values(), *self._state.get_snapshots(old).values()]
        self._state.refresh_snapshot_intervals(found)
        return found

    def deploy(
        self,
        environment: str,
        journal: Journal,
        *,
        now: datetime,
        judge: Callable[[Collection[Dropped]], None] = lambda _: None,  # noqa: ARG002 - SQLMesh has shown it
    ) -> bool:
        """Apply the plan under the journal. SQLMesh's own errors pass."""
        assert self._plan is not None  # noqa: S101 - only plans are deployed
        assert environment == self._plan.environment.name  # noqa: S101 - the authority hands on what it was given
        with self._under(journal):
            journal.foresee(promoted(self.planned(), plan_id=self._plan.plan_id, finalized=False, now=now))
            evaluator = BuiltInSchedulerConfig().create_plan_evaluator(self._context)
            evaluator.evaluate(self._plan, circuit_breaker=self.circuit_breaker)
        return True

    def close(self) -> None:
        """The context is SQLMesh's, and SQLMesh closes it."""


class EnforcedScheduler(BuiltInSchedulerConfig):  # type: ignore[misc]
    """SQLMesh's built-in scheduler, whose runs and plans go through an authority."""

    _authority: Any = None

    def create_state_sync(self, context: Any) -> Any:
        """SQLMesh's hook: the state of a context. meshgate's own contexts are under the ledger already."""
        state = super().create_state_sync(context)
        return state if isinstance(context, GatedContext) else EnforcedState(state, self._seat(context))

    def create_plan_evaluator(self, context: Any) -> Any:
        """SQLMesh's hook: who applies plans."""
        if isinstance(context, GatedContext):
            return super().create_plan_evaluator(context)
        return _EnforcedPlans(self._seat(context))

    def _seat(self, context: Any) -> _Seat:
        seat = vars(context).get(_ATTRIBUTE)
        if seat is None:
            seat = _Seat(context, self._authority)
            setattr(context, _ATTRIBUTE, seat)
            context.create_scheduler = seat.create_scheduler
        found: _Seat = seat
        return found


def enforced(config: Config | Path, authority: Authority) -> Config:
    """A SQLMesh configuration, or a YAML file with one, under an authority.

    Raises:
        ProjectError: The file cannot be used, or a gateway has another scheduler.
    """
    if isinstance(config, Path):
        try:
            config = Config.parse_obj(load_yaml(config))
        except Exception as error:  # noqa: BLE001 - YAML, Jinja and pydantic raise what they like
            # Its own words may quote a password.
            raise ProjectError(
                f"{config} is no SQLMesh configuration: {type(error).__name__}",
                hint="it has to be what config.yaml was",
            ) from None
    scheduler = EnforcedScheduler()
    scheduler._authority = authority  # noqa: SLF001 - pydantic takes no private attributes otherwise
    for name, gateway in config.gateways.items():
        if gateway.scheduler is not None and type(gateway.scheduler) is not BuiltInSchedulerConfig:
            raise ProjectError(
                f"gateway {name!r} has a scheduler of its own, and runs on it would not go under the ledger",
                hint="remove the gateway's `scheduler:`",
            )
        gateway.scheduler = None
    config.default_scheduler = scheduler
    return config


def _asked(plan: EvaluatablePlan, snapshots: Iterable[Snapshot], project: str) -> dict[str, Interval]:
    """What a plan restates by itself: the rest of its cascade reads that, and follows by the ledger's rules.

    But not the project's own tables that merge rows: what they read makes nobody rebuild them, and this plan empties them.
    """
    known = {s.name: s for s in snapshots if s.is_model}
    # Standalone audits follow what they read.
    asked = {name: span for name, span in plan.restatements.items() if span[0] < span[1] and name in known}
    found = {}
    for name, span in asked.items():
        snapshot = known[name]
        follows = bool({p.name for p in snapshot.parents} - {name} & set(asked))
        if follows and snapshot.node.project == project:
            kind = Kind.from_sqlmesh(snapshot.model_kind_name.value)
            follows = kind.time_partitioned or kind.reads_everything
        if not follows:
            found[name] = interval(*span)
    return found


def _instant(given: Any) -> datetime:
    found: datetime = to_datetime(given or process_time())
    return found.astimezone(UTC)


def _refuse(what: list[str], command: str, hint: str) -> None:
    if what:
        raise ProjectError(f"{command} with {', '.join(what)} does not go under the ledger", hint=hint)


@contextmanager
def _as_sqlmesh() -> Iterator[None]:
    """Tell meshgate's refusals in SQLMesh's way: its command line shows them without a traceback."""
    try:
        yield
    except MeshgateError as error:
        sys.stdout.flush()
        raise SQLMeshError(str(error)) from error
