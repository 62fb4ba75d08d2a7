"""Enforced mode: the real `sqlmesh` command line, with one line in each project's config.py, under lease, gate and ledger."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from duck_mesh import DuckMesh, Rows, copied, naive
from meshgate.interval import IntervalSet
from meshgate.ledger import Lease
from meshgate.postgres_server import FSYNC_VARIABLE
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

BRONZE, SILVER, GOLD = '"house"."lake"."bronze"', '"house"."lake"."silver"', '"house"."lake"."gold"'
pytestmark = pytest.mark.cli
PROJECTS = ("upstream", "downstream")
CONFIG = "from meshgate.enforced import enforce\n\nconfig = enforce('base.yaml')\n"
GOLD_TEXT = copied("lake.gold", "lake.silver")
SQLMESH = """
import sys, time_machine
travel = time_machine.travel(sys.argv.pop(1), tick=True)
travel.start()
{prelude}
from sqlmesh.cli.main import cli
cli()
"""
FIVE = "*/5 * * * *"


def enforce(duck: DuckMesh, project: str) -> None:
    """Put a project under the ledger: its configuration under another name, and one line."""
    (duck.folder / project / "config.yaml").rename(duck.folder / project / "base.yaml")
    duck.write(project, "config.py", CONFIG)


@pytest.fixture
def duck(tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    """Upstream, every 5 minutes: bronze, silver from it. Downstream, hourly: gold."""
    duck = DuckMesh(
        tmp_path, postgres,
        upstream={
            "bronze": copied("lake.bronze", "raw.events", cron=FIVE, model="audits (not_negative)"),
            "silver": copied("lake.silver", "lake.bronze", cron=FIVE),
            "audits/not_negative.sql": "AUDIT (name not_negative); SELECT * FROM @this_model WHERE value < 0",
        },
        downstream={"gold": GOLD_TEXT},
    )  # fmt: skip
    duck.write_mesh({p: {"stale_throttle": "0s"} for p in PROJECTS})
    duck.feed(0, 300)
    for project in PROJECTS:
        enforce(duck, project)
    with duck.mesh():  # makes the ledger
        pass
    return duck


def sqlmesh(
    duck: DuckMesh, project: str, now: float, *arguments: str, prelude: str = "", code: int = 0
) -> str:
    """The command line of SQLMesh, in a process whose clock was moved; what it says."""
    command = [sys.executable, "-c", SQLMESH.format(prelude=prelude), at(now).isoformat()]
    done = subprocess.run(
        [*command, "-p", str(duck.folder / project), *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=TinyMesh.environment(),
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    return said


def plan(duck: DuckMesh, project: str, now: float, *arguments: str, code: int = 0, prelude: str = "") -> str:
    """`sqlmesh plan`, applied without questions."""
    flags = () if arguments and not arguments[0].startswith("-") else ("prod",)
    return sqlmesh(
        duck,
        project,
        now,
        "plan",
        *flags,
        *arguments,
        "--auto-apply",
        "--no-prompts",
        code=code,
        prelude=prelude,
    )


def deployed(duck: DuckMesh, now: float) -> None:
    """Both projects, by meshgate, which reads the same config.py and is not asked twice for a lease."""
    with duck.mesh() as mesh:
        for project in PROJECTS:
            mesh.deploy(project, now=at(now))


def source(duck: DuckMesh, upto: float, more: int = 0) -> Rows:
    """What each table holds when everything before an instant is done."""
    return duck.sql("SELECT id, ts, value + ? FROM raw.events WHERE ts < ? ORDER BY id", [more, naive(upto)])


def at_rest(duck: DuckMesh, now: float) -> bool:
    """Whether meshgate finds nothing to do, and nothing that somebody else did."""
    with duck.mesh() as mesh:
        reports = [mesh.run(project, now=at(now)) for project in PROJECTS]
    return all(r.state == "nothing_to_do" and not r.findings for r in reports)


def covered(mesh: Mesh, name: str) -> IntervalSet:
    """What the ledger has recorded of a model."""
    manifest = mesh.ledger.manifest("prod")
    return mesh.ledger.states([manifest.version_id(name)])[manifest.version_id(name)].covered


def test_plain_plans_and_runs_are_those_of_meshgate(duck: DuckMesh) -> None:
    """A plan deploys; a run evaluates its own project's models, and only what is ready; the ledger has it all."""
    for project in PROJECTS:
        plan(duck, project, 60)
    assert "nothing to do" in sqlmesh(duck, "upstream", 61, "run")
    # Upstream has reached 02:00 for nobody yet: downstream's hour waits, and upstream's models are not run for it.
    said = sqlmesh(duck, "downstream", 120, "run")
    assert "lake.bronze" in said  # the root of it
    assert duck.table("lake.silver") == source(duck, 60)
    sqlmesh(duck, "upstream", 120, "run")
    sqlmesh(duck, "downstream", 120, "run")
    for table in ("bronze", "silver", "gold"):
        assert duck.table(f"lake.{table}") == source(duck, 120)
    with duck.mesh() as mesh:
        for name in (BRONZE, SILVER, GOLD):
            assert covered(mesh, name) == IntervalSet([span(0, 120)])
    assert at_rest(duck, 120)


