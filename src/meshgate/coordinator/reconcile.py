"""What plain SQLMesh did since the last look: seen, told, and healed (G6).

SQLMesh's record says what is recorded, never who recorded it or what it had read. So:

* a foreign row of a gated model is suspect, and evaluated again: nothing tells when it read its parents. That they
  were complete at the last look proves nothing, for the foreign evaluation may have begun before that look;
* what SQLMesh held and holds no more was removed by somebody, who wants it evaluated again; so was what its log says was
  removed since the last look, though it stands there again: an evaluation under way may have written it back;
* what the ledger has and SQLMesh never got is evaluated again once its run is over: nothing proves that it was
  not removed in between;
* with what plain SQLMesh added it is taken to have computed the model's lookback again (of a FULL table all), which is suspect;
* where a table was written since it was last accounted for, and nothing was added, it is `rewritten`, nobody knows where:
  told, or with `foreign_rewrite: suspect` evaluated again as a whole;
* what a person accepted is taken along into SQLMesh's record, by whichever run looks first.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from meshgate.coordinator.manifest import build_graph
from meshgate.coordinator.staleness import after_promotion, settled_elsewhere
from meshgate.coordinator.standing import standings
from meshgate.coordinator.ticks import answer_ticks
from meshgate.errors import EvaluationError, NotDeployedError
from meshgate.graph import MeshGraph, readers_of
from meshgate.interval import Interval, IntervalSet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from meshgate.bridge.project import SqlmeshProject
    from meshgate.bridge.translate import Promoted
    from meshgate.graph import Edge, ModelNode
    from meshgate.ledger import Ledger, Manifest, VersionState


_ATTEMPTS = 20


@attrs.frozen
class Finding:
    """Something that was not done under the ledger.

    Attributes:
        model: The model.
        project: Its project.
        what: `added`, `suspect` (the doubtful part of it), `removed`, `unmirrored`, `rewritten`, or `promoted`.
        interval: The range, UTC; None for a promotion, and where it is not known.
    """

    model: str
    project: str
    what: str
    interval: Interval | None


def elsewhere(
    ledger: Ledger, environment: str, plan: Promoted
) -> tuple[dict[str, ModelNode], dict[str, list[tuple[Edge, ModelNode]]]]:
    """The models that the ledger knows and that this SQLMesh state does not own: in this environment, else in their own.

    From another state a name leads to what its project's own environment has, whoever asks. Besides, what views among
    them read.
    """
    projects = {n.project for n in plan.nodes.values() if n.version}
    found: dict[str, ModelNode] = {}
    behind: dict[str, list[tuple[Edge, ModelNode]]] = {}
    for place in dict.fromkeys((environment, *ledger.homes())):
        with suppress(NotDeployedError):
            graph = ledger.manifest(place).graph
            for name, node in graph.nodes.items():
                if node.version and node.project not in projects and name not in found:
                    found[name] = node
                    if node.kind.transparent:
                        behind[name] = [(edge, graph[edge.parent]) for edge in graph.parents(name)]
    return found, behind


def graph_of(
    ledger: Ledger, environment: str, plan: Promoted, changed: Mapping[str, Mapping[str, Any]] | None = None
) -> MeshGraph:
    """The graph of what a plan or an environment holds, with the windows that the projects declared.

    Args:
        ledger: Holds what each project declared at its last deploy.
        environment: SQLMesh's environment.
        plan: What it holds.
        changed: What a project that is being deployed declares now, by its name.
    """
    manifests = ledger.manifests(environment) | dict(changed or {})
    theirs, behind = elsewhere(ledger, environment, plan)
    return build_graph(plan, manifests, theirs, environment, behind)


def reconcile(
    ledger: Ledger,
    project: SqlmeshProject,
    environment: str,
    now: datetime,
    *,
    run_id: int | None = None,
    baseline: bool = False,
    deploying: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Finding, ...]:
    """Bring the ledger up to what SQLMesh's state holds for an environment.

    Args:
        ledger: The ledger.
        project: Any project on that state.
        environment: SQLMesh's environment.
        now: The instant that counts, UTC.
        run_id: The run that looks, which takes along what was accepted; None only looks.
        baseline: Whether the first look at a state that existed before the ledger may trust its rows, as far as their
            parents are there: there is no history that could speak against them. A later look never does.
        deploying: For a deploy: what its project declares now, by its name.

    Raises:
        NotDeployedError: SQLMesh has no such environment.
        EvaluationError: A plan is changing it, or died while it did; only a deploy goes on then.
    """
    read_at = ledger.clock()
    fingerprint = _fingerprint(ledger, project, environment)
    plan = project.promoted(environment, now)
    if plan is None:
        raise NotDeployedError(
            f"environment {environment!r} was never planned: SQLMesh's state has no such environment",
            hint=f"run `meshgate deploy {project.project} --environment {environment}`",
        )
    if not plan.finalized and deploying is None:
        raise EvaluationError(
            f"environment {environment!r} is being changed by plan {plan.plan_id}, or that plan died",
            hint=f"wait for it; if it is gone, `meshgate deploy {project.project} --environment {environment}` finishes it",
            plan_id=plan.plan_id,
        )
    graph = graph_of(ledger, environment, plan, deploying)
    baseline = baseline and not _met(ledger, environment, plan)
    _answer_before_change(ledger, environment, graph, now)
    changed = _promote(ledger, environment, plan, graph, now)
    findings = [Finding(name, graph[name].project, "promoted", None) for name in changed]
    manifest = ledger.manifest(environment)
    states = ledger.states(manifest.version_ids.values())
    policies = ledger.manifests(environment)
    for name in graph.order():
        node = graph[name]
        if not node.kind.recorded or name not in plan.recorded:
            continue
        version = manifest.version_ids[name]
        recorded = plan.recorded[name]
        added = recorded - states[version].covered
        trusted = _within(manifest, graph, node, added, states, now) if added and baseline else IntervalSet()
        again = ledger.find_rewritten(
            version, again=IntervalSet() if baseline else _again(node, added, states[version].covered),
            altered=plan.altered.get(name), explained=bool(added),
            suspect=policies.get(node.project, {}).get("foreign_rewrite") == "suspect",
            removed=plan.removed.get(name, {}),
        )  # fmt: skip
        findings += [
            Finding(name, node.project, what, None if what == "rewritten" else interval)
            for what, interval in again
        ]
        found = ledger.reconcile_version(
            version, recorded, trusted=trusted, gated=bool(graph.gates(name)), read_at=read_at
        )
        findings += [Finding(name, node.project, what, interval) for what, interval in found]
        if found or again:
            states.update(ledger.states([version]))
        if run_id is not None and states[version].accepted:
            for piece in ledger.adopt_accepted(run_id, version):
                project.record(environment, name, node.version, piece)
                ledger.note_mirrored(run_id, version, piece)
    ledger.set_fingerprint(environment, fingerprint)
    return tuple(findings)


def _answer_before_change(ledger: Ledger, environment: str, graph: MeshGraph, now: datetime) -> None:
    """Ticks of a cron that is another one now count as long as it was there."""
    if environment not in ledger.environments():
        return
    known = ledger.manifest(environment)
    changed = (
        name
        for name in known.answered
        if name in graph and graph[name].restate_cron not in (None, known.graph[name].restate_cron)
    )
    answer_ticks(ledger, known, changed, now)


def _promote(
    ledger: Ledger, environment: str, plan: Promoted, graph: MeshGraph, now: datetime
) -> tuple[str, ...]:
    """Let the ledger promote what SQLMesh does; the models whose version changed."""
    projects = {n.project for n in plan.nodes.values() if n.project}
    for _ in range(_ATTEMPTS):
        at = ledger.revision()
        settled = after_promotion(ledger, environment, graph, plan.unbroken)
        others = {} if settled is None else settled_elsewhere(ledger, environment, graph)
        changed = ledger.sync_environment(
            environment, plan.plan_id, graph, projects, settled, at, others, now
        )
        if changed is not None:
            return changed
    raise EvaluationError("the ledger changes faster than a promotion can be judged", hint="deploy again")


def _met(ledger: Ledger, environment: str, plan: Promoted) -> bool:
    """Whether any project of this SQLMesh state was looked at before, in this environment."""
    if environment not in ledger.environments():
        return False
    projects = {n.project for n in plan.nodes.values() if n.project}
    known = ledger.manifest(environment)
    return any(n.project in projects for name, n in known.graph.nodes.items() if name not in known.borrowed)


def _again(node: ModelNode, added: IntervalSet, covered: IntervalSet) -> IntervalSet:
    """What plain SQLMesh is taken to have computed again with what it added: its record does not show that."""
    if not added:
        return IntervalSet()
    if node.kind.reads_everything:
        return covered
    if not node.lookback or not node.kind.time_partitioned:
        return IntervalSet()
    return IntervalSet(Interval(node.unit.shift(a.start, -node.lookback), a.start) for a in added) - added


def _within(
    manifest: Manifest,
    graph: MeshGraph,
    node: ModelNode,
    added: IntervalSet,
    states: Mapping[int, VersionState],
    now: datetime,
) -> IntervalSet:
    """The part of a baseline's rows whose parents are there too."""
    known = standings(graph, manifest.version_ids, states, now)
    within = added
    for gate in graph.gates(node.name):
        parent, sound = graph[gate.parent], known[gate.parent].clean
        if gate.window.mode == "loaded":
            within = within if sound else IntervalSet()
        else:
            within -= readers_of(node, parent, gate.window, IntervalSet([parent.life]) - sound, within)
    return within


def _fingerprint(ledger: Ledger, project: SqlmeshProject, environment: str) -> str | None:
    """Taken before the state is read: whatever is written later shows as a change."""
    return ledger.sqlmesh_fingerprint(project.state_schema, environment)


def unchanged(ledger: Ledger, manifest: Manifest, project_manifest: Mapping[str, object]) -> bool:
    """Whether SQLMesh's tables are as they were when the environment was reconciled last.

    Needs them in the ledger's own database; elsewhere the answer is always no, and reading them needs SQLMesh.
    """
    schema = project_manifest.get("state_schema")
    if not manifest.fingerprint or not isinstance(schema, str):
        return False
    if ledger.has_unmirrored(manifest.environment):
        return False  # a run died between the two records: SQLMesh's tables cannot show it
    return ledger.sqlmesh_fingerprint(schema, manifest.environment) == manifest.fingerprint
