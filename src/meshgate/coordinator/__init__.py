"""Where decisions and edges meet: decide, then do. `run` and `deploy` are the use cases."""

from meshgate.coordinator.deploy import deploy
from meshgate.coordinator.intervene import break_lease, retry
from meshgate.coordinator.run import RunReport, Workbench, plan_of, run

__all__ = ["RunReport", "Workbench", "break_lease", "deploy", "plan_of", "retry", "run"]
