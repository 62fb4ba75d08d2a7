"""Results for people: plain lines, one table, and a tree, with colours only on a terminal."""

from __future__ import annotations

import os
import re
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshgate.interval import IntervalSet
from meshgate.report.wording import (
    because_of,
    boundary,
    counted,
    instant,
    length,
    model_name,
    run_of,
    time_of,
    what_failed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from meshgate.coordinator.causes import Cause
    from meshgate.coordinator.doctor import Diagnosis
    from meshgate.coordinator.explain import GateAnswer, Why
    from meshgate.coordinator.run import RunReport
    from meshgate.coordinator.status import ModelStatus, ProjectStatus, Status, Wait
    from meshgate.ledger import CoverageRow

_LINES = 15
_NARROWEST = 20
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


def _capped(lines: Sequence[Text], indent: str = "") -> list[Text]:
    if len(lines) <= _LINES + 1:
        return list(lines)
    return [*lines[:_LINES], Text(f"{indent}... and {len(lines) - _LINES} more", style="dim")]


def _where(model: str, project: str, time: IntervalSet, home: str | None) -> str:
    of = "" if project == home else f" of project {project}"
    return f"{model_name(model)} {time_of(time)}{of}"


# Status


def status(out: Console, found: Status) -> None:
    """One screen: each project with its runs and models, then every root cause once."""
    out.print(_line((found.environment, "bold"), f" at {instant(found.now)}"))
    widths = _widths(m for p in found.projects for m in p.models)
    for project in found.projects:
        out.print()
        _project(out, project, found.now, widths)
    out.print()
    if not found.waits:
        out.print(_line(("nothing waits for anything but its own next run", "green")))
        return
    out.print(_line(("what keeps things back", "bold")))
    for wait in found.waits:
        _wait(out, wait, found.now, None)


def _widths(models: Iterable[ModelStatus]) -> int:
    return min(44, max((len(model_name(m.model)) for m in models), default=10))


def _project(out: Console, project: ProjectStatus, now: datetime, width: int) -> None:
    schedule = f" · schedule {project.schedule}" if project.schedule else ""
    out.print(_line((project.project, "bold"), schedule))
    if not project.deployed:
        out.print(_line("  ", (f"not deployed here: run `meshgate deploy {project.project}`", "yellow")))
    if project.runs.live:
        _wrapped(out, [_line("  ", (run_of(project.runs.live, now), "cyan"))], 4)
    if project.runs.last:
        bad = project.runs.last.state in ("failed", "lost", "running")
        _wrapped(out, [_line("  last ", (run_of(project.runs.last, now), "yellow" if bad else ""))], 4)
    elif project.deployed and not project.runs.live:
        out.print("  it never ran")
    if not project.models:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("  model", min_width=width + 2, overflow="fold")
    for name in ("kind", "recorded to", "due to"):
        table.add_column(name, no_wrap=True)
    table.add_column("late", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for model in project.models:
        table.add_row(
            f"  {model_name(model.model)}",
            _KINDS.get(model.kind, model.kind),
            boundary(model.recorded_upto, now),
            boundary(model.due_upto, now),
            length(model.late),
            _model_state(model, now),
        )
    out.print(table)


def _model_state(model: ModelStatus, now: datetime) -> Text:
    whole = model.kind != "incremental_by_time_range"
    parts: list[Text] = []
    for key, word, style in (
        ("failing", "failing", "red"),
        ("held", "held", "magenta"),
        ("suspect", "suspect", "yellow"),
        ("blocked", "blocked", "yellow"),
        ("begun", "claimed", "cyan"),
        ("ready", "ready", "green"),
    ):
        if getattr(model, key):
            text = word if whole and key in ("failing", "suspect", "held") else f"{model.units[key]} {word}"
            parts.append(Text(text, style=style))
    if not parts:
        due = f", next due {boundary(model.next_due, now)}" if model.next_due else ""
        return Text(f"up to date{due}")
    return Text(", ").join(parts)


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
    _wrapped(out, _capped(roots, "    "), 4)
    if wait.waiting:
        shown = [f"{model_name(m)} {time_of(t)}" for m, _, t in wait.waiting[:4]]
        more = f" and {counted(len(wait.waiting) - 4, 'more model')}" if len(wait.waiting) > 4 else ""
        _wrapped(out, [_line("    keeps back ", "; ".join(shown), more)], 6)
    for remedy in dict.fromkeys(c.remedy for c in wait.causes if c.remedy):
        _wrapped(out, [_line("    → ", remedy)], 6)


def _wrapped(out: Console, lines: Iterable[Text], indent: int | Text) -> None:
    """Print lines whose continuations stand under their text; an interval is never torn apart."""
    hang = Text(" " * indent) if isinstance(indent, int) else indent
    for line in lines:
        glued = line.copy()
        glued.plain = _INTERVAL.sub(lambda found: found[0].replace(" ", _GLUE), line.plain)
        pieces = glued.wrap(out, max(_NARROWEST, out.width - len(hang))) if len(line) > out.width else [glued]
        for number, piece in enumerate(pieces):
            piece.rstrip()
            piece.plain = piece.plain.replace(_GLUE, " ")
            out.print(Text.assemble(hang, piece) if number else piece, soft_wrap=True)


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
        for cause in found.causes[:_LINES]:
            _tree(out, cause, found)
        if len(found.causes) > _LINES:
            out.print(f"... and {len(found.causes) - _LINES} more")
        _remedies(out, found)
    if found.others:
        out.print()
        _wrapped(out, [_line(f"also due and not as it should be: {time_of(found.others)}")], 2)


def _recorded(row: CoverageRow, now: datetime) -> list[Text]:
    facts = [length(row.duration)] if row.duration is not None else []
    facts += [counted(row.rows, "row")] if row.rows is not None else []
    who = {
        "foreign": "by plain SQLMesh, seen",
        "accepted": "accepted by a person",
    }.get(row.verdict, f"by run {row.run_id}")
    tail = f" ({', '.join(facts)})" if facts else ""
    lines = [_line(f"{row.interval} recorded {who} at {instant(row.committed_at, now)}{tail}")]
    failed = [a for a in row.audits if a.get("count")]
    if failed:
        lines.append(_line("  ", (f"with a warning: {what_failed({'audits': failed})}", "yellow")))
    elif row.audits:
        lines.append(_line(f"  audits passed: {', '.join(sorted({str(a['audit']) for a in row.audits}))}"))
    elif row.verdict == "passed":
        lines.append(_line("  it has no audits"))
    read = f"read its parents up to {row.read_revision}" if row.read_revision else "what it read is not known"
    lines.append(_line((f"  revision {row.revision}, {read}", "dim")))
    return lines


def _tree(out: Console, cause: Cause, found: Why, first: str = "", hang: str = "") -> None:
    """A cause and, indented below it, what it waits for."""
    deeper = "│  " if cause.because else "   "
    _wrapped(out, [_line((first, "dim"), _node(cause, found))], Text(hang + deeper, style="dim"))
    shown = cause.because[:_LINES]
    for inner in shown:
        last = inner is shown[-1] and len(shown) == len(cause.because)
        _tree(out, inner, found, f"{hang}{'└─ ' if last else '├─ '}", f"{hang}{'   ' if last else '│  '}")
    if len(cause.because) > len(shown):
        out.print(Text(f"{hang}└─ ... and {len(cause.because) - len(shown)} more", style="dim"))


def _node(cause: Cause, found: Why) -> Text:
    style = "" if cause.because or cause.above else _STYLES.get(cause.reason, "yellow")
    above = " (what it waits for: see above)" if cause.above else ""
    where = _where(cause.model, cause.project, cause.time, found.project)
    return _line(
        (where, "bold" if style else ""),
        ": ",
        (because_of(cause.reason, cause.detail, found.now), style),
        above,
    )


def _remedies(out: Console, found: Why) -> None:
    out.print()
    for project in found.runs:
        if any(
            root.project == project.project and root.reason in ("late", "missing") for root in found.roots
        ):
            last = f"last {run_of(project.last, found.now)}" if project.last else "it never ran"
            live = run_of(project.live, found.now) if project.live else "no run is live"
            _wrapped(out, [_line(f"{project.project}: {last}; {live}")], 2)
    out.print(_line(("what would end it", "bold")))
    remedies = dict.fromkeys(
        f"{model_name(root.model)}: {root.remedy}" if len(found.roots) > 1 else str(root.remedy)
        for root in found.roots
    )
    _wrapped(out, _capped([_line("  → ", remedy) for remedy in remedies], "  "), 4)


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
    style = {"failed": "red", "lost": "red", "skipped": "yellow"}.get(report.state, "green")
    out.print(
        _line(
            (f"{verb}{number} of {report.project}", "bold"),
            ": ",
            (state, style),
            f" · {report.environment} at {instant(report.now)}",
        )
    )
    if report.error:
        _wrapped(out, [_line("  ", (report.error, "red"))], 4)
    if report.busy is not None:
        busy = report.busy
        _wrapped(out, [_line(
            f"  run {busy.run_id} lives: pid {busy.holder.get('pid')} on {busy.holder.get('host')}, since "
            f"{instant(busy.started_at, report.now)}, its lease until {instant(busy.expires_at, report.now)}"
        )], 4)  # fmt: skip
    _sets(out, "committed", "green", report.committed)
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
        _line("  ", ("unmirrored", "yellow"), f" {model_name(m)} {i}: {p}") for m, i, p in report.unmirrored
    ]
    _wrapped(out, _capped(lines, "  "), 12)
    if waits:
        out.print(_line("  what keeps things back"))
    for wait in waits:
        _wait(out, wait, report.now, report.project)


def _sets(out: Console, word: str, style: str, sets: Mapping[str, IntervalSet]) -> None:
    lines = [
        _line("  ", (f"{word:<10}", style), f"{model_name(name)} {time_of(time)}")
        for name, time in sets.items()
        if time
    ]
    _wrapped(out, _capped(lines, "  "), 12)


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
