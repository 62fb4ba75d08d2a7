"""What the ledger holds, what its history says that it must hold, and where they differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from meshgate.graph import Edge, Window, window_of
from meshgate.interval import MAX_INSTANT, Interval, IntervalSet
from meshgate.verification.facts import Difference, at
from meshgate.verification.replay import DOUBTS, Derived, Dirty, Piece, Replay

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from meshgate.verification.facts import Environment, Facts
    from meshgate.verification.replay import Event, Mark


def compare(facts: Facts) -> tuple[Difference, ...]:
    """Derive everything anew, and name what differs.

    Rows of the ledger may be merged with their neighbours, so no row is compared with another: recorded time is compared as a
    set; `revision` must be one that some event of the version made, and not older than the derived one; `read_revision` may be
    any that leaves staleness and marks as they are derived. Merged rows keep the highest revision and the lowest
    read_revision of their parts, and a row that is neither stale nor marked may have its read_revision raised.

    Where history was forgotten, what the ledger holds of before is taken as given, and so is whether it was stale then.
    """
    replay = Replay(facts.tables, _before(facts))
    early: list[Difference] = []
    where = {e.name: e for e in facts.environments}

    def at_begin(commit: Event) -> None:
        early.extend(_premature(facts, replay, commit, where))

    replay.walk(facts.events, at_begin)
    found = [*_number(facts), *_kinds(facts)]
    for key in sorted(facts.tables):
        derived = replay.of(key)
        if facts.forgotten:
            _adopt_merged(facts, key, derived)
        found += _coverage(facts, key, derived, replay.made.get(key, set()))
        found += _marks(facts, key, derived)
        found += _batches(facts, key, derived)
        found += _dirty(facts, key, derived)
    found += [
        at(facts, c.version_id, "claim", c.interval, f"run {c.run_id} holds it ({c.state})", f"run {c.run_id} is {c.ended}")
        for c in facts.claims
    ]  # fmt: skip
    for environment in facts.environments:
        found += _staleness(facts, replay, environment)
        found += _stuck(facts, environment)
        found += _promotions(facts, environment)
        found += _edges(facts, environment)
        for key, recorded in environment.sqlmesh.items():
            found += _sqlmesh(facts, key, recorded)
    return tuple(dict.fromkeys([*found, *early]))


def _before(facts: Facts) -> dict[int, Derived]:
    """What is taken as given: what was made before the history, also where a promotion has given it a new number since."""
    if not facts.forgotten:
        return {}
    promoted = {
        (key, event.revision)
        for event in facts.events
        if event.kind == "environment.promoted"
        for key in event.detail["versions"]
    }
    return {
        key: Derived(
            [
                row
                for row in facts.rows.get(key, ())
                if row.revision <= facts.forgotten or (key, row.revision) in promoted
            ],
            [mark for mark in facts.marks.get(key, ()) if mark.revision <= facts.forgotten],
            {
                since: Dirty(
                    *(
                        r if r is not None and r <= facts.forgotten else None
                        for r in (one.until, one.accepted)
                    )
                )
                for since, one in facts.dirty.get(key, {}).items()
                if since <= facts.forgotten
            },
        )
        for key in facts.tables
    }


def _adopt_merged(facts: Facts, key: int, derived: Derived) -> None:
    """Take as given what was made before the history and has been merged with something newer since."""
    for row in facts.rows.get(key, ()):
        known = IntervalSet(p.interval for p in derived.meeting(row.interval))
        for rest in IntervalSet([row.interval]) - known if row.merged > 1 else ():
            # The row has the number of its newest part.
            derived.record(evolve(row, interval=rest, revision=min(row.revision, facts.forgotten)))


def _number(facts: Facts) -> Iterator[Difference]:
    """The ledger's number, which only grows: whoever reads now would take what was made since for older than it is."""
    last = max((event.revision for event in facts.events), default=facts.forgotten)
    if last > facts.revision:
        said = f"the ledger is at revision {facts.revision}"
        yield Difference("revision", "", "", "", None, said, f"revision {last} was handed out")


