"""Charts as pieces of HTML: inline SVG that stretches, labels beside it that do not. Nothing is fetched, nothing runs.

Every text is escaped here. A chart of nothing says so.
"""

from __future__ import annotations

import math
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

COLOURS = 8
"""How many colours a chart has; further series share the last one."""
MOST_LABELS = 6


def number(value: float, places: int = 0) -> str:
    """A number with thin spaces between thousands."""
    return f"{value:,.{places}f}".replace(",", "\u2009")


def columns(
    title: str,
    slots: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    unit: str,
    labels: Sequence[str] | None = None,
    note: str = "",
    show: Callable[[float], str] = number,
) -> str:
    """Stacked columns.

    Args:
        title: What is seen.
        slots: What each column is about, for its tooltip.
        series: A value for each slot, by name; no negative ones.
        unit: Of the values.
        labels: What is written below a column, where there is room; by default `slots`.
        note: A sentence below the title.
        show: Writes a value.
    """
    totals = [sum(values) for values in zip(*series.values(), strict=True)] if series else []
    if not any(totals):
        return _figure(title, note, _empty())
    top, marks = scale(max(totals))
    wide = min(0.8, len(slots) * 0.08)  # a single column need not fill the chart
    drawn = []
    for at, (slot, total) in enumerate(zip(slots, totals, strict=True)):
        said = [f"{name}: {show(values[at])} {unit}" for name, values in series.items() if values[at]]
        if len(said) > 1:
            said.append(f"together: {show(total)} {unit}")
        rects, below = [], 0.0
        for place, values in enumerate(series.values()):
            high = values[at] / top * 100
            if high:
                rects.append(
                    f'<rect class="{_colour(place)}" x="{at + 0.5 - wide / 2:.2f}" y="{100 - below - high:.2f}" width="{wide:.2f}" height="{high:.2f}"/>'
                )
                below += high
        tip = escape("\n".join([slot, *(said or ["nothing"])]))
        drawn.append(
            f'<g><title>{tip}</title><rect class="hit" x="{at}" y="0" width="1" height="100"/>{"".join(rects)}</g>'
        )
    plot = _plot(title, drawn, len(slots), marks, labels or slots, show)
    return _figure(title, note, plot, _legend(list(series)), unit)


def lines(
    title: str,
    slots: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    unit: str,
    labels: Sequence[str] | None = None,
    note: str = "",
    show: Callable[[float], str] = number,
) -> str:
    """Lines; None is a gap. Arguments as in `columns`."""
    known = [value for values in series.values() for value in values if value is not None]
    if not known:
        return _figure(title, note, _empty())
    top, marks = scale(max(known))
    drawn = []
    for place, values in enumerate(series.values()):
        spot = [
            (at + 0.5, 100 - value / top * 100) if value is not None else None
            for at, value in enumerate(values)
        ]
        for there, group in groupby(spot, key=lambda point: point is not None):
            points = [point for point in group if point is not None]
            if there:
                way = " L".join(f"{x:.2f} {y:.2f}" for x, y in points)
                # A line of no length with round ends is a dot, whatever the picture is stretched to.
                dots = "".join(f"M{x:.2f} {y:.2f}h0" for x, y in points) if len(slots) <= 48 else ""
                drawn.append(
                    f'<path class="line {_colour(place)}" d="M{way}"/><path class="dot {_colour(place)}" d="{dots}"/>'
                )
    for at, slot in enumerate(slots):
        said = [
            f"{name}: {show(value)} {unit}"
            for name, values in series.items()
            if (value := values[at]) is not None
        ]
        drawn.append(
            f'<rect class="hit" x="{at}" y="0" width="1" height="100"><title>{escape(chr(10).join([slot, *said]))}</title></rect>'
        )
    plot = _plot(title, drawn, len(slots), marks, labels or slots, show)
    return _figure(title, note, plot, _legend(list(series)), unit)


