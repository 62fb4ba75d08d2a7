"""What speaks against a change: what it meets, what must not be deployed, and what looks like a mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.analysis import ALL_COLUMNS, Collision, Refusal
from meshgate.coordinator.world import taken_back
from meshgate.graph import name_parts
from meshgate.interval import IntervalSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshgate.analysis import Work
    from meshgate.bridge.dropped import Dropped
    from meshgate.bridge.proposal import Proposal
    from meshgate.coordinator.proposed import Scene
    from meshgate.coordinator.run import Workbench


def spoken(name: str) -> str:
    """A model's name for people."""
    return ".".join(name_parts(name)[-2:])


def collisions(bench: Workbench, scene: Scene, work: Sequence[Work]) -> tuple[Collision, ...]:
    """What is in flight, or asked for, where something is replaced or computed."""
    if scene.manifest is None:
        return ()
    times: dict[str, IntervalSet] = {}
    for one in work:
        times[one.model] = times.get(one.model, IntervalSet()) | one.range
    found: list[Collision] = [
        Collision("run", run.run_id, run.project, None, "deploying", IntervalSet(), run.expires_at)
        for run in bench.ledger.live_runs()
        if run.environment == scene.environment and run.purpose == "deploy"
    ]
    for name, state in sorted(scene.states.items()):
        replaced = scene.before.version(name) is not None and scene.replaced(name)
        for claim in state.claims:
            # Who writes to the table that is replaced is waited for, whatever the time.
            met = IntervalSet([claim.interval]) & (
                IntervalSet.everything() if replaced else times.get(name, IntervalSet())
            )
            if met:
                found.append(
                    Collision("run", claim.run_id, claim.project, name, claim.state, met, claim.until)
                )
    found += [
        Collision("request", asked.request_id, asked.project, asked.model, "open", met)
        for asked in bench.ledger.requests(scene.environment)
        if asked.state == "open" and (met := asked.open & times.get(asked.model, IntervalSet()))
    ]
    return tuple(found)


def refusals(scene: Scene, proposals: Iterable[Proposal]) -> tuple[Refusal, ...]:
    """Why the change must not be deployed as it is."""
    found = [*scene.refusals, *_owned_twice(scene), *_removed(scene), *_missing(scene)]
    for proposal in proposals:
        back = taken_back(proposal.projects, scene.environment, *proposal.definitions, scene.manifests)
        found += takings(proposal.projects, (*proposal.dropped, *back))
        found += [
            Refusal(
                "forward_only", name, scene.after.owner(name) or "", f"SQLMesh refuses to plan {spoken(name)}: {said}",
                "declare on_destructive_change or on_additive_change in it, or do without forward_only",
            )
            for name, said in sorted(proposal.refused.items())
        ]  # fmt: skip
    return tuple(found)


def takings(ours: Iterable[str], dropped: Iterable[Dropped]) -> tuple[Refusal, ...]:
    """What a plan of some projects' files takes away of others, each as what speaks against it."""
    found: list[Refusal] = []
    for one in dropped:
        whose = f" of project {one.project}" if one.project else ""
        what = {
            "model": f"model {spoken(one.name)}{whose}",
            "statements": f"the statements before and after runs{whose}",
            "requirement": f"the requirement {one.name}, and other projects' models may need it",
            "changes": f"the changes{whose} that were deployed to this environment: SQLMesh takes other projects' models from prod",
        }[one.what]
        how = "give the checkouts of all projects of this state to one plan"
        if one.what == "changes":
            how = f"deploy {one.project} to prod first, or this to another environment: `--environment NAME`"
        found.append(
            Refusal(
                f"foreign_{one.what}", one.name if one.what == "model" else None, one.project,
                f"the plan of {', '.join(ours)} drops {what}", how,
            )
        )  # fmt: skip
    return tuple(found)


def _owned_twice(scene: Scene) -> Iterable[Refusal]:
    for name in scene.after.graph.order():
        was, now = scene.before.owner(name), scene.after.owner(name)
        if was and now and was != now:
            yield Refusal(
                "owned_twice", name, now,
                f"{spoken(name)} is owned twice: by {was!r} in environment {scene.environment!r} and by the files of {now!r}",
                f"rename it in one of the two, or remove it from {was!r} and deploy that first",
            )  # fmt: skip


def _removed(scene: Scene) -> Iterable[Refusal]:
    """Models and columns that are gone and still read."""
    before, after = scene.begun, scene.after
    for child in after.graph.order():
        own = after.owner(child)
        for edge in after.graph.parents(child) if own else ():
            parent, was = edge.parent, before.owner(edge.parent)
            if not was or own is None:
                continue
            first = f"change {spoken(child)} and deploy {own} first"
            if after.owner(parent) is None:
                said = f"{spoken(parent)} of {was} is removed, and {spoken(child)} of {own} reads it"
                yield Refusal("removed_model", parent, was, said, first)
                continue
            for column in sorted(_gone(scene, parent) & after.read_of(child, parent)):
                said = (
                    f"column {column} of {spoken(parent)} is removed, and {spoken(child)} of {own} reads it"
                )
                yield Refusal("removed_column", parent, was, said, first)


def _missing(scene: Scene) -> Iterable[Refusal]:
    """Columns that are newly read, and that what is read does not have."""
    after = scene.after
    for name in sorted(a.model for a in scene.altered if a.how in ("added", "direct")):
        for parent, read in sorted(after.reads.get(name, {}).items()):
            whose, has = after.owner(parent), set(after.columns.get(parent, ()))
            if not whose or not has or parent == name:
                continue
            known = set(scene.begun.read_of(name, parent)) | has | {"*"}
            for column in sorted(set(read) - known):
                yield Refusal(
                    "missing_column", parent, whose,
                    f"{spoken(name)} of {after.owner(name)} reads column {column} of {spoken(parent)}, which has none of that name",
                    f"add it to {spoken(parent)}, or give the checkout of {whose} that does",
                )  # fmt: skip


def strangers(scene: Scene) -> tuple[str, ...]:
    """Tables that are newly read and that nobody makes: sources, or models of a checkout that is missing."""
    found: dict[str, str] = {}
    for name in scene.after.graph.order():
        own = scene.after.owner(name)
        for edge in scene.after.graph.parents(name) if own else ():
            parent = edge.parent
            if scene.after.owner(parent) is None and parent not in scene.begun.graph:
                found[parent] = (
                    f"{spoken(name)} of {own} reads {spoken(parent)}, which no model of the mesh makes"
                )
    return tuple(f"{said}: is it a source, or is a checkout missing?" for _, said in sorted(found.items()))


def blanks(scene: Scene) -> tuple[str, ...]:
    """Columns that are removed, where nobody can tell whether they are still read."""
    found: list[str] = []
    for child in scene.after.graph.order():
        own = scene.after.owner(child)
        for edge in scene.after.graph.parents(child) if own else ():
            gone = sorted(_gone(scene, edge.parent))
            if gone and edge.parent != child and ALL_COLUMNS in scene.after.read_of(child, edge.parent):
                which = "column" if len(gone) == 1 else "columns"
                help_ = (
                    "look there" if own in scene.projects else f"look there, or give the checkout of {own}"
                )
                found.append(
                    f"{which} {', '.join(gone)} of {spoken(edge.parent)} {'is' if len(gone) == 1 else 'are'} removed, and which columns "
                    f"{spoken(child)} of {own} reads is not known: {help_}"
                )
    return tuple(found)


def _gone(scene: Scene, name: str) -> frozenset[str]:
    was, now = (set(side.columns.get(name, ())) for side in (scene.begun, scene.after))
    return frozenset(was - now) if now else frozenset()
