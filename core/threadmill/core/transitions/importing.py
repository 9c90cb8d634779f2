"""What takes in dead letters that another ledger has exported."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from sqlalchemy import text
from sqlalchemy.sql import Executable

from threadmill.core.models import SCHEMA


@cache
def enter_failed_threads() -> Executable:
    """Makes or locks the threads of runs that are imported, in one order, with room for their seqs.

    Parameters: tenants, thread_ids, seqs (arrays; the greatest seq of each thread).
    """
    return text(
        f"""
        insert into {SCHEMA}.threads (tenant, thread_id, status, last_seq)
        select tenant, thread_id, 'error', seq
        from unnest(cast(:tenants as text[]), cast(:thread_ids as text[]), cast(:seqs as bigint[]))
            as failed (tenant, thread_id, seq)
        order by tenant, thread_id
        on conflict (tenant, thread_id) do update set last_seq = greatest(threads.last_seq, excluded.last_seq)
        """  # noqa: S608 - a constant
    )


@cache
def next_seq() -> Executable:
    """Gives out a new place on a thread. Parameters: tenant, thread_id."""
    return text(
        f"""
        update {SCHEMA}.threads set last_seq = last_seq + 1
        where tenant = :tenant and thread_id = :thread_id returning last_seq
        """  # noqa: S608 - a constant
    )


@cache
def known_to_import() -> Executable:
    """Which of the dead letters' and runs' ids, seqs and idempotency keys there are already.

    Returns kind (letter, run, seq or key), and of what there is: id, tenant, thread_id, seq, status, key.
    Parameters: letter_ids, run_ids; tenants, thread_ids, seqs; key_tenants, keys (arrays).
    """
    return text(
        f"""
        select 'letter' as kind, id, run_id, tenant, thread_id, seq, status, null as key
        from {SCHEMA}.dead_letters where id = any(cast(:letter_ids as uuid[]))
        union all
        select 'letter', id, run_id, tenant, thread_id, seq, status, null
        from {SCHEMA}.dead_letters where run_id = any(cast(:run_ids as uuid[]))
        union all
        select 'run', id, id, tenant, thread_id, seq, status, null
        from {SCHEMA}.runs where id = any(cast(:run_ids as uuid[]))
        union all
        select 'seq', run.id, run.id, tenant, thread_id, seq, run.status, null
        from unnest(cast(:tenants as text[]), cast(:thread_ids as text[]), cast(:seqs as bigint[]))
            as wanted (tenant, thread_id, seq)
        join {SCHEMA}.runs as run using (tenant, thread_id, seq)
        union all
        select 'key', run.id, run.id, tenant, run.thread_id, run.seq, run.status, idempotency_key
        from unnest(cast(:key_tenants as text[]), cast(:keys as text[])) as wanted (tenant, idempotency_key)
        join {SCHEMA}.runs as run using (tenant, idempotency_key)
        """  # noqa: S608 - a constant
    )


@cache
def take_in(table: str, columns: Sequence[str], *, leave: bool = False) -> Executable:
    """Inserts rows as they were exported. leave: those whose key there is already are left as they are.

    Parameter: rows (a JSON array of objects).
    """
    names = ", ".join(f'"{name}"' for name in columns)
    return text(
        f"""
        insert into {SCHEMA}.{table} ({names})
        select {names} from json_populate_recordset(null::{SCHEMA}.{table}, cast(:rows as json))
        {"on conflict do nothing" if leave else ""}
        """  # noqa: S608 - names of this package's own tables
    )


@cache
def stand_behind() -> Executable:
    """Has what stands behind held lanes wait, as these were taken in. Parameters: tenants, thread_ids."""
    return text(
        f"""
        update {SCHEMA}.runs as run set rank = null
        from unnest(cast(:tenants as text[]), cast(:thread_ids as text[])) as wanted (tenant, thread_id)
        join {SCHEMA}.held_lanes as lane using (tenant, thread_id)
        where run.tenant = lane.tenant and run.thread_id = lane.thread_id and run.seq > lane.seq
            and run.status in ('pending', 'running')
        """  # noqa: S608 - a constant
    )
