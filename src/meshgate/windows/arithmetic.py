"""What SQL's date arithmetic makes of instants: of literals exactly, of columns as a range around the column."""

from __future__ import annotations

import calendar
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, frozen
from sqlglot import exp

from meshgate.windows.literals import MICROSECOND, floor, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshgate.interval import Interval
    from meshgate.windows.literals import Law


class NotUnderstoodError(Exception):
    """An expression that says nothing certain about time; its text is the reason."""


@frozen
class Amount:
    """A length of time: months, which are not all of one length, and the rest."""

    months: int = 0
    rest: timedelta = timedelta(0)

    def scaled(self, factor: int) -> Amount:
        """So many times as much."""
        return Amount(self.months * factor, self.rest * factor)

    @property
    def least(self) -> timedelta:
        """The shortest that it can be."""
        return self.rest + timedelta(days=min(28 * self.months, 31 * self.months))

    @property
    def most(self) -> timedelta:
        """The longest that it can be."""
        return self.rest + timedelta(days=max(28 * self.months, 31 * self.months))

    def after(self, instant: datetime) -> datetime:
        """As SQL adds it: the day of the month is kept where the month has it."""
        month = instant.year * 12 + instant.month - 1 + self.months
        year, month = divmod(month, 12)
        day = min(instant.day, calendar.monthrange(year, month + 1)[1])
        return instant.replace(year=year, month=month + 1, day=day) + self.rest


@frozen
class Shifted:
    """`column + [low, high]`: where in time an expression over one column may lie.

    Attributes:
        column: SQLGlot's node.
        low: The earliest, relative to the column.
        high: The latest, relative to the column.
        date: Whether it is known to be a date, without a time of day.
        step: To which calendar step it is rounded down, so that it lies between no two; None where it is not.
    """

    column: Any
    low: timedelta = timedelta(0)
    high: timedelta = timedelta(0)
    date: bool = False
    step: str | None = None


@frozen
class Moment:
    """An instant that a literal expression names.

    Attributes:
        value: UTC.
        date: Whether it is a date, without a time of day.
        typed: Whether it is more than a string, of which the engine decides what it is compared as.
        moves: Whether it moves with the interval.
    """

    value: datetime
    date: bool
    typed: bool
    moves: bool


_UNITS: Final[Mapping[str, Amount]] = {
    "MICROSECOND": Amount(rest=timedelta(microseconds=1)),
    "MILLISECOND": Amount(rest=timedelta(milliseconds=1)),
    "SECOND": Amount(rest=timedelta(seconds=1)),
    "MINUTE": Amount(rest=timedelta(minutes=1)),
    "HOUR": Amount(rest=timedelta(hours=1)),
    "DAY": Amount(rest=timedelta(days=1)),
    "WEEK": Amount(rest=timedelta(weeks=1)),
    "MONTH": Amount(1),
    "QUARTER": Amount(3),
    "YEAR": Amount(12),
}
_SHORT: Final = {
    "MIN": "MINUTE",
    "SEC": "SECOND",
    "HR": "HOUR",
    "H": "HOUR",
    "D": "DAY",
    "W": "WEEK",
    "MON": "MONTH",
    "MM": "MONTH",
    "DD": "DAY",
    "DDD": "DAY",
    "YYYY": "YEAR",
    "YY": "YEAR",
    "Y": "YEAR",
    "Q": "QUARTER",
}
# How far rounding down can go, at most.
_LENGTH: Final = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
    "month": timedelta(days=31),
    "quarter": timedelta(days=92),
    "year": timedelta(days=366),
}
_DATES: Final = {"DATE", "DATE32"}
_TIMES: Final = {
    *("TIMESTAMP", "TIMESTAMPTZ", "TIMESTAMPNTZ", "TIMESTAMPLTZ", "DATETIME", "DATETIME2", "DATETIME64"),
    *("TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"),
}
_ADDING: Final = tuple(
    getattr(exp, name)
    for name in ("DateAdd", "DatetimeAdd", "TimestampAdd", "TsOrDsAdd", "DateSub", "DatetimeSub", "TimestampSub")
    if hasattr(exp, name)
)  # fmt: skip
_SAME: Final = (exp.TimeStrToTime, exp.TsOrDsToTimestamp, exp.Timestamp, exp.TsOrDsToDatetime)
_NOW: Final = (exp.CurrentDate, exp.CurrentTimestamp, exp.CurrentDatetime, exp.CurrentTime)
_TRUNCATING: Final = (exp.TimestampTrunc, exp.DateTrunc)
_LAST_OF_MONTH: Final = timedelta(days=30)


