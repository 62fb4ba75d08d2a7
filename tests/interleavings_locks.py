"""Two sessions in flight at once: one holds the lock that the other waits for, and the clock moves meanwhile.

Both sessions read the time from one row of a table, which a third one moves while they wait. That the second waits is
seen in `pg_stat_activity`; one that does not wait has answered.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import psycopg2

from interleavings import MOMENTS, Hours, Paper, Setting, Step
from interleavings_walk import PREPARE, Table, check_promises, check_refusal, standing
from ledger_scene import PATIENCE_S

if TYPE_CHECKING:
    from concurrent.futures import Future
    from datetime import datetime

    from meshgate.db import Database

CLOCK = """
CREATE TABLE public.clock (now timestamptz NOT NULL);
INSERT INTO public.clock VALUES (clock_timestamp());
CREATE OR REPLACE FUNCTION meshgate.clock() RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (SELECT c.now FROM public.clock c);
END $$;
"""
START = MOMENTS[0]
HALFWAY = START + (MOMENTS[1] - START) / 2
END = MOMENTS[1]

SETTING = Setting(projects=("up", "down", "third"), purposes=("run", "run", "run"), leases=(1, 10, 1))
"""A's lease is over at `END`, B's is not; C is new."""
BEGUN: dict[str, Hours] = {"A": frozenset({0, 1}), "B": frozenset({4, 5})}
RESERVED: dict[str, Hours] = {"A": frozenset({2, 3}), "B": frozenset({6, 7})}
FREE: Hours = frozenset({8, 9})


class Call(NamedTuple):
    """A step of somebody."""

    who: str
    step: Step

    def __str__(self) -> str:
        about = f" of {self.step.whom}" if self.step.whom else ""
        return f"{self.who} {self.step.verb}{about} {sorted(self.step.hours) or ''}".strip()


def calls_of(who: str) -> list[Call]:
    """All that a holder may be doing, about its own and about the other's."""
    other = "B" if who == "A" else "A"
    steps = [
        Step("renew"), Step("finish"), Step("open", FREE), Step("open", BEGUN[other]), Step("open", RESERVED[other]),
        Step("begin", RESERVED[who]), Step("commit", BEGUN[who]), Step("fail", BEGUN[who]),
        Step("give_up", BEGUN[who]), Step("abandon", RESERVED[who]), Step("bury", whom=other, gone=True), Step("break", whom=other),
    ]  # fmt: skip
    return [Call(who, step) for step in steps]


CALLS = [*calls_of("A"), *calls_of("B"), Call("C", Step("acquire")), Call("C", Step("take_over"))]


class Sessions:
    """The two sessions, and a third that watches them and moves the clock.

    Args:
        database: A ledger whose sessions may set its clock, used by nobody else.
    """

    def __init__(self, database: Database) -> None:
        self.watcher = database.connect()
        with self.watcher.cursor() as cursor:
            cursor.execute(CLOCK)
        self.one, self.two = database.connect(), database.connect()
        for connection in (self.one, self.watcher):
            with connection.cursor() as cursor:
                cursor.execute(PREPARE)
        self.pool = ThreadPoolExecutor(1)
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        for connection in (self.one, self.two, self.watcher):
            connection.close()

    def set_clock(self, now: datetime) -> None:
        with self.watcher.cursor() as cursor:
            cursor.execute("UPDATE public.clock SET now = %s", [now])

    def start(self) -> tuple[Table, Paper]:
        """A and B with something begun and something reserved, on a fresh table."""
        self.count += 1
        self.set_clock(START)
        table, paper = Table(self.one, SETTING, f"table {self.count}"), Paper(SETTING, START)
        for who in "AB":
            for step in (
                Step("acquire"), Step("open", BEGUN[who]), Step("open", RESERVED[who]), Step("begin", BEGUN[who]),
            ):  # fmt: skip
                assert say(self.one, table, Call(who, step)) == paper.tell(who, step) == "ok"
        return table, paper

    def waits(self, future: Future[str]) -> bool:
        """Whether the second session waits for a lock; not, if it has answered."""
        deadline = time.monotonic() + PATIENCE_S
        while not future.done():
            with self.watcher.cursor() as cursor:
                # Not for any lock: the server itself, as it analyses a table, may be in the way for a moment.
                cursor.execute(
                    "SELECT %s = ANY (pg_blocking_pids(%s))",
                    [self.one.info.backend_pid, self.two.info.backend_pid],
                )
                if cursor.fetchone()[0]:
                    return True
            assert time.monotonic() < deadline, "it neither waits nor answers"
        return False

    def race(self, first: Call, second: Call, *, undone: bool) -> bool:
        """Let the second call meet the first one in flight, and A's lease end while it waits; whether it had to wait.

        Args:
            first: Made in a transaction that is still open.
            second: Made meanwhile.
            undone: Whether the first one's session dies before its commit.
        """
        table, paper = self.start()
        path = f"{first}{' (undone)' if undone else ''}; {second}"
        self.set_clock(HALFWAY)
        paper.now = HALFWAY
        with self.one.cursor() as cursor:
            cursor.execute("BEGIN")
        told = say(self.one, table, first)
        future = self.pool.submit(say, self.two, table, second)
        waited = self.waits(future)
        if waited:
            self.set_clock(END)
        with self.one.cursor() as cursor:
            cursor.execute("ROLLBACK" if undone else "COMMIT")
        answer = future.result(PATIENCE_S)
        later = END if waited else HALFWAY
        steps = [] if undone else [(first, told, HALFWAY)]
        # Whoever does not wait is not concerned: either order is right.
        steps.insert(len(steps) if waited else 0, (second, answer, later))
        for call, said, now in steps:
            paper.now = now
            assert said == paper.tell(call.who, call.step), path
        if undone and first.step.verb == "acquire" != second.step.verb:
            table.runs.pop("C")
        _, found = table.tell(self.watcher, paper.now, "A", None)
        assert standing(found, paper.now) == paper.standing(), path
        check_promises(found, paper.now)
        if answer == "lost":
            check_refusal(None, found, second.step)
        with self.one.cursor() as cursor:
            cursor.execute(
                "SELECT meshgate.bury_run(run_id, true) FROM meshgate.run WHERE run_id > %s", [table.after]
            )
        return waited


def say(connection: Any, table: Table, call: Call) -> str:
    """One call as the product makes it; its answer in the words of the paper."""
    sql, known = table.statement(call.who, call.step)
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT to_jsonb(x) FROM ({sql}) x", known)
            told = (cursor.fetchone() or [{}])[0]
    except psycopg2.Error as error:
        told = {"sqlstate": error.pgcode, "message": str(error)}
    return table.answer(call.who, call.step, told)
