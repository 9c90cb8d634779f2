"""What a process that executes runs is made of, started and stopped as one."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeVar

import structlog
import uvloop

from threadmill.core.database import AsyncDatabase
from threadmill.core.doorbell import Bell, Doorbell
from threadmill.core.errors import GraphError
from threadmill.core.policy import GraphPolicy
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import announce_graph
from threadmill.graphs import GraphDescription, Registry
from threadmill.workers.attempts import Attempts, NodeThreads
from threadmill.workers.cancellations import Cancellations
from threadmill.workers.claims import BellDropped, Claimed, Claims, Next
from threadmill.workers.event_writer import EventWriter
from threadmill.workers.executor import STOP_GRACE, Executor, Outcome
from threadmill.workers.heartbeat import Heartbeat
from threadmill.workers.herald import Herald
from threadmill.workers.quarantine import Quarantine
from threadmill.workers.slots import Slots
from threadmill.workers.stuck import StuckWork
from threadmill.workers.sweeper import Sweeper
from threadmill.workers.taker import Taker
from threadmill.workers.task_events import TaskEvents

T = TypeVar("T")

# How long what was cancelled at the end may take to notice, in seconds.
LAST_WORDS = 2.0
# So late, in seconds, a second signal is heard while a worker drains.
SIGNALS_EVERY = 0.2
# For so many seconds a slot goes from one run of a tenant to the next, which costs less than to choose whose
# run is started; then it is anybody's. So shares that have come out wrong are right again after that time.
TURN = 1.0

_log = structlog.get_logger("threadmill.worker")


def settle() -> None:
    """Has Python's garbage collector pass over what the process has loaded by now.

    Most of what a worker holds are the modules that it has imported, which every full collection would read.
    """
    gc.collect()
    gc.freeze()


class Draining(Exception):
    """The worker takes no more runs; the bell is another's to answer."""