def test_a_run_beside_another_says_who_it_is_and_evaluates_nothing(duck: DuckMesh) -> None:
    """The project's policy counts: `skip` ends well, `fail` does not; both name the run that lives."""
    deployed(duck, 60)
    with duck.mesh() as mesh:
        lease = mesh.ledger.acquire(
            "upstream", "prod", "run", {"pid": 4711, "host": "elsewhere"},
            ttl=timedelta(minutes=10), grace=timedelta(0),
        )  # fmt: skip
        assert isinstance(lease, Lease)
        assert "skipped" in (said := sqlmesh(duck, "upstream", 120, "run"))
        assert "pid 4711 on elsewhere" in said
        duck.write_mesh({"upstream": {"overlap": "fail"}})
        assert "pid 4711 on elsewhere" in sqlmesh(duck, "upstream", 120, "run", code=1)
        assert duck.table("lake.bronze") == source(duck, 60)
        mesh.ledger.finish(lease.run_id, "done", {})
    sqlmesh(duck, "upstream", 120, "run")
    assert duck.table("lake.bronze") == source(duck, 120)


def test_an_interval_that_fails_its_audit_costs_its_readers_one_hour(duck: DuckMesh) -> None:
    """As with meshgate: the failing interval stands alone, SQLMesh's record holds the rest, and the run fails."""
    deployed(duck, 60)
    duck.set_value(92, -1)
    said = sqlmesh(duck, "upstream", 180, "run", code=1)
    assert "`not_negative` failed for 1 row" in said
    sqlmesh(duck, "downstream", 180, "run")
    with duck.mesh() as mesh:
        assert covered(mesh, BRONZE) == IntervalSet([span(0, 90), span(95, 180)])
        assert covered(mesh, GOLD) == IntervalSet([span(0, 60), span(120, 180)])
    duck.set_value(92, 1)
    sqlmesh(duck, "upstream", 180, "run")
    sqlmesh(duck, "downstream", 180, "run")
    assert duck.table("lake.gold") == source(duck, 180)
    assert at_rest(duck, 180)


def test_models_can_be_selected(duck: DuckMesh) -> None:
    """`--select-model` narrows the run to the project's own models among what SQLMesh selects; the gate stays."""
    deployed(duck, 60)
    sqlmesh(duck, "downstream", 120, "run", "--select-model", "lake.gold")
    assert duck.table("lake.bronze") == source(duck, 60)
    sqlmesh(duck, "upstream", 120, "run", "--select-model", "lake.bronze")
    assert (duck.table("lake.bronze"), duck.table("lake.silver")) == (source(duck, 120), source(duck, 60))
    alone = ("--select-model", "lake.silver", "--no-auto-upstream")
    sqlmesh(duck, "upstream", 125, "run", *alone)
    assert duck.table("lake.silver") == source(duck, 120)


