"""Holds and declared holes from end to end: two real SQLMesh projects on a real lakehouse, and the plan above them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshgate.interval import IntervalSet
from tiny_mesh import AUDIT, GOLD, SILVER, TinyMesh, at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.interval import Interval
    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

BRONZE_EVENTS, SILVER_EVENTS, GOLD_HOURLY = (
    '"lake"."bronze"."events"',
    '"lake"."silver"."events"',
    '"lake"."gold"."hourly"',
)
# An hour that reads the one before it too, so that its intervals go in order.
ITSELF = GOLD.replace("FROM silver.events WHERE", "FROM silver.events WHERE NOT EXISTS (SELECT 1 FROM gold.hourly g WHERE g.hour > @end_dt) AND")  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path, postgres: LocalPostgres, extensions: None) -> TinyMesh:
    return TinyMesh(tmp_path, postgres)


def deployed(tiny: TinyMesh, mesh: Mesh, upto: float) -> None:
    """Both projects are done up to a minute."""
    tiny.feed(0, 300)
    mesh.deploy("upstream", now=at(upto))
    mesh.deploy("downstream", now=at(upto))


def recorded(mesh: Mesh, model: str, interval: Interval) -> list[tuple[str, int]]:
    """Verdict and revision of what is recorded of an interval."""
    return [(row.verdict, row.revision) for row in mesh.why(model, interval).recorded]


def in_sqlmesh(tiny: TinyMesh, model: str) -> IntervalSet:
    """What plain SQLMesh holds for done."""
    from meshgate.bridge.translate import interval_set

    with tiny.plain("upstream") as plain:
        (found,) = [s for s in plain.state_reader.get_snapshots(
            plain.state_reader.get_environment("prod").snapshots).values() if s.name == model]  # fmt: skip
        return interval_set(found.intervals)


def test_what_is_held_is_evaluated_and_not_read_until_it_is_released(tiny: TinyMesh) -> None:
    """Upstream goes on, downstream is blocked with who and why; released, it runs."""
    with tiny.mesh() as mesh:
        deployed(tiny, mesh, 180)
        mesh.hold("silver.events", span(185, 190), reason="prices look odd", by="ann")
        assert mesh.run("upstream", now=at(240)).committed[SILVER_EVENTS] == IntervalSet([span(180, 240)])
        report = mesh.run("downstream", now=at(240))
        assert (report.state, report.exit_code) == ("nothing_to_do", 0)
        (blocked,) = report.blocked
        assert (blocked.parent, blocked.span, blocked.reason) == (SILVER_EVENTS, span(185, 190), "held")
        assert (blocked.detail["by"], blocked.detail["reason"]) == ("ann", "prices look odd")
        mesh.release("silver.events", by="bob")
        assert mesh.run("downstream", now=at(240)).committed == {GOLD_HOURLY: IntervalSet([span(180, 240)])}
    tiny.check(240)


def test_a_hold_outlives_a_deploy_that_changes_the_model(tiny: TinyMesh) -> None:
    """The new version is held where the old one was."""
    with tiny.mesh() as mesh:
        deployed(tiny, mesh, 180)
        mesh.hold("silver.events", span(180, 240), reason="odd", by="ann")
        tiny.write("upstream", "silver", SILVER.replace("SELECT id", "SELECT /* mended */ 1 * id AS id"))
        mesh.deploy("upstream", now=at(180))
        mesh.run("upstream", now=at(240))
        assert {b.reason for b in mesh.run("downstream", now=at(240)).blocked} == {"held"}
        (told,) = mesh.status(now=at(240)).holds
        assert (told[0], told[2].by) == (SILVER_EVENTS, "ann")


def test_a_model_that_reads_itself_goes_on_over_its_own_hold(tiny: TinyMesh) -> None:
    """Its history has no hole: the hold is for those who read it."""
    tiny.write("downstream", "gold", ITSELF)
    with tiny.mesh() as mesh:
        deployed(tiny, mesh, 180)
        mesh.hold("gold.hourly", span(60, 120), reason="odd", by="ann")
        mesh.run("upstream", now=at(240))
        assert mesh.run("downstream", now=at(240)).committed == {GOLD_HOURLY: IntervalSet([span(180, 240)])}


def test_what_an_audit_warns_of_is_held_where_the_project_says_so(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """Its readers wait, and are told the audit; once it is repaired and passes they go on."""
    tiny = TinyMesh(tmp_path, postgres, policies={"on_audit_warning": "hold"})
    mild = AUDIT.replace("value_is_positive)", "value_is_positive, blocking false)")
    (tiny.folder / "upstream/audits/positive.sql").write_text(mild)
    with tiny.mesh() as mesh:
        deployed(tiny, mesh, 180)
        tiny.poison(182)
        report = mesh.run("upstream", now=at(185))
        assert [w.interval for w in report.warned] == [span(180, 185)]
        assert {(b.model, b.reason) for b in report.blocked} == {(SILVER_EVENTS, "held")}
        (told,) = mesh.status(now=at(185)).holds
        assert (told[0], told[2].by) == (BRONZE_EVENTS, "on_audit_warning")
        assert told[2].reason == "audit value_is_positive found 1"
        tiny.repair(182)
        with tiny.plain("upstream", load=True) as plain:
            snapshot = plain.get_snapshot("bronze.events")
            plain.state_sync.remove_intervals([(snapshot, snapshot.inclusive_exclusive(at(180), at(185)))])
        again = mesh.run("upstream", now=at(185))
        assert again.committed[BRONZE_EVENTS] == IntervalSet([span(180, 185)])
        assert mesh.status(now=at(185)).holds == ()
        mesh.run("upstream", now=at(185))
    tiny.check(185)


def test_a_poisoned_interval_is_accepted_and_later_filled(tiny: TinyMesh) -> None:
    """Downstream goes on; SQLMesh is told; what is filled later has a revision above all that read the hole."""
    with tiny.mesh() as mesh:
        deployed(tiny, mesh, 180)
        tiny.poison(192)
        mesh.run("upstream", now=at(240))
        assert mesh.run("downstream", now=at(240)).state == "nothing_to_do"
        mesh.accept("bronze.events", span(190, 195), reason="lost at the source", by="ann")
        assert not in_sqlmesh(tiny, BRONZE_EVENTS).covers(span(190, 195))
        report = mesh.run("upstream", now=at(240))
        assert (report.findings, report.committed) == ((), {SILVER_EVENTS: IntervalSet([span(190, 195)])})
        assert in_sqlmesh(tiny, BRONZE_EVENTS) == IntervalSet([span(0, 240)])
        assert mesh.run("downstream", now=at(240)).committed == {GOLD_HOURLY: IntervalSet([span(180, 240)])}
        assert mesh.run("upstream", now=at(240)).state == "nothing_to_do"
        ((verdict, hole),) = recorded(mesh, "bronze.events", span(190, 195))
        assert verdict == "accepted"

        tiny.repair(192)
        mesh.undo_accept("bronze.events", span(190, 195), by="bob")
        filled = mesh.run("upstream", now=at(240))
        assert filled.committed[BRONZE_EVENTS] == IntervalSet([span(190, 195)])
        ((verdict, made),) = recorded(mesh, "bronze.events", span(190, 195))
        assert (verdict, made > hole) == ("passed", True)


def test_plain_sqlmesh_leaves_accepted_time_alone(tiny: TinyMesh) -> None:
    """It holds it for done, as meshgate does; restating it there makes it due again."""
    with tiny.mesh() as mesh:
        deployed(tiny, mesh, 180)
        tiny.poison(182)
        mesh.run("upstream", now=at(185))
        mesh.accept("bronze.events", span(180, 185), reason="lost at the source", by="ann")
        mesh.run("upstream", now=at(185))
        with tiny.plain("upstream") as plain:
            plain.run("prod", execution_time=at(185), skip_janitor=True, select_models=["bronze.events"],
                      no_auto_upstream=True)  # fmt: skip
        assert mesh.run("upstream", now=at(185)).findings == ()
        tiny.repair(182)
        with tiny.plain("upstream", load=True) as plain:
            snapshot = plain.get_snapshot("bronze.events")
            plain.state_sync.remove_intervals([(snapshot, snapshot.inclusive_exclusive(at(180), at(185)))])
        report = mesh.run("upstream", now=at(185))
        assert [(f.model, f.what, f.interval) for f in report.findings] == [
            (BRONZE_EVENTS, "removed", span(180, 185))
        ]
        assert report.committed[BRONZE_EVENTS] == IntervalSet([span(180, 185)])
    assert tiny.table("bronze.events") == tiny.expected(185)["bronze.events"]
