"""What is due, compared with SQLMesh itself on random models, and the few places where we differ."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from attrs import evolve, frozen
from hypothesis import assume, given
from hypothesis import strategies as st

from meshgate.due import cron_floor, cron_next, due, next_due
from meshgate.errors import GraphError, IntervalError
from meshgate.graph import Kind, ModelNode
from meshgate.interval import Interval, IntervalSet, IntervalUnit, parse_instant
from strategies import examples, instants, node

HOUR, DAY, FIVE = IntervalUnit.HOUR, IntervalUnit.DAY, IntervalUnit.FIVE_MINUTE
NOTHING = IntervalSet.empty()

CRONS = (
    "*/5 * * * *",
    "*/10 * * * *",
    "*/15 * * * *",
    "7,37 * * * *",
    "@hourly",
    "20 * * * *",
    "0 */6 * * *",
    "0 9,17 * * *",
    "@daily",
    "30 7 * * *",
    "15 3 * * 1-5",
    "@weekly",
    "0 12 * * 3",
    "@monthly",
    "0 5 15 * *",
    "0 0 1 */3 *",
    "@yearly",
)
ZONES = (
    "UTC",
    "America/New_York",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Auckland",
)
crons = st.one_of(
    st.sampled_from(CRONS),
    st.builds(lambda minute, hour: f"{minute} {hour} * * *", st.integers(0, 59), st.integers(0, 23)),
)
zones = st.sampled_from(ZONES)


def moment(text: str) -> datetime:
    return parse_instant(text)


def some(text: str) -> IntervalSet:
    """Intervals from text, separated by spaces."""
    return IntervalSet(Interval.parse(part) for part in text.split())


# --- SQLMesh's own answer -------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _sqlmesh():
    """Import it before hypothesis watches what strategies do."""
    sqlmesh_unit_of("@daily")


@frozen
class Case:
    """One model, an instant, and what is recorded."""

    node: ModelNode
    end: str | None
    now: datetime
    recorded: IntervalSet

    @property
    def span(self) -> list[Interval]:
        """The units, the last of them possibly cut, that should be recorded by now."""
        begin, upto = self.node.unit.floor(self.node.start), due(self.node, NOTHING, self.now).upto
        return list(self.node.unit.split(Interval(begin, upto))) if begin < upto else []


@cache
def sqlmesh_kind(lookback: int, *, full: bool):
    from sqlmesh.core.model import IncrementalByTimeRangeKind
    from sqlmesh.core.model.kind import FullKind

    lookbacks = {"lookback": lookback} if lookback else {}
    return FullKind() if full else IncrementalByTimeRangeKind(time_column="ds", **lookbacks)


@cache
def sqlmesh_template():
    from sqlglot import parse_one
    from sqlmesh.core.model import SqlModel

    query = parse_one("SELECT 1 AS a, CAST(ds AS TIMESTAMP) AS ds FROM x")
    return SqlModel(name="db.m", kind=sqlmesh_kind(0, full=False), start="2020-01-01", query=query)


def sqlmesh_model(cron: str, tz: str, unit: str, *, lookback: int = 0, full: bool = False, **more: object):
    """One of SQLMesh's own models; copied, as making one anew takes ten milliseconds."""
    from sqlmesh.core.node import IntervalUnit as Theirs

    fields = {"cron": cron, "cron_tz": ZoneInfo(tz), "interval_unit_": Theirs(unit)}
    model = sqlmesh_template().copy(update=fields | {"kind": sqlmesh_kind(lookback, full=full)} | more)
    assert model.interval_unit.value == unit
    assert model.cron == cron
    return model


@cache
def sqlmesh_unit_of(cron: str) -> IntervalUnit:
    os.environ["SQLMESH__DISABLE_ANONYMIZED_ANALYTICS"] = "true"
    from sqlmesh.core.node import IntervalUnit as Theirs

    return IntervalUnit(Theirs.from_cron(cron).value)


