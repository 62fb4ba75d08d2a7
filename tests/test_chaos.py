"""The checker of the chaos lane on histories made up to break one promise each, and a short storm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chaos_history import Change, Evaluation, Model, Outside, cells_of, length_s, outside_of, said
from chaos_replay import Replay
from tiny_mesh import DAY

BRONZE, SILVER, TABLE = 1, 2, 3
MODELS = (
    Model(BRONZE, "bronze"),
    Model(SILVER, "silver", parents=(BRONZE,)),
    Model(TABLE, "table", whole=True),
)
EVER = 10_000.0


def instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def span(cells: tuple[int, int] | None) -> str:
    if cells is None:
        return "(,)"
    first, last = ((DAY + timedelta(minutes=5 * cell)).isoformat(" ") for cell in cells)
    return f'["{first}","{last}")'


class Story:
    """A history, told transaction by transaction; time is in seconds, ranges in cells.

    Args:
        outside: What the workers saw.
    """

    def __init__(self, outside: Outside | None = None) -> None:
        self.outside = outside or Outside()
        self.changes: list[Change] = []
        self.rows: dict[tuple[str, int], dict[str, Any]] = {}
        self.at = 100.0

    def write(self, table: str, key: int, **changed: Any) -> tuple[str, Any, Any]:
        was = self.rows.get((table, key))
        self.rows[table, key] = {**(was or {}), **changed}
        return table, was, self.rows[table, key]

    def erase(self, table: str, key: int) -> tuple[str, Any, Any]:
        return table, self.rows.pop((table, key)), None

    def commit(self, *rows: tuple[str, Any, Any], at: float | None = None) -> None:
        """One transaction, a second after the one before."""
        self.at = self.at + 1 if at is None else at
        xid = str(len(self.changes) + 1)
        for table, was, became in rows:
            self.changes.append(Change(len(self.changes) + 1, xid, self.at, table, was, became, self.at))

    def violated(self) -> list[str]:
        return [v.check for v in Replay(MODELS, self.outside, DAY).play(self.changes)]

    # rows

    def run(self, key: int, *, expires: float = EVER, state: str = "running", **more: Any) -> Any:
        facts = {
            "run_id": key, "project_id": 1, "environment": "prod", "purpose": "run", "state": state,
            "expires_at": instant(expires), "grace": "00:00:10", "holder": {"pid": key, "started": str(key)}, **more,
        }  # fmt: skip
        return self.write("run", key, **facts)

    def claim(
        self, key: int, run: int, version: int, cells: tuple[int, int] | None, state: str = "open",
        read: int | None = None, batch: tuple[int, int] | None = None,
    ) -> Any:  # fmt: skip
        return self.write(
            "claim", key, claim_id=key, run_id=run, version_id=version, span=span(cells), state=state,
            read_revision=read, begun_at=None if state == "open" else instant(self.at + 1),
            batch=span(batch) if batch else None,
        )  # fmt: skip

    def end(self, key: int, state: str) -> Any:
        return self.write("claim", key, state=state)

    def revision(self, number: int) -> Any:
        self.rows.setdefault(("ledger", 1), {"revision": number - 1})
        return self.write("ledger", 1, revision=number)

    def fact(self, key: int, run: int, version: int, cells: tuple[int, int], revision: int, read: int) -> Any:
        return self.write(
            "coverage", key, coverage_id=key, run_id=run, version_id=version, span=span(cells),
            revision=revision, read_revision=read, verdict="passed",
        )  # fmt: skip

    def mark(self, key: int, version: int, cells: tuple[int, int] | None, kind: str, revision: int) -> Any:
        return self.write(
            "mark", key, mark_id=key, version_id=version, span=span(cells), kind=kind, revision=revision
        )

    # the same sentences again and again

    def bronze(self, cells: tuple[int, int] = (0, 12)) -> None:
        """Run 1 opens, begins and commits a batch of bronze at revision 1."""
        self.commit(self.run(1))
        self.commit(self.claim(1, 1, BRONZE, cells))
        self.commit(self.claim(1, 1, BRONZE, cells, "begun", 0))
        self.commit(self.revision(1), self.fact(1, 1, BRONZE, cells, 1, 0), self.end(1, "committed"))


def test_an_orderly_history_violates_nothing() -> None:
    """Open, begin, commit, a child after its parent, a failure, a loss, a mark that is mended: nothing is violated."""
    story = Story(Outside(deaths={(2, "2"): 109.5}))
    story.bronze()
    story.commit(story.claim(2, 1, SILVER, (0, 12)))
    story.commit(story.claim(2, 1, SILVER, (0, 12), "begun", 1))
    story.commit(story.revision(2), story.mark(1, SILVER, (0, 12), "failed", 2), story.end(2, "failed"))
    story.commit(story.run(2), story.claim(3, 2, SILVER, (0, 12)))
    story.commit(story.claim(3, 2, SILVER, (0, 12), "begun", 2))
    story.commit(
        story.revision(3),
        story.mark(2, SILVER, (0, 12), "suspect", 3),
        story.end(3, "lost"),
        story.run(2, state="lost"),
    )
    story.commit(story.run(3), story.claim(4, 3, SILVER, (0, 12)))
    story.commit(story.claim(4, 3, SILVER, (0, 12), "begun", 3))
    story.commit(
        story.revision(4), story.fact(2, 3, SILVER, (0, 12), 4, 3), story.end(4, "committed"),
        story.erase("mark", 1), story.erase("mark", 2),
    )  # fmt: skip
    assert story.violated() == []


def test_two_holders_of_one_range_are_noticed() -> None:
    """Two live claims of one version that share a cell violate it; side by side they do not."""
    story = Story()
    story.commit(
        story.run(1), story.run(2), story.claim(1, 1, BRONZE, (0, 6)), story.claim(2, 2, BRONZE, (6, 9))
    )
    assert story.violated() == []
    story.commit(story.claim(3, 2, BRONZE, (5, 6)))
    assert story.violated() == ["no two hold one range"]


def test_a_whole_table_is_one_range() -> None:
    """Two claims on the whole of an as-of table share it."""
    story = Story()
    story.commit(story.run(1), story.run(2), story.claim(1, 1, TABLE, None))
    story.commit(story.claim(2, 2, TABLE, None))
    assert story.violated() == ["no two hold one range"]


def test_a_revision_that_ends_out_of_order_is_noticed() -> None:
    """A transaction with a lower revision than one that ended before it violates the order."""
    story = Story()
    story.commit(story.run(1), story.claim(1, 1, BRONZE, (0, 1)), story.claim(2, 1, BRONZE, (1, 2)))
    story.commit(story.claim(1, 1, BRONZE, (0, 1), "begun", 0), story.claim(2, 1, BRONZE, (1, 2), "begun", 0))
    story.commit(story.fact(1, 1, BRONZE, (0, 1), 2, 0), story.end(1, "committed"))
    story.commit(story.fact(2, 1, BRONZE, (1, 2), 1, 0), story.end(2, "committed"))
    assert story.violated() == ["revisions strictly grow"]


def test_who_begins_without_what_was_committed_is_noticed() -> None:
    """A read revision that is older than the last commit means that the begin did not wait for it."""
    story = Story()
    story.bronze()
    story.commit(story.claim(2, 1, SILVER, (0, 12)))
    story.commit(story.claim(2, 1, SILVER, (0, 12), "begun", 0))
    assert story.violated() == ["who begins knows what was committed"]


@pytest.mark.parametrize("trouble", ["missing", "failed", "suspect", "removed", "begun"])
def test_a_child_that_reads_an_unclean_parent_is_noticed(trouble: str) -> None:
    """A begin over one cell of a parent that is missing, marked or being written violates the gate."""
    story = Story()
    story.bronze((0, 11) if trouble == "missing" else (0, 12))
    read = 1
    if trouble == "begun":
        story.commit(story.claim(7, 1, BRONZE, (11, 12)))
        story.commit(story.claim(7, 1, BRONZE, (11, 12), "begun", 1))
    elif trouble != "missing":
        read = 2
        story.commit(story.revision(2), story.mark(7, BRONZE, (11, 12), trouble, 2))
    story.commit(story.claim(2, 1, SILVER, (0, 12)))
    story.commit(story.claim(2, 1, SILVER, (0, 12), "begun", read))
    assert story.violated() == ["no child reads a parent that is not committed"]


@pytest.mark.parametrize("how", ["expired", "lost"])
def test_a_commit_of_a_run_that_lives_no_more_is_noticed(how: str) -> None:
    """A commit after the end of the lease violates the fence, whether or not somebody took over."""
    story = Story(Outside(over={1: 103.5}))
    story.commit(story.run(1, expires=EVER if how == "lost" else 103.0))
    story.commit(story.claim(1, 1, BRONZE, (0, 12)))
    story.commit(story.claim(1, 1, BRONZE, (0, 12), "begun", 0))
    if how == "lost":
        story.commit(story.run(1, state="lost"))
    story.commit(story.revision(1), story.fact(1, 1, BRONZE, (0, 12), 1, 0), story.end(1, "committed"))
    assert story.violated() == ["only a live run records"]


def test_a_commit_of_what_was_not_begun_is_noticed() -> None:
    """A recorded cell that the run had not begun violates it."""
    story = Story()
    story.commit(story.run(1), story.claim(1, 1, BRONZE, (0, 6)))
    story.commit(story.claim(1, 1, BRONZE, (0, 6), "begun", 0))
    story.commit(story.revision(1), story.fact(1, 1, BRONZE, (0, 7), 1, 0), story.end(1, "committed"))
    assert story.violated() == ["only what was begun is recorded"]


@pytest.mark.parametrize(
    ("state", "kind"), [("lost", None), ("lost", "failed"), ("failed", None), ("abandoned", None)]
)
def test_what_was_begun_and_left_without_a_mark_is_noticed(state: str, kind: str | None) -> None:
    """A begun claim that ends without a commit must leave the mark that says so, on all of it."""
    story = Story()
    story.commit(story.run(1), story.claim(1, 1, BRONZE, (0, 6)))
    story.commit(story.claim(1, 1, BRONZE, (0, 6), "begun", 0))
    marks = [story.revision(1), story.mark(1, BRONZE, (0, 6), kind, 1)] if kind else []
    story.commit(*marks, story.end(1, state))
    assert story.violated() == ["what was begun is recorded or marked"]


def test_the_half_of_a_batch_that_is_forgotten_is_noticed() -> None:
    """A claim on the whole whose batch shrinks without a commit or a mark has forgotten what it may have written."""
    story = Story()
    story.commit(story.run(1), story.claim(1, 1, BRONZE, None))
    story.commit(story.claim(1, 1, BRONZE, None, "begun", 0, batch=(0, 12)))
    story.commit(story.claim(1, 1, BRONZE, None, "begun", 0, batch=(0, 6)))
    assert story.violated() == ["what was begun is recorded or marked"]


def test_a_mark_that_is_discharged_by_who_read_before_it_is_noticed() -> None:
    """A commit takes only marks away that are not newer than what it read."""
    story = Story()
    story.commit(story.run(1), story.claim(1, 1, BRONZE, (0, 6)))
    story.commit(story.claim(1, 1, BRONZE, (0, 6), "begun", 0))
    story.commit(story.revision(1), story.mark(1, BRONZE, (0, 2), "requested", 1))
    story.commit(
        story.revision(2),
        story.fact(1, 1, BRONZE, (0, 6), 2, 0),
        story.end(1, "committed"),
        story.erase("mark", 1),
    )
    assert story.violated() == ["a mark is discharged by who read after it"]


def test_a_mark_may_be_cut_and_replaced() -> None:
    """The rest of a mark keeps its number, and a newer one may take the place of an older one."""
    story = Story()
    story.commit(story.revision(1), story.mark(1, BRONZE, (0, 6), "suspect", 1))
    story.commit(
        story.revision(2), story.erase("mark", 1), story.mark(2, BRONZE, (3, 6), "suspect", 1),
        story.mark(3, BRONZE, (0, 3), "suspect", 2),
    )  # fmt: skip
    assert story.violated() == []


def test_what_disappears_from_the_record_is_noticed() -> None:
    """A recorded cell may be cut and recorded anew, but never be gone."""
    story = Story()
    story.bronze()
    story.commit(story.erase("coverage", 1), story.fact(2, 1, BRONZE, (0, 5), 1, 0))
    assert story.violated() == ["what was recorded stays recorded"]


@pytest.mark.parametrize(
    ("outside", "noticed"),
    [
        (Outside(), True),
        (Outside(over={1: 103.0}), False),
        (Outside(deaths={(1, "0"): 90.0, (1, "1"): 103.0}), False),
        (Outside(evaluations=[Evaluation(1, "bronze", frozenset(range(6)), 103.0, 103.5)]), False),
        (Outside(evaluations=[Evaluation(1, "bronze", frozenset(range(6)), 103.0, None)]), True),
    ],
    ids=["nothing is known", "it said that it ended", "it died", "it had written", "it was writing"],
)
def test_a_range_that_is_taken_before_a_late_write_landed_is_noticed(
    outside: Outside, *, noticed: bool
) -> None:
    """What a lost run had begun is not claimed before its grace is over, unless it can write no more."""
    story = Story(outside)
    story.commit(story.run(1, expires=104.0))
    story.commit(story.claim(1, 1, BRONZE, (0, 6)))
    story.commit(story.claim(1, 1, BRONZE, (0, 6), "begun", 0))
    story.commit(
        story.revision(1), story.mark(1, BRONZE, (0, 6), "suspect", 1), story.end(1, "lost"),
        story.run(1, state="lost", expires=104.0), at=105.0,
    )  # fmt: skip
    story.commit(story.run(2), story.claim(2, 2, BRONZE, (5, 6)), at=106.0)
    assert ("a late write is waited out" in story.violated()) is noticed
    story.changes = [replace(c, at=120.0) if c.at == 106.0 else c for c in story.changes]
    assert "a late write is waited out" not in story.violated()


@pytest.mark.parametrize(("later", "noticed"), [(101.0, True), (113.0, True), (115.0, False)])
def test_an_evaluation_by_two_at_once_is_noticed(later: float, *, noticed: bool) -> None:
    """Two runs that make the engine work on one cell violate it, until the first one's lease and grace are over."""
    cells = frozenset({1, 2})
    story = Story(
        Outside([Evaluation(1, "bronze", cells, 100.0, 130.0), Evaluation(2, "bronze", cells, later, 140.0)])
    )
    story.commit(story.run(1, expires=104.0), story.run(2), at=99.0)
    assert story.violated() == (["nothing is evaluated by two at once"] if noticed else [])