def is_date_type(name: str | None) -> bool:
    """Whether a column type has no time of day."""
    return name is not None and name.upper() in _DATES


def is_time_type(name: str | None) -> bool:
    """Whether a column type is a timestamp of some sort."""
    return name is not None and name.upper() in _TIMES


def moment(node: Any, laws: Mapping[int, Law | None], interval: Interval) -> Moment:
    """The instant that an expression without columns names, where the query is rendered for an interval.

    Raises:
        NotUnderstoodError: It names none, or one that is not known.
    """
    if isinstance(node, exp.Paren):
        return moment(node.this, laws, interval)
    if isinstance(node, exp.Literal):
        return _literal(node, laws, interval)
    step, inner = _step(node)
    if inner is not None:
        found = moment(inner, laws, interval)
        date = _gives_date(node) or (found.date and isinstance(node, _TRUNCATING))
        return Moment(floor(step, found.value), date, typed=True, moves=found.moves)
    if isinstance(node, exp.LastDay) and node.args.get("unit") is None:
        found = moment(node.this, laws, interval)
        first = floor("month", found.value)
        return Moment(Amount(1).after(first) - timedelta(days=1), date=True, typed=True, moves=found.moves)
    base, amount = _sum(node)
    found = moment(base, laws, interval)
    if isinstance(amount, int) and not found.date:
        raise NotUnderstoodError("a number is added to what may be no date")
    added = Amount(rest=timedelta(days=amount)) if isinstance(amount, int) else amount
    try:
        value = added.after(floor("day", found.value) if isinstance(node, exp.TsOrDsAdd) else found.value)
        return Moment(value, _stays_date(node, found.date, added), typed=True, moves=found.moves)
    except (OverflowError, ValueError):
        raise NotUnderstoodError("it lies outside of time") from None


def shifted(node: Any) -> Shifted:
    """Where an expression over one column lies, relative to the column.

    Raises:
        NotUnderstoodError: It is no such expression.
    """
    if isinstance(node, exp.Column):
        return Shifted(node)
    if isinstance(node, exp.Paren):
        return shifted(node.this)
    step, inner = _step(node)
    if inner is not None:
        found = shifted(inner)
        if step != "none":
            found = evolve(found, low=found.low - _LENGTH[step] + MICROSECOND, step=step)
        return evolve(found, date=_gives_date(node) or (found.date and isinstance(node, _TRUNCATING)))
    if isinstance(node, exp.LastDay) and node.args.get("unit") is None:
        found = shifted(node.this)
        low = found.low - _LENGTH["day"] + MICROSECOND
        return evolve(found, low=low, high=found.high + _LAST_OF_MONTH, date=True, step="day")
    base, amount = _sum(node)
    found = shifted(base)
    if isinstance(amount, int) and not found.date:
        raise NotUnderstoodError("a number is added to what may be no date")
    added = Amount(rest=timedelta(days=amount)) if isinstance(amount, int) else amount
    low, high = found.low + added.least, found.high + added.most
    if isinstance(node, exp.TsOrDsAdd):
        low -= _LENGTH["day"] - MICROSECOND  # it drops the time of day
    date = _stays_date(node, found.date, added)
    whole = isinstance(node, exp.TsOrDsAdd) or (found.step == "day" and not added.rest % timedelta(days=1))
    return evolve(found, low=low, high=high, date=date, step="day" if whole else None)


