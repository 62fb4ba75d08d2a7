"""Where decisions and edges meet: decide, then do. `run` and `deploy` are the use cases."""

from meshgate.coordinator.deploy import deploy
from meshgate.coordinator.run import RunReport, Workbench, plan_of, run

__all__ = ["RunReport", "Workbench", "deploy", "plan_of", "run"]
