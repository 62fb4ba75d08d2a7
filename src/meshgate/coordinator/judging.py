"""What a standalone audit has looked at, and what of that is kept from its readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.graph import Kind, window_of
from meshgate.ledger import WHOLE, Judged

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meshgate.graph import MeshGraph, ModelNode
    from meshgate.interval import Interval


def judged(
    graph: MeshGraph,
    version_ids: Mapping[str, int],
    node: ModelNode,
    piece: Interval,
    why: str | None,
    holding: Collection[str],
) -> tuple[Judged, ...]:
    """What an audit of some time has looked at; nothing for other nodes.

    Args:
        graph: The mesh.
        version_ids: The ledger's key of each model's version.
        node: The audit.
        piece: Of its time, UTC.
        why: What it rejects, in words; None: nothing.
        holding: The models that are kept from their readers then.
    """
    if node.kind is not Kind.AUDIT:
        return ()
    found: list[Judged] = []
    for gate in graph.gates(node.name):
        parent = graph[gate.parent]
        # Of a table that is one whole the newest verdict is about all of it.
        whole = parent.kind.as_of or gate.window.mode == "loaded"
        time = (WHOLE,) if whole else window_of(node, parent, gate.window, piece)
        held = why if gate.parent in holding else None
        found += (Judged(version_ids[gate.parent], span, held) for span in time)
    return tuple(found)