def _kinds(facts: Facts) -> Iterator[Difference]:
    """What sort of table each version is: by its own two columns, by what events tell of it, and by SQLMesh."""
    whole = {
        e.version_id: "written" in e.detail
        for e in facts.events
        if e.version_id is not None and e.kind in ("interval.failed", "interval.suspect")
    }
    for key, table in sorted(facts.tables.items()):
        said = f"{table.kind.value}, " + ("one whole" if table.as_of else "by time")
        if table.as_of != table.kind.as_of or whole.get(key, table.as_of) != table.as_of:
            derived = whole.get(key, table.kind.as_of)
            yield at(facts, key, "kind", None, said, "one whole" if derived else "by time")
    for environment in facts.environments:
        for key, kind in environment.kinds.items():
            if kind is not facts.tables[key].kind:
                yield at(facts, key, "kind", None, facts.tables[key].kind.value, kind.value, environment.name)


# What is recorded


def _coverage(facts: Facts, key: int, derived: Derived, made: set[int]) -> Iterator[Difference]:
    rows = facts.rows.get(key, ())
    ours = IntervalSet(row.interval for row in rows)
    for gone in derived.covered - ours:
        (piece, *_) = derived.meeting(gone)
        yield at(facts, key, "coverage", gone, "not recorded", f"recorded at revision {piece.revision}")
    for row in rows:
        known = derived.meeting(row.interval)
        unknown = IntervalSet([row.interval]) - IntervalSet(p.interval for p in known)
        for extra in unknown:
            said = f"recorded at revision {row.revision}"
            yield at(facts, key, "coverage", extra, said, "nothing ever recorded it")
        for piece in known:
            part = piece.interval.intersect(row.interval)
            # Of several commits a row has the newest number.
            merged = row.merged > 1 and piece.revision < row.revision and row.revision in made
            if row.revision != piece.revision and not merged:
                said = f"made at revision {row.revision}"
                yield at(facts, key, "revision", part, said, f"made at revision {piece.revision}")
            if row.verdict != piece.verdict:
                yield at(facts, key, "verdict", part, row.verdict, piece.verdict)
        if row.read_revision > facts.revision:
            said = f"had read up to revision {row.read_revision}"
            yield at(
                facts, key, "revision", row.interval, said, f"the ledger is at revision {facts.revision}"
            )


def _marks(facts: Facts, key: int, derived: Derived) -> Iterator[Difference]:
    ours, theirs = _by_kind(facts.marks.get(key, ())), _by_kind(derived.marks)
    for kind, revision in sorted({*ours, *theirs}):
        mine, told = ours.get((kind, revision), IntervalSet()), theirs.get((kind, revision), IntervalSet())
        said = f"{kind} since revision {revision}"
        for piece in told - mine:
            yield at(facts, key, "mark", piece, "not marked", said)
        for piece in mine - told:
            yield at(facts, key, "mark", piece, said, "not marked, or discharged")
    kind_of = facts.tables[key].kind
    if kind_of.time_partitioned or kind_of.reads_everything:
        # Whoever had read that late would have discharged it.
        for mark in derived.marks:
            for row in facts.rows.get(key, ()):
                part = row.interval.intersect(mark.interval)
                # What plain SQLMesh computed settles nothing, whatever it is trusted to have read.
                if part is not None and row.read_revision >= mark.revision and row.verdict != "foreign":
                    said = f"had read up to revision {row.read_revision}"
                    yield at(
                        facts,
                        key,
                        "revision",
                        part,
                        said,
                        f"{mark.kind} since revision {mark.revision}, and not read since",
                    )


def _batches(facts: Facts, key: int, derived: Derived) -> Iterator[Difference]:
    """What was being written when a whole table went wrong: that much of one that merges is merged again."""
    batches = {(m.kind, m.revision): m.batch for m in derived.marks}
    for mark in facts.marks.get(key, ()) if facts.tables[key].kind.as_of else ():
        batch = batches.get((mark.kind, mark.revision), mark.batch)
        if mark.kind in ("failed", "suspect") and mark.batch != batch:
            said = f"{mark.kind} since revision {mark.revision}, when {mark.batch} was being written"
            yield at(facts, key, "mark", mark.interval, said, f"{batch} was being written")


def _by_kind(marks: Iterable[Mark]) -> dict[tuple[str, int], IntervalSet]:
    found: dict[tuple[str, int], IntervalSet] = {}
    for mark in marks:
        at = (mark.kind, mark.revision)
        found[at] = found.get(at, IntervalSet()) | IntervalSet([mark.interval])
    return found


