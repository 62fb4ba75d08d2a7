"""What became of the tables while time passed: the mesh's history, read through meshgate, put in order for people.

Each event of the ledger is placed at the instant for which its run stood (`--now`, in a simulation), else at the one at which the
run began. What people did is placed at the last such instant before it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from meshgate.graph import window_of
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet
from meshgate.report.wording import model_name, what_failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import timedelta

    from meshgate.graph import MeshGraph, ModelNode
    from meshgate.mesh import Mesh

WHY = {
    "changed": "the source had changed: late rows, or a correction",
    "asked": "somebody asked for it",
    "followed": "a table that it reads had been computed again",
    "lookback": "it looks back for late rows with every new interval",
    "failed": "it had failed before",
    "suspect": "nobody knew what it held: a run died, or somebody wrote beside meshgate",
    "deployed": "another definition of it was deployed",
    "other": "for a reason that the ledger no longer tells",
}
"""Why an interval is computed more than once."""
_ORDER = ("requested", "failed", "suspect", "removed", "lookback")
_WATCH = "the watch of"
"""How meshgate signs what it asks for itself, because a source has changed."""

_Reason = tuple[Interval, str, "Mapping[str, Any]"]
"""A mark: some time, its kind, and its facts."""


@dataclass(frozen=True)
class RunMark:
    """One run: when, how it ended, and how long it took.

    Attributes:
        at: The instant that it stood for, UTC.
        kind: `deploy`, `failed`, `lost`, `waited` (all that was due waits), `worked` or `idle`.
        took: By the real clock; None if it did not end.
    """

    at: datetime
    kind: str
    took: timedelta | None
    committed: int


@dataclass(frozen=True)
class Again:
    """Some time of a model that was computed again. `why` is a key of WHY; `cause` says it in words."""

    at: datetime
    model: str
    time: Interval
    why: str
    cause: str
    same: bool


@dataclass(frozen=True)
class Incident:
    """What is no ordinary work: a failure, a hold, an acceptance, a request, a stranger's write, a run that died."""

    at: datetime
    kind: str
    model: str
    time: Interval | None
    text: str


@dataclass
class Lane:
    """One model. Times UTC, half-open.

    Attributes:
        first: When each part of it was recorded for the first time, in the order of what happened.
        again: How often each part was computed after that, likewise.
        failing: What failed when it was tried last.
        accepted: What a person took as it was.
        delays: How long after its end each interval was recorded, where no deploy made it.
    """

    model: str
    project: str
    kind: str
    whole: bool
    node: ModelNode
    covered: IntervalSet = field(default_factory=IntervalSet)
    first: list[tuple[datetime, Interval]] = field(default_factory=list)
    again: list[Again] = field(default_factory=list)
    failed: list[Interval] = field(default_factory=list)
    failing: IntervalSet = field(default_factory=IntervalSet)
    accepted: IntervalSet = field(default_factory=IntervalSet)
    delays: list[timedelta] = field(default_factory=list)

    @property
    def evaluated(self) -> int:
        """How many of its intervals were recorded, however often."""
        return self.node.unit.count(self.covered)

    @property
    def repeated(self) -> int:
        """How many intervals were computed once more than once, each time counted."""
        return sum(self.node.unit.count(IntervalSet([a.time])) for a in self.again)


@dataclass(frozen=True)
class Timeline:
    """A mesh's history. `span` is the time that runs and data lie in; None if nothing was recorded."""

    span: Interval | None
    runs: Mapping[str, list[RunMark]]
    lanes: list[Lane]
    incidents: list[Incident]
    complete: bool

    @property
    def reasons(self) -> Counter[str]:
        """How many intervals were computed again, by reason."""
        found: Counter[str] = Counter()
        for lane in self.lanes:
            for one in lane.again:
                found[one.why] += lane.node.unit.count(IntervalSet([one.time]))
        return found


def read(mesh: Mesh, environment: str = "prod") -> Timeline:
    """A mesh's history in an environment.

    Raises:
        NotDeployedError: Nothing was deployed there.
    """
    manifest = mesh.ledger.manifest(environment)
    told = list(reversed(mesh.ledger.runs(environment=environment, limit=1_000_000)))
    story = _Story(manifest.graph, {v["version_id"]: v for v in mesh.ledger.versions()}, told)
    for event in mesh.ledger.history():
        story.tell(event)
    lanes = [story.lane(name) for name in manifest.graph.order() if manifest.graph[name].kind.recorded]
    runs: dict[str, list[RunMark]] = {}
    for run in told:
        runs.setdefault(run["project"], []).append(_run(run))
    return Timeline(_span(runs, lanes), runs, lanes, story.incidents, mesh.ledger.forgotten() == 0)


