"""What projects declare about stale time and about warnings, for themselves and for single models."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from attrs import frozen

from meshgate.coordinator.allowance import cut_off, resolved
from meshgate.coordinator.staleness import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from meshgate.config import ProjectConfig
    from meshgate.graph import MeshGraph, ModelNode


@frozen
class Policies:
    """What the projects of an environment declared when they were deployed, as far as a plan goes by it.

    Attributes:
        stale: What is done about a model's stale time.
        patience: How long a model waits for unsettled parents; None for the default.
        budgets: How much each project's runs compute again of a model at most; those without a limit are left out.
        compared: The models of which it is compared whether computing them again has changed anything.
    """

    stale: Callable[[ModelNode], Policy]
    patience: Callable[[ModelNode], timedelta | None]
    budgets: Mapping[str, int]
    compared: Collection[str]


def policies_of(graph: MeshGraph, manifests: Mapping[str, Mapping[str, Any]]) -> Policies:
    """What is declared by the manifests of an environment's projects."""
    patience = {name: _duration(manifest.get("patience_s")) for name, manifest in manifests.items()}
    budgets = {name: manifest.get("stale_budget") for name, manifest in manifests.items()}
    return Policies(
        _stale(graph, manifests),
        lambda node: patience.get(node.project),
        {name: budget for name, budget in budgets.items() if budget is not None},
        cut_off(graph, manifests).keys(),
    )


def declared_settings(project: ProjectConfig) -> dict[str, Any]:
    """What a deploy copies beside edges and limits, as plain data, for the ledger's copy of the manifest."""
    return {
        "schedule": project.schedule,
        "overlap": project.overlap,
        "patience_s": _seconds(project.patience),
        "stale": project.stale,
        "stale_throttle_s": _seconds(project.stale_throttle),
        "stale_horizon_s": _seconds(project.stale_horizon),
        "stale_budget": project.stale_budget,
        "foreign_rewrite": project.foreign_rewrite,
        "on_audit_warning": project.on_audit_warning,
        "models": {
            name: {
                key: value
                for key, value in {
                    "stale": model.stale,
                    "stale_throttle_s": _seconds(model.stale_throttle),
                    "stale_horizon_s": _seconds(model.stale_horizon),
                    "on_audit_warning": model.on_audit_warning,
                    "early_cut_off": None if model.early_cut_off is None else list(model.early_cut_off),
                }.items()
                if value is not None
            }
            for name, model in project.models.items()
        },
    }


def _stale(graph: MeshGraph, manifests: Mapping[str, Mapping[str, Any]]) -> Callable[[ModelNode], Policy]:
    by_project = {name: _policy(manifest) for name, manifest in manifests.items()}
    by_model = {
        model: _policy({**manifest, **given})
        for manifest in manifests.values()
        for name, given in manifest.get("models", {}).items()
        for model in resolved(graph, name)
    }
    return lambda node: by_model.get(node.name) or by_project.get(node.project) or Policy()


def _policy(manifest: Mapping[str, Any]) -> Policy:
    return Policy(
        manifest.get("stale", "reprocess") == "reprocess",
        _duration(manifest.get("stale_throttle_s")),
        _duration(manifest.get("stale_horizon_s")),
    )


def _seconds(length: timedelta | None) -> float | None:
    return None if length is None else length.total_seconds()


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
