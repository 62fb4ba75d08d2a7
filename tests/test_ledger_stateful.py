"""Any history of a ledger, told step by step to the real one and to a plain model of it; they never differ."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ledger_oracle import GRID, WHOLE, Cells, Oracle, Refused, Version, runs_of
from ledger_scene import CELLS, TTL, Scene, at, cells, empty, span
from meshgate.errors import LeaseLostError, LedgerError
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval
from meshgate.ledger import WHOLE as ALL_TIME
from meshgate.ledger import Busy
from strategies import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.ledger import Ledger

LOOK = """
SELECT (SELECT revision FROM meshgate.ledger) AS revision,
  (SELECT jsonb_object_agg(run_id, jsonb_build_array(state, extract(epoch FROM expires_at)))
   FROM meshgate.run) AS runs,
  (SELECT jsonb_agg(jsonb_build_array(run_id, version_id, lower(span), upper(span), state, opened_revision,
                                      read_revision, quarantined_until))
   FROM meshgate.claim) AS claims,
  (SELECT jsonb_agg(jsonb_build_array(version_id, lower(span), upper(span), revision, read_revision, run_id, verdict,
                                      committed_at, mirrored_at))
   FROM meshgate.coverage) AS coverage,
  (SELECT jsonb_agg(jsonb_build_array(version_id, kind, lower(span), upper(span), revision, attempts))
   FROM meshgate.mark) AS marks,
  (SELECT jsonb_agg(jsonb_build_array(version_id, from_revision, to_revision)) FROM meshgate.dirty_span) AS dirty,
  (SELECT count(*) FROM meshgate.claim a JOIN meshgate.claim b ON a.claim_id < b.claim_id
     AND a.version_id = b.version_id AND a.span && b.span
     AND a.state IN ('open', 'begun') AND b.state IN ('open', 'begun')) AS overlapping,
  (SELECT count(*) FROM meshgate.claim c WHERE c.state = 'begun' AND EXISTS (
     SELECT FROM unnest(%(hours)s::tstzrange[]) AS h WHERE h <@ c.span
       AND NOT EXISTS (SELECT FROM meshgate.unclean(c.version_id, h)))) AS begun_and_clean
