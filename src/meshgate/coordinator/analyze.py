"""What a change of some projects' files does to the whole mesh, before anybody deploys it.

SQLMesh plans the checkouts; the ledger knows what is promoted, recorded, in flight and asked for, also of projects whose
state is another one; the gate decides what a deploy could evaluate; the rules of staleness tell who reads anew what it
read. Nothing is written: neither state, nor ledger, nor warehouse.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - part of a callable's type
from typing import TYPE_CHECKING, Any

from attrs import evolve

from meshgate.analysis import (
    ALL_COLUMNS,
    Analysis,
    Beyond,
    Change,
    Condition,
    Difference,
    Reading,
    arrange,
    earliest,
    precedences,
    reasons_of,
)
from meshgate.config import FILE_NAME, load
from meshgate.coordinator.consequences import Consequences
from meshgate.coordinator.crossings import boundaries, crossings
from meshgate.coordinator.explain import environment_of
from meshgate.coordinator.objections import blanks, collisions, refusals, strangers
from meshgate.coordinator.proposed import look
from meshgate.coordinator.staleness import states_of
from meshgate.coordinator.windows import told, windows_of
from meshgate.coordinator.world import base_of, manifest_of
from meshgate.due import cron_floor, cron_next
from meshgate.errors import ConfigError
from meshgate.graph import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from meshgate.bridge.proposal import Proposal
    from meshgate.config import ProjectConfig
    from meshgate.coordinator.proposed import Scene
    from meshgate.coordinator.run import Workbench


def analyze(
    bench: Workbench,
    checkouts: Mapping[str, Path | None] | None = None,
    *,
    environment: str | None = None,
    now: datetime | None = None,
) -> Analysis:
    """Tell what deploying some checkouts would do.

    Args:
        bench: Configuration and ledger.
        checkouts: Folders by project; None for the folder that `meshgate.yaml` has. Without any, all of its projects
            whose folders are there. All other projects come from state.
        environment: SQLMesh's environment; by default the one that the configured projects share.
        now: An instant in the past to stand for the present, UTC.

    Raises:
        ConfigError: There is nothing to analyse.
        ProjectError: A checkout cannot be loaded or planned.
        GraphError: Models would read each other in a circle.
    """
    from meshgate.bridge.proposal import Checkout, propose
    from meshgate.windows import bounds_to_render

    configured = configured_as(bench, checkouts or {})
    target = bench.target(next(iter(configured.values())), environment_of(bench, environment))
    instant = bench.instant(now)
    checked_out = [Checkout(p.name, p.path, p.gateway) for p in configured.values()]
    found = propose(checked_out, target, instant, bounds_to_render)
    with bench.ledger.still() as ledger:
        # One look: what runs do meanwhile belongs to the next one.

        return _analyzed(evolve(bench, ledger=ledger), found, configured, target, instant)


def configured_as(bench: Workbench, checkouts: Mapping[str, Path | None]) -> dict[str, ProjectConfig]:
    """What `meshgate.yaml` says of each project that is looked at, with the folder that is meant.

    The file that lies in a checkout is the one that its deploy would read.
    """
    wanted = dict(checkouts) or {p.name: None for p in bench.config.projects if p.path.is_dir()}
    if not wanted:
        raise ConfigError(
            f"none of the projects in {bench.config.path} has a folder here",
            hint="name checkouts: `meshgate analyze PROJECT=PATH`",
        )
    found: dict[str, ProjectConfig] = {}
    for name in sorted(wanted):
        path = wanted[name]
        if path is None:
            found[name] = bench.project(name)
            continue
        path = path.resolve()
        if not path.is_dir():
            raise ConfigError(f"there is no folder {path}", hint=f"correct `{name}=PATH`", project=name)
        known = {p.name: p for p in bench.config.projects} | _own(path)
        if name not in known:
            raise ConfigError(
                f"neither {bench.config.path} nor {path} says what project {name!r} is",
                hint=f"put a {FILE_NAME} into the checkout, or list the project in {bench.config.path}",
                project=name,
            )
        found[name] = evolve(known[name], path=path)
    return found


def _own(path: Path) -> dict[str, ProjectConfig]:
    for folder in (path, path.parent):
        if (folder / FILE_NAME).is_file():
            return {p.name: p for p in load(folder).projects if p.path == path}
    return {}


def _analyzed(
    bench: Workbench,
    proposals: Sequence[Proposal],
    configured: Mapping[str, ProjectConfig],
    target: str,
    now: datetime,
) -> Analysis:
    ledger = bench.ledger
    manifest = manifest_of(ledger, target)
    states = states_of(ledger, manifest, now, bench.policies(manifest).stale) if manifest else {}
    scene = look(bench, proposals, configured, target, now, states, manifest)
    changes = _changes(scene)
    order = _order(scene)
    found = Consequences(bench, scene, changes, order)
    work, left = found.work(), found.left()
    times = earliest(found.tasks(), now, _tick(scene))
    return Analysis(
        environment=target,
        now=now,
        projects=scene.projects,
        base=base_of(proposals, manifest, ledger.revision()),
        changes=changes,
        work=tuple(found.timed(one, times[one.key]) for one in work),
        left=left,
        boundaries=boundaries(scene, changes, work, left),
        collisions=collisions(bench, scene, work),
        order=order,
        refusals=refusals(scene, proposals),
        windows=_beyond(scene, proposals),
        warnings=(*strangers(scene), *blanks(scene), *(w for p in proposals for w in p.warnings)),
    )


def _changes(scene: Scene) -> tuple[Change, ...]:
    told = {
        a.model: tuple(Difference(d.what, d.name, d.before, d.after) for d in a.differences)
        for a in scene.altered
    }
    itself = {name: differences for name, differences in told.items() if differences}
    # Whose rows may be others although it was not changed itself.
    above = {a.model for a in scene.altered if a.how == "indirect" and a.category == "indirect_breaking"}
    own = {a.model for a in scene.altered if a.how != "indirect"}
    found: list[Change] = []
    for a in scene.altered:
        reads = scene.after.reads.get(a.model, {})
        side = scene.after if a.model in scene.after.graph else scene.begun
        because = tuple(sorted(own & set(a.because))) or (
            tuple(n for n in _above(scene, a.model) if n in own) if a.how == "indirect" else ()
        )
        reasons = reasons_of(reads, itself, above) if a.how in ("indirect", "direct") else ()
        found.append(
            Change(
                a.model, a.project or side.owner(a.model) or "", scene.owners.get(a.model), a.how,  # type: ignore[arg-type]
                a.category, a.forward_only, because, told[a.model], reasons,
            )
        )  # fmt: skip
    return tuple(found)


def _above(scene: Scene, name: str) -> tuple[str, ...]:
    """Everything that a model reads, directly or not, also what is removed."""
    graph, found = scene.after.graph, {name: None}
    pending = [name]
    while pending:
        one = pending.pop()
        for edge in graph.parents(one) if one in graph else ():
            if edge.parent not in found:
                found[edge.parent] = None
                pending.append(edge.parent)
    return tuple(sorted(set(found) - {name}))


def _beyond(scene: Scene, proposals: Sequence[Proposal]) -> tuple[Beyond, ...]:
    """Where changed models read more than their windows declare, each state's for itself."""
    own = {a.model for a in scene.altered if a.how in ("added", "direct")}
    return tuple(
        Beyond(
            one.model.name, one.model.project, one.parent.name, *told(one),
            tuple(
                Condition(place.expression, place.file, place.line)
                for side in (one.before, one.after)
                if side is not None and (place := side.place) is not None
            ),
        )
        for proposal in proposals
        for one in windows_of(proposal.queries, scene.after.graph, own)
        if one.before is not None or one.after is not None
    )  # fmt: skip


