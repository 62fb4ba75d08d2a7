"""`meshgate restate`: preview, request, list, show and cancel, as text and as data; and a restatement from end to end."""

from __future__ import annotations

import getpass
import json
import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from command_line import Answer, answer_of
from ledger_story import PROJECTS, Story, fqn, mesh_graph, node
from meshgate.bridge.contract import installed_versions
from meshgate.coordinator import RunReport
from meshgate.errors import ConfigError, IntervalError, UnknownModelError
from meshgate.graph import Window
from meshgate.interval import Interval, IntervalSet
from meshgate.mesh import Mesh
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

HOUR = ("--from", "2026-01-05T03:00", "--to", "2026-01-05T04:00")
BRONZE, SILVER, GOLD = '"lake"."bronze"."events"', '"lake"."silver"."events"', '"lake"."gold"."hourly"'


@pytest.fixture
def story(database_url: str, tmp_path: Path) -> Story:
    """Six hours of two projects: a rolling reader, a refreshed table, one that merges, and one that is kept as it is."""
    graph = mesh_graph(
        windows={("gold.sales_by_hour", "gold.fact_sales"): Window("interval", timedelta(hours=-2))},
        more=[
            node("gold.dim_product", "downstream", "hour", "full"),
            node("gold.by_customer", "downstream", "hour", "incremental_by_unique_key"),
            node("gold.archive", "downstream", "hour"),
        ],
        reads=[
            ("gold.dim_product", "silver.orders"),
            ("gold.by_customer", "silver.orders"),
            ("gold.archive", "gold.fact_sales"),
        ],
    )
    found = Story(database_url, tmp_path, graph)
    sqlmesh, sqlglot = installed_versions()
    for project in PROJECTS:
        found.ledger.save_manifest(
            project, {"disable_restatement": [fqn("gold.archive")]}, sqlmesh=sqlmesh, sqlglot=sqlglot
        )
    found.time("2026-01-05 06:01")
    found.upstream_until("2026-01-05T06:00")
    with found.run("downstream") as lease:
        for model in ("fact_sales", "sales_by_hour", "dim_product", "by_customer", "archive"):
            found.commit(lease, f"gold.{model}", "2026-01-05/2026-01-05T06:00", duration=timedelta(minutes=6))
    return found


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No line is wrapped, and what the command line does to structlog is undone."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("MESHGATE_DEBUG", raising=False)
    yield
    structlog.reset_defaults()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Calls the command line on the configuration in this test's folder."""

    def run(*arguments: str) -> Answer:
        return answer_of(capsys, tmp_path, "restate", *arguments)

    return run


def requested(story: Story) -> dict[str, str]:
    """What is marked, by model."""
    states = story.ledger.states(story.ids.values())
    return {
        name.replace('"', "").removeprefix("lake."): str(mark.interval)
        for name, key in story.ids.items()
        for mark in states[key].marks
        if mark.kind == "requested"
    }


# Preview


def test_a_preview_tells_what_where_in_which_order_why_and_how_long(story: Story, call: Any) -> None:
    """By project, parents first; where it stops, and how to ask for it. Nothing is written."""
    answer = call("transactions", "--from", "2026-01-05T03:02", "--to", "2026-01-05T03:59")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        "restate bronze.transactions [2026-01-05 03:02, 03:59): preview, nothing is asked for yet",
        "project upstream · prod at 2026-01-05 06:01Z",
        "",
        "upstream",
        "   1. bronze.transactions [2026-01-05 03:00, 04:00)",
        "      asked for; in whole units of 5 minutes",
        "   2. silver.orders [2026-01-05 03:00, 04:00)",
        "      reads bronze.transactions",
        "",
        "downstream",
        "   3. gold.dim_product [2026-01-05 00:00, 06:00), about 6m",
        "      reads silver.orders; each refresh makes the whole table anew",
        "   4. gold.fact_sales [2026-01-05 03:00, 04:00), about 1m",
        "      reads silver.orders",
        "   5. gold.sales_by_hour [2026-01-05 03:00, 06:00), about 3m",
        "      reads gold.fact_sales; over its window on gold.fact_sales (from -2h to 0)",
        "",
        "where it stops",
        (
            "  ● gold.by_customer [2026-01-05 03:00, 06:00) of downstream: it merges rows, and only a rebuild makes it right: its "
            "staleness is reported, --rebuild asks for more"
        ),
        (
            "  ● gold.archive [2026-01-05 03:00, 04:00) of downstream: it declares disable_restatement, or its kind does; what it "
            "holds stays as it is"
        ),
        "",
        "about 10m of evaluation, by the last ones, without 2 models never timed",
        (
            "→ `meshgate restate bronze.transactions --from 2026-01-05T03:02 --to 2026-01-05T03:59 --apply` asks for it"
        ),
    ]
    assert requested(story) == {}


