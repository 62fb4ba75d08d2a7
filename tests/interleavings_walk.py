"""The steps of several holders told to a real ledger, in every order, and held against the paper after each.

`Explorer` walks all orders of two scripts and a clock. It takes each step inside a transaction that it rolls back to
where the orders part. Orders that lead to the same ledger, row by row, have the same future: it is walked once, and
counted for each of them. `tell_all` takes the orders one by one, in two sessions that commit each step.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from interleavings import MOMENTS, Hours, Paper, Setting, Step
from ledger_scene import GRACE, TTL, at, cells
from meshgate.db import json, queries, timestamp_range
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Script = Sequence[Sequence[Step]]
    """What somebody does, one thing after the other; each time one of several."""

    Standing = Mapping[str, Any]

TABLES = ("runs", "claims", "coverage", "marks", "dirty")
TOLD = frozenset(
    (
        *("started_at", "ended_at", "opened_at", "begun_at", "committed_at", "made_at"),
        *("detail", "error", "holder", "counts"),
    )
)
"""Columns that no step of the scripts decides by: when something was, and what it said."""
NUMBERED = ("revision", "read_revision", "opened_revision", "from_revision", "to_revision")

# Does one step and looks: one round trip, one transaction.
PREPARE = """
CREATE FUNCTION pg_temp.act(p_now text, p_statement text, p_version_id bigint, p_after bigint) RETURNS jsonb
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    answer jsonb;
BEGIN
    PERFORM set_config('meshgate.now', p_now, false);
    BEGIN
        EXECUTE 'SELECT to_jsonb(x) FROM (' || p_statement || ') x' INTO answer;
    EXCEPTION WHEN OTHERS THEN
        answer := jsonb_build_object('sqlstate', SQLSTATE, 'message', SQLERRM);
    END;
    RETURN jsonb_build_object('answer', answer,
        'revision', (SELECT revision FROM meshgate.ledger),
        'runs', (SELECT jsonb_agg(to_jsonb(r) - 'project_id') FROM meshgate.run r WHERE run_id > p_after),
        'claims', (SELECT jsonb_agg(to_jsonb(c) - 'claim_id') FROM meshgate.claim c WHERE version_id = p_version_id),
        'coverage', (SELECT jsonb_agg(to_jsonb(c) - 'coverage_id') FROM meshgate.coverage c WHERE version_id = p_version_id),
        'marks', (SELECT jsonb_agg(to_jsonb(m) - 'mark_id') FROM meshgate.mark m WHERE version_id = p_version_id),
        'dirty', (SELECT jsonb_agg(to_jsonb(d)) FROM meshgate.dirty_span d WHERE version_id = p_version_id));
END $$
"""


@cache
def instant(text: str) -> datetime:
    """An instant as the ledger's JSON has it."""
    return datetime.fromisoformat(text).astimezone(UTC)


@cache
def hours_of(text: str) -> Hours:
    """The hours of a range as the ledger's JSON has it."""
    lower, upper = (part.strip('"') for part in text[1:-1].split(","))
    start = instant(lower) if lower else MIN_INSTANT
    return cells(Interval(start, instant(upper) if upper else MAX_INSTANT))


