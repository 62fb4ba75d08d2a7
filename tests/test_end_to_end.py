"""Two real SQLMesh projects on a real lakehouse, through the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshgate.interval import IntervalSet
from tiny_mesh import GOLD, SILVER, TinyMesh, at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

SILVER_EVENTS, GOLD_HOURLY, BRONZE_EVENTS = (
    '"lake"."silver"."events"',
    '"lake"."gold"."hourly"',
    '"lake"."bronze"."events"',
)


@pytest.fixture
def tiny(tmp_path: Path, postgres: LocalPostgres, extensions: None) -> TinyMesh:
    return TinyMesh(tmp_path, postgres)


def test_an_hour_waits_for_the_last_five_minutes_of_its_parent(tiny: TinyMesh) -> None:
    """The hour 03:00-04:00 is not touched while upstream reached 03:05, and is whole once upstream is there."""
    tiny.feed(0, 300)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(185))
        mesh.deploy("downstream", now=at(185))
        tiny.check(185)
        early = mesh.run("downstream", now=at(240))
        assert early.state == "nothing_to_do"
        assert {(b.parent, b.span, b.reason) for b in early.blocked} == {
            (SILVER_EVENTS, span(185, 240), "late")
        }
        mesh.run("upstream", now=at(240))
        done = mesh.run("downstream", now=at(240))
        assert done.committed == {GOLD_HOURLY: IntervalSet([span(180, 240)])}
    tiny.check(240)


def test_one_bad_interval_of_twelve_is_reported_and_eleven_are_committed(tiny: TinyMesh) -> None:
    """After an hour's pause one run catches up twelve intervals, of which one fails its audit."""
    tiny.feed(0, 180)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
        tiny.poison(92)
        report = mesh.run("upstream", now=at(120))
        assert report.exit_code == 1
        assert [(f.model, f.interval, f.detail) for f in report.failed] == [
            (BRONZE_EVENTS, span(90, 95), {"audits": [{"audit": "value_is_positive", "count": 1}]})
        ]
        eleven = IntervalSet([span(60, 120)]) - IntervalSet([span(90, 95)])
        assert report.committed == {BRONZE_EVENTS: eleven, SILVER_EVENTS: eleven}
        assert {(b.model, b.interval, b.reason) for b in report.blocked} == {
            (SILVER_EVENTS, span(90, 95), "failed")
        }


def test_a_poisoned_interval_blocks_its_own_hour_only_and_passes_once_repaired(tiny: TinyMesh) -> None:
    """The hours around a failed interval go on; the retry takes exactly the failed interval."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
        tiny.poison(92)
        mesh.run("upstream", now=at(180))
        report = mesh.run("downstream", now=at(180))
        assert report.exit_code == 0
        assert report.committed == {GOLD_HOURLY: IntervalSet([span(120, 180)])}
        assert {b.interval for b in report.blocked} == {span(60, 120)}
        tiny.repair(92)
        assert mesh.run("upstream", now=at(180)).committed == {
            BRONZE_EVENTS: IntervalSet([span(90, 95)]), SILVER_EVENTS: IntervalSet([span(90, 95)]),
        }  # fmt: skip
        mesh.run("downstream", now=at(180))
    tiny.check(180)


def test_plain_sqlmesh_is_noticed_and_its_premature_work_healed(tiny: TinyMesh) -> None:
    """G6: a plain run of downstream alone records an hour that upstream has not covered; it is evaluated again."""
    tiny.feed(0, 300)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(185))
        mesh.deploy("downstream", now=at(185))
        with tiny.plain("downstream") as plain:
            plain.run(
                "prod",
                execution_time=at(240),
                skip_janitor=True,
                select_models=["gold.hourly"],
                no_auto_upstream=True,
            )
        assert tiny.table("gold.hourly")[3][1] == 5  # of sixty
        blocked = mesh.run("downstream", now=at(240))
        assert [(f.model, f.what, f.interval) for f in blocked.findings] == [
            (GOLD_HOURLY, "added", span(180, 240)), (GOLD_HOURLY, "suspect", span(180, 240)),
        ]  # fmt: skip
        assert not blocked.committed
        mesh.run("upstream", now=at(240))
        assert mesh.run("downstream", now=at(240)).committed == {GOLD_HOURLY: IntervalSet([span(180, 240)])}
        assert mesh.run("downstream", now=at(240)).state == "nothing_to_do"
    tiny.check(240)


def test_what_plain_sqlmesh_computed_downstream_is_computed_once_more(tiny: TinyMesh) -> None:
    """A foreign hour may have read before its parents were complete, whatever they are now; once is enough."""
    tiny.feed(0, 300)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(240))
        mesh.deploy("downstream", now=at(180))
        with tiny.plain("downstream") as plain:
            plain.run(
                "prod",
                execution_time=at(240),
                skip_janitor=True,
                select_models=["gold.hourly"],
                no_auto_upstream=True,
            )
        report = mesh.run("downstream", now=at(240))
        assert [f.what for f in report.findings] == ["added", "suspect"]
        assert report.committed == {GOLD_HOURLY: IntervalSet([span(180, 240)])}
        assert mesh.run("downstream", now=at(240)).state == "nothing_to_do"
    tiny.check(240)


def test_an_interval_that_somebody_removed_is_evaluated_again(tiny: TinyMesh) -> None:
    """G6: what disappears from SQLMesh's record is due again, and nothing else is."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(120))
        mesh.deploy("downstream", now=at(120))
        with tiny.plain("upstream") as plain:
            state = plain.state_sync
            found = state.get_environment("prod").snapshots
            silver = next(s for s in found if s.name == SILVER_EVENTS)
            start, end = (int(at(m).timestamp() * 1000) for m in (60, 65))
            state.remove_intervals([(silver, (start, end))])
        report = mesh.run("upstream", now=at(120))
        assert [(f.model, f.what, f.interval) for f in report.findings] == [
            (SILVER_EVENTS, "removed", span(60, 65))
        ]
        assert report.committed == {SILVER_EVENTS: IntervalSet([span(60, 65)])}
    tiny.check(120)


