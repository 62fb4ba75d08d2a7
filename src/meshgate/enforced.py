"""One line in a SQLMesh project's `config.py` that puts plain `sqlmesh run` and `sqlmesh plan` under the ledger.

    from meshgate.enforced import enforce

    config = enforce("base.yaml")  # what was config.yaml; or a Config

From then on `sqlmesh run` does what `meshgate run` does, and `sqlmesh plan` (so also the CI bot, which applies plans)
what `meshgate deploy` does; without a ledger they do nothing, and say so.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshgate.errors import EvaluationError, ProjectError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from datetime import datetime

    from meshgate.bridge.enforced import EnforcedProject
    from meshgate.config import MeshConfig
    from meshgate.coordinator import RunReport
    from meshgate.interval import Interval
    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

# A clock that is so far behind is meant to be: it stands for an instant in the past. A difference below is drift.
_DRIFT = timedelta(minutes=1)
# How a configuration names the private server of a `local` ledger; and those that this process keeps alive, by folder.
_SERVER = "MESHGATE_LOCAL_"
_SERVERS: dict[Path, LocalPostgres] = {}


def enforce(config: Any, *, mesh: str | Path | None = None) -> Any:
    """A SQLMesh configuration whose runs and plans go under the ledger.

    Args:
        config: A `sqlmesh` Config, or the YAML file that was config.yaml, relative to the calling file; its name must not
            be one that SQLMesh looks for.
        mesh: `meshgate.yaml` or its folder; by default it is looked for in the project's folder and those above it.

    Returns:
        A `sqlmesh` Config; assign it to `config` in config.py.

    A file that names the private server of a `local` ledger (`{{ env_var('MESHGATE_LOCAL_PORT') }}`) finds it started.

    Raises:
        ProjectError: The file cannot be used, or a gateway has another scheduler.
        MeshgateError: It names the private server, and `meshgate.yaml` is missing or wrong, or the server does not start.
    """
    from meshgate.bridge.enforced import enforced

    authority = _Ledger(Path(mesh) if mesh is not None else None)
    if isinstance(config, (str, Path)):
        caller = sys._getframe(1).f_globals.get("__file__")  # noqa: SLF001 - whoever calls is the project's config.py
        config = Path(caller or ".").resolve().parent / config
        if not config.is_file():
            raise ProjectError(
                f"there is no {config}", hint="give what was config.yaml another name, such as base.yaml"
            )
        if _SERVER in config.read_text(encoding="utf-8"):
            authority.serve(config.parent)
    return enforced(config, authority)


class _Ledger:
    """The authority: the mesh that a project belongs to, opened for each run and plan."""

    def __init__(self, mesh: Path | None) -> None:
        self._mesh = mesh

    def serve(self, folder: Path) -> None:
        """Start the private server of a `local` ledger, for as long as this process lives: the project's configuration names it.

        Raises:
            MeshgateError: `meshgate.yaml` is missing or wrong, or the server does not start.
        """
        from meshgate.local_postgres import LocalPostgres

        home = self._config(folder).ledger.local_folder
        if home is None:
            return
        if home not in _SERVERS:
            _SERVERS[home] = LocalPostgres.start(home)
        os.environ.update(_SERVERS[home].environment())

    def _config(self, folder: Path) -> MeshConfig:
        """What `meshgate.yaml` says: the one that was given, or the nearest above a project's folder."""
        from meshgate.config import FILE_NAME, load

        folders = [folder.resolve(), *folder.resolve().parents]
        return load(self._mesh or next((f for f in folders if (f / FILE_NAME).is_file()), folders[0]))

    def run(
        self, project: EnforcedProject, environment: str, instant: datetime, only: Collection[str] | None
    ) -> bool | None:
        """Run a project as `meshgate run` does; whether it went well, None where there was nothing to do."""
        with self._opened(project) as mesh:
            report = mesh.run(project.project, environment=environment, now=_past(mesh, instant), only=only)
            _tell(mesh, report, "run")
            if report.state == "nothing_to_do" and not report.blocked:
                return None
            return report.exit_code in (0, 4)

    def apply(
        self,
        project: EnforcedProject,
        environment: str,
        instant: datetime,
        restating: Mapping[str, Interval],
    ) -> None:
        """Apply the project's plan as `meshgate deploy` does; what it restates is asked for first."""
        with self._opened(project) as mesh:
            past = _past(mesh, instant)
            if past is None and instant > mesh.ledger.clock() + _DRIFT:
                raise ProjectError(
                    f"the plan is for {instant:%Y-%m-%dT%H:%M:%SZ}, in the future by the ledger's clock",
                    hint="leave --execution-time away, or set this machine's clock",
                )
            report = mesh.deploy(project.project, environment=environment, now=past, restating=restating)
            _tell(mesh, report, "deploy")
            if report.exit_code:
                raise EvaluationError(f"the plan was not applied as a whole: {report.error or report.state}")

    @contextmanager
    def _opened(self, project: EnforcedProject) -> Iterator[Mesh]:
        """The project's mesh, once; a signal ends the work in order."""
        from meshgate.mesh import Mesh
        from meshgate.stop import on_signals

        with Mesh(self._config(project.path), given=project) as mesh:
            grace = next(
                (p.stop_grace for p in mesh.config.projects if p.name == project.project), timedelta(0)
            )
            with on_signals(mesh.stop, lambda: grace, mesh.interrupt, _say):
                yield mesh


def _past(mesh: Mesh, instant: datetime) -> datetime | None:
    """The instant that counts, where SQLMesh's is a past one; the ledger's clock counts else."""
    return instant if instant < mesh.ledger.clock() - _DRIFT else None


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _tell(mesh: Mesh, report: RunReport, verb: str) -> None:
    from meshgate.report.text import console, run

    waits = mesh.waits(report.project, environment=report.environment, now=report.now)
    run(console(sys.stdout), report, waits, verb)
