"""The graph, and the one relation between a child's units and its parent's time, in both directions."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from meshgate.errors import GraphError, IntervalError, UnknownModelError
from meshgate.graph import (
    Edge,
    Kind,
    MeshGraph,
    ModelNode,
    Window,
    name_parts,
    reach_of,
    readers_of,
    window_of,
)
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet, IntervalUnit, parse_instant
from strategies import (
    CALENDAR,
    CLOCK,
    MIXED,
    Grid,
    examples,
    intervals_of,
    lives,
    node,
    ranges,
    read_by,
    windows,
)

HOUR, DAY = IntervalUnit.HOUR, IntervalUnit.DAY


def fqn(name: str) -> str:
    return ".".join(f'"{part}"' for part in name.split("."))


def mesh(*nodes: ModelNode, edges: dict[tuple[str, str], Window | None]) -> MeshGraph:
    made = [Edge(child, parent, window or Window()) for (child, parent), window in edges.items()]
    return MeshGraph({n.name: n for n in nodes}, made)


def span(text: str) -> Interval:
    return Interval.parse(text)


def moment(text: str):
    return parse_instant(text)


# --- windows --------------------------------------------------------------------------------


@st.composite
def relations(draw: st.DrawFn, grid: Grid) -> tuple[ModelNode, ModelNode, Window]:
    """A child, a parent with some life, and how the one reads the other."""
    units = st.sampled_from(grid.units)
    partial = draw(st.booleans())
    parent = node("parent", draw(units), draw(lives(grid)))
    child = node("child", draw(units), allow_partials=partial)
    return child, parent, draw(windows(grid))


def check_window(grid: Grid, relation: tuple[ModelNode, ModelNode, Window], index: int) -> None:
    child, parent, window = relation
    units = grid.units_in(child.unit)
    unit = units[index % len(units)]
    read = read_by(parent, window, unit)
    assert window_of(child, parent, window, unit) == (IntervalSet.of(*read) if read else IntervalSet())


@given(relations(CLOCK), st.integers(0, 2000))
@examples(300)
def test_a_window_is_what_its_description_says(relation, index: int):
    """For units of minutes to a day, `window_of` agrees with an oracle that reads the description."""
    check_window(CLOCK, relation, index)


@given(relations(CALENDAR), st.integers(0, 2000))
@examples(200)
def test_a_window_of_calendar_units_is_what_its_description_says(relation, index: int):
    """The same for days, months and years."""
    check_window(CALENDAR, relation, index)


def check_law(grid: Grid, relation, read: list[tuple[int, int]], inside: list[tuple[int, int]]) -> None:
    child, parent, window = relation
    parent_range = IntervalSet(intervals_of(grid, read))
    within = child.unit.outward(IntervalSet(intervals_of(grid, inside))).clip(grid.start, grid.end)
    readers = readers_of(child, parent, window, parent_range, within)
    assert readers <= within
    for piece in within:
        for unit in child.unit.split(piece):
            meets = bool(window_of(child, parent, window, unit) & parent_range)
            assert readers.covers(unit) == meets
            # All or nothing: no unit reads by halves.
            assert bool(readers & IntervalSet([unit])) == meets


@given(relations(CLOCK), ranges(CLOCK), ranges(CLOCK, most=2))
@examples(300)
def test_readers_and_windows_are_two_sides_of_one_law(relation, read, inside):
    """A unit is in `readers_of(R)` if and only if its window meets R."""
    check_law(CLOCK, relation, read, inside)


@given(relations(CALENDAR), ranges(CALENDAR), ranges(CALENDAR, most=2))
@examples(200)
def test_the_law_holds_for_calendar_units(relation, read, inside):
    """The same for days, months and years, whose lengths differ."""
    check_law(CALENDAR, relation, read, inside)


@given(relations(MIXED), ranges(MIXED), ranges(MIXED, most=1))
@examples(100)
def test_the_law_holds_between_minutes_and_months(relation, read, inside):
    """The same between units of minutes and of months."""
    check_law(MIXED, relation, read, inside)


@given(relations(CLOCK), ranges(CLOCK), st.integers(0, CLOCK.size - 1), st.integers(1, 300))
@examples(200)
def test_the_law_holds_for_parts_of_units(relation, read, first: int, count: int):
    """A stretch that begins or ends inside a unit is judged by what that part itself reads."""
    child, parent, window = relation
    parent_range = IntervalSet(intervals_of(CLOCK, read))
    stretch = Interval(CLOCK.at(first), CLOCK.at(first + count))
    readers = readers_of(child, parent, window, parent_range, IntervalSet([stretch]))
    for part in child.unit.split(stretch):
        window_part = window_of(child, parent, window, part)
        assert readers.covers(part) == bool(window_part & parent_range)


@given(relations(CLOCK), ranges(CLOCK), ranges(CLOCK), ranges(CLOCK, most=2))
@examples(200)
def test_readers_of_a_union_are_the_union_of_readers(relation, one, other, inside):
    """Nothing depends on how the parent's time is cut into rows."""
    child, parent, window = relation
    a, b = IntervalSet(intervals_of(CLOCK, one)), IntervalSet(intervals_of(CLOCK, other))
    within = IntervalSet(intervals_of(CLOCK, inside))
    both = readers_of(child, parent, window, a | b, within)
    apart = [readers_of(child, parent, window, piece, within) for piece in (a, b)]
    assert both == apart[0] | apart[1]


