"""Early cut-off: what is computed again and holds the same rows does not send its readers back to work, unless that were unsafe.

In the ledger it is the plain question what keeps its revision; end to end, who is computed again, and whether every table is
right afterwards. `mart.events` copies, `mart.hourly` counts.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
import sqlglot
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from duck_mesh import DuckMesh, copied, naive, ranged
from guarantee_mesh import BRONZE, GOLD, node
from ledger_scene import Scene
from ledger_scene import span as cells
from meshgate.bridge.digests import digests_query
from meshgate.config import ModelConfig, ProjectConfig
from meshgate.coordinator.allowance import check_names
from meshgate.errors import ConfigError
from meshgate.graph import Kind, MeshGraph
from meshgate.interval import IntervalSet
from tiny_mesh import at, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshgate.ledger import Ledger
    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

EVENTS, COPY, HOURLY = '"house"."lake"."events"', '"house"."lake"."copy"', '"house"."mart"."hourly"'
COUNTED = ranged(
    "mart.hourly",
    "SELECT DATE_TRUNC('hour', ts)::TIMESTAMP AS hour, SUM(value)::BIGINT AS total FROM lake.copy "
    "WHERE ts >= @start_dt AND ts < @end_dt GROUP BY 1",
    column="hour",
)


# In the ledger


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


class Pair:
    """A table, and one that reads it; both recorded once."""

    def __init__(self, scene: Scene, *, through: str | None = None) -> None:
        self.scene, self.run, self.other = scene, scene.run(), scene.run("down")
        self.parent = scene.version("p")
        self.child = scene.version("c", project="down")
        links = [("p", "c")]
        if through:
            scene.version("v", kind=through)
            links = [("p", "v"), ("v", "c")]
        scene.promote({"p": "1"} | ({"v": "1"} if through else {}))
        scene.promote({"c": "1"}, project="down")
        for parent, child in links:
            scene.database.execute(
                "INSERT INTO meshgate.edge (environment, child_id, parent_id) SELECT 'prod', c.model_id, p.model_id"
                " FROM meshgate.model p, meshgate.model c WHERE p.name = %(p)s AND c.name = %(c)s",
                {"p": parent, "c": child},
            )
        self.first = scene.record(self.run, self.parent, cells(0, 4))
        scene.record(self.other, self.child, cells(0, 4))

    def again(self, *same: tuple[int, int]) -> int:
        """Ask for the hours 1 to 3, and compute them again; so much of them is the same."""
        self.scene.mark(self.parent, cells(1, 3))
        self.scene.work(self.run, self.parent, cells(1, 3))
        return self.commit(*same)

    def commit(self, *same: tuple[int, int]) -> int:
        return self.scene.ledger.commit(
            self.run, self.parent, cells(1, 3), verdict="passed", same=IntervalSet(cells(*s) for s in same)
        )

    @property
    def made(self) -> list[int]:
        """The revision of each hour."""
        found = self.scene.revisions(self.parent)
        return [found[cell] for cell in range(4)]


def test_what_is_the_same_keeps_its_revision_and_is_done(scene: Scene) -> None:
    """It was read later and has no mark any more; its readers have nothing new to read."""
    pair = Pair(scene)
    made = pair.again((1, 3))
    assert pair.made == [pair.first] * 4
    assert scene.marks(pair.parent) == set()
    (row,) = scene.ledger.coverage_rows(pair.parent, cells(1, 3))
    assert row.read_revision < made
    assert row.read_revision > pair.first


def test_only_what_is_the_same_keeps_it(scene: Scene) -> None:
    """One hour of two has changed."""
    pair = Pair(scene)
    made = pair.again((2, 3))
    assert pair.made == [pair.first, made, pair.first, pair.first]


def test_a_reader_in_flight_makes_everybody_read_again(scene: Scene) -> None:
    """It may have met half of the rewrite, whatever stands there afterwards. Fails without the look at begun claims."""
    pair = Pair(scene)
    scene.work(pair.other, pair.child, cells(4, 5))
    made = pair.again((1, 3))
    assert pair.made == [pair.first, made, made, pair.first]


def test_a_reader_that_ended_meanwhile_makes_everybody_read_again(scene: Scene) -> None:
    """Fails without the look at what was recorded since the batch was begun."""
    pair = Pair(scene)
    scene.work(pair.other, pair.child, cells(4, 5))
    scene.mark(pair.parent, cells(1, 3))
    scene.work(pair.run, pair.parent, cells(1, 3))
    scene.commit(pair.other, pair.child, cells(4, 5))
    made = pair.commit((1, 3))
    assert pair.made == [pair.first, made, made, pair.first]


@pytest.mark.parametrize("through", ["view", "embedded"])
def test_a_reader_in_flight_behind_a_view_counts_too(scene: Scene, through: str) -> None:
    """What it reads is the table behind it."""
    pair = Pair(scene, through="view") if through == "view" else Pair(scene)
    if through == "embedded":
        scene.database.execute("DELETE FROM meshgate.edge")
        scene.database.execute(
            "INSERT INTO meshgate.model (project_id, name) SELECT project_id, 'text' FROM meshgate.model WHERE name = 'p'"
        )
        for parent, child in (("p", "text"), ("text", "c")):
            scene.database.execute(
                "INSERT INTO meshgate.edge (environment, child_id, parent_id) SELECT 'prod', c.model_id, p.model_id"
                " FROM meshgate.model p, meshgate.model c WHERE p.name = %(p)s AND c.name = %(c)s",
                {"p": parent, "c": child},
            )
    scene.work(pair.other, pair.child, cells(4, 5))
    made = pair.again((1, 3))
    assert pair.made == [pair.first, made, made, pair.first]


def test_what_a_deploy_builds_may_be_a_reader(scene: Scene) -> None:
    """Nobody knows yet what it reads. Fails where only edges tell who reads."""
    pair = Pair(scene)
    scene.work(pair.other, scene.version("new", project="down"), cells(0, 4))
    made = pair.again((1, 3))
    assert pair.made == [pair.first, made, made, pair.first]


def test_a_reader_behind_a_view_that_was_a_table_counts_too(scene: Scene) -> None:
    """What it is now counts. Fails where any version of it that ever was does."""
    scene.version("v", kind="full", version="0")
    pair = Pair(scene, through="view")
    scene.work(pair.other, pair.child, cells(4, 5))
    made = pair.again((1, 3))
    assert pair.made == [pair.first, made, made, pair.first]


def test_a_version_that_was_built_before_is_in_doubt_when_it_is_promoted(scene: Scene) -> None:
    """It selects a column more: that the old version's rows are the same says nothing of it."""
    pair = Pair(scene)
    new = scene.version("p", version="2")
    scene.record(pair.run, new, cells(0, 4))
    scene.promote({"p": "2"}, environment="dev")
    scene.mark(pair.parent, cells(1, 3), "lookback")
    scene.work(pair.run, pair.parent, cells(1, 3))
    pair.commit((1, 3))
    scene.promote({"p": "2"})
    assert scene.marks(new) == {("suspect", 1), ("suspect", 2)}


