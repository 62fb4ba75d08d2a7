"""Random histories of a simulated mesh, decided by the product, and a checker that notices each missing rule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import attrs
import pytest

import meshgate.coordinator.plan as planning
from meshgate.coordinator import standing
from meshgate.due import Due
from meshgate.gate import Decision
from meshgate.interval import IntervalSet
from simulator import Simulation
from simulator_checker import Violation
from simulator_comparison import Comparison
from simulator_scenarios import LATE_ROWS, LONG_S, SHORT_S, TROUBLES, eventful, scenario
from simulator_scene import Troubles

if TYPE_CHECKING:
    from typing import Any

    from simulator_scene import Scenario

HEAVY = Troubles(failing=0.05, poisoned=0.01, crash=0.04, pause=0.04)


def played(seed: int, **fields: Any) -> Scenario:
    """Six hours of many troubles, in turn skipping and sharing, with short and with long runs."""
    chosen = {"overlap": ("skip", "share")[seed % 2], "takes_s": (SHORT_S, LONG_S)[seed // 2 % 2]}
    fields = {"hours": 6, "readers_every_s": 900, "troubles": HEAVY} | chosen | fields
    return scenario(seed, **fields)


def found(scenes: int) -> str | None:
    """The first violation in some histories."""
    for seed in range(scenes):
        try:
            Simulation(played(seed), seed).play()
        except Violation as violation:
            return str(violation.args[0])
    return None


@pytest.mark.parametrize("overlap", ["skip", "share"])
@pytest.mark.parametrize("takes_s", [SHORT_S, LONG_S], ids=["short", "long"])
@pytest.mark.parametrize("lookback", [12, 24])
def test_every_guarantee_holds_in_random_histories(
    overlap: str, takes_s: tuple[int, int], lookback: int
) -> None:
    """With failures, crashes and pauses nothing is premature, double, lost or silently wrong, and at the end all is at rest."""
    for seed in range(3):
        scene = scenario(
            seed, hours=12, lookback=lookback, overlap=overlap, takes_s=takes_s, troubles=TROUBLES
        )
        report = Simulation(scene, seed).play()
        assert report.ticks > 100


@pytest.mark.parametrize("seed", range(8))
def test_every_guarantee_holds_under_heavy_fire(seed: int) -> None:
    """Also when every tenth evaluation ends badly, and readers try as often as their parents."""
    Simulation(played(seed), seed).play()


@pytest.mark.parametrize("seed", range(4))
def test_what_was_read_too_early_heals(seed: int) -> None:
    """At rest every row is what its query makes of the rows that its parents hold."""
    Simulation(played(seed, staleness=True), seed).play()


@pytest.mark.parametrize("seed", range(8))
def test_every_row_is_right_whatever_happens(seed: int) -> None:
    """Late rows, requests, plain SQLMesh, deploys, holds, acceptances beside all troubles: models of every sort are right."""
    Simulation(eventful(seed, hours=6), seed).play()


def test_a_history_follows_from_its_seed() -> None:
    """The same seed gives the same history, another one another."""
    first, again, other = (Simulation(played(seed), seed).play() for seed in (3, 3, 7))
    assert first.checker.recorded == again.checker.recorded
    assert first.ended_s == again.ended_s
    assert first.checker.recorded != other.checker.recorded


def test_runs_longer_than_their_period_overlap_only_where_they_share() -> None:
    """With `skip` about every second tick finds a run under way; with `share` none does."""
    calm = {"troubles": Troubles(), "takes_s": LONG_S, "hours": 6}
    skipping = Simulation(scenario(1, overlap="skip", **calm), 1).play()
    sharing = Simulation(scenario(1, overlap="share", **calm), 1).play()
    assert skipping.skipped > 0.3 * skipping.ticks
    assert sharing.skipped == 0


def test_the_checker_notices_a_gate_that_is_always_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is due is planned at once: the plan reads what is not there (G1)."""
    monkeypatch.setattr(planning, "decide", lambda _graph, name, wanted, *_, **__: Decision(name, wanted))
    assert str(found(3)).startswith("G1 planned")


def test_the_checker_notices_a_gate_that_says_no_without_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ever ready and nothing is told (G3)."""
    monkeypatch.setattr(planning, "decide", lambda _graph, name, *_, **__: Decision(name, IntervalSet()))
    assert found(1) == "G3 skipped in silence"


def test_the_checker_notices_when_others_writing_is_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A begun claim that is no obstacle opens the gate on rows that are just being overwritten (G1)."""
    kept = standing.standing
    monkeypatch.setattr(
        standing, "standing", lambda node, known, now: kept(node, attrs.evolve(known, claims=()), now)
    )
    assert str(found(6)).startswith("G1 planned")


def test_the_checker_notices_when_nothing_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed or is in doubt stays so for ever: the history never comes to rest as it should (G3)."""
    monkeypatch.setattr(planning, "_redo", lambda *_: (IntervalSet(), ()))
    assert str(found(6)).startswith(("G3", "livelock"))


def test_the_checker_notices_when_late_rows_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan takes up neither the lookback nor the marks that remember it (G3)."""
    kept = planning.due
    monkeypatch.setattr(
        planning, "due", lambda *a, **k: Due(kept(*a, **k).fresh, IntervalSet(), kept(*a, **k).upto)
    )
    monkeypatch.setattr(planning, "_marked", lambda *_: IntervalSet())
    assert str(found(2)).startswith(("G3", "livelock"))


def test_a_project_that_is_switched_off_costs_nobody_late_rows() -> None:
    """Where the readers never run, their parent is computed again as if nobody waited, and comes to rest."""
    scene = scenario(0, hours=24, lookback=24, takes_s=LONG_S)
    scene = replace(scene, projects={"up": scene.projects["up"]})
    report = Simulation(scene, 0).play()
    assert not report.checker.owed[LATE_ROWS]


@pytest.mark.parametrize("seed", range(20))
def test_the_simulated_ledger_answers_as_the_oracle_of_the_real_one(seed: int) -> None:
    """Told the same history of runs, claims, deaths and late writes, both keep the same facts, marks and claims."""
    both = Comparison(seed)
    for _ in range(150):
        both.step()
        both.agree()
