"""Any history of a ledger in which people hold, release and accept time; told to the real one and to a plain model of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from ledger_paper import WHOLE
from ledger_strategies import stretches
from strategies import examples
from test_ledger_stateful import LedgerMachine

if TYPE_CHECKING:
    from meshgate.ledger import Ledger


class PeopleMachine(LedgerMachine):
    """The histories of runs, with what people decide in between."""

    @rule(data=st.data(), everything=st.booleans(), how=st.sampled_from(["hold", "release", "release"]))
    def hold_or_release(self, data: st.DataObject, everything: bool, how: str) -> None:
        # One by time and one whole that others read, and one that nobody does.
        version = data.draw(st.sampled_from([1, 3, 5]), label="version")
        piece = WHOLE if everything else data.draw(stretches(), label="cells")
        (self._hold if how == "hold" else self._release)(version, piece)

    @rule(data=st.data(), looks_back=st.integers(0, 3), how=st.sampled_from(["accept", "accept", "undo"]))
    def accept_or_undo(self, data: st.DataObject, looks_back: int, how: str) -> None:
        version, piece = self.some_version(data), data.draw(stretches(), label="cells")
        doubted = [v for v, table in self.oracle.versions.items() if any(table.marks.values())]
        if doubted and data.draw(st.booleans(), label="what is in doubt"):
            version = data.draw(st.sampled_from(doubted), label="which")
        if how == "accept":
            before = frozenset(range(max(min(piece) - looks_back, 0), min(piece)))
            self._accept(version, piece, before)
        else:
            self._undo_accept(version, piece)

    @rule(data=st.data())
    def adopt(self, data: st.DataObject) -> None:
        run, version = self.some_run(data), self.some_version(data)
        self._adopt(run, version)


def test_any_history_with_people_in_it_leaves_the_ledger_as_the_oracle_says(ledger: Ledger) -> None:
    """Whatever is held, released and accepted while runs work, fail and die."""
    profile = settings(examples(40), stateful_step_count=60, suppress_health_check=list(HealthCheck))
    if os.environ.get("MESHGATE_HURRY"):  # as in `test_ledger_stateful`
        profile = settings(profile, phases=[Phase.generate], derandomize=True, database=None)
    run_state_machine_as_test(lambda: PeopleMachine(ledger), settings=profile)
