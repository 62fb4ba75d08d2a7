"""What a SQLMesh project's configuration says, read without opening its state or its warehouse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from meshgate.bridge.contract import check_version
from meshgate.db import redact
from meshgate.errors import ProjectError

if TYPE_CHECKING:
    from collections.abc import Mapping
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
class Warehouse:
    """Where a project's tables are.

    Attributes:
        engine: Such as `databricks`.
        where: Its host, port and name, or its file or catalogs; without user and password.
        file: The DuckDB file that admits one process at a time, as configured; None where there is none.
    """

    engine: str
    where: str
    file: str | None = None


@attrs.frozen
class ProjectSettings:
    """The part of a SQLMesh configuration that a mesh depends on.

    Attributes:
        key: The `project:` key; empty if there is none.
        gateways: The names of the configured gateways, lower case; empty where the only one has no name.
        state: Where its gateway keeps SQLMesh's state; None where that has no connection, as another one may be used.
        gateway: Which gateway that is: the one that was asked for, or the default.
        plain: Where plain `sqlmesh` keeps it: by the default gateway.
        warehouse: Where its tables are; None as for `state`.
    """

    key: str
    gateways: tuple[str, ...]
    state: StatePlace | None = None
    gateway: str = ""
    plain: StatePlace | None = None
    warehouse: Warehouse | None = None


def read_settings(path: Path, gateway: str | None = None) -> ProjectSettings:
    """Read the configuration of the SQLMesh project in a folder.

    Args:
        path: The folder.
        gateway: Which of its gateways counts; the default one where it does not have it.

    Raises:
        ProjectError: There is no usable configuration, or SQLMesh is not one that meshgate was tested with.
    """
    config = read_config(path)
    names = tuple(name for name in config.gateways if name)
    default = str(config.default_gateway_name)
    used = gateway.lower() if gateway and gateway.lower() in names else default
    return ProjectSettings(
        str(config.project or ""), names, _state(config, used), used, _state(config, default), _warehouse(config, used)
    )  # fmt: skip


def read_config(path: Path) -> Config:
    """SQLMesh's own reading of the configuration in a folder.

    Raises:
        ProjectError: As in `read_settings`.
    """
    check_version()  # before the import, which may fail in ways that name neither the cause nor the cure
    from sqlmesh.core.config import load_configs
    from sqlmesh.core.config.root import Config

    from meshgate.bridge.failures import sentence

    if not path.is_dir():
        raise ProjectError(
            f"there is no folder {path}", hint="correct the project's `path:` in meshgate.yaml"
        )
    try:
        return next(iter(load_configs(None, Config, str(path)).values()))
    except Exception as error:  # noqa: BLE001 - SQLMesh raises whatever its parsers raise
        raise ProjectError(
            f"the SQLMesh project in {path} has no usable configuration: {sentence(error)}"
        ) from None


def _state(config: Config, gateway: str) -> StatePlace | None:
    from sqlmesh.utils.errors import ConfigError

    try:
        given = config.get_state_connection(gateway)
        connection = given or config.get_connection(gateway)
    except ConfigError:
        return None
    return StatePlace(
        str(connection.type_), _place(connection.dict()), config.get_state_schema(gateway) or "sqlmesh", given is None
    )  # fmt: skip


def _warehouse(config: Config, gateway: str) -> Warehouse | None:
    from sqlmesh.utils.errors import ConfigError

    try:
        connection = config.get_connection(gateway)
    except ConfigError:
        return None
    facts, engine = connection.dict(), str(connection.type_)
    if engine != "duckdb":
        place = facts.get("server_hostname") or facts.get("account") or facts.get("project")
        return Warehouse(engine, str(place) if place else _place(facts))
    catalogs = facts.get("catalogs") or ({"": facts["database"]} if facts.get("database") else {})
    told, file = [], None
    for name, given in catalogs.items():
        options = given if isinstance(given, dict) else {"path": given, "type": "duckdb"}
        kind, where = options.get("type") or "duckdb", str(options.get("data_path") or options.get("path"))
        if kind == "duckdb" and where != ":memory:":
            file = file or where
        told.append(f"{name} ".lstrip() + f"{kind} {redact(where)}")
    return Warehouse(engine, ", ".join(told) or "memory", file)


def _place(facts: Mapping[str, object]) -> str:
    host, port, database = (facts.get(key) for key in ("host", "port", "database"))
    where = (f"{host}:{port}" if port else str(host)) if host else ""
    return "/".join(str(part) for part in (where, database) if part) or "memory"
