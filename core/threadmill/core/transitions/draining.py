"""What the replay worker asks of the ledger, and what it writes there beside the replays themselves.

Its questions are asked again and again over what may be a million dead letters in few groups, so none of
them sorts: they step from one tenant, or one group, to the next over `dead_letters_due_idx`, whose first
entry of each is the letter that is due first.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import Float, Integer, Text, and_, bindparam, column, func, null, or_, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, UUID
from sqlalchemy.sql import Executable

from threadmill.core.models import SCHEMA
from threadmill.core.transitions.replaying import auto_mode
from threadmill.core.transitions.terms import GRAPHS, GROUPS, LETTERS, seconds, word

# So many seconds' worth of a rate may go at once; of one that is slower than that, one.
BURST = 0.5
# Seconds for which a limit has been used up, and seconds until it allows one more (GCRA, ITU-T I.371).
_AHEAD = "extract(epoch from greatest(coalesce(spent_until, now()), now()) - now())::float"
_NEXT_IN = f"{_AHEAD} + 1 / rate - greatest(1 / rate, {BURST})"

_SCHEDULED = "status = 'waiting' and next_replay_at is not null"

_IDS = bindparam("letter_ids", type_=ARRAY(UUID(as_uuid=True)))
_FINGERPRINTS = bindparam("fingerprints", type_=ARRAY(Text))
_DRAINER = bindparam("drainer", type_=UUID(as_uuid=True))


# ---------------------------------------------------------------------------------------------------
# Groups, and who works on them

_GROUPS_DUE = f"""
    with recursive pair(fingerprint, tenant, earliest, number) as (
        (
            select fingerprint, tenant, next_replay_at, 1 from {SCHEMA}.dead_letters
            where {_SCHEDULED} and (fingerprint, tenant) > (:fingerprint, :tenant)
            order by fingerprint, tenant, next_replay_at limit 1
        )
        union all
        select next.fingerprint, next.tenant, next.next_replay_at, number + 1
        from pair cross join lateral (
            select fingerprint, tenant, next_replay_at from {SCHEMA}.dead_letters
            where {_SCHEDULED} and (fingerprint, tenant) > (pair.fingerprint, pair.tenant)
            order by fingerprint, tenant, next_replay_at limit 1
        ) as next
        where number < :limit
    )
    select
        coalesce(array_agg(distinct fingerprint) filter (where earliest <= now()), '{{}}') as due,
        count(*) as pairs,
        (array_agg(fingerprint order by number desc))[1] as fingerprint,
        (array_agg(tenant order by number desc))[1] as tenant
    from pair
"""  # noqa: S608 - constants


@cache
def groups_due() -> Executable:
    """One row: the groups with a letter that is due, out of the next so many pairs of a group and a tenant.

    pairs: how many there were; fingerprint and tenant: the last of them. Parameters: fingerprint and tenant
    (those after which to begin; empty for the first), limit.
    """
    return text(_GROUPS_DUE)


@cache
def enter_groups() -> Executable:
    """Makes the rows of groups that have none, as those of imported letters. Parameter: fingerprints."""
    return text(
        f"insert into {SCHEMA}.replay_groups (fingerprint) "
        "select unnest(cast(:fingerprints as text[])) on conflict do nothing"
    )


_LEASE = f"""
    with free as (
        select fingerprint, drainer = :drainer and drainer_until > now() as mine
        from {SCHEMA}.replay_groups as replay_group
        where fingerprint = any(cast(:fingerprints as text[])) and (
            (drainer = :drainer and drainer_until > now())
            or (
                (drainer is null or drainer_until <= now())
                and (next_at is null or next_at <= now())
                and not exists (
                    select from {SCHEMA}.replay_pauses
                    where kind = 'group' and name = replay_group.fingerprint
                )
            )
        )
        order by fingerprint
        for update skip locked
    )
    update {SCHEMA}.replay_groups as replay_group
    set drainer = :drainer,
        drainer_until = now() + make_interval(secs => :lease),
        "window" = case when free.mine then "window" else 1 end,
        backoffs = case when next_at < now() - make_interval(secs => :stale) then 0 else backoffs end,
        strays = case when next_at < now() - make_interval(secs => :stale) then 0 else strays end
    from free
    where replay_group.fingerprint = free.fingerprint
    returning replay_group.fingerprint, replay_group."window", replay_group.backoffs, replay_group.strays,
        free.mine
