"""An analysis read back from the document that it was written as.

The records say what belongs where: each is made of the keys that are called as its attributes are. Keys that nobody
knows are left alone, as a later meshgate may add some.
"""

from __future__ import annotations

import types
import typing
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

import attrs

from meshgate.analysis.document import Analysis
from meshgate.errors import ConfigError, IntervalError
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet, parse_instant

SCHEMA: Final = "meshgate.analysis"
VERSION: Final = 1
_ANEW: Final = "make it anew: `meshgate analyze --json > FILE`"


def parse(document: Any, source: str) -> Analysis:
    """The analysis that a document holds.

    Args:
        document: As JSON has it.
        source: Where it comes from, for errors.

    Raises:
        ConfigError: It is none, or of another version, or something is missing in it.
    """
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        said = document.get("schema") if isinstance(document, dict) else None
        raise ConfigError(
            f"{source} is not an analysis" + (f": it says that it is a {said}" if said else ""),
            hint="give the file that `meshgate analyze --json` wrote",
        )
    if document.get("version") != VERSION:
        raise ConfigError(
            f"{source} is an analysis of version {document.get('version')!r}, and this meshgate knows version {VERSION}",
            hint=_ANEW,
        )
    try:
        found: Analysis = _record(Analysis, document, "")
        _agreeing(found)
    except (_WrongError, IntervalError) as wrong:
        raise ConfigError(f"{source} is no whole analysis: {wrong}", hint=_ANEW) from None
    return found


def _agreeing(found: Analysis) -> None:
    """Whether its parts speak of the same projects.

    Raises:
        _WrongError: They do not.
    """
    looked_at = [name for names in found.base.states for name in names]
    for place, names in (("base.states", looked_at), ("order.projects", found.order.projects)):
        if sorted(names) != sorted(found.projects):
            raise _WrongError(f"{place} has other projects than projects: {', '.join(names) or 'none'}")
    for number, must in enumerate(found.order.precedences):
        if not {must.first, must.then} <= set(found.projects):
            raise _WrongError(f"order.precedences[{number}] is about other projects")
    if any(d.state is not None and not 0 <= d.state < len(found.base.states) for d in found.base.definitions):
        raise _WrongError("base.definitions has a state that is not in base.states")


class _WrongError(Exception):
    """A value is not what its place asks for; the message names the place."""


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _record(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _WrongError(f"{place} holds no keys")
    hints = _hints(kind)
    facts: dict[str, Any] = {}
    for attribute in attrs.fields(kind):
        name, hint = attribute.name, hints[attribute.name]
        key = f"{name}_s" if timedelta in (hint, *typing.get_args(hint)) else name
        where = f"{place}.{key}" if place else key
        if key in value:
            facts[name] = _value(hint, value[key], where)
        elif attribute.default is attrs.NOTHING:
            raise _WrongError(f"it has no {where}")
    return kind(**facts)


def _value(hint: Any, value: Any, place: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _value(next(h for h in inner if h is not type(None)), value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise _WrongError(f"{place} is no list")
        return tuple(_value(inner[0], one, f"{place}[{number}]") for number, one in enumerate(value))
    if hint is IntervalSet:
        return IntervalSet(_interval(one, place) for one in _value(tuple[object, ...], value, place))
    if attrs.has(hint):
        return _record(hint, value, place)
    return _plain(hint, inner if origin is typing.Literal else None, value, place)


def _plain(hint: Any, allowed: tuple[Any, ...] | None, value: Any, place: str) -> Any:
    if hint is object:
        return value
    wanted: Any = (
        str if hint is datetime or allowed is not None else (int, float) if hint is timedelta else hint
    )
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise _WrongError(f"{place} is {value!r}")
    if allowed is not None and value not in allowed:
        raise _WrongError(f"{place} is {value!r}, none of {', '.join(map(repr, allowed))}")
    if isinstance(value, str) and "\0" in value:  # no database takes it
        raise _WrongError(f"{place} is {value!r}")
    if hint is datetime:
        return parse_instant(value)
    if hint is not timedelta:
        return value
    try:
        return timedelta(seconds=value)
    except (ValueError, OverflowError):  # NaN, or longer than time
        raise _WrongError(f"{place} is {value!r}") from None


def _interval(value: Any, place: str) -> Interval:
    if not isinstance(value, dict) or not {"start", "end"} <= set(value):
        raise _WrongError(f"{place} holds {value!r}, no interval")
    start, end = (
        _value(datetime | None, value[key], f"{place}.{key}") or edge
        for key, edge in (("start", MIN_INSTANT), ("end", MAX_INSTANT))
    )
    return Interval(start, end)
