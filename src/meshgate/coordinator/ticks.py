"""SQLMesh's `auto_restatement_cron` under the ledger: who sees that it has ticked asks for what SQLMesh would restate.

The ledger keeps up to where each model's ticks are answered. Whether there are others is arithmetic on the manifest, so a run
for which nothing has ticked pays nothing. A tick is answered by a request like any other, in the transaction that says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from meshgate.coordinator.standing import read_time
from meshgate.due import restated, ticked
from meshgate.errors import MeshgateError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime

    from meshgate.bridge.project import SqlmeshProject
    from meshgate.graph import MeshGraph
    from meshgate.ledger import Ledger, Manifest

log = structlog.get_logger("meshgate")

_PRODUCTION = "prod"
"""The environment in which SQLMesh's own runs do it."""
_ORIGIN = "auto_restatement_cron"


def answer_ticks(
    ledger: Ledger, manifest: Manifest, models: Iterable[str], now: datetime
) -> dict[str, datetime]:
    """Ask for what is to be computed again by itself; by model, when that will be next, UTC.

    Args:
        ledger: The ledger.
        manifest: Of the environment.
        models: Whose ticks to look at.
        now: The instant that counts, UTC.

    Raises:
        GraphError: A cron cannot be read, or never ticks.
    """
    found: dict[str, datetime] = {}
    if manifest.environment != _PRODUCTION:
        return found
    for name in models:
        node, answered = manifest.graph[name], manifest.answered.get(name)
        if answered is None:
            continue
        ticks = ticked(node, answered, now)
        if ticks is None:
            continue
        key = manifest.version_id(name)
        interval = restated(node, ticks, read_time(ledger.states([key])[key]), now)
        made = ledger.answer_ticks(
            manifest.environment, name, ticks.since, ticks.last, interval,
            reason=f"its auto_restatement_cron {node.restate_cron!r} ticked at {ticks.last:%Y-%m-%d %H:%M} UTC",
            by=_ORIGIN, origin=_ORIGIN,
        )  # fmt: skip
        if made is not None:
            log.info("restatement.ticked", model=name, interval=str(interval), request=made)
        found[name] = ticks.next
    return found


def check_ticks(graph: MeshGraph, project: str, now: datetime) -> None:
    """Refuse an `auto_restatement_cron` of a project's models that no run could go by.

    Raises:
        GraphError: It cannot be read, or never ticks.
    """
    for node in graph.nodes.values():
        if node.project == project:
            ticked(node, now, now)


def answer_own(
    ledger: Ledger, manifest: Manifest, project: str, only: Collection[str] | None, now: datetime
) -> dict[str, datetime]:
    """The same for the models of a project's run; `only`: those that it is about, None for all."""
    own = (n for n in manifest.answered if manifest.graph[n].project == project)
    return answer_ticks(ledger, manifest, [n for n in own if only is None or n in only], now)


def postpone(opened: SqlmeshProject, environment: str, until: Mapping[str, datetime]) -> None:
    """Tell SQLMesh's own record, so that plain `sqlmesh run` does not compute once more what is asked for."""
    try:
        opened.postpone_restatements(environment, until)
    except MeshgateError as error:
        # Whatever becomes of that: it is asked for.
        log.warning("restatement.unpostponed", models=sorted(until), error=error.message)
