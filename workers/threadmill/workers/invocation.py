"""How a run's graph is invoked: with which input, under which config, and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.constants import CONF
from langgraph.pregel import Pregel
from langgraph.runtime import Runtime as GraphRuntime
from langgraph.store.base import BaseStore
from langgraph.types import Command, Interrupt, Send, StateSnapshot, StreamMode

from threadmill.core.policy import Durability, GraphPolicy
from threadmill.core.statement import Row
from threadmill.workers.attempts import Attempt
from threadmill.workers.checkpointer import Aside, BoundSaver, stay_ahead_of
from threadmill.workers.event_writer import EventStream
from threadmill.workers.lease import Pool
from threadmill.workers.output import INTERRUPT_KEY
from threadmill.workers.state_patch import patch_writes
from threadmill.workers.store import BoundStore

# Keys of LangGraph's own in `configurable`: the ones with which its server hands a saver and a store to a
# graph that is compiled once for the process (langgraph._internal._constants).
CHECKPOINTER_KEY = "__pregel_checkpointer"
RUNTIME_KEY = "__pregel_runtime"
CACHE_KEY = "__pregel_cache"
STRICT_RESUME_KEY = "__pregel_strict_resume"

LAST_SEQ = 2**63 - 1


class Invocation:
    """One attempt's graph, bound to what it may write with; what binds it is not the caller's to choose."""

    def __init__(
        self,
        attempt: Attempt,
        policy: GraphPolicy,
        pool: Pool,
        on_node: Callable[[str], None] | None,
        events: EventStream | None,
    ) -> None:
        """events: where what the run is asked to tell goes; None where it is asked for nothing."""
        run = attempt.run
        self._attempt = attempt
        self._policy = policy
        self._events = events
        self._graph: Pregel[Any, Any, Any, Any] | None = None
        self._durability = cast(Durability, run["durability"] or policy.durability)
        self.saver = BoundSaver(
            pool,
            run["tenant"],
            attempt.lease,
            None if run["replay_mode"] == "resume" else _aside(run),
            background=self._durability != "sync",
            history=policy.history,
            head=attempt.head,
        )
        self.config = configured(
            run, policy, self.saver, BoundStore(pool, run["tenant"], attempt.lease), on_node
        )

    async def prepare(self) -> RunnableConfig:
        """The config for which the graph is made."""
        run = self._attempt.run
        aside = _aside(run)
        if aside is not None and run["replay_mode"] == "resume":
            # It was to go on from what it had written; but an earlier run of the thread that was replayed
            # after that was decided has gone first, and the thread stands where that one left it.
            if await self.saver.holds_writes_of(run["thread_id"], run["id"]):
                return self.config
            self.saver.ignore(aside)
        return self.config

    async def invoke(self, graph: Pregel[Any, Any, Any, Any]) -> Any:
        """The graph's output. Raises what the graph raises, and GraphDrained when it was asked to drain."""
        self._graph = graph
        run = self._attempt.run
        await self.saver.clear_base(run["thread_id"])
        if run["state_patch"] is not None:
            await self._patch_state(graph)
        options: dict[str, Any] = {
            "context": run["context"],
            "durability": self._durability,
            "control": self._attempt.control,
        }
        given = await _graph_input(run, self.saver)
        if self._events is None:
            return await graph.ainvoke(given, self.config, **options)
        return await _stream(graph, given, self.config, run, self._events, options)

    async def _patch_state(self, graph: Pregel[Any, Any, Any, Any]) -> None:
        """Changes the state from which the run goes on; once, as the run has no patch any more after it."""
        run = self._attempt.run
        # What is not the run's own is not its to patch; and a patch beside it would pass for its command.
        begun = await self.saver.holds_writes_of(run["thread_id"], run["id"])
        found = await self.saver.aget_tuple(self.config) if begun else None
        writes = await patch_writes(graph, self.config, found, run["state_patch"])
        assert found is not None
        await self.saver.put_patch(found, writes)

    async def snapshot(self) -> StateSnapshot | None:
        """Where the thread stands; None where the graph was never loaded."""
        return None if self._graph is None else await self._graph.aget_state(self.config)

    async def next_nodes(self, *, interrupted: bool) -> list[str]:
        """The nodes at which a graph that returned has stopped; [] where it ran to its end."""
        graph = self._graph
        assert graph is not None
        if not (interrupted or graph.interrupt_before_nodes or graph.interrupt_after_nodes):
            return []
        return list((await graph.aget_state(self.config)).next)


