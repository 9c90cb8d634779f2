"""Dead letters that share a fingerprint, as one: a thousand failures of one outage are one group."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause, text

from threadmill.core.keys import check_tenant
from threadmill.core.models import DEAD_LETTER_STATUSES, SCHEMA
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.dlq.filter import EVERYWHERE, NOWHERE, first_id
from threadmill.producers.queries import check_page
from threadmill.producers.run import timestamp

# How far letters are counted: those of one status, of one span of the trend.
GROUP_MOST = 1_000
# Among so many letters of a group its tenants are counted.
TENANTS_LOOKED_AT = 1_000
# A tenant's groups are those of so many of its newest letters.
TENANT_LETTERS = 10_000
# So many of the newest letters are looked at for a page of groups before all groups are.
NEAR = 1_000
SPAN, SPANS = datetime.timedelta(minutes=10), 6

_LETTERS = f"{SCHEMA}.dead_letters"
_STATUSES = f"unnest(array[{', '.join(repr(status) for status in DEAD_LETTER_STATUSES)}]) as status(word)"


def _end(fingerprint: str, column: str, direction: str) -> str:
    """SQL of the newest (desc) or the oldest (asc) letter of a group.

    Compared as a row and in the order of all its columns, so that the primary key, which has the order of the
    ids as well, cannot take the place of the group's index.
    """
    return f"""
        select letter.{column} from {_LETTERS} as letter
        where (letter.fingerprint, letter.id) >= ({fingerprint}, cast('{NOWHERE}' as uuid))
            and (letter.fingerprint, letter.id) <= ({fingerprint}, cast('{EVERYWHERE}' as uuid))
        order by letter.fingerprint {direction}, letter.id {direction} limit 1
    """  # noqa: S608 - constants


# Where the page before ended: at a letter's id, or at a group's newest letter.
_CURSOR = f"""
    cursor as materialized (
        select coalesce(
            ({_end(":after", "id", "desc")}),
            cast(:after_id as uuid)
        ) as id
    )
"""

# Those that some of the newest letters belong to: a page of them is all that the page can hold.
_NEAR = f"""
    (
        select distinct near.fingerprint from cursor cross join lateral (
            select letter.fingerprint from {_LETTERS} as letter
            where letter.id < coalesce(cursor.id, cast('{EVERYWHERE}' as uuid))
            order by letter.id desc limit :near
        ) as near
    ) as candidate join {SCHEMA}.replay_groups as known using (fingerprint)
