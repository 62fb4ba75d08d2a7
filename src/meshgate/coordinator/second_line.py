"""The gate for who holds no lease: what plain SQLMesh may read, by what the ledger knows now."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import attrs

from meshgate.coordinator.reconcile import graph_of
from meshgate.coordinator.standing import standings
from meshgate.errors import NotDeployedError
from meshgate.gate import decide
from meshgate.graph import Kind
from meshgate.interval import IntervalSet
from meshgate.ledger import VersionState

if TYPE_CHECKING:
    from meshgate.bridge.readiness import Batch
    from meshgate.ledger import Ledger

# A clock that is so far behind is meant to be. A difference below is drift.
_DRIFT = timedelta(minutes=1)
_MOST = 5


@attrs.frozen
class Answer:
    """What may be read, and why the rest may not."""

    ready: IntervalSet
    reasons: tuple[str, ...]


def passes(ledger: Ledger, asked: Batch) -> Answer:
    """Which of a batch's time the gate lets through.

    Raises:
        NotDeployedError: The ledger knows no environment.
    """
    environment, ids = _known(ledger, asked)
    graph = graph_of(ledger, environment, asked.plan)
    states = ledger.states(ids.values())
    parents = [gate.parent for gate in graph.gates(asked.name)]
    produced = {}
    for number, name in enumerate(graph.order()):
        if name in ids or not graph[name].kind.recorded:
            continue
        # Nobody has told the ledger of this version: SQLMesh's own record counts, and what it is about to make.
        ids[name] = -1 - number
        covered = asked.plan.recorded.get(name, IntervalSet())
        if name in parents:
            covered |= IntervalSet([graph[name].life]) if asked.made is None else asked.made
        states[ids[name]] = VersionState(covered=covered)
    # SQLMesh does not tell for which parent it is: where there are several, or a view in between, nobody knows.
    direct = [p for p in asked.plan.parents[asked.name] if graph[p].kind is not Kind.EXTERNAL]
    if parents == direct and len(parents) == 1 and asked.made:
        produced[parents[0]] = asked.made
    clock = ledger.clock()
    now = asked.now if asked.now < clock - _DRIFT else clock
    decision = decide(
        graph, asked.name, IntervalSet(asked.units), standings(graph, ids, states, now), produced, now=now, patience=None
    )  # fmt: skip
    reasons = (f"{b.interval}: {b.parent} {b.span} is {b.reason}" for b in decision.blocked[:_MOST])
    return Answer(decision.ready, tuple(reasons))


def _known(ledger: Ledger, asked: Batch) -> tuple[str, dict[str, int]]:
    """The environment whose windows count, and the ledger's keys of the versions that it knows."""
    environments = sorted(ledger.environments(), key=lambda name: (name != "prod", name))
    if not environments:
        raise NotDeployedError(
            "the ledger knows no environment: nothing was deployed through meshgate",
            hint="run `meshgate deploy PROJECT`",
        )
    ids: dict[str, int] = {}
    found: str | None = None
    for environment in environments:
        manifest = ledger.manifest(environment)
        for name, node in manifest.graph.nodes.items():
            here = asked.plan.nodes.get(name)
            if name in manifest.version_ids and (
                here is None or not here.version or here.version == node.version
            ):
                ids.setdefault(name, manifest.version_ids[name])
                if name == asked.name:
                    found = found or environment
    return found or environments[0], ids
