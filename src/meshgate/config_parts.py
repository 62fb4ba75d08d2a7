"""What a project's configuration says of single models, of what they read, and of sources."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal, cast

from attrs import frozen

from meshgate.config_values import A_DURATION, parse_duration
from meshgate.errors import ConfigError, GraphError
from meshgate.graph import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meshgate.yaml_source import Node, YamlSource

_A_WINDOW: Final = "latest, prefix, ungated, or a mapping with from and to such as {from: -7d, to: 0h}"
_MODEL_KEYS: Final = ("stale", "stale_throttle", "stale_horizon", "on_audit_warning", "early_cut_off")
EDGE_KEYS: Final = ("reader", "parent", "window")
_WINDOW_KEYS: Final = ("from", "to")
VALIDITY_KEYS: Final = ("from", "to")
_SOURCE_KEYS: Final = ("table", "time_column", "updated_at", "within")
A_LENGTH: Final = f"{A_DURATION}, more than 0, at most 366d"
A_PAUSE: Final = f"{A_DURATION}, not negative, at most 366d"
_LONGEST: Final = timedelta(days=366)
_ZERO: Final = timedelta(0)

OnAuditWarning = Literal["pass", "hold"]


@frozen
class EdgeConfig:
    """The window that a reader declares on a parent; both by any name that the graph resolves."""

    reader: str
    parent: str
    window: Window


@frozen
class SourceConfig:
    """A table whose late rows are watched for.

    Attributes:
        table: By any name that finds it among the tables that models read and none makes.
        time_column: By which its readers read it.
        updated_at: A column that grows with each change of a row, if there is one; else only the number of rows tells.
        within: How far back it is looked at.
    """

    table: str
    time_column: str
    updated_at: str | None = None
    within: timedelta = timedelta(days=7)


@frozen
class ModelConfig:
    """What of its project's policies is different for one model; None: nothing.

    Attributes:
        stale: `reprocess` or `report`.
        stale_throttle: How long after its own last read stale time is left alone.
        stale_horizon: How long after its end stale time is still computed again.
        on_audit_warning: What a non-blocking audit that fails does.
        early_cut_off: The columns that do not count when it is judged whether computing it again has changed anything; None:
            nobody looks, and everything that is computed again is read again.
    """

    stale: str | None = None
    stale_throttle: timedelta | None = None
    stale_horizon: timedelta | None = None
    on_audit_warning: OnAuditWarning | None = None
    early_cut_off: tuple[str, ...] | None = None


def by_model(
    source: YamlSource, listed: Node, at: str, what: str
) -> Iterator[tuple[str, Mapping[str, Node]]]:
    """Each name of a mapping whose keys are models, with the whole."""
    if listed.kind != "mapping":
        source.unexpected(listed, at, f"a mapping of models' names to {what}")
    entries = source.mapping(listed, at, tuple(name.text for name, _ in listed.entries))
    yield from ((name, entries) for name in entries)


def models_in(source: YamlSource, project: Mapping[str, Node], key: str) -> dict[str, ModelConfig]:
    """Policies of single models."""
    if (listed := project.get("models")) is None:
        return {}
    models: dict[str, ModelConfig] = {}
    for name, entries in by_model(source, listed, f"{key}.models", "what is different for them"):
        at = f"{key}.models.{name}"
        found = source.mapping(entries[name], at, _MODEL_KEYS, "a mapping such as {stale: report}")
        warning = source.choice(found, at, "on_audit_warning", ("pass", "hold"))
        models[name] = ModelConfig(
            stale=source.choice(found, at, "stale", ("reprocess", "report")) if "stale" in found else None,
            stale_throttle=source.converted(found, at, "stale_throttle", parse_pause, A_PAUSE),
            stale_horizon=source.converted(found, at, "stale_horizon", parse_pause, A_PAUSE),
            on_audit_warning=cast("OnAuditWarning", warning) if "on_audit_warning" in found else None,
            early_cut_off=_cut_off(source, found.get("early_cut_off"), f"{at}.early_cut_off"),
        )
    return models


def _cut_off(source: YamlSource, node: Node | None, key: str) -> tuple[str, ...] | None:
    if node is None or (node.type == "bool"):
        return () if node is not None and node.text.lower() == "true" else None
    found = source.mapping(node, key, ("ignore",), "true, false, or a mapping such as {ignore: [loaded_at]}")
    columns = found.get("ignore")
    if columns is None or columns.kind != "sequence" or any(c.kind != "scalar" for c in columns.items):
        source.unexpected(columns or node, f"{key}.ignore", "a list of columns")
    return tuple(column.text for column in columns.items)


def validity_in(
    source: YamlSource, project: Mapping[str, Node], key: str
) -> dict[str, tuple[str, str | None]]:
    """The columns that tell from when to when rows of a project's models hold."""
    if (node := project.get("validity")) is None:
        return {}
    at, columns = f"{key}.validity", "a column, none, or a mapping with from and to"
    if node.kind != "mapping":
        source.unexpected(node, at, f"a mapping of models' names, each to {columns}")
    found: dict[str, tuple[str, str | None]] = {}
    for name, told in source.mapping(node, at, tuple(n.text for n, _ in node.entries)).items():
        if told.kind == "scalar" and told.text:
            found[name] = ("" if told.text == "none" else told.text, None)
        else:
            ends = source.mapping(told, f"{at}.{name}", VALIDITY_KEYS, columns)
            since = source.required(told, ends, f"{at}.{name}", "from", "a column")
            found[name] = (since, source.text(ends, f"{at}.{name}", "to", "a column"))
    return found


