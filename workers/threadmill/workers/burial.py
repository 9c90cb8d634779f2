"""How a run ends in a dead letter: the statements, and when the replay worker takes it up."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

from sqlalchemy import Text, bindparam, func, select, true
from sqlalchemy.sql import Executable
from uuid_utils.compat import uuid7

from threadmill.core.backoff import replay_delay
from threadmill.core.keys import thread_key
from threadmill.core.policy import GraphPolicy
from threadmill.core.settings import Settings
from threadmill.core.statement import Row, Step
from threadmill.core.transitions import TENANT_SETTING, lock_thread, set_aside
from threadmill.workers.failure import Failure

# What may succeed later without anybody's doing; the rest waits for a person, or for other code.
DRAINED_REASONS = frozenset({"exhausted", "timeout", "breaker"})

# Not `bind_tenant`: the role stays the fleet's, which writes the dead letter.
BIND = select(func.set_config(TENANT_SETTING, bindparam("tenant", type_=Text), true()))

ENDED = 2

Policies = Callable[[str], GraphPolicy]  # of a graph, also of one that is not served here


class Place(NamedTuple):
    """Where a run failed. checkpoint_id: None if its input was not even applied. next_nodes: of the thread;
    None if they cannot be told."""

    checkpoint_id: str | None = None
    next_nodes: list[str] | None = None


def burial(
    settings: Settings,
    policy: GraphPolicy,
    run: Row,
    end: Executable,
    reason: str,
    failure: Failure,
    place: Place,
    **more: Any,
) -> list[Step]:
    """The steps of a run's end in a dead letter; the row of the one at ENDED says whether it took place.

    run: id, tenant, thread_id, attempt and replays. end: `bury`, `expire` or `reject`. more: parameters that
    only this one takes.
    """
    lane = {"tenant": run["tenant"], "thread_id": run["thread_id"]}
    held = {"run_id": run["id"], "attempt": run["attempt"]}
    replays = run["replays"]
    drained = reason in DRAINED_REASONS
    parameters = {
        **held,
        "letter_id": uuid7(),
        "reason": reason,
        "error": failure.error(),
        "exception_type": failure.exception_type,
        "exceptions": failure.exceptions,
        "traceback": failure.traceback,
        "node": failure.node,
        "task": failure.task,
        "next_nodes": place.next_nodes,
        "checkpoint_id": place.checkpoint_id,
        "fingerprint": failure.fingerprint,
        "versions": dict(versions()),
        "replay_in": replay_delay(settings, replays) if drained else None,
        "parked": drained and replays >= settings.max_replays,
        "hold": policy.on_dead_letter == "hold",
        "hold_timeout": policy.hold_timeout,
        **more,
    }
    return [
        Step(lock_thread(), lane),
        Step(BIND, {"tenant": run["tenant"]}),
        Step(end, parameters),
        Step(set_aside(), {**lane, **held, "key": thread_key(run["tenant"], run["thread_id"])}),
    ]


@cache
def versions() -> tuple[tuple[str, str], ...]:
    """What ran here: Threadmill's, LangGraph's and Python's version."""
    return (
        ("threadmill", version("threadmill")),
        ("langgraph", version("langgraph")),
        ("python", platform.python_version()),
    )
