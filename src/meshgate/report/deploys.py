"""From an analysis to action, for people: what became of each deploy, and what is left to be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.report import change as say
from meshgate.report.text import _capped, _line, _listed, _wrapped, run
from meshgate.report.wording import counted, instant, length, model_name, time_of, who_does_it

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.text import Text

    from meshgate.coordinator.deploys import Deploys
    from meshgate.coordinator.leftovers import Leftover, Leftovers
    from meshgate.coordinator.status import Wait

_BECAME = {
    "deployed": ("deployed", "green"),
    "there": ("deployed before, as analysed", "green"),
    "failed": ("not deployed", "red"),
    "waiting": ("not deployed yet", "yellow"),
}


def deploys(out: Console, found: Deploys, waits: Mapping[str, tuple[Wait, ...]]) -> None:
    """Each deploy with what it did; then all projects in a line each, and what to do next."""
    for one in found.projects:
        if one.report is not None:
            run(out, one.report, waits.get(one.project, ()), "deploy")
            out.print()
    out.print(_line((f"analysis {found.proposed[:8]}", "bold"), f" · {found.environment}"))
    for one in found.projects:
        out.print(_line(f"  {one.project}: ", _BECAME[one.what]))
    if not found.done:
        named = [one.project for one in found.projects if one.what in ("failed", "waiting")]
        said = "the same call goes on, as soon as the cause is mended"
        if all(one.what != "failed" for one in found.projects):
            said = (
                f"{_listed(named)} can follow, each with `meshgate deploy PROJECT=PATH --from-analysis FILE`"
            )
        _wrapped(out, [_line("→ ", said)], 2)
    elif found.left:
        left = counted(found.left, "model")
        said = f"{left} left as made before: `meshgate restate --from-analysis FILE` shows what asking for it comes to"
        _wrapped(out, [_line("→ ", said)], 2)


def leftovers(out: Console, found: Leftovers) -> None:
    """What the change leaves, why, and what asking for it comes to."""
    made = (
        (f"requested ({', '.join(map(str, found.made))})", "green")
        if found.made
        else ("preview, nothing is asked for yet", "yellow")
    )
    out.print(_line(("restate what the change leaves as it was made", "bold"), ": ", made))
    out.print(_line((f"{found.environment} at {instant(found.now)}", "dim")))
    lines: list[Text] = []
    for one in found.models:
        lines += _leftover(one)
    if lines:
        out.print()
        _wrapped(out, _capped(lines, "  ", 60), 6)
    out.print()
    if found.expected is not None:
        out.print(f"about {length(found.expected)} of evaluation, by the last ones")
    _wrapped(out, [_line("→ ", _next(found))], 2)


def _leftover(one: Leftover) -> list[Text]:
    left = one.left
    time = f" {one.interval}" if one.interval is not None else f" {time_of(left.range)}" if left.range else ""
    lines = [_line(("  ● ", "yellow"), f"{model_name(left.model)}{time} of {left.project}: {say.left(left)}")]
    if one.request is not None:
        return [*lines, _line((f"      asked for already: request {one.request}", "dim"))]
    if one.preview is None:
        return [*lines, _line(("      cannot be asked for", "dim"))]
    steps = [s for s in one.preview.steps if not s.asked or s.model != left.model]
    if steps:
        follows = _listed([f"{model_name(s.model)} {time_of(s.range)} of {s.project}" for s in steps])
        lines.append(_line((f"      then {follows}", "dim")))
    return lines


def _next(found: Leftovers) -> str:
    if found.made:
        return who_does_it(found.projects, "list")
    if not found.requests:
        return "there is nothing more to ask for"
    if found.waiting:
        return (
            f"{_listed(list(found.waiting))} must be deployed first: `meshgate deploy --from-analysis FILE`"
        )
    return "`meshgate restate --from-analysis FILE --apply` asks for it"
