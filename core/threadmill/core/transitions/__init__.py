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
     ▲  ▲  │               │  │  │
     │  │  └── cancel ─────┼──┼──┴─ cancel ──► interrupted
     │  └── requeue ───────┘  │        (requeue: retry, rescue, handing over)
     │                        bury
     │                        ▼
     └── replay ──────── error, timeout ◄── expire ── pending
"""

from threadmill.core.transitions.breaking import join_breaker, open_breakers, trip
from threadmill.core.transitions.cancelling import cancel, supersede
from threadmill.core.transitions.enqueue import (
    CANCELLED_CHANNEL,
    QUOTA_EXCEEDED,
    RUN_COLUMNS,
    admit,
    admit_and_bind,
    announce_in_transaction,
    bind_tenant,
    borrow_tenant,
    enter_threads,
    find_by_idempotency_key,
    insert_runs,
    notify_cancelled,
    return_tenant,
)
from threadmill.core.transitions.fleet import (
    announce_graph,
    beat,
    count_fenced,
    enlist,
    expired_runs,
    ring_again,
    runs_of_worker,
    runs_without_worker,
    strike_off,
    strike_off_silent,
)
from threadmill.core.transitions.lane import lock_thread
from threadmill.core.transitions.replaying import discard, park, replay, schedule_replay, thread_has_moved
from threadmill.core.transitions.retention import (
    bind_retention,
    expire_outputs,
    finished_threads,
    hold_thread,
    note_pruned,
    prune_thread,
    pruned_graphs,
    remove_runs,
)
from threadmill.core.transitions.rollback import forget_question, roll_back
from threadmill.core.transitions.running import bury, claim, expire, requeue, succeed
from threadmill.core.transitions.terms import DOORBELL_CHANNEL, QUARANTINE_LOSSES, TENANT_SETTING

__all__ = [
    "CANCELLED_CHANNEL",
    "DOORBELL_CHANNEL",
    "QUARANTINE_LOSSES",
    "QUOTA_EXCEEDED",
    "RUN_COLUMNS",
    "TENANT_SETTING",
    "admit",
    "admit_and_bind",
    "announce_graph",
    "announce_in_transaction",
    "beat",
    "bind_retention",
    "bind_tenant",
    "borrow_tenant",
    "bury",
    "cancel",
    "claim",
    "count_fenced",
    "discard",
    "enlist",
    "enter_threads",
    "expire",
    "expire_outputs",
    "expired_runs",
    "find_by_idempotency_key",
    "finished_threads",
    "forget_question",
    "hold_thread",
    "insert_runs",
    "join_breaker",
    "lock_thread",
    "note_pruned",
    "notify_cancelled",
    "open_breakers",
    "park",
    "prune_thread",
    "pruned_graphs",
    "remove_runs",
    "replay",
    "requeue",
    "return_tenant",
    "ring_again",
    "roll_back",
    "runs_of_worker",
    "runs_without_worker",
    "schedule_replay",
    "strike_off",
    "strike_off_silent",
    "succeed",
    "supersede",
    "thread_has_moved",
    "trip",
]