@pytest.mark.parametrize("remembered", [True, False])
def test_a_late_write_that_nobody_remembers_is_noticed(*, remembered: bool) -> None:
    """What the engine wrote for a run that had been lost is suspect from then on."""
    story = Story(Outside([Evaluation(1, "bronze", frozenset({0}), 103.0, 150.0)], over={1: 151.0}))
    story.commit(story.run(1, expires=104.0))
    story.commit(story.claim(1, 1, BRONZE, (0, 1)))
    story.commit(story.claim(1, 1, BRONZE, (0, 1), "begun", 0))
    story.commit(
        story.revision(1), story.mark(1, BRONZE, (0, 1), "suspect", 1), story.end(1, "lost"),
        story.run(1, state="lost", expires=104.0), at=105.0,
    )  # fmt: skip
    if remembered:
        story.commit(
            story.revision(2), story.erase("mark", 1), story.mark(2, BRONZE, (0, 1), "suspect", 2), at=150.5
        )
    assert story.violated() == ([] if remembered else ["a late write is remembered"])


def test_a_lease_that_comes_back_is_noticed() -> None:
    """A renewal after the end of a lease violates it, and so does a run that ends twice."""
    story = Story()
    story.commit(story.run(1, expires=103.0))
    story.commit(story.run(1, expires=130.0), at=110.0)
    story.commit(story.run(1, expires=130.0, state="done"))
    story.commit(story.run(1, expires=130.0, state="failed"))
    assert story.violated() == ["a lease that ended stays ended", "a run ends once"]


