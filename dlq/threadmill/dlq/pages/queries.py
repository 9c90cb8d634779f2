"""What the pages of threads and tenants read: by key, and never more than they show.

Threads and tenants are found by stepping from one key of an index to the next, so a page costs as many
look-ups as it has rows, whatever the size of the ledger. What is counted is counted up to a bound.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from sqlalchemy import text
from sqlalchemy.sql import Executable

from threadmill.core.database import Database
from threadmill.core.errors import InvalidOption, ThreadNotFound
from threadmill.core.keys import check_tenant, check_thread_id
from threadmill.core.models import SCHEMA
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Rows, Step

PAGE = 25
# Runs of one thread, shown as a timeline.
RUNS_SHOWN = 30
# As far as runs and dead letters are counted.
MOST = 1_000
# As many graphs of a tenant are looked through for parked letters.
GRAPHS = 100
# As far as the attempts of those runs are shown.
ATTEMPTS_SHOWN = 500

_UNFINISHED = "status in ('pending', 'running')"

_BUSY = text(
    f"""
    with recursive heads as (
        (
            select tenant, thread_id, id, 1 as number from {SCHEMA}.runs
            where {_UNFINISHED} and (tenant, thread_id) > (:tenant, :thread_id)
            order by tenant, thread_id, seq limit 1
        )
        union all
        (
            select following.tenant, following.thread_id, following.id, heads.number + 1
            from heads cross join lateral (
                select tenant, thread_id, id from {SCHEMA}.runs
                where {_UNFINISHED} and (tenant, thread_id) > (heads.tenant, heads.thread_id)
                order by tenant, thread_id, seq limit 1
            ) as following
            where heads.number < :limit
                and (cast(:only as text) is null or following.tenant = cast(:only as text))
        )
    )
    select run.tenant, run.thread_id, run.id as run_id, run.status, run.graph, run.attempt, run.created_at,
        run.started_at, behind.number as unfinished, run.scratch is not null as is_trial,
        exists (
            select from {SCHEMA}.held_lanes as held
            where held.tenant = run.tenant and held.thread_id = run.thread_id and held.seq < run.seq
        ) as is_held
    from heads join {SCHEMA}.runs as run on run.id = heads.id
    cross join lateral (
        select count(*) as number from (
            select from {SCHEMA}.runs as other
            where other.{_UNFINISHED} and other.tenant = run.tenant and other.thread_id = run.thread_id
            limit :most
        ) as bounded
    ) as behind
    where cast(:only as text) is null or run.tenant = cast(:only as text)
    order by run.tenant, run.thread_id
    """  # noqa: S608 - constants
)

# The order within the bounded counts is that of a partial index: without it the planner may walk through
# all finished runs of the tenant in search of the others. Of parked letters there is none, so the graphs are
# stepped through, as those that are resolved stand between them.
_TENANTS = text(
    f"""
    with recursive names as (
        (
            select tenant, 1 as number from {SCHEMA}.runs
            where tenant > :after order by tenant limit 1
        )
        union all
        (
            select following.tenant, names.number + 1
            from names cross join lateral (
                select tenant from {SCHEMA}.runs where tenant > names.tenant order by tenant limit 1
            ) as following
            where names.number < :limit
        )
    )
    select names.tenant, pending.number as pending, pending.oldest, running.number as running,
        least(waiting.number + parked.number, :most) as failed, coalesce(settings.paused, false) as is_paused
    from names
    left join {SCHEMA}.limits as settings on settings.kind = 'tenant' and settings.name = names.tenant
    cross join lateral (
        select count(*) filter (where status = 'pending') as number,
            min(created_at) filter (where status = 'pending') as oldest
        from (
            select status, created_at from {SCHEMA}.runs
            where {_UNFINISHED} and runs.tenant = names.tenant
            order by runs.tenant, thread_id, seq limit :most
        ) as bounded
    ) as pending
    cross join lateral (
        select count(*) as number from (
            select from {SCHEMA}.runs where status = 'running' and runs.tenant = names.tenant
            order by runs.tenant, thread_id limit :most
        ) as bounded
    ) as running
    cross join lateral (
        select count(*) as number from (
            select from {SCHEMA}.dead_letters as letter
            where status in ('waiting', 'replaying') and letter.tenant = names.tenant
            order by letter.tenant, thread_id, seq limit :most
        ) as bounded
    ) as waiting
    cross join lateral (
        with recursive graphs as (
            (
                select graph, 1 as number from {SCHEMA}.dead_letters as letter
                where letter.tenant = names.tenant order by graph limit 1
            )
            union all
            (
                select following.graph, graphs.number + 1
                from graphs cross join lateral (
                    select graph from {SCHEMA}.dead_letters as letter
                    where letter.tenant = names.tenant and letter.graph > graphs.graph
                    order by graph limit 1
                ) as following
                where graphs.number < :graphs
            )
        )
        select count(*) as number from (
            select from graphs join {SCHEMA}.dead_letters as letter on letter.tenant = names.tenant
                and letter.graph = graphs.graph and letter.status = 'parked'
            limit :most
        ) as bounded
    ) as parked
    order by names.tenant
    """  # noqa: S608 - constants
)

_THREAD = text(
    f"""
    select tenant, thread_id, status, last_seq, next_nodes, interrupts, base_checkpoint_id, dead_until,
        created_at, updated_at, now() as now
    from {SCHEMA}.threads where tenant = :tenant and thread_id = :thread_id
    """  # noqa: S608 - constants
)
_HELD = text(
    f"""
    select letter_id, seq, since, until from {SCHEMA}.held_lanes
    where tenant = :tenant and thread_id = :thread_id order by seq limit :limit
    """  # noqa: S608 - constants
)
_RUNS = text(
    f"""
    select run.id, run.seq, run.graph, run.status, run.attempt, run.replays, run.created_at, run.run_at,
        run.started_at, run.dispatched_at, run.finished_at, run.error ->> 'message' as message,
        letter.id as letter_id, letter.status as letter_status
    from {SCHEMA}.runs as run left join {SCHEMA}.dead_letters as letter on letter.run_id = run.id
    where run.tenant = :tenant and run.thread_id = :thread_id
        and (cast(:after as bigint) is null or run.seq < cast(:after as bigint))
    order by run.seq desc limit :limit
    """  # noqa: S608 - constants
)
_ATTEMPTS = text(
    f"""
    select run_id, attempt, replay, outcome, started_at, ended_at, node, exception_type
    from {SCHEMA}.attempts where run_id = any(cast(:runs as uuid[]))
    order by run_id, attempt limit :limit
    """  # noqa: S608 - constants
)
_GROUP = text(
    f"""
    select groups.window, groups.backoffs + groups.strays as backoffs, groups.next_at,
        groups.drainer_until > now() as is_drained,
        pause.since as paused_since, pause.by as paused_by, pause.reason as paused_reason
    from (select cast(:group as text) as fingerprint) as wanted
    left join {SCHEMA}.replay_groups as groups on groups.fingerprint = wanted.fingerprint
    left join {SCHEMA}.replay_pauses as pause on pause.kind = 'group' and pause.name = wanted.fingerprint
    """  # noqa: S608 - constants
)


class Reader:
    """The operator's look at threads and tenants; it connects at its first use. Threads may share one."""

    def __init__(self, settings: Settings) -> None:
        """Raises ServicesNotFound."""
        self._database = Database(settings.located())

    def close(self) -> None:
        """Lets go of the connections."""
        self._database.close()

    def busy_threads(
        self, *, tenant: str | None = None, after: tuple[str, str] | None = None, limit: int = PAGE
    ) -> Rows:
        """A page of the threads that have something to do, with the run that is at each one's head.

        after: tenant and thread of the last one of the page before. `unfinished` is counted up to MOST.
        """
        first = (check_tenant(tenant), "") if tenant is not None else ("", "")
        place = first if after is None else (check_tenant(after[0]), check_thread_id(after[1]))
        parameters = {
            "tenant": place[0],
            "thread_id": place[1],
            "only": tenant,
            "limit": limit,
            "most": MOST,
        }
        return self._database.carry_out(_read(_BUSY, parameters))

    def tenants(self, *, after: str | None = None, limit: int = PAGE) -> Rows:
        """A page of tenants, by name: pending, running, failed (each up to MOST), and the oldest pending."""
        name = check_tenant(after) if after is not None else ""
        parameters = {"after": name, "limit": limit, "most": MOST, "graphs": GRAPHS}
        return self._database.carry_out(_read(_TENANTS, parameters))

    def thread(self, tenant: str, thread_id: str) -> tuple[Row, Rows]:
        """The thread and what holds it. Raises ThreadNotFound."""
        parameters = {"tenant": check_tenant(tenant), "thread_id": check_thread_id(thread_id), "limit": PAGE}
        rows, held = self._database.carry_out(_read_both(parameters))
        if not rows:
            raise ThreadNotFound(tenant, thread_id)
        return rows[0], held

    def runs(
        self, tenant: str, thread_id: str, *, after: str | None = None, limit: int = RUNS_SHOWN
    ) -> tuple[Rows, dict[uuid.UUID, list[Row]]]:
        """A page of a thread's runs, the newest first, and the attempts of each that have ended.

        after: the seq of the last one of the page before.
        """
        parameters = {
            "tenant": check_tenant(tenant),
            "thread_id": check_thread_id(thread_id),
            "after": _seq(after),
            "limit": limit,
        }
        runs = self._database.carry_out(_read(_RUNS, parameters))
        ids = [row["id"] for row in runs]
        attempts: dict[uuid.UUID, list[Row]] = {name: [] for name in ids}
        for row in self._database.carry_out(_read(_ATTEMPTS, {"runs": ids, "limit": ATTEMPTS_SHOWN})):
            attempts[row["run_id"]].append(row)
        return runs, attempts

    def group(self, fingerprint: str) -> Row:
        """How far the replay worker is with a group, and whether it is paused; all None for no such group."""
        (row,) = self._database.carry_out(_read(_GROUP, {"group": fingerprint}))
        return row


def _read(query: Executable, parameters: Mapping[str, object]) -> Plan[Rows]:
    (rows,) = yield Batch([Step(query, parameters)])
    return rows


def _read_both(parameters: Mapping[str, object]) -> Plan[tuple[Rows, Rows]]:
    thread, held = yield Batch([Step(_THREAD, parameters), Step(_HELD, parameters)])
    return thread, held


def _seq(after: str | None) -> int | None:
    try:
        return None if after is None else int(after)
    except ValueError:
        raise InvalidOption("after", after, "must be the number of a run") from None
