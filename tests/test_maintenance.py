"""The portfolio's maintenance: what its policies say, what is rendered for which engine, and the lake while runs go on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest
from ruamel.yaml import YAML

from ledger_scene import eventually
from meshgate.errors import ConfigError, EvaluationError
from tiny_mesh import TinyMesh, at

if TYPE_CHECKING:
    from meshgate.local_postgres import LocalPostgres

PORTFOLIO = Path(__file__).resolve().parents[1] / "examples" / "portfolio"
sys.path.insert(0, str(PORTFOLIO))

import maintenance  # noqa: E402
from maintenance.policy import KEYS, Operation, check_retention, policy_of, read  # noqa: E402
from maintenance.statements import ask_predictive, is_predictive, render  # noqa: E402

WEEK = timedelta(days=7)
FOLDER = PORTFOLIO / "maintenance"
ALWAYS = """
policies:
  - models: "*"
    optimize: {every: 0s, cluster: [ts]}
    vacuum: {every: 0s, retention: 1h}
    analyze: {every: 0s}
"""
DAILY = ALWAYS.replace("0s", "1d")


# Policies


def test_the_portfolios_policies_are_read() -> None:
    """The first entry that fits decides; each model has one."""
    policies = read(FOLDER / "tables.yaml")
    assert [policy_of(policies, name).models for name in ("bronze.items", "gold.fact_sales", "gold.dim_item")] == [  # type: ignore[union-attr]
        "bronze.*", "gold.fact_*", "*"
    ]  # fmt: skip
    assert policy_of(policies[:2], "silver.orders") is None
    check_retention(policies, timedelta(hours=24))
    with pytest.raises(ConfigError, match="vacuum of bronze"):
        check_retention(policies, timedelta(days=8))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("policies: {}", "expected one key, policies, with a list"),
        ("rules: []", "expected one key, policies"),
        ("policies: [{optimize: {every: 1d}}]", r"policies\[0\].models is missing"),
        ("policies: [{models: a, optimise: {every: 1d}}]", "optimise is not known\n.*did you mean optimize"),
        ("policies: [{models: a, optimize: {}}]", "optimize.every is missing"),
        ("policies: [{models: a, optimize: {every: 29d}}]", "expected at most 28d"),
        ("policies: [{models: a, optimize: {every: often}}]", "optimize.every: 'often' is not a duration"),
        (
            "policies: [{models: a, optimize: {every: 1d, zorder: [b], cluster: [b]}}]",
            "has zorder and cluster",
        ),
        (
            "policies: [{models: a, optimize: {every: 1d, cluster: ['b) --']}}]",
            "expected a list of columns' names",
        ),
        ("policies: [{models: a, vacuum: {every: 1d}}]", "vacuum.retention is missing"),
        ("policies: [", "cannot be read"),
    ],
)
def test_a_wrong_policy_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """With its place in the file, and what is expected."""
    file = tmp_path / "tables.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read(file)
    assert re.search(said, str(refused.value)), str(refused.value)


# Statements


OPERATIONS = {
    "optimize": Operation("optimize", WEEK),
    "zorder": Operation("optimize", WEEK, zorder=("a", "b")),
    "cluster": Operation("optimize", WEEK, cluster=("a", "b")),
    "vacuum": Operation("vacuum", WEEK, retention=timedelta(hours=168, minutes=1)),
    "analyze": Operation("analyze", WEEK),
    "analyze some": Operation("analyze", WEEK, columns=("a", "b")),
}
RENDERED = {
    "databricks": {
        "optimize": ["OPTIMIZE lake.s.t"],
        "zorder": ["OPTIMIZE lake.s.t ZORDER BY (a, b)"],
        "cluster": ["ALTER TABLE lake.s.t CLUSTER BY (a, b)", "OPTIMIZE lake.s.t"],
        # Never less than was asked for.
        "vacuum": ["VACUUM lake.s.t RETAIN 169 HOURS"],
        "analyze": ["ANALYZE TABLE lake.s.t COMPUTE STATISTICS FOR ALL COLUMNS"],
        "analyze some": ["ANALYZE TABLE lake.s.t COMPUTE STATISTICS FOR COLUMNS a, b"],
    },
    "duckdb": {
        "optimize": [
            "CALL ducklake_flush_inlined_data('lake', schema_name => 's', table_name => 't')",
            "CALL ducklake_rewrite_data_files('lake', 't', schema => 's')",
            "CALL ducklake_merge_adjacent_files('lake', 't', schema => 's')",
        ],
        "vacuum": [
            "CALL ducklake_expire_snapshots('lake', older_than => now() - INTERVAL '169 hours')",
            "CALL ducklake_cleanup_old_files('lake', older_than => now() - INTERVAL '169 hours')",
        ],
        "analyze": [],
    },
}


@pytest.mark.parametrize(("dialect", "name"), [(d, n) for d, found in RENDERED.items() for n in found])
def test_an_operation_is_rendered_for_each_engine(dialect: str, name: str) -> None:
    """The one place where engines differ."""
    assert list(render(dialect, "lake.s.t", OPERATIONS[name])) == RENDERED[dialect][name]


def test_an_engine_without_renderings_is_refused() -> None:
    """Rather than guessed."""
    with pytest.raises(ConfigError, match="not snowflake"):
        render("snowflake", "lake.s.t", OPERATIONS["optimize"])
    assert {operation.name for operation in OPERATIONS.values()} == set(KEYS)


@pytest.mark.parametrize(
    ("answer", "on"),
    [
        ([("Predictive Optimization", "ENABLE (inherited from METASTORE main)", None)], True),
        ([("Name", "t", ""), ("Predictive Optimization", "DISABLE", "")], False),
        ([("Name", "t", "")], False),
        ([], False),
    ],
)
def test_tables_that_the_platform_looks_after_are_known(answer: list[tuple[object, ...]], on: bool) -> None:
    """By what DESCRIBE says; on the lake nobody does."""
    assert is_predictive(answer) is on
    assert ask_predictive("databricks", "lake.s.t") == "DESCRIBE TABLE EXTENDED lake.s.t"
    assert ask_predictive("duckdb", "lake.s.t") is None


def test_the_job_starts_what_is_there_for_each_project() -> None:
    """Tasks in the order of their keys, an existing file, parameters that the command takes, no retry that nobody asked for."""
    (job,) = YAML(typ="safe").load((FOLDER / "job.yml").read_text())["resources"]["jobs"].values()
    keys = [task["task_key"] for task in job["tasks"]]
    assert keys == sorted(keys)
    assert job["max_concurrent_runs"] == 1
    for task in job["tasks"]:
        script = task["spark_python_task"]
        assert (FOLDER / script["python_file"]).is_file()
        assert script["parameters"][0] == task["task_key"]
        assert "--apply" in script["parameters"]


# On the lake


@pytest.fixture
def tiny(tmp_path: Path, postgres: LocalPostgres, extensions: None) -> TinyMesh:
    """Both projects deployed, an hour is done; a lost run is waited for no longer than a minute."""
    found = TinyMesh(tmp_path, postgres, settings={"statement_timeout": "1m", "lease_ttl": "10s"})
    found.feed(0, 300)
    with found.mesh() as opened:
        for project in ("upstream", "downstream"):
            opened.deploy(project, now=at(60))
    (tmp_path / "tables.yaml").write_text(ALWAYS)
    return found


def command(tiny: TinyMesh, *arguments: str, policies: str = "tables.yaml") -> list[str]:
    return [
        sys.executable, "-m", "maintenance", "upstream", "--config", str(tiny.folder),
        "--policies", str(tiny.folder / policies), *arguments,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(PORTFOLIO), os.environ.get("PYTHONPATH", "")])
    return {**TinyMesh.environment(), "PYTHONPATH": path}


def call(tiny: TinyMesh, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(tiny, *arguments, **more), capture_output=True, text=True, timeout=120, check=False, env=environment()
    )  # fmt: skip


def contents(tiny: TinyMesh) -> dict[str, object]:
    return {name: tiny.table(name) for name in tiny.expected(300)}


def snapshots(tiny: TinyMesh) -> int:
    ((count,),) = tiny.sql(tiny.lake_url, "SELECT COUNT(*) FROM ducklake_snapshot")
    return int(count)


def age(tiny: TinyMesh) -> None:
    """Let everything that the lake has so far be two hours older."""
    for table, column in (
        ("ducklake_snapshot", "snapshot_time"),
        ("ducklake_files_scheduled_for_deletion", "schedule_start"),
    ):
        tiny.sql(tiny.lake_url, f"UPDATE {table} SET {column} = {column} - INTERVAL '2 hours'")


@pytest.mark.portfolio
def test_a_dry_run_tells_and_does_nothing(tiny: TinyMesh) -> None:
    """Statements on stdout, exit code 0; neither lake nor ledger is touched."""
    before, was = contents(tiny), snapshots(tiny)
    done = call(tiny)
    assert done.returncode == 0, done.stderr
    assert "optimize silver.events (last never)\n  CALL ducklake_flush_inlined_data('lake'" in done.stdout
    assert done.stdout.count("CALL ducklake_expire_snapshots") == 1
    assert done.stdout.endswith("3 of 3 operations are due\nnothing was done: --apply does it\n")
    assert (contents(tiny), snapshots(tiny)) == (before, was)
    with tiny.mesh() as mesh:
        assert all(table.done == {} for table in mesh.estate("upstream").tables)


@pytest.mark.portfolio
def test_it_is_done_and_not_again_before_its_time(tiny: TinyMesh) -> None:
    """Rows are what they were, old files and snapshots are gone, and the ledger knows when."""
    (tiny.folder / "daily.yaml").write_text(DAILY)
    with tiny.mesh() as mesh:
        for minute in (65, 70, 75):
            mesh.run("upstream", now=at(minute))
    call(tiny, "--apply")  # what is merged leaves files behind that are deleted next time
    age(tiny)
    before, was = contents(tiny), snapshots(tiny)
    files = set(tiny.data.rglob("*.parquet"))
    done = call(tiny, "--apply", policies="daily.yaml")
    assert "0 of 3 operations are due" in done.stdout, done.stdout + done.stderr
    done = call(tiny, "--apply")
    assert "3 done, 0 left to the next time, 0 failed" in done.stdout, done.stdout + done.stderr
    assert contents(tiny) == before
    assert snapshots(tiny) < was
    assert files - set(tiny.data.rglob("*.parquet"))
    with tiny.mesh() as mesh:
        assert not mesh.verify().differences
        assert mesh.run("upstream", now=at(80)).state == "done"


@pytest.mark.portfolio
def test_retention_that_a_reader_may_need_is_refused(tiny: TinyMesh) -> None:
    """Shorter than the grace of a lost run: exit code 2, and nothing is done."""
    (tiny.folder / "short.yaml").write_text(ALWAYS.replace("1h", "30s"))
    done = call(tiny, "--apply", policies="short.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "vacuum of * keeps files for 0:00:30, and a run may need them for 0:01:00" in done.stderr


@pytest.mark.portfolio
def test_runs_and_maintenance_together_leave_every_table_right(tiny: TinyMesh) -> None:
    """An hour of ticks of both projects while everything is maintained over and over: every row is the source's."""
    beside = subprocess.Popen(
        ["sh", "-c", 'while true; do "$@" || exit 1; done', "sh", *command(tiny, "--apply", "--wait", "20s")],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        with tiny.mesh() as mesh:
            for minute in range(65, 125, 5):
                assert not mesh.run("upstream", now=at(minute)).failed
                if minute % 15 == 0:
                    assert not mesh.run("downstream", now=at(minute)).failed
                time.sleep(0.5)
            assert beside.poll() is None, beside.communicate()[0]
    finally:
        os.killpg(beside.pid, 9)
        told = beside.communicate()[0]
    assert " done, " in told, told
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.run(project, now=at(120))
        assert not mesh.verify().differences
    tiny.check(120)


@pytest.mark.portfolio
def test_killed_in_the_middle_it_leaves_nothing_behind(tiny: TinyMesh) -> None:
    """The lake does not answer its statement; it is killed; the next run finds its process gone, and does everything."""
    before = contents(tiny)
    lock = psycopg2.connect(tiny.lake_url)
    with lock.cursor() as cursor, tiny.mesh() as mesh:
        cursor.execute("LOCK TABLE ducklake_snapshot IN ACCESS EXCLUSIVE MODE")
        process = subprocess.Popen(
            command(tiny, "--apply"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        try:
            eventually(lambda: any(run.open for run in mesh.leases()), "its lease")
            eventually(lambda: waits(tiny), "its statement")
            assert process.poll() is None
        finally:
            process.kill()
            told = process.communicate()[0]
        lock.rollback()
        (left,) = mesh.leases()
        assert (left.purpose, left.open, left.begun) == ("maintenance", 1, 0), told
    lock.close()
    assert contents(tiny) == before
    with tiny.mesh() as mesh:
        report = mesh.run("upstream", now=at(65))
        assert (report.state, report.blocked) == ("done", ())
        assert mesh.leases() == ()
        mesh.run("downstream", now=at(65))
        assert not mesh.verify().differences
    tiny.check(65)


def waits(tiny: TinyMesh) -> bool:
    """Whether a session waits for a lock in the lake's catalog."""
    question = f"SELECT count(*) FROM pg_stat_activity WHERE datname = 'lake_{tiny.key}' AND wait_event_type = 'Lock'"
    return bool(tiny.sql(tiny.state_url, question)[0][0])


@pytest.mark.portfolio
def test_the_task_raises_where_something_failed_and_returns_otherwise(
    tiny: TinyMesh, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any SystemExit would fail a Databricks task: none is left."""

    def job(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["task.py", *command(tiny, *arguments)[3:]])
        maintenance.job()

    job()
    assert "nothing was done" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="parameters"):
        job("--aply")
    monkeypatch.setattr("maintenance.statements._ducklake", lambda *_: ("CALL no_such_function()",))
    with pytest.raises(EvaluationError):
        job("--apply", "--wait", "0s")
    assert "failed" in capsys.readouterr().err
