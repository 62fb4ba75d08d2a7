"""`meshgate analyze`: what a change of some projects' files does to the whole mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from meshgate.cli.call import Call, checkouts_of, environment_option, json_option, now_option, pass_call
from meshgate.errors import ConfigError

if TYPE_CHECKING:
    from datetime import datetime

_FLAGS = ("breaking", "cross-project", "restatement", "collision")


@click.command()
@click.argument("checkouts", nargs=-1, metavar="[PROJECT[=PATH]]...")
@environment_option
@now_option
@json_option
@click.option("--markdown", is_flag=True, help="Print Markdown, for a comment on a pull request.")
@click.option(
    "--fail-on",
    type=click.Choice(_FLAGS),
    multiple=True,
    help="Exit with 1 if it is so; may be given several times.",
)
@pass_call
def analyze(
    call: Call,
    checkouts: tuple[str, ...],
    environment: str | None,
    now: datetime | None,
    *,
    markdown: bool,
    fail_on: tuple[str, ...],
) -> int:
    """Tell what deploying the files of some projects would do to the whole mesh.

    PROJECT=PATH is a checkout, PROJECT alone the folder that meshgate.yaml has; without any, all of its projects. The
    others come from state. Nothing is written. Exits with 2 if the change must not be deployed as it is.

    \b
    breaking       a model that is read changes so that it is computed anew, or is removed
    cross-project  a model of another project is concerned
    restatement    something stays as it was made, or is computed again although its version stays
    collision      a run or a request is about the same
    """  # noqa: D301 - click reads the \b
    if markdown and call.json:
        raise ConfigError("--json and --markdown are both given", hint="keep one of them")
    wanted = checkouts_of(checkouts)
    with call.open() as mesh:
        found = mesh.analyze(wanted, environment=environment, now=now)
    if markdown:
        from meshgate.report.pull_request import markdown as written

        click.echo(written(found), nl=False)
    else:
        call.show("analyze", found, page="analysis")
    if found.refused:
        call.failure = found.refusals[0].message if found.refusals else "no order of deploys is right"
        return 2
    met = [flag for flag in fail_on if flag in found.flags]
    if met:
        call.failure = f"the change is {', '.join(met)}"
        click.echo(f"failed on: {', '.join(met)}", err=True)
        return 1
    return 0
