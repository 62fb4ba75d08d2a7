"""What projects, environments and states can have wrong: one message, the right exit code, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from command_line import Answer, answer_of
from duck_mesh import DuckMesh, copied
from meshgate.db import Database
from meshgate.ledger import Ledger
from tiny_mesh import at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

    Break = Callable[[DuckMesh], None]
    Call = Callable[..., Answer]

pytestmark = pytest.mark.xdist_group("bad_input")

A, B = copied("lake.a", "raw.events"), copied("lake.b", "lake.a")
NOW = ("--now", "2026-01-05T02:00")  # deployed at 01:00: an hour is due
WRONG = "wr0ng-s3cret"
# What a command that is refused leaves as it was; a run that was refused after it began is told in `run` and `event`.
KEPT = (
    *(f"meshgate.{t}" for t in ("project", "model", "version", "promotion", "edge")),
    *(f"meshgate.{t}" for t in ("claim", "coverage", "mark", "dirty_span")),
    *(f"sqlmesh.{t}" for t in ("_snapshots", "_environments", "_intervals", "_versions")),
)


def deployed(folder: Path, postgres: LocalPostgres) -> DuckMesh:
    """Two projects, deployed at 01:00."""
    duck = DuckMesh(folder, postgres, upstream={"a": A}, downstream={"b": B})
    duck.feed(0, 240)
    with duck.mesh() as mesh:
        for project in ("upstream", "downstream"):
            assert mesh.deploy(project, now=at(60)).state == "done"
    return duck


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, postgres: LocalPostgres) -> DuckMesh:
    """A mesh for many tests: none of them may get anything done."""
    return deployed(tmp_path_factory.mktemp("sound"), postgres)


@pytest.fixture
def fresh(tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    """A mesh for a test that does get something done."""
    return deployed(tmp_path, postgres)


@pytest.fixture
def duck(sound: DuckMesh, tmp_path: Path) -> Iterator[DuckMesh]:
    """The mesh for a test to break; its files are put back afterwards."""
    kept = tmp_path / "kept"
    shutil.copytree(sound.folder, kept, ignore=shutil.ignore_patterns("*.duckdb*", ".cache"))
    yield sound
    for project in ("upstream", "downstream"):
        shutil.rmtree(sound.folder / project, ignore_errors=True)
    shutil.copytree(kept, sound.folder, dirs_exist_ok=True)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Calls the command line on a mesh."""
    yield lambda duck, *arguments: answer_of(capsys, duck.folder, *arguments)
    structlog.reset_defaults()


@contextmanager
def database(duck: DuckMesh) -> Iterator[Database]:
    opened = Database(duck.state_url)
    yield opened
    opened.close()


def contents(duck: DuckMesh) -> dict[str, Any]:
    """Every row of what must not change."""
    with database(duck) as opened:
        return {
            table: sorted(row["row"] for row in opened.execute(f"SELECT t::text AS row FROM {table} AS t"))
            for table in KEPT
        }


def refused(duck: DuckMesh, call: Call, *arguments: str, code: int = 2) -> str:
    """Call a command that must be refused without having written anything; what it said."""
    before, tables = contents(duck), duck.sql("SELECT COUNT(*) FROM lake.a")
    answer = call(duck, *arguments)
    assert answer.code == code, answer.out + answer.err
    assert contents(duck) == before
    assert duck.sql("SELECT COUNT(*) FROM lake.a") == tables
    with database(duck) as opened:
        runs = opened.execute(
            "SELECT state, error FROM meshgate.run WHERE state NOT IN ('done', 'nothing_to_do')"
        )
    assert {run["state"] for run in runs} <= {"failed"}
    assert answer.out == ""
    first, *hint = answer.err.splitlines()
    assert first.startswith("error: ")
    assert [line[:4] for line in hint] in ([], ["  → "])
    for secret in (duck.postgres.password, WRONG):
        assert secret not in answer.err + str(runs)
    return answer.err


