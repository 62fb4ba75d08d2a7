"""`python -m source`: write the shop's history up to an instant."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click
import psycopg2
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from source.faults import KINDS, Fault, instant
from source.writer import SourceError, generate

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


def _instant(text: str) -> datetime:
    try:
        return instant(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _faults(texts: Iterable[str]) -> list[Fault]:
    try:
        return [Fault.parse(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option(
    "--url", envvar="SOURCE_URL", help="The source database; by default $SOURCE_URL.", required=True
)
@click.option("--until", required=True, help="Up to when, UTC, or `now`; whole five minutes.")
@click.option("--since", help="Where the history begins, UTC; by default 2026-01-05.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Sales an hour.",
)
@click.option("--seed", default="1", show_default=True, help="Equal seeds write equal rows.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    help=f"KIND, KIND=AMOUNT or KIND=AMOUNT@START/END; of {', '.join(KINDS)}.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def main(
    url: str, until: str, since: str | None, rate: float, seed: str, faults: tuple[str, ...], quiet: bool
) -> None:
    """Write what happens in the shop and is not written yet. It can be killed and started again at any moment."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn(),
        console=console, disable=quiet or not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("the shop", total=None)

        def tell(start: datetime, done: datetime, end: datetime) -> None:
            bar.update(
                task,
                description=f"{done:%Y-%m-%d %H:%M}",
                total=(end - start).total_seconds(),
                completed=(done - start).total_seconds(),
            )

        try:
            done = generate(
                url, _instant(until),
                seed=seed, rate=rate, since=_instant(since) if since else None, faults=_faults(faults), tell=tell,
            )  # fmt: skip
        except SourceError as error:
            raise click.ClickException(str(error)) from None
        except psycopg2.OperationalError as error:
            # The password is in the URL, not in what the server says.
            raise click.ClickException(f"the source database cannot be used: {str(error).strip()}") from None
    for fault in done.past:
        click.echo(
            f"the fault {fault.kind} lies before {done.start:%Y-%m-%dT%H:%MZ}: what is written stays as it is",
            err=True,
        )
    click.echo(f"{done.rows} rows; written up to {done.until:%Y-%m-%dT%H:%MZ}")


if __name__ == "__main__":
    os.environ.setdefault("PGAPPNAME", "shop")
    sys.exit(main())