def test_a_preview_as_data(story: Story, call: Any) -> None:
    """Schema, version, steps with their reasons, stops, requests; durations in seconds."""
    found = call("fact_sales", *HOUR, "--json").document
    assert (found["schema"], found["version"]) == ("meshgate.restate", 1)
    assert (found["project"], found["projects"], found["made"]) == ("downstream", ["downstream"], [])
    hour = {"start": "2026-01-05T03:00:00Z", "end": "2026-01-05T04:00:00Z"}
    assert found["requests"] == [{"model": fqn("gold.fact_sales"), "interval": hour}]
    first, second = found["steps"]
    assert (first["asked"], first["range"], first["expected_s"]) == (True, [hour], 60.0)
    assert second["because"] == [fqn("gold.fact_sales")]
    assert second["widened"] == [
        {
            "reason": "window",
            "parent": fqn("gold.fact_sales"),
            "window": {"mode": "interval", "from_s": -7200.0, "to_s": 0.0},
        }
    ]
    assert [(s["name"], s["reason"]) for s in found["stops"]] == [(fqn("gold.archive"), "disabled")]
    assert found["expected_s"] == 240.0


def test_a_preview_tells_what_is_in_flight_and_what_is_asked_for_already(story: Story, call: Any) -> None:
    """A run that writes there has read before; a second request is not a mistake, but worth knowing."""
    call("fact_sales", *HOUR, "--apply")
    story.begin(story.acquire("upstream"), "silver.orders", "2026-01-05T03:00/2026-01-05T03:05")
    lines = call("transactions", *HOUR).out.splitlines()
    place = lines.index("what it meets")
    assert lines[place + 1 : place + 3] == [
        (
            "  ● silver.orders [03:00, 03:05): run 3 of upstream is evaluating it, and read before the request: it is evaluated "
            "once more (its lease until 06:02Z)"
        ),
        "  ● gold.fact_sales is asked for already: request 1",
    ]
    steps = call("transactions", *HOUR, "--json").document["steps"]
    (hit,) = next(s for s in steps if s["model"] == fqn("silver.orders"))["collisions"]
    assert (hit["run_id"], hit["state"]) == (3, "begun")


# Asking


def test_applying_marks_the_asked_model_only(story: Story, call: Any) -> None:
    """Its readers follow by themselves; who asked and why is kept."""
    answer = call("transactions", *HOUR, "--apply", "--reason", "late rows")
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0] == "restate bronze.transactions [2026-01-05 03:00, 04:00): requested (request 1)"
    assert lines[-1] == (
        "→ the next `meshgate run upstream`, `meshgate run downstream` does it; `meshgate restate show 1` tells how far it is"
    )
    assert requested(story) == {"bronze.transactions": "[2026-01-05 03:00, 04:00)"}
    (found,) = story.ledger.requests("prod")
    assert (found.reason, found.made_by) == ("late rows", f"{getpass.getuser()}@{socket.gethostname()}")


def test_only_downstream_marks_the_readers(story: Story, call: Any) -> None:
    """The table was right, what was derived from it was not; one that merges is rebuilt."""
    found = call("silver.orders", *HOUR, "--only-downstream", "--apply", "--json").document
    assert found["made"] == [1, 2, 3]
    assert requested(story) == {
        "gold.by_customer": "[2026-01-05 00:00, 06:00)",
        "gold.dim_product": "[2026-01-05 03:00, 04:00)",
        "gold.fact_sales": "[2026-01-05 03:00, 04:00)",
    }


