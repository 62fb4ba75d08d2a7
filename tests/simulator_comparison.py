"""The simulator's ledger beside the oracle that the real one is compared with: whatever happens, they agree."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING

import ledger_people
import simulator_people as people
from ledger_oracle import Oracle, Refused
from ledger_paper import GRID, Asked, Version
from ledger_scene import CELLS
from meshgate.graph import Kind, MeshGraph, ModelNode
from meshgate.interval import IntervalUnit
from simulator_geometry import ORIGIN, at
from simulator_ledger import SimulatedLedger
from simulator_table import DOUBTS

if TYPE_CHECKING:
    from typing import Any

    from simulator_table import Run

TTL_S, GRACE_S = 300, 200
KINDS = (
    Kind.INCREMENTAL_BY_TIME_RANGE,
    Kind.FULL,
    Kind.INCREMENTAL_BY_UNIQUE_KEY,
    Kind.INCREMENTAL_UNMANAGED,
)


class Comparison:
    """The simulator's ledger and the oracle that the real one is compared with, told the same.

    Times are seconds; version 0 is kept by time, 1 is refreshed as a whole, 2 merges, 3 only grows.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a history, not a secret
        end = ORIGIN + timedelta(minutes=5 * CELLS)
        nodes = [
            ModelNode(name=name, project="p", version="1", kind=kind, unit=IntervalUnit.FIVE_MINUTE,
                      cron="*/5 * * * *", start=ORIGIN, end=end)
            for name, kind in zip("0123", KINDS, strict=True)
        ]  # fmt: skip
        self.ours = SimulatedLedger(MeshGraph({n.name: n for n in nodes}, []), grace_s=GRACE_S)
        self.theirs = Oracle(at(0), versions={key: Version(kind.value) for key, kind in enumerate(KINDS)})
        self.runs: dict[int, Run] = {}
        self.dead: set[int] = set()
        self.now = (CELLS + 1) * 3600  # the oracle's cells are hours, and over

    def step(self) -> None:
        """One more change, of both."""
        self.now += self.chance.choice([0, 1, 30, 200])
        self.theirs.now, self.ours.now = at(self.now), self.now
        for key, run in self.runs.items():
            if key not in self.dead and run.state == "running":
                self.theirs.renew(key)
        # Runs that have ended come back now and then, as late writers.
        living = [key for key in self.runs if self.theirs.holds(key)]
        known = living if living and self.chance.random() < 0.9 else sorted(self.runs)
        if len(living) < 2 and self.chance.random() < 0.5:
            self.acquire()
            return
        if self.chance.random() < 0.2:
            self.outside()
            return
        if not known:
            return
        key = self.chance.choice(known)
        run = self.runs[key]
        if self.claims(key, "begun", "lost"):
            choices = ["commit", "commit", "fail", "open", "begin"]
        else:
            choices = ["begin"] if self.claims(key, "open") else ["open"]
        what = (
            self.chance.choice(choices) if self.chance.random() < 0.9 else self.chance.choice(["die", "end"])
        )
        if what == "die" and run.state == "running" and key not in self.dead:
            self.dead.add(key)
            run.expires = self.now + TTL_S
        elif what == "end" and self.chance.random() < 0.5 and run.state == "running":
            self.ours.lose(run, gone=True, heard=True)
            self.ours.hear_of(run)
            for table in self.ours.tables.values():
                for claim in table.claims:
                    if claim.run == key and claim.state == "lost":
                        claim.until = min(claim.until, self.now)
            self.theirs.bury(key, engine_gone=True)
        elif what == "end":
            self.ours.finish(run)
            self.theirs.finish(key, "done")
        elif what in ("open", "begin"):
            if self.theirs.holds(key):
                self.reserve(key, run) if what == "open" else self.begin(key, run)
        else:
            self.write(what, key, run)

    def acquire(self) -> None:
        project, share = self.chance.choice("ab"), self.chance.random() < 0.5
        asked = Asked(
            project=project, ttl=timedelta(seconds=TTL_S), grace=timedelta(seconds=GRACE_S), share=share,
            engine_in_process=False, first=timedelta(minutes=1), longest=timedelta(hours=1),
        )  # fmt: skip
        answer, key, _ = self.theirs.acquire(asked)
        run = self.ours.acquire(project, share=share)
        assert (run is None) == (answer == "busy")
        if run is not None:
            assert run.run_id == key
            self.runs[key] = run

    def reserve(self, key: int, run: Run) -> None:
        version = self.chance.randrange(4)
        low = self.chance.randrange(CELLS)
        piece = frozenset(range(low, min(CELLS, low + self.chance.randint(1, 4))))
        said = [run_ids == {None} for run_ids, _ in self.theirs.open(key, version, [piece], whole=False)]
        assert self.ours.open(run, self.ours.tables[str(version)], [piece]) == said

    def claims(self, key: int, *states: str) -> list[Any]:
        """What a run holds, or has lost and may still write."""
        mine = [c for c in self.theirs.claims if c.run == key and c.state in states]
        return [c for c in mine if c.state != "lost" or c.begun]

    def part(self, cells: frozenset[int]) -> frozenset[int]:
        low, high = min(cells & GRID), max(cells & GRID)
        start = self.chance.randint(low, high)
        return frozenset(range(start, self.chance.randint(start, min(high, start + 3)) + 1))

    def begin(self, key: int, run: Run) -> None:
        claims = self.claims(key, "open")
        if not claims:
            return
        claim = self.chance.choice(claims)
        cells = self.part(claim.cells)
        needs = [(0, frozenset(range(min(cells) // 2)))] if claim.version else []
        said = self.theirs.begin(key, claim.version, cells, needs, [])
        ranges = [(self.ours.tables["0"], range(len(read))) for _, read in needs]
        refused = self.ours.begin(run, self.ours.tables[str(claim.version)], cells, ranges)
        assert bool(refused) == isinstance(said, set)
        if isinstance(said, set):
            assert refused == {(str(parent), reason, cell) for parent, reason, cell in said}

    def write(self, what: str, key: int, run: Run) -> None:
        states = ("begun",) if self.theirs.holds(key) else ("begun", "lost")
        claims = self.claims(key, *states)
        if not claims:
            return
        claim = self.chance.choice(claims)
        cells = claim.begun if claim.version or claim.state == "lost" else self.part(claim.begun)
        lookback = frozenset(range(max(0, min(cells) - 3), min(cells))) if not claim.version else frozenset()
        table = self.ours.tables[str(claim.version)]
        try:
            if what == "commit":
                said: int | None = self.theirs.commit(key, claim.version, cells, "passed", lookback)
            else:
                self.theirs.fail(key, claim.version, cells)
                said = 0
        except Refused:
            said = None
        if what == "commit":
            assert self.ours.commit(run, table, cells, lookback) == said
            if said is not None and self.chance.random() < 0.7:
                told = frozenset(table.facts) if table.refreshed else cells
                self.ours.mirror(run, table, told)
                self.theirs.mirrored(key, claim.version, told)
        else:
            assert self.ours.fail(run, table, cells) == (said == 0)

    def outside(self) -> None:
        """What people and plain SQLMesh do."""
        version = self.chance.randrange(4)
        table = self.ours.tables[str(version)]
        low = self.chance.randrange(CELLS)
        cells = frozenset(range(low, min(CELLS, low + self.chance.randint(1, 4))))
        what = self.chance.choice(
            ["hold", "release", "accept", "accept", "undo", "adopt", "reconcile", "reconcile"]
        )
        if what in ("hold", "release"):
            getattr(people, what)(self.ours, str(version), cells)
            getattr(ledger_people, what)(self.theirs, version, cells)
        elif what == "accept":
            lookback = frozenset(range(max(0, low - 2), low)) if not version else frozenset()
            try:
                said = ledger_people.accept(self.theirs, version, cells, lookback)
            except Refused:
                said = None
            holes = people.accept(self.ours, table, cells, lookback)
            assert (None if said is None else frozenset(c for piece in said for c in piece)) == holes
        elif what == "undo":
            ledger_people.undo_accept(self.theirs, version, cells)
            people.undo_accept(self.ours, table, cells)
        elif what == "adopt":
            for key, run in self.runs.items():
                if self.theirs.holds(key):
                    assert people.adopt(self.ours, run, table) == ledger_people.adopt(
                        self.theirs, key, version
                    )
                    return
        else:
            facts = frozenset(table.facts)
            recorded = (facts - cells) if self.chance.random() < 0.5 else (facts | cells)
            gated = self.chance.random() < 0.5
            theirs = self.theirs.reconcile(version, recorded, frozenset(), gated=gated, read_at=at(self.now))
            ours = people.reconcile(self.ours, table, set(recorded), gated=gated, read_at=self.now)
            assert ours == theirs

    def agree(self) -> None:
        """What both have written down is the same."""
        assert self.ours.revision() == self.theirs.revision
        for version, paper in self.theirs.versions.items():
            table = self.ours.tables[str(version)]
            facts = {
                c: (f.revision, f.read, f.run, f.verdict, f.mirrored is None) for c, f in paper.facts.items()
            }
            assert {
                c: (f.revision, f.read, f.run, f.verdict, f.mirrored is None) for c, f in table.facts.items()
            } == facts
            assert table.dirty == paper.dirty
            doubts = {kind: paper.doubt.get(kind, frozenset()) for kind in DOUBTS if paper.marks.get(kind)}
            assert not version or {k: table.doubt[k] for k in doubts} == doubts
            assert self.ours.held[str(version)] == paper.held
            marks = {
                (kind, -1 if version and kind in ("failed", "suspect") else c): (
                    r.revision,
                    r.attempts,
                    r.retry,
                )
                for kind, reasons in paper.marks.items()
                for c, r in reasons.items()
            }
            assert {
                (kind, c): (r.revision, r.attempts, None if r.retry_at is None else at(r.retry_at))
                for kind, reasons in table.marks.items()
                for c, r in reasons.items()
            } == marks
            live = {
                (c.run, frozenset() if version else c.cells, c.state)
                for c in self.theirs.claims
                if c.version == version
                and (c.lives or (c.state == "lost" and c.quarantine > self.theirs.now))
            }
            assert {
                (c.run, frozenset() if version else c.cells, c.state)
                for c in table.claims
                if c.state != "lost" or c.until > self.now
            } == live
