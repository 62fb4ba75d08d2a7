"""Ticks of the two projects over simulated time: each project in a process that stays warm, or in a real `meshgate` process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from lakehouse import HERE

from meshgate.interval import Interval, IntervalSet
from meshgate.mesh import Mesh
from meshgate.report import data

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECTS = ("upstream", "downstream")
SKIPPED_FOR_S = 180.0
"""How long a tick waits for a run that somebody else, or a killed process, left behind."""


@dataclass(frozen=True)
class Tick:
    """What one run did.

    Attributes:
        report: The run's report, as `meshgate run --json` prints it.
        seconds: How long it took.
    """

    report: dict[str, Any]
    seconds: float

    @property
    def failed(self) -> list[dict[str, Any]]:
        """What failed: model, interval and the facts."""
        return list(self.report["failed"])

    def committed(self) -> Mapping[str, IntervalSet]:
        """What was recorded, by model as in `gold.fact_sales`."""
        return {
            short(entry["model"]): IntervalSet(interval(i) for i in entry["intervals"])
            for entry in self.report["committed"]
        }


def short(model: str) -> str:
    """A model's name without its catalog and quotes."""
    return model.replace('"', "").split(".", 1)[-1]


def interval(found: Mapping[str, str]) -> Interval:
    """An interval out of a JSON document."""
    return Interval(datetime.fromisoformat(found["start"]), datetime.fromisoformat(found["end"]))


class Warm:
    """One project's warm process: takes an instant, runs, answers with the run's report.

    It ends with whoever started it, as nobody writes to it then.

    Args:
        project: Its name.
        script: What to start; is given the project's name.
    """

    def __init__(self, project: str, *, script: str = __file__) -> None:
        self.project = project
        self._process = subprocess.Popen(
            [sys.executable, script, project], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, now: datetime) -> Tick:
        """One tick; while another run of the project lives it is tried again, for a while.

        Raises:
            SystemExit: The process is gone, or the other run stays.
        """
        started = time.monotonic()
        while True:
            self._ask(now)
            report = self._answer()
            if report["state"] != "skipped":
                return Tick(report, time.monotonic() - started)
            if time.monotonic() - started > SKIPPED_FOR_S:
                raise SystemExit(f"another run of {self.project} stays: see `meshgate lease list`")
            time.sleep(1)

    def run_beside(self, other: Warm, now: datetime) -> tuple[Tick, Tick]:
        """One tick that two processes begin at the same time."""
        started = time.monotonic()
        for process in (self, other):
            process._ask(now)  # noqa: SLF001 - its own class
        first, second = self._answer(), other._answer()
        return Tick(first, time.monotonic() - started), Tick(second, time.monotonic() - started)

    def _ask(self, now: datetime) -> None:
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        try:
            self._process.stdin.write(now.isoformat() + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SystemExit(f"the process of {self.project} ended; see its message above") from None

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.project} ended; see its message above")
        report: dict[str, Any] = json.loads(line)
        return report

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        self._process.wait(60)


def cold(project: str, now: datetime) -> Tick:
    """One tick in a real `meshgate run`, as a scheduler would start it.

    Raises:
        SystemExit: It ended otherwise than with 0 or 1, which says that something failed.
    """
    started = time.monotonic()
    done = command("run", project, "--now", f"{now:%Y-%m-%dT%H:%MZ}", "--overlap", "wait", "--json")
    return Tick(json.loads(done.stdout), time.monotonic() - started)


def command(
    *arguments: str, ends_with: tuple[int, ...] = (0, 1), environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A real `meshgate` process, as a scheduler or a person would start it.

    Raises:
        SystemExit: It ended otherwise than expected.
    """
    done = subprocess.run(
        [sys.executable, "-m", "meshgate", "--config", str(HERE), *arguments],
        stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    if done.returncode not in ends_with:
        raise SystemExit(f"meshgate {' '.join(arguments)} ended with {done.returncode}\n{done.stdout}")
    return done


def serve(project: str) -> None:
    """The warm process: one line in, an instant; one line out, a report."""
    with Mesh.open(HERE) as mesh:
        for line in sys.stdin:
            report = mesh.run(project, now=datetime.fromisoformat(line.strip()))
            sys.stdout.write(json.dumps(data.run(report, (), "run")) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