def test_rebuild_asks_for_the_tables_that_merge_too(story: Story, call: Any) -> None:
    """Each with a request of its own."""
    answer = call("transactions", *HOUR, "--rebuild", "--apply")
    assert answer.out.splitlines()[0].endswith("requested (requests 1, 2)")
    assert set(requested(story)) == {"bronze.transactions", "gold.by_customer"}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The projects that are run, by a stand-in that only upstream fails in."""
    seen: list[str] = []

    def run(self: Mesh, project: str, *, environment: str) -> RunReport:
        seen.append(project)
        state = "failed" if project == "upstream" else "done"
        return RunReport(project, environment, at(0), state, run_id=len(seen))

    monkeypatch.setattr(Mesh, "run", run)
    return seen


def test_now_runs_the_projects_that_it_concerns_parents_first(
    story: Story, call: Any, runs: list[str]
) -> None:
    """Each as ever, whatever became of the one before; anything that failed is exit code 1."""
    answer = call("transactions", *HOUR, "--apply", "--now")
    assert (answer.code, runs) == (1, ["upstream", "downstream"])
    assert "run 1 of upstream: failed" in answer.out
    assert "run 2 of downstream: done" in answer.out
    found = call("fact_sales", *HOUR, "--apply", "--now", "--json").document
    assert (found["made"], [run["project"] for run in found["runs"]]) == ([2], ["downstream"])
    assert runs[2:] == ["downstream"]


def test_now_leaves_projects_of_other_repositories_to_their_own_runs(
    story: Story, call: Any, runs: list[str], tmp_path: Path
) -> None:
    """And says so."""
    config = json.loads((tmp_path / "meshgate.yaml").read_text())
    config["projects"] = [p for p in config["projects"] if p["name"] == "upstream"]
    (tmp_path / "meshgate.yaml").write_text(json.dumps(config))
    answer = call("transactions", *HOUR, "--apply", "--now")
    assert runs == ["upstream"]
    assert "downstream is not in" in answer.err


# Bad input


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (["gold.fact_sale", *HOUR], "there is no model gold.fact_sale", "gold.fact_sales"),
        (["fact_sales", "--from", "2026-01-05T03:00", "--to", "2026-01-05T03:00"], "is empty", "exclusive"),
        (["fact_sales", "--from", "2026-01-05T03:00", "--to", "2026-01-05T02:00"], "is empty", "exclusive"),
        (["fact_sales", "--from", "2027-01-01", "--to", "2027-01-02"], "lies in the future", "due anyway"),
        (["fact_sales", "--from", "yesterday", "--to", "2027-01-02"], "is not an instant", "2026-01-01"),
        (["fact_sales", "--from", "2026-01-05"], "which time of fact_sales", "--to 2026"),
        (["fact_sales", "7"], "takes no number", "meshgate restate show 7"),
        (["fact_sales", *HOUR, "--environment", "dev"], "environment 'dev' is not known", "meshgate deploy"),
        (["gold.archive", *HOUR, "--apply"], "can be computed again", "disable_restatement"),
        (
            ["fact_sales", "--from", "2026-01-05T06:00", "--to", "2026-01-05T06:01", "--apply"],
            "can be computed again",
            "due anyway",
        ),
        (["list", "7"], "takes no number", "meshgate restate list"),
        (["fact_sales", *HOUR, "--now"], "--now runs what was asked for", "add --apply"),
        (["list", "--apply"], "takes no options about a range", "meshgate restate MODEL"),
        (["show"], "which request is to be shown?", "meshgate restate list"),
        (["cancel"], "which request is to be cancelled?", "meshgate restate list"),
        (["show", "7"], "there is no request 7", "meshgate restate list"),
        (["cancel", "7"], "there is no request 7", "meshgate restate list"),
        (["cancel", "seven"], "'seven' is not a valid integer", ""),
    ],
)
def test_wrong_input_is_named_with_what_to_do(
    story: Story, call: Any, arguments: list[str], said: str, hint: str
) -> None:
    """Exit code 2, nothing on stdout, nothing in the ledger."""
    answer = call(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert hint in answer.err
    assert requested(story) == {}


def test_the_python_api_raises_what_the_command_line_tells(story: Story) -> None:
    """Typed, with the facts."""
    past, future = Interval.parse("2026-01-05T03:00/04:00"), Interval.parse("2027-01-01/2027-01-02")
    with story.mesh() as mesh:
        with pytest.raises(UnknownModelError):
            mesh.restate("nobody", past)
        with pytest.raises(IntervalError):
            mesh.restate("fact_sales", future)
        with pytest.raises(ConfigError) as caught:
            mesh.restate("gold.archive", past, apply=True)
        assert caught.value.fields["stops"] == ["disabled"]
        assert mesh.restate("fact_sales", past, apply=True, reason="x", by="ann").made == (1,)
        assert mesh.request(1).request.made_by == "ann"


# List, show, cancel


def test_list_tells_each_request_in_a_line(story: Story, call: Any) -> None:
    """Newest first, with what is done of it."""
    assert call("list").out == "nothing was asked for\n"
    call("transactions", *HOUR, "--apply")
    call("fact_sales", *HOUR, "--apply")
    call("cancel", "2")
    with story.run("upstream") as lease:
        story.commit(lease, "bronze.transactions", "2026-01-05T03:00/2026-01-05T03:15")
    lines = [line.split() for line in call("list").out.splitlines()]
    assert lines[0] == ["request", "model", "range", "by", "at", "state"]
    assert (lines[1][:2], lines[1][-1]) == (["2", "gold.fact_sales"], "cancelled")
    assert (lines[2][:2], lines[2][-3:]) == (["1", "bronze.transactions"], ["open:", "25%", "done"])
    found = call("list", "--json").document
    assert (found["schema"], [r["state"] for r in found["requests"]]) == (
        "meshgate.requests",
        ["cancelled", "open"],
    )


def test_show_tells_how_far_a_request_is_and_what_is_in_its_way(story: Story, call: Any) -> None:
    """What is done, what failed, who is at it, what follows; and when it is done."""
    call("transactions", *HOUR, "--apply", "--reason", "late rows")
    with story.run("upstream") as lease:
        story.commit(lease, "bronze.transactions", "2026-01-05T03:00/2026-01-05T03:30")
        story.fail(lease, "bronze.transactions", "2026-01-05T03:30/2026-01-05T03:35")
    lines = call("show", "1").out.splitlines()
    assert lines[0] == "request 1: bronze.transactions [2026-01-05 03:00, 04:00): open: 50% done"
    assert lines[2].endswith("at 2026-01-05 06:01Z: late rows")
    assert lines[3:6] == [
        "done [2026-01-05 03:00, 03:30)",
        "open [2026-01-05 03:30, 04:00)",
        "  ● [2026-01-05 03:30, 03:35): audit `not_null` failed for 3 rows",
    ]
    assert "  then gold.fact_sales [2026-01-05 03:00, 04:00)" in lines
    with story.run("upstream") as lease:
        story.commit(lease, "bronze.transactions", "2026-01-05T03:30/2026-01-05T04:00")
    assert call("show", "1").out.splitlines()[0].endswith(": done")
    assert call("show", "1", "--json").document["request"]["state"] == "done"


def test_why_names_the_request(story: Story, call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever wonders why an interval is computed again learns who asked for it."""
    call("fact_sales", *HOUR, "--apply", "--reason", "late rows")
    answer = answer_of(capsys, story.folder, "why", "fact_sales", "2026-01-05T03:00/2026-01-05T04:00")
    assert "asked to be computed again by request 1: late rows" in answer.out


