"""The part of the page that tells how the tables came to be."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from html import escape
from statistics import median
from typing import TYPE_CHECKING

from dashboard import charts
from dashboard.timeline import WHY, Again, Incident, Lane, RunMark, Timeline
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet
from meshgate.report.wording import because_of, model_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshgate.coordinator.status import Wait

MOST_CELLS = 900
"""How many pieces a strip of time has at most: about one for each pixel."""
MOST_SHOWN = 60
STEP = timedelta(minutes=5)
KINDS = {
    "failed": "something failed", "lost": "died", "deploy": "new definitions were deployed", "waited": "what was due had to wait",
    "worked": "did what was due", "idle": "nothing was due",
}  # fmt: skip
"""What a run comes to, the worst first."""
STATES = {
    "failed": "failed when it was tried last", "accepted": "failed, and a person took it as it is", "again": "computed more than once",
    "once": "computed once", "": "not there",
}  # fmt: skip
"""What a piece of a table's time comes to, the most remarkable first."""


def section(past: Timeline, waiting: str) -> str:
    """Runs and tables over time, what was computed again and why, and what else happened."""
    if past.span is None:
        return (
            '<section><h2>How the tables came to be</h2><p class="empty">Nothing has run yet.</p></section>'
        )
    grid = _grid(past.span)
    forgotten = "" if past.complete else "<p>The beginning of this history is no longer remembered.</p>"
    return f"""
<section><h2>How the tables came to be</h2>
<p class="lead">Each table is computed piece by piece: five minutes, an hour or a day of it at a time. A piece is computed when everything that it reads
is there; if something that it had read changes later, exactly that piece is computed again. Each run finds out by itself what is due.</p>{forgotten}
<div class="card"><h3>The runs of each project</h3>{_legend(KINDS)}{_axis(grid)}{"".join(_runs(name, runs, grid) for name, runs in past.runs.items())}</div>
<div class="card"><h3>The tables: which of their time is there</h3>{_legend(STATES)}{_axis(grid)}{"".join(_lanes(past.lanes, grid))}{_axis(grid)}</div>
{_reasons(past)}{_incidents(past.incidents)}{waiting}</section>"""


def instant(value: datetime) -> str:
    """An instant for people; what has no time zone is UTC already."""
    value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return f"{value.day} {value:%b %Y, %H:%M}"


def waiting(waits: Sequence[Wait]) -> str:
    """What does not move, from its root on: what a person would be told."""
    if not waits:
        return (
            '<div class="card"><h3>What waits at the end</h3><p>Nothing: all that was due is there.</p></div>'
        )
    rows = []
    for wait in waits:
        for cause in wait.causes:
            behind = ", ".join(sorted({model_name(model) for model, _, _ in wait.waiting})) or "nothing else"
            rows.append(
                f"<tr><td><code>{escape(model_name(cause.model))}</code> {_times(cause.time)}</td><td>{escape(because_of(cause.reason, cause.detail))}</td>"
                f"<td>{escape(behind)}</td></tr>"
            )
    head = "<tr><th>What</th><th>Why</th><th>What waits for it</th></tr>"
    return f'<div class="card"><h3>What waits at the end</h3><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


# -- strips