def length(node: Any) -> Amount:  # noqa: C901, PLR0911 - one case after the other
    """The length that an interval literal names.

    Raises:
        NotUnderstoodError: It is none, or not a constant one.
    """
    if isinstance(node, exp.Paren):
        return length(node.this)
    if isinstance(node, exp.Neg):
        return length(node.this).scaled(-1)
    if isinstance(node, exp.Mul):
        for one, other in ((node.this, node.expression), (node.expression, node.this)):
            if isinstance(one, (exp.Interval, exp.Cast)):
                return length(one).scaled(number(other))
    if isinstance(node, exp.Interval) and node.args.get("unit") is not None:
        return _unit(node.args["unit"]).scaled(number(node.this))
    if isinstance(node, exp.Interval) and isinstance(node.this, exp.Literal):
        return _written(str(node.this.this))
    if isinstance(node, (exp.Cast, exp.TryCast)) and node.to.this.name == "INTERVAL":
        return _written(str(node.this.this)) if isinstance(node.this, exp.Literal) else length(node.this)
    if isinstance(node, exp.ToDays):
        return Amount(rest=timedelta(days=number(node.this)))
    if isinstance(node, exp.MakeInterval):
        return _made(node)
    raise NotUnderstoodError(f"{_said(node)} is no constant length of time")


def number(node: Any) -> int:
    """A whole number that is written down.

    Raises:
        NotUnderstoodError: It is none.
    """
    if isinstance(node, exp.Paren):
        return number(node.this)
    if isinstance(node, exp.Neg):
        return -number(node.this)
    if isinstance(node, exp.Mul):
        return number(node.this) * number(node.expression)
    if isinstance(node, exp.Literal) and re.fullmatch(r"[+-]?\d{1,7}", str(node.this).strip()):
        return int(node.this)
    if isinstance(node, (exp.Cast, exp.TryCast)):
        return number(node.this)
    raise NotUnderstoodError(f"{_said(node)} is no whole number")


def counted(unit: Any) -> timedelta:
    """How long one unit of a difference such as `DATEDIFF` is.

    Raises:
        NotUnderstoodError: Its length is not always the same.
    """
    amount = _unit(unit)
    if amount.months:
        raise NotUnderstoodError("months are not all of one length")
    return amount.rest


def _literal(node: Any, laws: Mapping[int, Law | None], interval: Interval) -> Moment:
    text = str(node.this)
    # 20260105 as a number is no date that days could be added to.
    date = node.is_string and len(text.strip()) <= len("2026-01-01")
    if id(node) in laws:
        law = laws[id(node)]
        if law is None:
            raise NotUnderstoodError(f"{_said(node)} moves with the interval in a way that is not understood")
        if law.anchor == "execution":
            raise NotUnderstoodError("it depends on the time of execution")
        return Moment(law.value(interval), date, typed=not node.is_string, moves=True)
    value = parse(text)
    if value is None or not node.is_string:
        raise NotUnderstoodError(f"{_said(node)} is no instant")
    return Moment(value, date, typed=False, moves=False)


def _step(node: Any) -> tuple[str, Any]:  # noqa: PLR0911 - one case after the other
    """To what an expression rounds down, and what; nothing where it is no such expression."""
    if isinstance(node, (exp.Cast, exp.TryCast)):
        name = node.to.this.name if hasattr(node.to.this, "name") else ""
        if name in _DATES:
            return "day", node.this
        return ("none", node.this) if name in _TIMES else ("none", None)
    if isinstance(node, (exp.TsOrDsToDate, exp.Date)) and not node.args.get("format"):
        return "day", node.this
    if isinstance(node, _SAME) and not node.args.get("zone"):
        return "none", node.this
    if isinstance(node, _TRUNCATING) and not node.args.get("zone"):
        step = _name(node.args.get("unit")).lower()
        return (step, node.this) if step in _LENGTH else ("none", None)
    if isinstance(node, exp.TimeToStr) and _name(node.args.get("format")) == "%Y-%m-%d":
        return "day", node.this
    return "none", None


