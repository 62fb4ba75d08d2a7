"""What a request comes to, against an oracle that visits every unit of a small grid."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from meshgate.errors import UnknownModelError
from meshgate.graph import Edge, Kind, MeshGraph, ModelNode, Window
from meshgate.interval import Interval, IntervalSet, IntervalUnit
from meshgate.restatement import Restatement, Step, disabled_models, expand, merges
from strategies import ORIGIN, Cells, Grid, examples, node, read_by

U = IntervalUnit
GRID = Grid(timedelta(minutes=5), 3 * 288, (U.FIVE_MINUTE, U.HOUR, U.DAY), ())
LIFE = (GRID.start, None)
HOUR = timedelta(hours=1)
BY_TIME = Kind.INCREMENTAL_BY_TIME_RANGE


def at(hours: float) -> Interval:
    """The hour that begins so many hours after the grid."""
    return Interval(ORIGIN + hours * HOUR, ORIGIN + (hours + 1) * HOUR)


def hours(start: float, end: float) -> IntervalSet:
    return IntervalSet.of(ORIGIN + start * HOUR, ORIGIN + end * HOUR)


def made(*nodes: ModelNode, reads: dict[str, dict[str, Window] | list[str]]) -> MeshGraph:
    """A graph of these nodes; each reader names its parents, with windows or without."""
    edges = [
        Edge(child, parent, parents[parent] if isinstance(parents, dict) else Window())
        for child, parents in reads.items()
        for parent in parents
    ]
    return MeshGraph({n.name: n for n in nodes}, edges)


def all_recorded(graph: MeshGraph, upto: float = 48) -> dict[str, IntervalSet]:
    return {name: hours(0, upto) for name in graph.order()}


def steps(found: Restatement) -> dict[str, Step]:
    return {step.name: step for step in found.steps}


# One rule each


def test_twelve_intervals_of_a_parent_are_one_of_its_hourly_reader():
    """What reads them is computed once, over the hour; parents come first."""
    graph = made(
        node("bronze", U.FIVE_MINUTE, LIFE), node("silver", U.FIVE_MINUTE, LIFE), node("gold", U.HOUR, LIFE),
        reads={"silver": ["bronze"], "gold": ["silver"]},
    )  # fmt: skip
    asked = Interval(ORIGIN + 3.25 * HOUR, ORIGIN + 3.5 * HOUR)
    found = expand(graph, "bronze", asked, all_recorded(graph))
    assert [(s.name, str(s.range), s.because, s.asked) for s in found.steps] == [
        ("bronze", "[2024-01-29 03:15, 03:30)", (), True),
        ("silver", "[2024-01-29 03:15, 03:30)", ("bronze",), False),
        ("gold", "[2024-01-29 03:00, 04:00)", ("silver",), False),
    ]
    assert [w.reason for s in found.steps for w in s.widened] == ["unit"]
    assert found.requests == (("bronze", asked),)


def test_a_range_that_is_not_made_of_units_is_widened_and_says_so():
    """The asked model's own grid counts."""
    graph = made(node("gold", U.HOUR, LIFE), reads={})
    found = expand(graph, "gold", Interval(ORIGIN + 3.5 * HOUR, ORIGIN + 3.75 * HOUR), all_recorded(graph))
    (step,) = found.steps
    assert (step.range, [w.reason for w in step.widened]) == (hours(3, 4), ["unit"])
    assert found.requests == (("gold", at(3)),)


def test_a_declared_window_reaches_further():
    """A rolling window makes later intervals read the change, and the step names window and parent."""
    rolling = Window("interval", from_offset=timedelta(hours=-2))
    graph = made(
        node("fact", U.HOUR, LIFE), node("rolling", U.HOUR, LIFE), reads={"rolling": {"fact": rolling}}
    )
    step = steps(expand(graph, "fact", at(3), all_recorded(graph)))["rolling"]
    assert step.range == hours(3, 6)
    assert [(w.reason, w.parent, w.window) for w in step.widened] == [("window", "fact", rolling)]


def test_what_reads_itself_is_computed_again_up_to_its_frontier():
    """And what reads it, from there on."""
    graph = made(
        node("source", U.HOUR, LIFE), node("balance", U.HOUR, LIFE), node("report", U.HOUR, LIFE),
        reads={"balance": ["source", "balance"], "report": ["balance"]},
    )  # fmt: skip
    found = steps(expand(graph, "source", at(3), all_recorded(graph)))
    assert found["source"].range == hours(3, 4)
    assert found["balance"].range == found["report"].range == hours(3, 48)
    assert [w.reason for w in found["balance"].widened] == ["depends_on_past"]


