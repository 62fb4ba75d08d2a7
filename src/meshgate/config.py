"""`meshgate.yaml`: the ledger, the projects, and what their readers declare about the parents they read.

    ledger:
      url: "{{ env_var('MESHGATE_LEDGER_URL', 'local') }}"
    project:
      name: downstream
      edges:
        - {reader: silver.weekly, parent: bronze.orders, window: {from: -6d}}

`{{ env_var('NAME', 'default') }}` works as in SQLMesh, with two differences: a variable that is not set
and has no default is an error, and a value is put into the parsed document, not into the text before
it is parsed. So no password needs quoting for YAML, none can change what the file says, and line
numbers are those of the file.

Every mistake is one `ConfigError` that names the file, the line, the key, what was found and what is
expected. What comes from the environment, and whatever stands below `ledger`, is never shown.
"""

from __future__ import annotations

import re

# At run time too: attrs' fields are read by whoever resolves annotations.
from collections.abc import Mapping  # noqa: TC003
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

from attrs import field, frozen

from meshgate.config_parts import (
    A_LENGTH,
    A_PAUSE,
    EDGE_KEYS,
    EdgeConfig,
    ModelConfig,
    OnAuditWarning,
    SourceConfig,
    by_model,
    edges_in,
    models_in,
    parse_length,
    parse_pause,
    sources_in,
    validity_in,
)
from meshgate.config_values import A_DURATION, Secret, environment_name, parse_duration, redact
from meshgate.errors import ConfigError, UnknownProjectError
from meshgate.yaml_source import YamlSource, nearest, parse_count

if TYPE_CHECKING:
    from meshgate.yaml_source import Node

__all__ = [
    "EdgeConfig",
    "LedgerConfig",
    "MeshConfig",
    "ProjectConfig",
    "Secret",
    "SourceConfig",
    "environment_name",
    "load",
    "parse_duration",
    "redact",
]

FILE_NAME: Final = "meshgate.yaml"
_ZERO: Final = timedelta(0)
_A_LEASE: Final = f"{A_DURATION}, at least 1s, at most 366d"
_A_COUNT: Final = "a whole number above 0"
_A_URL: Final = "postgresql://user@host/database, host=... dbname=..., local, or local:FOLDER"
_A_CRON: Final = "a cron expression such as '5 * * * *'"
_AN_ENVIRONMENT: Final = "a name as SQLMesh keeps it: lower case letters, digits and underscores"
_TOP_KEYS: Final = ("ledger", "project", "projects")
_LEDGER_KEYS: Final = ("url", "lease_ttl", "grace", "statement_timeout")
_PROJECT_KEYS: Final = (
    *("name", "path", "gateway", "environment", "schedule", "warehouse"),
    *("overlap", "overlap_limit", "stop_grace", "retry", "limits", "exclusive", "validity"),
    *("patience", "stale", "stale_throttle", "stale_horizon", "stale_budget", "foreign_rewrite"),
    *("on_audit_warning", "models", "edges", "sources"),
)
_RETRY_KEYS: Final = ("first", "longest")
_LIMITS_KEYS: Final = ("warehouse", "models")

Overlap = Literal["skip", "wait", "share", "fail"]
OVERLAPS: Final[tuple[Overlap, ...]] = ("skip", "wait", "share", "fail")


@frozen
class LedgerConfig:
    """Where the ledger is, and how long its leases last.

    Attributes:
        local_folder: The folder of the private Postgres (see `local_postgres`), if that is the ledger.
        lease_ttl_s: How long a lease lasts without renewal, seconds.
        grace_s: How long after its lease a lost run may still write, seconds; at least the statement timeout.
        statement_timeout_s: The longest statement of a run, seconds.
    """

    _url: Secret = field(converter=Secret, repr=False)
    local_folder: Path | None = None
    lease_ttl_s: float = 60.0
    grace_s: float = 1800.0
    statement_timeout_s: float = 1800.0

    @property
    def url(self) -> str:
        """What libpq understands, or `local`, `local:FOLDER`; may hold a password: for connecting only."""
        return self._url.reveal()

    @property
    def redacted_url(self) -> str:
        """The same with stars for each password: for people, logs and JSON."""
        return redact(self.url)


