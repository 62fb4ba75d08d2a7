"""What is found at a SQLMesh project before anything is deployed: its models, its state, its warehouse. Nothing is written."""

from __future__ import annotations

import ast
import inspect
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from meshgate.bridge.contract import check_version
from meshgate.bridge.settings import read_config
from meshgate.errors import ProjectError
from meshgate.graph import Kind, ModelNode
from meshgate.interval import IntervalUnit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlmesh.core.config.root import Config
    from sqlmesh.core.engine_adapter import EngineAdapter
    from sqlmesh.core.model import Model


@attrs.frozen
class ProjectModels:
    """What the files of a project say.

    Attributes:
        nodes: Its own models, and the tables that are named as external, by name; without version and start.
        parents: The full names of what each reads.
        missing: The Python packages that its Python code imports and that are not installed here, with the models that
            need them.
    """

    nodes: Mapping[str, ModelNode]
    parents: Mapping[str, tuple[str, ...]]
    missing: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> frozenset[str]:
        """The full names of the models."""
        return frozenset(n for n, node in self.nodes.items() if node.kind is not Kind.EXTERNAL)

    @property
    def reads(self) -> frozenset[str]:
        """The full names of what they read."""
        return frozenset(parent for name in self.names for parent in self.parents[name])

    @property
    def scheduled(self) -> tuple[ModelNode, ...]:
        """Its models that are evaluated time and again, by cron."""
        return tuple(
            node for node in self.nodes.values() if node.kind.recorded and node.kind is not Kind.SEED
        )


def survey_models(path: Path, gateway: str | None = None) -> ProjectModels:
    """Load the files of a project; its state is left alone, where this SQLMesh can do without.

    Raises:
        ProjectError: They cannot be loaded; says what is wrong, and with which file where SQLMesh says so.
    """
    check_version()
    from sqlmesh import Context

    able = "load_state" in inspect.signature(Context.__init__).parameters
    config = read_config(path)
    with _told(path, "cannot be loaded"):
        context = Context(
            paths=[str(path)], config={path: _without_new_files(config, gateway)}, gateway=gateway, load=False,
            **({"load_state": False} if able else {}),
        )  # fmt: skip
        with closing(context):
            context.load(update_schemas=False)
            key = next(iter(context.configs.values())).project
            models = {n: m for n, m in context.models.items() if m.project == key or m.kind.is_external}
    nodes = {name: _node(name, model) for name, model in models.items()}
    parents = {name: tuple(sorted(model.depends_on)) for name, model in models.items()}
    missing: dict[str, list[str]] = {}
    for name, model in models.items():
        for package in _imported(path, model):
            missing.setdefault(package, []).append(nodes[name].display)
    return ProjectModels(nodes, parents, {package: tuple(of) for package, of in sorted(missing.items())})


def _without_new_files(config: Config, gateway: str | None) -> Config:
    """With tables in memory instead of a DuckDB file that is not there: asking it for its catalog would make it."""
    connection = config.get_connection(gateway)
    if str(connection.type_) != "duckdb":
        return config
    given: dict[str, Any] = dict(connection.catalogs or {})
    if connection.database:
        given = {Path(connection.database).stem: connection.database}
    kept = {
        name: ":memory:" if isinstance(where, str) and not Path(where).exists() else where
        for name, where in given.items()
    }
    if kept != given:
        changed = connection.copy(update={"database": None, "catalogs": kept})
        config = config.copy(deep=True)
        config.get_gateway(gateway).connection = changed
    return config


def survey_state(path: Path, gateway: str | None = None) -> tuple[str, str] | None:
    """The versions of SQLMesh and SQLGlot that the state was written with; None where there is none yet.

    Raises:
        ProjectError: It cannot be reached.
    """
    from sqlmesh.core.state_sync.db.version import VersionState

    config = read_config(path)
    with _told(path, "has a state that cannot be reached"):
        connection = config.get_state_connection(gateway) or config.get_connection(gateway)
        with closing(connection.create_engine_adapter()) as adapter:
            adapter.fetchone("SELECT 1")
            schema = config.get_state_schema(gateway) or "sqlmesh"
            found = VersionState(adapter, schema=schema).get_versions()
    return (found.sqlmesh_version, found.sqlglot_version) if found.schema_version else None


def reach_warehouse(path: Path, gateway: str | None = None) -> None:
    """Connect to the warehouse and ask it for a number.

    Raises:
        ProjectError: It does not answer.
    """
    config = read_config(path)
    with _told(path, "has a warehouse that cannot be reached"):
        adapter: EngineAdapter
        with closing(config.get_connection(gateway).create_engine_adapter()) as adapter:
            adapter.fetchone("SELECT 1")


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """Without SQLMesh's output, and with what goes wrong as a sentence."""
    from meshgate.bridge.failures import describe, sentence
    from meshgate.bridge.quiet import quiet

    try:
        with quiet():
            yield
    except Exception as error:  # noqa: BLE001 - SQLMesh and the drivers raise whatever they raise
        raise ProjectError(
            f"the SQLMesh project in {path} {what}: {sentence(error)}", cause=describe(error).get("error")
        ) from None


def _node(name: str, model: Model) -> ModelNode:
    return ModelNode(
        name=name, project="" if model.kind.is_external else model.project, version="",
        kind=Kind.from_sqlmesh(model.kind.name.value), unit=IntervalUnit(model.interval_unit.value),
        cron=model.cron, cron_tz=str(model.cron_tz) if model.cron_tz else "UTC", lookback=model.lookback,
    )  # fmt: skip


def _imported(path: Path, model: Model) -> Iterable[str]:
    """The packages that a model's Python code imports, also within functions, and that are not there."""
    found: set[str] = set()
    for code in model.python_env.values():
        payload: Any = code.payload
        try:
            tree = ast.parse(payload)
        except (SyntaxError, TypeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return sorted(name for name in found if not _there(name, path))


def _there(package: str, path: Path) -> bool:
    # What lies in the project is found by SQLMesh, which puts its folder into the path.
    if (path / package).is_dir() or (path / f"{package}.py").is_file():
        return True
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False