def test_a_refreshed_table_is_made_anew_and_changes_from_the_first_instant_on():
    """Its readers read anew what it stamps: everything from the first changed instant to its frontier."""
    graph = made(
        node("source", U.HOUR, LIFE), node("dim", U.HOUR, LIFE, Kind.FULL), node("fact", U.HOUR, LIFE),
        reads={"dim": ["source"], "fact": ["dim"]},
    )  # fmt: skip
    found = steps(expand(graph, "source", at(3), all_recorded(graph)))
    assert (found["dim"].range, found["dim"].changed) == (hours(0, 48), hours(3, 48))
    assert found["fact"].range == hours(3, 48)
    assert steps(expand(graph, "dim", at(3), all_recorded(graph)))["fact"].range == hours(3, 48)


def test_what_policy_leaves_is_told_and_its_readers_stay_as_they_are_unless_a_rebuild_is_asked_for():
    """A part of a model beyond its horizon too; the rest of it is computed again."""
    graph = made(
        node("source", U.HOUR, LIFE), node("sums", U.HOUR, LIFE), node("report", U.HOUR, LIFE),
        reads={"sums": ["source"], "report": ["sums"]},
    )  # fmt: skip
    asked = Interval(ORIGIN, ORIGIN + 6 * HOUR)
    left = {"sums": hours(0, 4)}
    told = lambda **more: expand(  # noqa: E731
        graph, "source", asked, all_recorded(graph), left=lambda n: left.get(n.name, IntervalSet()), **more
    )
    found = told()
    assert [(s.name, s.reason, s.reached) for s in found.stops] == [("sums", "policy", hours(0, 4))]
    assert {name: step.range for name, step in steps(found).items()} == {
        "source": hours(0, 6), "sums": hours(4, 6), "report": hours(4, 6),
    }  # fmt: skip
    again = told(rebuild=True)
    assert not again.stops
    assert {name: step.range for name, step in steps(again).items()} == dict.fromkeys(
        graph.nodes, hours(0, 6)
    )
    assert again.requests == (("source", asked), ("sums", asked))


def test_a_table_that_merges_is_only_reported_unless_a_rebuild_is_asked_for():
    """What reads it stays as it is; with `rebuild` it gets a mark of its own, and all of its readers follow."""
    graph = made(
        node("source", U.HOUR, LIFE), node("keyed", U.HOUR, LIFE, Kind.INCREMENTAL_BY_UNIQUE_KEY),
        node("fact", U.HOUR, LIFE), reads={"keyed": ["source"], "fact": ["keyed"]},
    )  # fmt: skip
    found = expand(graph, "source", at(3), all_recorded(graph))
    assert list(steps(found)) == ["source"]
    assert [(s.name, s.reason, s.because) for s in found.stops] == [("keyed", "reported", ("source",))]
    found = expand(graph, "source", at(3), all_recorded(graph), rebuild=True)
    assert steps(found)["keyed"].range == steps(found)["fact"].range == hours(0, 48)
    assert [name for name, _ in found.requests] == ["source", "keyed"]
    assert steps(expand(graph, "keyed", at(3), all_recorded(graph)))["keyed"].range == hours(0, 48)


def test_an_hour_of_a_table_that_merges_is_a_request_for_all_of_it_unless_rows_came_late():
    """It is emptied, so all of it has to be made again; late rows are merged into what is there."""
    graph = made(node("keyed", U.HOUR, LIFE, Kind.INCREMENTAL_BY_UNIQUE_KEY), reads={})
    for merge_again, asked in ((False, hours(0, 48)), (True, hours(3, 4))):
        found = expand(graph, "keyed", at(3), all_recorded(graph), merge_again=merge_again)
        assert IntervalSet(time for _, time in found.requests) == asked


def test_the_cascade_stops_where_it_is_told_to():
    """`disable_restatement`, a table that doubles its rows, an ungated reader: each is named, and nothing is behind it."""
    graph = made(
        node("source", U.HOUR, LIFE), node("kept", U.HOUR, LIFE), node("behind", U.HOUR, LIFE),
        node("appended", U.HOUR, LIFE, Kind.INCREMENTAL_UNMANAGED), node("loose", U.HOUR, LIFE),
        reads={"kept": ["source"], "behind": ["kept"], "appended": ["source"], "loose": {"source": Window("ungated")}},
    )  # fmt: skip
    found = expand(graph, "source", at(3), all_recorded(graph), disabled={"kept"})
    assert list(steps(found)) == ["source"]
    assert {s.name: s.reason for s in found.stops} == {
        "kept": "disabled",
        "appended": "not_redoable",
        "loose": "ungated",
    }
    assert {s.name: s.reached for s in found.stops}["kept"] == hours(3, 4)


