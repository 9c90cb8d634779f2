"""What it is to cancel, the same for a run by its id and for those that a newer run takes the place of."""

from __future__ import annotations

from typing import Any, Literal

from threadmill.core.keys import thread_key
from threadmill.core.statement import Step
from threadmill.core.transitions import forget_question, roll_back

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
