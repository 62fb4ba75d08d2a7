"""The portfolio's dashboards: their datasets are right on the local engine, and what they show of the mesh is what happened."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlglot import exp, parse_one

from meshgate.interval import IntervalSet
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshgate.local_postgres import LocalPostgres

duckdb = pytest.importorskip("duckdb", reason="needs meshgate[local]")
PORTFOLIO = Path(__file__).resolve().parents[1] / "examples" / "portfolio"
sys.path.insert(0, str(PORTFOLIO))

import source  # noqa: E402
from dashboard import build, charts, datasets, history, page, timeline  # noqa: E402
from expectation import Expectation, Source, may_be_missing  # noqa: E402
from lakehouse import Lakehouse  # noqa: E402

from meshgate.errors import NotDeployedError  # noqa: E402
from meshgate.mesh import Mesh  # noqa: E402

NAMES = datasets.names()
BUILT_AT = source.BEGINNING + timedelta(
    hours=1, minutes=55
)  # over an hour ago: what is stale is not too fresh to be made anew
END = source.BEGINNING + timedelta(hours=3)
RATE = 600  # few buy at night
FAULTS = ("late=0.3", "duplicates=0.05", "nulls=0.05", "negative", "orphans", "late_items")
VOID = {"meta", "br"}
SHAPES = {"rect", "path"}


class Page(HTMLParser):
    """Reads a page: whether its tags close, what it refers to, what it says."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.references: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._seen(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES
        self._seen(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.said.append(data)

    def _seen(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.references += [
            f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "xlink:href", "action", "data")
        ]
        self.references += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]


def sound(text: str) -> Page:
    """A page that closes what it opens, and needs nothing but itself."""
    found = Page(text)
    assert found.open == []
    assert found.references == []
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(found.tags)
    assert not re.search(r"url\(|@import|https?:|//\w", text)
    return found


# -- the definition for Databricks


def test_what_is_committed_is_what_the_command_makes() -> None:
    """`python -m dashboard.build` would change nothing."""
    assert build.FILE.read_text(encoding="utf-8") == build.written()


def queries() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each widget with each of its queries."""
    for one in build.dashboard()["pages"]:
        for placed in one["layout"]:
            for query in placed["widget"].get("queries", ()):
                yield placed["widget"], query


def test_a_widget_asks_only_for_what_its_dataset_has() -> None:
    """Its fields are made of the dataset's columns, its encodings name its fields, and no dataset is there for nothing."""
    has = {name: set(parse_one(datasets.text(name), dialect="databricks").named_selects) for name in NAMES}
    used = set()
    for widget, query in queries():
        asked = query["query"]
        used.add(asked["datasetName"])
        fields = {field["name"] for field in asked["fields"]}
        for field in asked["fields"]:
            columns = set(re.findall(r"`(\w+)`", field["expression"])) - {
                "associative_filter_predicate_group"
            }
            assert columns <= has[asked["datasetName"]], (widget["name"], field)
        for name, encoding in widget["spec"]["encodings"].items():
            for one in encoding if isinstance(encoding, list) else [encoding]:
                if one.get("queryName", query["name"]) == query["name"]:
                    assert one["fieldName"] in fields, (widget["name"], name)
    assert used == set(NAMES)


def test_widgets_do_not_overlap() -> None:
    """Each has its own place on the canvas, and its own name."""
    for one in build.dashboard()["pages"]:
        taken = Counter(
            (x, y)
            for p in (placed["position"] for placed in one["layout"])
            for x in range(p["x"], p["x"] + p["width"])
            for y in range(p["y"], p["y"] + p["height"])
        )
        assert set(taken.values()) == {1}
        assert max(x for x, _ in taken) < build.WIDTH
        assert len({placed["widget"]["name"] for placed in one["layout"]}) == len(one["layout"])


def test_databricks_own_library_reads_it() -> None:
    """databricks-labs-lsql knows every part of it. It pins another sqlglot than SQLMesh does, but this part of it needs none."""
    lakeview = pytest.importorskip(
        "databricks.labs.lsql.lakeview",
        reason="needs `pip install --no-deps databricks-labs-lsql`, and databricks-sdk",
    )
    read = lakeview.Dashboard.from_dict(json.loads(build.FILE.read_text(encoding="utf-8")))
    again = read.as_dict()
    assert [d["query"] for d in again["datasets"]] == [datasets.text(name) for name in NAMES]
    for ours, theirs in zip(build.dashboard()["pages"], again["pages"], strict=True):
        assert ours["layout"] == theirs["layout"]


