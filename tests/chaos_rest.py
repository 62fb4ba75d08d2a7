"""What must be true when the storm is over: nothing open, nothing in doubt, every table as the source says."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from chaos_history import Violation
from meshgate.coordinator.staleness import find
from meshgate.db import Database
from meshgate.interval import Interval, IntervalSet, IntervalUnit
from meshgate.ledger import Ledger
from meshgate.mesh import Mesh
from tiny_mesh import DAY, at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaos_replay import Replay
    from chaos_stage import Stage

UNITS = """
SELECT v.version_id, m.name, p.unit FROM meshgate.promotion p JOIN meshgate.version v USING (version_id)
JOIN meshgate.model m ON m.model_id = p.model_id WHERE p.environment = 'prod' AND v.kind <> 'external' ORDER BY 1
"""
COVERED = """
SELECT lower(r), upper(r) FROM (SELECT unnest(range_agg(span)) AS r FROM meshgate.coverage WHERE version_id = %s) c
"""
PAUSED = "SELECT count(*) FROM meshgate.mark WHERE retry_at IS NOT NULL"
THROTTLE_MINUTES = 60
"""The longest time for which something stale is left alone: one period of the slowest cron."""
OPEN = {
    "a claim is open": "SELECT count(*) FROM meshgate.claim WHERE state IN ('open', 'begun')",
    "a lost write is waited for": "SELECT count(*) FROM meshgate.claim WHERE state = 'lost' AND quarantined_until > meshgate.clock()",
    "a run lives": "SELECT count(*) FROM meshgate.run WHERE state = 'running'",
    "something is marked": "SELECT count(*) FROM meshgate.mark",
    "SQLMesh's record lacks something": "SELECT count(*) FROM meshgate.coverage WHERE mirrored_at IS NULL",
}


def unsettled(stage: Stage, minutes: float, *, workers: bool) -> str | None:
    """Why the mesh is not at rest at a simulated instant; None: it is.

    Args:
        stage: Everything.
        minutes: The instant.
        workers: Whether live workers may hold runs and claims.
    """
    with stage.server_cursor() as cursor:
        cursor.execute(UNITS)
        for version, name, unit in cursor.fetchall():
            cursor.execute(COVERED, [version])
            covered = IntervalSet(Interval(start, end) for start, end in cursor.fetchall())
            wanted = IntervalSet.of(DAY, IntervalUnit(unit).floor(at(minutes)))
            if wanted - covered:
                return f"{name} lacks {wanted - covered}"
        cursor.execute("SELECT (holder ->> 'pid')::integer FROM meshgate.run WHERE state = 'running'")
        if {pid for (pid,) in cursor.fetchall()} - {slot.pid for slot in stage.slots}:
            return "a run of the dead was not taken over"
        for what, query in OPEN.items():
            if workers and what in ("a claim is open", "a run lives"):
                continue
            cursor.execute(query)
            count = cursor.fetchone()[0]
            if count:
                return f"{what} ({count})"
    if stale := stale_models(stage):
        return f"{', '.join(stale)} stale"
    if left := open_requests(stage):
        return f"requests {left} are open"
    return None


def open_requests(stage: Stage) -> list[int]:
    """The requests that are not done."""
    with closing(Database(stage.tiny.state_url)) as database:
        found = Ledger(database).requests("prod", limit=1000)
    return [request.request_id for request in found if request.state != "done"]


def stale_models(stage: Stage) -> list[str]:
    """The models of which something is stale."""
    database = Database(stage.tiny.state_url)
    try:
        manifest = Ledger(database).manifest("prod")
        return sorted(find(Ledger(database), "prod", manifest.graph, manifest.version_ids))
    finally:
        database.close()


def paused(stage: Stage) -> float:
    """For how many simulated minutes something is left alone at most: because it failed, or was read not long ago."""
    with stage.server_cursor() as cursor:
        cursor.execute(PAUSED)
        failed = bool(cursor.fetchone()[0])
    return THROTTLE_MINUTES if stale_models(stage) else 10 if failed else 0


def judge_rest(stage: Stage, replay: Replay, minutes: float) -> Iterator[Violation]:
    """Compare the ledger, SQLMesh's record and every table with what they should be."""
    why = unsettled(stage, minutes, workers=False)
    if why is not None:
        yield Violation("at rest nothing is open and nothing in doubt", why)
        return
    for name, rows in stage.expected(minutes).items():
        found = stage.tiny.table(name)
        if found != rows:
            yield Violation("every table equals the source", f"{name}: {_difference(found, rows)}")
    yield from _judge_records(stage)
    with Mesh.open(stage.folder / "mesh") as mesh:
        for difference in mesh.verify(ledger_only=True).differences:
            yield Violation("the ledger follows from its history", str(difference))
    with stage.server_cursor() as cursor:
        cursor.execute("SELECT version_id, span::text FROM meshgate.coverage")
        held: dict[int, set[int]] = {}
        from chaos_history import cells_of

        for version, span in cursor.fetchall():
            held.setdefault(version, set()).update(cells_of(span, DAY))
    for version in held.keys() | replay.facts.keys():
        if held.get(version, set()) != set(replay.facts[version]):
            yield Violation("the history is whole", f"version {version}: not what the ledger holds")


def _difference(found: list[tuple[Any, ...]], rows: list[tuple[Any, ...]]) -> str:
    more, less = [r for r in found if r not in rows], [r for r in rows if r not in found]
    return f"{len(found)} rows instead of {len(rows)}; not in the source {more[:3]}, missing {less[:3]}"


def _judge_records(stage: Stage) -> Iterator[Violation]:
    """SQLMesh's own record and the ledger's must be one."""
    from meshgate.bridge.project import SqlmeshProject

    project = SqlmeshProject(stage.folder / "mesh" / "upstream", "upstream", None, load=False)
    try:
        plan = project.promoted("prod", at(0) + timedelta(days=365))
    finally:
        project.close()
    with stage.server_cursor() as cursor:
        cursor.execute(UNITS)
        for version, name, _ in cursor.fetchall():
            cursor.execute(COVERED, [version])
            covered = IntervalSet(Interval(start, end) for start, end in cursor.fetchall())
            theirs = plan.recorded.get(name, IntervalSet()) if plan is not None else IntervalSet()
            if theirs != covered:
                text = f"{name}: SQLMesh lacks {covered - theirs}, and has {theirs - covered} too many"
                yield Violation("both records are one", text)
