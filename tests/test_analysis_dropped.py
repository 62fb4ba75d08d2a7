"""What an analysis refuses or warns of besides what changes: what a plan would drop of others, and queries that read too far."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from command_line import answer_of
from duck_mesh import DuckMesh, copied, ranged
from meshgate.report.pull_request import markdown
from tiny_mesh import at

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.analysis import Analysis
    from meshgate.local_postgres import LocalPostgres

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("analysis-dropped")]

NOW = 65
EVENTS = copied("lake.events", "raw.events", cron="*/5 * * * *")
READ = "SELECT CAST(@start_dt AS TIMESTAMP) AS ts, {what} AS events\nFROM lake.events\nWHERE {limits}"
WITHIN = "ts >= @start_dt\n  AND ts < @end_dt"
BEYOND = "ts >= @start_dt - INTERVAL 6 DAY\n  AND ts < @end_dt"


def hourly(limits: str, what: str = "count(*)") -> str:
    return ranged("lake.hourly", READ.format(what=what, limits=limits))


@pytest.fixture
def duck(tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    """Both projects deployed to production."""
    found = DuckMesh(tmp_path, postgres, upstream={"events": EVENTS}, downstream={"hourly": hourly(WITHIN)})
    found.feed(0, 60)
    with found.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(60))
    return found


def analysed(duck: DuckMesh, *projects: str, environment: str | None = None) -> Analysis:
    with duck.mesh() as mesh:
        return mesh.analyze(dict.fromkeys(projects), now=at(NOW), environment=environment)


def refused(found: Analysis) -> list[tuple[str, str]]:
    return [(one.what, one.project) for one in found.refusals]


def configure(duck: DuckMesh, project: str, **settings: Any) -> None:
    duck.write(project, "config.yaml", json.dumps(duck.config(project) | settings))


def test_requirements_of_a_project_whose_files_are_not_there(duck: DuckMesh) -> None:
    """The environment remembers one list, and a plan of one project replaces it (SQLMesh #2549)."""
    duck.write("downstream", "sqlmesh-requirements.lock", "numpy==1.26.0\n")
    with duck.mesh() as mesh:
        mesh.deploy("downstream", now=at(NOW))
    alone = analysed(duck, "upstream")
    assert refused(alone) == [("foreign_requirement", "")]
    assert alone.refusals[0].message == (
        "the plan of upstream drops the requirement numpy, and other projects' models may need it"
    )
    assert alone.refused
    assert not analysed(duck, "upstream", "downstream").refused
    assert not analysed(duck, "downstream").refused


def test_statements_of_a_project_whose_files_are_not_there(duck: DuckMesh) -> None:
    """SQLMesh keeps production's since #4952; what only another environment has would be gone."""
    configure(duck, "downstream", before_all=["SELECT 1"])
    duck.write("downstream", "hourly", hourly(WITHIN, "count(id)"))
    with duck.mesh() as mesh:
        mesh.deploy("downstream", environment="dev", now=at(NOW))
    duck.write(
        "upstream", "events", EVENTS.replace("SELECT id, ts, value", "SELECT id, ts, value + 1 AS value")
    )
    alone = analysed(duck, "upstream", environment="dev")
    assert ("foreign_statements", "downstream") in refused(alone)
    assert "the plan of upstream drops the statements before and after runs of project downstream" in {
        one.message for one in alone.refusals
    }
    assert not analysed(duck, "upstream", "downstream", environment="dev").refused
    with duck.mesh() as mesh:
        mesh.deploy("downstream", now=at(NOW))
    assert not refused(analysed(duck, "upstream"))


def test_a_changed_query_that_reads_beyond_its_window_is_told(
    duck: DuckMesh, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With expression and line, as data, as text, and for the pull request; not of models that stay as they are."""
    duck.write("downstream", "hourly", hourly(BEYOND))
    found = analysed(duck, "downstream")
    (told,) = found.windows
    (place,) = told.places
    line = hourly(BEYOND).splitlines().index("WHERE ts >= @start_dt - INTERVAL 6 DAY") + 1
    assert (place.expression, place.file, place.line) == (
        "ts >= @start_dt - INTERVAL 6 DAY", "models/hourly.sql", line,
    )  # fmt: skip
    assert told.message.startswith("lake.hourly reads lake.events from 6d before its start on (`ts >= ")
    assert "{from: -6d}" in told.hint
    comment = markdown(found)
    assert "⚠️ 1 query reads more than its gate waits for" in comment
    assert f"models/hourly.sql:{line}" in comment
    monkeypatch.setenv("COLUMNS", "300")
    said = answer_of(capsys, duck.folder, "analyze", "downstream", "--now", f"{at(NOW):%Y-%m-%dT%H:%M}")
    assert "which queries read more than they wait for" in said.out
    assert f"models/hourly.sql:{line}" in said.out
    (document,) = answer_of(capsys, duck.folder, "analyze", "downstream", "--json").document["windows"]
    assert document["places"] == [{"expression": place.expression, "file": place.file, "line": place.line}]
    # Declared, or unchanged, there is nothing to tell.
    edge = {"reader": "lake.hourly", "parent": "lake.events", "window": {"from": "-6d"}}
    duck.write_mesh({"downstream": {"edges": [edge]}})
    assert analysed(duck, "downstream").windows == ()
    with duck.mesh() as mesh:
        mesh.deploy("downstream", now=at(NOW))
    duck.write_mesh({})
    assert analysed(duck, "downstream").windows == ()


def test_a_window_is_judged_behind_views_of_other_projects(duck: DuckMesh) -> None:
    """What is looked through is rendered too, also from the other project's state."""
    view = "MODEL (name lake.seen, kind VIEW, cron '@hourly'); SELECT id, ts + INTERVAL 1 HOUR AS seen_at FROM lake.events"
    duck.write("upstream", "seen", view)
    with duck.mesh() as mesh:
        mesh.deploy("upstream", now=at(NOW))
    query = "SELECT seen_at AS ts, id FROM lake.seen WHERE seen_at >= @start_dt AND seen_at < @end_dt"
    duck.write("downstream", "late", ranged("lake.late", query))
    (told,) = analysed(duck, "downstream").windows
    assert told.message.startswith(
        "lake.late reads lake.events through lake.seen from 1h before its start on"
    )


def test_who_merges_rows_of_what_is_left_is_left_too(duck: DuckMesh) -> None:
    """Asking for a forward-only table alone would leave it as it was: it does not follow by itself. All of it is asked for."""
    keyed = copied("lake.keyed", "lake.events").replace(
        "INCREMENTAL_BY_TIME_RANGE (time_column ts, partition_by_time_column FALSE)",
        "INCREMENTAL_BY_UNIQUE_KEY (unique_key id)",
    )
    duck.write("downstream", "keyed", keyed)
    forward = copied("lake.events", "raw.events", cron="*/5 * * * *", kind="forward_only TRUE")
    duck.write("upstream", "events", forward)
    with duck.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(NOW))
    duck.write("upstream", "events", forward.replace("ts, value", "ts, value + 1 AS value"))
    found = analysed(duck, "upstream")
    assert [(one.model, one.reason) for one in found.left] == [
        ('"house"."lake"."events"', "forward_only"), ('"house"."lake"."keyed"', "reported"),
    ]  # fmt: skip
    with duck.mesh() as mesh:
        assert mesh.deploy_analysed(found, now=at(NOW)).done
        assert len(mesh.leftovers(found, apply=True).made) == 2
        for project in ("upstream", "downstream"):
            mesh.run(project, now=at(125))
    assert {value for _, stamp, value in duck.table("lake.keyed")} == {2}
