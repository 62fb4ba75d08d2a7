"""Results as JSON documents: `{"schema": "meshgate.status", "version": 1, ...}`.

Instants are ISO 8601 with `Z`, intervals `{"start", "end"}`, half-open; an end of all time is null. Durations are
seconds in keys that end in `_s`. Keys are only ever added within a version; secrets are in none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

import attrs

from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet
from meshgate.report import wording

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshgate.analysis import Analysis, Work
    from meshgate.coordinator.causes import Cause
    from meshgate.coordinator.deploys import Deploys
    from meshgate.coordinator.diagnosis import Diagnosis
    from meshgate.coordinator.explain import GateAnswer, ProjectRuns, Why
    from meshgate.coordinator.intervene import Accepted, Held, Released
    from meshgate.coordinator.leftovers import Leftovers
    from meshgate.coordinator.observe import Look
    from meshgate.coordinator.plan import Plan
    from meshgate.coordinator.restate import Preview, Redo, RequestStanding
    from meshgate.coordinator.run import RunReport
    from meshgate.coordinator.status import ModelStatus, Status, Wait
    from meshgate.coordinator.verify import Verification
    from meshgate.errors import MeshgateError
    from meshgate.gate import Blocked
    from meshgate.graph import Window
    from meshgate.ledger import Busy, CoverageRow, LiveRun, Request

VERSION = 1


def document(name: str, **facts: Any) -> dict[str, Any]:
    """One document: its schema and version, and the facts as plain data."""
    return {
        "schema": f"meshgate.{name}",
        "version": VERSION,
        **{key: plain(value) for key, value in facts.items()},
    }


def dumped(found: Mapping[str, Any]) -> str:
    """A document as text."""
    return json.dumps(found, indent=2, ensure_ascii=False)


def plain(value: Any) -> Any:
    """A value as what JSON knows."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for known, convert in _PLAIN:
        if isinstance(value, known):
            return convert(value)
    return _record(value) if attrs.has(type(value)) else str(value)


def _instant(value: datetime) -> str | None:
    return None if value in _ENDS else value.astimezone(UTC).isoformat().replace("+00:00", "Z")


_ENDS = (MIN_INSTANT, MAX_INSTANT)
_PLAIN: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (datetime, _instant),
    (timedelta, timedelta.total_seconds),
    (Enum, lambda value: plain(value.value)),
    (Mapping, lambda value: {str(key): plain(item) for key, item in value.items()}),
    (Interval, lambda value: {"start": plain(value.start), "end": plain(value.end)}),
    ((list, tuple, set, frozenset, IntervalSet), lambda value: [plain(item) for item in value]),
)


def _record(value: Any) -> dict[str, Any]:
    return {a.name: plain(getattr(value, a.name)) for a in attrs.fields(type(value))}


def cause(found: Cause) -> dict[str, Any]:
    """A tree of causes; `message` is the sentence that people see."""
    return {
        "model": found.model,
        "project": found.project,
        "intervals": plain(found.time),
        "reason": found.reason,
        "message": wording.because_of(found.reason, found.detail),
        "detail": plain(found.detail),
        "ready": found.ready,
        "remedy": found.remedy,
        "above": found.above,
        "because": [cause(inner) for inner in found.because],
    }


def _blocked(entries: Iterable[Blocked]) -> list[dict[str, Any]]:
    return [{**plain(_record(b)), "message": wording.because_of(b.reason, b.detail)} for b in entries]


def _row(row: CoverageRow) -> dict[str, Any]:
    facts = _record(row)
    facts["duration_s"] = facts.pop("duration")
    return facts


def _runs(runs: ProjectRuns) -> dict[str, Any]:
    """`live` is the oldest that holds a lease, `live_runs` all of them."""
    return {**_record(runs), "live": plain(runs.live)}


def _busy(busy: Busy | None) -> dict[str, Any] | None:
    if busy is None:
        return None
    return {**_record(busy), "holder": _shown(busy.holder)}


def _shown(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain(holder.get(key)) for key in ("host", "pid")}


def _wait(wait: Wait) -> dict[str, Any]:
    return {
        "causes": [cause(root) for root in wait.causes],
        "waiting": [
            {"model": model, "project": project, "intervals": plain(time)}
            for model, project, time in wait.waiting
        ],
    }