# Projects


def config(**changes: Any) -> Break:
    """Upstream's configuration with other keys; None takes a key away."""

    def do(duck: DuckMesh) -> None:
        merged = duck.config("upstream") | changes
        duck.write("upstream", "config.yaml", json.dumps({k: v for k, v in merged.items() if v is not None}))

    return do


def connection(kind: str, **changes: Any) -> Break:
    """Upstream's configuration with another connection."""

    def do(duck: DuckMesh) -> None:
        found = duck.config("upstream")
        found["gateways"]["local"][kind] |= changes
        duck.write("upstream", "config.yaml", json.dumps(found))

    return do


def text(name: str, content: str) -> Break:
    """Another file of upstream."""
    return lambda duck: duck.write("upstream", name, content)


def gone(path: str) -> Break:
    """A file or folder that is not there any more."""

    def do(duck: DuckMesh) -> None:
        found = duck.folder / path
        shutil.rmtree(found) if found.is_dir() else found.unlink()

    return do


def meshgate_yaml(**projects: dict[str, Any]) -> Break:
    """Another meshgate.yaml."""
    return lambda duck: duck.write_mesh(projects)


PROJECTS: dict[str, tuple[Break, list[str]]] = {
    "no-project-key": (config(project=None), ["upstream has no `project:` key", "→ meshgate.yaml calls it 'upstream': write"]),
    "one-key-for-two": (config(project="downstream"), ["upstream has `project: downstream`", "write `project: upstream`"]),
    "no-folder": (gone("upstream"), ["there is no folder ", "→ correct the project's `path:`"]),
    "no-config": (gone("upstream/config.yaml"), ["upstream has no usable configuration: SQLMesh project config could not be found"]),
    "no-yaml": (
        text("config.yaml", f"project: upstream\ngateways: {{local: {{connection: {{password: {WRONG}: x}}}}}}"),
        ["upstream has no usable configuration: it is not well-formed YAML: line 2, column"],
    ),
    "no-alias": (
        text("config.yaml", f"project: upstream\nvariables:\n  password: *{WRONG}"),
        ["upstream has no usable configuration: it is not well-formed YAML: line 3, column"],
    ),
    "unknown-key": (
        connection("state_connection", pasword=WRONG),
        ["upstream has no usable configuration: Invalid 'postgres' connection config", "'pasword'"],
    ),
    "wrong-type": (connection("state_connection", port=WRONG), ["Invalid field 'port'"]),
    "wrong-password": (connection("state_connection", password=WRONG), ["cannot be opened", "password authentication failed"]),
    "no-server": (connection("state_connection", port=1), ["cannot be opened", "Connection refused"]),
    "no-gateway": (meshgate_yaml(upstream={"gateway": "nope"}), ["cannot be opened", "gateway with name 'nope'"]),
}  # fmt: skip


@pytest.mark.parametrize("command", ["deploy", "run"])
@pytest.mark.parametrize("wrong", PROJECTS)
def test_a_project_that_cannot_be_used_is_named(duck: DuckMesh, call: Call, wrong: str, command: str) -> None:
    """Its key, its folder, its configuration, its connection: which project, what is wrong, no password."""
    make, said = PROJECTS[wrong]
    make(duck)
    told = refused(duck, call, command, "upstream", *NOW)
    assert [part for part in said if part not in told] == [], told


