"""What is to be done to which table, and how often: `tables.yaml`, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from meshgate.config import parse_duration
from meshgate.errors import ConfigError, MeshgateError
from meshgate.yaml_source import nearest

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_PAUSE = timedelta(days=28)
"""Less than the ledger's history goes back: else nothing would be known of the last time."""
KEYS = {
    "optimize": ("every", "zorder", "cluster"),
    "vacuum": ("every", "retention"),
    "analyze": ("every", "columns"),
}
"""The operations in the order in which they are done to a table: what is rewritten first is measured and cleared up afterwards."""


@dataclass(frozen=True)
class Operation:
    """One thing to do to a table.

    Attributes:
        name: `optimize`, `vacuum` or `analyze`.
        every: How long after the last time.
        retention: For vacuum: how long unneeded files stay.
        zorder: For optimize: columns.
        cluster: For optimize: columns of liquid clustering.
        columns: For analyze: of which; empty: all.
    """

    name: str
    every: timedelta
    retention: timedelta | None = None
    zorder: tuple[str, ...] = ()
    cluster: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Policy:
    """What is done to the models that a pattern fits."""

    models: str
    operations: tuple[Operation, ...]


def read(file: Path) -> tuple[Policy, ...]:
    """Read the policies.

    Raises:
        ConfigError: Something in the file is wrong; says where.
    """
    try:
        document = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    except (OSError, YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
    if (
        not isinstance(document, dict)
        or set(document) != {"policies"}
        or not isinstance(document["policies"], list)
    ):
        raise ConfigError(f"{file}: expected one key, policies, with a list")
    return tuple(_policy(entry, f"{file}: policies[{n}]") for n, entry in enumerate(document["policies"]))


def policy_of(policies: tuple[Policy, ...], model: str) -> Policy | None:
    """The first one that fits."""
    return next((policy for policy in policies if fnmatchcase(model, policy.models)), None)


def check_retention(policies: tuple[Policy, ...], longest: timedelta) -> None:
    """Refuse to delete files that somebody may be reading.

    Raises:
        ConfigError: A retention is shorter than a statement or a run may take.
    """
    for policy in policies:
        for operation in policy.operations:
            if operation.retention is not None and operation.retention < longest:
                raise ConfigError(
                    f"vacuum of {policy.models} keeps files for {operation.retention}, and a run may need them for {longest}",
                    hint="raise its retention above ledger.grace and above the longest run",
                )


def _policy(entry: Any, at: str) -> Policy:
    found = _mapping(entry, at, ("models", *KEYS))
    if not isinstance(found.get("models"), str):
        raise ConfigError(f"{at}.models is missing, expected a pattern such as bronze.*")
    operations = tuple(_operation(name, found[name], f"{at}.{name}") for name in KEYS if name in found)
    return Policy(found["models"], operations)


def _operation(name: str, entry: Any, at: str) -> Operation:
    found = _mapping(entry, at, KEYS[name])
    every = _duration(found, at, "every")
    if not timedelta(0) <= every <= LONGEST_PAUSE:
        raise ConfigError(f"{at}.every is {every}, expected at most {LONGEST_PAUSE.days}d")
    lists = {
        key: _columns(found[key], f"{at}.{key}") for key in ("zorder", "cluster", "columns") if key in found
    }
    if "zorder" in lists and "cluster" in lists:
        raise ConfigError(
            f"{at} has zorder and cluster", hint="a table is laid out in one way: keep one of them"
        )
    retention = _duration(found, at, "retention") if name == "vacuum" else None
    return Operation(name, every, retention, **lists)


def _mapping(entry: Any, at: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ConfigError(f"{at}: expected a mapping with {', '.join(known)}")
    for key in entry:
        if key not in known:
            raise ConfigError(f"{at}.{key} is not known", hint=nearest(str(key), known))
    return entry


def _duration(found: dict[str, Any], at: str, key: str) -> timedelta:
    if key not in found:
        raise ConfigError(f"{at}.{key} is missing, expected a duration such as 7d")
    try:
        return parse_duration(str(found[key]))
    except MeshgateError as error:
        raise ConfigError(f"{at}.{key}: {error.message}", hint=error.hint) from None


def _columns(given: Any, at: str) -> tuple[str, ...]:
    if (
        not isinstance(given, list)
        or not given
        or not all(isinstance(c, str) and c.isidentifier() for c in given)
    ):
        raise ConfigError(f"{at}: expected a list of columns' names")
    return tuple(given)
