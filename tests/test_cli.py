"""The command line: what goes where, with which exit code, and at what cost."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from command_line import Answer, answer_of, configure
from ledger_story import Story
from meshgate import __version__, cli
from meshgate.coordinator.run import RunReport
from meshgate.db import SCHEMA_VERSION, Database, schema_sql
from meshgate.errors import ConfigError, EvaluationError, LedgerUnreachableError
from meshgate.interval import Interval, IntervalSet
from meshgate.mesh import Mesh

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

HOUR = "2026-01-05T03:00/2026-01-05T04:00"


@pytest.fixture
def story(database_url: str, tmp_path: Path) -> Story:
    """The poisoned mesh of `ledger_story`."""
    found = Story(database_url, tmp_path)
    found.poisoned()
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

    def run(*arguments: str, config: Path | None = tmp_path) -> Answer:
        return answer_of(capsys, config, *arguments)

    return run


# What a call costs


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["status"],
        ["why", "fact_sales"],
        ["gate", "fact_sales", HOUR],
        ["run", "downstream", "--dry-run"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_reading_commands_do_not_import_sqlmesh(story: Story, arguments: list[str]) -> None:
    """Neither do `import meshgate` and `--help`: SQLMesh costs seconds."""
    code = (
        "import sys, meshgate\n"
        "from meshgate.cli import execute\n"
        f"code = execute({['--config', str(story.folder), *arguments]!r})\n"
        "heavy = {'sqlmesh', 'sqlglot', 'pandas', 'duckdb'} & {name.split('.')[0] for name in sys.modules}\n"
        "sys.stderr.write(f'{code} {sorted(heavy)}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr in ("0 []", "3 []")
    assert done.stdout


def test_help_and_version_import_neither_database_nor_rich() -> None:
    """What does not open a mesh does not load what a mesh needs."""
    code = (
        "import sys\n"
        "from meshgate.cli import execute\n"
        "assert execute(['--help']) == execute(['--version']) == execute(['run', '--help']) == 0\n"
        "print(sorted({'psycopg2', 'rich', 'structlog', 'attr'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"meshgate, version {__version__}" in done.stdout


# Results


def test_status_is_one_screen_that_says_why_nothing_moves(story: Story, call: Any) -> None:
    """Runs, models, and the root cause in one line with what it keeps back and what to do."""
    answer = call("status")
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert len(lines) <= 25
    assert "  last run 4 failed at 04:01:02Z (1 committed)" in lines
    assert any(
        line.split() == ["bronze.transactions", "by", "time", "04:00", "04:00", "47m", "1", "failing"]
        for line in lines
    )
    assert (
        "  ● bronze.transactions [2026-01-05 03:10, 03:15) of project upstream: audit `not_null` failed for 3 rows "
        "(tried 2 times, run 4 at 04:01:02Z, next try 04:03:02Z)"
    ) in lines
    assert (
        "    keeps back silver.orders [2026-01-05 03:10, 03:15); gold.fact_sales [2026-01-05 03:00, 04:00); "
        "gold.sales_by_hour [2026-01-05 03:00, 04:00)"
    ) in lines
    assert (
        "    → repair the rows that the audit rejects; `meshgate run upstream` evaluates it again after the pause, or at "
        "once after `meshgate retry bronze.transactions`"
    ) in lines


def test_why_prints_the_tree_down_to_the_root(story: Story, call: Any) -> None:
    """Child, parent of the other project, its failed parent, and the remedy."""
    answer = call("why", "gold.fact_sales", HOUR)
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "gold.fact_sales [2026-01-05 03:00, 04:00): blocked",
        "project downstream · prod at 2026-01-05 04:02Z",
        "",
        "gold.fact_sales [2026-01-05 03:00, 04:00): not evaluated yet, due since 04:00Z",
        "└─ silver.orders [2026-01-05 03:10, 03:15) of project upstream: never evaluated, due since 03:15Z",
        (
            "   └─ bronze.transactions [2026-01-05 03:10, 03:15) of project upstream: audit `not_null` failed "
            "for 3 rows (tried 2 times, run 4 at 04:01:02Z, next try 04:03:02Z)"
        ),
        "",
        "what would end it",
        (
            "  → repair the rows that the audit rejects; `meshgate run upstream` evaluates it again after the pause, or at "
            "once after `meshgate retry bronze.transactions`"
        ),
    ]


def test_an_interval_is_never_torn_apart_however_narrow_the_screen(
    story: Story, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines stay within the screen, and what is printed of an interval can be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in (["status"], ["why", "sales_by_hour", HOUR], ["gate", "sales_by_hour", HOUR]):
        lines = call(*arguments).out.splitlines()
        assert max(map(len, lines)) <= 80
        assert all(line.count("[") == line.count(")") - line.count("(") for line in lines if "[" in line)


def test_gate_exits_with_3_when_it_is_closed(story: Story, call: Any) -> None:
    """And with 0 when it is open, whatever is recorded."""
    closed = call("gate", "fact_sales", HOUR)
    assert closed.code == 3
    assert (
        "waits for silver.orders [2026-01-05 03:10, 03:15) of project upstream: never evaluated" in closed.out
    )
    opened = call("gate", "dim_customer", HOUR)
    assert (opened.code, opened.out) == (0, "gold.dim_customer [2026-01-05 03:00, 04:00): ready\n")


def test_a_dry_run_shows_what_would_be_done_and_require_ready_makes_it_a_question(
    story: Story, call: Any
) -> None:
    """0 though work is blocked, as the summary says so; 3 if that was not wanted; nothing is started."""
    before = [(run["run_id"], run["state"]) for run in story.ledger.runs()]
    answer = call("run", "downstream", "--dry-run")
    assert answer.code == 0
    assert "keeps back gold.fact_sales [2026-01-05 03:00, 04:00)" in answer.out
    assert call("run", "downstream", "--dry-run", "--require-ready").code == 3
    paused = call("run", "upstream", "--dry-run", "--require-ready")
    assert paused.code == 3
    assert "next try 04:03:02Z" in paused.out
    story.time("2026-01-05 04:03:02")
    upstream = call("run", "upstream", "--dry-run", "--require-ready")
    assert upstream.code == 0
    assert "  evaluate  bronze.transactions [2026-01-05 03:10, 03:15)" in upstream.out.splitlines()
    assert [(run["run_id"], run["state"]) for run in story.ledger.runs()] == before


def test_json_goes_to_stdout_alone_and_names_its_schema(story: Story, call: Any) -> None:
    """Every reading command; the same facts as data."""
    for arguments, schema, code in (
        (["status"], "status", 0),
        (["why", "fact_sales", HOUR], "why", 0),
        (["gate", "fact_sales", HOUR], "gate", 3),
        (["run", "downstream", "--dry-run"], "run", 0),
        (["doctor"], "doctor", 2),
    ):
        answer = call(*arguments, "--json")
        assert (answer.code, answer.err) == (code, "")
        assert (answer.document["schema"], answer.document["version"]) == (f"meshgate.{schema}", 1)
        assert story.ledger.database._url.split(":")[2].split("@")[0] not in answer.out
    planned = call("run", "downstream", "--dry-run", "--json").document
    assert (planned["state"], planned["exit_code"], planned["run_id"]) == ("planned", 0, None)
    assert planned["waits"][0]["causes"][0]["detail"]["audits"] == [{"audit": "not_null", "count": 3}]


def test_a_run_is_skipped_with_4_and_fails_with_4_where_another_one_lives(story: Story, call: Any) -> None:
    """Policy decides whether that is an answer or an error; both name who lives."""
    story.acquire("downstream", pid=1)
    skipped = call("run", "downstream")
    assert (skipped.code, skipped.err) == (4, "")
    assert "run 6 of downstream lives: pid 1 on worker-1" in skipped.out
    failed = call("run", "downstream", "--overlap", "fail")
    assert (failed.code, failed.out) == (4, "")
    assert failed.err.startswith("error: run 6 of 'downstream' keeps 'downstream' out: pid 1 on worker-1")


# Migrate


def test_migrate_creates_once_and_then_has_nothing_to_do(
    database_url: str, tmp_path: Path, call: Any
) -> None:
    """And says so on stdout."""
    configure(tmp_path, database_url)
    assert call("migrate").out == f"ledger created (schema {SCHEMA_VERSION})\n"
    assert call("migrate").out == f"ledger is at schema {SCHEMA_VERSION}, nothing to do\n"


def test_migrate_sql_prints_what_makes_a_ledger_without_any_configuration(
    database_url: str, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person with the rights runs it, and the ledger is this version's, with its clock not settable."""
    monkeypatch.chdir(tmp_path)
    answer = call("migrate", "--sql", config=None)
    assert answer.code == 0
    assert answer.out.startswith(schema_sql()[:200])
    database = Database(database_url)
    database.execute(answer.out.replace("%", "%%") if "%(" in answer.out else answer.out)
    database.check_schema()
    assert not database.one("schema_version")["test_clock"]
    database.close()


