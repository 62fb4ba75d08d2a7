"""What a simulated history is made of: who runs when, what goes wrong, what happens beside the runs, what must hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshgate.coordinator.staleness import Policy
    from meshgate.graph import MeshGraph

NEVER = timedelta.max


@dataclass(frozen=True)
class Events:
    """How often each comes to pass: on average once in so many seconds; 0: never.

    Attributes:
        late: Rows arrive within the lookback of a model without parents; nobody tells.
        request: Somebody asks for a range again, of a model without parents because its source was mended.
        removal: Somebody removes a range from SQLMesh's record, and mends the source.
        plain: Plain SQLMesh evaluates what it lacks: it reads, writes later, and records later still.
        deploy: A new version of a model is built, and promoted later.
        accept: Somebody takes a failed range as it is; now and then that is undone.
        hold: Somebody keeps a range from readers for up to three hours.
    """

    late: int = 0
    request: int = 0
    removal: int = 0
    plain: int = 0
    deploy: int = 0
    accept: int = 0
    hold: int = 0


@dataclass(frozen=True)
class Bounds:
    """What a calm history keeps to, in which nothing crashes.

    Attributes:
        waits_s: How long after its end a unit is recorded at the latest, by model, seconds.
        causeless: Whether anything may be computed again without a cause.
        rests_s: How soon after its last read a unit that is only stale may be computed again; 0: at once.
        in_one_run: Whether a run mends what it makes stale itself.
    """

    waits_s: Mapping[str, int] = field(default_factory=dict)
    causeless: bool = False
    rests_s: int = 0
    in_one_run: bool = False


@dataclass(frozen=True)
class Project:
    """When a project runs, seconds.

    Attributes:
        overlap: `skip` or `share`.
    """

    period_s: int
    phase_s: int = 0
    overlap: str = "skip"


@dataclass(frozen=True)
class Troubles:
    """Chances: of each evaluation, but for `poisoned` and `hopeless`, which are of each unit.

    Attributes:
        failing: It fails, and the next one need not.
        of: The models of which evaluations fail so; none: of all.
        poisoned: Evaluations of the unit fail for a few hours.
        hopeless: Evaluations of the unit fail for ever.
        crash: Its process dies; in half of the cases nobody can prove it, and in half of those its write lands later.
        pause: Its process stands still for up to an hour, and then goes on as if nothing had been.
        unmirrored: It is recorded, and its process dies before it has told SQLMesh.
    """

    failing: float = 0.0
    of: frozenset[str] = frozenset()
    poisoned: float = 0.0
    hopeless: float = 0.0
    crash: float = 0.0
    pause: float = 0.0
    unmirrored: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """What is played.

    Attributes:
        graph: Every model with a start at the origin and an end.
        projects: By name.
        takes_s: The shortest and the longest evaluation of each model, seconds.
        patience: For every model; None for the product's default, `NEVER` to be patient for ever.
        staleness: Whether what read a parent before it was computed again is computed again too.
        policy: What is done about each model's stale time.
        events: What people, plain SQLMesh and the source do.
        bounds: Of a calm history.
    """

    graph: MeshGraph
    projects: Mapping[str, Project]
    takes_s: Mapping[str, tuple[int, int]]
    troubles: Troubles = Troubles()
    patience: timedelta | None = None
    staleness: bool = False
    policy: Mapping[str, Policy] = field(default_factory=dict)
    events: Events = field(default_factory=Events)
    bounds: Bounds | None = None
    ttl_s: int = 300
    grace_s: int = 300
    thinks_s: int = 20
