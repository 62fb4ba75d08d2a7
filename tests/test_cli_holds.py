"""The command line of what a person decides about time: hold, release, accept; and what status, why and gate say of it."""

from __future__ import annotations

import getpass
import socket
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from command_line import Answer, answer_of
from ledger_story import Story, fqn, mesh_graph, node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOUR = "2026-01-05T02:00/2026-01-05T03:00"
NEXT = "2026-01-05T03:00/2026-01-05T04:00"
POISONED = "2026-01-05T03:10/2026-01-05T03:15"
ME = f"{getpass.getuser()}@{socket.gethostname()}"


@pytest.fixture
def story(database_url: str, tmp_path: Path) -> Story:
    """The poisoned mesh of `ledger_story`, at 04:02."""
    found = Story(database_url, tmp_path)
    found.poisoned()
    return found


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No line is wrapped, and what the command line does to structlog is undone."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.delenv("MESHGATE_DEBUG", raising=False)
    yield
    structlog.reset_defaults()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Calls the command line on the configuration in this test's folder."""

    def run(*arguments: str) -> Answer:
        return answer_of(capsys, tmp_path, *arguments)

    return run


def lines(answer: Answer) -> list[str]:
    assert (answer.code, answer.err) == (0, ""), answer.err
    return answer.out.splitlines()


# Hold and release


def test_hold_says_who_waits_and_how_it_ends(story: Story, call: Any) -> None:
    """Once more with the same words changes nothing."""
    said = [
        f"silver.orders [2026-01-05 02:00, 03:00) is held by {ME}: prices look odd",
        "  its readers wait: gold.fact_sales",
        "  → `meshgate release silver.orders` lets them have it",
    ]
    for _ in range(2):
        assert lines(call("hold", "silver.orders", HOUR, "--reason", "prices look odd")) == said
    assert len(story.ledger.states([story.ids[fqn("silver.orders")]]).popitem()[1].holds) == 1


def test_hold_as_data(story: Story, call: Any) -> None:
    """Model, project, interval, reason, author and readers; all of time has no ends."""
    found = call("hold", "bronze.transactions", "--reason", "migration", "--by", "ann", "--json").document
    assert found == {
        "schema": "meshgate.hold", "version": 1, "model": fqn("bronze.transactions"), "project": "upstream",
        "interval": {"start": None, "end": None}, "reason": "migration", "by": "ann",
        "readers": [fqn("silver.orders")],
    }  # fmt: skip


def test_a_table_that_is_one_whole_is_held_whole(story: Story, call: Any) -> None:
    """Whatever interval is named: its readers read all of it. `status` says so though nobody reads it."""
    assert lines(call("hold", "dim_customer", HOUR, "--reason", "odd", "--by", "ann"))[:2] == [
        "gold.dim_customer the whole table is held by ann: odd",
        "  nobody reads it",
    ]
    (line,) = [x for x in call("status").out.splitlines() if x.strip().startswith("gold.dim_customer")]
    assert line.endswith("held")
    assert call("why", "dim_customer", HOUR, "--json").document["state"] == "held"


def test_status_names_the_hold_and_what_it_keeps_back(story: Story, call: Any) -> None:
    """Who, since when, why, whom, and the command that ends it; as data too."""
    call("hold", "silver.orders", "2026-01-05T03:00/2026-01-05T03:10", "--reason", "odd", "--by", "ann")
    found = lines(call("status"))
    at = found.index(
        "  ● silver.orders [2026-01-05 03:00, 03:10) of project upstream: held by ann since 04:02Z: odd"
    )
    assert found[at + 1 : at + 3] == [
        "    keeps back gold.fact_sales [2026-01-05 03:00, 04:00); gold.sales_by_hour [2026-01-05 03:00, 04:00)",
        "    → `meshgate release silver.orders` lets its readers have it",
    ]
    document = call("status", "--json").document
    (hold,) = document["holds"]
    assert (hold["model"], hold["by"], hold["reason"]) == (fqn("silver.orders"), "ann", "odd")
    assert (hold["since"], hold["interval"]["end"]) == ("2026-01-05T04:02:00Z", "2026-01-05T03:10:00Z")
    silver = next(m for p in document["projects"] for m in p["models"] if m["model"] == fqn("silver.orders"))
    assert silver["units"]["held"] == 2


def test_status_shows_a_hold_on_time_to_come(story: Story, call: Any) -> None:
    """It keeps nothing back yet, and is not forgotten."""
    call("hold", "customers", "2026-01-06/2026-01-07", "--reason", "migration", "--by", "ann")
    held = "  bronze.customers [2026-01-06 00:00, 2026-01-07 00:00) is held by ann since 04:02Z: migration"
    assert lines(call("status"))[-1] == held


