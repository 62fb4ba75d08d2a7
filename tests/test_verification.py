"""`verify` derives the ledger from its history by other means: it is silent after any history, and names any tampering."""

from __future__ import annotations

import os
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import rule, run_state_machine_as_test

from guarantee_mesh import BRONZE, DIMENSION, GOLD, SILVER, Mesh, minutes, node
from meshgate.coordinator.staleness import Policy
from meshgate.coordinator.verify import collect
from meshgate.graph import Edge, Window
from meshgate.verification import Difference, compare
from strategies import examples
from test_ledger_people import PeopleMachine
from test_staleness import BALANCE, DAILY, FACT, Rows, _dies

if TYPE_CHECKING:
    from meshgate.ledger import Ledger


def verified(ledger: Ledger) -> tuple[Difference, ...]:
    with ledger.still() as still:
        return compare(collect(still))


class VerifiedMachine(PeopleMachine):
    """The histories of runs and people; after each step the ledger is what its own history says."""

    def they_agree(self) -> None:
        assert verified(self.ledger) == ()


def test_after_any_history_the_ledger_is_what_its_events_say(ledger: Ledger) -> None:
    """Coverage, marks and dirty spans, derived by plain lists from the events alone."""
    profile = settings(examples(20), stateful_step_count=60, suppress_health_check=list(HealthCheck))
    if os.environ.get("MESHGATE_HURRY"):  # as in `test_ledger_stateful`
        profile = settings(profile, phases=[Phase.generate], derandomize=True, database=None)
    run_state_machine_as_test(lambda: VerifiedMachine(ledger), settings=profile)


def starry(ledger: Ledger) -> Mesh:
    """With facts of a dimension, of its latest state, and a table that reads its own past."""
    latest = node(DAILY, "down", "hour")
    balance = evolve(node(BALANCE, "up", "five_minute"), depends_on_past=True)
    return Mesh(
        ledger,
        (
            [node(FACT, "down", "hour"), latest, balance],
            [
                Edge(FACT, DIMENSION), Edge(FACT, SILVER), Edge(DAILY, DIMENSION, Window("latest")),
                Edge(BALANCE, SILVER), Edge(BALANCE, BALANCE),
            ],
        ),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_whatever_runs_do_staleness_and_readiness_are_as_derived(ledger: Ledger, seed: int) -> None:
    """Late rows, failures, crashes in the middle, looks that settle: at every moment, not only at rest."""
    chance = random.Random(seed)  # noqa: S311 - so that a history can be had again
    mesh = starry(ledger)
    mesh.policy = Policy(throttle=timedelta(minutes=chance.choice((0, 10, 60))))
    rows = Rows(mesh, chance)
    passed = 60
    mesh.time(passed)
    for _ in range(30):
        passed += chance.choice((0, 5, 5, 30))
        mesh.time(passed)
        if chance.random() < 0.5:
            rows.disturb(passed // 60)
        project = chance.choice(("up", "down"))
        if chance.random() < 0.15:
            _dies(mesh, project, rows, chance)
            passed += 40
        else:
            mesh.run(project, rows)
        if chance.random() < 0.3:
            mesh.settle()
        assert verified(ledger) == ()
