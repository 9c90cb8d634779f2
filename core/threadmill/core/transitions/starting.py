"""Which of the runs that are ready is started next: by a worker with a free slot, or rung for by the leader.

A run is *ready* when it is pending, due, and at the head of its thread (it has a `rank`). All that look for
ready runs step over `runs_ready_idx`, a graph and a tenant at a time, so what it costs grows with the tenants
that have some, and not with how many they have.

Fair, without a counter that could leak: who has a free slot takes from the tenant that has the least running
for its weight, counted from the rows. A slot whose run has ended goes on with its tenant's next run, in the
transaction that ends the one before; and where other tenants have less than their share of the fleet the
leader rings for them, as a bell that waits for a slot goes before that.

What is picked is not claimed in the same statement: its thread is locked first, so that the claim after it
sees all that was committed on the thread. Between the two it is kept in a setting of the transaction.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import text
from sqlalchemy.sql import Executable

from threadmill.core.models import SCHEMA
from threadmill.core.transitions.terms import BREAKER_TRIALS, KEEP_PLANS, QUARANTINE_LOSSES

# The ids of the runs that were picked, and the thread key where it is one.
TAKEN_SETTING = "threadmill.taken"
TAKEN_KEY_SETTING = "threadmill.taken_key"

# Other threads may be locked by who enqueues there: so many of a tenant's are tried.
TRIES = 4
# So many pairs of a graph and a tenant are looked at in one go.
PAIRS = 1_000

# What may be started, but for its limits; at a worker that serves it.
_DUE = """run.rank <= now() and run.run_at <= now() and (run.deadline is null or run.deadline > now())"""
_READY = f"run.status = 'pending' and {_DUE}"
# For which no bell is on its way: none was rung, or it has gone unanswered for too long.
_SILENT = "(run.dispatched_at is null or run.dispatched_at < now() - make_interval(secs => :patience))"
_UNRUNG = f"""{_READY}
    and {_SILENT}"""
# A run that has cost workers is not for one that executes others beside it.
_ALONE = f"run.worker_losses >= {QUARANTINE_LOSSES}"


# More have been started than the rate allows; as in the function `may_start`, which decides.
_AHEAD = """coalesce(extract(epoch from greatest(limits.spent_until, now()) - now())
            > greatest(1 / limits.rate, 1) - 1 / limits.rate, false)"""


def _shut(breakers: str) -> str:
    """The graphs of which nothing is started: paused, at their limit, or of these breakers."""
    return f"""shut as materialized (
        select unnest(graphs) as graph from {SCHEMA}.breakers where {breakers}
        union
        select name from {SCHEMA}.limits where kind = 'graph' and (paused or {_AHEAD} or max_running <= (
            select count(*) from {SCHEMA}.runs where status = 'running' and graph = limits.name
        ))
    )"""  # noqa: S608 - constants


# Its trials, of which each is to be counted before the next, are started by bells alone.
_NOT_CLOSED = "open_until is not null"
_NO_TRIAL_LEFT = f"""open_until > now() or open_until is not null and {BREAKER_TRIALS} <= (
            select count(*) from {SCHEMA}.runs
            where status = 'running' and graph = any(graphs) and dispatched_at >= open_until
        )"""  # noqa: S608 - constants

# What is running, all of which was claimed since; and what a bell was rung for, since. See `terms.counts_as`.
_CLAIMED = "'' || run.status = 'running' and run.dispatched_at >= :since"
_RUNG = "'' || run.status = 'pending' and run.dispatched_at >= :floor"

# The pairs of a graph and a tenant that have something ready, one after the other, each with its lowest rank.
# In two steps, as Postgres skips from one tenant to the next only by conditions on one column at a time.
_PAIRS = f"""walk(graph, tenant, rank, number) as (
        select cast(:after_graph as text), cast(:after_tenant as text), cast(null as timestamptz), 0
        union all
        select next.graph, next.tenant, next.rank, number + 1
        from walk cross join lateral (
            (
                select graph, tenant, rank from {SCHEMA}.runs
                where status = 'pending' and graph = walk.graph and tenant > walk.tenant and rank >= :floor
                order by graph, tenant, rank limit 1
            )
            union all
            (
                select graph, tenant, rank from {SCHEMA}.runs
                where status = 'pending' and graph > walk.graph and rank >= :floor
                order by graph, tenant, rank limit 1
            )
            limit 1
        ) as next
        where number < {PAIRS}
    ),
    pair as materialized (select * from walk where number > 0)"""  # noqa: S608 - constants

# What a look has taken inside Postgres until here, in seconds.
_TOOK = "extract(epoch from clock_timestamp() - statement_timestamp())::float8 as took"

# Who began a transaction before a look may commit it later, and what it has made is then older than the look.
_A_MOMENT_AGO = "now() - interval '1 s'"

# How far a look has come, and what it may begin with that comes soon after; see `Looks`.
_SEEN = f"""(select count(*) from pair) < {PAIRS} as saw_all,
    (select graph from pair order by number desc limit 1) as last_graph,
    (select tenant from pair order by number desc limit 1) as last_tenant,
    least({_A_MOMENT_AGO}, (
        select min(rank) from pair
        where graph not in (select graph from shut) and not exists (
            select from {SCHEMA}.limits where kind = 'tenant' and name = pair.tenant and paused
        )
    )) as floor,
    least({_A_MOMENT_AGO}, (select min(oldest) from running)) as since,
    {_TOOK}"""  # noqa: S608 - constants

_UNRING = f"""
    update {SCHEMA}.runs set dispatched_at = null
    where id = :run_id and tenant = :tenant and status || '' = 'pending' and dispatched_at is not null
