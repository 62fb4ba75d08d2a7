"""Who reaches whom in an analysis, projects as boxes: Mermaid, which GitHub draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.report.wording import counted, model_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshgate.analysis import Analysis

_DRAWN = 40


def diagram(found: Analysis) -> list[str]:
    """A block of Mermaid in lines; nothing where there is nothing to draw."""
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
