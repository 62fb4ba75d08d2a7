"""What projects declare about stale time and about warnings, for themselves and for single models."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from meshgate.coordinator.allowance import resolved
from meshgate.coordinator.staleness import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshgate.config import ProjectConfig
    from meshgate.graph import MeshGraph, ModelNode


def declared_policies(project: ProjectConfig) -> dict[str, Any]:
    """A project's policies as plain data, for the ledger's copy of its manifest."""
    return {
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


def policies_of(
    graph: MeshGraph, manifests: Mapping[str, Mapping[str, Any]]
) -> Callable[[ModelNode], Policy]:
    """What is done about each model's stale time, as its project deployed it."""
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
