"""The gate, against a brute force oracle: for each unit, is every cell that it reads as it should be?"""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from meshgate.errors import UnknownModelError
from meshgate.gate import Blocked, Decision, Obstacle, ParentState, decide
from meshgate.graph import Edge, Kind, MeshGraph, ModelNode, Window
from meshgate.interval import Interval, IntervalSet, IntervalUnit, parse_instant
from strategies import CALENDAR, CLOCK, REASONS, Cells, Parent, Scene, examples, node, ranges, scenes

HOUR, DAY, FIVE = IntervalUnit.HOUR, IntervalUnit.DAY, IntervalUnit.FIVE_MINUTE


# --- random scenes --------------------------------------------------------------------------


@given(scenes())
@examples(300)
def test_the_gate_is_the_oracles(scene: Scene):
    """Ready is exactly what the oracle finds, unit by unit, cell by cell."""
    assert scene.decide().ready == IntervalSet(scene.ready_units())


@given(scenes(CALENDAR))
@examples(200)
def test_the_gate_is_the_oracles_for_calendar_units(scene: Scene):
    """The same for days, months and years."""
    assert scene.decide().ready == IntervalSet(scene.ready_units())


@given(scenes())
@examples(200)
def test_ready_and_blocked_together_are_what_was_wanted(scene: Scene):
    """Nothing is lost, nothing added, and nothing is both."""
    decision = scene.decide()
    wanted = IntervalSet(scene.wanted)
    assert decision.ready | decision.blocked_set == wanted
    assert not decision.ready & decision.blocked_set


@given(scenes(), ranges(CLOCK), st.integers(0, 2))
@examples(200)
def test_more_coverage_never_closes_the_gate(scene: Scene, more: list[tuple[int, int]], which: int):
    """Recording more of a parent, or producing more, leaves ready what was ready."""
    before = scene.decide().ready
    index = which % len(scene.parents)
    added = {c for low, high in more for c in range(low, high)}
    for field in ("covered", "produced"):
        parent = scene.parents[index]
        grown = evolve(parent, **{field: getattr(parent, field) | added})
        parents = (*scene.parents[:index], grown, *scene.parents[index + 1 :])
        assert before <= evolve(scene, parents=parents).decide().ready


@given(scenes(), st.timedeltas(timedelta(0), timedelta(days=4)))
@examples(200)
def test_time_never_closes_the_gate(scene: Scene, later: timedelta):
    """With the same state, patience only runs out."""
    assert scene.decide().ready <= evolve(scene, now=scene.now + later).decide().ready


def cut_up(low: int, high: int, length: int) -> list[tuple[int, int]]:
    return [(first, min(first + length, high)) for first in range(low, high, length)]


@given(scenes(), st.integers(), st.integers(1, 40))
@examples(200)
def test_it_does_not_matter_how_coverage_is_cut_into_rows(scene: Scene, seed: int, length: int):
    """Rows and obstacles in many pieces, in any order, give the same decision as in few."""
    state = {}
    for parent in scene.parents:
        rows = [
            Interval(scene.grid.at(low), scene.grid.at(high))
            for piece in scene.grid.set_of(parent.covered)
            for low, high in cut_up(scene.grid.cell_of(piece.start), scene.grid.cell_of(piece.end), length)
        ]
        obstacles = [
            Obstacle(Interval(scene.grid.at(low), scene.grid.at(high)), reason)
            for first, last, reason in parent.obstacles
            for low, high in cut_up(first, last, length)
        ]
        Random(seed).shuffle(rows)  # noqa: S311
        Random(seed).shuffle(obstacles)  # noqa: S311
        state[parent.node.name] = ParentState(IntervalSet(rows), obstacles)
    whole, cut = scene.decide(), scene.decide(state=state)
    assert cut.ready == whole.ready
    assert cut.blocked_set == whole.blocked_set


@given(scenes(), st.integers(1, 20))
@examples(200)
def test_it_does_not_matter_how_work_is_cut_into_batches(scene: Scene, size: int):
    """Batch after batch, each knowing what was accepted before, gives the decision on the whole."""
    if scene.child.kind is Kind.FULL:
        scene = evolve(scene, child=evolve(scene.child, kind=Kind.SCD_TYPE_2))
    own = ParentState(
        IntervalSet.of(scene.grid.at(-1000), scene.wanted[0].start) if scene.wanted else IntervalSet()
    )
    state = scene.state() | {"child": own}
    whole = scene.decide(state=state).ready
    accepted = IntervalSet.empty()
    for first in range(0, len(scene.wanted), size):
        batch = IntervalSet(scene.wanted[first : first + size])
        produced = scene.produced() | {"child": accepted}
        accepted |= scene.decide(batch, state=state, produced=produced).ready
    assert accepted == whole


