"""What newcomers get wrong before the first deploy: `meshgate doctor` names each, and says what to do; nothing is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from command_line import answer_of
from duck_mesh import DuckMesh, copied, ranged
from meshgate.db import Database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

HOURLY = "SELECT ts, COUNT(*) AS n FROM lake.events WHERE ts >= @start_dt AND ts < @end_dt GROUP BY 1"
PYTHON = """
import typing as t
from datetime import datetime
from sqlmesh import ExecutionContext, model

@model("lake.scores", kind="FULL", cron="@hourly", columns={"id": "int"})
def execute(context: ExecutionContext, start: datetime, end: datetime, execution_time: datetime, **kwargs: t.Any):
    import no_such_package
    from datetime import timezone
    yield from ()
"""


@pytest.fixture
def duck(tmp_path: Path, postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch) -> DuckMesh:
    """Two sound projects; nothing was deployed, there is no ledger."""
    monkeypatch.setenv("SQLMESH__DISABLE_ANONYMIZED_ANALYTICS", "true")
    monkeypatch.setenv("COLUMNS", "400")
    found = DuckMesh(
        tmp_path, postgres,
        upstream={"events": copied("lake.events", "raw.events", cron="*/5 * * * *")},
        downstream={"hourly": ranged("lake.hourly", HOURLY)},
    )  # fmt: skip
    schedules(found)
    return found


def schedules(
    duck: DuckMesh, upstream: dict[str, Any] | None = None, downstream: dict[str, Any] | None = None
) -> None:
    duck.write_mesh(
        {
            "upstream": {"schedule": "*/5 * * * *", **(upstream or {})},
            "downstream": {"schedule": "0 * * * *", **(downstream or {})},
        }
    )


def configured(project: str, change: Callable[[DuckMesh, dict[str, Any]], Any]) -> Callable[[DuckMesh], None]:
    """Change the SQLMesh configuration of a project."""

    def make(duck: DuckMesh) -> None:
        config = duck.config(project)
        change(duck, config)
        duck.write(project, "config.yaml", json.dumps(config))

    return make


def gateway(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["gateways"]["local"]
    return found


def another_state(duck: DuckMesh, config: dict[str, Any]) -> None:
    duck.postgres.ensure_database(f"duck_{duck.key}_b")
    gateway(config)["state_connection"]["database"] += "_b"


def two_gateways(_: DuckMesh, config: dict[str, Any]) -> None:
    other = json.loads(json.dumps(gateway(config))) | {"state_schema": "elsewhere"}
    config["gateways"]["other"] = other
    config["default_gateway"] = "other"


def old_state(duck: DuckMesh) -> None:
    database = Database(duck.state_url)
    database.execute(
        "CREATE SCHEMA sqlmesh; CREATE TABLE sqlmesh._versions (schema_version int, sqlglot_version text, sqlmesh_version text); "
        "INSERT INTO sqlmesh._versions VALUES (99, '25.0.0', '0.150.2')"
    )
    database.close()


def another_file(duck: DuckMesh, config: dict[str, Any]) -> None:
    with duckdb.connect(str(duck.folder / "other.duckdb")) as connection:
        connection.execute("SELECT 1")
    # Under the same name, so that the readers' names lead across.
    gateway(config)["connection"] = {
        "type": "duckdb",
        "catalogs": {"house": str(duck.folder / "other.duckdb")},
    }


EDGE = {"reader": "lake.hourly", "parent": "lake.evens", "window": "latest"}
# What is wrong, then: which check, of what, how bad; a part of what it says, and of what it says to do.
MISTAKES: dict[str, tuple[Callable[[DuckMesh], Any], str, str, str, str, str]] = {
    "no ledger": (
        lambda _: None, "ledger", "", "fail", "no complete ledger", "run `meshgate migrate`"),
    "no key": (
        configured("upstream", lambda _, c: c.pop("project")),
        "project", "upstream", "fail", "has no `project:` key", "write `project: upstream` into its config.yaml"),
    "paths interchanged": (
        lambda d: schedules(d, {"path": "downstream"}, {"path": "upstream"}),
        "project", "upstream", "fail", "has `project: downstream`", "are the two paths interchanged?"),
    "gateway misspelt": (
        lambda d: schedules(d, {"gateway": "lokal"}),
        "project", "upstream", "fail", "gateway 'lokal' is not configured", "did you mean local?"),
    "edge misspelt": (
        lambda d: schedules(d, downstream={"edges": [EDGE]}),
        "names", "downstream", "warn", "there is no model lake.evens", "did you mean lake.events"),
    "edge of another project": (
        lambda d: schedules(d, upstream={"edges": [{**EDGE, "parent": "lake.events"}]}),
        "names", "upstream", "warn", "is about a reader of project 'downstream'", "move the entry there"),
    "edge that is none": (
        lambda d: schedules(d, downstream={"edges": [{**EDGE, "parent": "raw.events"}]}),
        "names", "downstream", "warn", "lake.hourly does not read", "remove the entry"),
    "policy misspelt": (
        lambda d: schedules(d, downstream={"models": {"lake.hourli": {"stale": "report"}}}),
        "names", "downstream", "warn", "names a model that does not exist", "did you mean lake.hourly"),
    "source misspelt": (
        lambda d: schedules(d, upstream={"sources": [{"table": "raw.event", "time_column": "ts"}]}),
        "names", "upstream", "warn", "names what is not read", "did you mean raw.events?"),
    "schedule too rare": (
        lambda d: schedules(d, upstream={"schedule": "0 * * * *"}),
        "schedule", "upstream", "warn", "is rarer than the cron of lake.events", "let it run every 5m"),
    "schedule more frequent": (
        lambda d: schedules(d, downstream={"schedule": "*/5 * * * *"}),
        "schedule", "downstream", "ok", "it runs every 5m, and the most frequent model is due every 1h", ""),
    "package missing": (
        lambda d: d.write("upstream", "models/scores.py", PYTHON),
        "models", "upstream", "fail", "the Python package no_such_package is not installed here, and lake.scores",
        "install it where"),
    "file that cannot be read": (
        lambda d: d.write("upstream", "events", "MODEL ("),
        "models", "upstream", "fail", "cannot be loaded", ""),
    "two owners": (
        lambda d: d.write("downstream", "events", copied("lake.events", "raw.events")),
        "models", "", "fail", "model lake.events is defined by 'upstream' and by 'downstream'", "rename it in one"),
    "no models": (
        lambda d: (d.folder / "upstream" / "models" / "events.sql").unlink(),
        "models", "upstream", "warn", "has no models", "correct its `path:`"),
    "states apart": (
        configured("upstream", another_state),
        "states", "", "ok", "the projects keep SQLMesh's state apart", ""),
    "state forgotten": (
        configured("upstream", lambda _, c: gateway(c).pop("state_connection")),
        "states", "", "warn", "the projects keep SQLMesh's state apart", "give upstream the `state_connection`"),
    "state in a file": (
        configured("upstream", lambda _, c: gateway(c).pop("state_connection")),
        "state", "upstream", "warn", "admits one process at a time", "give its gateway a `state_connection` in Postgres"),
    "state away": (
        configured("upstream", lambda _, c: gateway(c)["state_connection"].update(port=1)),
        "state", "upstream", "fail", "has a state that cannot be reached", ""),
    "state of another version": (
        old_state, "state", "upstream", "fail", "was written by SQLMesh 0.150.2", "sqlmesh migrate"),
    "one checkout, two states": (
        lambda d: (configured("upstream", two_gateways)(d), schedules(d, {"gateway": "local"})),
        "state", "upstream", "warn", "plain `sqlmesh` in the same folder uses another one", "default_gateway: local"),
    "warehouse away": (
        configured("upstream", lambda _, c: gateway(c).update(connection={
            "type": "postgres", "host": "127.0.0.1", "port": 1, "user": "u", "password": "p", "database": "d"})),
        "warehouse", "upstream", "fail", "has a warehouse that cannot be reached", "correct the connection"),
    "warehouse is another file": (
        configured("upstream", another_file),
        "warehouse", "", "warn", "of the other", "one warehouse"),
    "relative file": (
        configured("upstream", lambda _, c: gateway(c)["connection"].update(database="house.db")),
        "warehouse", "upstream", "warn", "in each working folder it is another file", "write the whole path"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_what_to_do(
    duck: DuckMesh, mistake: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which check finds it, how bad it is; the other checks are made all the same, and no file appears."""
    monkeypatch.chdir(duck.folder)
    make, name, subject, outcome, said, todo = MISTAKES[mistake]
    make(duck)
    before = {
        path
        for path in duck.folder.rglob("*")
        if ".cache" not in path.parts and "__pycache__" not in path.parts
    }
    answer = answer_of(capsys, duck.folder, "doctor", "--json")
    checks = answer.document["checks"]
    found = [c for c in checks if (c["name"], c["subject"], c["outcome"]) == (name, subject, outcome)]
    assert [c for c in found if said in c["message"] and todo in (c["hint"] or "")], checks
    assert answer.code == 2  # there is no ledger
    assert {c["name"] for c in checks} >= {"config", "sqlmesh", "ledger", "project"}
    assert duck.postgres.password not in answer.out
    after = {
        path
        for path in duck.folder.rglob("*")
        if ".cache" not in path.parts and "__pycache__" not in path.parts
    }
    assert after == before


