"""Where decisions and edges meet: decide, then do. `run` and `deploy` are the use cases."""

from meshgate.coordinator.deploy import deploy
from meshgate.coordinator.intervene import (
    Accepted,
    Held,
    Released,
    accept,
    break_lease,
    hold,
    release,
    retry,
    undo_accept,
)
from meshgate.coordinator.run import RunReport, Workbench, plan_of, run

__all__ = [
    "Accepted",
    "Held",
    "Released",
    "RunReport",
    "Workbench",
    "accept",
    "break_lease",
    "deploy",
    "hold",
    "plan_of",
    "release",
    "retry",
    "run",
    "undo_accept",
]
