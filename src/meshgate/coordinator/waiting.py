"""Waiting for another run to end, or for data to be there: a notification wakes, the ledger decides.

No lease is held while a run waits: it keeps nobody out, and nothing has to be taken over if it dies.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

from attrs import evolve

from meshgate.coordinator.progress import Waiting
from meshgate.coordinator.reconcile import unchanged
from meshgate.due import cron_next
from meshgate.errors import LedgerUnreachableError
from meshgate.interval import IntervalSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from meshgate.coordinator.plan import Plan
    from meshgate.coordinator.run import RunReport, Workbench
    from meshgate.ledger import Busy, LiveRun
    from meshgate.listener import Listener

_UNENDING = ("held",)
"""What no waiting ends: a person has to decide."""
_CHANGING = ("retry_at", "lease_until")
"""Facts of what is blocked: instants at which it may change."""
_OUTAGE_S = 2.0
_OVER = ("lost", "stopped", "skipped")


class Patience:
    """How long a run may wait, by this machine's clock: it may end the waiting earlier, and decides nothing.

    Args:
        limit: How long from now on.
    """

    def __init__(self, limit: timedelta) -> None:
        self._ends = time.monotonic() + limit.total_seconds()

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._ends - time.monotonic())


@contextmanager
def _listening(bench: Workbench) -> Iterator[Listener]:
    """Open only while nothing is evaluated: who listens and does not read holds up the server's queue."""
    with bench.ledger.listen() as bell, bench.stop.waking(bell.wake):
        yield bell


def _wait_out(bench: Workbench, patience: Patience) -> None:
    """A ledger that cannot be reached is waited for like everything else. Called where that was raised."""
    if not patience.left_s or bench.stop.sleep(min(_OUTAGE_S, patience.left_s)):
        raise  # noqa: PLE0704 - what is being handled


def until_free(
    bench: Workbench, report: RunReport, limit: timedelta, again: Callable[[], RunReport]
) -> RunReport:
    """Try again when the run that is in the way has ended; the last report says `skipped` where it did not in time.

    Args:
        bench: Configuration and ledger.
        report: Says that another run lives.
        limit: How long to wait.
        again: Tries to run.
    """
    patience = Patience(limit)
    while report.busy is not None and patience.left_s and not bench.stop.requested:
        try:
            with _listening(bench) as bell:
                if (busy := _in_the_way(bench, report.busy)) is not None:
                    bench.tell(
                        Waiting(
                            report.project, None, busy.project, IntervalSet(), "busy", busy.run_id, None,
                            bench.ledger.clock() + timedelta(seconds=patience.left_s), bell.listening,
                        )
                    )  # fmt: skip
                    bell.wait(_pause_s(bench, patience, [busy.expires_at]))
                    continue
        except LedgerUnreachableError:
            _wait_out(bench, patience)
            continue
        report = again()
    return report


def _in_the_way(bench: Workbench, busy: Busy) -> LiveRun | None:
    """The run, if it still is in the way; one whose lease has ended is not."""
    bench.bury_the_gone()
    bench.ledger.take_over()
    return next((r for r in bench.ledger.live_runs() if r.run_id == busy.run_id), None)


def until_ready(
    bench: Workbench,
    report: RunReport,
    limit: timedelta,
    *,
    simulated: bool,
    again: Callable[[datetime], RunReport],
) -> RunReport:
    """Evaluate what was due when the run started as soon as it gets ready; everything that was done, as one report.

    Args:
        bench: Configuration and ledger.
        report: What was done at once.
        limit: How long to wait.
        simulated: Whether the run's instant stands for the present.
        again: Runs once more for the same instant.
    """
    patience = Patience(limit)
    horizon = report.now
    fruitless = False
    while report.state not in _OVER and _waited_for(report) and patience.left_s and not bench.stop.requested:
        try:
            with _listening(bench) as bell:
                plan = _look(bench, report, simulated=simulated)
                # What looks ready and came to nothing, for a reason that only a run sees, is not tried again at once.
                if fruitless or (plan is not None and plan.is_empty):
                    fruitless = False
                    if plan is not None and plan.is_empty:
                        # Somebody else may have done it. What only a run sees, such as a closed signal, no plan has.
                        report = evolve(report, blocked=plan.blocked)
                    if _waited_for(report):
                        bench.tell(_what_for(bench, report, patience, bell, simulated=simulated))
                        # Opening it takes seconds the first time: now, not when every second counts.
                        bench.open_project(bench.project(report.project), load=False)
                        facts = [b.detail for b in report.blocked]
                        bell.wait(_pause_s(bench, patience, [d.get(k) for d in facts for k in _CHANGING]))
                    continue
        except LedgerUnreachableError:
            _wait_out(bench, patience)
            continue
        then = again(horizon)
        fruitless = not then.committed
        report = together(report, then)
    return report


