"""The story of `make demo`: two projects, five simulated hours, four troubles, and an oracle's verdict.

Each project's ticks are played in one process of its own, which stays warm as a long-lived worker would; some are
real `meshgate` commands. Simulated time is in January 2026; `--now` says which instant it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

import oracle
import source
from lakehouse import HERE, Lakehouse
from rich.console import Console
from rich.text import Text

from meshgate.errors import MeshgateError
from meshgate.interval import Interval, IntervalSet
from meshgate.mesh import Mesh
from meshgate.report import data

HOURS = 5
FACT = "gold.fact_sales"
out = Console(highlight=False, width=max(100, min(Console().width, 140)))


def at(hours: int, minutes: int = 0) -> datetime:
    """An instant of the story, UTC."""
    return source.BEGINNING + timedelta(hours=hours, minutes=minutes)


def say(text: str) -> None:
    """Tell what happens next."""
    out.print(Text(text), style="bold cyan")


class Project:
    """One project's warm process: takes an instant, runs, answers with the run's report as JSON."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, now: datetime, *, quiet: bool = False) -> dict[str, Any]:
        """One tick."""
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        assert self._process.stdout is not None  # noqa: S101
        started = time.monotonic()
        self._process.stdin.write(now.isoformat() + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} ended; see its message above")
        report: dict[str, Any] = json.loads(line)
        if not quiet or report["failed"] or report["findings"]:
            show(report, time.monotonic() - started)
        return report

    def close(self) -> None:
        """Let it finish."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        self._process.wait(30)


def serve(name: str) -> None:
    """The warm process: one line in, an instant; one line out, a report."""
    with Mesh.open(HERE) as mesh:
        for line in sys.stdin:
            report = mesh.run(name, now=datetime.fromisoformat(line.strip()))
            sys.stdout.write(json.dumps(json.loads(data.dumped(data.run(report, (), "run")))) + "\n")
            sys.stdout.flush()


def show(report: dict[str, Any], seconds: float) -> None:
    """One line for a run, and one for each thing worth knowing about it."""
    now = report["now"][11:16]
    groups: dict[IntervalSet, list[str]] = {}
    for entry in report["committed"]:
        groups.setdefault(IntervalSet(_interval(i) for i in entry["intervals"]), []).append(
            _short(entry["model"])
        )
    done = [f"{_names(names)} {_times(spans)}" for spans, names in groups.items()]
    what = ", ".join(done) or ("nothing is ready" if report["blocked"] else "nothing to do")
    mark, style = {"failed": ("✗", "red"), "done": ("✓", "green")}.get(report["state"], ("·", "dim"))
    out.print(
        Text.assemble(
            (f"  {now} ", "dim"),
            (f"{mark} {report['project']:<11}", style),
            what,
            (f"  {seconds:.1f} s", "dim"),
        )
    )
    for failure in report["failed"]:
        audits = ", ".join(
            f"{a['audit']} refused {a['count']} row" for a in failure["detail"].get("audits", ())
        )
        out.print(
            Text(
                f"          {_short(failure['model'])} {_times(IntervalSet([_interval(failure['interval'])]))}: {audits}"
            ),
            style="red",
        )
    for finding in [f for f in report["findings"] if f["what"] == "suspect"]:
        out.print(
            Text(
                f"          {_short(finding['model'])} {_times(IntervalSet([_interval(finding['interval'])]))} was recorded by somebody "
                "else, too early: evaluated again"
            ),
            style="yellow",
        )


def _names(models: list[str]) -> str:
    return ", ".join(models) if len(models) < 3 else f"{len(models)} models"


def _short(model: str) -> str:
    return model.replace('"', "").split(".", 1)[-1]


def _interval(found: dict[str, str]) -> Interval:
    return Interval(datetime.fromisoformat(found["start"]), datetime.fromisoformat(found["end"]))


def _times(spans: IntervalSet) -> str:
    return " ".join(f"[{s.start:%H:%M}, {s.end:%H:%M})" for s in spans)


def command(*arguments: str, shown: bool = True) -> None:
    """A real `meshgate` process, as a scheduler or a person would start it."""
    out.print(Text(f"  $ meshgate {' '.join(arguments)}"), style="bold")
    environment = {**os.environ, "COLUMNS": str(out.width - 4)}
    if out.is_terminal:
        environment["FORCE_COLOR"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", "from meshgate.cli import main; main()", "--config", str(HERE), *arguments],
        stdout=subprocess.PIPE, text=True, check=False, env=environment,
    )  # fmt: skip
    if shown:
        for line in done.stdout.rstrip().splitlines():
            out.print(Text.from_ansi(f"    {line}"))
    if done.returncode not in (0, 1):
        raise SystemExit(f"meshgate {' '.join(arguments)} ended with {done.returncode}")


def hour(upstream: Project, number: int, last: int = 60) -> None:
    """The twelve ticks of an hour, up to a minute of it."""
    started, failed = time.monotonic(), 0
    for minute in range(5, last + 1, 5):
        failed += bool(upstream.run(at(number, minute), quiet=True)["failed"])
    ticks = last // 5
    text = f"{ticks} ticks of five minutes" + (f", of which {failed} had a failure" if failed else "")
    out.print(
        Text.assemble(
            (f"  {at(number, last):%H:%M} ", "dim"),
            ("· upstream   ", "dim"),
            text,
            (f"  {time.monotonic() - started:.1f} s", "dim"),
        )
    )


def somebody_else(now: datetime) -> None:
    """A colleague's plain `sqlmesh run` of one model, in a process of its own, with no idea of the other project."""
    code = (
        "import sys; from sqlmesh.core.console import NoopConsole, set_console; from sqlmesh.core.context import Context\n"
        "set_console(NoopConsole())\n"
        f"context = Context(paths=[{str(HERE / 'downstream')!r}], load=False)\n"
        f"status = context.run('prod', execution_time={now.isoformat()!r}, skip_janitor=True, "
        f"select_models=[{FACT!r}, 'gold.sales_by_category_hour', 'gold.dim_item', 'gold.dim_customer'], no_auto_upstream=True)\n"
        "print(status.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    out.print(
        Text.assemble(
            (f"  {now:%H:%M} ", "dim"), f"· sqlmesh run, gold.* only → {done.stdout.strip().splitlines()[-1]}"
        )
    )


