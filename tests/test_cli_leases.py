"""The command line where runs live, die and are left alone: `lease`, `retry`, and what `status` and `why` tell of them."""

from __future__ import annotations

import getpass
import os
import pty
import select
import socket
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from command_line import Answer, answer_of
from ledger_story import GRACE, TTL, Story, fqn
from meshgate.interval import Interval

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOUR = "2026-01-05T03:00/2026-01-05T04:00"
POISONED = "2026-01-05T03:10/2026-01-05T03:15"


@pytest.fixture
def story(database_url: str, tmp_path: Path) -> Story:
    """The poisoned mesh of `ledger_story`: at 04:02, what failed is left alone until 04:03:02."""
    found = Story(database_url, tmp_path)
    found.poisoned()
    return found


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No line is wrapped, and what the command line does to structlog is undone."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("MESHGATE_DEBUG", raising=False)
    yield
    structlog.reset_defaults()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Calls the command line on the configuration in this test's folder."""

    def run(*arguments: str) -> Answer:
        return answer_of(capsys, tmp_path, *arguments)

    return run


def live(story: Story) -> tuple[int, int]:
    """A run that writes a batch and has reserved two ranges, and one beside it that shares."""
    first = story.acquire("upstream")
    story.begin(first, "bronze.transactions", "2026-01-05T04:00/2026-01-05T04:05")
    reserved = [Interval.parse("2026-01-05T04:00/2026-01-05T04:05"), Interval.parse(POISONED)]
    story.ledger.open_claims(first.run_id, story.ids[fqn("silver.orders")], reserved)
    second = story.ledger.acquire(
        "upstream", "prod", "run", {"host": "worker-2", "pid": 12}, ttl=2 * TTL, grace=GRACE, share=True
    )
    return first.run_id, getattr(second, "run_id", 0)


# Lease


def test_lease_lists_every_live_run_in_a_line(story: Story, call: Any) -> None:
    """Who, where, since when, until when, what it has reserved and what it writes."""
    assert call("lease").out == "no run is live\n"
    assert live(story) == (6, 7)
    answer = call("lease")
    assert (answer.code, answer.err) == (0, "")
    assert [line.split() for line in answer.out.splitlines()] == [
        ["run", "project", "environment", "holder", "since", "reserved", "writing", "lease", "until"],
        ["run", "6", "upstream", "prod", "4711@worker-1", "04:02Z", "2", "1", "04:03Z"],
        ["run", "7", "upstream", "prod", "12@worker-2", "04:02Z", "0", "0", "04:04Z"],
    ]
    story.time("2026-01-05 04:03:30")
    assert "04:03Z: expired, to be taken over" in call("lease").out.splitlines()[1]


def test_lease_tells_that_a_deploy_is_about_to_replace_models(story: Story, call: Any) -> None:
    """From the moment on at which nothing of them begins any more."""
    holder = {"host": "worker-1", "pid": 1}
    lease = story.ledger.acquire("upstream", "prod", "deploy", holder, ttl=TTL, grace=GRACE)
    assert "about to replace models" not in call("lease").out
    story.ledger.pause(getattr(lease, "run_id", 0), [fqn("silver.orders")])
    assert call("lease").out.splitlines()[1].startswith("  deploy 6  upstream")
    assert call("lease").out.splitlines()[1].endswith("04:03Z, about to replace models")
    assert "its lease until 04:03Z, about to replace models" in call("status").out


def test_lease_as_data(story: Story, call: Any) -> None:
    """The same facts, with the schema's name and version; of the holder only who it is."""
    live(story)
    found = call("lease", "--json").document
    assert (found["schema"], found["version"], found["broken"]) == ("meshgate.lease", 1, None)
    first = found["leases"][0]
    assert (first["run_id"], first["open"], first["begun"], first["expired"]) == (6, 2, 1, False)
    assert (first["holder"], first["promoting"]) == ({"host": "worker-1", "pid": 4711}, False)
    assert first["expires_at"] == "2026-01-05T04:03:00Z"


