"""Where in a model's file something of its rendered query is written."""

from __future__ import annotations

import re
from typing import Any, Final

from attrs import frozen
from sqlglot import exp

_LONGEST: Final = 120


@frozen
class Place:
    """Some SQL, and the line of the file that it most likely comes from.

    Attributes:
        expression: As rendered.
        line: From 1 on; None where no line has the words of it.
    """

    expression: str
    line: int | None


def place_of(node: Any, text: str) -> Place:
    """The place of a node of a rendered query.

    Rendering leaves no trace of lines, so the line is looked for that shares the most words with the expression; macros
    are what it does not share. A column has to be there.

    Args:
        node: SQLGlot's.
        text: The file.
    """
    shown = str(node.sql(comments=False, identify=False)).replace('"', "")
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."
    names = [c.name.lower() for c in node.find_all(exp.Column)] or [n.name.lower() for n in node.find_all(exp.Identifier)]
    words = set(re.findall(r"[a-z_0-9]+|[<>=]+", shown.lower()))
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.lower().splitlines(), start=1):
        code = line.split("--", 1)[0]
        here = set(re.findall(r"[a-z_0-9]+|[<>=]+", code))
        if not names or names[0] not in here:
            continue
        shared = len(words & here)
        if best is None or shared > best[0]:
            best = (shared, number)
    return Place(shown, best[1] if best is not None else None)
