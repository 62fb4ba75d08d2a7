"""`verify` derives the ledger from its history by other means: it is silent after any history, and names any tampering."""

from __future__ import annotations

import os
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from guarantee_mesh import AUDIT, BRONZE, DIMENSION, GOLD, SILVER, Mesh, goes_well, minutes, node
from ledger_scene import GRACE, TTL
from meshgate.coordinator.policies import Policies
from meshgate.coordinator.run import plan_of
from meshgate.coordinator.staleness import Policy, after_promotion, find
from meshgate.coordinator.verify import collect
from meshgate.graph import Edge, Kind, MeshGraph
from meshgate.interval import Interval, IntervalSet
from meshgate.ledger import Lease
from meshgate.verification import Difference, compare
from staleness_histories import BALANCE, DAILY, play, starry
from strategies import examples
from test_ledger_people import PeopleMachine

if TYPE_CHECKING:
    from meshgate.ledger import Ledger


KEYS = '"lake"."keys"'


def verified(ledger: Ledger) -> tuple[Difference, ...]:
    with ledger.still() as still:
        return compare(collect(still))


class VerifiedMachine(PeopleMachine):
    """The histories of runs and people; after each step the ledger is what its own history says."""

    @invariant()
    def they_agree(self) -> None:
        assert verified(self.ledger) == ()


def test_after_any_history_the_ledger_is_what_its_events_say(ledger: Ledger) -> None:
    """Coverage, marks and dirty spans, derived by plain lists from the events alone."""
    profile = settings(examples(5), stateful_step_count=40, suppress_health_check=list(HealthCheck))
    if os.environ.get("MESHGATE_HURRY"):  # as in `test_ledger_stateful`
        # Always the same histories: so many that each mutation meets one.
        profile = settings(profile, max_examples=20, phases=[Phase.generate], derandomize=True, database=None)
    run_state_machine_as_test(lambda: VerifiedMachine(ledger), settings=profile)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_runs_do_staleness_and_readiness_are_as_derived(ledger: Ledger, seed: int) -> None:
    """Late rows, failures, crashes in the middle, looks that settle and merge: at every moment, not only at rest."""
    chance = random.Random(seed)  # noqa: S311 - so that a history can be had again

    def derived(_: Mesh) -> None:
        if seed % 2 and chance.random() < 0.2:
            ledger.prune(timedelta(minutes=chance.choice((5, 60))))
        assert verified(ledger) == ()

    play(ledger, seed, lambda mesh: chance.choice((mesh.settle, mesh.tidy))(), derived)


def redeploy(mesh: Mesh, chance: random.Random) -> None:
    """Another version of a model and of some that read it, with some of its time evaluated, is promoted as a deploy does."""
    first = chance.choice((BRONZE, SILVER, GOLD, DIMENSION, DAILY))
    changed = [first] + [
        e.child for e in mesh.graph.children(first) if e.child != first and chance.random() < 0.4
    ]
    nodes = dict(mesh.graph.nodes)
    for name in changed:
        others = {"1", "2", str(int(nodes[name].version) + 1)} - {nodes[name].version}
        nodes[name] = evolve(nodes[name], version=chance.choice(sorted(others)))
    edges = [edge for name in nodes for edge in mesh.graph.parents(name)]
    graph = MeshGraph(nodes, edges)
    answer = mesh.ledger.acquire("deployer", "prod", "deploy", {}, ttl=TTL, grace=GRACE)
    assert isinstance(answer, Lease)
    upto = mesh.covered(GOLD).hull
    for name in [n for n in graph.order() if n in changed]:
        version = mesh.ledger.register_version(graph[name])
        known = mesh.ledger.states([version])[version].covered
        if upto is not None and not known and chance.random() < 0.8:
            mesh.scene.record(answer.run_id, version, upto)
            mesh.ledger.note_mirrored(answer.run_id, version, upto)
    if chance.random() < 0.3:
        mesh.mark(chance.choice((BRONZE, SILVER)), minutes(20, 25), "requested")
    unbroken = {n: frozenset({mesh.graph[n].version}) for n in changed if chance.random() < 0.6}
    settled = after_promotion(mesh.ledger, "prod", graph, unbroken)
    mesh.ledger.sync_environment("prod", "plan", graph, {"up", "down"}, settled, mesh.ledger.revision())
    mesh.ledger.finish(answer.run_id, "done", {})
    mesh.graph, mesh.ids = graph, mesh.ledger.manifest("prod").version_ids


