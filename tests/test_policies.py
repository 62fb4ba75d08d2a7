"""What a project declares for itself and for single models, as runs find it in the ledger's copy."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from guarantee_mesh import BRONZE, GOLD, SILVER, node
from meshgate.config import ModelConfig, ProjectConfig
from meshgate.coordinator.allowance import allowance
from meshgate.coordinator.policies import declared_settings, policies_of
from meshgate.coordinator.staleness import Policy
from meshgate.graph import MeshGraph

NODES = [node(BRONZE, "up", "five_minute"), node(SILVER, "up", "five_minute"), node(GOLD, "down", "hour")]
GRAPH = MeshGraph({n.name: n for n in NODES}, [])
HOUR = timedelta(hours=1)


def declared(**given: object) -> dict[str, object]:
    return declared_settings(ProjectConfig("up", Path("/up"), **given))  # type: ignore[arg-type]


def test_what_is_not_given_for_a_model_is_its_projects() -> None:
    """And of a project that declared nothing, or is not deployed here, the default."""
    of = policies_of(
        GRAPH,
        {
            "up": declared(
                stale="report",
                stale_throttle=HOUR,
                stale_horizon=24 * HOUR,
                models={"silver": ModelConfig(stale="reprocess", stale_horizon=2 * HOUR)},
            )
        },
    ).stale
    assert of(GRAPH[BRONZE]) == Policy(reprocess=False, throttle=HOUR, horizon=24 * HOUR)
    assert of(GRAPH[SILVER]) == Policy(reprocess=True, throttle=HOUR, horizon=2 * HOUR)
    assert of(GRAPH[GOLD]) == Policy()


def test_a_model_that_another_environment_lacks_is_passed_over() -> None:
    """The copy is of one environment; its names may be of more than this one promotes."""
    of = policies_of(GRAPH, {"up": declared(models={"platinum": ModelConfig(stale="report")})}).stale
    assert of(GRAPH[SILVER]) == Policy()


def test_warnings_hold_single_models_or_all_but_some() -> None:
    """`on_audit_warning` of a model counts more than that of its project."""
    single = {"up": declared(models={"silver": ModelConfig(on_audit_warning="hold")})}
    assert allowance(GRAPH, single, "up").holding == {SILVER}
    others = {
        "up": declared(on_audit_warning="hold", models={"silver": ModelConfig(on_audit_warning="pass")})
    }
    assert allowance(GRAPH, others, "up").holding == {BRONZE}


def test_a_copy_from_before_there_were_such_policies_is_understood() -> None:
    """An older deploy wrote less."""
    assert policies_of(GRAPH, {"up": {}}).stale(GRAPH[BRONZE]) == Policy()
    assert not allowance(GRAPH, {"up": {}}, "up").holding
