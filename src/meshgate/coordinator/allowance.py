"""What a project's manifest allows its runs: batches at once, back-off, models that one run writes at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from meshgate.errors import ConfigError, UnknownModelError
from meshgate.graph import Kind
from meshgate.ledger import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshgate.config import ProjectConfig
    from meshgate.graph import MeshGraph


@frozen
class Allowance:
    """What holds for the batches of one run.

    Attributes:
        warehouse: How many may be under way at once in its warehouse, all projects together; None: any number.
        models: The same for single models, by name.
        exclusive: Time-range models that are claimed whole.
        validity: The columns that tell from when to when a row of an as-of model holds, by model; an empty name: it is not
            looked at.
        cut_off: Models of which it is compared whether computing them again has changed anything, with the columns that do
            not count.
        holding: Models whose batches are kept from readers where a non-blocking audit of them fails.
        judging: By standalone audit: the models that are kept from readers where it fails.
    """

    warehouse: int | None = None
    models: Mapping[str, int] = field(factory=dict)
    exclusive: frozenset[str] = frozenset()
    holding: frozenset[str] = frozenset()
    judging: Mapping[str, frozenset[str]] = field(factory=dict)
    validity: Mapping[str, tuple[str, str | None]] = field(factory=dict)
    cut_off: Mapping[str, tuple[str, ...]] = field(factory=dict)

    def limits(self, model: str) -> Limits:
        """What the ledger has to count when a batch of this model begins."""
        return Limits(self.models.get(model), self.warehouse)


def declared_allowance(project: ProjectConfig) -> dict[str, Any]:
    """A project's share of it as plain data, for the ledger's copy of its manifest."""
    return {
        "warehouse": project.warehouse,
        "warehouse_limit": project.warehouse_limit,
        "model_limits": dict(project.model_limits),
        "exclusive": list(project.exclusive),
        "validity": {name: list(columns) for name, columns in project.validity.items()},
    }


def allowance(graph: MeshGraph, manifests: Mapping[str, Mapping[str, Any]], project: str) -> Allowance:
    """What the manifests of all projects allow the runs of one: of several limits of one warehouse, the smallest.

    Names that the graph does not have are passed over: another environment may promote less.
    """
    ours = manifests.get(project, {}).get("warehouse", "default")
    of_warehouse = [
        m["warehouse_limit"]
        for m in manifests.values()
        if m.get("warehouse_limit") and m.get("warehouse", "default") == ours
    ]
    models: dict[str, int] = {}
    exclusive: set[str] = set()
    validity: dict[str, tuple[str, str | None]] = {}
    for manifest in manifests.values():
        for name, limit in manifest.get("model_limits", {}).items():
            for model in resolved(graph, name):
                models[model] = min(limit, models.get(model, limit))
        exclusive.update(model for name in manifest.get("exclusive", ()) for model in resolved(graph, name))
        for name, (since, until) in manifest.get("validity", {}).items():
            validity |= dict.fromkeys(resolved(graph, name), (since, until))
    holding = _holding(graph, manifests)
    return Allowance(
        min(of_warehouse, default=None), models, frozenset(exclusive), holding, _judging(graph, manifests, holding), validity,
        cut_off(graph, manifests),
    )  # fmt: skip


def cut_off(graph: MeshGraph, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The models of which it is compared whether computing them again has changed anything, with what does not count."""
    return {
        model: tuple(given["early_cut_off"])
        for manifest in manifests.values()
        for name, given in manifest.get("models", {}).items()
        if given.get("early_cut_off") is not None
        for model in resolved(graph, name)
        if graph[model].kind is Kind.INCREMENTAL_BY_TIME_RANGE and not graph.sequential(model)
    }


def _holding(graph: MeshGraph, manifests: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The models whose batches are kept from readers where a non-blocking audit of them fails."""
    found: set[str] = set()
    for project, manifest in manifests.items():
        if manifest.get("on_audit_warning") == "hold":
            found.update(name for name, node in graph.nodes.items() if node.project == project)
        for name, given in manifest.get("models", {}).items():
            policy = given.get("on_audit_warning")
            if policy == "hold":
                found.update(resolved(graph, name))
            elif policy == "pass":
                found.difference_update(resolved(graph, name))
    return frozenset(found)


def _judging(
    graph: MeshGraph, manifests: Mapping[str, Mapping[str, Any]], holding: frozenset[str]
) -> dict[str, frozenset[str]]:
    """What each standalone audit may hold: of its own project, by what is declared for the model, or for the audit itself."""
    told = {
        name: given["on_audit_warning"]
        for manifest in manifests.values()
        for entry, given in manifest.get("models", {}).items()
        if given.get("on_audit_warning")
        for name in resolved(graph, entry)
    }
    found: dict[str, frozenset[str]] = {}
    for name, node in graph.nodes.items():
        if node.kind is Kind.AUDIT:
            # What others hold of their own is theirs to decide.
            read = {g.parent for g in graph.gates(name) if graph[g.parent].project == node.project}
            mine = {"hold": read, "pass": set()}.get(told.get(name, ""), read & holding)
            found[name] = frozenset(mine)
    return found


def check_names(graph: MeshGraph, project: ProjectConfig) -> None:
    """Refuse limits and policies of models that do not exist.

    Raises:
        ConfigError: Names the entry and the nearest model.
    """
    named = (
        ("limits.models", project.model_limits),
        ("exclusive", project.exclusive),
        ("models", project.models),
        ("validity", project.validity),
    )
    for key, names in named:
        for name in names:
            try:
                model = graph.resolve(name)
            except UnknownModelError as error:
                raise ConfigError(
                    f"{key} of project {project.name!r} names a model that does not exist: {error.message}",
                    hint=error.hint,
                ) from None
            if graph[model].project != project.name:
                raise ConfigError(
                    f"{key} of project {project.name!r} names {name}, a model of project {graph[model].project!r}",
                    hint="declare it in the meshgate.yaml of the project that owns the model",
                )
            kind = graph[model].kind
            if key == "validity" and (not kind.as_of or kind is Kind.VIEW):
                raise ConfigError(
                    f"validity of project {project.name!r} names {name}, whose kind is {kind.value}",
                    hint="only tables that are refreshed or merged as a whole are compared; remove the entry",
                )
            if key == "models" and project.models[name].early_cut_off is not None:
                _check_cut_off(graph, project, name, model)


def _check_cut_off(graph: MeshGraph, project: ProjectConfig, name: str, model: str) -> None:
    asks = f"models of project {project.name!r} asks for early_cut_off of {name}"
    kind = graph[model].kind
    if kind is not Kind.INCREMENTAL_BY_TIME_RANGE:
        raise ConfigError(
            f"{asks}, whose kind is {kind.value}",
            hint="only what is computed by ranges of time is compared; for an as-of table declare its validity",
        )
    if graph.sequential(model):
        raise ConfigError(
            f"{asks}, which reads its own past",
            hint="all that comes after a changed interval of it is computed again; remove the entry",
        )


def resolved(graph: MeshGraph, name: str) -> tuple[str, ...]:
    """The model of that name, if the graph has it."""
    try:
        return (graph.resolve(name),)
    except UnknownModelError:
        return ()