def sqlmesh_missing(case: Case) -> list[tuple[datetime, datetime]]:
    """Ask `Snapshot.missing_intervals`, with the bounds that a scheduler's run gives it."""
    from sqlmesh.core.snapshot import Snapshot
    from sqlmesh.utils.date import to_datetime, to_timestamp

    n = case.node
    model = sqlmesh_model(
        n.cron,
        n.cron_tz,
        n.unit.value,
        lookback=n.lookback,
        full=n.kind is Kind.FULL,
        allow_partials=n.allow_partials,
        start=n.start.strftime("%Y-%m-%d %H:%M:%S"),
        end=case.end,
    )
    snapshot = Snapshot.from_node(model, nodes={})
    snapshot.intervals = [(to_timestamp(p.start), to_timestamp(p.end)) for p in case.recorded]
    if n.start >= case.now:
        return []
    ends_before_now = case.end is not None and to_datetime(case.end) < case.now
    end = case.end if ends_before_now else case.now
    found = snapshot.missing_intervals(n.start, end, execution_time=case.now)
    # Where the last tick lies before the start, SQLMesh answers with a reversed interval, or with a
    # part of a unit that ends before the start. We do not.
    pairs = [(to_datetime(start), to_datetime(stop)) for start, stop in found]
    return [(start, stop) for start, stop in pairs if start < stop and n.start < stop]


def clocks_change_near(tz: str, first: datetime, last: datetime) -> bool:
    """Whether the zone's offset differs at any of these instants, some days around included."""
    around = [first - timedelta(days=2), first, last, last + timedelta(days=2)]
    return len({instant.astimezone(ZoneInfo(tz)).utcoffset() for instant in around}) > 1


@st.composite
def cases(draw: st.DrawFn, *, holes: bool = True, kind: Kind = Kind.INCREMENTAL_BY_TIME_RANGE) -> Case:
    """Crons, zones, units, starts, ends, lookbacks, and a record with or without holes."""
    cron, tz = draw(crons), draw(zones)
    partials = draw(st.booleans()) and draw(st.booleans())
    coarsest = sqlmesh_unit_of(cron).approximate
    units = [u for u in IntervalUnit if partials or u.approximate <= coarsest]
    unit = draw(st.sampled_from(units))
    now = draw(instants(2021, 2030)).replace(microsecond=0)
    tick, following = cron_floor(cron, tz, now), cron_next(cron, tz, now)
    if draw(st.booleans()):
        # Soon after the tick, or a slow cron would hardly ever have something to do.
        now = min(tick + draw(st.integers(0, 3)) * unit.approximate, following - timedelta(seconds=1))
    # Otherwise SQLMesh's tick is an hour off: see `test_no_tick_lies_in_the_future...`.
    assume(not clocks_change_near(tz, tick, following))
    count = draw(st.integers(0, 60))
    start = unit.shift(now, -count) + draw(st.sampled_from([timedelta(0), unit.approximate / 3]))
    start = start.replace(microsecond=0)
    node_end, end = None, None
    if draw(st.integers(0, 2)) == 0:
        stop = unit.shift(start, draw(st.integers(1, 80)))
        if draw(st.booleans()):
            # A date is inclusive in SQLMesh.
            end = (stop + timedelta(days=1)).date().isoformat()
            node_end = moment(end) + timedelta(days=1)
        else:
            node_end = stop + draw(st.sampled_from([timedelta(0), unit.approximate / 3]))
            node_end = node_end.replace(microsecond=0)
            end = node_end.strftime("%Y-%m-%d %H:%M:%S")
    made = ModelNode(
        name="m",
        project="p",
        version="1",
        kind=kind,
        unit=unit,
        cron=cron,
        cron_tz=tz,
        start=start,
        end=node_end,
        lookback=draw(st.integers(0, 4)) if kind.time_partitioned else 0,
        allow_partials=partials,
    )
    # With less than a unit between start and end SQLMesh answers "nothing" even if a unit is over.
    last = min(now, node_end - timedelta(days=1) if end and len(end) == 10 else node_end or now)
    is_date = end is not None and len(end) == 10 and moment(end) < now
    assume(is_date or partials or last - start >= unit.approximate)
    span = Case(made, end, now, NOTHING).span
    if holes:
        kept = draw(st.lists(st.booleans(), min_size=len(span), max_size=len(span)))
        recorded = [piece for piece, keep in zip(span, kept, strict=True) if keep]
    else:
        recorded = span[: draw(st.integers(0, len(span)))]
    return Case(made, end, now, IntervalSet(recorded))


