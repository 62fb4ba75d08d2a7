"""Chaos: real processes run two projects on one ledger, everything that can break is broken, and the history is judged.

    python tests/chaos.py --seconds 240 --faults 200 --restarts 50 --seed 7
    python tests/chaos.py --without fence      # takes a protection away: a violation is then expected
    python tests/chaos.py --without all

Every operation is written down twice: the ledger's changes by triggers, in the transaction that makes them, and what
the engine was made to do by the workers themselves. `chaos_replay` judges both afterwards. Exit code 0: nothing was
violated (with `--without`: something was, by the check that is named for it).
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2

from chaos_faults import FAULTS
from chaos_history import Violation, history, keep_history, outside_of, promoted
from chaos_mutations import MUTATIONS, without
from chaos_replay import Replay
from chaos_rest import judge_rest, paused, unsettled
from chaos_stage import FIRST_MINUTE, Stage
from meshgate.local_postgres import LocalPostgres
from meshgate.postgres_server import FSYNC_VARIABLE
from tiny_mesh import DAY

if TYPE_CHECKING:
    from collections.abc import Iterator


RECOVERY_S = 180.0
LOOK_S = 4.0


@contextmanager
def staged(seed: int, keep: Path | None) -> Iterator[Stage]:
    """A stage in a folder of its own; nothing of it is left, unless the logs are to be kept."""
    os.environ[FSYNC_VARIABLE] = "off"
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "portfolio"))
    importlib.import_module("lakehouse").import_extensions()  # from their wheels: nothing is fetched
    with tempfile.TemporaryDirectory(prefix="chaos-") as root:
        folder = Path(root)
        server = LocalPostgres.start(folder / "server")
        try:
            stage = Stage(folder, seed, server)
            try:
                yield stage
            finally:
                stage.close()
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    for log in (folder / "logs").iterdir():
                        (keep / log.name).write_bytes(log.read_bytes())
        finally:
            server.destroy()


def storm(stage: Stage, seconds: float, faults: int, restarts: int, sought: set[str]) -> list[Violation]:
    """Break things until there were enough faults and restarts, evenly over the time.

    Where violations of certain checks are sought, it ends as soon as there is one.
    """
    began = looked = time.monotonic()
    fed = 0.0
    while True:
        done = sum(stage.count.values()) - sum(slot.armed for slot in stage.slots)
        passed = time.monotonic() - began
        enough = done >= faults and stage.births + stage.crashes >= restarts
        if (enough and passed >= seconds) or passed > 2 * seconds:
            return []
        if sought and time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            found = _so_far(stage, sought)
            if found:
                return found
        if stage.clock.minutes() + 60 > fed:
            fed = _fed(stage, fed)
            # Nobody looks for rows that the source does not have yet: they would come late, and nobody would tell.
            stage.clock.limit(max(fed, FIRST_MINUTE + 60))
        left = max(faults - done, 1)
        stage.tick(min(3.0, stage.random.expovariate(left / max(seconds - passed, 0.3 * left))))
        if done < faults or stage.births + stage.crashes < restarts:
            _break_something(stage)


def _so_far(stage: Stage, sought: set[str]) -> list[Violation]:
    """What was violated by now; not in the last seconds, of which not everything is written down yet."""
    outside = outside_of((stage.folder / "logs").glob("*.jsonl"), stage.deaths, DAY)
    try:
        found = Replay(promoted(stage.tiny.state_url), outside, DAY).play(history(stage.tiny.state_url))
    except psycopg2.Error:
        return []
    return [v for v in found if v.check in sought and v.at < time.time() - LOOK_S]


def _fed(stage: Stage, fed: float) -> float:
    upto = stage.clock.minutes() // 5 * 5 + 240
    try:
        stage.feed(upto)
    except psycopg2.Error:
        return fed
    return upto


def _break_something(stage: Stage) -> None:
    weights = [f.weight * (5 if f.name in stage.aims else 1) for f in FAULTS]
    fault = stage.random.choices(FAULTS, weights)[0]
    if fault.deafens and any(slot.owes_a_report for slot in stage.slots):
        return
    try:
        said = fault.do(stage)
    except psycopg2.Error:
        return  # another fault is in its way
    if said is not None:
        stage.count[fault.name] += 1
        stage.told(f"{fault.name}: {said}")


def settle(stage: Stage) -> tuple[float, float]:
    """Wait until nothing is left to do: simulated minutes, and seconds since the last fault was over."""
    while stage.busy:
        stage.tick(0.05)
    minutes = stage.clock.minutes() // 5 * 5
    stage.clock.limit(minutes)
    began = moved = time.monotonic()
    fed = _fed(stage, 0.0)
    while (why := _why_not(stage, minutes)) is not None or not fed:
        fed = fed or _fed(stage, fed)
        stage.tick(0.1)
        if time.monotonic() - began > RECOVERY_S:
            stage.surprises.append(f"not at rest after {RECOVERY_S:.0f} s: {why}")
            break
        with suppress(psycopg2.Error):
            if time.monotonic() - moved > 5.0 and (pause := paused(stage)):
                # The time that it is left alone for is the one that stands still.
                minutes, moved = minutes + pause, time.monotonic()
                stage.clock.limit(minutes)
    took = time.monotonic() - began
    stage.leave()
    return minutes, took


def _why_not(stage: Stage, minutes: float) -> str | None:
    try:
        return unsettled(stage, minutes, workers=True)
    except psycopg2.Error as error:  # the connections that were taken are not all back yet
        return str(error)


def run(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    print(f"seed {arguments.seed}", flush=True)
    with staged(arguments.seed, arguments.keep) as stage:
        stage.verbose = arguments.verbose
        stage.aims = set(arguments.aim)
        stage.open()
        sought = storm(stage, arguments.seconds, arguments.faults, arguments.restarts, set(arguments.seek))
        if sought:
            return _told(sought)
        minutes, recovery = settle(stage)
        found, facts = judge(stage, minutes)
        if arguments.keep and found:
            keep_history(stage.tiny.state_url, stage.folder / "logs" / "history.jsonl")
        left = stage.orphans()
        if left:
            found.append(Violation("who is killed leaves nothing", f"{len(left)} processes live on"))
    total = sum(stage.count.values())
    restarts = stage.births + stage.crashes
    print(f"faults      {total}: " + ", ".join(f"{n} {c}" for n, c in stage.count.most_common()))
    print(f"restarts    {restarts}: {stage.births} of workers, {stage.crashes} of Postgres")
    print(f"work        {facts}")
    print(
        f"recovery    {recovery:.1f} s after the last fault; the whole took {time.monotonic() - began:.0f} s"
    )
    short = total < arguments.faults or restarts < arguments.restarts
    if short:
        print("TOO FEW     faults or restarts")
    for surprise in stage.surprises:
        print(f"SURPRISE    {surprise}")
    _told(found)
    if not found and not stage.surprises:
        print("violated    nothing")
    return 1 if found or stage.surprises or short else 0


def _told(found: list[Violation]) -> int:
    for check, many in Counter(v.check for v in found).most_common():
        print(f"VIOLATED    {check} ({many})")
        for violation in [v for v in found if v.check == check][:5]:
            print(f"            {violation}")
    return 1 if found else 0


def judge(stage: Stage, minutes: float) -> tuple[list[Violation], str]:
    """Everything that was wrong, and how much was done."""
    outside = outside_of((stage.folder / "logs").glob("*.jsonl"), stage.deaths, DAY)
    changes = history(stage.tiny.state_url)
    replay = Replay(promoted(stage.tiny.state_url), outside, DAY)
    found = replay.play(changes)
    found += judge_rest(stage, replay, minutes)
    commits = sorted({c.ended for c in changes if c.table == "coverage" and c.was is None})
    silence = max((b - a for a, b in itertools.pairwise(commits)), default=0.0)
    states = Counter(r.state for r in replay.runs.values())
    facts = (
        f"{len(replay.runs)} runs ({', '.join(f'{c} {s}' for s, c in states.most_common())}), "
        f"{len(outside.evaluations)} evaluations, {len(changes)} changes in {replay.transactions} transactions, "
        f"{len(commits)} commits, the longest pause between two of them {silence:.1f} s"
    )
    return found, facts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240, help="how long the storm lasts (default 240)")
    parser.add_argument("--faults", type=int, default=200, help="at least so many (default 200)")
    parser.add_argument("--restarts", type=int, default=50, help="of workers and of Postgres (default 50)")
    parser.add_argument(
        "--seed", type=int, default=None, help="decides the faults; made up and printed otherwise"
    )
    parser.add_argument("--without", choices=[*MUTATIONS, "all"], help="take a protection away")
    parser.add_argument(
        "--keep",
        type=Path,
        help="a folder for the workers' logs, and for the history that violates something",
    )
    parser.add_argument("--verbose", action="store_true", help="tell each fault")
    parser.add_argument("--aim", action="append", default=[], help="a fault that is to come more often")
    parser.add_argument("--seek", action="append", default=[], help="a check: end when it is violated")
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1_000_000)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # leave nothing then either
    if arguments.without:
        return without(arguments.without, arguments.seed)
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