def rejects_dimension(name: str, _: Interval) -> dict[str, Any] | None:
    return AUDIT if name == DIMENSION else None


@pytest.mark.parametrize("seed", range(8))
def test_deploys_leave_staleness_as_derived(ledger: Ledger, seed: int) -> None:
    """Breaking or not, forward and back, of a model alone or with its readers, between runs that fail and looks that settle."""
    chance = random.Random(seed)  # noqa: S311 - so that a history can be had again
    mesh = starry(ledger)
    passed = 60
    mesh.time(passed)
    for _ in range(20):
        passed += chance.choice((0, 5, 30, 60))
        mesh.time(passed)
        if chance.random() < 0.3:
            mesh.mark(chance.choice((BRONZE, SILVER, GOLD)), minutes(30, 35), "requested")
        if chance.random() < 0.4:
            redeploy(mesh, chance)
        else:
            mesh.run(chance.choice(("up", "down")), chance.choice((goes_well, goes_well, rejects_dimension)))
        if chance.random() < 0.3:
            chance.choice((mesh.settle, mesh.tidy))()
        if seed % 2 and chance.random() < 0.1:
            ledger.prune(timedelta(minutes=30))
        assert verified(ledger) == ()


@pytest.mark.parametrize("same", [True, False])
def test_an_environment_that_begins_is_settled_as_another_that_has_the_same(
    ledger: Ledger, same: bool
) -> None:
    """After a change that breaks nothing: not where it reads other versions than those that were judged.

    Fails without `_stale_elsewhere`, or without `_same` in it.
    """
    mesh = starry(ledger)
    mesh.time(120)
    for project in ("up", "down"):
        mesh.run(project)
    nodes = {**mesh.graph.nodes, SILVER: evolve(mesh.graph[SILVER], version="2")}
    graph = MeshGraph(nodes, [edge for name in nodes for edge in mesh.graph.parents(name)])
    answer = ledger.acquire("up", "prod", "deploy", {}, ttl=TTL, grace=GRACE)
    assert isinstance(answer, Lease)
    for version in ("2", "3"):
        key = ledger.register_version(evolve(nodes[SILVER], version=version))
        mesh.scene.record(answer.run_id, key, minutes(0, 120))
        ledger.note_mirrored(answer.run_id, key, minutes(0, 120))
    settled = after_promotion(ledger, "prod", graph, {SILVER: frozenset({"1"})})
    ledger.sync_environment("prod", "plan", graph, {"up", "down"}, settled, ledger.revision())
    ledger.finish(answer.run_id, "done", {})
    if not same:
        nodes[SILVER] = evolve(nodes[SILVER], version="3")
        graph = MeshGraph(nodes, [edge for name in nodes for edge in mesh.graph.parents(name)])
    settled = after_promotion(ledger, "dev", graph, {})
    ledger.sync_environment("dev", "begun", graph, {"up", "down"}, settled, ledger.revision())
    stale = find(ledger, "dev", graph, ledger.manifest("dev").version_ids)
    assert (GOLD in stale, DIMENSION in stale) == (not same, not same)
    assert verified(ledger) == ()