@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_names_its_tables_and_columns(name: str) -> None:
    """It parses in Databricks' dialect, has a title, and names tables by schema: the catalog is that of the dashboard."""
    query = parse_one(datasets.text(name), dialect="databricks")
    assert datasets.title(name)
    assert not any(select.is_star for select in query.find_all(exp.Select))
    ctes = {cte.alias for cte in query.find_all(exp.CTE)}
    for table in query.find_all(exp.Table):
        assert table.name in ctes or table.db, table
        assert table.catalog == ("ledger" if name == "runs" else "")


# -- on the deployed portfolio


def deployed(test: Any) -> Any:
    """Mark a test of the deployed portfolio: it takes minutes to make, and one serves all."""
    return pytest.mark.portfolio(pytest.mark.xdist_group("dashboard")(test))


@pytest.fixture(scope="module")
def lakehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lakehouse]:
    """The portfolio, deployed almost two hours after its beginning, and a tick of each project."""
    with (
        Lakehouse.start(tmp_path_factory.mktemp("dashboard")) as started,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in started.environment().items():
            patch.setenv(name, value)
        faults = [source.Fault.parse(text) for text in FAULTS]
        source.generate(started.source, BUILT_AT, rate=RATE, faults=faults)
        with Mesh.open(PORTFOLIO, check=False) as mesh:
            mesh.migrate()
            mesh.deploy("upstream", now=BUILT_AT)
            with pytest.raises(NotDeployedError, match=r"Table with name \S+ is not there yet"):
                page.write(started, started.folder / "too early")
            mesh.deploy("downstream", now=BUILT_AT)
            source.generate(started.source, END, rate=RATE, faults=faults)
            for project in ("upstream", "downstream"):
                mesh.run(project, now=END)
        yield started
        started.destroy()


@pytest.fixture(scope="module")
def found(lakehouse: Lakehouse) -> dict[str, list[dict[str, Any]]]:
    """The rows of every dataset."""
    with datasets.connect(lakehouse) as connection:
        return {name: datasets.rows(connection, name) for name in NAMES}


@pytest.fixture(scope="module")
def expected(lakehouse: Lakehouse) -> dict[str, list[dict[str, Any]]]:
    """What the tables must hold, from the source alone, where the register has every version that it can have."""
    shop = Source.read(lakehouse.source)
    with lakehouse.lake.connect() as connection:
        seen = set(
            connection.execute(
                "SELECT customer_id, epoch_us(valid_from) FROM lake.gold.dim_customer"
            ).fetchall()
        )
    may = may_be_missing(shop.customer_versions)
    missed = {one for one in may if (one[0], round(one[1].timestamp() * 1_000_000)) not in seen}
    return {name: list(rows) for name, rows in Expectation(shop, END, missed).tables().items()}


def sums(
    rows: list[dict[str, Any]], keys: tuple[str, ...], values: tuple[str, ...]
) -> dict[tuple[Any, ...], tuple[Decimal, ...]]:
    """Sums by some columns."""
    totals: dict[tuple[Any, ...], list[Decimal]] = {}
    for row in rows:
        own = totals.setdefault(tuple(plain(row[k]) for k in keys), [Decimal(0)] * len(values))
        for place, value in enumerate(values):
            own[place] += Decimal(row[value] or 0)
    return {key: tuple(total) for key, total in totals.items()}


def plain(value: Any) -> Any:
    """Instants without a time zone: UTC."""
    return (
        value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) and value.tzinfo else value
    )


def hour(value: datetime) -> datetime:
    return plain(value).replace(minute=0, second=0, microsecond=0)