"""
KINDS = (
    *("incremental_by_time_range", "incremental_by_time_range", "full"),
    *("incremental_by_unique_key", "incremental_unmanaged"),
)
HOURS = [f"[{at(c).isoformat()},{at(c + 1).isoformat()})" for c in range(CELLS)]

EXPECTED_ERRORS = {"lost": LeaseLostError, "no claim": LedgerError, "future": LedgerError}


def instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def time_of(lower: str | None, upper: str | None) -> Cells:
    return cells(Interval(instant(lower) or MIN_INSTANT, instant(upper) or MAX_INSTANT))


def interval_of(piece: Cells) -> Interval:
    return ALL_TIME if piece == WHOLE else span(min(piece), max(piece) + 1)


@st.composite
def stretches(draw: st.DrawFn, within: Cells = GRID) -> Cells:
    """Some neighbouring cells; often one or two."""
    low, high = min(within), max(within)
    start = draw(st.integers(low, high))
    return frozenset(range(start, draw(st.integers(start, min(high, start + 3))) + 1))


class LedgerMachine(RuleBasedStateMachine):
    """Two models by time, three that are one whole; two projects whose runs may claim any of them."""

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
        known = [c for c in self.oracle.claims if c.state == state]
        known = known or [c for c in self.oracle.claims if c.state in states]
        if not known or data.draw(st.integers(0, 9), label="senseless") == 9:
            return self.some_run(data), self.some_version(data), data.draw(stretches(), label="cells")
        claim = data.draw(st.sampled_from(known[-8:]), label="claim")
        within = claim.cells & GRID
        if within == GRID:
            return claim.run, claim.version, data.draw(stretches(within), label="cells")
        part = data.draw(st.sampled_from([within, None]), label="all of it")
        return claim.run, claim.version, part or data.draw(stretches(within), label="cells")

    def some_version(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.oracle.versions)), label="version")

    @initialize(ttl=st.sampled_from([TTL, 10 * TTL]))
    def two_runs(self, ttl: timedelta) -> None:
        self.acquire("up", ttl, None, engine_in_process=True)
        self.acquire("down", ttl, None, engine_in_process=False)

    def claims_are(*states: str) -> Callable[[Any], Any]:
        return precondition(lambda self: any(c.state in states for c in self.oracle.claims))

    # runs

    @rule(
        project=st.sampled_from(["up", "down"]),
        ttl=st.sampled_from([TTL, 10 * TTL]),
        as_of=st.sampled_from([None, None, -1, 0, 1]),
        engine_in_process=st.booleans(),
    )
    def acquire(self, project: str, ttl: timedelta, as_of: int | None, engine_in_process: bool) -> None:
        pinned = None if as_of is None else self.oracle.now + timedelta(seconds=as_of)
        answer, expected = self.both(
            lambda: self.ledger.acquire(
                project,
                "prod",
                "run",
                {"engine_in_process": engine_in_process},
                ttl=ttl,
                grace=ttl,
                as_of=pinned,
            ),
            lambda: self.oracle.acquire(project, ttl, ttl, pinned, engine_in_process=engine_in_process),
        )
        if answer is not None:
            what = "busy" if isinstance(answer, Busy) else "lease"
            assert (what, answer.run_id, answer.expires_at) == expected

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        run = self.some_run(data, living=3)
        answer, expected = self.both(lambda: self.ledger.renew(run), lambda: self.oracle.renew(run))
        assert answer == expected

    @rule(
        data=st.data(),
        how=st.sampled_from(["done", "failed", "nothing_to_do", "buried", "buried with its engine"]),
    )
    def end(self, data: st.DataObject, how: str) -> None:
        self._end(self.some_run(data, living=0), how)

    def _end(self, run: int, how: str) -> None:
        if how.startswith("buried"):
            self.ledger.bury(run, engine_gone=how != "buried")
            self.oracle.bury(run, engine_gone=how != "buried")
        else:
            assert self.ledger.finish(run, how, {}) == self.oracle.finish(run, how)

    @rule(seconds=st.sampled_from([1, 1, 1, 5, 20, 29, 29, 61, 95, 700, -15]))
    def step_the_clock(self, seconds: int) -> None:
        self.scene.pass_time(seconds)
        self.oracle.now = self.scene.now

    # claims

    @rule(data=st.data(), asked=st.lists(stretches(), min_size=1, max_size=3))
    def open_claims(self, data: st.DataObject, asked: list[Cells], run: int | None = None) -> None:
        run, version = run or self.some_run(data), self.some_version(data)
        waiting = [c for c in self.oracle.claims if c.quarantine and c.quarantine > self.oracle.now]
        taken = waiting or [c for c in self.oracle.claims if c.lives or c.state == "lost"]
        if taken and data.draw(st.booleans(), label="what somebody has or had"):
            claim = data.draw(st.sampled_from(taken[-4:]), label="whose")
            version, asked = claim.version, [*asked[1:], frozenset([min(claim.cells & GRID)])]
        self._open(run, version, asked)

    def _open(self, run: int, version: int, asked: list[Cells]) -> None:
        answers, expected = self.both(
            lambda: self.ledger.open_claims(run, version, [interval_of(piece) for piece in asked]),
            lambda: self.oracle.open(run, version, asked),
        )
        for answer, (by, free_at) in zip(answers or (), expected or (), strict=True):
            assert answer.refused_by in by
            assert answer.free_at in free_at

    @claims_are("open", "begun")
    @rule(
        data=st.data(),
        parents=st.sampled_from([[], [], [(1, "same")], [(1, "wider"), (3, "same")], [(4, "same")]]),
        loaded=st.sampled_from([[], [], [], [1], [3]]),
    )
    def begin(self, data: st.DataObject, parents: list[tuple[int, str]], loaded: list[int]) -> None:
        run, version, piece = self.some_claim(data, "open", "open", "begun")
        wider = frozenset(range(max(min(piece) - 1, 0), max(piece) + 1))
        needs = [(p, piece if how == "same" else wider) for p, how in parents if p != version]
        self._begin(run, version, piece, needs, [p for p in loaded if p != version])

    def _begin(
        self, run: int, version: int, piece: Cells, needs: list[tuple[int, Cells]], loaded: list[int]
    ) -> None:
        answer, expected = self.both(
            lambda: self.scene.begin(
                run,
                version,
                interval_of(piece),
                *((p, interval_of(read)) for p, read in needs),
                loaded=loaded,
            ),
            lambda: self.oracle.begin(run, version, piece, needs, loaded),
        )
        if answer is None:
            return
        if isinstance(expected, int):
            assert answer.read_revision == expected
        else:
            assert answer.read_revision is None
            assert {
                (r.version_id, r.reason, c) for r in answer.refused for c in cells(r.interval)
            } == expected

    @claims_are("begun", "lost")
    @rule(
        data=st.data(),
        verdict=st.sampled_from(["passed", "passed", "warned", "accepted"]),
        looks_back=st.integers(0, 3),
    )
    def commit(self, data: st.DataObject, verdict: str, looks_back: int) -> None:
        run, version, piece = self.some_claim(data, "begun", "begun", "begun", "lost", "committed")
        lookback = frozenset(range(max(min(piece) - looks_back, 0), min(piece)))
        self._commit(run, version, piece, verdict, lookback)

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

    @claims_are("begun", "lost")
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        run, version, piece = self.some_claim(data, "begun", "begun", "begun", "lost")
        self.both(
            lambda: self.ledger.fail(run, version, interval_of(piece), {"error": "no"}),
            lambda: self.oracle.fail(run, version, piece),
        )

    @claims_are("open")
    @rule(data=st.data(), how=st.sampled_from(["range", "version", "run"]))
    def abandon(self, data: st.DataObject, how: str) -> None:
        run, version, piece = self.some_claim(data, "open")
        which = None if how == "run" else version
        part = piece if how == "range" else None
        answer = self.ledger.abandon(run, which, interval_of(part) if part else None)
        assert answer == self.oracle.abandon(run, which, part)

    @rule(data=st.data(), steps=st.integers(1, 4))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        """What an undisturbed run does next, so that histories get far: open, begin, commit."""
        alive = [run for run in self.oracle.runs if self.oracle.holds(run)]
        if not alive:
            return
        run = data.draw(st.sampled_from(alive), label="run")
        for _ in range(steps):
            mine = [c for c in self.oracle.claims if c.run == run and c.lives]
            if not mine:
                self.open_claims(data, [data.draw(stretches(), label="cells")], run)
                continue
            claim = data.draw(st.sampled_from(mine), label="claim")
            piece = claim.cells if claim.cells != WHOLE else data.draw(stretches(), label="cells")
            if claim.state == "open":
                self._begin(run, claim.version, piece, [], [])
            else:
                before = frozenset(range(max(min(piece) - 2, 0), min(piece)))
                self._commit(run, claim.version, piece, "passed", before)

    @claims_are("begun")
    @rule(data=st.data(), how=st.sampled_from(["asked", "foreign", "lost and found"]))
    def something_happens_to_what_is_being_written(self, data: st.DataObject, how: str) -> None:
        """The histories in which somebody interferes between begin and commit."""
        claim = data.draw(
            st.sampled_from([c for c in self.oracle.claims if c.state == "begun"]), label="claim"
        )
        piece = claim.cells if claim.cells != WHOLE else data.draw(stretches(), label="cells")
        if how == "asked":
            self._ask(claim.version, data.draw(stretches(piece), label="asked"), "requested")
        elif how == "foreign":
            facts = frozenset(self.oracle.versions[claim.version].facts)
            self._reconcile(claim.version, facts | piece, frozenset(), gated=False, read_at=self.oracle.now)
        else:
            self.step_the_clock(61)
        self._commit(claim.run, claim.version, piece, "passed", frozenset())

    @claims_are("begun")
    @rule(data=st.data(), how=st.sampled_from(["buried", "buried with its engine", "failed", "expired"]))
    def somebody_wants_what_a_dead_run_was_writing(self, data: st.DataObject, how: str) -> None:
        """The histories of a takeover: the holder ends, and another run asks for what it had begun."""
        claim = data.draw(
            st.sampled_from([c for c in self.oracle.claims if c.state == "begun"]), label="claim"
        )
        if how == "expired":
            self.step_the_clock(61)
        else:
            self._end(claim.run, how)
        self.acquire(self.oracle.runs[claim.run].project, 2 * TTL, None, engine_in_process=False)
        for run in [run for run in self.oracle.runs if self.oracle.holds(run)]:
            self._open(run, claim.version, [claim.cells & GRID])

    @rule(data=st.data())
    def redo(self, data: st.DataObject) -> None:
        """Somebody asks for recorded time again, and a run that lives does something to that table."""
        alive = [run for run in self.oracle.runs if self.oracle.holds(run)]
        recorded = [v for v, table in self.oracle.versions.items() if table.facts]
        if not alive or not recorded:
            return
        version, run = data.draw(st.sampled_from(recorded)), data.draw(st.sampled_from(alive))
        asked = data.draw(st.sampled_from(sorted(self.oracle.versions[version].facts)), label="asked")
        self._ask(version, frozenset([asked]), "requested")
        self._open(run, version, [data.draw(stretches(), label="cells")])
        for claim in [c for c in self.oracle.claims if c.run == run and c.state == "open"]:
            piece = claim.cells if claim.cells != WHOLE else data.draw(stretches(), label="cells")
            self._begin(run, claim.version, piece, [], [])
            self._commit(run, claim.version, piece, "passed", frozenset())

    # what is outside

    @precondition(lambda self: any(table.facts for table in self.oracle.versions.values()))
    @rule(data=st.data())
    def mirrored(self, data: st.DataObject) -> None:
        run, version, piece = self.some_claim(data, "committed", "lost", "open")
        self.ledger.note_mirrored(run, version, interval_of(piece))
        self.oracle.mirrored(run, version, piece)

    @rule(data=st.data(), kind=st.sampled_from(["requested", "removed"]), everything=st.booleans())
    def ask_again(self, data: st.DataObject, kind: str, everything: bool) -> None:
        version, piece = self.some_version(data), data.draw(stretches(), label="cells")
        begun = [c for c in self.oracle.claims if c.state == "begun"]
        if begun and data.draw(st.booleans(), label="what is being worked on"):
            claim = data.draw(st.sampled_from(begun), label="claim")
            version, piece = claim.version, claim.cells & GRID
        if everything and self.oracle.versions[version].as_of:
            piece = WHOLE
        self._ask(version, piece, kind)

    def _ask(self, version: int, piece: Cells, kind: str) -> None:
        assert self.scene.mark(version, interval_of(piece), kind) == self.oracle.mark(version, piece, kind)

    @rule(data=st.data(), gated=st.booleans(), seconds=st.sampled_from([0, 0, 30]))
    def reconcile(self, data: st.DataObject, gated: bool, seconds: int) -> None:
        version = self.some_version(data)
        known = frozenset(self.oracle.versions[version].facts)
        added = data.draw(st.frozensets(st.sampled_from(sorted(GRID)), max_size=2), label="added")
        removed = data.draw(
            st.frozensets(st.sampled_from(sorted(known or GRID)), max_size=2), label="removed"
        )
        state = known - removed | added
        trusted = data.draw(st.sampled_from([frozenset(), state - known]), label="trusted")
        self._reconcile(
            version, state, trusted, gated=gated, read_at=self.oracle.now - timedelta(seconds=seconds)
        )

    def _reconcile(
        self, version: int, state: Cells, trusted: Cells, *, gated: bool, read_at: datetime
    ) -> None:
        found = self.scene.reconcile(
            version, map(interval_of, runs_of(state)), trusted=map(interval_of, runs_of(trusted)), gated=gated,
            read_at=read_at,
        )  # fmt: skip
        assert found == self.oracle.reconcile(version, state, trusted, gated=gated, read_at=read_at)

    # after every step

    @invariant()
    def they_agree(self) -> None:
        row = self.ledger.database.execute(LOOK, {"hours": HOURS})[0]
        oracle = self.oracle
        assert row["revision"] == oracle.revision
        assert {int(k): (s, float(e)) for k, (s, e) in (row["runs"] or {}).items()} == {
            k: (run.state, run.expires.timestamp()) for k, run in oracle.runs.items()
        }
        assert sorted(
            (
                (r, v, sorted(time_of(lo, up)), s, o, rr, instant(q))
                for r, v, lo, up, s, o, rr, q in row["claims"] or ()
            ),
            key=str,
        ) == sorted(
            (
                (c.run, c.version, sorted(c.cells), c.state, c.opened, c.read, c.quarantine)
                for c in oracle.claims
            ),
            key=str,
        )
        facts: dict[tuple[int, int], Any] = {}
        for v, lower, upper, made, read, run, verdict, committed, mirrored in row["coverage"] or ():
            for cell in time_of(lower, upper):
                assert (v, cell) not in facts
                facts[v, cell] = (made, read, run, verdict, instant(committed), instant(mirrored))
        assert facts == {
            (v, c): tuple(f) for v, table in oracle.versions.items() for c, f in table.facts.items()
        }
        marks: dict[tuple[int, str, int], tuple[int, int]] = {}
        for v, kind, lower, upper, made, attempts in row["marks"] or ():
            for cell in time_of(lower, upper):
                assert (v, kind, cell) not in marks
                marks[v, kind, cell] = (made, attempts)
        assert marks == {
            (v, kind, c): tuple(reason)
            for v, table in oracle.versions.items()
            for kind, known in table.marks.items()
            for c, reason in known.items()
        }
        assert {(v, since): until for v, since, until in row["dirty"] or ()} == {
            (v, since): until for v, table in oracle.versions.items() for since, until in table.dirty.items()
        }
        assert row["overlapping"] == 0, "two live runs hold the same time"
        assert row["begun_and_clean"] == 0, "what is being written may be read"


def test_any_history_leaves_the_ledger_as_the_oracle_says(ledger: Ledger) -> None:
    """Whatever is asked of the ledger, in whatever order, its answers and its rows are the oracle's."""
    profile = settings(examples(80), stateful_step_count=60, suppress_health_check=list(HealthCheck))
    if os.environ.get(
        "MESHGATE_HURRY"
    ):  # `mutations.py` wants to know that it fails, not the shortest way to it
        profile = settings(profile, phases=[Phase.generate], derandomize=True, database=None)
    run_state_machine_as_test(lambda: LedgerMachine(ledger), settings=profile)