def test_a_reader_of_a_table_that_reads_it_does_not_count(scene: Scene) -> None:
    """It reads that table's rows, not these."""
    pair = Pair(scene, through="full")
    scene.work(pair.other, pair.child, cells(4, 5))
    pair.again((1, 3))
    assert pair.made == [pair.first] * 4


@pytest.mark.parametrize("kind", ["suspect", "failed", "removed"])
def test_what_was_in_doubt_is_read_again(scene: Scene, kind: str) -> None:
    """Nobody knows whether what stood there before is what had been read. Fails without the look at marks."""
    pair = Pair(scene)
    scene.mark(pair.parent, cells(2, 3), kind)
    made = pair.again((1, 3))
    assert pair.made == [pair.first, pair.first, made, pair.first]


def test_what_is_new_gets_the_revision_of_its_commit(scene: Scene) -> None:
    """Nobody can have read it."""
    pair = Pair(scene)
    scene.work(pair.run, pair.parent, cells(4, 6))
    made = scene.ledger.commit(
        pair.run, pair.parent, cells(4, 6), verdict="passed", same=IntervalSet([cells(4, 6)])
    )
    assert scene.revisions(pair.parent)[5] == made


def test_who_hears_no_answer_is_told_the_same_twice(scene: Scene) -> None:
    """Though the batch lies in several rows."""
    pair = Pair(scene)
    made = pair.again((2, 3))
    assert pair.commit((2, 3)) == made
    assert pair.made == [pair.first, made, pair.first, pair.first]


# What is compared

PARTS = 5
rows = st.lists(
    st.tuples(
        st.integers(0, PARTS * 60 - 1),
        st.none() | st.sampled_from(["", "a", "b", "-", "1:a", "ä\N{PILE OF POO}"]),
        st.none() | st.integers(-(2**40), 2**40),
        st.none()
        | st.floats(allow_nan=False, width=32).map(
            lambda x: x + 0.0
        ),  # -0 is another text, and no other number
    ),
    max_size=12,
)


