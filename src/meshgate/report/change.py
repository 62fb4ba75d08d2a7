"""Sentences about a change and what follows from it, the same for a terminal and for a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.report.wording import counted, instant, length, model_name, time_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from meshgate.analysis import (
        Analysis,
        Boundary,
        Change,
        Collision,
        Difference,
        Hindrance,
        Left,
        Precedence,
        Reason,
        Work,
    )

_LONGEST = 40
_HOW = {
    "added": "new",
    "removed": "removed",
    "direct": "changed",
    "indirect": "follows",
    "metadata": "changed, its data stay",
}
_DIFFERENCES = {
    "query": "it selects other rows",
    "code": "a macro or function that it uses changes",
    "seed": "the file of its rows changes",
    "audits": "its audits change",
    "statements": "its statements before or after the query change",
    "star": "its `SELECT *` finds other columns",
    "metadata": "what describes it changes",
    "forward_only": "whether its changes are forward-only",
}
_LEFT = {
    "forward_only": "a forward-only change: what it holds was made by the old query",
    "star": "it selects all columns of {parents}, and keeps its table without what is new there",
    "seed": "{parents} gets another file, and nothing computes again what read it",
    "ungated": "it declares not to wait for {parents}, so it does not follow",
    "reported": "it merges rows, and only a rebuild makes it right",
    "policy": "its `stale` policy leaves it as it is",
    "disabled": "it declares disable_restatement, or its kind does",
    "not_redoable": "evaluating it twice doubles rows: it is left for a person",
}
_PRECEDENCES = {
    "reads_new_model": "{child} of {then} reads {parent}, which {first} adds",
    "reads_removed_model": "{child} of {first} still reads {parent}, which {then} removes",
    "reads_new_column": "{child} of {then} reads {columns} of {parent}, which {first} adds",
    "reads_removed_column": "{child} of {first} still reads {columns} of {parent}, which {then} removes",
}
_EFFECTS = {
    "rebuilt": "is rebuilt",
    "stale": "is computed again by its own runs",
    "left": "stays as it is, though what it reads changes",
    "broken": "cannot be evaluated any more",
    "new": "reads it from now on",
    "gone": "reads it no more",
    "none": "stays as it is",
}


def several(names: Sequence[str], limit: int = 4) -> str:
    """Names as a list, as far as a reader takes them in."""
    shown = list(names[:limit])
    if len(names) > limit:
        shown.append(f"{len(names) - limit} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "nothing"


def models(names: Iterable[str]) -> str:
    """Models as a list."""
    return several([model_name(name) for name in names])


def difference(found: Difference) -> str:
    """One thing that differs between two versions of a model."""
    if found.is_column:
        return f"column {found.name} {_column(found)}"
    if found.what in _DIFFERENCES:
        return _DIFFERENCES[found.what]
    return f"{found.what} {found.before or 'none'} → {found.after or 'none'}"


def _column(found: Difference) -> str:
    if found.what == "column_retyped":
        return f"changes type from {found.before} to {found.after}"
    if found.what == "column_redefined":
        short = found.after is not None and len(found.after) <= _LONGEST
        return f"is made differently: {found.after}" if short else "is made differently"
    return {"column_added": "is new", "column_removed": "is removed"}[found.what]


def reason(found: Reason) -> str:
    """Through which columns or rows of a parent a change reaches its reader."""
    parent = model_name(found.parent)
    told = [d for d in found.columns if d.what != "column_added" or not found.star]
    if told:
        verb = "may read" if found.star else "reads"
        return "; ".join(f"{verb} {parent}.{d.name}, which {_column(d)}" for d in told[:3]) + (
            f"; and {len(told) - 3} more columns" if len(told) > 3 else ""
        )
    if found.rows:
        return f"reads {parent}, whose rows may be others"
    return (
        f"reads {parent}, perhaps all columns of it"
        if found.star
        else f"reads {parent}, but no column that changes there"
    )


def change(found: Change) -> str:
    """What happens to a model: a few words."""
    words = [_HOW[found.how]]
    if found.category and found.how != "added":
        words.append(found.category.replace("_", " "))
    if found.forward_only:
        words.append("forward-only")
    return ", ".join(words)


def why(found: Change) -> list[str]:
    """What is different about a model, or through what the change reaches it."""
    said = [difference(d) for d in found.differences]
    if found.how == "indirect":
        said += [reason(r) for r in found.reasons]
        above = [name for name in found.because if name not in {r.parent for r in found.reasons}]
        if above and not found.reasons:
            said.append(f"because of {models(above)}")
    return said


def work(found: Work, now: datetime | None = None) -> str:
    """What is evaluated of a model, by whom, and how long that takes."""
    doer = f"deploy of {found.doer}" if found.by == "deploy" else f"runs of {found.doer}"
    about = f", about {length(found.expected)}" if found.expected is not None else ""
    rows = f", {counted(found.rows, 'row')}" if found.rows is not None else ""
    verb = {"rebuilt": "rebuilt", "extended": "evaluated too", "stale": "computed again"}[found.why]
    once_more = ", on what is computed again by then" if found.again else ""
    return f"{verb} {time_of(found.range, now)} by the {doer}{about}{rows}{once_more}"


def when(found: Work, now: datetime) -> str:
    """When that can be done."""
    if found.first_at is None:
        return "not before somebody does something"
    first = (
        "at once"
        if found.by == "deploy" and found.first_at <= now
        else f"from {instant(found.first_at, now)}"
    )
    if found.complete_at is None:
        return f"{first}; some of it not before somebody does something"
    if found.complete_at == found.first_at:
        return first
    return f"{first}, all of it at {instant(found.complete_at, now)}"


def hindrance(found: Hindrance, now: datetime) -> str:
    """What keeps some of it."""
    state = {
        "late": "which is not evaluated yet",
        "missing": "which was never evaluated",
        "not_due": "which is not due yet",
        "failed": "whose evaluation failed",
        "held": "which is held",
        "begun": "which a run is evaluating",
    }.get(found.reason, "which is to be computed again")
    until = f"not before {instant(found.until, now)}" if found.until else "until somebody releases it"
    return f"{time_of(found.range, now)} waits for {model_name(found.parent)} {time_of(found.span, now)} of {found.parent_project}, {state}: {until}"


def left(found: Left) -> str:
    """Why nobody computes it again."""
    parents = models(found.because) or "what it reads"
    said = _LEFT.get(found.reason, found.reason).format(parents=parents)
    return f"{said}; its kind, or disable_restatement, lets nobody compute it again" if found.final else said


def ask(found: Left) -> str | None:
    """The command that asks for it."""
    hull = found.range.hull
    if hull is None or not found.can_be_asked:
        return None
    start, end = (f"{i:%Y-%m-%dT%H:%M}" for i in (hull.start, hull.end))
    rebuild = " --rebuild" if found.reason == "reported" else ""
    return f"meshgate restate {model_name(found.model)} --from {start} --to {end}{rebuild} --apply"


def boundary(found: Boundary) -> str:
    """What becomes of the reader of another project's model."""
    owner = f" ({found.owner})" if found.owner else ""
    return f"{model_name(found.child)} of {found.child_project}{owner} {_EFFECTS[found.effect]}: {reason(found.reason)}"


