"""Any history of a ledger, told step by step to the real one and to a plain model of it; they never differ."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from ledger_comparison import compare, interval_of
from ledger_paper import GRID, WHOLE, Asked, Cells
from ledger_scene import TTL
from ledger_steps import LedgerSteps
from ledger_strategies import KINDS, LIMITS, asked, part_of, stretches, wishes
from strategies import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.ledger import Ledger


BY_TIME = (1, 2)


class LedgerMachine(LedgerSteps):
    """Two models by time, three that are one whole; two projects whose runs may claim any of them."""

    @initialize(ttl=st.sampled_from([TTL, 10 * TTL]))
    def two_runs(self, ttl: timedelta) -> None:
        self.scene.promote({f"model_{n}": "1" for n in range(len(KINDS))})
        self._acquire(asked(project="up", ttl=ttl, engine_in_process=True))
        self._acquire(asked(project="down", ttl=ttl))

    def claims_are(*states: str) -> Callable[[Any], Any]:
        return precondition(lambda self: any(c.state in states for c in self.oracle.claims))

    # runs

    @rule(wish=wishes(), as_of=st.sampled_from([None, None, None, -90, -1, 0, 1]))
    def acquire(self, wish: Asked, as_of: int | None) -> None:
        if as_of is not None:
            wish = replace(wish, as_of=self.oracle.now + timedelta(seconds=as_of))
        self._acquire(wish)

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        run = self.some_run(data, living=3)
        answer, expected = self.both(lambda: self.ledger.renew(run), lambda: self.oracle.renew(run))
        assert answer == expected

    @rule(
        data=st.data(),
        how=st.sampled_from(["done", "failed", "stopped", "buried", "buried with its engine", "broken"]),
        writing=st.booleans(),
    )
    def end(self, data: st.DataObject, how: str, writing: bool) -> None:
        self._end(self.some_run(data, living=0), how, writing=writing)

    @precondition(lambda self: any(not self.oracle.holds(run) for run in self.oracle.living()))
    @rule()
    def take_over(self) -> None:
        assert list(self.ledger.take_over()) == self.oracle.take_over()

    @precondition(lambda self: self.oracle.deploys())
    @rule(data=st.data(), models=st.sets(st.integers(1, len(KINDS)), min_size=1))
    def pause(self, data: st.DataObject, models: set[int]) -> None:
        runs = [*self.oracle.deploys()[-2:], *list(self.oracle.runs)[-1:]]
        self._pause(data.draw(st.sampled_from(runs), label="run"), models)

    @claims_are("open", "begun")
    @rule(data=st.data(), limits=st.sampled_from([None, None, (1, None), (None, 1)]))
    def somebody_is_in_the_way(
        self, data: st.DataObject, limits: tuple[int | None, int | None] | None
    ) -> None:
        """A deploy waits for what was begun, and the others for the deploy; or one batch at once is enough."""
        claims = [c for c in self.oracle.claims if c.lives and c.cells & GRID]
        if not claims:
            return
        waiting = [c for c in claims if c.state == "open" and self.oracle.holds(c.run)]
        claim = data.draw(st.sampled_from(waiting or claims), label="claim")
        if limits is None:
            self._acquire(asked(project="deployer", purpose="deploy", ttl=10 * TTL))
            for deploy in self.oracle.deploys()[-1:]:
                self._pause(deploy, {claim.version})
                end = data.draw(st.sampled_from([None, None, "failed", "broken", "expired"]), label="end")
                if end == "expired":
                    self.step_the_clock(11 * TTL.seconds)
                elif end:
                    self._end(deploy, end)
        else:
            self._acquire(asked(project="up", share=True, ttl=TTL))
            same = claim.version in BY_TIME and data.draw(st.booleans(), label="same")
            other = claim.version if same else self.some_version(data)
            free = sorted(GRID - claim.cells) or sorted(GRID)
            run, piece = max(self.oracle.runs), frozenset([data.draw(st.sampled_from(free), label="cell")])
            self._open(run, other, [piece])
            self._begin(run, other, piece, [], [])
        self._begin(claim.run, claim.version, part_of(data, claim), [], [], "prod", limits or (None, None))

    @precondition(lambda self: self.oracle.pauses())
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        version, cell = data.draw(st.sampled_from(self.oracle.pauses()), label="what")
        versions, piece = {version, 2}, frozenset([cell])
        assert self.ledger.retry(versions, interval_of(piece)) == self.oracle.retry(versions, piece)

    @rule(data=st.data(), times=st.integers(1, 3))
    def try_in_vain(self, data: st.DataObject, times: int) -> None:
        """The history of a poisoned interval: it fails, or kills whoever tries it, again and again."""
        version, piece = self.some_version(data), data.draw(stretches(), label="cells")
        wish = asked(
            project="up",
            ttl=TTL,
            engine_in_process=True,
            share=True,
            first=timedelta(seconds=data.draw(st.sampled_from([0, 20]))),
            longest=timedelta(seconds=data.draw(st.sampled_from([30, 3600]))),
        )
        for how in data.draw(
            st.lists(st.sampled_from(["failed", "buried with its engine"]), min_size=times, max_size=times)
        ):
            pinned = data.draw(st.sampled_from([None, None, -90]), label="as of")
            as_of = self.oracle.now + timedelta(seconds=pinned) if pinned else None
            self._acquire(replace(wish, as_of=as_of))
            run = max(self.oracle.runs)
            self._open(run, version, [piece])
            self._begin(run, version, piece, [], [])
            if how == "failed":
                self._fail(run, version, piece)
            self._end(run, how)

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
            version, asked = claim.version, [*asked[1:], frozenset([min(claim.cells & GRID or {0})])]
        self._open(run, version, asked)

    @claims_are("open", "begun")
    @rule(
        data=st.data(),
        parents=st.sampled_from([[], [], [(1, "same")], [(1, "wider"), (3, "same")], [(4, "same")]]),
        loaded=st.sampled_from([[], [], [], [1], [3]]),
        limits=LIMITS,
        environment=st.sampled_from(["prod", "prod", None]),
    )
    def begin(
        self,
        data: st.DataObject,
        parents: list[tuple[int, str]],
        loaded: list[int],
        limits: tuple[int | None, int | None],
        environment: str | None,
    ) -> None:
        run, version, piece = self.some_claim(data, "open", "open", "begun")
        wider = frozenset(range(max(min(piece) - 1, 0), max(piece) + 1))
        needs = [(p, piece if how == "same" else wider) for p, how in parents if p != version]
        self._begin(run, version, piece, needs, [p for p in loaded if p != version], environment, limits)

    @claims_are("begun", "lost")
    @rule(
        data=st.data(),
        verdict=st.sampled_from(["passed", "passed", "warned", "accepted"]),
        looks_back=st.integers(0, 3),
        times=st.integers(1, 2),
    )
    def commit(self, data: st.DataObject, verdict: str, looks_back: int, times: int) -> None:
        run, version, piece = self.some_claim(data, "begun", "begun", "begun", "lost", "committed")
        lookback = frozenset(range(max(min(piece) - looks_back, 0), min(piece)))
        for _ in range(times):
            self._commit(run, version, piece, verdict, lookback)

    @claims_are("begun", "lost")
    @rule(data=st.data(), how=st.sampled_from(["failed", "not tried", "given up"]))
    def fail(self, data: st.DataObject, how: str) -> None:
        run, version, piece = self.some_claim(data, "begun", "begun", "begun", "lost")
        if how == "given up":
            self._give_up(run, version, piece)
        else:
            self._fail(run, version, piece, tried=how == "failed")

    @claims_are("open")
    @rule(data=st.data(), how=st.sampled_from(["range", "version", "run"]))
    def abandon(self, data: st.DataObject, how: str) -> None:
        run, version, piece = self.some_claim(data, "open")
        which = None if how == "run" else version
        part = piece if how == "range" else None
        answer = self.ledger.abandon(run, which, interval_of(part) if part else None)
        assert answer == self.oracle.abandon(run, which, part)

    @rule(data=st.data(), steps=st.integers(1, 4), limits=LIMITS)
    def go_on(self, data: st.DataObject, steps: int, limits: tuple[int | None, int | None]) -> None:
        """What an undisturbed run does next, so that histories get far: open, begin, commit."""
        alive = [run for run in self.oracle.runs if self.oracle.holds(run)]
        if not alive:
            return
        run = data.draw(st.sampled_from(alive), label="run")
        for _ in range(steps):
            mine = [c for c in self.oracle.claims if c.run == run and c.lives and c.cells & GRID]
            if not mine:
                self.open_claims(data, [data.draw(stretches(), label="cells")], run)
                continue
            claim = data.draw(st.sampled_from(mine), label="claim")
            piece = part_of(data, claim)
            if claim.state == "open":
                self._begin(run, claim.version, piece, [], [], "prod", limits)
            else:
                before = frozenset(range(max(min(piece) - 2, 0), min(piece)))
                self._commit(run, claim.version, piece, "passed", before)

    @claims_are("begun")
    @rule(data=st.data(), how=st.sampled_from(["asked", "foreign", "lost and found"]))
    def something_happens_to_what_is_being_written(self, data: st.DataObject, how: str) -> None:
        """The histories in which somebody interferes between begin and commit."""
        begun = [c for c in self.oracle.claims if c.state == "begun"]
        # Somebody else can add only what is not recorded yet.
        fresh = [c for c in begun if c.begun - set(self.oracle.versions[c.version].facts)]
        claim = data.draw(st.sampled_from((how == "foreign" and fresh) or begun), label="claim")
        piece = part_of(data, claim)
        if how == "asked":
            self._ask(claim.version, data.draw(stretches(piece), label="asked"), "requested")
        elif how == "foreign":
            facts = frozenset(self.oracle.versions[claim.version].facts)
            self._reconcile(claim.version, facts | piece, frozenset(), gated=False, read_at=self.oracle.now)
        else:
            self.step_the_clock(61)
        self._commit(claim.run, claim.version, piece, "passed", frozenset())

    @claims_are("begun")
    @rule(
        data=st.data(),
        how=st.sampled_from(["buried", "buried with its engine", "broken", "failed", "expired"]),
    )
    def somebody_wants_what_a_dead_run_was_writing(self, data: st.DataObject, how: str) -> None:
        """The histories of a takeover: the holder ends, and another run asks for what it had begun."""
        claim = data.draw(
            st.sampled_from([c for c in self.oracle.claims if c.state == "begun"]), label="claim"
        )
        if how == "expired":
            self.step_the_clock(61)
        else:
            self._end(claim.run, how)
        self._acquire(asked(project=self.oracle.runs[claim.run].project, ttl=2 * TTL))
        for run in [run for run in self.oracle.runs if self.oracle.holds(run)]:
            self._open(run, claim.version, [claim.cells & GRID])

    @rule(
        data=st.data(),
        steps=st.lists(st.sampled_from(["begin", "begin", "ask", "commit", "fail"]), min_size=2, max_size=5),
    )
    def work_on_a_whole_table(self, data: st.DataObject, steps: list[str]) -> None:
        """The histories of a batch that is begun again, or ends in parts."""
        alive = [run for run in self.oracle.runs if self.oracle.holds(run)]
        if not alive:
            return
        version, run = (
            data.draw(st.sampled_from([3, 4, 4]), label="version"),
            data.draw(st.sampled_from(alive)),
        )
        self._open(run, version, [GRID])
        for step in steps:
            begun = [
                c.begun for c in self.oracle.claims if (c.run, c.version, c.state) == (run, version, "begun")
            ]
            fits = begun and step != "begin" and data.draw(st.integers(0, 2), label="fits")
            piece = data.draw(stretches(begun[0] & GRID if fits else GRID), label="cells")
            if step == "begin":
                self._begin(run, version, piece, [], [])
            elif step == "ask":
                self._ask(version, piece, "requested")
            elif step == "commit":
                self._commit(run, version, piece, "passed", frozenset())
            else:
                self._fail(run, version, piece)

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
        for claim in [c for c in self.oracle.claims if c.run == run and c.state == "open" and c.cells & GRID]:
            piece = part_of(data, claim)
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
            version, piece = claim.version, claim.begun & GRID
        if everything and self.oracle.versions[version].as_of:
            piece = WHOLE
        self._ask(version, piece, kind)

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

    # after every step

    @invariant()
    def they_agree(self) -> None:
        compare(self.ledger, self.oracle)


def test_any_history_leaves_the_ledger_as_the_oracle_says(ledger: Ledger) -> None:
    """Whatever is asked of the ledger, in whatever order, its answers and its rows are the oracle's."""
    profile = settings(examples(80), stateful_step_count=60, suppress_health_check=list(HealthCheck))
    if os.environ.get(
        "MESHGATE_HURRY"
    ):  # `mutations.py` wants to know that it fails, not the shortest way to it
        profile = settings(profile, phases=[Phase.generate], derandomize=True, database=None)
    run_state_machine_as_test(lambda: LedgerMachine(ledger), settings=profile)