@pytest.mark.parametrize(
    ("kind", "disabled", "reason"),
    [
        (Kind.SEED, (), "seed"),
        (BY_TIME, ("asked",), "disabled"),
        (Kind.INCREMENTAL_UNMANAGED, (), "not_redoable"),
    ],
)
def test_what_cannot_be_computed_again_cannot_be_asked_for(
    kind: Kind, disabled: tuple[str, ...], reason: str
):
    """There is no step, and no request."""
    graph = made(node("asked", U.HOUR, LIFE, kind), node("reader", U.HOUR, LIFE), reads={"reader": ["asked"]})
    found = expand(graph, "asked", at(3), all_recorded(graph), disabled=disabled)
    assert (found.steps, found.requests, [s.reason for s in found.stops]) == ((), (), [reason])


def test_what_is_not_recorded_is_due_anyway():
    """Nothing beyond the frontier is asked for; where nothing is recorded, it is said."""
    graph = made(node("gold", U.HOUR, LIFE), reads={})
    found = expand(graph, "gold", Interval(at(3).start, at(6).start), {"gold": hours(0, 4)})
    assert steps(found)["gold"].range == hours(3, 4)
    found = expand(graph, "gold", at(5), {"gold": hours(0, 4)})
    assert (found.steps, [s.reason for s in found.stops]) == ((), ["unrecorded"])


def test_what_lies_outside_the_life_of_a_model_stays_as_it_is():
    """Its start may have been moved since that was recorded."""
    graph = made(node("gold", U.HOUR, (ORIGIN + 4 * HOUR, ORIGIN + 7 * HOUR)), reads={})
    (step,) = expand(graph, "gold", Interval(at(2).start, at(9).start), all_recorded(graph)).steps
    assert step.range == hours(4, 7)


def test_only_downstream_leaves_the_model_alone_and_asks_for_its_readers():
    """Through views, and by their windows: whoever reads a day reads all of it."""
    graph = made(
        node("daily", U.DAY, LIFE), node("view", U.HOUR, LIFE, Kind.EMBEDDED), node("hourly", U.HOUR, LIFE),
        node("far", U.HOUR, LIFE), node("lookup", U.HOUR, LIFE),
        reads={"view": ["daily"], "hourly": ["view"], "far": ["hourly"], "lookup": {"daily": Window("latest")}},
    )  # fmt: skip
    found = expand(graph, "daily", at(3), all_recorded(graph), only_downstream=True)
    assert {s.name: (s.asked, s.range) for s in found.steps} == {
        "hourly": (True, hours(0, 24)),
        "far": (False, hours(0, 24)),
        "lookup": (True, hours(23, 47)),
    }


def test_a_reader_that_is_asked_for_and_follows_is_requested_for_what_was_asked():
    """What follows anyway needs no mark, nor does what lies between."""
    late = Window("interval", from_offset=timedelta(hours=-20), to_offset=timedelta(hours=-20))
    graph = made(
        node("source", U.HOUR, LIFE), node("near", U.HOUR, LIFE), node("both", U.HOUR, LIFE),
        reads={"near": ["source"], "both": {"source": Window(), "near": late}},
    )  # fmt: skip
    found = expand(graph, "source", at(3), all_recorded(graph), only_downstream=True)
    assert steps(found)["both"].range == hours(3, 4) | hours(23, 24)
    assert found.requests == (("near", at(3)), ("both", at(3)))


@pytest.mark.parametrize("kind", [Kind.EXTERNAL, Kind.EMBEDDED, Kind.VIEW])
def test_whoever_asks_for_what_holds_no_rows_means_its_readers(kind: Kind):
    """An external table is nobody's to compute, and a view has no data; a view is made anew as well."""
    graph = made(node("asked", U.DAY, LIFE, kind), node("reader", U.HOUR, LIFE), reads={"reader": ["asked"]})
    found = expand(graph, "asked", at(3), all_recorded(graph))
    assert steps(found)["reader"].range == hours(3, 4)
    assert steps(found)["reader"].asked
    assert ("asked" in steps(found)) is (kind is Kind.VIEW)


def test_what_disables_restatement_is_told_by_the_manifest_or_by_the_kind():
    """A manifest of an earlier version does not say it: SQLMesh's defaults hold."""
    graph = made(
        node("a", U.HOUR, project="new"), node("b", U.HOUR, kind=Kind.SCD_TYPE_2, project="new"),
        node("c", U.HOUR, kind=Kind.SCD_TYPE_2, project="old"), node("d", U.HOUR, project="old"), reads={},
    )  # fmt: skip
    assert disabled_models(graph, {"new": {"disable_restatement": ["a"]}, "old": {}}) == {"a", "c"}


def test_an_unknown_model_is_named():
    """As everywhere."""
    with pytest.raises(UnknownModelError):
        expand(made(reads={}), "nobody", at(3), {})


# Every rule at once, against cells