@given(scenes(), st.sampled_from([None, 1, 7]), st.sampled_from(["@yearly", "*/5 * * * *"]))
@examples(200)
def test_crons_and_batch_sizes_do_not_matter(scene: Scene, batch_size: int | None, cron: str):
    """Changing a parent's cron and zone, or anybody's batch size, changes no decision."""
    graph = scene.graph()
    changed = {"cron": cron, "cron_tz": "Asia/Kolkata", "batch_size": batch_size}
    nodes = {name: evolve(n, **changed) for name, n in graph.nodes.items()}
    edges = [edge for name in nodes for edge in graph.parents(name)]
    assert scene.decide(graph=MeshGraph(nodes, edges)) == scene.decide()


@given(scenes())
@examples(200)
def test_every_cause_is_true_and_none_is_left_out(scene: Scene):
    """For each blocked unit and parent, the spans of its causes are exactly the cells it lacks."""
    decision = scene.decide()
    by_name = {parent.node.name: parent for parent in scene.parents}
    causes = [entry for entry in decision.blocked if entry.parent != "child"]
    for unit in scene.wanted:
        for name, parent in by_name.items():
            named: Cells = set()
            for entry in causes:
                if entry.parent == name and entry.interval.overlaps(unit):
                    assert entry.interval.contains(unit)
                    named |= scene.grid.cells(entry.span)
            lacking = scene.lacks(parent, unit)
            assert lacking <= named
            assert bool(named) == bool(lacking)
            assert named <= _not_fine(scene, parent, named, unit)
    for entry in causes:
        parent = by_name[entry.parent]
        cells = scene.grid.cells(entry.span)
        if entry.reason in ("missing", "late", "not_due"):
            assert not cells & (parent.covered | parent.produced)
        if entry.reason != "missing":
            assert cells <= parent.having(entry.reason)


def _not_fine(scene: Scene, parent: Parent, cells: Cells, unit: Interval) -> Cells:
    return cells - parent.fine(patient=scene.is_patient(unit))


@given(scenes())
@examples(200)
def test_waiting_for_itself_happens_only_behind_a_blocked_unit(scene: Scene):
    """Where order matters, what waits for the model itself lies after something that waits for a parent."""
    decision = scene.decide()
    own = [entry for entry in decision.blocked if entry.parent == "child"]
    others = [entry for entry in decision.blocked if entry.parent != "child"]
    assert scene.in_order or not own
    for entry in own:
        assert entry.reason == "missing"
        assert min(other.interval.start for other in others) < entry.interval.start


# --- stories --------------------------------------------------------------------------------


def span(text: str) -> Interval:
    return Interval.parse(text)


def some(text: str) -> IntervalSet:
    """Intervals from text, separated by spaces."""
    return IntervalSet(Interval.parse(part) for part in text.split())


def moment(text: str) -> datetime:
    return parse_instant(text)


UPSTREAM = node("upstream", FIVE, (moment("2026-01-01"), None), project="bronze")
HOURLY = node("hourly", HOUR, (moment("2026-01-01"), None), project="gold")
NOON = moment("2026-01-01T12:00")


def two(child: ModelNode = HOURLY, parent: ModelNode = UPSTREAM, window: Window | None = None) -> MeshGraph:
    return MeshGraph(
        {n.name: n for n in (child, parent)}, [Edge(child.name, parent.name, window or Window())]
    )


def ask(
    wanted: str,
    covered: str,
    *obstacles: Obstacle,
    graph: MeshGraph | None = None,
    produced: str = "",
    own: ParentState | None = None,
    **more,
) -> Decision:
    graph = graph or two()
    child, parent = (next(n for n in graph.nodes if graph.parents(n))), graph.order()[0]
    state = {parent: ParentState(some(covered), obstacles)} | ({child: own} if own else {})
    more = {"now": NOON, "patience": timedelta(hours=2)} | more
    return decide(graph, child, some(wanted), state, {parent: some(produced)}, **more)