@pytest.mark.parametrize("died", [None, 101.5])
def test_a_lease_that_is_taken_from_the_living_is_noticed(died: float | None) -> None:
    """A lease that has not ended is taken over only if the process is gone."""
    story = Story(Outside(deaths={} if died is None else {(1, "1"): died}))
    story.commit(story.run(1))
    story.commit(story.run(1, state="lost"))
    assert story.violated() == ([] if died else ["a lease is taken only from the dead"])


@pytest.mark.parametrize(
    ("overlap", "purpose", "noticed"),
    [("share", "run", False), ("skip", "run", True), ("share", "deploy", True)],
)
def test_company_that_was_not_wanted_is_noticed(overlap: str, purpose: str, *, noticed: bool) -> None:
    """A run that does not share begins beside no other of its project, and none begins beside its deploy."""
    story = Story(Outside(overlap={2: overlap}))
    story.commit(story.run(1, purpose=purpose))
    story.commit(story.run(2))
    assert story.violated() == (["who wants to be alone is alone"] if noticed else [])


def test_ranges_and_lengths_are_read_as_postgres_writes_them() -> None:
    """Bounded, unbounded and empty-handed texts give the cells and seconds that they name."""
    assert cells_of(span((3, 6)), DAY) == {3, 4, 5}
    assert cells_of("(,)", DAY) & cells_of('[,"2026-01-05 01:00:00+00")', DAY)
    assert (length_s("00:00:02.5"), length_s("1 day 01:00:00")) == (2.5, 90_000.0)
    assert said({1, 2, 3, 7}) == "1-3,7"