"""  # noqa: S608 - constants


@cache
def lease_groups() -> Executable:
    """Has a drainer work on those of the groups that nobody works on, and go on with those that it has.

    Who takes a group begins with a canary, and what a back-off taught that ended long ago is forgotten.
    Returns fingerprint, window, backoffs, strays, and whether it was the drainer's already (mine).
    Parameters: fingerprints, drainer, lease and stale (seconds).
    """
    return text(_LEASE)


@cache
def release_groups() -> Executable:
    """Parameters: fingerprints, drainer."""
    return (
        update(GROUPS)
        .where(GROUPS.c.fingerprint == func.any(_FINGERPRINTS), GROUPS.c.drainer == _DRAINER)
        .values(drainer=null(), drainer_until=null())
    )


@cache
def settle_group() -> Executable:
    """What the drainer of a group has learnt: its window, and how long it is not touched.

    Parameters: fingerprint, drainer, window, backoffs, strays, rest (seconds; None: it goes on).
    """
    return (
        update(GROUPS)
        .where(GROUPS.c.fingerprint == bindparam("fingerprint", type_=Text), GROUPS.c.drainer == _DRAINER)
        .values(
            window=bindparam("window", type_=Integer),
            backoffs=bindparam("backoffs", type_=Integer),
            strays=bindparam("strays", type_=Integer),
            next_at=func.now() + seconds("rest"),
        )
    )


# ---------------------------------------------------------------------------------------------------
# Letters


@cache
def under_way() -> Executable:
    """What is being replayed of these groups: id, fingerprint, replays. Parameter: fingerprints."""
    return select(LETTERS.c.id, LETTERS.c.fingerprint, LETTERS.c.replays).where(
        LETTERS.c.status == word("replaying"), LETTERS.c.fingerprint == func.any(_FINGERPRINTS)
    )


@cache
def outcomes() -> Executable:
    """What became of these letters: id, status, fingerprint, replays; the oldest news first.

    Parameter: letter_ids.
    """
    return (
        select(LETTERS.c.id, LETTERS.c.status, LETTERS.c.fingerprint, LETTERS.c.replays)
        .where(LETTERS.c.id == func.any(_IDS))
        .order_by(LETTERS.c.updated_at)
    )


@cache
def take_turns() -> Executable:
    """Has the drainers give letters back one after the other, for the rest of the transaction.

    What is being replayed is counted from rows; two that count at once would both fill the last place.
    Parameter: patience (milliseconds that any lock of the transaction is waited for).
    """
    return select(
        func.set_config("lock_timeout", bindparam("patience", type_=Text), True),
        func.pg_advisory_xact_lock(func.hashtext(f"{SCHEMA}.drain")),
    )


@cache
def lock_threads() -> Executable:
    """Takes several lanes, in the one order in which they are taken. Parameters: tenants, thread_ids."""
    return text(
        f"""
        select thread.tenant from {SCHEMA}.threads as thread
        join unnest(cast(:tenants as text[]), cast(:thread_ids as text[])) as wanted(tenant, thread_id)
            using (tenant, thread_id)
        order by thread.tenant, thread.thread_id
        for update of thread
        """  # noqa: S608 - a constant
    )


def _tenants(name: str, begin: str, end: str) -> str:
    """A recursive term: the group's tenants one by one, with the time of their letter that is due first."""
    of_group = f"{_SCHEDULED} and fingerprint = :fingerprint"
    return f"""
    {name}(tenant, earliest, number) as (
        (
            select tenant, next_replay_at, 1 from {SCHEMA}.dead_letters
            where {of_group} and tenant > {begin} and {end} and (select places from room) > 0
            order by tenant, next_replay_at limit 1
        )
        union all
        select next.tenant, next.next_replay_at, number + 1
        from {name} cross join lateral (
            select tenant, next_replay_at from {SCHEMA}.dead_letters
            where {of_group} and tenant > {name}.tenant and {end}
            order by tenant, next_replay_at limit 1
        ) as next
        where number < (select least(:tenants, 4 * places + 16) from room)
    )"""  # noqa: S608 - constants