def _grid(span: Interval) -> tuple[datetime, timedelta, int]:
    """Where the strips begin, how long a cell is, and how many there are."""
    step = STEP
    while (span.end - span.start) / step > MOST_CELLS:
        step *= 2
    return span.start, step, max(1, -((span.start - span.end) // step))


def _axis(grid: tuple[datetime, timedelta, int]) -> str:
    start, step, count = grid
    length = step * count
    between = next(
        timedelta(hours=h)
        for h in (1, 2, 3, 6, 12, 24, 48, 96, 240, 480, 4800)
        if length / timedelta(hours=h) <= charts.MOST_LABELS + 2
    )
    day = start.replace(hour=0, minute=0, second=0, microsecond=0)
    at = day + between * -((day - start) // between)
    found = []
    while at <= start + length:
        found.append(((at - start) / length, f"{at.day} {at:%b}" if not at.hour else f"{at:%H:%M}"))
        at += between
    return f'<div class="lane"><span></span>{charts.axis(found)}<span></span></div>'


def _legend(kinds: dict[str, str]) -> str:
    return (
        '<ul class="legend">'
        + "".join(f'<li><i class="{k or "blank"}"></i>{escape(t)}</li>' for k, t in kinds.items())
        + "</ul>"
    )


def _runs(project: str, runs: Sequence[RunMark], grid: tuple[datetime, timedelta, int]) -> str:
    start, step, count = grid
    cells: list[Counter[str]] = [Counter() for _ in range(count)]
    for run in runs:
        # A run stands for what was over at its instant.
        at = min(max(int((run.at - start) / step) - (run.at > start), 0), count - 1)
        cells[at][run.kind] += 1
    drawn = []
    for at, met in enumerate(cells):
        kind = next((k for k in KINDS if met[k]), "")
        said = "; ".join(f"{_times_over(met[k])}{KINDS[k]}" for k in KINDS if met[k])
        drawn.append((kind, f"{instant(start + step * (at + 1))}: {said}" if kind else ""))
    took = [run.took.total_seconds() for run in runs if run.took is not None and run.kind != "deploy"]
    speed = f", each {median(took):.1f} s of real time (median)" if took else ""
    failed = sum(run.kind in ("failed", "lost") for run in runs)
    note = f"{charts.number(len(runs))} run{'' if len(runs) == 1 else 's'}{speed}{f', {failed} with a failure' if failed else ''}"
    return f'<div class="lane"><b>{escape(project)}</b>{charts.strip(f"Runs of {project}", drawn)}<small>{note}</small></div>'


def _times_over(count: int) -> str:
    return "" if count == 1 else f"{count} runs: "


def _lanes(lanes: Sequence[Lane], grid: tuple[datetime, timedelta, int]) -> Iterable[str]:
    """Project by project and schema by schema, in the order in which the first of each is computed."""
    projects = list(dict.fromkeys(lane.project for lane in lanes))
    schemas = list(dict.fromkeys(_schema(lane) for lane in lanes))
    for project in projects:
        yield f"<h3>{escape(project)}</h3>"
        own = [lane for lane in lanes if lane.project == project]
        for lane in sorted(own, key=lambda lane: schemas.index(_schema(lane))):
            yield _lane(lane, grid)


def _schema(lane: Lane) -> str:
    return model_name(lane.model).partition(".")[0]


def _lane(lane: Lane, grid: tuple[datetime, timedelta, int]) -> str:
    start, step, count = grid
    cells: list[tuple[str, str]] = [("", "")] * count

    def paint(time: Interval, kind: str, tip: str) -> None:
        low = max(0, int((max(time.start, start) - start) / step))
        high = min(count, -((start - min(time.end, start + step * count)) // step))
        cells[low:high] = [(kind, tip)] * max(0, high - low)

    if lane.kind == "seed" and lane.covered:
        cells = [("once", "loaded")] * count
    for _, time in lane.first:
        paint(time, "once", "computed once")
    for one in lane.again:
        paint(one.time, "again", f"{_span(one.time)}: computed again at {instant(one.at)}: {one.cause}")
    for time in lane.accepted:
        paint(time, "accepted", f"{_span(time)}: failed, and a person took it as it is")
    for time in lane.failing:
        paint(time, "failed", f"{_span(time)}: failed when it was tried last")
    name = model_name(lane.model)
    strip = charts.strip(f"Which time of {name} is there", cells)
    return f'<div class="lane"><code>{escape(name)}</code>{strip}<small>{_counts(lane, start)}</small></div>'


def _counts(lane: Lane, since: datetime) -> str:
    if not lane.covered:
        return "nothing yet"
    if lane.kind == "seed":
        return "a file, loaded once"
    unit = {"five_minute": "5 min", "quarter_hour": "15 min", "half_hour": "30 min"}.get(
        lane.node.unit.value, lane.node.unit.value
    )
    again = f", {charts.number(lane.repeated)} again" if lane.repeated else ""
    said = f"{charts.number(lane.evaluated)} x {unit}{again}"
    if lane.covered.last and lane.covered.last.end <= since:
        said += f", up to {instant(lane.covered.last.end)}"
    if lane.delays:
        usual, worst = sorted(lane.delays)[len(lane.delays) // 2], max(lane.delays)
        late = "at once" if not usual else f"{_length(usual)} later"
        said += f"; there {late}" + (f", at the latest {_length(worst)}" if worst > usual else "")
    return said


# -- tables


def _reasons(past: Timeline) -> str:
    reasons = past.reasons
    if not reasons:
        return '<div class="card"><h3>What was computed again</h3><p>Nothing: no table changed after it had been read.</p></div>'
    rows = []
    for why, count in reasons.most_common():
        models: Counter[str] = Counter()
        for lane in past.lanes:
            for one in lane.again:
                if one.why == why:
                    models[model_name(lane.model)] += lane.node.unit.count(IntervalSet([one.time]))
        named = ", ".join(f"<code>{escape(m)}</code> {charts.number(n)}" for m, n in models.most_common())
        rows.append(
            f'<tr><td>{escape(WHY[why])}</td><td class="n">{charts.number(count)}</td><td>{named}</td></tr>'
        )
    again = sorted((one for lane in past.lanes for one in lane.again), key=lambda one: one.at)
    return (
        '<div class="card"><h3>What was computed again, and why</h3><table><thead><tr><th>Because</th><th class="n">Pieces</th><th>Tables, and pieces of each'
        f"</th></tr></thead><tbody>{''.join(rows)}</tbody></table>{_each(again)}</div>"
    )


def _each(again: Sequence[Again]) -> str:
    groups: dict[tuple[datetime, str, str], list[Again]] = {}
    for one in again:
        groups.setdefault((one.at, one.model, one.cause), []).append(one)
    shown = list(groups.items())[-MOST_SHOWN:]
    rows = [
        f'<tr><td class="when">{instant(at)}</td><td><code>{escape(model_name(model))}</code></td><td>{_times(IntervalSet(o.time for o in ones))}</td>'
        f"<td>{escape(cause)}{' (and it was what it had been)' if all(o.same for o in ones) else ''}</td></tr>"
        for (at, model, cause), ones in shown
    ]
    which = (
        "Each of them"
        if len(shown) == len(groups)
        else f"The last {len(shown)} of {charts.number(len(groups))}"
    )
    head = "<tr><th>At</th><th>Table</th><th>Which time of it</th><th>Because</th></tr>"
    return f"<details><summary>{which}</summary><table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></details>"


def _incidents(incidents: Sequence[Incident]) -> str:
    if not incidents:
        return '<div class="card"><h3>What else happened</h3><p>Nothing: no failure, no hold, nobody wrote beside the two projects.</p></div>'
    groups: dict[tuple[str, str, Interval | None, str], list[Incident]] = {}
    for one in incidents:
        groups.setdefault((one.kind, one.model, one.time, one.text), []).append(one)
    rows = []
    for (_, model, time, text), ones in list(groups.items())[:MOST_SHOWN]:
        until = f" to {instant(ones[-1].at)}, {len(ones)} times" if len(ones) > 1 else ""
        what = f"<code>{escape(model_name(model))}</code> " if model else ""
        rows.append(
            f'<tr><td class="when">{instant(ones[0].at)}{until}</td><td>{what}{_times(time) if time else ""}</td><td>{escape(text)}</td></tr>'
        )
    more = f"<p>... and {len(groups) - MOST_SHOWN} more.</p>" if len(groups) > MOST_SHOWN else ""
    head = "<tr><th>When</th><th>What</th><th>What happened</th></tr>"
    return f'<div class="card"><h3>What else happened</h3><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>{more}</div>'


def _times(time: IntervalSet | Interval) -> str:
    pieces = [time] if isinstance(time, Interval) else list(time)
    if len(pieces) > 3:
        return escape(f"{len(pieces)} stretches from {_span(Interval(pieces[0].start, pieces[-1].end))}")
    return escape(", ".join(map(_span, pieces)))


def _span(time: Interval) -> str:
    if time.start == MIN_INSTANT and time.end == MAX_INSTANT:
        return "all of it"
    if time.end == MAX_INSTANT:
        return f"from {instant(time.start)} on"
    if time.start == MIN_INSTANT:
        return f"up to {instant(time.end)}"
    same = time.start.date() == time.end.date()
    return (
        f"{instant(time.start)} to {time.end:%H:%M}"
        if same
        else f"{instant(time.start)} to {instant(time.end)}"
    )


def _length(value: timedelta) -> str:
    minutes = int(value.total_seconds() // 60)
    if minutes < 120:
        return f"{minutes} min"
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes < 2880
        else f"{minutes // 1440} days {minutes % 1440 // 60} h"
    )
