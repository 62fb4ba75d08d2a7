"""What the tests of the ledger stand on: a grid of hours, versions by number, sessions, and waits that are observed.

Time is a grid of `CELLS` hours from `ORIGIN` on. A session's clock is set, never waited for; a wait for a lock is
read from `pg_stat_activity`, never slept for.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from meshgate.db import SCHEMA_VERSION, Database
from meshgate.graph import Kind
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval
from meshgate.ledger import Begun, Busy, Lease, Ledger, Limits, Mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

ORIGIN = datetime(2026, 1, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
CELLS = 12
TTL = timedelta(seconds=60)
GRACE = timedelta(seconds=30)
PATIENCE_S = float(os.environ.get("MESHGATE_PATIENCE_S", "30"))

_TABLES = (
    "past", "observation", "request", "forgotten", "event", "dirty_span", "mark", "coverage", "claim", "run", "edge", "promotion", "environment", "hold", "version",
    "model", "project", "ledger",
)  # fmt: skip


def empty(database: Database) -> None:
    """Make a test's ledger what it was when it was new."""
    database.execute(
        "".join(f"DELETE FROM meshgate.{table};" for table in _TABLES)
        + "SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false)"
        " FROM pg_sequences WHERE schemaname = 'meshgate';"
        f"INSERT INTO meshgate.ledger (schema_version, test_clock) VALUES ({SCHEMA_VERSION}, true)"
    )


def at(cell: int) -> datetime:
    """Where a cell begins."""
    return ORIGIN + cell * HOUR


def span(start: int, end: int) -> Interval:
    """So many cells as an interval."""
    return Interval(at(start), at(end))


def cells(interval: Interval) -> frozenset[int]:
    """The cells of an interval; -1 and `CELLS` stand for the time before and after the grid."""
    start = -1 if interval.start == MIN_INSTANT else (interval.start - ORIGIN) // HOUR
    end = CELLS + 1 if interval.end == MAX_INSTANT else (interval.end - ORIGIN) // HOUR
    return frozenset(range(start, end))