@pytest.mark.parametrize("wrong", PROJECTS)
def test_doctor_finds_what_is_wrong_with_a_project(duck: DuckMesh, call: Call, wrong: str) -> None:
    """Exit code 2, the check that failed names the project, and the other project is looked at all the same."""
    PROJECTS[wrong][0](duck)
    before = contents(duck)
    answer = call(duck, "doctor", "--json")
    assert (answer.code, answer.document["outcome"]) == (2, "fail")
    failed = {check["subject"] for check in answer.document["checks"] if check["outcome"] == "fail"}
    assert failed == {"upstream"}
    assert "ok" in {c["outcome"] for c in answer.document["checks"] if c["subject"] == "downstream"}
    assert contents(duck) == before
    assert not [secret for secret in (duck.postgres.password, WRONG) if secret in answer.out + answer.err]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            meshgate_yaml(downstream={"name": "upstream"}),
            "projects[1].name 'upstream' is the name of two projects",
        ),
        (
            meshgate_yaml(downstream={"path": "upstream"}),
            "projects[1].path is also the path of project 'upstream'",
        ),
    ],
    ids=["name", "path"],
)
@pytest.mark.parametrize("command", ["deploy", "run"])
def test_two_projects_are_two(duck: DuckMesh, call: Call, make: Break, said: str, command: str) -> None:
    """One name or one folder for both is refused before anything is opened."""
    make(duck)
    assert said in refused(duck, call, command, "upstream", *NOW)


# Models


def test_a_model_has_one_owner(duck: DuckMesh, call: Call) -> None:
    """The second project that brings a model is refused, and told whose it is."""
    duck.write("downstream", "a", A)
    told = refused(duck, call, "deploy", "downstream", *NOW)
    assert (
        "model house.lake.a is owned twice: by 'upstream' in environment 'prod' and by the files of 'downstream'"
        in told
    )
    assert "→ rename it in one of the two, or remove it from 'upstream' and deploy that first" in told


def test_a_model_has_one_owner_whatever_state_its_project_has(fresh: DuckMesh, call: Call) -> None:
    """Projects with a SQLMesh state each meet in the ledger, and it knows the owner."""
    other = fresh.config("downstream")
    other["gateways"]["local"]["state_connection"]["database"] = f"other_{fresh.key}"
    fresh.postgres.ensure_database(f"other_{fresh.key}")
    fresh.write("downstream", "config.yaml", json.dumps(other))
    fresh.write("downstream", "a", A)
    assert "owned twice" in refused(fresh, call, "deploy", "downstream", *NOW)


MODELS = {
    "twice": (text("again", A), "Duplicate SQL model name: 'lake.a'"),
    "syntax": (text("a", A.replace("SELECT", "SELEC")), "upstream/models/a.sql': Invalid expression"),
    "kind": (
        text("a", "MODEL (name lake.a, kind NONSENSE); SELECT 1 AS x"),
        "'NONSENSE', but that is not a valid model kind",
    ),
    "audit": (
        text("a", copied("lake.a", "raw.events", model="audits (nonsense)")),
        "Audit 'nonsense' is undefined at",
    ),
    "circle": (text("a", copied("lake.a", "lake.b")), "Detected a cycle"),
    "removed": (gone("upstream/models/a.sql"), "are referenced in"),
}


@pytest.mark.parametrize("wrong", MODELS)
def test_a_model_that_cannot_be_planned_is_named(duck: DuckMesh, call: Call, wrong: str) -> None:
    """SQLMesh's own reason, in one line, with the project before it; the environment is as it was."""
    make, said = MODELS[wrong]
    make(duck)
    told = refused(duck, call, "deploy", "upstream", *NOW)
    assert "the SQLMesh project 'upstream' in " in told
    assert said in told


def test_a_model_that_the_engine_refuses_fails_the_deploy(fresh: DuckMesh, call: Call) -> None:
    """Exit code 1, the model and the engine's reason; the environment promotes what it did, and runs go on."""
    fresh.write("upstream", "a", copied("lake.a", "raw.not_there"))
    before = contents(fresh)
    answer = call(fresh, "deploy", "upstream", *NOW)
    assert (answer.code, answer.out) == (1, "")
    assert "the plan of 'upstream' for 'prod' was not applied: house.lake.a: Catalog Error" in answer.err
    after = contents(fresh)
    kept = ("meshgate.promotion", "meshgate.coverage", "sqlmesh._environments", "sqlmesh._intervals")
    assert {t: after[t] for t in kept} == {t: before[t] for t in kept}


