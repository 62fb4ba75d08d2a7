"""All orders of what two holders do, against a plain oracle of sets; and those in which one waits for the other."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, NamedTuple

import pytest

from interleavings import Hours, Setting, Step
from interleavings_locks import CALLS, Call, Sessions
from interleavings_walk import PREPARE, Explorer, tell_all
from meshgate.db import Database, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interleavings_walk import Script
    from meshgate.ledger import Ledger
    from meshgate.local_postgres import LocalPostgres

RESERVED: Hours = frozenset({2, 3, 4, 5})
BEGUN: Hours = frozenset({2, 3})
INTO_BEGUN, INTO_RESERVED, APART = frozenset({1, 2}), frozenset({5, 6}), frozenset({7, 8})
INSIDE, AROUND = frozenset({3}), frozenset(range(1, 8))
TWO = ("up", "down")
ENDS_OF_A = (Step("bury", whom="A", gone=True), Step("bury", whom="A"), Step("break", whom="A"))


class Case(NamedTuple):
    """Two scripts.

    Attributes:
        orders: In how many orders their steps and those of the clock can be taken.
        hours: What B works on.
        setting: Who they are.
        renews: Whether A renews its lease before it ends what it has begun.
        ends: Whether B ends A's run first, in one way or another.
        asks: Which hours B asks for to be computed again, before its run.
    """

    orders: int
    hours: Hours
    setting: Setting
    renews: bool = False
    ends: bool = False
    asks: Hours = frozenset()

    def scripts(self) -> tuple[Script, Script]:
        """A begins a part of what it has reserved, brings that to one of its ends, and finishes; B does its hours."""
        renewal = [[Step("renew")]] if self.renews else []
        end = [
            *(Step(verb, BEGUN) for verb in ("commit", "fail", "give_up")),
            Step("abandon", RESERVED - BEGUN),
        ]
        a = [
            [Step("acquire")],
            [Step("open", RESERVED)],
            [Step("begin", BEGUN)],
            *renewal,
            end,
            [Step("finish")],
        ]
        b = [[Step("acquire")], *([Step(verb, self.hours)] for verb in ("open", "begin", "commit"))]
        asking = [[Step("ask", self.asks)]] if self.asks else []
        return a, [*asking, ENDS_OF_A, *b] if self.ends else [*asking, *b]


CASES = {
    "one project, into what is begun": Case(14368, INTO_BEGUN, Setting(), renews=True),
    "one project, into what is reserved": Case(7452, INTO_RESERVED, Setting()),
    "two projects, into what is begun": Case(55440, INTO_BEGUN, Setting(projects=TWO), renews=True),
    "two projects, inside": Case(27720, INSIDE, Setting(projects=TWO)),
    "shared, apart": Case(18324, APART, Setting(share=True)),
    "beside a deploy": Case(16848, AROUND, Setting(purposes=("deploy", "run"), share=True)),
    "one batch at a time": Case(27720, APART, Setting(projects=TWO, most=1)),
    "A is ended": Case(279744, RESERVED, Setting(), renews=True, ends=True),
    "A is ended, its engine with it": Case(122748, INTO_BEGUN, Setting(inside=True), ends=True),
    "a whole table, one project": Case(7452, APART, Setting("full")),
    "a whole table, two projects": Case(55440, APART, Setting("full", projects=TWO), renews=True),
    "a whole table, A is ended": Case(122748, INTO_BEGUN, Setting("full"), ends=True),
    "asked for meanwhile": Case(66528, BEGUN, Setting(projects=TWO), asks=AROUND),
    "asked for, A is ended": Case(338124, BEGUN, Setting(), asks=BEGUN, ends=True),
    "a whole table, asked for meanwhile": Case(66528, APART, Setting("full", projects=TWO), asks=INSIDE),
    "claimed whole, two projects": Case(27720, AROUND, Setting(alone=True, projects=TWO)),
}


@pytest.mark.parametrize("case", CASES)
def test_all_orders_give_what_the_rules_say(ledger: Ledger, case: str) -> None:
    """Whatever the order of two holders' steps, of expiry and of the grace's end: answers and rows are the oracle's."""
    connection = ledger.database.connect()
    try:
        connection.autocommit = False
        explorer = Explorer(connection, CASES[case].setting, CASES[case].scripts())
        orders = explorer.orders()
        assert orders == CASES[case].orders, f"{orders} orders in {explorer.steps} steps"
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("setting", "verbs", "orders"),
    [(Setting(), ("open", "begin", "commit"), 630), (Setting("full", projects=TWO), ("open", "begin"), 280)],
    ids=["by time, taken over", "a whole table, contended"],
)
def test_all_orders_of_two_sessions_that_commit(
    ledger: Ledger, setting: Setting, verbs: tuple[str, ...], orders: int
) -> None:
    """The same where each holder has a session of its own and each step is a transaction of its own."""
    sessions = (ledger.database.connect(), ledger.database.connect())
    try:
        for session in sessions:
            with session.cursor() as cursor:
                cursor.execute(PREPARE)
        a = [Step("acquire"), Step("open", RESERVED), Step("begin", BEGUN), Step("commit", BEGUN)]
        b = [Step("acquire"), *(Step(verb, INTO_BEGUN) for verb in verbs)]
        assert tell_all(sessions, setting, (a, b)) == orders
    finally:
        for session in sessions:
            session.close()


@pytest.fixture(scope="module")
def sessions(postgres: LocalPostgres) -> Iterator[Sessions]:
    """Two sessions whose one clock can be moved while one of them waits."""
    database = Database(postgres.ensure_database(f"locks_{uuid.uuid4().hex}"))
    migrate(database, test_clock=True)
    with Sessions(database) as found:
        yield found
    database.close()


@pytest.mark.parametrize("first", CALLS, ids=str)
def test_who_waits_for_a_lock_is_answered_by_the_clock_after_it(sessions: Sessions, first: Call) -> None:
    """Any call that meets another in flight is decided by what that one did, and by the instant at which it gets the lock."""
    for second in CALLS:
        for undone in (False, True):
            waited = sessions.race(first, second, undone=undone)
            # Renewals pass by the queue, so that a long one starves no lease.
            assert waited or "renew" in (first.step.verb, second.step.verb), (str(first), str(second))
