"""Sentences about causes, runs and lengths of time, the same for people and for programs that pass them on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from meshgate.graph import name_parts
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshgate.coordinator.explain import ProjectRuns, RunFacts
    from meshgate.coordinator.progress import Batch, Waiting
    from meshgate.coordinator.run import RunReport
    from meshgate.ledger import LiveRun

_PIECES_SHOWN = 3
_COUNTS = ("committed", "failed", "blocked")
_NEAR = timedelta(minutes=10)


def model_name(name: str) -> str:
    """The name for people: `schema.table`."""
    return ".".join(name_parts(name)[-2:])


def instant(value: datetime | str | None, now: datetime | None = None) -> str:
    """An instant, UTC: without the date where that is today's, without seconds where there are none."""
    if value is None:
        return "-"
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    value = value.astimezone(UTC)
    date = "" if now is not None and value.date() == now.date() else f"{value:%Y-%m-%d} "
    return f"{date}{value:%H:%M:%S}Z" if value.second else f"{date}{value:%H:%M}Z"


def boundary(value: datetime | None, now: datetime | None = None) -> str:
    """The end of some interval: to the minute, without the date where that is today's."""
    if value is None:
        return "-"
    return f"{value:%H:%M}" if now is not None and value.date() == now.date() else f"{value:%Y-%m-%d %H:%M}"


def length(value: timedelta | None) -> str:
    """A duration in its two largest units: `3h 2m`, `52m`, `1.5s`."""
    if value is None:
        return "-"
    if value < timedelta(minutes=1):
        seconds = value.total_seconds()
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes = int(value.total_seconds()) // 60
    parts = [(minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "m")]
    first = next(at for at, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number}{unit}" for number, unit in parts[first : first + 2] if number)


def time_of(time: IntervalSet | Interval, now: datetime | None = None) -> str:
    """Some time of a model: its intervals, or how many there are; `the whole table` for all of time.

    Args:
        time: UTC.
        now: Dates of its day are left out.
    """
    pieces = [time] if isinstance(time, Interval) else list(time)
    if not pieces:
        return "nothing"
    if pieces[0].start == MIN_INSTANT and pieces[-1].end == MAX_INSTANT:
        return "the whole table"
    if len(pieces) <= _PIECES_SHOWN:
        return ", ".join(_span(piece, now) for piece in pieces)
    hull = Interval(pieces[0].start, pieces[-1].end)
    return f"{len(pieces)} stretches in {_span(hull, now)}"


def _span(piece: Interval, now: datetime | None) -> str:
    if piece.end == MAX_INSTANT:
        return f"[{boundary(piece.start, now)}, ...)"
    if piece.start == MIN_INSTANT:
        return f"[..., {boundary(piece.end, now)})"
    if now is not None and piece.start.date() == piece.end.date() == now.date():
        return f"[{boundary(piece.start, now)}, {boundary(piece.end, now)})"
    return str(piece)


def counted(number: int, noun: str, several: str | None = None) -> str:
    """A number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {several or noun + 's'}"


def what_failed(detail: Mapping[str, Any]) -> str:
    """A failure's facts: audits with their counts, or the error."""
    audits = detail.get("audits") or ()
    if audits:
        said = (f"audit `{a['audit']}` failed for {counted(a.get('count') or 0, 'row')}" for a in audits)
        return ", ".join(said)
    error, message = detail.get("error"), detail.get("message")
    if error and message:
        return f"its evaluation failed: {error}: {message}"
    return f"its evaluation failed: {error or message}" if error or message else "its evaluation failed"


