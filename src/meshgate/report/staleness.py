"""What was read before it was computed again, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from meshgate.interval import MIN_INSTANT
from meshgate.report.wording import counted, instant, length, model_name, time_of

if TYPE_CHECKING:
    from datetime import datetime

    from meshgate.coordinator.status import Staleness, Status

_LINES = 10


def stale_beside(found: Status) -> list[Text]:
    """What is stale: since when, by what, and what becomes of it."""
    if not found.stale:
        return []
    lines = [_told(one, found.now) for one in found.stale[:_LINES]]
    if len(found.stale) > _LINES:
        lines.append(
            Text(f"  ... and {counted(len(found.stale) - _LINES, 'more model')}; --json has all", style="dim")
        )
    return [Text("what was read before it was computed again", style="bold"), *lines]


def _told(one: Staleness, now: datetime) -> Text:
    whole = one.parent_time.first is None or one.parent_time.first.start == MIN_INSTANT
    parent = model_name(one.parent) + ("" if whole else f" {time_of(one.parent_time, now)}")
    ago = "" if one.since is None else f" at {instant(one.since, now)}"
    if one.since is not None and one.since <= now:
        ago += f", {length(now - one.since)} ago"
    if one.accepted:
        then = ("its policy leaves it so", "dim")
    elif one.again_at is not None:
        then = (f"computed again from {instant(one.again_at, now)} on, once for all that has changed", "dim")
    else:
        then = (f"the next run of {one.project} computes it again", "dim")
    return Text.assemble(
        "  ",
        (model_name(one.model), "bold"),
        f" {time_of(one.time, now)}: {parent} was computed again{ago}; ",
        then,
    )
