"""What has to be computed again, where, and in which order, when some time of a model is: the preview of a restatement.

A request marks the model that was asked for; its readers follow, because what they had read is newer now. `expand`
tells beforehand what that will come to: one step for each model, parents first, with its range and why it is wider
than what was asked; and where the cascade stops, and why.

All times are UTC and half-open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import evolve, field, frozen

from meshgate.graph import Kind, ModelNode, Window, readers_of
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet, IntervalUnit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from meshgate.graph import MeshGraph

_WITHOUT_TIME: Final = (Kind.VIEW, Kind.EMBEDDED, Kind.EXTERNAL, Kind.SEED)
_DISABLED_BY_DEFAULT: Final = (Kind.SCD_TYPE_2, Kind.INCREMENTAL_UNMANAGED, Kind.MANAGED)

Reason = Literal["unit", "window", "depends_on_past", "refresh", "rebuild"]
Obstacle = Literal["disabled", "seed", "not_redoable", "reported", "policy", "ungated", "unrecorded"]


@frozen
class Widening:
    """Why a model is computed again over more than was asked of it, or than its parent was.

    Attributes:
        reason: `unit`: a unit is computed as a whole. `window`: it reads its parent over the declared window.
            `depends_on_past`: what follows was built on it. `refresh`: each refresh makes the whole table anew.
            `rebuild`: rows are merged by key, and nothing less than all of its history makes them right.
        parent: The parent whose change it reads, for `unit` and `window` of a reader.
        window: How it reads that parent, for `window`.
    """

    reason: Reason
    parent: str | None = None
    window: Window | None = None


@frozen
class Step:
    """One model that is computed again.

    Attributes:
        name: The model.
        project: Its project, whose runs do it.
        asked: Whether it gets a mark of its own; else it follows its parents.
        because: The parents whose change it reads.
        reached: What of it was asked for, or reads what is changed: recorded time, UTC.
        range: What of it is evaluated again: recorded time, UTC.
        changed: What of it its readers have to read again.
        widened: Why the range is wider than what was asked, or than the change of a parent.
    """

    name: str
    project: str
    asked: bool
    because: tuple[str, ...]
    reached: IntervalSet
    range: IntervalSet
    changed: IntervalSet
    widened: tuple[Widening, ...] = ()


@frozen
class Stop:
    """A model that the change reaches, and that is not computed again; what is behind it is not either.

    Attributes:
        name: The model.
        project: Its project.
        reason: `disabled`: it declares `disable_restatement`. `seed`: only a new file changes it. `not_redoable`:
            evaluating it twice doubles rows. `reported`: its staleness is only shown, as nothing less than a rebuild
            would end it. `policy`: the same, as its project wants it (`stale`, `stale_horizon`). `ungated`: its reader declared that it does not wait for this parent. `unrecorded`: there is
            nothing yet that could be computed again.
        because: The parents whose change it reads; none where it was asked for itself.
        reached: What of it would be wrong, as far as it is known.
    """

    name: str
    project: str
    reason: Obstacle
    because: tuple[str, ...] = ()
    reached: IntervalSet = field(factory=IntervalSet)


@frozen
class Restatement:
    """What a request comes to.

    Attributes:
        model: Whose time was asked for.
        interval: Which time of it, as it was asked.
        steps: Every model that is computed again, parents first.
        stops: Where the cascade ends before its natural end, parents first.
        requests: What has to be requested: models, and the time of each.
    """

    model: str
    interval: Interval
    steps: tuple[Step, ...]
    stops: tuple[Stop, ...]
    requests: tuple[tuple[str, Interval], ...]


def disabled_models(graph: MeshGraph, manifests: Mapping[str, Mapping[str, object]]) -> frozenset[str]:
    """The models that must not be computed again.

    Args:
        graph: The mesh.
        manifests: Each project's manifest by its name, as the ledger keeps it. One that was written before this was
            kept does not say; then SQLMesh's defaults for the kinds hold.
    """
    found: set[str] = set()
    for name, node in graph.nodes.items():
        told = manifests.get(node.project, {}).get("disable_restatement")
        if name in told if isinstance(told, (list, tuple)) else node.kind in _DISABLED_BY_DEFAULT:
            found.add(name)
    return frozenset(found)


def merges(node: ModelNode) -> bool:
    """Whether a model keeps rows of earlier intervals in one table, so that only a rebuild makes it right."""
    return node.kind.as_of and not node.kind.reads_everything


def expand(
    graph: MeshGraph,
    model: str,
    interval: Interval,
    recorded: Mapping[str, IntervalSet],
    *,
    disabled: Collection[str] = (),
    only_downstream: bool = False,
    rebuild: bool = False,
    merge_again: bool = False,
    left: Callable[[ModelNode], IntervalSet] = lambda _: IntervalSet(),
) -> Restatement:
    """Follow a request through the mesh.

    Args:
        graph: The mesh.
        model: Whose time is asked for.
        interval: Which time of it, UTC, aligned or not.
        recorded: What is recorded of each model, whole units, UTC. What is not is due anyway.
        disabled: Models that must not be computed again.
        only_downstream: Whether the model itself is right, and only what was derived from it is asked for. So it
            always is for an external table, which nobody here computes.
        rebuild: Whether tables that merge rows, and what policy leaves, are asked for too where they read what is changed;
            their staleness is only reported otherwise.
        merge_again: Whether of such tables only the asked time is merged once more, as late rows need it; they are
            rebuilt otherwise.
        left: What of a model's time its policy leaves stale where nobody asks for it.

    Returns:
        One step for each model, parents first.

    Raises:
        UnknownModelError: There is no such model.
    """
    asked = _asked(graph, graph[model], interval, only_downstream=only_downstream)
    steps, stops, requests = _cascade(
        graph, asked, interval, {}, recorded, disabled=disabled, rebuild=rebuild, merge_again=merge_again, left=left
    )  # fmt: skip
    return Restatement(model, interval, steps, stops, requests)


def follow(
    graph: MeshGraph,
    changed: Mapping[str, IntervalSet],
    recorded: Mapping[str, IntervalSet],
    *,
    disabled: Collection[str] = (),
    left: Callable[[ModelNode], IntervalSet] = lambda _: IntervalSet(),
) -> tuple[tuple[Step, ...], tuple[Stop, ...]]:
    """What becomes stale, and is computed again, by what nobody asked for: models whose data change, as at a deploy.

    Args:
        graph: The mesh.
        changed: What changes of which models, UTC. These themselves are not looked at.
        recorded: As in `expand`.
        disabled: As in `expand`.
        left: As in `expand`.

    Returns:
        One step for each reader, parents first, none of which is asked for; and where it stops.
    """
    steps, stops, _ = _cascade(
        graph, {}, Interval(MIN_INSTANT, MAX_INSTANT), changed, recorded,
        disabled=disabled, rebuild=False, merge_again=False, left=left,
    )  # fmt: skip
    return steps, stops


def _cascade(
    graph: MeshGraph,
    asked: Mapping[str, IntervalSet],
    interval: Interval,
    given: Mapping[str, IntervalSet],
    recorded: Mapping[str, IntervalSet],
    *,
    disabled: Collection[str],
    rebuild: bool,
    merge_again: bool,
    left: Callable[[ModelNode], IntervalSet],
) -> tuple[tuple[Step, ...], tuple[Stop, ...], tuple[tuple[str, Interval], ...]]:
    changed = dict(given)
    steps: list[Step] = []
    stops: list[Stop] = []
    requests: list[tuple[str, Interval]] = []
    for name in graph.order():
        node = graph[name]
        if not node.kind.recorded or name in given:
            continue
        # What lies outside its life stays as it is: no run would evaluate it.
        known = recorded.get(name, IntervalSet()).clip(node.life.start, node.life.end)
        step = _reach(graph, node, asked.get(name), interval, changed, known)
        part = IntervalSet() if step.asked or merges(node) else step.reached & left(node)
        if part and rebuild:
            step = evolve(step, asked=True)
        elif part and name not in disabled:
            stops.append(Stop(name, node.project, "policy", step.because, part))
            rest = step.reached - part
            step = evolve(step, reached=rest, range=rest, changed=rest)
            if not rest:
                continue
        reason = _obstacle(node, step, name in disabled, rebuild=rebuild)
        if reason is not None:
            stops.append(Stop(name, node.project, reason, step.because, step.reached))
        elif step.reached:
            steps.append(_by_kind(graph, node, step, known))
            changed[name] = steps[-1].changed
            wanted = asked.get(name, step.reached if steps[-1].asked else ())
            if merges(node) and not merge_again:
                wanted = known
            hulls = ((IntervalSet((piece,)) & known).hull for piece in wanted)
            requests += ((name, hull) for hull in hulls if hull is not None)
    told = {*changed, *(stop.name for stop in stops)}
    order = {name: place for place, name in enumerate(graph.order())}
    stops += (stop for stop in _ungated(graph, changed) if stop.name not in told)
    stops.sort(key=lambda stop: order[stop.name])
    return tuple(steps), tuple(stops), tuple(requests)


def _asked(
    graph: MeshGraph, node: ModelNode, interval: Interval, *, only_downstream: bool
) -> dict[str, IntervalSet]:
    """The models that get marks of their own, and for which time of them.

    What holds no rows of its own cannot be computed again: whoever asks for it means its readers.
    """
    asked: dict[str, IntervalSet] = {}
    if not only_downstream and node.kind.recorded:
        asked[node.name] = IntervalSet((node.unit.outward(interval),))
    if only_downstream or node.kind.transparent or not node.kind.recorded:
        read = node
        if node.kind in _WITHOUT_TIME:
            # It has no intervals of its own that would make more of it wrong than was asked for.
            read = evolve(node, unit=IntervalUnit.FIVE_MINUTE, start=None, end=None)
        for reader, window in _direct_readers(graph, node):
            everything = IntervalSet((reader.unit.outward(reader.life),))
            reach = readers_of(reader, read, window, IntervalSet((interval,)), everything)
            if reach:
                asked[reader.name] = asked.get(reader.name, IntervalSet()) | reach
    return asked


def _direct_readers(graph: MeshGraph, node: ModelNode) -> Iterator[tuple[ModelNode, Window]]:
    """Who reads a model, and over which window; what is looked through, too, and then who reads that."""
    pending: list[tuple[str, Window]] = [(node.name, Window())]
    seen = set(pending)
    while pending:
        name, inner = pending.pop()
        for edge in graph.children(name):
            window = edge.window.through(inner)
            if edge.child == name or window.mode == "ungated":
                continue
            child = graph[edge.child]
            if child.kind.recorded:
                yield child, window
            if child.kind.transparent and (edge.child, window) not in seen:
                seen.add((edge.child, window))
                pending.append((edge.child, window))


def _reach(
    graph: MeshGraph,
    node: ModelNode,
    asked: IntervalSet | None,
    interval: Interval,
    changed: Mapping[str, IntervalSet],
    known: IntervalSet,
) -> Step:
    """What of a model's recorded time is asked for or reads a parent's change; what is computed is not decided yet."""
    reached = asked & known if asked else IntervalSet()
    because: dict[str, None] = {}
    widened: dict[Widening, None] = {}
    if reached - IntervalSet((interval,)):
        widened[Widening("unit")] = None
    for gate in graph.gates(node.name):
        if gate.parent not in changed:
            continue
        part = readers_of(node, graph[gate.parent], gate.window, changed[gate.parent], known)
        if not part:
            continue
        because[gate.parent] = None
        reached |= part
        if gate.window.mode in ("interval", "latest") and part - changed[gate.parent]:
            declared = None if gate.window.is_default else gate.window
            widened[Widening("window" if declared else "unit", gate.parent, declared)] = None
    return Step(
        node.name, node.project, asked is not None, tuple(because), reached, reached, reached, tuple(widened)
    )


def _obstacle(node: ModelNode, step: Step, disabled: bool, *, rebuild: bool) -> Obstacle | None:
    """Why a model that is asked for or reached is not computed again."""
    if not step.asked and not step.reached:
        return None
    if node.kind is Kind.SEED:
        return "seed"
    if disabled:
        return "disabled"
    if not node.kind.redoable:
        return "not_redoable"
    if not step.reached:
        return "unrecorded"
    return "reported" if merges(node) and not step.asked and not rebuild else None


def _by_kind(graph: MeshGraph, node: ModelNode, step: Step, known: IntervalSet) -> Step:
    """The rules of the kinds: from what is reached to what is evaluated, and what that changes for readers."""
    onwards = known.clip(node.unit.floor(next(iter(step.reached)).start), MAX_INSTANT)
    if node.kind.reads_everything:
        # It stamps anew from the first instant on that it was asked to redo, or that was stale.
        return evolve(step, range=known, changed=onwards, widened=(*step.widened, Widening("refresh")))
    if node.kind.as_of:
        # Asked for too: the staleness of others of its kind is only reported.
        return evolve(
            step, asked=True, range=known, changed=known, widened=(*step.widened, Widening("rebuild"))
        )
    if graph.sequential(node.name) and onwards != step.reached:
        widened = (*step.widened, Widening("depends_on_past"))
        return evolve(step, range=onwards, changed=onwards, widened=widened)
    return step


def _ungated(graph: MeshGraph, changed: Mapping[str, IntervalSet]) -> Iterator[Stop]:
    """Readers that declared not to wait for a parent, and so do not follow it either."""
    found: dict[str, list[str]] = {}
    for name in changed:
        for edge in graph.children(name):
            if edge.window.mode == "ungated" and edge.child != name and edge.child not in changed:
                found.setdefault(edge.child, []).append(name)
    for child, parents in found.items():
        yield Stop(child, graph[child].project, "ungated", tuple(parents))
