"""The mesh so far and the mesh as it would be: SQLMesh's plans over some checkouts, and what the ledger knows besides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from meshgate.analysis import ALL_COLUMNS, Refusal
from meshgate.coordinator.deploy import _declared
from meshgate.coordinator.manifest import build_graph
from meshgate.coordinator.standing import standing
from meshgate.errors import ConfigError
from meshgate.graph import Kind
from meshgate.ledger import VersionState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from meshgate.bridge.proposal import Altered, Proposal
    from meshgate.bridge.translate import Promoted
    from meshgate.config import ProjectConfig
    from meshgate.coordinator.run import Workbench
    from meshgate.gate import ParentState
    from meshgate.graph import MeshGraph, ModelNode
    from meshgate.ledger import Manifest

Columns = "Mapping[str, Mapping[str, str]]"
Reads = "Mapping[str, Mapping[str, frozenset[str]]]"


@frozen
class Side:
    """The mesh at one instant.

    Attributes:
        graph: All models that SQLMesh's states or the ledger know, and who reads whom.
        recorded: What is recorded of each.
        columns: The columns of each, as far as they are known.
        reads: The columns that each reads of each parent, as far as that is known.
        named: What the query of each calls by name, as far as that is known; None: perhaps anything.
    """

    graph: MeshGraph
    recorded: Mapping[str, Any]
    columns: Mapping[str, Mapping[str, str]]
    reads: Mapping[str, Mapping[str, frozenset[str]]]
    named: Mapping[str, frozenset[str] | None]

    def owner(self, name: str) -> str | None:
        """Whose model it is; None for what no project makes, and what is not there."""
        node = self.graph.nodes.get(name)
        return node.project if node is not None and node.version and node.kind is not Kind.EXTERNAL else None

    def version(self, name: str) -> str | None:
        """Its version, if it is a model that some project makes."""
        return self.graph[name].version if self.owner(name) is not None else None

    def read_of(self, child: str, parent: str) -> frozenset[str]:
        """The columns that one reads of another: of a project whose files and state nobody looked at, any."""
        if child not in self.reads:
            return frozenset((ALL_COLUMNS,))
        return self.reads[child].get(parent, frozenset())


@frozen
class Scene:
    """What an analysis decides from.

    Attributes:
        environment: SQLMesh's environment.
        now: The instant that counts, UTC.
        projects: Whose files were looked at.
        before: The mesh so far.
        begun: The same; where the environment is new, production, as which it begins.
        after: The mesh as it would be.
        altered: Every model that differs, parents first.
        wanted: What the plans would evaluate, also what is merely due.
        manifests: What each project declares, as it would be.
        manifest: What the ledger knows of the environment; None where nothing was deployed there.
        states: What the ledger knows of the versions that are promoted, by model.
        owners: Who owns each model, where it says so.
        together: By project: those whose files were looked at and that share its state, whose deploys can evaluate its models.
        refusals: What was found wrong on the way here.
    """

    environment: str
    now: datetime
    projects: tuple[str, ...]
    before: Side
    begun: Side
    after: Side
    altered: tuple[Altered, ...]
    wanted: Mapping[str, Any]
    manifests: Mapping[str, Mapping[str, Any]]
    manifest: Manifest | None
    states: Mapping[str, VersionState]
    owners: Mapping[str, str]
    together: Mapping[str, frozenset[str]]
    refusals: tuple[Refusal, ...]

    def replaced(self, name: str) -> bool:
        """Whether it gets another version, that is, another table."""
        return self.before.version(name) != self.after.version(name)

    def standing(self, name: str) -> ParentState:
        """What is known of the version that would be promoted."""
        known = None if self.replaced(name) else self.states.get(name)
        if known is None:
            known = VersionState(covered=self.after.recorded[name])
        return standing(self.after.graph[name], known, self.now)

    def standing_so_far(self, name: str) -> ParentState | None:
        """What is known of the version that is promoted now; None where there is none."""
        if self.before.version(name) is None or name not in self.before.recorded:
            return None
        known = self.states.get(name) or VersionState(covered=self.before.recorded[name])
        return standing(self.before.graph[name], known, self.now)


def look(
    bench: Workbench,
    proposals: Sequence[Proposal],
    configured: Mapping[str, ProjectConfig],
    environment: str,
    now: datetime,
    states: Mapping[int, VersionState],
    manifest: Manifest | None,
) -> Scene:
    """Put plans and ledger together.

    Args:
        bench: Configuration and ledger.
        proposals: SQLMesh's plans, one for each state.
        configured: What `meshgate.yaml` says of the projects whose files are looked at, by name.
        environment: SQLMesh's environment.
        now: The instant that counts, UTC.
        states: What the ledger knows of all that is promoted.
        manifest: What the ledger says is promoted; None where nothing was deployed.

    Raises:
        GraphError: Models would read each other in a circle.
    """
    deployed = bench.ledger.manifests(environment)
    declared = {
        name: {**deployed.get(name, {}), **_declared(project)} for name, project in configured.items()
    }
    for proposal in proposals:
        for name in proposal.projects:
            kept = sorted(
                m for m in proposal.after.disable_restatement if proposal.after.nodes[m].project == name
            )
            declared[name] = {**declared.get(name, deployed.get(name, {})), "disable_restatement": kept}
    manifests = {**deployed, **declared}
    known = {name: states[key] for name, key in manifest.version_ids.items()} if manifest else {}
    refusals: list[Refusal] = []
    before, begun = (
        _side(
            [(promoted, p.columns[0], p.reads[0], p.named[0]) for p, promoted in zip(proposals, sides, strict=True)],
            manifest, known, deployed, environment, [],
        )
        for sides in ([p.before for p in proposals], [p.begun for p in proposals])
    )  # fmt: skip
    after = _side(
        [(p.after, p.columns[1], p.reads[1], p.named[1]) for p in proposals], manifest, known, manifests, environment, refusals
    )  # fmt: skip
    place = {name: number for number, name in enumerate([*after.graph.order(), *begun.graph.order()])}
    altered = sorted(
        (a for p in proposals for a in p.altered), key=lambda a: (place.get(a.model, -1), a.model)
    )
    return Scene(
        environment, now, tuple(sorted(n for p in proposals for n in p.projects)), before, begun, after,
        tuple(a for a in altered if not _only_external(a, begun, after)),
        {name: time for p in proposals for name, time in p.wanted.items()}, manifests, manifest, known,
        {name: owner for p in proposals for name, owner in p.owners.items()},
        {name: frozenset(p.projects) for p in proposals for name in _held(p)}, tuple(refusals),
    )  # fmt: skip


def _held(proposal: Proposal) -> set[str]:
    """Every project of a state."""
    return {n.project for n in proposal.after.nodes.values() if n.project} | set(proposal.projects)


def _only_external(altered: Altered, before: Side, after: Side) -> bool:
    """Whether it is about what no project makes: a declaration of a table's columns."""
    nodes = [side.graph.nodes.get(altered.model) for side in (before, after)]
    return any(nodes) and all(node is None or node.kind is Kind.EXTERNAL for node in nodes)


