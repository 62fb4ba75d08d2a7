"""A small mesh at the level of ledger, plan, gate and journal, for the tests of the promises; SQLMesh is left out."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ledger_scene import GRACE, TTL, Scene, at
from meshgate.config import LedgerConfig, MeshConfig
from meshgate.coordinator import Workbench
from meshgate.coordinator.journal import RunJournal
from meshgate.coordinator.plan import ModelPlan, Plan, make_plan
from meshgate.coordinator.reconcile import Finding, reconcile
from meshgate.coordinator.staleness import Policy, find, rested_by, settled, states_of, tidy
from meshgate.graph import Edge, Kind, MeshGraph, ModelNode
from meshgate.interval import Interval, IntervalSet, IntervalUnit
from meshgate.lease import LeaseKeeper
from meshgate.ledger import BackOff, Lease, Ledger

if TYPE_CHECKING:
    from meshgate.coordinator.outcome import Outcome

BRONZE, SILVER, GOLD, DIMENSION = '"lake"."bronze"', '"lake"."silver"', '"lake"."gold"', '"lake"."dimension"'
MINUTES = timedelta(minutes=5)
AUDIT = {"audits": [{"audit": "not_null", "count": 3}]}

Engine = "Callable[[str, Interval], dict[str, Any] | None]"


def minutes(start: float, end: float) -> Interval:
    """An interval in minutes from the beginning."""
    return Interval(at(0) + timedelta(minutes=start), at(0) + timedelta(minutes=end))


def node(name: str, project: str, unit: str, kind: Kind = Kind.INCREMENTAL_BY_TIME_RANGE) -> ModelNode:
    cron = {"five_minute": "*/5 * * * *", "hour": "@hourly"}[unit]
    return ModelNode(name, project, "1", kind, IntervalUnit(unit), cron, start=at(0))


def no_project(*_: object, **__: object) -> Any:
    """SQLMesh is left out."""
    raise AssertionError


def goes_well(_name: str, _piece: Interval) -> dict[str, Any] | None:
    """An engine on which nothing fails."""
    return None


class Mesh:
    """Upstream (5 minutes): bronze, silver from it. Downstream (hourly): gold and a FULL dimension from silver.

    Args:
        ledger: An empty ledger whose clock may be set.
    """

    def __init__(self, ledger: Ledger, more: tuple[list[ModelNode], list[Edge]] = ([], [])) -> None:
        self.scene = Scene(ledger)
        self.ledger = ledger
        nodes = [
            node(BRONZE, "up", "five_minute"),
            node(SILVER, "up", "five_minute"),
            node(GOLD, "down", "hour"),
            node(DIMENSION, "down", "hour", Kind.FULL),
            *more[0],
        ]
        edges = [Edge(SILVER, BRONZE), Edge(GOLD, SILVER), Edge(DIMENSION, SILVER), *more[1]]
        self.graph = MeshGraph({n.name: n for n in nodes}, edges)
        self.policy = Policy(throttle=timedelta(0))
        self.budgets: dict[str, int] = {}
        self.ledger.sync_environment("prod", "plan", self.graph, {"up", "down"})
        self.bench = Workbench(
            MeshConfig(Path("meshgate.yaml"), LedgerConfig("local"), ()), ledger, no_project
        )
        self.told: dict[str, IntervalSet] = {}
        self.ids = self.ledger.manifest("prod").version_ids
        self.pause = timedelta(0)  # what failed is tried again at once, unless a test says otherwise
        self.time(0)

    def time(self, passed: float) -> None:
        """Set the clock, in minutes from the beginning."""
        self.scene.set_clock(at(0) + timedelta(minutes=passed))

    def plan(self, *projects: str) -> Plan:
        """What a run of some projects would do now."""
        manifest, now = self.ledger.manifest("prod"), self.scene.now
        states = states_of(self.ledger, manifest, now, lambda _: self.policy)
        return make_plan(
            self.graph, self.ids, states, set(projects) or None,
            environment="prod", now=now, patience=lambda _: None,
            rested=rested_by(self.ledger, manifest, now, lambda _: self.policy), budgets=self.budgets,
        )  # fmt: skip

    def of(self, name: str) -> ModelPlan:
        """What a run of a model's project would do with the model now."""
        (found,) = (m for m in self.plan(self.graph[name].project).models if m.name == name)
        return found

    def acquire(self, project: str, *, grace: timedelta = GRACE, share: bool = False) -> Lease:
        lease = self.ledger.acquire(
            project, "prod", "run", {}, ttl=TTL, grace=grace, share=share, back_off=BackOff(first=self.pause)
        )
        assert isinstance(lease, Lease), lease
        return lease

    def journal(self, lease: Lease, project: str) -> RunJournal:
        """The journal of a run, as the coordinator makes it."""
        keeper = LeaseKeeper(self.ledger, lease, LeaseKeeper.now())
        return RunJournal(
            self.bench,
            lease.run_id,
            project,
            keeper,
            self.graph,
            self.ids,
            environment="prod",
            now=self.scene.now,
        )

    def claim(self, journal: RunJournal, plan: Plan) -> dict[str, list[Interval]]:
        """Reserve what a plan wants, as a run does before it evaluates anything."""
        return {
            m.name: journal.claim(m.name, m.pieces, plan.standings[m.name].covered)
            for m in plan.models
            if m.ready
        }

    def evaluate(self, journal: RunJournal, name: str, piece: Interval, engine: Engine = goes_well) -> None:
        """One batch, as the bridge does it: begin, evaluate, commit or halve or fail."""
        for ready in journal.begin(name, piece):
            trouble = engine(name, ready)
            units = list(self.graph[name].unit.split(ready))
            if trouble is None:
                journal.commit(name, ready, audits=[], duration=timedelta(seconds=1), rows=1)
                told = journal.recorded(name, ready)
                self.told[name] = self.told.get(name, IntervalSet()) | IntervalSet([told])
                journal.mirrored(name, told, None)
            elif len(units) == 1 or self.graph[name].kind.as_of:
                journal.fail(name, ready, trouble)
            else:
                middle = units[len(units) // 2].start
                self.evaluate(journal, name, Interval(ready.start, middle), engine)
                self.evaluate(journal, name, Interval(middle, ready.end), engine)

    def run(self, project: str, engine: Engine = goes_well) -> Outcome:
        """One whole run of a project."""
        lease = self.acquire(project)
        plan = self.plan(project)
        journal = self.journal(lease, project)
        journal.stale_from = {m.name: m.stale_from for m in plan.models if m.stale_from is not None}
        for name, pieces in self.claim(journal, plan).items():
            for piece in pieces:
                self.evaluate(journal, name, piece, engine)
        self.ledger.finish(lease.run_id, "done", {})
        return journal.outcome

    def stale(self) -> dict[str, IntervalSet]:
        """What is stale of each model now."""
        found = find(self.ledger, "prod", self.graph, self.ids)
        return {name: IntervalSet(s.interval for s in pairs) for name, pairs in found.items()}

    def settle(self) -> None:
        """Remember what is not stale, as a run does at its end."""
        at = self.ledger.revision()
        stale = find(self.ledger, "prod", self.graph, self.ids)
        self.ledger.settle("prod", settled(stale, self.graph.nodes), self.ids, at)

    def tidy(self, cold: timedelta = timedelta(seconds=-1)) -> int:
        """Merge whatever can be merged; how many rows are left."""
        self.ledger.database.execute("SELECT meshgate.next_revision()")  # the newest row is never merged
        for project in ("up", "down"):
            tidy(self.ledger, project, cold=cold)
        return int(self.ledger.database.execute("SELECT count(*) AS n FROM meshgate.coverage")[0]["n"])

    def mark(self, name: str, interval: Interval, kind: str) -> None:
        self.scene.mark(self.ids[name], interval, kind)

    def covered(self, name: str) -> IntervalSet:
        return self.ledger.states([self.ids[name]])[self.ids[name]].covered

    def foreign(self, **recorded: IntervalSet) -> list[Finding]:
        """Look at what SQLMesh's state holds: what the ledger holds, but for the models that are given."""
        held = {name: self.covered(name) for name in self.graph.nodes}
        held |= {f'"lake"."{name}"': time for name, time in recorded.items()}
        found = SimpleNamespace(
            plan_id="plan",
            finalized=True,
            nodes=self.graph.nodes,
            parents={n: tuple(e.parent for e in self.graph.parents(n)) for n in self.graph.nodes},
            recorded=held,
            unbroken={},
            altered={},
            removed={},
        )
        state = SimpleNamespace(project="up", state_schema="sqlmesh", promoted=lambda *_: found)
        self.scene.pass_time(1)
        return list(reconcile(self.ledger, state, "prod", self.scene.now))  # type: ignore[arg-type]
