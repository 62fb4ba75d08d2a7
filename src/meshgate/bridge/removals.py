"""What somebody removed from SQLMesh's record of intervals, read from its log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlglot import exp

from meshgate.bridge.translate import instant
from meshgate.interval import Interval

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlmesh.core.snapshot import Snapshot


def removals(state: Any, snapshots: Collection[Snapshot]) -> Mapping[str, Mapping[str, Interval]]:
    """By model, and by the key of the log's row, what was removed of its version and is not compacted yet.

    SQLMesh's own reader applies the log, and does not tell what was removed and added again: so its table is read, in one query.
    """
    while not hasattr(state, "interval_state"):
        state = state.state_sync  # those that cache, hold back or ask stand around the one that reads
    log = state.interval_state
    columns = ("id", "name", "version", "start_ts", "end_ts")
    query = (
        exp.select(*columns)
        .from_(log.intervals_table)
        .where(exp.and_(exp.column("is_removed"), exp.column("is_dev").not_()))
    )
    versions = {(s.name, s.version) for s in snapshots if s.is_model}
    found: dict[str, dict[str, Interval]] = {}
    for key, name, version, start, end in log.engine_adapter.fetchall(query, quote_identifiers=True):
        if (name, version) in versions and start < end:
            found.setdefault(name, {})[key] = Interval(instant(start), instant(end))
    return found
