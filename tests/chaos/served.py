"""The graph that the workers serve under attack; copied beside langgraph.json, so it imports nothing of ours.

Each node writes its start and its end into `chaos.effects`, on a connection that no fault reaches but a
restart of Postgres, and after that it tries again. What it adds to the state carries the nonce of the
execution, so that every entry that is stored leads back to the execution that made it.
"""

from __future__ import annotations

import asyncio
import operator
import os
import random
import time
import uuid
from typing import Annotated, Any, TypedDict

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from psycopg_pool import AsyncConnectionPool, ConnectionPool

DATABASE_URL = os.environ.get("CHAOS_DATABASE_URL", "")
NAP = float(os.environ.get("CHAOS_NAP", "0.3"))
PATIENCE = 60.0
POOL: dict[str, Any] = {
    "kwargs": {"autocommit": True, "application_name": "effects"},
    "min_size": 1,
    "max_size": 4,
    "open": False,
}

# The lease's lock on the run's row: an effect that says `held` was committed before anybody else's claim.
RECORD = """
    with run as (
        select id, attempt, status, worker_id from threadmill.runs where id = %(run)s for share
    )
    insert into chaos.effects (run_id, node, kind, nonce, pid, attempt, held, at)
    select
        run.id, %(node)s, %(kind)s, %(nonce)s, %(pid)s, coalesce(%(attempt)s, run.attempt),
        run.status = 'running'
            and run.attempt = coalesce(%(attempt)s, run.attempt)
            and exists (select from chaos.workers w where w.id = run.worker_id and w.pid = %(pid)s),
        clock_timestamp()
    from run
    on conflict (nonce, kind) do nothing
"""


class State(TypedDict):
    said: Annotated[list[str], operator.add]


class Pools:
    """Opened at first use, each process its own."""

    on_loop: AsyncConnectionPool[Any] | None = None
    in_threads: ConnectionPool[Any] | None = None
    opening = asyncio.Lock()


class Execution:
    """One execution of a node: what it records, and what it adds to the state."""

    def __init__(self, node: str, config: RunnableConfig) -> None:
        self.row = {
            "run": config["configurable"]["run_id"],
            "node": node,
            "nonce": uuid.uuid4().hex,
            "pid": os.getpid(),
            "attempt": own_attempt(config),
        }

    @property
    def entry(self) -> str:
        return f"{self.row['node']} {self.row['run']} {self.row['nonce']}"

    async def record(self, kind: str) -> None:
        """Returns when it is committed."""
        ends_at = time.monotonic() + PATIENCE
        while True:
            try:
                async with Pools.opening:
                    if Pools.on_loop is None:
                        Pools.on_loop = AsyncConnectionPool(DATABASE_URL, **POOL)
                        await Pools.on_loop.open()
                async with Pools.on_loop.connection() as connection:
                    await connection.execute(RECORD, {**self.row, "kind": kind})
                return
            except psycopg.OperationalError:
                if time.monotonic() > ends_at:
                    raise
                await asyncio.sleep(0.1)

    def record_in_thread(self, kind: str) -> None:
        """`record` for a node that blocks a thread."""
        ends_at = time.monotonic() + PATIENCE
        while True:
            try:
                if Pools.in_threads is None:
                    Pools.in_threads = ConnectionPool(DATABASE_URL, **POOL)
                    Pools.in_threads.open()
                with Pools.in_threads.connection() as connection:
                    connection.execute(RECORD, {**self.row, "kind": kind})
                return
            except psycopg.OperationalError:
                if time.monotonic() > ends_at:
                    raise
                time.sleep(0.1)


def own_attempt(config: RunnableConfig) -> int | None:
    """The attempt that this execution belongs to, as far as a node can tell."""
    told = config.get("metadata", {}).get("attempt")
    saver = config["configurable"].get("__pregel_checkpointer")
    lease = getattr(saver, "_lease", None)
    return told if told is not None else getattr(lease, "attempt", None)


def nap() -> float:
    """Seconds; now and then long enough for most faults to fall into it."""
    return random.uniform(0.02, NAP) * (6 if random.random() < 0.05 else 1)


def works(node: str) -> Any:
    """An async node of this name."""

    async def work(state: State, config: RunnableConfig) -> dict[str, Any]:
        execution = Execution(node, config)
        await execution.record("start")
        await asyncio.sleep(nap())
        await execution.record("end")
        return {"said": [execution.entry]}

    return work


def settle(state: State, config: RunnableConfig) -> dict[str, Any]:
    execution = Execution("settle", config)
    execution.record_in_thread("start")
    time.sleep(nap())
    execution.record_in_thread("end")
    return {"said": [execution.entry]}


# receive → (left beside right) → settle, which blocks a thread → close
ledger = (
    StateGraph(State)
    .add_node("receive", works("receive"))
    .add_node("left", works("left"))
    .add_node("right", works("right"))
    .add_node("settle", settle)
    .add_node("close", works("close"))
    .add_edge(START, "receive")
    .add_edge("receive", "left")
    .add_edge("receive", "right")
    .add_edge(["left", "right"], "settle")
    .add_edge("settle", "close")
)