def as_pairs(case: Case, time: IntervalSet) -> list[tuple[datetime, datetime]]:
    """Time as SQLMesh lists it: unit by unit."""
    return [(unit.start, unit.end) for piece in time for unit in case.node.unit.split(piece)]


@given(cases())
@examples(500)
def test_fresh_is_what_sqlmesh_misses(case: Case):
    """On random models with holes in their record, what SQLMesh misses and has not recorded is our `fresh`."""
    recorded = {
        pair for piece in case.span if case.recorded.covers(piece) for pair in [(piece.start, piece.end)]
    }
    missing = [pair for pair in sqlmesh_missing(case) if pair not in recorded]
    assert as_pairs(case, due(case.node, case.recorded, case.now).fresh) == missing


@given(cases(holes=False))
@examples(250)
def test_lookback_is_sqlmeshs_where_there_are_no_holes(case: Case):
    """With an unbroken record, fresh units and lookback together are exactly what SQLMesh would run."""
    found = due(case.node, case.recorded, case.now)
    assert as_pairs(case, found.fresh | found.lookback) == sqlmesh_missing(case)
    assert not found.fresh & found.lookback


@given(cases())
@examples(300)
def test_lookback_with_holes_is_sqlmeshs_without_the_holes_own(case: Case):
    """On purpose: a hole in the past, or a retry, drags no neighbours along; SQLMesh redoes them."""
    assume(case.node.lookback)
    found = due(case.node, case.recorded, case.now)
    filled = case.recorded
    if case.recorded:
        frontier = case.node.unit.floor(case.recorded.last.end)
        filled = case.recorded | IntervalSet.of(case.node.unit.floor(case.node.start), frontier)
    unbroken = sqlmesh_missing(evolve(case, recorded=filled))
    fresh = set(as_pairs(case, found.fresh))
    beyond = {pair for pair in unbroken if not filled.covers(Interval(*pair))}
    holes = fresh - beyond
    assert as_pairs(case, found.lookback) == [p for p in unbroken if p not in beyond and p not in holes]
    assert set(as_pairs(case, found.lookback)) <= set(sqlmesh_missing(case))


@given(cases(kind=Kind.FULL))
@examples(200)
def test_a_full_model_is_due_from_its_first_missing_unit_on(case: Case):
    """One range, from the first unit that SQLMesh misses up to now: one refresh reads everything."""
    missing = sqlmesh_missing(case)
    found = due(case.node, case.recorded, case.now)
    assert found.fresh == (IntervalSet.of(missing[0][0], found.upto) if missing else NOTHING)


@given(crons, zones, instants(2021, 2030))
@examples(300)
def test_the_last_tick_is_sqlmeshs_when_no_clock_changes(cron: str, tz: str, now: datetime):
    """`cron_floor` and `cron_next` are those of SQLMesh's node, in every zone."""
    now = now.replace(microsecond=0)
    floor, following = cron_floor(cron, tz, now), cron_next(cron, tz, now)
    assume(not clocks_change_near(tz, floor, following))
    model = sqlmesh_model(cron, tz, "five_minute")
    assert floor.timestamp() == model.cron_floor(now).timestamp()
    assert following.timestamp() == model.cron_next(now).timestamp()


# --- where we differ on purpose -------------------------------------------------------------


def test_no_tick_lies_in_the_future_when_clocks_go_forward():
    """At 06:30 UTC on a day of change SQLMesh takes the tick of 07:00 for past; we do not."""
    now = moment("2026-03-08T06:30")
    assert cron_floor("@hourly", "America/New_York", now) == moment("2026-03-08T06:00")
    model = sqlmesh_model("@hourly", "America/New_York", "hour")
    assert model.cron_floor(now).timestamp() == moment("2026-03-08T07:00").timestamp()


def test_no_tick_is_lost_when_clocks_go_back():
    """The hour that local time has twice has two ticks; SQLMesh is an hour behind."""
    now = moment("2026-11-01T06:30")
    assert cron_floor("@hourly", "America/New_York", now) == moment("2026-11-01T06:00")
    model = sqlmesh_model("@hourly", "America/New_York", "hour")
    assert model.cron_floor(now).timestamp() == moment("2026-11-01T05:00").timestamp()