def test_why_names_the_hold_as_root_beside_what_else_is_wrong(story: Story, call: Any) -> None:
    """The hour waits for a release and for a poisoned interval: both are told."""
    call("hold", "silver.orders", NEXT, "--reason", "odd", "--by", "ann")
    found = call("why", "fact_sales", NEXT, "--json").document
    roots = {(r["model"], r["reason"]): r for r in found["roots"]}
    assert set(roots) == {(fqn("silver.orders"), "held"), (fqn("bronze.transactions"), "failed")}
    hold = roots[fqn("silver.orders"), "held"]
    assert hold["message"] == "held by ann since 2026-01-05 04:02Z: odd"
    assert hold["remedy"] == "`meshgate release silver.orders` lets its readers have it"
    own = call("why", "silver.orders", "2026-01-05T03:00/2026-01-05T03:05").out
    assert own.startswith("silver.orders [2026-01-05 03:00, 03:05): held\n")


def test_the_gate_is_closed_by_a_hold(story: Story, call: Any) -> None:
    """Exit code 3, and who closed it."""
    assert call("gate", "fact_sales", HOUR).code == 0
    call("hold", "silver.orders", HOUR, "--reason", "odd", "--by", "ann")
    answer = call("gate", "fact_sales", HOUR)
    assert answer.code == 3
    assert "held by ann since 04:02Z: odd" in answer.out
    assert call("gate", "silver.orders", "2026-01-05T02:00/2026-01-05T02:05").code == 0


def test_release_lets_go_and_tells_what_stays_held(story: Story, call: Any) -> None:
    """A part first, then the rest, then there is nothing."""
    call("hold", "silver.orders", HOUR, "--reason", "odd", "--by", "ann")
    assert lines(call("release", "silver.orders", "2026-01-05T02:00/2026-01-05T02:30")) == [
        "silver.orders [2026-01-05 02:00, 02:30) is released; it was held by ann since 2026-01-05 04:02Z: odd",
        "  [2026-01-05 02:30, 03:00) is held by ann since 2026-01-05 04:02Z: odd",
    ]
    found = call("release", "silver.orders", "--json").document
    assert (found["schema"], len(found["released"]), found["left"]) == ("meshgate.release", 1, [])
    assert lines(call("release", "silver.orders")) == ["silver.orders: nothing of that was held"]
    assert call("gate", "fact_sales", HOUR).code == 0


# Accept


def test_accept_opens_the_gate_and_why_tells_who_did_it(story: Story, call: Any) -> None:
    """The poisoned interval counts as recorded; what waited for it is ready."""
    assert lines(call("accept", "bronze.transactions", POISONED, "--reason", "lost at the source", "--by", "ann")) == [
        (
            "bronze.transactions [2026-01-05 03:10, 03:15) is accepted as it is: its readers go on, and those that had read "
            "it before will read it again"
        )
    ]  # fmt: skip
    assert lines(call("why", "bronze.transactions", POISONED)) == [
        "bronze.transactions [2026-01-05 03:10, 03:15): accepted as it was",
        "project upstream · prod at 2026-01-05 04:02Z",
        "[2026-01-05 03:10, 03:15) accepted by ann at 04:02Z: lost at the source",
        "  revision 15, it was failed",
    ]
    document = call("why", "bronze.transactions", POISONED, "--json").document
    assert document["recorded"][0]["accepted"] == {
        "by": "ann",
        "reason": "lost at the source",
        "was": ["failed"],
    }
    assert call("why", "silver.orders", POISONED, "--json").document["state"] == "ready"


def test_accept_as_data_and_undone(story: Story, call: Any) -> None:
    """What counts as recorded; and, taken back, what is due again."""
    found = call("accept", "transactions", POISONED, "--reason", "lost", "--json").document
    piece = {"start": "2026-01-05T03:10:00Z", "end": "2026-01-05T03:15:00Z"}
    assert (found["schema"], found["accepted"], found["undone"]) == ("meshgate.accept", [piece], False)
    again = call("accept", "transactions", POISONED, "--reason", "lost")
    assert "there is nothing to accept, all of it is recorded and clean" in again.out
    found = call("accept", "transactions", "--undo", "--json").document
    assert (found["accepted"], found["undone"]) == ([piece], True)
    assert call("why", "transactions", POISONED, "--json").document["state"] == "marked"
    assert lines(call("accept", "silver.orders", "--undo")) == ["silver.orders: nothing of that was accepted"]


def test_the_doubt_about_a_whole_table_needs_no_interval(story: Story, call: Any) -> None:
    """A failed refresh is accepted with what it was about to add."""
    story.time("2026-01-05 05:02")
    with story.run("downstream", "failed") as lease:
        story.fail(lease, "gold.dim_customer", "2026-01-05T04:00/2026-01-05T05:00")
    assert call("why", "dim_customer", "--json").document["state"] == "failed"
    answer = call("accept", "dim_customer", "--reason", "good enough", "--by", "ann")
    assert lines(answer)[0].startswith("gold.dim_customer [2026-01-05 04:00, 05:00) is accepted as it is")
    assert call("why", "dim_customer", "--json").document["state"] == "recorded"


