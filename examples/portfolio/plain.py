"""The history of `make demo` under plain SQLMesh, in a lakehouse of its own, and what the oracle says of it: `python plain.py`.

Each project is run by `Context.run(execution_time=...)`, with its own models selected and without those upstream, as its own scheduler would.
`sqlmesh run` has no such option, and an end that it rounds up: this way plain SQLMesh is not blamed for the simulated time.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import history
import oracle
from lakehouse import HERE, Lakehouse
from ticks import PROJECTS, Warm

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

FOLDER = HERE / ".meshgate-plain"


def play(lakehouse: Lakehouse, hours: int) -> list[str]:
    """The first hours of it; the runs that failed."""
    failed = []
    with ExitStack() as stack:
        warm: dict[str, Warm] = {}
        again: Warm | None = None
        for deed in history.told(hours):
            history.sell(lakehouse.source, min(deed.at, history.closes(hours)))
            ran = []
            if deed.what == "deploy":
                for project in PROJECTS:
                    _deploy(project, deed.at)
                warm = {name: stack.enter_context(Warm(name, script=__file__)) for name in PROJECTS}
                again = stack.enter_context(Warm("upstream", script=__file__))
                ran = [warm[name].run(deed.at) for name in PROJECTS]
            elif deed.what in ("run", "colleague"):
                ran = [warm[deed.about].run(deed.at)]
            elif deed.what == "twice":
                assert again is not None  # noqa: S101 - deployed before
                ran = [*warm[deed.about].run_beside(again, deed.at)]
            elif deed.what == "correct":
                history.correct(lakehouse.source, deed.at)
            failed += [
                f"{deed.at:%H:%M} {t.report['project']}" for t in ran if t.report["state"] != "SUCCESS"
            ]
    return failed


def _deploy(project: str, now: datetime) -> None:
    """Promote a project's models; the first run then evaluates them.

    A plan that also evaluates would fail: of a model of which nothing is due yet SQLMesh makes no table where another one is due.
    """
    with _context(project, load=True) as context:
        context.plan(
            "prod", execution_time=now, skip_backfill=True, auto_apply=True, no_prompts=True, skip_tests=True
        )


class _context:  # noqa: N801 - reads as contextlib's
    def __init__(self, project: str, *, load: bool) -> None:
        from sqlmesh.core.console import NoopConsole, set_console
        from sqlmesh.core.context import Context

        set_console(NoopConsole())
        self._context = Context(paths=[str(HERE / project)], load=load)

    def __enter__(self) -> Any:
        return self._context

    def __exit__(self, *_: object) -> None:
        self._context.close()


def serve(project: str) -> None:
    """The warm process: one line in, an instant; one line out, what SQLMesh says."""
    with _context(project, load=False) as context:
        own = [
            snapshot.name
            for snapshot in context.state_reader.get_snapshots(
                context.state_reader.get_environment("prod").snapshots
            ).values()
            if snapshot.node.project == project and snapshot.is_model
        ]
        for line in sys.stdin:
            status = "FAILURE"
            with suppress(Exception):  # whatever it is, the next tick comes
                status = context.run(
                    "prod",
                    execution_time=line.strip(),
                    select_models=own,
                    no_auto_upstream=True,
                    skip_janitor=True,
                ).name
            sys.stdout.write(json.dumps({"project": project, "state": status}) + "\n")
            sys.stdout.flush()


def said(verdicts: Sequence[oracle.TableVerdict]) -> list[str]:
    """What is wrong, table by table, and in all."""
    wrong = [verdict for verdict in verdicts if not verdict.right]
    lines = [f"✗ {verdict}" for verdict in wrong]
    totals = {
        "missing": sum(len(v.missing) for v in wrong),
        "double": sum(len(v.double) for v in wrong),
        "that should not be there": sum(len(v.unexpected) for v in wrong),
        "wrong in some column": sum(v.rows_wrong for v in wrong),
    }
    counted = ", ".join(f"{count} {what}" for what, count in totals.items())
    return [*lines, f"in {len(wrong)} of {len(verdicts)} tables; rows: {counted}"]


@click.command()
@click.option(
    "--hours", type=click.IntRange(2, history.MOST_HOURS), default=history.MOST_HOURS, show_default=True
)
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, help="Where everything lies.")
def main(hours: int, folder: Path) -> None:
    """Play the history with plain SQLMesh, and print what is wrong in its tables."""
    os.environ.setdefault("MESHGATE_LOCAL_FSYNC", "off")
    Lakehouse.start(folder).destroy()
    with Lakehouse.start(folder) as lakehouse:
        os.environ.update(lakehouse.environment())
        failed = play(lakehouse, hours)
        verdicts = oracle.compare(lakehouse.source, lakehouse.lake, history.told(hours)[-1].at)
        lakehouse.destroy()
    click.echo(f"runs that failed: {', '.join(failed) or 'none'}")
    click.echo("\n".join(said(verdicts)))


if __name__ == "__main__":
    if sys.argv[1] in PROJECTS if len(sys.argv) == 2 else False:
        serve(sys.argv[1])
    else:
        main()
