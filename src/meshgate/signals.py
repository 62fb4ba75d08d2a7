"""The gate as a SQLMesh signal: a second line of defence for projects that plain `sqlmesh run` works on.

A file in the project's own `signals/` (SQLMesh looks for signals nowhere else):

    from meshgate.signals import ready
    from sqlmesh import signal

    @signal()
    def meshgate_ready(batch, context, snapshot):
        return ready(batch, context, snapshot)

and `signals (meshgate_ready())` in the models that are to wait. A signal holds no claim and records nothing: it keeps a
run from reading what is not there, and from nothing else. Under meshgate's own runs it has nothing to add, and passes.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_VARIABLE = "MESHGATE_CONFIG"
log = logging.getLogger("meshgate.signals")


def ready(
    batch: list[tuple[datetime, datetime]], context: Any, snapshot: Any, *, mesh: str | Path | None = None
) -> list[tuple[datetime, datetime]]:
    """Which intervals of a batch the ledger's gate lets through.

    What the same execution is about to make for the only parent counts as there; of a version that the ledger does not
    know yet, as in a plan's backfill, SQLMesh's own record and what this execution makes for the parents. Whatever goes
    wrong is logged, and nothing is ready: a signal that raises would abort the run of all models.

    Args:
        batch: Half-open pairs of instants, UTC, as SQLMesh hands them to a signal.
        context: SQLMesh's execution context.
        snapshot: The model's snapshot.
        mesh: `meshgate.yaml` or its folder; by default $MESHGATE_CONFIG, else it is looked for in the folder of the model's
            file, the working folder, and those above.
    """
    try:
        from meshgate.bridge.readiness import Batch, under_ledger

        if under_ledger():
            return batch
        asked = Batch.of(batch, context, snapshot)
        from meshgate.config import load
        from meshgate.coordinator.second_line import passes
        from meshgate.mesh import Mesh

        with Mesh(load(_file(mesh, snapshot))) as opened:
            answer = passes(opened.ledger, asked)
    except Exception as error:  # noqa: BLE001 - see above
        log.warning(
            "%s is not ready: the ledger could not be asked: %s", getattr(snapshot, "name", "?"), error
        )
        return []
    for reason in answer.reasons:
        log.info("%s waits: %s", snapshot.name, reason)
    return [pair for pair, unit in zip(batch, asked.units, strict=True) if answer.ready.covers(unit)]


def _file(mesh: str | Path | None, snapshot: Any) -> Path | None:
    """Where `meshgate.yaml` is; None where the working folder decides."""
    from meshgate.config import FILE_NAME

    given = mesh or os.environ.get(_VARIABLE)
    if given:
        return Path(given)
    return next((f for f in _folders(snapshot) if (f / FILE_NAME).is_file()), None)


def _folders(snapshot: Any) -> Iterator[Path]:
    path = getattr(
        snapshot.model, "_path", None
    )  # SQLMesh has no other way to tell; None when it came from the state
    if path is not None:
        yield from Path(path).resolve().parents
