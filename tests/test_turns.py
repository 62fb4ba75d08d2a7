"""Who goes first, where a redo of good time and a reader that has waited long want the same range."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from meshgate.coordinator import turns
from meshgate.coordinator.plan import ModelPlan, make_plan
from meshgate.graph import Edge, Kind, MeshGraph, ModelNode
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet, IntervalUnit
from meshgate.ledger import LiveClaim, Mark, Stale, VersionState
from simulator import Simulation
from simulator_geometry import ORIGIN
from simulator_scenarios import CHILD, LATE_ROWS, LONG_S, scenario

HOUR = timedelta(hours=1)
PARENT, READER, OTHER = "parent", "reader", "other"


def at(hours: float) -> timedelta:
    return ORIGIN + hours * HOUR


def time(start: float, end: float) -> IntervalSet:
    return IntervalSet.of(at(start), at(end))


def node(name: str, project: str, **fields) -> ModelNode:
    fields = {"kind": Kind.INCREMENTAL_BY_TIME_RANGE, "unit": IntervalUnit.HOUR, "cron": "@hourly"} | fields
    return ModelNode(name=name, project=project, version="1", start=ORIGIN, **fields)


FIVE = {"unit": IntervalUnit.FIVE_MINUTE, "cron": "*/5 * * * *"}


def planned(
    now: float, *, patience: timedelta | None = None, same: bool = False, **states: VersionState
) -> ModelPlan:
    """The plan of a parent with a lookback of 24 five-minute units, of which one unit is due."""
    reader = node(READER, "up" if same else "down")
    nodes = [node(PARENT, "up", lookback=24, **FIVE), node(OTHER, "else", **FIVE), reader]
    graph = MeshGraph({n.name: n for n in nodes}, [Edge(READER, PARENT), Edge(READER, OTHER)])
    known = {PARENT: VersionState(time(0, now - 1 / 12)), OTHER: VersionState(time(0, now))} | states
    ids = {name: key for key, name in enumerate(known)}
    plan = make_plan(
        graph, ids, {ids[name]: state for name, state in known.items()}, {"up"},
        environment="prod", now=at(now), patience=lambda _: patience,
    )  # fmt: skip
    return next(m for m in plan.models if m.name == PARENT)


def claim(state: str, start: float, end: float) -> LiveClaim:
    return LiveClaim(2, Interval(at(start), at(end)), state, 7, "", {}, at(99))


def mark(kind: str, start: float, end: float, retry: float | None = None) -> Mark:
    retry_at = None if retry is None else at(retry)
    return Mark(0, Interval(at(start), at(end)), kind, 1, None, 1, {}, at(8.5), retry_at)


LATE = VersionState(time(0, 7))
"""A reader whose hour [7, 8) waits: at 9:30 by default it is patient, from 10:00 to 12:00 it is its turn."""


def test_a_redo_stands_back_for_a_reader_that_has_lost_patience() -> None:
    """What the waiting hour reads is left for later, the rest of the lookback and the fresh unit are not."""
    half = timedelta(minutes=30)
    found = planned(9, patience=half, reader=LATE)
    assert found.fresh == time(9 - 1 / 12, 9)
    assert found.lookback == time(9 - 25 / 12, 7) | time(8, 9 - 1 / 12)
    assert {b.interval for b in found.deferred} == set(time(7, 8))
    assert READER in found.deferred[0].detail["cause"]


@pytest.mark.parametrize(
    ("now", "patience", "stands_back"),
    [
        (8.25, 0.5, False),
        (8.5, 0.5, True),
        (9.25, 0.5, True),
        (9.5, 0.5, False),
        (9.75, 2, False),
        (10, 0, False),
    ],
)
def test_a_turn_begins_with_the_end_of_patience_and_ends(
    now: float, patience: float, *, stands_back: bool
) -> None:
    """It lasts as long as the patience, and at least one period of the reader."""
    assert bool(planned(now, patience=patience * HOUR, reader=LATE).deferred) == stands_back


def test_who_is_patient_for_ever_never_goes_first() -> None:
    """A patience beyond the calendar is none that ends."""
    assert not planned(9, patience=timedelta.max, reader=LATE).deferred


@pytest.mark.parametrize(
    "reader",
    [
        VersionState(time(0, 8)),
        evolve(LATE, claims=(claim("begun", 7, 8),)),
        evolve(LATE, claims=(claim("lost", 7, 8),)),
        evolve(LATE, marks=(mark("failed", 7, 8, retry=10),)),
    ],
    ids=["done", "begun", "quarantined", "left alone"],
)
def test_nobody_stands_back_for_what_cannot_begin_now(reader: VersionState) -> None:
    """What is recorded, under way, waited out or backed off does not hold up a redo."""
    assert not planned(8.75, patience=HOUR / 2, reader=reader).deferred


def test_nobody_stands_back_for_who_waits_for_something_else() -> None:
    """A reader that lacks another parent would not begin anyway."""
    assert not planned(8.75, patience=HOUR / 2, reader=LATE, other=VersionState(time(0, 7.5))).deferred


def test_a_redo_of_another_run_does_not_count_as_something_else() -> None:
    """Where one redo after the other is begun, each next one stands back nevertheless."""
    parent = VersionState(time(0, 8.75 - 1 / 12), claims=(claim("begun", 7, 7.5),))
    found = planned(8.75, patience=HOUR / 2, reader=LATE, parent=parent)
    assert {b.interval for b in found.deferred} == set(time(7.5, 8))


def test_a_reader_of_the_same_project_counts_where_another_run_has_reserved_it() -> None:
    """A run evaluates its own readers after the redo; those of a run beside it would be refused."""
    reserved = evolve(LATE, claims=(claim("open", 7, 8),))
    assert not planned(8.75, patience=HOUR / 2, same=True, reader=LATE).deferred
    assert planned(8.75, patience=HOUR / 2, same=True, reader=reserved).deferred


@pytest.mark.parametrize("kind", ["failed", "suspect", "removed"])
def test_what_is_not_clean_never_stands_back(kind: str) -> None:
    """Nobody could read it as it is."""
    parent = VersionState(time(0, 8.75 - 1 / 12), marks=(mark(kind, 7, 7.5),))
    found = planned(8.75, patience=HOUR / 2, reader=LATE, parent=parent)
    assert time(7, 7.5) <= found.redo
    assert not found.deferred


def test_what_somebody_asked_for_stands_back_too() -> None:
    """A request for clean time is a redo like a lookback."""
    parent = VersionState(time(0, 8.75 - 1 / 12), marks=(mark("requested", 7, 8),))
    found = planned(8.75, patience=HOUR / 2, reader=LATE, parent=parent)
    assert not found.redo & time(7, 8)
    assert time(7, 8) <= IntervalSet(b.interval for b in found.deferred)


def test_what_has_waited_for_a_turn_itself_goes() -> None:
    """Else two projects of one rhythm would let the other go first for ever.

    Fails without the line in `turns.stand_back` that takes away what has waited.
    """
    for made, waits in ((8.5, True), (7.0, False)):
        asked = evolve(mark("requested", 7, 8), made_at=at(made))
        parent = VersionState(time(0, 8.75 - 1 / 12), marks=(asked,))
        found = planned(8.75, patience=HOUR / 2, reader=LATE, parent=parent)
        assert bool(found.redo & time(7, 8)) is not waits
    stale = Stale(Interval(at(7), at(8)), OTHER, Interval(at(7), at(8)), since=at(7.0))
    parent = VersionState(time(0, 8.75 - 1 / 12), stale=(stale,))
    assert planned(8.75, patience=HOUR / 2, reader=LATE, parent=parent).redo & time(7, 8)


def test_a_turn_is_as_long_as_said() -> None:
    """From the end of the patience on, for the patience or a period, whichever is longer."""
    for waited, goes in ((1, False), (2, True), (3.9, True), (4, False)):
        assert turns.goes_first(waited * HOUR, 2 * HOUR, HOUR) == goes
    for waited, goes in ((0.4, False), (0.5, True), (1.4, True), (1.5, False)):
        assert turns.goes_first(waited * HOUR, HOUR / 2, HOUR) == goes


def test_readers_wait_less_where_redos_stand_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """In runs that share and are longer than their period, the mean wait is a quarter shorter, and late rows come in."""

    def mean_wait() -> float:
        waits: list[int] = []
        for seed in range(6):
            scene = scenario(seed, hours=10, lookback=24, overlap="share", takes_s=LONG_S, patience=HOUR / 2)
            checker = Simulation(scene, seed).play().checker
            assert not checker.owed[LATE_ROWS]
            waits += checker.waits[CHILD].seconds
        return sum(waits) / len(waits)

    with_turns = mean_wait()
    monkeypatch.setattr(turns, "goes_first", lambda *_: False)
    assert with_turns < 0.75 * mean_wait()


def test_the_whole_of_time_can_be_planned() -> None:
    """A mark on all of time has ends that no window is shifted beyond."""
    everything = Mark(0, Interval(MIN_INSTANT, MAX_INSTANT), "requested", 1, None, 1, {}, at(8.5))
    parent = VersionState(time(0, 8.75 - 1 / 12), marks=(everything,))
    assert planned(8.75, patience=HOUR / 2, reader=LATE, parent=parent).deferred
