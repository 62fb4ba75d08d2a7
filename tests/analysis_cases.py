"""Changes of the three projects of `diamond_mesh`; `analysis_cases.txt` has what an analysis must say of each.

There, ranges are in minutes after the mesh's first instant; everything is evaluated up to minute 125, and the analysis is made
at minute 135. A second part is expected where finance has a SQLMesh state of its own, if that makes a difference.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from diamond_mesh import MODELS, by_time, edit, remove, write
from meshgate.graph import name_parts
from tiny_mesh import DAY

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.analysis import Analysis
    from meshgate.interval import IntervalSet

NOW = 135

CUSTOMERS, ORDERS, HISTORY = (
    "crm/models/customers.sql", "sales/models/orders.sql", "sales/models/history.sql",
)  # fmt: skip
REVENUE = "finance/models/revenue.sql"


@frozen
class Case:
    """One change.

    Attributes:
        name: What it is, and where its expectation stands.
        projects: Whose files are given to the analysis.
        change: Changes a copy of the files.
        deploys: Whether it may be deployed as it is.
        book: The file of its expectation.
    """

    name: str
    projects: tuple[str, ...]
    change: Callable[[Path], object]
    deploys: bool = True
    book: str = "analysis_cases.txt"

    def expected(self, *, separate: bool) -> str:
        """What `told` must give."""
        (section,) = (
            part
            for part in (Path(__file__).parent / self.book).read_text().split("\n## ")[1:]
            if part.partition("\n")[0] == self.name
        )
        shared, divided, own = section.partition("\n")[2].partition("### separate state\n")
        return (own if separate and divided else shared).strip()


def _minutes(time: IntervalSet) -> str:
    pieces = [(p.start - DAY, p.end - DAY) for p in time]
    return ",".join("-".join(str(int(end / timedelta(minutes=1))) for end in piece) for piece in pieces)


def _short(name: str) -> str:
    return ".".join(name_parts(name)[-2:])


def told(found: Analysis) -> str:
    """An analysis in lines: changes, work, what is left, order, refusals."""
    lines = []
    for c in found.changes:
        facts = [d.what + (f":{d.name}" if d.name else "") for d in c.differences]
        facts += [f"<{_short(r.parent)}.{d.name}" for r in c.reasons for d in r.columns]
        category = f" {c.category}" if c.category else ""
        lines.append(
            f"{_short(c.model)} {c.how}{category}{' forward' if c.forward_only else ''} {' '.join(facts)}".rstrip()
        )
    for w in found.work:
        ready = "" if w.ready == w.range else f" ready {_minutes(w.ready)}"
        again = " again" if w.again else ""
        lines.append(f"+ {_short(w.model)} {w.why} {w.by}:{w.doer} {_minutes(w.range)}{ready}{again}")
    lines += [f"- {_short(one.model)} {one.reason} {_minutes(one.range)}" for one in found.left]
    if found.order.state != "any":
        musts = sorted({f"{p.first}<{p.then}" for p in found.order.precedences})
        lines.append(f"order {found.order.state}: {' '.join(found.order.projects)} ({', '.join(musts)})")
    lines += [f"? {warning}" for warning in found.warnings]
    lines += [f"! {r.what} {_short(r.model) if r.model else r.project}" for r in found.refusals]
    return "\n".join(lines).strip()


def _rename_model(root: Path) -> None:
    text = (root / CUSTOMERS).read_text()
    remove(root, CUSTOMERS)
    write(root, "crm/models/people.sql", text.replace("crm.customers", "crm.people"))
    edit(root, ORDERS, ("crm.customers", "crm.people"))
    edit(root, REVENUE, ("crm.customers", "crm.people"))


def _rename_column(root: Path) -> None:
    edit(root, CUSTOMERS, ("AS score", "AS points"))
    edit(root, ORDERS, ("score::BIGINT", "points::BIGINT"))
    edit(root, REVENUE, ("c.score", "c.points"))


def _drop_by_country(root: Path) -> None:
    remove(root, "sales/models/by_country.sql")
    edit(root, ORDERS, (" country_id::INT AS country_id,", ""))


def _read_new_column(root: Path) -> None:
    edit(root, CUSTOMERS, ("AS score", "AS score, 7::INT AS region"))
    edit(root, ORDERS, ("AS amount", "AS amount, region::INT AS region"))


def _stop_reading(root: Path) -> None:
    edit(root, REVENUE, ("SUM(c.score)", "COUNT(c.id)"))
    edit(root, ORDERS, ("score::BIGINT", "id::BIGINT"))
    edit(root, CUSTOMERS, (", @doubled(value)::BIGINT AS score", ""))


def _move_model(root: Path) -> None:
    remove(root, "sales/models/by_country.sql")
    write(root, "finance/models/by_country.sql", MODELS["sales/models/by_country.sql"])


CASES = (
    Case("nothing", ("crm", "sales", "finance"), lambda _: None),
    Case(
        "breaking, far upstream", ("crm",),
        lambda root: edit(root, CUSTOMERS, ("(id % 3)", "(id % 4)")),
    ),
    Case(
        "non-breaking: an added column", ("crm",),
        lambda root: edit(root, CUSTOMERS, ("AS score", "AS score, 7::INT AS region")),
    ),
    Case(
        "a removed column that another project reads", ("crm",),
        lambda root: edit(root, CUSTOMERS, (" (id % 3)::INT AS country_id,", "")),
        deploys=False,
    ),
    Case("a removed model and column that nobody else reads", ("sales",), _drop_by_country),
    Case("a renamed model, its readers with it", ("crm", "sales", "finance"), _rename_model, deploys=False),
    Case("a renamed column, its readers with it", ("crm", "sales", "finance"), _rename_column, deploys=False),
    Case(
        "a new boundary", ("finance",),
        lambda root: write(
            root, "finance/models/scores.sql",
            by_time("finance.scores", "@hourly", "SELECT id::BIGINT AS id, ts::TIMESTAMP AS ts, score::BIGINT AS score FROM crm.customers WHERE ts >= @start_dt AND ts < @end_dt"),
        ),
    ),
    Case("a slower cron", ("sales",), lambda root: edit(root, ORDERS, ("*/15 * * * *", "@hourly"))),
    Case(
        "an earlier start", ("crm",),
        lambda root: edit(root, CUSTOMERS, ("owner anna", "owner anna, start '2026-01-04 23:00:00'")),
    ),
    Case("forward-only", ("sales",), lambda root: edit(root, HISTORY, ("amount::BIGINT AS", "(amount + 1)::BIGINT AS"))),
    Case(
        "a macro", ("crm",), lambda root: edit(root, "crm/macros/doubled.py", ("* 2)", "* 3)")),
    ),
    Case("an audit", ("finance",), lambda root: edit(root, REVENUE, ("not_null", "positive, not_null"))),
    Case(
        "another kind", ("finance",),
        lambda root: edit(root, REVENUE, ("INCREMENTAL_BY_TIME_RANGE (time_column hour, partition_by_time_column FALSE)", "INCREMENTAL_BY_UNIQUE_KEY (unique_key hour)")),
    ),
    Case("a seed", ("crm",), lambda root: edit(root, "crm/seeds/countries.csv", ("DE,19", "DE,16"))),
    Case("a removed model that other projects read", ("crm",), lambda root: remove(root, CUSTOMERS), deploys=False),
    Case("two projects: a new column and who reads it", ("crm", "sales"), _read_new_column),
    Case("three projects: a column goes, and nobody reads it any more", ("crm", "sales", "finance"), _stop_reading),
    Case(
        "another type", ("sales",), lambda root: edit(root, ORDERS, ("score::BIGINT AS amount", "score::INT AS amount")),
    ),
    Case("a model that moves to another project", ("sales", "finance"), _move_model, deploys=False),
    Case("a column that is not there", ("sales",), lambda root: edit(root, ORDERS, ("score::BIGINT AS amount", "points::BIGINT AS amount")), deploys=False),
    Case(
        "a model of a checkout that is missing", ("finance",),
        lambda root: write(root, "finance/models/returned.sql", "MODEL (name finance.returned, kind FULL, cron '@hourly');\nSELECT id::BIGINT AS id FROM crm.returns\n"),
    ),
    Case(
        "a description", ("sales",), lambda root: edit(root, ORDERS, ("owner bert", "owner bert, description 'Orders.'")),
    ),
)  # fmt: skip