def test_a_breaking_plan_upstream_makes_the_readers_anew(duck: DuckMesh) -> None:
    """`sqlmesh plan` is a deploy: gate, ledger, promotion; nothing is found afterwards that the ledger did not know."""
    deployed(duck, 120)
    more = copied("lake.silver", "lake.bronze", cron=FIVE).replace(
        "id, ts, value", "id, ts, value + 1000 AS value"
    )
    duck.write("upstream", "silver", more)
    plan(duck, "upstream", 120)
    assert duck.table("lake.gold") == source(duck, 120, 1000)
    assert at_rest(duck, 120)


def test_a_plan_of_a_development_environment_is_recorded(duck: DuckMesh) -> None:
    """`sqlmesh plan dev` and `sqlmesh run dev` go through the ledger too; production does not see their changes."""
    deployed(duck, 60)
    duck.write("downstream", "gold", GOLD_TEXT.replace("id, ts, value", "id, ts, value + 1000 AS value"))
    plan(duck, "downstream", 60, "dev", "--include-unmodified")
    sqlmesh(duck, "upstream", 120, "run")
    sqlmesh(duck, "downstream", 120, "run", "dev")
    assert duck.table("lake__dev.gold") == source(duck, 120, 1000)
    assert duck.table("lake.gold") == source(duck, 60)
    with duck.mesh() as mesh:
        report = mesh.run("downstream", environment="dev", now=at(120))
    assert (report.state, report.findings) == ("nothing_to_do", ())


RESTATED = (
    "--restate-model",
    "lake.bronze",
    "--start",
    "2026-01-05 01:00:00",
    "--end",
    "2026-01-05 01:04:59",
)
DIES = """
from sqlmesh.core.snapshot import SnapshotEvaluator
import os
whole = SnapshotEvaluator.evaluate
def evaluate(self, snapshot, *args, **kwargs):
    if "silver" in snapshot.name:
        os._exit(137)
    return whole(self, snapshot, *args, **kwargs)
SnapshotEvaluator.evaluate = evaluate
"""


@pytest.mark.parametrize("dies", [False, True])
def test_a_restating_plan_is_a_restatement(duck: DuckMesh, *, dies: bool) -> None:
    """What it evaluates is newer in the ledger, so other projects' readers follow; a crash in the middle loses nothing."""
    deployed(duck, 120)
    duck.set_value(61, 50)
    plan(duck, "upstream", 120, *RESTATED, prelude=DIES if dies else "", code=137 if dies else 0)
    assert (61, naive(61), 50) in duck.table("lake.bronze")
    with duck.mesh() as mesh:
        (request,) = mesh.requests()
        assert (request.model, request.interval) == (BRONZE, span(60, 65))
        if dies:
            mesh.run("upstream", now=at(120))
        assert mesh.requests()[0].state == "done"
        assert duck.table("lake.silver") == source(duck, 120)
        assert duck.table("lake.gold") != source(duck, 120)
    said = sqlmesh(duck, "downstream", 120, "run")
    assert "committed" in said
    assert duck.table("lake.gold") == source(duck, 120)
    assert at_rest(duck, 120)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--ignore-cron"), "--ignore-cron"),
        (("run", "--end", "2026-01-05"), "--end"),
        (("run", "elsewhere"), "was not found"),
        (("plan", "prod", "--empty-backfill", "--auto-apply", "--no-prompts"), "--empty-backfill"),
    ],
)
def test_what_does_not_go_under_the_ledger_is_refused(
    duck: DuckMesh, arguments: tuple[str, ...], said: str
) -> None:
    """With what, where and what to do; nothing is evaluated."""
    deployed(duck, 60)
    duck.write(
        "upstream",
        "silver",
        copied("lake.silver", "lake.bronze", cron=FIVE).replace("value FROM", "value + 1 AS value FROM"),
    )
    assert said in sqlmesh(duck, "upstream", 120, *arguments, code=1)
    assert duck.table("lake.bronze") == source(duck, 60)


