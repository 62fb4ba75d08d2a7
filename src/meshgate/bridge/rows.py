"""Rows as numbers that can be added up, in every engine's own SQL: equal sums, equal rows, as far as 64 bits of an MD5 tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

if TYPE_CHECKING:
    from collections.abc import Iterable

_DIGITS = 8
"""Of a digest's 32, how many one number is made of."""


def digest_of(first: str, columns: Iterable[str]) -> exp.Expression:
    """The digest of a row's columns, after some text."""
    texts = (exp.Literal.string(first), exp.Literal.string(""), *map(_text, columns))
    return exp.MD5(this=exp.func("CONCAT", *texts))


def _number(digest: exp.Expression, first: int) -> exp.Expression:
    """Some digits of a digest as a number: every engine knows the code of a character, each another way from hexadecimal."""
    total: exp.Expression | None = None
    for place in range(_DIGITS):
        digit = exp.Substring(
            this=digest.copy(), start=exp.Literal.number(first + place), length=exp.Literal.number(1)
        )
        code = exp.cast(exp.func("ASCII", digit), "bigint")
        part = exp.Mul(this=code, expression=exp.Literal.number(128**place))
        total = part if total is None else exp.Add(this=total, expression=part)
    return exp.cast(exp.paren(total), "decimal(38, 0)")


def sums(rows: exp.Query, key: str) -> exp.Select:
    """By `key`: how many `rows`, and two sums of what their columns called "digest" hold; in no engine's dialect."""
    column, digest = exp.column(key, quoted=True), exp.column("digest", quoted=True)
    return (
        exp.select(
            column,
            exp.Count(this=exp.Star()).as_("found"),
            exp.Sum(this=_number(digest, 1)).as_("first"),
            exp.Sum(this=_number(digest, 1 + _DIGITS)).as_("second"),
        )
        .from_(rows.subquery("told"))
        .group_by(column.copy())
    )


def _text(name: str) -> exp.Expression:
    """A value such that no two rows of different values give the same text."""
    column = exp.column(name, quoted=True)
    value = exp.cast(column, "text")
    length = exp.cast(exp.Length(this=value.copy()), "text")
    told = exp.func("CONCAT", length, exp.Literal.string(":"), value)
    return exp.case().when(column.is_(exp.null()), exp.Literal.string("-")).else_(told)
