"""Sentences about causes, runs and lengths of time, the same for people and for programs that pass them on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from meshgate.graph import name_parts
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshgate.coordinator.explain import RunFacts

_PIECES_SHOWN = 3
_COUNTS = ("committed", "failed", "blocked")


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


def time_of(time: IntervalSet | Interval) -> str:
    """Some time of a model: its intervals, or how many there are; `the whole table` for all of time."""
    pieces = [time] if isinstance(time, Interval) else list(time)
    if not pieces:
        return "nothing"
    if pieces[0].start == MIN_INSTANT and pieces[-1].end == MAX_INSTANT:
        return "the whole table"
    if len(pieces) <= _PIECES_SHOWN:
        return ", ".join(map(_span, pieces))
    hull = Interval(pieces[0].start, pieces[-1].end)
    return f"{len(pieces)} stretches in {_span(hull)}"


def _span(piece: Interval) -> str:
    if piece.end == MAX_INSTANT:
        return f"[{boundary(piece.start)}, ...)"
    if piece.start == MIN_INSTANT:
        return f"[..., {boundary(piece.end)})"
    return str(piece)


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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
    due = detail.get("due_at") or detail.get("due_since")
    since = f", due since {instant(due, now)}" if due else ""
    said = {
        "failed": what_failed(detail),
        "suspect": f"suspect: {cause}" if cause else "suspect: nobody knows what it holds",
        "removed": str(cause or "removed from SQLMesh's record by somebody else"),
        "held": f"held: {cause}" if cause else "held",
        "stale": "stale: what it read was computed again since",
        "marked": "to be read again for late rows"
        if detail.get("mark") == "lookback"
        else "asked to be computed again",
        "late": f"not evaluated yet{since}",
        "missing": f"never evaluated: {cause}" if cause else f"never evaluated{since}",
        "not_due": str(cause) if cause else f"not due before {instant(due, now)}" if due else "not due yet",
        "superseded": "another version is promoted now",
    }.get(reason, reason)
    return said + _circumstances(detail, now)


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
    """Which attempt of which run, and when."""
    facts: list[str] = []
    if (detail.get("attempts") or 1) > 1:
        facts.append(f"attempt {detail['attempts']}")
    if detail.get("run_id"):
        facts.append(f"run {detail['run_id']}")
    if detail.get("since"):
        facts.append(f"at {instant(detail['since'], now)}")
    return f" ({', '.join(facts)})" if facts else ""


def run_of(run: RunFacts, now: datetime | None = None) -> str:
    """One run in one line."""
    where = f"pid {run.pid} on {run.host}"
    until = instant(run.lease_until, now)
    name = f"{run.purpose} {run.run_id}"
    if run.live:
        return f"{name} is live: {where}, since {instant(run.started_at, now)}, its lease until {until}"
    if run.state == "running":
        return f"{name} lost its lease at {until} ({where}); the next run takes over"
    known = [*_COUNTS, *(key for key in run.counts if key not in _COUNTS)]
    facts = [f"{run.counts[key]} {key}" for key in known if run.counts.get(key)]
    if run.as_of:
        facts.insert(0, f"as of {instant(run.as_of, now)}")
    tail = (f" ({', '.join(facts)})" if facts else "") + (f": {run.error}" if run.error else "")
    return f"{name} {run.state.replace('_', ' ')} at {instant(run.ended_at, now)}{tail}"