def bars(
    title: str, rows: Sequence[tuple[str, str, float]], *, unit: str, note: str = "", show: Callable[[float], str] = number
) -> str:  # fmt: skip
    """Horizontal bars, one below the other: what each is, a remark, its value."""
    if not any(value for _, _, value in rows):
        return _figure(title, note, _empty())
    top = max(value for _, _, value in rows)
    found = []
    for name, remark, value in rows:
        small = f" <small>{escape(remark)}</small>" if remark else ""
        svg = f'<svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true"><rect class="c0" width="{value / top * 100:.2f}" height="1"/></svg>'
        found.append(f"<tr><th>{escape(name)}{small}</th><td>{svg}</td><td>{show(value)}</td></tr>")
    return _figure(title, note, f'<table class="bars">{"".join(found)}</table>', unit=unit)


def strip(title: str, cells: Sequence[tuple[str, str]]) -> str:
    """A strip of time: for each of equally long pieces its class and its tooltip; neighbours of one class and tooltip are one."""
    drawn, at = [], 0
    for (kind, tip), group in groupby(cells):
        wide = len(list(group))
        if kind:
            drawn.append(
                f'<rect class="{kind}" x="{at}" y="0" width="{wide}" height="1"><title>{escape(tip)}</title></rect>'
            )
        at += wide
    return _svg(title, len(cells), 1, drawn)


def axis(labels: Sequence[tuple[float, str]]) -> str:
    """The labels of a line of time: a share of its width, from 0 to 1, and the text."""
    return '<div class="x">' + "".join(_label(share, text) for share, text in labels) + "</div>"


def scale(largest: float) -> tuple[float, list[float]]:
    """A round number that is no smaller, and the round numbers up to it at which a grid has lines."""
    if largest <= 0:
        return 1.0, [0.0, 1.0]
    rough = largest / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(step * unit for step in (1, 2, 2.5, 5, 10) if step * unit >= rough)
    count = math.ceil(largest / step - 1e-9)
    return step * count, [step * at for at in range(count + 1)]


def _colour(place: int) -> str:
    return f"c{min(place, COLOURS - 1)}"


def _svg(title: str, width: float, height: float, drawn: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'


def _plot(
    title: str,
    drawn: Sequence[str],
    width: int,
    marks: Sequence[float],
    labels: Sequence[str],
    show: Callable[[float], str],
) -> str:
    """What was drawn, on a grid with its labels; the last of the marks is the top."""
    top = marks[-1]
    grid = [f'<path class="grid" d="M0 {100 - mark / top * 100:.2f}h{width}"/>' for mark in marks]
    svg = _svg(title, width, 100, [*grid, *drawn])
    places = [i for i in range(len(labels)) if i % max(1, math.ceil(len(labels) / MOST_LABELS)) == 0]
    below = axis([((at + 0.5) / len(labels), labels[at]) for at in places])
    beside = "".join(
        f'<span style="bottom:{mark / top * 100:.1f}%">{_tick(mark, marks, show)}</span>' for mark in marks
    )
    return f'<div class="plot"><div class="y">{beside}</div><div class="area">{svg}</div>{below}</div>'


def _tick(mark: float, marks: Sequence[float], show: Callable[[float], str]) -> str:
    """Steps of less than one need their places."""
    return show(mark) if all(float(m).is_integer() for m in marks) else f"{mark:g}"


def _label(share: float, text: str) -> str:
    """Centred below its place, but never beyond an end of the line."""
    aside = ";transform:none" if share < 0.02 else ";transform:translateX(-100%)" if share > 0.98 else ""
    return f'<span style="left:{share * 100:.2f}%{aside}">{escape(text)}</span>'


def _legend(names: Sequence[str]) -> str:
    """Which colour is which; a single one needs none."""
    if len(names) < 2:
        return ""
    found = "".join(
        f'<li><i class="{_colour(place)}"></i>{escape(name)}</li>' for place, name in enumerate(names)
    )
    return f'<ul class="legend">{found}</ul>'


def _empty() -> str:
    return '<p class="empty">Nothing yet.</p>'


def _figure(title: str, note: str, body: str, legend: str = "", unit: str = "") -> str:
    of = f" <span>{escape(unit)}</span>" if unit else ""
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<figure><figcaption><b>{escape(title)}</b>{of}{small}</figcaption>{body}{legend}</figure>"
