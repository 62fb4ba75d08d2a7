"""The world that an analysis looked at, and whether what is there now is still it, but for what its own deploys have done."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from attrs import evolve

from meshgate.analysis import Base, Definition, movement
from meshgate.errors import ConfigError, NotDeployedError, OutdatedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from meshgate.analysis import Analysis, Moved, Movement
    from meshgate.bridge.dropped import Dropped
    from meshgate.bridge.project import SqlmeshProject
    from meshgate.bridge.proposal import Proposal
    from meshgate.ledger import Ledger, Manifest

DEFINITION = "definition"
"""The key of a project's manifest in the ledger under which its last deploy left a digest of its files' models."""
DEFINED_AT = "defined_at"
"""The same for the ledger's revision at that."""
APART = "apart"
"""The same for whether that differs from what production promotes of the project."""
_PRODUCTION = "prod"
_SHOWN = 3
_SAID = {
    "changed": "{model} of {project} is another one",
    "added": "{model} of {project} is new",
    "removed": "{model} of {project} is gone",
    "half": "{model} of {project} is as it was, and others of its project are not",
}


def base_of(proposals: Sequence[Proposal], manifest: Manifest | None, revision: int) -> Base:
    """What an analysis keeps of the world that it has looked at.

    Args:
        proposals: SQLMesh's plans, one for each state.
        manifest: What the ledger says is promoted; None where nothing was deployed.
        revision: The ledger's revision.
    """
    found: list[Definition] = []
    for state, proposal in enumerate(proposals):
        before, after = proposal.definitions
        for name in sorted({*before, *after}):
            project = (after.get(name) or before[name])[0]
            was, then = (side[name][1] if name in side else None for side in (before, after))
            found.append(Definition(name, project, state, was, then))
    held = {one.project for one in found}
    elsewhere = _elsewhere(manifest, held)
    found += [Definition(n, p, None, version, version) for n, (p, version) in sorted(elsewhere.items())]
    return Base(
        tuple(p.base for p in proposals),
        digest(line for p in proposals for line in p.identities[0]),
        revision,
        digest(line for p in proposals for line in p.identities[1]),
        tuple(p.projects for p in proposals),
        tuple(found),
    )


