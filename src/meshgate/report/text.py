"""Results for people: plain lines, one table, and a tree, with colours only on a terminal."""

from __future__ import annotations

import os
import re
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from meshgate.interval import IntervalSet
from meshgate.report.holds import accept, accepted_row, hold, holds_beside, release  # noqa: F401 - found by name
from meshgate.report.staleness import stale_beside
from meshgate.report.wording import (
    because_of,
    boundary,
    counted,
    instant,
    length,
    model_name,
    run_of,
    runs_of,
    time_of,
    what_failed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from meshgate.coordinator.causes import Cause
    from meshgate.coordinator.diagnosis import Diagnosis
    from meshgate.coordinator.explain import GateAnswer, Why
    from meshgate.coordinator.run import RunReport
    from meshgate.coordinator.status import ModelStatus, ProjectStatus, Status, Wait
    from meshgate.ledger import CoverageRow, LiveRun

_LINES = 15
_TREE_LINES = 40
_NAMES = 4
_MODELS = 20
_NARROWEST = 20
_COLUMNS = ("model", "kind", "recorded", "due", "late")
_LEASES = ("run", "project", "environment", "holder", "since", "reserved", "writing")
_INTERVAL = re.compile(r"\[[^\[\]()]*\)")
# Of the private use area: as wide as a space, and no white space to whoever wraps.
_GLUE = "\ue000"
_WIDTH_WITHOUT_TERMINAL = 160
_KINDS = {
    "incremental_by_time_range": "by time",
    "incremental_by_unique_key": "by key",
    "incremental_by_partition": "by partition",
    "incremental_unmanaged": "unmanaged",
    "scd_type_2": "scd 2",
}
_STYLES = {"failed": "red", "suspect": "yellow", "removed": "yellow", "held": "magenta", "begun": "cyan"}
_STATES = {
    "recorded": ("recorded", "green"),
    "accepted": ("accepted as it was", "yellow"),
    "ready": ("ready", "green"),
    "blocked": ("blocked", "yellow"),
    "late": ("not evaluated yet", "yellow"),
    "missing": ("never evaluated", "yellow"),
    "not_due": ("not due", ""),
    "unrecorded": ("nothing to record", ""),
    "mixed": ("parts of it differ", "yellow"),
    "begun": ("a run has claimed it", "cyan"),
}


def console(file: IO[str]) -> Console:
    """A console that writes plain text wherever the file is not a terminal."""
    width = None if file.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def _line(*parts: str | Text | tuple[str, str]) -> Text:
    return Text.assemble(*parts)


def _capped(lines: Sequence[Text], indent: str = "", limit: int = _LINES) -> list[Text]:
    if len(lines) <= limit + 1:
        return list(lines)
    return [*lines[:limit], Text(f"{indent}... and {len(lines) - limit} more", style="dim")]


def _where(model: str, project: str, time: IntervalSet, home: str | None) -> str:
    of = "" if project == home else f" of project {project}"
    return f"{model_name(model)} {time_of(time)}{of}"


# Status


def status(out: Console, found: Status) -> None:
    """One screen: each project with its runs and models, then every root cause once."""
    out.print(_line((found.environment, "bold"), f" at {instant(found.now)}"))
    shown = {p.project: _worth_showing(p.models) for p in found.projects}
    rows = {name: [_row(model, found.now) for model in models] for name, models in shown.items()}
    widths = _widths(_COLUMNS, [row for models in rows.values() for row in models])
    for project in found.projects:
        out.print()
        _project(out, project, found.now)
        if rows[project.project]:
            _table(out, _COLUMNS, rows[project.project], widths)
        if hidden := len(project.models) - len(rows[project.project]):
            out.print(Text(f"  ... and {counted(hidden, 'more model')}; --json has all", style="dim"))
    out.print()
    if found.waits:
        out.print(_line(("what keeps things back", "bold")))
        _waits(out, found.waits, found.now, None)
    else:
        out.print(_line(("nothing waits for anything but its own next run", "green")))
    _wrapped(out, holds_beside(found), 4)
    _wrapped(out, stale_beside(found), 4)


def _worth_showing(models: Sequence[ModelStatus]) -> list[ModelStatus]:
    """All models, or of many those that are not up to date, as far as a screen holds them."""
    if len(models) <= _MODELS:
        return list(models)
    return [m for m in models if m.late is not None or any(m.units.values())][:_MODELS]


def _row(model: ModelStatus, now: datetime) -> tuple[tuple[str, ...], Text]:
    cells = (
        model_name(model.model),
        _KINDS.get(model.kind, model.kind),
        boundary(model.recorded_upto, now),
        boundary(model.due_upto, now),
        length(model.late),
    )
    return cells, _model_state(model, now)


def _widths(columns: tuple[str, ...], rows: Sequence[tuple[tuple[str, ...], Text]]) -> list[int]:
    return [max(map(len, cells)) for cells in zip(columns, *(cells for cells, _ in rows), strict=True)]


def _table(
    out: Console,
    columns: tuple[str, ...],
    rows: Sequence[tuple[tuple[str, ...], Text]],
    widths: list[int],
    last: str = "",
) -> None:
    """Columns of these widths; the last one takes what the screen has left."""

    def line(cells: tuple[str, ...]) -> str:
        return "  " + "".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=True))

    out.print(Text(f"{line(columns)}{last}".rstrip(), style="dim"), soft_wrap=True)
    for cells, state in rows:
        start = line(cells)
        for piece in state.wrap(out, max(_NARROWEST, out.width - len(start))):
            out.print(_line(start, piece), soft_wrap=True)
            start = " " * len(start)


