"""The record of a Celery message that no worker could take for a doorbell."""

from __future__ import annotations

from functools import cache

from sqlalchemy import text
from sqlalchemy.sql import Executable

from threadmill.core.models import SCHEMA

_RECORD = f"""
    with letter as (
        insert into {SCHEMA}.dead_letters as known (
            id, reason, status, fingerprint, error, exception_type, task
        ) values (
            :letter_id, 'undeliverable', 'parked', :fingerprint,
            cast(cast(:error as jsonb) || jsonb_build_object('count', cast(:count as bigint)) as json),
            :exception_type, :task
        )
        on conflict (id) do update set updated_at = now(), error = cast(
            cast(known.error as jsonb) || jsonb_build_object(
                'count', (known.error ->> 'count')::bigint + (excluded.error ->> 'count')::bigint
            ) as json
        )
        returning id, created_at = now() as is_new
    ),
    replay_group as (
        insert into {SCHEMA}.replay_groups (fingerprint) select :fingerprint on conflict do nothing
    ),
    action as (
        insert into {SCHEMA}.dead_letter_actions (letter_id, by, action, facts)
        select id, 'worker', 'park', jsonb_build_object('reason', 'no message of ours')
        from letter where is_new
    )
    select id, is_new from letter
"""  # noqa: S608 - the schema's name is a constant


@cache
def record_undeliverable() -> Executable:
    """Records messages of one kind as a parked dead letter; again under the same id, it counts them.

    It has no run, tenant, thread or graph, so nothing can be replayed. Returns `is_new`.
    Parameters: letter_id, fingerprint, error (a JSON object as text), exception_type, task (of Celery; None
    where the message names none), count.
    """
    return text(_RECORD)
