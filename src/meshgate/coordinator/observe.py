"""Watching sources: late rows change what a table looks like, and what had read it is asked for again.

A look takes the number of rows and the latest change of each bucket of time, as short as the shortest interval that reads
the table. Whatever differs from the last look has been read too early, or may have been: the same transaction that stores the
look makes the requests. A run looks before it plans, so that what it evaluates is read after its look.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog
from attrs import frozen

from meshgate.coordinator.sources import resolve_source, spoken
from meshgate.errors import ConfigError, MeshgateError
from meshgate.interval import Interval, IntervalSet
from meshgate.ledger import Observation
from meshgate.restatement import disabled_models, expand

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshgate.bridge.project import SqlmeshProject
    from meshgate.config import ProjectConfig, SourceConfig
    from meshgate.coordinator.run import Workbench
    from meshgate.graph import MeshGraph, ModelNode
    from meshgate.ledger import Manifest

log = structlog.get_logger("meshgate")

_LONGEST_BUCKET = timedelta(days=1)


@frozen
class Look:
    """What came of a look at a source.

    Attributes:
        source: The table.
        project: Whose models read it.
        interval: What was looked at, UTC; None: there is nothing to look at yet, or nobody of the project reads it.
        first: Whether nothing was known to compare it with: what is there is taken as it is.
        changed: Where it differs from what was seen before, UTC.
        requests: What was asked for because of it.
    """

    source: str
    project: str
    interval: Interval | None
    first: bool
    changed: IntervalSet
    requests: tuple[int, ...]


def watch(
    bench: Workbench, name: str, *, environment: str | None = None, now: datetime | None = None
) -> tuple[Look, ...]:
    """Look at a project's sources by hand.

    Args:
        bench: Configuration, ledger, projects.
        name: The project.
        environment: SQLMesh's environment; the project's own by default.
        now: An instant in the past to stand for the present, UTC.

    Raises:
        ConfigError: The project declares no sources.
        UnknownModelError: It declares one that nobody reads.
        NotDeployedError: Nothing was deployed in the environment.
        ProjectError: The warehouse cannot answer.
    """
    project = bench.project(name)
    if not project.sources:
        raise ConfigError(
            f"project {name!r} declares no sources",
            hint=f"list them under `sources:` of the project in {bench.config.path}",
        )
    manifest = bench.ledger.manifest(bench.target(project, environment))
    opened = bench.open_project(project, load=False)
    instant = bench.instant(now)
    return tuple(_look(bench, project, opened, manifest, source, instant) for source in project.sources)


def watch_before_planning(
    bench: Workbench, project: ProjectConfig, opened: SqlmeshProject, manifest: Manifest, now: datetime
) -> None:
    """Look at a project's sources; one that cannot be looked at is told, and hinders nothing: the next look comes later."""
    for source in project.sources:
        try:
            found = _look(bench, project, opened, manifest, source, now)
        except MeshgateError as error:
            log.warning("source.unseen", source=source.table, error=error.message)
            continue
        if found.requests:
            log.info(
                "source.changed", source=found.source, changed=str(found.changed), requests=found.requests
            )


def look_before_deploying(
    bench: Workbench,
    project: ProjectConfig,
    opened: SqlmeshProject,
    graph: MeshGraph,
    environment: str,
    now: datetime,
) -> None:
    """Note what a project's sources look like before a deploy evaluates their readers, where nobody has looked like this yet.

    Else the first run would take for given what came between the deploy's reading and its own look. A source that cannot be
    looked at is told, and hinders nothing.
    """
    for source in project.sources:
        asked = _question(graph, project.name, source, now)
        if asked is None or bench.ledger.observation(environment, project.name, asked.source) is not None:
            continue  # what a run compares with what it sees is not to be moved
        try:
            seen = Observation(asked.declared, asked.span, asked.prints(opened), 0)
        except MeshgateError as error:
            log.warning("source.unseen", source=source.table, error=error.message)
            continue
        bench.ledger.save_observation(environment, project.name, asked.source, seen, (), reason="", by="")


@frozen
class _Question:
    """What is asked of a source: by which columns, in buckets of which length, over which time."""

    source: str
    declared: dict[str, Any]
    span: Interval
    bucket: timedelta

    def prints(self, opened: SqlmeshProject) -> dict[int, tuple[int, str | None]]:
        """The answer, by the second with which a bucket begins."""
        time_column, updated_at = self.declared["time_column"], self.declared["updated_at"]
        return opened.prints(self.source, time_column, updated_at, self.span, self.declared["bucket_s"])