def _project(out: Console, project: ProjectStatus, now: datetime) -> None:
    schedule = f" · schedule {project.schedule}" if project.schedule else ""
    out.print(_line((project.project, "bold"), schedule))
    if not project.deployed:
        out.print(_line("  ", (f"not deployed here: run `meshgate deploy {project.project}`", "yellow")))
    for run in project.runs.live_runs:
        _wrapped(out, [_line("  ", (run_of(run, now), "cyan" if run.live else "yellow"))], 4)
    if project.runs.last:
        bad = project.runs.last.state in ("failed", "lost", "stopped")
        _wrapped(out, [_line("  last ", (run_of(project.runs.last, now), "yellow" if bad else ""))], 4)
    elif project.deployed and not project.runs.live_runs:
        out.print("  it never ran")


def _model_state(model: ModelStatus, now: datetime) -> Text:
    whole = model.kind not in ("incremental_by_time_range", "audit")
    parts: list[Text] = []
    for key, word, style in (
        ("failing", "failing", "red"),
        ("held", "held", "magenta"),
        ("suspect", "suspect", "yellow"),
        ("blocked", "blocked", "yellow"),
        ("begun", "claimed", "cyan"),
        ("ready", "ready", "green"),
        # Of models the run tells that; of an audit it is all that there is to tell.
        *([("warned", "warned", "yellow")] if model.kind == "audit" else ()),
    ):
        if getattr(model, key):
            text = word if whole and key in ("failing", "suspect", "held") else f"{model.units[key]} {word}"
            parts.append(Text(text, style=style))
    if not parts:
        due = f", next due {boundary(model.next_due, now)}" if model.next_due else ""
        return Text(("up to date" if model.recorded_upto else "nothing due yet") + due)
    return Text(", ").join(parts)


def _waits(out: Console, waits: Sequence[Wait], now: datetime, home: str | None) -> None:
    for wait in waits[:_LINES]:
        _wait(out, wait, now, home)
    if len(waits) > _LINES:
        out.print(Text(f"  ... and {len(waits) - _LINES} more; --json has all", style="dim"))


def _wait(out: Console, wait: Wait, now: datetime, home: str | None) -> None:
    style = _STYLES.get(wait.causes[0].reason, "yellow")
    roots = [
        _line(
            ("  ● ", style),
            _where(c.model, c.project, c.time, home),
            ": ",
            because_of(c.reason, c.detail, now),
        )
        for c in wait.causes
    ]
    _wrapped(out, _capped(roots, "    ", 4), 4)
    if wait.waiting:
        shown = [f"{model_name(m)} {time_of(t)}" for m, _, t in wait.waiting[:_NAMES]]
        hidden = len(wait.waiting) - len(shown)
        more = f" and {counted(hidden, 'more model')}" if hidden else ""
        _wrapped(out, [_line("    keeps back ", "; ".join(shown), more)], 6)
    for remedy in dict.fromkeys(c.remedy for c in wait.causes if c.remedy):
        _wrapped(out, [_line("    → ", remedy)], 6)