async def _stream(
    graph: Pregel[Any, Any, Any, Any],
    given: Any,
    config: RunnableConfig,
    run: Row,
    events: EventStream,
    options: Mapping[str, Any],
) -> Any:
    """What `ainvoke` returns, while what the run is asked to tell is told."""
    modes = set(run["stream_mode"])
    latest: Any = None
    interrupts: list[Interrupt] = []
    async for namespace, mode, payload in graph.astream(
        given,
        config,
        stream_mode=cast(list[StreamMode], sorted({*modes, "updates", "values"})),
        subgraphs=True,
        **options,
    ):
        if mode in modes and (not namespace or run["stream_subgraphs"]):
            events.write(mode, namespace, payload)
        if namespace:
            continue
        if mode == "values":
            latest = payload
        elif mode == "updates" and isinstance(payload, dict):
            interrupts += payload.get(INTERRUPT_KEY, ())
    await events.flush()
    if not interrupts:
        return latest
    return {**(latest if isinstance(latest, dict) else {}), INTERRUPT_KEY: interrupts}


def configured(
    run: Row,
    policy: GraphPolicy,
    saver: BaseCheckpointSaver[Any],
    store: BaseStore,
    on_node: Callable[[str], None] | None,
) -> RunnableConfig:
    """The config with which a run's graph is invoked. run: id, tenant, thread_id, attempt and config."""
    given: Mapping[str, Any] = run["config"] or {}
    config: dict[str, Any] = {
        "recursion_limit": policy.recursion_limit,
        **given,
        # Kept with every checkpoint, and for nodes to tell one attempt from another.
        "metadata": {**given.get("metadata", {}), "attempt": run["attempt"]},
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
            RUNTIME_KEY: GraphRuntime(store=store),
        },
    }
    if on_node is not None:
        config["callbacks"] = [_NodeListener(on_node)]
    return cast(RunnableConfig, config)


def _aside(run: Row) -> Aside | None:
    """What of the thread is of no effect on runs that begin on it; None where all of it counts."""
    dead_until = run["dead_until"]
    if dead_until is None:
        return None
    stay_ahead_of(dead_until)
    # A restart goes back behind those that came later.
    before = run["seq"] if run["replay_mode"] == "restart" else LAST_SEQ
    return Aside(run["base_checkpoint_id"], dead_until, before)


class _NodeListener(BaseCallbackHandler):
    """Tells which node begins, before it does."""

    run_inline = True

    def __init__(self, on_node: Callable[[str], None]) -> None:
        self._on_node = on_node

    def on_chain_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - LangChain's signature
        inputs: dict[str, Any],  # noqa: ARG002
        *,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        node = (metadata or {}).get("langgraph_node")
        if node is not None:
            self._on_node(str(node))


async def _graph_input(run: Row, saver: BoundSaver) -> Any:
    """What the graph is invoked with; None where the run has given its command already, and goes on.

    LangGraph knows an input that it has applied by the run's id, but takes a command again each time.
    """
    command = run["command"]
    if command is None:
        return run["input"]
    if run["attempt"] > 1 and await saver.holds_writes_of(run["thread_id"], run["id"]):
        return None
    return command_of(command)


def command_of(command: Mapping[str, Any]) -> Command[Any]:
    """The command as LangGraph takes it."""
    goto = command.get("goto", ())
    targets = goto if isinstance(goto, list) else [goto] if goto else []
    return Command(
        resume=command.get("resume"),
        update=command.get("update"),
        goto=[t if isinstance(t, str) else Send(t["node"], t["input"]) for t in targets],
    )


def failed_node(snapshot: StateSnapshot | None) -> str | None:
    """The node whose error LangGraph saved; else the one that was to run; None outside any node."""
    if snapshot is None:
        return None
    for task in snapshot.tasks:
        if task.error is not None:
            return task.name
    return snapshot.next[0] if snapshot.next else None


def checkpoint_id(snapshot: StateSnapshot | None) -> str | None:
    """The checkpoint at which the thread stands, if it has one."""
    if snapshot is None:
        return None
    found = snapshot.config.get(CONF, {}).get("checkpoint_id")
    return None if found is None else str(found)
