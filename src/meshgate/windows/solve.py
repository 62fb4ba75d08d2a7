"""Which rows of one table can touch a query's result: between which limits their time column lies.

A row counts only as a part of joined rows that pass every condition on the way to the result. So the limits of its time
are the shortest paths, over all that these conditions say, from its time column to literals that move with the interval.
What holds on the way is decided by three rules:

* WHERE holds in the row's own scope, and in every scope around it.
* The condition of a join holds where the sides that it does not keep are there: that of a LEFT JOIN where the joined row is.
* What a subquery says of its own rows holds for the row of it that is there.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen
from sqlglot import exp

from meshgate.windows.arithmetic import NotUnderstoodError, shifted
from meshgate.windows.columns import Defined, Var, definitions, follows, resolve
from meshgate.windows.predicates import Difference, Doubt, Fact, Limit, Said, widest
from meshgate.windows.scopes import Scope, Source, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from meshgate.interval import Interval
    from meshgate.windows.predicates import Reader
    from meshgate.windows.scopes import Join, Scope, Source

_DEEPEST = 30


@frozen
class Reach:
    """One limit of the time that is read, along one path.

    Attributes:
        at: The instant, UTC, for an interval.
        place: The condition that it comes from; None where it is the filter on the reader's own time column.
    """

    at: Callable[[Interval], datetime]
    place: Written | None


@frozen
class Solved:
    """What is known of one place that reads a table.

    Attributes:
        lower: Limits below; the latest of them counts. Empty: none.
        upper: Limits above; the earliest counts.
        lower_doubt: Why there may be a limit below although none was found.
        upper_doubt: The same above.
    """

    lower: tuple[Reach, ...]
    upper: tuple[Reach, ...]
    lower_doubt: Doubt | None
    upper_doubt: Doubt | None


@define
class _Gathering:
    """What holds for the rows that count; it grows until nothing more follows."""

    facts: dict[tuple[int, int], Fact] = field(factory=dict)
    doubts: list[Doubt] = field(factory=list)
    scopes: dict[int, Scope] = field(factory=dict)
    present: set[Source] = field(factory=set)
    mentioned: set[Var] = field(factory=set)
    done: set[Any] = field(factory=set)


class Solver:
    """Finds the limits of tables in the scopes of one query.

    Args:
        reader: Reads its conditions.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._said: dict[Any, Said] = {}

    def solve(self, target: Var) -> Solved:
        """The limits of a table's time column.

        Args:
            target: The column, of a source that is a table.
        """
        known = _Gathering()
        chain = _Chain.of(target.source)
        known.doubts += chain.doubts
        for scope in chain.scopes:
            known.scopes[id(scope)] = scope
        known.present |= chain.sources
        known.mentioned.add(target)
        known.mentioned |= {var for doubt in chain.doubts for var in doubt.variables or ()}
        self._gather(known, chain)
        return _limits(target, known)

    def _condition(self, node: Any, scope: Scope) -> Said:
        key = (id(node), id(scope))
        if key not in self._said:
            self._said[key] = self._reader.condition(node, scope)
        return self._said[key]

    def _gather(self, known: _Gathering, chain: _Chain, depth: int = 0) -> None:
        size = -1
        while size != (
            size := len(known.facts) + len(known.scopes) + len(known.present) + len(known.mentioned)
        ):
            for scope in list(known.scopes.values()):
                self._scope(known, scope, chain)
            for var in list(known.mentioned):
                known.present.add(var.source)
                self._definition(known, var, chain, depth)
            for source in list(known.present):
                # A row of a subquery is there: what the subquery says of its rows holds for what it was made of.
                if source.scope is not None and not source.scope.branches and source.raw is None:
                    known.scopes.setdefault(id(source.scope), source.scope)

    def _scope(self, known: _Gathering, scope: Scope, chain: _Chain) -> None:
        if scope.raw is not None or scope.branches:
            return
        where = scope.node.args.get("where")
        if where is not None:
            self._add(known, self._condition(where.this, scope), chain)
        for index, join in enumerate(scope.joins):
            before = scope.sources[: index + 1]
            if not _joined(join, before, known.present):
                continue
            if join.on is not None:
                self._add(known, self._condition(join.on, scope), chain, own=join.source)
            if join.using:
                key = ("using", id(scope), index)
                self._add(known, self._said.setdefault(key, _same(join, before)), chain, own=join.source)

    def _add(self, known: _Gathering, said: Said, chain: _Chain, *, own: Source | None = None) -> None:
        for number, fact in enumerate(said.facts):
            key = (id(said), number)
            if key in known.facts or not chain.allows(fact, own):
                continue
            known.facts[key] = fact
            known.mentioned |= set(_variables(fact))
        if id(said) not in known.done:
            known.done.add(id(said))
            known.doubts += said.doubts

    def _definition(self, known: _Gathering, var: Var, chain: _Chain, depth: int) -> None:
        """What a column is made of, where that may be used; what is not understood is a doubt."""
        if var.source.scope is None or ("definition", var) in known.done:
            return
        known.done.add(("definition", var))
        # Which branch of a set operation the row comes from is known on the way to the target only.
        branch = chain.branches.get(var.source)
        made = definitions(var.source, var.column)
        if branch is not None:
            made = [one for one in made if one is None or one.scope is branch]
        if var.source.raw is not None or not made or None in made:
            reason = var.source.raw or f"what its column {var.column} is made of is not certain"
            known.doubts.append(Doubt(Written(var.source.node, var.source.owner), reason, None, moves=False))
            return
        defined = [one for one in made if one is not None]
        if len(defined) > 1:
            self._branches(known, var, defined, depth)
            return
        one = defined[0]
        try:
            facts = self._reader.definition(var, one.expression, one.scope)
        except NotUnderstoodError as error:
            names = frozenset(_named(one))
            known.doubts.append(
                Doubt(Written(one.expression, one.scope.owner), str(error), names, moves=False)
            )
            return
        if var.source in chain.sources and not chain.passes(var.source, one):
            return
        said = self._said.setdefault(("made of", var), Said(facts))
        self._add(known, said, chain, own=var.source)

    def _branches(self, known: _Gathering, var: Var, made: list[Defined], depth: int) -> None:
        """A column of a set operation lies between the limits of all its branches."""
        if depth > _DEEPEST:
            return
        cases: list[Solved] = []
        for one in made:
            try:
                column = resolve(shifted(one.expression).column, one.scope)
                facts = self._reader.definition(var, one.expression, one.scope)
            except NotUnderstoodError as error:
                known.doubts.append(
                    Doubt(
                        Written(one.expression, one.scope.owner),
                        str(error),
                        frozenset(_named(one)),
                        moves=False,
                    )
                )
                return
            inner = _Gathering(scopes={id(one.scope): one.scope})
            inner.mentioned.add(var)
            inner.done.add(("definition", var))
            nowhere = _Chain()
            key = ("made of", var, id(one.expression))
            self._add(inner, self._said.setdefault(key, Said(facts)), nowhere)
            if column is not None:
                inner.mentioned.add(column)
            self._gather(inner, nowhere, depth + 1)
            cases.append(_limits(var, inner))
        found: list[Fact] = []
        for upper in (False, True):
            ats = [[r.at for r in (case.upper if upper else case.lower)] for case in cases]
            if all(ats):
                found.append(Limit(var, upper=upper, at=widest(upper, ats)))
        self._add(known, self._said.setdefault(("made of", var), Said(tuple(found))), _Chain())


