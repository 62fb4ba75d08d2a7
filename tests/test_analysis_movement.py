"""Whether the world is the one that was analysed: any of the analysed deploys is no movement, and anything else is named."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from meshgate.analysis import (
    Analysis,
    Base,
    Boundary,
    Change,
    Collision,
    Definition,
    Difference,
    Hindrance,
    Left,
    Moved,
    Order,
    Precedence,
    Reason,
    Refusal,
    Work,
    movement,
    parse,
)
from meshgate.errors import ConfigError
from meshgate.interval import Interval, IntervalSet
from meshgate.report import data

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECTS = ("crm", "sales", "finance")
DIGESTS = st.sampled_from((None, "one", "two", "three"))


@st.composite
def analysed(draw: st.DrawFn) -> tuple[list[Definition], set[str]]:
    """Models of some projects, so far and then; and whose files were looked at: the others stay."""
    ours = draw(st.sets(st.sampled_from(PROJECTS)))
    found = []
    for number in range(draw(st.integers(0, 8))):
        project = draw(st.sampled_from(PROJECTS))
        before = draw(DIGESTS)
        after = draw(DIGESTS) if project in ours else before
        if before or after:
            found.append(Definition(f"m{number}", project, 0, before, after))
    return found, ours


def world(told: list[Definition], deployed: set[str]) -> dict[str, tuple[str, str]]:
    """What is promoted where some projects were deployed."""
    now = {d.model: (d.project, d.after if d.project in deployed else d.before) for d in told}
    return {name: (project, said) for name, (project, said) in now.items() if said is not None}


@given(analysed(), st.sets(st.sampled_from(PROJECTS)))
def test_what_the_analysed_deploys_do_is_no_movement(
    drawn: tuple[list[Definition], set[str]], wished: set[str]
) -> None:
    """Whichever of them were made: nothing has moved, and those that were made are there."""
    told, ours = drawn
    found = movement(told, world(told, wished & ours), ours)
    assert found.moved == ()
    changing = {d.project for d in told if d.before != d.after}
    assert found.there == {d.project for d in told if d.project in ours} - (changing - wished)


@given(analysed(), st.sets(st.sampled_from(PROJECTS)), st.data())
def test_whatever_else_is_done_is_named(
    drawn: tuple[list[Definition], set[str]], wished: set[str], data: st.DataObject
) -> None:
    """A model that is something else, or gone, or new: that one, and no other."""
    told, ours = drawn
    now = world(told, wished & ours)
    foreign = [d for d in told if None not in (d.before, d.after)]
    name = data.draw(st.sampled_from(["new", *(d.model for d in foreign)]))
    how = "added" if name == "new" else data.draw(st.sampled_from(["changed", "removed"]))
    project = next((d.project for d in told if d.model == name), "crm")
    if how == "removed":
        del now[name]
    else:
        now[name] = (project, "stranger")
    found = movement(told, now, ours)
    assert found.moved == (Moved(name, project, how),)  # type: ignore[arg-type]


def test_half_a_deploy_is_nobodys_deploy() -> None:
    """All of a project's models are replaced at once: where only one is, somebody else did that."""
    told = [Definition(name, "crm", 0, "one", "two") for name in ("a", "b")]
    found = movement(told, {"a": ("crm", "two"), "b": ("crm", "one")}, {"crm"})
    assert (found.there, found.moved) == (frozenset(), (Moved("b", "crm", "half"),))


# The document, read back

INSTANTS = st.integers(0, 10**6).map(lambda m: datetime(2026, 1, 5, tzinfo=UTC) + timedelta(minutes=m))
TIMES = st.lists(
    st.tuples(INSTANTS, st.integers(1, 10**4)).map(lambda p: Interval(p[0], p[0] + timedelta(minutes=p[1])))
).map(IntervalSet) | st.just(IntervalSet.everything())
WORDS = st.sampled_from(("", "a", '"lake"."crm"."orders"', "grüß"))


