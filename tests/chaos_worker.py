"""The processes that chaos is done to: each opens the mesh and runs one project again and again.

    python tests/chaos_worker.py FOLDER      # started by chaos.py; reads orders from its standard input

Importing SQLMesh takes seconds, and a worker may live for two: so one process, the nursery, imports everything once and
forks a worker for each order. It tells on its standard output who was born and who ended. When it ends, all do.

A worker writes down what it does in the engine in a log of its own, and looks at its `Panel` in shared memory at each
step: that is how a fault is aimed at a moment ("stop when you have evaluated, before you commit").
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import inspect
import json
import mmap
import os
import random
import select
import signal
import struct
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POINTS = (
    "asked",
    "acquired",
    "opened",
    "begun",
    "evaluating",
    "evaluated",
    "committed",
    "mirrored",
    "finishing",
)
"""Moments of a run at which it can be stopped or killed, in order."""
STOP, KILL = 1, 2
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Panel:
    """What the harness and one worker tell each other in shared memory.

    Layout: stop wanted, armed point (1-based), what to do there, each a byte; then the number of runs begun and ended.
    """

    SIZE = 64

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self.SIZE)

    @classmethod
    def make(cls, path: Path) -> Panel:
        path.write_bytes(bytes(cls.SIZE))
        return cls(path)

    def _count(self, index: int) -> int:
        return int(struct.unpack_from("=Q", self._map, 8 + 8 * index)[0])

    def _bump(self, index: int) -> None:
        struct.pack_into("=Q", self._map, 8 + 8 * index, self._count(index) + 1)

    @property
    def leaving(self) -> bool:
        return self._map[0] != 0

    def leave(self) -> None:
        self._map[0] = 1

    def arm(self, point: str, action: int) -> None:
        self._map[2] = action
        self._map[1] = POINTS.index(point) + 1

    def disarm(self) -> bool:
        """Whether it had still been armed."""
        armed, self._map[1] = self._map[1] != 0, 0
        return armed

    def at(self, point: str) -> int:
        """What to do now: nothing, or what was armed for this point, once."""
        if self._map[1] != POINTS.index(point) + 1:
            return 0
        self._map[1] = 0
        return self._map[2]

    @property
    def began(self) -> int:
        return self._count(0)

    @property
    def ended(self) -> int:
        return self._count(1)

    @property
    def works(self) -> bool:
        return self.began > self.ended

    def begin(self) -> None:
        self._bump(0)

    def end(self) -> None:
        self._bump(1)


class Clock:
    """Simulated time, shared by all: minutes after the mesh's first instant, up to a limit that can be moved."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 32)

    @classmethod
    def make(cls, path: Path, minutes: float, per_second: float, limit: float) -> Clock:
        path.write_bytes(struct.pack("=dddd", _boottime(), minutes, per_second, limit))
        return cls(path)

    def minutes(self) -> float:
        since, first, per_second, last = struct.unpack("=dddd", self._map[:32])
        return min(first + (_boottime() - since) * per_second, last)

    def limit(self, minutes: float) -> None:
        struct.pack_into("=d", self._map, 24, minutes)


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def real_time() -> float:
    """Seconds since 1970, whatever `time.time` was made to say."""
    return time.clock_gettime(time.CLOCK_REALTIME)