CHANGES = st.sampled_from(
    ["2026-03-08", "2026-11-01", "2026-03-29", "2026-10-25", "2026-04-04", "2026-10-03"]
)


@given(crons, zones, CHANGES, st.integers(0, 2 * 24 * 60))
@examples(300)
def test_ticks_enclose_now_also_when_clocks_change(cron: str, tz: str, day: str, minute: int):
    """The last tick is not after now, the next is, and each tick is the last one at itself."""
    now = moment(day) + timedelta(minutes=minute)
    floor, following = cron_floor(cron, tz, now), cron_next(cron, tz, now)
    assert floor <= now < following
    assert cron_floor(cron, tz, floor) == floor
    assert cron_floor(cron, tz, following) == following
    assert cron_floor(cron, tz, following - timedelta(seconds=1)) == floor


def test_a_history_shorter_than_a_unit_is_due_when_the_unit_is_over():
    """SQLMesh waits for a whole unit's length after the start, though the unit is over."""
    late = node("m", HOUR, (moment("2026-01-01T00:30"), None), cron="@hourly")
    assert due(late, NOTHING, moment("2026-01-01T01:15")).fresh == some("2026-01-01T00:00/2026-01-01T01:00")


# --- rules ----------------------------------------------------------------------------------

HOURLY = node("m", HOUR, (moment("2026-01-01"), None), cron="@hourly", lookback=2)


def test_lookback_follows_new_units_only():
    """A hole alone is filled alone; a new unit brings the recorded ones of the last two along."""
    holed = some("2026-01-01T00:00/2026-01-01T03:00 2026-01-01T04:00/2026-01-01T06:00")
    quiet = due(HOURLY, holed, moment("2026-01-01T06:10"))
    assert quiet.fresh == some("2026-01-01T03:00/2026-01-01T04:00")
    assert not quiet.lookback
    busy = due(HOURLY, holed, moment("2026-01-01T07:10"))
    assert busy.fresh == some("2026-01-01T03:00/2026-01-01T04:00 2026-01-01T06:00/2026-01-01T07:00")
    assert busy.lookback == some("2026-01-01T04:00/2026-01-01T06:00")


def test_a_run_can_be_bounded_on_both_sides():
    """`start` takes its whole unit in, `end` only what is over by then: it never rounds up."""
    bounded = due(
        HOURLY,
        NOTHING,
        moment("2026-01-02"),
        start=moment("2026-01-01T05:30"),
        end=moment("2026-01-01T07:59"),
    )
    assert bounded.fresh == some("2026-01-01T05:00/2026-01-01T07:00")
    assert bounded.upto == moment("2026-01-01T07:00")


def test_a_bound_never_widens_a_model():
    """A start before the model's start and an end after now change nothing."""
    now = moment("2026-01-02T03:10")
    wide = due(HOURLY, NOTHING, now, start=moment("2025-01-01"), end=moment("2027-01-01"))
    assert wide == due(HOURLY, NOTHING, now)


def test_units_before_an_end_bound_do_not_count_as_new():
    """Filling a hole with `end` brings no lookback, as the frontier lies beyond it."""
    holed = some("2026-01-01T00:00/2026-01-01T03:00 2026-01-01T04:00/2026-01-01T09:00")
    bounded = due(HOURLY, holed, moment("2026-01-01T12:00"), end=moment("2026-01-01T04:00"))
    assert bounded.fresh == some("2026-01-01T03:00/2026-01-01T04:00")
    assert not bounded.lookback


def test_the_unit_in_which_a_model_ends_is_due_as_a_whole():
    """The last unit is completed, as in SQLMesh, and nothing follows."""
    ending = evolve(HOURLY, end=moment("2026-01-01T02:30"))
    assert due(ending, NOTHING, moment("2026-02-01")).fresh == some("2026-01-01T00:00/2026-01-01T03:00")
    assert due(ending, NOTHING, moment("2026-01-01T02:50")).upto == moment("2026-01-01T02:00")


