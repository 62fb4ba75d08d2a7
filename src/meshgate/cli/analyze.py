"""`meshgate analyze`: what a change of some projects' files does to the whole mesh."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from meshgate.cli.call import Call, checkouts_of, environment_option, json_option, now_option, pass_call
from meshgate.errors import ConfigError, GitHubError, MeshgateError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from meshgate.analysis import Analysis
    from meshgate.github import Workflow
    from meshgate.mesh import Mesh

_FLAGS = ("breaking", "cross-project", "restatement", "collision")
_LONGEST_SUMMARY = 1_000_000  # GitHub takes 1 MiB from a step


def _read_name(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """What fits into a comment's hidden line."""
    if value is not None and not re.fullmatch(r"\w+([ ./-]\w+)*", value):
        raise ConfigError(
            f"{value!r} is no name for a comment",
            hint="use letters, digits and _, and between them a space, a dot, a slash or a hyphen",
        )
    return value


@click.command()
@click.argument("checkouts", nargs=-1, metavar="[PROJECT[=PATH]]...")
@environment_option
@now_option
@json_option
@click.option("--markdown", is_flag=True, help="Print Markdown, for a comment on a pull request.")
@click.option(
    "--comment",
    is_flag=True,
    help="In a workflow of GitHub Actions: comment on its pull request, or change the comment that is there.",
)
@click.option(
    "--comment-name",
    metavar="NAME",
    callback=_read_name,
    help="Tell the comment from those of other workflows about the same environment.",
)
@click.option(
    "--sibling",
    "siblings",
    multiple=True,
    metavar="PROJECT=PATH",
    help="A checkout beside those of meshgate.yaml, such as of another repository; may be given several times.",
)
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
    comment: bool,
    comment_name: str | None,
    siblings: tuple[str, ...],
    fail_on: tuple[str, ...],
) -> int:
    """Tell what deploying the files of some projects would do to the whole mesh.

    PROJECT=PATH is a checkout, PROJECT alone the folder that meshgate.yaml has; without any, all of its projects. The
    others come from state. Nothing is written. Exits with 2 if the change must not be deployed as it is.

    \b
    breaking       SQLMesh calls the change of a model breaking or indirect breaking, also where it is
                   forward-only; or one is removed or renamed; whether anybody reads it or not
    cross-project  what a model reads of another project changes, so that it is rebuilt, stale, or left as
                   it was made; or it newly reads something there
    restatement    a model stays as it was made, as a forward-only one does, or runs compute it again
                   although its version stays
    collision      a live run or deploy, or an open request, is about what is replaced or computed

    A model that is added within its project, a column that is added, a description, an owner and an audit are none of these.
    """  # noqa: D301 - click reads the \b
    if markdown and call.json:
        raise ConfigError("--json and --markdown are both given", hint="keep one of them")
    if comment_name and not (comment or markdown):
        raise ConfigError(
            "--comment-name is given without a comment", hint="add --comment or --markdown, or leave it out"
        )
    given = checkouts_of(checkouts), checkouts_of(siblings, alone=False)
    workflow = _workflow() if comment else None
    try:
        with call.open() as mesh:
            found = mesh.analyze(_wanted(mesh, *given), environment=environment, now=now)
    except MeshgateError as error:
        if workflow is not None:
            _comment_on_failure(call, workflow, environment, error, comment_name)
        raise
    if markdown:
        from meshgate.report.pull_request import markdown as written

        click.echo(written(found, name=comment_name), nl=False)
    else:
        call.show("analyze", found, page="analysis")
    if workflow is not None:
        _comment(workflow, found, comment_name)
    return _verdict(call, found, fail_on)


def _verdict(call: Call, found: Analysis, fail_on: tuple[str, ...]) -> int:
    if found.refused:
        call.failure = found.refusals[0].message if found.refusals else "no order of deploys is right"
        return 2
    met = [flag for flag in fail_on if flag in found.flags]
    if met:
        call.failure = f"the change is {', '.join(met)}"
        click.echo(f"failed on: {', '.join(met)}", err=True)
        return 1
    return 0


def _wanted(
    mesh: Mesh, checkouts: Mapping[str, Path | None], siblings: Mapping[str, Path | None]
) -> dict[str, Path | None]:
    """Folders by project: those named, else those of `meshgate.yaml` that are there; and siblings.

    Raises:
        ConfigError: A sibling is named, or listed, besides.
    """
    found = dict(checkouts)
    if siblings and not found:
        found = {p.name: None for p in mesh.config.projects if p.path.is_dir() and p.name not in siblings}
    if twice := sorted(set(found) & set(siblings)):
        raise ConfigError(
            f"project {twice[0]!r} is named twice", hint="one checkout of each project is analysed"
        )
    return found | dict(siblings)


def _workflow() -> Workflow:
    """Before anything takes long: what the comment needs."""
    from meshgate.github import Workflow

    return Workflow.of_environment()


def _comment(workflow: Workflow, found: Analysis, name: str | None) -> None:
    from meshgate.github import LONGEST, put
    from meshgate.report.pull_request import markdown, marker

    workflow.summarise(markdown(found, longest=_LONGEST_SUMMARY, name=name))
    workflow.output("refused", str(found.refused).lower())
    workflow.output("flags", " ".join(found.flags))
    text = markdown(found, longest=LONGEST, name=name)
    posted = put(workflow.api, workflow.pull, marker(found.environment, name), text)
    workflow.output("comment-url", posted.url)
    click.echo(f"comment {posted.how}: {posted.url}", err=True)


def _comment_on_failure(
    call: Call, workflow: Workflow, environment: str | None, error: MeshgateError, name: str | None
) -> None:
    """Let no older comment speak for a change that could not be analysed; the error itself is told in any case."""
    from pathlib import Path

    from meshgate.config import load
    from meshgate.github import put
    from meshgate.report.pull_request import marker, not_analysed

    try:
        config = load(Path(call.config) if call.config else None)
        of = environment or config.projects[0].environment
        posted = put(workflow.api, workflow.pull, marker(of, name), not_analysed(of, error, name))
        click.echo(f"comment {posted.how}: {posted.url}", err=True)
    except GitHubError as problem:
        click.echo(f"error: {problem}", err=True)
    except MeshgateError:
        return  # it is the very error that is told
