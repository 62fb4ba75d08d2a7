"""Whether the world is still the one that an analysis looked at, or the one that its own deploys make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from meshgate.analysis.document import Definition


@frozen
class Moved:
    """One model that is neither what it was when the analysis was made, nor what the analysed deploys make of it.

    Attributes:
        model: The model.
        project: Whose.
        how: `changed`, `added`, `removed`; `half`: it is as it was, although its project's deploy has changed others.
    """

    model: str
    project: str
    how: Literal["changed", "added", "removed", "half"]


@frozen
class Movement:
    """Where the world stands between the one that was analysed and the one that was proposed.

    Attributes:
        there: Projects whose files are promoted as they were analysed.
        moved: What is something else.
    """

    there: frozenset[str]
    moved: tuple[Moved, ...]


def movement(
    definitions: Iterable[Definition], found: Mapping[str, tuple[str, str]], analysed: Collection[str]
) -> Movement:
    """Compare what is promoted now with what an analysis has seen.

    A deploy replaces all of its project's models at once. So a project is as it was, or as it was analysed, and nothing between.

    Args:
        definitions: Of one SQLMesh state.
        found: Project and definition of all that is promoted there now.
        analysed: The projects whose files were looked at; all others must be as they were.
    """
    told: dict[str, list[Definition]] = {}
    for one in definitions:
        told.setdefault(one.project, []).append(one)
    known = {one.model for ones in told.values() for one in ones}
    moved = [Moved(n, project, "added") for n, (project, _) in found.items() if n not in known]
    there: set[str] = set()
    for project, ones in told.items():
        now = {one.model: found[one.model][1] if one.model in found else None for one in ones}
        if project in analysed and all(now[one.model] == one.after for one in ones):
            there.add(project)
        elif any(now[one.model] != one.before for one in ones):
            strange = [one for one in ones if now[one.model] not in (one.before, one.after)]
            moved += [Moved(one.model, project, _how(one, now[one.model])) for one in strange]
            if not strange and project in analysed:
                late = [one for one in ones if now[one.model] != one.after]
                moved += [Moved(one.model, project, "half") for one in late]
    return Movement(frozenset(there), tuple(sorted(moved, key=lambda one: (one.project, one.model))))


def _how(told: Definition, now: str | None) -> Literal["changed", "added", "removed"]:
    if now is None:
        return "removed"
    return "added" if told.before is None and told.after is None else "changed"