def test_cancel_takes_back_what_is_left_and_says_what_was_done(story: Story, call: Any) -> None:
    """The second time it says who was first."""
    call("transactions", *HOUR, "--apply")
    with story.run("upstream") as lease:
        story.commit(lease, "bronze.transactions", "2026-01-05T03:00/2026-01-05T03:30")
    name = "request 1 (bronze.transactions [2026-01-05 03:00, 04:00))"
    assert call("cancel", "1").out == f"{name} is cancelled; [2026-01-05 03:00, 03:30) was done before\n"
    assert requested(story) == {}
    assert call("cancel", "1").out.startswith(f"{name} was cancelled before, by {getpass.getuser()}@")
    found = call("cancel", "1", "--json").document
    assert (found["schema"], found["ended"]) == ("meshgate.request_cancelled", False)
    assert "cancelled by" in call("show", "1").out


# From end to end


def test_an_hour_is_restated_once_by_ordinary_runs(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """Twelve intervals of bronze are one range, made anew by upstream's next run and not by the one after it."""
    tiny = TinyMesh(tmp_path, postgres)
    tiny.feed(0, 180)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(180))
        mesh.deploy("downstream", now=at(180))
        tiny.check(180)
        found = mesh.restate("bronze.events", span(60, 120), reason="the source was mended", by="ann")
        assert [(s.model, s.project, s.range) for s in found.steps] == [
            (BRONZE, "upstream", IntervalSet([span(60, 120)])),
            (SILVER, "upstream", IntervalSet([span(60, 120)])),
            (GOLD, "downstream", IntervalSet([span(60, 120)])),
        ]
        assert all(step.expected for step in found.steps)
        assert mesh.run("upstream", now=at(180)).state == "nothing_to_do"
        (number,) = mesh.restate("bronze.events", span(60, 120), apply=True, by="ann").made
        assert mesh.request(number).request.open == IntervalSet([span(60, 120)])
        report = mesh.run("upstream", now=at(180))
        assert report.committed[BRONZE] == IntervalSet([span(60, 120)])
        assert mesh.request(number).request.state == "done"
        assert BRONZE not in mesh.run("upstream", now=at(180)).committed
        tiny.check(180)


