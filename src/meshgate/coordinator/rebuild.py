"""A table that merges rows, and that SQLMesh's plan empties before it merges them anew: all of it is made again, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from meshgate.gate import Blocked
from meshgate.interval import Interval, IntervalSet
from meshgate.restatement import merges

if TYPE_CHECKING:
    from meshgate.gate import Decision
    from meshgate.graph import ModelNode

_CAUSE = "the plan would empty the table, and does not make again all that is recorded of it"


def rebuilt(
    node: ModelNode, decision: Decision, covered: IntervalSet
) -> tuple[IntervalSet, Interval | None, tuple[Blocked, ...]]:
    """What of an emptied table may be evaluated, and why not the rest.

    Args:
        node: The model whose table a plan empties.
        decision: What of the plan's wish may be read now.
        covered: What is recorded of the version: what was emptied and could not be made again would be gone.

    Returns:
        What may be evaluated; all that is to be begun before its first batch, or None where nothing is emptied; what is blocked.
    """
    if not merges(node) or not covered or covered.last is None:
        return decision.ready, None, decision.blocked
    if covered - decision.ready:
        told = decision.blocked or (
            Blocked(node.name, node.project, covered.last, node.name, node.project, covered.last, "held", {"cause": _CAUSE}),
        )  # fmt: skip
        return (
            IntervalSet(),
            None,
            (*told, *(attrs.evolve(told[0], interval=piece) for piece in decision.ready)),
        )
    return decision.ready, decision.ready.hull, decision.blocked
