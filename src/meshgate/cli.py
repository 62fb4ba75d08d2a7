"""The command line: results on stdout, everything else on stderr.

Exit codes: 0 done, nothing to do, or blocked (the summary says so); 1 something failed; 2 wrong input or setup;
3 not ready (`gate`, `run --require-ready`); 4 skipped, as another run lives; 5 the ledger cannot be reached.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from meshgate import __version__
from meshgate.errors import ConfigError, EvaluationError, MeshgateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from meshgate.coordinator.run import RunReport
    from meshgate.coordinator.status import Wait
    from meshgate.interval import Interval
    from meshgate.mesh import Mesh

_DEBUG = "MESHGATE_DEBUG"
_RAISED_BY_JOBS = (1, 2, 5)
_INTERRUPTED = 130  # as shells count a command that Ctrl-C ended


class _Call:
    """One call of the command line: its global options, and how it answers."""

    def __init__(self) -> None:
        self.config: str | None = None
        self.verbose = False
        self.json = False
        # Why the answer is an exit code other than 0, for `job`, which has to raise it.
        self.failure = "meshgate failed"

    def open(self, *, check: bool = True) -> Mesh:
        """The mesh; from here on there is something to log."""
        from meshgate.mesh import Mesh

        log_to_stderr(verbose=self.verbose)
        return Mesh.open(self.config, check=check)

    def show(self, name: str, *found: Any, **also: Any) -> None:
        """Print an answer: `report.data.<name>` or `report.text.<name>` of it; `also` goes into JSON only."""
        if self.json:
            from meshgate.report import data

            click.echo(data.dumped({**getattr(data, name)(*found), **also}))
        else:
            from meshgate.report import text

            getattr(text, name)(text.console(sys.stdout), *found)


def log_to_stderr(*, verbose: bool) -> None:
    """Log as key=value lines on stderr: warnings only, unless more is asked for."""
    import logging

    import structlog

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], drop_missing=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if verbose else logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


# Options that several commands share. What they hold is read before anything is opened.


def _read_json(ctx: click.Context, _: click.Parameter, *, value: bool) -> None:
    ctx.ensure_object(_Call).json = value


def _read_instant(_: click.Context, __: click.Parameter, value: str | None) -> datetime | None:
    from meshgate.interval import parse_instant

    return None if value is None else parse_instant(value)


def _read_interval(_: click.Context, __: click.Parameter, value: str | None) -> Interval | None:
    from meshgate.interval import Interval

    return None if value is None else Interval.parse(value)


def _json(command: Callable[..., int]) -> Callable[..., int]:
    return click.option(
        "--json",
        is_flag=True,
        # First of all, so that a wrong value of another option is told as JSON too.
        is_eager=True,
        expose_value=False,
        callback=lambda ctx, option, value: _read_json(ctx, option, value=value),
        help="Print a JSON document.",
    )(command)


_pass_call = click.make_pass_decorator(_Call, ensure=True)
_environment = click.option(
    "--environment", metavar="NAME", help="SQLMesh's environment; by default the project's own."
)
_now = click.option(
    "--now",
    metavar="INSTANT",
    callback=_read_instant,
    help="A past instant that stands for the present: UTC, ISO 8601.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config", metavar="PATH", help="meshgate.yaml or its folder; by default searched for upwards."
)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, on stderr.")
@click.version_option(__version__, prog_name="meshgate")
@_pass_call
def cli(call: _Call, config: str | None, *, verbose: bool) -> None:
    """Several SQLMesh projects on one warehouse, each on its own schedule, none on missing data."""
    call.config = config
    call.verbose = verbose


@cli.command()
@click.option("--sql", is_flag=True, help="Print the statements that make a new ledger; touch nothing.")
@_pass_call
def migrate(call: _Call, *, sql: bool) -> int:
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
@_json
@_pass_call
def doctor(call: _Call) -> int:
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
@_environment
@_now
@_json
@_pass_call
def deploy(call: _Call, project: str, environment: str | None, now: datetime | None) -> int:
    """Apply SQLMesh's plan of PROJECT under lease, gate and ledger."""
    with call.open() as mesh:
        report = mesh.deploy(project, environment=environment, now=now)
        return _report_run(call, mesh, report, "deploy", report.exit_code)