def test_nothing_follows_from_what_an_environment_only_previews(ledger: Ledger) -> None:
    """No run computes it again, and so its readers have nothing new to read.

    Fails without `previewed`.
    """
    mesh = starry(ledger)
    mesh.time(120)
    for project in ("up", "down"):
        mesh.run(project)
    mesh.mark(DIMENSION, minutes(0, 60), "requested")

    def planned(*previews: str) -> dict[str, IntervalSet]:
        manifest = ledger.manifest("prod")
        policies = Policies(lambda _: Policy(throttle=timedelta(0)), lambda _: None, {}, ())
        plan = plan_of(mesh.bench, manifest, {"down"}, mesh.scene.now, policies=policies, previews=previews)
        return {m.name: m.ready for m in plan.models if m.ready}

    assert set(planned()) > {DIMENSION}
    assert planned(DIMENSION) == {}


def test_a_cancelled_request_leaves_nothing_that_differs(ledger: Ledger) -> None:
    """What was taken back of the marks is in the history too."""
    mesh = starry(ledger)
    mesh.time(120)
    mesh.run("up")
    (number,) = ledger.request([(BRONZE, minutes(10, 40))], reason="odd", by="ann")
    mesh.run("up", lambda _, piece: AUDIT if piece.overlaps(minutes(10, 15)) else None)
    assert ledger.cancel_request(number, "ann")
    assert verified(ledger) == ()


def test_accepted_time_that_a_run_takes_along_is_not_stale_by_it(ledger: Ledger) -> None:
    """Of a model that reads its own past: a part that SQLMesh held before, and one that it never got, are of one acceptance.

    Fails without `p.verdict = 'accepted'` in the query `stale`.
    """
    mesh = starry(ledger)
    mesh.time(120)
    mesh.run("up")
    odd = minutes(60, 65)
    mesh.mark(BALANCE, odd, "requested")
    mesh.run("up", lambda name, piece: AUDIT if name == BALANCE and piece.overlaps(odd) else None)
    mesh.time(130)
    key = mesh.ids[BALANCE]
    assert ledger.accept(key, minutes(60, 130), lookback=None, reason="odd", by="ann") == (
        odd,
        minutes(120, 130),
    )
    before = mesh.stale()[BALANCE]
    assert ledger.adopt_accepted(mesh.acquire("up").run_id, key) == (minutes(120, 130),)
    assert mesh.stale()[BALANCE] == before == IntervalSet([minutes(65, 120)])
    assert verified(ledger) == ()


# -- tampering, each sort once: named exactly


@pytest.fixture
def mesh(ledger: Ledger) -> Mesh:
    """Three hours of history, one restated interval that downstream has not read yet, and one that is asked for."""
    mesh = starry(ledger)
    mesh.time(180)
    mesh.run("up")
    mesh.run("down")
    mesh.mark(BRONZE, minutes(70, 75), "requested")
    mesh.time(185)
    mesh.run("up")
    mesh.mark(BRONZE, minutes(20, 25), "requested")
    assert verified(ledger) == ()
    assert mesh.stale()[GOLD] == IntervalSet([minutes(60, 120)])
    return mesh


def tamper(mesh: Mesh, statement: str, name: str = GOLD) -> list[tuple[str, str, Interval | None]]:
    """Change the ledger behind everybody's back; what `verify` says of it."""
    mesh.ledger.database.execute(statement, {"v": mesh.ids[name]})
    return told(mesh)


def told(mesh: Mesh) -> list[tuple[str, str, Interval | None]]:
    found = verified(mesh.ledger)
    assert all((d.project, d.version) == (mesh.graph[d.model].project, "1") for d in found)
    return [(d.what, d.model, d.interval) for d in found]


ROW = "version_id = %(v)s AND span @> '2026-01-05 01:10Z'::timestamptz"


def test_a_refresh_that_stamps_more_than_its_new_part_is_as_derived(mesh: Mesh) -> None:
    """Somebody asked for its first hour: from there on all of it is new."""
    first = mesh.ledger.states([mesh.ids[DIMENSION]])[mesh.ids[DIMENSION]].covered.hull
    assert first is not None
    mesh.mark(DIMENSION, first, "requested")
    mesh.time(600)
    mesh.run("up")
    mesh.run("down")
    rows = mesh.ledger.coverage_rows(mesh.ids[DIMENSION], first)
    assert len({row.revision for row in rows}) == 1
    assert verified(mesh.ledger) == ()


