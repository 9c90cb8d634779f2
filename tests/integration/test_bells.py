"""Two that look for the same run at once ring for it once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from sqlalchemy.sql import Executable

from threadmill.core.database import connect
from threadmill.core.floors import BEGINNING, FROM_THE_FIRST
from threadmill.core.settings import Settings
from threadmill.core.statement import Rows, compiled
from threadmill.core.transitions import pick_next, ring, ring_taken

RUN = uuid.uuid4()
FILL = f"""
    insert into workers (id, host, pid, queues, concurrency, versions)
        values (gen_random_uuid(), 'h', 1, '{{}}', 10, '{{}}');
    insert into threads (tenant, thread_id, last_seq) values ('acme', 't', 1);
    insert into runs (id, tenant, thread_id, seq, graph, rank) values ('{RUN}', 'acme', 't', 1, 'g', now());
"""
PATIENCE = {"patience": 5.0}


def run(connection: psycopg.Connection[Any], statement: Executable, **parameters: Any) -> Rows:
    query = compiled(statement)
    values: Mapping[str, Any] = query.bind({**PATIENCE, **parameters})
    return connection.execute(query.sql, values).fetchall()


def test_who_waits_for_the_leaders_ringing_does_not_ring_for_the_same_run(
    settings: Settings, admin: Any
) -> None:
    admin.execute(FILL)

    def go_on() -> Rows:
        with worker.transaction():
            run(worker, pick_next(), tenant="acme", thread_id="none", graphs=["g"], floor=BEGINNING)
            return run(worker, ring_taken())

    with connect(settings) as leader, connect(settings) as worker, ThreadPoolExecutor(1) as pool:
        with leader.transaction():
            rung = run(leader, ring(), limit=10, **FROM_THE_FIRST)
            going_on = pool.submit(go_on)
            waits = "select from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
            while admin.execute(waits, [worker.info.backend_pid]).fetchone() is None:
                time.sleep(0.01)
        second = going_on.result()

    assert [row["id"] for row in rung] == [RUN]
    assert second == []


def test_what_was_rung_for_long_ago_is_rung_for_again(settings: Settings, admin: Any) -> None:
    admin.execute(FILL)
    admin.execute("update runs set dispatched_at = now() - interval '6 s'")

    with connect(settings) as worker, worker.transaction():
        run(worker, pick_next(), tenant="acme", thread_id="none", graphs=["g"], floor=BEGINNING)
        again = run(worker, ring_taken())

    assert [row["id"] for row in again] == [RUN]
