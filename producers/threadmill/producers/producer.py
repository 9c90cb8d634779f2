"""The two clients that put runs in, `Producer` for code that blocks and `AsyncProducer` for asyncio."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, Unpack

from threadmill.core.doorbell import Bell
from threadmill.core.errors import InvalidOption, WaitTimeout
from threadmill.core.settings import Settings
from threadmill.core.statement import (
    AsyncCaller,
    SyncCaller,
    carry_out_within,
    carry_out_within_async,
)
from threadmill.producers import queries
from threadmill.producers.cancellation import CancelAction
from threadmill.producers.catalogue import Catalogue
from threadmill.producers.enqueue import enqueue, enqueue_within
from threadmill.producers.events import Event, follow, follow_async
from threadmill.producers.request import RunOptions, RunRequest, check_request
from threadmill.producers.run import Run
from threadmill.producers.shards import AsyncLedger, Ledger, Shards
from threadmill.producers.state import ThreadState, read_history, read_state

T = TypeVar("T")

_Inputs = Sequence[tuple[str, Any]]  # each with the name of its graph
History = list[dict[str, Any]]  # named here, as `list` is a method of the producers


def _check_requests(
    settings: Settings, requests: Iterable[Mapping[str, Any]], catalogue_of: Callable[[str], Catalogue]
) -> tuple[list[RunRequest], _Inputs]:
    """The requests, and the inputs that are still to be checked, as their graphs are to be read first."""
    checked, unchecked = [], []
    for index, request in enumerate(requests):
        try:
            checked.append(check_request(settings, **request))
        except TypeError as error:  # a keyword that enqueue does not take, or one that is missing
            reason = str(error).removeprefix("check_request() ")
            raise InvalidOption(f"requests[{index}]", sorted(request), reason) from None
        graph, catalogue = checked[-1].graph, catalogue_of(checked[-1].tenant)
        if catalogue.knows(graph):
            _check_inputs([(graph, request.get("input"))], catalogue)
        else:
            unchecked.append((graph, request.get("input")))
    return checked, unchecked


def _check_inputs(inputs: _Inputs, catalogue: Catalogue) -> None:
    for name, value in inputs:
        graph = catalogue.graph(name)
        if value is not None:
            graph.check_input(value)


class Producer:
    """Puts runs in and asks about them. Threads may share one; it connects at its first use.

    Every method that names a tenant sees and touches that tenant's rows only, by row-level security.
    All raise DatabaseUnavailable where Postgres does not answer within `connect_timeout`, and
    DatabaseNotMigrated.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Settings from the environment unless given. Raises SettingsInvalid and ServicesNotFound."""
        self._settings = settings or Settings()
        self._shards = Shards(self._settings, Ledger)

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back all connections."""
        for ledger in self._shards.made:
            ledger.close()

    def enqueue(
        self,
        graph: str,
        input: Any = None,  # noqa: A002 - the field's word
        *,
        tenant: str,
        thread_id: str,
        session: SyncCaller | None = None,
        **options: Unpack[RunOptions],
    ) -> Run:
        """The committed run, `pending`, or the run that has the same idempotency key.

        session: a SQLAlchemy Session or Connection, or a psycopg connection, whose transaction the run then
        belongs to: rolled back, there is no run and no bell; committed, the leader rings.
        multitask_strategy: where the thread has unfinished runs, wait for them (enqueue), refuse (reject), or
        cancel them all with this action (interrupt, rollback) and be the next.
        Raises the errors under InvalidRequest, IdempotencyConflict, ThreadBusy, TenantQuotaExceeded and
        QuotaExceeded; then nothing is written.
        """
        request = {"graph": graph, "input": input, "tenant": tenant, "thread_id": thread_id, **options}
        return self.enqueue_many([request], session=session)[0]

    def enqueue_many(
        self, requests: Iterable[Mapping[str, Any]], *, session: SyncCaller | None = None
    ) -> list[Run]:
        """The committed runs in the order of the requests, which are mappings with `enqueue`'s names.

        One transaction: all of them or none, to the effect of one after the other: a request that interrupts
        also cancels the runs of those before it on its thread. Raises what `enqueue` raises.
        """
        checked, unchecked = _check_requests(self._settings, requests, self._catalogue_of)
        if not checked:
            return []
        ledger = self._shards.of_all(request.tenant for request in checked)
        if unchecked:
            ledger.database.carry_out(ledger.catalogue.read())
            _check_inputs(unchecked, ledger.catalogue)
        with ledger.quotas.refusing():
            if session is not None:
                plan = enqueue_within(checked, ledger.catalogue, ledger.quotas, ledger.floors)
                return carry_out_within(session, plan).runs
            plan = enqueue(checked, ledger.catalogue, ledger.quotas, ledger.floors)
            enqueued = ledger.database.carry_out(plan)
        ledger.publisher.tell_cancelled(*enqueued.cancelled)
        ledger.doorbell.ring(enqueued.bells)
        return enqueued.runs

    def _catalogue_of(self, tenant: str) -> Catalogue:
        return self._shards.of(tenant).catalogue

    def get(self, run_id: str | uuid.UUID, *, tenant: str) -> Run:
        """The run as it stands. Raises RunNotFound, also for another tenant's."""
        return self._shards.of(tenant).database.carry_out(queries.get(run_id, tenant))

    def list(
        self,
        *,
        tenant: str,
        thread_id: str | None = None,
        status: str | None = None,
        graph: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Run]:
        """A page of the tenant's runs, newest first. after: the id of the last run of the page before."""
        return self._shards.of(tenant).database.carry_out(
            queries.list_runs(
                tenant, thread_id=thread_id, status=status, graph=graph, limit=limit, after=after
            )
        )

    def cancel(self, run_id: str | uuid.UUID, *, tenant: str, action: CancelAction = "interrupt") -> Run:
        """The run, now `interrupted`. What a running attempt goes on to write is refused.

        action: interrupt keeps the checkpoints that the run has written; rollback removes them, and the
        thread stands where it stood before. Items of the store stay in any case.
        Raises InvalidOption, RunNotFound, and NotCancellable for a finished run.
        """
        ledger = self._shards.of(tenant)
        run, bells = ledger.database.carry_out(queries.cancel_run(run_id, tenant, action))
        ledger.publisher.tell_cancelled(run.id)
        ledger.doorbell.ring(bells)
        return run

    def state(self, tenant: str, thread_id: str) -> ThreadState:
        """The thread's state as JSON. Raises ThreadNotFound."""
        return self._shards.of(tenant).database.carry_out(read_state(tenant, thread_id))

    def history(self, tenant: str, thread_id: str, *, limit: int = 100, after: str | None = None) -> History:
        """The thread's checkpoints, newest first. after: the last checkpoint id of the page before."""
        queries.check_page(limit, None)
        return self._shards.of(tenant).database.carry_out(read_history(tenant, thread_id, limit, after))

    def wait(self, run_id: str | uuid.UUID, *, tenant: str, timeout: float | None = None) -> Run:
        """The finished run. timeout: seconds, None waits for ever. Raises WaitTimeout and RunNotFound."""
        ends_at = time.monotonic() + (float("inf") if timeout is None else timeout)
        with self._shards.of(tenant).notices.of(str(run_id)) as wait:
            while True:
                run = self.get(run_id, tenant=tenant)
                left = ends_at - time.monotonic()
                if run.is_finished:
                    return run
                if left <= 0:
                    raise WaitTimeout(run.id, run.status, timeout or 0)
                wait(left)

    def stream(self, run_id: str | uuid.UUID, *, tenant: str, after: str | None = None) -> Iterator[Event]:
        """What the run tells while it runs, as it comes, until it has ended; `get` then has how it ended.

        For runs that were enqueued with `stream_mode`. after: the id of the last event that is not wanted any
        more; None begins with what there is. An event is shown only while its attempt holds the run's lease
        or once that attempt has succeeded: none of a worker that was frozen and given up. Where Redis loses
        events, `missed` of the next one counts them.
        Raises RunNotFound and NotStreamed.
        """
        ledger = self._shards.of(tenant)
        return follow(ledger.settings, ledger.database, run_id, tenant, after)


