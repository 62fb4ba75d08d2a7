"""The Python API: one mesh, opened from its `meshgate.yaml`. What the command line does, it does through this."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from meshgate import coordinator
from meshgate.config import load
from meshgate.coordinator import RunReport, Workbench
from meshgate.db import Database, migrate
from meshgate.ledger import Ledger

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from meshgate.bridge.project import SqlmeshProject
    from meshgate.config import MeshConfig, ProjectConfig
    from meshgate.local_postgres import LocalPostgres


class Mesh:
    """Several SQLMesh projects, one ledger.

    Example:
        >>> with Mesh.open("meshgate.yaml") as mesh:  # doctest: +SKIP
        ...     report = mesh.run("downstream")
        ...     report.state
        'done'

    Args:
        config: As loaded from `meshgate.yaml`.
        check: Whether to refuse a ledger whose schema is not this version's (all verbs but `migrate` need it).
    """

    def __init__(self, config: MeshConfig, *, check: bool = True) -> None:
        self.config = config
        self._local: LocalPostgres | None = None
        self._projects: dict[str, SqlmeshProject] = {}
        self._database = Database(self._ledger_url())
        self.ledger = Ledger(self._database)
        try:
            if check:
                self._database.check_schema()
        except BaseException:
            self.close()
            raise
        self._bench = Workbench(config, self.ledger, self._open_project)

    @classmethod
    def open(cls, path: str | Path | None = None, *, check: bool = True) -> Self:
        """Open a mesh.

        Args:
            path: `meshgate.yaml` or its folder; by default it is looked for here and in the parents.
            check: Whether to refuse a ledger of another version.

        Raises:
            ConfigError: The file is missing or wrong.
            LedgerUnreachableError: No connection.
            SchemaVersionError: Run `meshgate migrate`.
        """
        from pathlib import Path

        return cls(load(Path(path) if path is not None else None), check=check)

    def _ledger_url(self) -> str:
        folder = self.config.ledger.local_folder
        if folder is None:
            return self.config.ledger.url
        from meshgate.local_postgres import LocalPostgres

        self._local = LocalPostgres.start(folder)
        self._local.ensure_database("meshgate")
        # The projects' own configuration finds the private server by these.
        os.environ.update(self._local.environment())
        return self._local.url("meshgate")

    def _open_project(self, project: ProjectConfig, *, load: bool) -> SqlmeshProject:
        from meshgate.bridge.project import SqlmeshProject

        if load:
            return SqlmeshProject(project.path, project.name, project.gateway, load=True)
        # A long-lived process keeps it: opening costs a second, and its state is read anew each time.
        if project.name not in self._projects:
            self._projects[project.name] = SqlmeshProject(
                project.path, project.name, project.gateway, load=False
            )
        return self._projects[project.name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        for project in self._projects.values():
            project.close()
        self._projects.clear()
        self._database.close()
        if self._local is not None:
            self._local.close()
            self._local = None

    def migrate(self) -> tuple[int, int]:
        """Create the ledger or bring it to this version; its version before (0: none) and now."""
        return migrate(self._database)

    def deploy(
        self, project: str, *, environment: str | None = None, now: datetime | None = None
    ) -> RunReport:
        """Apply SQLMesh's plan of a project under lease, gate and ledger. See `coordinator.deploy`."""
        return coordinator.deploy(self._bench, project, environment=environment, now=now)

    def run(
        self,
        project: str,
        *,
        environment: str | None = None,
        now: datetime | None = None,
        dry_run: bool = False,
        overlap: str | None = None,
    ) -> RunReport:
        """Evaluate whatever of a project is due and ready. See `coordinator.run`."""
        return coordinator.run(
            self._bench, project, environment=environment, now=now, dry_run=dry_run, overlap=overlap
        )
