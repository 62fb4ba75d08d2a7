"""`meshgate verify` and `meshgate watch`: looking whether the ledger, and what it was made of, is still so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from meshgate.cli.call import Call, environment_option, json_option, now_option, pass_call

if TYPE_CHECKING:
    from datetime import datetime


@click.command()
@click.option(
    "--ledger-only", is_flag=True, help="Leave SQLMesh's own record out: its projects need not be here."
)
@json_option
@pass_call
def verify(call: Call, *, ledger_only: bool) -> int:
    """Derive the ledger anew from its history, and compare it with itself and with SQLMesh's record.

    Slow, and reads only; runs may go on meanwhile. Exits with 1 if anything differs.
    """
    with call.open() as mesh:
        found = mesh.verify(ledger_only=ledger_only)
    call.failure = f"{len(found.differences)} differences between the ledger and what is derived"
    call.show("verify", found, page="verification")
    return 1 if found.differences else 0


@click.command()
@click.argument("project")
@environment_option
@now_option
@json_option
@pass_call
def watch(call: Call, project: str, environment: str | None, now: datetime | None) -> int:
    """Look whether the sources of PROJECT have changed since they were read, and ask for what has.

    Sources are listed in meshgate.yaml. Each run of the project looks at them before it plans; this does it at once.
    """
    with call.open() as mesh:
        found = mesh.watch(project, environment=environment, now=now)
    call.show("watch", found, page="verification")
    return 0
