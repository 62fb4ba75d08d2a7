"""What chaos must notice when it is taken away: `chaos.py --without NAME`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mutation import REPOSITORY, SCHEMA, Edit
from mutations_of_sql import OF_SQL

TRIES = 3
STORM = ("--seconds", "60", "--faults", "60", "--restarts", "5")


# As in `mutations_of_sql`, but read where it is counted: only the order is broken, and all other work goes on.
BARE_SEQUENCE = (
    Edit(
        SCHEMA,
        "SELECT l.revision INTO present FROM meshgate.ledger l FOR UPDATE;",
        "SELECT CASE WHEN b.is_called THEN b.last_value ELSE 0 END INTO present FROM meshgate.bare b;",
    ),
    Edit(
        SCHEMA,
        "CREATE FUNCTION meshgate.next_revision()",
        "CREATE SEQUENCE meshgate.bare;\nCREATE FUNCTION meshgate.next_revision()",
    ),
    Edit(
        SCHEMA,
        "    UPDATE meshgate.ledger SET revision = revision + 1 RETURNING revision;",
        "    SELECT nextval('meshgate.bare');",
    ),
)


@dataclass(frozen=True)
class Removal:
    """A mutation of `mutations_of_sql` or edits, the checks of which one must find it, and the faults that lead there."""

    mutation: str | tuple[Edit, ...]
    checks: tuple[str, ...]
    aims: tuple[str, ...]


MUTATIONS = {
    "fence": Removal(
        "G4 fence in commit_claim", ("only a live run records", "a late write is remembered"), ("late write",)
    ),
    "exclusion": Removal(
        "G2 exclusion constraint", ("no two hold one range",), ("idle in transaction", "kill")
    ),
    "clock": Removal(
        "G4 lock before clock, the ledger's lock", ("only a live run records",), ("idle in transaction",)
    ),
    "suspect": Removal(
        "G3 suspect mark at takeover", ("what was begun is recorded or marked",), ("kill at a point",)
    ),
    "gate": Removal(
        "G1 second check in begin_claim, parents",
        ("no child reads a parent that is not committed",),
        ("poison",),
    ),
    "order": Removal(
        BARE_SEQUENCE,
        ("revisions strictly grow", "who begins knows what was committed"),
        ("idle in transaction",),
    ),
}


def without(name: str, seed: int) -> int:
    """Run chaos on a copy of the package that lacks a protection; 0 if each removal was noticed."""
    survived = [each for each in (MUTATIONS if name == "all" else (name,)) if not _noticed(each, seed)]
    return 1 if survived else 0


def _noticed(name: str, seed: int) -> bool:
    removal = MUTATIONS[name]
    edits = removal.mutation
    if isinstance(edits, str):
        edits = next(m.edits for m in OF_SQL if m.name == removal.mutation)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-without-") as root:
        source = Path(root) / "src"
        shutil.copytree(REPOSITORY / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        for edit in edits:
            edit.apply(source / "meshgate")
        environment = os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
        said = ""
        options = [word for aim in removal.aims for word in ("--aim", aim)]
        options += [word for check in removal.checks for word in ("--seek", check)]
        for number in range(TRIES):
            done = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("chaos.py")), *STORM, *options, "--seed", str(seed + number)],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            violated = [
                line.removeprefix("VIOLATED").strip().rsplit(" (", 1)[0]
                for line in done.stdout.splitlines()
                if line.startswith("VIOLATED")
            ]
            found = [check for check in violated if check in removal.checks]
            took = time.monotonic() - began
            if found:
                print(
                    f"noticed   {name:10} {took:4.0f} s, seed {seed + number}, by: {'; '.join(found)}",
                    flush=True,
                )
                return True
            said = "; ".join(violated) or done.stdout[-1500:] + done.stderr[-1500:]
    print(f"MISSED    {name:10} {took:4.0f} s, in {TRIES} storms; found: {said}", flush=True)
    return False
