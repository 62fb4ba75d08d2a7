"""The histories that break simpler rules of coordination, by the number of the rule that they ask for.

A rule says what keeps data right (1 to 12) or work moving (13 to 26) where a simpler one does not. Some histories are
told by a test that stands elsewhere, beside what it is about; `TOLD_ELSEWHERE` names it. `tests/simulator_rules.py`
takes the rules away, one by one.
"""

from __future__ import annotations

import ast
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from guarantee_mesh import AUDIT, BRONZE, DIMENSION, GOLD, SILVER, Mesh, minutes, node
from meshgate.bridge.translate import Promoted
from meshgate.coordinator.manifest import build_graph
from meshgate.coordinator.staleness import after_promotion, find
from meshgate.graph import Edge, Kind, MeshGraph
from meshgate.interval import Interval, IntervalSet
from simulator_rules import LEFT_OUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.ledger import Ledger

LOG, FACT, BALANCE = '"lake"."log"', '"lake"."fact"', '"lake"."balance"'

TOLD_ELSEWHERE = {
    "01": ["test_staleness.test_a_restated_dimension_makes_its_facts_stale_from_there_on"],
    "02": [
        "test_guarantees.test_g2_no_double_work_on_a_whole_table",
        "test_ledger_tables.test_a_failed_refresh_makes_the_whole_table_unclean",
    ],
    "03": ["test_staleness.test_a_reader_in_flight_over_a_failed_refresh_is_stale"],
    "04": [
        "test_guarantees.test_g3_no_lost_work_when_a_request_comes_while_it_is_worked",
        "test_ledger_runs.test_the_suspicion_of_a_zombies_write_outlives_the_successors_commit",
        "test_ledger_tables.test_an_evaluation_under_way_does_not_discharge_a_foreign_write",
    ],
    "05": [
        "test_guarantees.test_g6_a_foreign_evaluation_that_spans_a_look_is_not_trusted",
        "test_ledger_tables.test_foreign_time_over_time_that_the_ledger_knows_is_suspect",
        "test_ledger_holes.test_plain_sqlmesh_over_accepted_time_is_suspect",
    ],
    "09": [
        "test_ledger.test_the_obligation_outlives_the_run",
        "test_ledger_holes.test_accepting_fresh_time_obliges_to_the_lookback",
        "test_bridge_kinds.test_a_lookback_that_fails_is_not_forgotten",
    ],
    "10": [
        "test_guarantees.test_g3_no_lost_work_of_what_crashed_between_the_two_records",
        "test_ledger_tables.test_what_an_ended_run_did_not_mirror_is_evaluated_again",
    ],
    "11": [
        "test_guarantees.test_g4_a_mute_zombie_is_waited_out",
        "test_guarantees.test_g4_a_zombies_late_write_is_evaluated_again",
    ],
    "14": ["test_guarantees.test_g1_no_premature_work_when_a_batch_begins"],
    "16": [
        "test_gate.test_unsettled_parents_are_waited_for_until_patience_runs_out",
        "test_turns.test_readers_wait_less_where_redos_stand_back",
    ],
    "17": [
        "test_staleness.test_stale_time_is_left_alone_for_a_period_after_it_was_read",
        "test_staleness.test_twelve_restated_intervals_are_one_hourly_evaluation_of_each_affected_model",
    ],
    "19": ["test_graph.test_a_window_is_clipped_to_the_parents_life"],
    "20": ["test_gate.test_a_fact_does_not_wait_for_the_day_of_its_dimension"],
    "21": ["test_due.test_lookback_follows_new_units_only"],
    "22": ["test_staleness.test_a_table_that_merges_is_only_reported"],
    "25": ["test_ledger_requests.test_a_request_goes_over_to_the_version_that_is_promoted_next"],
}


def test_every_rule_has_its_history() -> None:
    """Here, or in a test that is really there, or a reason why not."""
    here = Path(__file__).parent
    for told in (each for names in TOLD_ELSEWHERE.values() for each in names):
        module, name = told.split(".")
        tree = ast.parse((here / f"{module}.py").read_text())
        assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, told
    numbers = {name.split("_")[2] for name in globals() if name.startswith("test_rule_")}
    numbers |= set(TOLD_ELSEWHERE) | {number.zfill(2) for number in LEFT_OUT}
    assert numbers == {f"{number:02}" for number in range(1, 27)}


@pytest.fixture
def mesh(ledger: Ledger) -> Mesh:
    """Both projects have done their first two hours."""
    made = Mesh(ledger)
    catch_up(made, 120)
    return made


def catch_up(mesh: Mesh, passed: float) -> None:
    mesh.time(passed)
    mesh.run("up")
    mesh.run("down")


def spoilt(*names: str) -> Callable[[str, Interval], dict[str, Any] | None]:
    """An engine whose evaluations of some models fail."""
    return lambda name, _piece: AUDIT if name in names else None


