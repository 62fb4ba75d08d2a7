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
    from meshgate.mesh import Mesh

_DEBUG = "MESHGATE_DEBUG"
_RAISED_BY_JOBS = (1, 2, 5)
_INTERRUPTED = 130


class _Call:
    """One call of the command line: its global options, and how its answer is printed."""

    def __init__(self) -> None:
        self.config: str | None = None
        self.verbose = False
        self.json = False

    def open(self, *, check: bool = True) -> Mesh:
        """The mesh; from here on there is something to log."""
        from meshgate.mesh import Mesh

        _log_to_stderr(verbose=self.verbose)
        return Mesh.open(self.config, check=check)

    def print(self, document: Callable[[], dict[str, Any]], text: Callable[[Any], None]) -> None:
        """The answer, as JSON or for people."""
        if self.json:
            from meshgate.report.data import dumped

            click.echo(dumped(document()))
        else:
            from meshgate.report.text import console

            text(console(sys.stdout))


def _log_to_stderr(*, verbose: bool) -> None:
    """Logs as key=value lines; warnings only, unless more is asked for."""
    import logging

    import structlog

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], drop_missing=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if verbose else logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


_pass_call = click.make_pass_decorator(_Call, ensure=True)
_json = click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
_environment = click.option(
    "--environment", metavar="NAME", help="SQLMesh's environment; by default the project's own."
)
_now = click.option(
    "--now", metavar="INSTANT", help="An instant in the past (UTC, ISO 8601) that stands for the present."
)


def _instant(text: str | None) -> datetime | None:
    from meshgate.interval import parse_instant

    return None if text is None else parse_instant(text)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--config", metavar="PATH", help="meshgate.yaml or its folder; by default looked for here and above.")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, on stderr.")
@click.version_option(__version__, prog_name="meshgate")
@_pass_call
def cli(call: _Call, config: str | None, *, verbose: bool) -> None:
    """Several SQLMesh projects on one warehouse, each on its own schedule, none on missing data."""
    call.config = config
    call.verbose = verbose


@cli.command()
@click.option("--sql", is_flag=True, help="Print the statements that make a new ledger, and touch nothing.")
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
        click.echo(f"ledger migrated {before} → {after}")
    return 0


@cli.command()
@_json
@_pass_call
def doctor(call: _Call, *, as_json: bool) -> int:
    """Check configuration, ledger, projects and versions. Exits with 2 if anything fails."""
    from meshgate.mesh import Mesh

    call.json = as_json
    _log_to_stderr(verbose=call.verbose)
    found = Mesh.doctor(call.config)

    def document() -> dict[str, Any]:
        from meshgate.report import data

        return data.doctor(found)

    def text(out: Any) -> None:
        from meshgate.report import text

        text.doctor(out, found)

    call.print(document, text)
    return found.exit_code


@cli.command()
@click.argument("project")
@_environment
@_now
@_json
@_pass_call
def deploy(call: _Call, project: str, environment: str | None, now: str | None, *, as_json: bool) -> int:
    """Apply SQLMesh's plan of PROJECT under lease, gate and ledger."""
    call.json = as_json
    instant = _instant(now)
    with call.open() as mesh:
        report = mesh.deploy(project, environment=environment, now=instant)
        _print_run(call, mesh, report, report.exit_code, "deploy")
    return report.exit_code


@cli.command()
@click.argument("project")
@_environment
@_now
@click.option("--dry-run", is_flag=True, help="Decide and print, but do nothing.")
@click.option("--overlap", type=click.Choice(["skip", "fail"]), help="If another run of the project lives.")
@click.option("--require-ready", is_flag=True, help="Exit with 3 if anything that is due is blocked; the rest is done all the same.")
@_json
@_pass_call
def run(
    call: _Call,
    project: str,
    environment: str | None,
    now: str | None,
    overlap: str | None,
    *,
    dry_run: bool,
    require_ready: bool,
    as_json: bool,
) -> int:
    """Evaluate whatever of PROJECT is due and ready."""
    call.json = as_json
    instant = _instant(now)
    with call.open() as mesh:
        report = mesh.run(project, environment=environment, now=instant, dry_run=dry_run, overlap=overlap)
        exit_code = report.exit_code or (3 if require_ready and report.blocked else 0)
        _print_run(call, mesh, report, exit_code, "run")
    return exit_code


def _print_run(call: _Call, mesh: Mesh, report: RunReport, exit_code: int, verb: str) -> None:
    # From the ledger as it is now: the root of what a run met may have been mended, or made, while it worked.
    waits = () if report.busy else mesh.waits(report.project, environment=report.environment, now=report.now)

    def document() -> dict[str, Any]:
        from meshgate.report import data

        return data.run(report, waits, exit_code, verb)

    def text(out: Any) -> None:
        from meshgate.report import text

        text.run(out, report, waits, verb)

    call.print(document, text)


@cli.command()
@_environment
@_now
@_json
@_pass_call
def status(call: _Call, environment: str | None, now: str | None, *, as_json: bool) -> int:
    """Show where every project and model is, and what keeps things back."""
    call.json = as_json
    instant = _instant(now)
    with call.open() as mesh:
        found = mesh.status(environment=environment, now=instant)

    def document() -> dict[str, Any]:
        from meshgate.report import data

        return data.status(found)

    def text(out: Any) -> None:
        from meshgate.report import text

        text.status(out, found)

    call.print(document, text)
    return 0


@cli.command()
@click.argument("model")
@click.argument("interval", required=False)
@_environment
@_now
@_json
@_pass_call
def why(
    call: _Call, model: str, interval: str | None, environment: str | None, now: str | None, *, as_json: bool
) -> int:
    """Explain an interval of MODEL: how it was recorded, or what it waits for, down to the root.

    INTERVAL is START/END in UTC, such as 2026-01-05T03:00/2026-01-05T04:00; by default the oldest that is due and
    not as it should be.
    """
    from meshgate.interval import Interval

    call.json = as_json
    asked, instant = None if interval is None else Interval.parse(interval), _instant(now)
    with call.open() as mesh:
        found = mesh.why(model, asked, environment=environment, now=instant)

    def document() -> dict[str, Any]:
        from meshgate.report import data

        return data.why(found)

    def text(out: Any) -> None:
        from meshgate.report import text

        text.why(out, found)

    call.print(document, text)
    return 0


@cli.command()
@click.argument("model")
@click.argument("interval")
@_environment
@_now
@_json
@_pass_call
def gate(call: _Call, model: str, interval: str, environment: str | None, now: str | None, *, as_json: bool) -> int:
    """Ask whether INTERVAL of MODEL could be evaluated now. Exits with 3 if not.

    INTERVAL is START/END in UTC, such as 2026-01-05T03:00/2026-01-05T04:00. What is recorded of it does not matter.
    """
    from meshgate.interval import Interval

    call.json = as_json
    asked, instant = Interval.parse(interval), _instant(now)
    with call.open() as mesh:
        found = mesh.gate(model, asked, environment=environment, now=instant)

    def document() -> dict[str, Any]:
        from meshgate.report import data

        return data.gate(found)

    def text(out: Any) -> None:
        from meshgate.report import text

        text.gate(out, found)

    call.print(document, text)
    return 0 if found.ready else 3
