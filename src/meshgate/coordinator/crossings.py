"""The edges between projects that a change crosses, and what becomes of who reads there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.analysis import Boundary, Reason, reasons_of
from meshgate.graph import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshgate.analysis import Change, Left, Work
    from meshgate.coordinator.proposed import Scene, Side


def boundaries(
    scene: Scene, changes: Iterable[Change], work: Iterable[Work], left: Iterable[Left]
) -> tuple[Boundary, ...]:
    """The edges between projects that the change crosses."""
    by_name = {change.model: change for change in changes}
    told = {n: c.differences for n, c in by_name.items() if c.differences}
    effects: dict[str, str] = {one.model: "left" for one in left}
    for one in work:
        effects[one.model] = (
            "rebuilt" if one.by == "deploy" or effects.get(one.model) == "rebuilt" else "stale"
        )
    moved = {n for n, c in by_name.items() if c.how != "metadata" and not c.keeps_data} | set(effects)
    rows = {n for n, c in by_name.items() if c.category == "indirect_breaking"}
    rows |= {n for n, effect in effects.items() if effect == "stale"}
    forward = {one.model for one in left if one.reason == "forward_only"}
    found: list[Boundary] = []
    for child, own, parent, other in crossings(scene):
        was, now = (_reads(side, child, parent) for side in (scene.begun, scene.after))
        if parent not in moved and not (child in moved and was != now):
            continue
        side = scene.after if now else scene.begun
        reason = next(iter(reasons_of({parent: side.read_of(child, parent)}, told, rows)), Reason(parent))
        if scene.after.owner(parent) is None:
            effect = "broken" if now else "gone"
        elif was != now:
            effect = "new" if now else "gone"
        else:
            effect = effects.get(child, "left" if parent in forward else "none")
        if effect == "none" and child in scene.after.graph and scene.after.graph[child].kind is Kind.AUDIT:
            continue  # it makes nothing, and is asked again
        found.append(Boundary(parent, other, child, own, scene.owners.get(child), effect, reason))
    return tuple(found)


def crossings(scene: Scene) -> list[tuple[str, str, str, str]]:
    """Every edge between two projects, so far or then; a model that is gone still counts as its project's."""
    found: dict[tuple[str, str, str, str], None] = {}
    for side in (scene.after, scene.begun):
        for child in side.graph.order():
            own = side.owner(child)
            for edge in side.graph.parents(child) if own else ():
                other = scene.after.owner(edge.parent) or scene.begun.owner(edge.parent)
                if own and other and other != own:
                    found[child, own, edge.parent, other] = None
    return list(found)


def _reads(side: Side, child: str, parent: str) -> bool:
    return side.owner(child) is not None and parent in {e.parent for e in side.graph.parents(child)}
