"""From SQLMesh's snapshots and milliseconds to meshgate's nodes and instants, and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
from sqlmesh.utils.date import make_exclusive, to_datetime

from meshgate.graph import Kind, ModelNode
from meshgate.interval import Interval, IntervalSet, IntervalUnit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlmesh.core.snapshot import Snapshot

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def instant(milliseconds: int) -> datetime:
    """The UTC instant of a number of milliseconds since the epoch."""
    return _EPOCH + milliseconds * _MILLISECOND


def milliseconds(value: datetime) -> int:
    """The number of milliseconds since the epoch of an aware instant."""
    return (value - _EPOCH) // _MILLISECOND


def interval(start: Any, end: Any) -> Interval:
    """SQLMesh's half-open pair, whatever time-like it is made of, as an interval."""
    return Interval(to_datetime(start).astimezone(UTC), to_datetime(end).astimezone(UTC))


def interval_set(pairs: Iterable[tuple[int, int]]) -> IntervalSet:
    """SQLMesh's list of half-open millisecond pairs as a set."""
    return IntervalSet(Interval(instant(start), instant(end)) for start, end in pairs)


def pairs(intervals: Iterable[Interval]) -> list[tuple[int, int]]:
    """Intervals as SQLMesh's list of half-open millisecond pairs."""
    return [(milliseconds(i.start), milliseconds(i.end)) for i in intervals]


@attrs.frozen
class Promoted:
    """What an environment (or a plan) holds, in meshgate's terms.

    Attributes:
        plan_id: SQLMesh's id of the plan that made it.
        finalized: Whether that plan was carried through to its end.
        nodes: Models by name; external ones included, also those that only a query names.
        parents: The names that each model's query reads.
        recorded: What SQLMesh has recorded, by name.
        disable_restatement: The models that must not be computed again, by declaration or by their kind's default.
    """

    plan_id: str | None
    finalized: bool
    nodes: Mapping[str, ModelNode]
    parents: Mapping[str, tuple[str, ...]]
    recorded: Mapping[str, IntervalSet]
    disable_restatement: frozenset[str] = frozenset()
    unbroken: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    """By model: the older versions of which the present one is no breaking change."""
    altered: Mapping[str, datetime] = attrs.field(factory=dict)
    """When each model's table was written last, as SQLMesh recorded it by the clock of whoever wrote; UTC."""
    removed: Mapping[str, Mapping[str, Interval]] = attrs.field(factory=dict)
    """What was removed from SQLMesh's record of each model, by the key of the removal, until its janitor forgets it."""


def promoted(
    snapshots: Collection[Snapshot], *, plan_id: str | None, finalized: bool, now: datetime
) -> Promoted:
    """Translate snapshots. A standalone audit is one of the nodes: it holds no data, and its verdicts are recorded by time.

    Args:
        snapshots: With fresh intervals.
        plan_id: SQLMesh's plan.
        finalized: Whether it was carried through.
        now: Where relative starts are counted from, UTC.
    """
    starts = _starts(snapshots, now)
    nodes: dict[str, ModelNode] = {}
    parents: dict[str, tuple[str, ...]] = {}
    recorded: dict[str, IntervalSet] = {}
    kin: dict[str, frozenset[str]] = {}
    for snapshot in snapshots:
        nodes[snapshot.name] = _node(snapshot, starts[snapshot.snapshot_id])
        parents[snapshot.name] = tuple(sorted(snapshot.node.depends_on))
        recorded[snapshot.name] = interval_set(snapshot.intervals)
        kin[snapshot.name] = unbroken(snapshot)
    for name, node in named_only(parents, nodes).items():
        nodes[name], parents[name] = node, ()
    altered = {s.name: instant(s.last_altered_ts) for s in snapshots if s.is_model and s.last_altered_ts}
    kept = frozenset(s.name for s in snapshots if s.is_model and s.model.disable_restatement)
    return Promoted(plan_id, finalized, nodes, parents, recorded, kept, kin, altered)


def named_only(parents: Mapping[str, Iterable[str]], nodes: Collection[str]) -> dict[str, ModelNode]:
    """The tables that only a query names: nobody's models."""
    return {
        name: ModelNode(
            name=name, project="", version="", kind=Kind.EXTERNAL, unit=IntervalUnit.DAY, cron="@daily"
        )
        for name in sorted({parent for names in parents.values() for parent in names} - set(nodes))
    }


def unbroken(snapshot: Snapshot) -> frozenset[str]:
    """The older versions of which a version is no breaking change."""
    found: set[str] = set()
    category = snapshot.change_category
    for older in reversed(snapshot.previous_versions):
        if category is None or not (category.is_non_breaking or category.is_metadata):
            break
        found.add(older.version)
        category = older.change_category
    return frozenset(found)


def _starts(snapshots: Collection[Snapshot], now: datetime) -> dict[Any, datetime]:
    """Where each history begins: where the model says so, else with its parents', else one tick before `now`.

    SQLMesh's own `start_date` counts a relative start from this machine's clock.
    """
    by_id = {s.snapshot_id: s for s in snapshots}
    starts: dict[Any, datetime] = {}

    def begin(snapshot: Snapshot) -> datetime:
        key = snapshot.snapshot_id
        if key not in starts:
            if snapshot.node.start:
                starts[key] = to_datetime(snapshot.node.start, relative_base=now)
            else:
                parents = [begin(by_id[parent]) for parent in snapshot.parents if parent in by_id]
                tick = snapshot.node.cron_prev(snapshot.node.cron_floor(now))
                starts[key] = min(parents, default=tick)
        return starts[key]

    for snapshot in snapshots:
        begin(snapshot)
    return starts


def _node(snapshot: Snapshot, start: datetime) -> ModelNode:
    node = snapshot.node
    kind = Kind.AUDIT if snapshot.is_audit else Kind.from_sqlmesh(snapshot.model_kind_name.value)
    return ModelNode(
        name=snapshot.name,
        project=node.project or "",
        version=snapshot.version or "",
        kind=kind,
        unit=IntervalUnit(node.interval_unit.value),
        cron=node.cron,
        cron_tz=str(node.cron_tz) if node.cron_tz else "UTC",
        start=start.astimezone(UTC),
        end=to_datetime(make_exclusive(node.end)).astimezone(UTC) if node.end else None,
        batch_size=node.batch_size,
        # SQLMesh calls every full-history kind dependent on its past; here it means that the query reads itself.
        depends_on_past=kind.time_partitioned and bool(snapshot.depends_on_past),
        **(_of_model(snapshot.model) if snapshot.is_model else {}),
    )


def _of_model(model: Any) -> dict[str, Any]:
    """What only models declare."""
    facts = {"lookback": model.lookback, "allow_partials": bool(model.allow_partials)}
    # Nothing of a model that must not be computed again is, whatever its cron says.
    if model.auto_restatement_cron and not model.disable_restatement:
        facts |= {
            "restate_cron": model.auto_restatement_cron,
            "restate_units": model.auto_restatement_intervals,
        }
    return facts


def gated(snapshot: Snapshot, index: Any) -> bool:
    """Whether the journal has a say: a model with a table that environments share, or a standalone audit of such tables.

    External tables that are audited hold no data; a preview of a forward-only change writes to a table of its own, which
    nobody gates on.
    """
    return not snapshot.is_symbolic and index.is_deployable(snapshot)