@deployed
def test_the_sales_are_those_of_the_source(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """By hour, country and category; by store and day; by item: computed a second time from the source, they are equal."""
    keys = ("sale_hour", "sale_date", "store_country", "category")
    measures = ("receipts", "lines", "quantity", "revenue_eur")
    assert sums(found["sales"], keys, measures) == sums(expected["serving.sales_report"], keys, measures)
    by_day = sums(expected["gold.store_day"], ("sale_date", "store_id"), measures)
    assert sums(found["stores"], ("sale_date", "store_id"), measures) == by_day
    names = {row["store_id"]: (row["name"], row["country"]) for row in expected["gold.dim_store"]}
    assert {row["store_id"]: (row["store"], row["store_country"]) for row in found["stores"]} == {
        s: names[s] for _, s in by_day
    }
    sold = [{**row, "revenue_eur": row["amount_eur"]} for row in expected["serving.sales"]]
    keys = ("sale_date", "store_country", "item_id")
    assert sums(found["items"], keys, ("quantity", "revenue_eur")) == sums(
        sold, keys, ("quantity", "revenue_eur")
    )
    newest = {row["item_id"]: row["item_name"] for row in sorted(sold, key=lambda row: row["sold_at"])}
    last = max(row["sale_date"] for row in found["items"])
    assert {row["item"] for row in found["items"] if row["sale_date"] == last} <= set(newest.values()) | {
        r["item_name"] for r in sold
    }


@deployed
def test_customers_are_counted_once_in_each_group(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Whoever buys in several hours, categories or countries counts once; a sketch that is not full has met them all."""
    met: dict[tuple[Any, str], set[str]] = {}
    for row in expected["serving.sales"]:
        for key in ((row["sale_date"], row["store_country"]), (row["sale_date"], "all"), (None, "ever")):
            met.setdefault(key, set()).update({row["customer_id"]} - {None})
    (ever,) = found["customers_ever"]
    rows = [*found["customers"], {"sale_date": None, "country": "ever", **ever}]
    assert {(row["sale_date"], row["country"]) for row in rows} == set(met)
    for row in rows:
        exact = len(met[row["sale_date"], row["country"]])
        assert row["customers"] == (exact if exact < 1024 else pytest.approx(exact, rel=0.15))


@deployed
def test_returns_and_what_was_left_out_are_those_of_the_source(
    found: dict[str, Any], expected: dict[str, Any]
) -> None:
    """By hour and reason."""
    refunds = [
        {**row, "refund_hour": hour(row["refunded_at"]), "refunds": 1, "refunded_eur": row["amount_eur"]}
        for row in expected["gold.fact_refunds"]
    ]
    keys, values = ("refund_hour", "reason"), ("refunds", "quantity", "refunded_eur")
    assert sums(found["returns"], keys, values) == sums(refunds, keys, values)
    rejected = [
        {"sale_hour": hour(row["occurred_at"]), "reason": row["reason"], "lines": 1}
        for row in expected["silver.rejected_lines"]
    ]
    assert rejected
    assert sums(found["rejected"], ("sale_hour", "reason"), ("lines",)) == sums(
        rejected, ("sale_hour", "reason"), ("lines",)
    )


def test_items_for_sale_are_counted_by_day() -> None:
    """Also those that nobody bought; a day without items is none."""
    with duckdb.connect() as connection:
        connection.execute("CREATE SCHEMA gold")
        connection.execute(
            "CREATE TABLE gold.item_day AS FROM (VALUES (DATE '2026-01-05', 'I1', 3, 30.00, 10.00), (DATE '2026-01-05', 'I2', 0, 0.00, 5.00), "
            "(DATE '2026-01-06', 'I1', 1, 10.00, 0.00)) AS t (sale_date, item_id, quantity, revenue_eur, refunded_eur)"
        )
        rows = sorted(tuple(row.values()) for row in datasets.rows(connection, "assortment"))
    first, second = (source.BEGINNING.date() + timedelta(days=at) for at in range(2))
    assert rows == [(first, 2, 1, Decimal(30), Decimal(15)), (second, 1, 1, Decimal(10), Decimal(0))]


@deployed
def test_lateness_is_that_of_the_source(found: dict[str, Any], lakehouse: Lakehouse) -> None:
    """Also of what came after its five minutes had been computed; and the last tick is the one that was last."""
    rows = TinyMesh.sql(
        lakehouse.source,
        "SELECT date_trunc('hour', occurred_at AT TIME ZONE 'UTC'), count(*) FILTER (WHERE floor(extract(epoch FROM created_at - occurred_at)) <= 300), "
        "count(*) FILTER (WHERE floor(extract(epoch FROM created_at - occurred_at)) > 300) FROM shop.transactions GROUP BY 1",
    )
    assert any(late for _, _, late in rows)
    told = {(row["sale_hour"], int(row["in_time"]), int(row["late"])) for row in found["lateness"]}
    assert told == {tuple(row) for row in rows}
    assert {plain(row["last_tick"]) for row in found["freshness"]} == {plain(END)}
    newest = TinyMesh.sql(
        lakehouse.source, "SELECT max(occurred_at) AT TIME ZONE 'UTC' FROM shop.transactions"
    )
    assert found["freshness"][0]["newest"] == newest[0][0]
    assert all(0 <= row["minutes_behind"] < 60 for row in found["freshness"])
    assert {row["arrival_hour"]: row["ticks"] for row in found["arrivals"]} == {
        plain(source.BEGINNING + timedelta(hours=at)): 12 for at in range(3)
    }


@deployed
def test_the_runs_are_those_of_the_ledger(found: dict[str, Any], lakehouse: Lakehouse) -> None:
    """As many as the Python API tells, by project, purpose and outcome, at the instants for which they stood."""
    with Mesh.open(PORTFOLIO) as mesh:
        told = Counter(
            (r["project"], r["purpose"], r["state"], hour(r["as_of"])) for r in mesh.ledger.runs(limit=1000)
        )
    assert told == {
        (row["project"], row["purpose"], row["state"], plain(row["run_hour"])): row["runs"]
        for row in found["runs"]
    }


@deployed
def test_the_page_shows_it_all_in_one_file(
    lakehouse: Lakehouse, found: dict[str, Any], tmp_path: Path
) -> None:
    """It needs nothing but itself, and says what the datasets and the ledger say."""
    file = page.write(lakehouse, tmp_path / "new" / "folder")
    assert file == tmp_path / "new" / "folder" / "index.html"
    shown = sound(file.read_text(encoding="utf-8"))
    said = " ".join(shown.said)
    assert charts.number(sum(float(row["revenue_eur"]) for row in found["sales"])) in said
    assert "From 5 Jan 2026, 00:00 to 5 Jan 2026, 03:00, UTC" in said
    for name in (
        "bronze.line_items",
        "gold.fact_sales",
        "serving.sales_report",
        *{row["reason"] for row in found["rejected"]},
    ):
        assert name in said
    with Mesh.open(PORTFOLIO) as mesh:
        past = timeline.read(mesh)
        agrees(past, mesh)
    assert past.reasons["changed"]
    assert past.reasons["followed"]


# -- the mesh's history


def agrees(past: timeline.Timeline, mesh: Mesh, environment: str = "prod") -> None:
    """What the timeline says is recorded, is."""
    ids = mesh.ledger.manifest(environment).version_ids
    states = mesh.ledger.states(ids.values())
    recorded = {
        model: states[key]
        for model, key in ids.items()
        if mesh.ledger.manifest(environment).graph[model].kind.recorded
    }
    assert {lane.model: lane.covered | lane.accepted for lane in past.lanes} == {
        m: found.covered for m, found in recorded.items()
    }
    assert {lane.model: lane.accepted for lane in past.lanes} == {
        m: found.accepted for m, found in recorded.items()
    }


def test_history_is_told_as_it_happened(tmp_path: Path, postgres: LocalPostgres, extensions: None) -> None:
    """A request and what followed it; a failure, its retry, and an acceptance; a hold; and the runs that waited."""
    tiny = TinyMesh(tmp_path, postgres)
    evil = "<script>alert('&')</script>"
    with tiny.mesh() as mesh:
        tiny.feed(0, 300)
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(180))
        mesh.restate("bronze.events", span(100, 105), reason=evil, by="ann", apply=True)
        tiny.poison(187)
        mesh.run("upstream", now=at(240))
        mesh.run("downstream", now=at(240))
        tiny.repair(187)
        mesh.run("upstream", now=at(245))
        mesh.run("downstream", now=at(245))
        tiny.poison(252)
        mesh.run("upstream", now=at(255))
        mesh.accept("bronze.events", span(250, 255), reason="known", by="bob")
        mesh.hold("silver.events", span(245, 250), reason="odd", by="cid")
        past = timeline.read(mesh)
        agrees(past, mesh)
        waits = history.waiting(mesh.status(now=at(300)).waits)
    lanes = {lane.model.replace('"', "").removeprefix("lake."): lane for lane in past.lanes}
    assert past.complete
    assert past.span == span(0, 255)
    told = {name: [(one.at, one.time, one.why) for one in lane.again] for name, lane in lanes.items()}
    assert told == {
        "bronze.events": [(at(240), span(100, 105), "asked")],
        "silver.events": [(at(240), span(100, 105), "followed")],
        "gold.hourly": [(at(240), span(60, 120), "followed")],
    }
    assert lanes["silver.events"].again[0].cause == "bronze.events had been computed again"
    assert set(lanes["bronze.events"].failed) == {span(185, 190), span(250, 255)}
    assert not lanes["bronze.events"].failing
    assert lanes["bronze.events"].accepted == IntervalSet([span(250, 255)])
    assert max(lanes["bronze.events"].delays) == timedelta(minutes=55)  # from 190 to 245
    assert [(run.at, run.kind) for run in past.runs["downstream"]] == [
        (at(180), "deploy"), (at(240), "worked"), (at(245), "worked"),
    ]  # fmt: skip
    assert [run.kind for run in past.runs["upstream"]] == ["deploy", "failed", "worked", "failed"]
    assert [(one.kind, one.at) for one in past.incidents] == [
        ("asked", at(180)), ("failed", at(240)), ("failed", at(255)), ("accepted", at(255)), ("held", at(255)),
    ]  # fmt: skip
    said = sound(page.html({name: [] for name in NAMES}, past, waits)).said
    assert any(evil in text for text in said)
    assert any("cid keeps it from its readers: odd" in text for text in said)


def test_a_page_of_nothing_says_so() -> None:
    """No rows, no runs: no chart, and no error."""
    shown = sound(page.html({name: [] for name in NAMES}, timeline.Timeline(None, {}, [], [], complete=True)))
    assert "Nothing yet." in shown.said
    assert "Nothing has run yet." in shown.said


# -- charts

NUMBERS = st.floats(min_value=0, max_value=1e12, allow_subnormal=False) | st.integers(0, 10**9)


@given(NUMBERS)
@settings(deadline=None)
def test_a_scale_is_round_and_holds_its_largest(largest: float) -> None:
    """From 0 on in equal steps, no more lines than are read easily, and not twice as high as needed."""
    top, marks = charts.scale(largest)
    assert marks[0] == 0
    assert marks[-1] == top >= largest * (1 - 1e-9)
    assert 2 <= len(marks) <= 6
    assert largest <= 0 or top <= largest * 2.1


@given(st.text(max_size=20), st.lists(st.text(max_size=12), min_size=1, max_size=30), st.data())
@settings(deadline=None, max_examples=60)
def test_whatever_things_are_called_a_chart_is_whole(
    name: str, slots: list[str], data: st.DataObject
) -> None:
    """Text is shown as it is; a bar is no higher than the chart."""
    values = data.draw(st.lists(st.floats(0, 1e6), min_size=len(slots), max_size=len(slots)))
    for drawn in (
        charts.columns(name, slots, {name: values, "other": values}, unit=name),
        charts.lines(name, slots, {name: values, "gaps": [None, *values[1:]]}, unit=name),
        charts.bars(
            name, [(slot, name, value) for slot, value in zip(slots, values, strict=True)], unit=name
        ),
        charts.strip(name, [("once", slot) for slot in slots]),
    ):
        shown = Page(drawn)
        assert shown.open == []
        assert all(float(high) <= 100.01 for high in re.findall(r'height="([\d.]+)"', drawn))
        assert set(shown.tags) <= {"figure", "figcaption", "b", "span", "small", "div", "svg", "g", "title", "rect", "path", "ul", "li", "i", "table",
                                   "tr", "th", "td", "p"}  # fmt: skip
