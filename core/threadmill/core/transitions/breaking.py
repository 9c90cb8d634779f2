"""What happens to a breaker: it trips, it is joined by a graph, it is closed again.

Closed, it has no row or counts failures in a row. Open, it holds back the runs of its graphs until
`open_until`. From then on it is half-open: `claim` lets a few through, a success closes it, a failure
opens it anew.

In the ledger, and not in Redis beside the broker: whether a run may be started is decided by `claim`, in
one statement, and what that depends on must not be lost or wait for another server.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import (
    CTE,
    Float,
    Integer,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    false,
    func,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, array
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql import Executable

from threadmill.core.transitions.terms import BREAKERS, seconds, word


@cache
def trip() -> Executable:
    """Counts one more failure in a row, and opens the breaker at the threshold.

    Parameters: kind (graph or dependency), name, graph (whose run failed), threshold, cooldown (seconds),
    reason. Returns `failures` (in a row) and `opened` (whether this one opened it).
    """
    threshold = bindparam("threshold", type_=Integer)
    until = func.now() + seconds("cooldown")
    reached = case((threshold <= 1, until), else_=null())
    new = upsert(BREAKERS).values(
        kind=bindparam("kind"),
        name=bindparam("name"),
        graphs=array([bindparam("graph", type_=Text)]),
        failures=1,
        open_until=reached,
        opened_at=case((threshold <= 1, func.now()), else_=null()),
        reason=bindparam("reason"),
    )
    opens = and_(
        BREAKERS.c.failures + 1 >= threshold,
        or_(BREAKERS.c.open_until.is_(null()), BREAKERS.c.open_until <= func.now()),
    )
    return new.on_conflict_do_update(
        index_elements=[BREAKERS.c.kind, BREAKERS.c.name],
        set_={
            "failures": BREAKERS.c.failures + 1,
            "graphs": case(
                (BREAKERS.c.graphs.contains(new.excluded.graphs), BREAKERS.c.graphs),
                else_=BREAKERS.c.graphs + new.excluded.graphs,
            ),
            "open_until": case((opens, until), else_=BREAKERS.c.open_until),
            # Opened anew by a trial that failed, it has been open since the first time.
            "opened_at": case(
                (opens, func.coalesce(BREAKERS.c.opened_at, func.now())), else_=BREAKERS.c.opened_at
            ),
            "reason": new.excluded.reason,
        },
    ).returning(
        BREAKERS.c.failures,
        func.coalesce(BREAKERS.c.open_until == until, false()).label("opened"),
    )


@cache
def join_breaker() -> Executable:
    """Has an open dependency hold back one graph more. Parameters: dependency, graph."""
    graph = cast(array([bindparam("graph", type_=Text)]), ARRAY(Text))
    return (
        update(BREAKERS)
        .where(
            BREAKERS.c.kind == word("dependency"),
            BREAKERS.c.name == bindparam("dependency", type_=Text),
            ~BREAKERS.c.graphs.contains(graph),
        )
        .values(graphs=BREAKERS.c.graphs + graph)
    )


def close_breakers(ended: CTE) -> CTE:
    """Forgets the failures of the ended run's graph, and of what it called, unless a breaker is open.

    Parameter: dependencies (the names that the run called).
    """
    return (
        delete(BREAKERS)
        .where(
            or_(
                and_(BREAKERS.c.kind == word("graph"), BREAKERS.c.name == ended.c.graph),
                and_(
                    BREAKERS.c.kind == word("dependency"),
                    BREAKERS.c.name == any_(bindparam("dependencies", type_=ARRAY(Text))),
                ),
            ),
            or_(BREAKERS.c.open_until.is_(null()), BREAKERS.c.open_until <= func.now()),
        )
        .returning(BREAKERS.c.name)
        .cte("closed_breaker")
    )


@cache
def open_breakers() -> Executable:
    """The breakers that are open, and for how many seconds."""
    open_for = cast(func.extract("epoch", BREAKERS.c.open_until - func.now()), Float)
    return (
        select(
            BREAKERS.c.kind, BREAKERS.c.name, BREAKERS.c.graphs, BREAKERS.c.reason, open_for.label("open_for")
        )
        .where(BREAKERS.c.open_until > func.now())
        .order_by(BREAKERS.c.kind, BREAKERS.c.name)
    )
