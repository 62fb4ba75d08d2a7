"""Which SQLMesh meshgate was tested with, and whether the installed one still has the hooks that it uses."""

from __future__ import annotations

import inspect
from importlib import metadata

from meshgate.errors import ProjectError

TESTED_FROM = (0, 225)
TESTED_BELOW = (0, 237)
TESTED_RANGE = "sqlmesh>=0.225,<0.237"

_HOOKS: dict[str, set[str]] = {
    "sqlmesh.core.context.Context.create_scheduler": {"snapshots", "snapshot_evaluator"},
    "sqlmesh.core.context.Context.plan_builder": {"environment", "execution_time", "skip_tests"},
    "sqlmesh.core.config.scheduler.BuiltInSchedulerConfig.state_sync_fingerprint": {"context"},
    "sqlmesh.core.scheduler.Scheduler.__init__": {
        "snapshots", "snapshot_evaluator", "state_sync", "default_catalog", "max_workers", "console",
        "notification_target_manager",
    },
    "sqlmesh.core.scheduler.Scheduler.run": {"environment", "execution_time", "selected_snapshots", "ignore_cron"},
    "sqlmesh.core.config.scheduler.BuiltInSchedulerConfig.create_plan_evaluator": {"context"},
    "sqlmesh.core.config.scheduler.BuiltInSchedulerConfig.create_state_sync": {"context"},
    "sqlmesh.core.scheduler.Scheduler.run_merged_intervals": {
        "merged_intervals", "deployability_index", "environment_naming_info", "execution_time", "circuit_breaker",
        "run_environment_statements", "audit_only",
    },
    "sqlmesh.core.scheduler.Scheduler.evaluate": {
        "snapshot", "start", "end", "execution_time", "deployability_index", "batch_index",
    },
    "sqlmesh.core.state_sync.base.StateSync.add_snapshots_intervals": {"snapshots_intervals"},
    "sqlmesh.core.state_sync.base.StateSync.refresh_snapshot_intervals": {"snapshots"},
    "sqlmesh.core.state_sync.base.StateSync.update_auto_restatements": {"next_auto_restatement_ts"},
    "sqlmesh.core.state_sync.base.StateSync.get_environment": {"environment"},
    "sqlmesh.core.state_sync.db.interval.IntervalState.__init__": {"engine_adapter"},
    "sqlmesh.core.snapshot.evaluator.SnapshotEvaluator.audit": {"snapshot", "start", "end", "snapshots"},
}  # fmt: skip


def installed_versions() -> tuple[str, str]:
    """The installed versions of SQLMesh and SQLGlot, without importing them."""
    return metadata.version("sqlmesh"), metadata.version("sqlglot")


def minor(version: str) -> tuple[int, int]:
    """The (major, minor) of a version; `(0, 0)` where it has none."""
    numbers = [int(part) if part.isdigit() else 0 for part in version.split(".")[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def check_version() -> None:
    """Refuse a SQLMesh outside the tested range.

    Raises:
        ProjectError: With the command that installs a tested one.
    """
    version, _ = installed_versions()
    if not TESTED_FROM <= minor(version) < TESTED_BELOW:
        raise ProjectError(
            f"SQLMesh {version} is outside the range that this meshgate was tested with ({TESTED_RANGE})",
            hint=f'run `pip install "{TESTED_RANGE}"`, or use a meshgate made for SQLMesh {version}',
            sqlmesh=version,
        )


def check_hooks() -> None:
    """Refuse a SQLMesh whose hooks have changed, although its version is in the range.

    Raises:
        ProjectError: Naming the hook.
    """
    version, _ = installed_versions()
    for path, needed in _HOOKS.items():
        module, owner, name = path.rsplit(".", 2)
        function = getattr(getattr(__import__(module, fromlist=[owner]), owner, None), name, None)
        missing = needed if function is None else needed - set(inspect.signature(function).parameters)
        if missing:
            raise ProjectError(
                f"SQLMesh {version} lacks what meshgate builds on: {owner}.{name} without {', '.join(sorted(missing))}",
                hint=f'run `pip install "{TESTED_RANGE}"`',
                sqlmesh=version,
            )