def test_breaking_a_lease_names_whom_it_evicts_and_asks_for_consent(story: Story, call: Any) -> None:
    """Without a terminal and without --yes nothing is done: exit code 2, and what to type."""
    live(story)
    answer = call("lease", "--break", "6")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines() == [
        "run 6 of upstream in prod: pid 4711 on worker-1, since 04:02Z, its lease until 04:03Z",
        (
            "it is writing 1 batch: it will not be recorded, and is evaluated again, as soon as its process is proven to be "
            "gone, else 30m after the end of its lease"
        ),
        "it has reserved 2 ranges, which any run may take at once",
        "error: run 6 was left alone: there is no terminal to ask at whether to break its lease",
        "  → look at it, then run `meshgate lease --break 6 --yes`",
    ]
    assert {run.run_id for run in story.ledger.live_runs()} == {6, 7}


def test_a_broken_lease_is_lost_at_once_and_the_history_says_who_did_it(story: Story, call: Any) -> None:
    """What it had begun is suspect, and who broke it stands in the run's row."""
    live(story)
    answer = call("lease", "--break", "6", "--yes")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[0] == "the lease of run 6 of upstream is broken"
    assert [run.run_id for run in story.ledger.live_runs()] == [7]
    row = next(r for r in story.ledger.runs() if r["run_id"] == 6)
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    assert (row["state"], row["error"]) == ("lost", f"its lease was broken by {who}")
    (mark,) = story.ledger.states([story.ids[fqn("bronze.transactions")]]).popitem()[1].marks[-1:]
    assert (mark.kind, str(mark.interval)) == ("suspect", "[2026-01-05 04:00, 04:05)")
    assert call("lease", "--break", "7", "-y", "--json").document["broken"]["run_id"] == 7


def test_a_lease_that_does_not_live_cannot_be_broken(story: Story, call: Any) -> None:
    """Exit code 2, and what does live; never a question."""
    live(story)
    answer = call("lease", "--break", "4", "--yes")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines() == [
        "error: run 4 does not live",
        "  → what lives: run 6 of 'upstream', run 7 of 'upstream'",
    ]
    assert call("lease", "--break", "99").code == 2


@pytest.mark.parametrize(("typed", "code", "broken"), [("y", 0, True), ("n", 1, False)])
def test_at_a_terminal_breaking_a_lease_asks(story: Story, typed: str, code: int, *, broken: bool) -> None:
    """Yes does it, no leaves the run alone."""
    live(story)
    master, slave = pty.openpty()
    command = ["meshgate", "--config", str(story.folder), "lease", "--break", "6"]
    python = "import sys; sys.argv = %r; from meshgate.cli import main; main()" % command  # noqa: UP031
    with os.fdopen(slave, "w") as terminal:
        process = subprocess.Popen(
            [sys.executable, "-c", python], stdin=terminal, stdout=terminal, stderr=terminal
        )
    shown = b""
    while b"[y/N]" not in shown:
        assert select.select([master], [], [], 60)[0], shown
        shown += os.read(master, 65536)
    os.write(master, f"{typed}\n".encode())
    assert process.wait(60) == code
    os.close(master)
    assert b"it is writing 1 batch" in shown
    assert {run.run_id for run in story.ledger.live_runs()} == ({7} if broken else {6, 7})


# Retry


def test_retry_ends_the_pause_of_what_failed(story: Story, call: Any) -> None:
    """It says how many pauses that were and what happens next; the second time there is none."""
    answer = call("retry", "bronze.transactions")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "bronze.transactions: 1 pause ended; the next `meshgate run upstream` tries again\n"
    assert call("retry", "transactions").out == "bronze.transactions: nothing that failed is in a pause\n"
    assert "1 failing, 1 ready" in call("status").out
    assert "next try" not in call("why", "fact_sales", HOUR).out


