"""An analysis as Markdown for a comment on a pull request: five answers first, everything else folded.

It is read by people who know neither meshgate nor SQLMesh: the answers use no word that the legend below them does not explain.
The same analysis gives the same bytes. The first line is a marker that nobody sees, by which a later analysis finds the
comment that it replaces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.interval import MIN_INSTANT
from meshgate.report import change as say
from meshgate.report.diagram import diagram
from meshgate.report.markdown import Folded, bullets, code, fitted, plain, row
from meshgate.report.wording import counted, instant, length, model_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshgate.analysis import Analysis, Change, Difference, Work
    from meshgate.errors import MeshgateError

MARKER = "<!-- meshgate analyze {of} -->"
_SHOWN = 8
_NAMED = 4
_EXPRESSION = 60
_SHORTENED = (
    "⚠️ This comment is shortened, as GitHub takes 65,536 characters. All of it is on the page of the job, and printed by "
    "`meshgate analyze --markdown`."
)
_LEGEND = (
    "A *model* is a table or view that a query of a project makes. A project is *deployed* when its new queries are put to use; "
    "its *runs* are its scheduled jobs. Times are UTC."
)
_CATEGORIES = {
    "breaking": "what reads it is computed again",
    "indirect_breaking": "what reads it is computed again",
    "non_breaking": "what reads it stays as it is",
    "indirect_non_breaking": "what reads it stays as it is",
    "forward_only": "rows that are there stay as they are, only newer ones are made by it",
    "metadata": "no row changes",
}


def marker(environment: str, name: str | None = None) -> str:
    """What a comment about an environment begins with; its name tells it from others about the same."""
    return MARKER.format(of=f"{environment}: {name}" if name else environment)


def markdown(found: Analysis, *, longest: int | None = None, name: str | None = None) -> str:
    """The comment.

    Args:
        found: What it says.
        longest: Bytes of UTF-8 at most; then the end of what is folded is left out, and it says so.
        name: What tells it from other comments about the same environment.
    """
    head = [marker(found.environment, name), f"<!-- plan {found.base.proposed} on {found.base.promoted} -->"]
    title = f"{_title(found)} ({plain(name)})" if name else _title(found)
    head += ["", f"### {title}", "", *_refusals(found), *_answers(found)]
    if found.changes:
        head += [f"<sub>{_LEGEND}</sub>", ""]
    said = (
        f"environment {found.environment}, as of {instant(found.now)}, ledger revision {found.base.revision}"
    )
    foot = [f"<sub>meshgate analyze: {plain(said)}. Nothing was written.</sub>"]
    return fitted(head, [part for part in _parts(found) if part.items], foot, longest, _SHORTENED)


def not_analysed(environment: str, error: MeshgateError, name: str | None = None) -> str:
    """The comment where there is no analysis: an older one would speak for files that it has not seen.

    What is wrong with the files is told; what is wrong elsewhere may name hosts, and stands in the log only.
    """
    said = [f"{plain(error.message)}"] if error.exit_code == 2 else ["See the log of the job."]
    if error.exit_code == 2 and error.hint:
        said.append(f"→ {plain(error.hint)}")
    title = f"❌ This could not be analysed{f' ({plain(name)})' if name else ''}"
    lines = [marker(environment, name), "", f"### {title}", "", "<br>".join(said), ""]
    return "\n".join(lines)


def _parts(found: Analysis) -> list[Folded]:
    refused = tuple((line,) for line in _refused(found)[_SHOWN:])
    models = f"What happens to each of {counted(len(_names(found)), 'model')}"
    between = f"{counted(len(found.boundaries), 'boundary', 'boundaries')} between projects that it crosses"
    beyond = f"⚠️ {counted(len(found.windows), 'query reads', 'queries read')} more than its gate waits for"
    drawn = diagram(found)
    return [
        Folded("More reasons against it", (), refused),
        Folded(models, _head("model", "project", "change", "why", "computed", "when"), _models(found)),
        Folded(between, _head("read", "by"), _boundaries(found)),
        Folded("⚠️ What nobody computes again by itself", (), _left(found)),
        Folded(beyond, (), tuple((f"- {plain(b.message)}<br>→ {plain(b.hint)}",) for b in found.windows)),
        Folded("⚠️ What is going on there now", (), _each(say.collision(c, found.now) for c in found.collisions)),
        Folded("Diagram", (), (tuple(drawn),) if drawn else (), whole=True),
        Folded("⚠️ Warnings", (), _each(found.warnings)),
    ]  # fmt: skip


def _head(*names: str) -> tuple[str, ...]:
    return row(*names), f"|{'---|' * len(names)}"


def _each(said: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((line,) for line in bullets(said))


# The five answers


def _title(found: Analysis) -> str:
    if found.refused:
        return "⛔ This must not be merged as it is"
    if not found.changes:
        return "✅ This changes nothing that is computed"
    others = [p for p in found.affected if p not in found.projects]
    if others:
        return f"⚠️ This reaches {'another project' if len(others) == 1 else 'other projects'}: {plain(say.several(others))}"
    if "cross-project" in found.flags:
        crossed = [b for b in found.boundaries if b.effect not in ("none", "gone")]
        if all(b.effect == "new" for b in crossed):
            read = sorted({b.parent_project for b in crossed})
            which = "another project" if len(read) == 1 else "other projects"
            return f"⚠️ This newly reads from {which}: {plain(say.several(read))}"
        return "⚠️ This crosses the boundary between projects"
    doubts = found.left or found.windows or found.collisions or found.warnings
    return f"{'⚠️' if doubts else '✅'} This stays within its project"


def _refused(found: Analysis) -> list[str]:
    return [f"- **{plain(r.message)}**<br>→ {plain(r.hint)}" for r in found.refusals]


def _refusals(found: Analysis) -> list[str]:
    said = _refused(found)[:_SHOWN]
    return [*said, ""] if said else []


def _answers(found: Analysis) -> list[str]:
    if not found.changes:
        return []
    rows = [
        ("What changes?", _what(found)),
        ("Who is affected?", _who(found)),
        ("What is computed again?", _computed(found)),
        ("When?", _when(found)),
        ("In which order to merge?", _order(found)),
    ]
    return ["| | |", "|---|---|", *(row(f"**{name}**", said) for name, said in rows), ""]


def _what(found: Analysis) -> str:
    own = [c for c in found.changes if c.how != "indirect"]
    extended = {w.model for w in found.work if w.why == "extended"}
    said = [
        f"{code(model_name(c.model))} of **{plain(c.project)}** {_change(c, extended=c.model in extended)}"
        for c in own[:_SHOWN]
    ]
    more = [f"and {counted(len(own) - _SHOWN, 'more model')}"] if len(own) > _SHOWN else []
    return "<br>".join([*said, *more]) or "No model itself"


def _change(change: Change, *, extended: bool) -> str:
    """What is different about a model, and what that means for its readers."""
    if change.how == "added":
        return "is new"
    if change.how == "removed":
        return "is removed"
    told = [_difference(d) for d in change.differences[:2]]
    if len(change.differences) > len(told):
        told.append(counted(len(change.differences) - len(told), "more difference"))
    means = _CATEGORIES.get(change.category or "") if change.how != "metadata" else _CATEGORIES["metadata"]
    if change.forward_only:
        means = _CATEGORIES["forward_only"]
    if extended:
        means = "rows are added, and no other changes"
    return f"changes: {'; '.join(told) or 'how it is made'}{f' ({means})' if means else ''}"


def _difference(found: Difference) -> str:
    if found.what == "column_redefined" and found.before and found.after:
        was, becomes = (code(_short(text)) for text in (found.before, found.after))
        return f"column {code(found.name or '')} was {was} and becomes {becomes}"
    if found.before and found.after and not found.is_column:
        return f"{plain(found.what)} {code(_short(found.before))} → {code(_short(found.after))}"
    return plain(say.difference(found))


def _short(text: str) -> str:
    return text if len(text) <= _EXPRESSION else f"{text[: _EXPRESSION - 3]}..."


def _who(found: Analysis) -> str:
    lines: list[str] = []
    for project, names in _affected(found).items():
        owners = {c.owner for c in found.changes if c.project == project and c.owner}
        owners |= {b.owner for b in found.boundaries if b.child_project == project and b.owner}
        by = f" (owned by {plain(', '.join(sorted(owners)))})" if owners else ""
        mine = "" if project not in found.projects or len(found.affected) == 1 else ", this change's own"
        lines.append(f"**{plain(project)}**{mine}{by}: {_codes(names)}")
    return "<br>".join(lines) or "Nobody: no data change"


def _affected(found: Analysis) -> dict[str, list[str]]:
    """The models of each project of which something becomes different, parents first."""
    named = [(c.project, c.model) for c in found.changes if not c.keeps_data]
    named += [(w.project, w.model) for w in found.work] + [(one.project, one.model) for one in found.left]
    return {p: list(dict.fromkeys(m for of, m in named if of == p)) for p in found.affected}


def _codes(names: Iterable[str], limit: int = _NAMED) -> str:
    """Models as a list, as far as a reader takes them in."""
    every = list(names)
    shown = [code(model_name(name)) for name in every[:limit]]
    if len(every) > limit:
        shown.append(f"{len(every) - limit} more")
    return (
        shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "no model"
    )


def _computed(found: Analysis) -> str:
    left = (
        f"⚠️ Not {_codes(one.model for one in found.left)}: it stays as it was made, and nobody computes it again by itself (see below)"
        if found.left
        else ""
    )
    if not found.work:
        return "<br>".join(filter(None, ["Nothing", left]))
    known = [h for h in (w.range.hull for w in found.work) if h is not None]
    names = list(dict.fromkeys(w.model for w in found.work))
    every = {name for models in _affected(found).values() for name in models}
    which = counted(len(names), "model")
    which = (
        f"{which}: {_codes(names, _SHOWN)}"
        if set(names) != every or len(names) == 1
        else f"The {which} above"
    )
    first = min((h.start for h in known), default=MIN_INSTANT)
    rows = "all rows" if first == MIN_INSTANT else f"rows from {instant(first)} on"
    about = f"about {length(found.expected)} in all, by how long it took last" if found.expected else ""
    return "<br>".join(filter(None, [which, "; ".join(filter(None, [rows, about])), left]))


def _when(found: Analysis) -> str:
    """A line for each deploy, and for the runs of each project."""
    doers: dict[tuple[str, str], list[Work]] = {}
    for one in found.work:
        doers.setdefault((one.by, one.doer), []).append(one)
    place = {project: at for at, project in enumerate((*found.order.projects, *found.affected))}
    ordered = sorted(doers, key=lambda key: (key[0] == "run", place.get(key[1], -1)))
    lines = [_span(by, plain(doer), doers[by, doer], found) for by, doer in ordered]
    return "<br>".join(lines) or "There is nothing to wait for"


def _span(by: str, doer: str, works: Sequence[Work], found: Analysis) -> str:
    """What one deploy, or the runs of one project, do from when to when."""
    names = list(dict.fromkeys(w.model for w in works))
    which = _codes(names) if len(names) < len({w.model for w in found.work}) else "all of it"
    again = " once more" if all(w.again for w in works) else ""
    # What an earlier deploy computes and a later one again is told with the later one.
    last = (
        ", the last of them,"
        if len(found.projects) > 1 and doer in map(plain, found.order.projects[-1:])
        else ""
    )
    who = f"When **{doer}**{last} is deployed" if by == "deploy" else f"By the runs of **{doer}**"
    firsts = [w.first_at for w in works if w.first_at is not None]
    ends = [w.complete_at for w in works if w.complete_at is not None]
    if not firsts:
        return f"{who}, but not before somebody does something (see below): {which}{again}"
    begin, end = min(firsts), max(ends, default=None)
    since = "" if by == "deploy" and begin <= found.now else f", from {instant(begin)} on"
    if len(ends) < len(works):
        until = "; some of it not before somebody does something (see below)"
    elif end is not None and end > max(begin, found.now):
        until = f", done by {instant(end)} at the earliest"
    else:
        until = ""
    return f"{who}{since}{until}: {which}{again}"


def _order(found: Analysis) -> str:
    projects = [f"**{plain(p)}**" for p in found.order.projects]
    if not projects:
        return "There is nothing to deploy"
    if found.order.state == "none":
        said = plain(say.order(found))
        return "<br>".join([f"{said[0].upper()}{said[1:]}", *_reasons(found)])
    if found.refusals:
        return "<br>".join(["None, before what stands above is mended", *_reasons(found)])
    if len(projects) == 1:
        alone = "<br>No other repository has to be merged for it" if len(found.affected) > 1 else ""
        return f"Only {projects[0]}: merge, then deploy it{alone}"
    listed = "<br>".join(f"{place}. {name}" for place, name in enumerate(projects, start=1))
    if found.order.state == "any":
        return f"Any order is right. Parents first:<br>{listed}"
    return "<br>".join([f"Merge and deploy one after the other:<br>{listed}", *_reasons(found)])


def _reasons(found: Analysis) -> list[str]:
    said = [plain(say.precedence(p)) for p in found.order.precedences[:_SHOWN]]
    more = len(found.order.precedences) - len(said)
    return [*said, f"and {counted(more, 'more reason')}"] if more else said


# What is folded


def _names(found: Analysis) -> list[str]:
    return list(dict.fromkeys([*(c.model for c in found.changes), *(w.model for w in found.work)]))


def _models(found: Analysis) -> tuple[tuple[str, ...], ...]:
    changes = {c.model: c for c in found.changes}
    return tuple((_model(name, changes.get(name), found),) for name in _names(found))


def _model(name: str, change: Change | None, found: Analysis) -> str:
    works = [w for w in found.work if w.model == name]
    if change is not None:
        project, how, why = change.project, say.change(change), "; ".join(say.why(change))
    else:
        project, how = works[0].project, "stale"
        why = f"reads {say.models(dict.fromkeys(p for w in works for p in w.because))}"
    when: list[str] = []
    for one in works:
        held = [say.hindrance(h, found.now) for h in one.hindrances]
        more = [f"and {len(held) - _NAMED} more hindrances"] if len(held) > _NAMED else []
        when += [say.when(one, found.now), *held[:_NAMED], *more]
    return row(
        code(model_name(name)), plain(project), plain(how), plain(why),
        "<br>".join(plain(say.work(w)) for w in works), "<br>".join(map(plain, when)),
    )  # fmt: skip


def _boundaries(found: Analysis) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (row(f"{code(model_name(b.parent))} of {plain(b.parent_project)}", plain(say.boundary(b))),)
        for b in found.boundaries
    )


def _left(found: Analysis) -> tuple[tuple[str, ...], ...]:
    items: list[tuple[str, ...]] = []
    for one in found.left:
        said = f"- {code(model_name(one.model))} of {plain(one.project)}: {plain(say.left(one))}"
        command = say.ask(one)
        items.append((said, f"  → when this is deployed: {code(command)}") if command else (said,))
    return tuple(items)