@given(rows, rows, st.booleans())
@settings(deadline=None)
def test_parts_are_the_same_where_their_rows_are(old: Any, new: Any, some: bool) -> None:
    """Whatever the order, with nulls, and how often; the oracle counts rows."""
    new = old[::-1] + new[:1] if some else new
    seen = [compared(content) for content in (old, new)]
    for part in range(PARTS):
        counted = [Counter(r for r in content if r[0] // 60 == part) for content in (old, new)]
        assert (seen[0].get(part) == seen[1].get(part)) == (counted[0] == counted[1])


def compared(content: list[tuple[Any, ...]]) -> dict[int, Any]:
    """The digests of a table by hours."""
    moment = sqlglot.exp.column("ts", quoted=True)
    bounds = [
        sqlglot.exp.cast(sqlglot.exp.Literal.string(str(naive(60 * n))), "timestamp")
        for n in range(PARTS + 1)
    ]
    query = digests_query("t", ["ts", "text", "number", "ratio"], moment, bounds).sql("duckdb", identify=True)
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t (ts TIMESTAMP, text TEXT, number BIGINT, ratio FLOAT)")
        if content:
            connection.executemany(
                "INSERT INTO t VALUES (?, ?, ?, ?)", [(naive(r[0]), *r[1:]) for r in content]
            )
        return {int(part): found for part, *found in connection.execute(query).fetchall()}


# End to end


@contextmanager
def opened(folder: Path, postgres: LocalPostgres, **given: Any) -> Iterator[tuple[DuckMesh, Mesh]]:
    """Events of every five minutes, their copy in the same project, and hours of it in another."""
    loaded = ranged(
        "lake.events",
        "SELECT id, ts, value, CURRENT_TIMESTAMP AS loaded_at FROM raw.events WHERE ts >= @start_dt AND ts < @end_dt",
        cron="*/5 * * * *",
        model="audits (positive)",
    )
    files = {
        "events": loaded,
        "copy": copied("lake.copy", "lake.events", cron="*/5 * * * *"),
        "audits/positive.sql": "AUDIT (name positive); SELECT * FROM @this_model WHERE value < 0",
    }
    duck = DuckMesh(folder, postgres, upstream=files, downstream={"hourly": COUNTED})
    at_once = {"stale_throttle": "0s", "retry": {"first": "0s"}}
    duck.write_mesh({"upstream": {**at_once, **given}, "downstream": at_once})
    duck.feed(0, 600)
    with duck.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(240))
        yield duck, mesh


WITH = {"models": {"lake.events": {"early_cut_off": {"ignore": ["loaded_at"]}}}}


def tick(mesh: Mesh, minute: float = 240) -> tuple[Any, ...]:
    """One run of each project; what was computed of the events, the copy, the hours."""
    found = {}
    for project in ("upstream", "downstream"):
        report = mesh.run(project, now=at(minute))
        assert report.state in ("done", "nothing_to_do"), report
        found |= report.committed
    assert not mesh.verify().differences
    return tuple(found.get(name, IntervalSet()) for name in (EVENTS, COPY, HOURLY))


def right(duck: DuckMesh) -> bool:
    return duck.sql("SELECT SUM(total) FROM mart.hourly") == duck.sql(
        "SELECT SUM(value) FROM raw.events WHERE ts < (SELECT MAX(hour) + INTERVAL 1 HOUR FROM mart.hourly)"
    )


def test_an_unchanged_restatement_does_not_spread(tmp_path: Path, postgres: LocalPostgres) -> None:
    """It is computed again, and nothing that reads it."""
    with opened(tmp_path, postgres, **WITH) as (duck, mesh):
        mesh.restate("lake.events", span(0, 240), reason="to be sure", apply=True)
        assert tick(mesh) == (IntervalSet([span(0, 240)]), IntervalSet(), IntervalSet())
        assert tick(mesh) == (IntervalSet(), IntervalSet(), IntervalSet())
        assert right(duck)


def test_what_changed_spreads_and_nothing_else(tmp_path: Path, postgres: LocalPostgres) -> None:
    """Five minutes of four hours: its copy is computed in the same run, the one hour that holds it in the next project's."""
    with opened(tmp_path, postgres, **WITH) as (duck, mesh):
        duck.set_value(77, 50)
        mesh.restate("lake.events", span(0, 240), reason="patched", apply=True)
        assert tick(mesh) == (
            IntervalSet([span(0, 240)]), IntervalSet([span(75, 80)]), IntervalSet([span(60, 120)])
        )  # fmt: skip
        assert right(duck)


def test_without_it_everything_spreads(tmp_path: Path, postgres: LocalPostgres) -> None:
    """And with it, too, where a column differs that nobody said does not count."""
    given = {"models": {"lake.events": {"early_cut_off": True}}}
    with opened(tmp_path, postgres, **given) as (_, mesh):
        mesh.restate("lake.events", span(0, 60), reason="to be sure", apply=True)
        assert tick(mesh) == (IntervalSet([span(0, 60)]),) * 3


def test_a_second_attempt_is_compared_with_nothing(tmp_path: Path, postgres: LocalPostgres) -> None:
    """A batch with a bad row was written, and its audit broke: in its halves stands already what was changed.

    Fails where the halves are compared.
    """
    with opened(tmp_path, postgres, **WITH) as (duck, mesh):
        breaks = "CASE WHEN value < 0 THEN error('broken') ELSE FALSE END"
        duck.write(
            "upstream",
            "audits/positive.sql",
            f"AUDIT (name positive); SELECT * FROM @this_model WHERE {breaks}",
        )
        mesh.deploy("upstream", now=at(240))
        duck.set_value(77, -1)
        duck.set_value(12, 9)
        mesh.restate("lake.events", span(0, 240), reason="patched", apply=True)
        assert mesh.run("upstream", now=at(240)).state == "failed"
        duck.set_value(77, 3)
        tick(mesh)
        assert right(duck)


def test_a_run_tells_what_was_unchanged(tmp_path: Path, postgres: LocalPostgres) -> None:
    """So that nobody wonders why its readers stayed as they are."""
    with opened(tmp_path, postgres, **WITH) as (_, mesh):
        mesh.restate("lake.events", span(0, 60), reason="to be sure", apply=True)
        report = mesh.run("upstream", now=at(240))
        assert report.unchanged == {EVENTS: IntervalSet([span(0, 60)])}


@pytest.mark.parametrize("minutes", [5, 10])
def test_what_cannot_be_compared_is_told_and_spreads(
    tmp_path: Path, postgres: LocalPostgres, minutes: int
) -> None:
    """The data is as good as without: a name that was misspelt fails nothing."""
    given = {"models": {"lake.events": {"early_cut_off": {"ignore": ["loaded"]}}}}
    with opened(tmp_path, postgres, **given) as (_, mesh):
        mesh.restate("lake.events", span(0, minutes), reason="to be sure", apply=True)
        report = mesh.run("upstream", now=at(240))
        assert report.committed == dict.fromkeys((EVENTS, COPY), IntervalSet([span(0, minutes)]))
        assert "has no column loaded, which early_cut_off is to ignore" in report.uncompared[EVENTS]
        assert not report.unchanged


@pytest.mark.parametrize("column", ["ts::DATE", "strftime(ts, '%Y-%m-%d')"])
def test_a_time_column_of_days_tells_no_hours_apart(
    tmp_path: Path, postgres: LocalPostgres, column: str
) -> None:
    """Each hour writes the whole day, in SQLMesh's own way: nothing is taken for unchanged."""
    time = "ds" if "DATE" in column else "(ds, '%Y-%m-%d')"
    days = ranged(
        "lake.days",
        f"SELECT id, {column} AS ds, value FROM raw.events WHERE ts >= @start_ds::TIMESTAMP AND ts < @end_dt",
        column=time,
    )
    query = "SELECT ds, SUM(value)::BIGINT AS total FROM lake.days WHERE ds BETWEEN @start_ds AND @end_ds GROUP BY 1"
    duck = DuckMesh(
        tmp_path, postgres, upstream={"days": days, "total": ranged("lake.total", query, column=time)}
    )
    duck.write_mesh({"upstream": {"stale_throttle": "0s", "models": {"lake.days": {"early_cut_off": True}}}})
    duck.feed(0, 600)
    with duck.mesh() as mesh:
        mesh.deploy("upstream", now=at(240))
        duck.set_value(200, 100)
        mesh.restate("lake.days", span(180, 240), reason="patched", apply=True)
        assert "one value of ds" in mesh.run("upstream", now=at(240)).uncompared['"house"."lake"."days"']
        assert duck.sql("SELECT SUM(value) FROM lake.days") == duck.sql("SELECT SUM(total) FROM lake.total")


@pytest.mark.parametrize("throttle", ["0s", "1h"])
def test_no_child_sees_half_restated_parents(tmp_path: Path, postgres: LocalPostgres, throttle: str) -> None:
    """It reads one table by a short way and by a long one, with comparisons on both: it is computed once, at the end."""
    query = "SELECT a.ts, a.value AS one, c.value AS other FROM lake.a JOIN lake.c USING (id) WHERE a.ts >= @start_dt AND a.ts < @end_dt"
    files = {"e": ranged("lake.e", query)}
    files |= {m: copied(f"lake.{m}", p) for m, p in (("a", "raw.events"), ("b", "lake.a"), ("c", "lake.b"))}
    duck = DuckMesh(tmp_path, postgres, upstream=files)
    models = {name: {"early_cut_off": True} for name in ("lake.a", "lake.b")}
    duck.write_mesh({"upstream": {"stale_throttle": throttle, "models": models}})
    duck.feed(0, 600)
    with duck.mesh() as mesh:
        mesh.deploy("upstream", now=at(240))
        duck.set_value(77, 50)
        mesh.restate("lake.a", span(60, 120), reason="patched", apply=True)
        report = mesh.run("upstream", now=at(301))  # no throttle counts from the deploy's reads any more
        events = mesh.ledger.events(run_id=report.run_id, limit=500)
        commits = [e for e in events if e["kind"] == "interval.committed" and str(e["model"]).endswith('"e"')]
        assert len([e for e in commits if e["span"].lower == at(60)]) == 1
        assert not duck.sql("SELECT * FROM lake.e WHERE one <> other")
        assert not mesh.verify().differences


def test_what_is_blocked_after_a_comparison_is_told(tmp_path: Path, postgres: LocalPostgres) -> None:
    """The reader is planned when all is compared; what keeps it back is no less worth knowing."""
    query = "SELECT e.ts, e.value + o.value AS value FROM lake.events e JOIN lake.other o USING (id) WHERE e.ts >= @start_dt AND e.ts < @end_dt"
    files = {name: copied(f"lake.{name}", "raw.events") for name in ("events", "other")}
    duck = DuckMesh(tmp_path, postgres, upstream={**files, "both": ranged("lake.both", query)})
    duck.write_mesh(
        {"upstream": {"stale_throttle": "0s", "models": {"lake.events": {"early_cut_off": True}}}}
    )
    duck.feed(0, 600)
    with duck.mesh() as mesh:
        mesh.deploy("upstream", now=at(240))
        mesh.hold("lake.other", span(60, 120), reason="no", by="me")
        duck.set_value(77, 3)
        mesh.restate("lake.events", span(60, 120), reason="patched", apply=True)
        (blocked,) = mesh.run("upstream", now=at(240)).blocked
        assert (blocked.model, blocked.reason) == ('"house"."lake"."both"', "held")


def test_unchanged_is_what_the_ledger_kept(tmp_path: Path, postgres: LocalPostgres) -> None:
    """Where something was in doubt the rows may be the same, and spread."""
    with opened(tmp_path, postgres, **WITH) as (_, mesh):
        key = mesh.ledger.manifest("prod").version_id(EVENTS)
        Scene(mesh.ledger).mark(key, span(60, 65), "suspect")
        report = mesh.run("upstream", now=at(240))
        assert report.committed == dict.fromkeys((EVENTS, COPY), IntervalSet([span(60, 65)]))
        assert not report.unchanged


def test_a_model_that_reads_itself_is_refused() -> None:
    """All that comes after is computed again in any case."""
    graph = MeshGraph({BRONZE: evolve(node(BRONZE, "up", "hour"), depends_on_past=True)}, [])
    project = ProjectConfig("up", Path("/up"), models={BRONZE: ModelConfig(early_cut_off=())})
    with pytest.raises(ConfigError, match="which reads its own past"):
        check_names(graph, project)


def test_an_as_of_model_is_refused() -> None:
    """It is one whole; what it declares instead is its validity."""
    graph = MeshGraph({GOLD: node(GOLD, "up", "hour", Kind.FULL), BRONZE: node(BRONZE, "up", "hour")}, [])
    project = ProjectConfig("up", Path("/up"), models={GOLD: ModelConfig(early_cut_off=())})
    with pytest.raises(ConfigError, match=r"early_cut_off of .*gold.*, whose kind is full"):
        check_names(graph, project)
