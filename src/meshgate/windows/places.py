"""Where in a model's file something of its rendered query is written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from attrs import frozen
from sqlglot import exp

if TYPE_CHECKING:
    from meshgate.windows.scopes import Written

_LONGEST: Final = 120
_JOINT: Final = re.compile(r"^(AND|OR|ON|WHERE)\s+", re.IGNORECASE)
"""What leads to a condition, and is not part of it."""
_WORD: Final = re.compile(r"[a-z_0-9]+|[<>=]+")


@frozen
class Place:
    """Some SQL, and the line of the file that it most likely comes from.

    Attributes:
        expression: What that line says; as it is rendered, where there is none.
        file: The file; empty where nobody knows.
        line: From 1 on; None where no line has the words of it.
    """

    expression: str
    file: str
    line: int | None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line is not None else self.file
        return f"`{self.expression}`{' in ' if where else ''}{where}"


def place_of(written: Written) -> Place:
    """The place of a node of a rendered query.

    Rendering leaves no trace of lines, so the line is looked for that shares the most words with the expression; macros
    are what it does not share. A column has to be there.

    Args:
        written: The node, and whose it is.
    """
    node, text = written.node, written.owner.text
    shown = str(node.sql(dialect=written.owner.dialect or None, comments=False)).replace('"', "")
    names = [c.name.lower() for c in node.find_all(exp.Column)] or [
        n.name.lower() for n in node.find_all(exp.Identifier)
    ]
    words = set(_WORD.findall(shown.lower()))
    best: tuple[int, int, str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        code = _JOINT.sub("", line.split("--", 1)[0].strip())
        here = set(_WORD.findall(code.lower()))
        if names and names[0] in here and (best is None or len(words & here) > best[0]):
            best = (len(words & here), number, code)
    shown = best[2] if best is not None else shown
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."
    return Place(shown, written.owner.file, best[1] if best is not None else None)