"""  # noqa: S608 - constants

_PICK_NEXT = f"""
    with {_shut(_NOT_CLOSED)},
    -- What follows on the thread may have become ready just now, with a rank of long ago.
    head as materialized (
        select * from {SCHEMA}.runs
        where tenant = :tenant and thread_id = :thread_id and status in ('pending', 'running')
        order by seq limit 1
    ),
    candidate as materialized (
        select ready.* from unnest(cast(:graphs as text[])) as served(graph) cross join lateral (
            (
                select run.id, run.tenant, run.thread_id, run.rank from {SCHEMA}.runs as run
                where run.graph = served.graph and run.tenant = :tenant and run.rank >= :floor
                    and {_UNRUNG} and not {_ALONE}
                order by run.rank limit {TRIES}
            )
            union all
            (
                select run.id, run.tenant, run.thread_id, run.rank from head as run
                where run.graph = served.graph and run.rank < :floor and {_UNRUNG} and not {_ALONE}
            )
        ) as ready
        where served.graph not in (select graph from shut)
            and not exists (select from {SCHEMA}.limits where kind = 'tenant' and name = :tenant and paused)
        order by ready.rank limit {TRIES}
    ),
    picked as materialized (
        select candidate.id, candidate.tenant || ':' || candidate.thread_id as key, candidate.rank
        from candidate join {SCHEMA}.threads as thread
            on thread.tenant = candidate.tenant and thread.thread_id = candidate.thread_id
        order by candidate.rank limit 1
        for update of thread skip locked
    )
    select set_config('{TAKEN_SETTING}', coalesce((select id::text from picked), ''), true),
        set_config('{TAKEN_KEY_SETTING}', coalesce((select key from picked), ''), true),
        coalesce((select rank from picked), now()) as found, {_TOOK}