def test_the_log_of_a_killed_worker_says_what_it_left(tmp_path: Path) -> None:
    """What was begun in the engine and never ended, ended with the process; a torn last line is left out."""
    batch = {"model": "bronze", "start": DAY.isoformat(), "end": (DAY + timedelta(minutes=10)).isoformat()}
    lines = [
        {"e": "start", "t": 100.0, "pid": 7, "started": "70"},
        {"e": "run", "t": 101.0, "run": 1, "overlap": "skip"},
        {"e": "eval", "t": 102.0, "n": 1, "run": 1, **batch},
        {"e": "evaled", "t": 103.0, "n": 1, "error": None},
        {"e": "over", "t": 104.0, "run": 1},
        {"e": "run", "t": 105.0, "run": 2, "overlap": "skip"},
        {"e": "eval", "t": 106.0, "n": 2, "run": 2, **batch},
    ]
    log = tmp_path / "worker.jsonl"
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"e": "eva')
    found = outside_of([log], {7: [50.0, 107.0]}, DAY)
    cells = frozenset({0, 1})
    assert found.evaluations == [
        Evaluation(1, "bronze", cells, 102.0, 103.0), Evaluation(2, "bronze", cells, 106.0, 107.0)
    ]  # fmt: skip
    assert found.over == {1: 104.0, 2: 107.0}
    assert found.deaths == {(7, "70"): 107.0}
    assert found.overlap == {1: "skip", 2: "skip"}


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_short_storm_violates_nothing_and_leaves_nothing(tmp_path: Path, extensions: None) -> None:
    """Real processes, a dozen faults: nothing is violated, and no process and no folder is left."""
    chaos = Path(__file__).with_name("chaos.py")
    done = subprocess.run(
        [sys.executable, str(chaos), "--seconds", "12", "--faults", "14", "--restarts", "3", "--seed", "5"],
        capture_output=True, text=True, check=False, timeout=260, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violated    nothing" in done.stdout
    assert list(tmp_path.iterdir()) == []
