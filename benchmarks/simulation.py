"""How fast the pure decisions are, and how long readers wait for a parent that is computed again all the time.

The first part plays the simulator of the tests with all its troubles and its checker, in one thread, and counts ticks:
scheduled runs of one project each, those included that find another run under way or nothing to do. The second part
compares rules about who goes first; `docs/decisions/0021-readers-get-a-turn.md` is made from it.

    python benchmarks/simulation.py speed
    python benchmarks/simulation.py patience --histories 60 --processes 2
    python benchmarks/simulation.py idle --histories 12
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import platform
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from meshgate.coordinator import turns

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from simulator import Simulation
from simulator_checker import Violation
from simulator_scenarios import (
    AS_OF,
    CHILD,
    GRANDCHILD,
    LATE_ROWS,
    LONG_S,
    SAME_PROJECT,
    SHORT_S,
    TROUBLES,
    scenario,
)
from simulator_scene import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TICK_S = 300


@dataclass(frozen=True)
class Rule:
    """Who goes first.

    Attributes:
        name: For the table.
        goes_first: Instead of the product's answer, of (waited, patience, period); None for the product's own.
        patience: Of every model; None for the default, two units of the reader.
    """

    name: str
    goes_first: Callable[[timedelta, timedelta, timedelta], bool] | None
    patience: timedelta | None = None


def nobody(_waited: timedelta, _patience: timedelta, _period: timedelta) -> bool:
    """The redo never yields."""
    return False


def always(waited: timedelta, patience: timedelta, _period: timedelta) -> bool:
    """It yields to whoever has lost patience."""
    return waited >= patience


def alternately(waited: timedelta, patience: timedelta, _period: timedelta) -> bool:
    """It yields in every other window of the length of the patience."""
    return bool(patience) and waited // patience % 2 == 1


HALF_AN_HOUR = timedelta(minutes=30)
RULES = (
    Rule("no patience", nobody, NEVER),
    Rule("patience", nobody),
    Rule("redo yields always", always),
    Rule("redo yields alternately", alternately),
    Rule("redo yields for one turn", None),
    Rule("patience 30m", nobody, HALF_AN_HOUR),
    Rule("patience 30m, one turn", None, HALF_AN_HOUR),
)


@contextmanager
def under(rule: Rule) -> Iterator[None]:
    """Play by a rule."""
    with patch.object(turns, "goes_first", rule.goes_first or turns.goes_first):
        yield


# Speed


def speed(rounds: int) -> None:
    """Ticks per second of CPU time; the best of some rounds, as other processes slow the caches down."""
    often, longest = {"readers_every_s": TICK_S}, {"takes_s": LONG_S}
    settings: dict[str, dict[str, Any]] = {
        "a chain of 3 models, all every 5 minutes": {"chain": True, **often},
        "a chain of 3 models, readers hourly": {"chain": True},
        "5 models, all every 5 minutes": often,
        "5 models, readers hourly": {},
        "5 models, readers hourly, runs longer than the period": longest,
        "5 models, readers hourly, runs longer than the period, shared": {**longest, "overlap": "share"},
    }
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}; one thread")
    print("| 48 hours, 3 projects, troubles, checker | ticks | skipped | idle | ticks/s |")
    print("|---|---|---|---|---|")
    for name, fields in settings.items():
        best, told = 0.0, ""
        for _ in range(rounds):
            began, ticks, skipped, idle = time.process_time(), 0, 0, 0
            for seed in range(3):
                played = scenario(seed, hours=48, troubles=replace(TROUBLES, hopeless=0.0), **fields)
                report = Simulation(played, seed).play()
                ticks += report.ticks
                skipped += report.skipped
                idle += report.idle
            best = max(best, ticks / (time.process_time() - began))
            told = f"{ticks} | {skipped} | {idle}"
        print(f"| {name} | {told} | {best:,.0f} |", flush=True)


# Patience


@dataclass(frozen=True)
class Case:
    """What is compared under every rule."""

    staleness: bool
    readers_every_s: int
    overlap: str
    takes_s: tuple[int, int]
    lookback: int

    def __str__(self) -> str:
        runs = "longer" if self.takes_s == LONG_S else "shorter"
        stale = ", with staleness" if self.staleness else ""
        return f"{self.overlap}, lookback {self.lookback}, runs {runs}, readers every {self.readers_every_s} s{stale}"


@dataclass
class Measured:
    """Seconds and counts of some histories, by model."""

    waits: dict[str, list[int]]
    evaluations: dict[str, list[int]]
    redo: list[int]
    owed: int = 0


def measure(
    case: Case, rule: Rule, seed: int, *, hours: float = 10, may_starve: bool = False, **fields: Any
) -> Measured:
    """One history."""
    played = scenario(
        seed,
        hours=hours,
        lookback=case.lookback,
        overlap=case.overlap,
        takes_s=case.takes_s,
        readers_every_s=case.readers_every_s,
        staleness=case.staleness,
        patience=rule.patience,
    )
    played = replace(played, **fields)
    simulation = Simulation(played, seed)
    checker = simulation.checker
    with under(rule), suppress(Violation if may_starve else ()):
        simulation.play()
    return Measured(
        {name: delays.seconds for name, delays in checker.waits.items()},
        {name: list(units.values()) for name, units in checker.evaluations.items()},
        checker.redo[LATE_ROWS].seconds,
        len(checker.owed[LATE_ROWS]),
    )


def _told(seconds: list[int]) -> str:
    if not seconds:
        return "-"
    return f"{sum(seconds) / len(seconds) / TICK_S:.1f} / {max(seconds) / TICK_S:.1f}"


def _mean(counts: list[int]) -> str:
    return f"{sum(counts) / len(counts):.2f}"


def _row(work: tuple[Case, Rule, int]) -> str:
    case, rule, histories = work
    found = [measure(case, rule, seed) for seed in range(histories)]
    waits = {m: [s for one in found for s in one.waits[m]] for m in found[0].waits}
    evaluations = {m: [n for one in found for n in one.evaluations[m]] for m in found[0].evaluations}
    cells = [
        rule.name,
        *(_told(waits[m]) for m in (SAME_PROJECT, CHILD, AS_OF, GRANDCHILD)),
        *(_mean(evaluations[m]) for m in (LATE_ROWS, CHILD, GRANDCHILD)),
        _told([s for one in found for s in one.redo]),
    ]
    return "| " + " | ".join(cells) + " |"


def patience(histories: int, processes: int) -> None:
    """The table: ticks of five minutes from the end of a unit to its first commit, mean / longest."""
    hour, lookbacks = 3600, (24, 12)
    longest = itertools.product((False, True), (hour,), ("share", "skip"), (LONG_S,), lookbacks)
    shorter = itertools.product((False,), (hour,), ("share", "skip"), (SHORT_S,), lookbacks)
    often = itertools.product((False,), (TICK_S,), ("share", "skip"), (LONG_S,), (24,))
    cases = [Case(*chosen) for chosen in (*longest, *shorter, *often)]
    work = [
        (case, rule, histories)
        for case in cases
        for rule in RULES
        if rule.patience != HALF_AN_HOUR or case.takes_s == LONG_S
    ]
    told: Case | None = None
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for (case, _, _), row in zip(work, pool.imap(_row, work), strict=True):
            if case != told:
                told = case
                print(f"\n{case}, {histories} histories\n")
                print(
                    "| rule | same project | child | as of | grandchild | evaluations: parent | child | grandchild | redo late |"
                )
                print("|---|---|---|---|---|---|---|---|---|")
            print(row, flush=True)


def idle(histories: int) -> None:
    """A reader's project is switched off: how long its parent's late rows are held up, and how many for ever."""
    print("| parent runs every | rule | redo late, ticks | intervals never read again |")
    print("|---|---|---|---|")
    case = Case(staleness=False, readers_every_s=3600, overlap="skip", takes_s=LONG_S, lookback=24)
    for every_s, rule in itertools.product((TICK_S, 3600, 4 * 3600, 24 * 3600), RULES[:5]):
        found = []
        for seed in range(histories):
            projects = {"up": replace(scenario(seed).projects["up"], period_s=every_s)}
            found.append(measure(case, rule, seed, hours=72, may_starve=True, projects=projects))
        late = _told([s for one in found for s in one.redo])
        print(
            f"| {every_s // 60} min | {rule.name} | {late} | {sum(one.owed for one in found)} |", flush=True
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("speed", "patience", "idle"))
    parser.add_argument("--histories", type=int, default=60)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.part == "speed":
        speed(chosen.rounds)
    elif chosen.part == "patience":
        patience(chosen.histories, chosen.processes)
    else:
        idle(chosen.histories)


if __name__ == "__main__":
    main()
