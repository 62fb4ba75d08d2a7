"""The command line: results on stdout, everything else on stderr.

Exit codes: 0 done, nothing to do, or blocked (the summary says so); 1 something failed; 2 wrong input or setup;
3 not ready (`gate`, `run --require-ready`); 4 skipped, as another run lives; 5 the ledger cannot be reached; 128 and
the number of the signal (130, 143) where one stopped the work.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from meshgate import __version__
from meshgate.cli import exits
from meshgate.cli.analyze import analyze
from meshgate.cli.call import (
    SIGNALLED,
    Call,
    environment_option,
    json_option,
    log_to_stderr,
    now_option,
    pass_call,
    read_interval,
    read_wait,
    who,
)
from meshgate.cli.deploy import deploy
from meshgate.cli.holds import accept, hold, release
from meshgate.cli.init import init
from meshgate.cli.restate import restate
from meshgate.cli.verify import verify, watch
from meshgate.errors import ConfigError, EvaluationError, MeshgateError, StoppedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from meshgate.interval import Interval
    from meshgate.ledger import LiveRun
    from meshgate.mesh import Mesh

_DEBUG = "MESHGATE_DEBUG"
_RAISED_BY_JOBS = (1, 2, 5)
_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config", metavar="PATH", help="meshgate.yaml or its folder; by default searched for upwards."
)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, on stderr.")
@click.version_option(__version__, prog_name="meshgate")
@pass_call
def cli(call: Call, config: str | None, *, verbose: bool) -> None:
    """Several SQLMesh projects on one warehouse, each on its own schedule, none on missing data."""
    call.config = config
    call.verbose = verbose


@cli.command()
@click.option("--sql", is_flag=True, help="Print the statements that make a new ledger; touch nothing.")
@pass_call
def migrate(call: Call, *, sql: bool) -> int:
    """Create the ledger, or bring it to this version."""
    if sql:
        from meshgate.db import SCHEMA_VERSION, schema_sql

        click.echo(schema_sql().rstrip())
        click.echo(f"\nINSERT INTO meshgate.ledger (schema_version) VALUES ({SCHEMA_VERSION});")
        return 0
    with call.open(check=False) as mesh:
        before, after = mesh.migrate()
    if before == 0:
        click.echo(f"ledger created (schema {after})")
    elif before == after:
        click.echo(f"ledger is at schema {after}, nothing to do")
    else:
        click.echo(f"ledger migrated from schema {before} to {after}")
    return 0


@cli.command()
@json_option
@pass_call
def doctor(call: Call) -> int:
    """Check configuration, ledger, projects and versions.

    Exits with 2 if anything fails.
    """
    from meshgate.mesh import Mesh

    log_to_stderr(verbose=call.verbose)
    found = Mesh.doctor(call.config)
    call.failure = "; ".join(check.message for check in found.checks if check.outcome == "fail")
    call.show("doctor", found)
    return found.exit_code


@cli.command()
@click.argument("project")
@environment_option
@now_option
@click.option("--dry-run", is_flag=True, help="Decide and print; do nothing.")
@click.option(
    "--overlap",
    type=click.Choice(["skip", "wait", "share", "fail"]),
    help="What to do while another run of it lives: end with exit code 4, wait for its end, take whatever it has not "
    "claimed, or fail; by default the project's policy.",
)
@click.option(
    "--wait",
    metavar="DURATION",
    callback=read_wait,
    help="Wait so long, such as 90s or 15m, for what is due now and not ready yet, and evaluate it as soon as it is.",
)
@click.option(
    "--require-ready", is_flag=True, help="Exit with 3 if due work is blocked; what is ready is done."
)
@json_option
@pass_call
def run(
    call: Call,
    project: str,
    environment: str | None,
    now: datetime | None,
    overlap: str | None,
    wait: timedelta | None,
    *,
    dry_run: bool,
    require_ready: bool,
) -> int:
    """Evaluate whatever of PROJECT is due and ready.

    SIGTERM and Ctrl-C end it in order: the statement under way gets the project's stop_grace, what is done is
    recorded, and the next run goes on. A second one does not wait for the grace.
    """
    if dry_run and wait:
        raise click.UsageError("--dry-run decides now and waits for nothing: leave --wait away")
    with call.working(project) as mesh:
        report = mesh.run(
            project, environment=environment, now=now, dry_run=dry_run, overlap=overlap, wait=wait
        )
        waits = bool(wait) or (overlap or mesh.config.project(project).overlap) == "wait"
        exit_code = report.exit_code or (3 if require_ready and report.blocked else 0)
        cut = mesh.stop.requested and waits and bool(report.busy or report.blocked)
        return call.report_run(mesh, report, "run", exit_code, cut=cut)


@cli.command()
@environment_option
@now_option
@json_option
@pass_call
def status(call: Call, environment: str | None, now: datetime | None) -> int:
    """Show where every project and model is, and what keeps things back."""
    with call.open() as mesh:
        call.show("status", mesh.status(environment=environment, now=now))
    return 0


@cli.command()
@click.argument("model")
@click.argument("interval", required=False, callback=read_interval)
@environment_option
@now_option
@json_option
@pass_call
def why(
    call: Call, model: str, interval: Interval | None, environment: str | None, now: datetime | None
) -> int:
    """Explain INTERVAL of MODEL: how it was recorded, or what it waits for, down to the root.

    INTERVAL is START/END in UTC, such as 2026-01-05T03:00/2026-01-05T04:00; by default the oldest one that is due
    and not as it should be.
    """
    with call.open() as mesh:
        call.show("why", mesh.why(model, interval, environment=environment, now=now))
    return 0


@cli.command()
@click.argument("model")
@click.argument("interval", callback=read_interval)
@environment_option
@now_option
@json_option
@pass_call
def gate(call: Call, model: str, interval: Interval, environment: str | None, now: datetime | None) -> int:
    """Ask whether INTERVAL of MODEL could be evaluated now.

    Exits with 3 if not. INTERVAL is START/END in UTC, such as 2026-01-05T03:00/2026-01-05T04:00. What is recorded of
    it does not matter, only what it reads.
    """
    with call.open() as mesh:
        found = mesh.gate(model, interval, environment=environment, now=now)
    call.show("gate", found)
    return 0 if found.ready else 3


@cli.command()
@click.argument("model")
@click.argument("interval", required=False, callback=read_interval)
@environment_option
@json_option
@pass_call
def retry(call: Call, model: str, interval: Interval | None, environment: str | None) -> int:
    """Let what failed of MODEL be tried again by the next run.

    What fails is left alone for a while, longer each time; this ends the pause. INTERVAL is START/END in UTC, such as
    2026-01-05T03:00/2026-01-05T04:00; by default all of its time.
    """
    with call.open() as mesh:
        # Asked first: it knows whose model it is, and refuses what is not made of whole intervals.
        project = mesh.why(model, interval, environment=environment).project
        name, ended = mesh.retry(model, interval, environment=environment)
    call.show("retry", name, project, ended)
    return 0


@cli.command()
@click.option("--break", "broken", type=int, metavar="RUN", help="Take the lease of this run away.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_call
def lease(call: Call, broken: int | None, *, yes: bool) -> int:
    """Show who holds a lease, of whatever project, or take one away.

    A run whose lease was broken stops before its next batch, and can record nothing any more.
    """
    with call.open() as mesh:
        was: LiveRun | None = None
        if broken is not None:
            live = {run.run_id: run for run in mesh.leases()}
            if broken in live and not yes and not _agreed(mesh, live[broken]):
                call.failure = f"the lease of run {broken} was not broken"
                click.echo("nothing was done", err=True)
                return 1
            was = mesh.break_lease(broken, who())
        call.show("lease", mesh.leases(), mesh.ledger.clock(), was)
    return 0


def _agreed(mesh: Mesh, run: LiveRun) -> bool:
    """Tell whom it evicts, and ask.

    Raises:
        ConfigError: There is nobody to ask.
    """
    from datetime import timedelta

    from meshgate.report import wording

    grace = timedelta(seconds=mesh.config.ledger.grace_s)
    for line in wording.eviction(run, grace, mesh.ledger.clock()):
        click.echo(line, err=True)
    if not sys.stdin.isatty():
        raise ConfigError(
            f"run {run.run_id} was left alone: there is no terminal to ask at whether to break its lease",
            hint=f"look at it, then run `meshgate lease --break {run.run_id} --yes`",
        )
    return click.confirm("break its lease?", err=True)


for _command in (init, deploy, hold, release, accept, restate, verify, watch, analyze):
    cli.add_command(_command)
for _name, _one in cli.commands.items():
    _one.epilog = exits.told(_name)


# From a process to an exit code, or to an exception


def _invoke(call: Call, arguments: Sequence[str]) -> int:
    """The exit code of a command; what goes wrong is raised."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            # Names and messages may hold what a terminal cannot show: no reason to lose the answer.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    answer = cli.main(list(arguments), prog_name="meshgate", standalone_mode=False, obj=call)
    sys.stdout.flush()
    return int(answer or 0)