class Scene:
    """One session of a ledger, with the few words that tests need.

    Args:
        ledger: A ledger whose clock may be set.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.database = ledger.database
        self.now = at(CELLS)
        self.set_clock(self.now)

    def set_clock(self, now: datetime) -> None:
        """Stop this session's clock at an instant."""
        self.now = now
        self.database.execute("SELECT set_config('meshgate.now', %(now)s, false)", {"now": now.isoformat()})

    def pass_time(self, seconds: float) -> None:
        """Move this session's clock."""
        self.set_clock(self.now + timedelta(seconds=seconds))

    def version(
        self,
        name: str = "p",
        *,
        kind: str = "incremental_by_time_range",
        version: str = "1",
        project: str = "up",
    ) -> int:
        """The key of a model version, registered if it is new."""
        as_of = Kind(kind).as_of
        return int(
            self.database.execute(
                "SELECT meshgate.register_version(%(p)s, %(m)s, %(v)s, %(k)s, %(a)s) AS key",
                {"p": project, "m": name, "v": version, "k": kind, "a": as_of},
            )[0]["key"]
        )

    def run(
        self,
        project: str = "up",
        *,
        ttl: timedelta = TTL,
        grace: timedelta = GRACE,
        engine_in_process: bool = False,
        **more: Any,
    ) -> int:
        """A new run that lives; its id."""
        holder = {"host": "here", "engine_in_process": engine_in_process}
        answer = self.acquire(project, holder=holder, ttl=ttl, grace=grace, **more)
        assert isinstance(answer, Lease), answer
        return answer.run_id

    def busy(self, project: str = "up", **more: Any) -> Busy:
        """The run that keeps a new one out."""
        answer = self.acquire(project, **more)
        assert isinstance(answer, Busy), answer
        return answer

    def acquire(
        self,
        project: str = "up",
        *,
        environment: str = "prod",
        purpose: str = "run",
        holder: dict[str, Any] | None = None,
        ttl: timedelta = TTL,
        grace: timedelta = GRACE,
        **more: Any,
    ) -> Lease | Busy:
        """Ask for a new run."""
        return self.ledger.acquire(
            project, environment, purpose, holder or {"host": "here"}, ttl=ttl, grace=grace, **more
        )

    def open(self, run: int, version: int, *intervals: Interval, whole: bool = False) -> list[int | None]:
        """Reserve; for each interval the run that has it, or None."""
        answers = self.ledger.open_claims(run, version, intervals, whole=whole)
        return [answer.refused_by for answer in answers]

    def begin(
        self,
        run: int,
        version: int,
        interval: Interval,
        *needs: tuple[int, Interval],
        loaded: Sequence[int] = (),
        environment: str | None = None,
        limits: Limits = Limits(),  # noqa: B008 - immutable
    ) -> Begun:
        """Begin a batch as a deploy does: without a look at promotions, unless an environment is named."""
        return self.ledger.begin(
            run, version, interval, needs=needs, loaded=loaded, environment=environment, limits=limits
        )

    def work(
        self,
        run: int,
        version: int,
        interval: Interval,
        *needs: tuple[int, Interval],
        whole: bool = False,
    ) -> int | None:
        """Reserve and begin; what was read up to."""
        assert self.open(run, version, interval, whole=whole) == [None]
        return self.begin(run, version, interval, *needs).read_revision

    def attempt(self, run: int, version: int, interval: Interval) -> Mark:
        """Reserve, begin and fail; the mark that says so."""
        self.work(run, version, interval)
        self.ledger.fail(run, version, interval, {"error": "no"})
        return self.known(version, interval, "failed")

    def known(self, version: int, interval: Interval, kind: str) -> Mark:
        """The one mark of a kind on exactly this time."""
        marks = self.ledger.states([version])[version].marks
        (found,) = [m for m in marks if m.kind == kind and m.interval == interval]
        return found

    def record(self, run: int, version: int, interval: Interval, *, lookback: Interval | None = None) -> int:
        """Reserve, begin and commit; the revision."""
        self.work(run, version, interval)
        return self.commit(run, version, interval, lookback=lookback)

    def commit(self, run: int, version: int, interval: Interval, *, lookback: Interval | None = None) -> int:
        """Commit what was begun; the revision."""
        return self.ledger.commit(run, version, interval, verdict="passed", lookback=lookback)

    def mark(self, version: int, interval: Interval, kind: str = "requested") -> int:
        """Ask for a range to be computed again, as a restatement will; the mark's revision."""
        return int(
            self.database.execute(
                "SELECT meshgate.put_mark(%(v)s, tstzrange(%(s)s, %(e)s), %(k)s, NULL, '{}') AS revision",
                {
                    "v": version,
                    "s": None if interval.start == MIN_INSTANT else interval.start,
                    "e": None if interval.end == MAX_INSTANT else interval.end,
                    "k": kind,
                },
            )[0]["revision"]
        )

    def reconcile(
        self,
        version: int,
        recorded: Iterable[Interval],
        *,
        trusted: Iterable[Interval] = (),
        gated: bool = True,
        read_at: datetime | None = None,
    ) -> list[tuple[str, frozenset[int]]]:
        """Tell what SQLMesh's state holds of a version; what was found."""
        ranges = {
            key: [f"[{i.start.isoformat()},{i.end.isoformat()})" for i in intervals]
            for key, intervals in (("state", recorded), ("trusted", trusted))
        }
        rows = self.database.rows(
            "reconcile_version", version_id=version, gated=gated, read_at=read_at or self.now, **ranges
        )
        return [(row["finding"], cells(Interval(row["span"].lower, row["span"].upper))) for row in rows]

    def unclean(self, version: int, interval: Interval) -> set[tuple[str, int]]:
        """What nobody may read of an interval: reason and cell."""
        rows = self.database.execute(
            "SELECT reason, span FROM meshgate.unclean(%(version)s, %(span)s::tstzrange)",
            {"version": version, "span": f"[{interval.start.isoformat()},{interval.end.isoformat()})"},
        )
        return {
            (row["reason"], cell)
            for row in rows
            for cell in cells(Interval(row["span"].lower.astimezone(UTC), row["span"].upper.astimezone(UTC)))
        }

    def marks(self, version: int) -> set[tuple[str, int]]:
        """The marks of a version: kind and cell."""
        return {
            (mark.kind, cell)
            for mark in self.ledger.states([version])[version].marks
            for cell in cells(mark.interval)
        }

    def revisions(self, version: int) -> dict[int, int]:
        """When each covered cell of a version was made."""
        return {
            cell: row.revision
            for row in self.ledger.coverage_rows(version, span(0, CELLS))
            for cell in cells(row.interval)
        }

    def dirty(self, version: int) -> set[tuple[int, int | None]]:
        """Between which revisions a whole table held rows that nobody had judged; accepted ones until they are written over."""
        rows = self.database.execute(
            """SELECT from_revision AS f, coalesce(to_revision, accepted_revision) AS t
               FROM meshgate.dirty_span WHERE version_id = %(v)s""",
            {"v": version},
        )
        return {(row["f"], row["t"]) for row in rows}

    def state(self, run: int) -> str:
        """The state of a run."""
        return str(
            self.database.execute("SELECT state FROM meshgate.run WHERE run_id = %(r)s", {"r": run})[0][
                "state"
            ]
        )

    def promote(
        self, versions: dict[str, str], *, environment: str = "prod", project: str = "up"
    ) -> list[str]:
        """Make an environment promote versions of models; those that changed."""
        models = [{"name": n, "version": v, "unit": "hour", "cron": "@hourly"} for n, v in versions.items()]
        from meshgate.db import json

        rows = self.database.rows(
            "sync_environment", environment=environment, plan_id="plan", projects=[project], models=json(models),
            edges=json([]), settled=None, at=0, others=json([]),
        )  # fmt: skip
        return sorted(row["model"] for row in rows)


@contextmanager
def other_session(ledger: Ledger, now: datetime | None = None, *, name: str = "other") -> Iterator[Ledger]:
    """A second session of the same ledger for each thread, their clocks stopped at an instant."""
    url = ledger.database._url
    if now is not None:
        url += f"?options={quote(f'-c meshgate.now={now.isoformat()}')}"
    database = Database(url, name=name)
    try:
        yield Ledger(database)
    finally:
        database.close()


@contextmanager
def locked(ledger: Ledger, row: str = "SELECT meshgate.lock_ledger()") -> Iterator[Any]:
    """A transaction of somebody else that holds a lock until the block ends or its connection commits."""
    connection = ledger.database.connect()
    connection.autocommit = False
    try:
        with connection.cursor() as cursor:
            cursor.execute(row)
        yield connection
        connection.commit()
    finally:
        connection.close()


@contextmanager
def meanwhile(action: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Run something in another thread while the block runs; the block's end waits for it, unless it failed."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield future
    thread.join(PATIENCE_S)


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Look until something is so; fail if it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"


def wait_until_blocked(ledger: Ledger, name: str = "other") -> None:
    """Return as soon as a session of that application name is seen to wait for a lock."""
    eventually(
        lambda: bool(
            ledger.database.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = %(name)s"
                " AND wait_event_type = 'Lock'",
                {"name": name},
            )
        ),
        f"{name} waits for a lock",
    )