def collision(found: Collision, now: datetime) -> str:
    """What is in flight there."""
    model = model_name(found.model) if found.model else ""
    if found.what == "request":
        return f"{model} {time_of(found.range, now)} is asked for already: request {found.number}"
    run = f"run {found.number} of {found.project}"
    until = f"its lease until {instant(found.until, now)}"
    if found.state == "deploying":
        return f"{run} is a deploy that works now ({until}): deploys wait for each other"
    does = {"begun": "is evaluating", "open": "has reserved"}.get(found.state, "may still write to")
    return f"{run} {does} {model} {time_of(found.range, now)} ({until})"


def precedence(found: Precedence) -> str:
    """Why one project has to be deployed before another."""
    facts = {
        "first": found.first,
        "then": found.then,
        "parent": model_name(found.parent),
        "child": model_name(found.child),
        "columns": several(list(found.columns)),
    }
    return f"{found.first} before {found.then}: {_PRECEDENCES[found.why].format(**facts)}"


def order(found: Analysis) -> str:
    """In which order to merge and deploy, in one sentence."""
    if not found.projects:
        return "nothing to deploy"
    listed = ", then ".join(found.order.projects)
    if len(found.projects) == 1:
        return f"deploy {listed}"
    return {
        "any": f"any order is right; parents first: {listed}",
        "required": f"{listed}",
        "none": "no order is right: between two deploys something would read what is not there. "
        "Add what is new first, let the readers follow, then remove what is old: three steps",
    }[found.order.state]


def summary(found: Analysis) -> list[str]:
    """The whole in a few facts, most important first."""
    by_how = {how: [c for c in found.changes if c.how == how and not c.keeps_data] for how in _HOW}
    changed = [c for how in ("direct", "metadata") for c in by_how[how]]
    facts = [
        f"{counted(len(found_here), 'model')} {word}"
        for found_here, word in (
            (changed, "changed"),
            (by_how["added"], "new"),
            (by_how["removed"], "removed"),
            (by_how["indirect"], "follow" if len(by_how["indirect"]) != 1 else "follows"),
        )
        if found_here
    ]
    if not facts:
        return ["nothing changes"]
    facts.append(f"{counted(len(found.affected), 'project')}: {', '.join(found.affected)}")
    evaluated = len(found.work)
    facts.append(f"{counted(evaluated, 'model')} evaluated" if evaluated else "nothing is evaluated")
    if found.expected is not None:
        facts.append(f"about {length(found.expected)}")
    return facts