class Table:
    """A fresh table in an environment of its own, and the runs that work on it.

    Args:
        connection: To the ledger, in autocommit mode or not.
        setting: Who works on it.
        name: Of its model, and of the environment.
    """

    def __init__(self, connection: Any, setting: Setting, name: str) -> None:
        self.setting = setting
        self.name = name
        self.runs: dict[str, int] = {}
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT meshgate.register_version('owner', %s, '1', %s, %s),"
                " (SELECT coalesce(max(run_id), 0) FROM meshgate.run)",
                [name, setting.kind, setting.as_of],
            )
            self.version, self.after = cursor.fetchone()
            # What somebody asks for is asked of what is promoted.
            cursor.execute(
                "INSERT INTO meshgate.environment (environment, synced_at) VALUES (%(name)s, now()) ON CONFLICT DO NOTHING;"
                "INSERT INTO meshgate.promotion (environment, model_id, version_id, revision, promoted_at, unit, cron)"
                " SELECT %(name)s, model_id, version_id, 0, now(), 'hour', '@hourly' FROM meshgate.version WHERE version_id = %(version)s",
                {"name": name, "version": self.version},
            )

    def statement(self, who: str, step: Step) -> tuple[str, dict[str, Any]]:
        """The query that a step is, and its parameters."""
        n, setting = "ABC".index(who), self.setting
        hours = timestamp_range(at(min(step.hours)), at(max(step.hours) + 1)) if step.hours else None
        known = {"run_id": self.runs.get(who), "version_id": self.version, "span": hours}
        match step.verb:
            case "acquire":
                known |= {
                    "project": f"{setting.projects[n]} {self.name}", "environment": self.name,
                    "purpose": setting.purposes[n], "holder": json({"who": who, "engine_in_process": setting.inside}),
                    "ttl": setting.leases[n] * TTL, "grace": GRACE, "as_of": None,
                    "share": setting.share and who == "B", "warehouse": "default",
                    "retry_first": timedelta(0), "retry_longest": timedelta(0),
                }  # fmt: skip
            case "finish":
                known |= {"state": "done", "counts": json({}), "error": None, "writing": False}
            case "bury" | "break":
                known |= {"run_id": self.runs.get(step.whom, 0), "engine_gone": step.gone, "by": who}
            case "open":
                known |= {"spans": [hours], "whole": setting.alone}
            case "begin":
                known |= {"parents": [], "spans": [], "loaded": [], "environment": None,
                          "of_model": setting.most, "of_warehouse": None}  # fmt: skip
            case "commit":
                known |= {
                    "verdict": "passed",
                    "audits": json([]),
                    "duration": None,
                    "rows": None,
                    "lookback": None,
                    "stale_from": None,
                    "hold": None,
                    "changed_from": None,
                    "past": None,
                    "upto": None,
                    "same": None,
                    "judged": None,
                    "spans": None,
                    "whys": None,
                }
            case "fail":
                known |= {"detail": json({})}
            case "ask":
                known = {
                    "models": [self.name],
                    "spans": [hours],
                    "reason": "late rows",
                    "by": who,
                    "origin": None,
                }
        names = {
            "acquire": "acquire_run", "renew": "renew_run", "finish": "finish_run", "bury": "bury_run",
            "break": "break_run", "open": "open_claims", "begin": "begin_claim", "commit": "commit_claim",
            "fail": "fail_claim", "give_up": "give_up_claim", "abandon": "abandon_claims", "mirrored": "note_mirrored",
            "ask": "request_ranges",
        }  # fmt: skip
        return queries()[names.get(step.verb, step.verb)], known

    def answer(self, who: str, step: Step, told: Mapping[str, Any]) -> str:  # noqa: PLR0911 - as many as there are
        """What the ledger's answer to a step means, in the words of the paper."""
        letters = {run: letter for letter, run in self.runs.items()}
        if "sqlstate" in told:
            return {"MG001": "lost", "MG002": "no claim", "MG003": "no run"}.get(told["sqlstate"], str(told))
        match step.verb:
            case "acquire":
                if busy := told["answer"].get("busy"):
                    return f"busy {letters[busy['run_id']]}"
                self.runs[who] = told["answer"]["run_id"]
            case "finish":
                return str(told["state"])
            case "open" if told["claim_id"] is None:
                return f"refused by {letters[told['refused_by']]}"
            case "begin" if told["answer"].get("read_revision") is None:
                return "wait" if "wait" in told["answer"] else str(told)
            case "commit" if told["revision"] is None:
                return "lost"
            case "fail" if not told["recorded"]:
                return "lost"
            case "give_up" if not told["given_up"]:
                return "no"
        return "ok"

    def tell(
        self, connection: Any, now: datetime, who: str, step: Step | None, prelude: str = ""
    ) -> tuple[str, dict[str, Any]]:
        """Do a step in a session; its answer, and all that the ledger then holds of the table, with letters for runs."""
        with connection.cursor() as cursor:
            said = cursor.mogrify(*self.statement(who, step)).decode() if step else "SELECT 1 AS one"
            cursor.execute(
                f"{prelude}SELECT pg_temp.act(%s, %s, %s, %s)",
                [now.isoformat(), said, self.version, self.after],
            )
            (found,) = cursor.fetchone()
        told = found.pop("answer") or {}
        answer = self.answer(who, step, told) if step else "ok"
        letters = {run: letter for letter, run in self.runs.items()}
        for table in TABLES:
            found[table] = found[table] or []
            if table == "runs":
                found[table].sort(key=lambda run: run["run_id"])
            for row in found[table]:
                if "run_id" in row:
                    row["run_id"] = letters.get(row["run_id"], row["run_id"])
        return answer, found


