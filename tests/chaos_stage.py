"""Postgres, the mesh and its workers, ready to be broken; and the list of what has to be undone when."""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

from chaos_history import connected, record
from chaos_worker import Clock, Panel, real_time
from meshgate import postgres_server
from meshgate.db import Database
from meshgate.errors import LedgerError, LedgerUnreachableError
from meshgate.ledger import Ledger
from meshgate.local_postgres import LocalPostgres
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

PROJECTS = ("upstream", "upstream", "downstream", "downstream")
FIRST_MINUTE = 60
MINUTES_PER_SECOND = 6.0
STUCK_S = 60.0
NOBODY_FINDS_S = 15.0
NEVER_COMES_S = 5.0
MACHINES = ((None, 0), (None, 0), ("another", 0), ("a third, ahead", 187), ("a fourth, behind", -243))
"""Boot id and by how many seconds the clock is off. None: this very machine, whose dead are proven to be dead."""
TICKS = """
MODEL (name gold.ticks, kind INCREMENTAL_BY_TIME_RANGE (time_column tick, partition_by_time_column FALSE),
  cron '*/5 * * * *');
SELECT TIME_BUCKET(INTERVAL '5 minutes', ts)::TIMESTAMP AS tick, COUNT(*)::BIGINT AS events, SUM(value)::BIGINT AS total
FROM silver.events WHERE ts >= @start_dt AND ts < @end_dt GROUP BY 1
"""
TOTALS = """
MODEL (name gold.totals, kind FULL, cron '@hourly');
SELECT COUNT(*)::BIGINT AS hours, SUM(events)::BIGINT AS events, SUM(total)::BIGINT AS total FROM gold.hourly
"""


