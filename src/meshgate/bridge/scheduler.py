"""SQLMesh's scheduler under the ledger: each batch is begun, evaluated, committed, and only then recorded.

SQLMesh keeps doing what it does well (rendering, DDL, order, threads, audits). What is added around one batch:

1. `Journal.begin` cuts it to what may be read now;
2. SQLMesh evaluates and audits each piece, its write to its own state held back;
3. a piece that fails is halved until the failing intervals stand alone, and the rest is kept;
4. `Journal.commit` records it in the ledger, under the fence; then SQLMesh's own write is let through.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from sqlmesh.core.constants import PROD
from sqlmesh.core.context import Context
from sqlmesh.core.scheduler import Scheduler
from sqlmesh.core.snapshot import SnapshotIdBatch
from sqlmesh.core.state_sync.base import DelegatingStateSync
from sqlmesh.utils.errors import CircuitBreakerError

from meshgate.bridge.audits import Verdict, each_interval_needs_its_own, verdict
from meshgate.bridge.digests import digests
from meshgate.bridge.engine import limit_statements, outlast_commits
from meshgate.bridge.failures import describe, first_line, is_conflict, is_outage
from meshgate.bridge.translate import Promoted, gated, instant, interval, milliseconds, pairs, promoted
from meshgate.bridge.validity import history
from meshgate.errors import LeaseLostError, StoppedError
from meshgate.interval import Interval, IntervalSet, IntervalUnit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from datetime import datetime

    from sqlmesh.core.snapshot import Snapshot

    from meshgate.bridge.digests import Digest

UNDER_LEDGER: ContextVar[bool] = ContextVar("under_ledger", default=False)
"""Whether SQLMesh is working under a journal; its signals are asked in the thread that began."""
History = dict[int | None, tuple[int, int, int]]
_CONFLICTS = 8  # how often a batch is tried that other writers of its table got in the way of


class Journal(Protocol):
    """What the scheduler tells the coordinator, and asks it. Called from SQLMesh's threads.

    Names are models' names; intervals are half-open, UTC.
    """

    project: str

    def foresee(self, plan: Promoted) -> None:
        """What a SQLMesh plan would make, before it changes anything (deploys only). Raises to stop it."""

    def admit(
        self, plan: Promoted, wanted: Mapping[str, IntervalSet], emptied: Collection[str]
    ) -> Mapping[str, IntervalSet]:
        """Which part of what a SQLMesh plan wants to evaluate may be evaluated (deploys only).

        `emptied`: the tables that it makes anew though some of them is recorded; those that merge rows it would empty.
        """

    def begin(self, name: str, batch: Interval) -> Iterator[Interval]:
        """The pieces of a batch that may be read now, each begun when it is taken; the rest is explained."""

    def commit(
        self,
        name: str,
        piece: Interval,
        *,
        audits: list[dict[str, Any]],
        duration: timedelta,
        rows: int | None,
        history: History | None,
        same: IntervalSet,
    ) -> None:
        """Record a piece; `history`: as `validity.changes` has it; `same`: what of it holds the rows that it held before.

        Raises LeaseLostError.
        """

    def uncompared(self, name: str, problem: str) -> None:
        """Why that could not be found out."""

    def compares(self, name: str, piece: Interval) -> Collection[str] | None:
        """Whether it is to be found out if computing a piece again changes anything: the columns that do not count, or None."""

    def validity(self, name: str) -> tuple[str, str | None] | None:
        """The columns that a project declares for a model: from when to when a row holds; empty: it is not looked at."""

    def recorded(self, name: str, piece: Interval) -> Interval:
        """What SQLMesh's own record should hold after a piece was committed."""

    def mirrored(
        self, name: str, piece: Interval, problem: str | None, altered: datetime | None = None
    ) -> None:
        """SQLMesh has recorded the piece too, and when it was written; or could not."""

    def fail(self, name: str, piece: Interval, detail: dict[str, Any]) -> None:
        """Record that a piece failed. Raises LeaseLostError."""

    def empties(self, name: str, piece: Interval) -> bool:
        """Whether the table is to be emptied before this piece of it is written: the first one of a rebuild."""

    def may_continue(self, name: str) -> bool:
        """Whether a further piece of a model may be tried after a failure."""

    def alive(self) -> bool:
        """Whether the run may go on."""

    def ended(self) -> Exception:
        """Why it may not."""

    def broke(self, error: BaseException) -> None:
        """What began a batch cannot say what has become of it: the run must not go on."""

    def version(self, name: str) -> str:
        """The version of a model that the run planned for."""

    def superseded(self, name: str) -> None:
        """A model has another version by now: nothing of it is evaluated."""

    def promoting(self) -> None:
        """A plan is about to replace what the environment promotes (deploys only). Raises to stop it."""

    @property
    def longest_statement_s(self) -> float:
        """After how many seconds the engine is to give up a statement."""

    @property
    def planning(self) -> bool:
        """Whether this is a deploy: SQLMesh's plan decides what it wants, and a failure fails the plan."""


