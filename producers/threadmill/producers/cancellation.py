"""Cancelling: one run, by its id; and what an enqueue that ends others does to their thread."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Literal, get_args

from threadmill.core.doorbell import Bell, next_bell
from threadmill.core.errors import InvalidOption, NotCancellable
from threadmill.core.keys import thread_key
from threadmill.core.statement import Batch, Plan, Step
from threadmill.core.transitions import bind_tenant, cancel, forget_question, lock_thread, roll_back
from threadmill.producers import queries
from threadmill.producers.run import Run, run_of

CancelAction = Literal["interrupt", "rollback"]

_DONE = {"interrupt": "cancelled", "rollback": "rolled back"}


def cancelled(action: str, why: str) -> dict[str, Any]:
    """The error of a run that was cancelled; `action` is what the ledger reads of it."""
    return {"type": "Cancelled", "message": f"{_DONE[action]} {why}", "node": None, "action": action}


def taking_back(action: str, tenant: str, thread_id: str) -> list[Step]:
    """What follows, in the same transaction, the statement that ended runs of the thread."""
    parameters = {"tenant": tenant, "thread_id": thread_id, "key": thread_key(tenant, thread_id)}
    steps = [Step(forget_question(), parameters)]
    return [Step(roll_back(), parameters), *steps] if action == "rollback" else steps


def cancel_run(
    run_id: str | uuid.UUID, tenant: str, action: CancelAction
) -> Plan[tuple[Run, Sequence[Bell]]]:
    """Ends the run as interrupted; an attempt that is under way is fenced and can write nothing more.

    Raises InvalidOption, RunNotFound, and NotCancellable for a run that is finished.
    """
    if action not in get_args(CancelAction):
        raise InvalidOption("action", action, f"must be one of {', '.join(get_args(CancelAction))}")
    before = yield from queries.get(run_id, tenant, final=False)
    key = {"run_id": uuid.UUID(before.id)}
    error = cancelled(action, "on request")
    results = yield Batch(
        [
            Step(bind_tenant(), {"tenant": tenant}),
            Step(lock_thread(), {"tenant": tenant, "thread_id": before.thread_id}),
            Step(cancel(), {**key, "action": action, "error": error, "cause": "on request"}),
            *taking_back(action, tenant, before.thread_id),
            Step(queries.BY_ID, key),
        ]
    )
    ended, run = results[2], run_of(results[-1][0])
    if not ended:
        raise NotCancellable(run.id, run.status)
    bell = next_bell(ended[0])
    return run, [bell] if bell else []
