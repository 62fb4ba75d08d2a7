"""Runs killed at a seeded sample of their points; `make chaos` kills at all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = 8
SAMPLE_OF_RESTATEMENT = 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_anywhere_is_finished_by_the_next(tmp_path: Path, extensions: None) -> None:
    """At each point of a sample: every table is the source's, nothing is left open, in doubt or done twice."""
    strike(tmp_path, SAMPLE, "upstream", "downstream", "deploy")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_restatement_killed_anywhere_is_finished_by_ordinary_runs(tmp_path: Path, extensions: None) -> None:
    """From the request to the last table of the other project: as above, the request is done, and `verify` finds nothing."""
    strike(tmp_path, SAMPLE_OF_RESTATEMENT, "restate")


def strike(folder: Path, sample: int, *projects: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(Path(__file__).with_name("crash_points.py"))),
            *("--sample", str(sample), "--seed", os.environ.get("MESHGATE_SEED", "1")),
            *(word for project in projects for word in ("--project", project)),
        ],
        capture_output=True, text=True, timeout=580, check=False, env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f": {sample} of " in done.stdout.splitlines()[-1]
    assert not list(folder.glob("crash-points-*"))
