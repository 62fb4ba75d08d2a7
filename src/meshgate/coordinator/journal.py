"""What happens to one run's batches: asked and told by SQLMesh's scheduler, kept in the ledger."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from meshgate.coordinator.allowance import Allowance
from meshgate.coordinator.judging import judged
from meshgate.coordinator.outcome import Failure, Outcome, failure_in_words, wait_in_words
from meshgate.coordinator.progress import Batch, Planned
from meshgate.coordinator.rebuild import rebuilt
from meshgate.coordinator.standing import standings
from meshgate.coordinator.validity import compared
from meshgate.errors import EvaluationError, LeaseLostError, MeshgateError, StoppedError
from meshgate.gate import Blocked, decide
from meshgate.graph import Kind, readers_of, window_of
from meshgate.interval import Interval, IntervalSet
from meshgate.lease import loss_stops

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from datetime import datetime, timedelta

    from meshgate.bridge.scheduler import History
    from meshgate.bridge.translate import Promoted
    from meshgate.coordinator.run import Workbench
    from meshgate.graph import MeshGraph, ModelNode
    from meshgate.lease import LeaseKeeper
    from meshgate.ledger import Past, Refusal

_SHORTEST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class RunJournal:
    """The journal of one run; the bridge's `Journal`. Called from several threads.

    Args:
        bench: The ledger, whom to tell, and whether to stop.
        run_id: The fence.
        project: Whose run it is.
        keeper: The lease's keeper.
        graph: The mesh as this run sees it; a deploy gets its own in `admit`.
        version_ids: The ledger's key of each model's version.
        environment: Where versions must be promoted when a batch begins; None for a deploy.
        build: For a deploy: the graph of what its plan holds.
        promoted: For a deploy: the version that each model has in the environment so far.
        allow: What the manifests allow its batches, by the graph that it works on.
        now: The instant that counts, UTC.
        outcome: What the run has done before, where it plans a second time.
    """

    def __init__(
        self,
        bench: Workbench,
        run_id: int,
        project: str,
        keeper: LeaseKeeper,
        graph: MeshGraph,
        version_ids: Mapping[str, int],
        *,
        environment: str | None,
        now: datetime,
        build: Callable[[Promoted], MeshGraph] | None = None,
        promoted: Mapping[str, str] | None = None,
        allow: Callable[[MeshGraph], Allowance] = lambda _: Allowance(),
        outcome: Outcome | None = None,
    ) -> None:
        self.project = project
        self.outcome = Outcome() if outcome is None else outcome
        self.stale_from: Mapping[str, datetime] = {}
        self.rebuild: dict[str, Interval] = {}
        """The tables that are emptied before they are merged anew, and all of their time."""
        self._ledger = bench.ledger
        self._stop = bench.stop
        self._tell = bench.tell
        self._allow = allow
        self._allowed = allow(graph) if build is None else Allowance()
        self._broken: BaseException | None = None
        self._run_id = run_id
        self._keeper = keeper
        self._graph = graph
        self._ids = dict(version_ids)
        self._environment = environment
        self._now = now
        self._build = build
        self._promoted = promoted or {}
        self._claimed: dict[str, list[Interval]] = {}
        self._covered: dict[str, IntervalSet] = {}
        self._lock = threading.Lock()
        self._longest_s = bench.config.ledger.statement_timeout_s

    @property
    def planning(self) -> bool:
        """Whether this is a deploy."""
        return self._build is not None

    @property
    def longest_statement_s(self) -> float:
        """After how many seconds the engine is to give up a statement: before a late write is not waited for any more."""
        return self._longest_s

    def alive(self) -> bool:
        """Whether the run still holds its lease, was not asked to stop, and knows what has become of its batches."""
        return self._keeper.alive() and not self._stop.requested and self._broken is None

    def broke(self, error: BaseException) -> None:
        """Something else than an evaluation failed after a batch was begun: nobody would end its claim but the run's end."""
        self._broken = self._broken or error

    def ended(self) -> MeshgateError:
        """Why it is not alive any more."""
        if isinstance(self._broken, MeshgateError):
            return self._broken
        if self._broken is not None:
            return EvaluationError(f"{type(self._broken).__name__}: {self._broken}")
        if self._keeper.alive():
            return StoppedError(f"stopped by {self._stop.reason}; the next run goes on", run_id=self._run_id)
        return LeaseLostError(
            "the run has lost its lease, and stopped before its next batch", run_id=self._run_id
        )

    def version(self, name: str) -> str:
        """The version of a model that this run plans for."""
        return self._graph[name].version

    def superseded(self, name: str) -> None:
        """A deploy has replaced a model since the run planned: give it back, and say so."""
        node = self._graph[name]
        for piece in self._claimed.pop(name, []):
            cause = "a deploy has replaced the model since this run planned"
            self._block(node, piece, node, piece, "missing", {"cause": cause})
        self._ledger.abandon(self._run_id, self._ids[name])

    def may_continue(self, name: str) -> bool:
        """Whether a further interval of a model may be tried after one failed."""
        return not self._graph.sequential(name) and not self._graph[name].kind.as_of

    # Before

    def claim(
        self, name: str, pieces: tuple[Interval, ...] | list[Interval], covered: IntervalSet
    ) -> list[Interval]:
        """Reserve ranges of a model; those that the run now holds. What another run has is explained as blocked.

        Raises:
            LeaseLostError: The run may not write any more.
        """
        node = self._graph[name]
        held: list[Interval] = []
        whole = name in self._allowed.exclusive
        answers = self._ledger.open_claims(self._run_id, self._ids[name], pieces, whole=whole)
        for piece, answer in zip(pieces, answers, strict=True):
            if answer.refused_by is None:
                held.append(piece)
            else:
                facts = {"run_id": answer.refused_by, "lease_until": answer.free_at}
                self._block(node, piece, node, piece, "begun", facts)
        self._claimed[name] = self._claimed.get(name, []) + held
        self._covered[name] = covered
        return held

    def recorded_since(self) -> dict[str, IntervalSet]:
        """What was recorded of the claimed ranges between the plan and the claims; it is given back."""
        known = self._ledger.states(self._ids[name] for name in self._claimed)
        found: dict[str, IntervalSet] = {}
        for name, pieces in self._claimed.items():
            if name in self.rebuild:
                continue  # it would be emptied with the rest
            before = self._covered[name]
            done = (known[self._ids[name]].covered - before) & IntervalSet(pieces)
            if done:
                found[name] = done
                self._claimed[name] = list(IntervalSet(pieces) - done)
                for piece in done:
                    self._give_back(self._graph[name], piece)
        return found

    def foresee(self, plan: Promoted) -> None:
        """A deploy's look at its plan before anything is changed.

        Raises:
            ConfigError: A window that a project declares does not fit what the plan holds.
        """
        assert self._build is not None  # noqa: S101 - only deploys ask
        self._graph = self._build(plan)

    def admit(
        self, plan: Promoted, wanted: Mapping[str, IntervalSet], emptied: Collection[str] = ()
    ) -> Mapping[str, IntervalSet]:
        """A deploy's gate: what its plan wants, as far as parents are there or are made by the same plan.

        Other projects' models are evaluated only where the plan changes them: an interval that is merely due is
        the business of that project's own runs, which have its packages and its schedule.
        """
        assert self._build is not None  # noqa: S101 - only deploys ask
        graph = self._graph = self._build(plan)
        self._allowed = self._allow(graph)
        for name in graph.order():
            if graph[name].kind.recorded and graph[name].version:
                self._ids[name] = self._ledger.register_version(graph[name])
        states = self._ledger.states(self._ids[n] for n in graph.order() if n in self._ids)
        known = standings(graph, self._ids, states, self._now)
        produced: dict[str, IntervalSet] = {}
        for name in graph.order():
            node = graph[name]
            if not wanted.get(name) or (
                node.project != self.project and self._promoted.get(name) == node.version
            ):
                continue
            decision = decide(graph, name, wanted[name], known, produced, now=self._now, patience=None)
            covered = states[self._ids[name]].covered
            ready, whole, blocked = decision.ready, None, decision.blocked
            if name in emptied:
                ready, whole, blocked = rebuilt(node, decision, covered)
            with self._lock:
                self.outcome.blocked += blocked
            held = IntervalSet(self.claim(name, list(ready), covered))
            if whole is not None and held == ready:
                self.rebuild[name] = whole
            if held:
                produced[name] = held | known[name].covered if node.kind.as_of else held
        admitted = {n: s & IntervalSet(self._claimed.get(n, [])) for n, s in produced.items()}
        units = tuple((n, graph[n].unit.count(s)) for n, s in admitted.items() if s)
        self._tell(Planned(self.project, units))
        return admitted

    def promoting(self) -> None:
        """A deploy is about to replace models: nothing of them begins any more, and what was begun is waited for.

        Raises:
            LeaseLostError: The deploy may not go on.
            StoppedError: It was asked to stop.
            EvaluationError: A batch takes longer than the longest statement may. Nothing has been replaced.
        """
        changed = {n for n, node in self._graph.nodes.items() if node.version != self._promoted.get(n)}
        changed |= set(self._promoted) - set(self._graph.nodes)
        waited, pause = 0.0, _SHORTEST_PAUSE_S
        while True:
            with loss_stops(self._keeper):
                writing = self._ledger.pause(self._run_id, changed)
            if not writing:
                return
            run_id, model, piece = writing[0]
            if waited > self._longest_s:
                raise EvaluationError(
                    f"run {run_id} has been writing {piece} of {model.replace(chr(34), '')} for {waited:.0f} s: "
                    "the models were not replaced",
                    hint="deploy again when it has ended; `meshgate lease` shows it",
                )
            if model in self._graph:
                self._say(self._graph[model], piece, "waiting", f"for run {run_id} to end its batch")
            self._stop.sleep(pause)
            waited += pause
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            if not self.alive():
                raise self.ended()

    def begin(self, name: str, batch: Interval) -> Iterator[Interval]:
        """The pieces of a batch that may be read now, each begun when it is taken.

        A piece lies in one claim. What is no longer ready is cut out, given back and explained.

        Raises:
            LeaseLostError: The run may not write any more.
        """
        for claimed in sorted(self._claimed.get(name, ())):
            piece = claimed.intersect(batch)
            if piece is not None and self.empties(name, piece):
                # Begun in whole: from the moment it is emptied until its last batch, nobody may read it; and a crash
                # leaves all that is missing in doubt.
                refused = self._ask(self._graph[name], self.rebuild[name])
                if refused:
                    self._explain(self._graph[name], self.rebuild[name], refused)
                    return
            if piece is not None:
                yield from self._begin_piece(self._graph[name], piece)

    def validity(self, name: str) -> tuple[str, str | None] | None:
        """The columns that a project declares for it: from when to when a row holds."""
        return self._allowed.validity.get(name)

    def compares(self, name: str, piece: Interval) -> tuple[str, ...] | None:
        """Which columns do not count when it is judged whether a piece has changed; None: it is not asked, or is new."""
        known = self._covered.get(name, IntervalSet()) & IntervalSet([piece])
        return self._allowed.cut_off.get(name) if known else None

    def uncompared(self, name: str, problem: str) -> None:
        """Why that could not be found out: its readers read again."""
        with self._lock:
            self.outcome.uncompared[name] = problem

    def empties(self, name: str, piece: Interval) -> bool:
        """Whether the table is to be emptied before this piece of it is written."""
        return name in self.rebuild and piece.start == self.rebuild[name].start

    def _begin_piece(self, node: ModelNode, piece: Interval) -> Iterator[Interval]:
        refused = self._ask(node, piece)
        if not refused:
            yield piece
            return
        closed = self._explain(node, piece, refused)
        for rest in IntervalSet([piece]) - closed:
            if self._sequential(node) and closed.first is not None and rest.start > closed.first.start:
                self._give_back(node, rest)
                continue
            again = self._ask(node, rest)
            if again:  # it changed once more: the next run decides anew
                self._explain(node, rest, again)
                self._give_back(node, rest)
            else:
                yield rest
        for gone in closed:
            self._give_back(node, gone)

    def _sequential(self, node: ModelNode) -> bool:
        return self._graph.sequential(node.name) or node.kind.as_of

    def _ask(self, node: ModelNode, piece: Interval) -> tuple[Refusal, ...]:
        needs: list[tuple[int, Interval]] = []
        loaded: list[int] = []
        for gate in self._graph.gates(node.name):
            if gate.window.mode == "loaded":
                loaded.append(self._ids[gate.parent])
            else:
                window = window_of(node, self._graph[gate.parent], gate.window, piece)
                needs += [(self._ids[gate.parent], read) for read in window]
        pause = _SHORTEST_PAUSE_S
        while True:
            with loss_stops(self._keeper):
                answer = self._ledger.begin(
                    self._run_id, self._ids[node.name], piece,
                    needs=needs, loaded=loaded, environment=self._environment, limits=self._allowed.limits(node.name),
                )  # fmt: skip
            if answer.wait is None:
                self._say(node, piece, "refused" if answer.refused else "begun")
                return answer.refused
            self._say(node, piece, "waiting", wait_in_words(answer.wait))
            self._stop.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            if not self.alive():
                raise self.ended()

    def _say(self, node: ModelNode, piece: Interval, what: str, detail: str = "") -> None:
        self._tell(Batch(self.project, node.name, piece, node.unit.count(IntervalSet([piece])), what, detail))

    def _explain(self, node: ModelNode, piece: Interval, refused: tuple[Refusal, ...]) -> IntervalSet:
        """The units of a piece that the refusals close, each with its cause."""
        names = {self._ids[name]: name for name in self._ids}
        closed = IntervalSet()
        # That something is missing is no news where a failure or a suspicion says why.
        for refusal in sorted(refused, key=lambda r: r.reason == "missing"):
            parent = self._graph[names[refusal.version_id]] if refusal.version_id in names else node
            gates = [
                g
                for g in self._graph.gates(node.name)
                if g.parent == parent.name and g.window.mode != "loaded"
            ]
            span, whole = IntervalSet([refusal.interval]), IntervalSet([piece])
            readers = whole if not gates else IntervalSet()
            for gate in gates:
                readers |= readers_of(node, parent, gate.window, span, whole)
            if refusal.reason == "missing":
                readers -= closed
            closed |= readers
            for interval in readers:
                self._block(node, interval, parent, refusal.interval, refusal.reason, refusal.detail)
        return closed or IntervalSet([piece])

    def _give_back(self, node: ModelNode, piece: Interval) -> None:
        if not node.kind.as_of and not self._ledger.give_up(self._run_id, self._ids[node.name], piece):
            self._ledger.abandon(self._run_id, self._ids[node.name], piece)

    def _block(
        self, node: ModelNode, interval: Interval, parent: ModelNode, span: Interval, reason: str, detail: Mapping[str, Any]
    ) -> None:  # fmt: skip
        with self._lock:
            self.outcome.blocked.append(
                Blocked(node.name, node.project, interval, parent.name, parent.project, span, reason, detail)  # type: ignore[arg-type]
            )

    # After

    def commit(
        self,
        name: str,
        piece: Interval,
        *,
        audits: list[dict[str, Any]],
        duration: timedelta,
        rows: int | None,
        history: History | None = None,
        same: IntervalSet | None = None,
    ) -> None:
        """Record a piece in the ledger.

        Raises:
            LeaseLostError: Nothing was recorded; the piece is suspect.
        """
        node = self._graph[name]
        warned = [a for a in audits if a["count"]]
        why = failure_in_words({"audits": warned}) if warned else None
        holds = name in self._allowed.holding and node.kind is not Kind.AUDIT
        fresh = max(
            piece.start, self._frontier(name)
        )  # a deploy's piece begins with what its plan looks back at
        first = node.unit.shift(fresh, -node.lookback)
        lookback = Interval(first, piece.start) if first < piece.start and fresh < piece.end else None
        changed, told = self._compared(node, piece, history)
        with loss_stops(self._keeper):
            made = self._ledger.commit(
                self._run_id, self._ids[name], piece, verdict="warned" if warned else "passed", audits=audits,
                duration=duration, rows=rows, lookback=lookback, stale_from=self.stale_from.get(name),
                hold=why if holds else None, changed_from=changed, past=told, same=same,
                judged=judged(self._graph, self._ids, node, piece, why, self._allowed.judging.get(name, ())),
            )  # fmt: skip
        self._say(node, piece, "committed")
        kept = self._ledger.touched(self._ids[name], made) if same else IntervalSet()
        with self._lock:
            self.outcome.committed[name] = self.outcome.committed.get(name, IntervalSet()) | IntervalSet(
                [piece]
            )
            if kept:
                self.outcome.unchanged[name] = self.outcome.unchanged.get(name, IntervalSet()) | kept
            if warned:
                self.outcome.warned.append(Failure(name, node.project, piece, {"audits": warned}))

    def _compared(
        self, node: ModelNode, piece: Interval, history: History | None
    ) -> tuple[datetime | None, Past | None]:
        """From when on the table tells another history than when it was recorded last, and what that is now."""
        if history is None:
            return None, None
        done = self.outcome.committed.get(node.name, IntervalSet())
        covered = self._covered.get(node.name, IntervalSet()) | done | IntervalSet([piece])
        return compared(node.unit, covered, self._ledger.past(self._ids[node.name]), history)

    def _frontier(self, name: str) -> datetime:
        covered = self._covered.get(name)
        return covered.last.end if covered and covered.last else self._graph[name].life.start

    def recorded(self, name: str, piece: Interval) -> Interval:
        """What SQLMesh's own record should hold after a piece was committed.

        A refresh writes the whole table, whatever part of time it is called for; so it also repairs SQLMesh's record
        where somebody removed a part of it, or a run died before it was written.
        """
        hull = (self._covered.get(name, IntervalSet()) | IntervalSet([piece])).hull
        return hull if hull is not None and self._graph[name].kind.reads_everything else piece

    def mirrored(
        self, name: str, piece: Interval, problem: str | None, altered: datetime | None = None
    ) -> None:
        """SQLMesh's own record holds the piece too, and when it was written; or could not be written."""
        if problem is None:
            self._ledger.note_mirrored(self._run_id, self._ids[name], piece, altered)
        else:
            with self._lock:
                self.outcome.unmirrored.append((name, piece, problem))

    def fail(self, name: str, piece: Interval, detail: dict[str, Any]) -> None:
        """Record that a piece failed.

        Raises:
            LeaseLostError: It is suspect instead.
        """
        self._say(self._graph[name], piece, "failed", failure_in_words(detail))
        with self._lock:
            self.outcome.failed.append(Failure(name, self._graph[name].project, piece, detail))
        with loss_stops(self._keeper):
            self._ledger.fail(self._run_id, self._ids[name], piece, detail)

    def explain_the_rest(self) -> None:
        """Explain what was claimed and came to nothing: nothing that is due is skipped in silence."""
        for name, pieces in self._claimed.items():
            node = self._graph[name]
            told = [f.interval for f in self.outcome.failed if f.model == name]
            told += [b.interval for b in self.outcome.blocked if b.model == name]
            done = self.outcome.committed.get(name, IntervalSet())
            for rest in IntervalSet(pieces) - done - IntervalSet(told):
                failed = any(f.model == name for f in self.outcome.failed)
                cause = "its own earlier interval failed" if failed else "a signal of the model refused it"
                self._block(node, rest, node, rest, "missing", {"cause": cause})
