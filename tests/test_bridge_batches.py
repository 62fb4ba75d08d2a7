"""One batch under the ledger: its audits, its failures, its order, and the statements and signals around it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from duck_mesh import DuckMesh, copied, naive, ranged
from meshgate.errors import EvaluationError
from meshgate.interval import IntervalSet
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshgate.coordinator import RunReport
    from meshgate.interval import Interval
    from meshgate.ledger import CoverageRow
    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

pytestmark = pytest.mark.xdist_group("bridge_batches")

AUDITS = {
    "positive": "AUDIT (name positive); SELECT * FROM @this_model WHERE value < 0",
    "small": "AUDIT (name small, blocking FALSE); SELECT * FROM @this_model WHERE value > 5",
    "enough": "AUDIT (name enough); SELECT 1 FROM (SELECT COUNT(*) AS n FROM @this_model) WHERE n < 50",
    "many": "AUDIT (name many, blocking FALSE); SELECT 1 FROM (SELECT COUNT(*) AS n FROM @this_model) WHERE n < 50",
    "few": "AUDIT (name few); SELECT 1 FROM (SELECT COUNT(*) AS n FROM @this_model) WHERE n > 60",
}
PYTHON_MODEL = """
from sqlmesh import model
from sqlmesh.core.model.kind import ModelKindName


@model(
    "lake.in_python", kind=dict(name=ModelKindName.INCREMENTAL_BY_TIME_RANGE, time_column="ts", partition_by_time_column=False),
    cron="@hourly", columns={"id": "bigint", "ts": "timestamp", "value": "bigint"}, depends_on=["raw.events"],
)
def execute(context, start, end, execution_time, **kwargs):
    found = context.fetchdf(f"SELECT id, ts, value FROM raw.events WHERE ts >= '{start:%F %T}' AND ts < '{end:%F %T}'")
    if (found["value"] < 0).any():
        raise ValueError("a negative value, says the model")
    yield found
"""
SIGNALS = """
from datetime import datetime, timezone
from sqlmesh import signal


@signal()
def not_the_third_hour(batch):
    return [i for i in batch if i[0].hour != 2]
"""
CHAIN = """
SELECT ts, value, COALESCE((SELECT MAX(n) FROM lake.{name} WHERE ts < @start_dt), 0) + 1 AS n
FROM raw.events WHERE ts >= @start_dt AND ts < @end_dt AND MINUTE(ts) = 35
"""
COLUMNS = "columns (ts TIMESTAMP, value BIGINT, n INT)"


def chain(name: str, kind: str) -> str:
    """A model that reads itself: each hour's number is one more than the last hour's."""
    return ranged(f"lake.{name}", CHAIN.format(name=name), kind=kind, model=f"{COLUMNS}, audits (positive)")


# In the hour from 01:00 on, minutes 60 to 90 are missing, 95 is negative and 130 is nine.
MODELS = {
    **{f"audits/{name}.sql": text for name, text in AUDITS.items()},
    "plain": copied("lake.plain", "raw.events"),
    "warned": copied("lake.warned", "raw.events", model="audits (small)"),
    "softly": copied("lake.softly", "raw.events", model="audits (many)"),
    "counted": copied("lake.counted", "raw.events", model="audits (enough)"),
    "capped": copied("lake.capped", "raw.events", model="audits (few)"),
    "poisoned": copied("lake.poisoned", "raw.events", model="audits (positive)"),
    "child": copied("lake.child", "lake.counted"),
    "paired": copied("lake.paired", "raw.events", kind="batch_size 2"),
    "partial": copied("lake.partial", "raw.events", cron="*/20 * * * *", model="interval_unit 'hour', allow_partials TRUE, audits (positive)"),
    "chained": chain("chained", "batch_size 1"),
    "unbatched": chain("unbatched", "batch_size 10"),
    "follower": chain("follower", "batch_size 1").replace("raw.events", "lake.counted"),
    "keyed": "MODEL (name lake.keyed, kind INCREMENTAL_BY_UNIQUE_KEY (unique_key id, batch_size 1), cron '@hourly', audits (positive));"
    "SELECT id, ts, value FROM raw.events WHERE ts BETWEEN @start_dt AND @end_dt",
    "picky": copied("lake.picky", "raw.events", model="signals (not_the_third_hour())"),
    "models/in_python.py": PYTHON_MODEL,
    "signals/__init__.py": "",
    "signals/hours.py": SIGNALS,
}  # fmt: skip
FIRST, BAD, LATE, ALL = span(0, 60), span(60, 120), span(120, 240), span(0, 240)


def fqn(name: str) -> str:
    return f'"house"."lake"."{name}"'


def rows(mesh: Mesh, name: str, time: Interval = ALL) -> tuple[CoverageRow, ...]:
    """What the ledger says of a model's time, row by row."""
    return mesh.ledger.coverage_rows(mesh.ledger.manifest("prod").version_ids[fqn(name)], time)


