"""What the Databricks job starts: a script, so that the package need not be a wheel of its own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from maintenance import job

if __name__ == "__main__":
    job()