def play(lakehouse: Lakehouse) -> bool:
    """The story; whether the oracle found every table right."""
    say("Setting up: a ledger, a shop's database, and both projects deployed at 00:05")
    with Mesh.open(HERE, check=False) as mesh:
        mesh.migrate()
        source.generate(lakehouse.source, at(0), at(HOURS), seed=1)
        for project in ("upstream", "downstream"):
            started = time.monotonic()
            report = mesh.deploy(project, now=at(0, 5))
            show(json.loads(data.dumped(data.run(report, (), "deploy"))), time.monotonic() - started)
    with ExitStack() as stack:
        upstream, downstream = (stack.enter_context(_closing(Project(n))) for n in ("upstream", "downstream"))

        say("\n00:00-01:00  A normal hour")
        hour(upstream, 0, 55)
        command("run", "upstream", "--now", f"{at(1):%Y-%m-%dT%H:%MZ}")
        command("run", "downstream", "--now", f"{at(1):%Y-%m-%dT%H:%MZ}")

        say("\n01:00-02:00  Upstream is late and has only reached 01:40. Downstream waits, and says for what")
        hour(upstream, 1, 40)
        downstream.run(at(2))
        command("why", FACT, "--now", f"{at(2):%Y-%m-%dT%H:%MZ}")
        upstream.run(at(2, 5))
        downstream.run(at(2, 5))

        say("\n02:00-04:00  A sale at 02:25 is poisoned. Its own hour waits; the hour after it does not")
        poisoned = source.poison(lakehouse.source, at(2, 25), at(2, 30))
        for minute in range(10, 35, 5):
            upstream.run(at(2, minute), quiet=True)
        hour_after(upstream)
        downstream.run(at(4))
        command("why", FACT, "--now", f"{at(4):%Y-%m-%dT%H:%MZ}")
        source.repair(lakehouse.source, at(2, 25), at(2, 30))
        out.print(Text(f"  04:05 · the shop repairs {poisoned}"), style="bold")
        upstream.run(at(4, 5))
        downstream.run(at(4, 5))

        say("\n04:00-05:00  A colleague runs plain SQLMesh at 05:00, while upstream has only reached 04:45")
        hour_from(upstream, 4, 10, 45)
        somebody_else(at(5))
        downstream.run(at(5))
        upstream.run(at(5))
        downstream.run(at(5))
        downstream.run(at(5))

        say("\nWhere everything is")
        command("status", "--now", f"{at(5):%Y-%m-%dT%H:%MZ}")

    say(
        "\nThe verdict: each gold table against one computed from the shop's rows in plain Python, row by row"
    )
    verdicts = oracle.compare(lakehouse.source, lakehouse.lake, at(5))
    for verdict in verdicts:
        out.print(
            Text(f"  {'✓' if verdict.right else '✗'} {verdict}"),
            style="green" if verdict.right else "bold red",
        )
    return all(verdict.right for verdict in verdicts)


def hour_after(upstream: Project) -> None:
    """02:35 to 04:00; the failed interval is tried again at each tick, and is shown once more at the end."""
    out.print(Text("  ... each tick tries the failed interval again, and takes the new one"), style="dim")
    for minute in range(35, 120, 5):
        _silently(upstream, at(2, minute))
    upstream.run(at(4))


def hour_from(upstream: Project, number: int, first: int, last: int) -> None:
    """Ticks of an hour that are not worth a line."""
    for minute in range(first, last + 1, 5):
        _silently(upstream, at(number, minute))


def _silently(project: Project, now: datetime) -> None:
    global show  # noqa: PLW0603 - the story leaves these lines out
    kept, show = show, lambda *_: None
    try:
        project.run(now, quiet=True)
    finally:
        show = kept


class _closing:  # noqa: N801 - reads as contextlib's
    def __init__(self, project: Project) -> None:
        self._project = project

    def __enter__(self) -> Project:
        return self._project

    def __exit__(self, *_: object) -> None:
        self._project.close()


def main() -> int:
    """Play the story from nothing; 0 if every table is right."""
    started = time.monotonic()
    out.print(Text("meshgate: two SQLMesh projects share one warehouse\n"), style="bold")
    try:
        _from_nothing()
        with Lakehouse.start() as lakehouse:
            os.environ.update(lakehouse.environment())
            right = play(lakehouse)
    except MeshgateError as error:
        out.print(Text(f"error: {error}"), style="bold red")
        return error.exit_code
    verdict = "every row of every gold table is right" if right else "THE TABLES ARE WRONG"
    out.print(
        Text(f"\n{verdict}, {time.monotonic() - started:.0f} s"), style="bold green" if right else "bold red"
    )
    return 0 if right else 1


def _from_nothing() -> None:
    """A second demo starts where the first one did."""
    lakehouse = Lakehouse.start()
    lakehouse.destroy()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        sys.exit(main())
