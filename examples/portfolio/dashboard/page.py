"""The page that `make demo` ends with: the shop's dashboard, and how its tables came to be, in one file of HTML.

    python lakehouse.py -- python -m dashboard.page [FOLDER]

It shows the datasets of the Databricks dashboard, run on this machine, and the mesh's history. It needs no network, and no script.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from dashboard import charts, datasets, history, timeline
from meshgate.db import redact
from meshgate.errors import MeshgateError, NotDeployedError
from meshgate.mesh import Mesh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from lakehouse import Lakehouse

HERE = Path(__file__).resolve().parent
FEW_HOURS = 96
"""More hours than that are shown by the day."""
MOST_ITEMS = 10

Rows = list[dict[str, Any]]


def write(lakehouse: Lakehouse, folder: Path) -> Path:
    """Write the page; its file.

    Args:
        lakehouse: Where the tables and the ledger are; both projects are deployed there.
        folder: Where `index.html` is put; made if it is missing.

    Raises:
        meshgate.errors.NotDeployedError: Nothing was deployed, or not both projects.
        meshgate.errors.MeshgateError: There is no ledger yet, or it cannot be read.
    """
    with _variables(lakehouse.environment()), Mesh.open(HERE.parent) as mesh:
        past = timeline.read(mesh)
        waits = mesh.status(now=past.span.end).waits if past.span else ()
    try:
        with datasets.connect(lakehouse) as connection:
            # The runs it has from the ledger itself, with all the rest of the history.
            found = {name: datasets.rows(connection, name) for name in datasets.names() if name != "runs"}
    except duckdb.CatalogException as error:
        # Not the error itself: it quotes the statement, and where the lake is.
        missing = re.search(r"Table with name \S+", str(error))
        raise NotDeployedError(
            f"the page cannot be written: {missing[0] if missing else 'a table'} is not there yet",
            hint="deploy both projects first: `python lakehouse.py -- meshgate deploy upstream`, and downstream",
        ) from None
    except duckdb.Error as error:
        raise MeshgateError(f"the lake cannot be read: {redact(str(error)).splitlines()[0]}") from None
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.resolve() / "index.html"
    file.write_text(html(found, past, history.waiting(waits)), encoding="utf-8")
    return file


def html(found: Mapping[str, Rows], past: timeline.Timeline, waiting: str = "") -> str:
    """The page's text.

    Args:
        found: The rows of each dataset.
        past: The mesh's history.
        waiting: What does not move at the end, as HTML.
    """
    span = past.span
    when = (
        f"From {history.instant(span.start)} to {history.instant(span.end)}, UTC"
        if span
        else "Nothing has been computed yet"
    )
    body = f"""