@cli.command()
@click.argument("project")
@_environment
@_now
@click.option("--dry-run", is_flag=True, help="Decide and print; do nothing.")
@click.option("--overlap", type=click.Choice(["skip", "fail"]), help="What to do if another run of it lives.")
@click.option(
    "--require-ready", is_flag=True, help="Exit with 3 if due work is blocked; what is ready is done."
)
@_json
@_pass_call
def run(
    call: _Call,
    project: str,
    environment: str | None,
    now: datetime | None,
    overlap: str | None,
    *,
    dry_run: bool,
    require_ready: bool,
) -> int:
    """Evaluate whatever of PROJECT is due and ready."""
    with call.open() as mesh:
        report = mesh.run(project, environment=environment, now=now, dry_run=dry_run, overlap=overlap)
        exit_code = report.exit_code or (3 if require_ready and report.blocked else 0)
        return _report_run(call, mesh, report, "run", exit_code)


def _report_run(call: _Call, mesh: Mesh, report: RunReport, verb: str, exit_code: int) -> int:
    waits: tuple[Wait, ...] = ()
    if report.blocked or report.failed:
        # The roots by the ledger as it is now. What the run did is told even if that cannot be.
        with contextlib.suppress(MeshgateError):
            waits = mesh.waits(report.project, environment=report.environment, now=report.now)
    what = report.error or f"{len(report.failed)} intervals failed"
    call.failure = f"{verb} {report.run_id} of {report.project!r} ended as {report.state}: {what}"
    call.show("run", report, waits, verb, exit_code=exit_code)
    return exit_code


@cli.command()
@_environment
@_now
@_json
@_pass_call
def status(call: _Call, environment: str | None, now: datetime | None) -> int:
    """Show where every project and model is, and what keeps things back."""
    with call.open() as mesh:
        call.show("status", mesh.status(environment=environment, now=now))
    return 0


@cli.command()
@click.argument("model")
@click.argument("interval", required=False, callback=_read_interval)
@_environment
@_now
@_json
@_pass_call
def why(
    call: _Call, model: str, interval: Interval | None, environment: str | None, now: datetime | None
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
@click.argument("interval", callback=_read_interval)
@_environment
@_now
@_json
@_pass_call
def gate(call: _Call, model: str, interval: Interval, environment: str | None, now: datetime | None) -> int:
    """Ask whether INTERVAL of MODEL could be evaluated now.

    Exits with 3 if not. INTERVAL is START/END in UTC, such as 2026-01-05T03:00/2026-01-05T04:00. What is recorded of
    it does not matter, only what it reads.
    """
    with call.open() as mesh:
        found = mesh.gate(model, interval, environment=environment, now=now)
    call.show("gate", found)
    return 0 if found.ready else 3


# From a process to an exit code, or to an exception


def _invoke(call: _Call, arguments: Sequence[str]) -> int:
    """The exit code of a command; what goes wrong is raised."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            # Names and messages may hold what a terminal cannot show: no reason to lose the answer.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    answer = cli.main(list(arguments), prog_name="meshgate", standalone_mode=False, obj=call)
    sys.stdout.flush()
    return int(answer or 0)


def _tell(call: _Call, error: MeshgateError) -> None:
    if call.json:
        from meshgate.report import data

        click.echo(data.dumped(data.error(error)))
    click.echo(f"error: {error}", err=True)


def execute(arguments: Sequence[str]) -> int:
    """Run one command, tell whatever goes wrong, and return the exit code."""
    call = _Call()
    try:
        return _invoke(call, arguments)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MeshgateError as error:
        _tell(call, error)
        return error.exit_code
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
        return 1


def main() -> NoReturn:
    """The `meshgate` command."""
    sys.exit(execute(sys.argv[1:]))


def job() -> None:
    """The entry point of Databricks wheel tasks, whose parameters are those of the command line.

    A task fails when it raises, and a `SystemExit` counts as raising. So it raises where the exit code would be 1, 2
    or 5, and returns where there is nothing for an orchestrator to do about: also when it skipped, or is not ready.

    Raises:
        MeshgateError: What went wrong.
    """
    call = _Call()
    try:
        code = _invoke(call, sys.argv[1:])
    except click.ClickException as error:
        raise ConfigError(error.format_message(), hint="see `meshgate --help`") from None
    except MeshgateError as error:
        if error.exit_code in _RAISED_BY_JOBS:
            raise
        _tell(call, error)
        return
    if code in _RAISED_BY_JOBS:
        raise (ConfigError if code == 2 else EvaluationError)(call.failure)
