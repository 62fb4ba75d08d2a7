"""What a SQLMesh project's configuration says, read without opening its state or its warehouse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from meshgate.bridge.contract import check_version
from meshgate.errors import ProjectError

if TYPE_CHECKING:
    from pathlib import Path

    from sqlmesh.core.config.root import Config


@attrs.frozen
class StatePlace:
    """Where SQLMesh's state is: equal for projects that share one.

    Attributes:
        engine: Such as `postgres`.
        database: Its host, port and name, or its file; without user and password.
        schema: In which schema.
        is_warehouse: Whether it is where the data are too, because no other place is configured.
    """

    engine: str
    database: str
    schema: str
    is_warehouse: bool


@attrs.frozen
class ProjectSettings:
    """The part of a SQLMesh configuration that a mesh depends on.

    Attributes:
        key: The `project:` key; empty if there is none.
        gateways: The names of the configured gateways, lower case; empty where the only one has no name.
        state: Where its default gateway keeps SQLMesh's state; None where that has no connection, as another one may be used.
    """

    key: str
    gateways: tuple[str, ...]
    state: StatePlace | None = None


@attrs.frozen
class ProjectModels:
    """What a project's own models are.

    Attributes:
        crons: Their crons, and the time zones of these.
        names: Their full names.
        reads: The full names of what they read.
    """

    crons: tuple[tuple[str, str], ...]
    names: frozenset[str]
    reads: frozenset[str]


def read_settings(path: Path) -> ProjectSettings:
    """Read the configuration of the SQLMesh project in a folder.

    Raises:
        ProjectError: There is no usable configuration, or SQLMesh is not one that meshgate was tested with.
    """
    check_version()  # before the import, which may fail in ways that name neither the cause nor the cure
    from sqlmesh.core.config import load_configs
    from sqlmesh.core.config.root import Config

    from meshgate.bridge.failures import describe

    if not path.is_dir():
        raise ProjectError(
            f"there is no folder {path}", hint="correct the project's `path:` in meshgate.yaml"
        )
    try:
        config = next(iter(load_configs(None, Config, str(path)).values()))
    except Exception as error:  # noqa: BLE001 - SQLMesh raises whatever its parsers raise
        facts = describe(error)
        said = facts.get("message") or facts
        raise ProjectError(f"the SQLMesh project in {path} has no usable configuration: {said}") from None
    names = tuple(name for name in config.gateways if name)
    return ProjectSettings(str(config.project or ""), names, _state(config))


def read_models(path: Path) -> ProjectModels | None:
    """What a project's own models are; None where it cannot be loaded.

    Needs its SQLMesh state, if there are other projects in it.
    """
    check_version()
    from sqlmesh import Context
    from sqlmesh.core.console import NoopConsole, get_console, set_console

    before = get_console()
    set_console(NoopConsole())
    try:
        context = Context(paths=[str(path)])
        try:
            key = next(iter(context.configs.values())).project
            models = [m for m in context.models.values() if m.project == key and not m.kind.is_external]
            return ProjectModels(
                tuple((m.cron, str(m.cron_tz or "UTC")) for m in models if not m.kind.is_seed),
                frozenset(m.fqn for m in models),
                frozenset().union(*(m.depends_on for m in models)),
            )
        finally:
            context.close()
    except Exception:  # noqa: BLE001 - whatever its files, its state or its packages lack
        return None
    finally:
        set_console(before)


def _state(config: Config) -> StatePlace | None:
    from sqlmesh.utils.errors import ConfigError

    name = config.default_gateway_name
    try:
        given = config.get_state_connection(name)
        connection = given or config.get_connection(name)
    except ConfigError:
        return None
    facts = connection.dict()
    host, port, database = (facts.get(key) for key in ("host", "port", "database"))
    where = (f"{host}:{port}" if port else str(host)) if host else ""
    return StatePlace(
        str(connection.type_),
        "/".join(str(part) for part in (where, database) if part) or "memory",
        config.get_state_schema(name) or "sqlmesh",
        given is None,
    )
