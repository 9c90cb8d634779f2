"""What becomes of the runs of a worker that is gone."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Text, bindparam, func, select, text, true
from uuid_utils.compat import uuid7

from threadmill.core.doorbell import Bell, next_bell
from threadmill.core.errors import RunTimeout, WorkerLost
from threadmill.core.keys import thread_key
from threadmill.core.models import SCHEMA
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import (
    QUARANTINE_LOSSES,
    TENANT_SETTING,
    bury,
    expire,
    lock_thread,
    requeue,
)
from threadmill.workers.ending import Retry, requeue_parameters
from threadmill.workers.failure import describe

# Not `bind_tenant`: the role stays the fleet's, which writes the dead letter.
_BIND = select(func.set_config(TENANT_SETTING, bindparam("tenant", type_=Text), true()))
_LAST_CHECKPOINT = text(
    f"""
    select checkpoint_id from {SCHEMA}.checkpoints
    where thread_id = :key and checkpoint_ns = '' and metadata ->> 'run_id' = :run_id
    order by checkpoint_id desc limit 1
    """  # noqa: S608 - the schema's name is a constant
)

Holds = Callable[[str], bool]  # whether a graph's dead letters hold their lanes


def rescue(run: Row, cause: str, holds: Holds, node: str | None = None) -> Plan[tuple[bool, Bell | None]]:
    """Gives a lost worker's run back, or buries it where it has now cost one worker too many.

    run: a row of `runs_of_worker` or `runs_without_worker`. Returns whether it was still to be rescued, and
    the bell to ring.
    """
    losses = run["worker_losses"] + 1
    if losses > QUARANTINE_LOSSES:
        checkpoint_id = yield from last_checkpoint(run)
        step = _burial(run, cause, node, losses, checkpoint_id, holds(run["graph"]))
    else:
        step = _requeue(run, Retry(0, spent=False, waits=0, cause=cause), lost=1, node=node)
    return (yield from _under_lock(run, step))


def give_back(run: Row, cause: str) -> Plan[tuple[bool, Bell | None]]:
    """Gives back a run that this worker holds in the ledger and nowhere else; nobody is to blame."""
    return (yield from _under_lock(run, _requeue(run, Retry(0, False, 0, cause), lost=0, node=None)))


def expire_run(run: Row, holds: Holds) -> Plan[tuple[bool, Bell | None]]:
    """Ends a pending run whose deadline has passed. run: a row of `expired_runs`."""
    failure = describe(RunTimeout("deadline", 0), run["graph"], None)
    message = "the deadline passed before the run was done"
    checkpoint_id = yield from last_checkpoint(run)
    step = Step(
        expire(),
        {
            **_held(run),
            "letter_id": uuid7(),
            "reason": "timeout",
            "error": {**failure.error(), "message": message},
            "traceback": None,
            "node": None,
            "checkpoint_id": checkpoint_id,
            "fingerprint": failure.fingerprint,
            "next_nodes": None,
            "hold": holds(run["graph"]),
        },
    )
    return (yield from _under_lock(run, step))


def last_checkpoint(run: Row) -> Plan[str | None]:
    """The newest checkpoint that the run has written; None where its input is not in the state yet."""
    key = thread_key(run["tenant"], run["thread_id"])
    _, rows = yield Batch(
        [
            Step(_BIND, {"tenant": run["tenant"]}),
            Step(_LAST_CHECKPOINT, {"key": key, "run_id": str(run["id"])}),
        ],
        final=False,
    )
    return rows[0]["checkpoint_id"] if rows else None


def _held(run: Row) -> dict[str, object]:
    return {"run_id": run["id"], "attempt": run["attempt"]}


def _requeue(run: Row, retry: Retry, *, lost: int, node: str | None) -> Step:
    return Step(requeue("lost"), {**_held(run), **requeue_parameters(retry, lost=lost, node=node)})


def _burial(
    run: Row, cause: str, node: str | None, losses: int, checkpoint_id: str | None, hold: bool
) -> Step:
    failure = describe(WorkerLost(losses, cause), run["graph"], node)
    return Step(
        bury(outcome="lost"),
        {
            **_held(run),
            "letter_id": uuid7(),
            "reason": "worker_lost",
            "error": failure.error(),
            "cause": cause,
            "node": node,
            "checkpoint_id": checkpoint_id,
            "exception_type": failure.exception_type,
            "message": failure.message,
            "traceback": None,
            "fingerprint": failure.fingerprint,
            "next_nodes": None,
            "spent": 0,
            "lost": 1,
            "hold": hold,
        },
    )


def _under_lock(run: Row, step: Step) -> Plan[tuple[bool, Bell | None]]:
    lock = Step(lock_thread(), {"tenant": run["tenant"], "thread_id": run["thread_id"]})
    _, rows = yield Batch([lock, step])
    return bool(rows), next_bell(rows[0]) if rows else None
