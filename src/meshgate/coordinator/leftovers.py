"""What a change leaves as it was made, asked for: the restatements that neither the deploys of an analysis nor staleness bring.

They are asked for after the deploys. Before, the ordinary runs would compute the same rows once more, by the old query.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - attrs reads annotations
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from meshgate.analysis import Left  # noqa: TC001 - attrs reads annotations
from meshgate.coordinator.restate import Preview, preview
from meshgate.coordinator.staleness import states_of
from meshgate.coordinator.world import check_ledger, check_noted, deployed_digests
from meshgate.errors import ConfigError, UnknownModelError
from meshgate.interval import Interval, IntervalSet

if TYPE_CHECKING:
    from datetime import timedelta

    from meshgate.analysis import Analysis
    from meshgate.coordinator.run import Workbench
    from meshgate.ledger import Manifest

_BY_STALENESS = ("reported", "policy")


@frozen
class Leftover:
    """One model that the change leaves as it was made.

    Attributes:
        left: As the analysis has it.
        interval: Which time of it is asked for: what was left then, and what was made in the same way since; None: it cannot be.
        preview: What asking for it comes to; None where it cannot be asked for, or was.
        request: The request that this analysis has made for it before; None: there is none.
    """

    left: Left
    interval: Interval | None = None
    preview: Preview | None = None
    request: int | None = None


@frozen
class Leftovers:
    """What an analysis leaves, and what becomes of it.

    Attributes:
        environment: SQLMesh's environment.
        now: By the ledger's clock, UTC.
        origin: Which analysis asks: it asks for each model once.
        models: What is left, in the order of the analysis.
        waiting: Projects that have to be deployed before anything is asked for.
        requests: What has to be requested, or was: models, and the time of each.
        made: The requests that were made; none for a preview.
    """

    environment: str
    now: datetime
    origin: str
    models: tuple[Leftover, ...]
    waiting: tuple[str, ...]
    requests: tuple[tuple[str, Interval], ...]
    made: tuple[int, ...] = field(default=())

    @property
    def projects(self) -> tuple[str, ...]:
        """Whose runs do it, those of parents first."""
        return tuple(dict.fromkeys(p for one in self.models if one.preview for p in one.preview.projects))

    @property
    def expected(self) -> timedelta | None:
        """How long all that can be estimated takes, each model once; None where nothing can."""
        steps = {s.model: s.expected for one in self.models if one.preview for s in one.preview.steps}
        known = [took for took in steps.values() if took is not None]
        return sum(known[1:], known[0]) if known else None


def leftovers(bench: Workbench, found: Analysis, model: str | None = None) -> Leftovers:
    """Tell what asking for all that an analysis leaves comes to; nothing is written.

    Args:
        bench: Configuration and ledger.
        found: The analysis.
        model: Only this one of them: its name, or the last parts of it.

    Raises:
        OutdatedError: A project was deployed with other files since, or something else has moved.
        UnknownModelError: The analysis leaves no such model.
        NotDeployedError: Nothing was deployed in the environment.
    """
    manifest = bench.ledger.manifest(found.environment)
    check_ledger(found, bench.ledger)
    waiting = _waiting(bench, found)
    chosen = found.left if model is None else _chosen(found, manifest, model)
    origin = f"{found.environment} {found.base.proposed} at {found.base.revision}"
    before = bench.ledger.requests_of(origin)
    policies = bench.policies(manifest).stale
    now = bench.ledger.clock()
    states = states_of(bench.ledger, manifest, now, policies)
    models = []
    for left in chosen:
        if left.model in before:
            models.append(Leftover(left, request=before[left.model]))
            continue
        interval = None
        if left.can_be_asked and left.model in manifest.version_ids:
            state = states[manifest.version_ids[left.model]]
            # What was made between the analysis and the deploys was made as what was there before.
            since = (
                IntervalSet(s.interval for s in state.stale)
                if left.reason in _BY_STALENESS
                else state.covered
            )
            interval = _from(left, since)
        told = None
        if interval is not None:
            told = preview(
                bench, left.model, interval, rebuild=left.reason == "reported", environment=found.environment
            )
            told = told if told.requests else None
        models.append(Leftover(left, interval if told is not None else None, told))
    return Leftovers(
        found.environment, now, origin, tuple(models), waiting, _requests(models, before)
    )  # fmt: skip


def _from(left: Left, since: IntervalSet) -> Interval | None:
    """From the first instant that is left on: to its last one, or to what is there by now behind it."""
    hull = left.range.hull
    if hull is None:
        return None
    behind = [piece.end for piece in since if piece.end > hull.end]
    return Interval(hull.start, max(behind, default=hull.end))


def _requests(models: list[Leftover], before: dict[str, int]) -> tuple[tuple[str, Interval], ...]:
    """Each model once."""
    found: dict[str, IntervalSet] = {}
    for one in models:
        for name, interval in one.preview.requests if one.preview else ():
            if name not in before:
                found[name] = found.get(name, IntervalSet()) | IntervalSet([interval])
    return tuple((name, hull) for name, time in found.items() if (hull := time.hull) is not None)


def _chosen(found: Analysis, manifest: Manifest, model: str) -> tuple[Left, ...]:
    name = manifest.graph.resolve(model)
    chosen = tuple(one for one in found.left if one.model == name)
    if not chosen:
        listed = ", ".join(dict.fromkeys(one.model.replace('"', "") for one in found.left)) or "none"
        raise UnknownModelError(
            f"the analysis does not leave {name.replace(chr(34), '')} as it was",
            hint=f"those that it leaves: {listed}",
            model=name,
        )
    return chosen


def _waiting(bench: Workbench, found: Analysis) -> tuple[str, ...]:
    """The projects that are not deployed yet as they were analysed.

    Raises:
        OutdatedError: One of any project was deployed with files that are neither those from before nor those that were analysed.
    """
    kept = bench.ledger.manifests(found.environment)
    waiting: list[str] = []
    looked_at = {d.project for d in found.base.definitions if d.state is not None and d.project}
    for project in dict.fromkeys((*found.order.projects, *sorted(looked_at))):
        before, after = deployed_digests(found, project)
        if not check_noted(found, project, kept) and project in found.projects and before != after:
            waiting.append(project)
    return tuple(waiting)


def ask(bench: Workbench, found: Leftovers, *, reason: str | None = None, by: str | None = None) -> Leftovers:
    """Make the requests: durable, all or none, and each once, however often and by how many it is called.

    Args:
        bench: Configuration and ledger.
        found: What `leftovers` told.
        reason: Why: for the history; by default, that a change left it.
        by: Who asks: for the history.

    Raises:
        ConfigError: Something has to be deployed before.
    """
    if found.waiting:
        raise ConfigError(
            f"{', '.join(found.waiting)} must be deployed first: until then the same rows would be computed once more",
            hint="`meshgate deploy --from-analysis FILE`, then this again",
            projects=list(found.waiting),
        )
    if not found.requests:
        return found
    said = reason or "a change left it as it was made"
    made = bench.ledger.request(found.requests, reason=said, by=by or "unknown", origin=found.origin)
    return evolve(found, made=made)
