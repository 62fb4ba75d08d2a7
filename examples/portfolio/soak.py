"""The whole pipeline over simulated days, tick by tick, with every fault of the shop, and nobody looking: `python soak.py --days 3`.

Upstream ticks every five minutes and downstream every hour, each in one process that stays warm; the first tick of a day is a real
`meshgate run`. At one each night both projects' tables are looked after by the maintenance job. One fault needs a person, by design: a till whose amounts are wrong, for which an audit stops the line. Then the person asks
`meshgate why`, reads what it names, and accepts. At the end the shop is quiet until the mesh has settled, and every table must equal the one
computed from the source alone.

It can be killed anywhere and started again, and then goes on. `--anew` begins from nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import oracle
import source
from history import broken_till, span
from lakehouse import HERE, Lakehouse
from ticks import PROJECTS, Tick, Warm, cold, command, short

from meshgate.errors import MeshgateError
from meshgate.mesh import Mesh

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshgate.interval import Interval

FOLDER = HERE / ".meshgate-soak"
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
BY_DESIGN = {"bronze.line_items": "most_lines_are_usable"}
"""What a person decides: the model, and the audit that stops it."""
APPENDED = "ops.arrivals"
"""Is never evaluated twice: what a killed run has done to it a person has to look at."""
MOST_HOURS_TO_REST = 12
NIGHT = 1
"""At which hour the tables are looked after: else each tick would have more small files to open than the last one."""
USUAL = ("late", "duplicates", "nulls", "negative", "orphans", "late_items")
REASON = "the till's software was wrong; the lines stay out until the shop sends them again"


@dataclass
class Progress:
    """How far it has come; kept in a file, so that it can go on.

    Attributes:
        asked: With what it was begun.
        ticks: How many five minutes are over.
        runs: How many runs there were, of both projects.
        seconds: How long these took, by project.
        longest: How long the longest took, and which it was.
        maintained: How long maintenance took, in seconds.
        recorded: How many spans of a model were recorded.
        redone: How many of these lie before what was recorded of the model already.
        frontiers: Up to where each model is recorded.
        decided: What a person decided.
        unforeseen: What went wrong, and is none of the faults that were asked for.
    """

    asked: dict[str, Any]
    ticks: int = 0
    runs: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    longest: tuple[float, str] = (0.0, "")
    maintained: float = 0.0
    recorded: int = 0
    redone: int = 0
    frontiers: dict[str, str] = field(default_factory=dict)
    decided: list[str] = field(default_factory=list)
    unforeseen: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, file: Path) -> Progress | None:
        """What the file says."""
        return cls(**json.loads(file.read_text())) if file.exists() else None

    def save(self, file: Path) -> None:
        """Write it, whole or not at all."""
        new = file.with_suffix(".new")
        new.write_text(json.dumps(asdict(self)))
        new.replace(file)

    def count(self, tick: Tick) -> None:
        """Take a run into account."""
        project, now = tick.report["project"], tick.report["now"]
        self.runs += 1
        self.seconds[project] = self.seconds.get(project, 0.0) + tick.seconds
        seconds, run = self.longest
        self.longest = max((seconds, run), (tick.seconds, f"{project} at {now}"))
        for model, spans in tick.committed().items():
            known = self.frontiers.get(model, "")
            self.recorded += len(list(spans))
            self.redone += sum(s.start.isoformat() < known for s in spans)
            self.frontiers[model] = max([known, *(s.end.isoformat() for s in spans)])
        if tick.report["error"]:
            self.unforeseen.append(f"{project} at {now}: {tick.report['error']}")
        self.unforeseen += [f"{project} at {now}: {f['what']} {f['model']}" for f in tick.report["findings"]]


@dataclass(frozen=True)
class Plan:
    """What happens in the shop, and for how long.

    Attributes:
        end: When it closes, UTC.
        rate: Sales an hour.
        seed: Of everything.
    """

    end: datetime
    rate: float
    seed: str

    def at(self, share: float) -> datetime:
        """An instant of the history, by the share of it that is over; whole five minutes."""
        return source.BEGINNING + (self.end - source.BEGINNING) * share // source.SLOT * source.SLOT

    def faults(self) -> list[source.Fault]:
        """Every sort of fault; the last one is the till that a person has to look at."""
        short_span = min(HOUR, (self.end - source.BEGINNING) / 8) // source.SLOT * source.SLOT
        spans = [
            f"burst=4@{span(self.at(0.3), self.at(0.3) + short_span)}",
            f"outage@{span(self.at(0.5), self.at(0.5) + short_span + source.SLOT * 2)}",
            f"schema_change@{self.at(0.4):%Y-%m-%dT%H:%M}/",
        ]
        faults = [source.Fault.parse(text) for text in (*USUAL, *spans)]
        try:
            return [*faults, broken_till(faults, self.seed, self.rate, self.at(0.2), self.at(0.7))]
        except ValueError as problem:
            raise click.UsageError(str(problem)) from None


class Soak:
    """One soak, begun or gone on with."""

    def __init__(self, lakehouse: Lakehouse, plan: Plan, progress: Progress, file: Path) -> None:
        self.lakehouse = lakehouse
        self.plan = plan
        self.progress = progress
        self._file = file
        self._faults = plan.faults()

    def play(self) -> bool:
        """All of it that is left; whether every table is right."""
        started = time.monotonic()
        with ExitStack() as stack:
            mesh = stack.enter_context(Mesh.open(HERE, check=False))
            mesh.migrate()
            if not self.progress.ticks:
                self._open(mesh)
            warm = {project: stack.enter_context(Warm(project)) for project in PROJECTS}
            ticks = (self.plan.end - source.BEGINNING) // source.SLOT
            while self.progress.ticks < ticks:
                now = source.BEGINNING + (self.progress.ticks + 1) * source.SLOT
                self._sell(now)
                self._tick(mesh, warm, now)
            rest = self._rest(mesh, warm)
            return self._judge(mesh, rest, time.monotonic() - started)

    def _sell(self, now: datetime) -> None:
        source.generate(
            self.lakehouse.source, now, seed=self.plan.seed, rate=self.plan.rate, faults=self._faults
        )

    def _open(self, mesh: Mesh) -> None:
        """Deploy both projects, when the first five minutes are over."""
        now = source.BEGINNING + source.SLOT
        self._sell(now)
        for project in PROJECTS:
            started = time.monotonic()
            report = mesh.deploy(project, now=now)
            if report.exit_code:
                raise SystemExit(
                    f"the deploy of {project} ended as {report.state}: {report.error} {report.failed}"
                )
            click.echo(f"deployed {project} in {time.monotonic() - started:.1f} s")

    def _tick(self, mesh: Mesh, warm: dict[str, Warm], now: datetime) -> None:
        """Five minutes are over: upstream runs, at the hour downstream too, and a person looks at what stands still."""
        self._run("upstream", warm, now)
        if now.minute == 0:
            self._run("downstream", warm, now)
            self._person(mesh, now)
            self._tell(now)
            if now.hour == NIGHT:
                self._maintain(now)
        self.progress.ticks += 1
        self.progress.save(self._file)

    def _run(self, project: str, warm: dict[str, Warm], now: datetime) -> None:
        first = (
            now - source.BEGINNING < source.SLOT * 2
            if project == "upstream"
            else now - source.BEGINNING == HOUR
        )
        at_first = first or (now.hour, now.minute) == (0, 0)
        self.progress.count(cold(project, now) if at_first else warm[project].run(now))

    def _maintain(self, now: datetime) -> None:
        """What a job does each night. It goes by the real time, in which a night comes much too soon: so it does all."""
        started = time.monotonic()
        for project in PROJECTS:
            job = [sys.executable, "-m", "maintenance", project, "--apply", "--anyway"]
            done = subprocess.run(
                job, cwd=HERE, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            last = done.stdout.splitlines()[-1:]
            click.echo(f"{now:%m-%d %H:%M}  maintenance of {project}: {' '.join(last)}")
            if done.returncode:
                self.progress.unforeseen.append(f"{now:%m-%d %H:%M} maintenance of {project}:\n{done.stdout}")
        self.progress.maintained += time.monotonic() - started

    def _person(self, mesh: Mesh, now: datetime) -> None:
        """Whoever is on call asks why something stands still, and decides what only a person can decide."""
        for project in mesh.status(now=now).projects:
            for model in project.models:
                for interval in model.failing:
                    self._look_at(mesh, short(model.model), interval, now)
                if model.held and short(model.model) == APPENDED:
                    self._look_at_rows(mesh, now)

    def _look_at(self, mesh: Mesh, model: str, interval: Interval, now: datetime) -> None:
        when = span(interval.start, interval.end)
        told = command("why", model, when, "--now", f"{now:%Y-%m-%dT%H:%MZ}", ends_with=(0,)).stdout
        audit = BY_DESIGN.get(model)
        if audit is None or audit not in told or model not in told:
            self.progress.unforeseen.append(f"{now:%m-%d %H:%M} {model} {when} fails:\n{told}")
            return
        click.echo(
            f"  a person: meshgate why {model} {when}\n" + "".join(f"    {x}\n" for x in told.splitlines())
        )
        mesh.accept(model, interval, reason=REASON, by="on call")
        click.echo(f"    meshgate accept {model} {when}: {REASON}")
        self.progress.decided.append(f"{now:%m-%d %H:%M} {model} {when}: {audit}")

    def _look_at_rows(self, mesh: Mesh, now: datetime) -> None:
        """A run was killed while it appended: nobody but a person can say whether it has."""
        told = command("why", APPENDED, "--now", f"{now:%Y-%m-%dT%H:%MZ}", ends_with=(0,)).stdout
        click.echo(
            f"  a person: meshgate why {APPENDED}\n" + "".join(f"    {x}\n" for x in told.splitlines())
        )
        mesh.accept(APPENDED, reason="a run was killed; its rows were looked at", by="on call")
        self.progress.decided.append(f"{now:%m-%d %H:%M} {APPENDED}: a run was killed while it appended")

    def _tell(self, now: datetime) -> None:
        done, seconds = self.progress, sum(self.progress.seconds.values())
        click.echo(
            f"{now:%m-%d %H:%M}  {done.runs} runs, {seconds:.0f} s, {seconds / done.runs:.2f} s a run;"
            f" {done.recorded} recorded, {done.redone} of these again"
        )

    def _rest(self, mesh: Mesh, warm: dict[str, Warm]) -> datetime:
        """The shop is quiet, and time goes on until nothing is left to do; when that is, UTC, a whole hour."""
        now = self.plan.end
        for _ in range(MOST_HOURS_TO_REST):
            # Nothing happens, so two ticks of upstream will do for twelve. One would not: at the hour it stands back for readers that have
            # waited long, and those of downstream have waited at each hour.
            now = now.replace(minute=30)
            self._run("upstream", warm, now)
            now += HOUR / 2
            for project in PROJECTS:
                self._run(project, warm, now)
            self._person(mesh, now)
            left = [
                short(model.model)
                for project in mesh.status(now=now).projects
                for model in project.models
                for what in ("missing", "ready", "blocked", "failing", "suspect", "requested")
                if getattr(model, what)
            ]
            self._tell(now)
            if not left:
                return now
        self.progress.unforeseen.append(f"not at rest at {now:%m-%d %H:%M}: {', '.join(dict.fromkeys(left))}")
        return now

    def _judge(self, mesh: Mesh, upto: datetime, seconds: float) -> bool:
        done = self.progress
        done.save(self._file)
        verified = command("verify")
        verdicts = oracle.compare(self.lakehouse.source, self.lakehouse.lake, upto)
        click.echo(f"\nthe tables at {upto:%m-%d %H:%M}, an hour after all had settled:")
        _say(
            f"{'✓' if v.right else '✗'} {v}" + "".join(f"\n      {x}" for x in v.examples()) for v in verdicts
        )
        click.echo("meshgate verify: " + ("finds nothing" if not verified.returncode else verified.stdout))
        if done.decided:
            click.echo("decided by a person, as `why` asked for it:")
            _say(done.decided)
        if done.unforeseen:
            click.echo("nobody asked for this:")
            _say(done.unforeseen)
        total = sum(done.seconds.values())
        click.echo(
            f"{done.ticks} ticks of five minutes, {done.runs} runs in {total:.0f} s ({seconds:.0f} s since it was started last): "
            + ", ".join(f"{s:.0f} s {p}" for p, s in done.seconds.items())
            + f"; {total / done.runs:.2f} s a run, at most {done.longest[0]:.1f} s ({done.longest[1]}); {done.maintained:.0f} s of maintenance\n"
            f"{done.recorded} spans recorded, {done.redone} of these again; {len(mesh.requests())} requests"
        )
        # What a killed run did not append is not appended by another one: it would tell of another instant.
        lost = sum(APPENDED in decision for decision in done.decided)
        right = [
            v.right or (v.table == APPENDED and v.rows_expected - v.rows_found <= lost) for v in verdicts
        ]
        return all(right) and not verified.returncode and not done.unforeseen


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(f"  {line}")


@click.command()
@click.option(
    "--days", type=click.IntRange(min=0), default=3, show_default=True, help="How many simulated days."
)
@click.option(
    "--hours", type=click.IntRange(min=0), default=0, help="And how many hours; alone: instead of days."
)
@click.option("--rate", type=float, default=60.0, show_default=True, help="Sales an hour.")
@click.option("--seed", default="1", show_default=True, help="Equal seeds make equal histories.")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, help="Where everything lies.")
@click.option("--anew", is_flag=True, help="Delete what is there, and begin from nothing.")
@click.pass_context
def main(
    context: click.Context, days: int, hours: int, rate: float, seed: str, folder: Path, anew: bool
) -> None:
    """Play simulated days, and compare every table with the source."""
    if hours and context.get_parameter_source("days") == click.core.ParameterSource.DEFAULT:
        days = 0
    hours += 24 * days
    asked = {"hours": hours, "rate": rate, "seed": seed}
    if not hours:
        raise click.UsageError("nothing to play: name --days or --hours")
    file = folder / "progress.json"
    progress = None if anew else Progress.load(file)
    if progress is not None and progress.asked != asked:
        raise click.UsageError(
            f"{folder} holds a soak with {progress.asked}: go on with these, or begin --anew"
        )
    plan = Plan(source.BEGINNING + hours * HOUR, rate, seed)
    plan.faults()
    os.environ.setdefault("MESHGATE_LOCAL_FSYNC", "off")
    try:
        if progress is None:
            Lakehouse.start(folder).destroy()
        with Lakehouse.start(folder) as lakehouse:
            os.environ.update(lakehouse.environment())
            if progress is None:
                progress = Progress(asked)
                progress.save(file)
            else:
                click.echo(f"going on after {progress.ticks} ticks")
            right = Soak(lakehouse, plan, progress, file).play()
    except MeshgateError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo("every table is right" if right else "SOMETHING IS WRONG: see above")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