def _dirty(facts: Facts, key: int, derived: Derived) -> Iterator[Difference]:
    ours = facts.dirty.get(key, {})
    for since in sorted({*ours, *derived.dirty}):
        if since not in ours and derived.dirty[since].until is not None:
            continue  # forgotten when nobody had met it; whether somebody had is told by what is stale
        if since not in ours or since not in derived.dirty or ours[since] != derived.dirty[since]:
            mine, told = (_span_of(since, spans) for spans in (ours, derived.dirty))
            yield at(facts, key, "dirty_span", None, mine, told)


def _span_of(since: int, spans: Mapping[int, Dirty]) -> str:
    if since not in spans:
        return f"no unjudged rows from revision {since} on"
    one = spans[since]
    said = "" if one.accepted is None else f", accepted at {one.accepted}"
    return f"unjudged rows from revision {since} " + ("on" if one.until is None else f"to {one.until}") + said


def _stuck(facts: Facts, environment: Environment) -> Iterator[Difference]:
    """Marks that no run can ever answer."""
    for name, key in environment.version_ids.items():
        node = environment.graph[name]
        for mark in facts.marks.get(key, ()):
            said = f"{mark.kind} since revision {mark.revision}"
            if mark.revision > facts.revision:
                why = f"the ledger is at revision {facts.revision}: no commit can have read so late"
                yield at(facts, key, "mark", mark.interval, said, why)
            elif node.kind.time_partitioned and not mark.interval.overlaps(node.life):
                why = f"the model's time is {node.life}: nothing will evaluate that again"
                yield at(facts, key, "mark", mark.interval, said, why, environment.name)


# Staleness


def _staleness(facts: Facts, replay: Replay, environment: Environment) -> Iterator[Difference]:
    for name, key in environment.version_ids.items():
        says = environment.stale.get(name, IntervalSet())
        least = _stale(facts, replay, environment, name, least=True)
        surely = IntervalSet(interval for interval, _ in least)
        for interval, why in least:
            for piece in IntervalSet([interval]) - says:
                yield at(facts, key, "stale", piece, "not stale", why, environment.name)
        if facts.forgotten:
            most = _stale(facts, replay, environment, name, least=False)
            surely = IntervalSet(interval for interval, _ in most)
        for piece in says - surely:
            yield at(facts, key, "stale", piece, "stale", "nothing that it reads is newer", environment.name)


def _stale(
    facts: Facts, replay: Replay, environment: Environment, name: str, *, least: bool
) -> list[tuple[Interval, str]]:
    """What of a model is stale and why: at least, or at most, where the ledger's beginnings are forgotten."""
    graph, ids = environment.graph, environment.version_ids
    child = graph[name]
    gates = [g for g in graph.gates(name) if g.window.mode != "loaded" and g.parent in ids]
    if child.depends_on_past and child.kind.time_partitioned:
        gates.append(Edge(name, name, Window("prefix", to_offset=-child.unit.approximate)))
    settled, at = replay.settled.get(environment.name, {}).get(ids[name], (IntervalSet(), 0))
    found: list[tuple[Interval, str]] = []
    for piece in replay.of(ids[name]).pieces if gates else ():
        given = facts.forgotten if least and piece.revision <= facts.forgotten else 0
        inside = settled if piece.revision <= at else IntervalSet()
        whole = IntervalSet([piece.interval])
        parts = [(part, max(piece.read_revision, at, given)) for part in whole & inside]
        parts += [(part, max(piece.read_revision, given)) for part in whole - inside]
        for gate in gates:
            parent, read = graph[gate.parent], replay.of(ids[gate.parent])
            spoilt = [
                since
                for since, one in read.dirty.items()
                if gate.parent != name
                and piece.written > since
                and (one.end is None or piece.read_revision < one.end)
            ]
            mine = piece if gate.parent == name else None
            for part, upto in parts:
                if not (spoilt or _newer(read, window_of(child, parent, gate.window, part), upto, mine)):
                    continue
                for unit in child.unit.split(part):
                    window = window_of(child, parent, gate.window, unit)
                    said = f"had read up to revision {upto}; {parent.name.replace(chr(34), '')}"
                    if newer := _newer(read, window, upto, mine):
                        found.append((unit, f"{said} {newer.interval} was made at {newer.revision}"))
                    elif spoilt and window:
                        found.append((unit, f"{said} held unjudged rows from revision {spoilt[0]} on"))
    return found


def _newer(parent: Derived, window: IntervalSet, upto: int, mine: Piece | None) -> Piece | None:
    """Something of a window that was made after it was read; of a model's own past not what was computed together."""
    for span in window:
        for other in parent.meeting(span):
            together = mine is not None and (
                (other.run_id, other.read_revision) == (mine.run_id, mine.read_revision)
            )
            if other.revision > upto and not together:
                return other
    return None