def statements(project: str) -> dict[str, list[str]]:
    """A configuration whose runs leave a trace."""
    note = "INSERT INTO raw.log VALUES ('{}')"
    make = "CREATE TABLE IF NOT EXISTS raw.log (said TEXT)"
    return {
        "before_all": [make, note.format(f"{project} before")],
        "after_all": [note.format(f"{project} after")],
    }


@attrs.frozen
class Night:
    """A mesh that was deployed at 01:00 and run at 04:20, then once more after the source was repaired."""

    duck: DuckMesh
    mesh: Mesh
    broken: RunReport
    rows: dict[str, tuple[CoverageRow, ...]]
    log: list[str]
    repaired: RunReport

    def failed(self, name: str) -> list[tuple[Interval, Any]]:
        return [(f.interval, f.detail) for f in self.broken.failed if f.model == fqn(name)]

    def committed(self, name: str) -> IntervalSet:
        return self.broken.committed.get(fqn(name), IntervalSet())


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, postgres: LocalPostgres) -> Iterator[Night]:
    duck = DuckMesh(
        tmp_path_factory.mktemp("night"), postgres,
        upstream=MODELS, downstream={"other": copied("lake.other", "lake.plain")},
        settings={p: statements(p) for p in ("upstream", "downstream")},
    )  # fmt: skip
    duck.feed(0, 240)
    duck.sql("DELETE FROM raw.events WHERE id BETWEEN 60 AND 90")
    duck.set_value(95, -1)
    duck.set_value(130, 9)
    with duck.mesh() as mesh:
        for project in ("upstream", "downstream"):
            assert mesh.deploy(project, now=at(60)).state == "done"
        duck.sql("DELETE FROM raw.log")
        broken = mesh.run("upstream", now=at(260))
        recorded = {name: rows(mesh, name) for name in MODELS if "." not in name and "/" not in name}
        log = [said for (said,) in duck.table("raw.log")]
        duck.feed(0, 240)
        duck.set_value(95, 1)
        yield Night(duck, mesh, broken, recorded, log, mesh.run("upstream", now=at(260)))


# Audits


def test_a_warning_is_recorded_with_its_count(night: Night) -> None:
    """A non-blocking audit lets the interval pass; the ledger keeps the verdict that SQLMesh forgets."""
    (row,) = [r for r in night.rows["warned"] if r.interval.end > at(60)]
    assert (row.verdict, row.audits) == ("warned", ({"audit": "small", "count": 1, "blocking": False},))
    assert fqn("warned") in {w.model for w in night.broken.warned}


def test_audits_that_pass_are_recorded_too(night: Night) -> None:
    """That an audit ran and found nothing is a fact, other than that none ran."""
    row = night.rows["capped"][0]
    assert (row.verdict, row.audits) == ("passed", ({"audit": "few", "count": 0, "blocking": True},))
    assert night.rows["plain"][0].audits == ()


def test_an_audit_that_counts_is_judged_on_each_interval(night: Night) -> None:
    """Enough rows for three hours together, but not for one of them: that one fails, the others are committed."""
    assert night.failed("counted") == [(BAD, {"audits": [{"audit": "enough", "count": 1}]})]
    assert night.committed("counted") == IntervalSet([LATE])


def test_a_warning_that_counts_is_told_of_its_own_interval(night: Night) -> None:
    """The batch as a whole would not have warned; the hours beside it do not."""
    assert [(r.interval, r.verdict) for r in night.rows["softly"]] == [
        (FIRST, "passed"),
        (BAD, "warned"),
        (LATE, "passed"),
    ]


def test_a_batch_that_fails_as_a_whole_is_judged_by_its_intervals(night: Night) -> None:
    """Too many rows for one interval are not too many for three: halved, each of them passes."""
    assert night.failed("capped") == []
    assert night.committed("capped") == IntervalSet([span(60, 240)])


def test_only_what_reads_a_failed_interval_waits(night: Night) -> None:
    """The child does the hours whose parent passed, and names what the other one waits for."""
    assert night.committed("child") == IntervalSet([LATE])
    blocked = [b for b in night.broken.blocked if b.model == fqn("child")]
    assert [(b.interval, b.parent, b.reason) for b in blocked] == [(BAD, fqn("counted"), "failed")]


def test_a_failed_interval_stands_alone(night: Night) -> None:
    """One bad row in three hours: two of them are committed, one is reported."""
    assert night.failed("poisoned") == [(BAD, {"audits": [{"audit": "positive", "count": 1}]})]
    assert night.committed("poisoned") == IntervalSet([LATE])