def because_of(reason: str, detail: Mapping[str, Any], now: datetime | None = None) -> str:
    """What is wrong with some time of a model, as the end of a sentence that begins with the model."""
    cause = detail.get("cause")
    if reason == "begun":
        return _claimed(detail, now)
    if reason == "held" and detail.get("hold_id"):
        return held_by(detail["by"], detail["since"], detail["reason"], now)
    due = detail.get("due_at") or detail.get("due_since")
    since = f", due since {instant(due, now)}" if due else ""
    said = {
        "failed": what_failed(detail),
        "suspect": f"suspect: {cause}" if cause else "suspect: nobody knows what it holds",
        "removed": str(cause or "removed from SQLMesh's record by somebody else"),
        "held": f"held: {cause}" if cause else "held",
        "stale": _stale(detail, now),
        "marked": "to be read again for late rows"
        if detail.get("mark") == "lookback"
        else "asked to be computed again"
        + (f" by request {detail['request_id']}: {cause}" if detail.get("request_id") else ""),
        "late": f"not evaluated yet{since}",
        "missing": f"never evaluated: {cause}" if cause else f"never evaluated{since}",
        "not_due": str(cause) if cause else f"not due before {instant(due, now)}" if due else "not due yet",
        "superseded": "another version is promoted now",
    }.get(reason, reason)
    return said + _circumstances(detail, now)


def _stale(detail: Mapping[str, Any], now: datetime | None) -> str:
    if not detail.get("parent"):
        return "stale: what it read was computed again since"
    parent, time = model_name(detail["parent"]), detail.get("parent_interval")
    which = "" if time is None or time.start == MIN_INSTANT else f" {time_of(time, now)}"
    return f"stale: it had read {parent}{which} before that was computed again"


def held_by(by: str, since: datetime | str, reason: str, now: datetime | None = None) -> str:
    """Who keeps something from its readers, since when and why."""
    return f"held by {by} since {instant(since, now)}: {reason}"


def _claimed(detail: Mapping[str, Any], now: datetime | None) -> str:
    project = f" of {detail['project']}" if detail.get("project") else ""
    place = f" (pid {detail['pid']} on {detail['host']})" if detail.get("host") else ""
    until = instant(detail.get("lease_until"), now)
    run = f"run {detail.get('run_id')}{project}{place}"
    if detail.get("claim") == "lost":
        return f"{run} was lost while it evaluated it, and may write until {until}"
    did = "reserved" if detail.get("claim") == "open" else "began"
    if detail.get("expired"):
        return f"{run} {did} it, and lost its lease at {until}"
    does = "has reserved it" if did == "reserved" else "is evaluating it"
    return f"{run} {does}" + (f", its lease until {until}" if detail.get("lease_until") else "")


def _circumstances(detail: Mapping[str, Any], now: datetime | None) -> str:
    """Which attempt of which run, when, and when the next one is."""
    facts: list[str] = []
    if (detail.get("attempts") or 1) > 1:
        facts.append(f"tried {detail['attempts']} times")
    when = f" at {instant(detail['since'], now)}" if detail.get("since") else ""
    if detail.get("run_id"):
        facts.append(f"run {detail['run_id']}{when}")
    elif when:
        facts.append(when.strip())
    if detail.get("retry_at"):
        facts.append(f"next try {instant(detail['retry_at'], now)}")
    return f" ({', '.join(facts)})" if facts else ""


# Runs


def run_of(run: RunFacts, now: datetime | None = None) -> str:
    """One run in one line."""
    where = f"pid {run.pid} on {run.host}"
    until = instant(run.lease_until, now)
    name = f"{run.purpose} {run.run_id}"
    if run.live:
        more = ", about to replace models" if run.promoting else ""
        return f"{name} is live: {where}, since {instant(run.started_at, now)}, its lease until {until}{more}"
    if run.state == "running":
        return f"{name}: its lease ended at {until} ({where}); the next run of any project takes it over"
    known = [*_COUNTS, *(key for key in run.counts if key not in _COUNTS)]
    facts = [f"{run.counts[key]} {key}" for key in known if run.counts.get(key)]
    if run.as_of:
        facts.insert(0, f"as of {instant(run.as_of, now)}")
    tail = (f" ({', '.join(facts)})" if facts else "") + (f": {run.error}" if run.error else "")
    return f"{name} {run.state.replace('_', ' ')} at {instant(run.ended_at, now)}{tail}"


def runs_of(runs: ProjectRuns, now: datetime | None = None) -> str:
    """Who works on a project, and who did last, in one sentence."""
    last = f"last {run_of(runs.last, now)}" if runs.last else "it never ended a run"
    live = "; ".join(run_of(run, now) for run in runs.live_runs) or "no run is live"
    return f"{last}; {live}" if runs.last or runs.live_runs else "it never ran"


