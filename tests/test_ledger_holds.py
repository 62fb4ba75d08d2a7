"""Holds: what a person or a policy keeps from readers; on a real Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ledger_scene import CELLS, Scene, at, locked, meanwhile, other_session, span, wait_until_blocked
from meshgate.errors import LedgerError
from meshgate.ledger import WHOLE

if TYPE_CHECKING:
    from meshgate.interval import Interval
    from meshgate.ledger import Ledger

ALL = span(0, CELLS)


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


def hold(scene: Scene, interval: Interval, *, reason: str = "looks odd", model: str = "p") -> int:
    """Ann holds it."""
    return scene.ledger.hold(model, interval, reason=reason, by="ann")


def held(scene: Scene, version: int) -> list[tuple[str, str, str]]:
    """The holds on a version: time, reason, author."""
    return [(str(h.interval), h.reason, h.by) for h in scene.ledger.states([version])[version].holds]


def kinds(scene: Scene) -> list[str]:
    """The kinds of events, oldest first."""
    return [row["kind"] for row in reversed(scene.ledger.events())]


# -- holds


def test_a_held_range_is_refused_to_its_readers_where_they_begin(scene: Scene) -> None:
    """With reason, author and time; what lies beside it is read as ever."""
    run, parent, child = scene.run(), scene.version(), scene.version("c")
    scene.record(run, parent, span(0, 4))
    key = hold(scene, span(1, 2))
    scene.open(run, child, span(0, 1), span(1, 2))
    (refusal,) = scene.begin(run, child, span(1, 2), (parent, span(0, 3))).refused
    assert (refusal.reason, refusal.interval, refusal.version_id) == ("held", span(1, 2), parent)
    assert dict(refusal.detail) == {
        "hold_id": key,
        "reason": "looks odd",
        "by": "ann",
        "since": refusal.detail["since"],
    }
    assert scene.begin(run, child, span(0, 1), (parent, span(0, 1))).read_revision


def test_a_hold_lets_the_model_itself_go_on(scene: Scene) -> None:
    """It is evaluated and recorded as ever, and stays held."""
    run, version = scene.run(), scene.version()
    hold(scene, WHOLE)
    assert scene.record(run, version, span(0, 1))
    assert scene.unclean(version, span(0, 1)) == {("held", 0)}


def test_a_hold_belongs_to_the_model_and_outlives_its_versions(scene: Scene) -> None:
    """A version that is built and promoted afterwards is held too."""
    scene.version()
    hold(scene, span(0, 2))
    later = scene.version(version="2")
    assert ("held", 1) in scene.unclean(later, span(0, 2))
    assert held(scene, later) == [("[2026-01-05 00:00, 02:00)", "looks odd", "ann")]


def test_a_hold_on_a_table_that_is_one_whole_is_on_all_of_it(scene: Scene) -> None:
    """Whatever time it names: who reads the table reads all of it."""
    version = scene.version(kind="full")
    hold(scene, span(0, 1))
    assert ("held", 7) in scene.unclean(version, span(7, 8))
    (found,) = scene.ledger.states([version])[version].holds
    assert found.interval == WHOLE


def test_a_reader_of_a_loaded_table_waits_for_its_release(scene: Scene) -> None:
    """A seed that is held is not read."""
    run, seed, child = scene.run(), scene.version("s", kind="seed"), scene.version("c")
    scene.record(run, seed, span(0, 1))
    hold(scene, WHOLE, model="s")
    scene.open(run, child, span(0, 1))
    assert [r.reason for r in scene.begin(run, child, span(0, 1), loaded=[seed]).refused] == ["held"]
    scene.ledger.release("s", WHOLE, by="ann")
    assert scene.begin(run, child, span(0, 1), loaded=[seed]).read_revision


def test_holding_twice_with_the_same_words_is_one_hold(scene: Scene) -> None:
    """As when the answer to the first was lost; another reason is another hold."""
    version = scene.version()
    assert hold(scene, span(0, 1)) == hold(scene, span(0, 1))
    hold(scene, span(0, 1), reason="also late")
    assert [reason for _, reason, _ in held(scene, version)] == ["looks odd", "also late"]
    assert kinds(scene) == ["interval.held"] * 2


def test_releasing_a_part_leaves_the_rest_held_as_it_was(scene: Scene) -> None:
    """Both ends keep reason, author and time of the hold that was cut; the part is remembered as released."""
    version = scene.version()
    hold(scene, span(0, 6))
    scene.pass_time(60)
    (released,) = scene.ledger.release("p", span(2, 4), by="bob")
    assert (released.interval, released.reason, released.by) == (span(2, 4), "looks odd", "ann")
    assert held(scene, version) == [
        ("[2026-01-05 00:00, 02:00)", "looks odd", "ann"),
        ("[2026-01-05 04:00, 06:00)", "looks odd", "ann"),
    ]
    assert {h.since for h in scene.ledger.states([version])[version].holds} == {at(CELLS)}
    rows = scene.database.execute("SELECT released_by, span FROM meshgate.hold WHERE released_at IS NOT NULL")
    assert [(r["released_by"], r["span"].lower) for r in rows] == [("bob", at(2))]
    assert scene.unclean(version, ALL) & {("held", c) for c in range(CELLS)} == {
        ("held", c) for c in (0, 1, 4, 5)
    }


def test_a_part_of_a_hold_without_end_is_released(scene: Scene) -> None:
    """What comes after it stays held for ever."""
    version = scene.version()
    hold(scene, WHOLE)
    scene.ledger.release("p", span(0, 2), by="ann")
    assert [h.interval.end for h in scene.ledger.states([version])[version].holds] == [at(0), WHOLE.end]


def test_releasing_what_is_not_held_does_nothing(scene: Scene) -> None:
    """No row, no event; holds beside it stay."""
    version = scene.version()
    hold(scene, span(0, 1))
    assert scene.ledger.release("p", span(1, 2), by="ann") == ()
    assert scene.ledger.release("nobody", WHOLE, by="ann") == ()
    assert len(held(scene, version)) == 1
    assert kinds(scene) == ["interval.held"]


def test_the_history_names_who_held_and_who_released(scene: Scene) -> None:
    """Model, range, reason and author."""
    scene.version()
    hold(scene, span(0, 2))
    scene.ledger.release("p", span(0, 1), by="bob")
    told = [(e["kind"], e["model"], e["detail"]["by"]) for e in reversed(scene.ledger.events())]
    assert told == [("interval.held", "p", "ann"), ("interval.released", "p", "bob")]


@pytest.mark.parametrize("word", ["", "  "])
def test_nothing_is_done_without_a_reason_and_a_name(scene: Scene, word: str) -> None:
    """Empty words are none."""
    version = scene.version()
    for reason, by in ((word, "ann"), ("odd", word)):
        with pytest.raises(LedgerError, match="must be told"):
            scene.ledger.hold("p", span(0, 1), reason=reason, by=by)
        with pytest.raises(LedgerError, match="must be told"):
            scene.ledger.accept(version, span(0, 1), lookback=None, reason=reason, by=by)
    with pytest.raises(LedgerError, match="must be told"):
        scene.ledger.release("p", WHOLE, by=word)
    with pytest.raises(LedgerError, match="not in the ledger"):
        hold(scene, span(0, 1), model="nobody")
    assert kinds(scene) == []


def test_a_hold_waits_for_the_one_lock(scene: Scene) -> None:
    """Its instant is read after the wait, like that of every change."""
    scene.version()
    with (
        other_session(scene.ledger, at(CELLS)) as other,
        locked(scene.ledger) as first,
        meanwhile(lambda: other.hold("p", span(0, 1), reason="odd", by="ann")) as done,
    ):
        wait_until_blocked(scene.ledger)
        assert not done.done()
        first.commit()
        assert done.result(30)


# -- holds by policy


def warned(scene: Scene, run: int, version: int, interval: Interval, why: str | None) -> None:
    """A batch is recorded; a policy holds it if it says why."""
    scene.work(run, version, interval)
    scene.ledger.commit(run, version, interval, verdict="warned" if why else "passed", hold=why)


def test_a_policy_holds_what_it_was_told_to_in_the_commit(scene: Scene) -> None:
    """No reader can come in between; author and reason are the policy's."""
    run, version = scene.run(), scene.version()
    warned(scene, run, version, span(0, 1), "audit a found 3")
    assert held(scene, version) == [("[2026-01-05 00:00, 01:00)", "audit a found 3", "on_audit_warning")]
    assert scene.unclean(version, span(0, 2)) == {("held", 0), ("missing", 1)}