def test_a_unit_that_is_not_over_is_isolated_like_any_other(night: Night) -> None:
    """With `allow_partials` the last piece is shorter than the rest: that hinders nobody from halving."""
    assert night.failed("partial") == [(BAD, {"audits": [{"audit": "positive", "count": 1}]})]
    assert night.committed("partial") == IntervalSet([span(120, 260)])


def test_a_filter_is_not_asked_again_for_each_interval(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that no filter finds in a batch is in none of its intervals: a year of them must not cost a query each."""
    from sqlmesh.core.snapshot import SnapshotEvaluator

    asked: list[str] = []
    real = SnapshotEvaluator.audit

    def audit(self: Any, snapshot: Any, **kwargs: Any) -> Any:
        asked.append(snapshot.name)
        return real(self, snapshot, **kwargs)

    monkeypatch.setattr(SnapshotEvaluator, "audit", audit)
    night.duck.feed(240, 480)
    assert night.mesh.run("upstream", now=at(480)).state == "done"
    assert asked.count(fqn("poisoned")) == 1
    assert asked.count(fqn("counted")) == 1 + 4


# What is recorded of a batch


def test_batches_are_as_large_as_the_model_says(night: Night) -> None:
    """Three hours at two in a batch are two batches."""
    assert [r.interval for r in night.rows["paired"]] == [FIRST, span(60, 180), span(180, 240)]


def test_a_batch_is_recorded_with_its_run_and_its_duration(night: Night) -> None:
    """Who did it and how long it took: what a forecast of the next one needs."""
    row = night.rows["plain"][-1]
    assert row.run_id == night.broken.run_id
    assert row.duration is not None
    assert timedelta(0) < row.duration < timedelta(minutes=1)


def test_rows_are_counted_where_the_engine_says(tmp_path: Path, postgres: LocalPostgres) -> None:
    """Postgres tells how many rows a batch wrote, with several batches of several models at work at once."""
    tiny = TinyMesh(tmp_path, postgres, engine="postgres")
    tiny.feed(0, 240)
    for name in ("bronze", "silver"):
        file = tmp_path / "upstream/models" / f"{name}.sql"
        file.write_text(
            file.read_text().replace(
                "partition_by_time_column FALSE", "partition_by_time_column FALSE, batch_size 4"
            )
        )
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        report = mesh.run("upstream", now=at(240))
        assert report.state == "done"
        manifest = mesh.ledger.manifest("prod")
        counted = {
            (r.interval, r.rows)
            for name, node in manifest.graph.nodes.items() if node.version and node.kind.recorded
            for r in mesh.ledger.coverage_rows(manifest.version_ids[name], ALL)
        }  # fmt: skip
        assert counted == {(span(m, m + 20), 20) for m in range(0, 240, 20)}
    assert tiny.table("silver.events") == tiny.expected(240)["silver.events"]


# Order


@pytest.mark.parametrize("name", ["chained", "unbatched"])
def test_a_model_that_reads_itself_stops_at_the_first_failure(night: Night, name: str) -> None:
    """Nothing later is built on an hour that failed, in the same batch or in the next one."""
    assert [interval for interval, _ in night.failed(name)] == [BAD]
    assert not night.committed(name)


@pytest.mark.parametrize("name", ["chained", "unbatched"])
def test_a_model_that_reads_itself_goes_on_from_where_it_stopped(night: Night, name: str) -> None:
    """Repaired, its hours are done in order: each is numbered one higher than the last."""
    assert night.repaired.committed[fqn(name)] == IntervalSet([span(60, 240)])
    found = night.duck.sql(f"SELECT ts, n FROM lake.{name} WHERE ts < '{naive(240)}' ORDER BY ts")
    if name == "chained":
        assert found == [(naive(35 + 60 * hour), hour + 1) for hour in range(4)]
    else:
        assert [n for _, n in found] == [1, 2, 2, 2]


def test_a_model_that_reads_itself_stops_where_its_parent_failed(night: Night) -> None:
    """An hour that turned out not to be ready when it was to begin is a gap, too: the next hours wait."""
    assert (night.failed("follower"), night.committed("follower")) == ([], IntervalSet())
    assert night.repaired.committed[fqn("follower")] == IntervalSet([span(60, 240)])


def test_a_whole_table_stops_at_the_first_failed_batch(night: Night) -> None:
    """A keyed table that failed an audit is merged into no further, and the run says so and ends well."""
    assert night.failed("keyed") == [(BAD, {"audits": [{"audit": "positive", "count": 1}]})]
    assert not night.committed("keyed")
    assert night.repaired.committed[fqn("keyed")] == IntervalSet([span(60, 240)])


def test_an_exception_of_a_python_model_is_its_intervals_failure(night: Night) -> None:
    """It is told as it was raised; the other hours are done."""
    told = {"error": "ValueError", "message": "a negative value, says the model"}
    assert night.failed("in_python") == [(BAD, told)]
    assert night.committed("in_python") == IntervalSet([LATE])


def test_a_python_model_is_given_its_intervals_bounds(night: Night) -> None:
    """Once all is repaired, it has every row of the source, and none twice."""
    assert night.repaired.committed[fqn("in_python")] == IntervalSet([BAD])
    first, second = (
        night.duck.sql(f"SELECT * FROM {t} WHERE id < 240 ORDER BY id")
        for t in ("lake.in_python", "raw.events")
    )
    assert first == second


@pytest.mark.parametrize(
    "name",
    [
        *("plain", "warned", "softly", "counted", "capped", "poisoned", "child", "paired"),
        *("chained", "unbatched", "follower", "keyed", "picky"),
    ],
)
def test_nothing_that_is_due_is_skipped_in_silence(night: Night, name: str) -> None:
    """G3: committed, failed, or blocked with a reason."""
    told = [f.interval for f in night.broken.failed if f.model == fqn(name)]
    told += [b.interval for b in night.broken.blocked if b.model == fqn(name)]
    assert night.committed(name) | IntervalSet(told) == IntervalSet([span(60, 240)])


# Signals and statements


def test_an_interval_that_a_signal_refuses_is_left_alone(night: Night) -> None:
    """Its hour is not recorded, not suspect and not claimed any more; the hours around it are done."""
    assert night.committed("picky") == IntervalSet([BAD, span(180, 240)])
    version = night.mesh.ledger.manifest("prod").version_ids[fqn("picky")]
    state = night.mesh.ledger.states([version])[version]
    assert (state.marks, state.claims) == ((), ())
    claims = night.mesh.ledger.database.execute(
        "SELECT DISTINCT state FROM meshgate.claim WHERE version_id = %(v)s AND span && %(s)s::tstzrange",
        {"v": version, "s": f"[{at(120).isoformat()},{at(180).isoformat()})"},
    )
    assert claims == [{"state": "abandoned"}]


def test_a_run_executes_its_own_projects_statements_only(night: Night) -> None:
    """`before_all` and `after_all` of upstream run once; downstream's are run by its own runs."""
    assert night.log == ["upstream after", "upstream before"]


BROKEN_SIGNAL = """
from sqlmesh import signal


@signal()
def broken(batch):
    raise ValueError("the signal cannot say")
"""


@pytest.mark.parametrize("what", ["signal", "statement"])
def test_what_breaks_around_the_batches_is_named(tmp_path: Path, postgres: LocalPostgres, what: str) -> None:
    """A signal or a statement that fails stops the run before it wrote anything, as an error of meshgate's own."""
    duck = DuckMesh(tmp_path, postgres, upstream={"plain": copied("lake.plain", "raw.events")})
    duck.sql("CREATE TABLE raw.there (id INT)")
    duck.feed(0, 120)
    with duck.mesh() as mesh:
        if what == "statement":
            settings = duck.config("upstream") | {"before_all": ["SELECT * FROM raw.there"]}
            duck.write("upstream", "config.yaml", json.dumps(settings))
            mesh.deploy("upstream", now=at(60))
            duck.sql("DROP TABLE raw.there")
            said = r"'before_all' statement: SELECT \* FROM raw.there Catalog Error: Table with name there does not exist"
        else:
            mesh.deploy("upstream", now=at(60))
            duck.write("upstream", "signals/__init__.py", "")
            duck.write("upstream", "signals/broken.py", BROKEN_SIGNAL)
            duck.write("upstream", "plain", copied("lake.plain", "raw.events", model="signals (broken())"))
            mesh.deploy("upstream", now=at(60))
            said = r"signal 'broken' for 'lake.plain' at .*plain.sql: the signal cannot say"
        with pytest.raises(EvaluationError, match=said):
            mesh.run("upstream", now=at(120))
        last = mesh.ledger.runs()[0]
        assert (last["state"], last["counts"]["committed"]) == ("failed", 0)
        assert [r.interval for r in rows(mesh, "plain")] == [FIRST]


def test_a_deploy_that_fails_names_the_model_and_the_reason(tmp_path: Path, postgres: LocalPostgres) -> None:
    """SQLMesh raises only that the plan failed; which model and why is in the message all the same."""
    duck = DuckMesh(
        tmp_path, postgres,
        upstream={"audits/positive.sql": AUDITS["positive"], "poisoned": MODELS["poisoned"]},
    )  # fmt: skip
    duck.feed(0, 60)
    duck.set_value(10, -1)
    with (
        duck.mesh() as mesh,
        pytest.raises(EvaluationError, match=r"house\.lake\.poisoned: audit positive found 1"),
    ):
        mesh.deploy("upstream", now=at(60))