def check_batch(grid: Grid, relation, index: int, count: int) -> None:
    child, parent, window = relation
    units = grid.units_in(child.unit)
    batch = units[index % len(units) :][:count]
    hull = Interval(batch[0].start, batch[-1].end)
    union = IntervalSet(piece for unit in batch for piece in window_of(child, parent, window, unit))
    assert window_of(child, parent, window, hull) == union
    reach = reach_of(child, parent, window, hull)
    assert union <= reach
    assert len(reach) == bool(union)
    if union and window_of(child, parent, window, batch[0]):
        assert reach.hull == union.hull


@given(relations(CLOCK), st.integers(0, 2000), st.integers(1, 40))
@examples(200)
def test_a_batch_reads_what_its_units_read(relation, index: int, count: int):
    """The window of several units is the union of theirs, and `reach_of` holds it closely."""
    check_batch(CLOCK, relation, index, count)


@given(relations(CALENDAR), st.integers(0, 2000), st.integers(1, 40))
@examples(300)
def test_a_batch_of_calendar_units_reads_what_its_units_read(relation, index: int, count: int):
    """The same for days, months and years: thirty days after March is May, so a month may be skipped."""
    check_batch(CALENDAR, relation, index, count)


def test_a_child_reads_all_parent_units_that_it_touches():
    """An hour of a daily parent is its whole day; a day of an hourly parent is 24 hours."""
    hourly, daily = node("hourly", HOUR), node("daily", DAY)
    hour, day = span("2026-01-05T03:00/2026-01-05T04:00"), span("2026-01-05/2026-01-06")
    assert window_of(hourly, daily, Window(), hour) == IntervalSet([day])
    assert window_of(daily, hourly, Window(), day) == IntervalSet([day])
    assert readers_of(hourly, daily, Window(), IntervalSet([hour]), IntervalSet([day])) == IntervalSet([day])
    assert readers_of(daily, hourly, Window(), IntervalSet([hour]), IntervalSet([day])) == IntervalSet([day])


def test_a_window_is_clipped_to_the_parents_life():
    """A rolling week at the beginning of history reads what there is, and after the end nothing."""
    week = Window(from_offset=timedelta(days=-7))
    parent = node("parent", HOUR, (moment("2026-01-05T10:30"), moment("2026-01-20")))
    child = node("child", DAY)
    first = window_of(child, parent, week, span("2026-01-05/2026-01-06"))
    assert str(first) == "[2026-01-05 10:00, 2026-01-06 00:00)"
    assert not window_of(child, parent, week, span("2026-01-27/2026-01-28"))
    assert not readers_of(
        child, parent, week, IntervalSet([span("2025-12-01/2026-01-05")]), IntervalSet.everything()
    )


def test_a_dimension_is_needed_up_to_its_last_boundary():
    """`latest` aligns inward: an hourly fact never waits for the day that is going on."""
    fact, dimension = node("fact", HOUR), node("dimension", DAY)
    noon, midnight = span("2026-01-05T11:00/2026-01-05T12:00"), span("2026-01-05T23:00/2026-01-06T00:00")
    yesterday, today = span("2026-01-04/2026-01-05"), span("2026-01-05/2026-01-06")
    assert window_of(fact, dimension, Window("latest"), noon) == IntervalSet([yesterday])
    assert window_of(fact, dimension, Window("latest"), midnight) == IntervalSet([today])


def test_a_dimension_that_ended_is_read_as_it_was_at_its_end():
    """After the end of the parent's life, `latest` is its last unit, so its restatement is noticed."""
    dimension = node("dimension", DAY, (moment("2026-01-01"), moment("2026-01-10")))
    later = span("2026-03-01/2026-03-02")
    last = IntervalSet([span("2026-01-09/2026-01-10")])
    assert window_of(node("fact", DAY), dimension, Window("latest"), later) == last
    assert readers_of(node("fact", DAY), dimension, Window("latest"), last, IntervalSet([later]))


