"""The preview against SQLMesh's own plan: random projects of all kinds, restated by both.

SQLMesh's answer is the one of its `PlanBuilder`, on snapshots that are made in memory: no state, no warehouse. The same
snapshots go through the bridge to the preview. Where the two differ on purpose, a rule of `RULES` says why; a difference
that no rule explains is a failure.

What both say is compared over recorded time, in whole units: SQLMesh's range goes on over time that nobody has computed
yet, and is due anyway, and its start need not be a unit's.
"""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st
from sqlglot import exp
from sqlmesh.core.console import NoopConsole, get_console, set_console
from sqlmesh.core.context_diff import ContextDiff
from sqlmesh.core.model import create_external_model, create_seed_model, create_sql_model
from sqlmesh.core.model import kind as kinds
from sqlmesh.core.plan.builder import PlanBuilder
from sqlmesh.core.snapshot import Snapshot, SnapshotChangeCategory

from meshgate.bridge.translate import interval, promoted
from meshgate.coordinator.manifest import build_graph
from meshgate.graph import Kind
from meshgate.interval import Interval, IntervalSet, IntervalUnit
from meshgate.restatement import expand
from strategies import examples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshgate.graph import MeshGraph

START = datetime(2026, 1, 5, tzinfo=UTC)
MIDNIGHT = datetime(2026, 1, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)
PROJECT = "p"
CRONS = {"five_minute": "*/5 * * * *", "hour": "@hourly", "day": "@daily"}
KINDS = {
    "time": lambda **more: kinds.IncrementalByTimeRangeKind(
        time_column=kinds.TimeColumn(column="ds"), **more
    ),
    "key": lambda **more: kinds.IncrementalByUniqueKeyKind(unique_key=[exp.column("id")], **more),
    "scd": lambda **more: kinds.SCDType2ByTimeKind(unique_key=[exp.column("id")], **more),
    "unmanaged": kinds.IncrementalUnmanagedKind,
    "full": lambda **_: kinds.FullKind(),
    "view": lambda **_: kinds.ViewKind(),
    "embedded": lambda **_: kinds.EmbeddedKind(),
}

RULES = {
    "a refreshed table changes up to its frontier": "SQLMesh hands the readers of FULL tables the asked range only; "
    "but each refresh makes all of the table anew, so from the first changed instant on they may read other rows.",
    "views are looked through": "SQLMesh hands the readers of views the asked range only, though not those of embedded "
    "models; but what they read is the table behind, which changes by its own whole units.",
    "what was never computed is not asked for": "SQLMesh restates readers of time that is not recorded, and whole tables "
    "whose last refresh came before it; but nobody has read that time yet.",
    "tables that append are never computed twice": "SQLMesh does that where restatement is enabled, and doubles rows.",
    "declared windows count": "SQLMesh has no windows: who reads a rolling week follows for a week, who declared to "
    "be ungated does not follow.",
}
WIDER, _THROUGH, NARROWER, NEVER_TWICE, WINDOWS = RULES


@frozen
class Spec:
    """A model of a random project."""

    kind: str
    unit: str = "hour"
    parents: tuple[int, ...] = ()
    reads_itself: bool = False
    disabled: bool | None = None
    lag: int = 0
    window: dict[str, Any] | None = None

    def name(self, place: int) -> str:
        return f'"m"."m{place}"'


@frozen
class Case:
    """A project, what is restated of it, and when."""

    specs: tuple[Spec, ...]
    asked: int
    time: Interval
    now: datetime = MIDNIGHT
    names: tuple[str, ...] = field(init=False)

    @names.default
    def _names(self) -> tuple[str, ...]:
        return tuple(spec.name(place) for place, spec in enumerate(self.specs))


# What SQLMesh says


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """SQLMesh tells each widening, on its console and in its log."""
    before, log = get_console(), logging.getLogger("sqlmesh")
    level = log.level
    set_console(NoopConsole())
    log.setLevel(logging.ERROR)
    yield
    set_console(before)
    log.setLevel(level)