@define
class _Chain:
    """The way from a table to the result: the scopes around it, and as which source each of them is read."""

    scopes: list[Scope] = field(factory=list)
    sources: set[Source] = field(factory=set)
    branches: dict[Source, Scope] = field(factory=dict)
    blocked: set[Source] = field(factory=set)
    sliced: set[Source] = field(factory=set)
    doubts: list[Doubt] = field(factory=list)

    @classmethod
    def of(cls, source: Source) -> _Chain:
        """The way of a table."""
        found = cls()
        here: Source | None = source
        while here is not None:
            found.sources.add(here)
            here = found._through(here)
        return found

    def _through(self, source: Source) -> Source | None:  # noqa: C901 - one walk outward
        """From a source through its home scope to the source that this is read as; None at the end."""
        scope = source.home
        if source.raw or scope.raw:
            # Nothing outside, and nothing here, says which of its rows count.
            self.doubts.append(
                Doubt(Written(source.node, source.owner), str(source.raw or scope.raw), None, moves=False)
            )
            return None
        if any(join.source is source and join.how.startswith("asof") for join in scope.joins):
            self.blocked.add(source)
        branch: Scope | None = None
        sliced = False
        while True:
            if not scope.branches:
                self.scopes.append(scope)
            if scope.place == "source" and scope.source is not None:
                if branch is not None:
                    self.branches[scope.source] = branch
                if sliced or scope.sliced:
                    self.sliced.add(scope.source)
                return scope.source
            if scope.place == "branch" and scope.outer is not None:
                branch = branch or scope
                sliced = sliced or scope.sliced
                scope = scope.outer
            elif scope.place == "expression" and scope.outer is not None:
                self._compared(scope)
                # What it is compared with is read where WHERE holds; its own columns lead nowhere.
                scope, branch = scope.outer, None
                if scope.raw:
                    return None
            else:
                return None

    def _compared(self, scope: Scope) -> None:
        """What a subquery gives to IN or ANY is compared with something: that is not followed."""
        around = scope.node.parent
        while isinstance(around, (exp.Subquery, exp.Paren)):
            around = around.parent
        if isinstance(around, (exp.In, exp.Any, exp.All)):
            given = [Defined(p.unalias(), scope) for p in getattr(scope.node, "expressions", ())]
            names = frozenset(var for one in given for var in _named(one))
            self.doubts.append(
                Doubt(
                    Written(around, scope.owner),
                    "a comparison with a subquery is not followed",
                    names,
                    moves=False,
                )
            )

    def allows(self, fact: Fact, own: Source | None) -> bool:
        """Whether a fact may be used: of what an ASOF JOIN chooses from, only its own condition may."""
        named = {var.source for var in _variables(fact)} & self.blocked
        return not named - ({own} if own is not None else set())

    def passes(self, source: Source, defined: Defined) -> bool:
        """Whether a filter on a column of a source on the way is a filter on the rows behind it."""
        return source not in self.sliced and follows(defined.scope, defined)