def test_the_cron_says_when_and_the_unit_says_what():
    """Ten past the hour, the hour before is due; five to, the one before that."""
    later = evolve(HOURLY, cron="10 * * * *", lookback=0)
    assert due(later, NOTHING, moment("2026-01-01T03:10")).upto == moment("2026-01-01T03:00")
    assert due(later, NOTHING, moment("2026-01-01T03:09")).upto == moment("2026-01-01T02:00")


def test_a_seed_is_due_until_it_was_loaded_once():
    """Any interval at all means loaded."""
    seed = evolve(HOURLY, kind=Kind.SEED, lookback=0)
    assert due(seed, NOTHING, moment("2026-01-01T03:10")).fresh
    assert not due(seed, some("2026-01-01T00:00/2026-01-01T01:00"), moment("2026-01-01T03:10")).fresh


@pytest.mark.parametrize("kind", [Kind.EXTERNAL, Kind.EMBEDDED])
def test_what_has_no_intervals_is_never_due(kind: Kind):
    """External and embedded models are not evaluated."""
    outside = evolve(HOURLY, kind=kind)
    assert not due(outside, NOTHING, moment("2026-01-05")).fresh
    assert next_due(outside, moment("2026-01-05")) is None


def test_a_model_without_a_start_is_due_from_its_last_tick_but_one():
    """As in SQLMesh, if nothing is recorded; else no unit since the first recorded one is lost."""
    daily = node("m", DAY, cron="@daily")
    now = moment("2026-01-05T03:00")
    assert due(daily, NOTHING, now).fresh == some("2026-01-04/2026-01-05")
    assert due(daily, some("2026-01-01/2026-01-02"), now).fresh == some("2026-01-02/2026-01-05")
    assert due(daily, NOTHING, now, start=moment("2026-01-03")).fresh == some("2026-01-03/2026-01-05")


@pytest.mark.parametrize("kind", [k for k in Kind if k.as_of and not k.reads_everything])
def test_an_as_of_model_loses_no_hole(kind: Kind):
    """What was never read is due, also behind the frontier: nothing is skipped in silence."""
    whole = evolve(HOURLY, kind=kind, lookback=0)
    holed = some("2026-01-01T00:00/2026-01-01T01:00 2026-01-01T02:00/2026-01-01T03:00")
    assert due(whole, holed, moment("2026-01-01T04:00")).fresh == some(
        "2026-01-01T01:00/2026-01-01T02:00 2026-01-01T03:00/2026-01-01T04:00"
    )


def test_wrong_crons_and_zones_are_named():
    """The message holds the expression and the zone."""
    for cron, tz in [("every day", "UTC"), ("61 * * * *", "UTC"), ("@daily", "Mars/Olympus")]:
        with pytest.raises(GraphError) as caught:
            cron_floor(cron, tz, moment("2026-01-01"))
        assert cron in caught.value.message
        assert tz in caught.value.message


def test_now_must_be_utc():
    """A naive or local now is refused."""
    with pytest.raises(IntervalError):
        due(HOURLY, NOTHING, datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(IntervalError):
        next_due(HOURLY, datetime(2026, 1, 1, tzinfo=ZoneInfo("Asia/Kolkata")))


@given(cases())
@examples(200)
def test_what_was_done_is_not_due_again(case: Case):
    """Recording all that is due leaves nothing due at the same instant."""
    found = due(case.node, case.recorded, case.now)
    after = due(case.node, case.recorded | found.fresh, case.now)
    assert not after.fresh
    assert not after.lookback


@given(cases())
@examples(200)
def test_the_next_due_instant_is_the_first_at_which_more_is_due(case: Case):
    """One second before `next_due` nothing is new; at it, there is more; without it there never is."""
    at = next_due(case.node, case.now)
    before = due(case.node, NOTHING, case.now)
    if at is None:
        assert due(case.node, NOTHING, datetime(2200, 1, 1, tzinfo=UTC)).upto == before.upto
        return
    assert at > case.now
    assert due(case.node, NOTHING, at - timedelta(seconds=1)).fresh == before.fresh
    assert before.fresh.duration < due(case.node, NOTHING, at).fresh.duration
