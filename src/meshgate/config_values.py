"""Single values of `meshgate.yaml`: durations, names of environments, and text that must not be shown."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final
from urllib.parse import unquote

from meshgate.errors import ConfigError

A_DURATION: Final = "a duration such as 90s, 5m, 1h30m or 7d"
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_HARMLESS: Final = ("host", "hostaddr", "port", "dbname", "user", "sslmode", "application_name", "service")


class Secret:
    """Text that shows itself only when asked: `repr`, `str`, JSON by way of `str`, all give stars."""

    __slots__ = ("_text",)

    def __init__(self, text: str | Secret) -> None:
        self._text = text.reveal() if isinstance(text, Secret) else text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def parse_duration(text: str) -> timedelta:
    """A duration such as `90s`, `5m`, `1h30m`, `-7d`; only zero needs no unit.

    Example:
        >>> parse_duration("1h30m")
        datetime.timedelta(seconds=5400)

    Raises:
        ConfigError: It is not one.
    """
    found = re.fullmatch(r"([+-]?)((?:[0-9]+(?:\.[0-9]+)?(?:ms|[smhdw]))+|0)", text.strip())
    if not found:
        raise ConfigError(f"{text!r} is not a duration", hint=f"expected {A_DURATION}")
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw])", found[2])
    try:
        length = timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError:
        raise ConfigError(f"{text!r} is too long for a duration", hint=f"expected {A_DURATION}") from None
    return -length if found[1] == "-" else length


def environment_name(text: str) -> str:
    """An environment's name. SQLMesh would change any other, and the ledger would know it by two names.

    Raises:
        ConfigError: It is not in lower case letters, digits and underscores.
    """
    if not re.fullmatch(r"[a-z0-9_]+", text):
        raise ConfigError(
            f"{text!r} is not the name of an environment",
            hint="write it as SQLMesh keeps it: lower case letters, digits and underscores",
        )
    return text


def redact(url: str) -> str:
    """A connection string with stars in place of passwords; hides too much rather than too little.

    Example:
        >>> redact("postgresql://ann:s3cret@host/db?sslpassword=x")
        'postgresql://ann:***@host/db?sslpassword=***'
    """
    scheme, separator, rest = url.partition("://")
    if separator and not re.search(r"[\s=]", scheme):
        # Up to the last @, as a password that was not percent-encoded may hold /, ? and @ itself.
        user, at, address = rest.rpartition("@")
        name, colon, _ = user.partition(":")
        address, question, query = address.partition("?")
        shown = "&".join(map(_redact_parameter, re.split("[&;]", query)))
        return f"{scheme}://{name}{colon and ':***'}{at}{address}{question}{shown}"
    # Of a keyword string, only what is known to be harmless is shown. A value may be quoted, and a
    # space or a quote in it escaped.
    words = re.findall(r"([^\s=]+)\s*=\s*('(?:\\.|[^'\\])*'?|(?:\\.|[^\s\\])*)", url)
    shown_words = (
        f"{key}={value}" if key in _HARMLESS else f"{key}=***" if key == "password" else "***"
        for key, value in words
    )
    return " ".join(shown_words) or "***"


def _redact_parameter(parameter: str) -> str:
    key, equals, value = parameter.partition("=")
    return f"{key}{equals}{'***' if 'pass' in unquote(key).lower() else value}"
