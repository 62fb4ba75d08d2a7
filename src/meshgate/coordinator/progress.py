"""What a run tells while it works and waits, as data. Nothing is decided by it; faces show it."""

from __future__ import annotations

# At run time too: whoever turns these records into JSON resolves their annotations.
from datetime import datetime  # noqa: TC003

from attrs import frozen

from meshgate.interval import Interval, IntervalSet  # noqa: TC001


@frozen
class Planned:
    """What a run is about to evaluate: how many units of which models, parents first."""

    project: str
    units: tuple[tuple[str, int], ...]


@frozen
class Batch:
    """Something happened to a piece of a model's time: `begun`, `committed`, `failed`, `refused` or `waiting`."""

    project: str
    model: str
    interval: Interval
    units: int
    what: str
    detail: str = ""


@frozen
class Waiting:
    """A run waits.

    Attributes:
        project: Whose run.
        model: What it waits for; None where it waits for a run to end.
        of: The project of that model or run.
        time: Which time of it, UTC.
        reason: As in `gate.Obstacle`, or `busy`.
        run_id: The run that is in the way, where one is.
        expected: When it is likely to be there, UTC; None where nothing tells.
        until: When the waiting ends, UTC.
        notified: Whether notifications arrive; otherwise the ledger is asked every few seconds.
    """

    project: str
    model: str | None
    of: str
    time: IntervalSet
    reason: str
    run_id: int | None
    expected: datetime | None
    until: datetime
    notified: bool


@frozen
class Deploying:
    """One of the deploys that an analysis is about: `begun`, `deployed`, `failed`, or `there` before.

    Attributes:
        project: Whose.
        place: Which of them it is, from 1.
        of: How many there are to make.
        what: As above.
        detail: Why it failed.
    """

    project: str
    place: int
    of: int
    what: str
    detail: str = ""


Progress = Planned | Batch | Waiting | Deploying
