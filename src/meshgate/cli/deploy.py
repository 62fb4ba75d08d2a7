"""`meshgate deploy`: one project's plan, or those that an analysis is about, in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from meshgate.cli.call import (
    SIGNALLED,
    Call,
    analysis_option,
    checkouts_of,
    environment_option,
    json_option,
    now_option,
    pass_call,
    same_environment,
    waits_of,
)
from meshgate.errors import ConfigError

if TYPE_CHECKING:
    from datetime import datetime

    from meshgate.analysis import Analysis


@click.command()
@click.argument("projects", nargs=-1, metavar="PROJECT | [PROJECT[=PATH]]... --from-analysis FILE")
@analysis_option
@click.option(
    "--allow-dropping",
    is_flag=True,
    help="Apply a plan that takes away models, statements or requirements of projects whose files are not there.",
)
@environment_option
@now_option
@json_option
@pass_call
def deploy(
    call: Call,
    projects: tuple[str, ...],
    analysis: Analysis | None,
    environment: str | None,
    now: datetime | None,
    *,
    allow_dropping: bool,
) -> int:
    """Apply SQLMesh's plan of PROJECT under lease, gate and ledger.

    With --from-analysis: the plans of all projects that `meshgate analyze --json` has looked at, in its order, or of those
    that are named, from the folders that meshgate.yaml has, or PATH. Nothing is deployed where the mesh or the files are
    other ones by now. Killed or failed, the same call goes on where it was.
    """
    if analysis is not None:
        return _analysed(call, analysis, projects, environment, now, dropping=allow_dropping)
    if not projects:
        raise click.UsageError("Missing argument 'PROJECT'.")
    if len(projects) > 1:
        raise ConfigError(
            f"{', '.join(projects)} cannot be deployed in one call",
            hint="deploy one after the other, or in the order of an analysis: `meshgate deploy --from-analysis FILE`",
        )
    (project,) = projects
    with call.working(project) as mesh:
        report = mesh.deploy(project, environment=environment, now=now, dropping=allow_dropping)
        return call.report_run(mesh, report, "deploy", report.exit_code)


def _analysed(
    call: Call,
    analysis: Analysis,
    projects: tuple[str, ...],
    environment: str | None,
    now: datetime | None,
    *,
    dropping: bool,
) -> int:
    checkouts = checkouts_of(projects)
    same_environment(analysis, environment)
    with call.working(*analysis.order.projects) as mesh:
        found = mesh.deploy_analysed(analysis, checkouts, now=now, dropping=dropping)
        waits = {one.project: waits_of(mesh, one.report) for one in found.projects if one.report is not None}
        call.failure = next(
            (
                f"deploy of {one.project!r} ended as {one.report.state}: {one.report.error}"
                for one in found.projects
                if one.what == "failed" and one.report is not None
            ),
            call.failure,
        )
        exit_code = SIGNALLED + mesh.stop.signum if found.exit_code and mesh.stop.signum else found.exit_code
        call.show("deploys", found, waits, page="deploys", exit_code=exit_code)
        return exit_code
