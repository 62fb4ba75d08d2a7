"""What the commit of a fresh unit obliges to, whatever batch it came in: the units before it that have not been read since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attrs import evolve

from guarantee_mesh import BRONZE, Mesh, minutes, node
from meshgate.graph import Edge
from meshgate.interval import IntervalSet

if TYPE_CHECKING:
    from meshgate.interval import Interval
    from meshgate.ledger import Ledger

LOOKED = '"lake"."looked"'


@pytest.fixture
def mesh(ledger: Ledger) -> Mesh:
    """A model of five minutes that looks back at two units; an hour is done."""
    looked = evolve(node(LOOKED, "up", "five_minute"), lookback=2)
    made = Mesh(ledger, ([looked], [Edge(LOOKED, BRONZE)]))
    made.time(60)
    made.run("up")
    made.time(70)
    made.run("up", lambda name, _: {} if name == LOOKED else None)
    return made


@pytest.mark.parametrize(
    ("batch", "owed"),
    [
        (minutes(60, 65), [minutes(50, 60)]),
        (minutes(50, 65), []),  # as a deploy's plan has it: it begins with what it looks back at
        (minutes(55, 65), [minutes(50, 55)]),
        (minutes(30, 35), []),  # nothing new: whoever looks back at it has done so
        (minutes(30, 60), []),
    ],
)
def test_only_what_is_new_asks_for_what_it_looks_back_at(
    mesh: Mesh, batch: Interval, owed: list[Interval]
) -> None:
    """Counted from the first unit beyond the frontier; what the same batch has read is read."""
    lease = mesh.acquire("up")
    journal = mesh.journal(lease, "up")
    assert journal.claim(LOOKED, [batch], mesh.covered(LOOKED)) == [batch]
    mesh.evaluate(journal, LOOKED, batch)
    marks = mesh.ledger.states([mesh.ids[LOOKED]])[mesh.ids[LOOKED]].marks
    assert IntervalSet(m.interval for m in marks if m.kind == "lookback") == IntervalSet(owed)