def _wrapped(out: Console, lines: Iterable[Text], indent: int | Text) -> None:
    """Print lines whose continuations stand under their text; an interval is never torn apart."""
    hang = Text(" " * indent) if isinstance(indent, int) else indent
    for line in lines:
        glued = line.copy()
        glued.plain = _INTERVAL.sub(lambda found: found[0].replace(" ", _GLUE), line.plain)
        first = glued.wrap(out, max(_NARROWEST, out.width))[0]
        rest = glued[len(first) :]
        rest = rest[len(rest) - len(rest.plain.lstrip()) :] if rest.plain.strip() else Text()
        width = max(_NARROWEST, out.width - len(hang))
        more: list[Text] = list(rest.wrap(out, width)) if rest else []
        for number, piece in enumerate([first, *more]):
            piece.rstrip()
            piece.plain = piece.plain.replace(_GLUE, " ")
            out.print(_line(hang, piece) if number else piece, soft_wrap=True)


# Why


def why(out: Console, found: Why) -> None:
    """An interval's story: how it was recorded, or what it waits for, down to the root."""
    title = model_name(found.model) + (f" {found.interval}" if found.interval else "")
    said, style = _STATES.get(found.state, (found.state, _STYLES.get(found.state, "yellow")))
    if found.interval is None and found.state == "recorded":
        said = "all is well" if found.recorded_upto else "nothing is recorded, and nothing is due"
    _wrapped(out, [_line((title, "bold"), ": ", (said, style))], 2)
    out.print(_line((f"project {found.project} · {found.environment} at {instant(found.now)}", "dim")))
    if found.state == "unrecorded":
        out.print(
            f"a model of kind {found.kind} has no intervals: nothing is recorded, and nobody waits for it"
        )
    elif found.interval is None:
        if found.recorded_upto:
            out.print(f"recorded up to {boundary(found.recorded_upto)}")
        if found.next_due:
            out.print(f"next due at {instant(found.next_due)}")
    else:
        _story(out, found)


def _story(out: Console, found: Why) -> None:
    _wrapped(out, _capped([line for row in found.recorded for line in _recorded(row, found.now)]), 2)
    if found.causes:
        out.print()
        lines = [line for cause in found.causes for line in _tree(cause, found)]
        for line, hang in lines[:_TREE_LINES]:
            _wrapped(out, [line], Text(hang, style="dim"))
        if len(lines) > _TREE_LINES:
            out.print(Text(f"... and {len(lines) - _TREE_LINES} more lines; --json has all", style="dim"))
        _remedies(out, found)
    if found.others:
        out.print()
        _wrapped(out, [_line(f"also due and not as it should be: {time_of(found.others)}")], 2)


def _recorded(row: CoverageRow, now: datetime) -> list[Text]:
    facts = [length(row.duration)] if row.duration is not None else []
    facts += [counted(row.rows, "row")] if row.rows is not None else []
    if row.accepted is not None:
        return accepted_row(row, now)
    who = "by plain SQLMesh, seen" if row.verdict == "foreign" else f"by run {row.run_id}"
    who = who if row.merged == 1 else f"by {row.merged} commits, the last of them {who}"
    tail = f" ({', '.join(facts)})" if facts else ""
    lines = [_line(f"{row.interval} recorded {who} at {instant(row.committed_at, now)}{tail}")]
    failed = [a for a in row.audits if a.get("count")]
    if failed:
        lines.append(_line("  ", (f"with a warning: {what_failed({'audits': failed})}", "yellow")))
    elif row.audits:
        lines.append(_line(f"  audits passed: {', '.join(sorted({str(a['audit']) for a in row.audits}))}"))
    elif row.verdict == "passed":
        lines.append(_line("  it has no audits"))
    known = row.read_revision or row.run_id is not None
    read = f"read its parents up to {row.read_revision}" if known else "what it read is not known"
    lines.append(_line((f"  revision {row.revision}, {read}", "dim")))
    return lines