def test_an_hour_waits_for_its_last_five_minutes():
    """Upstream reached 03:05: the hour 03:00-04:00 waits, and is told for which 55 minutes."""
    decision = ask("2026-01-01T02:00/2026-01-01T04:00", "2026-01-01T00:00/2026-01-01T03:05")
    assert decision.ready == some("2026-01-01T02:00/2026-01-01T03:00")
    assert decision.blocked == (
        Blocked(
            model="hourly",
            project="gold",
            interval=span("2026-01-01T03:00/2026-01-01T04:00"),
            parent="upstream",
            parent_project="bronze",
            span=span("2026-01-01T03:05/2026-01-01T04:00"),
            reason="missing",
            detail={},
        ),
    )


def test_one_failed_batch_blocks_only_those_who_read_it():
    """Hours around a failed one go on, and the failure is named with its details."""
    failed = Obstacle(span("2026-01-01T02:10/2026-01-01T02:15"), "failed", {"audit": "not_null", "count": 3})
    covered = "2026-01-01T00:00/2026-01-01T02:10 2026-01-01T02:15/2026-01-01T04:00"
    decision = ask("2026-01-01T00:00/2026-01-01T04:00", covered, failed)
    assert decision.blocked_set == some("2026-01-01T02:00/2026-01-01T03:00")
    assert [(entry.reason, entry.detail) for entry in decision.blocked] == [("failed", failed.detail)]


@pytest.mark.parametrize("reason", ["failed", "suspect", "removed", "held", "begun"])
def test_recorded_time_that_is_unclean_opens_no_gate(reason):
    """A re-evaluation that began or failed has overwritten what was recorded; patience does not help."""
    obstacle = Obstacle(span("2026-01-01T02:00/2026-01-01T02:05"), reason)
    decision = ask(
        "2026-01-01T02:00/2026-01-01T03:00", "2026-01-01/2026-01-02", obstacle, patience=timedelta(0)
    )
    assert [entry.reason for entry in decision.blocked] == [reason]


@pytest.mark.parametrize("reason", ["stale", "marked"])
def test_unsettled_parents_are_waited_for_until_patience_runs_out(reason):
    """The unit ended at 03:00: with two hours of patience the gate opens at 05:00 and not before."""
    obstacle = Obstacle(span("2026-01-01T02:00/2026-01-01T02:05"), reason)
    hour, all_day = "2026-01-01T02:00/2026-01-01T03:00", "2026-01-01/2026-01-02"
    assert not ask(hour, all_day, obstacle, now=moment("2026-01-01T04:59")).ready
    assert ask(hour, all_day, obstacle, now=moment("2026-01-01T05:00")).ready == some(hour)


def test_patience_is_two_units_by_default_and_may_be_endless():
    """None is two units of the child; `timedelta.max` waits for ever."""
    obstacle = Obstacle(span("2026-01-01T02:00/2026-01-01T02:05"), "stale")
    hour, all_day = "2026-01-01T02:00/2026-01-01T03:00", "2026-01-01/2026-01-02"
    assert not ask(hour, all_day, obstacle, now=moment("2026-01-01T04:59"), patience=None).ready
    assert ask(hour, all_day, obstacle, now=moment("2026-01-01T05:00"), patience=None).ready
    assert not ask(hour, all_day, obstacle, now=moment("2126-01-01"), patience=timedelta.max).ready


def test_redone_work_counts_its_patience_as_the_caller_says():
    """`impatient` overrules the ends of the units, in both directions."""
    obstacle = Obstacle(span("2026-01-01T00:00/2026-01-01T04:00"), "stale")
    wanted, early = "2026-01-01T02:00/2026-01-01T04:00", some("2026-01-01T03:00/2026-01-01T04:00")
    assert ask(wanted, "2026-01-01/2026-01-02", obstacle, impatient=early).ready == early


def test_the_unexplained_part_of_a_hole_is_missing():
    """Late is told apart from missing, each for its own span."""
    late = Obstacle(span("2026-01-01T03:00/2026-01-01T03:30"), "late", {"due": "03:05"})
    decision = ask("2026-01-01T03:00/2026-01-01T04:00", "2026-01-01T00:00/2026-01-01T03:00", late)
    told = [(str(entry.span), entry.reason) for entry in decision.blocked]
    assert told == [
        ("[2026-01-01 03:00, 03:30)", "late"),
        ("[2026-01-01 03:30, 04:00)", "missing"),
    ]


