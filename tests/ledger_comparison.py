"""The rows of a ledger in the words of the oracle: everything that both know, cell by cell."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ledger_paper import WHOLE
from ledger_scene import CELLS, at, cells, span
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval
from meshgate.ledger import WHOLE as ALL_TIME

if TYPE_CHECKING:
    from ledger_oracle import Oracle
    from ledger_paper import Cells
    from meshgate.ledger import Ledger

LOOK = """
SELECT (SELECT revision FROM meshgate.ledger) AS revision,
  (SELECT jsonb_object_agg(run_id, jsonb_build_array(state, extract(epoch FROM expires_at)))
   FROM meshgate.run) AS runs,
  (SELECT jsonb_agg(jsonb_build_array(run_id, version_id, lower(span), upper(span), state, opened_revision,
                                      read_revision, quarantined_until, lower(batch), upper(batch)))
   FROM meshgate.claim) AS claims,
  (SELECT jsonb_agg(jsonb_build_array(version_id, lower(span), upper(span), revision, read_revision, run_id, verdict,
                                      committed_at, mirrored_at))
   FROM meshgate.coverage) AS coverage,
  (SELECT jsonb_agg(jsonb_build_array(version_id, kind, lower(span), upper(span), revision, attempts, retry_at,
                                      lower(batch), upper(batch)))
   FROM meshgate.mark) AS marks,
  (SELECT jsonb_agg(jsonb_build_array(version_id, from_revision, to_revision, accepted_revision)) FROM meshgate.dirty_span) AS dirty,
  (SELECT jsonb_agg(jsonb_build_array(v.version_id, lower(h.span), upper(h.span)))
   FROM meshgate.hold h JOIN meshgate.version v USING (model_id) WHERE h.released_at IS NULL) AS held,
  (SELECT count(*) FROM meshgate.claim a JOIN meshgate.claim b ON a.claim_id < b.claim_id
     AND a.version_id = b.version_id AND a.span && b.span
     AND a.state IN ('open', 'begun') AND b.state IN ('open', 'begun')) AS overlapping,
  (SELECT count(*) FROM meshgate.claim c WHERE c.state = 'begun' AND EXISTS (
     SELECT FROM unnest(%(hours)s::tstzrange[]) AS h WHERE h <@ c.span
       AND NOT EXISTS (SELECT FROM meshgate.unclean(c.version_id, h)))) AS begun_and_clean
"""
HOURS = [f"[{at(c).isoformat()},{at(c + 1).isoformat()})" for c in range(CELLS)]


def instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def time_of(lower: str | None, upper: str | None) -> Cells:
    return cells(Interval(instant(lower) or MIN_INSTANT, instant(upper) or MAX_INSTANT))


def interval_of(piece: Cells) -> Interval:
    return ALL_TIME if piece == WHOLE else span(min(piece), max(piece) + 1)


def compare(ledger: Ledger, oracle: Oracle) -> None:
    """Fail where the ledger holds anything else than the oracle's paper."""
    row = ledger.database.execute(LOOK, {"hours": HOURS})[0]
    assert row["revision"] == oracle.revision
    assert {int(k): (s, float(e)) for k, (s, e) in (row["runs"] or {}).items()} == {
        k: (run.state, run.expires.timestamp()) for k, run in oracle.runs.items()
    }
    _claims(row["claims"] or (), oracle)
    facts: dict[tuple[int, int], Any] = {}
    for v, lower, upper, made, read, run, verdict, committed, mirrored in row["coverage"] or ():
        for cell in time_of(lower, upper):
            assert (v, cell) not in facts
            facts[v, cell] = (made, read, run, verdict, instant(committed), instant(mirrored))
    assert facts == {(v, c): tuple(f) for v, table in oracle.versions.items() for c, f in table.facts.items()}
    _marks(row["marks"] or (), oracle)
    assert {(v, since): (until, taken) for v, since, until, taken in row["dirty"] or ()} == {
        (v, since): ends for v, table in oracle.versions.items() for since, ends in table.dirty.items()
    }
    assert {(v, c) for v, lower, upper in row["held"] or () for c in time_of(lower, upper)} == {
        (v, c) for v, table in oracle.versions.items() for c in table.held
    }
    assert row["overlapping"] == 0, "two live runs hold the same time"
    assert row["begun_and_clean"] == 0, "what is being written may be read"


def _claims(rows: Any, oracle: Oracle) -> None:
    assert sorted(
        (
            (
                r,
                v,
                sorted(time_of(lo, up)),
                s,
                o,
                rr,
                instant(q),
                sorted(time_of(b, e)) if s == "begun" else [],
            )
            for r, v, lo, up, s, o, rr, q, b, e in rows
        ),
        key=str,
    ) == sorted(
        (
            (
                *(c.run, c.version, sorted(c.cells), c.state, c.opened, c.read, c.quarantine),
                sorted(c.begun) if c.state == "begun" else [],
            )
            for c in oracle.claims
        ),
        key=str,
    )


def _marks(rows: Any, oracle: Oracle) -> None:
    marks: dict[tuple[int, str, int], Any] = {}
    doubt: dict[tuple[int, str], Cells] = {}
    for v, kind, lower, upper, made, attempts, retry, first, last in rows:
        if kind in ("failed", "suspect") and oracle.versions[v].as_of:
            doubt[v, kind] = time_of(first, last)
        for cell in time_of(lower, upper):
            assert (v, kind, cell) not in marks
            marks[v, kind, cell] = (made, attempts, instant(retry))
    assert marks == {
        (v, kind, c): tuple(reason)
        for v, table in oracle.versions.items()
        for kind, known in table.marks.items()
        for c, reason in known.items()
    }
    assert doubt == {
        (v, kind): table.doubt[kind]
        for v, table in oracle.versions.items()
        if table.as_of
        for kind in ("failed", "suspect")
        if table.marks.get(kind)
    }