WINDOWS = {
    "unknown": ({"reader": "lake.b", "parent": "lake.nope", "window": "latest"}, ["names a model that does not exist", "lake.nope"]),
    "another's": ({"reader": "lake.a", "parent": "lake.b", "window": "latest"}, ["is about a reader of project 'upstream'", "move the entry"]),
    "not-read": ({"reader": "lake.b", "parent": "lake.b", "window": "latest"}, ["does not exist", "does not read"]),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WINDOWS)
def test_a_window_on_what_is_not_read_is_named(duck: DuckMesh, call: Call, wrong: str) -> None:
    """The edge, its project and what is wrong with it."""
    edge, said = WINDOWS[wrong]
    duck.write_mesh({"downstream": {"edges": [edge]}})
    told = refused(duck, call, "deploy", "downstream", "--now", "2026-01-05T01:00")
    assert [part for part in said if part not in told] == [], told


def test_a_wrong_window_is_seen_before_the_plan_is_applied(fresh: DuckMesh, call: Call) -> None:
    """Also where SQLMesh's plan has nothing to evaluate, only something to promote."""
    fresh.write_mesh({"downstream": {"edges": [WINDOWS["unknown"][0]]}})
    fresh.write("downstream", "b", copied("lake.b", "lake.a", model="description 'more'"))
    refused(fresh, call, "deploy", "downstream", "--now", "2026-01-05T01:00")


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"limits": {"models": {"lake.bb": 1}}}, ["limits.models of project 'downstream'", "does not exist", "lake.b"]),
        ({"exclusive": ["lake.a"]}, ["exclusive of project 'downstream'", "a model of project 'upstream'", "owns the model"]),
    ],
    ids=["unknown", "another's"],
)  # fmt: skip
def test_a_limit_on_a_model_that_the_project_does_not_have_is_named(
    duck: DuckMesh, call: Call, policy: dict[str, Any], said: list[str]
) -> None:
    """By the deploy that would make it count, before its plan is applied."""
    duck.write_mesh({"downstream": policy})
    told = refused(duck, call, "deploy", "downstream", "--now", "2026-01-05T01:00")
    assert [part for part in said if part not in told] == [], told


# Environments


@pytest.mark.parametrize("command", ["run", "status", "why"])
def test_an_environment_that_was_never_planned_is_named(duck: DuckMesh, call: Call, command: str) -> None:
    """And the command that plans it."""
    subject = {"run": ["upstream"], "status": [], "why": ["lake.a"]}[command]
    told = refused(duck, call, command, *subject, "--environment", "nowhere", *NOW)
    assert "environment 'nowhere' is not known to the ledger" in told
    assert "--environment nowhere`" in told


@pytest.mark.parametrize("name", ["Dev", "a b", "pr/12"])
@pytest.mark.parametrize("command", ["deploy", "run"])
def test_an_environment_has_the_name_that_sqlmesh_keeps(
    duck: DuckMesh, call: Call, name: str, command: str
) -> None:
    """SQLMesh would quietly write another one."""
    told = refused(duck, call, command, "upstream", "--environment", name, *NOW)
    assert f"{name!r} is not the name of an environment" in told


def test_an_empty_environment_is_not_the_default(fresh: DuckMesh, call: Call) -> None:
    """`--environment "$UNSET"` must not run in production."""
    refused(fresh, call, "run", "upstream", "--environment", "", *NOW)


@contextmanager
def state_with(duck: DuckMesh, table: str, change: str) -> Iterator[None]:
    """Change a table of SQLMesh's own state, and put it back."""
    with database(duck) as opened:
        opened.execute(f"CREATE TABLE kept AS TABLE sqlmesh.{table}")
        try:
            opened.execute(change)
            yield
        finally:
            opened.execute(f"TRUNCATE sqlmesh.{table}")
            opened.execute(f"INSERT INTO sqlmesh.{table} TABLE kept")
            opened.execute("DROP TABLE kept")


