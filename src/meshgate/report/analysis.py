"""An analysis for people at a terminal: what must not be, what changes, what is evaluated, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.report import change as say
from meshgate.report.text import _capped, _line, _wrapped
from meshgate.report.wording import counted, instant, model_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.text import Text

    from meshgate.analysis import Analysis, Change, Work

_CATEGORIES = {"breaking": "red", "indirect_breaking": "yellow"}
_EACH = 40


def analyze(out: Console, found: Analysis) -> None:
    """The whole of it, by project, short first."""
    facts = say.summary(found)
    _wrapped(out, [_line((f"analysis of {', '.join(found.projects)}: ", "bold"), "; ".join(facts))], 2)
    out.print(_line((f"{found.environment} at {instant(found.now)} · plan {found.base.proposed[:8]}", "dim")))
    _refusals(out, found)
    _projects(out, found)
    _section(
        out, "what nobody computes again by itself", "yellow",
        [f"{model_name(one.model)} of {one.project}: {say.left(one)}" for one in found.left],
        [f"when it is deployed: `{command}`" if (command := say.ask(one)) else "" for one in found.left],
    )  # fmt: skip
    _section(
        out, "which boundaries it crosses", "cyan",
        [f"{model_name(b.parent)} of {b.parent_project}: {say.boundary(b)}" for b in found.boundaries],
    )  # fmt: skip
    _section(
        out, "which queries read more than they wait for", "yellow",
        [one.message for one in found.windows], [one.hint for one in found.windows],
    )  # fmt: skip
    _section(out, "what it meets", "cyan", [say.collision(c, found.now) for c in found.collisions])
    _section(out, "warnings", "yellow", list(found.warnings))
    if found.changes:
        out.print()
        _wrapped(out, [_line(("order ", "bold"), say.order(found))], 2)
        _wrapped(out, [_line(("  ● ", "cyan"), say.precedence(p)) for p in found.order.precedences], 4)


def _refusals(out: Console, found: Analysis) -> None:
    if not found.refusals:
        return
    out.print()
    out.print(_line(("this must not be deployed as it is", "bold red")))
    for one in found.refusals:
        _wrapped(out, [_line(("  ● ", "red"), one.message)], 4)
        _wrapped(out, [_line("    → ", one.hint)], 6)


def _projects(out: Console, found: Analysis) -> None:
    works: dict[str, list[Work]] = {}
    for one in found.work:
        works.setdefault(one.model, []).append(one)
    changes = {one.model: one for one in found.changes}
    for project in found.affected:
        mine = [c for c in found.changes if c.project == project]
        names = [c.model for c in mine if not c.keeps_data]
        names += [w.model for w in found.work if w.project == project and w.model not in names]
        if not names:
            continue
        names = list(dict.fromkeys(names))
        out.print()
        out.print(_line((project, "bold")))
        lines: list[Text] = []
        for name in names:
            lines += _model(name, changes.get(name), works.get(name, []), found)
        if kept := [c for c in mine if c.model not in names]:
            lines.append(_line((f"  {counted(len(kept), 'more model')} without a change of data", "dim")))
        _wrapped(out, _capped(lines, "  ", 3 * _EACH), 6)


def _model(name: str, change: Change | None, works: Sequence[Work], found: Analysis) -> list[Text]:
    if change is not None:
        why = "; ".join(say.why(change))
        style = _CATEGORIES.get(change.category or "", "")
        lines = [_line(f"  {model_name(name)} ", (say.change(change), style), f": {why}" if why else "")]
    else:
        above = say.models(dict.fromkeys(parent for one in works for parent in one.because))
        lines = [_line(f"  {model_name(name)} ", ("stale", "yellow"), f": reads {above}")]
    for one in works:
        lines.append(_line((f"      {say.work(one, found.now)}; {say.when(one, found.now)}", "dim")))
        lines += [_line((f"      {say.hindrance(h, found.now)}", "yellow")) for h in one.hindrances]
    return lines


def _section(out: Console, title: str, style: str, said: Sequence[str], commands: Sequence[str] = ()) -> None:
    if not said:
        return
    out.print()
    out.print(_line((title, "bold")))
    lines: list[Text] = []
    for place, one in enumerate(said):
        lines.append(_line(("  ● ", style), one))
        if place < len(commands) and commands[place]:
            lines.append(_line(f"    → {commands[place]}"))
    _wrapped(out, _capped(lines, "  "), 4)
