"""What a person may do by hand: take a lease away, try again at once, keep time from readers, take it as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from meshgate.coordinator.explain import environment_of, require_aligned
from meshgate.due import due
from meshgate.errors import ConfigError, IntervalError
from meshgate.graph import Kind
from meshgate.interval import Interval, IntervalSet
from meshgate.ledger import WHOLE

if TYPE_CHECKING:
    from meshgate.coordinator.run import Workbench
    from meshgate.due import Due
    from meshgate.graph import ModelNode
    from meshgate.ledger import Hold, LiveRun, Manifest, VersionState


def break_lease(bench: Workbench, run_id: int, by: str) -> LiveRun:
    """Take a lease away by hand: the run stops before its next batch and can record nothing any more.

    What it had begun is suspect, and is claimed again only after the grace, or when its process is proven to be gone.

    Args:
        bench: Configuration and ledger.
        run_id: The run.
        by: Who did it: for the history.

    Returns:
        The run as it was.

    Raises:
        ConfigError: No such run lives; names those that do.
    """
    live = {r.run_id: r for r in bench.ledger.live_runs()}
    if run_id not in live or not bench.ledger.break_lease(run_id, by):
        told = ", ".join(
            f"{r.purpose} {r.run_id} of {r.project!r}" for r in live.values() if r.run_id != run_id
        )
        raise ConfigError(f"run {run_id} does not live", hint=f"what lives: {told or 'nothing'}")
    return live[run_id]


def retry(
    bench: Workbench, model: str, interval: Interval | None = None, *, environment: str | None = None
) -> tuple[str, int]:
    """Let what failed be tried again by the next run, without its pause.

    Args:
        bench: Configuration and ledger.
        model: Its name, or the last parts of it.
        interval: Only what meets this time of it, UTC; all of it by default.
        environment: SQLMesh's environment; by default the one that the configured projects share.

    Returns:
        The model's full name, and how many pauses were ended.

    Raises:
        UnknownModelError: There is no such model; names the nearest.
        IntervalError: The interval is not aligned; names the nearest one that is.
        NotDeployedError: Nothing was deployed in the environment.
    """
    manifest = bench.ledger.manifest(environment_of(bench, environment))
    name = manifest.graph.resolve(model)
    if interval is not None:
        require_aligned(manifest.graph[name], interval)
    return name, bench.ledger.retry([manifest.version_id(name)], interval or WHOLE)


@attrs.frozen
class Held:
    """What is kept from readers from now on.

    Attributes:
        model: The model.
        project: Its project; the model's own evaluation goes on.
        interval: Which time of it, UTC; all of it for a table that is one whole.
        reason: Why.
        by: Who.
        readers: The models that read it, at once or through views.
    """

    model: str
    project: str
    interval: Interval
    reason: str
    by: str
    readers: tuple[str, ...]


@attrs.frozen
class Released:
    """What readers may have again.

    Attributes:
        model: The model.
        project: Its project.
        released: What was held, by whom and why.
        left: What is held still.
    """

    model: str
    project: str
    released: tuple[Hold, ...]
    left: tuple[Hold, ...]


@attrs.frozen
class Accepted:
    """What was taken as it is, or is no longer.

    Attributes:
        model: The model.
        project: Its project.
        interval: What was asked for, UTC.
        accepted: What counts as recorded from now on; with `undone`, what is due again.
        doubt: Whether the doubt about a table that is one whole was ended.
        undone: Whether it was an acceptance, or the end of one.
    """

    model: str
    project: str
    interval: Interval
    accepted: IntervalSet
    doubt: bool = False
    undone: bool = False


def hold(
    bench: Workbench,
    model: str,
    interval: Interval | None = None,
    *,
    reason: str,
    by: str,
    environment: str | None = None,
) -> Held:
    """Keep some time of a model from its readers until somebody releases it. Its own evaluation goes on.

    Args:
        bench: Configuration and ledger.
        model: Its name, or the last parts of it.
        interval: Which time, UTC; all of it by default, also what is to come.
        reason: Why: readers are told.
        by: Who.
        environment: Where the name is looked up. The hold itself is on the model, in every environment.

    Raises:
        UnknownModelError: There is no such model; names the nearest.
        IntervalError: The interval is not aligned; names the nearest one that is.
        ConfigError: Nobody waits for such a model, or the reason is empty.
        NotDeployedError: Nothing was deployed in the environment.
    """
    _require_words(reason, by)
    manifest, node = _named(bench, model, environment)
    if node.kind.transparent:
        raise ConfigError(
            f"{node.display} is a view, and whoever reads it waits for the tables behind it",
            hint=f"hold what it reads: {', '.join(manifest.graph[g.parent].display for g in manifest.graph.gates(node.name))}",
        )
    span = _span(node, interval)
    bench.ledger.hold(node.name, span, reason=reason, by=by)
    readers = [
        n for n in manifest.graph.order() if any(g.parent == node.name for g in manifest.graph.gates(n))
    ]
    return Held(node.name, node.project, span, reason, by, tuple(readers))


def release(
    bench: Workbench,
    model: str,
    interval: Interval | None = None,
    *,
    by: str,
    environment: str | None = None,
) -> Released:
    """Let readers have again what is held of a model. Arguments and errors as of `hold`.

    Releasing a part of what is held leaves the rest held, with its own reason and author.
    """
    manifest, node = _named(bench, model, environment)
    released = bench.ledger.release(node.name, _span(node, interval), by=by)
    return Released(node.name, node.project, released, _state(bench, manifest, node).holds)


def accept(
    bench: Workbench,
    model: str,
    interval: Interval | None = None,
    *,
    reason: str,
    by: str,
    environment: str | None = None,
) -> Accepted:
    """Take some time of a model as it is: what of it failed, is missing or in doubt counts as recorded.

    Whoever read it before reads it again; filling it later has the same effect. Its clean time stays untouched.

    Args:
        bench: Configuration and ledger.
        model: Its name, or the last parts of it.
        interval: Whole units of the model that are due, UTC. Only a table that is one whole has a default: the doubt
            about it, and what of it is missing; of one that is appended to, what was being appended.
        reason: Why.
        by: Who.
        environment: SQLMesh's environment; by default the one that the configured projects share.

    Raises:
        UnknownModelError: There is no such model; names the nearest.
        IntervalError: The interval is not aligned, or not due; names the nearest one that is.
        ConfigError: No interval is given, nobody waits for such a model, or the reason is empty.
        ClaimConflictError: A run is writing there, or a lost one still may.
        NotDeployedError: Nothing was deployed in the environment.
    """
    _require_words(reason, by)
    manifest, node = _named(bench, model, environment)
    bench.bury_the_gone()
    state = _state(bench, manifest, node)
    span = _due_span(node, state, interval, due(node, state.covered, bench.instant(None)))
    frontier = state.covered.last.end if state.covered.last else node.life.start
    lookback = None
    if node.lookback and span.end > frontier:
        fresh = max(span.start, frontier)
        lookback = Interval(node.unit.shift(fresh, -node.lookback), fresh)
    pieces = bench.ledger.accept(
        manifest.version_id(node.name), span, lookback=lookback, reason=reason, by=by
    )
    doubt = (
        pieces is not None and node.kind.as_of and any(m.kind in ("failed", "suspect") for m in state.marks)
    )
    return Accepted(node.name, node.project, span, IntervalSet(pieces or ()), doubt)


def undo_accept(
    bench: Workbench, model: str, interval: Interval | None = None, *, by: str, environment: str | None = None
) -> Accepted:
    """Make due again what was accepted. Arguments and errors as of `hold`."""
    manifest, node = _named(bench, model, environment)
    span = interval or WHOLE
    if interval is not None:
        require_aligned(node, interval)
    pieces = bench.ledger.undo_accept(manifest.version_id(node.name), span, by=by)
    return Accepted(node.name, node.project, span, IntervalSet(pieces), undone=True)


def _require_words(reason: str, by: str) -> None:
    if not reason.strip() or not by.strip():
        raise ConfigError(
            "a decision of a person has a reason and an author",
            hint="say why with --reason, and who with --by",
        )


def _named(bench: Workbench, model: str, environment: str | None) -> tuple[Manifest, ModelNode]:
    manifest = bench.ledger.manifest(environment_of(bench, environment))
    node = manifest.graph[manifest.graph.resolve(model)]
    if not node.kind.recorded:
        raise ConfigError(
            f"{node.display} is of kind {node.kind.value}, which holds no time of its own: nobody waits for it",
            hint="name the model with a table that it reads",
        )
    return manifest, node


def _span(node: ModelNode, interval: Interval | None) -> Interval:
    """What is meant; a table that is one whole is held and released whole."""
    if interval is None:
        return WHOLE
    require_aligned(node, interval)
    return WHOLE if node.kind.as_of or node.kind is Kind.SEED else interval


def _state(bench: Workbench, manifest: Manifest, node: ModelNode) -> VersionState:
    version = manifest.version_id(node.name)
    return bench.ledger.states([version])[version]


def _due_span(node: ModelNode, state: VersionState, interval: Interval | None, answer: Due) -> Interval:
    """What is accepted: time that is due."""
    begins = [piece.start for piece in (state.covered.first, answer.fresh.first) if piece]
    begins += [node.life.start] if node.start else []
    begin = min(begins, default=answer.upto)
    if node.kind is Kind.SEED or begin >= answer.upto:
        raise ConfigError(
            f"nothing of {node.display} is due yet, so there is nothing to accept",
            hint=f"`meshgate deploy {node.project}` loads it" if node.kind is Kind.SEED else None,
        )
    whole = Interval(begin, answer.upto)
    if interval is None and node.kind.as_of:
        # What was never begun appends nothing twice: a run appends it when the doubt is over.
        doubts = [m.batch for m in state.marks if m.kind in ("failed", "suspect")]
        if node.kind is Kind.INCREMENTAL_UNMANAGED and doubts and all(doubts):
            written = [part for batch in doubts if batch and (part := batch.intersect(whole))]
            if written:
                return Interval(min(w.start for w in written), max(w.end for w in written))
        return whole
    if interval is None:
        doubted = IntervalSet(m.interval for m in state.marks if m.kind in ("failed", "suspect", "removed"))
        wrong = (IntervalSet([whole]) - state.covered) | (doubted & IntervalSet([whole]))
        oldest = next(iter(node.unit.split(wrong.first)), None) if wrong.first else None
        raise ConfigError(
            f"say which time of {node.display} is accepted",
            hint=f"the oldest that failed or is missing: {_typed(oldest)}"
            if oldest
            else "all of it is recorded",
        )
    require_aligned(node, interval)
    if not IntervalSet([whole]).covers(interval):
        within = interval.intersect(whole)
        raise IntervalError(
            f"{interval} of {node.display} is not all due: its time is {whole} so far",
            hint=f"did you mean {_typed(within)} ?" if within else None,
            model=node.name,
        )
    return interval


def _typed(interval: Interval) -> str:
    """An interval as the command line takes it."""
    return f"{interval.start:%Y-%m-%dT%H:%M}/{interval.end:%Y-%m-%dT%H:%M}"