"""  # noqa: S608 - constants

_PICK_MANY = f"""
    with recursive {_shut(_NOT_CLOSED)},
    {_PAIRS},
    running as materialized (
        select had.tenant, counted.number, counted.oldest
        from (select distinct tenant from pair) as had cross join lateral (
            select count(*) as number, min(run.dispatched_at) as oldest from {SCHEMA}.runs as run
            where run.tenant = had.tenant and {_CLAIMED}
        ) as counted
    ),
    standing as materialized (
        select running.tenant, coalesce(limits.weight, 1) as weight, running.number as running,
            coalesce(limits.max_running is not null or limits.rate is not null, false) as limited
        from running left join {SCHEMA}.limits as limits
            on limits.kind = 'tenant' and limits.name = running.tenant
        where coalesce(limits.paused, false) is false and not {_AHEAD}
            and coalesce(limits.max_running > running.number, true)
    ),
    candidate as materialized (
        -- Less a half: what comes of it is the whole number nearest to each share (Webster's method). Without
        -- that, as D'Hondt's does, it would round down what is small and up what is large.
        select ready.*, (standing.running + row_number() over of_tenant - 0.5) / standing.weight as turn,
            standing.limited and row_number() over of_tenant > 1
            or row_number() over (partition by ready.graph order by ready.rank) > 1 and exists (
                select from {SCHEMA}.limits where kind = 'graph' and name = ready.graph
            ) as counts
        from standing join pair using (tenant) cross join lateral (
            select run.id, run.tenant, run.thread_id, run.graph, run.rank from {SCHEMA}.runs as run
            where run.graph = pair.graph and run.tenant = pair.tenant and run.rank >= pair.rank
                and {_UNRUNG} and not {_ALONE}
            -- Of many pairs a few each: their next look finds the others.
            order by run.rank limit greatest({TRIES}, 2 * :limit / (select count(*) from pair))
        ) as ready
        where pair.graph = any(cast(:graphs as text[])) and pair.graph not in (select graph from shut)
        window of_tenant as (partition by standing.tenant order by ready.rank)
    ),
    picked as materialized (
        select candidate.id
        from candidate join {SCHEMA}.threads as thread
            on thread.tenant = candidate.tenant and thread.thread_id = candidate.thread_id
        -- Of what is limited one at a time, as each start is to be counted before the next.
        where not candidate.counts
        order by candidate.turn, candidate.rank limit :limit
        for update of thread skip locked
    )
    select set_config('{TAKEN_SETTING}', coalesce(string_agg(id::text, ','), ''), true), {KEEP_PLANS}, {_SEEN}
    from picked
"""  # noqa: S608 - constants

_RING = f"""
    with recursive {_shut(_NO_TRIAL_LEFT)},
    {_PAIRS},
    fleet as materialized (
        select coalesce(sum(concurrency), 0) as slots, greatest(count(*), 1) as workers from {SCHEMA}.workers
    ),
    running as materialized (
        select tenant, count(*) as number, min(dispatched_at) as oldest
        from {SCHEMA}.runs as run where {_CLAIMED} group by tenant
    ),
    standing as materialized (
        select tenant, coalesce(running.number, 0) as running, limits.max_running, fleet.workers,
            fleet.slots * coalesce(limits.weight, 1) / sum(coalesce(limits.weight, 1)) over () as share
        from (select tenant from pair union select tenant from running) as active
        left join running using (tenant)
        left join {SCHEMA}.limits as limits on limits.kind = 'tenant' and limits.name = tenant
        cross join fleet
        where coalesce(limits.paused, false) is false and not {_AHEAD}
    ),
    -- No more than wake every worker: who is awake takes what else there is.
    wanted as materialized (
        select standing.tenant, ceil(least(
            greatest(standing.share, 1) - standing.running,
            standing.max_running - standing.running,
            standing.workers
        ) - rung.number)::int as number
        from standing cross join lateral (
            select count(*) as number from {SCHEMA}.runs as run
            where run.tenant = standing.tenant and {_RUNG}
        ) as rung
    ),
    below as materialized (
        select ready.id, ready.nth from wanted cross join lateral (
            select found.id, row_number() over (order by found.rank) as nth
            from pair cross join lateral (
                select run.id, run.rank from {SCHEMA}.runs as run
                where run.graph = pair.graph and run.tenant = pair.tenant and run.rank >= pair.rank
                    and {_UNRUNG}
                order by run.rank limit wanted.number
            ) as found
            where pair.tenant = wanted.tenant and pair.graph not in (select graph from shut)
            order by found.rank limit wanted.number
        ) as ready
        where wanted.number > 0
        order by ready.nth limit :limit
    ),
    unanswered as materialized (
        select run.id from {SCHEMA}.runs as run
        where {_DUE} and {_RUNG}
            and run.dispatched_at < now() - make_interval(secs => :patience)
            and run.graph not in (select graph from shut)
            and not exists (
                select from {SCHEMA}.limits where kind = 'tenant' and name = run.tenant and paused
            )
        order by run.dispatched_at limit :limit
    ),
    rung as materialized (
        select run.id from {SCHEMA}.runs as run
        -- Once more, as the row is looked at again where another has claimed it meanwhile or rung for it.
        where run.status || '' = 'pending' and {_SILENT}
            and run.id in (select id from below union select id from unanswered)
        limit :limit
        for update skip locked
    ),
    marked as (
        update {SCHEMA}.runs as run set dispatched_at = now() from rung where run.id = rung.id
        returning run.id, run.tenant, run.thread_id, run.graph, {_ALONE} as alone
    )
    select marked.*, {_SEEN} from (select) as always left join marked on true
"""  # noqa: S608 - constants

_RING_TAKEN = f"""
    update {SCHEMA}.runs as run set dispatched_at = now()
    where run.id = cast(nullif(current_setting('{TAKEN_SETTING}', true), '') as uuid)
        and run.status || '' = 'pending' and {_SILENT}
    returning run.id, run.tenant, run.thread_id, run.graph, {_ALONE} as alone
"""  # noqa: S608 - constants


@cache
def pick_next() -> Executable:
    """Picks the tenant's next run of these graphs, and takes its lane.

    One row, with `found`: its rank, or the time of the look where there is none; and `took`: how long that
    has taken Postgres, in seconds.
    Parameters: tenant, thread_id (whose next run is found in any case), graphs, floor (the rank from which to
    look, see `Floors`), patience (seconds after which a bell counts as lost). After it `claim_taken` or
    `ring_taken`.
    """
    return text(_PICK_NEXT)


@cache
def pick_many() -> Executable:
    """Picks runs of these graphs for so many free slots, fair to the tenants, and takes their lanes.

    One row, for `Looks.learn`. After it `claim_taken`.
    Parameters: graphs, limit, patience, and where it begins (see `Looks`).
    """
    return text(_PICK_MANY)


@cache
def ring() -> Executable:
    """Marks runs as rung, and returns their bells: of tenants that have less than their share of the fleet,
    and those whose bell has gone unanswered for so many seconds.

    Each row is for `Looks.learn`, too; where there is no bell, there is one without an id.
    Parameters: limit, patience, and where it begins (see `Looks`).
    """
    return text(_RING)


@cache
def unring() -> Executable:
    """Takes back that a run was rung for, as the bell was answered and it could not be started.

    So it is found by whoever looks, once what kept it has gone. Parameters: run_id, tenant.
    """
    return text(_UNRING)


@cache
def ring_taken() -> Executable:
    """Marks what was picked as rung, unless it has been meanwhile, and returns its bell. After `pick_next`.

    Parameter: patience, as there.
    """
    return text(_RING_TAKEN)
