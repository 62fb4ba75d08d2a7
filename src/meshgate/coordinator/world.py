"""The world that an analysis looked at, and whether what is there now is still it, but for what its own deploys have done."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from meshgate.analysis import Base, Definition, movement
from meshgate.errors import ConfigError, NotDeployedError, OutdatedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meshgate.analysis import Analysis, Moved, Movement
    from meshgate.bridge.project import SqlmeshProject
    from meshgate.bridge.proposal import Proposal
    from meshgate.ledger import Ledger, Manifest

DEFINITION = "definition"
"""The key of a project's manifest in the ledger under which its last deploy left a digest of its files' models."""
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


def check_state(found: Analysis, project: str, opened: SqlmeshProject, environment: str) -> tuple[bool, bool]:
    """Whether a project's files are promoted as they were analysed, and whether its environment is whole.

    Args:
        found: The analysis.
        project: One of its projects.
        opened: Its SQLMesh side.
        environment: SQLMesh's environment.

    Raises:
        OutdatedError: Something in that state is neither as it was nor as the analysed deploys make it.
    """
    state = next(place for place, names in enumerate(found.base.states) if project in names)
    whole, promoted = opened.promoted_definitions(environment)
    stands = movement([d for d in found.base.definitions if d.state == state], promoted, found.projects)
    _refuse(stands)
    return project in stands.there or not _definitions(found, project), whole


def check_production(found: Analysis, project: str, opened: SqlmeshProject) -> None:
    """Compare production with what was analysed, for a deploy to another environment: SQLMesh takes the others' models from there.

    Raises:
        ConfigError: The deploy would take back what is analysed of another project.
    """
    if found.environment == _PRODUCTION:
        return
    names = next(names for names in found.base.states if project in names)
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


def check_ledger(found: Analysis, ledger: Ledger, manifest: Manifest | None) -> None:
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
    _refuse(movement(told, _elsewhere(manifest, held | set(found.projects)), ()))


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
    said = [_SAID[m.how].format(model=m.model.replace('"', ""), project=m.project) for m in moved[:_SHOWN]]
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
