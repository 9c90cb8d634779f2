"""A trial of a dead letter: its run on a copy of the thread in memory, of which only what came of it is told.

The graph's own code runs in earnest: what its nodes do outside LangGraph's state and store is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.constants import CONF
from langgraph.pregel import Pregel

from threadmill.core.errors import DeadLetterNotFound, RunTimeout, WorkerLost
from threadmill.core.policy import Durability, GraphPolicy
from threadmill.workers.attempts import Attempt
from threadmill.workers.failure import describe
from threadmill.workers.invocation import CHECKPOINTER_KEY, command_of, configured, failed_node
from threadmill.workers.lease import Pool
from threadmill.workers.output import as_json, interrupts_of, select_output
from threadmill.workers.scratch_store import ScratchStore
from threadmill.workers.state_patch import NULL_TASK_ID, PatchWrite, patch_writes
from threadmill.workers.store import BoundStore
from threadmill.workers.thread_copy import ThreadCopy, copy_thread


class ScratchInvocation:
    """One trial under way. invoke and outcome take the place of an Invocation's end in the ledger."""

    def __init__(
        self,
        attempt: Attempt,
        policy: GraphPolicy,
        pool: Pool,
        on_node: Callable[[str], None] | None,
        max_bytes: int,
    ) -> None:
        """max_bytes: of the output and of each state that is told."""
        self._attempt = attempt
        self._policy = policy
        self._pool = pool
        self._on_node = on_node
        self._max_bytes = max_bytes
        self._nodes: list[str] = []
        self._graph: Pregel[Any, Any, Any, Any] | None = None
        self._copy: ThreadCopy | None = None
        self._config: RunnableConfig | None = None

    @property
    def policy(self) -> GraphPolicy:
        """The graph's, with the trial's own time limit."""
        seconds = float(self._attempt.run["metadata"]["timeout"])
        limit = seconds if self._policy.timeout is None else min(seconds, self._policy.timeout)
        return self._policy.model_copy(update={"timeout": limit})

    async def prepare(self) -> RunnableConfig:
        """The config for which the graph is made. Raises WorkerLost and DeadLetterNotFound."""
        run, lease = self._attempt.run, self._attempt.lease
        if run["attempt"] > 1:  # one worker is enough
            raise WorkerLost(run["attempt"] - 1, "in a trial")
        copied = await copy_thread(self._pool, run["tenant"], lease, run["scratch"], run["replay_mode"])
        if copied is None:
            raise DeadLetterNotFound(str(run["scratch"]))
        self._copy = copied
        store = ScratchStore(BoundStore(self._pool, run["tenant"], lease))
        # As the run that failed, and where it did: LangGraph knows its input by the id, nodes their items.
        shown = {**run, "id": copied.run_id, "thread_id": copied.thread_id}
        self._config = configured(shown, self._policy, copied.saver, store, self._begin)
        return self._config

    def _begin(self, node: str) -> None:
        self._nodes.append(node)
        if self._on_node is not None:
            self._on_node(node)

    async def invoke(self, graph: Pregel[Any, Any, Any, Any]) -> Any:
        """The graph's output. Raises what the graph raises."""
        self._graph = graph
        run, copied, config = self._attempt.run, self._copy, self._config
        assert copied is not None and config is not None
        if run["state_patch"] is not None:
            await self._patch_state(graph, copied, config)
        given = run["input"]
        if run["command"] is not None:
            given = None if copied.begun else command_of(run["command"])
        return await graph.ainvoke(
            given,
            config,
            context=run["context"],
            durability=cast(Durability, run["durability"] or self._policy.durability),
            control=self._attempt.control,
        )

    async def _patch_state(
        self, graph: Pregel[Any, Any, Any, Any], copied: ThreadCopy, config: RunnableConfig
    ) -> None:
        found = await copied.saver.aget_tuple(config) if copied.begun else None
        writes = await patch_writes(graph, config, found, self._attempt.run["state_patch"])
        assert found is not None
        _put(copied.saver, found, writes)

    async def succeeded(self, output: Any) -> dict[str, Any]:
        """What is told of a graph that returned."""
        asks = interrupts_of(output)
        kept = select_output(output, self._policy)
        return await self._outcome(
            "success" if asks is None else "interrupted",
            output=None if kept is None else as_json(kept, self._max_bytes),
            interrupts=asks,
        )

    async def failed(self, error: Exception) -> dict[str, Any]:
        """What is told of a graph that raised, was stopped, or could not even be loaded."""
        status = "timeout" if isinstance(error, RunTimeout) else "error"
        failure = describe(error, self._attempt.run["graph"], await self._failed_node())
        return await self._outcome(status, error=failure.error())

    async def _failed_node(self) -> str | None:
        if self._graph is None or self._config is None:
            return None
        try:
            return failed_node(await self._graph.aget_state(self._config))
        except Exception:  # the graph's own code; what it raised is told all the same
            return None

    async def _outcome(self, status: str, **told: Any) -> dict[str, Any]:
        copied = self._copy
        before = None if copied is None else await self._values(copied.before)
        after = None if copied is None else await self._values(copied.saver)
        return {"status": status, **told, "nodes": self._nodes, "before": before, "after": after}

    async def _values(self, saver: InMemorySaver) -> Any:
        """The state as JSON; None where the graph cannot tell."""
        graph, config = self._graph, self._config
        if graph is None or config is None:
            return None
        bound: Any = {**config, CONF: {**config[CONF], CHECKPOINTER_KEY: saver}}
        try:
            values = (await graph.aget_state(bound)).values
        except Exception:
            return None
        return as_json(values if isinstance(values, Mapping) else {"": values}, self._max_bytes)


def _put(saver: InMemorySaver, found: CheckpointTuple, writes: list[PatchWrite]) -> None:
    """`BoundSaver.put_patch`, in memory."""
    place = found.config[CONF]
    beside = saver.writes[place["thread_id"], place["checkpoint_ns"], place["checkpoint_id"]]
    for write in writes:
        value = saver.serde.dumps_typed(write.value)
        beside[NULL_TASK_ID, write.position] = (NULL_TASK_ID, write.channel, value, "")