def test_a_row_that_is_gone_is_named(mesh: Mesh) -> None:
    gone = [("coverage", DIMENSION, minutes(0, 180))]
    assert tamper(mesh, f"DELETE FROM meshgate.coverage WHERE {ROW}", DIMENSION)[:1] == gone


def test_a_row_that_nobody_recorded_is_named(mesh: Mesh) -> None:
    found = tamper(
        mesh,
        "INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, verdict, committed_at, mirrored_at)"
        " VALUES (%(v)s, '[2026-01-05 03:00Z,2026-01-05 04:00Z)', 9, 8, 'passed', now(), now())",
    )
    # The ledger calls it stale, as it must; the derivation knows of nothing that could be.
    assert found == [("coverage", GOLD, minutes(180, 240)), ("stale", GOLD, minutes(180, 240))]


def test_a_lowered_revision_and_what_it_hides_are_named(mesh: Mesh) -> None:
    found = tamper(mesh, f"UPDATE meshgate.coverage SET revision = 2, read_revision = 1 WHERE {ROW}", SILVER)
    assert found[0] == ("revision", SILVER, minutes(70, 75))
    assert ("stale", GOLD, minutes(60, 120)) in found
    assert {what for what, *_ in found} == {"revision", "stale"}


def test_a_raised_revision_is_named(mesh: Mesh) -> None:
    """Merging keeps the highest of several revisions; one that no event made is none of them."""
    found = tamper(mesh, f"UPDATE meshgate.coverage SET revision = 9999 WHERE {ROW}")
    assert found == [("revision", GOLD, minutes(0, 180))]


def test_a_ledger_whose_number_went_back_is_named(mesh: Mesh) -> None:
    """What is made next would have a number that somebody has read already: it would hide."""
    mesh.ledger.database.execute("UPDATE meshgate.ledger SET revision = revision - 1")
    assert ("revision", "") in {(found.what, found.model) for found in verified(mesh.ledger)}


@pytest.mark.parametrize(
    "batch", ["tstzrange(lower(batch), lower(batch) + interval '1 hour')", "NULL", "'(,)'"]
)
def test_another_batch_of_a_doubt_is_named(ledger: Ledger, batch: str) -> None:
    """Less of a table that merges would be merged again than was being written, or more."""
    mesh = Mesh(ledger, ([node(KEYS, "up", "hour", Kind.INCREMENTAL_BY_UNIQUE_KEY)], [Edge(KEYS, SILVER)]))
    mesh.time(240)
    mesh.run("up")
    mesh.mark(KEYS, minutes(60, 180), "suspect")
    assert verified(ledger) == ()
    ledger.database.execute(f"UPDATE meshgate.mark SET batch = {batch}")
    assert [(found.what, found.model) for found in verified(ledger)] == [("mark", KEYS)]


def test_another_sort_of_table_is_named(mesh: Mesh) -> None:
    """A version that is taken for one whole, though it has rows by time."""
    assert tamper(mesh, "UPDATE meshgate.version SET as_of = NOT as_of WHERE version_id = %(v)s") == [
        ("kind", GOLD, None)
    ]


def test_a_raised_read_revision_that_hides_staleness_is_named(mesh: Mesh) -> None:
    raised = "(SELECT revision - 1 FROM meshgate.ledger)"
    found = tamper(
        mesh, f"UPDATE meshgate.coverage SET read_revision = {raised}, revision = {raised} + 1 WHERE {ROW}"
    )
    assert ("stale", GOLD, minutes(60, 120)) in found
    assert {name for _, name, _ in found} == {GOLD}