def _joined(join: Join, before: Iterable[Source], present: set[Source]) -> bool:
    """Whether the condition of a join holds for the joined rows that count."""
    left, right = any(source in present for source in before), join.source in present
    if join.how in ("inner", "asof"):
        return left or right
    if join.how in ("left", "asof left", "anti"):
        return right
    return left if join.how == "right" else left and right


def _same(join: Join, before: list[Source]) -> Said:
    """What USING says."""
    if len(before) > 1:
        reason = "USING after several tables is not understood"
        return Said(doubts=(Doubt(Written(join.source.node, join.source.owner), reason, None, moves=False),))
    zero = timedelta(0)
    pairs = [(Var(before[0], name), Var(join.source, name)) for name in join.using]
    return Said(tuple(fact for a, b in pairs for fact in (Difference(a, b, zero), Difference(b, a, zero))))


def _variables(fact: Fact) -> tuple[Var, ...]:
    return (fact.one, fact.other) if isinstance(fact, Difference) else (fact.var,)


def _named(defined: Defined) -> Iterable[Var]:
    for column in defined.expression.find_all(exp.Column):
        var = resolve(column, defined.scope)
        if var is not None:
            yield var


def _limits(target: Var, known: _Gathering) -> Solved:
    """Shortest paths from the target to whatever moves with the interval."""
    differences = [f for f in known.facts.values() if isinstance(f, Difference)]
    above = _paths(target, [(d.one, d.other, d.most, d.place) for d in differences])
    below = _paths(target, [(d.other, d.one, d.most, d.place) for d in differences])
    limits = [f for f in known.facts.values() if isinstance(f, Limit)]
    upper = tuple(Reach(_moved(f.at, above[f.var][0]), f.place) for f in limits if f.upper and f.var in above)
    lower = tuple(
        Reach(_moved(f.at, -below[f.var][0]), f.place) for f in limits if not f.upper and f.var in below
    )
    near = {*above, *below}
    named = [var for doubt in known.doubts for var in doubt.variables or ()]
    beside = _beside(target, differences, [*(f.var for f in limits), *named])
    aside = [
        Doubt(f.place, f"it limits {f.var.column}, not the time column", frozenset({f.var}), moves=True)
        for f in limits
        if f.var in beside and f.var not in near and f.place is not None
    ]
    doubts = [
        d
        for d in (*known.doubts, *aside)
        if d.variables is None or d.variables & near or (d.moves and d.variables & beside)
    ]
    doubts.sort(key=lambda d: not d.moves)
    return Solved(
        lower,
        upper,
        None if lower else _first(doubts, below),
        None if upper else _first(doubts, above),
    )


def _beside(target: Var, differences: list[Difference], others: Iterable[Var]) -> set[Var]:
    """All columns that hang together with any column of the target's table."""
    neighbours: dict[Var, set[Var]] = {}
    for fact in differences:
        neighbours.setdefault(fact.one, set()).add(fact.other)
        neighbours.setdefault(fact.other, set()).add(fact.one)
    found: set[Var] = set()
    pending = [var for var in {*neighbours, *others} if var.source is target.source]
    while pending:
        var = pending.pop()
        if var not in found:
            found.add(var)
            pending += neighbours.get(var, ())
    return found


def _first(doubts: list[Doubt], paths: dict[Var, tuple[timedelta, Any]]) -> Doubt | None:
    """Why a limit may have been missed: a condition that is not understood, or one with a column that has no limit."""
    if doubts:
        return doubts[0]
    for var, (_, place) in paths.items():
        if place is not None:
            return Doubt(place, f"of {var.column} no limit is known", frozenset({var}), moves=False)
    return None


def _paths(target: Var, edges: list[tuple[Var, Var, timedelta, Any]]) -> dict[Var, tuple[timedelta, Any]]:
    """Shortest distances from the target, and the last condition on the way (Bellman and Ford's)."""
    found: dict[Var, tuple[timedelta, Any]] = {target: (timedelta(0), None)}
    for _ in range(len({var for edge in edges for var in edge[:2]})):
        changed = False
        for one, other, most, place in edges:
            if one in found:
                distance = found[one][0] + most
                if other not in found or distance < found[other][0]:
                    found[other] = (distance, place if place is not None else found[one][1])
                    changed = True
        if not changed:
            break
    return found


def _moved(at: Callable[[Interval], datetime], by: timedelta) -> Callable[[Interval], datetime]:
    return lambda interval: at(interval) + by
