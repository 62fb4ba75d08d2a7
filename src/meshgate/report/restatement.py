"""Restatements for people: what a request comes to, and how far requests are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.report.text import _capped, _line, _listed, _table, _widths, _wrapped
from meshgate.report.wording import counted, instant, length, model_name, time_of, what_failed, who_does_it

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from rich.console import Console
    from rich.text import Text

    from meshgate.coordinator.restate import Collision, Preview, Redo, RequestStanding
    from meshgate.ledger import Mark, Request
    from meshgate.restatement import Stop, Widening

_UNITS = {
    "hour": "an hour",
    "five_minute": "5 minutes",
    "quarter_hour": "15 minutes",
    "half_hour": "30 minutes",
}
_STATES = {"open": "yellow", "done": "green", "cancelled": "dim"}
_COLUMNS = ("request", "model", "range", "by", "at")
_STOPS = {
    "disabled": "it declares disable_restatement, or its kind does; what it holds stays as it is",
    "seed": "a seed changes only with its file; --only-downstream asks for its readers",
    "not_redoable": "evaluating it twice doubles rows: it is left for a person",
    "reported": "it merges rows, and only a rebuild makes it right: its staleness is reported, --rebuild asks for more",
    "policy": "its `stale` policy leaves it as it is: its staleness is reported, --rebuild asks for more",
    "unrecorded": "nothing of it is recorded there, so there is nothing to compute again",
}


def restate(out: Console, found: Preview) -> None:
    """What is computed again, by project, parents first; what stops it, what collides; and how to ask for it."""
    asked = f"{model_name(found.model)} {found.interval}"
    made = f"requested ({_numbers(found.made)})" if found.made else "preview, nothing is asked for yet"
    state = (made, "green" if found.made else "yellow")
    _wrapped(out, [_line((f"restate {asked}", "bold"), ": ", state)], 2)
    whose = f"project {found.project}" if found.project else "a source, which no model of the mesh makes"
    out.print(_line((f"{whose} · {found.environment} at {instant(found.now)}", "dim")))
    place = 0
    for project in dict.fromkeys(found.projects):
        out.print()
        out.print(_line((project, "bold")))
        for step in (s for s in found.steps if s.project == project):
            place = found.steps.index(step) + 1
            _wrapped(out, _step(place, step, found), 7)
    if not place:
        out.print()
        out.print(_line(("nothing is computed again", "yellow")))
    _stops(out, found.stops)
    _in_flight(out, found)
    out.print()
    _time(out, found)
    _wrapped(out, [_line("→ ", _next(found))], 2)


def _step(place: int, step: Redo, found: Preview) -> list[Text]:
    takes = f", {_about(step.expected)}" if step.expected is not None else ""
    head = _line(f"  {place:>2}. {model_name(step.model)} ", (time_of(step.range), "bold"), takes)
    why = [_wide(w, step) for w in step.widened]
    if step.asked:
        why.insert(
            0,
            "reads it"
            if step.model != found.model and not step.because
            else "asked for"
            if not step.because
            else "asked for too",
        )
    elif step.because:
        why.insert(0, f"reads {_listed([model_name(p) for p in step.because])}")
    return [head, _line((f"      {'; '.join(why)}", "dim"))]


def _wide(widened: Widening, step: Redo) -> str:
    if widened.reason == "window" and widened.window is not None and widened.parent is not None:
        window = widened.window
        over = f"from {_offset(window.from_offset)} to {_offset(window.to_offset)}"
        how = over if window.mode == "interval" else f"as `{window.mode}`"
        return f"over its window on {model_name(widened.parent)} ({how})"
    return {
        "unit": f"in whole units of {_UNITS.get(step.unit, 'a ' + step.unit)}",
        "depends_on_past": "it reads itself, so everything after that too",
        "refresh": "each refresh makes the whole table anew",
        "rebuild": "it merges rows, so it is rebuilt from its beginning",
    }.get(widened.reason, widened.reason)


def _offset(value: timedelta) -> str:
    return "0" if not value else f"{'-' if value.total_seconds() < 0 else '+'}{length(abs(value))}"


def _about(value: timedelta) -> str:
    return f"about {length(value)}"


def _stops(out: Console, stops: Sequence[Stop]) -> None:
    if not stops:
        return
    out.print()
    out.print(_line(("where it stops", "bold")))
    lines = []
    for stop in stops:
        reads = _listed([model_name(p) for p in stop.because]) if stop.because else ""
        said = f"declared not to wait for {reads}" if stop.reason == "ungated" else _STOPS[stop.reason]
        time = f" {time_of(stop.reached)}" if stop.reached else ""
        lines.append(_line(("  ● ", "yellow"), f"{model_name(stop.name)}{time} of {stop.project}: {said}"))
    _wrapped(out, _capped(lines, "  "), 4)


def _in_flight(out: Console, found: Preview) -> None:
    lines = [
        _line(("  ● ", "cyan"), f"{model_name(step.model)} {_collision(hit, found.now)}")
        for step in found.steps
        for hit in step.collisions
    ]
    lines += [
        _line(("  ● ", "cyan"), f"{model_name(s.model)} is asked for already: {_numbers(s.pending)}")
        for s in found.steps
        if s.pending and not set(s.pending) & set(found.made)
    ]
    if lines:
        out.print()
        out.print(_line(("what it meets", "bold")))
        _wrapped(out, _capped(lines, "  "), 4)


def _collision(hit: Collision, now: datetime) -> str:
    who = f"run {hit.run_id} of {hit.project}"
    until = f"until {instant(hit.until, now)}"
    time = time_of(hit.time, now)
    return {
        "begun": f"{time}: {who} is evaluating it, and read before the request: it is evaluated once more (its lease {until})",
        "open": f"{time}: {who} has reserved it (its lease {until})",
        "lost": f"{time}: {who} was lost, and may write {until}: it waits for that",
    }[hit.state]


def _time(out: Console, found: Preview) -> None:
    if found.expected is None:
        if found.steps:
            out.print("how long it takes is not known: no evaluation was timed yet")
        return
    unknown = [step for step in found.steps if step.expected is None]
    at_least = f", without {counted(len(unknown), 'model')} never timed" if unknown else ""
    out.print(f"{_about(found.expected)} of evaluation, by the last ones{at_least}")


def _next(found: Preview) -> str:
    if found.made:
        return who_does_it(found.projects, f"show {found.made[0]}")
    if not found.requests:
        return "there is nothing to ask for"
    start, end = (f"{i:%Y-%m-%dT%H:%M}" for i in (found.interval.start, found.interval.end))
    flags = (" --only-downstream" if found.only_downstream else "") + (" --rebuild" if found.rebuild else "")
    return (
        f"`meshgate restate {model_name(found.model)} --from {start} --to {end}{flags} --apply` asks for it"
    )


def _numbers(made: Sequence[int]) -> str:
    return ("request " if len(made) == 1 else "requests ") + ", ".join(map(str, made))


# Requests


def requests(out: Console, found: Sequence[Request], now: datetime) -> None:
    """The newest requests, each in a line."""
    if not found:
        out.print("nothing was asked for")
        return
    rows = [
        (
            (str(r.request_id), model_name(r.model), time_of(r.interval), r.made_by, instant(r.made_at, now)),
            _line(_progress(r)),
        )
        for r in found
    ]
    _table(out, _COLUMNS, rows, _widths(_COLUMNS, rows), "state")


def _progress(found: Request) -> tuple[str, str]:
    style = _STATES[found.state]
    if found.state == "open":
        return f"open: {_share(found)} done", style
    return (found.state, style)


def _share(found: Request) -> str:
    return f"{int(100 * (found.done.duration / found.asked.duration))}%" if found.asked else "0%"


def request(out: Console, found: RequestStanding) -> None:
    """One request: who asked, how far it is, what is in its way, what follows."""
    asked = found.request
    title = f"request {asked.request_id}: {model_name(asked.model)} {asked.interval}"
    _wrapped(out, [_line((title, "bold"), ": ", _progress(asked))], 2)
    out.print(_line((f"project {asked.project} · {found.environment} at {instant(found.now)}", "dim")))
    _wrapped(out, [_line(f"asked for by {asked.made_by} at {instant(asked.made_at)}: {asked.reason}")], 2)
    if asked.cancelled_by and asked.cancelled_at:
        out.print(f"cancelled by {asked.cancelled_by} at {instant(asked.cancelled_at)}")
    if asked.done:
        _wrapped(out, [_line("done ", (time_of(asked.done), "green"))], 2)
    if asked.state != "open":
        return
    _wrapped(out, [_line("open ", (time_of(asked.open), "yellow"))], 2)
    lines = [_line(("  ● ", "red"), _failed(mark)) for mark in found.failed]
    lines += [_line(("  ● ", "cyan"), _collision(hit, found.now)) for hit in found.collisions]
    _wrapped(out, _capped(lines, "  "), 4)
    if found.follows:
        _wrapped(
            out,
            _capped([_line(f"  then {model_name(s.model)} {time_of(s.range)}") for s in found.follows]),
            4,
        )
    _wrapped(out, [_line(f"→ `meshgate run {asked.project}` does what is ready of it")], 2)


def _failed(mark: Mark) -> str:
    said = what_failed(mark.detail) if mark.kind == "failed" else str(mark.detail.get("cause") or "suspect")
    return f"{time_of(mark.batch or mark.interval)}: {said}"


def cancelled(out: Console, found: Request, ended: bool) -> None:
    """What was taken back, and what of it was done before."""
    who = f"{model_name(found.model)} {found.interval}"
    if not ended:
        said = f"was cancelled before, by {found.cancelled_by} at {instant(found.cancelled_at)}"
    elif found.done:
        said = f"is cancelled; {time_of(found.done)} was done before"
    else:
        said = "is cancelled; nothing of it was done"
    _wrapped(out, [_line((f"request {found.request_id}", "bold"), f" ({who}) {said}")], 2)