# Bad input: one message, the exit code, nothing else


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["status", "--now", "soon"], "'soon' is not an instant", "2026-01-01T03:00"),
        (["status", "--now", "2026-01-05T04:00+01:00"], "is not in UTC", "2026-01-05T03:00:00+00:00"),
        (["status", "--now", "2026-02-01"], "--now 2026-02-01T00:00:00Z is in the future", "in the past"),
        (["status", "--environment", "dev"], "environment 'dev' is not known", "meshgate deploy"),
        (["why", "gold.fact_sale"], "there is no model gold.fact_sale", "gold.fact_sales"),
        (["why", "fact_sales", "yesterday"], "'yesterday' is not an interval", "START/END"),
        (["why", "fact_sales", "2026-01-05T03:30/2026-01-05T04:00"], "whose unit is hour", "2026-01-05T03:00/2026-01-05T04:00"),
        (["gate", "fact_sales", "2026-01-05T03:00+02:00/2026-01-05T04:00+02:00"], "is not in UTC", "2026-01-05T01:00"),
        (["run", "downstrem"], "there is no project 'downstrem'", "downstream"),
        (["deploy", "downstrem"], "there is no project 'downstrem'", "downstream"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_input_is_one_message_with_a_hint_and_exit_code_2(
    story: Story, call: Any, arguments: list[str], message: str, hint: str
) -> None:
    """On stderr, nothing on stdout; with --json also as a document."""
    answer = call(*arguments)
    assert (answer.code, answer.out) == (2, "")
    first, second = answer.err.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert second.startswith("  → ")
    assert hint in second
    if arguments[0] != "migrate":
        told = call(*arguments, "--json").document
        assert (told["schema"], told["exit_code"]) == ("meshgate.error", 2)
        assert message in told["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run"],
        ["status", "--nonsense"],
        ["run", "x", "--overlap", "waits"],
        ["why"],
        ["run", "x", "--dry-run", "--wait", "5m"],
    ],
    ids=str,
)
def test_wrong_usage_exits_with_2(arguments: Sequence[str], call: Any) -> None:
    """And the usage, on stderr."""
    answer = call(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert "Usage: meshgate" in answer.err


def test_a_wrong_configuration_names_file_line_and_key(tmp_path: Path, call: Any) -> None:
    """A missing file, and a key that nearly exists."""
    missing = call("status")
    assert missing.code == 2
    assert f"there is no {tmp_path}/meshgate.yaml" in missing.err
    (tmp_path / "meshgate.yaml").write_text("ledger:\n  url: local\nproject:\n  name: a\n  gatewy: local\n")
    unknown = call("status")
    assert unknown.code == 2
    assert "meshgate.yaml:5" in unknown.err
    assert "gateway" in unknown.err


def test_an_unreachable_ledger_exits_with_5_and_shows_no_password(tmp_path: Path, call: Any) -> None:
    """Nobody listens there."""
    configure(tmp_path, "postgresql://ann:s3cret@127.0.0.1:1/ledger")
    for arguments in (["status"], ["run", "upstream"], ["migrate"], ["why", "x", "--json"]):
        answer = call(*arguments)
        assert answer.code == 5
        assert "the ledger at postgresql://ann:***@127.0.0.1:1/ledger cannot be reached" in answer.err
        assert "s3cret" not in answer.out + answer.err


def test_wrong_credentials_exit_with_5_and_show_no_password(
    database_url: str, tmp_path: Path, call: Any
) -> None:
    """The server's own words say what was wrong."""
    right = database_url.split(":")[2].split("@", maxsplit=1)[0]
    configure(tmp_path, database_url.replace(right, "wr0ng"))
    answer = call("status")
    assert answer.code == 5
    assert "password authentication failed" in answer.err
    assert "wr0ng" not in answer.err


@pytest.mark.parametrize(
    ("version", "said", "command"),
    [(0, "has schema 0", "meshgate migrate"), (99, "newer", "pip install --upgrade meshgate"), (None, "no complete ledger", "meshgate migrate")],
)  # fmt: skip
def test_a_ledger_of_another_schema_names_the_command_to_type(
    database_url: str, tmp_path: Path, call: Any, version: int | None, said: str, command: str
) -> None:
    """Missing, too old, too new: nothing is read from it."""
    configure(tmp_path, database_url)
    if version is not None:
        assert call("migrate").code == 0
        database = Database(database_url)
        database.execute(f"UPDATE meshgate.ledger SET schema_version = {version}")
        database.close()
    answer = call("status")
    assert answer.code == 2
    assert said in answer.err
    assert f"run `{command}`" in answer.err


def test_an_unexpected_error_is_one_line_and_its_traceback_only_where_asked_for(
    story: Story, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, no password, and how to see more."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("postgresql://ann:s3cret@host/db")

    monkeypatch.setattr(Mesh, "status", broken)
    arguments = ["--config", str(story.folder), "status"]
    assert cli.execute(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "internal error: ZeroDivisionError: postgresql://ann:***@host/db\n"
        "  → set MESHGATE_DEBUG=1 to see the traceback, and report it\n"
    )
    monkeypatch.setenv("MESHGATE_DEBUG", "1")
    assert cli.execute(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(story: Story) -> None:
    """`meshgate status --json | head -1` ends quietly."""
    command = f"{sys.executable} -m meshgate --config {story.folder} status --json | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""


# Jobs


@pytest.fixture
def argv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Sets the parameters of a wheel task."""

    def put(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["entry-point", "--config", str(tmp_path), *arguments])

    return put


def test_a_job_returns_where_nothing_is_to_be_done_about_it(
    story: Story, argv: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Done, not ready, skipped: no exception, not even SystemExit."""
    for arguments in (["status"], ["--version"], ["gate", "fact_sales", HOUR]):
        argv(*arguments)
        cli.job()
    story.acquire("downstream")
    for arguments in (["run", "downstream"], ["run", "downstream", "--overlap", "fail"]):
        argv(*arguments)
        cli.job()
    assert "error: run 6 of 'downstream' keeps 'downstream' out" in capsys.readouterr().err


def test_a_job_raises_where_it_failed_was_set_up_wrongly_or_cannot_reach_the_ledger(
    story: Story, argv: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1, 2 and 5, each as an exception whose message says what happened."""
    argv("why", "no_such_model")
    with pytest.raises(Exception, match="there is no model no_such_model"):
        cli.job()
    argv("run")
    with pytest.raises(ConfigError, match="Missing argument 'PROJECT'"):
        cli.job()
    argv("doctor")
    with pytest.raises(ConfigError, match="there is no folder"):
        cli.job()
    report = RunReport("upstream", "prod", story.now, "failed", run_id=17, error="the engine is gone")
    monkeypatch.setattr(Mesh, "run", lambda *_, **__: report)
    argv("run", "upstream")
    with pytest.raises(EvaluationError, match="run 17 of 'upstream' ended as failed: the engine is gone"):
        cli.job()
    configure(tmp_path, "postgresql://127.0.0.1:1/ledger")
    argv("status")
    with pytest.raises(LedgerUnreachableError):
        cli.job()


def test_runs_report_what_they_committed_and_what_failed(
    story: Story, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1 as soon as anything failed; models by their names, intervals as people write them."""
    from meshgate.coordinator.outcome import Failure
    from meshgate.coordinator.reconcile import Finding

    name, piece = '"lake"."bronze"."customers"', Interval.parse(HOUR)
    report = RunReport(
        "upstream", "prod", story.now, "failed", run_id=17,
        committed={name: IntervalSet([piece])},
        failed=(Failure(name, "upstream", piece, {"audits": [{"audit": "not_null", "count": 1}]}),),
        warned=(Failure(name, "upstream", piece, {"audits": [{"audit": "odd", "count": 2}]}),),
        findings=(Finding(name, "upstream", "added", piece),),
        unmirrored=((name, piece, "OperationalError: gone"),),
    )  # fmt: skip
    monkeypatch.setattr(Mesh, "run", lambda *_, **__: report)
    answer = call("run", "upstream")
    assert answer.code == 1
    assert answer.out.splitlines()[:6] == [
        "run 17 of upstream: failed · prod at 2026-01-05 04:02Z",
        "  committed bronze.customers [2026-01-05 03:00, 04:00)",
        "  failed    bronze.customers [2026-01-05 03:00, 04:00): audit `not_null` failed for 1 row",
        "  warning   bronze.customers [2026-01-05 03:00, 04:00): audit `odd` failed for 2 rows",
        "  found     bronze.customers [2026-01-05 03:00, 04:00) added by somebody else",
        "  unmirrored bronze.customers [2026-01-05 03:00, 04:00): OperationalError: gone",
    ]
    told = call("run", "upstream", "--json").document
    assert (told["exit_code"], told["failed"][0]["detail"]["audits"][0]["count"]) == (1, 1)
    assert told["committed"] == [
        {"model": name, "intervals": [{"start": "2026-01-05T03:00:00Z", "end": "2026-01-05T04:00:00Z"}]}
    ]


# Logs


def test_logs_are_key_value_lines_on_stderr_and_quiet_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings always, the rest where it is asked for."""
    for verbose, events in ((False, ["run.buried"]), (True, ["run.finished", "run.buried"])):
        cli.log_to_stderr(verbose=verbose)
        log = structlog.get_logger("meshgate")
        log.info("run.finished", run_id=17)
        log.warning("run.buried", run_id=16, cause="its process is gone")
        out, err = capsys.readouterr()
        assert out == ""
        assert [line.split("event=")[1].split()[0] for line in err.splitlines()] == events
        assert 'run_id=16 cause="its process is gone"' in err
    logging.shutdown()


def test_a_process_exits_with_the_code(story: Story) -> None:
    """`python -m meshgate` as a process: stdout, stderr and exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "meshgate", "--config", str(story.folder), "why", "nothing"],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no model nothing")