def _tell(call: Call, error: MeshgateError) -> None:
    if call.json:
        from meshgate.report import data

        click.echo(data.dumped(data.error(error)))
    click.echo(f"error: {error}", err=True)


def execute(arguments: Sequence[str]) -> int:
    """Run one command, tell whatever goes wrong, and return the exit code."""
    call = Call()
    try:
        return _invoke(call, arguments)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MeshgateError as error:
        _tell(call, error)
        return SIGNALLED + call.signum if call.signum else error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read the answer has seen enough. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - one line instead of a traceback is the point
        if os.environ.get(_DEBUG):
            import traceback

            traceback.print_exc()
        else:
            from meshgate.db import redact

            said = redact(str(error).strip()).split("\n")[0]
            click.echo(f"internal error: {type(error).__name__}: {said}", err=True)
            click.echo(f"  → set {_DEBUG}=1 to see the traceback, and report it", err=True)
        return SIGNALLED + call.signum if call.signum else 1


def main() -> NoReturn:
    """The `meshgate` command."""
    sys.exit(execute(sys.argv[1:]))


def job() -> None:
    """The entry point of Databricks wheel tasks, whose parameters are those of the command line.

    A task fails when it raises, and a `SystemExit` counts as raising. So it raises where the exit code would be 1, 2
    or 5, or a signal stopped the work, and returns where there is nothing for an orchestrator to do about: also when it
    skipped, or is not ready.

    Raises:
        MeshgateError: What went wrong.
    """
    call = Call()
    try:
        code = _invoke(call, sys.argv[1:])
    except click.ClickException as error:
        raise ConfigError(error.format_message(), hint="see `meshgate --help`") from None
    except MeshgateError as error:
        if error.exit_code in _RAISED_BY_JOBS or call.signum:
            raise
        _tell(call, error)
        return
    if code > SIGNALLED:
        raise StoppedError(call.failure)
    if code in _RAISED_BY_JOBS:
        raise (ConfigError if code == 2 else EvaluationError)(call.failure)
