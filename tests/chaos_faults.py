"""What is done to the workers and to Postgres, and undone again. Each fault is a function of the stage.

A fault says what it did, or None where it found nobody to do it to. What must be undone later is handed to
`Stage.later`; the seed decides everything but what the workers happen to be doing.
"""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg2

from chaos_worker import KILL, POINTS, STOP
from tiny_mesh import DAY

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos_stage import Slot, Stage

LOCKS = {
    "the ledger": "SELECT FROM meshgate.ledger FOR UPDATE",
    "the runs": "SELECT FROM meshgate.run WHERE state = 'running' FOR UPDATE",
    "the claims of a run": (
        "SELECT FROM meshgate.claim WHERE state IN ('open', 'begun')"
        " AND run_id = (SELECT min(run_id) FROM meshgate.claim WHERE state = 'begun') FOR UPDATE"
    ),
}
TAKEN_OVER = """
SELECT EXISTS (SELECT FROM meshgate.coverage c JOIN meshgate.version v USING (version_id) JOIN meshgate.model m USING (model_id)
               WHERE m.name = %s AND c.run_id > %s AND c.span && tstzrange(%s, %s))
"""
LONGEST_TAKEOVER_S = 20.0
STOPPED_AT = ("acquired", "opened", "begun", "evaluating", "evaluated", "committed")


@dataclass(frozen=True)
class Fault:
    """What may be done, how often compared with the others, and whether somebody's report could be lost by it."""

    name: str
    weight: int
    do: Callable[[Stage], str | None]
    deafens: bool = False


def _pick(stage: Stage) -> Slot | None:
    free = [slot for slot in stage.slots if slot.free]
    return stage.random.choice(free) if free else None


def kill(stage: Stage) -> str | None:
    """SIGKILL, wherever the worker is."""
    slot = _pick(stage)
    if slot is None:
        return None
    stage.kill(slot)
    return slot.name


def kill_at(stage: Stage) -> str | None:
    """SIGKILL at a chosen moment of a run."""
    slot = _pick(stage)
    if slot is None:
        return None
    point = stage.random.choice(POINTS)
    slot.arm("kill at a point", point, KILL)
    return f"{slot.name} when {point}"


def _length_s(stage: Stage) -> float:
    """Shorter than the lease, longer than the lease, or longer than lease and grace together."""
    ttl, grace = stage.ttl_s, stage.grace_s
    low, high = stage.random.choice(
        ((0.05, ttl * 0.8), (ttl * 1.1, ttl + grace * 0.5), (ttl + grace, ttl + grace + 1.5))
    )
    return stage.random.uniform(low, high)


def stop(stage: Stage) -> str | None:
    """SIGSTOP, and SIGCONT later."""
    slot, length = _pick(stage), _length_s(stage)
    if slot is None:
        return None
    slot.stop(length)
    return f"{slot.name} for {length:.1f} s"


def stop_at(stage: Stage) -> str | None:
    """SIGSTOP at a chosen moment of a run, and SIGCONT later."""
    slot, point, length = _pick(stage), stage.random.choice(STOPPED_AT), _length_s(stage)
    if slot is None:
        return None
    slot.arm("stop at a point", point, STOP, length)
    return f"{slot.name} when {point}, for {length:.1f} s"


def late_write(stage: Stage) -> str | None:
    """SIGSTOP before the engine begins to work on a batch, until another run has committed it; then SIGCONT.

    What it reads then has gone bad meanwhile, every other time: the write lands, and the audit after it fails.
    """
    slot = _pick(stage)
    # Somebody of the project must be left to take it over.
    if slot is None or any(s.stopped or s.armed for s in stage.slots if s.project == slot.project):
        return None
    bad = stage.random.random() < 0.5
    longest = stage.ttl_s + stage.grace_s + LONGEST_TAKEOVER_S
    slot.arm("late write", "evaluating", STOP, longest, lambda: _when_taken_over(stage, slot, bad=bad))
    return f"{slot.name}, {'bad' if bad else 'good'} rows"


def _when_taken_over(stage: Stage, slot: Slot, *, bad: bool) -> None:
    events = (json.loads(line) for line in slot.log.read_text(encoding="utf-8").splitlines())
    batch = [event for event in events if event["e"] == "eval"][-1]
    minute = (datetime.fromisoformat(batch["start"]) - DAY) // timedelta(minutes=1)
    pid = slot.pid

    def look() -> None:
        if slot.pid != pid or not slot.stopped:
            return
        taken = False
        with suppress(psycopg2.Error), stage.server_cursor() as cursor:
            cursor.execute(TAKEN_OVER, [batch["model"], batch["run"], batch["start"], batch["end"]])
            taken = cursor.fetchone()[0]
        if not taken:
            stage.later(0.2, look)
            return
        if bad and minute not in stage.poisoned:
            stage.spoil(minute, 4.0)
        slot.resume(pid)

    look()


