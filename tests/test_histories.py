"""Each history that `docs/explanation` and the rules of coordination rest on, told once, by the number of its rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guarantee_mesh import AUDIT, GOLD, Mesh, minutes, node
from meshgate.graph import Edge, Kind
from meshgate.interval import IntervalSet

if TYPE_CHECKING:
    from meshgate.ledger import Ledger

LOG = '"lake"."log"'


def test_rule_23_rows_are_not_appended_twice(ledger: Ledger) -> None:
    """An evaluation that failed may have appended: its interval is held until a person has looked, and so is what follows."""
    mesh = Mesh(ledger, ([node(LOG, "down", "hour", Kind.INCREMENTAL_UNMANAGED)], [Edge(LOG, GOLD)]))
    mesh.time(120)
    mesh.run("up")
    tried = []

    def engine(name: str, piece: object) -> dict[str, object] | None:
        tried.append((name, piece))
        return AUDIT if name == LOG else None

    mesh.run("down", engine)
    mesh.time(180)
    mesh.run("up")
    mesh.run("down", engine)
    assert [piece for name, piece in tried if name == LOG] == [minutes(0, 120)]
    assert "held" in {b.reason for b in mesh.of(LOG).blocked}
    mesh.ledger.accept(mesh.ids[LOG], minutes(0, 120), lookback=None, reason="looked at it", by="a person")
    assert mesh.run("down").committed[LOG] == IntervalSet([minutes(120, 180)])