def test_a_prefix_reads_from_the_parents_beginning():
    """A whole table reads all of its parent up to the interval's end."""
    parent = node("parent", HOUR, (moment("2026-01-01T00:30"), None))
    read = window_of(
        node("total", DAY, kind=Kind.FULL), parent, Window("prefix"), span("2026-01-09/2026-01-10")
    )
    assert str(read) == "[2026-01-01 00:00, 2026-01-10 00:00)"


@pytest.mark.parametrize("mode", ["loaded", "ungated"])
def test_without_a_window_nothing_is_read_in_time(mode):
    """`loaded` and `ungated` parents have no readers by time."""
    child, parent, all_time = node("c", DAY), node("p", DAY), IntervalSet.everything()
    assert not window_of(child, parent, Window(mode), span("2026-01-09/2026-01-10"))
    assert not readers_of(child, parent, Window(mode), all_time, all_time)


def test_a_year_of_five_minute_units_is_not_looped_over():
    """Ten thousand changed ranges over the whole line of time, and no unit is visited."""
    child, parent = node("child", IntervalUnit.FIVE_MINUTE), node("parent", IntervalUnit.FIVE_MINUTE)
    start, step = moment("2025-01-01"), timedelta(minutes=50)
    changed = IntervalSet(Interval(start + i * step, start + i * step + step / 10) for i in range(10_000))
    assert readers_of(child, parent, Window(), changed, IntervalSet.everything()) == changed


def test_windows_must_not_leave_gaps():
    """A window that ends before it begins is refused, with what to change."""
    with pytest.raises(GraphError, match="gaps") as caught:
        Window(from_offset=timedelta(hours=1))
    assert "from" in caught.value.hint


# --- models ---------------------------------------------------------------------------------


def test_life_is_whole_units_and_endless_by_default():
    """As in SQLMesh, the first unit is the one that holds the start, and the last is completed."""
    assert node("m", HOUR).life == Interval(MIN_INSTANT, MAX_INSTANT)
    life = (moment("2026-01-05T10:30"), moment("2026-01-06T10:30"))
    assert str(node("m", HOUR, life).life) == "[2026-01-05 10:00, 2026-01-06 11:00)"
    assert str(node("m", HOUR, life, allow_partials=True).life) == "[2026-01-05 10:00, 2026-01-06 10:30)"


@pytest.mark.parametrize(
    "fields",
    [{"lookback": -1}, {"batch_size": 0}, {"life": ("2026-01-02", "2026-01-01")}],
    ids=["negative lookback", "empty batch", "ends before it starts"],
)
def test_an_impossible_model_is_refused(fields):
    """Counts and lives that mean nothing are found when the graph is made."""
    life = tuple(moment(t) for t in fields.pop("life", ())) or (None, None)
    with pytest.raises(GraphError):
        node("m", HOUR, life, **fields)


def test_a_model_start_must_be_utc():
    """Naive starts are refused where the model is made, not where they are compared."""
    with pytest.raises(IntervalError):
        node("m", HOUR, (moment("2026-01-01").replace(tzinfo=None), None))


@pytest.mark.parametrize("name", ["SCD_TYPE_2", "SCD_TYPE_2_BY_TIME", "SCD_TYPE_2_BY_COLUMN"])
def test_all_sorts_of_scd_type_2_are_one_kind(name: str):
    """How validity is found does not matter for intervals."""
    assert Kind.from_sqlmesh(name) is Kind.SCD_TYPE_2


def test_every_kind_of_sqlmesh_is_known(monkeypatch: pytest.MonkeyPatch):
    """A kind that SQLMesh has and meshgate does not know would be an error at the seam."""
    monkeypatch.setenv("SQLMESH__DISABLE_ANONYMIZED_ANALYTICS", "true")
    from sqlmesh.core.model.kind import ModelKindName

    assert {Kind.from_sqlmesh(kind.value) for kind in ModelKindName} == set(Kind) - {Kind.AUDIT}
    with pytest.raises(GraphError, match="TELEPATHIC"):
        Kind.from_sqlmesh("TELEPATHIC")


def test_kinds_partition_into_the_two_sorts_and_the_rest():
    """Time-partitioned, as-of, and those that have no coverage of their own over time."""
    rest = {kind for kind in Kind if not kind.time_partitioned and not kind.as_of}
    assert rest == {Kind.SEED, Kind.EXTERNAL, Kind.EMBEDDED}
    assert not any(kind.time_partitioned and kind.as_of for kind in Kind)
    assert {kind for kind in Kind if not kind.recorded} == {Kind.EXTERNAL, Kind.EMBEDDED}
    assert {kind for kind in Kind if not kind.redoable} == {Kind.INCREMENTAL_UNMANAGED}


