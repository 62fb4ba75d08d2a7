"""What the simulated ledger tells the decisions, by the names and in the records of the real one.

So the product's own code can ask it: `staleness.states_of`, `rested_by`, `find`, `after_promotion`, `make_plan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.interval import Interval, IntervalSet
from meshgate.ledger import WHOLE as ALL_TIME
from meshgate.ledger import Hold, LiveClaim, Manifest, Mark, VersionState
from meshgate.ledger.record import Newer
from simulator_geometry import CELL_S, ORIGIN, at, cells_of, interval_of, runs_of
from simulator_table import DOUBTS, WHOLE, neighbours

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from meshgate.graph import MeshGraph, ModelNode
    from meshgate.interval import Interval
    from simulator_geometry import Geometry
    from simulator_table import Claim, Table

_ENDLESS = 1 << 60


class Answers:
    """The reading half of `SimulatedLedger`."""

    graph: MeshGraph
    geometry: Geometry
    now: int
    tables: dict[str, Table]
    ids: dict[str, int]
    versions: dict[int, Table]
    held: dict[str, set[int]]
    revision_: int

    def obeys(self, rule: str) -> bool:
        raise NotImplementedError

    def is_one(self, table: Table) -> bool:
        raise NotImplementedError

    # What is promoted

    def environments(self) -> tuple[str, ...]:
        return ("prod",)

    def manifest(self, environment: str) -> Manifest:
        return Manifest(environment, None, None, self.graph, self.ids)

    def register_version(self, node: ModelNode) -> int:
        return next(
            key
            for key, table in self.versions.items()
            if (table.node.name, table.node.version) == (node.name, node.version)
        )

    def revision(self) -> int:
        return self.revision_

    # What is known of each version

    def states(self, version_ids: Iterable[int]) -> dict[int, VersionState]:
        return {key: self._state(self.versions[key]) for key in version_ids}

    def _state(self, table: Table) -> VersionState:
        if table.view is not None and self.now < table.view_until:
            return table.view
        table.claims = [c for c in table.claims if c.state != "lost" or c.until > self.now]
        claims = tuple(
            LiveClaim(
                table.key, ALL_TIME if c.cells == WHOLE else interval_of(c.cells), c.state, c.run, "", {}, at(c.until),
            )
            for c in table.claims
        )  # fmt: skip
        marks = tuple(
            Mark(
                table.key, piece or ALL_TIME, kind, reason.revision, None, reason.attempts, {}, at(reason.made_at),
                None if reason.retry_at is None else at(reason.retry_at), self._batch(table, kind),
            )
            for kind, reasons in table.marks.items()
            for piece, reason in neighbours(reasons)
        )  # fmt: skip
        held = self.held[table.node.name]
        pieces = [ALL_TIME] if held and table.whole else [interval_of(p) for p in runs_of(held)]
        read = table.last_read() if table.whole else None
        table.view = VersionState(
            covered=table.covered,
            marks=marks,
            claims=claims,
            last_read=None if read is None else at(read),
            holds=tuple(Hold(piece, "why", "somebody", at(0)) for piece in pieces),
            accepted=table.accepted(),
        )
        table.view_until = min((c.until for c in table.claims if c.state == "lost"), default=_ENDLESS)
        return table.view

    def _batch(self, table: Table, kind: str) -> Interval | None:
        if not self.is_one(table) or kind not in DOUBTS:
            return None
        doubt = table.doubt.get(kind)
        return interval_of(doubt) if doubt else None

    def unclean(self, table: Table, cells: range) -> set[tuple[str, int]]:
        """What nobody may read: reason and cell."""
        facts = table.facts
        found = {("missing", cell) for cell in cells if cell not in facts}
        for kind in ("failed", "suspect", "removed"):
            marks = table.marks.get(kind)
            if marks:
                found |= {(kind, cell) for cell in cells if cell in marks or -1 in marks}
        for claim in table.claims:
            if claim.state == "begun":
                found |= {("begun", cell) for cell in cells if self._writes(claim, cell)}
        held = self.held[table.node.name]
        if held and self.obeys("held time is not read"):
            found |= {("held", cell) for cell in cells if table.whole or cell in held}
        return found

    @staticmethod
    def _writes(claim: Claim, cell: int) -> bool:
        return claim.cells == WHOLE or cell in claim.cells

    # What is stale

    def newer(
        self,
        environment: str,
        gates: Sequence[tuple[int, int, timedelta | None, timedelta | None]],
        beyonds: Sequence[timedelta | None],
        lives: Sequence[Interval],
    ) -> tuple[Newer, ...]:
        """What is recorded of children, and newer of their parents than they read; see `sql/queries.sql`, stale."""
        assert environment == "prod"
        assert len(beyonds) == len(lives) == len(gates)
        if not self.obeys("a reader of older rows is stale"):
            return ()
        found: list[Newer] = []
        for number, (child_id, parent_id, low, high) in enumerate(gates):
            child, parent = self.versions[child_id], self.versions[parent_id]
            if child.facts:
                found += self._newer(number, child, parent, low, high)
                found += self._spoilt(number, child, parent)
        return tuple(found)

    def _newer(
        self, number: int, child: Table, parent: Table, low: timedelta | None, high: timedelta | None
    ) -> Iterator[Newer]:
        floor = child.floor()
        upto, facts = child.upto(), child.facts
        first, last = min(facts), max(facts)
        alone = self.obeys("rows of one commit do not make each other stale")
        for row, cells in parent.rows():
            if row.revision <= floor:
                continue
            begin = first if high is None else max(first, min(cells) - _cells(high))
            end = last if low is None else min(last, max(cells) - _cells(low))
            late = [c for c in range(begin, end + 1) if upto.get(c, _ENDLESS) < row.revision]
            if alone and child is parent:
                late = [c for c in late if (facts[c].read, facts[c].run) != (row.read, row.run)]
            for fact, piece in child.parts(late):
                read_at = fact.read_at
                yield Newer(
                    number, IntervalSet([interval_of(piece)]), interval_of(cells), at(row.committed), None if read_at is None else at(read_at)
                )  # fmt: skip

    def _spoilt(self, number: int, child: Table, parent: Table) -> Iterator[Newer]:
        """Who may have met rows of a whole table that nobody had judged."""
        if not self.obeys("a reader in flight over a failed refresh is stale"):
            return
        for since, (repaired, taken) in parent.dirty.items():
            until = taken if repaired is None else repaired
            for fact, cells in child.rows():
                if fact.revision > since and (until is None or fact.read < until):
                    read_at = None if fact.read_at is None else at(fact.read_at)
                    yield Newer(number, IntervalSet([interval_of(cells)]), ALL_TIME, None, read_at)

    def read_lately(self, version_id: int, instant: datetime) -> IntervalSet:
        since = int((instant - ORIGIN).total_seconds())
        rows = self.versions[version_id].rows()
        return IntervalSet(interval_of(c) for f, c in rows if f.read_at is not None and f.read_at > since)

    def settle(
        self, environment: str, settled: Mapping[str, IntervalSet], ids: Mapping[str, int], revision: int
    ) -> None:
        """Remember what was not stale at a revision."""
        assert environment == "prod"
        for name, time in settled.items():
            table = self.tables[name]
            if table.key == ids[name] and table.settled_revision <= revision:
                stale = IntervalSet.everything() - time
                bounded = stale.clip(table.node.life.start, table.node.life.end)
                table.settled_revision, table.unsettled = revision, cells_of(bounded)
                table._upto = None


def _cells(offset: timedelta) -> int:
    return int(offset.total_seconds()) // CELL_S