def test_sound_projects_are_sound_before_anything_is_deployed(
    duck: DuckMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a ledger, nothing but the two deploys is missing."""
    with duck.mesh():
        pass
    answer = answer_of(capsys, duck.folder, "doctor", "--json")
    wrong = [
        (c["name"], c["subject"], c["outcome"]) for c in answer.document["checks"] if c["outcome"] != "ok"
    ]
    assert wrong == [
        ("manifest", "upstream", "warn"),
        ("manifest", "downstream", "warn"),
        ("runs", "prod", "warn"),
    ]
    with duck.mesh() as mesh:
        database = Database(duck.state_url)
        assert database.rows("environments") == []
        database.close()
        assert mesh.ledger.live_runs() == ()


def test_an_environment_that_is_misspelt_is_told_the_nearest(
    duck: DuckMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known ones are those that something was deployed to; another state than then is told too."""
    duck.feed(0, 10)
    with duck.mesh() as mesh:
        mesh.deploy("upstream")
    schedules(duck, {"environment": "prood"})
    checks = answer_of(capsys, duck.folder, "doctor", "--json").document["checks"]
    (told,) = [c for c in checks if c["name"] == "environment"]
    assert (told["outcome"], "did you mean prod?" in told["hint"]) == ("warn", True), told
    schedules(duck)
    configured("upstream", another_state)(duck)
    checks = answer_of(capsys, duck.folder, "doctor", "--json").document["checks"]
    (told,) = [c for c in checks if c["name"] == "environment"]
    assert "it was another state" in told["message"], told
