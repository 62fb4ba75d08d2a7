"""`meshgate init`: a first `meshgate.yaml`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from meshgate.cli.call import Call, pass_call


@click.command()
@click.argument("folders", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path))
@pass_call
def init(_: Call, folders: tuple[Path, ...]) -> int:
    """Write a first meshgate.yaml into this folder, for the SQLMesh projects in PATH...

    By default for all SQLMesh projects in this folder and below it. Reads their configurations, and changes nothing of them.
    """
    from meshgate.coordinator.init import begin

    found = begin(folders, Path.cwd())
    names = ", ".join(p.name for p in found.projects)
    click.echo(f"{found.path.name} written for {names}")
    for folder, why in found.passed_over:
        click.echo(f"  passed over {folder}: {why}")
    for place in dict.fromkeys(p.state for p in found.projects if p.state):
        those = [p.name for p in found.projects if p.state == place]
        where = f"{place.engine} {place.database}, schema {place.schema}"
        also = ": the warehouse itself, because no `state_connection` is given" if place.is_warehouse else ""
        click.echo(f"  SQLMesh's state of {' and '.join(those)}: {where}{also}")
    click.echo("next")
    for project in found.projects:
        if not project.named:
            click.echo(f"  → write `project: {project.name}` into the configuration in {project.path}")
    if found.ledger:
        click.echo(
            f"  → set MESHGATE_LEDGER_URL, best to that database with user and password: {found.ledger}"
        )
    click.echo("  → `meshgate migrate` makes the ledger, `meshgate doctor` checks everything")
    for project in found.projects:
        click.echo(f"  → `meshgate deploy {shlex.quote(project.name)}`")
    return 0