def test_retry_of_an_interval_ends_only_what_meets_it(story: Story, call: Any) -> None:
    """Another hour's pause goes on; as data too."""
    found = call("retry", "bronze.transactions", "2026-01-05T02:00/2026-01-05T03:00", "--json").document
    assert (found["schema"], found["model"], found["ended"]) == (
        "meshgate.retry",
        fqn("bronze.transactions"),
        0,
    )
    assert call("retry", "bronze.transactions", POISONED, "--json").document["ended"] == 1


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (["gold.fact_sale"], "there is no model gold.fact_sale", "gold.fact_sales"),
        (["fact_sales", "2026-01-05T03:30/2026-01-05T04:00"], "whose unit is hour", HOUR),
        (["fact_sales", "--environment", "dev"], "environment 'dev' is not known", "meshgate deploy"),
    ],
)
def test_retry_refuses_what_why_refuses(
    story: Story, call: Any, arguments: list[str], said: str, hint: str
) -> None:
    """A name that does not exist, an interval that is not aligned, an environment without a deploy."""
    answer = call("retry", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert hint in answer.err


# Status and why


def test_what_failed_and_is_left_alone_is_not_ready_and_tells_its_next_try(story: Story, call: Any) -> None:
    """Attempts, next try and the command that makes it now; once the pause is over it is ready, and nothing of it is told."""
    found = call("why", "bronze.transactions", "--json").document
    (root,) = found["roots"]
    assert (root["reason"], root["ready"], root["detail"]["attempts"]) == ("failed", False, 2)
    assert root["detail"]["retry_at"] == "2026-01-05T04:03:02Z"
    assert root["remedy"].endswith("after the pause, or at once after `meshgate retry bronze.transactions`")
    story.time("2026-01-05 04:03:02")
    (root,) = call("why", "bronze.transactions", "--json").document["roots"]
    assert (root["ready"], "retry_at" in root["detail"]) == (True, False)
    assert root["remedy"].endswith("then `meshgate run upstream` evaluates it again")
    assert "next try" not in call("gate", "silver.orders", POISONED).out


def test_status_shows_every_live_run_of_a_project_and_the_last_that_ended(story: Story, call: Any) -> None:
    """Two that share, one of them with an ended lease, and the one before them."""
    live(story)
    story.time("2026-01-05 04:03:30")
    lines = call("status").out.splitlines()
    at = lines.index("upstream")
    assert lines[at + 1 : at + 4] == [
        "  run 6: its lease ended at 04:03Z (pid 4711 on worker-1); the next run of any project takes it over",
        "  run 7 is live: pid 12 on worker-2, since 04:02Z, its lease until 04:04Z",
        "  last run 4 failed at 04:01:02Z (1 committed)",
    ]
    upstream = call("status", "--json").document["projects"][0]
    assert [run["run_id"] for run in upstream["live_runs"]] == [6, 7]
    assert (upstream["live"]["run_id"], upstream["last"]["run_id"]) == (7, 4)


def test_many_live_runs_do_not_hide_the_last_one_that_ended(story: Story, call: Any) -> None:
    """However many share."""
    for number in range(7):
        story.ledger.acquire(
            "upstream", "prod", "run", {"host": "h", "pid": number}, ttl=TTL, grace=timedelta(0), share=True
        )
    upstream = call("status", "--json").document["projects"][0]
    assert (len(upstream["live_runs"]), upstream["last"]["run_id"]) == (7, 4)


def test_a_run_that_was_stopped_is_told_as_such(story: Story, call: Any) -> None:
    """With the reason, as any other end."""
    lease = story.acquire("downstream")
    story.ledger.finish(lease.run_id, "stopped", {"committed": 2}, "stopped by SIGTERM; the next run goes on")
    said = "last run 6 stopped at 04:02Z (2 committed): stopped by SIGTERM; the next run goes on"
    assert said in call("status").out


# Waiting


@pytest.mark.parametrize(
    ("wait", "said"), [("-5m", "--wait -5m is negative"), ("soon", "'soon' is not a duration")]
)
def test_a_wait_that_is_none_is_refused(call: Any, wait: str, said: str) -> None:
    """Before anything is opened, with an example."""
    answer = call("run", "downstream", "--wait", wait)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert "90s" in answer.err