# -- what the ledger holds


def standing(found: Standing, now: datetime) -> dict[str, Any]:
    """What can be seen of a ledger, in the words of the paper."""
    live = [c for c in found["claims"] if c["state"] in ("open", "begun")]
    lost = [c for c in found["claims"] if c["state"] == "lost" and instant(c["quarantined_until"]) > now]
    return {
        "runs": {
            r["run_id"]: (r["state"], instant(r["expires_at"]) if r["state"] == "running" else None)
            for r in found["runs"]
        },
        "reserved": {hour: c["run_id"] for c in live for hour in hours_of(c["span"])},
        "begun": {hour: c["run_id"] for c in live if c["state"] == "begun" for hour in hours_of(c["span"])},
        "waiting": {
            (c["run_id"], hour): instant(c["quarantined_until"]) for c in lost for hour in hours_of(c["span"])
        },
        "recorded": {hour: row["run_id"] for row in found["coverage"] for hour in hours_of(row["span"])},
        "doubts": {(m["kind"], hour) for m in found["marks"] for hour in hours_of(m["span"])},
        "tainted": any(d["to_revision"] is None for d in found["dirty"]),
    }


def check_promises(found: Standing, now: datetime) -> None:
    """What holds whatever anybody did, read from the ledger alone."""
    live = [hours_of(c["span"]) for c in found["claims"] if c["state"] in ("open", "begun")]
    assert not any(one & other for one, other in itertools.combinations(live, 2)), (
        "G2: two live claims overlap"
    )
    for claim in found["claims"]:
        if claim["state"] == "lost" and instant(claim["quarantined_until"]) > now:
            assert not any(hours_of(claim["span"]) & one for one in live), (
                "claimed while a late write may land"
            )
    for mark, row in itertools.product(found["marks"], found["coverage"]):
        if hours_of(mark["span"]) & hours_of(row["span"]):
            assert mark["revision"] > row["read_revision"], "suspect, though it was read again since"
    for row in found["coverage"]:
        assert row["read_revision"] < row["revision"] <= found["revision"]


def check_refusal(before: Standing | None, found: Standing, step: Step) -> None:
    """What holds after a run without a lease was told so."""
    if before is not None:
        assert found["coverage"] == before["coverage"], "G4: a lost run recorded something"
    if step.verb in ("commit", "fail"):
        doubted = [m for m in found["marks"] if m["kind"] == "suspect" and hours_of(m["span"]) >= step.hours]
        read = [row["read_revision"] or 0 for row in (*found["claims"], *found["coverage"])]
        assert doubted, "G4: a late write is forgotten"
        assert max(m["revision"] for m in doubted) > max(read, default=0), "G4: who read before it answers it"


def essence(found: Standing, now: datetime) -> str:
    """What decides of what happens next: numbers by their order, and nothing that is only told or over.

    Left out: when something was, what it said, claims that ended with nothing to come, quarantines that are over.
    """
    numbers = {0, found["revision"]}
    rows: list[tuple[str, dict[str, Any]]] = []
    for table in TABLES:
        for row in found[table]:
            if table == "claims" and row["state"] in ("committed", "abandoned"):
                continue
            kept = {
                column: value for column, value in row.items() if column not in TOLD and value is not None
            }
            if "quarantined_until" in kept and instant(kept["quarantined_until"]) <= now:
                kept["quarantined_until"] = "over"
            if table == "runs" and kept["state"] != "running":
                del kept["expires_at"]
            numbers.update(kept[column] for column in NUMBERED if column in kept)
            rows.append((table, kept))
    rank = {number: n for n, number in enumerate(sorted(numbers))}
    for _, row in rows:
        row.update({column: rank[row[column]] for column in NUMBERED if column in row})
    oldest_first = [run["run_id"] for run in found["runs"] if run["state"] == "running"]
    return repr((rank[found["revision"]], oldest_first, sorted(map(repr, rows))))


# -- all orders