@frozen
class ProjectConfig:
    """One SQLMesh project of the mesh.

    Attributes:
        name: Equal to SQLMesh's own `project:` key.
        path: Absolute; whether it exists is seen by who opens the project, as a job may ship one of several.
        gateway: SQLMesh's gateway, or None for its default.
        environment: The environment that runs advance.
        schedule: When an orchestrator runs it, as a cron expression; for people, nothing is started by it.
        warehouse: What its batches are counted against; projects that name the same one share its limit.
        overlap: What a run does when another run of it lives: `skip`, `wait` for its end, `share` the work, or `fail`.
        overlap_limit: How long `wait` waits before it skips.
        stop_grace: How long a statement may still take when the run is told to stop.
        retry_first: How long an interval is left alone after its first failure; each further one doubles it.
        retry_longest: The longest such pause.
        warehouse_limit: How many batches may be under way at once in its warehouse, all projects together.
        model_limits: The same for single models of this project, by any name that the graph resolves.
        exclusive: Time-range models that no two runs may write at once, whatever the ranges.
        validity: From when to when a row of an as-of model holds: two columns, or one and None; empty: it is not compared.
        patience: How long unsettled parents may hold up a child; None: two units of the child.
        stale: Whether what was read before its parents changed is computed again (`reprocess`) or only shown (`report`).
        stale_throttle: How long after its own last read; None: one period of the model's cron.
        stale_horizon: How long after its end an interval is still computed again; None: for ever.
        stale_budget: How many stale or requested intervals of each model a run computes again at most; None: all.
        foreign_rewrite: Whether a table that plain SQLMesh wrote, nobody knows where, is suspect, or that is only told.
        on_audit_warning: Whether a failed non-blocking audit lets readers pass, or holds what it looked at.
        models: What is different for single models of this project, by any name that the graph resolves.
        edges: Windows other than the default, declared by this project's models.
        sources: Tables whose late rows its runs watch for.
    """

    name: str
    path: Path
    gateway: str | None = None
    environment: str = "prod"
    schedule: str | None = None
    warehouse: str = "default"
    overlap: Overlap = "skip"
    overlap_limit: timedelta = timedelta(minutes=15)
    stop_grace: timedelta = timedelta(seconds=20)
    retry_first: timedelta = timedelta(minutes=1)
    retry_longest: timedelta = timedelta(hours=1)
    warehouse_limit: int | None = None
    model_limits: Mapping[str, int] = field(factory=dict)
    exclusive: tuple[str, ...] = ()
    validity: Mapping[str, tuple[str, str | None]] = field(factory=dict)
    patience: timedelta | None = None
    stale: str = "reprocess"
    stale_throttle: timedelta | None = None
    stale_horizon: timedelta | None = None
    stale_budget: int | None = None
    foreign_rewrite: str = "report"
    on_audit_warning: OnAuditWarning = "pass"
    models: Mapping[str, ModelConfig] = field(factory=dict)
    edges: tuple[EdgeConfig, ...] = ()
    sources: tuple[SourceConfig, ...] = ()


@frozen
class MeshConfig:
    """One `meshgate.yaml`; `path` is the file."""

    path: Path
    ledger: LedgerConfig
    projects: tuple[ProjectConfig, ...]

    def project(self, name: str | None = None) -> ProjectConfig:
        """The project of this name; without a name the only one.

        Raises:
            UnknownProjectError: There is none of this name, or several and no name.
        """
        names = [project.name for project in self.projects]
        if name is None and len(names) == 1:
            return self.projects[0]
        if name is None:
            raise UnknownProjectError(
                f"{self.path} lists several projects", hint=f"name one: {', '.join(names)}"
            )
        if name not in names:
            raise UnknownProjectError(f"{self.path} has no project {name!r}", hint=nearest(name, names))
        return self.projects[names.index(name)]


