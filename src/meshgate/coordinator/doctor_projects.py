"""What `doctor` looks at in the projects' folders: configuration, models, schedule, state, warehouse, names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, frozen

from meshgate.bridge.contract import installed_versions, minor
from meshgate.coordinator.allowance import check_names
from meshgate.coordinator.diagnosis import Check, guarded
from meshgate.coordinator.manifest import build_graph, declared_edges
from meshgate.coordinator.sources import check_sources
from meshgate.due import cron_next
from meshgate.errors import MeshgateError, ProjectError
from meshgate.graph import Kind, MeshGraph
from meshgate.yaml_source import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from meshgate.bridge.settings import ProjectSettings
    from meshgate.bridge.survey import ProjectModels
    from meshgate.config import ProjectConfig
    from meshgate.graph import ModelNode

_FEW: Final = 3
_SOME_DAY: Final = datetime(2026, 1, 5, 0, 0, 1, tzinfo=UTC)
_TICKS: Final = 12


@frozen
class Looked:
    """A project as far as it could be looked at.

    Attributes:
        checks: What was found.
        settings: None where its configuration cannot be read, or does not fit.
        models: None where its files cannot be loaded.
    """

    checks: list[Check]
    settings: ProjectSettings | None = None
    models: ProjectModels | None = None


def look(project: ProjectConfig, others: Collection[str]) -> Looked:
    """Look at one project; `others`: the names of all projects of the file."""
    from meshgate.bridge.settings import read_settings
    from meshgate.bridge.survey import survey_models

    settings: list[ProjectSettings] = []
    models: list[ProjectModels] = []

    def read() -> Iterator[Check]:
        settings.append(read_settings(project.path, project.gateway))
        yield from _configured(project, settings[0], others)

    def load() -> Iterator[Check]:
        models.append(survey_models(project.path, project.gateway))
        yield from _models(project, models[0])

    name = project.name
    checks = guarded("project", name, read)
    if any(check.outcome == "fail" for check in checks):
        return Looked(checks)
    checks += guarded("state", name, _state, project, settings[0])
    reached = guarded("warehouse", name, _warehouse, project, settings[0])
    checks += reached
    # SQLMesh asks the warehouse for its catalog: where it is away, it would only be said twice.
    if all(check.outcome != "fail" for check in reached):
        checks += guarded("models", name, load)
    if models:
        checks += guarded("schedule", name, _schedule, project, models[0])
    return Looked(checks, settings[0], models[0] if models else None)


def _configured(
    project: ProjectConfig, settings: ProjectSettings, others: Collection[str]
) -> Iterator[Check]:
    name, wrong = project.name, False
    if settings.key != name:
        wrong = True
        found = f"`project: {settings.key}`" if settings.key else "no `project:` key"
        hint = f"write `project: {name}` into its config.yaml, or change the name in meshgate.yaml"
        if settings.key in others:
            hint = f"that is another project of meshgate.yaml: are the two paths interchanged? Else {hint}"
        elif settings.key:
            hint = f"{hint} to {settings.key}"
        yield Check("project", name, "fail", f"the SQLMesh project in {project.path} has {found}", hint)
    if project.gateway is not None and project.gateway.lower() not in settings.gateways:
        wrong = True
        message = f"gateway {project.gateway!r} is not configured in {project.path}"
        has = nearest(project.gateway, settings.gateways) if settings.gateways else "it has none with a name"
        yield Check("project", name, "fail", message, has.replace("known are:", "it has:"))
    if not wrong:
        yield Check("project", name, "ok", f"{project.path} has `project: {name}`")


def _models(project: ProjectConfig, models: ProjectModels) -> Iterator[Check]:
    name = project.name
    for package, needing in models.missing.items():
        message = f"the Python package {package} is not installed here, and {_some(needing)} imports it"
        hint = "install it where `meshgate run` and `meshgate deploy` of this project are started"
        yield Check("models", name, "fail", message, hint)
    if not models.names:
        hint = "write its models into models/, or correct its `path:` in meshgate.yaml"
        yield Check("models", name, "warn", f"{project.path} has no models", hint)
    elif not models.missing:
        count = len(models.names)
        yield Check("models", name, "ok", f"{count} model{'s' * (count != 1)} can be loaded")


def _schedule(project: ProjectConfig, models: ProjectModels) -> Iterator[Check]:
    """Beside the models' crons. Who runs more often than that finds late parents and repairs sooner: no mistake."""
    if project.schedule is None or not models.scheduled:
        return
    every = {node.display: _period(node.cron, node.cron_tz) for node in models.scheduled}
    turn = _period(project.schedule, "UTC")
    soonest = min(every.values())
    late = [model for model, period in every.items() if period < turn]
    name = project.name
    if late:
        message = f"its schedule {project.schedule!r} is rarer than the cron of {_some(late)}"
        hint = f"let it run every {_spoken(soonest)}, or say why not: until it runs, what is due waits, and so do its readers"
        yield Check("schedule", name, "warn", message, hint)
    elif turn < soonest:
        message = (
            f"it runs every {_spoken(turn)}, and the most frequent model is due every {_spoken(soonest)}: "
            "the runs between find nothing, unless something came late or is computed again"
        )
        yield Check("schedule", name, "ok", message)
    else:
        yield Check("schedule", name, "ok", "it runs as often as the most frequent of its models is due")


