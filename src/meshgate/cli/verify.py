"""`meshgate verify`: the ledger against what is derived from its history."""

from __future__ import annotations

import click

from meshgate.cli.call import Call, json_option, pass_call


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
