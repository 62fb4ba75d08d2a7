"""The rules of coordination by number, how each is taken away, and what the simulator's checker says then.

What begins with G breaks a promise; what begins with B costs time: work that waits or is done too often.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import attrs

import meshgate.coordinator.plan as planning
from meshgate.coordinator import staleness, turns
from meshgate.coordinator.staleness import Policy
from meshgate.due import Due, due
from meshgate.graph import Kind, MeshGraph, ModelNode, Window
from meshgate.interval import Interval, IntervalSet
from simulator import Simulation
from simulator_checker import Violation
from simulator_scenarios import (
    APPENDED,
    AS_OF,
    CHILD,
    FACT,
    GRANDCHILD,
    LATE_ROWS,
    LONG_S,
    MERGED,
    PAST,
    PRICES,
    ROLLING,
    SAME_PROJECT,
    SHORT_S,
    daily,
    eventful,
    everything,
)
from simulator_scene import NEVER, Bounds, Events, Troubles

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator import Report

UP = (LATE_ROWS, SAME_PROJECT)
STAR = (LATE_ROWS, PRICES, AS_OF, FACT)
CALM: dict[str, Any] = {"troubles": Troubles(), "overlap": "skip", "takes_s": SHORT_S, "bounds": Bounds()}
ONCE = timedelta(0)
NOTHING = IntervalSet()


@dataclass(frozen=True)
class Switch:
    """A rule that can be taken away.

    Attributes:
        rule: Its number, with a letter where it has several parts; a guarantee's, where no rule says more.
        says: What it says.
        breaks: How what the checker reports begins.
        seed: Of a history that breaks without it.
        without: What the simulated ledger leaves out.
        patches: What of the product is replaced.
        scene: Fields of the history; see `eventful`.
    """

    rule: str
    says: str
    breaks: str
    seed: int
    without: tuple[str, ...] = ()
    patches: tuple[tuple[Any, str, Any], ...] = ()
    scene: dict[str, Any] = field(default_factory=dict)

    def play(self, seed: int, *, on: bool) -> Report:
        """One history, with the rule or without it.

        Raises:
            Violation: Something did not hold.
        """
        with ExitStack() as stack:
            for target, name, value in () if on else self.patches:
                stack.enter_context(patch.object(target, name, value))
            fields = {"hours": 5, "events": Events(), "troubles": Troubles()} | self.scene
            if "patience" in fields and on:
                fields["patience"] = fields.pop("with_patience", None)
            fields.pop("with_patience", None)
            return Simulation(eventful(seed, **fields), seed, without=() if on else self.without).play()

    def said(self, seed: int) -> str:
        """What the checker says without the rule."""
        try:
            self.play(seed, on=False)
        except Violation as violation:
            return str(violation.args[0])
        return ""


def _lookback_with_holes(node: ModelNode, covered: IntervalSet, now: Any, **more: Any) -> Due:
    """Lookback before every missing unit."""
    found = due(node, covered, now, **more)
    before = (
        Interval(node.unit.shift(p.start, -node.lookback), p.start) for p in found.fresh if node.lookback
    )
    return attrs.evolve(found, lookback=IntervalSet(before) & covered)


def _interval_for_latest(graph: MeshGraph, name: str, kept: Callable[..., Any] = MeshGraph.gates) -> Any:
    """`latest` aligned outward: all of the parent's unit in which the reader's lies."""
    return tuple(
        attrs.evolve(g, window=Window()) if g.window.mode == "latest" else g for g in kept(graph, name)
    )


def _life_before_its_start(node: ModelNode) -> Interval:
    assert node.start is not None
    assert node.end is not None
    return Interval(node.unit.floor(node.start - timedelta(days=7)), node.unit.ceil(node.end))


def _all_settled(_ledger: Any, _environment: str, graph: MeshGraph, _unbroken: Any) -> dict[str, IntervalSet]:
    return {name: IntervalSet.everything() for name in graph.nodes}


AT_ONCE = (
    (Policy, "again_at", lambda *_: None),
    (staleness, "rested_by", lambda *_: lambda _node, time: time),
)
UNTHROTTLED = {name: Policy(throttle=ONCE) for name in everything(5).order()}

SWITCHES = (
    Switch(
        "1", "an as-of refresh stamps everything from the first stale instant on", "G5", 14,
        without=("a refresh stamps all from the first stale instant on",),
        scene={"models": STAR, "events": Events(request=2000)},
    ),
    Switch(
        "2", "a claim on an as-of table is on all of it", "G", 4,
        without=("a claim on a whole table is on all of it",),
        scene={
            "models": STAR, "overlap": "share", "readers_every_s": 300, "takes_s": LONG_S, "thinks_s": 300,
            "slow": {AS_OF: (2000, 4000)}, "troubles": Troubles(failing=0.5, of=frozenset({AS_OF})), "hours": 8,
        },
    ),
    Switch(
        "3", "who reads while a refresh fails is stale", "G5", 1,
        without=("a reader in flight over a failed refresh is stale",),
        scene={
            "models": (LATE_ROWS, AS_OF, CHILD, GRANDCHILD), "overlap": "share", "readers_every_s": 300, "lookback": 0, "hours": 10,
            "slow": {GRANDCHILD: (1500, 4000), AS_OF: (200, 500)}, "troubles": Troubles(failing=0.6, of=frozenset({AS_OF})),
        },
    ),
    Switch(
        "4", "a mark outlives an evaluation that read before it", "G", 8,
        without=("a mark outlives an evaluation that read before it",),
        scene={"models": UP, "takes_s": LONG_S, "events": Events(request=400)},
    ),
    Switch(
        "5a", "what a plain run had read is unknown", "G5", 0,
        without=("what a plain run had read is unknown",),
        scene={"models": (*UP, CHILD), "events": Events(plain=60), "readers_every_s": 3600, "takes_s": LONG_S, "lookback": 0},
    ),
    Switch(
        "5b", "a plain run over known time makes it suspect", "G4", 4,
        without=("a plain run over known time is suspect",),
        scene={
            "models": UP, "events": Events(plain=30, accept=60), "overlap": "share", "takes_s": LONG_S,
            "troubles": Troubles(failing=0.5),
        },
    ),
    Switch(
        "7a", "what replaces another version has the promotion's revision", "G5", 23,
        without=("a promotion has a revision of its own",),
        scene={"models": (*UP, CHILD), "events": Events(deploy=1500, request=1500)},
    ),
    Switch(
        "7b", "a promotion settles only what is the same as before", "G5", 5,
        patches=((staleness, "after_promotion", _all_settled),),
        scene={"models": (*UP, CHILD), "events": Events(deploy=1500, request=1500)},
    ),
    Switch(
        "7c", "a new version that had read before the old one was made is suspect", "G", 8,
        without=("what a new version read too early is suspect",),
        scene={"models": (*UP, CHILD), "events": Events(deploy=400, removal=120), "lookback": 0},
    ),
    Switch(
        "9", "a fresh unit owes its lookback", "G", 17,
        without=("a fresh unit owes its lookback",),
        scene={"models": UP, "troubles": Troubles(failing=0.1, crash=0.1), "events": Events(late=300)},
    ),
    Switch(
        "10", "what nobody told SQLMesh is evaluated again", "G5", 2,
        without=("what nobody told SQLMesh is evaluated again",),
        scene={"models": UP, "troubles": Troubles(unmirrored=0.2), "events": Events(removal=300)},
    ),
    Switch(
        "11a", "what a lost run may still write is waited out", "G4", 2,
        without=("a lost claim is waited out",),
        scene={"models": UP, "troubles": Troubles(crash=0.3), "grace_s": 1800},
    ),
    Switch(
        "11b", "a refused write is suspect", "G4", 2,
        without=("a refused write is suspect",),
        scene={"models": UP, "troubles": Troubles(pause=0.2)},
    ),
    Switch(
        "12", "an acceptance is a commit", "G5", 12,
        without=("an acceptance is a commit",),
        scene={"models": (*UP, CHILD), "troubles": Troubles(failing=0.3), "events": Events(request=600, accept=200)},
    ),
    Switch(
        "13a", "a batch reads from its begin on", "B computed again", 5,
        without=("a batch reads from its begin on",), scene={"models": UP, "hours": 2, **CALM},
    ),
    Switch(
        "13b", "what was never begun is given back clean", "B in doubt", 2,
        without=("what was never begun is given back clean",), scene={"models": UP, "troubles": Troubles(crash=0.2)},
    ),
    Switch(
        "14", "the gate is asked again at begin", "G1 begun", 2,
        without=("the gate is asked again at begin",), scene={"models": UP, "troubles": Troubles(failing=0.2)},
    ),
    Switch(
        "15", "what a run makes stale is due in the same run", "B left stale", 2,
        patches=((planning, "_follows", lambda *_: NOTHING),),
        scene={"models": UP, **CALM, "events": Events(request=1500), "policy": UNTHROTTLED, "bounds": Bounds(in_one_run=True)},
    ),
    Switch(
        "16a", "stale and marked parents close a gate for a while only", "B waited too long", 4,
        scene={
            "models": (LATE_ROWS, CHILD, GRANDCHILD), **CALM, "lookback": 24, "hours": 8, "overlap": "share", "takes_s": LONG_S,
            "readers_every_s": 3600, "patience": NEVER, "bounds": Bounds({GRANDCHILD: 34 * 300}, causeless=True),
        },
    ),
    Switch(
        "16b", "a redo stands back for one turn of a reader that has lost patience", "B waited too long", 1,
        patches=((turns, "goes_first", lambda *_: False),),
        scene={
            "models": (LATE_ROWS, CHILD), **CALM, "lookback": 24, "hours": 6, "overlap": "share", "takes_s": LONG_S,
            "readers_every_s": 3600, "patience": timedelta(minutes=30), "with_patience": timedelta(minutes=30),
            "bounds": Bounds({CHILD: 24 * 300}, causeless=True),
        },
    ),
    Switch(
        "17", "stale time is left alone for a period after its own last read", "B computed again too soon", 1,
        patches=AT_ONCE, scene={"models": (LATE_ROWS, CHILD), **CALM, "bounds": Bounds(rests_s=3600), "events": Events(request=600)},
    ),
    Switch(
        "18", "rows of one commit do not make each other stale", "B computed again without", 4,
        without=("rows of one commit do not make each other stale",),
        scene={"models": (*UP, PRICES, PAST), **CALM, "hours": 2, "policy": UNTHROTTLED},
    ),
    Switch(
        "19", "a window is clipped to the parent's life", "G3 left blocked", 5,
        patches=((ModelNode, "life", property(_life_before_its_start)),),
        scene={"models": (*UP, CHILD, ROLLING), **CALM},
    ),
    Switch(
        "20", "`latest` is aligned inward", "B waited too long", 1,
        patches=((MeshGraph, "gates", _interval_for_latest),),
        scene={"graph": daily(48), "hours": 48, **CALM, "readers_every_s": 3600, "bounds": Bounds({FACT: 3 * 3600})},
    ),
    Switch(
        "21", "lookback goes with units beyond the frontier only", "B computed again without", 5,
        patches=((planning, "due", _lookback_with_holes),),
        scene={"models": UP, **CALM, "troubles": Troubles(poisoned=0.05)},
    ),
    Switch(
        "22", "the staleness of tables that merge is only shown", "B merged again", 0,
        patches=((Policy, "redoes", lambda policy, _node: policy.reprocess),),
        scene={"models": (*UP, MERGED), **CALM, "events": Events(request=2000)},
    ),
    Switch(
        "23a", "nothing is appended twice that was recorded", "G4 rows appended", 12,
        patches=((Kind, "redoable", True),),
        scene={"models": (*UP, CHILD, APPENDED), "events": Events(request=1000)},
    ),
    Switch(
        "23b", "nor what may be there though it was not recorded", "G4 rows appended", 6,
        patches=((planning, "_maybe_appended", lambda *_: ()),),
        scene={"models": (*UP, CHILD, APPENDED), "troubles": Troubles(failing=0.2)},
    ),
    Switch(
        "25", "a request marks only what was asked for", "B merged again", 0,
        without=("a request marks what was asked for",),
        scene={"models": (*UP, MERGED), **CALM, "events": Events(request=2000)},
    ),
    Switch(
        "G2", "two live claims never overlap", "G2", 4,
        without=("two live claims never overlap",), scene={"models": UP, "overlap": "share", "thinks_s": 500},
    ),
    Switch(
        "G4a", "a lost lease records nothing", "G4", 2,
        without=("a lost lease records nothing",), scene={"models": UP, "troubles": Troubles(pause=0.2)},
    ),
    Switch(
        "G4b", "what was begun and not committed is suspect", "G4", 9,
        without=("what was begun and not committed is suspect",),
        scene={"models": UP, "troubles": Troubles(crash=0.2), "events": Events(request=1000)},
    ),
    Switch(
        "G5", "who read rows that were computed again since is stale", "G5", 6,
        without=("a reader of older rows is stale",), scene={"models": (*UP, CHILD), "events": Events(request=2000)},
    ),
    Switch(
        "hold", "held time is not read", "G1", 6,
        without=("held time is not read",), scene={"models": (*UP, CHILD), "events": Events(hold=1000)},
    ),
)  # fmt: skip

LEFT_OUT = {
    "6": "what plain SQLMesh evaluates again leaves no trace; a history of a foreign write over recorded time cannot heal",
    "8": "neighbouring ranges are not merged yet",
    "24": "there is no horizon yet",
    "26": "who an external table belongs to is settled when the graph is built, before anything is decided",
}
