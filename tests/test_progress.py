"""What a run tells on stderr: lines of a log, and a live line on a terminal that leaves nothing behind."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from meshgate.coordinator.progress import Batch, Planned, Waiting
from meshgate.interval import Interval, IntervalSet
from meshgate.report.progress import Narrator
from meshgate.report.wording import waiting_for

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 1, 5, 10, 58, 3, tzinfo=UTC)
ORDERS, EVENTS = '"lake"."silver"."orders"', '"lake"."bronze"."events"'
FIVE = Interval.parse("2026-01-05T10:55/2026-01-05T11:00")


def waiting(**facts: object) -> Waiting:
    known = {
        "project": "downstream", "model": ORDERS, "of": "upstream", "time": IntervalSet([FIVE]), "reason": "late",
        "run_id": None, "expected": NOW.replace(hour=11, minute=2), "until": NOW.replace(hour=11, minute=30), "notified": True,
    }  # fmt: skip
    return Waiting(**{**known, **facts})  # type: ignore[arg-type]


def batch(what: str, model: str = ORDERS, detail: str = "") -> Batch:
    return Batch("upstream", model, FIVE, 1, what, detail)


def lines(file: io.StringIO) -> list[str]:
    """What was said, without the instants before it."""
    found = file.getvalue().splitlines()
    assert all(
        line[:20] == datetime.fromisoformat(line[:20]).strftime("%Y-%m-%d %H:%M:%SZ") for line in found
    )
    return [line[21:] for line in found]


# Sentences


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "waiting for silver.orders [10:55, 11:00) of upstream, expected 11:02:03Z (until 11:30Z)"),
        ({"expected": None}, "waiting for silver.orders [10:55, 11:00) of upstream (until 11:30Z)"),
        (
            {"expected": NOW - timedelta(hours=1)},
            "waiting for silver.orders [10:55, 11:00) of upstream, was expected 09:58Z (until 11:30Z)",
        ),
        (
            {"reason": "begun", "run_id": 7, "expected": None},
            "waiting for silver.orders [10:55, 11:00) of upstream, which run 7 is evaluating (until 11:30Z)",
        ),
        (
            {"reason": "begun", "expected": None},
            "waiting for silver.orders [10:55, 11:00) of upstream, which a run is evaluating (until 11:30Z)",
        ),
        (
            {"reason": "failed", "expected": None},
            "waiting for silver.orders [10:55, 11:00) of upstream, whose evaluation failed (until 11:30Z)",
        ),
        (
            {"model": None, "reason": "busy", "run_id": 7, "expected": None},
            "waiting for run 7 of upstream to end (until 11:30Z)",
        ),
        (
            {"until": NOW + timedelta(seconds=30), "expected": None},
            "waiting for silver.orders [10:55, 11:00) of upstream (until 10:58:33Z)",
        ),
        (
            {"until": NOW + timedelta(days=1), "expected": None, "time": IntervalSet.everything()},
            "waiting for silver.orders the whole table of upstream (until 2026-01-06 10:58Z)",
        ),
    ],
)  # fmt: skip
def test_a_wait_is_one_sentence(facts: dict[str, object], said: str) -> None:
    """For what, whose, why it is not there, when it is expected, until when it is waited for."""
    assert waiting_for(waiting(**facts), NOW) == said


# Lines


def test_a_log_tells_what_is_waited_for_once_and_what_fails() -> None:
    """Not each poll, nor each interval on the way, nor each batch that goes well."""
    file = io.StringIO()
    with Narrator(file) as narrator:
        narrator.tell(Planned("upstream", ((EVENTS, 12), (ORDERS, 12))))
        for what in ("begun", "committed", "begun", "failed"):
            narrator.tell(batch(what))
        for minutes in (0, 5, 10):
            earlier = Interval(FIVE.start - timedelta(minutes=minutes), FIVE.end)
            narrator.tell(waiting(time=IntervalSet([earlier]), expected=None))
            narrator.tell(waiting(reason="begun", run_id=minutes, expected=None))
        for run_id in (7, 7, 8):
            narrator.tell(waiting(model=None, reason="busy", run_id=run_id, expected=None))
    said = lines(file)
    assert said[0] == f"failed silver.orders {FIVE}"
    assert [line.split(" (until")[0] for line in said[1:]] == [
        f"waiting for silver.orders {FIVE} of upstream",
        f"waiting for silver.orders {FIVE} of upstream, which a run is evaluating",
        "waiting for run 7 of upstream to end",
        "waiting for run 8 of upstream to end",
    ]


def test_more_is_told_where_it_is_asked_for() -> None:
    """The plan, every batch as it ends, every other stretch that is waited for; what waits for its turn once."""
    file = io.StringIO()
    with Narrator(file, verbose=True, silent=True) as narrator:
        narrator.tell(Planned("upstream", ((EVENTS, 12), (ORDERS, 1))))
        full = "as warehouse 'lake' is at its limit of 2 batches at once"
        for what, detail in (
            *[("waiting", full), ("waiting", full), ("begun", ""), ("committed", ""), ("refused", "")],
        ):
            narrator.tell(batch(what, detail=detail))
        narrator.tell(waiting())
        narrator.tell(waiting(time=IntervalSet([Interval(FIVE.start - timedelta(minutes=5), FIVE.end)])))
    said = lines(file)
    assert said[:4] == [
        "upstream: 13 intervals to evaluate of 2 models: bronze.events 12, silver.orders 1",
        f"silver.orders {FIVE} waits {full}",
        f"committed silver.orders {FIVE}",
        f"refused silver.orders {FIVE}",
    ]
    assert len(said) == 6


def test_where_notifications_do_not_get_through_the_wait_says_so() -> None:
    """It costs seconds, and somebody may want to know why."""
    file = io.StringIO()
    Narrator(file).tell(waiting(notified=False))
    assert lines(file)[0].endswith("Z; polling every 5 s: notifications do not get through)")


def test_a_silent_narrator_says_only_what_it_is_told_to_say() -> None:
    """Beside a JSON answer stderr is empty, unless a signal ends the run."""
    file = io.StringIO()
    with Narrator(file, silent=True) as narrator:
        narrator.tell(batch("failed"))
        narrator.tell(waiting())
        assert file.getvalue() == ""
        narrator.say("SIGTERM: stopping")
    assert file.getvalue() == "SIGTERM: stopping\n"


def test_a_reader_that_went_away_does_not_stop_the_work() -> None:
    """Neither what a run tells nor what a signal says raises when nobody can read it."""
    file = io.StringIO()
    narrator = Narrator(file)
    file.close()
    narrator.tell(batch("failed"))
    narrator.say("SIGTERM: stopping")
    narrator.close()


# The live line


class Screen:
    """A terminal of our own: what was sent to it, and what is left on it."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w")
        self.sent = ""

    def shows(self, text: str) -> None:
        """Read until it was sent."""
        deadline = time.monotonic() + 20
        while text not in self.sent:
            assert select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0], self.sent
            self.sent += os.read(self.master, 65536).decode()

    def rest(self) -> str:
        """What stands on it in the end."""
        self.file.flush()
        while select.select([self.master], [], [], 0.2)[0]:
            self.sent += os.read(self.master, 65536).decode()
        rows: list[str] = [""]
        at = 0
        for part in self._parts():
            if part == "\n":
                at += 1
                rows += [""] * (at + 1 - len(rows))
            elif part == "\x1b[2K":
                rows[at] = ""
            elif part.startswith("\x1b[") and part.endswith("A"):
                at -= int(part[2:-1] or 1)
            elif not part.startswith(("\x1b", "\r")):
                rows[at] += part
        return "\n".join(row.rstrip() for row in rows).strip()

    def _parts(self) -> Iterator[str]:
        return (found[0] for found in re.finditer(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.sent))


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    found = Screen()
    yield found
    found.file.close()
    os.close(found.master)