def test_a_breaking_change_upstream_is_backfilled_before_its_readers(tiny: TinyMesh) -> None:
    """A deploy counts what it is about to make for the parent as ready: nothing is promoted empty."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(180))
        mesh.deploy("downstream", now=at(180))
        tiny.write("upstream", "silver", SILVER.replace("value FROM", "value + 0 AS value FROM"))
        report = mesh.deploy("upstream", now=at(180))
        assert report.state == "done"
        assert set(report.committed) >= {SILVER_EVENTS, GOLD_HOURLY}
        assert mesh.run("downstream", now=at(180)).state == "nothing_to_do"
    tiny.check(180)


def test_a_deploy_leaves_to_the_runs_what_is_not_there_yet(tiny: TinyMesh) -> None:
    """A plan at 04:00 with upstream at 03:05 backfills three hours, and the fourth is done by a run later."""
    tiny.feed(0, 300)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(185))
        report = mesh.deploy("downstream", now=at(240))
        assert report.committed == {GOLD_HOURLY: IntervalSet([span(0, 180)])}
        assert {b.interval for b in report.blocked} == {span(180, 240)}
        mesh.run("upstream", now=at(240))
        assert mesh.run("downstream", now=at(240)).committed == {GOLD_HOURLY: IntervalSet([span(180, 240)])}
    tiny.check(240)


def test_a_deploy_whose_backfill_fails_promotes_nothing(tiny: TinyMesh) -> None:
    """A failing interval fails the plan as SQLMesh would; the environment keeps what it had, the good part is kept."""
    tiny.feed(0, 240)
    tiny.poison(32)
    with tiny.mesh() as mesh:
        with pytest.raises(Exception, match="was not applied"):
            mesh.deploy("upstream", now=at(60))
        assert mesh.ledger.environments() == ()
        tiny.repair(32)
        report = mesh.deploy("upstream", now=at(60))
        assert report.committed[BRONZE_EVENTS] == IntervalSet([span(30, 35)])
        mesh.deploy("downstream", now=at(60))
    tiny.check(60)


def test_a_new_model_of_which_nothing_is_ready_is_promoted_empty_and_filled_later(tiny: TinyMesh) -> None:
    """Its table is made, the environment is whole, and no project is kept from running."""
    tiny.feed(0, 300)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(185))
        mesh.deploy("downstream", now=at(185))
        later = GOLD.replace("gold.hourly", "gold.later").replace("cron", "start '2026-01-05 03:00:00', cron")
        tiny.write("downstream", "later", later)
        report = mesh.deploy("downstream", now=at(240))
        assert '"lake"."gold"."later"' not in report.committed
        assert tiny.table("gold.later") == []
        assert mesh.run("upstream", now=at(240)).state == "done"
        mesh.run("downstream", now=at(240))
    assert tiny.table("gold.later") == tiny.table("gold.hourly")[3:]


def test_a_new_environment_leaves_what_is_merely_due_to_its_owner(tiny: TinyMesh) -> None:
    """Deploying downstream to a new environment does not do upstream's last hour."""
    tiny.feed(0, 300)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(180))
        mesh.deploy("downstream", now=at(180))
        tiny.write("downstream", "gold", GOLD.replace("COUNT(*)", "1 * COUNT(*)"))
        report = mesh.deploy("downstream", environment="dev", now=at(240))
        assert report.committed == {GOLD_HOURLY: IntervalSet([span(0, 180)])}


def test_an_outage_is_not_multiplied_by_halving(tiny: TinyMesh) -> None:
    """A source that is gone fails all of ten hours after a few tries, and all of them are due again."""
    tiny.feed(0, 700)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
    tiny.sql(tiny.source_url, "ALTER TABLE events RENAME TO gone")
    with tiny.mesh() as mesh:
        report = mesh.run("upstream", now=at(660))
        assert report.exit_code == 1
        assert len(report.failed) < 15
        assert IntervalSet(f.interval for f in report.failed) == IntervalSet([span(60, 660)])
    tiny.sql(tiny.source_url, "ALTER TABLE gone RENAME TO events")
    with tiny.mesh() as mesh:
        assert mesh.run("upstream", now=at(660)).committed[BRONZE_EVENTS] == IntervalSet([span(60, 660)])