def _period(cron: str, zone: str) -> timedelta:
    """The shortest time between two ticks."""
    ticks = [cron_next(cron, zone, _SOME_DAY)]
    for _ in range(_TICKS):
        ticks.append(cron_next(cron, zone, ticks[-1]))
    return min(after - before for before, after in pairwise(ticks))


def _spoken(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _state(project: ProjectConfig, settings: ProjectSettings) -> Iterator[Check]:
    from meshgate.bridge.survey import survey_state

    name, place = project.name, settings.state
    if place is None:
        return
    where = f"{place.engine} {place.database}, schema {place.schema}"
    if settings.plain is not None and settings.plain != place:
        message = (
            f"meshgate uses gateway {settings.gateway!r}, whose state is in {where}; plain `sqlmesh` in the same folder "
            f"uses another one, in {settings.plain.engine} {settings.plain.database}, schema {settings.plain.schema}"
        )
        hint = f"write `default_gateway: {settings.gateway}` into its config.yaml, or always give `sqlmesh --gateway`"
        yield Check("state", name, "warn", message, hint)
    if place.engine == "duckdb":
        message = f"SQLMesh's state is in a DuckDB ({place.database}), which admits one process at a time"
        hint = "give its gateway a `state_connection` in Postgres, best the ledger's own database"
        yield Check("state", name, "warn", message, hint)
        return
    versions = survey_state(project.path, project.gateway)
    if versions is None:
        yield Check("state", name, "ok", f"{where} answers, and has no state yet: the first deploy makes it")
        return
    here = installed_versions()
    for title, package, theirs, ours in zip(
        ("SQLMesh", "SQLGlot"), ("sqlmesh", "sqlglot"), versions, here, strict=True
    ):
        if minor(theirs) != minor(ours):
            message = f"SQLMesh's state in {where} was written by {title} {theirs}, here is {ours}"
            hint = f"install {package} {theirs} here, or run `sqlmesh migrate` with {ours} for all projects of that state"
            yield Check("state", name, "fail", message, hint)
            return
    yield Check("state", name, "ok", f"{where} answers")


def _warehouse(project: ProjectConfig, settings: ProjectSettings) -> Iterator[Check]:
    from meshgate.bridge.survey import reach_warehouse

    name, place = project.name, settings.warehouse
    if place is None:
        return
    file = Path(place.file) if place.file else None
    if file is not None and not file.is_absolute():
        message = (
            f"its DuckDB file {place.file} has no absolute path: in each working folder it is another file"
        )
        yield Check("warehouse", name, "warn", message, "write the whole path into its config.yaml")
    if file is not None and not file.exists():
        if not file.absolute().parent.is_dir():
            raise ProjectError(f"there is no folder for its DuckDB file {place.file}", hint="make the folder")
        yield Check("warehouse", name, "ok", f"there is no {place.file} yet: the first deploy makes it")
        return
    try:
        reach_warehouse(project.path, project.gateway)
    except ProjectError as error:
        if file is None or "lock" not in error.message:
            hint = "correct the connection of its gateway, or start what it names"
            raise ProjectError(error.message, hint=error.hint or hint) from None
        hint = "that is so while a run of it works; projects that run at the same time need a warehouse for several processes"
        yield Check("warehouse", name, "fail", f"another process has {place.file} open", hint)
        return
    yield Check("warehouse", name, "ok", f"{place.engine} answers: {place.where}")


# All projects together


def together(
    projects: Mapping[str, ProjectConfig], looked: Mapping[str, Looked], promoted: Mapping[str, MeshGraph]
) -> list[Check]:
    """What only shows where projects are seen side by side.

    Args:
        projects: Of `meshgate.yaml`, by name.
        looked: What was found of each.
        promoted: What the ledger knows of each environment.
    """
    checks = guarded("models", "", _owners, looked)
    checks += guarded("warehouse", "", _warehouses, looked)
    checks += guarded("states", "", _states, looked)
    for project in projects.values():
        if looked[project.name].settings is None:
            continue
        graph = _graph(project, looked, promoted)
        if isinstance(graph, Check):
            checks.append(graph)
        elif graph is not None:
            checks += guarded("names", project.name, _names, project, graph, looked[project.name])
    return checks


def _owners(looked: Mapping[str, Looked]) -> Iterator[Check]:
    """Two projects that define one model: the second deploy would be refused."""
    loaded = {name: one.models for name, one in looked.items() if one.models is not None}
    for (first, ours), (second, theirs) in combinations(loaded.items(), 2):
        for name in sorted(ours.names & theirs.names):
            message = f"model {ours.nodes[name].display} is defined by {first!r} and by {second!r}"
            yield Check("models", "", "fail", message, "rename it in one of the two, or remove it there")


def _warehouses(looked: Mapping[str, Looked]) -> Iterator[Check]:
    """A project that reads another one's tables has to find them."""
    known = {
        name: (one.models, one.settings.warehouse)
        for name, one in looked.items()
        if one.models is not None and one.settings is not None and one.settings.warehouse is not None
    }
    for (first, (ours, here)), (second, (theirs, there)) in combinations(known.items(), 2):
        read = sorted(n.replace('"', "") for n in (theirs.reads & ours.names) | (ours.reads & theirs.names))
        if read and here != there:
            message = (
                f"{first!r} has its tables in {here.engine} {here.where}, {second!r} in "
                f"{there.engine} {there.where}, and one reads {_some(read)} of the other"
            )
            hint = "let both gateways lead to one warehouse, unless the tables are shown in both"
            yield Check("warehouse", "", "warn", message, hint)


def _states(looked: Mapping[str, Looked]) -> Iterator[Check]:
    places = {n: one.settings.state for n, one in looked.items() if one.settings and one.settings.state}
    apart = {place: [n for n, other in places.items() if other == place] for place in places.values()}
    if len(apart) < 2:
        return
    told = "; ".join(
        f"{' and '.join(names)} in {place.engine} {place.database}, schema {place.schema}"
        for place, names in apart.items()
    )
    message = f"the projects keep SQLMesh's state apart: {told}"
    forgot = [n for n, place in places.items() if place.is_warehouse]
    if forgot and len(forgot) < len(places):
        hint = f"give {' and '.join(forgot)} the `state_connection` of the others, unless that is meant"
        yield Check("states", "", "warn", message, hint)
    else:
        yield Check("states", "", "ok", f"{message}. The ledger knows them all: that works")


def _graph(
    project: ProjectConfig, looked: Mapping[str, Looked], promoted: Mapping[str, MeshGraph]
) -> MeshGraph | Check | None:
    """All models that a name may mean: of the files, and of what was deployed by projects that are not here."""
    nodes: dict[str, ModelNode] = {}
    parents: dict[str, tuple[str, ...]] = {}
    loaded = {n: one.models for n, one in looked.items() if one.models is not None and one.models.names}
    known = promoted.get(project.environment)
    for name in known.order() if known is not None else ():
        if known is not None and known[name].project not in loaded:
            nodes[name] = known[name]
            parents[name] = tuple(edge.parent for edge in known.parents(name))
    if not nodes and not loaded:
        return None
    for models in loaded.values():
        for name, node in models.nodes.items():
            if node.kind is not Kind.EXTERNAL or name not in nodes:
                nodes[name], parents[name] = node, models.parents[name]
    try:
        return build_graph(_plan(nodes, parents), {}, {}, project.environment)
    except MeshgateError as error:
        return Check("names", project.name, "fail", error.message, error.hint)


def _plan(nodes: Mapping[str, ModelNode], parents: Mapping[str, tuple[str, ...]]) -> Any:
    from meshgate.bridge.translate import Promoted, named_only

    complete = {**named_only(parents, nodes), **nodes}
    reads = {name: parents.get(name, ()) for name in complete}
    return Promoted(plan_id=None, finalized=True, nodes=complete, parents=reads, recorded={})


def _names(project: ProjectConfig, graph: MeshGraph, looked: Looked) -> Iterator[Check]:
    """What `meshgate.yaml` names has to be there; a deploy would refuse it."""
    bare = evolve(project, model_limits={}, exclusive=(), validity={}, models={}, edges=(), sources=())
    single: list[tuple[ProjectConfig, Callable[[MeshGraph, ProjectConfig], None]]] = [
        *((evolve(bare, model_limits={name: 1}), check_names) for name in project.model_limits),
        *((evolve(bare, exclusive=(name,)), check_names) for name in project.exclusive),
        *(
            (evolve(bare, validity={name: columns}), check_names)
            for name, columns in project.validity.items()
        ),
        *((evolve(bare, models={name: given}), check_names) for name, given in project.models.items()),
        *((evolve(bare, sources=(source,)), check_sources) for source in project.sources),
        *((evolve(bare, edges=(edge,)), _check_edge) for edge in project.edges),
    ]
    fine = True
    for one, check in single:
        try:
            check(graph, one)
        except MeshgateError as error:
            fine = False
            new = "" if looked.models is not None and looked.models.names else "if it is new, deploy it"
            hint = "; ".join(filter(None, (error.hint, new)))
            yield Check("names", project.name, "warn", error.message, hint or None)
    if single and fine:
        yield Check(
            "names", project.name, "ok", "every model and table that meshgate.yaml names for it is there"
        )


def _check_edge(graph: MeshGraph, project: ProjectConfig) -> None:
    parents = {name: tuple(edge.parent for edge in graph.parents(name)) for name in graph.nodes}
    declared = {project.name: {"edges": declared_edges(project), "environment": project.environment}}
    build_graph(_plan(graph.nodes, parents), declared, {}, project.environment)


def _some(names: Collection[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _FEW} more" if len(listed) > _FEW else ""
    return ", ".join(listed[:_FEW]) + more
