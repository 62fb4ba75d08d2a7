"""What a person decides about time: `hold` and `release` it, `accept` it as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from meshgate.cli.call import Call, environment_option, json_option, pass_call, read_interval, who
from meshgate.errors import ConfigError

if TYPE_CHECKING:
    from meshgate.interval import Interval

_by_option = click.option("--by", metavar="WHO", help="Who decides; by default the user and the host.")


@click.command()
@click.argument("model")
@click.argument("interval", required=False, callback=read_interval)
@click.option("--reason", required=True, help="Why; whoever has to wait is told.")
@_by_option
@environment_option
@json_option
@pass_call
def hold(
    call: Call, model: str, interval: Interval | None, reason: str, by: str | None, environment: str | None
) -> int:
    """Keep INTERVAL of MODEL from its readers, until it is released.

    Its own evaluation goes on, and the hold outlives deploys. INTERVAL is START/END in UTC, such as
    2026-01-05T03:00/2026-01-05T04:00; by default all of its time, also what is to come. A table that is refreshed or
    merged is held whole.
    """
    with call.open() as mesh:
        found = mesh.hold(model, interval, reason=reason, by=by or who(), environment=environment)
    call.show("hold", found)
    return 0


@click.command()
@click.argument("model")
@click.argument("interval", required=False, callback=read_interval)
@_by_option
@environment_option
@json_option
@pass_call
def release(
    call: Call, model: str, interval: Interval | None, by: str | None, environment: str | None
) -> int:
    """Let readers have INTERVAL of MODEL again.

    What is held beside INTERVAL stays held. INTERVAL is START/END in UTC, such as
    2026-01-05T03:00/2026-01-05T04:00; by default all that is held of it.
    """
    with call.open() as mesh:
        found = mesh.release(model, interval, by=by or who(), environment=environment)
    call.show("release", found)
    return 0


@click.command()
@click.argument("model")
@click.argument("interval", required=False, callback=read_interval)
@click.option("--reason", help="Why; `meshgate why` shows it.")
@click.option("--undo", is_flag=True, help="Make due again what was accepted of it.")
@_by_option
@environment_option
@json_option
@pass_call
def accept(
    call: Call,
    model: str,
    interval: Interval | None,
    reason: str | None,
    by: str | None,
    environment: str | None,
    *,
    undo: bool,
) -> int:
    """Take INTERVAL of MODEL as it is, though it failed or is missing.

    Its readers go on, and those that had read it before read it again; so they do when it is filled later. What of it is
    clean stays untouched. INTERVAL is START/END in UTC, such as 2026-01-05T03:00/2026-01-05T04:00; a table that is
    refreshed or merged needs none, as a doubt about it is about all of it.
    """
    if reason is None and not undo:
        raise ConfigError(
            "an acceptance has a reason", hint="say why with --reason, or take it back with --undo"
        )
    with call.open() as mesh:
        if undo:
            found = mesh.undo_accept(model, interval, by=by or who(), environment=environment)
        else:
            found = mesh.accept(model, interval, reason=reason or "", by=by or who(), environment=environment)
    call.show("accept", found)
    return 0
