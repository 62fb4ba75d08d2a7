"""Runs killed at a seeded sample of their points; `make chaos` kills at all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = 12


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_anywhere_is_finished_by_the_next(tmp_path: Path, extensions: None) -> None:
    """At each point of a sample: every table is the source's, nothing is left open, in doubt or done twice."""
    done = subprocess.run(
        [
            *(sys.executable, str(Path(__file__).with_name("crash_points.py"))),
            *("--sample", str(SAMPLE), "--seed", os.environ.get("MESHGATE_SEED", "1")),
        ],
        capture_output=True, text=True, timeout=580, check=False, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f": {SAMPLE} of " in done.stdout.splitlines()[-1]
    assert not list(tmp_path.glob("crash-points-*"))
