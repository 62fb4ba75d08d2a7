"""Every error that meshgate raises on purpose, each with the exit code of the command line.

Exit codes: 0 done; 1 something failed; 2 wrong input or setup; 3 not ready; 4 skipped because
another run lives; 5 the ledger cannot be reached.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MeshgateError(Exception):
    """Something that meshgate can name: what happened, to which thing, and what to do about it.

    Args:
        message: One sentence: what happened, to which thing.
        hint: What to do, as a command or an edit, if there is something to do.
        fields: The same facts as data, for `--json` and for logs. Never secrets.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message


class ConfigError(MeshgateError):
    """`meshgate.yaml`, the environment or a flag is wrong."""

    exit_code = 2


class IntervalError(MeshgateError):
    """An instant or an interval is malformed, not aligned, or not UTC."""

    exit_code = 2


class GraphError(MeshgateError):
    """The models and edges do not form a graph that can be decided on."""

    exit_code = 2


class UnknownModelError(MeshgateError):
    """A model that was named does not exist in the mesh."""

    exit_code = 2


class UnknownProjectError(MeshgateError):
    """A project that was named is not in `meshgate.yaml` or was never deployed."""

    exit_code = 2


class NotDeployedError(MeshgateError):
    """The environment or project has no manifest in the ledger yet."""

    exit_code = 2


class SchemaVersionError(MeshgateError):
    """The ledger's schema is missing, too old or too new for this meshgate."""

    exit_code = 2


class LocalPostgresError(MeshgateError):
    """The private Postgres cannot be set up or started."""

    exit_code = 2


class ProjectError(MeshgateError):
    """A SQLMesh project cannot be used: its config, its version, its `project:` key, its state."""

    exit_code = 2


class OutdatedError(MeshgateError):
    """The world is another one than the one that an analysis looked at."""

    exit_code = 2


class EvaluationError(MeshgateError):
    """SQLMesh could not carry out what it was handed, for a reason that is not one interval's own."""

    exit_code = 1


class NotReadyError(MeshgateError):
    """The gate is closed for what was asked."""

    exit_code = 3


class RunInProgressError(MeshgateError):
    """Another run of the project lives."""

    exit_code = 4


class LedgerUnreachableError(MeshgateError):
    """No connection to the ledger's database."""

    exit_code = 5


class GitHubError(MeshgateError):
    """GitHub cannot be reached, or fails, or refuses."""


class GitHubRightsError(GitHubError):
    """The token is wrong, or may not do what was asked."""

    exit_code = 2


class LedgerError(MeshgateError):
    """The ledger refused a change; `fields` names the thing that it refused."""


class LeaseLostError(LedgerError):
    """The run's lease ended or was taken over: it may not record anything any more."""


class StoppedError(MeshgateError):
    """The run was asked to end, and began no further batch."""


class ClaimConflictError(LedgerError):
    """Another live run holds a claim on an overlapping interval of the same model version."""