def terminate(stage: Stage) -> str | None:
    """`pg_terminate_backend` of one connection, of half of a database's, or of all of them."""
    database, share = stage.random.choice(stage.databases), stage.random.choice((0.0, 0.5, 1.0))
    with stage.server_cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
            " AND application_name <> 'chaos' AND backend_type = 'client backend' ORDER BY pid",
            [database],
        )
        pids = [pid for (pid,) in cursor.fetchall()]
        if not pids:
            return None
        chosen = stage.random.sample(pids, max(1, int(len(pids) * share)))
        cursor.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s) AS pid", [chosen])
    return f"{len(chosen)} of {len(pids)} in {database.split('_')[0]}"


def crash(stage: Stage) -> str:
    """Kill Postgres (SIGKILL, immediate or fast shutdown) and start it again a moment later."""
    number = stage.random.choice((signal.SIGKILL, signal.SIGQUIT, signal.SIGINT))
    stage.restart_postgres(number, stage.random.uniform(0.0, 0.6))
    return signal.Signals(number).name


def exhaust(stage: Stage) -> str | None:
    """Take every connection that is left for a while."""
    taken: list[Any] = []
    with suppress(psycopg2.OperationalError):
        while len(taken) < 200:
            taken.append(psycopg2.connect(stage.tiny.state_url, application_name="chaos", connect_timeout=5))
    length = stage.random.uniform(0.3, 1.5)
    stage.later(length, lambda: _close(taken))
    return f"{len(taken)} connections for {length:.1f} s"


def idle_in_transaction(stage: Stage) -> str | None:
    """A session that locks rows of the ledger and does nothing, sometimes for longer than a lease."""
    what = stage.random.choices(tuple(LOCKS), (3, 1, 3))[0]
    connection = psycopg2.connect(stage.tiny.state_url, application_name="chaos", connect_timeout=5)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '3s'")
            cursor.execute(LOCKS[what])
            held = cursor.rowcount
    except psycopg2.Error:
        held = 0
    if not held:
        connection.close()
        return None
    longest = stage.random.choice((0.3, 1.2, 2.4)) * stage.ttl_s
    length = stage.random.uniform(longest / 2, longest)
    stage.later(length, lambda: _close([connection]))
    return f"{what} for {length:.1f} s"


def poison(stage: Stage) -> str | None:
    """A row that an audit rejects comes to the source, ahead of time, and is mended when it was found, or too late."""
    minute = int(stage.clock.minutes()) + stage.random.randrange(1, 9)
    if minute in stage.poisoned:
        return None
    length = stage.random.uniform(0.3, 3.0)
    stage.poisoned.add(minute)
    stage.tiny.poison(minute)
    stage.mend_when_found(minute, length)
    return f"minute {minute}, mended {length:.1f} s after it is found"


def late_rows(stage: Stage) -> str:
    """Rows of the past change in the source, or come late, and somebody asks for their time, again and again until it is heard."""
    now = int(stage.clock.minutes())
    start = stage.random.randrange(max(now - 180, 0), now) // 5 * 5
    end = start + stage.random.choice((5, 5, 15, 60))
    stage.tiny.change(start, end)
    late = start * 60 + stage.random.randrange(1, 60)
    stage.tiny.sql(
        stage.tiny.source_url,
        "INSERT INTO events VALUES %s ON CONFLICT (id) DO NOTHING",
        [(late, (DAY + timedelta(seconds=late)).replace(tzinfo=None), 1 + late % 7)],
    )
    stage.ask("bronze.events", start, end)
    return f"minutes {start} to {end}"


def restate(stage: Stage) -> str:
    """Somebody asks for some of the past of some model, for no reason."""
    model = stage.random.choice(
        ("bronze.events", "silver.events", "gold.ticks", "gold.hourly", "gold.totals")
    )
    start = stage.random.randrange(0, int(stage.clock.minutes())) // 60 * 60
    end = start + stage.random.choice((60, 120))
    stage.ask(model, start, end)
    return f"{model} minutes {start} to {end}"


def _close(connections: list[Any]) -> None:
    for connection in connections:
        with suppress(psycopg2.Error):
            connection.close()


FAULTS = (
    Fault("kill", 20, kill),
    Fault("kill at a point", 18, kill_at),
    Fault("stop", 9, stop),
    Fault("stop at a point", 14, stop_at),
    Fault("late write", 10, late_write),
    Fault("terminate backends", 12, terminate),
    Fault("postgres restarts", 6, crash, deafens=True),
    Fault("connections exhausted", 3, exhaust, deafens=True),
    Fault("idle in transaction", 12, idle_in_transaction),
    Fault("poison", 5, poison),
    Fault("late rows", 8, late_rows),
    Fault("restatement", 4, restate),
)
