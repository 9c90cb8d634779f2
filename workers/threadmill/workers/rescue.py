"""What becomes of the runs of a worker that is gone, and of those whose time is over."""

from __future__ import annotations

from sqlalchemy import text

from threadmill.core.doorbell import Bell, next_bell
from threadmill.core.errors import DependencyUnavailable, RunTimeout, WorkerLost
from threadmill.core.keys import thread_key
from threadmill.core.models import SCHEMA
from threadmill.core.policy import GraphPolicy
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import QUARANTINE_LOSSES, bury, expire, let_go, lock_thread, reject, requeue
from threadmill.workers.burial import BIND, ENDED, Place, burial
from threadmill.workers.ending import Retry, requeue_parameters
from threadmill.workers.failure import describe

_LAST_CHECKPOINT = text(
    f"""
    select checkpoint_id from {SCHEMA}.checkpoints
    where thread_id = :key and checkpoint_ns = '' and metadata ->> 'run_id' = :run_id
    order by checkpoint_id desc limit 1
    """  # noqa: S608 - the schema's name is a constant
)


def rescue(
    settings: Settings, run: Row, cause: str, policy: GraphPolicy, node: str | None = None
) -> Plan[tuple[bool, Bell | None]]:
    """Gives a lost worker's run back, or buries it where it has now cost one worker too many.

    run: a row of `runs_of_worker` or `runs_without_worker`. policy: of its graph. Returns whether it was
    still to be rescued, and the bell to ring.
    """
    losses = run["worker_losses"] + 1
    if losses <= QUARANTINE_LOSSES:
        again = _requeue(run, Retry(0, spent=False, waits=0, cause=cause), lost=1, node=node)
        return (yield from _under_lock(run, again))
    place = Place(checkpoint_id=(yield from last_checkpoint(run)))
    failure = describe(WorkerLost(losses, cause), run["graph"], node)
    more = {"cause": cause, "message": failure.message, "spent": 0, "lost": 1, "traceback": None}
    end = bury(outcome="lost")
    return (yield from _bury(burial(settings, policy, run, end, "worker_lost", failure, place, **more)))


def give_back(run: Row, cause: str) -> Plan[tuple[bool, Bell | None]]:
    """Gives back a run that this worker holds in the ledger and nowhere else; nobody is to blame."""
    return (yield from _under_lock(run, _requeue(run, Retry(0, False, 0, cause), lost=0, node=None)))


def expire_run(settings: Settings, run: Row, policy: GraphPolicy) -> Plan[tuple[bool, Bell | None]]:
    """Ends a pending run whose deadline has passed. run: a row of `expired_runs`."""
    failure = describe(RunTimeout("deadline", 0), run["graph"], None)
    message = "the deadline passed before the run was done"
    place = Place(checkpoint_id=(yield from last_checkpoint(run)))
    more = {"error": {**failure.error(), "message": message}, "traceback": None}
    return (yield from _bury(burial(settings, policy, run, expire(), "timeout", failure, place, **more)))


def reject_run(settings: Settings, run: Row, policy: GraphPolicy) -> Plan[tuple[bool, Bell | None]]:
    """Ends a run that has waited behind a breaker for longer than its graph allows.

    run: a row of `rejected_runs`.
    """
    failure = describe(DependencyUnavailable(run["breaker"], round(run["open_for"])), run["graph"], None)
    message = f"the breaker of {run['breaker']!r} stayed open for longer than the graph's breaker_budget"
    place = Place(checkpoint_id=(yield from last_checkpoint(run)))
    more = {"error": {**failure.error(), "message": message}, "traceback": None}
    return (yield from _bury(burial(settings, policy, run, reject(), "breaker", failure, place, **more)))


def free_lane(lane: Row) -> Plan[tuple[bool, Bell | None]]:
    """Has the runs go on that were held for longer than their graph allows.

    lane: a row of `lanes_held_too_long`.
    """
    return (yield from _under_lock(lane, Step(let_go(), {"letter_id": lane["letter_id"]})))


def last_checkpoint(run: Row) -> Plan[str | None]:
    """The newest checkpoint that the run has written; None where its input is not in the state yet."""
    key = thread_key(run["tenant"], run["thread_id"])
    _, rows = yield Batch(
        [
            Step(BIND, {"tenant": run["tenant"]}),
            Step(_LAST_CHECKPOINT, {"key": key, "run_id": str(run["id"])}),
        ],
        final=False,
    )
    return rows[0]["checkpoint_id"] if rows else None


def _held(run: Row) -> dict[str, object]:
    return {"run_id": run["id"], "attempt": run["attempt"]}


def _requeue(run: Row, retry: Retry, *, lost: int, node: str | None) -> Step:
    return Step(requeue("lost"), {**_held(run), **requeue_parameters(retry, lost=lost, node=node)})


def _bury(steps: list[Step]) -> Plan[tuple[bool, Bell | None]]:
    rows = (yield Batch(steps))[ENDED]
    return bool(rows), next_bell(rows[0]) if rows else None


def _under_lock(run: Row, step: Step) -> Plan[tuple[bool, Bell | None]]:
    lock = Step(lock_thread(), {"tenant": run["tenant"], "thread_id": run["thread_id"]})
    _, rows = yield Batch([lock, step])
    return bool(rows), next_bell(rows[0]) if rows else None
