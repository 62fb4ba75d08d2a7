"""From the conditions of a query to what they say about columns: differences of two, and limits that move with the interval."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen
from sqlglot import exp

from meshgate.windows.arithmetic import (
    Amount,
    Moment,
    NotUnderstoodError,
    Shifted,
    counted,
    is_date_type,
    length,
    moment,
    number,
    shifted,
)
from meshgate.windows.columns import Var, definitions, resolve
from meshgate.windows.literals import MICROSECOND, floor
from meshgate.windows.scopes import Scope, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from meshgate.interval import Interval
    from meshgate.windows.literals import Law
    from meshgate.windows.scopes import ModelQuery

_ZERO: Final = timedelta(0)
_ANY: Final = timedelta(days=1)
_FLIPPED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}
_NEGATED: Final = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_COMPARED: Final = {exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=", exp.EQ: "="}
_DIFFERENCES: Final = (exp.DateDiff, exp.TimestampDiff, exp.DatetimeDiff)


@frozen
class Difference:
    """`one - other <= most`, in every row that counts.

    Attributes:
        one: A column.
        other: A column.
        most: By how much `one` may be later.
        place: The condition that says so; None where it is the definition of a column.
    """

    one: Var
    other: Var
    most: timedelta
    place: Written | None = None


@frozen
class Limit:
    """A column is at most, or at least, an instant that moves with the interval.

    Attributes:
        var: The column.
        upper: Whether it is at most that.
        at: The instant, UTC, for an interval.
        place: The condition that says so; None where it is the definition of a column.
    """

    var: Var
    upper: bool
    at: Callable[[Interval], datetime] = field(eq=False)
    place: Written | None = None


Fact = Difference | Limit


@frozen
class Doubt:
    """A condition that may limit what is read, and is not understood.

    Attributes:
        place: The condition.
        reason: What of it.
        variables: The columns that it names; None where they could not all be told.
        moves: Whether a literal in it moves with the interval.
    """

    place: Written
    reason: str
    variables: frozenset[Var] | None
    moves: bool


@frozen
class Said:
    """What a condition says."""

    facts: tuple[Fact, ...] = ()
    doubts: tuple[Doubt, ...] = ()


class Reader:
    """Reads the conditions of a query.

    Args:
        laws: How the literals move, by `id`.
        probe: Some interval, to try expressions with.
        models: All models, for the types of their columns.
    """

    def __init__(
        self, laws: Mapping[int, Law | None], probe: Interval, models: Mapping[str, ModelQuery]
    ) -> None:
        self._laws = laws
        self._probe = probe
        self._models = models

    def condition(self, node: Any, scope: Scope) -> Said:
        """What a condition says of the rows for which it is true."""
        if node is None:
            return Said()
        facts: list[Fact] = []
        doubts: list[Doubt] = []
        for conjunct in _conjuncts(node):
            try:
                facts += self._conjunct(conjunct, Written(conjunct, scope.owner), scope, doubts)
            except NotUnderstoodError as error:
                doubts.append(self._doubt(conjunct, str(error), scope))
        return Said(tuple(facts), tuple(doubts))

    def definition(self, var: Var, expression: Any, scope: Scope) -> tuple[Fact, ...]:
        """What it says of a column that it is this expression.

        Raises:
            NotUnderstoodError: It says nothing.
        """
        try:
            found = shifted(expression)
        except NotUnderstoodError:
            return self._constant(var, expression)
        inner = resolve(found.column, scope)
        if inner is None:
            raise NotUnderstoodError(f"it is not certain whose column {found.column.name} is")
        return (Difference(var, inner, found.high), Difference(inner, var, -found.low))

    def _constant(self, var: Var, expression: Any) -> tuple[Fact, ...]:
        found = moment(expression, self._laws, self._probe)
        if not found.moves:
            return ()
        at = self._at(expression, _ZERO)
        return (Limit(var, upper=True, at=at), Limit(var, upper=False, at=at))

    def is_date(self, var: Var, depth: int = 0) -> bool:
        """Whether a column is known to have no time of day."""
        if depth > 20:
            return False
        if var.source.scope is None:
            model = self._models.get(var.source.table or "")
            types = {k.lower(): v for k, v in ((model.columns or {}) if model is not None else {}).items()}
            return is_date_type(types.get(var.column))
        for defined in definitions(var.source, var.column):
            if defined is None:
                return False
            try:
                found = shifted(defined.expression)
            except NotUnderstoodError:
                return False
            inner = resolve(found.column, defined.scope)
            if not (
                found.date or (inner is not None and self._keeps(found) and self.is_date(inner, depth + 1))
            ):
                return False
        return True

    def _rounded(self, var: Var) -> str | None:
        """The calendar step to which a column is rounded down, by its definition."""
        if var.source.scope is None:
            return None
        steps = set()
        for defined in definitions(var.source, var.column):
            try:
                found = shifted(defined.expression) if defined is not None else None
            except NotUnderstoodError:
                found = None
            inner = (
                resolve(found.column, defined.scope) if found is not None and defined is not None else None
            )
            plain = found is not None and found.low == found.high == _ZERO
            again = self._rounded(inner) if plain and inner is not None and inner != var else None
            steps.add((found.step if found is not None else None) or again)
        return steps.pop() if len(steps) == 1 else None

    @staticmethod
    def _keeps(found: Shifted) -> bool:
        return found.low == found.high and not found.low % _ANY

    # Conjuncts

    def _conjunct(  # noqa: PLR0911 - one case after the other
        self, node: Any, place: Written, scope: Scope, doubts: list[Doubt]
    ) -> list[Fact]:
        if isinstance(node, exp.Paren):
            return self._conjunct(node.this, place, scope, doubts)
        if isinstance(node, exp.Not):
            return self._conjunct(_negated(node.this), place, scope, doubts)
        if isinstance(node, exp.And):
            return [
                fact
                for side in (node.this, node.expression)
                for fact in self._conjunct(side, place, scope, doubts)
            ]
        if isinstance(node, exp.Or):
            return self._either(_disjuncts(node), place, scope, doubts)
        if isinstance(node, exp.In) and node.expressions and not node.args.get("query"):
            equals = [_bare(exp.EQ, node.this, value) for value in node.expressions]
            return self._either(equals, place, scope, doubts)
        if isinstance(node, exp.Between):
            if node.args.get("symmetric"):
                raise NotUnderstoodError("BETWEEN SYMMETRIC is not understood")
            low = self._compared(">=", node.this, node.args["low"], place, scope)
            return [*low, *self._compared("<=", node.this, node.args["high"], place, scope)]
        operator = _COMPARED.get(type(node))
        if operator is not None:
            return self._compared(operator, node.this, node.expression, place, scope)
        if isinstance(node, exp.Boolean) and node.this:
            return []
        raise NotUnderstoodError("it is no comparison of times")

    def _either(self, nodes: Sequence[Any], place: Written, scope: Scope, doubts: list[Doubt]) -> list[Fact]:
        """What holds in each of several cases."""
        cases: list[list[Fact]] = []
        for node in nodes:
            said = self.condition(node, scope)
            doubts += said.doubts
            cases.append([*said.facts])
        found: list[Fact] = []
        for fact in cases[0]:
            alike = [[other for other in case if _alike(fact, other)] for case in cases]
            if any(not others for others in alike) or any(_alike(fact, known) for known in found):
                continue
            if isinstance(fact, Difference):
                most = max(min(d.most for d in others if isinstance(d, Difference)) for others in alike)
                found.append(Difference(fact.one, fact.other, most, place))
            else:
                ats = [[lim.at for lim in others if isinstance(lim, Limit)] for others in alike]
                found.append(Limit(fact.var, fact.upper, widest(fact.upper, ats), place))
        if not found and any(cases):
            raise NotUnderstoodError("its cases have no limit in common")
        return found

    def _compared(self, operator: str, left: Any, right: Any, place: Written, scope: Scope) -> list[Fact]:
        difference = self._of_difference(operator, left, right, place, scope)
        if difference is not None:
            return difference
        one, other = self._term(left, scope), self._term(right, scope)
        if isinstance(one, tuple) and isinstance(other, tuple):
            return self._differences(operator, one, other, place)
        if isinstance(one, tuple):
            return self._limits(operator, one, right, place)
        if isinstance(other, tuple):
            return self._limits(_FLIPPED[operator], other, left, place)
        return []

    def _term(self, node: Any, scope: Scope) -> tuple[Var, Shifted, bool] | Moment:
        """An expression as a column with a range around it, or as an instant."""
        if node.find(exp.Column) is None:
            return moment(node, self._laws, self._probe)
        found = shifted(node)
        var = resolve(found.column, scope)
        if var is None:
            raise NotUnderstoodError(f"it is not certain whose column {found.column.name} is")
        return var, found, found.date or (self._keeps(found) and self.is_date(var))

    @staticmethod
    def _differences(
        operator: str, one: tuple[Var, Shifted, bool], other: tuple[Var, Shifted, bool], place: Written
    ) -> list[Fact]:
        if operator in (">", ">="):
            one, other, operator = other, one, _FLIPPED[operator]
        found: list[Fact] = []
        strict = MICROSECOND if operator == "<" else _ZERO
        if one[0] != other[0]:
            found.append(Difference(one[0], other[0], other[1].high - one[1].low - strict, place))
            if operator == "=":
                found.append(Difference(other[0], one[0], one[1].high - other[1].low, place))
        return found

    def _limits(
        self, operator: str, one: tuple[Var, Shifted, bool], constant: Any, place: Written
    ) -> list[Fact]:
        var, around, date = one
        value = moment(constant, self._laws, self._probe)
        if not value.moves:
            return []
        found: list[Fact] = []
        if operator in ("<", "<=", "="):
            strict = MICROSECOND if operator == "<" else _ZERO
            plain = around.low == around.high == _ZERO
            step = around.step or (self._rounded(var) if plain else None) or "none"
            at = self._at(constant, -around.low, step=step, earlier=strict)
            found.append(Limit(var, upper=True, at=at, place=place))
        if operator in (">", ">=", "="):
            strict = MICROSECOND if operator == ">" else _ZERO
            # An engine may read a string as a date where it is compared with one.
            day = date and not value.typed
            strict = _ZERO if day else strict
            found.append(
                Limit(
                    var,
                    upper=False,
                    at=self._at(constant, strict - around.high, step="day" if day else "none"),
                    place=place,
                )
            )
        return found

    def _at(
        self, node: Any, shift: timedelta, *, step: str = "none", earlier: timedelta = _ZERO
    ) -> Callable[[Interval], datetime]:
        def at(interval: Interval) -> datetime:
            return floor(step, moment(node, self._laws, interval).value - earlier) + shift

        return at

    # Differences of two instants

    def _of_difference(
        self, operator: str, left: Any, right: Any, place: Written, scope: Scope
    ) -> list[Fact] | None:
        """Of `DATEDIFF(day, a, b) < 7` and `a - b <= INTERVAL 7 DAY`; None where it is neither."""
        left, right = left.unnest(), right.unnest()
        if isinstance(right, _DIFFERENCES) or (isinstance(right, exp.Sub) and _is_length(left)):
            left, right, operator = right, left, _FLIPPED[operator]
        if isinstance(left, _DIFFERENCES):
            unit = counted(left.args.get("unit"))
            # Whole numbers: less than 7 is at most 6.
            least = unit * (number(right) + (operator == ">"))
            most = unit * (number(right) - (operator == "<"))
            slack = (
                unit - MICROSECOND
            )  # it counts boundaries, or whole units: within one unit of the true difference
        elif isinstance(left, exp.Sub) and _is_length(right):
            amount = (
                Amount(rest=timedelta(days=number(right)))
                if isinstance(right, exp.Literal)
                else length(right)
            )
            least, most, slack = amount.least, amount.most, _ZERO
            if isinstance(right, exp.Literal) and not (
                self._date(left.this, scope) and self._date(left.expression, scope)
            ):
                raise NotUnderstoodError("it is a difference of what may be no dates")
        else:
            return None
        found: list[Fact] = []
        if operator in ("<", "<=", "="):
            found += self._apart(left.this, left.expression, most + slack, place, scope)
        if operator in (">", ">=", "="):
            found += self._apart(left.expression, left.this, slack - least, place, scope)
        return found

    def _date(self, node: Any, scope: Scope) -> bool:
        term = self._term(node, scope)
        return term[2] if isinstance(term, tuple) else term.date

    def _apart(self, later: Any, earlier: Any, most: timedelta, place: Written, scope: Scope) -> list[Fact]:
        """`later - earlier <= most`."""
        one, other = self._term(later, scope), self._term(earlier, scope)
        if isinstance(one, tuple) and isinstance(other, tuple):
            return [Difference(one[0], other[0], most + other[1].high - one[1].low, place)]
        if isinstance(one, tuple) and isinstance(other, Moment) and other.moves:
            return [Limit(one[0], upper=True, at=self._at(earlier, most - one[1].low), place=place)]
        if isinstance(other, tuple) and isinstance(one, Moment) and one.moves:
            return [
                Limit(
                    other[0], upper=False, at=self._at(later, -most - other[1].high, step="day"), place=place
                )
            ]
        return []

    def _doubt(self, node: Any, reason: str, scope: Scope) -> Doubt:
        found = [resolve(column, scope) for column in _columns(node)]
        known = frozenset(var for var in found if var is not None)
        moves = any(id(literal) in self._laws for literal in node.find_all(exp.Literal))
        return Doubt(
            Written(node, scope.owner), reason, known if len(known) == len(set(found)) else None, moves
        )


def _columns(node: Any) -> Iterator[Any]:
    """The columns of an expression, without those of queries in it."""
    if isinstance(node, (exp.Select, exp.SetOperation)):
        return
    if isinstance(node, exp.Column) and not isinstance(node.this, exp.Star):
        yield node
    for child in node.iter_expressions():
        yield from _columns(child)


def _conjuncts(node: Any) -> Iterator[Any]:
    node = node.unnest() if isinstance(node, exp.Paren) else node
    if isinstance(node, exp.And):
        yield from _conjuncts(node.this)
        yield from _conjuncts(node.expression)
    else:
        yield node


def _disjuncts(node: Any) -> list[Any]:
    node = node.unnest() if isinstance(node, exp.Paren) else node
    if isinstance(node, exp.Or):
        return [*_disjuncts(node.this), *_disjuncts(node.expression)]
    return [node]


def _negated(node: Any) -> Any:
    """The opposite of a condition: both are neither where a value is null."""
    node = node.unnest() if isinstance(node, exp.Paren) else node
    if isinstance(node, exp.Not):
        return node.this
    operator = _NEGATED.get(_COMPARED.get(type(node), ""))
    if operator is not None:
        kind = next(k for k, o in _COMPARED.items() if o == operator)
        return _bare(kind, node.this, node.expression)
    if isinstance(node, exp.Between) and not node.args.get("symmetric"):
        low = _bare(exp.LT, node.this, node.args["low"])
        return _bare(exp.Or, low, _bare(exp.GT, node.this, node.args["high"]))
    raise NotUnderstoodError("NOT is not understood here")


def _bare(kind: Any, left: Any, right: Any) -> Any:
    """A new node over nodes that stay where they are: the laws of literals go by their identity."""
    node = kind()
    node.args["this"], node.args["expression"] = left, right
    return node


def _is_length(node: Any) -> bool:
    if isinstance(node, exp.Literal):
        return not node.is_string
    try:
        length(node)
    except NotUnderstoodError:
        return False
    return True


def _alike(one: Fact, other: Fact) -> bool:
    if isinstance(one, Difference):
        return isinstance(other, Difference) and (one.one, one.other) == (other.one, other.other)
    return isinstance(other, Limit) and (one.var, one.upper) == (other.var, other.upper)


def widest(
    upper: bool, cases: Sequence[Sequence[Callable[[Interval], datetime]]]
) -> Callable[[Interval], datetime]:
    """Of several cases, each with its limits: the limit that holds in all of them."""

    def at(interval: Interval) -> datetime:
        each = [(min if upper else max)(one(interval) for one in case) for case in cases]
        return max(each) if upper else min(each)

    return at