def test_what_must_be_evaluated_in_order():
    """Whole tables that add to themselves, models that depend on their past, and self-readers."""
    assert node("m", DAY, kind=Kind.SCD_TYPE_2).sequential
    assert node("m", DAY, depends_on_past=True).sequential
    assert not node("m", DAY, kind=Kind.FULL).sequential
    assert not node("m", DAY).sequential
    graph = mesh(node("m", DAY), edges={("m", "m"): None})
    assert graph.sequential("m")
    assert graph.gates("m") == ()


# --- the graph ------------------------------------------------------------------------------


def test_names_may_hold_dots_and_quotes():
    """A quoted part is one part whatever is in it."""
    assert name_parts('"a.b"."c ""d"""') == ("a.b", 'c "d"')
    assert node('"lake"."silver"."orders"', DAY).display == "silver.orders"
    assert node("orders", DAY).display == "orders"


def test_an_edge_to_nowhere_is_refused():
    """The unknown end is named."""
    with pytest.raises(GraphError, match="unknown model ghost"):
        mesh(node("a", DAY), edges={("a", "ghost"): None})


def test_a_duplicate_edge_is_refused():
    """Two windows for one pair would be two answers."""
    with pytest.raises(GraphError, match="twice"):
        MeshGraph(
            {"a": node("a", DAY), "b": node("b", DAY)}, [Edge("a", "b"), Edge("a", "b", Window("latest"))]
        )


def test_a_circle_is_refused_and_told_in_the_order_of_reading():
    """The message says who reads whom."""
    nodes = [node(name, DAY) for name in "abc"]
    with pytest.raises(GraphError) as caught:
        mesh(*nodes, edges={("a", "b"): None, ("b", "c"): None, ("c", "a"): None})
    told = caught.value.message.split(": ")[1].split(" reads ")
    assert all(pair in [("a", "b"), ("b", "c"), ("c", "a")] for pair in pairwise(told))


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda e: e[0] > e[1])), st.randoms())
@examples(200)
def test_the_order_has_parents_first_and_does_not_depend_on_the_input(pairs, random):
    """Every model comes after all that it reads, and the same graph has the same order."""
    nodes = [node(f"m{i}", DAY) for i in range(10)]
    edges = [Edge(f"m{child}", f"m{parent}") for child, parent in pairs]
    order = MeshGraph({n.name: n for n in nodes}, edges).order()
    assert sorted(order) == sorted(n.name for n in nodes)
    assert all(order.index(e.parent) < order.index(e.child) for e in edges)
    random.shuffle(nodes)
    random.shuffle(edges)
    assert MeshGraph({n.name: n for n in nodes}, edges).order() == order


def test_boundaries_are_the_edges_between_projects():
    """An edge inside a project is none."""
    a, b, c = node("a", DAY, project="x"), node("b", DAY, project="x"), node("c", DAY, project="y")
    graph = mesh(a, b, c, edges={("b", "a"): None, ("c", "b"): None})
    assert [(e.child, e.parent) for e in graph.boundaries()] == [("c", "b")]
    assert graph.parents("c") == graph.children("b")


VIEW, EMBEDDED = Kind.VIEW, Kind.EMBEDDED


def gated(graph: MeshGraph, name: str) -> set[tuple[str, Window]]:
    gates = graph.gates(name)
    assert all(edge.child == name for edge in gates)
    found = {(edge.parent, edge.window) for edge in gates}
    assert len(found) == len(gates)
    return found


def test_readers_look_through_views_to_what_is_stored():
    """Views and embedded models, also behind each other, are replaced by what they read."""
    nodes = [node("t", DAY), node("v", DAY, kind=VIEW), node("e", DAY, kind=EMBEDDED), node("c", DAY)]
    week = Window(from_offset=timedelta(days=-7))
    graph = mesh(*nodes, edges={("v", "t"): None, ("e", "v"): None, ("c", "e"): week})
    assert gated(graph, "c") == {("t", week)}


def test_two_ways_to_one_ancestor_are_one_gate_unless_their_windows_differ():
    """Every different window is kept; equal ones are one."""
    nodes = [node("t", DAY), node("v", DAY, kind=VIEW), node("w", DAY, kind=VIEW), node("c", DAY)]
    reads = {("v", "t"): None, ("w", "t"): None}
    same = mesh(*nodes, edges=reads | {("c", "v"): None, ("c", "w"): None, ("c", "t"): None})
    assert gated(same, "c") == {("t", Window())}
    week = Window(from_offset=timedelta(days=-7))
    different = mesh(*nodes, edges=reads | {("c", "v"): None, ("c", "w"): week})
    assert gated(different, "c") == {("t", Window()), ("t", week)}


