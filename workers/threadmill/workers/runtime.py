"""What a process that executes runs is made of, started and stopped as one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog
import uvloop
from uuid_utils.compat import uuid7

from threadmill.core.database import AsyncDatabase
from threadmill.core.doorbell import Bell, Doorbell
from threadmill.core.errors import GraphError
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Step
from threadmill.core.transitions import announce_graph
from threadmill.graphs import GraphDescription, Registry
from threadmill.workers.executor import Executor
from threadmill.workers.heartbeat import Heartbeat
from threadmill.workers.herald import Herald
from threadmill.workers.sweeper import Sweeper

T = TypeVar("T")

_log = structlog.get_logger("threadmill.worker")


class Runtime:
    """An event loop in a thread, with the pool, the graphs, the heartbeat and the sweeper of one process.

    With the asyncio pool it is Celery's main process; with prefork, each child has its own.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.worker_id = uuid7()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="threadmill-loop", daemon=True)
        self._database = AsyncDatabase(settings)
        self._doorbell = Doorbell(settings)
        self._herald = Herald(settings, self._doorbell)
        self._heartbeat = Heartbeat(settings, self.worker_id)
        self._sweeper = Sweeper(settings, self._doorbell)
        self._executor: Executor | None = None

    def start(self) -> None:
        """Loads and announces the graphs and enters the worker.

        Raises GraphConfigInvalid, DatabaseUnavailable and DatabaseNotMigrated.
        """
        registry = Registry.read(self._settings.graphs_file)
        registry.activate()
        self._thread.start()
        try:
            versions = self.submit(self._announce(registry)).result()
            self._heartbeat.start()
        except BaseException:
            self._stop_loop()
            raise
        self._herald.start()
        self._sweeper.start()
        self._executor = Executor(
            self._settings, registry, self._database, self._herald, self.worker_id, versions
        )

    def stop(self) -> None:
        """Stops everything; runs that are under way are abandoned, so wait for them first."""
        self._sweeper.stop()
        self._herald.stop()
        self._heartbeat.stop()
        self._stop_loop()
        self._doorbell.close()

    def _stop_loop(self) -> None:
        self.submit(self._database.close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine on the loop; the future may be waited for in any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def execute(self, bell: Bell) -> str:
        """See Executor.execute."""
        assert self._executor is not None, "start() comes first"
        return await self._executor.execute(bell)

    async def _announce(self, registry: Registry) -> dict[str, str]:
        """Writes what this process serves into the ledger, and returns the graphs' versions.

        A graph that cannot be loaded is left out.
        """
        await self._database.pool()
        versions = {}
        for name in registry.names:
            try:
                description = await registry.describe(name)
            except GraphError as error:
                _log.error("graph.not_served", graph=name, reason=str(error))
                continue
            await self._database.carry_out(_announcement(description))
            versions[name] = description.version
            _log.info("graph.served", graph=name, version=description.version)
        return versions


def _announcement(graph: GraphDescription) -> Plan[None]:
    step = Step(
        announce_graph(),
        {
            "name": graph.name,
            "version": graph.version,
            "topology_hash": graph.topology_hash,
            "input_schema": graph.input_schema,
            "channels": list(graph.channels),
            "policy": graph.policy.model_dump(mode="json"),
        },
    )
    yield Batch([step])