def _question(graph: MeshGraph, project: str, source: SourceConfig, now: datetime) -> _Question | None:
    """None where nobody of the project reads the source."""
    name = resolve_source(graph, source.table)
    readers = list(_readers(graph, name, project))
    if not readers:
        return None
    unit = min((reader.unit for reader in readers), key=lambda unit: unit.approximate)
    bucket = min(unit.approximate, _LONGEST_BUCKET)
    bucket_s = int(bucket.total_seconds())
    declared = {"time_column": source.time_column, "updated_at": source.updated_at, "bucket_s": bucket_s}
    return _Question(name, declared, _span(now, source.within, bucket), bucket)


def _look(
    bench: Workbench,
    project: ProjectConfig,
    opened: SqlmeshProject,
    manifest: Manifest,
    source: SourceConfig,
    now: datetime,
) -> Look:
    graph = manifest.graph
    question = _question(graph, project.name, source, now)
    if question is None:
        name = resolve_source(graph, source.table)
        return Look(name, project.name, None, first=False, changed=IntervalSet(), requests=())
    name, declared, span = question.source, question.declared, question.span
    # Read before the source: who looks later knows what this look has seen.
    known = bench.ledger.observation(manifest.environment, project.name, name)
    seen = Observation(declared, span, question.prints(opened), known.looks if known else 0)
    if known is None or known.declared != declared:
        bench.ledger.save_observation(manifest.environment, project.name, name, seen, (), reason="", by="")
        return Look(name, project.name, span, first=True, changed=IntervalSet(), requests=())
    seen, changed = _compared(seen, known, question.bucket)
    asked = _asked(
        bench, manifest, name, project.name, changed, IntervalSet.of(known.interval.end, seen.interval.end)
    )
    made = bench.ledger.save_observation(
        manifest.environment, project.name, name, seen, asked,
        reason=f"{spoken(name)} has changed since it was read", by=f"the watch of {project.name}",
    )  # fmt: skip
    # Who was quicker has seen as much, and asked for it.
    return Look(name, project.name, span, first=False, changed=changed, requests=made or ())


def _readers(graph: MeshGraph, source: str, project: str) -> Iterator[ModelNode]:
    """The project's models that read a source, through views too."""
    pending, seen = [source], {source}
    while pending:
        for edge in graph.children(pending.pop()):
            child = graph[edge.child]
            if edge.child in seen or edge.window.mode == "ungated":
                continue
            seen.add(edge.child)
            if child.kind.recorded and child.project == project:
                yield child
            if child.kind.transparent:
                pending.append(edge.child)


def _span(now: datetime, within: timedelta, bucket: timedelta) -> Interval:
    """Whole buckets that are over: the last ones."""
    end = _floor(now, bucket)
    return Interval(min(_floor(now - within, bucket), end - bucket), end)


def _floor(instant: datetime, bucket: timedelta) -> datetime:
    return instant - (instant - datetime(1970, 1, 1, tzinfo=UTC)) % bucket


def _compared(seen: Observation, known: Observation, bucket: timedelta) -> tuple[Observation, IntervalSet]:
    """A look with what the last one had seen beyond it, and where the two differ."""
    both = seen.interval.intersect(known.interval)
    changed = []
    for second in {*seen.prints, *known.prints}:
        start = datetime.fromtimestamp(second, UTC)
        if both is not None and both.contains(start) and seen.prints.get(second) != known.prints.get(second):
            changed.append(Interval(start, start + bucket))
    end = max(seen.interval.end, known.interval.end)
    later = {
        second: found
        for second, found in known.prints.items()
        if datetime.fromtimestamp(second, UTC) >= seen.interval.end
    }
    merged = Observation(
        seen.declared, Interval(seen.interval.start, end), {**seen.prints, **later}, seen.looks
    )
    return merged, IntervalSet(changed)


def _asked(
    bench: Workbench, manifest: Manifest, source: str, project: str, changed: IntervalSet, fresh: IntervalSet
) -> list[tuple[str, Interval]]:
    """What of the project's models has to be asked for: what reads a change, and what was read unseen.

    What this look is the first to see (`fresh`) and is recorded already was evaluated without one: by a deploy, or by a run that
    could not look. Nobody knows what it has met.
    """
    graph = manifest.graph
    states = bench.ledger.states(manifest.version_ids.values())
    recorded = {model: states[key].covered for model, key in manifest.version_ids.items()}
    disabled = disabled_models(graph, bench.ledger.manifests(manifest.environment))
    found: dict[str, IntervalSet] = {}
    for interval in changed | fresh:
        met = expand(graph, source, interval, recorded, disabled=disabled, merge_again=True)
        for model, time in met.requests:
            if graph[model].project == project:
                found[model] = found.get(model, IntervalSet()) | IntervalSet([time])
    return [(model, piece) for model, time in found.items() for piece in time]
