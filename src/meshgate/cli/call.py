"""One call of the command line: what its options say, where its answer goes, and how a signal ends it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from meshgate.errors import ConfigError, MeshgateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime, timedelta
    from pathlib import Path

    from meshgate.analysis import Analysis
    from meshgate.coordinator.run import RunReport
    from meshgate.coordinator.status import Wait
    from meshgate.interval import Interval
    from meshgate.mesh import Mesh
    from meshgate.report.progress import Narrator

SIGNALLED = 128  # as shells count a command that a signal ended


class Call:
    """One call of the command line: its global options, and how it answers."""

    def __init__(self) -> None:
        self.config: str | None = None
        self.verbose = False
        self.json = False
        # Why the answer is an exit code other than 0, for `job`, which has to raise it.
        self.failure = "meshgate failed"
        # The signal that stopped the work, if one did.
        self.signum: int | None = None
        self._narrator: Narrator | None = None

    def open(self, *, check: bool = True) -> Mesh:
        """The mesh; from here on there is something to log."""
        from meshgate.mesh import Mesh

        log_to_stderr(verbose=self.verbose)
        return Mesh.open(self.config, check=check)

    @contextlib.contextmanager
    def working(self, *projects: str) -> Iterator[Mesh]:
        """The mesh, to work on projects: what happens is told on stderr, and a signal ends it in order."""
        from datetime import timedelta

        from meshgate.mesh import Mesh
        from meshgate.report.progress import Narrator
        from meshgate.stop import on_signals

        log_to_stderr(verbose=self.verbose)
        with Narrator(sys.stderr, verbose=self.verbose, silent=self.json) as self._narrator:
            said = self._narrator
            with Mesh.open(self.config, tell=said.tell) as mesh:
                graces = [p.stop_grace for p in mesh.config.projects if p.name in projects]
                grace = max(graces, default=timedelta(0))
                try:
                    with on_signals(mesh.stop, lambda: grace, mesh.interrupt, said.say):
                        yield mesh
                finally:
                    self.signum = mesh.stop.signum

    def show(self, name: str, *found: Any, page: str = "text", **also: Any) -> None:
        """Print an answer: `report.data.<name>` or `report.<page>.<name>` of it; `also` goes into JSON only."""
        if self._narrator is not None:
            self._narrator.close()
        if self.json:
            from meshgate.report import data

            click.echo(data.dumped({**getattr(data, name)(*found), **also}))
        else:
            from importlib import import_module

            from meshgate.report.text import console

            getattr(import_module(f"meshgate.report.{page}"), name)(console(sys.stdout), *found)

    def report_run(
        self, mesh: Mesh, report: RunReport, verb: str, exit_code: int, *, cut: bool = False
    ) -> int:
        """Print what was done; `cut`: a signal ended the waiting."""
        from attrs import evolve

        from meshgate.report import wording

        waits = waits_of(mesh, report)
        if report.state == "stopped" or cut:
            waiting = cut and report.state != "stopped"
            said = wording.stopped(report, mesh.stop.reason, verb, waiting=waiting)
            report = evolve(report, state="stopped", error=said)
            exit_code = SIGNALLED + mesh.stop.signum if mesh.stop.signum else report.exit_code
        what = report.error or f"{len(report.failed)} intervals failed"
        self.failure = f"{verb} {report.run_id} of {report.project!r} ended as {report.state}: {what}"
        self.show("run", report, waits, verb, exit_code=exit_code)
        return exit_code


def waits_of(mesh: Mesh, report: RunReport) -> tuple[Wait, ...]:
    """The roots of what a run did not get done, by the ledger as it is now."""
    if report.blocked or report.failed:
        # What the run did is told even if that cannot be.
        with contextlib.suppress(MeshgateError):
            return mesh.waits(report.project, environment=report.environment, now=report.now)
    return ()


class _Stderr:
    """Whatever stderr is when something is logged: a live display puts itself in front of it."""

    @staticmethod
    def write(text: str) -> None:
        sys.stderr.write(text)

    @staticmethod
    def flush() -> None:
        sys.stderr.flush()


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
        logger_factory=structlog.PrintLoggerFactory(file=_Stderr()),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )


def who() -> str:
    """Who types this, for the history."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


