"""Models of every kind, across both projects, over several ticks: what their tables hold, against an oracle in Python."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from duck_mesh import DuckMesh, copied, naive, ranged
from meshgate.interval import IntervalSet
from tiny_mesh import at, span

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshgate.coordinator import RunReport
    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

    Rows = list[tuple[Any, ...]]

pytestmark = pytest.mark.xdist_group("bridge_kinds")

HISTORY = "kind SCD_TYPE_2_BY_COLUMN (unique_key id, columns [price], execution_time_as_valid_from TRUE), cron '@hourly'"
UPSTREAM = {
    "events": copied("up.events", "raw.events", cron="*/5 * * * *"),
    "doubled": "MODEL (name up.doubled, kind VIEW, cron '@hourly'); SELECT id, ts, value * 2 AS value FROM up.events",
    "items": f"MODEL (name up.items, {HISTORY}); SELECT id, price FROM raw.items",
    "newest": "MODEL (name up.newest, kind INCREMENTAL_BY_UNIQUE_KEY (unique_key slot), cron '@hourly');"
    "SELECT id % 7 AS slot, MAX(id) AS id, MAX(ts) AS ts FROM up.events WHERE ts >= @start_dt AND ts < @end_dt GROUP BY 1",
    "total": "MODEL (name up.total, kind FULL, cron '@hourly'); SELECT COUNT(*) AS events, SUM(value) AS value FROM up.events",
}
DOWNSTREAM = {
    "hourly": ranged(
        "down.hourly", "SELECT DATE_TRUNC('hour', ts)::TIMESTAMP AS hour, COUNT(*) AS events, SUM(value)::BIGINT AS value "
        "FROM up.doubled WHERE ts >= @start_dt AND ts < @end_dt GROUP BY 1", column="hour",
    ),
    "items": f"MODEL (name down.items, {HISTORY}); SELECT id, price FROM up.items WHERE valid_to IS NULL",
    "newest": "MODEL (name down.newest, kind INCREMENTAL_BY_UNIQUE_KEY (unique_key slot), cron '@hourly');"
    "SELECT slot, id FROM up.newest WHERE ts >= @start_dt AND ts < @end_dt",
    "total": "MODEL (name down.total, kind FULL, cron '@hourly');"
    "SELECT (SELECT SUM(value) FROM down.hourly)::BIGINT AS hourly, t.value::BIGINT AS value FROM up.total AS t",
    "shown": "MODEL (name down.shown, kind VIEW, cron '@hourly'); SELECT hourly, value FROM down.total",
}  # fmt: skip
# What the items cost from an instant on; one is gone at the end, which a history by column does not hold against it.
PRICES = {
    60: {1: 10, 2: 20, 3: 30},
    120: {1: 11, 2: 20, 3: 30},
    180: {1: 11, 2: 20, 3: 33, 4: 40},
    360: {1: 12, 3: 33, 4: 44},
}


def history(upto: int) -> Rows:
    """The items as they were seen at each tick: id, price, from, to."""
    rows: dict[int, list[list[Any]]] = {}
    for tick, prices in PRICES.items():
        for item, price in prices.items() if tick <= upto else ():
            seen = rows.setdefault(item, [])
            if not seen or seen[-1][0] != price:
                if seen:
                    seen[-1][2] = naive(tick)
                seen.append([price, naive(tick), None])
    return [(item, *row) for item in sorted(rows) for row in rows[item]]


def value(minute: int) -> int:
    return 1 + minute % 5


def newest(upto: int) -> list[int]:
    """The newest event of each slot."""
    return [max(m for m in range(upto) if m % 7 == slot) for slot in range(7)]


# What each table holds once every hour up to an instant is done.
ORACLE: dict[str, Callable[[int], Rows]] = {
    "up.events": lambda upto: [(m, naive(m), value(m)) for m in range(upto)],
    "up.doubled": lambda upto: [(m, naive(m), 2 * value(m)) for m in range(upto)],
    "up.items": history,
    "up.newest": lambda upto: [(slot, m, naive(m)) for slot, m in enumerate(newest(upto))],
    "up.total": lambda upto: [(upto, sum(map(value, range(upto))))],
    "down.hourly": lambda upto: [
        (naive(h), 60, 2 * sum(map(value, range(h, h + 60)))) for h in range(0, upto, 60)
    ],
    "down.items": history,
    "down.newest": lambda upto: list(enumerate(newest(upto))),
    "down.total": lambda upto: [(2 * sum(map(value, range(upto))), sum(map(value, range(upto))))],
    "down.shown": lambda upto: [(2 * sum(map(value, range(upto))), sum(map(value, range(upto))))],
}


@attrs.define
class Story:
    """What the tables held after each tick, and what the runs reported."""

    tables: dict[tuple[int, str], Rows] = attrs.field(factory=dict)
    reports: dict[tuple[int, str], RunReport] = attrs.field(factory=dict)

    def note(self, tick: int, duck: DuckMesh) -> None:
        for name in ORACLE:
            columns = "id, price, valid_from, valid_to" if name.endswith("items") else "*"
            self.tables[tick, name] = duck.sql(f"SELECT {columns} FROM {name} ORDER BY ALL NULLS LAST")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, postgres: LocalPostgres) -> Story:
    """Deployed at 01:00, run at 02:00; at 03:00 downstream comes first; then three hours at once, at 06:00."""
    duck = DuckMesh(tmp_path_factory.mktemp("kinds"), postgres, upstream=UPSTREAM, downstream=DOWNSTREAM)
    rows = ", ".join(f"({m}, '{naive(m)}', {value(m)})" for m in range(360))
    duck.sql(f"INSERT INTO raw.events VALUES {rows}; CREATE TABLE raw.items (id INT, price INT)")
    told = Story()

    def sell(tick: int) -> None:
        duck.sql(f"DELETE FROM raw.items; INSERT INTO raw.items VALUES {str([*PRICES[tick].items()])[1:-1]}")

    with duck.mesh() as mesh:
        sell(60)
        for project in ("upstream", "downstream"):
            told.reports[60, project] = mesh.deploy(project, now=at(60))
        told.note(60, duck)
        for tick in (120, 180, 360):
            sell(tick)
            if tick == 180:
                told.reports[tick, "early"] = mesh.run("downstream", now=at(tick))
                told.note(179, duck)
            for project in ("upstream", "downstream"):
                told.reports[tick, project] = mesh.run(project, now=at(tick))
            told.note(tick, duck)
    return told


@pytest.mark.parametrize("name", ORACLE)
@pytest.mark.parametrize("tick", [60, 120, 180, 360])
def test_a_table_is_what_the_oracle_says(story: Story, tick: int, name: str) -> None:
    """After the deploy, after each tick, and after three hours that were caught up at once."""
    assert story.tables[tick, name] == ORACLE[name](tick)


@pytest.mark.parametrize("tick", [120, 180, 360])
@pytest.mark.parametrize("project", ["upstream", "downstream"])
def test_each_run_does_all_that_is_new_and_nothing_else(story: Story, tick: int, project: str) -> None:
    """Every model of the project, the time since the tick before, and nothing is left blocked."""
    report = story.reports[tick, project]
    names = {f'"house"."{n.split(".")[0]}"."{n.split(".")[1]}"' for n in ORACLE if n.startswith(project[:2])}
    before = {120: 60, 180: 120, 360: 180}[tick]
    assert report.committed == {name: IntervalSet([span(before, tick)]) for name in names}
    assert (report.state, report.failed, report.blocked) == ("done", (), ())


@pytest.mark.parametrize("name", [n for n in ORACLE if n.startswith("down.")])
def test_no_kind_of_reader_goes_ahead_of_the_other_project(story: Story, name: str) -> None:
    """Downstream at 03:00, before upstream: whatever its kind, a model keeps what it had, and says for whom it waits."""
    assert story.tables[179, name] == ORACLE[name](120)
    fqn = f'"house"."down"."{name.split(".")[1]}"'
    early = story.reports[180, "early"]
    assert early.state == "nothing_to_do"
    blocked = {(b.interval, b.parent_project, b.reason) for b in early.blocked if b.model == fqn}
    assert blocked == {(span(120, 180), "upstream", "late")} or name in {"down.total", "down.shown"}
    assert {i for i, *_ in blocked} == {span(120, 180)}


# Late rows


@pytest.fixture
def late(tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    """One hourly model with a lookback of two hours, and a child that reads it."""
    duck = DuckMesh(
        tmp_path, postgres,
        upstream={
            "looked": copied("lake.looked", "raw.events", kind="lookback 2", model="audits (positive)"),
            "audits/positive.sql": "AUDIT (name positive); SELECT * FROM @this_model WHERE value < 0",
        },
    )  # fmt: skip
    duck.feed(0, 360)
    duck.sql("DELETE FROM raw.events WHERE id IN (70, 200)")
    return duck


LOOKED = '"house"."lake"."looked"'


def test_a_late_row_inside_the_lookback_arrives(late: DuckMesh) -> None:
    """The run that does a new hour reads the two before it again, and no more."""
    with late.mesh() as mesh:
        mesh.deploy("upstream", now=at(240))
        late.feed(0, 360)
        assert mesh.run("upstream", now=at(240)).state == "nothing_to_do"
        report = mesh.run("upstream", now=at(300))
        assert report.committed == {LOOKED: IntervalSet([span(120, 300)])}
        assert {m for m, *_ in late.table("lake.looked")} == set(range(300)) - {70}


def test_a_lookback_that_fails_is_not_forgotten(late: DuckMesh) -> None:
    """The new hour is committed all the same; what it asked to read again is tried again until it passes."""
    with late.mesh() as mesh:
        mesh.deploy("upstream", now=at(240))
        late.feed(0, 360)
        late.set_value(130, -1)
        report = mesh.run("upstream", now=at(300))
        assert [f.interval for f in report.failed] == [span(120, 180)]
        assert report.committed == {LOOKED: IntervalSet([span(180, 300)])}
        late.set_value(130, 1)
        assert mesh.run("upstream", now=at(300)).committed == {LOOKED: IntervalSet([span(120, 180)])}
        assert mesh.run("upstream", now=at(300)).state == "nothing_to_do"


# Other environments


def counted(duck: DuckMesh, table: str) -> tuple[int, int]:
    return duck.sql(f"SELECT COUNT(*), SUM(value)::BIGINT FROM {table}")[0]


@pytest.fixture
def two(tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    """A project of two models; the first of them is read by the other project."""
    duck = DuckMesh(
        tmp_path, postgres,
        upstream={"changed": copied("lake.changed", "raw.events"), "same": copied("lake.same", "raw.events")},
        downstream={"reader": copied("lake.reader", "lake.changed")},
    )  # fmt: skip
    duck.feed(0, 240)
    return duck


def in_dev(duck: DuckMesh, mesh: Mesh, text: str) -> None:
    """Deploy both projects to prod, and a changed model to dev."""
    for project in ("upstream", "downstream"):
        mesh.deploy(project, now=at(60))
    duck.write("upstream", "changed", text)
    mesh.deploy("upstream", environment="dev", now=at(60))


MORE = copied("lake.changed", "raw.events").replace("id, ts, value", "id, ts, value + 1 AS value")


def test_a_changed_model_has_a_table_of_its_own_in_dev(two: DuckMesh) -> None:
    """Runs in dev advance dev's version; prod's runs find prod's as they left it."""
    with two.mesh() as mesh:
        in_dev(two, mesh, MORE)
        assert '"house"."lake"."changed"' in mesh.run("upstream", environment="dev", now=at(120)).committed
        assert (counted(two, "lake.changed"), counted(two, "lake__dev.changed")) == ((60, 60), (120, 240))
        assert '"house"."lake"."changed"' in mesh.run("upstream", now=at(120)).committed
        assert mesh.run("downstream", now=at(120)).committed == {
            '"house"."lake"."reader"': IntervalSet([span(60, 120)])
        }
        assert (counted(two, "lake.changed"), counted(two, "lake__dev.changed")) == ((120, 120), (120, 240))
        assert counted(two, "lake.reader") == (120, 120)


