"""The story of `make demo`: the whole portfolio over five simulated hours, with troubles, and an oracle's verdict.

What happens is in `history.py`; meanwhile another process plays the same with plain SQLMesh. Each project's ticks are played in one process of
its own, which stays warm as a long-lived worker would. Simulated time is in January 2026; `--now` says which instant it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
import history
import oracle
import plain
from history import Deed
from lakehouse import HERE, HOME, Lakehouse
from rich.console import Console
from rich.text import Text
from ticks import PROJECTS, Tick, Warm, command, interval, short

from meshgate.errors import MeshgateError
from meshgate.interval import IntervalSet
from meshgate.mesh import Mesh
from meshgate.report import data

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

WORTH_TELLING = ("silver.order_lines", "gold.dim_item", "gold.fact_sales")
"""Of these it is told when they are computed again; of all others it would be too much."""
out = Console(highlight=False, width=max(120, min(Console().width, 140)))


def say(text: str) -> None:
    """Tell what happens next."""
    out.print(Text(f"\n{text}"), style="bold cyan")


class Story:
    """The story, as far as it has been told."""

    def __init__(self, lakehouse: Lakehouse, stack: ExitStack) -> None:
        self.lakehouse = lakehouse
        self._stack = stack
        self._warm: dict[str, Warm] = {}
        self._frontiers: dict[str, datetime] = {}

    def play(self, deeds: Iterable[Deed], closes: datetime) -> None:
        """All of it."""
        for deed in deeds:
            history.sell(self.lakehouse.source, min(deed.at, closes))
            getattr(self, f"_{deed.what}")(deed)

    def _chapter(self, deed: Deed) -> None:
        say(deed.about)

    def _deploy(self, deed: Deed) -> None:
        with Mesh.open(HERE, check=False) as mesh:
            mesh.migrate()
            for project in PROJECTS:
                started = time.monotonic()
                report = mesh.deploy(project, now=deed.at)
                show(Tick(data.run(report, (), "deploy"), time.monotonic() - started), self._frontiers)
        self._warm = {project: self._stack.enter_context(Warm(project)) for project in PROJECTS}

    def _run(self, deed: Deed) -> None:
        show(self._warm[deed.about].run(deed.at), self._frontiers)

    def _twice(self, deed: Deed) -> None:
        with Warm(deed.about) as other:
            for tick in self._warm[deed.about].run_beside(other, deed.at):
                show(tick, self._frontiers)

    def _why(self, deed: Deed) -> None:
        person("why", deed.about, "--now", f"{deed.at:%Y-%m-%dT%H:%MZ}")

    def _retry(self, deed: Deed) -> None:
        person("retry", deed.about)

    def _correct(self, deed: Deed) -> None:
        lines = history.correct(self.lakehouse.source, deed.at)
        note(deed.at, f"the shop sends the {lines} wrong lines again, as they should have been", "bold")

    def _colleague(self, deed: Deed) -> None:
        done = subprocess.run(
            [sys.executable, plain.__file__, deed.about],
            input=f"{deed.at.isoformat()}\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr)
        state = json.loads(done.stdout.splitlines()[-1])["state"]
        note(deed.at, f"sqlmesh run, the models of {deed.about} alone: {state}")


def note(now: datetime, text: str, style: str = "") -> None:
    """One line that is no run of meshgate."""
    out.print(Text.assemble((f"  {now:%H:%M} ", "dim"), (f"· {text}", style)))


def show(tick: Tick, frontiers: dict[str, datetime]) -> None:
    """One line for a run, and one for each thing worth knowing about it.

    Args:
        tick: The run.
        frontiers: Up to where each model was recorded before, UTC; what lies before that is told by name. Is brought up to date.
    """
    report = tick.report
    new, again = IntervalSet(), {}
    for model, spans in tick.committed().items():
        known = frontiers.get(model, history.at(0))
        new = new | IntervalSet(span for span in spans if span.start >= known)
        again[model] = IntervalSet(span for span in spans if span.start < known)
        frontiers[model] = max([known, *(span.end for span in spans)])
    said = [f"{len(again)} models {_times(new)}".rstrip()] if again else []
    if report["state"] == "skipped":
        said.append("skipped, as another run of it lives")
    elif report["blocked"]:
        said.append(f"{len({entry['model'] for entry in report['blocked']})} wait")
    marks = {"failed": ("✗", "red"), "done": ("✓", "green")}
    mark, style = marks.get(report["state"], ("·", "dim"))
    out.print(
        Text.assemble(
            (f"  {report['now'][11:16]} ", "dim"),
            (f"{mark} {report['project']:<11}", style),
            ", ".join(said) or "nothing to do",
            (f"  {tick.seconds:.1f} s", "dim"),
        )
    )
    _lines((f"again: {m} {_times(s)}" for m, s in again.items() if s and m in WORTH_TELLING), "yellow")
    _lines((_failure(failure) for failure in tick.failed), "red")
    foreign = [finding for finding in report["findings"] if finding["what"] == "suspect"]
    if foreign:
        times = IntervalSet(interval(finding["interval"]) for finding in foreign)
        models = {short(finding["model"]) for finding in foreign}
        _lines(
            [f"{len(models)} models {_times(times)} were recorded by somebody else: evaluated again"],
            "yellow",
        )


def _failure(failure: dict[str, Any]) -> str:
    audits = ", ".join(f"{a['audit']} refuses {a['count']} rows" for a in failure["detail"].get("audits", ()))
    return f"{short(failure['model'])} {_times(IntervalSet([interval(failure['interval'])]))}: {audits or failure['error']}"


def _lines(lines: Iterable[str], style: str) -> None:
    for line in lines:
        out.print(Text(f"          {line}"), style=style)


def _times(spans: IntervalSet) -> str:
    shown = [f"[{s.start:%H:%M}, {s.end:%H:%M})" for s in spans]
    return " ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def person(*arguments: str) -> None:
    """A `meshgate` command that somebody enters."""
    out.print(Text(f"  $ meshgate {' '.join(arguments)}"), style="bold")
    environment = {"COLUMNS": str(out.width - 4)} | ({"FORCE_COLOR": "1"} if out.is_terminal else {})
    for line in command(*arguments, environment=environment).stdout.rstrip().splitlines():
        out.print(Text.from_ansi(f"    {line.rstrip()}"), soft_wrap=True)


def judge(lakehouse: Lakehouse, upto: datetime) -> bool:
    """Compare every table with the source; whether all are right."""
    say("The verdict: each table against one computed from the shop's rows in plain Python, row by row")
    verdicts = oracle.compare(lakehouse.source, lakehouse.lake, upto)
    for verdict in verdicts:
        out.print(
            Text(f"  {'✓' if verdict.right else '✗'} {verdict}"),
            style="green" if verdict.right else "bold red",
        )
        _lines(verdict.examples(), "red")
    return all(verdict.right for verdict in verdicts)


def page(lakehouse: Lakehouse) -> Path:
    """Write the dashboard's page; its file."""
    from dashboard.page import write

    return write(lakehouse, HOME / "dashboard")