# Options that several commands share. What they hold is read before anything is opened.


def _read_json(ctx: click.Context, _: click.Parameter, *, value: bool) -> None:
    ctx.ensure_object(Call).json = value


def read_instant(_: click.Context, __: click.Parameter, value: str | None) -> datetime | None:
    """An instant, UTC."""
    from meshgate.interval import parse_instant

    return None if value is None else parse_instant(value)


def read_interval(_: click.Context, __: click.Parameter, value: str | None) -> Interval | None:
    """START/END."""
    from meshgate.interval import Interval

    return None if value is None else Interval.parse(value)


def read_wait(_: click.Context, __: click.Parameter, value: str | None) -> timedelta | None:
    """A duration that is not negative."""
    from datetime import timedelta

    from meshgate.config import parse_duration

    if value is None:
        return None
    found = parse_duration(value)
    if found < timedelta(0):
        raise ConfigError(
            f"--wait {value} is negative", hint="give how long to wait, such as 90s, 5m or 1h30m"
        )
    return found


def read_analysis(_: click.Context, __: click.Parameter, value: str | None) -> Analysis | None:
    """What `meshgate analyze --json` wrote into a file; `-` is stdin."""
    import json
    from pathlib import Path

    from meshgate.analysis import parse

    if value is None:
        return None
    try:
        text = sys.stdin.read() if value == "-" else Path(value).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{value} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}",
            hint="give the file that `meshgate analyze --json` wrote",
        ) from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(
            f"{value} is not an analysis: it is no JSON",
            hint="write it with `meshgate analyze --json > FILE`",
        ) from None
    return parse(document, value)


def checkouts_of(given: tuple[str, ...], *, alone: bool = True) -> dict[str, Path | None]:
    """Folders by project; `alone`: without a folder it is the one that `meshgate.yaml` has.

    Raises:
        ConfigError: A project is named twice, or something is no name.
    """
    from pathlib import Path

    found: dict[str, Path | None] = {}
    for word in given:
        name, separator, path = word.partition("=")
        if not name or (not path and (separator or not alone)):
            raise ConfigError(
                f"{word!r} is no checkout", hint="write PROJECT=PATH, such as upstream=../upstream"
            )
        if name in found:
            raise ConfigError(
                f"project {name!r} is named twice", hint="one checkout of each project is looked at"
            )
        found[name] = Path(path) if separator else None
    return found


def same_environment(analysis: Analysis, environment: str | None) -> None:
    """Refuse an environment that the analysis is not about.

    Raises:
        ConfigError: It is another one.
    """
    if environment not in (None, analysis.environment):
        raise ConfigError(
            f"the analysis is about environment {analysis.environment!r}, and --environment {environment} is given",
            hint="leave --environment away, or analyse that one",
        )


analysis_option = click.option(
    "--from-analysis",
    "analysis",
    metavar="FILE",
    callback=read_analysis,
    help="What `meshgate analyze --json` wrote.",
)


def json_option(command: Callable[..., int]) -> Callable[..., int]:
    """Let a command answer as JSON."""
    return click.option(
        "--json",
        is_flag=True,
        # First of all, so that a wrong value of another option is told as JSON too.
        is_eager=True,
        expose_value=False,
        callback=lambda ctx, option, value: _read_json(ctx, option, value=value),
        help="Print a JSON document.",
    )(command)


pass_call = click.make_pass_decorator(Call, ensure=True)
environment_option = click.option(
    "--environment", metavar="NAME", help="SQLMesh's environment; by default the project's own."
)
now_option = click.option(
    "--now",
    metavar="INSTANT",
    callback=read_instant,
    help="A past instant that stands for the present: UTC, ISO 8601.",
)