@pytest.fixture(scope="module")
def seed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("seeds") / "seed.csv"
    file.write_text("id,ds\n1,2026-01-05\n")
    return file


def model_of(spec: Spec, name: str, names: tuple[str, ...], seed_file: Path) -> Any:
    """A model without a file or a parse: its query is always the same, what it reads is told."""
    reads = frozenset({names[place] for place in spec.parents} | ({name} if spec.reads_itself else set()))
    return _model(spec.kind, spec.unit, reads, spec.disabled, name, seed_file)


@cache
def _model(
    kind: str, unit: str, reads: frozenset[str], disabled: bool | None, name: str, seed_file: Path
) -> Any:
    """Rendering a query is what costs here; a model is not changed by who uses it."""
    if kind == "external":
        return create_external_model(name, project=PROJECT)
    if kind == "seed":
        seed = kinds.SeedKind(path=str(seed_file))
        return create_seed_model(name, seed, path=seed_file, start=START.isoformat(), project=PROJECT)
    more = {} if disabled is None else {"disable_restatement": disabled}
    return create_sql_model(
        name, _query(), kind=KINDS[kind](**more), cron=CRONS[unit], start=START.isoformat(), depends_on=set(reads),
        extract_dependencies_from_query=False, dialect="duckdb", project=PROJECT,
    )  # fmt: skip


@cache
def _query() -> exp.Select:
    return exp.select("1 AS id", "ds", "updated_at")


def snapshots_of(case: Case, seed_file: Path) -> list[Snapshot]:
    """The project as SQLMesh's state would hold it, each model recorded up to its frontier."""
    models = {
        name: model_of(spec, name, case.names, seed_file)
        for name, spec in zip(case.names, case.specs, strict=True)
    }
    found = []
    fingerprints: dict[str, Any] = {}
    for name, spec in zip(case.names, case.specs, strict=True):
        snapshot = Snapshot.from_node(models[name], nodes=models, cache=fingerprints)
        snapshot.categorize_as(SnapshotChangeCategory.BREAKING)
        if spec.kind not in ("embedded", "external"):
            unit = IntervalUnit(snapshot.node.interval_unit.value)
            frontier = unit.shift(unit.floor(case.now), -spec.lag)
            if frontier > START:
                snapshot.add_interval(START, frontier)
        found.append(snapshot)
    return found


def planned(case: Case, snapshots: list[Snapshot]) -> dict[str, Interval]:
    """What SQLMesh's plan restates, by model."""
    by_id = {s.snapshot_id: s for s in snapshots}
    diff = ContextDiff(
        environment="prod", is_new_environment=False, is_unfinalized_environment=False, normalize_environment_name=True,
        previous_gateway_managed_virtual_layer=False, gateway_managed_virtual_layer=False, create_from="prod",
        create_from_env_exists=True, added=set(), removed_snapshots={}, modified_snapshots={}, snapshots=by_id,
        new_snapshots={}, previous_plan_id="plan", previously_promoted_snapshot_ids=set(by_id),
        previous_finalized_snapshots=[s.table_info for s in snapshots], environment_statements=[],
    )  # fmt: skip
    plan = PlanBuilder(
        diff, restate_models=[case.names[case.asked]], start=case.time.start, end=case.time.end, execution_time=case.now
    ).build()  # fmt: skip
    return {s_id.name: interval(start, end) for s_id, (start, end) in plan.restatements.items()}


# Both, side by side


@frozen
class Both:
    """What either of them says of each recorded model, and what may explain a difference."""

    graph: MeshGraph
    ours: dict[str, IntervalSet]
    theirs: dict[str, IntervalSet]
    rules: dict[str, set[str]]

    def differences(self) -> Counter[str]:
        """The rules that explain a difference, each as often as it does; anything else fails."""
        used: Counter[str] = Counter()
        for name in self.graph.order():
            ours, theirs = (side.get(name, IntervalSet()) for side in (self.ours, self.theirs))
            wider = {WIDER, _THROUGH, WINDOWS} & self.rules[name] if ours - theirs else set()
            narrower = {NARROWER, NEVER_TWICE, WINDOWS} & self.rules[name] if theirs - ours else set()
            assert wider or ours <= theirs, f"{name}: ours has {ours - theirs} more: {self}"
            assert narrower or theirs <= ours, f"{name}: ours lacks {theirs - ours}: {self}"
            used.update(wider | narrower)
        return used