"""  # noqa: S608 - constants


def _groups(candidates: str) -> TextClause:
    return text(
        f"""
        with {_CURSOR},
        heads as materialized (
            select known.*, newest.id from {candidates}
            cross join lateral ({_end("known.fingerprint", "id", "desc")}) as newest
            where cast(:graph as text) is null or known.graph = :graph
        ),
        page as materialized (
            select heads.* from heads, cursor where cursor.id is null or heads.id < cursor.id
            order by heads.id desc limit :limit
        )
        select page.fingerprint, page.id, page."window", page.backoffs + page.strays as backoffs,
            page.next_at,
            letter.graph, letter.node, letter.exception_type, letter.reason,
            letter.error ->> 'message' as message,
            letter.created_at as last_seen,
            ({_end("page.fingerprint", "created_at", "asc")}) as first_seen,
            (select jsonb_object_agg(status.word, counted.found) from {_STATUSES} cross join lateral (
                select count(*) as found from (
                    select from {_LETTERS} as one
                    where one.fingerprint = page.fingerprint and one.status = status.word
                    order by one.reason, one.id limit :most
                ) as part
            ) as counted) as counts,
            (select count(distinct part.tenant) from (
                select one.tenant from {_LETTERS} as one
                where one.fingerprint = page.fingerprint
                order by one.status, one.reason, one.id limit :tenants_most
            ) as part) as tenants,
            (select array_agg(counted.found order by span.start) from (
                select span.start, lead(span.start) over (order by span.start) as until
                from unnest(cast(:spans as uuid[])) as span(start)
            ) as span cross join lateral (
                select count(*) as found from (
                    select from {_LETTERS} as one
                    where (one.fingerprint, one.id) >= (page.fingerprint, span.start)
                        and (one.fingerprint, one.id) < (page.fingerprint, span.until)
                    order by one.fingerprint, one.id limit :most
                ) as part
            ) as counted where span.until is not null) as trend,
            (select pause.kind from {SCHEMA}.replay_pauses as pause
                where (pause.kind, pause.name) in (('group', page.fingerprint), ('graph', letter.graph))
                order by pause.kind desc limit 1) as paused
        from page join {_LETTERS} as letter on letter.id = page.id
        order by page.id desc
        """  # noqa: S608 - constants
    )


_GROUPS_NEAR, _ALL_GROUPS = _groups(_NEAR), _groups(f"{SCHEMA}.replay_groups as known")

# The groups of a tenant. All of it comes from its own letters, as its own role may read no more.
_OF_TENANT = text(
    f"""
    with {_CURSOR},
    newest as materialized (
        select near.* from (
            select letter.id, letter.fingerprint, letter.status, letter.graph from {_LETTERS} as letter
            where (letter.tenant, letter.id) >= (:tenant, cast('{NOWHERE}' as uuid))
                and (letter.tenant, letter.id) <= (:tenant, cast('{EVERYWHERE}' as uuid))
            order by letter.tenant desc, letter.id desc limit :letters
        ) as near
        where cast(:graph as text) is null or near.graph = :graph
    ),
    heads as (
        select distinct on (newest.fingerprint) newest.fingerprint, newest.id from newest
        order by newest.fingerprint, newest.id desc
    ),
    page as materialized (
        select heads.* from heads, cursor where cursor.id is null or heads.id < cursor.id
        order by heads.id desc limit :limit
    ),
    counted as materialized (
        select newest.fingerprint, newest.status, least(:most, count(*)) as found
        from newest join page using (fingerprint) group by 1, 2
    ),
    starts as (
        select span.start, lead(span.start) over (order by span.start) as until
        from unnest(cast(:spans as uuid[])) as span(start)
    ),
    trends as materialized (
        select page.fingerprint, starts.start, least(:most, count(newest.id)) as found
        from page cross join starts left join newest on newest.fingerprint = page.fingerprint
            and newest.id >= starts.start and newest.id < starts.until
        where starts.until is not null group by 1, 2
    ),
    oldest as materialized (
        select distinct on (newest.fingerprint) newest.fingerprint, newest.id
        from newest join page using (fingerprint) order by newest.fingerprint, newest.id
    )
    select page.fingerprint, page.id, 1 as "window", 0 as backoffs, cast(null as timestamptz) as next_at,
        letter.graph, letter.node, letter.exception_type, letter.reason,
        letter.error ->> 'message' as message, letter.created_at as last_seen,
        first.created_at as first_seen,
        (select jsonb_object_agg(counted.status, counted.found) from counted
            where counted.fingerprint = page.fingerprint) as counts,
        1 as tenants,
        (select array_agg(trends.found order by trends.start) from trends
            where trends.fingerprint = page.fingerprint) as trend,
        cast(null as text) as paused
    from page join {_LETTERS} as letter on letter.id = page.id
        join oldest on oldest.fingerprint = page.fingerprint
        join {_LETTERS} as first on first.id = oldest.id
    order by page.id desc
        """  # noqa: S608 - constants
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One dead letter of a group: its newest."""

    id: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        """The sample as JSON values."""
        return {"id": self.id, "message": self.message}