def test_a_raised_read_revision_that_hides_a_mark_is_named(mesh: Mesh) -> None:
    raised = "UPDATE meshgate.coverage SET revision = l.revision, read_revision = l.revision - 1 FROM meshgate.ledger l"
    found = tamper(
        mesh, f"{raised} WHERE version_id = %(v)s AND span @> '2026-01-05 00:20Z'::timestamptz", BRONZE
    )
    assert ("revision", BRONZE, minutes(20, 25)) not in found  # the mark is as new as that
    mesh.ledger.database.execute("UPDATE meshgate.ledger SET revision = revision + 5")
    found = tamper(
        mesh, f"{raised} WHERE version_id = %(v)s AND span @> '2026-01-05 00:20Z'::timestamptz", BRONZE
    )
    assert ("revision", BRONZE, minutes(20, 25)) in found


def test_a_mark_that_is_gone_is_named(mesh: Mesh) -> None:
    found = tamper(mesh, "DELETE FROM meshgate.mark WHERE version_id = %(v)s", BRONZE)
    assert found == [("mark", BRONZE, minutes(20, 25))]


def test_a_mark_of_nobody_is_named(mesh: Mesh) -> None:
    assert tamper(
        mesh,
        "INSERT INTO meshgate.mark (version_id, span, kind, revision, made_at)"
        " VALUES (%(v)s, '[2026-01-05 01:00Z,2026-01-05 02:00Z)', 'requested', 3, now())",
    ) == [("mark", GOLD, minutes(60, 120))]


def test_a_mark_that_nothing_will_discharge_is_named(mesh: Mesh) -> None:
    """It is about time before the model's beginning."""
    mesh.mark(GOLD, minutes(-60, 0), "requested")
    assert told(mesh) == [("mark", GOLD, minutes(-60, 0))]


def test_another_verdict_is_named(mesh: Mesh) -> None:
    found = tamper(mesh, f"UPDATE meshgate.coverage SET verdict = 'accepted' WHERE {ROW}")
    assert found == [("verdict", GOLD, minutes(0, 180))]


def test_a_dirty_span_that_is_gone_is_named(mesh: Mesh) -> None:
    mesh.run("down", rejects_dimension)
    assert told(mesh) == []
    found = tamper(mesh, "DELETE FROM meshgate.dirty_span WHERE version_id = %(v)s", DIMENSION)
    assert ("dirty_span", DIMENSION, None) in found


def test_a_claim_of_a_run_that_has_ended_is_named(mesh: Mesh) -> None:
    lease = mesh.acquire("down")
    mesh.ledger.open_claims(lease.run_id, mesh.ids[GOLD], [minutes(60, 120)])
    assert told(mesh) == []
    found = tamper(mesh, "UPDATE meshgate.run SET state = 'done', ended_at = now() WHERE state = 'running'")
    assert found == [("claim", GOLD, minutes(60, 120))]


def test_what_was_read_before_its_parents_were_there_is_named(mesh: Mesh) -> None:
    """A writer that asks no gate."""
    lease = mesh.acquire("down")
    mesh.time(240)
    lease = mesh.acquire("down")
    mesh.scene.record(lease.run_id, mesh.ids[GOLD], minutes(180, 240))
    assert told(mesh) == [("premature", GOLD, minutes(180, 240))]


def test_what_was_read_while_it_was_in_doubt_is_named(mesh: Mesh) -> None:
    mesh.mark(SILVER, minutes(60, 65), "suspect")
    lease = mesh.acquire("down")
    mesh.scene.record(lease.run_id, mesh.ids[GOLD], minutes(60, 120))
    assert told(mesh) == [("premature", GOLD, minutes(60, 120))]


def test_what_was_done_before_the_history_is_taken_as_it_is(mesh: Mesh) -> None:
    """Events are kept for a while; what came later is checked as ever."""
    mesh.time(300)
    mesh.ledger.prune(timedelta(minutes=30))
    assert (mesh.ledger.history(), told(mesh)) == ([], [])
    mesh.run("up")
    mesh.run("down")
    assert told(mesh) == []
    found = tamper(
        mesh,
        "DELETE FROM meshgate.coverage WHERE version_id = %(v)s AND span && '[2026-01-05 04:00Z,2026-01-05 05:00Z)'",
        BRONZE,
    )
    assert ("coverage", BRONZE, minutes(185, 300)) in found