class AsyncProducer:
    """`Producer` for asyncio: the same surface, awaited."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Settings from the environment unless given. Raises SettingsInvalid and ServicesNotFound."""
        self._settings = settings or Settings()
        self._shards = Shards(self._settings, AsyncLedger)

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Gives back all connections."""
        for ledger in self._shards.made:
            await ledger.close()

    async def enqueue(
        self,
        graph: str,
        input: Any = None,  # noqa: A002 - the field's word
        *,
        tenant: str,
        thread_id: str,
        session: AsyncCaller | None = None,
        **options: Unpack[RunOptions],
    ) -> Run:
        """See Producer.enqueue; session: an AsyncSession, AsyncConnection or psycopg AsyncConnection."""
        request = {"graph": graph, "input": input, "tenant": tenant, "thread_id": thread_id, **options}
        return (await self.enqueue_many([request], session=session))[0]

    async def enqueue_many(
        self, requests: Iterable[Mapping[str, Any]], *, session: AsyncCaller | None = None
    ) -> list[Run]:
        """See Producer.enqueue_many."""
        checked, unchecked = _check_requests(self._settings, requests, self._catalogue_of)
        if not checked:
            return []
        ledger = self._shards.of_all(request.tenant for request in checked)
        if unchecked:
            await ledger.database.carry_out(ledger.catalogue.read())
            _check_inputs(unchecked, ledger.catalogue)
        with ledger.quotas.refusing():
            if session is not None:
                plan = enqueue_within(checked, ledger.catalogue, ledger.quotas, ledger.floors)
                return (await carry_out_within_async(session, plan)).runs
            plan = enqueue(checked, ledger.catalogue, ledger.quotas, ledger.floors)
            enqueued = await ledger.database.carry_out(plan)
        await _announce(ledger, enqueued.cancelled, enqueued.bells)
        return enqueued.runs

    def _catalogue_of(self, tenant: str) -> Catalogue:
        return self._shards.of(tenant).catalogue

    async def get(self, run_id: str | uuid.UUID, *, tenant: str) -> Run:
        """See Producer.get."""
        return await self._shards.of(tenant).database.carry_out(queries.get(run_id, tenant))

    async def list(
        self,
        *,
        tenant: str,
        thread_id: str | None = None,
        status: str | None = None,
        graph: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Run]:
        """See Producer.list."""
        return await self._shards.of(tenant).database.carry_out(
            queries.list_runs(
                tenant, thread_id=thread_id, status=status, graph=graph, limit=limit, after=after
            )
        )

    async def cancel(
        self, run_id: str | uuid.UUID, *, tenant: str, action: CancelAction = "interrupt"
    ) -> Run:
        """See Producer.cancel."""
        ledger = self._shards.of(tenant)
        run, bells = await ledger.database.carry_out(queries.cancel_run(run_id, tenant, action))
        await _announce(ledger, [run.id], bells)
        return run

    async def state(self, tenant: str, thread_id: str) -> ThreadState:
        """See Producer.state."""
        return await self._shards.of(tenant).database.carry_out(read_state(tenant, thread_id))

    async def history(
        self, tenant: str, thread_id: str, *, limit: int = 100, after: str | None = None
    ) -> History:
        """See Producer.history."""
        queries.check_page(limit, None)
        return await self._shards.of(tenant).database.carry_out(read_history(tenant, thread_id, limit, after))

    async def wait(self, run_id: str | uuid.UUID, *, tenant: str, timeout: float | None = None) -> Run:
        """See Producer.wait."""
        ends_at = time.monotonic() + (float("inf") if timeout is None else timeout)
        async with self._shards.of(tenant).notices.of(str(run_id)) as wait:
            while True:
                run = await self.get(run_id, tenant=tenant)
                left = ends_at - time.monotonic()
                if run.is_finished:
                    return run
                if left <= 0:
                    raise WaitTimeout(run.id, run.status, timeout or 0)
                await wait(left)

    def stream(
        self, run_id: str | uuid.UUID, *, tenant: str, after: str | None = None
    ) -> AsyncIterator[Event]:
        """See Producer.stream."""
        ledger = self._shards.of(tenant)
        return follow_async(ledger.settings, ledger.database, run_id, tenant, after)


async def _announce(ledger: AsyncLedger, cancelled: Sequence[uuid.UUID | str], bells: Sequence[Bell]) -> None:
    def tell_and_ring() -> None:
        ledger.publisher.tell_cancelled(*cancelled)
        ledger.doorbell.ring(bells)

    if cancelled or bells:  # Celery's client blocks
        await asyncio.to_thread(tell_and_ring)