def _run(row: Mapping[str, Any]) -> RunMark:
    counts = row["counts"] or {}
    done, failed = int(counts.get("committed") or 0), int(counts.get("failed") or 0)
    kind = row["state"] if row["state"] in ("failed", "lost") else "idle"
    if failed:
        kind = "failed"
    elif kind == "idle":
        kind = (
            "deploy"
            if row["purpose"] == "deploy"
            else "worked"
            if done
            else "waited"
            if counts.get("blocked")
            else "idle"
        )
    took = row["ended_at"] - row["started_at"] if row["ended_at"] else None
    return RunMark(row["as_of"] or row["started_at"], kind, took, done)


def _span(runs: Mapping[str, list[RunMark]], lanes: list[Lane]) -> Interval | None:
    instants = [run.at for found in runs.values() for run in found]
    starts = [lane.covered.first.start for lane in lanes if lane.covered.first and not lane.whole]
    if not instants:
        return None
    start, end = min([*instants, *starts]), max(instants)
    return Interval(start, end) if start < end else None


class _Story:
    """Follows the events, one after the other."""

    def __init__(
        self, graph: MeshGraph, versions: Mapping[int, Mapping[str, Any]], runs: list[dict[str, Any]]
    ) -> None:
        self.graph = graph
        self.lanes: dict[str, Lane] = {}
        self.incidents: list[Incident] = []
        self._versions = versions
        self._runs = {run["run_id"]: run for run in runs}
        self._at: datetime | None = None
        self._made: dict[int, IntervalSet] = {}  # by version
        self._open: dict[int, list[_Reason]] = {}  # reasons to compute again
        self._log: dict[str, list[tuple[int, Interval]]] = {}  # commits by model: revision, what they stamped
        self._by: dict[int, str] = {}  # requests: by whom

    def tell(self, event: dict[str, Any]) -> None:
        run = self._runs.get(event["run_id"]) if event["run_id"] is not None else None
        self._at = (run["as_of"] or run["started_at"]) if run else self._at or event["at"]
        kind, detail = event["kind"], event["detail"]
        version = self._versions.get(event["version_id"])
        model = version["model"] if version else ""
        if kind == "request.made":
            self._by[detail["request_id"]] = detail["by"]
            if not detail["by"].startswith(_WATCH):
                self._incident(
                    "asked",
                    detail["model"],
                    event["interval"],
                    f"{detail['by']} asked for it again: {detail['reason']}",
                )
        elif kind == "run.lost":
            self._incident(
                "lost", "", None, f"a run of {run['project'] if run else '?'} died: {detail.get('cause')}"
            )
        if model not in self.graph:
            return
        if kind == "interval.committed":
            self._committed(event, model, run)
        elif kind.startswith("interval."):
            self._other(kind.removeprefix("interval."), event, model)

    def _incident(self, kind: str, model: str, time: Interval | None, text: str) -> None:
        assert self._at is not None  # noqa: S101 - set before anything is told
        self.incidents.append(Incident(self._at, kind, model, time, text))

    def lane(self, model: str) -> Lane:
        """What has become of a model so far."""
        node = self.graph[model]
        return self.lanes.setdefault(model, Lane(model, node.project, node.kind.value, node.kind.as_of, node))

    def _other(self, what: str, event: dict[str, Any], model: str) -> None:
        lane, time, detail = self.lane(model), event["interval"], event["detail"]
        if what in ("failed", "suspect", "removed", "requested", "lookback"):
            written = detail.get("written")
            self._open.setdefault(event["version_id"], []).append((time, what, detail))
            if what == "failed":
                shown = _instants(written) if written else time
                lane.failed.append(shown)
                lane.failing |= IntervalSet([shown])
                self._incident("failed", model, shown, what_failed(detail))
            elif what == "suspect":
                self._incident(
                    "suspect",
                    model,
                    _instants(written) if written else time,
                    str(detail.get("cause") or WHY["suspect"]),
                )
        elif what == "accepted":
            lane.accepted |= IntervalSet([time]) if time.start != MIN_INSTANT else IntervalSet()
            lane.failing -= IntervalSet([time])
            self._made[event["version_id"]] = self._made.get(
                event["version_id"], IntervalSet()
            ) | IntervalSet([time])
            self._incident(
                "accepted", model, time, f"{detail['by']} accepted it as it is: {detail['reason']}"
            )
        elif what == "held":
            self._incident(
                "held", model, time, f"{detail['by']} keeps it from its readers: {detail['reason']}"
            )
        elif what == "released":
            self._incident("released", model, time, f"{detail['by']} gave it back to its readers")
        elif what == "added_elsewhere":
            self._incident("foreign", model, time, "plain SQLMesh recorded it, without asking meshgate")

    def _committed(self, event: dict[str, Any], model: str, run: Mapping[str, Any] | None) -> None:
        assert self._at is not None  # noqa: S101 - as above
        lane, time, detail, key = self.lane(model), event["interval"], event["detail"], event["version_id"]
        known = self._made.get(key, IntervalSet())
        # A table that is refreshed whole may have changed before the time that it was refreshed for.
        stamped = _instants(detail["stamped"]) if detail.get("stamped") else time
        fresh, again = IntervalSet([time]) - known, IntervalSet([time, stamped]) & known
        older = again or fresh & lane.covered
        reasons = self._open.get(key, [])
        for piece in older:
            met = [reason for reason in reasons if reason[0].overlaps(piece)]
            why, cause = (
                ("deployed", WHY["deployed"])
                if not again
                else self._why(lane.node, piece, met, event["revision"])
            )
            same = any(_instants(t).overlaps(piece) for t in detail.get("touched", ()))
            lane.again.append(Again(self._at, model, piece, why, cause, same))
        for piece in fresh - lane.covered:
            lane.first.append((self._at, piece))
            if run is None or run["purpose"] != "deploy":
                at = self._at
                lane.delays += (at - unit.end for unit in lane.node.unit.split(piece) if unit.end <= at)
        self._made[key] = known | IntervalSet([time])
        lane.covered |= IntervalSet([time])
        lane.failing -= IntervalSet([time])
        lane.accepted -= IntervalSet([time])
        self._open[key] = [
            (rest, what, why)
            for span, what, why in self._open.get(key, ())
            for rest in (IntervalSet([span]) - IntervalSet([span if lane.whole else time]))
        ]
        self._log.setdefault(model, []).append((event["revision"], stamped))

    def _why(
        self, node: ModelNode, time: Interval, reasons: Sequence[_Reason], revision: int
    ) -> tuple[str, str]:
        """Why some time is computed again: a key of WHY, and the words for it."""
        for _, what, detail in sorted(reasons, key=lambda reason: _ORDER.index(reason[1])):
            if what == "requested":
                watched = self._by.get(detail.get("request_id", 0), "").startswith(_WATCH)
                return ("changed" if watched else "asked"), str(detail.get("cause") or WHY["asked"])
            if what == "failed":
                return what, f"it had failed: {what_failed(detail)}"
            if what == "lookback":
                return what, WHY[what]
            return "suspect", str(detail.get("cause") or WHY["suspect"])
        parents = list(self._newer(node, time, revision))
        if parents:
            return "followed", f"{' and '.join(parents)} had been computed again"
        what = "lookback" if node.lookback else "other"
        return what, WHY[what]

    def _newer(self, node: ModelNode, time: Interval, revision: int) -> Iterator[str]:
        """The parents that were recorded since this time of a model was, where it reads them."""
        own = (
            made
            for made, span in reversed(self._log.get(node.name, ()))
            if made < revision and span.overlaps(time)
        )
        since = next(own, 0)
        for edge in self.graph.gates(node.name):
            reach = window_of(node, self.graph[edge.parent], edge.window, time)
            newer = takewhile(lambda entry: entry[0] > since, reversed(self._log.get(edge.parent, ())))
            if any(piece.overlaps(span) for _, span in newer for piece in reach):
                yield model_name(edge.parent)


def _instants(pair: Any) -> Interval:
    """An interval that JSON holds as two texts; null is an end of all time."""
    start, end = (datetime.fromisoformat(text) if text else None for text in pair)
    return Interval(start or MIN_INSTANT, end or MAX_INSTANT)
