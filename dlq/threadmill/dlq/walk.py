"""The statements by which a page of a million dead letters is read in milliseconds, whatever is sought.

The order of the ids is that of time, and a letter's id begins with its span of time (see `MARKS`). One index
holds under each mark of a letter, its span among them, and under each of its words where the letter is. So a
page is walked from span to span, the newest first: in each the index is asked for what carries all the marks
that are sought and the span's own, which costs next to nothing where there is none, and only what is found
is fetched and put in order. Spans in which nothing was recorded are jumped over by the primary key.

What is sought is compared mark by mark, not as one array of marks: an index scan of several conditions leaps
from one that is rare to the next, and ends as soon as one of them does.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from sqlalchemy import TextClause, text

from threadmill.core.models import MARKS, SCHEMA, SPAN_DIGITS
from threadmill.dlq.filter import QUERY

_LETTERS = f"{SCHEMA}.dead_letters"


class Shape(NamedTuple):
    """What a statement looks like, but for its values. given: the columns that are to have a value."""

    given: frozenset[str]
    text: bool = False
    newest_first: bool = True


class _Direction(NamedTuple):
    """How spans follow each other. rest: what makes a span's far end of the digits that it begins with."""

    order: str
    next: str
    rest: str


_BACKWARDS = _Direction("desc", "letter.id < walk.id and letter.id >= :low", "00-0000-0000-0000-000000000000")
_FORWARDS = _Direction("asc", "letter.id > walk.id and letter.id < :high", "ff-ffff-ffff-ffff-ffffffffffff")


def _direction(shape: Shape) -> _Direction:
    return _BACKWARDS if shape.newest_first else _FORWARDS


def _conditions(shape: Shape) -> list[str]:
    """The columns, and the words."""
    equal = [f"letter.{column} = :{column}" for column in sorted(shape.given)]
    return [*equal, *([f"letter.words @@ {QUERY}"] if shape.text else [])]


def _marked(shape: Shape) -> str:
    """The same of a span, as only the index of marks can answer it."""
    marks = [f"'{column}=' || cast(:{column} as text)" for column in sorted(shape.given)]
    found = [f"{MARKS} @> array[{mark}]" for mark in ("'span=' || span.digits", *marks)]
    if shape.text:
        found.append(f"letter.words @@ {QUERY}")
    # Within a coalesce, or the planner would rather take the primary key and read the whole span.
    return " and ".join([*found, "coalesce(letter.id >= :low and letter.id < :high, false)"])


def _walk(shape: Shape, here: str) -> str:
    """SQL of `walk`: a row for each span, with where it ends, how many are found so far, and ids of its own.

    here: SQL that makes a count and ids of `fitting`, which is what fits in the span.
    """
    direction = _direction(shape)
    return f"""
        with recursive walk(id, found, ids) as (
            select cast(:start as uuid), cast(0 as bigint), cast(null as uuid[])
            union all
            select cast(span.digits || '{direction.rest}' as uuid), walk.found + here.found, here.ids
            from walk
            cross join lateral (
                select left(cast(letter.id as text), {SPAN_DIGITS}) as digits from {_LETTERS} as letter
                where {direction.next} order by letter.id {direction.order} limit 1
            ) as span
            cross join lateral (
                with fitting as materialized (
                    select letter.id from {_LETTERS} as letter where {_marked(shape)}
                )
                {here}
            ) as here
            where walk.found < :limit
        )
    """  # noqa: S608 - constants


@cache
def near(shape: Shape) -> TextClause:
    """Of the first `window` letters the ids of those that fit; what is frequent is soon found among them.

    Parameters: the given columns, text if it is searched for, low, high, limit, window.
    """
    order = _direction(shape).order
    return text(
        f"""
        select letter.id from (
            select letter.* from {_LETTERS} as letter where letter.id >= :low and letter.id < :high
            order by letter.id {order} limit :window
        ) as letter
        where {" and ".join(_conditions(shape)) or "true"} order by letter.id {order} limit :limit
        """  # noqa: S608 - constants
    )


@cache
def page(shape: Shape) -> TextClause:
    """The ids of a page.

    Parameters: the given columns, text if it is searched for, low, high, limit, and start: high, or what is
    next before low where the oldest come first.
    """
    order = _direction(shape).order
    here = f"""
        select count(*) as found, array_agg(best.id) as ids
        from (select fitting.id from fitting order by fitting.id {order} limit :limit) as best
    """  # noqa: S608 - constants
    return text(
        f"""
        {_walk(shape, here)}
        select letter.id from walk cross join unnest(walk.ids) as letter(id)
        order by letter.id {order} limit :limit
        """  # noqa: S608 - constants
    )


@cache
def count(shape: Shape) -> TextClause:
    """How many there are, up to `limit`. Parameters: those of `page`."""
    here = "select count(*) as found, cast(null as uuid[]) as ids from fitting"
    return text(
        f"{_walk(shape, here)} select least(:limit, max(walk.found)) as found from walk"  # noqa: S608
    )
