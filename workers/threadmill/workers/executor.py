"""Executes a run: bell → claim → graph → finish."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import structlog
from langchain_core.runnables import RunnableConfig
from langgraph.constants import CONF
from langgraph.pregel import Pregel
from langgraph.runtime import Runtime as GraphRuntime
from langgraph.types import Command, Send, StateSnapshot
from uuid_utils.compat import uuid7

from threadmill.core.database import AsyncDatabase
from threadmill.core.doorbell import Bell, next_bell
from threadmill.core.errors import LeaseLost
from threadmill.core.policy import Durability, GraphPolicy
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import bury, claim, lock_thread, succeed
from threadmill.graphs import Registry
from threadmill.workers.checkpointer import BoundSaver
from threadmill.workers.failure import REASON_FAILED, describe
from threadmill.workers.herald import Herald
from threadmill.workers.lease import Lease
from threadmill.workers.output import as_json, interrupts_of, select_output
from threadmill.workers.store import BoundStore

# Keys of LangGraph's own in `configurable`: the ones with which its server hands a saver and a store to a
# graph that is compiled once for the process (langgraph._internal._constants).
CHECKPOINTER_KEY = "__pregel_checkpointer"
RUNTIME_KEY = "__pregel_runtime"
CACHE_KEY = "__pregel_cache"
STRICT_RESUME_KEY = "__pregel_strict_resume"
NULL_TASK_ID = "00000000-0000-0000-0000-000000000000"  # under which a command's writes are saved

_log = structlog.get_logger("threadmill.executor")


class BellDropped(Exception):
    """The run is not to be started now, or not here; nothing is wrong."""


class RunFailed(Exception):
    """The run failed; its record is in the ledger. The text is what Flower may show: no message, no input."""


class Claimed(NamedTuple):
    """One attempt: the run's row, what it may write with, and how its graph is to be run."""

    run: Row
    saver: BoundSaver
    config: RunnableConfig
    policy: GraphPolicy


class Executor:
    """Executes runs on the loop it was made on, any number at a time."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        database: AsyncDatabase,
        herald: Herald,
        worker_id: uuid.UUID,
        versions: Mapping[str, str],
    ) -> None:
        """versions: of the graphs that this process serves, by name."""
        self._settings = settings
        self._registry = registry
        self._database = database
        self._herald = herald
        self._worker_id = worker_id
        self._versions = versions

    async def execute(self, bell: Bell) -> str:
        """Executes the run, if it is this worker's to execute, and returns its status.

        Raises BellDropped, RunFailed when the run has failed and is recorded, and LeaseLost when the run was
        taken away meanwhile.
        """
        row = await self._claim(bell)
        with structlog.contextvars.bound_contextvars(
            tenant=row["tenant"], thread=row["thread_id"], run=str(row["id"]), attempt=row["attempt"]
        ):
            started = time.monotonic()
            _log.debug("run.started", graph=row["graph"])
            try:
                await self._attempt(row)
            except LeaseLost:
                _log.warning("run.fenced", graph=row["graph"])
                raise
            finally:
                _log.info("run.ended", graph=row["graph"], seconds=round(time.monotonic() - started, 3))
        return "success"

    async def _claim(self, bell: Bell) -> Row:
        where = {"tenant": bell.tenant, "thread_id": bell.thread_id}
        plan = _one_row(
            Step(lock_thread(), where),
            Step(
                claim(),
                {
                    **where,
                    "run_id": bell.run_id,
                    "worker_id": self._worker_id,
                    "graph_version": self._versions.get(bell.graph),
                },
            ),
        )
        row = await self._database.carry_out(plan)
        if row is None:
            raise BellDropped
        return row

    async def _attempt(self, run: Row) -> None:
        attempt = await self._bind(run)
        graph: Pregel[Any, Any, Any, Any] | None = None
        try:
            graph = await self._registry.graph(run["graph"], attempt.config)
            output = await graph.ainvoke(
                await _graph_input(run, attempt.saver),
                attempt.config,
                context=run["context"],
                durability=_durability(run, attempt.policy),
            )
        except LeaseLost:
            raise
        except Exception as error:
            await self._bury(attempt, graph, error)
            raise RunFailed(f"{type(error).__name__}: see `threadmill runs show {run['id']}`") from None
        await self._succeed(attempt, graph, output)

    async def _bind(self, run: Row) -> Claimed:
        """The saver, the store and the config of this attempt; nothing in them is the caller's to choose."""
        pool = await self._database.pool()
        lease = Lease(run["id"], run["attempt"], run["thread_id"])
        saver = BoundSaver(pool, run["tenant"], lease)
        # A graph that this worker does not serve fails when it is loaded, and is recorded then.
        served = run["graph"] in self._registry.names
        policy = self._registry.policy(run["graph"]) if served else GraphPolicy()
        given: Mapping[str, Any] = run["config"] or {}
        config = {
            "recursion_limit": policy.recursion_limit,
            **given,
            CONF: {
                **given.get(CONF, {}),
                "tenant": run["tenant"],
                "thread_id": run["thread_id"],
                # With the same run id LangGraph goes on from the run's last checkpoint, and does not apply
                # the input a second time.
                "run_id": str(run["id"]),
                CHECKPOINTER_KEY: saver,
                # A cache that the graph was compiled with knows no tenants: one would get another's results.
                CACHE_KEY: None,
                # An answer to a question that is not open, or to one of several, is refused.
                STRICT_RESUME_KEY: True,
                RUNTIME_KEY: GraphRuntime(store=BoundStore(pool, run["tenant"], lease)),
            },
        }
        return Claimed(run, saver, cast(RunnableConfig, config), policy)

    async def _succeed(self, attempt: Claimed, graph: Pregel[Any, Any, Any, Any], output: Any) -> None:
        interrupts = interrupts_of(output)
        stops = interrupts is not None or graph.interrupt_before_nodes or graph.interrupt_after_nodes
        next_nodes = list((await graph.aget_state(attempt.config)).next) if stops else []
        kept = select_output(output, attempt.policy)
        await self._finish(
            attempt,
            Step(
                succeed(),
                {
                    "output": None if kept is None else as_json(kept, self._settings.max_output_bytes),
                    "checkpoint_id": attempt.saver.progress.checkpoint_id,
                    "thread_status": "interrupted" if next_nodes else "idle",
                    "interrupts": interrupts,
                    "next_nodes": next_nodes,
                },
            ),
        )

    async def _bury(
        self, attempt: Claimed, graph: Pregel[Any, Any, Any, Any] | None, error: Exception
    ) -> None:
        snapshot = None if graph is None else await graph.aget_state(attempt.config)
        failure = describe(error, attempt.run["graph"], _failed_node(snapshot))
        _log.warning("run.failed", error=failure.exception_type, node=failure.node)
        await self._finish(
            attempt,
            Step(
                bury(),
                {
                    "letter_id": uuid7(),
                    "reason": REASON_FAILED,
                    "error": failure.error(),
                    "node": failure.node,
                    "checkpoint_id": _checkpoint_id(snapshot),
                    "exception_type": failure.exception_type,
                    "message": failure.message,
                    "traceback": failure.traceback,
                    "fingerprint": failure.fingerprint,
                    "next_nodes": list(snapshot.next) if snapshot else [],
                    "hold": attempt.policy.on_dead_letter == "hold",
                },
            ),
        )

    async def _finish(self, attempt: Claimed, end: Step) -> None:
        """Ends the run and finds the thread's next, in one round trip; then tells whoever waits."""
        run = attempt.run
        held = {"run_id": run["id"], "attempt": run["attempt"]}
        row = await self._database.carry_out(
            _one_row(
                Step(lock_thread(), {"tenant": run["tenant"], "thread_id": run["thread_id"]}),
                Step(end.statement, {**end.parameters, **held}),
            )
        )
        if row is None:
            raise LeaseLost(str(run["id"]), run["attempt"])
        self._herald.announce(run["id"], next_bell(row))