class Deploy:
    """A new version of silver that is built now, and promoted when the test says so."""

    def __init__(self, mesh: Mesh, upto: float) -> None:
        self.mesh = mesh
        self.node = evolve(mesh.graph[SILVER], version="2")
        self.graph = MeshGraph(
            {**mesh.graph.nodes, SILVER: self.node},
            [e for name in mesh.graph.order() for e in mesh.graph.parents(name)],
        )
        self.key = mesh.ledger.register_version(self.node)
        run = mesh.ledger.acquire(
            "up", "prod", "deploy", {}, ttl=timedelta(hours=1), grace=timedelta(0)
        ).run_id
        mesh.ledger.open_claims(run, self.key, [minutes(0, upto)])
        mesh.ledger.begin(run, self.key, minutes(0, upto), needs=[], loaded=[], environment=None)
        mesh.ledger.commit(run, self.key, minutes(0, upto), verdict="passed")
        mesh.ledger.finish(run, "done", {})

    def promote(self, *, breaking: bool) -> dict[str, IntervalSet]:
        """What is stale afterwards."""
        ledger = self.mesh.ledger
        unbroken = {} if breaking else {SILVER: frozenset({"1"})}
        settled = after_promotion(ledger, "prod", self.graph, unbroken)
        ledger.sync_environment("prod", "plan", self.graph, {"up", "down"}, settled, ledger.revision())
        found = find(ledger, "prod", self.graph, ledger.manifest("prod").version_ids)
        return {name: IntervalSet(s.interval for s in pairs) for name, pairs in found.items()}


def test_rule_07_a_restated_parent_is_not_hidden_by_a_non_breaking_deploy(mesh: Mesh) -> None:
    """Bronze is restated, silver is stale; its new version is built from the new rows: gold has read the old ones."""
    mesh.mark(BRONZE, minutes(10, 15), "requested")
    mesh.run("up", spoilt(SILVER))  # silver's own redo is still to come
    stale = Deploy(mesh, 120).promote(breaking=False)
    assert stale[GOLD] == IntervalSet([minutes(0, 60)])


def test_rule_07_a_breaking_deploy_counts_from_its_promotion(mesh: Mesh) -> None:
    """The new version is built before gold reads the old one, and promoted after it."""
    deploy = Deploy(mesh, 120)
    mesh.mark(GOLD, minutes(0, 60), "requested")
    mesh.run("down")
    assert deploy.promote(breaking=True)[GOLD] == IntervalSet([minutes(0, 120)])


def test_rule_07_what_was_made_again_since_the_build_is_suspect(mesh: Mesh) -> None:
    """The old version has newer rows than the one that replaces it."""
    deploy = Deploy(mesh, 120)
    mesh.mark(SILVER, minutes(10, 15), "requested")
    mesh.run("up")
    deploy.promote(breaking=False)
    marks = mesh.ledger.states([deploy.key])[deploy.key].marks
    assert [(m.kind, m.interval) for m in marks] == [("suspect", minutes(10, 15))]


def test_rule_07_an_unchanged_deploy_makes_nothing_stale(mesh: Mesh) -> None:
    """Non-breaking, and nothing is wrong with either version: readers go on as they were."""
    assert Deploy(mesh, 120).promote(breaking=False) == {}


def test_rule_07_an_accepted_hole_is_not_what_the_new_version_computed(ledger: Ledger) -> None:
    """Gold has read what a person took as it was; the new version holds what its query makes of it."""
    mesh = Mesh(ledger)
    mesh.time(60)
    mesh.run("up", lambda name, piece: AUDIT if name == SILVER and piece.start < minutes(0, 5).end else None)
    ledger.accept(mesh.ids[SILVER], minutes(0, 5), lookback=None, reason="good enough", by="a person")
    mesh.run("down")
    assert mesh.stale() == {}
    assert Deploy(mesh, 60).promote(breaking=False)[GOLD] == IntervalSet([minutes(0, 60)])


def test_rule_12_who_read_before_an_acceptance_is_stale(mesh: Mesh) -> None:
    """Silver was good, its redo fails and is accepted: gold holds other rows than silver. Filled later, it is stale again."""
    mesh.mark(SILVER, minutes(10, 15), "requested")
    mesh.run("up", spoilt(SILVER))
    mesh.ledger.accept(mesh.ids[SILVER], minutes(10, 15), lookback=None, reason="good enough", by="a person")
    assert mesh.stale()[GOLD] == IntervalSet([minutes(0, 60)])
    mesh.run("down")
    assert mesh.stale() == {}
    mesh.mark(SILVER, minutes(10, 15), "requested")
    mesh.run("up")
    assert mesh.stale()[GOLD] == IntervalSet([minutes(0, 60)])


