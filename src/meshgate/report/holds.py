"""What people decided, for people: what is held, released, accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from meshgate.report.wording import counted, held_by, instant, model_name, time_of

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import Console

    from meshgate.coordinator.intervene import Accepted, Held, Released
    from meshgate.coordinator.status import Status
    from meshgate.ledger import CoverageRow

_NAMES = 4


def hold(out: Console, found: Held) -> None:
    """What is held, who waits, and how it ends."""
    name = model_name(found.model)
    out.print(
        Text.assemble((name, "bold"), f" {time_of(found.interval)} is held by {found.by}: {found.reason}")
    )
    shown = [model_name(reader) for reader in found.readers[:_NAMES]]
    more = f" and {counted(len(found.readers) - _NAMES, 'more model')}" if len(found.readers) > _NAMES else ""
    out.print(f"  its readers wait: {', '.join(shown)}{more}" if shown else "  nobody reads it")
    out.print(f"  → `meshgate release {name}` lets them have it")


def release(out: Console, found: Released) -> None:
    """What was held, and what is still."""
    name = (model_name(found.model), "bold")
    if not found.released:
        out.print(Text.assemble(name, ": nothing of that was held"))
    for one in found.released:
        told = held_by(one.by, one.since, one.reason)
        out.print(Text.assemble(name, f" {time_of(one.interval)} is released; it was {told}"))
    for one in found.left:
        out.print(f"  {time_of(one.interval)} is {held_by(one.by, one.since, one.reason)}")


def accept(out: Console, found: Accepted) -> None:
    """What counts as recorded, or is due again."""
    name = (model_name(found.model), "bold")
    time = time_of(found.accepted)
    if found.undone:
        said = f" {time} is due again" if found.accepted else ": nothing of that was accepted"
    elif found.accepted:
        said = f" {time} is accepted as it is: its readers go on, and those that had read it before will read it again"
    elif found.doubt:
        said = " is accepted as it is"
    else:
        said = f" {time_of(found.interval)}: there is nothing to accept, all of it is recorded and clean"
    out.print(Text.assemble(name, said))


def accepted_row(row: CoverageRow, now: datetime) -> list[Text]:
    """What a person took as it was: who, when, why, and what it was."""
    told = row.accepted or {}
    who = f"{row.interval} accepted by {told.get('by')} at {instant(row.committed_at, now)}: {told.get('reason')}"
    was = ", ".join(told.get("was") or ())
    return [Text(who), Text(f"  revision {row.revision}, it was {was}", style="dim")]


def holds_beside(found: Status) -> list[Text]:
    """Those holds that keep nothing back so far: they are about time to come, or nobody noticed yet."""
    said = {(c.model, c.detail.get("by"), c.detail.get("reason")) for w in found.waits for c in w.causes}
    return [
        Text(
            f"  {model_name(model)} {time_of(one.interval)} is {held_by(one.by, one.since, one.reason, found.now)}"
        )
        for model, _, one in found.holds
        if (model, one.by, one.reason) not in said
    ]
