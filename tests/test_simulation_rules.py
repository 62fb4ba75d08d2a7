"""Each rule of coordination is needed: the simulator's checker notices in some history when it is taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from simulator_beside import Beside
from simulator_ledger import RULES
from simulator_rules import LEFT_OUT, SWITCHES, Switch

if TYPE_CHECKING:
    from meshgate.ledger import Ledger


@pytest.mark.parametrize("switch", SWITCHES, ids=[switch.rule for switch in SWITCHES])
def test_without_a_rule_something_breaks(switch: Switch) -> None:
    """The history is right with the rule, and without it the checker says what is broken."""
    switch.play(switch.seed, on=True)
    assert switch.said(switch.seed).startswith(switch.breaks)


def test_every_rule_has_a_switch_or_a_reason() -> None:
    """Twenty-six rules; and what the simulated ledger can leave out is left out by some switch."""
    numbers = {switch.rule.rstrip("abc") for switch in SWITCHES} | set(LEFT_OUT)
    assert {str(number) for number in range(1, 27)} <= numbers
    assert {rule for switch in SWITCHES for rule in switch.without} == RULES
    assert all(switch.breaks for switch in SWITCHES)


@pytest.mark.parametrize("seed", range(4))
def test_the_simulated_ledger_finds_stale_what_the_real_one_does(ledger: Ledger, seed: int) -> None:
    """Through batches that meet, failures, requests, looks that settle, promotions: record, marks and staleness agree."""
    both = Beside(ledger, seed)
    for _ in range(60):
        both.step()
        both.agree()
    assert both.stale > 10