def edges_in(source: YamlSource, project: Mapping[str, Node], key: str) -> tuple[EdgeConfig, ...]:
    """The windows that a project declares."""
    listed = project.get("edges")
    if listed is None:
        return ()
    if listed.kind != "sequence":
        source.unexpected(listed, f"{key}.edges", "a list of mappings with reader, parent and window")
    edges: list[EdgeConfig] = []
    for index, node in enumerate(listed.items):
        at = f"{key}.edges[{index}]"
        found = source.mapping(node, at, EDGE_KEYS, "a mapping with reader, parent and window")
        reader = source.required(node, found, at, "reader", "the name of a model of this project")
        parent = source.required(node, found, at, "parent", "the name of a model that it reads")
        if "window" not in found:
            source.fail(node, f"{at}.window", f"is missing, expected {_A_WINDOW}")
        if any((reader, parent) == (other.reader, other.parent) for other in edges):
            source.fail(node, at, f"is given twice: {reader} reads {parent}")
        edges.append(EdgeConfig(reader, parent, _window(source, found["window"], f"{at}.window")))
    return tuple(edges)


def sources_in(source: YamlSource, project: Mapping[str, Node], key: str) -> tuple[SourceConfig, ...]:
    """The tables that a project watches."""
    listed = project.get("sources")
    if listed is None:
        return ()
    expected = "a mapping with table and time_column"
    if listed.kind != "sequence":
        source.unexpected(listed, f"{key}.sources", f"a list, each {expected}")
    sources: list[SourceConfig] = []
    for index, node in enumerate(listed.items):
        at = f"{key}.sources[{index}]"
        found = source.mapping(node, at, _SOURCE_KEYS, expected)
        table = source.required(node, found, at, "table", "the name of a table that models read")
        if any(table == other.table for other in sources):
            source.fail(node, at, f"is given twice: {table}")
        time = source.required(node, found, at, "time_column", "the column by which its readers read it")
        within = source.converted(found, at, "within", parse_length, A_LENGTH)
        changed = source.text(found, at, "updated_at", "the name of a column")
        sources.append(SourceConfig(table, time, changed, within or timedelta(days=7)))
    return tuple(sources)


def _window(source: YamlSource, node: Node, key: str) -> Window:
    if node.kind == "scalar" and node.text in {"latest", "prefix", "ungated"}:
        return Window(cast("Literal['latest', 'prefix', 'ungated']", node.text))
    ends = source.mapping(node, key, _WINDOW_KEYS, _A_WINDOW)
    begin, end = (source.converted(ends, key, name, parse_duration, A_DURATION) for name in _WINDOW_KEYS)
    try:
        return Window("interval", begin or _ZERO, end or _ZERO)
    except GraphError as error:
        source.fail(node, key, f"is refused: {error.message}", hint=error.hint)


def parse_length(text: str) -> timedelta:
    """A duration above nothing, at most a year.

    Raises:
        ConfigError: It is something else.
    """
    found = parse_pause(text)
    if found == _ZERO:
        raise ConfigError(f"{text!r} is not more than 0")
    return found


def parse_pause(text: str) -> timedelta:
    """A duration that may be nothing, at most a year.

    Raises:
        ConfigError: It is something else.
    """
    found = parse_duration(text)
    if not _ZERO <= found <= _LONGEST:
        raise ConfigError(f"{text!r} is negative, or longer than a year")
    return found