@pytest.mark.parametrize("reason", ["missing", "late", "not_due"])
def test_what_is_recorded_is_not_called_missing(reason):
    """A parent whose cron became slower has recorded what is "not due" by now: the gate stays open."""
    hour = "2026-01-01T03:00/2026-01-01T04:00"
    later = Obstacle(span("2026-01-01T02:00/2026-02-01T00:00"), reason)
    assert ask(hour, "2026-01-01T00:00/2026-01-01T04:00", later).ready == some(hour)


def test_what_is_missing_is_not_called_stale():
    """A mark on time that was never recorded explains nothing."""
    marked = Obstacle(span("2026-01-01T03:00/2026-01-01T04:00"), "marked")
    hour = "2026-01-01T03:00/2026-01-01T04:00"
    decision = ask(hour, "", marked, now=moment("2026-01-01T04:00"))
    assert [entry.reason for entry in decision.blocked] == ["missing"]


def test_a_recomputation_in_this_run_heals_all_but_holds_and_foreign_claims():
    """Produced time counts as clean, unless somebody holds it or another run has begun it."""
    hour = "2026-01-01T03:00/2026-01-01T04:00"
    for reason in REASONS:
        obstacle = Obstacle(span("2026-01-01T03:10/2026-01-01T03:20"), reason)
        decision = ask(hour, "", obstacle, produced=hour)
        assert [e.reason for e in decision.blocked] == ([reason] if reason in ("held", "begun") else [])


def test_a_whole_table_needs_an_uninterrupted_prefix():
    """A full refresh up to 04:00 waits for a hole at 00:10, and everything after it waits too."""
    total = evolve(HOURLY, kind=Kind.FULL)
    covered = "2026-01-01T00:00/2026-01-01T01:10 2026-01-01T01:15/2026-01-01T12:00"
    decision = ask("2026-01-01T00:00/2026-01-01T04:00", covered, graph=two(total))
    assert decision.ready == some("2026-01-01T00:00/2026-01-01T01:00")
    assert [str(entry.interval) for entry in decision.blocked] == ["[2026-01-01 01:00, 04:00)"]
    assert [str(entry.span) for entry in decision.blocked] == ["[2026-01-01 01:10, 01:15)"]


def test_a_sequential_model_does_not_jump_over_a_blocked_interval():
    """Later units wait for the model itself, and say so."""
    chained = evolve(HOURLY, depends_on_past=True)
    covered = "2026-01-01T00:00/2026-01-01T01:10 2026-01-01T01:15/2026-01-01T12:00"
    decision = ask("2026-01-01T00:00/2026-01-01T04:00", covered, graph=two(chained))
    assert decision.ready == some("2026-01-01T00:00/2026-01-01T01:00")
    assert [(e.parent, str(e.interval)) for e in decision.blocked] == [
        ("upstream", "[2026-01-01 01:00, 02:00)"),
        ("hourly", "[2026-01-01 02:00, 04:00)"),
    ]


def test_a_sequential_model_waits_for_its_own_holes_that_nobody_wants():
    """An own interval that failed and is not retried now stops what comes after it."""
    chained = evolve(HOURLY, depends_on_past=True)
    own = ParentState(some("2026-01-01T00:00/2026-01-01T02:00"))
    decision = ask("2026-01-01T03:00/2026-01-01T05:00", "2026-01-01/2026-01-02", graph=two(chained), own=own)
    assert not decision.ready
    assert [str(entry.span) for entry in decision.blocked] == ["[2026-01-01 02:00, 03:00)"]