def _tree(cause: Cause, found: Why, first: str = "", hang: str = "") -> Iterator[tuple[Text, str]]:
    """A cause and, indented below it, what it waits for: lines, and what their continuations begin with."""
    yield _line((first, "dim"), _node(cause, found)), hang + ("│  " if cause.because else "   ")
    told = [inner for inner in cause.because if not inner.above]
    above = dict.fromkeys(model_name(inner.model) for inner in cause.because if inner.above)
    for inner in told:
        last = inner is told[-1] and not above
        yield from _tree(
            inner, found, f"{hang}{'└─ ' if last else '├─ '}", f"{hang}{'   ' if last else '│  '}"
        )
    if above:
        yield _line((f"{hang}└─ ", "dim"), f"{_listed(list(above))}: see above"), f"{hang}   "


def _listed(names: list[str]) -> str:
    shown = names if len(names) <= _NAMES + 1 else [*names[:_NAMES], f"{len(names) - _NAMES} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _node(cause: Cause, found: Why) -> Text:
    style = "" if cause.because else _STYLES.get(cause.reason, "yellow")
    where = _where(cause.model, cause.project, cause.time, found.project)
    return _line(
        (where, "bold" if style else ""), ": ", (because_of(cause.reason, cause.detail, found.now), style)
    )


def _remedies(out: Console, found: Why) -> None:
    out.print()
    for project in found.runs:
        if any(
            root.project == project.project and root.reason in ("late", "missing") for root in found.roots
        ):
            _wrapped(out, [_line(f"{project.project}: {runs_of(project, found.now)}")], 2)
    out.print(_line(("what would end it", "bold")))
    remedies: dict[str, list[str]] = {}
    for root in found.roots:
        remedies.setdefault(str(root.remedy), []).append(model_name(root.model))
    for remedy, names in remedies.items():
        whose = f"{_listed(list(dict.fromkeys(names)))}: " if len(remedies) > 1 else ""
        _wrapped(out, [_line(f"  → {whose}{remedy}")], 4)


# Gate


def gate(out: Console, found: GateAnswer) -> None:
    """Ready or not, and the stretches of the parents that close it."""
    answer = ("ready", "green") if found.ready else ("not ready", "yellow")
    _wrapped(out, [_line((f"{model_name(found.model)} {found.interval}", "bold"), ": ", answer)], 2)
    lines = list(
        dict.fromkeys(
            f"{_where(b.parent, b.parent_project, IntervalSet((b.span,)), found.project)}: "
            f"{because_of(b.reason, b.detail, found.now)}"
            for b in found.blocked
        )
    )
    _wrapped(out, _capped([_line("  waits for ", line) for line in lines], "  "), 4)
    if not found.ready:
        asked = f"{found.interval.start:%Y-%m-%dT%H:%M}/{found.interval.end:%Y-%m-%dT%H:%M}"
        _wrapped(out, [_line(f"  → `meshgate why {model_name(found.model)} {asked}` tells the root")], 4)


# Run and deploy


def run(out: Console, report: RunReport, waits: tuple[Wait, ...], verb: str) -> None:
    """What was done, what failed, and what is kept back by what."""
    number = f" {report.run_id}" if report.run_id is not None else ""
    state = {"nothing_to_do": "nothing to do", "planned": "would do this"}.get(report.state, report.state)
    if report.state == "planned" and report.plan is not None and report.plan.is_empty:
        state = "would do nothing: nothing is ready"
    style = {"failed": "red", "lost": "red", "skipped": "yellow", "stopped": "yellow"}.get(
        report.state, "green"
    )
    out.print(
        _line(
            (f"{verb}{number} of {report.project}", "bold"),
            ": ",
            (state, style),
            f" · {report.environment} at {instant(report.now)}",
        )
    )
    if report.error:
        _wrapped(out, [_line("  ", (report.error, style))], 4)
    if report.busy is not None:
        busy = report.busy
        _wrapped(out, [_line(
            f"  {busy.purpose} {busy.run_id} of {busy.project} lives: pid {busy.holder.get('pid')} on {busy.holder.get('host')}, since "
            f"{instant(busy.started_at, report.now)}, its lease until {instant(busy.expires_at, report.now)}"
        )], 4)  # fmt: skip
    _sets(out, "committed", "green", report.committed)
    _sets(out, "unchanged", "", report.unchanged)
    if report.plan is not None and report.state == "planned":
        _sets(out, "evaluate", "green", {m.name: m.fresh for m in report.plan.models})
        _sets(out, "again", "yellow", {m.name: m.redo for m in report.plan.models})
        _sets(out, "lookback", "", {m.name: m.lookback for m in report.plan.models})
    failures = [("failed", "red", f) for f in report.failed] + [
        ("warning", "yellow", f) for f in report.warned
    ]
    lines = [
        _line("  ", (f"{word:<10}", style), f"{model_name(f.model)} {f.interval}: {what_failed(f.detail)}")
        for word, style, f in failures
    ]
    lines += [
        _line(
            "  ",
            ("found     ", "yellow"),
            f"{model_name(f.model)} {f.interval or ''} {f.what} by somebody else",
        )
        for f in report.findings
    ]
    lines += [
        _line("  ", ("uncompared", "yellow"), f" {model_name(m)}: {p}: its readers read it again")
        for m, p in report.uncompared.items()
    ]
    lines += [
        _line("  ", ("unmirrored", "yellow"), f" {model_name(m)} {i}: {p}") for m, i, p in report.unmirrored
    ]
    _wrapped(out, _capped(lines, "  "), 12)
    if waits:
        out.print(_line("  what keeps things back"))
    _waits(out, waits, report.now, report.project)


def _sets(out: Console, word: str, style: str, sets: Mapping[str, IntervalSet]) -> None:
    lines = [
        _line("  ", (f"{word:<10}", style), f"{model_name(name)} {time_of(time)}")
        for name, time in sets.items()
        if time
    ]
    _wrapped(out, _capped(lines, "  "), 12)


# Leases


def lease(out: Console, runs: Sequence[LiveRun], now: datetime, broken: LiveRun | None) -> None:
    """Who holds a lease; each run in a line."""
    if broken is not None:
        out.print(
            _line((f"the lease of {broken.purpose} {broken.run_id} of {broken.project} is broken", "green"))
        )
    if not runs:
        out.print("no run is live" if broken is None else "no other run is live")
        return
    rows = [
        (
            (
                f"{run.purpose} {run.run_id}", run.project, run.environment,
                f"{run.holder.get('pid')}@{run.holder.get('host')}", instant(run.started_at, now), str(run.open), str(run.begun),
            ),
            _lease_end(run, now),
        )
        for run in runs
    ]  # fmt: skip
    _table(out, _LEASES, rows, _widths(_LEASES, rows), "lease until")


def _lease_end(run: LiveRun, now: datetime) -> Text:
    more = [("about to replace models", "cyan")] if run.promoting else []
    ended = run.expires_at <= now
    until = (
        (f"{instant(run.expires_at, now)}: expired, to be taken over", "yellow")
        if ended
        else instant(run.expires_at, now)
    )
    return Text(", ").join(_line(part) for part in (until, *more))


def retry(out: Console, model: str, project: str, ended: int) -> None:
    """How many pauses were ended."""
    if ended:
        said = f"{counted(ended, 'pause')} ended; the next `meshgate run {project}` tries again"
    else:
        said = "nothing that failed is in a pause"
    out.print(_line((model_name(model), "bold"), f": {said}"))


# Doctor


def doctor(out: Console, found: Diagnosis) -> None:
    """Each check in a line, with what to do about it under it."""
    marks = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}
    for check in found.checks:
        subject = f"{check.name} {check.subject}".strip()
        _wrapped(out, [_line(marks[check.outcome], f"  {subject}: ", check.message)], 6)
        if check.hint:
            _wrapped(out, [_line("      → ", check.hint)], 8)
    verdict = {
        "ok": "everything is in order",
        "warn": "it works, but see the warnings",
        "fail": "something has to be mended",
    }
    out.print(_line((verdict[found.outcome], marks[found.outcome][1])))
