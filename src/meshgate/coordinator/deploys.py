"""The deploys that an analysis is about: in its order, project by project, as long as the world is the one that it looked at.

Nothing is kept of how far it came. SQLMesh's state tells whose files are promoted, and what each deploy leaves in the
ledger at its end tells that it came to it: whoever starts again with the same analysis goes on behind what is done.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - attrs reads annotations
from functools import partial
from typing import TYPE_CHECKING, Literal

from attrs import evolve, frozen

from meshgate.coordinator.analyze import configured_as
from meshgate.coordinator.deploy import deploy
from meshgate.coordinator.doctor import manifest_differences
from meshgate.coordinator.progress import Deploying
from meshgate.coordinator.run import RunReport  # noqa: TC001 - attrs reads annotations
from meshgate.coordinator.world import (
    check_files,
    check_ledger,
    check_noted,
    check_production,
    check_state,
    deployed_digests,
    noted,
    state_of,
)
from meshgate.errors import ConfigError, MeshgateError, StoppedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from meshgate.analysis import Analysis, Precedence
    from meshgate.bridge.project import SqlmeshProject
    from meshgate.coordinator.run import Workbench


@frozen
class Deployed:
    """What became of one project.

    Attributes:
        project: The project.
        what: `deployed`; `there`: it was before, as analysed; `failed`: its deploy ended otherwise, and no later one was begun;
            `waiting`: none was begun.
        report: What the deploy did; None where there was none.
    """

    project: str
    what: Literal["deployed", "there", "failed", "waiting"]
    report: RunReport | None = None


@frozen
class Deploys:
    """What the deploys of an analysis did.

    Attributes:
        environment: SQLMesh's environment.
        proposed: Which analysis: its digest of what it proposes.
        projects: What became of each of its projects, in its order.
        left: How many models nobody computes again by itself, and could be asked for.
    """

    environment: str
    proposed: str
    projects: tuple[Deployed, ...]
    left: int

    @property
    def done(self) -> bool:
        """Whether all projects of the analysis are deployed as it says."""
        return all(one.what in ("deployed", "there") for one in self.projects)

    @property
    def exit_code(self) -> int:
        """0, or that of the deploy that ended otherwise."""
        return next((one.report.exit_code for one in self.projects if one.what == "failed" and one.report), 0)


def deploy_analysed(
    bench: Workbench,
    found: Analysis,
    checkouts: Mapping[str, Path | None] | None = None,
    *,
    now: datetime | None = None,
    dropping: bool = False,
) -> Deploys:
    """Deploy what was analysed, in its order.

    Before each deploy, and again under its lease, the world is compared with the analysis: what these deploys did themselves
    is no movement, nor is what runs evaluate. Before the first one, the files of all.

    Args:
        bench: Configuration, ledger, projects.
        found: The analysis.
        checkouts: Folders by project, as in `analyze`; only these are deployed now. Without any: all that were analysed.
        now: An instant in the past to stand for the present, UTC.
        dropping: As in `deploy`.

    Raises:
        OutdatedError: The mesh, or the files, are other ones than those that were analysed.
        ConfigError: It must not be deployed, or not yet.
        RunInProgressError: Another deploy lived for longer than the project's `overlap_limit`.
        EvaluationError: A plan failed. What was deployed before stays, and `fields["deployed"]` names it.
        MeshgateError: As in `deploy`.
    """
    _refuse(found)
    bench, names = _seen(bench, found, checkouts or {})
    steps = {name: Deployed(name, "waiting") for name in found.order.projects}
    _look_at_all(bench, found, names, steps)
    todo = [name for name in names if steps[name].what == "waiting"]
    _refuse_too_early(found, names, steps)
    for place, name in enumerate(todo, 1):
        if bench.stop.requested:
            raise StoppedError(
                f"stopped by {bench.stop.reason} before the deploy of {name!r}; {_so_far(steps)}"
            )
        bench.tell(Deploying(name, place, len(todo), "begun"))
        try:
            report = deploy(
                bench, name, environment=found.environment, now=now, dropping=dropping,
                expecting=partial(_look, bench, found, name),
            )  # fmt: skip
        except MeshgateError as error:
            bench.tell(Deploying(name, place, len(todo), "failed", error.message))
            error.fields.update(project=name, deployed=_deployed(steps))
            raise
        what: Literal["deployed", "failed"] = "failed" if report.exit_code else "deployed"
        steps[name] = Deployed(name, what, report)
        bench.tell(Deploying(name, place, len(todo), what, report.error or ""))
        if what == "failed":
            break
    left = sum(one.can_be_asked for one in found.left)
    return Deploys(found.environment, found.base.proposed, tuple(steps.values()), left)


def _refuse(found: Analysis) -> None:
    if found.refusals:
        raise ConfigError(
            f"the analysis says that this must not be deployed: {found.refusals[0].message}",
            hint=found.refusals[0].hint,
            refusals=[one.message for one in found.refusals],
        )
    if found.refused:
        raise ConfigError(
            "the analysis says that no order of these deploys is right: between two of them something is missing",
            hint="make three steps of it: add what is new, let the readers follow, remove what is old",
        )


def _seen(
    bench: Workbench, found: Analysis, checkouts: Mapping[str, Path | None]
) -> tuple[Workbench, list[str]]:
    """The configuration with the folders that are meant, and the projects to deploy, in the analysis' order."""
    for name in checkouts:
        if name not in found.projects:
            raise ConfigError(
                f"the analysis is not about project {name!r}",
                hint=f"it is about {', '.join(found.projects)}",
                project=name,
            )
    names = [name for name in found.order.projects if not checkouts or name in checkouts]
    configured = configured_as(bench, {name: checkouts.get(name) for name in names})
    others = [p for p in bench.config.projects if p.name not in configured]
    return evolve(bench, config=evolve(bench.config, projects=(*others, *configured.values()))), names