def load(path: Path | None = None) -> MeshConfig:
    """Read a configuration.

    Args:
        path: The file, or the folder it lies in; None searches the working folder and its parents.

    Raises:
        ConfigError: There is no such file, or something in it is wrong; says where and what.
    """
    file = _find(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{file} cannot be read: {reason}", file=str(file)) from None
    # The content of `ledger` itself is hidden too: people write the URL there.
    homes = {"ledger": _LEDGER_KEYS, "project": _PROJECT_KEYS, "edges": EDGE_KEYS, "retry": _RETRY_KEYS, "limits": ("models",)}  # fmt: skip
    source = YamlSource(file, text, hidden=("ledger", "ledger.url"), homes=homes)
    return _mesh(file, source)


def _find(path: Path | None) -> Path:
    if path is not None:
        file = (path / FILE_NAME if path.is_dir() else path).absolute()
        if not file.is_file():
            raise ConfigError(f"there is no {file}", hint=_how_to_get(file.parent), file=str(file))
        return file
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    raise ConfigError(f"there is no {FILE_NAME} in {here} or a folder above it", hint=_how_to_get(here))


def _how_to_get(folder: Path) -> str:
    for name in ("meshgate.yml", "meshgate.json", "meshgate.toml"):
        if (folder / name).is_file():
            return f"{name} is not read: it has to be YAML and to be called {FILE_NAME}"
    return "`meshgate init` writes one for the SQLMesh projects in a folder and below it"


def _mesh(file: Path, source: YamlSource) -> MeshConfig:
    top = source.mapping(source.root, "", _TOP_KEYS, "a mapping with ledger, and project or projects")
    if "ledger" not in top:
        source.fail(source.root, "ledger", f"is missing, expected a mapping with url: {_A_URL}")
    if "project" in top and "projects" in top:
        source.fail(top["projects"], "projects", "and project are both given", hint="keep one of them")
    if "project" not in top and "projects" not in top:
        source.fail(source.root, "project", "is missing, expected a mapping with name and path")
    ledger = _ledger(file, source, top["ledger"])
    if "project" in top:
        return MeshConfig(file, ledger, (_project(file, source, top["project"], "project"),))
    listed = top["projects"]
    if not listed.items:
        source.unexpected(listed, "projects", "a list of projects, each a mapping with name and path")
    projects: list[ProjectConfig] = []
    for index, node in enumerate(listed.items):
        project = _project(file, source, node, f"projects[{index}]")
        for other in projects:
            if project.name == other.name:
                source.fail(node, f"projects[{index}].name", f"{project.name!r} is the name of two projects")
            if project.path == other.path:
                problem = f"is also the path of project {other.name!r}"
                source.fail(node, f"projects[{index}].path", problem)
        projects.append(project)
    return MeshConfig(file, ledger, tuple(projects))


def _ledger(file: Path, source: YamlSource, node: Node) -> LedgerConfig:
    found = source.mapping(node, "ledger", _LEDGER_KEYS, f"a mapping with url: {_A_URL}")
    url = source.required(node, found, "ledger", "url", _A_URL).strip()
    kind, _, folder = url.partition(":")
    local = None
    if kind == "local":
        local = (file.parent / (Path(folder).expanduser() if folder else ".meshgate")).resolve()
    elif not re.match(r"postgres(ql)?://.|[a-z_]+\s*=", url):
        source.fail(found["url"], "ledger.url", f"is no connection string, expected {_A_URL}")

    def length(name: str, default: timedelta) -> timedelta:
        given = source.converted(found, "ledger", name, parse_length, A_LENGTH)
        return default if given is None else given

    timeout = length("statement_timeout", timedelta(minutes=30))
    grace = length("grace", timeout)
    if grace < timeout:
        problem = f"is {grace}, shorter than ledger.statement_timeout, {timeout}"
        hint = "a lost run can write until its last statement ends; its ranges must not be claimed before"
        source.fail(found["grace"], "ledger.grace", problem, hint=hint)
    ttl = _given(
        source.converted(found, "ledger", "lease_ttl", _parse_lease, _A_LEASE), timedelta(seconds=60)
    )
    return LedgerConfig(url, local, ttl.total_seconds(), grace.total_seconds(), timeout.total_seconds())


def _project(file: Path, source: YamlSource, node: Node, key: str) -> ProjectConfig:
    found = source.mapping(node, key, _PROJECT_KEYS, "a mapping with name and path")
    name = source.required(node, found, key, "name", "the `project:` key of the SQLMesh project")
    path = source.text(found, key, "path", "a folder") or "."
    overlap = source.choice(found, key, "overlap", OVERLAPS)
    retry_first, retry_longest = _retry(source, found, key)
    warehouse_limit, model_limits = _limits(source, found, key)
    on_audit_warning = source.choice(found, key, "on_audit_warning", ("pass", "hold"))
    return ProjectConfig(
        name=name,
        path=(file.parent / Path(path).expanduser()).resolve(),
        gateway=source.text(found, key, "gateway"),
        environment=source.converted(found, key, "environment", environment_name, _AN_ENVIRONMENT) or "prod",
        schedule=source.converted(found, key, "schedule", _parse_cron, _A_CRON),
        warehouse=source.text(found, key, "warehouse") or "default",
        overlap=cast("Overlap", overlap),
        overlap_limit=source.converted(found, key, "overlap_limit", parse_length, A_LENGTH)
        or timedelta(minutes=15),
        stop_grace=_given(
            source.converted(found, key, "stop_grace", parse_pause, A_PAUSE), timedelta(seconds=20)
        ),
        retry_first=retry_first,
        retry_longest=retry_longest,
        warehouse_limit=warehouse_limit,
        model_limits=model_limits,
        exclusive=_names(source, found, key, "exclusive"),
        validity=validity_in(source, found, key),
        patience=source.converted(found, key, "patience", parse_pause, A_PAUSE),
        stale=source.choice(found, key, "stale", ("reprocess", "report")),
        stale_throttle=source.converted(found, key, "stale_throttle", parse_pause, A_PAUSE),
        stale_horizon=source.converted(found, key, "stale_horizon", parse_pause, A_PAUSE),
        stale_budget=source.converted(found, key, "stale_budget", parse_count, _A_COUNT),
        foreign_rewrite=source.choice(found, key, "foreign_rewrite", ("report", "suspect")),
        on_audit_warning=cast("OnAuditWarning", on_audit_warning),
        models=models_in(source, found, key),
        edges=edges_in(source, found, key),
        sources=sources_in(source, found, key),
    )


def _given(found: timedelta | None, default: timedelta) -> timedelta:
    return default if found is None else found


def _retry(source: YamlSource, project: Mapping[str, Node], key: str) -> tuple[timedelta, timedelta]:
    """How long what failed is left alone: first, and at most."""
    first, longest = timedelta(minutes=1), timedelta(hours=1)
    node = project.get("retry")
    if node is None:
        return first, longest
    at = f"{key}.retry"
    found = source.mapping(node, at, _RETRY_KEYS, "a mapping such as {first: 1m, longest: 1h}")
    begun = source.converted(found, at, "first", parse_pause, A_PAUSE)
    given = source.converted(found, at, "longest", parse_pause, A_PAUSE)
    if begun is not None and given is not None and given < begun:
        source.fail(found["longest"], f"{at}.longest", f"is {given}, shorter than {at}.first, {begun}")
    # Who gives only one of them moves the default of the other out of its way.
    if given is None:
        return _given(begun, first), max(_given(begun, first), longest)
    return _given(begun, min(first, given)), given


def _limits(source: YamlSource, project: Mapping[str, Node], key: str) -> tuple[int | None, dict[str, int]]:
    """How many batches may be under way at once: in the warehouse, and of single models."""
    if (node := project.get("limits")) is None:
        return None, {}
    at = f"{key}.limits"
    found = source.mapping(node, at, _LIMITS_KEYS, "a mapping with warehouse and models")
    models: dict[str, int] = {}
    if "models" in found:
        for name, entries in by_model(source, found["models"], f"{at}.models", "numbers"):
            limit = source.converted(entries, f"{at}.models", name, parse_count, _A_COUNT)
            models[name] = 1 if limit is None else limit
    return source.converted(found, at, "warehouse", parse_count, _A_COUNT), models


def _names(source: YamlSource, project: Mapping[str, Node], key: str, name: str) -> tuple[str, ...]:
    listed = project.get(name)
    if listed is None:
        return ()
    if listed.kind != "sequence" or any(item.kind != "scalar" for item in listed.items):
        source.unexpected(listed, f"{key}.{name}", "a list of models' names")
    return tuple(item.text for item in listed.items)


def _parse_lease(text: str) -> timedelta:
    if (found := parse_length(text)) < timedelta(seconds=1):
        raise ConfigError(f"{text!r} is too short for a lease that is renewed in time")
    return found


def _parse_cron(text: str) -> str:
    from croniter import croniter

    if not croniter.is_valid(text):
        raise ConfigError(f"{text!r} is no cron expression")
    return text