class HeldState(DelegatingStateSync):  # type: ignore[misc]
    """SQLMesh's state, with the intervals that this thread adds held back until the ledger has them."""

    def __init__(self, state_sync: Any, project: str) -> None:
        super().__init__(state_sync)
        self._project = project
        self._held = threading.local()

    @contextmanager
    def hold(self) -> Iterator[list[Any]]:
        """Collect this thread's additions instead of writing them."""
        additions: list[Any] = []
        self._held.additions = additions
        try:
            yield additions
        finally:
            self._held.additions = None

    def add_snapshots_intervals(self, snapshots_intervals: Any) -> None:
        """Add intervals, or hold them back."""
        held = getattr(self._held, "additions", None)
        if held is None:
            self.state_sync.add_snapshots_intervals(snapshots_intervals)
        else:
            held.extend(snapshots_intervals)

    def get_environment_statements(self, environment: str) -> Any:
        """The project's own statements: those of the others run in their own runs."""
        found = self.state_sync.get_environment_statements(environment)
        return [s for s in found if s.project == self._project]


class AskingState(DelegatingStateSync):  # type: ignore[misc]
    """SQLMesh's state, which asks before an environment is made to promote something else."""

    def __init__(self, state_sync: Any, journal: Journal) -> None:
        super().__init__(state_sync)
        self._journal = journal

    def promote(self, *args: Any, **kwargs: Any) -> Any:
        """Replace what an environment promotes."""
        self._journal.promoting()
        return self.state_sync.promote(*args, **kwargs)


class GatedContext(Context):  # type: ignore[misc]
    """A SQLMesh context whose scheduler works under a journal while there is one."""

    journal: Journal | None = None

    @property
    def state_sync(self) -> Any:
        """SQLMesh's hook: the state that plans are applied to."""
        found = super().state_sync
        return (
            AskingState(found, self.journal) if self.journal is not None and self.journal.planning else found
        )

    def create_scheduler(self, snapshots: Iterable[Snapshot], snapshot_evaluator: Any) -> Scheduler:
        """SQLMesh's hook: the scheduler of runs and of plan backfills."""
        if self.journal is None:
            return super().create_scheduler(snapshots, snapshot_evaluator)
        return GatedScheduler(
            snapshots,
            snapshot_evaluator,
            HeldState(self.state_sync, self.journal.project),
            default_catalog=self.default_catalog,
            max_workers=self.concurrent_tasks,
            console=self.console,
            notification_target_manager=self.notification_target_manager,
            journal=self.journal,
        )