def both(case: Case, seed_file: Path) -> Both:
    """Restate by both."""
    snapshots = snapshots_of(case, seed_file)
    told = promoted(snapshots, plan_id="plan", finalized=True, now=case.now)
    windows = [
        {"reader": case.names[place], "parent": case.names[spec.parents[0]], **spec.window}
        for place, spec in enumerate(case.specs)
        if spec.window and spec.parents
    ]
    graph = build_graph(told, {PROJECT: {"edges": windows}}, {}, "prod")
    found = expand(
        graph,
        case.names[case.asked],
        case.time,
        told.recorded,
        disabled=told.disable_restatement,
        rebuild=True,
    )
    ranges = planned(case, snapshots)
    order = [step.name for step in found.steps]
    assert order == [name for name in graph.order() if name in set(order)], "parents come first"
    theirs = {
        name: graph[name].unit.outward(IntervalSet((range_,))) & told.recorded[name]
        for name, range_ in ranges.items()
        if graph[name].kind.recorded
    }
    return Both(
        graph,
        {step.name: step.range for step in found.steps},
        theirs,
        _explanations(graph, told.recorded, ranges, case),
    )


def _explanations(
    graph: MeshGraph, recorded: Any, ranges: dict[str, Interval], case: Case
) -> dict[str, set[str]]:
    """For each model the rules that hold for it or for what it reads."""
    rules: dict[str, set[str]] = {}
    for name in graph.order():
        node = graph[name]
        found: set[str] = set()
        for edge in graph.parents(name):
            parent = graph[edge.parent].kind
            found |= rules[edge.parent]
            if edge.parent in ranges and parent is Kind.FULL:
                found.add(WIDER)
            if edge.parent in ranges and parent is Kind.VIEW:
                found.add(_THROUGH)
            if not edge.window.is_default:
                found.add(WINDOWS)
        if name in ranges and node.kind.recorded:
            # Beyond its frontier there is nothing to read, for it and for whoever reads it.
            wanted = node.unit.outward(IntervalSet((case.time, ranges[name])))
            if not wanted <= recorded[name]:
                found.add(NARROWER)
        if node.kind is Kind.INCREMENTAL_UNMANAGED:
            found.add(NEVER_TWICE)
        rules[name] = found
    return rules


# Random projects

DECLARED = [
    {"mode": "interval", "from_s": -7200, "to_s": 0},
    {"mode": "latest", "from_s": 0, "to_s": 0},
    {"mode": "ungated", "from_s": 0, "to_s": 0},
]


@st.composite
def cases(draw: st.DrawFn, *, tidy: bool) -> Case:
    """Four to eight models. Tidy ones are recorded up to now, which is midnight, and declare nothing."""
    names = ("time",) * 6 + ("full", "full", "view", "embedded", "key", "key", "scd")
    specs: list[Spec] = []
    for place in range(draw(st.integers(4, 8))):
        root = place == 0 or draw(st.integers(0, 6)) == 0
        roots = ("time", "time", "time", "seed", "external", "full", "key")
        kind = draw(st.sampled_from(roots if root else (*names, "unmanaged") if not tidy else names))
        parents = draw(st.sets(st.integers(0, place - 1), min_size=1, max_size=3)) if not root else set()
        disabled = draw(st.sampled_from([None, None, None, False, True]))
        if kind in ("scd", "unmanaged"):
            disabled = draw(st.sampled_from([None, False, False]))
        specs.append(
            Spec(
                kind,
                draw(st.sampled_from(["five_minute", "five_minute", "hour", "hour", "day"])),
                tuple(sorted(parents)),
                reads_itself=kind == "time" and draw(st.integers(0, 5)) == 0,
                disabled=disabled if kind in ("time", "key", "scd", "unmanaged") else None,
                lag=0 if tidy else draw(st.sampled_from([0, 0, 0, 1, 3])),
                window=None if tidy or draw(st.integers(0, 9)) else draw(st.sampled_from(DECLARED)),
            )
        )
    first = draw(st.integers(0, 12 * 24 * 4 - 1)) if tidy else draw(st.integers(-36, 12 * 24 * 4 - 1))
    length = draw(st.sampled_from([1, 2, 12, 12, 30, 288, 600]))
    start = START + first * timedelta(minutes=5)
    now = MIDNIGHT if tidy else MIDNIGHT - draw(st.integers(0, 40)) * timedelta(minutes=35)
    if start >= now:
        start = now - 12 * timedelta(minutes=5)
    end = min(start + length * timedelta(minutes=5), now)
    return Case(tuple(specs), draw(st.integers(0, min(3, len(specs) - 1))), Interval(start, end), now)


