"""An analysis as Markdown for a comment on a pull request: five answers first, everything else folded.

The same analysis gives the same bytes. The first line is a marker that nobody sees, by which a later analysis finds the
comment that it replaces.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from meshgate.report import change as say
from meshgate.report.wording import counted, instant, length, model_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from meshgate.analysis import Analysis, Change

MARKER = "<!-- meshgate analyze {environment} -->"
_SHOWN = 8
_DRAWN = 40
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")
_CODE = re.compile(r"(`[^`]*`)")


def marker(environment: str) -> str:
    """What a comment about an environment begins with."""
    return MARKER.format(environment=environment)


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is, but for what stands between backticks."""
    parts = _CODE.split(text.replace("\n", " "))
    spans = (_code(p) if p.startswith("`") and len(p) > 1 else _SPECIAL.sub(r"\\\1", p) for p in parts)
    return "".join(spans)


def _code(text: str) -> str:
    # A cell of a table ends at a bar, also inside a span of code.
    return f"`{text.replace('`', '').replace('|', chr(92) + '|')}`"


def _row(*cells: str) -> str:
    return f"| {' | '.join(c.replace(chr(10), ' ') for c in cells)} |"


def markdown(found: Analysis) -> str:
    """The comment."""
    lines = [marker(found.environment), f"<!-- plan {found.base.proposed} on {found.base.promoted} -->"]
    lines += ["", f"### {_title(found)}", ""]
    lines += _refusals(found)
    lines += _answers(found)
    for title, part in (
        (f"{counted(len(found.changes), 'model')} in detail", _models(found)),
        (f"{counted(len(found.boundaries), 'boundary', 'boundaries')} between projects", _boundaries(found)),
        ("What nobody computes again by itself", _left(found)),
        ("What it meets", _bullets(say.collision(c, found.now) for c in found.collisions)),
        ("Diagram", _diagram(found)),
        ("Warnings", _bullets(found.warnings)),
    ):
        if part:
            lines += ["<details>", f"<summary>{title}</summary>", "", *part, "", "</details>", ""]
    said = (
        f"environment {found.environment}, as of {instant(found.now)}, ledger revision {found.base.revision}"
    )
    lines.append(f"<sub>meshgate analyze: {_plain(said)}. Nothing was written.</sub>")
    return "\n".join(lines) + "\n"


def _title(found: Analysis) -> str:
    if found.refusals:
        return "⛔ This must not be deployed as it is"
    if not found.changes:
        return "✅ Nothing changes"
    if found.order.state == "none":
        return "⛔ No order of deploys is right"
    if "cross-project" in found.flags:
        others = [p for p in found.affected if p not in found.projects]
        return f"⚠️ This reaches {_plain(say.several(others))}" if others else "⚠️ This crosses projects"
    return "✅ This stays within its project"


def _refusals(found: Analysis) -> list[str]:
    said = [f"- **{_plain(r.message)}**<br>→ {_plain(r.hint)}" for r in found.refusals]
    return [*said, ""] if said else []


def _answers(found: Analysis) -> list[str]:
    """What changed, who is affected, what is recomputed, when, in which order: a row each."""
    if not found.changes:
        return []
    rows = [
        ("What changes", _what(found)),
        ("Who is affected", _who(found)),
        ("What is computed", _computed(found)),
        ("When", _when(found)),
        ("Merge and deploy", _order(found)),
    ]
    return ["| | |", "|---|---|", *(_row(f"**{name}**", said) for name, said in rows), ""]


def _what(found: Analysis) -> str:
    own = [c for c in found.changes if c.how != "indirect"]
    said = [f"{_code(model_name(c.model))} ({_plain(_short(c))})" for c in own[:_SHOWN]]
    more = [f"and {len(own) - _SHOWN} more"] if len(own) > _SHOWN else []
    return "<br>".join([*said, *more]) or "nothing of its own"


def _short(change: Change) -> str:
    words = say.change(change)
    differences = [say.difference(d) for d in change.differences[:2]]
    if len(change.differences) > len(differences):
        differences.append(f"{len(change.differences) - 2} more")
    return f"{words}: {'; '.join(differences)}" if differences else words


def _who(found: Analysis) -> str:
    lines: list[str] = []
    left = {one.model for one in found.left}
    for project in found.affected:
        names = [w.model for w in found.work if w.project == project and w.model not in left]
        owners = sorted({c.owner for c in found.changes if c.project == project and c.owner})
        by = f" ({_plain(', '.join(owners))})" if owners else ""
        said = _plain(say.models(names)) if names else "no data"
        lines.append(f"**{_plain(project)}**{by}: {said}")
    return "<br>".join(lines) or "nobody"


def _computed(found: Analysis) -> str:
    if not found.work:
        return "nothing"
    hulls = [w.range.hull for w in found.work]
    known = [h for h in hulls if h is not None]
    span = (
        f"from {instant(min(h.start for h in known))} to {instant(max(h.end for h in known))}"
        if known
        else ""
    )
    about = f", about {length(found.expected)} of evaluation" if found.expected is not None else ""
    left = f"<br>⚠️ {counted(len(found.left), 'model')} stay as they were made" if found.left else ""
    return f"{counted(len(found.work), 'model')}, {span}{about}{left}"