def _one_row(lock: Step, transition: Step) -> Plan[Row | None]:
    """The plan of a transition under its thread's lock, in one round trip."""
    _, rows = yield Batch([lock, transition])
    return rows[0] if rows else None


def _durability(run: Row, policy: GraphPolicy) -> Durability:
    return cast(Durability, run["durability"] or policy.durability)


async def _graph_input(run: Row, saver: BoundSaver) -> Any:
    """What the graph is invoked with; None where the run has given its command already, and goes on.

    LangGraph knows an input that it has applied by the run's id, but takes a command again each time.
    """
    command = run["command"]
    if command is None:
        return run["input"]
    if run["attempt"] > 1 and await _took_command(run, saver):
        return None
    goto = command.get("goto", ())
    targets = goto if isinstance(goto, list) else [goto] if goto else []
    return Command(
        resume=command.get("resume"),
        update=command.get("update"),
        goto=[t if isinstance(t, str) else Send(t["node"], t["input"]) for t in targets],
    )


async def _took_command(run: Row, saver: BoundSaver) -> bool:
    """Whether the thread stands at a checkpoint of this run's, or holds what its command wrote."""
    head = await saver.aget_tuple({CONF: {"thread_id": run["thread_id"]}})
    if head is None:
        return False
    wrote = any(task_id == NULL_TASK_ID for task_id, _, _ in head.pending_writes or ())
    return wrote or head.metadata.get("run_id") == str(run["id"])


def _failed_node(snapshot: StateSnapshot | None) -> str | None:
    """The node whose error LangGraph saved; else the one that was to run; None outside any node."""
    if snapshot is None:
        return None
    for task in snapshot.tasks:
        if task.error is not None:
            return task.name
    return snapshot.next[0] if snapshot.next else None


def _checkpoint_id(snapshot: StateSnapshot | None) -> str | None:
    """The checkpoint at which the thread stands, if it has one."""
    if snapshot is None:
        return None
    checkpoint_id = snapshot.config.get(CONF, {}).get("checkpoint_id")
    return None if checkpoint_id is None else str(checkpoint_id)
