"""From upstream's commit to the start of the evaluation that waits for it: by notification, and by polling each 5 s.

Both ways are measured in one go, on the same server, with the same code; the one that polls has a `Listener` that was
found not to hear anything, as behind a pooler. Upstream and downstream are processes of their own. The clock starts
when `commit_claim` has returned to upstream, and stops when `begin_claim` has let downstream begin.

    python benchmarks/waiting.py            # the ledger alone, then two warm SQLMesh projects
    python benchmarks/waiting.py ledger
    python benchmarks/waiting.py mesh
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from meshgate.db import Database, migrate
from meshgate.interval import Interval
from meshgate.ledger import Ledger
from meshgate.listener import Listener
from meshgate.local_postgres import LocalPostgres
from meshgate.mesh import Mesh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

POLL_S = 5.0
LIMIT = timedelta(minutes=5)
ORIGIN = datetime(2026, 1, 5, tzinfo=UTC)
REPOSITORY = Path(__file__).resolve().parents[1]
PROCESSES = multiprocessing.get_context("spawn")


def hour(number: int) -> Interval:
    """One interval of the grid."""
    return Interval(ORIGIN + timedelta(hours=number), ORIGIN + timedelta(hours=number + 1))


def deafen() -> None:
    """Let every listener of this process find out that it hears nothing, so that it polls."""
    Listener._hears = lambda *_: False  # type: ignore[method-assign] # noqa: SLF001


@contextmanager
def another_process(target: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[None]:
    """A process that runs a function while the block runs; it is ended where the block fails."""
    process = PROCESSES.Process(target=target, args=arguments, kwargs=options)
    process.start()
    try:
        yield
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    assert process.exitcode == 0


def row(name: str, seconds: Sequence[float]) -> str:
    """A row of the table, in milliseconds."""
    ordered = sorted(seconds)
    shown = (median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1])
    return f"| {name} | {len(ordered)} | " + " | ".join(f"{s * 1000:,.1f}" for s in shown) + " |"


HEAD = "| | n | median ms | 95 % ms | worst ms |\n|---|---:|---:|---:|---:|"


# -- the ledger alone


def register(database: Database, project: str) -> int:
    """A model version of a project's only model."""
    rows = database.execute(
        "SELECT meshgate.register_version(%(p)s, %(p)s, '1', 'incremental_by_time_range', false) AS key",
        {"p": project},
    )
    return int(rows[0]["key"])


def acquire(ledger: Ledger, project: str) -> int:
    """A run of the project that lives as long as this takes."""
    lease = ledger.acquire(
        project, "prod", "run", {"pid": os.getpid()}, ttl=timedelta(hours=1), grace=timedelta(0)
    )
    return lease.run_id


def downstream(url: str, pair: int, rounds: int, to_upstream: Connection) -> None:
    """One run that waits for each interval of its parent; tells when it begins to wait, and when it may begin."""
    with closing(Database(url)) as database, Listener(database, poll_s=POLL_S) as bell:
        ledger = Ledger(database)
        parent, own = register(database, f"up_{pair}"), register(database, f"down_{pair}")
        run = acquire(ledger, f"down_{pair}")
        for number in range(rounds):
            span = hour(number)
            ledger.open_claims(run, own, [span])
            waiting = False
            while not (
                begun := ledger.begin(run, own, span, needs=[(parent, span)], loaded=[], environment=None)
            ).read_revision:
                assert begun.refused
                if not waiting:
                    to_upstream.send("waiting")
                    waiting = True
                bell.wait(LIMIT.total_seconds())
            to_upstream.send(time.monotonic())
            ledger.commit(run, own, span, verdict="passed")
        ledger.finish(run, "done", {})


def downstreams(url: str, ends: Sequence[Connection], rounds: int, *, polling: bool) -> None:
    """A process with one waiting run for each end of a pipe."""
    if polling:
        deafen()
    together([lambda i=i, end=end: downstream(url, i, rounds, end) for i, end in enumerate(ends)])


def upstream(url: str, pair: int, rounds: int, pause_s: tuple[float, float], child: Connection) -> list[Any]:
    """Commits what the other one waits for; seconds from before and from after each commit."""
    seconds = []
    with closing(Database(url)) as database:
        ledger = Ledger(database)
        version = register(database, f"up_{pair}")
        run = acquire(ledger, f"up_{pair}")
        for number in range(rounds):
            ledger.open_claims(run, version, [hour(number)])
            ledger.begin(run, version, hour(number), needs=[], loaded=[], environment=None)
            assert child.recv() == "waiting"
            time.sleep(random.uniform(*pause_s))
            before = time.monotonic()
            ledger.commit(run, version, hour(number), verdict="passed")
            after = time.monotonic()
            began = child.recv()
            seconds.append((began - before, began - after))
        ledger.finish(run, "done", {})
    return seconds