def _elsewhere(manifest: Manifest | None, held: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Project and version of what the ledger alone knows: models of projects whose state nobody looks at."""
    if manifest is None:
        return {}
    nodes = manifest.graph.nodes
    return {
        name: (node.project, node.version)
        for name, node in nodes.items()
        if node.version and node.project and node.project not in set(held)
    }


def digest(lines: Iterable[str]) -> str:
    """A short name for a set of lines: other lines, another name."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def project_digest(definitions: Mapping[str, str | None]) -> str:
    """A short name for what a project's files say of all of its models."""
    return digest(f"{name} {said}" for name, said in definitions.items() if said is not None)


def check_state(
    found: Analysis, project: str, opened: SqlmeshProject, environment: str
) -> tuple[frozenset[str], bool]:
    """Which projects of a state are promoted as they were analysed, and whether its environment is whole.

    Args:
        found: The analysis.
        project: One of its projects, whose state is meant.
        opened: Its SQLMesh side.
        environment: SQLMesh's environment.

    Raises:
        OutdatedError: Something in that state is neither as it was nor as the analysed deploys make it.
    """
    place, names = state_of(found, project)
    whole, promoted = opened.promoted_definitions(environment)
    stands = movement([d for d in found.base.definitions if d.state == place], promoted, found.projects)
    _refuse(stands)
    return stands.there | {name for name in names if not _definitions(found, name)}, whole


def check_production(found: Analysis, project: str, opened: SqlmeshProject) -> None:
    """Compare production with what was analysed, for a deploy to another environment: SQLMesh takes the others' models from there.

    Raises:
        ConfigError: The deploy would take back what is analysed of another project.
        OutdatedError: Production promotes something else of another project than it did.
    """
    if found.environment == _PRODUCTION:
        return
    place, names = state_of(found, project)
    _, production = opened.promoted_definitions(_PRODUCTION)
    for other in names:
        told = _definitions(found, other)
        if other != project and any(d.after != production.get(d.model, ("", None))[1] for d in told):
            raise ConfigError(
                f"in environment {found.environment!r} a deploy of {project} takes back what was analysed of {other}: SQLMesh "
                "takes the models of other projects from prod",
                hint=f"deploy what was analysed of {other} to prod first, or analyse and deploy {project} alone",
                project=project,
            )
    others = [d for d in found.base.definitions if d.state == place and d.project not in names]
    there = {name: said for name, said in production.items() if said[0] not in names}
    _refuse(movement([evolve(d, before=d.after) for d in others], there, ()))


def state_of(found: Analysis, project: str) -> tuple[int, tuple[str, ...]]:
    """Which state of an analysis is that of a project that was looked at: its place, and all whose it is."""
    return next((place, names) for place, names in enumerate(found.base.states) if project in names)


def check_ledger(found: Analysis, ledger: Ledger) -> None:
    """Compare what only the ledger can tell.

    Raises:
        OutdatedError: It is another ledger, or a project whose state nobody looks at promotes something else.
    """
    revision = ledger.revision()
    if revision < found.base.revision:
        raise OutdatedError(
            f"the analysis knows revision {found.base.revision} of the ledger, which is at {revision}: it is another ledger, or "
            "an older copy of it",
            hint="analyse anew with this one",
        )
    held = {d.project for d in found.base.definitions if d.state is not None}
    told = [d for d in found.base.definitions if d.state is None]
    manifest = manifest_of(ledger, found.environment)
    _refuse(movement(told, _elsewhere(manifest, held | set(found.projects)), ()))


def noted(environment: str, project: str, kept: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What the last deploy of a project to an environment left in the ledger under `DEFINITION`; None: there was none.

    Args:
        environment: SQLMesh's environment.
        project: The project.
        kept: What the ledger keeps of each project in that environment.
    """
    told = kept.get(project, {})
    return told.get(DEFINITION) if told.get("environment") == environment else None


def check_noted(found: Analysis, project: str, kept: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a project was deployed as it was analysed, by the ledger alone: nobody has its files, or asks its state.

    Raises:
        OutdatedError: It was deployed since with files that are neither those from before nor those that were analysed.
    """
    said = noted(found.environment, project, kept)
    before, after = deployed_digests(found, project)
    # What was there before the analysis is no movement: plain SQLMesh has planned over it, and left nothing here.
    since = kept.get(project, {}).get(DEFINED_AT, found.base.revision) >= found.base.revision
    if said not in (None, before, after) and since:
        raise OutdatedError(
            f"the mesh has moved since the analysis: project {project} was deployed with other files",
            hint="analyse anew, and look at what is other now: `meshgate analyze --json`",
            project=project,
        )
    return said == after


def taken_back(
    ours: Collection[str],
    environment: str,
    before: Mapping[str, tuple[str, str]],
    after: Mapping[str, tuple[str, str]],
    kept: Mapping[str, Mapping[str, Any]],
) -> tuple[Dropped, ...]:
    """The projects whose changes were deployed to an environment, and that a plan of others' files takes back.

    A copy of production that is older than production is no change: it was never deployed there.

    Args:
        ours: The projects whose files the plan is made of.
        environment: SQLMesh's environment.
        before: Project and definition of what it promotes.
        after: The same of what it would; of other projects, what production promotes.
        kept: What the ledger keeps of each project in that environment.
    """
    from meshgate.bridge.dropped import Dropped

    found: list[Dropped] = []
    for project in sorted({owner for owner, _ in before.values()} - {*ours, ""}):
        was, then = (
            {n: said for n, (owner, said) in side.items() if owner == project} for side in (before, after)
        )
        lost = any(was.get(name) != said for name, said in then.items())
        still = noted(environment, project, kept) == project_digest(was)
        if lost and still and kept[project].get(APART):
            found.append(Dropped("changes", "", project))
    return tuple(found)


def check_files(found: Analysis, project: str, opened: SqlmeshProject) -> None:
    """Compare a checkout with the one that was analysed (opened with its files).

    Raises:
        OutdatedError: Its files are other ones.
    """
    told = _definitions(found, project)
    ours = {name: (project, said) for name, said in opened.definitions().items()}
    there = [Definition(d.model, project, 0, d.after, d.after) for d in told]
    if moved := movement(there, ours, ()).moved:
        raise OutdatedError(
            f"the files in {opened.path} are not those that were analysed: {spoken(moved)}",
            hint="check out what was analysed, or analyse what is there: `meshgate analyze --json`",
            moved=_facts(moved),
        )


def deployed_digests(found: Analysis, project: str) -> tuple[str, str]:
    """What the ledger holds of a project's files under `DEFINITION` where they are as they were, and as analysed."""
    told = _definitions(found, project)
    return (
        project_digest({d.model: d.before for d in told}),
        project_digest({d.model: d.after for d in told}),
    )


def manifest_of(ledger: Ledger, environment: str) -> Manifest | None:
    """What the environment promotes; None where nothing was deployed there."""
    try:
        return ledger.manifest(environment)
    except NotDeployedError:
        return None


def spoken(moved: Sequence[Moved]) -> str:
    """What has moved, in a sentence."""
    said = [
        _SAID[m.how].format(
            model=m.model.replace('"', "").removesuffix(f" of {m.project}"), project=m.project
        )
        for m in moved[:_SHOWN]
    ]
    more = [f"and {len(moved) - _SHOWN} more"] if len(moved) > _SHOWN else []
    return ", ".join([*said, *more])


def _definitions(found: Analysis, project: str) -> list[Definition]:
    return [d for d in found.base.definitions if d.project == project and d.state is not None]


def _refuse(stands: Movement) -> None:
    if stands.moved:
        raise OutdatedError(
            f"the mesh has moved since the analysis: {spoken(stands.moved)}",
            hint="analyse anew, and look at what is other now: `meshgate analyze --json`",
            moved=_facts(stands.moved),
        )


def _facts(moved: Sequence[Moved]) -> list[dict[str, str]]:
    return [{"model": m.model, "project": m.project, "how": m.how} for m in moved]