_DUE = f"""
    with recursive room as materialized (
        select
            least(replay_group."window" - own.count, :most - every.count)::int as places,
            (:most - every.count)::int as free
        from {SCHEMA}.replay_groups as replay_group,
            lateral (
                select count(*) from (
                    select from {SCHEMA}.dead_letters
                    where status = 'replaying' and fingerprint = :fingerprint limit :most
                ) as replayed
            ) as own,
            lateral (
                select count(*) from (
                    select from {SCHEMA}.dead_letters where status = 'replaying' limit :most
                ) as replayed
            ) as every
        where replay_group.fingerprint = :fingerprint
            and drainer = :drainer and drainer_until > now() and (next_at is null or next_at <= now())
            and not exists (
                select from {SCHEMA}.replay_pauses where kind = 'group' and name = :fingerprint
            )
    ),
    spent as materialized (
        select kind, name, {_NEXT_IN} as next_in from {SCHEMA}.replay_rates where {_NEXT_IN} > 1e-6
    ),
    shut as materialized (
        select name as graph from {SCHEMA}.replay_pauses where kind = 'graph'
        union select name from spent where kind = 'graph'
        union select unnest(graphs) from {SCHEMA}.breakers where open_until > now()
    ),
    {_tenants("later", ":after", "true")},
    {_tenants("sooner", "''", "tenant <= :after")},
    turn as (
        select tenant, earliest, number as place from later
        union all select tenant, earliest, number + :tenants from sooner
    ),
    -- Twice what would do if all had enough; where few have, the next look finds the rest.
    share as materialized (
        select greatest(1, ceil(2.0 * max(places) / count(*)))::int as each
        from turn, room where earliest <= now()
    ),
    picked as (
        select letter.id, letter.rank, turn.place
        from turn cross join lateral (
            select found.id, row_number() over (order by found.next_replay_at) as rank
            from (
                -- `is not true` keeps these from being made joins, of which the planner expects next to
                -- nothing to come out: it would then read and sort all of a tenant's letters, for each look.
                -- Most that may not go wait for an earlier one: that is looked at first.
                select id, next_replay_at from {SCHEMA}.dead_letters as letter
                where {_SCHEDULED} and fingerprint = :fingerprint and tenant = turn.tenant
                    and next_replay_at <= now() and run_id is not null
                    and (graph in (select graph from shut)) is not true
                    and (
                        exists (
                            select from {SCHEMA}.dead_letters as earlier
                            where earlier.tenant = letter.tenant and earlier.thread_id = letter.thread_id
                                and earlier.seq < letter.seq and earlier.status in ('waiting', 'replaying')
                                and (earlier.status = 'replaying' or earlier.next_replay_at is not null)
                        )
                        or exists (
                            select from {SCHEMA}.held_lanes as lane
                            where lane.tenant = letter.tenant and lane.thread_id = letter.thread_id
                                and lane.seq < letter.seq
                        )
                    ) is not true
                order by next_replay_at
                limit (select each from share)
            ) as found
        ) as letter
        where turn.earliest <= now()
            and not exists (
                select from {SCHEMA}.replay_pauses where kind = 'tenant' and name = turn.tenant
            )
            and not exists (
                select from {SCHEMA}.limits where kind = 'tenant' and name = turn.tenant and paused
            )
            and not exists (select from spent where kind = 'tenant' and name = turn.tenant)
            and not exists (select from spent where kind = 'all')
        order by letter.rank, turn.place
        limit greatest((select places from room), 0)
    )
    select
        room.places, room.free, picked.id, picked.rank, picked.place,
        (select tenant from turn order by place desc limit 1) as last_tenant,
        (
            select min(next_in) from spent
            where kind <> 'tenant' or name in (select tenant from turn where earliest <= now())
        ) as next_in
    from room left join picked on true
"""  # noqa: S608 - constants