def test_what_is_never_evaluated_twice_is_accepted_by_a_person(
    database_url: str, tmp_path: Path, call: Any
) -> None:
    """The remedy of an unmanaged table names the command, and the command ends the doubt."""
    graph = mesh_graph(more=[node("gold.log", "downstream", "hour", "incremental_unmanaged")])
    story = Story(database_url, tmp_path, graph)
    story.time("2026-01-05 01:02")
    with story.run("downstream") as lease:
        story.begin(lease, "gold.log", "2026-01-05/2026-01-05T01:00")
    (root,) = call("why", "gold.log", "--json").document["roots"]
    assert (root["reason"], "hold_id" in root["detail"]) == ("held", False)
    assert root["remedy"].endswith("then `meshgate accept gold.log --reason WHY` says that they are right")
    assert call("accept", "gold.log", "--reason", "checked").code == 0
    assert call("why", "gold.log", "--json").document["state"] == "recorded"


def test_what_was_never_appended_is_not_accepted_with_what_is_in_doubt(
    database_url: str, tmp_path: Path, call: Any
) -> None:
    """Hours later only what the lost run was appending is accepted; the hours since then are due as before."""
    graph = mesh_graph(more=[node("gold.log", "downstream", "hour", "incremental_unmanaged")])
    story = Story(database_url, tmp_path, graph)
    story.time("2026-01-05 01:02")
    with story.run("downstream") as lease:
        story.begin(lease, "gold.log", "2026-01-05/2026-01-05T01:00")
    story.time("2026-01-05 04:02")
    answer = call("accept", "gold.log", "--reason", "checked")
    assert lines(answer)[0].startswith("gold.log [2026-01-05 00:00, 01:00) is accepted as it is")
    left = call("why", "gold.log", "--json").document
    assert left["interval"]["start"] == "2026-01-05T01:00:00Z"
    assert left["state"] != "accepted"


def test_what_a_run_is_writing_is_not_accepted(story: Story, call: Any) -> None:
    """Exit code 1, and the run."""
    lease = story.acquire("upstream")
    story.begin(lease, "bronze.transactions", POISONED)
    answer = call("accept", "transactions", POISONED, "--reason", "lost")
    assert answer.code == 1
    assert f"run {lease.run_id} of 'upstream' is evaluating it" in answer.err


# What is refused


@pytest.mark.parametrize("verb", ["hold", "release", "accept"])
@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (["gold.fact_sale", HOUR], "there is no model gold.fact_sale", "gold.fact_sales"),
        (["fact_sales", "2026-01-05T03:30/2026-01-05T04:00"], "whose unit is hour", NEXT),
        (["fact_sales", HOUR, "--environment", "dev"], "environment 'dev' is not known", "meshgate deploy"),
        (["fact_sales", "soon"], "soon", "START/END"),
    ],
)
def test_names_and_intervals_are_refused_as_by_why(
    story: Story, call: Any, verb: str, arguments: list[str], said: str, hint: str
) -> None:
    """Exit code 2; nothing is written."""
    answer = call(verb, *arguments, *([] if verb == "release" else ["--reason", "odd"]))
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert hint in answer.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hold", "fact_sales"], "--reason"),
        (["hold", "fact_sales", "--reason", " "], "a reason and an author"),
        (["accept", "fact_sales", HOUR], "an acceptance has a reason"),
        (["accept", "fact_sales", HOUR, "--reason", ""], "a reason and an author"),
        (["accept", "transactions", "--reason", "lost"], f"the oldest that failed or is missing: {POISONED}"),
        (["accept", "fact_sales", "2026-01-05T04:00/2026-01-05T06:00", "--reason", "x"], "is not all due"),
        (["accept", "fact_sales", "2026-01-05T03:00/2026-01-05T06:00", "--reason", "x"], f"did you mean {NEXT} ?"),
        (["accept", "fact_sales", "2026-01-04T00:00/2026-01-04T06:00", "--reason", "x"], "is not all due"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_what_does(
    story: Story, call: Any, arguments: list[str], said: str
) -> None:
    """Exit code 2, and an example or the nearest that would."""
    before = story.ledger.revision()
    answer = call(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert story.ledger.revision() == before


def test_views_and_seeds_are_refused_with_what_to_name_instead(
    database_url: str, tmp_path: Path, call: Any
) -> None:
    """Nobody waits for a view; a seed is loaded."""
    graph = mesh_graph(
        more=[node("gold.view", "downstream", "hour", "view"), node("ref.seed", "upstream", "day", "seed")],
        reads=[("gold.view", "silver.orders")],
    )
    Story(database_url, tmp_path, graph).time("2026-01-05 04:02")
    answer = call("hold", "gold.view", "--reason", "odd")
    assert answer.code == 2
    assert "is a view" in answer.err
    assert "silver.orders" in answer.err
    answer = call("accept", "ref.seed", "--reason", "odd")
    assert answer.code == 2
    assert "meshgate deploy upstream" in answer.err
    assert call("hold", "ref.seed", "--reason", "odd").code == 0
