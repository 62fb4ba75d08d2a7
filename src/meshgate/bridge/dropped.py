"""What a plan takes away of projects whose files it was not made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlmesh.core.plan import Plan
    from sqlmesh.core.snapshot import Snapshot


@attrs.frozen
class Dropped:
    """Something of a project whose files are not there, that the plan would take away.

    Attributes:
        what: `model`, `statements` or `requirement`; `changes` of models, as they were deployed to the environment.
        name: Of the model, or the requirement; else empty.
        project: Whose; empty where nobody can tell.
    """

    what: str
    name: str
    project: str


def dropped(
    plan: Plan, ours: Collection[str], old: Iterable[Snapshot], others: Collection[str], *, exists: bool
) -> tuple[Dropped, ...]:
    """What a plan takes away of others.

    Args:
        plan: SQLMesh's plan.
        ours: The projects whose files it was made of.
        old: What the environment promotes so far; at least what the plan removes of it.
        others: All other projects that have models there.
        exists: Whether there is such an environment: a new one takes nothing away but models.
    """
    diff = plan.context_diff
    promoted = {s.name: s.node.project or "" for s in old}
    found = [
        Dropped("model", s_id.name, promoted[s_id.name])
        for s_id in sorted(diff.removed_snapshots)
        if s_id.name in promoted and promoted[s_id.name] not in ours
    ]
    if not exists:
        return tuple(found)
    kept = {s.project for s in diff.environment_statements}
    found += [
        Dropped("statements", "", str(s.project))
        for s in diff.previous_environment_statements
        if (s.before_all or s.after_all) and s.project and s.project not in {*ours, *kept}
    ]
    if others:
        # A lock file is its project's, but the environment remembers one list: nobody can tell whose entry it was.
        found += [
            Dropped("requirement", name, "")
            for name in sorted(set(diff.previous_requirements) - set(diff.requirements))
        ]
    return tuple(found)