<h1>A shop's sales, and how its tables came to be</h1>
<p class="lead">{when}. The shop is made up, and its time is simulated. Its tills write into a database; one project turns that into clean
tables every five minutes, another one makes reports of them every hour. All times on this page are UTC; all amounts are in euro.</p>
<section><h2>What was sold</h2>{_tiles(found)}<div class="charts">{"".join(_sales(found))}</div></section>
<section><h2>Is it fresh, and is it whole?</h2>
<p class="lead">Tills lose their connection, send receipts twice, or leave something out. What comes late is put where it belongs; what cannot be used is
left out, and kept apart with the reason.</p><div class="charts">{"".join(_pipeline(found))}</div></section>
{history.section(past, waiting)}
"""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>A shop's sales, and how its tables came to be</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while: meshgate.yaml reads them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# -- what was sold


def _tiles(found: Mapping[str, Rows]) -> str:
    known = found["customers_ever"]
    tiles = [
        (_euro(_sum(found["stores"], "revenue_eur")), "sold, in euro; returns are not taken off"),
        (charts.number(_sum(found["stores"], "receipts")), "receipts"),
        (
            charts.number(known[0]["customers"] or 0) if known else "0",
            "different customers who said their name (estimated)",
        ),
        (_euro(_sum(found["returns"], "refunded_eur")), "given back, in euro"),
    ]
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{b}</b><span>{escape(s)}</span></div>" for b, s in tiles)
        + "</div>"
    )


def _sales(found: Mapping[str, Rows]) -> Iterator[str]:
    sales = found["sales"]
    by_category = _over_time(sales, "sale_hour", "category", "revenue_eur")
    yield _wide(
        charts.columns(
            f"Sales per {by_category.unit}, by category", **by_category.arguments, unit="EUR", show=_euro
        )
    )
    stores = _grouped(found["stores"], ("store", "city", "store_country"), "revenue_eur")
    yield charts.bars(
        "Sales by store",
        [(_name(s), ", ".join(str(part) for part in place if part), v) for (s, *place), v in stores],
        unit="EUR",
        show=_euro,
    )
    items = _grouped(found["items"], ("item", "category"), "revenue_eur")[:MOST_ITEMS]
    yield charts.bars(
        "The items that sold best",
        [(_name(item), _name(category), v) for (item, category), v in items],
        unit="EUR",
        show=_euro,
    )
    days = sorted({row["sale_date"] for row in found["customers"]})
    countries = sorted({_name(row["country"]) for row in found["customers"]} - {"all"})
    seen = {
        (row["sale_date"], _name(row["country"])): float(row["customers"] or 0) for row in found["customers"]
    }
    counted = {
        ("all stores" if c == "all" else c): [seen.get((day, c)) for day in days] for c in ("all", *countries)
    }
    note = "Estimated from sketches, a kilobyte or so for each hour: whoever buys on two days, or in two countries, counts once in each sum. The last day may not be over."
    draw: Callable[..., str] = charts.lines
    if len(days) == 1:
        rows = [(name, "", values[0] or 0.0) for name, values in counted.items()]
        yield charts.bars(
            f"Different customers on {_day(days[0])}, by country of the store",
            rows,
            unit="customers",
            note=note,
        )
    else:
        yield draw(
            "Different customers a day, by country of the store",
            [_day(d) for d in days],
            counted,
            unit="customers",
            note=note,
        )
    back = _over_time(found["returns"], "refund_hour", "reason", "refunded_eur")
    yield charts.columns(
        f"Money given back per {back.unit}, by reason", **back.arguments, unit="EUR", show=_euro
    )
    assortment = sorted(found["assortment"], key=lambda row: row["sale_date"])
    sold = {
        "sold": [row["items_sold"] for row in assortment],
        "did not sell": [row["items"] - row["items_sold"] for row in assortment],
    }
    yield _wide(
        charts.columns(
            "Items for sale on each day",
            [_day(row["sale_date"]) for row in assortment],
            sold,
            unit="items",
            note="Counted when the day is over.",
        )
    )


# -- how fresh, how whole


def _pipeline(found: Mapping[str, Rows]) -> Iterator[str]:
    rows = "".join(
        f"<tr><td>{escape(row['what'])}<br><code>{escape(row['table_name'])}</code></td>"
        f'<td class="when">{history.instant(row["newest"]) if row["newest"] else "nothing yet"}</td>'
        f'<td class="n">{charts.number(row["minutes_behind"]) + " min" if row["minutes_behind"] is not None else "-"}</td></tr>'
        for row in found["freshness"]
    )
    tick = next((row["last_tick"] for row in found["freshness"] if row["last_tick"]), None)
    last = f" when the last receipts were fetched, at {history.instant(tick)}" if tick else ""
    yield _wide(
        f'<figure><figcaption><b>How old the newest row of each table was{escape(last)}</b></figcaption><div class="card" style="border:0;padding:0;margin:0">'
        f"<table><thead><tr><th>Table</th><th>Newest sale in it</th><th>Age</th></tr></thead><tbody>{rows}</tbody></table></div></figure>"
    )
    came = _over_time(_pair(found["lateness"], "sale_hour", {"in_time": "within five minutes", "late": "later"}), "sale_hour", "name", "value",
                      order=("within five minutes", "later"))  # fmt: skip
    yield charts.columns(
        f"Receipts per {came.unit}, by whether they came in time",
        **came.arguments,
        unit="receipts",
        note="By the hour of the sale.",
    )
    late = _over_time(found["lateness"], "sale_hour", None, "latest_minutes", largest=True)
    yield charts.lines(
        f"The longest that a receipt of each {late.unit} was on its way",
        **late.arguments,
        unit="minutes",
        note="By the hour of the sale.",
    )
    arrived = _over_time(_pair(found["arrivals"], "arrival_hour", {"receipts": "new receipts", "changes": "changes of earlier ones"}), "arrival_hour", "name",
                         "value", order=("new receipts", "changes of earlier ones"))  # fmt: skip
    yield charts.columns(
        f"What reached the pipeline, per {arrived.unit}",
        **arrived.arguments,
        unit="receipts",
        note="By the hour of arrival, as it was seen then.",
    )
    left = _over_time(found["rejected"], "sale_hour", "reason", "lines")
    yield charts.columns(
        f"Receipt lines left out per {left.unit}, by reason",
        **left.arguments,
        unit="lines",
        note="By the hour of the sale.",
    )


# -- rows to charts


class _Over:
    """Series over hours, or over days where there are too many hours."""

    def __init__(
        self, unit: str, slots: list[str], labels: list[str], series: dict[str, list[float]]
    ) -> None:
        self.unit = unit
        self.arguments: dict[str, Any] = {"slots": slots, "labels": labels, "series": series}


def _over_time(
    rows: Rows, time: str, name: str | None, value: str, *, order: Iterable[str] = (), largest: bool = False
) -> _Over:
    """Values by hour or day and name; `largest`: of several the largest, not their sum. The largest series comes first."""
    hours = [row[time] for row in rows]
    if not hours:
        return _Over("hour", [], [], {})
    first, last = min(hours), max(hours)
    by_day = (last - first) >= timedelta(hours=FEW_HOURS)
    step = timedelta(days=1) if by_day else timedelta(hours=1)
    start = first.replace(hour=0) if by_day else first
    count = int((last - start) / step) + 1
    series: dict[str, list[float]] = {str(n): [0.0] * count for n in order}
    for row in rows:
        values = series.setdefault(_name(row[name]) if name else "", [0.0] * count)
        at, new = int((row[time] - start) / step), float(row[value] or 0)
        values[at] = max(values[at], new) if largest else values[at] + new
    if not order:
        series = dict(sorted(series.items(), key=lambda one: -sum(one[1])))
    times = [start + step * at for at in range(count)]
    slots = [_day(t) if by_day else f"{_day(t)} {t:%H:%M}-{t + step:%H:%M}" for t in times]
    labels = [_short_day(t) if by_day or not t.hour else f"{t:%H:%M}" for t in times]
    return _Over("day" if by_day else "hour", slots, labels, series)


def _pair(rows: Rows, time: str, names: Mapping[str, str]) -> Rows:
    """Columns as rows."""
    return [
        {time: row[time], "name": shown, "value": row[column]}
        for row in rows
        for column, shown in names.items()
    ]


def _grouped(rows: Rows, keys: tuple[str, ...], value: str) -> list[tuple[tuple[Any, ...], float]]:
    found: dict[tuple[Any, ...], float] = {}
    for row in rows:
        key = tuple(row[k] for k in keys)
        found[key] = found.get(key, 0.0) + float(row[value] or 0)
    return sorted(found.items(), key=lambda one: (-one[1], str(one[0])))


def _name(value: Any) -> str:
    return str(value or "unknown")


def _sum(rows: Rows, value: str) -> float:
    return sum(float(row[value] or 0) for row in rows)


def _euro(value: float) -> str:
    return charts.number(value)


def _day(value: date | datetime) -> str:
    return f"{value:%a} {value.day} {value:%b %Y}"


def _short_day(value: date | datetime) -> str:
    return f"{value.day} {value:%b}"


def _wide(figure: str) -> str:
    return figure.replace("<figure>", '<figure class="wide">', 1)


if __name__ == "__main__":
    from lakehouse import Lakehouse

    try:
        with Lakehouse.start() as started:
            folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / ".meshgate" / "page"
            sys.stdout.write(f"{write(started, folder)}\n")
    except MeshgateError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
