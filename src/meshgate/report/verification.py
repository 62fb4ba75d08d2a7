"""What was verified or looked at, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from meshgate.report.wording import counted, model_name, time_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from meshgate.coordinator.observe import Look
    from meshgate.coordinator.verify import Verification
    from meshgate.verification import Difference

_WORDS = {
    "coverage": "what is recorded",
    "revision": "when it was made or read",
    "verdict": "how it was judged",
    "mark": "what is to be computed again",
    "dirty_span": "when it held unjudged rows",
    "stale": "what is stale",
    "premature": "read before its parents were there",
    "claim": "who works on it",
    "promotion": "what is promoted",
    "kind": "what sort of table it is",
    "edge": "what it reads",
    "sqlmesh": "the two records",
}


def verify(out: Console, found: Verification) -> None:
    """One line where nothing differs, else every difference."""
    derived = f"{counted(found.versions, 'table')} derived from {counted(found.events, 'event')}"
    if found.forgotten:
        derived += f", what is older than revision {found.forgotten} taken as given"
    also = f", compared with SQLMesh's record of {', '.join(found.sqlmesh)}" if found.sqlmesh else ""
    if not found.differences:
        out.print(Text.assemble(("nothing differs", "green"), f": {derived}{also}"), soft_wrap=True)
        return
    out.print(Text.assemble((counted(len(found.differences), "difference"), "red"), f": {derived}{also}"))
    for one in found.differences:
        _difference(out, one)


def _difference(out: Console, one: Difference) -> None:
    where = f" in {one.environment}" if one.environment else ""
    time = f" {one.interval}" if one.interval is not None else ""
    name = (model_name(one.model) if one.model else "the ledger", "bold")
    whose = f"{time} of project {one.project}{where}" if one.model else ""
    out.print(Text.assemble(name, f"{whose}: {_WORDS[one.what]}"))
    out.print(f"  the ledger says: {one.recorded}")
    out.print(f"  derived: {one.derived}" + (f" (version {one.version})" if one.version else ""))


def watch(out: Console, found: Sequence[Look]) -> None:
    """Each source in a line: what has changed, and what was asked for."""
    for one in found:
        if one.interval is None:
            said = f": no model of {one.project} reads it"
        elif one.first:
            said = f" {one.interval} is looked at for the first time: what is there is taken as it is"
        elif one.changed:
            said = f" has changed in {time_of(one.changed)}"
        else:
            said = f" is as it was in {one.interval}"
        asked = f"; asked for: request {', '.join(map(str, one.requests))}" if one.requests else ""
        out.print(Text.assemble((one.source.replace('"', ""), "bold"), f"{said}{asked}"))