def _pause_s(bench: Workbench, patience: Patience, changing: Iterable[Any]) -> float:
    """Until when to wait: what changes by the passing of time alone is announced by nobody."""
    present = bench.ledger.clock()
    passing = [(i - present).total_seconds() for i in changing if isinstance(i, datetime) and i > present]
    return min([patience.left_s, *passing])


def _waited_for(report: RunReport) -> bool:
    return any(b.reason not in _UNENDING for b in report.blocked)


def _look(bench: Workbench, report: RunReport, *, simulated: bool) -> Plan | None:
    """What a run would do now, by the ledger; None where somebody worked without it, and a run has to look."""
    from meshgate.coordinator.run import plan_of

    bench.bury_the_gone()
    bench.ledger.take_over()
    manifest = bench.ledger.manifest(report.environment)
    present = None if simulated else bench.ledger.clock()
    plan = plan_of(bench, manifest, {report.project}, report.now, present)
    facts = bench.ledger.manifests(report.environment).get(report.project, {})
    # Where SQLMesh's tables are elsewhere, looking at them needs a lease and SQLMesh itself: the next run does that.
    # Of what a live run writes there, the run itself tells the ledger.
    if (
        plan.is_empty
        and isinstance(facts.get("state_schema"), str)
        and not [run for run in bench.ledger.live_runs() if run.purpose != "maintenance"]
        and not unchanged(bench.ledger, manifest, facts)
    ):
        return None
    return plan


def together(before: RunReport, then: RunReport) -> RunReport:
    """Two runs for one instant, as one."""
    if then.state == "skipped":
        return before
    committed = dict(before.committed)
    for name, done in then.committed.items():
        committed[name] = committed.get(name, IntervalSet()) | done
    # The newest word on each interval that failed counts.
    newest = {(f.model, f.interval): f for f in (*before.failed, *then.failed)}
    failed = tuple(
        f for f in newest.values() if IntervalSet([f.interval]) - committed.get(f.model, IntervalSet())
    )
    state = then.state
    if state in ("done", "nothing_to_do"):
        state = "failed" if failed else ("done" if committed else "nothing_to_do")
    return evolve(
        then, state=state, committed=committed, failed=failed, warned=(*before.warned, *then.warned),
        unchanged={
            name: before.unchanged.get(name, IntervalSet()) | then.unchanged.get(name, IntervalSet())
            for name in {**before.unchanged, **then.unchanged}
        },
        findings=(*before.findings, *then.findings), unmirrored=(*before.unmirrored, *then.unmirrored),
        run_id=then.run_id or before.run_id,
    )  # fmt: skip


def _what_for(
    bench: Workbench, report: RunReport, patience: Patience, bell: Listener, *, simulated: bool
) -> Waiting:
    """The first root of what is waited for."""
    from meshgate.coordinator.status import waits

    until = bench.ledger.clock() + timedelta(seconds=patience.left_s)
    roots = [w.causes[0] for w in waits(bench, report.project, report.environment, report.now) if w.causes]
    roots = [r for r in roots if r.reason not in _UNENDING] or roots
    if roots:
        root = roots[0]
        found = (root.model, root.project, root.time, root.reason, root.detail.get("run_id"))
    else:
        entry = report.blocked[0]
        run_id = entry.detail.get("run_id")
        found = (entry.parent, entry.parent_project, IntervalSet([entry.span]), entry.reason, run_id)
    expected = None if simulated else _expected(bench, found[1], report.environment)
    return Waiting(report.project, *found, expected, until, bell.listening)


def _expected(bench: Workbench, project: str, environment: str) -> datetime | None:
    """When the project's next run is likely to have ended: by its schedule and by how long its runs took."""
    runs = [r for r in bench.ledger.runs(project, environment, limit=20) if r["purpose"] == "run"]
    took = [r["ended_at"] - r["started_at"] for r in runs if r["state"] == "done"]
    if not took:
        return None
    usual = timedelta(seconds=median(d.total_seconds() for d in took))
    live = [r for r in runs if r["state"] == "running" and not r["expired"]]
    if live:
        expected: datetime = live[0]["started_at"] + usual
        return expected
    schedule = bench.ledger.manifests(environment).get(project, {}).get("schedule")
    return cron_next(schedule, "UTC", bench.ledger.clock()) + usual if schedule else None
