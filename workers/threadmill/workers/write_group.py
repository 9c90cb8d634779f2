"""One attempt's checkpoint writes: those that arrive while others are under way go out together.

LangGraph saves in the background, so several writes of an attempt are often due at once. Each would be a
transaction; a group is one transaction in one round trip, as in a database's group commit: nothing is
delayed to wait for company, but while two groups of the process are under way the others grow. What is still
waiting when the attempt ends goes out with its end, in the same transaction (`take`). While Postgres is away,
what waits goes on waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import psycopg

from threadmill.core.policy import History
from threadmill.core.statement import Step, compiled
from threadmill.workers.checkpoint_writes import Binding, Write, condensed, statements
from threadmill.workers.lease import Lease, Pool, lease_lost
from threadmill.workers.patience import is_outage, patiently

# A write, and who waits until it is committed, if anybody does.
Waiting = tuple[Write, "asyncio.Future[None] | None"]


# So many groups of a process are under way at once. More would be smaller ones, and a transaction costs more
# than a write; and the pool's other connections are for claims and ends.
AT_ONCE = 2

_turns: WeakKeyDictionary[Pool, asyncio.Semaphore] = WeakKeyDictionary()


class WriteGroup:
    """Sends writes over one connection at a time, in the order in which they came."""

    def __init__(self, pool: Pool, binding: Binding, lease: Lease | None, history: History = "full") -> None:
        """history: which checkpoints of a group are kept; see GraphPolicy."""
        self._condenses = history == "durable"
        self._pool = pool
        self._turns = _turns.setdefault(pool, asyncio.Semaphore(AT_ONCE))
        self._binding = binding
        self._lease = lease
        self._waiting: list[Waiting] = []
        self._sender: asyncio.Task[None] | None = None
        self._sending = False
        self._failure: Exception | None = None  # of a write for which nobody waits

    def put(self, write: Write) -> None:
        """Has it written, and returns at once. Raises LeaseLost, or why an earlier one could not be."""
        self._add(write, None)

    async def write(self, write: Write) -> None:
        """Returns when the write is committed, however long Postgres is away.

        Raises LeaseLost, with nothing written, or Postgres' error.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(write, done)
        await done

    async def flush(self) -> None:
        """Returns when all that came by now is committed, or could not be."""
        while self._sender is not None:
            await asyncio.wait({self._sender})

    async def take(self) -> list[Write]:
        """What waits and has not been sent, in order; it is the caller's to write now.

        Returns when nothing is under way any more. Raises why an earlier write could not be made.
        """
        waiting, self._waiting = self._waiting, []
        if self._sender is not None and not self._sending:
            self._sender.cancel()  # it waits for its turn, and has nothing left to send
        await self.flush()
        self._raise_failure()
        return self._kept(waiting)

    def _add(self, write: Write, done: asyncio.Future[None] | None) -> None:
        if self._lease is not None:
            self._lease.check("checkpoint")
        self._raise_failure()
        self._waiting.append((write, done))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all(), name="threadmill-writes")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await patiently(self._send_next)
        except BaseException as error:  # the lease is lost meanwhile, or the process stops
            self._fail(self._waiting, error)
            self._waiting = []
            if not isinstance(error, Exception):
                raise
        finally:
            self._sender = None

    async def _send_next(self) -> None:
        """Sends all that waits by now. Raises Postgres' error if it is away; then everything still waits."""
        if self._lease is not None:
            self._lease.check("checkpoint")
        async with self._turns:
            self._sending = True
            try:
                async with self._pool.connection() as connection:
                    group, self._waiting = self._waiting, []
                    if group:  # else it was taken while this waited for a connection
                        await self._send_or_keep(connection, group)
            finally:
                self._sending = False

    async def _send_or_keep(
        self, connection: psycopg.AsyncConnection[object], group: Sequence[Waiting]
    ) -> None:
        try:
            await self._send(connection, group)
        except Exception:
            # Where it was committed after all, it is written a second time, to the same effect: so what
            # has been sent once must not be condensed with what came later.
            self._condenses = False
            self._waiting = [*(one for one in group if not _is_done(one)), *self._waiting]
            raise

    async def _send(self, connection: psycopg.AsyncConnection[object], group: Sequence[Waiting]) -> None:
        made = statements(self._binding, self._kept(group))
        try:
            if len(made) == 1:
                await _execute(connection, made[0])
            else:
                async with connection.pipeline():  # on an autocommit connection, one transaction
                    for statement in made:
                        await _execute(connection, statement)
        except Exception as error:
            if is_outage(error):
                raise
            lost = lease_lost(error, self._lease, "checkpoint")
            if lost is None and len(group) > 1 and not connection.broken:
                # One of them is refused for what it holds; the others are not to suffer for it.
                for one in group:
                    await self._send(connection, [one])
            else:
                self._fail(group, lost or error)
        else:
            for _, done in group:
                if done is not None and not done.done():  # whoever waited may have been cancelled
                    done.set_result(None)

    def _kept(self, group: Sequence[Waiting]) -> list[Write]:
        writes = [write for write, _ in group]
        return condensed(writes) if self._condenses else writes

    def _fail(self, group: Sequence[Waiting], error: BaseException) -> None:
        for _, done in group:
            if done is None:
                if isinstance(error, Exception) and self._failure is None:
                    self._failure = error
            elif done.done():
                continue
            elif isinstance(error, asyncio.CancelledError):
                done.cancel()
            else:
                done.set_exception(error)


def _is_done(waiting: Waiting) -> bool:
    _, done = waiting
    return done is not None and done.done()


async def _execute(connection: psycopg.AsyncConnection[object], step: Step) -> None:
    await connection.execute(compiled(step.statement).sql, step.parameters)