def stopped(report: RunReport, reason: str | None, verb: str, *, waiting: bool = False) -> str:
    """What a run had done when it was stopped, and who does the rest."""
    facts = [f"{sum(map(len, report.committed.values()))} committed"]
    if report.failed:
        facts.append(f"{len(report.failed)} failed")
    planned = {m.name: m.ready for m in report.plan.models} if report.plan is not None else {}
    if left := sum(len(time - report.committed.get(name, IntervalSet())) for name, time in planned.items()):
        facts.append(f"{left} left")
    at = " while it waited" if waiting else ""
    rest = "deploy again to go on" if verb == "deploy" else "the next run goes on"
    return f"stopped by {reason}{at}: {', '.join(facts)}; {rest}"


def eviction(run: LiveRun, grace: timedelta, now: datetime) -> list[str]:
    """Who is evicted where a lease is broken, and what becomes of what the run is doing."""
    until = instant(run.expires_at, now)
    lease = f"its lease ended at {until}" if run.expires_at <= now else f"its lease until {until}"
    who = f"pid {run.holder.get('pid')} on {run.holder.get('host')}"
    said = [
        f"{run.purpose} {run.run_id} of {run.project} in {run.environment}: {who}, since {instant(run.started_at, now)}, {lease}"
    ]
    if run.begun:
        them, are = ("it", "is") if run.begun == 1 else ("they", "are")
        said.append(
            f"it is writing {counted(run.begun, 'batch', 'batches')}: {them} will not be recorded, and {are} evaluated again, "
            f"as soon as its process is proven to be gone, else {length(grace)} after the end of its lease"
        )
    else:
        said.append("it is writing nothing")
    if run.open:
        said.append(f"it has reserved {counted(run.open, 'range')}, which any run may take at once")
    if run.promoting:
        said.append(
            f"it is about to replace models: the environment may stay half changed until `meshgate deploy {run.project}`"
        )
    return said


# Progress


def batch_of(batch: Batch, now: datetime | None = None) -> str:
    """What happened to a batch, as a line."""
    what = f"{model_name(batch.model)} {time_of(batch.interval, now)}"
    if batch.what == "waiting":
        return f"{what} waits {batch.detail}"
    return f"{batch.what} {what}" + (f": {batch.detail}" if batch.detail else "")


def waiting_for(waiting: Waiting, now: datetime) -> str:
    """What a run waits for, until when it is likely to, and until when at most."""
    run, of = f"run {waiting.run_id}", waiting.of
    if waiting.model is None:
        said = f"waiting for {run} of {of} to end"
    else:
        state = {
            "begun": f", which {run if waiting.run_id else 'a run'} is evaluating",
            "failed": ", whose evaluation failed",
            "suspect": ", which has to be evaluated again",
            "removed": ", which has to be evaluated again",
            "held": ", which is held",
            "not_due": ", which is not due yet",
            "stale": ", which is to be computed again",
            "marked": ", which is to be computed again",
        }.get(waiting.reason, "")
        said = f"waiting for {model_name(waiting.model)} {time_of(waiting.time, now)} of {of}{state}"
    if waiting.expected is not None:
        was = "" if waiting.expected > now else "was "
        said += f", {was}expected {_about(waiting.expected, now)}"
    return f"{said} (until {_about(waiting.until, now)})"


def _about(value: datetime, now: datetime) -> str:
    """An instant to the second where it is near, else to the minute."""
    value = value.replace(microsecond=0)
    return instant(value if abs(value - now) < _NEAR else value.replace(second=0), now)


def clock_of(value: timedelta) -> str:
    """A duration as a running clock shows it: `1:02:03`, `12:03`."""
    minutes, seconds = divmod(max(0, int(value.total_seconds())), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def who_does_it(projects: Iterable[str], look: str) -> str:
    """What comes after requests were made: whose runs do them, and which `meshgate restate ...` tells how far they are."""
    runs = ", ".join(f"`meshgate run {project}`" for project in projects)
    return f"the next {runs} does it; `meshgate restate {look}` tells how far it is"