@dataclass(frozen=True, slots=True)
class Group:
    """What failed in the same way.

    counts: how many there are by status, each counted up to `GROUP_MOST`. tenants: how many it hit, counted
    among `TENANTS_LOOKED_AT` of its letters. trend: how many came in each of the last six spans of ten
    minutes, the latest last, each counted up to `GROUP_MOST`.
    window: how many may be replayed at once. backoffs: how many canaries have failed since one
    succeeded. next_at: when the next may go. paused: why nothing of it is drained ("group", "graph"), or
    None. graph, node, exception_type and reason are the newest letter's.
    """

    fingerprint: str
    graph: str | None
    node: str | None
    exception_type: str | None
    reason: str
    counts: Mapping[str, int]
    first_seen: datetime.datetime
    last_seen: datetime.datetime
    tenants: int
    sample: Sample
    trend: tuple[int, ...]
    window: int
    backoffs: int
    next_at: datetime.datetime | None
    paused: str | None

    def to_dict(self) -> dict[str, Any]:
        """The group as JSON values."""
        return {
            "fingerprint": self.fingerprint,
            "graph": self.graph,
            "node": self.node,
            "exception_type": self.exception_type,
            "reason": self.reason,
            "counts": dict(self.counts),
            "first_seen": timestamp(self.first_seen),
            "last_seen": timestamp(self.last_seen),
            "tenants": self.tenants,
            "sample": self.sample.to_dict(),
            "trend": list(self.trend),
            "window": self.window,
            "backoffs": self.backoffs,
            "next_at": timestamp(self.next_at),
            "paused": self.paused,
        }


def list_groups(
    *, tenant: str | None = None, graph: str | None = None, limit: int = 50, after: str | None = None
) -> Plan[list[Group]]:
    """A page of groups, those first that failed last.

    tenant: as this tenant has them, by its newest `TENANT_LETTERS` dead letters; the replay worker's view of
    a group (window, backoffs, next_at, paused) is then left out. after: the fingerprint of the last group of
    the page before, or its sample's id, which is exact even while more letters come. Raises InvalidOption.
    """
    check_page(limit, None)
    values: dict[str, Any] = {
        "limit": limit,
        "graph": graph,
        "after": after,
        "after_id": _as_id(after),
        "most": GROUP_MOST,
        "tenants_most": TENANTS_LOOKED_AT,
        "spans": _spans(datetime.datetime.now(datetime.UTC)),
    }
    if tenant is None:
        (rows,) = yield Batch([Step(_GROUPS_NEAR, {**values, "near": NEAR})], final=False)
        if len(rows) < limit:
            (rows,) = yield Batch([Step(_ALL_GROUPS, values)])
    else:
        values |= {
            "tenant": check_tenant(tenant),
            "letters": TENANT_LETTERS,
        }
        del values["tenants_most"]
        (rows,) = yield Batch([Step(_OF_TENANT, values)])
    return [_group_of(row) for row in rows]


def _as_id(after: str | None) -> uuid.UUID | None:
    try:
        return None if after is None else uuid.UUID(after)
    except ValueError:
        return None  # a fingerprint that a hook has named


def _spans(now: datetime.datetime) -> list[uuid.UUID]:
    """The ids at which the spans of the trend begin, the earliest first, and the end of the last."""
    starts = [now - SPAN * number for number in range(SPANS, 0, -1)]
    return [*(first_id(start) for start in starts), EVERYWHERE]


def _group_of(row: Row) -> Group:
    return Group(
        fingerprint=row["fingerprint"],
        graph=row["graph"],
        node=row["node"],
        exception_type=row["exception_type"],
        reason=row["reason"],
        counts={status: row["counts"].get(status, 0) for status in DEAD_LETTER_STATUSES},
        first_seen=row["first_seen"],
        last_seen=row["last_seen"],
        tenants=row["tenants"],
        sample=Sample(str(row["id"]), row["message"] or ""),
        trend=tuple(row["trend"]),
        window=row["window"],
        backoffs=row["backoffs"],
        next_at=row["next_at"],
        paused=row["paused"],
    )