def _model(model: ModelStatus) -> dict[str, Any]:
    facts = _record(model)
    facts["late_s"] = facts.pop("late")
    return facts


def status(found: Status) -> dict[str, Any]:
    """`meshgate.status`."""
    projects = [
        {
            **_runs(p.runs),
            "deployed": p.deployed,
            "schedule": p.schedule,
            "models": [_model(m) for m in p.models],
        }
        for p in found.projects
    ]
    return document(
        "status",
        environment=found.environment,
        now=found.now,
        projects=projects,
        waits=[_wait(w) for w in found.waits],
        holds=[
            {"model": model, "project": project, **plain(_record(hold))}
            for model, project, hold in found.holds
        ],
        stale=[plain(_record(one)) for one in found.stale],
    )


def why(found: Why) -> dict[str, Any]:
    """`meshgate.why`."""
    facts = _record(found)
    facts["recorded"] = [_row(row) for row in found.recorded]
    facts["causes"] = [cause(c) for c in found.causes]
    facts["roots"] = [cause(c) for c in found.roots]
    facts["runs"] = [_runs(r) for r in found.runs]
    return document("why", **facts)


def gate(found: GateAnswer) -> dict[str, Any]:
    """`meshgate.gate`."""
    facts = _record(found)
    facts["blocked"] = _blocked(found.blocked)
    return document("gate", ready=found.ready, **facts)


def doctor(found: Diagnosis) -> dict[str, Any]:
    """`meshgate.doctor`."""
    return document("doctor", outcome=found.outcome, checks=[_record(check) for check in found.checks])


def plan(found: Plan) -> dict[str, Any]:
    """What a run would do: the part of `meshgate.run` that a dry run fills."""
    return {
        "models": [
            {
                "model": m.name,
                "project": m.project,
                "fresh": plain(m.fresh),
                "redo": plain(m.redo),
                "lookback": plain(m.lookback),
                "due_upto": plain(m.upto),
                "next_due": plain(m.next_due),
            }
            for m in found.models
        ]
    }


def run(report: RunReport, waits: tuple[Wait, ...], verb: str) -> dict[str, Any]:
    """`meshgate.run` and `meshgate.deploy`."""
    return document(
        verb,
        project=report.project,
        environment=report.environment,
        now=report.now,
        state=report.state,
        run_id=report.run_id,
        committed=[{"model": m, "intervals": plain(t)} for m, t in report.committed.items()],
        failed=[_record(f) for f in report.failed],
        warned=[_record(f) for f in report.warned],
        uncompared=[{"model": m, "problem": p} for m, p in report.uncompared.items()],
        unchanged=[{"model": m, "intervals": plain(t)} for m, t in report.unchanged.items()],
        blocked=_blocked(report.blocked),
        waits=[_wait(w) for w in waits],
        findings=[_record(f) for f in report.findings],
        unmirrored=[{"model": m, "interval": plain(i), "problem": p} for m, i, p in report.unmirrored],
        plan=plan(report.plan) if report.plan is not None and report.state == "planned" else None,
        busy=_busy(report.busy),
        error=report.error,
    )


def lease(runs: Sequence[LiveRun], now: datetime, broken: LiveRun | None) -> dict[str, Any]:
    """`meshgate.lease`."""
    return document(
        "lease",
        now=now,
        leases=[_lease(run, now) for run in runs],
        broken=_lease(broken, now) if broken is not None else None,
    )


def _lease(run: LiveRun, now: datetime) -> dict[str, Any]:
    return {**_record(run), "holder": _shown(run.holder), "expired": run.expires_at <= now}


def retry(model: str, project: str, ended: int) -> dict[str, Any]:
    """`meshgate.retry`: how many pauses were ended."""
    return document("retry", model=model, project=project, ended=ended)


def restate(found: Preview) -> dict[str, Any]:
    """`meshgate.restate`: a preview, or what was asked for; `made` are the numbers of the requests."""
    facts = _record(found)
    facts["steps"] = [_redo(step) for step in found.steps]
    facts["requests"] = [{"model": m, "interval": plain(i)} for m, i in found.requests]
    return document("restate", **facts, projects=found.projects, expected_s=found.expected)