def _when(found: Analysis) -> str:
    if not found.work:
        return "at once"
    lines: list[str] = []
    for project in found.affected:
        works = [w for w in found.work if w.project == project]
        if not works:
            continue
        firsts = [w.first_at for w in works if w.first_at is not None]
        begin = f"from {instant(min(firsts))}" if firsts else "not before somebody does something"
        if firsts and min(firsts) <= found.now:
            begin = "with the deploy"
        ends = [w.complete_at for w in works]
        whole = [e for e in ends if e is not None]
        if len(whole) < len(ends):
            rest = ", some of it not before somebody does something" if firsts else ""
        else:
            rest = f", complete at {instant(max(whole))} at the earliest" if max(whole) > found.now else ""
        lines.append(f"**{_plain(project)}**: {begin}{rest}")
    return "<br>".join(lines)


def _order(found: Analysis) -> str:
    said = [_plain(say.order(found))]
    said += [_plain(say.precedence(p)) for p in found.order.precedences[:_SHOWN]]
    return "<br>".join(said)


def _models(found: Analysis) -> list[str]:
    if not found.changes and not found.work:
        return []
    changes = {c.model: c for c in found.changes}
    names = dict.fromkeys([*changes, *(w.model for w in found.work)])
    head = [_row("model", "project", "change", "why", "computed", "when"), "|---|---|---|---|---|---|"]
    return [*head, *(_model(name, changes.get(name), found) for name in names)]


def _model(name: str, change: Change | None, found: Analysis) -> str:
    works = [w for w in found.work if w.model == name]
    if change is not None:
        project, how, why = change.project, say.change(change), "; ".join(say.why(change))
    else:
        project, how = works[0].project, "stale"
        why = f"reads {say.models(dict.fromkeys(p for w in works for p in w.because))}"
    when = [
        said
        for w in works
        for said in (say.when(w, found.now), *(say.hindrance(h, found.now) for h in w.hindrances))
    ]
    return _row(
        _code(model_name(name)), _plain(project), _plain(how), _plain(why),
        "<br>".join(_plain(say.work(w)) for w in works), "<br>".join(map(_plain, when)),
    )  # fmt: skip


def _boundaries(found: Analysis) -> list[str]:
    if not found.boundaries:
        return []
    rows = [
        _row(f"{_code(model_name(b.parent))} of {_plain(b.parent_project)}", _plain(say.boundary(b)))
        for b in found.boundaries
    ]
    return [_row("read", "by"), "|---|---|", *rows]


def _left(found: Analysis) -> list[str]:
    lines: list[str] = []
    for one in found.left:
        lines.append(f"- {_code(model_name(one.model))} of {_plain(one.project)}: {_plain(say.left(one))}")
        if command := say.ask(one):
            lines.append(f"  → {_code(command)}")
    return lines


def _bullets(said: Iterable[str]) -> list[str]:
    return [f"- {_plain(one)}" for one in said]


# The diagram


def _diagram(found: Analysis) -> list[str]:
    """Who reaches whom, projects as boxes; Mermaid, which GitHub draws."""
    edges = sorted({(r.parent, c.model) for c in found.changes for r in c.reasons})
    edges += [(b.parent, b.child) for b in found.boundaries if (b.parent, b.child) not in set(edges)]
    edges += [
        (p, w.model)
        for w in found.work
        for p in w.because
        if w.why == "stale" and (p, w.model) not in set(edges)
    ]
    names = dict.fromkeys([*(c.model for c in found.changes), *(n for edge in edges for n in edge)])
    if len(names) < 2:
        return []
    if len(names) > _DRAWN:
        return [f"{counted(len(names), 'model')}: too many to draw."]
    owners = {c.model: c.project for c in found.changes} | {w.model: w.project for w in found.work}
    for b in found.boundaries:
        owners |= {b.parent: b.parent_project, b.child: b.child_project}
    keys = {name: f"m{place}" for place, name in enumerate(sorted(names))}
    lines = ["```mermaid", "flowchart LR"]
    for place, project in enumerate(sorted(set(owners.values()))):
        lines.append(f'  subgraph p{place}["{_label(project)}"]')
        lines += [
            f'    {keys[name]}["{_label(model_name(name))}"]'
            for name in sorted(keys)
            if owners.get(name) == project
        ]
        lines.append("  end")
    lines += [f"  {keys[a]} --> {keys[b]}" for a, b in sorted(set(edges)) if a in keys and b in keys]
    return [*lines, *_styles(found, keys), "```"]


def _styles(found: Analysis, keys: dict[str, str]) -> Iterator[str]:
    own = [keys[c.model] for c in found.changes if c.how != "indirect" and c.model in keys]
    reached = [keys[w.model] for w in found.work if w.model in keys and keys[w.model] not in own]
    left = [keys[one.model] for one in found.left if one.model in keys and keys[one.model] not in own]
    for name, style, members in (
        ("changed", "fill:#ffe3b3,stroke:#b36b00,color:#000", own),
        ("reached", "fill:#dbeafe,stroke:#1d4ed8,color:#000", reached),
        ("left", "fill:#f3f4f6,stroke:#6b7280,stroke-dasharray:4,color:#000", left),
    ):
        if members:
            yield f"  classDef {name} {style}"
            yield f"  class {_joined(members)} {name}"


def _joined(members: Sequence[str]) -> str:
    return ",".join(sorted(set(members), key=lambda key: int(key[1:])))


def _label(text: str) -> str:
    return text.replace('"', "'").replace("[", "(").replace("]", ")")