def test_the_live_line_shows_progress_and_goes_away(screen: Screen) -> None:
    """A bar over all intervals with the model at work; failures stay above it, and nothing else is left."""
    with Narrator(screen.file) as narrator:
        narrator.tell(Planned("upstream", ((EVENTS, 1), (ORDERS, 1))))
        narrator.tell(batch("begun", EVENTS))
        screen.shows("0/2 intervals")
        screen.shows(f"bronze.events {FIVE}")
        narrator.tell(batch("committed", EVENTS))
        narrator.tell(batch("begun"))
        screen.shows("1/2 intervals")
        narrator.tell(batch("failed"))
        screen.shows("2/2 intervals")
    assert screen.rest()[21:] == f"failed silver.orders {FIVE}"
    assert screen.sent.rindex("\x1b[?25h") > screen.sent.rindex("\x1b[?25l")


def test_a_wait_counts_down_on_a_terminal(screen: Screen) -> None:
    """It is one line that changes, and it says nothing twice to a log."""
    until = datetime.now(UTC) + timedelta(minutes=20)
    with Narrator(screen.file) as narrator:
        narrator.tell(waiting(until=until, expected=None))
        screen.shows("waiting for silver.orders")
        screen.shows("19:59 left")
        screen.shows("19:58 left")
    assert screen.rest() == ""


def test_what_a_signal_says_stands_alone_and_the_cursor_is_back(screen: Screen) -> None:
    """The process may exit without another word; what is told after it comes in lines."""
    narrator = Narrator(screen.file)
    narrator.tell(Planned("upstream", ((EVENTS, 1),)))
    screen.shows("0/1 intervals")
    narrator.say("SIGTERM: stopping")
    narrator.tell(batch("committed", EVENTS))
    narrator.tell(batch("failed"))
    said = screen.rest().splitlines()
    assert said[0] == "SIGTERM: stopping"
    assert [line[21:] for line in said[1:]] == [f"failed silver.orders {FIVE}"]
    assert screen.sent.rindex("\x1b[?25h") > screen.sent.rindex("\x1b[?25l")


def test_threads_that_tell_at_once_do_not_get_in_each_others_way(screen: Screen) -> None:
    """Every failure of every thread is one whole line, and the bar is full in the end."""
    models = [f'"lake"."m"."t{number}"' for number in range(8)]
    with Narrator(screen.file) as narrator:
        narrator.tell(Planned("upstream", tuple((name, 1) for name in models)))

        def work(name: str) -> None:
            for what in ("begun", "failed"):
                narrator.tell(batch(what, name))

        threads = [threading.Thread(target=work, args=(name,)) for name in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        screen.shows("8/8 intervals")
    assert sorted(line[21:] for line in screen.rest().splitlines()) == [
        f"failed m.t{number} {FIVE}" for number in range(8)
    ]


def test_a_dumb_terminal_gets_lines(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sequence is sent that it could not read."""
    monkeypatch.setenv("TERM", "dumb")
    with Narrator(screen.file) as narrator:
        narrator.tell(Planned("upstream", ((EVENTS, 1),)))
        narrator.tell(waiting(expected=None))
    assert "waiting for silver.orders" in screen.rest()
    assert "\x1b" not in screen.sent
