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
     └── replay ──────── error, timeout ◄── expire, reject ── pending
"""

from threadmill.core.transitions.breaking import join_breaker, open_breakers, trip
from threadmill.core.transitions.burying import bury, expire, reject
from threadmill.core.transitions.cancelling import cancel, supersede
from threadmill.core.transitions.draining import (
    BURST,
    enter_groups,
    groups_due,
    lease_groups,
    letters_due,
    lock_rates,
    lock_threads,
    outcomes,
    park_group,
    release_groups,
    renew_groups,
    served_versions,
    settle_group,
    spend_rates,
    take_turns,
    under_way,
)
from threadmill.core.transitions.enqueue import (
    CANCELLED_CHANNEL,
    QUOTA_EXCEEDED,
    RUN_COLUMNS,
    WHERE_LEFT_OUT,
    admit,
    admit_and_bind,
    announce_in_transaction,
    bind_tenant,
    borrow_tenant,
    enter_threads,
    find_by_idempotency_key,
    insert_runs,
    notify_cancelled,
    rank_heads,
    return_tenant,
)
from threadmill.core.transitions.fleet import (
    announce_graph,
    beat,
    count_fenced,
    enlist,
    expired_runs,
    rejected_runs,
    runs_of_worker,
    runs_without_worker,
    strike_off,
    strike_off_silent,
)
from threadmill.core.transitions.forking import clear_base, fork_thread, set_aside
from threadmill.core.transitions.importing import (
    enter_failed_threads,
    known_to_import,
    next_seq,
    stand_behind,
    take_in,
)
from threadmill.core.transitions.jobs import (
    JOB_COLUMNS,
    advance_job,
    begin_job,
    continue_job,
    hold_job,
    stop_job,
)
from threadmill.core.transitions.lane import lock_and_bind, lock_thread
from threadmill.core.transitions.pruning import keep_newest, prune_thread
from threadmill.core.transitions.replaying import (
    announce_new_version,
    auto_mode,
    discard,
    edit_input,
    failed_node_is_gone,
    lanes_held_too_long,
    let_go,
    park,
    record_action,
    replay,
    restore,
    schedule_replay,
    thread_has_moved,
)
from threadmill.core.transitions.retention import (
    bind_retention,
    empty_groups,
    expire_outputs,
    finished_threads,
    hold_groups,
    hold_thread,
    note_pruned,
    pruned_graphs,
    remove_groups,
    remove_letters,
    remove_runs,
)
from threadmill.core.transitions.rollback import forget_question, roll_back
from threadmill.core.transitions.running import claim, claim_taken, requeue, succeed
from threadmill.core.transitions.starting import (
    TAKEN_KEY_SETTING,
    TAKEN_SETTING,
    pick_many,
    pick_next,
    ring,
    ring_taken,
    unring,
)
from threadmill.core.transitions.terms import DOORBELL_CHANNEL, QUARANTINE_LOSSES, TENANT_SETTING
from threadmill.core.transitions.trying import (
    begin_trial,
    end_trial,
    old_trials,
    remove_trial,
    remove_trial_thread,
)
from threadmill.core.transitions.undeliverable import record_undeliverable

__all__ = [
    "BURST",
    "CANCELLED_CHANNEL",
    "DOORBELL_CHANNEL",
    "JOB_COLUMNS",
    "QUARANTINE_LOSSES",
    "QUOTA_EXCEEDED",
    "RUN_COLUMNS",
    "TAKEN_KEY_SETTING",
    "TAKEN_SETTING",
    "TENANT_SETTING",
    "WHERE_LEFT_OUT",
    "admit",
    "admit_and_bind",
    "advance_job",
    "announce_graph",
    "announce_in_transaction",
    "announce_new_version",
    "auto_mode",
    "beat",
    "begin_job",
    "begin_trial",
    "bind_retention",
    "bind_tenant",
    "borrow_tenant",
    "bury",
    "cancel",
    "claim",
    "claim_taken",
    "clear_base",
    "continue_job",
    "count_fenced",
    "discard",
    "edit_input",
    "empty_groups",
    "end_trial",
    "enlist",
    "enter_failed_threads",
    "enter_groups",
    "enter_threads",
    "expire",
    "expire_outputs",
    "expired_runs",
    "failed_node_is_gone",
    "find_by_idempotency_key",
    "finished_threads",
    "forget_question",
    "fork_thread",
    "groups_due",
    "hold_groups",
    "hold_job",
    "hold_thread",
    "insert_runs",
    "join_breaker",
    "keep_newest",
    "known_to_import",
    "lanes_held_too_long",
    "lease_groups",
    "let_go",
    "letters_due",
    "lock_and_bind",
    "lock_rates",
    "lock_thread",
    "lock_threads",
    "next_seq",
    "note_pruned",
    "notify_cancelled",
    "old_trials",
    "open_breakers",
    "outcomes",
    "park",
    "park_group",
    "pick_many",
    "pick_next",
    "prune_thread",
    "pruned_graphs",
    "rank_heads",
    "record_action",
    "record_undeliverable",
    "reject",
    "rejected_runs",
    "release_groups",
    "remove_groups",
    "remove_letters",
    "remove_runs",
    "remove_trial",
    "remove_trial_thread",
    "renew_groups",
    "replay",
    "requeue",
    "restore",
    "return_tenant",
    "ring",
    "ring_taken",
    "roll_back",
    "runs_of_worker",
    "runs_without_worker",
    "schedule_replay",
    "served_versions",
    "set_aside",
    "settle_group",
    "spend_rates",
    "stand_behind",
    "stop_job",
    "strike_off",
    "strike_off_silent",
    "succeed",
    "supersede",
    "take_in",
    "take_turns",
    "thread_has_moved",
    "trip",
    "under_way",
    "unring",
]