def test_what_a_view_declares_about_its_parents_holds_for_its_readers():
    """Offsets add up through a view; a dimension or an ungated parent stays one."""
    nodes = [node(n, DAY) for n in ("facts", "dim", "log", "c")] + [node("v", DAY, kind=VIEW)]
    week, day = Window(from_offset=timedelta(days=-7)), Window(from_offset=timedelta(days=-1))
    latest, ungated = Window("latest"), Window("ungated")
    edges = {("v", "facts"): week, ("v", "dim"): latest, ("v", "log"): ungated, ("c", "v"): day}
    graph = mesh(*nodes, edges=edges)
    assert gated(graph, "c") == {("facts", Window(from_offset=timedelta(days=-8))), ("dim", latest)}


def test_external_and_ungated_parents_are_no_gates():
    """There is nothing to wait for; and an ungated view hides all behind it."""
    nodes = [node("x", DAY, kind=Kind.EXTERNAL), node("t", DAY), node("v", DAY, kind=VIEW), node("c", DAY)]
    ungated = Window("ungated")
    graph = mesh(*nodes, edges={("c", "x"): None, ("v", "t"): None, ("c", "v"): ungated})
    assert gated(graph, "c") == set()


def test_seeds_are_read_as_loaded():
    """A seed has no time."""
    graph = mesh(node("s", DAY, kind=Kind.SEED), node("c", DAY, kind=Kind.FULL), edges={("c", "s"): None})
    assert gated(graph, "c") == {("s", Window("loaded"))}


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.as_of])
def test_a_whole_table_is_gated_on_a_prefix_unless_a_window_is_declared(kind: Kind):
    """As-of models prove nothing about their parents, also not through a view."""
    nodes = [
        node("t", DAY),
        node("d", DAY),
        node("u", DAY),
        node("v", DAY, kind=VIEW),
        node("c", DAY, kind=kind),
    ]
    latest = Window("latest")
    graph = mesh(*nodes, edges={("c", "t"): None, ("c", "d"): latest, ("v", "u"): None, ("c", "v"): None})
    assert gated(graph, "c") == {("t", Window("prefix")), ("d", latest), ("u", Window("prefix"))}


MODELS = ["lake.silver.orders", "lake.gold.orders", "lake.gold.revenue", "other.gold.revenue", "gold.revenue"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ('"lake"."silver"."orders"', "lake.silver.orders"),
        ("lake.silver.orders", "lake.silver.orders"),
        ("silver.orders", "lake.silver.orders"),
        ("gold.revenue", "gold.revenue"),
        ("other.gold.revenue", "other.gold.revenue"),
    ],
)
def test_a_model_is_found_by_any_unambiguous_name(said: str, meant: str):
    """Quotes do not matter, the last parts suffice, and a full name beats a longer one."""
    graph = mesh(*(node(fqn(name), DAY) for name in MODELS), edges={})
    assert graph.resolve(said) == fqn(meant)


def test_an_ambiguous_name_is_refused_with_the_candidates():
    """Guessing between two models would be worse than asking."""
    graph = mesh(*(node(fqn(name), DAY) for name in MODELS), edges={})
    with pytest.raises(UnknownModelError) as caught:
        graph.resolve("orders")
    assert set(caught.value.fields["candidates"]) == {"lake.silver.orders", "lake.gold.orders"}


@pytest.mark.parametrize("said", ["silver.order", "", "   "])
def test_an_unknown_name_is_refused_and_the_nearest_named(said: str):
    """A typing error gets the name that was meant; nonsense gets an error all the same."""
    graph = mesh(*(node(fqn(name), DAY) for name in MODELS), edges={})
    with pytest.raises(UnknownModelError) as caught:
        graph.resolve(said)
    assert not said.strip() or "silver.orders" in caught.value.hint


def test_windows_do_not_depend_on_cron_or_batch_size():
    """What an interval reads follows from units and lives alone."""
    parent, child = node("p", HOUR), node("c", DAY)
    day = span("2026-01-05/2026-01-06")
    before = window_of(child, parent, Window(), day)
    changed = evolve(parent, cron="30 4 * * 1", cron_tz="Asia/Kolkata", batch_size=3)
    assert window_of(evolve(child, batch_size=1), changed, Window(), day) == before