class Slot:
    """One place for a worker: when its process ends, the next one is born into it."""

    def __init__(self, stage: Stage, project: str) -> None:
        self.stage, self.project = stage, project
        self.name = ""
        self.pid = 0
        self.panel: Panel | None = None
        self.stopped = False
        self.armed = False
        self._fault = ""
        self._then: Callable[[], None] | None = None
        self._length_s: float | None = None
        self._reporting: int | None = None
        self._seen = (0, 0.0)

    def born(self, pid: int) -> None:
        self.pid, self.stopped, self.armed = pid, False, False
        self._length_s = self._reporting = None
        self._seen = (0, time.monotonic())

    def gone(self) -> None:
        self.pid, self.stopped, self.armed, self.panel = 0, False, False, None

    @property
    def log(self) -> Path:
        return self.stage.folder / "logs" / f"{self.name}.jsonl"

    @property
    def free(self) -> bool:
        """Whether a fault may take it: a run that comes back late first says what it wrote."""
        if not self.pid or self.panel is None or self.stopped or self.armed:
            return False
        if self._reporting is not None and self.panel.ended > self._reporting:
            self._reporting = None
        return self._reporting is None

    @property
    def owes_a_report(self) -> bool:
        return self.pid != 0 and not self.armed and not self.free

    def arm(
        self,
        fault: str,
        point: str,
        action: int,
        length_s: float | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Kill or stop it when it comes to a point of its run; what is stopped goes on after a while.

        A fault that it does not come to in a while is taken back, and not counted.
        """
        assert self.panel is not None
        self.armed, self._fault, self._length_s, self._then = True, fault, length_s, then
        self.panel.arm(point, action)
        pid = self.pid
        self.stage.later(NEVER_COMES_S, lambda: self._disarm(pid))

    def _disarm(self, pid: int) -> None:
        if self.pid == pid and self.panel is not None and self.panel.disarm():
            self.armed, self._length_s = False, None
            self.stage.count[self._fault] -= 1

    def stop(self, length_s: float) -> None:
        send(self.pid, signal.SIGSTOP)
        self._stopped(length_s)

    def _stopped(self, length_s: float) -> None:
        self.stopped, pid = True, self.pid
        self.stage.later(length_s, lambda: self.resume(pid))

    def resume(self, pid: int) -> None:
        if self.pid == pid and self.panel is not None and self.stopped:
            self._reporting = self.panel.ended if self.panel.works else None
            self.stopped = self.armed = False
            self._seen = (self.panel.ended, time.monotonic())
            send(pid, signal.SIGCONT)

    def look(self) -> str | None:
        """Has it stopped itself where it was asked to? Does it hang?"""
        if self._length_s is not None and not self.stopped and self.pid and state_of(self.pid) == "T":
            length, self._length_s = self._length_s, None
            self._stopped(length)
            if self._then is not None:
                self._then()
        if self.panel is None or self.stopped:
            return None
        now = time.monotonic()
        if self.panel.ended != self._seen[0] or not self.panel.works:
            self._seen = (self.panel.ended, now)
        if now - self._seen[1] < STUCK_S:
            return None
        send(self.pid, signal.SIGUSR1)  # writes down where it is
        return f"{self.name}: a run took more than {STUCK_S:.0f} s"


def state_of(pid: int) -> str:
    """The kernel's letter for a process; empty where there is none."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return ""


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Stage:
    """Everything that chaos is done to.

    Args:
        folder: Where everything of this run lies.
        seed: Decides the faults.
        server: Private, and killed again and again.
    """

    def __init__(self, folder: Path, seed: int, server: LocalPostgres) -> None:
        self.folder = folder
        self.random = random.Random(seed)  # noqa: S311 - not for secrets
        self.ttl_s, self.grace_s = 1.5, 2.0
        self.count: Counter[str] = Counter()
        self.deaths: defaultdict[int, list[float]] = defaultdict(list)
        self.poisoned: set[int] = set()
        self.births = -len(PROJECTS)
        self.crashes = 0
        self.surprises: list[str] = []
        self.verbose = False
        self.aims: set[str] = set()
        self.slots = [Slot(self, project) for project in PROJECTS]
        self.overlaps: tuple[str, ...] = ()
        self._server = server
        self._names = itertools.count(1)
        self._ids = itertools.count()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._nursery: subprocess.Popen[bytes] | None = None
        self._heard = b""
        for part in ("logs", "panels"):
            (folder / part).mkdir()
        self._configure_server()
        length = {"lease_ttl": self.ttl_s, "grace": self.grace_s, "statement_timeout": self.grace_s}
        self.tiny = TinyMesh(
            folder / "mesh", server, settings={k: f"{v}s" for k, v in length.items()},
            policies={"retry": {"first": "1m", "longest": "10m"}, "overlap_limit": "2s"},
        )  # fmt: skip
        self.databases = [f"{kind}_{self.tiny.key}" for kind in ("led", "led", "lake", "src")]
        self._deploy()
        self.clock = Clock.make(folder / "clock", FIRST_MINUTE, MINUTES_PER_SECOND, FIRST_MINUTE + 60)

    # the mesh

    def _configure_server(self) -> None:
        with connected(self._server.url("postgres")) as cursor:
            cursor.execute("ALTER SYSTEM SET track_commit_timestamp = on")
            cursor.execute("ALTER SYSTEM SET max_connections = 60")
        self._stop_postgres(signal.SIGINT)
        self._start_postgres()

    def _deploy(self) -> None:
        self.tiny.write("downstream", "ticks", TICKS)
        self.tiny.write("downstream", "totals", TOTALS)
        self.tiny.feed(0, FIRST_MINUTE + 60)
        with self.tiny.mesh() as mesh:
            record(self.tiny.state_url)
            for project in ("upstream", "downstream"):
                mesh.deploy(project, now=at(FIRST_MINUTE))

    def feed(self, minutes: float) -> None:
        """Let the source have rows up to an instant."""
        self.tiny.feed(0, minutes)

    def expected(self, upto: float) -> dict[str, list[tuple[Any, ...]]]:
        """What every table holds when all is done, straight from the source."""
        found = self.tiny.expected(upto)
        ticks: dict[Any, tuple[int, int]] = {}
        for _, stamp, value in found["silver.events"]:
            tick = stamp.replace(minute=stamp.minute // 5 * 5, second=0)
            events, total = ticks.get(tick, (0, 0))
            ticks[tick] = (events + 1, total + value)
        found["gold.ticks"] = [(tick, *facts) for tick, facts in sorted(ticks.items())]
        hours = found["gold.hourly"]
        found["gold.totals"] = [(len(hours), sum(h[1] for h in hours), sum(h[2] for h in hours))]
        return found

    def spoil(self, minute: int, seconds: float) -> None:
        """Poison a row for a while."""
        with suppress(psycopg2.Error):
            self.poisoned.add(minute)
            self.tiny.poison(minute)
        self.later(seconds, lambda: self.mend(minute))

    def mend_when_found(self, minute: int, after_s: float) -> None:
        """Repair a poisoned row some time after an evaluation failed on it, or when nobody finds it."""
        until = time.monotonic() + NOBODY_FINDS_S

        def look() -> None:
            found = False
            with suppress(psycopg2.Error), self.server_cursor() as cursor:
                cursor.execute(
                    "SELECT EXISTS (SELECT FROM meshgate.mark WHERE kind = 'failed' AND span @> %s)",
                    [at(minute)],
                )
                found = cursor.fetchone()[0]
            if found or time.monotonic() > until:
                self.later(after_s, lambda: self.mend(minute))
            else:
                self.later(0.3, look)

        look()

    def mend(self, minute: int) -> None:
        """Repair a poisoned row, as soon as the source can be reached."""
        try:
            self.tiny.repair(minute)
        except psycopg2.Error:
            self.later(0.5, lambda: self.mend(minute))
        else:
            self.poisoned.discard(minute)

    def ask(self, model: str, start: int, end: int) -> None:
        """Ask for minutes of a model to be computed again, as soon as the ledger can be reached.

        Whose answer was lost asks twice: that is allowed to cost an evaluation. Nobody waits long for a lock: the storm
        itself may hold it (`idle_in_transaction`), and would never come to let go.
        """
        name = '"lake".' + ".".join(f'"{part}"' for part in model.split("."))
        try:
            with closing(Database(f"{self.tiny.state_url}?options=-c%20lock_timeout%3D300ms")) as database:
                Ledger(database).request([(name, span(start, end))], reason="the storm", by="chaos")
        except LedgerUnreachableError:
            self.later(0.5, lambda: self.ask(model, start, end))
        except LedgerError as refused:
            if "is recorded" not in refused.message:
                raise
            self.told(refused.message)  # whoever evaluates it will read what is there now

    # Postgres

    def server_cursor(self) -> AbstractContextManager[Any]:
        return connected(self.tiny.state_url)

    def _stop_postgres(self, number: int) -> None:
        data = self._server._home / "data"
        running = postgres_server.find_running(data)
        if running is not None:
            send(running.pid, number)
            while postgres_server._exists(running.pid):
                time.sleep(0.01)

    def _start_postgres(self) -> None:
        again = LocalPostgres.start(self.folder / "server")
        port = again.port
        again.close()
        if port != self._server.port:
            raise RuntimeError(f"somebody took port {self._server.port} while Postgres was down")

    def restart_postgres(self, number: int, pause_s: float) -> None:
        self._stop_postgres(number)
        self.crashes += 1
        time.sleep(pause_s)
        self._start_postgres()

    # time

    def told(self, text: str) -> None:
        if self.verbose:
            print(f"  {self.clock.minutes():7.1f}  {text}", flush=True)

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._ids), do))

    @property
    def busy(self) -> bool:
        """Whether something is still to be undone."""
        return bool(self._later)

    # workers

    def open(self) -> None:
        """Start the nursery, and the first workers."""
        self._nursery = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "chaos_worker.py"), str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(self.folder / "logs" / "nursery.err").open("wb"),
            env=self.tiny.environment(), start_new_session=True,
        )  # fmt: skip
        while not self.overlaps:
            self.tick(1.0, bear=False)

    def kill(self, slot: Slot) -> None:
        self.deaths[slot.pid].append(real_time())
        send(slot.pid, signal.SIGKILL)

    def _bear(self, slot: Slot) -> None:
        machine, ahead_s = self.random.choice(MACHINES)
        name = f"worker-{next(self._names)}"
        order = {
            "name": name, "project": slot.project, "machine": machine, "ahead_s": ahead_s,
            "overlap": self.random.choice(self.overlaps), "seed": self.random.random(),
        }  # fmt: skip
        slot.name, slot.panel = name, Panel.make(self.folder / "panels" / name)
        assert self._nursery is not None
        assert self._nursery.stdin is not None
        os.write(self._nursery.stdin.fileno(), json.dumps(order).encode() + b"\n")
        self.births += 1

    def tick(self, seconds: float, *, bear: bool = True) -> None:
        """Let some time pass: undo what is due, hear the nursery, look after the workers."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()
            for slot in self.slots:
                if slot.panel is None and bear:
                    self._bear(slot)
                stuck = slot.look()
                if stuck is not None:
                    self.surprises.append(stuck)
                    slot.born(slot.pid)
            self._hear(min(0.02, max(0.0, until - now)))
            if time.monotonic() >= until:
                return

    def _hear(self, seconds: float) -> None:
        nursery = self._nursery
        assert nursery is not None
        assert nursery.stdout is not None
        if not select.select([nursery.stdout], [], [], seconds)[0]:
            return
        read = os.read(nursery.stdout.fileno(), 65536)
        if not read:
            raise RuntimeError(
                f"the nursery ended: {(self.folder / 'logs' / 'nursery.err').read_text()[-2000:]}"
            )
        *lines, self._heard = (self._heard + read).split(b"\n")
        for event in map(json.loads, lines):
            if "ready" in event:
                self.overlaps = tuple(event["overlaps"])
            elif "born" in event:
                next(s for s in self.slots if s.name == event["name"]).born(event["born"])
            else:
                self._buried(event["ended"], event["status"], event["at"])

    def _buried(self, pid: int, status: int, when: float) -> None:
        self.deaths[pid].append(when)  # after that of the kill, if there was one
        slot = next((s for s in self.slots if s.pid == pid), None)
        if slot is None:
            return
        if status not in (0, signal.SIGKILL):
            said = (self.folder / "logs" / f"{slot.name}.err").read_text(errors="replace")[-1500:]
            self.surprises.append(f"{slot.name} ended by itself, status {status}: {said}")
        slot.gone()

    def leave(self) -> None:
        """Ask every worker to end after its present run, and wait for that."""
        for slot in self.slots:
            if slot.panel is not None:
                slot.panel.leave()
        deadline = time.monotonic() + STUCK_S
        while any(slot.pid for slot in self.slots) and time.monotonic() < deadline:
            self.tick(0.05, bear=False)
        self.surprises += [f"{slot.name} does not end" for slot in self.slots if slot.pid]

    def orphans(self) -> list[int]:
        """Processes that a worker left behind: they bear the folder in their command line, as it did."""
        found = []
        known = {slot.pid for slot in self.slots} | {self._nursery.pid if self._nursery else 0, os.getpid()}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                argv = (entry / "cmdline").read_bytes().split(b"\0")
                if os.fsencode(self.folder) in argv and int(entry.name) not in known:
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        """End every process, whatever state it is in."""
        if self._nursery is None:
            return
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        for slot in self.slots:
            if slot.pid:
                send(slot.pid, signal.SIGKILL)
        self._nursery.stdin.close()  # it ends with its orders, and its workers with it
        try:
            self._nursery.wait(10)
        except subprocess.TimeoutExpired:
            self._nursery.kill()
            self._nursery.wait()
        self._nursery.stdout.close()
        for pid in self.orphans():
            send(pid, signal.SIGKILL)