def _redo(step: Redo) -> dict[str, Any]:
    facts = _record(step)
    facts["expected_s"] = facts.pop("expected")
    facts["widened"] = [{**_record(w), "window": _window(w.window)} for w in step.widened]
    return facts


def _window(window: Window | None) -> dict[str, Any] | None:
    if window is None:
        return None
    return {"mode": window.mode, "from_s": plain(window.from_offset), "to_s": plain(window.to_offset)}


def analyze(found: Analysis) -> dict[str, Any]:
    """`meshgate.analysis`: what a change does to the mesh."""
    facts = _record(found)
    facts["work"] = [_work(one) for one in found.work]
    facts["left"] = [{**_record(one), "can_be_asked": one.can_be_asked} for one in found.left]
    more = {
        "refused": found.refused,
        "flags": found.flags,
        "affected": found.affected,
        "complete_at": found.complete_at,
    }
    return document("analysis", **facts, **more, expected_s=found.expected)


def deploys(found: Deploys, waits: Mapping[str, tuple[Wait, ...]]) -> dict[str, Any]:
    """`meshgate.deploys`: what became of each project of an analysis; `deploy` is as `meshgate.deploy`."""
    projects = [
        {
            "project": one.project,
            "what": one.what,
            "deploy": run(one.report, waits.get(one.project, ()), "deploy") if one.report else None,
        }
        for one in found.projects
    ]
    return document(
        "deploys", environment=found.environment, proposed=found.proposed, done=found.done, projects=projects, left=found.left
    )  # fmt: skip


def leftovers(found: Leftovers) -> dict[str, Any]:
    """`meshgate.leftovers`: what an analysis leaves as it was made, and what asking for it comes to; `made` are the requests."""
    facts = _record(found)
    facts["models"] = [
        {
            **_record(one),
            "preview": restate(one.preview) if one.preview is not None else None,
        }
        for one in found.models
    ]
    facts["requests"] = [{"model": m, "interval": plain(i)} for m, i in found.requests]
    return document("leftovers", **facts, projects=found.projects, expected_s=found.expected)


def _work(work: Work) -> dict[str, Any]:
    facts = _record(work)
    facts["expected_s"] = facts.pop("expected")
    return facts


def requests(found: Sequence[Request], now: datetime) -> dict[str, Any]:
    """`meshgate.requests`."""
    return document("requests", now=now, requests=[_request(r) for r in found])


def _request(found: Request) -> dict[str, Any]:
    return {**_record(found), "state": found.state, "done": plain(found.done)}


def request(found: RequestStanding) -> dict[str, Any]:
    """`meshgate.request`."""
    facts = _record(found)
    facts |= {"request": _request(found.request), "follows": [_redo(step) for step in found.follows]}
    return document("request", **facts)


def cancelled(found: Request, ended: bool) -> dict[str, Any]:
    """`meshgate.request_cancelled`: `ended` is false where it had been cancelled before."""
    return document("request_cancelled", request=_request(found), ended=ended)


def hold(found: Held) -> dict[str, Any]:
    """`meshgate.hold`: what its readers have to wait for from now on, and who they are."""
    return document("hold", **_record(found))


def release(found: Released) -> dict[str, Any]:
    """`meshgate.release`: what was held of it, and what is still."""
    return document("release", **_record(found))


def accept(found: Accepted) -> dict[str, Any]:
    """`meshgate.accept`: what counts as recorded from now on; with `undone`, what is due again."""
    return document("accept", **_record(found))


def verify(found: Verification) -> dict[str, Any]:
    """`meshgate.verify`: each difference with what the ledger says (`recorded`) and what is derived."""
    return document("verify", **_record(found))


def watch(found: Sequence[Look]) -> dict[str, Any]:
    """`meshgate.watch`: what was looked at, where it has changed, and the requests because of it."""
    return document("watch", sources=found)


def error(found: MeshgateError) -> dict[str, Any]:
    """`meshgate.error`: what a command with `--json` answers when it cannot answer."""
    return document(
        "error",
        error=type(found).__name__,
        message=found.message,
        hint=found.hint,
        exit_code=found.exit_code,
        fields=found.fields,
    )