def test_a_hold_by_policy_ends_where_the_range_is_written_again_and_passes(scene: Scene) -> None:
    """There, and nowhere else; what fails again is held again, once."""
    run, version = scene.run(), scene.version()
    warned(scene, run, version, span(0, 3), "audit a found 3")
    warned(scene, run, version, span(1, 2), None)
    assert scene.unclean(version, span(0, 3)) == {("held", 0), ("held", 2)}
    warned(scene, run, version, span(0, 1), "audit a found 2")
    assert [reason for _, reason, _ in held(scene, version)] == ["audit a found 2", "audit a found 3"]


def test_a_commit_leaves_the_holds_of_people_alone(scene: Scene) -> None:
    """Who holds it knows why."""
    run, version = scene.run(), scene.version()
    hold(scene, span(0, 1))
    warned(scene, run, version, span(0, 1), None)
    assert [by for _, _, by in held(scene, version)] == ["ann"]


def test_a_person_releases_what_a_policy_holds(scene: Scene) -> None:
    """As any hold; a part of it leaves the rest the policy's."""
    run, version = scene.run(), scene.version()
    warned(scene, run, version, span(0, 3), "audit a found 3")
    assert [r.by for r in scene.ledger.release("p", span(0, 1), by="ann")] == ["on_audit_warning"]
    warned(scene, run, version, span(1, 3), None)
    assert held(scene, version) == []


def test_a_hold_by_policy_is_on_the_rows_of_one_version(scene: Scene) -> None:
    """What is tried out elsewhere keeps nobody from what is promoted, and does not release it either."""
    run, old, new = scene.run(), scene.version(), scene.version(version="2")
    for version in (old, new):
        warned(scene, run, version, span(0, 1), "audit a found 3")
    warned(scene, run, new, span(0, 1), None)
    assert (len(held(scene, old)), held(scene, new)) == (1, [])
    assert scene.unclean(new, span(0, 1)) == set()


def test_a_refresh_that_passes_ends_what_was_held_of_the_whole_table(scene: Scene) -> None:
    """Whatever part of time each of them was called for; of a table that merges, only what is written again."""
    run, full, keyed = (
        scene.run(),
        scene.version(kind="full"),
        scene.version("k", kind="incremental_by_unique_key"),
    )
    for version in (full, keyed):
        warned(scene, run, version, span(0, 1), "audit a found 3")
        assert ("held", 5) in scene.unclean(version, span(5, 6))
        warned(scene, run, version, span(1, 2), None)
    assert (held(scene, full), len(held(scene, keyed))) == ([], 1)
