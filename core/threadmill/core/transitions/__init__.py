"""Everything that can happen to a run, each as one SQLAlchemy Core statement.

A transition is a compare-and-set: its `where` names the state that it starts from, and no row back means
that the state was another. Whoever changes what may run on a thread first takes the lock of the thread's
row (`lock_thread`, or the upsert of `enter_threads`) in a statement of its own, so that the statement after
it, whose snapshot is newer than the lock, sees everything that was committed on that thread. That makes
the thread's row its lane:

- `seq` is given out under the lock, so the order of `seq` is the order of the commits;
- what ends a run looks for the thread's next run after it has the lock, and what enqueues a run looks
  whether it is at the head after it has the lock, so one of the two sees the other and rings.

Time is the database's clock throughout.

    pending ── claim ──► running ── succeed ──► success
       ▲  │                 │
       │  └── cancel ──► interrupted ◄── cancel
       │                    │
       └── replay ── error ◄┴── bury
"""

from threadmill.core.transitions.enqueue import (
    RUN_COLUMNS,
    announce_in_transaction,
    bind_tenant,
    enter_threads,
    find_by_idempotency_key,
    insert_runs,
)
from threadmill.core.transitions.fleet import (
    announce_graph,
    beat,
    enlist,
    expire_outputs,
    ring_again,
    strike_off,
)
from threadmill.core.transitions.lane import lock_thread
from threadmill.core.transitions.replaying import discard, park, replay, schedule_replay, thread_has_moved
from threadmill.core.transitions.running import bury, cancel, claim, succeed
from threadmill.core.transitions.terms import DOORBELL_CHANNEL, TENANT_SETTING

__all__ = [
    "DOORBELL_CHANNEL",
    "RUN_COLUMNS",
    "TENANT_SETTING",
    "announce_graph",
    "announce_in_transaction",
    "beat",
    "bind_tenant",
    "bury",
    "cancel",
    "claim",
    "discard",
    "enlist",
    "enter_threads",
    "expire_outputs",
    "find_by_idempotency_key",
    "insert_runs",
    "lock_thread",
    "park",
    "replay",
    "ring_again",
    "schedule_replay",
    "strike_off",
    "succeed",
    "thread_has_moved",
]