def test_rule_12_who_read_a_whole_table_as_it_was_accepted_is_stale_when_it_is_refreshed(
    ledger: Ledger,
) -> None:
    """A refresh wrote over all rows, failed, and was accepted; a fact reads them; the next refresh writes them anew."""
    mesh = Mesh(ledger, ([node(FACT, "down", "hour")], [Edge(FACT, DIMENSION)]))
    catch_up(mesh, 60)
    mesh.time(120)
    mesh.run("up")
    mesh.run("down", spoilt(DIMENSION))
    ledger.accept(mesh.ids[DIMENSION], minutes(60, 120), lookback=None, reason="good enough", by="a person")
    mesh.mark(FACT, minutes(0, 60), "requested")
    mesh.run("down")
    assert FACT not in mesh.stale()  # as long as nobody refreshes it, they have read what is there
    mesh.time(180)
    mesh.run("up")
    lease = mesh.acquire("down")  # the dimension alone
    journal = mesh.journal(lease, "down")
    (piece,) = mesh.claim(journal, mesh.plan("down"))[DIMENSION]
    mesh.evaluate(journal, DIMENSION, piece)
    assert mesh.stale()[FACT] == IntervalSet([minutes(0, 120)])


def test_rule_13_what_is_done_in_one_run_is_not_stale_at_birth(mesh: Mesh) -> None:
    """All claims are opened before the first batch; each reads from its own begin on."""
    catch_up(mesh, 180)
    assert mesh.stale() == {}
    assert mesh.plan().is_empty


def test_rule_13_what_a_lost_run_had_only_reserved_is_clean(mesh: Mesh) -> None:
    """It has written nothing: nobody computes it again for that."""
    mesh.mark(SILVER, minutes(10, 15), "requested")
    lease = mesh.acquire("up")
    mesh.claim(mesh.journal(lease, "up"), mesh.plan("up"))
    mesh.time(240)
    mesh.ledger.take_over()
    assert {m.kind for m in mesh.ledger.states([mesh.ids[SILVER]])[mesh.ids[SILVER]].marks} == {"requested"}


def test_rule_15_a_chain_is_computed_again_in_one_run(ledger: Ledger) -> None:
    """Not one model a run: what the run will make stale is due in it."""
    chain = [f'"lake"."link_{n}"' for n in range(4)]
    nodes = [node(name, "up", "five_minute") for name in chain]
    edges = [Edge(child, parent) for parent, child in zip([SILVER, *chain], chain, strict=False)]
    mesh = Mesh(ledger, (nodes, edges))
    catch_up(mesh, 60)
    mesh.mark(BRONZE, minutes(10, 15), "requested")
    assert mesh.run("up").committed == dict.fromkeys((BRONZE, SILVER, *chain), IntervalSet([minutes(10, 15)]))


def test_rule_18_intervals_of_one_batch_are_computed_once(ledger: Ledger) -> None:
    """A model that reads its own past: rows of one commit are newer than what that commit had read, and right."""
    balance = evolve(node(BALANCE, "up", "five_minute"), depends_on_past=True)
    mesh = Mesh(ledger, ([balance], [Edge(BALANCE, SILVER), Edge(BALANCE, BALANCE)]))
    tried: list[Interval] = []

    def engine(name: str, piece: Interval) -> None:
        if name == BALANCE:
            tried.append(piece)

    for _ in range(3):
        catch_up(mesh, 60)
        mesh.run("up", engine)
    assert mesh.stale() == {}
    assert tried == []
    mesh.mark(SILVER, minutes(10, 15), "requested")
    for _ in range(3):
        mesh.run("up", engine)
    assert tried == [minutes(10, 60)]


def test_rule_23_rows_are_not_appended_twice(ledger: Ledger) -> None:
    """An evaluation that failed may have appended: its interval is held until a person has looked, and so is what follows."""
    mesh = Mesh(ledger, ([node(LOG, "down", "hour", Kind.INCREMENTAL_UNMANAGED)], [Edge(LOG, GOLD)]))
    mesh.time(120)
    mesh.run("up")
    tried: list[Interval] = []

    def engine(name: str, piece: Interval) -> dict[str, Any] | None:
        if name == LOG:
            tried.append(piece)
        return spoilt(LOG)(name, piece)

    mesh.run("down", engine)
    mesh.time(180)
    mesh.run("up")
    mesh.run("down", engine)
    assert tried == [minutes(0, 120)]
    assert "held" in {b.reason for b in mesh.of(LOG).blocked}
    ledger.accept(mesh.ids[LOG], minutes(0, 120), lookback=None, reason="looked at it", by="a person")
    assert mesh.run("down").committed[LOG] == IntervalSet([minutes(120, 180)])


def test_rule_26_an_external_table_that_the_mesh_makes_is_gated(mesh: Mesh) -> None:
    """In the reader's state it is external; it is the other project's model all the same."""
    theirs, ours = mesh.graph[SILVER], mesh.graph[GOLD]
    external = evolve(theirs, kind=Kind.EXTERNAL, project="", version="")
    plan = Promoted(
        "plan", finalized=True, nodes={GOLD: ours, SILVER: external}, parents={GOLD: (SILVER,)}, recorded={}
    )
    assert [gate.parent for gate in build_graph(plan, {}, {SILVER: theirs}, "prod").gates(GOLD)] == [SILVER]
    assert build_graph(plan, {}, {}, "prod").gates(GOLD) == ()
