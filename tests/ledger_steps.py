"""The steps of a ledger's histories: each is asked of the ledger and of the oracle, and their answers compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

import ledger_people as people
from ledger_comparison import interval_of
from ledger_oracle import Oracle, Refused
from ledger_paper import GRID, Asked, Cells, Version, runs_of
from ledger_scene import Scene, cells, empty
from ledger_strategies import KINDS, stretches
from meshgate.errors import ClaimConflictError, LeaseLostError, LedgerError
from meshgate.ledger import BackOff, Busy, Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from meshgate.ledger import Ledger

EXCLUSIVE = 2
EXPECTED_ERRORS = {
    "lost": LeaseLostError, "no claim": LedgerError, "future": LedgerError, "busy": ClaimConflictError,
}  # fmt: skip


class LedgerSteps(RuleBasedStateMachine):
    """Two models by time, three that are one whole, in a ledger and on the oracle's paper."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        empty(ledger.database)
        self.scene = Scene(ledger)
        self.ledger = ledger
        self.oracle = Oracle(self.scene.now)
        self.made: list[int] = [0]
        for kind in KINDS:
            name = f"model_{len(self.oracle.versions)}"
            self.oracle.versions[self.scene.version(name, kind=kind)] = Version(kind)

    def both(self, theirs: Callable[[], Any], ours: Callable[[], Any]) -> tuple[Any, Any]:
        """Ask both; the same error counts as the same answer."""
        try:
            expected = ours()
        except Refused as refused:
            try:
                theirs()
            except LedgerError as error:
                assert type(error) is EXPECTED_ERRORS[str(refused)], error  # noqa: PT017
                return None, None
            raise AssertionError(f"the ledger did not refuse: {refused}") from None
        return theirs(), expected

    def some_run(self, data: st.DataObject, *, living: int = 4) -> int:
        """Any run; one that lives in about so many of five cases."""
        runs = list(self.oracle.runs)
        alive = [run for run in runs if self.oracle.holds(run)]
        dead = [run for run in runs if run not in alive]
        if alive and dead:
            runs = alive if data.draw(st.integers(0, 9), label="dead") < 2 * living + 1 else dead
        return data.draw(st.sampled_from(runs[-4:]), label="run")

    def some_claim(self, data: st.DataObject, *states: str) -> tuple[int, int, Cells]:
        """A run, a version and time that it claims in one of the states; sometimes anything at all."""
        state = data.draw(st.sampled_from(states), label="state")
        known = [c for c in self.oracle.claims if c.state == state and c.cells & GRID]
        known = known or [c for c in self.oracle.claims if c.state in states and c.cells & GRID]
        if not known or data.draw(st.integers(0, 9), label="senseless") == 9:
            return self.some_run(data), self.some_version(data), data.draw(stretches(), label="cells")
        claim = data.draw(st.sampled_from(known[-8:]), label="claim")
        within = (claim.begun or claim.cells) & GRID
        if within == GRID:
            return claim.run, claim.version, data.draw(stretches(within), label="cells")
        part = data.draw(st.sampled_from([within, None]), label="all of it")
        return claim.run, claim.version, part or data.draw(stretches(within), label="cells")

    def some_version(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.oracle.versions)), label="version")

    def _acquire(self, wish: Asked) -> None:
        answer, expected = self.both(
            lambda: self.ledger.acquire(
                wish.project,
                wish.environment,
                wish.purpose,
                {"engine_in_process": wish.engine_in_process},
                ttl=wish.ttl,
                grace=wish.grace,
                as_of=wish.as_of,
                share=wish.share,
                warehouse=wish.warehouse,
                back_off=BackOff(wish.first, wish.longest),
            ),
            lambda: self.oracle.acquire(wish),
        )
        if answer is not None:
            what = "busy" if isinstance(answer, Busy) else "lease"
            assert (what, answer.run_id, answer.expires_at) == expected

    def _end(self, run: int, how: str, *, writing: bool = False) -> None:
        if how.startswith("buried"):
            self.ledger.bury(run, engine_gone=how != "buried")
            self.oracle.bury(run, engine_gone=how != "buried")
        elif how == "broken":
            assert self.ledger.break_lease(run, "somebody") == self.oracle.break_lease(run)
        else:
            found = self.ledger.finish(run, how, {}, writing=writing)
            assert found == self.oracle.finish(run, how, writing=writing)

    def _pause(self, run: int, models: set[int]) -> None:
        answer, expected = self.both(
            lambda: self.ledger.pause(run, [f"model_{key - 1}" for key in models]),
            lambda: self.oracle.pause(run, models),
        )
        if answer is not None:
            found = [(key, int(model.removeprefix("model_")) + 1, cells(i)) for key, model, i in answer]
            assert sorted(found, key=str) == sorted(expected, key=str)

    def _open(self, run: int, version: int, asked: list[Cells]) -> None:
        # Of the second model every other run claims all: what others declare may differ for a while.
        whole = version == EXCLUSIVE and run % 2 == 0
        answers, expected = self.both(
            lambda: self.ledger.open_claims(run, version, [interval_of(p) for p in asked], whole=whole),
            lambda: self.oracle.open(run, version, asked, whole=whole),
        )
        for answer, (by, free_at) in zip(answers or (), expected or (), strict=True):
            assert answer.refused_by in by
            assert answer.free_at in free_at

    def _begin(
        self,
        run: int,
        version: int,
        piece: Cells,
        needs: list[tuple[int, Cells]],
        loaded: list[int],
        environment: str | None = None,
        limits: tuple[int | None, int | None] = (None, None),
    ) -> None:
        answer, expected = self.both(
            lambda: self.scene.begin(
                run,
                version,
                interval_of(piece),
                *((p, interval_of(read)) for p, read in needs),
                loaded=loaded,
                environment=environment,
                limits=Limits(*limits),
            ),
            lambda: self.oracle.begin(run, version, piece, needs, loaded, environment, limits),
        )
        if answer is None:
            return
        if isinstance(expected, int):
            assert answer.read_revision == expected
        elif isinstance(expected, dict):
            assert (answer.read_revision, answer.wait) == (None, expected)
        else:
            assert answer.read_revision is None
            assert {
                (r.version_id, r.reason, c) for r in answer.refused for c in cells(r.interval)
            } == expected

    def _commit(self, run: int, version: int, piece: Cells, verdict: str, lookback: Cells) -> None:
        honest = self.oracle.holds(run)
        revision, expected = self.both(
            lambda: self.ledger.commit(
                run,
                version,
                interval_of(piece),
                verdict=verdict,
                lookback=interval_of(lookback) if lookback else None,
            ),
            lambda: self.oracle.commit(run, version, piece, verdict, lookback),
        )
        assert revision == expected
        if revision is not None:
            assert honest
            if revision not in self.made:  # a commit that was said twice answers what it answered
                assert revision > max(self.made)
                self.made.append(revision)

    def _fail(self, run: int, version: int, piece: Cells, *, tried: bool = True) -> None:
        detail = {"error": "no"} | ({} if tried else {"tried": False})
        self.both(
            lambda: self.ledger.fail(run, version, interval_of(piece), detail),
            lambda: self.oracle.fail(run, version, piece, tried=tried),
        )

    def _give_up(self, run: int, version: int, piece: Cells) -> None:
        found = self.ledger.give_up(run, version, interval_of(piece))
        assert found == self.oracle.give_up(run, version, piece)

    def _ask(self, version: int, piece: Cells, kind: str) -> None:
        assert self.scene.mark(version, interval_of(piece), kind) == self.oracle.mark(version, piece, kind)

    def _hold(self, version: int, piece: Cells) -> None:
        self.ledger.hold(f"model_{version - 1}", interval_of(piece), reason="odd", by="ann")
        people.hold(self.oracle, version, piece)

    def _release(self, version: int, piece: Cells) -> None:
        self.ledger.release(f"model_{version - 1}", interval_of(piece), by="ann")
        people.release(self.oracle, version, piece)

    def _accept(self, version: int, piece: Cells, lookback: Cells) -> None:
        before = interval_of(lookback) if lookback else None
        found, expected = self.both(
            lambda: self.ledger.accept(version, interval_of(piece), lookback=before, reason="odd", by="ann"),
            lambda: people.accept(self.oracle, version, piece, lookback),
        )
        assert (None if found is None else [cells(i) for i in found]) == expected

    def _undo_accept(self, version: int, piece: Cells) -> None:
        found = self.ledger.undo_accept(version, interval_of(piece), by="ann")
        assert [cells(i) for i in found] == people.undo_accept(self.oracle, version, piece)

    def _adopt(self, run: int, version: int) -> None:
        found, expected = self.both(
            lambda: self.ledger.adopt_accepted(run, version), lambda: people.adopt(self.oracle, run, version)
        )
        assert frozenset(c for i in found or () for c in cells(i)) == (expected or frozenset())

    def _reconcile(
        self, version: int, state: Cells, trusted: Cells, *, gated: bool, read_at: datetime
    ) -> None:
        found = self.scene.reconcile(
            version, map(interval_of, runs_of(state)), trusted=map(interval_of, runs_of(trusted)), gated=gated,
            read_at=read_at,
        )  # fmt: skip
        assert found == self.oracle.reconcile(version, state, trusted, gated=gated, read_at=read_at)