def test_what_both_environments_share_is_done_once(two: DuckMesh) -> None:
    """A model that dev does not change is one table: what dev's run did, prod's run need not do."""
    with two.mesh() as mesh:
        in_dev(two, mesh, MORE)
        assert mesh.run("upstream", environment="dev", now=at(120)).committed['"house"."lake"."same"']
        assert set(mesh.run("upstream", now=at(120)).committed) == {'"house"."lake"."changed"'}
        assert counted(two, "lake.same") == (120, 120)


def test_a_preview_of_a_forward_only_change_is_not_recorded_as_prods(two: DuckMesh) -> None:
    """It shares prod's version but writes elsewhere: prod still has to do the hour, and does."""
    forward = MORE.replace(
        "partition_by_time_column FALSE", "partition_by_time_column FALSE, forward_only TRUE"
    )
    with two.mesh() as mesh:
        in_dev(two, mesh, forward)
        previewed = mesh.run("upstream", environment="dev", now=at(120))
        assert set(previewed.committed) == {'"house"."lake"."same"'}
        assert counted(two, "lake__dev.changed")[1] == 2 * counted(two, "lake__dev.changed")[0]
        assert mesh.run("upstream", now=at(120)).committed == {
            '"house"."lake"."changed"': IntervalSet([span(60, 120)])
        }
        assert counted(two, "lake.changed") == (120, 120)


# Tables that somebody else owns


def test_an_audit_of_an_external_table_neither_stops_the_deploy_nor_is_recorded(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """SQLMesh evaluates an audited external table as if it were a model; the ledger has nothing to say about it."""
    external = "- name: raw.events\n  audits: [{name: not_null, columns: '[id]'}]\n  columns: {id: BIGINT, ts: TIMESTAMP, value: BIGINT}\n"
    duck = DuckMesh(
        tmp_path,
        postgres,
        upstream={"plain": copied("lake.plain", "raw.events"), "external_models.yaml": external},
    )
    duck.feed(0, 60)
    with duck.mesh() as mesh:
        report = mesh.deploy("upstream", now=datetime.fromisoformat("2026-01-06T00:00Z"))
        assert report.state == "done"
        assert report.committed == {'"house"."lake"."plain"': IntervalSet([span(0, 1440)])}