def several(made: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(made, max_size=2).map(tuple)


def perhaps(made: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | made


DIFFERENCES = st.builds(Difference, WORDS, perhaps(WORDS), perhaps(WORDS), perhaps(WORDS))
REASONS = st.builds(Reason, WORDS, several(DIFFERENCES), st.booleans(), st.booleans())
HINDRANCES = st.builds(Hindrance, WORDS, WORDS, WORDS, TIMES, TIMES, perhaps(INSTANTS))
TOOK = st.integers(0, 10**9).map(lambda ms: timedelta(milliseconds=ms))
ANALYSES = st.builds(
    Analysis,
    environment=WORDS,
    now=INSTANTS,
    projects=several(WORDS),
    base=st.builds(
        Base, several(perhaps(WORDS)), WORDS, st.integers(0), WORDS, several(several(WORDS)),
        several(st.builds(Definition, WORDS, WORDS, perhaps(st.integers(0)), perhaps(WORDS), perhaps(WORDS))),
    ),
    changes=several(st.builds(
        Change, WORDS, WORDS, perhaps(WORDS), st.sampled_from(("added", "removed", "direct", "indirect", "metadata")),
        perhaps(WORDS), st.booleans(), several(WORDS), several(DIFFERENCES), several(REASONS),
    )),
    work=several(st.builds(
        Work, WORDS, WORDS, st.sampled_from(("rebuilt", "extended", "stale")), st.sampled_from(("deploy", "run")), WORDS,
        TIMES, TIMES, several(HINDRANCES), perhaps(INSTANTS), perhaps(INSTANTS), perhaps(TOOK), perhaps(st.integers(0)),
        several(WORDS), st.booleans(),
    )),
    left=several(st.builds(Left, WORDS, WORDS, WORDS, TIMES, several(WORDS))),
    boundaries=several(st.builds(Boundary, WORDS, WORDS, WORDS, WORDS, perhaps(WORDS), WORDS, REASONS)),
    collisions=several(st.builds(
        Collision, st.sampled_from(("run", "request")), st.integers(0), WORDS, perhaps(WORDS), WORDS, TIMES, perhaps(INSTANTS),
    )),
    order=st.builds(
        Order, several(WORDS), several(st.builds(Precedence, WORDS, WORDS, WORDS, WORDS, WORDS, several(WORDS))),
        st.sampled_from(("any", "required", "none")),
    ),
    refusals=several(st.builds(Refusal, WORDS, perhaps(WORDS), WORDS, WORDS, WORDS)),
    warnings=several(WORDS),
)  # fmt: skip


def agreeing(found: Analysis) -> Analysis:
    """The same about one set of projects."""
    names = tuple(dict.fromkeys(found.projects))
    definitions = tuple(evolve(d, state=d.state and 1) for d in found.base.definitions)
    base = evolve(found.base, states=(names[:1], names[1:]), definitions=definitions)
    musts = tuple(evolve(p, first=names[0], then=names[-1]) for p in found.order.precedences if names)
    order = evolve(found.order, projects=names[::-1], precedences=musts)
    return evolve(found, projects=names, base=base, order=order)


@settings(max_examples=50, deadline=None)
@given(ANALYSES.map(agreeing))
def test_a_document_read_back_is_the_analysis(found: Analysis) -> None:
    """Every record, every instant, every duration; what a later meshgate adds is left alone."""
    document = json.loads(data.dumped(data.analyze(found)))
    assert parse({**document, "added later": 1}, "FILE") == found


BASE = {
    "plans": [None],
    "promoted": "a",
    "revision": 1,
    "proposed": "b",
    "states": [["crm"]],
    "definitions": [],
}
WORK = {"model": "a", "project": "crm", "why": "stale", "by": "run", "doer": "crm", "range": [], "ready": []}


def whole() -> dict[str, Any]:
    base = Base((None,), "a", 1, "b", (("crm",),), ())
    found = Analysis("prod", datetime(2026, 1, 5, tzinfo=UTC), ("crm",), base, order=Order(("crm",)))
    document: dict[str, Any] = json.loads(data.dumped(data.analyze(found)))
    return document


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "meshgate.error"}, "FILE is not an analysis: it says that it is a meshgate.error"),
        ({"schema": None}, "FILE is not an analysis"),
        ({"version": 2}, "FILE is an analysis of version 2, and this meshgate knows version 1"),
        ({"now": "yesterday"}, "FILE is no whole analysis"),
        ({"projects": "crm"}, "FILE is no whole analysis: projects is no list"),
        ({"base": None}, "FILE is no whole analysis: base holds no keys"),
        ({"base": {"plans": [1]}}, "FILE is no whole analysis: base.plans[0] is 1"),
        ({"environment": True}, "FILE is no whole analysis: environment is True"),
        ({"order": {"projects": [], "state": "some"}}, "FILE is no whole analysis: order.state is 'some', none of"),
        ({"left": [{"model": "a", "project": "b", "reason": "c", "range": [1]}]}, "left[0].range holds 1, no interval"),
        ({"projects": ["crm", "sales"]}, "FILE is no whole analysis: base.states has other projects than projects: crm"),
        ({"order": {"projects": ["crm", "crm"]}}, "FILE is no whole analysis: order.projects has other projects than projects"),
        ({"order": {"projects": ["crm"], "precedences": [{"first": "a", "then": "crm", "why": "", "parent": "", "child": ""}]}},
         "FILE is no whole analysis: order.precedences[0] is about other projects"),
        ({"base": {**BASE, "definitions": [{"model": "a", "project": "crm", "state": 1, "before": None, "after": "b"}]}},
         "FILE is no whole analysis: base.definitions has a state that is not in base.states"),
        ({"work": [{**WORK, "expected_s": float("nan")}]}, "FILE is no whole analysis: work[0].expected_s is nan"),
        ({"work": [{**WORK, "expected_s": 1e300}]}, "FILE is no whole analysis: work[0].expected_s is 1e+300"),
        ({"environment": "a\0"}, "FILE is no whole analysis: environment is 'a\\x00'"),
    ],
)  # fmt: skip
def test_what_is_no_whole_analysis_is_refused_with_the_place(change: Mapping[str, Any], said: str) -> None:
    """Another document, another version, a part that is missing or is something else."""
    with pytest.raises(ConfigError) as refused:
        parse({**whole(), **change}, "FILE")
    assert said in refused.value.message
    assert refused.value.hint
    for other in ([], None, "text"):
        with pytest.raises(ConfigError, match="FILE is not an analysis"):
            parse(other, "FILE")