@examples(330)
@given(cases(tidy=True))
def test_the_preview_is_sqlmeshs_cascade(seed_file: Path, case: Case):
    """Same models, same ranges, but for readers of refreshed tables and of views."""
    used = both(case, seed_file).differences()
    assert set(used) <= {WIDER, _THROUGH}


@examples(180)
@given(cases(tidy=False))
def test_on_meshes_that_lag_and_declare_windows_a_rule_explains_each_difference(seed_file: Path, case: Case):
    """Frontiers that differ, an asked range before the beginning, windows, tables that append."""
    both(case, seed_file).differences()


def ask(hours: float = 24, length: float = 1) -> Interval:
    return Interval(START + hours * HOUR, START + (hours + length) * HOUR)


FOLLOWS = [
    (Spec("time", "hour", (0,)), ask(24)),
    (Spec("time", "day", (0,)), ask(24, 24)),
    (Spec("time", "hour", (0,), reads_itself=True), ask(24, 72)),
    (Spec("full", "hour", (0,)), ask(0, 96)),
    (Spec("view", "hour", (0,)), ask(0, 96)),
    (Spec("key", "hour", (0,)), ask(0, 96)),
    (Spec("scd", "hour", (0,), disabled=False), ask(0, 96)),
    (Spec("scd", "hour", (0,)), None),
    (Spec("time", "hour", (0,), disabled=True), None),
]


@pytest.mark.parametrize(("reader", "range_"), FOLLOWS, ids=lambda v: getattr(v, "kind", None))
def test_each_kind_follows_as_in_sqlmesh(seed_file: Path, reader: Spec, range_: Interval | None):
    """One reader of an hour of a 5-minute model: both say exactly this."""
    found = both(Case((Spec("time", "five_minute"), reader), 0, ask()), seed_file)
    expected = {'"m"."m0"': IntervalSet((ask(),))} | ({'"m"."m1"': IntervalSet((range_,))} if range_ else {})
    assert found.ours == found.theirs == expected


DAILY = Spec("time", "day")
DIFFER = [
    (WIDER, (Spec("time"), Spec("full", parents=(0,)), Spec("time", parents=(1,)))),
    (_THROUGH, (DAILY, Spec("view", parents=(0,)), Spec("time", parents=(1,)))),
    (NARROWER, (Spec("time"), Spec("key", "day", (0,), lag=3))),
    (NEVER_TWICE, (Spec("time"), Spec("unmanaged", parents=(0,), disabled=False))),
    (WINDOWS, (Spec("time"), Spec("time", parents=(0,), window=DECLARED[0]))),
    (WINDOWS, (Spec("time"), Spec("time", parents=(0,), window=DECLARED[2]))),
]


@pytest.mark.parametrize(("rule", "specs"), DIFFER)
def test_each_rule_is_needed(seed_file: Path, rule: str, specs: tuple[Spec, ...]):
    """A project in which it, and nothing else, is the difference."""
    assert set(both(Case(specs, 0, ask()), seed_file).differences()) == {rule}


def test_every_rule_has_an_example():
    """Nothing is excused that nobody has seen."""
    assert {rule for rule, _ in DIFFER} == set(RULES)