@pytest.mark.parametrize(
    ("state", "produced", "reasons"),
    [
        (ParentState(), "", ["missing"]),
        (ParentState(some("2025-01-01/2025-01-02")), "", []),
        (ParentState(), "2025-01-01/2025-01-02", []),
        (
            ParentState(some("2025-01-01/2025-01-02"), [Obstacle(span("2025-01-01/2025-01-02"), "held")]),
            "",
            ["held"],
        ),
        (
            ParentState(some("2025-01-01/2025-01-02"), [Obstacle(span("2025-01-01/2025-01-02"), "stale")]),
            "",
            [],
        ),
    ],
    ids=["never loaded", "loaded", "loaded in this run", "held", "stale"],
)
def test_a_seed_is_ready_once_it_is_loaded(state, produced, reasons):
    """Seeds have no time: any of it opens the gate for all intervals, and anything unclean closes it."""
    graph = two(parent=node("seed", DAY, kind=Kind.SEED))
    hour = some("2026-01-01T03:00/2026-01-01T04:00")
    made = {"seed": some(produced)}
    decision = decide(graph, "hourly", hour, {"seed": state}, made, now=NOON, patience=None)
    assert [entry.reason for entry in decision.blocked] == reasons
    assert decision.blocked_set == (hour if reasons else IntervalSet())


def test_a_fact_does_not_wait_for_the_day_of_its_dimension():
    """`latest`: the 11:00 hour needs the dimension of yesterday, the one before midnight that of today."""
    daily = node("dimension", DAY, (moment("2025-12-01"), None))
    graph = two(parent=daily, window=Window("latest"))
    wanted = "2026-01-01T10:00/2026-01-02T00:00"
    decision = ask(wanted, "2025-12-01/2026-01-01", graph=graph)
    assert decision.blocked_set == some("2026-01-01T23:00/2026-01-02T00:00")


def test_a_parent_that_nobody_knows_anything_of_has_nothing():
    """No state is no coverage, never an open gate."""
    hour = some("2026-01-01T03:00/2026-01-01T04:00")
    assert decide(two(), "hourly", hour, {}, {}, now=NOON, patience=None).blocked_set == hour


def test_a_model_without_gates_is_always_ready():
    """A source has nothing to wait for, and wanting nothing is allowed."""
    day = some("2026-01-01/2026-01-02")
    assert decide(two(), "upstream", day, {}, {}, now=NOON, patience=None) == Decision("upstream", day)
    nothing = decide(two(), "hourly", IntervalSet(), {}, {}, now=NOON, patience=None)
    assert nothing == Decision("hourly", IntervalSet())


def test_a_name_that_is_not_in_the_graph_is_refused():
    """The gate does not answer for models that it does not know."""
    with pytest.raises(UnknownModelError):
        decide(two(), "hurly", IntervalSet(), {}, {}, now=NOON, patience=None)


def test_a_part_of_a_unit_waits_only_for_what_it_reads():
    """With `allow_partials`, the day until 05:00 does not wait for the evening."""
    partial = node("day", DAY, (moment("2026-01-01"), None), allow_partials=True)
    graph = two(partial)
    covered = "2026-01-01T00:00/2026-01-01T05:00"
    assert ask("2026-01-01T00:00/2026-01-01T05:00", covered, graph=graph).ready == some(covered)
    assert not ask("2026-01-01T00:00/2026-01-01T05:05", covered, graph=graph).ready


def test_a_year_of_five_minute_units_is_decided_by_ranges():
    """105,000 wanted units and 1,000 holes: the answer has one entry for each hole, and none for units."""
    child = node("child", FIVE, (moment("2025-01-01"), None))
    holes = [
        Interval(
            UPSTREAM.unit.shift(moment("2025-01-01"), 100 * i),
            UPSTREAM.unit.shift(moment("2025-01-01"), 100 * i + 1),
        )
        for i in range(1000)
    ]
    year = some("2025-01-01/2026-01-01")
    parent = evolve(UPSTREAM, start=moment("2025-01-01"))
    state = {"upstream": ParentState(year - IntervalSet(holes))}
    decision = decide(two(child, parent), "child", year, state, {}, now=NOON, patience=None)
    assert [entry.interval for entry in decision.blocked] == holes
    assert decision.ready == year - IntervalSet(holes)


def test_the_state_grades_its_obstacles():
    """Clean leaves out what always closes, settled also what closes for a time."""
    state = ParentState(
        some("2026-01-01/2026-01-05"),
        [Obstacle(span("2026-01-02/2026-01-03"), "held"), Obstacle(span("2026-01-03/2026-01-04"), "stale")],
    )
    assert state.clean == some("2026-01-01/2026-01-02 2026-01-03/2026-01-05")
    assert state.settled == some("2026-01-01/2026-01-02 2026-01-04/2026-01-05")
    assert [obstacle.grade for obstacle in state.obstacles] == ["unclean", "unsettled"]