class Log:
    """One JSON object a line, each written at once."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, event: str, **facts: Any) -> None:
        line = json.dumps({"t": real_time(), "e": event, **facts}, default=str)
        os.write(self._file, line.encode() + b"\n")


class Worker:
    """One process of one machine, running one project.

    Args:
        order: `name`, `project`, `overlap`, `machine` (None: this one), `ahead_s` of its clock, `seed`.
        folder: Of the run: `mesh`, `logs`, `panels`, `clock`.
    """

    def __init__(self, order: dict[str, Any], folder: Path) -> None:
        self.order = order
        self.folder = folder
        self.panel = Panel(folder / "panels" / order["name"])
        self.clock = Clock(folder / "clock")
        self.log = Log(folder / "logs" / f"{order['name']}.jsonl")
        self.random = random.Random(order["seed"])  # noqa: S311 - not for secrets
        self.evaluations = 0
        self.run: int | None = None

    def point(self, name: str) -> None:
        """Do here what was armed."""
        action = self.panel.at(name)
        if action:
            self.log("aimed", point=name, action=action)
            os.kill(os.getpid(), signal.SIGSTOP if action == STOP else signal.SIGKILL)

    # what is different on another machine

    def disguise(self) -> None:
        from sqlmesh.utils import date

        from meshgate import lease

        machine, ahead = self.order["machine"], self.order["ahead_s"]
        if machine is not None:
            facts = {**lease._machine(), "boot": machine}
            lease._machine = lambda: dict(facts)
        if ahead:
            real, present = time.time, date.now
            time.time = lambda: real() + ahead
            date.now = lambda *args, **kwargs: present(*args, **kwargs) + timedelta(seconds=ahead)

    # what is watched; nothing that decides is changed

    def watch(self) -> None:
        from sqlmesh.core.scheduler import Scheduler

        from meshgate.ledger import Ledger

        self._around(Ledger, "acquire", before="asked", after="acquired", note=self._note_run)
        self._around(Ledger, "open_claims", after="opened")
        self._around(Ledger, "begin", after="begun")
        self._around(Ledger, "commit", before="evaluated", after="committed")
        self._around(Ledger, "note_mirrored", after="mirrored")
        self._around(Ledger, "finish", before="finishing")
        evaluate = Scheduler.evaluate

        def watched(scheduler: Any, snapshot: Any, start: Any, end: Any, *args: Any, **kwargs: Any) -> Any:
            with self._evaluation(scheduler, snapshot, start, end):
                return evaluate(scheduler, snapshot, start, end, *args, **kwargs)

        Scheduler.evaluate = watched

    def _note_run(self, answer: Any) -> None:
        self.run = getattr(answer, "ttl", None) and answer.run_id
        if self.run:
            self.log("run", run=self.run, overlap=self.order["overlap"])

    def _around(
        self,
        owner: type,
        name: str,
        *,
        before: str | None = None,
        after: str | None = None,
        note: Callable[[Any], None] | None = None,
    ) -> None:
        inner = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if before:
                self.point(before)
            answer = inner(*args, **kwargs)
            if note:
                note(answer)
            if after:
                self.point(after)
            return answer

        setattr(owner, name, watched)

    @contextlib.contextmanager
    def _evaluation(self, scheduler: Any, snapshot: Any, start: Any, end: Any) -> Iterator[None]:
        from meshgate.bridge.translate import interval

        self.evaluations += 1
        number, piece, error = self.evaluations, interval(start, end), None
        self.log(
            "eval", n=number, run=scheduler._journal._run_id, model=snapshot.name,
            start=piece.start.isoformat(), end=piece.end.isoformat(),
        )  # fmt: skip
        try:
            self.point("evaluating")
            yield
        except BaseException as problem:
            error = f"{type(problem).__name__}: {problem}"[:300]
            raise
        finally:
            self.log("evaled", n=number, error=error)

    # the loop

    def work(self) -> None:
        from meshgate import lease

        self.log("start", pid=os.getpid(), started=lease.start_time(os.getpid()), **self.order)
        self.disguise()
        self.watch()
        mesh = None
        while not self.panel.leaving:
            self.panel.begin()
            began = time.monotonic()
            outcome: dict[str, Any] = {}
            try:
                if mesh is None:
                    mesh = self._open()
                outcome = self._once(mesh)
            except Exception as problem:  # noqa: BLE001 - whatever comes out is what is looked for
                outcome = self._trouble(problem)
            if self.run is not None:
                self.log("over", run=self.run)
                self.run = None
            self.log("did", took=round(time.monotonic() - began, 3), **outcome)
            self.panel.end()
            if outcome["state"] not in ("done", "nothing_to_do", "skipped"):
                mesh = self._close(mesh)
                self.log(
                    "closed",
                    descriptors=len(list(Path("/proc/self/fd").iterdir())),
                    threads=threading.active_count(),
                )
            if outcome["state"] != "done":
                time.sleep(self.random.uniform(0.05, 0.3))
        self._close(mesh)

    def _open(self) -> Any:
        from meshgate.mesh import Mesh

        return Mesh.open(self.folder / "mesh")

    def _close(self, mesh: Any) -> None:
        try:
            if mesh is not None:
                mesh.close()
        except Exception as problem:  # noqa: BLE001 - same
            self.log("close", error=f"{type(problem).__name__}: {problem}"[:300])

    def _once(self, mesh: Any) -> dict[str, Any]:
        from tiny_mesh import at

        options: dict[str, Any] = {"overlap": self.order["overlap"]}
        if self.random.random() < 0.1 and "wait" in supported():
            options["wait"] = timedelta(seconds=1)
        report = mesh.run(self.order["project"], now=at(int(self.clock.minutes())), **options)
        return {
            "state": report.state,
            "committed": {name: str(done) for name, done in report.committed.items()},
            "failed": [f"{f.model} {f.interval} {dict(f.detail)}"[:300] for f in report.failed[:3]],
            "unmirrored": [str(u)[:300] for u in report.unmirrored[:3]],
            "error": report.error,
        }

    def _trouble(self, problem: Exception) -> dict[str, Any]:
        from meshgate.errors import MeshgateError

        facts = {"state": "raised", "error": f"{type(problem).__name__}: {problem}"[:500]}
        if not isinstance(problem, MeshgateError):
            facts["unnamed"] = traceback.format_exc(limit=-12)
        return facts


def supported() -> tuple[str, ...]:
    """The overlap policies that this meshgate knows."""
    from meshgate.mesh import Mesh

    return ("share", "wait", "skip") if "wait" in inspect.signature(Mesh.run).parameters else ("skip",)


# -- the nursery


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _tell(**facts: Any) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


def _bear(order: dict[str, Any], folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        err = os.open(folder / "logs" / f"{order['name']}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for target, source in ((0, null), (1, err), (2, err)):
            os.dup2(source, target)
        faulthandler.register(signal.SIGUSR1)
        Worker(order, folder).work()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def nursery(folder: Path) -> None:
    """Fork a worker for each line of standard input; end with it."""
    _die_with_parent()
    import meshgate.bridge.project
    import meshgate.coordinator.run
    import meshgate.mesh  # noqa: F401
    import tiny_mesh  # noqa: F401

    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    _tell(ready=os.getpid(), overlaps=supported())
    left = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                _tell(ended=ended[0], status=ended[1], at=real_time())
        if 0 in ready:
            read = os.read(0, 65536)
            if not read:
                return
            *lines, left = (left + read).split(b"\n")
            for line in lines:
                order = json.loads(line)
                _tell(born=_bear(order, folder), name=order["name"])


if __name__ == "__main__":
    nursery(Path(sys.argv[1]))
