"""A random history of the corner shop; `make histories` plays many."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from corner_bound import Bound, Evaluation

SCRIPT = Path(__file__).with_name("corner_history.py")
STEPS = 8


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_random_history_of_the_corner_shop_ends_right(tmp_path: Path, extensions: None) -> None:
    """Every table is the source's, `verify` finds nothing, and nothing was evaluated more often than the history justifies."""
    words = ["--seed", os.environ.get("MESHGATE_SEED", "1"), "--steps", str(STEPS)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True, text=True, timeout=280, check=False, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "right" in done.stdout.splitlines()[-1]
    assert not list(tmp_path.glob("corner-history-*"))


def evaluated(bound: Bound, model: str, start: int, end: int) -> None:
    bound.ran([Evaluation(model, "1", start, end)], [], {})


def test_a_second_evaluation_needs_a_reason() -> None:
    """The bound has teeth: once is right, twice is not, and twice is after something has happened upstream."""
    bound = Bound()
    evaluated(bound, "gold.fact_sales", 60, 120)
    assert bound.excess() == []
    evaluated(bound, "gold.fact_sales", 60, 120)
    assert len(bound.excess()) == 1
    bound.touch("bronze.transactions", 120, 125)
    assert len(bound.excess()) == 1
    bound.touch("bronze.transactions", 115, 120)
    assert bound.excess() == []


def test_a_dimension_passes_on_what_follows_an_instant() -> None:
    """A late item justifies one more evaluation of each later fact, and of no earlier one."""
    bound = Bound()
    bound.touch("bronze.items", 65, 70)
    for _ in range(2):
        evaluated(bound, "gold.fact_sales", 0, 180)
    assert bound.excess() == ["gold.fact_sales at minute 0: evaluated 2 times, justified 1"]


def test_a_refresh_too_many_is_found() -> None:
    """A table that is refreshed as a whole may be refreshed once an hour, and once for each reason."""
    bound = Bound()
    for hour in range(3):
        evaluated(bound, "gold.dim_item", 60 * hour, 60 * hour + 60)
    assert bound.excess() == []
    evaluated(bound, "gold.dim_item", 120, 180)
    assert any("refreshed 4 times" in said for said in bound.excess())


def test_halving_justifies_few_evaluations() -> None:
    """A batch of twelve that fails is halved: five evaluations of an interval more at most, and no sixth."""
    bound = Bound()
    batch = Evaluation("bronze.transactions", "1", 0, 60)
    bound.ran([batch] * 6, ["bronze.transactions"], {})
    assert bound.excess() == []
    evaluated(bound, "bronze.transactions", 0, 5)
    assert bound.excess() == ["bronze.transactions at minute 0: evaluated 7 times, justified 6"]