def _look_at_all(bench: Workbench, found: Analysis, names: Sequence[str], steps: dict[str, Deployed]) -> None:
    """What is done already; and whether the world, and all files, are those of the analysis."""
    check_ledger(found, bench.ledger)
    kept = bench.ledger.manifests(found.environment)
    for name in found.order.projects:
        if name not in names:
            steps[name] = Deployed(name, "there" if check_noted(found, name, kept) else "waiting")
            continue
        project = bench.project(name)
        opened = bench.open_project(project, load=False)
        there, whole = check_state(found, name, opened, found.environment)
        ended = noted(found.environment, name, kept) == deployed_digests(found, name)[1]
        if name in there and whole and ended and not manifest_differences(project, kept.get(name, {})):
            steps[name] = Deployed(name, "there")
            bench.tell(Deploying(name, 0, 0, "there"))
        else:
            check_production(found, name, opened)
            check_files(found, name, bench.open_project(project, load=True))


def _look(bench: Workbench, found: Analysis, name: str, opened: SqlmeshProject, target: str) -> None:
    """What a deploy expects, asked under its lease."""
    check_ledger(found, bench.ledger)
    there, _ = check_state(found, name, opened, target)
    check_production(found, name, opened)
    check_files(found, name, opened)
    _, together = state_of(found, name)
    kept = bench.ledger.manifests(target)
    for must in found.order.precedences:
        # Somebody may have taken it back since it was deployed.
        if must.then == name and not (
            check_noted(found, must.first, kept) and (must.first in there or must.first not in together)
        ):
            raise _too_early(must)


def _refuse_too_early(found: Analysis, names: Sequence[str], steps: Mapping[str, Deployed]) -> None:
    for must in found.order.precedences:
        if must.then in names and must.first not in names and steps[must.first].what == "waiting":
            raise _too_early(must)


def _too_early(must: Precedence) -> ConfigError:
    return ConfigError(
        f"{must.first} has to be deployed before {must.then}, and is not there as it was analysed",
        hint=f"deploy {must.first} first, or give its checkout too: {must.first}=PATH",
        project=must.then,
    )


def _deployed(steps: Mapping[str, Deployed]) -> list[str]:
    return [name for name, one in steps.items() if one.what in ("deployed", "there")]


def _so_far(steps: Mapping[str, Deployed]) -> str:
    return f"{', '.join(_deployed(steps)) or 'nothing'} is deployed; the same call goes on"