def test_a_deploy_keeps_which_models_disable_restatement(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """The preview stops there without SQLMesh's files."""
    tiny = TinyMesh(tmp_path, postgres)
    tiny.feed(0, 60)
    path = tmp_path / "upstream" / "models" / "silver.sql"
    kept = path.read_text().replace("FALSE)", "FALSE, disable_restatement TRUE)", 1)
    tiny.write("upstream", "silver", kept)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
        found = mesh.restate("bronze.events", span(0, 60))
        assert [step.model for step in found.steps] == [BRONZE]
        assert [(stop.name, stop.reason) for stop in found.stops] == [(SILVER, "disabled")]


def test_tables_that_are_one_whole_are_restated_by_ordinary_runs(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """One refresh for a FULL table; all of its intervals once more for one that merges rows."""
    tiny = TinyMesh(tmp_path, postgres)
    tiny.write(
        "downstream",
        "total",
        "MODEL (name gold.total, kind FULL, cron '@hourly'); SELECT COUNT(*)::BIGINT AS events FROM silver.events",
    )
    tiny.write(
        "downstream",
        "latest",
        "MODEL (name gold.latest, kind INCREMENTAL_BY_UNIQUE_KEY (unique_key value), cron '@hourly');"
        " SELECT value, MAX(ts) AS ts FROM silver.events WHERE ts >= @start_dt AND ts < @end_dt GROUP BY 1",
    )
    tiny.feed(0, 180)
    total, latest = '"lake"."gold"."total"', '"lake"."gold"."latest"'
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(180))
        mesh.deploy("downstream", now=at(180))
        found = mesh.restate("silver.events", span(60, 70), only_downstream=True, apply=True, by="ann")
        assert {s.model: s.range for s in found.steps} == {
            GOLD: IntervalSet([span(60, 120)]),
            total: IntervalSet([span(0, 180)]),
            latest: IntervalSet([span(0, 180)]),
        }
        report = mesh.run("downstream", now=at(180))
        assert set(report.committed) == {GOLD, total, latest}
        assert (report.committed[GOLD], report.committed[latest]) == (
            IntervalSet([span(60, 120)]),
            IntervalSet([span(0, 180)]),
        )
        assert {mesh.request(number).request.state for number in found.made} == {"done"}
        assert mesh.run("downstream", now=at(180)).state == "nothing_to_do"
        tiny.check(180)
