"""The pure part of an analysis: in which order to deploy, when what can be done, and what a reviewer is told first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from meshgate.analysis import (
    Analysis,
    Base,
    Change,
    Difference,
    Hindrance,
    Order,
    Precedence,
    Reading,
    Refusal,
    Task,
    arrange,
    earliest,
    precedences,
    reasons_of,
)
from meshgate.interval import Interval, IntervalSet
from meshgate.report.pull_request import markdown
from strategies import examples

NOW = datetime(2026, 1, 5, 2, 15, tzinfo=UTC)
HOUR = timedelta(hours=1)
PIECE = IntervalSet([Interval(NOW - HOUR, NOW)])
PROJECTS = ("a", "b", "c", "d")


def reading(before: set[str] | None, after: set[str] | None) -> Reading:
    """How a model of b reads one of a."""
    sides = (None if side is None else frozenset(side) for side in (before, after))
    return Reading("child", "b", "parent", "a", *sides)


@pytest.mark.parametrize(
    ("before", "after", "was", "now", "expected"),
    [
        (None, {"x"}, None, {"x"}, [("a", "b", "reads_new_model")]),
        ({"x"}, None, {"x"}, None, [("b", "a", "reads_removed_model")]),
        ({"x"}, {"x", "y"}, {"x"}, {"x", "y"}, [("a", "b", "reads_new_column")]),
        ({"x", "y"}, {"x"}, {"x", "y"}, {"x"}, [("b", "a", "reads_removed_column")]),
        ({"x"}, {"y"}, {"x"}, {"y"}, [("a", "b", "reads_new_column"), ("b", "a", "reads_removed_column")]),
        ({"x"}, {"x"}, {"x", "y"}, {"x", "z"}, []),
        ({"*"}, {"*"}, {"x"}, {"y"}, []),
    ],
)
def test_who_comes_before_whom(before, after, was, now, expected) -> None:
    """What is added comes before who reads it, what is removed after who has read it."""
    columns = tuple({} if side is None else {"parent": side} for side in (was, now))
    found = precedences([reading(before, after)], ("a", "b"), columns)
    assert [(p.first, p.then, p.why) for p in found] == expected
    assert not precedences([reading(before, after)], ("b",), columns)


PAIRS = st.sets(
    st.tuples(st.sampled_from(PROJECTS), st.sampled_from(PROJECTS)).filter(lambda p: p[0] != p[1]), max_size=6
)


def keeps(order: tuple[str, ...], pairs: set[tuple[str, str]]) -> bool:
    return all(order.index(first) < order.index(then) for first, then in pairs)


def test_a_star_between_them_passes_what_comes_and_goes() -> None:
    """What counts is whose deploy makes the column; and who reads through a project that stays comes after whom it reads."""
    through = Reading("child", "a", "view", "m", frozenset({"x"}), frozenset({"y"}), {"x": {"z"}, "y": {"z"}})
    found = precedences([through], ("a", "z"), ({"view": {"x"}}, {"view": {"y"}}))
    assert [(p.first, p.then, p.why) for p in found] == [
        ("a", "z", "reads_removed_column"), ("z", "a", "reads_new_column"),
    ]  # fmt: skip
    assert arrange(("a", "z"), (), [("m", "a"), ("z", "m")]).projects == ("z", "a")


@examples(200)
@given(PAIRS, PAIRS)
def test_an_order_keeps_to_what_is_required_if_any_order_does(must, wish) -> None:
    """Tried against all orders; and where the wishes can be kept as well, they are."""
    found = arrange(PROJECTS, [Precedence(a, b, "reads_new_model", "p", "c") for a, b in must], wish)
    possible = [order for order in permutations(PROJECTS) if keeps(order, must)]
    assert sorted(found.projects) == list(PROJECTS)
    assert found.state == (("required" if must else "any") if possible else "none")
    if possible:
        assert found.projects in possible
        if any(keeps(order, must | wish) for order in possible):
            assert keeps(found.projects, must | wish)
    assert found == arrange(reversed(PROJECTS), found.precedences, sorted(wish, reverse=True))


def tick(project: str, instant: datetime) -> datetime:
    """Runs at each full hour, or of `late` at half past."""
    shift = timedelta(minutes=30) if project == "late" else timedelta(0)
    floor = (instant - shift).replace(minute=0, second=0) + shift
    return instant if floor == instant else floor + HOUR


def hindered(reason: str, parent: str, until: datetime | None = None) -> Hindrance:
    return Hindrance(reason, parent, "up", PIECE, PIECE, until)


def test_a_deploy_begins_at_once_and_what_waits_goes_on_with_the_runs() -> None:
    """The parent's project runs at three, the reader's own at half past."""
    found = earliest(
        [Task("m", "late", deploys=True, ready=True, hindrances=(hindered("late", "p"),))], NOW, tick
    )["m", "deploy"]
    assert (found.first_at, found.complete_at) == (NOW, NOW.replace(hour=3, minute=30))


def test_what_is_held_has_no_end() -> None:
    """Nothing but somebody ends it; what is ready is done all the same, and who reads it waits as well."""
    tasks = [
        Task("m", "up", deploys=True, ready=True, hindrances=(hindered("held", "p"),)),
        Task("n", "up", deploys=True, ready=False, hindrances=(hindered("missing", "m"),), reads=("m",)),
    ]
    found = earliest(tasks, NOW, tick)
    assert (found["m", "deploy"].first_at, found["m", "deploy"].complete_at) == (NOW, None)
    assert (found["n", "deploy"].first_at, found["n", "deploy"].complete_at) == (None, None)


def test_runs_follow_each_other_through_projects() -> None:
    """A stale chain over two projects takes a tick of each; and no earlier than the throttle lets it."""
    tasks = [
        Task("m", "up", deploys=False, ready=True),
        Task("n", "late", deploys=False, ready=True, reads=("m",)),
        Task("o", "up", deploys=False, ready=True, reads=("n",), rests=NOW + 4 * HOUR),
    ]
    found = earliest(tasks, NOW, tick)
    assert [found[name, "run"].first_at for name in "mno"] == [
        NOW.replace(hour=3, minute=0), NOW.replace(hour=3, minute=30), NOW.replace(hour=7, minute=0),
    ]  # fmt: skip


def test_what_failed_is_waited_for_until_its_next_try() -> None:
    """And then until the next tick of whoever tries it."""
    later = hindered("failed", "p", NOW + 2 * HOUR)
    found = earliest([Task("m", "up", deploys=True, ready=False, hindrances=(later,))], NOW, tick)
    assert found["m", "deploy"].first_at == NOW.replace(hour=5, minute=0)


def test_reasons_name_the_columns_that_are_read() -> None:
    """Of what differs only that; a star reads all; a parent whose rows are others counts too."""
    changed = {"p": [Difference("column_retyped", "x", "INT", "TEXT"), Difference("column_removed", "y")]}
    (one,) = reasons_of({"p": frozenset({"x"}), "q": frozenset({"z"})}, changed, [])
    assert [d.name for d in one.columns] == ["x"]
    (star, rows) = reasons_of({"p": frozenset({"*"}), "q": frozenset({"z"})}, changed, ["q"])
    assert ([d.name for d in star.columns], star.star, rows.rows) == (["x", "y"], True, True)


def test_the_comment_begins_with_what_must_not_be() -> None:
    """A refusal comes first, whatever else there is; text of models cannot break out of its place."""
    change = Change(
        '"l"."s"."m|x"',
        "up",
        "<b>",
        "direct",
        "breaking",
        differences=(Difference("column_removed", "a|b`c"),),
    )
    refusal = Refusal("removed_model", None, "up", "it | is <i>wrong</i>", "mend it")
    found = Analysis(
        "prod",
        NOW,
        ("up",),
        Base((None,), "0", 1, "1", (("up",),), ()),
        (change,),
        order=Order(("up",)),
        refusals=(refusal,),
    )
    text = markdown(found)
    assert text.index("must not be merged") < text.index("wrong") < text.index("What changes")
    assert "<i>" not in text
    assert "<b>" not in text
    cells = [line for line in text.splitlines() if line.startswith("| **What changes?**")]
    assert cells[0].replace("\\|", "").count("|") == 3
    assert "This changes nothing that is computed" in markdown(evolve(found, changes=(), refusals=()))
