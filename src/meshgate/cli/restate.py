"""`meshgate restate`: preview, request, and follow what is computed again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from meshgate.cli.call import (
    Call,
    analysis_option,
    environment_option,
    json_option,
    pass_call,
    read_instant,
    same_environment,
    who,
)
from meshgate.errors import ConfigError

if TYPE_CHECKING:
    from datetime import datetime

    from meshgate.analysis import Analysis
    from meshgate.coordinator.leftovers import Leftovers
    from meshgate.coordinator.restate import Preview
    from meshgate.interval import Interval

_VERBS = ("list", "show", "cancel")


@click.command()
@click.argument("what", required=False, metavar="MODEL|list|show|cancel")
@click.argument("number", required=False, type=int, metavar="[REQUEST]")
@click.option(
    "--from", "start", metavar="INSTANT", callback=read_instant, help="Where the range begins: UTC, ISO 8601."
)
@click.option("--to", "end", metavar="INSTANT", callback=read_instant, help="Where it ends: exclusive.")
@click.option(
    "--source",
    metavar="TABLE",
    help="Instead of MODEL: whatever reads this table, which no model of the mesh makes.",
)
@analysis_option
@click.option("--reason", metavar="TEXT", help="Why; kept with the request.")
@click.option(
    "--only-downstream",
    is_flag=True,
    help="The model itself is right: ask for its direct readers instead, over what they read of the range.",
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="Ask also for what policy leaves stale, and for tables that merge rows: they are rebuilt from their beginning.",
)
@click.option("--apply", is_flag=True, help="Make the request; it lasts until it is done or cancelled.")
@click.option(
    "--now", is_flag=True, help="With --apply: run the projects that it concerns at once, parents first."
)
@environment_option
@json_option
@pass_call
def restate(
    call: Call,
    what: str | None,
    number: int | None,
    start: datetime | None,
    end: datetime | None,
    source: str | None,
    analysis: Analysis | None,
    reason: str | None,
    environment: str | None,
    *,
    only_downstream: bool,
    rebuild: bool,
    apply: bool,
    now: bool,
) -> int:
    """Show what computing a range of MODEL again comes to, and ask for it with --apply.

    The preview tells each model that follows, in every project, parents first: its range and why it is so wide, how
    long it takes, what is in flight there, and where the cascade stops. A request is done by the ordinary runs of each
    project, on their own schedule.

    \b
    meshgate restate MODEL --from INSTANT --to INSTANT [--apply [--now]]
    meshgate restate --source TABLE --from INSTANT --to INSTANT [--apply [--now]]
    meshgate restate --from-analysis FILE [MODEL] [--apply [--now]]
                                      what a change leaves as it was made, when it is deployed
    meshgate restate list             the open and the newest requests, and how far they are
    meshgate restate show REQUEST     one of them: what is in its way, what follows
    meshgate restate cancel REQUEST   take back what of it is not done
    """  # noqa: D301 - click reads the \b
    if analysis is not None:
        given = [number, start, end, source, only_downstream or None, rebuild or None]
        if any(value is not None for value in given) or what in _VERBS:
            raise ConfigError(
                "--from-analysis says itself what is asked for, over which range",
                hint="give it with a MODEL, --reason, --apply and --now at most",
            )
        _refuse_to_run(apply=apply, now=now)
        return _leftovers(call, analysis, what, reason, environment, apply=apply, now=now)
    if (what is None) == (source is None):
        raise ConfigError(
            "which model is to be computed again?"
            if what is None
            else f"{what} and --source {source} are both given",
            hint="give a MODEL, or --source TABLE for all that read a table which no model makes",
        )
    if what in _VERBS:
        given = [start, end, reason, only_downstream or None, rebuild or None, apply or None, now or None]
        if any(value is not None for value in given):
            raise ConfigError(
                f"`meshgate restate {what}` takes no options about a range",
                hint="they are for `meshgate restate MODEL --from INSTANT --to INSTANT`",
            )
        return _follow(call, what, number, environment)
    if number is not None:
        raise ConfigError(
            f"`meshgate restate {what}` takes no number of a request",
            hint=f"did you mean `meshgate restate show {number}` ?",
        )
    _refuse_to_run(apply=apply, now=now)
    asked = what or source or ""
    interval = _range(asked, start, end)
    with call.open() as mesh:
        found = mesh.restate(
            asked, interval, reason=reason, by=who(), only_downstream=only_downstream, rebuild=rebuild, apply=apply,
            source=source is not None, environment=environment,
        )  # fmt: skip
    if call.json:
        code, reports = _run(call, found) if now else (0, [])
        call.show("restate", found, page="restatement", **({"runs": reports} if now else {}))
        return code
    call.show("restate", found, page="restatement")
    return _run(call, found)[0] if now else 0


def _refuse_to_run(*, apply: bool, now: bool) -> None:
    if now and not apply:
        raise ConfigError(
            "--now runs what was asked for, and nothing is", hint="add --apply, or leave --now away"
        )


def _leftovers(
    call: Call,
    analysis: Analysis,
    model: str | None,
    reason: str | None,
    environment: str | None,
    *,
    apply: bool,
    now: bool,
) -> int:
    """What an analysis leaves as it was made."""
    same_environment(analysis, environment)
    with call.open() as mesh:
        found = mesh.leftovers(analysis, model, reason=reason, by=who(), apply=apply)
    if call.json:
        code, reports = _run(call, found) if now else (0, [])
        call.show("leftovers", found, page="deploys", **({"runs": reports} if now else {}))
        return code
    call.show("leftovers", found, page="deploys")
    return _run(call, found)[0] if now else 0


def _run(call: Call, found: Preview | Leftovers) -> tuple[int, list[dict[str, Any]]]:
    """The ordinary runs of the projects that a request concerns; an exit code as of one run, and what they did."""
    from meshgate.report import data

    reports: list[dict[str, Any]] = []
    codes = {0}
    elsewhere: set[str] = set()
    for project in found.projects:
        if project in elsewhere:
            continue
        with call.working(project) as mesh:
            if project not in {p.name for p in mesh.config.projects}:
                click.echo(f"{project} is not in {mesh.config.path}: its own runs do its part", err=True)
                elsewhere.add(project)
                continue
            report = mesh.run(project, environment=found.environment)
        codes.add(report.exit_code)
        reports.append(data.run(report, (), "run"))
        if report.exit_code == 1:
            call.failure = f"run {report.run_id} of {project!r} ended as {report.state}"
        if not call.json:
            click.echo()
            call.show("run", report, (), "run")
        if call.signum:
            return 128 + call.signum, reports
    return (1 if 1 in codes else max(codes)), reports


def _range(model: str, start: datetime | None, end: datetime | None) -> Interval:
    """The range that was asked for.

    Raises:
        ConfigError: It is not given.
        IntervalError: It is empty.
    """
    from meshgate.interval import Interval

    if start is None or end is None:
        raise ConfigError(
            f"which time of {model} is to be computed again?",
            hint="give it as --from INSTANT --to INSTANT, in UTC, such as --from 2026-01-05T03:00 --to 2026-01-05T04:00",
        )
    return Interval(start, end)


def _follow(call: Call, verb: str, number: int | None, environment: str | None) -> int:
    """List, show or cancel requests."""
    if (number is None) != (verb == "list"):
        raise ConfigError(
            "`meshgate restate list` takes no number"
            if verb == "list"
            else f"which request is to be {_DONE[verb]}?",
            hint="`meshgate restate list` shows the numbers, for `show REQUEST` and `cancel REQUEST`",
        )
    with call.open() as mesh:
        if number is None:
            call.show(
                "requests", mesh.requests(environment=environment), mesh.ledger.clock(), page="restatement"
            )
        elif verb == "show":
            call.show("request", mesh.request(number, environment=environment), page="restatement")
        else:
            found, ended = mesh.cancel_request(number, who(), environment=environment)
            call.show("cancelled", found, ended, page="restatement")
    return 0


_DONE = {"show": "shown", "cancel": "cancelled"}
