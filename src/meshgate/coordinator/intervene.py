"""What a person may do to runs and failures by hand: take a lease away, try again at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.coordinator.explain import environment_of, require_aligned
from meshgate.errors import ConfigError
from meshgate.ledger import WHOLE

if TYPE_CHECKING:
    from meshgate.coordinator.run import Workbench
    from meshgate.interval import Interval
    from meshgate.ledger import LiveRun


def break_lease(bench: Workbench, run_id: int, by: str) -> LiveRun:
    """Take a lease away by hand: the run stops before its next batch and can record nothing any more.

    What it had begun is suspect, and is claimed again only after the grace, or when its process is proven to be gone.

    Args:
        bench: Configuration and ledger.
        run_id: The run.
        by: Who did it: for the history.

    Returns:
        The run as it was.

    Raises:
        ConfigError: No such run lives; names those that do.
    """
    live = {r.run_id: r for r in bench.ledger.live_runs()}
    if run_id not in live or not bench.ledger.break_lease(run_id, by):
        told = ", ".join(
            f"{r.purpose} {r.run_id} of {r.project!r}" for r in live.values() if r.run_id != run_id
        )
        raise ConfigError(f"run {run_id} does not live", hint=f"what lives: {told or 'nothing'}")
    return live[run_id]


def retry(
    bench: Workbench, model: str, interval: Interval | None = None, *, environment: str | None = None
) -> tuple[str, int]:
    """Let what failed be tried again by the next run, without its pause.

    Args:
        bench: Configuration and ledger.
        model: Its name, or the last parts of it.
        interval: Only what meets this time of it, UTC; all of it by default.
        environment: SQLMesh's environment; by default the one that the configured projects share.

    Returns:
        The model's full name, and how many pauses were ended.

    Raises:
        UnknownModelError: There is no such model; names the nearest.
        IntervalError: The interval is not aligned; names the nearest one that is.
        NotDeployedError: Nothing was deployed in the environment.
    """
    manifest = bench.ledger.manifest(environment_of(bench, environment))
    name = manifest.graph.resolve(model)
    if interval is not None:
        require_aligned(manifest.graph[name], interval)
    return name, bench.ledger.retry([manifest.version_id(name)], interval or WHOLE)