def test_without_a_ledger_nothing_is_evaluated(duck: DuckMesh) -> None:
    """An environment that the ledger does not know, and a ledger that does not answer: an error in a few words."""
    deployed(duck, 60)
    file = duck.folder / "meshgate.yaml"
    kept = file.read_text()
    mesh = json.loads(kept)
    mesh["ledger"]["url"] = "postgresql://nobody@127.0.0.1:1/nowhere"
    file.write_text(json.dumps(mesh))
    for arguments in (("run",), ("plan", "prod", *RESTATED, "--auto-apply", "--no-prompts")):
        said = sqlmesh(duck, "upstream", 120, *arguments, code=1)
        assert "Error:" in said
        assert "ledger" in said
        assert "Traceback" not in said
    mesh["ledger"]["url"] = duck.postgres.ensure_database(f"empty_{duck.key}")
    file.write_text(json.dumps(mesh))
    assert "meshgate migrate" in sqlmesh(duck, "upstream", 120, "run", code=1)
    file.write_text(
        json.dumps({**json.loads(kept), "projects": [{"name": "downstream", "path": "downstream"}]})
    )
    assert "'upstream'" in sqlmesh(duck, "upstream", 120, "run", code=1)
    assert duck.table("lake.bronze") == source(duck, 60)


def test_a_private_server_is_there_before_the_configuration_is_read(
    duck: DuckMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `ledger: local`, and SQLMesh's state in the same server, which nobody but these commands starts."""
    monkeypatch.setenv(FSYNC_VARIABLE, "off")
    duck.write_mesh({p: {"stale_throttle": "0s"} for p in PROJECTS}, url="local")
    names = {
        key: f"{{{{ env_var('MESHGATE_LOCAL_{key.upper()}') }}}}" for key in ("host", "user", "password")
    }
    for project in PROJECTS:
        config = duck.config(project)
        config["gateways"]["local"]["state_connection"] = {
            "type": "postgres", **names, "port": "PORT", "database": "meshgate",
        }  # fmt: skip
        text = json.dumps(config).replace('"PORT"', "{{ env_var('MESHGATE_LOCAL_PORT') }}")
        duck.write(project, "base.yaml", text)
    command = [sys.executable, "-m", "meshgate", "--config", str(duck.folder)]
    subprocess.run([*command, "migrate"], check=True, capture_output=True, timeout=120)
    for project in PROJECTS:
        plan(duck, project, 120)
    duck.set_value(61, 50)
    plan(duck, "upstream", 120, *RESTATED)
    assert "committed" in sqlmesh(duck, "downstream", 120, "run")
    assert duck.table("lake.gold") == source(duck, 120)
    verified = [*command, "verify"]
    assert subprocess.run(verified, check=False, capture_output=True, timeout=120).returncode == 0
    (duck.folder / "meshgate.yaml").unlink()
    assert "meshgate.yaml" in sqlmesh(duck, "upstream", 120, "run", code=1)


def test_a_run_that_loses_its_lease_stops(duck: DuckMesh) -> None:
    """The breaker: what was under way is not recorded in either place, and the next run does it."""
    deployed(duck, 60)
    evicts = """
from sqlmesh.core.snapshot import SnapshotEvaluator
import psycopg2
whole = SnapshotEvaluator.evaluate
def evaluate(self, snapshot, *args, **kwargs):
    if "bronze" in snapshot.name:
        with psycopg2.connect("{url}") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT meshgate.break_run(max(run_id), 'tester') FROM meshgate.run WHERE state = 'running'")
    return whole(self, snapshot, *args, **kwargs)
SnapshotEvaluator.evaluate = evaluate
""".replace("{url}", duck.state_url)
    said = sqlmesh(duck, "upstream", 120, "run", prelude=evicts, code=1)
    assert "lost" in said
    assert duck.table("lake.silver") == source(duck, 60)
    with duck.mesh() as mesh:
        assert covered(mesh, BRONZE) == IntervalSet([span(0, 60)])
    with duck.mesh() as mesh:
        report = mesh.run("upstream", now=at(120))
        assert not [f for f in report.findings if f.what == "added"]