def _gives_date(node: Any) -> bool:
    return not isinstance(node, _TRUNCATING) and _step(node)[0] == "day"


def _sum(node: Any) -> tuple[Any, Amount | int]:
    """What an expression adds a length to, and the length; a bare number counts days, on dates only."""
    if isinstance(node, exp.AddMonths):
        return node.this, Amount(number(node.expression))
    if isinstance(node, _ADDING):
        sign = -1 if "Sub" in type(node).__name__ else 1
        given = node.expression
        if isinstance(given, exp.Interval):
            return node.this, length(given).scaled(sign)
        return node.this, _unit(node.args.get("unit")).scaled(sign * number(given))
    if isinstance(node, (exp.Add, exp.Sub)):
        sign = -1 if isinstance(node, exp.Sub) else 1
        try:
            return node.this, length(node.expression).scaled(sign)
        except NotUnderstoodError:
            pass
        if isinstance(node, exp.Add):
            try:
                return node.expression, length(node.this)
            except NotUnderstoodError:
                pass
        return node.this, sign * number(node.expression)
    if isinstance(node, _NOW) or (isinstance(node, exp.Anonymous) and node.name.lower() == "now"):
        raise NotUnderstoodError("it depends on the time of execution")
    raise NotUnderstoodError(f"{_said(node)} is not understood")


def _stays_date(node: Any, date: bool, added: Amount) -> bool:
    if isinstance(node, exp.TsOrDsAdd):
        return True
    # A date plus an interval is a timestamp in some engines; only whole days leave it what it was.
    return date and isinstance(node, (exp.Add, exp.Sub)) and not added.rest % timedelta(days=1)


def _unit(node: Any) -> Amount:
    name = _name(node).upper() if node is not None else "DAY"
    name = _SHORT.get(name, name)
    name = name if name in _UNITS else name.rstrip("S")
    name = _SHORT.get(name, name)
    if name not in _UNITS:
        raise NotUnderstoodError(f"the unit {name or '?'} is not known")
    return _UNITS[name]


def _name(node: Any) -> str:
    name = str(getattr(node, "name", "") or getattr(node, "this", "") or "")
    return _SHORT.get(name.upper(), name)


def _written(text: str) -> Amount:
    """An interval in words: `7 days`, `1 day 2 hours`, `-01:30:00`."""
    months, rest, left = 0, timedelta(0), text.strip()
    for found in re.finditer(r"([+-]?\d+)\s*([a-zA-Z]+)\s*", left):
        amount = _unit(exp.var(found[2])).scaled(int(found[1]))
        months, rest = months + amount.months, rest + amount.rest
    left = re.sub(r"([+-]?\d+)\s*([a-zA-Z]+)\s*", "", left).strip()
    clock = re.fullmatch(r"([+-]?)(\d+):(\d\d)(?::(\d\d))?", left)
    if clock:
        of_day = timedelta(hours=int(clock[2]), minutes=int(clock[3]), seconds=int(clock[4] or 0))
        rest += -of_day if clock[1] == "-" else of_day
    elif left or not re.search(r"\d", text):
        raise NotUnderstoodError(f"{text!r} is no length of time")
    return Amount(months, rest)


def _made(node: Any) -> Amount:
    total = Amount()
    for value in node.args.values():
        if not isinstance(value, exp.Kwarg):
            raise NotUnderstoodError(f"{_said(node)} is not understood")
        amount = _unit(value.this).scaled(number(value.expression))
        total = Amount(total.months + amount.months, total.rest + amount.rest)
    return total


def _said(node: Any) -> str:
    text = str(node.sql(comments=False)).replace('"', "")
    return text if len(text) <= 80 else f"{text[:77]}..."