@click.command()
@click.option(
    "--hours", type=click.IntRange(2, history.MOST_HOURS), default=history.MOST_HOURS, show_default=True,
    help="How much of the story is told.",
)  # fmt: skip
@click.option(
    "--plain/--no-plain",
    "beside",
    default=True,
    help="Whether plain SQLMesh plays the same history beside it.",
)
def main(hours: int, beside: bool) -> None:
    """Tell the story from nothing; ends with 0 if every table is right."""
    started = time.monotonic()
    out.print(Text("meshgate: two SQLMesh projects, from a shop's database to dashboards"), style="bold")
    deeds = history.told(hours)
    with ExitStack() as stack:
        try:
            right = _told_by_both(deeds, hours, stack, beside=beside)
        except MeshgateError as error:
            out.print(Text(f"error: {error}"), style="bold red")
            sys.exit(error.exit_code)
    verdict = "every row of every table is right" if right else "THE TABLES ARE WRONG"
    out.print(
        Text(f"\n{verdict}, {time.monotonic() - started:.0f} s"), style="bold green" if right else "bold red"
    )
    sys.exit(0 if right else 1)


def _told_by_both(deeds: list[Deed], hours: int, stack: ExitStack, *, beside: bool) -> bool:
    # A second demo starts where the first one did.
    Lakehouse.start().destroy()
    lakehouse = stack.enter_context(Lakehouse.start())
    other = stack.enter_context(Beside(hours)) if beside else None

    os.environ.update(lakehouse.environment())
    Story(lakehouse, stack).play(deeds, history.closes(hours))
    say("Where everything is")
    person("status", "--now", f"{deeds[-1].at:%Y-%m-%dT%H:%MZ}")
    right = judge(lakehouse, deeds[-1].at)
    if other is not None:
        say(
            "The same history with plain SQLMesh: `Context.run(execution_time=...)` of each project on its own"
        )
        _lines(other.said(), "")
    say("The dashboard")
    out.print(f"  {page(lakehouse)}")
    return right


class Beside:
    """Plain SQLMesh, which plays the same history in a process of its own and in a lakehouse of its own."""

    def __init__(self, hours: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="plain-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name) / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, plain.__file__, "--hours", str(hours), "--folder", f"{self._folder.name}/home"],
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def said(self) -> list[str]:
        """What it prints in the end."""
        printed = self._process.communicate()[0]
        if self._process.returncode:
            raise SystemExit(
                f"{plain.__file__} ended with {self._process.returncode}\n{self._log.read_text()}"
            )
        return printed.rstrip().splitlines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self._folder.cleanup()


if __name__ == "__main__":
    main()