def test_an_environment_that_sqlmesh_has_lost_is_named(duck: DuckMesh, call: Call) -> None:
    """The ledger remembers it, but somebody took it away: nothing is evaluated on memories."""
    with state_with(duck, "_environments", "DELETE FROM sqlmesh._environments"):
        told = refused(duck, call, "run", "upstream", *NOW)
    assert "environment 'prod' was never planned: SQLMesh's state has no such environment" in told
    assert "→ run `meshgate deploy upstream --environment prod`" in told


# Versions


@pytest.mark.parametrize("command", ["deploy", "run"])
@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("sqlmesh_version", "0.200.0", "which is ahead of '0.200.0' (remote)"),
        ("sqlmesh_version", "0.999.0", "which is behind '0.999.0' (remote)"),
        ("sqlglot_version", "29.1.0", "SQLGlot (local) is using version"),
        ("schema_version", "1", "which is ahead of '1' (remote)"),
    ],
)
def test_a_state_of_another_version_is_refused(
    duck: DuckMesh, call: Call, column: str, value: str, said: str, command: str
) -> None:
    """Somebody with another SQLMesh or SQLGlot works on the same state: SQLMesh says so, the project is named."""
    with state_with(duck, "_versions", f"UPDATE sqlmesh._versions SET {column} = '{value}'"):
        told = refused(duck, call, command, "upstream", *NOW)
    assert "the SQLMesh project 'upstream' in " in told
    assert said in told


@pytest.mark.parametrize(
    ("sqlmesh", "sqlglot", "said"),
    [
        ("0.230.1", None, "project 'elsewhere' was deployed with SQLMesh 0.230.1, here is 0.23"),
        (None, "27.0.0", "project 'elsewhere' was deployed with SQLGlot 27.0.0, here is 3"),
    ],
    ids=["sqlmesh", "sqlglot"],
)
def test_doctor_tells_when_projects_disagree_on_a_minor_version(
    duck: DuckMesh, call: Call, sqlmesh: str | None, sqlglot: str | None, said: str
) -> None:
    """Projects with states of their own meet in the ledger only: it knows what each was deployed with."""
    from meshgate.bridge.contract import installed_versions

    here = installed_versions()
    with database(duck) as opened:
        Ledger(opened).save_manifest("elsewhere", {}, sqlmesh=sqlmesh or here[0], sqlglot=sqlglot or here[1])
        answer = call(duck, "doctor", "--json")
        opened.execute("DELETE FROM meshgate.project WHERE name = 'elsewhere'")
    assert answer.code == 2
    assert next(c["message"] for c in answer.document["checks"] if c["outcome"] == "fail").startswith(said)


PRELUDE = """
from importlib import metadata
real = metadata.version
metadata.version = lambda name: "0.240.1" if name == "sqlmesh" else real(name)
import sys
from meshgate.cli import execute
code = execute(sys.argv[1:])
assert not {"sqlmesh", "sqlglot"} & set(sys.modules), "SQLMesh was imported all the same"
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["deploy", "upstream"], 2), (["run", "upstream"], 2), (["doctor"], 2), (["status"], 0)],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_sqlmesh_out_of_range_is_refused_before_it_is_imported(
    duck: DuckMesh, arguments: list[str], code: int
) -> None:
    """A process of its own, with another SQLMesh installed; what does not need SQLMesh goes on."""
    before = contents(duck)
    more = [] if arguments == ["doctor"] else NOW
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE, "--config", str(duck.folder), *arguments, *more],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert contents(duck) == before
    said = "SQLMesh 0.240.1 is outside the range that this meshgate was tested with (sqlmesh>=0.225,<0.237)"
    assert said in done.stdout + done.stderr or code == 0
    assert "Traceback" not in done.stderr
    assert duck.postgres.password not in done.stdout + done.stderr