@frozen
class Mesh:
    """Models in order, who reads whom, what is recorded, what is asked."""

    graph: MeshGraph
    recorded: dict[str, Cells]
    disabled: frozenset[str]
    model: str
    asked: tuple[int, int]
    rebuild: bool


KINDS = [BY_TIME, BY_TIME, BY_TIME, Kind.FULL, Kind.INCREMENTAL_BY_UNIQUE_KEY, Kind.VIEW, Kind.EMBEDDED]
WINDOWS = [Window(), Window(), Window("interval", -3 * HOUR), Window("latest"), Window("ungated")]


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    """Up to six models of all kinds, recorded up to different frontiers, some with holes."""
    names = [f"m{i}" for i in range(draw(st.integers(2, 6)))]
    nodes, edges, recorded = {}, [], {}
    for place, name in enumerate(names):
        kind = draw(st.sampled_from(KINDS)) if place else BY_TIME
        nodes[name] = node(name, draw(st.sampled_from(GRID.units)), LIFE, kind)
        parents = draw(st.sets(st.sampled_from(names[:place]), min_size=1, max_size=2)) if place else set()
        edges += [Edge(name, p, draw(st.sampled_from(WINDOWS))) for p in sorted(parents)]
        if kind is BY_TIME and draw(st.integers(0, 4)) == 0:
            edges.append(Edge(name, name))
        units = GRID.units_in(nodes[name].unit)
        kept = units[: draw(st.integers(len(units) // 2, len(units)))]
        hole = draw(st.integers(0, len(units)))
        if kind is BY_TIME and draw(st.booleans()):
            kept = [u for place, u in enumerate(kept) if place != hole]
        recorded[name] = {c for u in kept for c in GRID.cells(u)}
    start = draw(st.integers(0, GRID.size - 2))
    end = min(GRID.size, start + draw(st.sampled_from([1, 3, 12, 100, 400])))
    disabled = draw(st.frozensets(st.sampled_from(names[1:]), max_size=1))
    return Mesh(MeshGraph(nodes, edges), recorded, disabled, names[0], (start, end), draw(st.booleans()))


def oracle(mesh: Mesh) -> dict[str, tuple[Cells, Cells]]:
    """For each model what is evaluated again and what that changes, unit by unit."""
    graph, found = mesh.graph, {}
    for name in graph.order():
        one, known = graph[name], mesh.recorded[name]
        units = [set(GRID.cells(u)) for u in GRID.units_in(one.unit)]
        reached: Cells = set()
        if name == mesh.model:
            asked = set(range(*mesh.asked))
            reached = set().union(*(u for u in units if u & asked)) & known
        for gate in graph.gates(name):
            if gate.parent not in found:
                continue
            parent, changed = graph[gate.parent], found[gate.parent][1]
            for unit in GRID.units_in(one.unit):
                read = read_by(parent, gate.window, unit)
                if read and changed & set(range(GRID.cell_of(read[0]), GRID.cell_of(read[1]))):
                    reached |= GRID.cells(unit) & known
        skipped = name in mesh.disabled or (merges(one) and not mesh.rebuild)
        if not reached or skipped or not one.kind.recorded:
            continue
        onwards = {c for c in known if c >= min(reached)}
        if one.kind.reads_everything:
            found[name] = known, onwards
        elif one.kind.as_of:
            found[name] = known, known
        elif graph.sequential(name):
            found[name] = onwards, onwards
        else:
            found[name] = reached, reached
    return found


@examples(150)
@given(meshes())
def test_the_cascade_is_what_visiting_every_unit_finds(mesh: Mesh):
    """The same models in an order that puts parents first, the same ranges, the same changes."""
    recorded = {name: GRID.set_of(cells) for name, cells in mesh.recorded.items()}
    asked = Interval(GRID.at(mesh.asked[0]), GRID.at(mesh.asked[1]))
    found = expand(mesh.graph, mesh.model, asked, recorded, disabled=mesh.disabled, rebuild=mesh.rebuild)
    assert {s.name: (GRID.cells(s.range), GRID.cells(s.changed)) for s in found.steps} == oracle(mesh)
    order = [step.name for step in found.steps]
    assert order == [name for name in mesh.graph.order() if name in set(order)]
    assert not {s.name for s in found.stops} & set(order)


@examples(100)
@given(meshes())
def test_asking_for_more_never_comes_to_less(mesh: Mesh):
    """Each model's range only grows with the asked range."""
    recorded = {name: GRID.set_of(cells) for name, cells in mesh.recorded.items()}
    small = Interval(GRID.at(mesh.asked[0]), GRID.at(mesh.asked[1]))
    large = Interval(GRID.at(max(0, mesh.asked[0] - 12)), GRID.end)
    less, more = (steps(expand(mesh.graph, mesh.model, asked, recorded)) for asked in (small, large))
    assert all(less[name].range <= more[name].range for name in less)