@cache
def letters_due() -> Executable:
    """The letters of a group that may be replayed now, one of each tenant in turn, as far as there is room.

    A letter waits for the earlier ones of its thread, for a held lane, a pause and an open breaker. There is
    one row at least, without a letter if there is none, unless the group is not the drainer's, is paused, or
    backs off: then there is none. Returns id, tenant, thread_id, graph, replays, mode (what `auto` comes to),
    places (what may be replayed of the group), free (what may be in all), last_tenant (up to which was
    looked), and next_in (seconds until a limit that is used up allows one; null: there is none).
    Parameters: fingerprint, drainer, most (that may be replayed at once in all), after (the tenant whose
    turn was last), tenants (how many to look at).
    """
    due = (
        text(_DUE)
        .columns(
            column("places", Integer),
            column("free", Integer),
            column("id", UUID(as_uuid=True)),
            column("rank", Integer),
            column("place", Integer),
            column("last_tenant", Text),
            column("next_in", Float),
        )
        .subquery("due")
    )
    mode, _ = auto_mode()
    return (
        select(
            LETTERS.c.id,
            LETTERS.c.tenant,
            LETTERS.c.thread_id,
            LETTERS.c.graph,
            LETTERS.c.replays,
            mode.label("mode"),
            due.c.places,
            due.c.free,
            due.c.last_tenant,
            due.c.next_in,
        )
        .select_from(due.outerjoin(LETTERS, LETTERS.c.id == due.c.id))
        .order_by(due.c.rank, due.c.place)
    )


_PARK_GROUP = f"""
    with letter as (
        update {SCHEMA}.dead_letters set status = 'parked', next_replay_at = null, updated_at = now()
        where id in (
            select id from {SCHEMA}.dead_letters
            where {_SCHEDULED} and fingerprint = :fingerprint
            order by tenant, next_replay_at limit :limit
            for update skip locked
        )
        returning id, tenant
    ),
    recorded_action as (
        insert into {SCHEMA}.dead_letter_actions (letter_id, tenant, by, action, facts)
        select id, tenant, :by, 'park', jsonb_build_object('reason', cast(:reason as text)) from letter
    )
    select count(*) as parked from letter
"""  # noqa: S608 - constants


@cache
def park_group() -> Executable:
    """Leaves a group's letters that have a time to a person. Returns one row: how many were `parked`.

    Parameters: fingerprint, limit, by, reason.
    """
    return text(_PARK_GROUP)


# ---------------------------------------------------------------------------------------------------
# New versions


@cache
def served_versions() -> Executable:
    """The graphs as they are served at present: name, version, topology_hash."""
    return select(GRAPHS.c.name, GRAPHS.c.version, GRAPHS.c.topology_hash).order_by(GRAPHS.c.name)


@cache
def renew_groups() -> Executable:
    """Has the groups of these letters begin anew, as their graph has changed. Parameter: letter_ids."""
    of_letters = select(LETTERS.c.fingerprint).where(LETTERS.c.id == func.any(_IDS))
    learnt = or_(GROUPS.c.backoffs > 0, GROUPS.c.strays > 0, GROUPS.c.next_at.is_not(null()))
    return (
        update(GROUPS)
        .where(and_(GROUPS.c.fingerprint.in_(of_letters), learnt))
        .values(window=1, backoffs=0, strays=0, next_at=null())
    )


# ---------------------------------------------------------------------------------------------------
# Velocity

_ALLOWED = f"""
    select kind, name,
        greatest(0, floor((greatest(1 / rate, {BURST}) - {_AHEAD}) * rate + 1e-6))::int as allowed,
        greatest(0, {_NEXT_IN})::float as next_in
    from {SCHEMA}.replay_rates
    where kind = 'all'
        or (kind = 'graph' and name = any(cast(:graphs as text[])))
        or (kind = 'tenant' and name = any(cast(:tenants as text[])))
    order by kind, name
    for update
"""  # noqa: S608 - constants


@cache
def lock_rates() -> Executable:
    """How many replays each limit allows at present, which holds until they are spent.

    Before any thread's lock. Returns kind, name, allowed, and next_in: seconds until it allows one.
    Parameters: graphs, tenants.
    """
    return text(_ALLOWED)


@cache
def spend_rates() -> Executable:
    """Takes what `lock_rates` allowed. Parameters: kinds, names, counts."""
    return text(
        f"""
        update {SCHEMA}.replay_rates as limited
        set spent_until = greatest(coalesce(spent_until, now()), now())
            + make_interval(secs => taken.number / rate)
        from unnest(cast(:kinds as text[]), cast(:names as text[]), cast(:counts as int[]))
            as taken(kind, name, number)
        where limited.kind = taken.kind and limited.name = taken.name
        """  # noqa: S608 - a constant
    )