def _order(scene: Scene) -> Any:
    readings = [
        Reading(
            child, own, parent, other,
            _columns(scene, child, parent, after=False), _columns(scene, child, parent, after=True),
            {column: _makers(scene, parent, column) for column in sorted(_come_or_go(scene, parent))},
        )
        for (child, own, parent, other) in crossings(scene)
    ]  # fmt: skip
    required = precedences(readings, scene.projects, (_tables(scene.begun), _tables(scene.after)))
    return arrange(scene.projects, required, {(r.parent_project, r.child_project) for r in readings})


def _come_or_go(scene: Scene, name: str) -> set[str]:
    was, now = (set(side.columns.get(name, ())) for side in (scene.begun, scene.after))
    return was ^ now


def _makers(scene: Scene, name: str, column: str) -> frozenset[str]:
    """Whose deploy makes a column of a model come or go: its own project's, or that of what a star brings it from."""
    side = scene.after if column in scene.after.columns.get(name, ()) else scene.begun
    named = side.named.get(name)
    found: set[str] = set()
    if named is None or column not in named:
        for edge in side.graph.parents(name):
            if edge.parent != name and column in _come_or_go(scene, edge.parent):
                found |= _makers(scene, edge.parent, column)
    if named is None or not found:
        found |= {side.owner(name) or ""} - {""}
    return frozenset(found)


def _columns(scene: Scene, child: str, parent: str, *, after: bool) -> frozenset[str] | None:
    """What a model reads of another by name, so far or then; None where it does not."""
    side = scene.after if after else scene.begun
    if side.owner(child) is None or parent not in {e.parent for e in side.graph.parents(child)}:
        return None
    read, named = side.read_of(child, parent), side.named.get(child)
    return read if named is None else read & {*named, ALL_COLUMNS}


def _tables(side: Any) -> dict[str, Any]:
    return {
        name: side.columns.get(name, {})
        for name, node in side.graph.nodes.items()
        if side.owner(name) is not None and node.kind is not Kind.EXTERNAL
    }


def _tick(scene: Scene) -> Callable[[str, datetime], datetime]:
    """When a project's runs begin: by its schedule, else by the fastest cron of its models."""
    crons: dict[str, tuple[str, str]] = {}
    for project in {n.project for n in scene.after.graph.nodes.values()}:
        declared = scene.manifests.get(project, {}).get("schedule")
        nodes = [n for n in scene.after.graph.nodes.values() if n.project == project and n.kind.recorded]
        fastest = min(
            nodes, key=lambda n: (cron_next(n.cron, n.cron_tz, scene.now), n.unit.approximate), default=None
        )
        if declared:
            crons[project] = (str(declared), "UTC")
        elif fastest is not None:
            crons[project] = (fastest.cron, fastest.cron_tz)

    def tick(project: str, instant: datetime) -> datetime:
        if project not in crons:
            return instant
        cron, tz = crons[project]
        floor = cron_floor(cron, tz, instant)
        return instant if floor == instant else cron_next(cron, tz, instant)

    return tick