def together(actions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Do things at the same time; what they returned."""
    done: list[Any] = []
    threads = [threading.Thread(target=lambda a=a: done.append(a())) for a in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len(actions)
    return done


def measure_ledger(url: str, *, pairs: int, rounds: int, polling: bool) -> list[tuple[float, float]]:
    """So many pairs of runs at once, each so many times; polling ones at random phases."""
    pipes = [PROCESSES.Pipe() for _ in range(pairs)]
    pause_s = (0.0, POLL_S) if polling else (0.05, 0.15)
    with another_process(downstreams, url, [theirs for _, theirs in pipes], rounds, polling=polling):
        for _, theirs in pipes:
            theirs.close()  # so that a process that died is noticed
        found = together(
            [
                lambda i=i, ours=ours: upstream(url, i, rounds, pause_s, ours)
                for i, (ours, _) in enumerate(pipes)
            ]
        )
    return [sample for samples in found for sample in samples]


def new_ledger(postgres: LocalPostgres, name: str) -> str:
    """The URL of an empty ledger."""
    url = postgres.ensure_database(name)
    with closing(Database(url)) as database:
        migrate(database)
    return url


def ledger_table(postgres: LocalPostgres, count: int) -> None:
    """The ledger alone: what the notification costs, without SQLMesh."""
    heard = measure_ledger(new_ledger(postgres, "heard"), pairs=1, rounds=count, polling=False)
    # Many runs at once, or a hundred intervals of five seconds would take minutes.
    polled = measure_ledger(new_ledger(postgres, "polled"), pairs=20, rounds=-(-count // 20), polling=True)
    print(f"\nThe ledger alone: from upstream's commit to downstream's `begin`\n\n{HEAD}")
    print(row("notified", [after for _, after in heard]))
    print(row(f"polling each {POLL_S:g} s", [after for _, after in polled]))
    print(row("notified, from the moment the commit was sent", [before for before, _ in heard]))


# -- two SQLMesh projects


def stamped(owner: type, method: str, stamps: dict[str, float], name: str) -> None:
    """Note, from now on, when a method last returned."""
    original = getattr(owner, method)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        try:
            return original(*arguments, **options)
        finally:
            stamps[name] = time.monotonic()

    setattr(owner, method, wrapped)


def waiting_project(folder: Path, ends: Sequence[int], to_upstream: Connection, *, polling: bool) -> None:
    """A process that runs downstream for one hour after the other, and waits for each; when it came to what."""
    if polling:
        deafen()
    stamps: dict[str, float] = {}
    stamped(Listener, "wait", stamps, "woke")
    stamped(Ledger, "acquire", stamps, "lease")
    stamped(Ledger, "open_claims", stamps, "claims")
    stamped(Ledger, "begin", stamps, "begin")
    noted = Listener.wait

    def wait(bell: Listener, timeout_s: float) -> bool:
        if "waiting" not in stamps:
            stamps["waiting"] = time.monotonic()
            to_upstream.send("waiting")
        return noted(bell, timeout_s)

    Listener.wait = wait  # type: ignore[method-assign]
    with Mesh.open(folder) as mesh:
        for minutes in ends:
            stamps.clear()
            report = mesh.run("downstream", now=ORIGIN + timedelta(minutes=minutes), wait=LIMIT)
            assert report.state == "done", report
            to_upstream.send(dict(stamps))


def measure_mesh(tiny: Any, ends: Sequence[int], *, polling: bool) -> list[dict[str, float]]:
    """Run upstream for one hour after the other while a warm downstream waits; seconds since upstream's last commit."""
    ours, theirs = PROCESSES.Pipe()
    found = []
    committed: dict[str, float] = {}
    original = Ledger.commit
    stamped(Ledger, "commit", committed, "at")
    try:
        with (
            another_process(waiting_project, tiny.folder, ends, theirs, polling=polling),
            Mesh.open(tiny.folder) as mesh,
        ):
            theirs.close()
            for minutes in ends:
                assert ours.recv() == "waiting"
                time.sleep(random.uniform(0.0, POLL_S if polling else 0.1))
                report = mesh.run("upstream", now=ORIGIN + timedelta(minutes=minutes))
                assert report.state == "done", report
                stamps = ours.recv()
                found.append({name: at - committed["at"] for name, at in stamps.items()})
    finally:
        Ledger.commit = original  # type: ignore[method-assign]
    return found


def mesh_table(postgres: LocalPostgres, folder: Path, counts: tuple[int, int]) -> None:
    """Two projects on a DuckLake, both opened before: what a person who runs `run --wait` gets."""
    sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "examples" / "portfolio")]
    from lakehouse import import_extensions

    from tiny_mesh import TinyMesh

    import_extensions()
    folder.mkdir()
    tiny = TinyMesh(folder, postgres)
    hours = [60 * (n + 2) for n in range(sum(counts) + 2)]
    tiny.feed(0, hours[-1])
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=ORIGIN + timedelta(hours=1))
        mesh.deploy("downstream", now=ORIGIN + timedelta(hours=1))
    # The first run of a process imports SQLMesh and opens the project.
    cold, *heard = measure_mesh(tiny, hours[: counts[0] + 1], polling=False)
    _, *polled = measure_mesh(tiny, hours[counts[0] + 1 :], polling=True)
    tiny.check(hours[-1])
    print(f"\nTwo warm projects: from upstream's last commit to downstream's `begin`\n\n{HEAD}")
    for name, found in (("notified", heard), (f"polling each {POLL_S:g} s", polled)):
        print(row(name, [stamps["begin"] for stamps in found]))
    print(row("notified, the first run of its process", [cold["begin"]]))
    print("\nWhere the time goes when notified: since upstream's last commit\n\n" + HEAD)
    print(row("has looked at the ledger, has the lease", [s["lease"] for s in heard]))
    print(row("has planned, has its claims", [s["claims"] for s in heard]))
    print(row("may begin: the evaluation starts", [s["begin"] for s in heard]))


def load() -> str:
    """How busy the machine is, with this and with other things."""
    return f"load of the last minute {os.getloadavg()[0]:.1f}"


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="?", choices=["ledger", "mesh", "all"], default="all")
    parser.add_argument("--count", type=int, default=100, help="how many measurements of each way")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        postgres = LocalPostgres.start(Path(folder) / "postgres")
        try:
            print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {load()}")
            if asked.part != "mesh":
                ledger_table(postgres, asked.count)
                print(f"\n{load()}")
            if asked.part != "ledger":
                mesh_table(postgres, Path(folder) / "mesh", (asked.count, -(-asked.count // 5)))
                print(f"\n{load()}")
        finally:
            postgres.destroy()


if __name__ == "__main__":
    main()