class GatedScheduler(Scheduler):  # type: ignore[misc]
    """SQLMesh's scheduler, asking the journal before and telling it after each batch."""

    def __init__(self, *args: Any, journal: Journal, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._journal = journal
        # Models that wait for their own earlier time, of which some was not recorded by this run.
        self._stopped: set[str] = set()

    def run_merged_intervals(self, **kwargs: Any) -> Any:
        """SQLMesh's hook: everything that is about to be evaluated."""
        if kwargs.get("audit_only"):
            return super().run_merged_intervals(**kwargs)
        if self._journal.planning:
            kwargs["merged_intervals"] = self._admitted(kwargs)
        own_breaker = kwargs.get("circuit_breaker")

        def breaker() -> bool:
            return not self._journal.alive() or bool(own_breaker and own_breaker())

        kwargs["circuit_breaker"] = breaker
        before = UNDER_LEDGER.set(True)
        try:
            return super().run_merged_intervals(**kwargs)
        except CircuitBreakerError:
            if self._journal.alive():
                raise
            raise self._journal.ended() from None
        finally:
            UNDER_LEDGER.reset(before)

    def _admitted(self, kwargs: dict[str, Any]) -> dict[Snapshot, list[tuple[int, int]]]:
        index = kwargs["deployability_index"]
        merged: dict[Snapshot, list[tuple[int, int]]] = kwargs["merged_intervals"]
        # A plan that restates has taken the time out of its snapshots; SQLMesh empties a table of which nothing is left.
        bare = [s for s in self.snapshots.values() if not s.intervals]
        self.state_sync.refresh_snapshot_intervals(self.snapshots.values())
        emptied = {s.name for s in bare if s.intervals}
        from sqlmesh.utils.date import now, to_datetime

        instant = to_datetime(kwargs.get("execution_time") or now())
        plan = promoted(list(self.snapshots.values()), plan_id=None, finalized=False, now=instant)
        under = {s: ranges for s, ranges in merged.items() if gated(s, index)}
        wanted = {
            s.name: IntervalSet(interval(start, end) for start, end in ranges) for s, ranges in under.items()
        }
        admitted = self._journal.admit(plan, wanted, emptied)
        result = {s: ranges for s, ranges in merged.items() if s not in under}
        # Also what nothing is ready of: SQLMesh makes the tables of what stands here, and promotes views on them.
        result.update({s: pairs(admitted.get(s.name, ())) for s in under if s.is_model or s.name in admitted})
        # And of what nothing is due yet, which SQLMesh forgets where something else is; in production also where it would be
        # evaluated after the promotion: new forward-only models, which all SCD tables are, and their descendants.
        if chosen := set(kwargs.get("selected_snapshot_ids") or ()):
            near = self.snapshots if kwargs["environment_naming_info"].name == PROD else chosen
            models = [s for s in map(self.snapshots.__getitem__, near) if s.is_model and not s.is_symbolic]
            fresh = [s for s in models if not s.intervals]
            kwargs["selected_snapshot_ids"] = chosen | {s.snapshot_id for s in fresh}
            result = {s: [] for s in fresh} | result
        return result

    def evaluate(self, snapshot: Snapshot, start: Any, end: Any, *args: Any, **kwargs: Any) -> Any:
        """SQLMesh's hook: one batch."""
        execution_time, index, batch_index = _positional(args, kwargs)
        if not gated(snapshot, index):
            return super().evaluate(
                snapshot, start, end,
                execution_time=execution_time, deployability_index=index, batch_index=batch_index, **kwargs,
            )  # fmt: skip
        kwargs.update(execution_time=execution_time, deployability_index=index)
        results: list[Any] = []
        failures: list[Exception] = []
        first = batch_index
        try:
            for piece in self._begun(snapshot, interval(start, end), failures):
                ignored = self._journal.compares(snapshot.name, piece)
                results += self._attempt(snapshot, piece, first, kwargs, failures, ignored=ignored)
                # Only the very first write into an empty table may replace it; SQLMesh tells by the batch's number.
                first = max(first, 1)
        except (CircuitBreakerError, LeaseLostError, StoppedError):
            raise
        except BaseException as error:
            self._journal.broke(error)
            raise
        if failures and self._journal.planning:
            raise failures[0]
        return results

    def _begun(self, snapshot: Snapshot, batch: Interval, failures: list[Exception]) -> Iterator[Interval]:
        """The pieces of a batch to evaluate; none after a failure or a refusal that all later ones build on."""
        name = snapshot.name
        if name in self._stopped:
            return
        left = IntervalSet([batch])
        for piece in self._journal.begin(name, batch):
            yield piece
            left -= IntervalSet([piece])
            if failures and not self._journal.may_continue(name):
                break  # before the next one is begun
        if (failures or left) and not self._journal.may_continue(name):
            self._stopped.add(name)

    def _attempt(
        self,
        snapshot: Snapshot,
        piece: Interval,
        batch_index: int,
        kwargs: dict[str, Any],
        failures: list[Exception],
        conflicts: int = 0,
        ignored: Collection[str] | None = None,
    ) -> list[Any]:
        """Evaluate, audit and record one piece, or its halves; at first compared: what stands there is what readers read."""
        if not self._journal.alive():
            raise CircuitBreakerError
        if is_outage(failures):
            # Halving is for finding bad intervals; here it would only multiply what is broken for all of them.
            self._journal.fail(snapshot.name, piece, {**describe(failures[-1]), "tried": False})
            return []
        started = time.monotonic()
        unit = IntervalUnit(snapshot.node.interval_unit.value)
        with self.state_sync.hold() as additions:
            try:
                outlast_commits(self._adapter(snapshot), self._journal.longest_statement_s)
                before = self._digests(snapshot, piece, ignored)
                audits = self._write(snapshot, piece, batch_index, kwargs)
                verdicts = self._judge(snapshot, piece, unit, audits, kwargs)
                told = self._history(snapshot)
                after = self._digests(snapshot, piece, ignored)
                same = IntervalSet(part for part, found in before.items() if after.get(part) == found)
            except (CircuitBreakerError, LeaseLostError, StoppedError):
                raise
            except Exception as error:
                additions.clear()
                if not self._journal.alive():
                    # Nobody knows what of it was written, nor whether it failed by itself: it stays begun.
                    raise CircuitBreakerError from error
                if is_conflict(error) and conflicts < _CONFLICTS:
                    return self._attempt_again(snapshot, piece, batch_index, kwargs, failures, conflicts + 1)
                return self._isolate(snapshot, piece, unit, batch_index, kwargs, failures, error)
        duration = timedelta(seconds=time.monotonic() - started)
        # Shares of one count would be invented numbers.
        rows = self._rows(snapshot, batch_index) if len(verdicts) == 1 else None
        for kept in (v for v in verdicts if v.error is None):
            self._journal.commit(
                snapshot.name, kept.time, audits=kept.audits, duration=duration, rows=rows, history=told,
                same=same & IntervalSet([kept.time]),
            )  # fmt: skip
            self._record(snapshot, kept.time, additions)
        for bad in verdicts:
            if bad.error is not None:
                failures.append(bad.error)
                self._journal.fail(snapshot.name, bad.time, describe(bad.error))
        return list(audits)

    def _write(
        self, snapshot: Snapshot, piece: Interval, batch_index: int, kwargs: dict[str, Any]
    ) -> list[Any]:
        """Let SQLMesh evaluate and audit a piece."""
        limit_statements(self._adapter(snapshot), self._journal.longest_statement_s)
        if self._journal.empties(snapshot.name, piece) and not snapshot.model.disable_restatement:
            # SQLMesh replaces a whole table where nothing of it is recorded, and it is the first batch.
            snapshot, batch_index = snapshot.copy(update={"intervals": []}), 0
        start, end = milliseconds(piece.start), milliseconds(piece.end)
        return list(super().evaluate(snapshot, start, end, batch_index=batch_index, **kwargs))

    def _history(self, snapshot: Snapshot) -> History | None:
        """What a table that was written as a whole tells of its past, where it tells from when to when its rows hold."""
        return history(self._adapter(snapshot), snapshot, self._journal.validity(snapshot.name))

    def _adapter(self, snapshot: Snapshot) -> Any:
        return self.snapshot_evaluator.get_adapter(snapshot.model_gateway)

    def _digests(
        self, snapshot: Snapshot, piece: Interval, ignored: Collection[str] | None
    ) -> dict[Interval, Digest]:
        """What the table holds of a piece, by parts of it."""
        if ignored is None:
            return {}
        try:
            return digests(self._adapter(snapshot), snapshot, piece, ignored)
        except Exception as error:  # noqa: BLE001 - the data is as good as without; its readers read it again
            self._journal.uncompared(snapshot.name, first_line(error))
            return {}

    def _attempt_again(
        self,
        snapshot: Snapshot,
        piece: Interval,
        batch_index: int,
        kwargs: dict[str, Any],
        failures: list[Exception],
        conflicts: int,
    ) -> list[Any]:
        """After somebody else's write to the same table got in the way: nothing is wrong with the interval."""
        time.sleep(random.uniform(0.02, 0.05) * 2**conflicts)  # noqa: S311 - so that two do not meet again
        results: list[Any] = []
        # Begun anew, as it reads anew.
        for ready in self._begun(snapshot, piece, failures):
            results += self._attempt(snapshot, ready, batch_index, kwargs, failures, conflicts)
        return results

    def _isolate(
        self,
        snapshot: Snapshot,
        piece: Interval,
        unit: IntervalUnit,
        batch_index: int,
        kwargs: dict[str, Any],
        failures: list[Exception],
        error: Exception,
    ) -> list[Any]:
        """Halve what failed, or record that it stands alone."""
        units = list(unit.split(piece))
        if len(units) < 2 or not snapshot.is_incremental_by_time_range or not self._journal.alive():
            failures.append(error)
            self._journal.fail(snapshot.name, piece, describe(error))
            return []
        middle = units[len(units) // 2].start
        results: list[Any] = []
        for half in (Interval(piece.start, middle), Interval(middle, piece.end)):
            # Begun anew: the half reads anew, and what it reads may have changed.
            for ready in self._begun(snapshot, half, failures):
                results += self._attempt(snapshot, ready, max(batch_index, 1), kwargs, failures)
        return results

    def _judge(
        self,
        snapshot: Snapshot,
        piece: Interval,
        unit: IntervalUnit,
        audits: list[Any],
        kwargs: dict[str, Any],
    ) -> list[Verdict]:
        """What is to be recorded of an evaluated piece, and what is not, in order."""
        if piece.end <= unit.next(piece.start) or not each_interval_needs_its_own(snapshot, audits):
            return [verdict(piece, audits, snapshot)]
        found: list[Verdict] = []
        for one in unit.split(piece):
            if not self._journal.alive():
                raise CircuitBreakerError
            results = self.snapshot_evaluator.audit(
                snapshot=snapshot,
                start=milliseconds(one.start),
                end=milliseconds(one.end),
                execution_time=kwargs["execution_time"],
                snapshots={s.name: s for s in self.snapshots.values()},
                deployability_index=kwargs["deployability_index"],
            )
            if snapshot.is_audit and [r.query for r in results] == [r.query for r in audits]:
                return [verdict(piece, audits, snapshot)]  # it does not go by the interval
            own = verdict(one, results, snapshot)
            if found and own.follows(found[-1]):
                own = own.after(found.pop())
            found.append(own)
        return found

    def _record(self, snapshot: Snapshot, piece: Interval, additions: list[Any]) -> None:
        """Let SQLMesh's own write through, cut to what the ledger recorded."""
        piece = self._journal.recorded(snapshot.name, piece)
        try:
            self.state_sync.add_snapshots_intervals(
                [a.copy(update={"intervals": pairs([piece])}) if a.intervals else a for a in additions]
            )
        except Exception as error:  # noqa: BLE001 - the ledger has it; reconciliation repairs SQLMesh's record
            self._journal.mirrored(snapshot.name, piece, first_line(error))
        else:
            written = [a.last_altered_ts for a in additions if a.intervals and a.last_altered_ts]
            self._journal.mirrored(snapshot.name, piece, None, instant(max(written)) if written else None)

    def _rows(self, snapshot: Snapshot, batch_index: int) -> int | None:
        tracker = getattr(self.snapshot_evaluator, "execution_tracker", None)
        stats = tracker and tracker.get_execution_stats(
            SnapshotIdBatch(snapshot_id=snapshot.snapshot_id, batch_id=batch_index)
        )
        return getattr(stats, "total_rows_processed", None)


def _positional(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, int]:
    """SQLMesh calls `evaluate` by keyword today; by position it means the same."""
    names = ("execution_time", "deployability_index", "batch_index")
    first, second, third = (*args, *(kwargs.pop(name) for name in names[len(args) :]))
    return first, second, third