class Runtime:
    """An event loop in a thread, with everything that one process executes runs with.

    With the asyncio pool it is Celery's main process; with prefork, each child has its own. With `alone` it
    executes nothing but runs that must be alone, sweeps nothing and takes nothing by itself.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        limit: int | None = None,
        alone: bool = False,
        goes_on: bool = False,
        on_replace: Callable[[], None] = lambda: None,
        on_room: Callable[[], None] = lambda: None,
        on_node: Callable[[str], None] | None = None,
        task_events: TaskEvents | None = None,
    ) -> None:
        """limit: runs at once; None takes the settings'. goes_on: a slot whose run has succeeded goes on with
        the tenant's next; else it is free for the next bell. on_replace: the process is to be replaced, as a
        node will not end. on_room: there may be room for one more bell. on_node: is told each node as it
        begins. task_events: are told of runs."""
        self._settings = settings
        self._alone = alone
        self._goes_on = goes_on
        self._on_node = on_node
        self._task_events = task_events or TaskEvents()
        self._on_room = on_room
        self._limit = limit or settings.concurrency
        self._loop = uvloop.new_event_loop()
        self._node_threads = NodeThreads(self._limit)
        self._loop.set_default_executor(self._node_threads)
        self._thread = threading.Thread(target=self._run_loop, name="threadmill-loop", daemon=True)
        self._database = AsyncDatabase(settings)
        self._doorbell = Doorbell(settings)
        self._herald = Herald(settings, self._doorbell)
        self._attempts = Attempts()
        self._registry = Registry.read(settings.graphs_file)
        self._heartbeat = Heartbeat(
            settings,
            self._attempts,
            on_cut_off=lambda: self._call(self._cut_off),
            on_taken=lambda run_id, number: self._call(self._attempts.stop, run_id, number, "taken"),
            on_given_back=lambda bell: self._herald.announce(None, bell),
        )
        self._cancellations = Cancellations(
            settings, lambda run_id: self._call(self._attempts.stop, run_id, None, "taken")
        )
        self._sweeper = Sweeper(settings, self._doorbell, self._herald, self._policy)
        self._stuck = StuckWork(settings.drain_timeout, on_replace)
        self._events = EventWriter(settings)
        self._slots: Slots
        self._quarantine: Quarantine
        self._claims: Claims
        self._executor: Executor
        self._taker: Taker | None = None
        self._taking: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._slot_tasks: set[asyncio.Task[Any]] = set()

    @property
    def worker_id(self) -> uuid.UUID:
        """The id under which runs are claimed; another one after the worker was struck off."""
        return self._heartbeat.worker_id

    def start(self) -> None:
        """Loads and announces the graphs and enters the worker.

        Raises GraphConfigInvalid, DatabaseUnavailable and DatabaseNotMigrated.
        """
        self._registry.activate()
        self._thread.start()
        try:
            self.submit(self._begin()).result()
            self._heartbeat.start()
        except BaseException:
            self._stop_loop()
            raise
        self._herald.start()
        self._cancellations.start()
        if not self._alone:
            self._sweeper.start()
            self.submit(self._begin_taking()).result()

    def _run_loop(self) -> None:
        while True:
            try:
                return self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # Raised by a node, and asyncio lets these two end the loop, with every run that is on it.
                _log.error("loop.exit_refused", error=type(error).__name__)

    async def _begin(self) -> None:
        versions = await self._announce()
        self._slots = Slots(self._limit, self._on_room)
        self._quarantine = Quarantine(self._settings, self._database, self._herald, self._policy)
        self._claims = Claims(
            self._database,
            self._heartbeat,
            self._attempts,
            versions,
            # Sooner than the leader rings again, as what loses one bell may lose the next.
            patience=self._settings.ring_again_after / 2,
            alone=self._alone,
        )
        self._executor = Executor(
            self._settings,
            self._registry,
            self._database,
            self._herald,
            self._heartbeat,
            self._attempts,
            self._claims,
            self._stuck,
            self._events,
            what_next=self._what_next,
            on_node=self._on_node,
        )

    async def _begin_taking(self) -> None:
        self._taker = Taker(
            self._settings,
            self._database,
            self._slots,
            self._claims,
            redis_is_away=lambda: self._cancellations.redis_is_away,
            execute=lambda claimed: self._begin_task(self._execute_on(claimed)),
            answer=self._answer_quietly,
        )
        self._taking = asyncio.create_task(self._taker.take_on(), name="threadmill-taker")
        self._tasks = [asyncio.create_task(self._quarantine.work(), name="threadmill-quarantine")]

    def drain(self) -> None:
        """Hands over every run at its next checkpoint; what takes longer than `drain_timeout` is fenced."""
        draining = self.submit(self._drain())
        # Python runs a signal's handler in the main thread, and does not wake it where another thread was
        # reached, or where it was only about to wait: so it wakes by itself.
        while not draining.done():
            wait((draining,), timeout=SIGNALS_EVERY)
        draining.result()

    def stop(self) -> None:
        """Stops everything; runs that are under way are abandoned, so drain first."""
        self._sweeper.stop()
        self._cancellations.stop()
        self._herald.stop()
        self._heartbeat.stop()
        self._stop_loop()
        self._doorbell.close()

    async def _drain(self) -> None:
        self._executor.accepts = False
        if self._taker is not None:
            self._taker.stop()
        for task in self._tasks:
            task.cancel()
        self._attempts.request_drain()
        _log.info("worker.drains", runs=len(self._attempts))
        closing = asyncio.create_task(self._quarantine.close())
        if not await self._attempts.wait_until_idle(self._settings.drain_timeout):
            _log.warning("worker.drain_timeout", runs=len(self._attempts))
            self._attempts.stop_all("drain timeout")
            await self._attempts.wait_until_idle(2 * STOP_GRACE)
        await closing

    def _stop_loop(self) -> None:
        self.submit(self._end_tasks()).result()
        self._node_threads.shutdown(wait=False, cancel_futures=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end_tasks(self) -> None:
        await self._events.close()
        self._database.break_off()  # whoever waits for Postgres could not even be cancelled
        await self._database.close()  # first: the pool's own tasks are not to be cancelled
        for _ in range(2):  # what is cancelled may leave a task behind
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            if others:
                await asyncio.wait(others, timeout=LAST_WORDS)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine on the loop; the future may be waited for in any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(function, *arguments)

    async def answer(self, bell: Bell) -> str:
        """Executes the run of a bell when a slot is free, and then what follows on it; the run's status.

        Raises BellDropped and Draining, and RunFailed, RunPostponed, LeaseLost or whatever could not be
        recorded.
        """
        error = await self._execute_on(await self._claim(bell))
        if error is not None:
            raise error
        return "success"

    def answer_soon(self, bell: Bell, accept: Callable[[], None]) -> None:
        """`answer`, begun from any thread. accept: is called when the bell has been taken, and not where the
        worker drains first."""
        self._call(lambda: self._begin_task(self._answer_quietly(bell, accept)))

    async def _answer_quietly(self, bell: Bell, accept: Callable[[], None] = lambda: None) -> None:
        """`answer` where nobody listens: what came of it is in the ledger."""
        try:
            claimed = await self._claim(bell, accept)
        except (BellDropped, Draining):
            return
        except Exception as error:
            _log.error("bell.unanswered", run=str(bell.run_id), error=type(error).__name__)
            return
        await self._execute_on(claimed)

    async def _claim(self, bell: Bell, accept: Callable[[], None] = lambda: None) -> Claimed:
        """The run of the bell, and a slot taken for it. Raises BellDropped, and Draining before `accept`."""
        if bell.alone and not self._alone:
            accept()
            self._quarantine.line_up(bell)
            raise BellDropped
        await self._slots.wait()
        try:
            if not self._executor.accepts:
                raise Draining
            accept()
            claimed = await self._executor.claim(bell)
        except BaseException:
            self._free_slot()
            raise
        self._look()
        return claimed

    def _begin_task(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work, name="threadmill-slot")
        self._slot_tasks.add(task)
        task.add_done_callback(self._slot_tasks.discard)

    async def _execute_on(self, claimed: Claimed) -> Exception | None:
        """Executes the run in a slot that is taken for it, and then what follows on it.

        Returns what came of the run itself.
        """
        try:
            error, following = await self._execute(claimed)
            while following is not None:
                _, following = await self._execute(following)
        finally:
            self._free_slot()
        return error

    async def _execute(self, claimed: Claimed) -> Outcome:
        began = time.monotonic()
        self._task_events.began(claimed.run)
        outcome = await self._executor.execute(claimed)
        self._task_events.ended(claimed.run, outcome.error, time.monotonic() - began)
        return outcome

    def _free_slot(self) -> None:
        self._slots.give_back()
        self._look()

    def _look(self) -> None:
        if self._taker is not None and self._slots.free > 0:
            self._taker.look()

    def _what_next(self, since: float) -> Next:
        """What becomes of a slot whose run has succeeded. since: when it began with the tenant."""
        if not (self._goes_on and self._executor.accepts and self._heartbeat.is_alive):
            return Next.RING
        turn_is_over = time.monotonic() - since > TURN
        return Next.LEAVE if turn_is_over or self._slots.is_waited_for else Next.CLAIM

    @property
    def running(self) -> list[Row]:
        """The runs whose attempts are under way."""
        return self._attempts.runs()

    @property
    def has_room(self) -> bool:
        """Whether the bell of one more run would be answered soon."""
        return self._slots.has_room

    def _cut_off(self) -> None:
        """The lease has run out: everything stops, and whoever waits for Postgres stops waiting."""
        self._attempts.stop_all("cut off")
        self._database.break_off()

    def _policy(self, graph: str) -> GraphPolicy:
        """The graph's, or where it is not served here, that of one for which nobody has decided anything."""
        return self._registry.policy(graph) if graph in self._registry.names else GraphPolicy()

    async def _announce(self) -> dict[str, str]:
        """Writes what this process serves into the ledger, and returns the graphs' versions.

        A graph that cannot be loaded is left out.
        """
        await self._database.pool()
        versions = {}
        for name in self._registry.names:
            try:
                description = await self._registry.describe(name)
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
            "nodes": list(graph.nodes),
            "policy": graph.policy.model_dump(mode="json"),
        },
    )
    yield Batch([step])
