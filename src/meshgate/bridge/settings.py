"""What a SQLMesh project's configuration says, read without opening its state or its warehouse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from meshgate.bridge.contract import check_version
from meshgate.errors import ProjectError

if TYPE_CHECKING:
    from pathlib import Path


@attrs.frozen
class ProjectSettings:
    """The part of a SQLMesh configuration that a mesh depends on.

    Attributes:
        key: The `project:` key; empty if there is none.
        gateways: The names of the configured gateways, lower case; empty where the only one has no name.
    """

    key: str
    gateways: tuple[str, ...]


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
    return ProjectSettings(str(config.project or ""), tuple(name for name in config.gateways if name))