# Readiness


def _premature(
    facts: Facts, replay: Replay, commit: Event, environments: Mapping[str, Environment]
) -> Iterator[Difference]:
    """What a batch read, at the moment when it began, that was not clean; asked of what is promoted as it was then."""
    assert commit.version_id is not None  # noqa: S101 - a commit has both
    assert commit.interval is not None  # noqa: S101
    environment = environments.get(facts.runs.get(commit.run_id or 0, ""))
    table = facts.tables[commit.version_id]
    if environment is None or environment.version_ids.get(table.model) != commit.version_id:
        return
    revision, last_run = _last_change(facts, environment.name)
    if (commit.run_id or 0) <= last_run or commit.detail["read_revision"] < revision:
        return
    graph, child = environment.graph, environment.graph[table.model]
    known_from = facts.events[0].at if facts.forgotten else None
    for gate in graph.gates(child.name):
        if gate.parent not in environment.version_ids:
            continue
        parent, read = graph[gate.parent], replay.of(environment.version_ids[gate.parent])
        said = f"recorded, having read up to revision {commit.detail['read_revision']}"
        name = parent.name.replace('"', "")
        if gate.window.mode == "loaded":
            if not read.pieces and known_from is None:
                yield at(
                    facts,
                    commit.version_id,
                    "premature",
                    commit.interval,
                    said,
                    f"{name} was not loaded then",
                )
            continue
        window = window_of(child, parent, gate.window, commit.interval)
        lacking = window - read.covered
        if known_from is not None:
            lacking = lacking.clip(known_from, MAX_INSTANT)
        for gap in lacking:
            why = f"{name} {gap} was not recorded then"
            yield at(facts, commit.version_id, "premature", commit.interval, said, why, environment.name)
        for mark in {m for span in window for m in read.doubts(span)}:
            why = f"{name} {mark.interval} was {mark.kind} then"
            yield at(facts, commit.version_id, "premature", commit.interval, said, why, environment.name)


def _last_change(facts: Facts, environment: str) -> tuple[int, int]:
    """The revision of an environment's last change, and the last run that may have planned before it."""
    for event in reversed(facts.events):
        if event.kind.startswith("environment.") and event.detail["environment"] == environment:
            return event.revision, event.detail["last_run"] or 0
    return 0, 0


# SQLMesh


def _edges(facts: Facts, environment: Environment) -> Iterator[Difference]:
    """By whom and over which windows a model waits: an edge that is gone opens its gate."""
    for name, declared in environment.edges.items():
        if name in environment.version_ids:
            known = frozenset(environment.graph.parents(name))
            for edge in sorted(declared ^ known, key=lambda e: (e.parent, e in declared)):
                window = f"{edge.window.mode}, from {edge.window.from_offset}, to {edge.window.to_offset}"
                reads = f"it reads {edge.parent.replace(chr(34), '')}: {window}"
                mine, told = ("not so", reads) if edge in declared else (reads, "not so")
                yield at(facts, environment.version_ids[name], "edge", None, mine, told, environment.name)


def _promotions(facts: Facts, environment: Environment) -> Iterator[Difference]:
    for name, version in environment.elsewhere.items():
        key = environment.version_ids[name]
        said = f"version {facts.tables[key].version} is promoted"
        yield at(facts, key, "promotion", None, said, f"SQLMesh promotes version {version}", environment.name)


def _sqlmesh(facts: Facts, key: int, recorded: IntervalSet) -> Iterator[Difference]:
    """The two records of one version.

    Legitimately only in the ledger: what no run has taken along to SQLMesh yet (accepted holes, a run that is just working or
    died between the two records), and what is known to be gone from there: it is marked.
    """
    rows = facts.rows.get(key, ())
    for piece in recorded - IntervalSet(row.interval for row in rows):
        yield at(facts, key, "sqlmesh", piece, "not recorded", "SQLMesh has recorded it")
    mirrored = IntervalSet(row.interval for row in rows if row.mirrored)
    mirrored = mirrored & facts.mirrored_before.get(key, mirrored)
    marked = IntervalSet(m.interval for m in facts.marks.get(key, ()) if m.kind in DOUBTS)
    for piece in mirrored - recorded - marked:
        yield at(facts, key, "sqlmesh", piece, "recorded, also in SQLMesh", "SQLMesh has not recorded it")