class Explorer:
    """Walks every order of the steps of A, of B, and of the clock, and checks each.

    Args:
        connection: A session in a transaction that is rolled back in the end.
        setting: Who works on what.
        scripts: What A does, and what B does.

    Attributes:
        steps: How many were taken in the ledger.
    """

    def __init__(self, connection: Any, setting: Setting, scripts: tuple[Script, Script]) -> None:
        self.connection = connection
        with connection.cursor() as cursor:
            cursor.execute(PREPARE)
        self.table = Table(connection, setting, "model")
        self.scripts = scripts
        self.steps = 0
        self.paper = Paper(setting)
        self.path: list[str] = []
        self.undo = ""
        self.known: dict[tuple[Any, ...], int] = {}
        self.seen = self.table.tell(connection, self.paper.now, "A", None)[1]

    def orders(self, places: tuple[int, int, int] = (0, 0, 0)) -> int:
        """How many orders there are from here on, each of them checked."""
        key = (places, essence(self.seen, self.paper.now), self.paper.essence())
        if key not in self.known:
            found = 0
            for n, script in enumerate(self.scripts):
                if places[n] < len(script):
                    found += sum(self.take(n, step, places) for step in script[places[n]])
            if places[2] + 1 < len(MOMENTS):
                before, self.paper.now = self.paper.now, MOMENTS[places[2] + 1]
                self.path.append("the clock")
                found += self.orders((*places[:2], places[2] + 1))
                self.path.pop()
                self.paper.now = before
            self.known[key] = found or 1
        return self.known[key]

    def take(self, n: int, step: Step, places: tuple[int, int, int]) -> int:
        """Take a step, go on in all orders, and come back."""
        paper, seen, runs = self.paper, self.seen, dict(self.table.runs)
        self.paper = paper.copy()
        self.path.append(f"{'AB'[n]} {step.verb}")
        point = f"s{len(self.path)}"
        answer, self.seen = self.table.tell(
            self.connection, self.paper.now, "AB"[n], step, f"{self.undo} SAVEPOINT {point};"
        )
        self.undo = ""
        self.steps += 1
        compare(self.paper, "AB"[n], step, answer, seen, self.seen, self.path)
        onward = list(places)
        # Who has not got a lease has nothing more to do.
        onward[n] = len(self.scripts[n]) if answer.startswith("busy") else places[n] + 1
        found = self.orders((onward[0], onward[1], onward[2]))
        self.undo = f"ROLLBACK TO SAVEPOINT {point}; RELEASE SAVEPOINT {point};"
        self.paper, self.seen, self.table.runs = paper, seen, runs
        self.path.pop()
        return found


def compare(
    paper: Paper, who: str, step: Step, answer: str, before: Standing, found: Standing, path: list[str]
) -> None:
    """Hold one step's answer and what came of it against the paper, and against the promises."""
    assert answer == paper.tell(who, step), path
    assert standing(found, paper.now) == paper.standing(), path
    check_promises(found, paper.now)
    if answer == "lost":
        check_refusal(before, found, step)


def merges(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All orders of so many steps of each: whose turn it is, one after the other."""
    if not any(lengths):
        yield ()
    for n, left in enumerate(lengths):
        if left:
            for rest in merges([*lengths[:n], left - 1, *lengths[n + 1 :]]):
                yield (n, *rest)


def tell_all(
    sessions: tuple[Any, Any], setting: Setting, scripts: tuple[Sequence[Step], Sequence[Step]]
) -> int:
    """Take every order of two scripts and one move of the clock in two sessions; how many orders that were."""
    count = 0
    for order in merges([*map(len, scripts), 1]):
        table, paper = Table(sessions[0], setting, f"model {setting} {count}"), Paper(setting)
        seen: Standing = table.tell(sessions[0], paper.now, "A", None)[1]
        left, path = [list(script) for script in scripts], []
        for n in order:
            if n == 2:
                paper.now = MOMENTS[1]
            elif left[n]:
                step = left[n].pop(0)
                path.append(f"{'AB'[n]} {step.verb} at {paper.now:%H:%M}")
                answer, found = table.tell(sessions[n], paper.now, "AB"[n], step)
                compare(paper, "AB"[n], step, answer, seen, found, path)
                seen = found
                if answer.startswith("busy"):
                    left[n] = []
        for letter in table.runs:
            table.tell(sessions[0], paper.now, "A", Step("bury", whom=letter, gone=True))
        count += 1
    return count