def _side(
    parts: Iterable[tuple[Promoted | None, Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]],
    manifest: Manifest | None,
    known: Mapping[str, VersionState],
    manifests: Mapping[str, Mapping[str, Any]],
    environment: str,
    refusals: list[Refusal],
) -> Side:
    parts = [part for part in parts if part[0] is not None]
    plans = [part[0] for part in parts if part[0] is not None]
    held = {node.project for plan in plans for node in plan.nodes.values() if node.version}
    nodes: dict[str, ModelNode] = {}
    parents: dict[str, tuple[str, ...]] = {}
    recorded: dict[str, Any] = {}
    if manifest is not None:
        # Projects with a state of their own that no checkout is about: the ledger alone knows them.
        for name, node in manifest.graph.nodes.items():
            if node.project not in held:
                nodes[name] = node
                parents[name] = tuple(edge.parent for edge in manifest.graph.parents(name))
                if name in known:
                    recorded[name] = known[name].covered
    for plan in plans:
        for name, node in plan.nodes.items():
            if node.kind is Kind.EXTERNAL and nodes.get(name, node).kind is not Kind.EXTERNAL:
                continue  # a table here, a model there: it is that model
            nodes[name] = node
            parents[name] = plan.parents.get(name, ())
            if name in plan.recorded:
                recorded[name] = plan.recorded[name]
    for name in {p for names in parents.values() for p in names} - set(nodes):
        nodes[name] = manifest.graph[name] if manifest is not None and name in manifest.graph else nodes[name]
        parents[name] = ()
    first = plans[0] if plans else None
    whole = _Whole(first, nodes, parents, recorded)
    return Side(
        _graph(whole, manifests, environment, refusals), recorded,
        {name: told for part in parts for name, told in part[1].items()},
        {name: told for part in parts for name, told in part[2].items()},
        {name: told for part in parts for name, told in part[3].items()},
    )  # fmt: skip


@frozen
class _Whole:
    """As `build_graph` takes a plan."""

    first: Promoted | None
    nodes: Mapping[str, ModelNode]
    parents: Mapping[str, tuple[str, ...]]
    recorded: Mapping[str, Any]


def _graph(
    whole: Any, manifests: Mapping[str, Mapping[str, Any]], environment: str, refusals: list[Refusal]
) -> MeshGraph:
    kept = dict(manifests)
    for name in sorted(kept):
        try:
            build_graph(whole, {name: kept[name]}, {}, environment)
        except ConfigError as error:
            # A deploy would refuse it too; what else there is to say is worth saying.
            refusals.append(
                Refusal("declaration", None, name, error.message, error.hint or "correct its meshgate.yaml")
            )
            kept[name] = {**kept[name], "edges": ()}
    return build_graph(whole, kept, {}, environment)
