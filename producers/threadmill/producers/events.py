"""Following a run: what its graph tells while it runs, shown only once the ledger vouches for who told it.

See `threadmill.core.event_stream` for why. An event is shown when the ledger says, after the event was read,
that the attempt which wrote it still has its lease, or ended the run with success. What an earlier attempt
had told is shown to those who were there, and not to those who come later.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import UUID

from threadmill.core.database import AsyncDatabase, Database
from threadmill.core.errors import NotStreamed, RunNotFound
from threadmill.core.event_stream import FIELDS, stream_key
from threadmill.core.keys import check_tenant
from threadmill.core.models import TERMINAL_STATUSES, Run, table_of
from threadmill.core.notice import connect_redis, connect_redis_async
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import bind_tenant
from threadmill.producers.queries import parse_run_id

# How long Redis is waited for until the ledger is asked again whether the run has ended, in seconds.
BLOCK_SECONDS = 0.5
# So that a flood of tokens is no flood of questions to the ledger: two looks are so far apart at least.
GAP_SECONDS = 0.02
BATCH = 1000

_runs = table_of(Run)
_STANDING = select(_runs.c.status, _runs.c.attempt, _runs.c.stream_mode).where(
    _runs.c.id == bindparam("run_id", type_=UUID(as_uuid=True))
)

Entries = Sequence[tuple[bytes, Mapping[bytes, bytes]]]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a run told.

    id: its place in the stream, for `after`. mode: LangGraph's stream mode. namespace: of the subgraph, empty
    for the graph itself. data: what LangGraph gives for the mode, as JSON. missed: how many events of the
    same attempt before this one are not to be had any more.
    """

    id: str
    attempt: int
    mode: str
    namespace: tuple[str, ...]
    data: Any
    missed: int


@dataclass
class _Follower:
    """Where one reader stands in one stream."""

    run_id: uuid.UUID
    tenant: str
    last: str
    goes_on: bool  # it has read some of the stream before
    numbers: dict[int, int] = field(default_factory=dict)  # the last of each attempt

    @property
    def key(self) -> str:
        return stream_key(self.run_id)

    def standing(self) -> Plan[Row]:
        """How the run stands. Raises RunNotFound and NotStreamed."""
        _, rows = yield Batch(
            [Step(bind_tenant(), {"tenant": self.tenant}), Step(_STANDING, {"run_id": self.run_id})]
        )
        if not rows:
            raise RunNotFound(str(self.run_id))
        if rows[0]["stream_mode"] is None:
            raise NotStreamed(str(self.run_id))
        return rows[0]

    def shown(self, entries: Entries, standing: Row) -> Iterator[Event]:
        """The events of what was read before the ledger was asked."""
        holds = standing["status"] in ("running", "success")
        for entry_id, fields in entries:
            self.last = entry_id.decode()
            attempt, number, mode, namespace, data = (fields[name.encode()] for name in FIELDS)
            if not holds or int(attempt) != standing["attempt"]:
                continue
            before = self.numbers.get(int(attempt), int(number) - 1 if self.goes_on else 0)
            self.numbers[int(attempt)] = int(number)
            yield Event(
                self.last,
                int(attempt),
                mode.decode(),
                tuple(json.loads(namespace)),
                json.loads(data),
                max(int(number) - before - 1, 0),
            )


def _follower(run_id: str | uuid.UUID, tenant: str, after: str | None) -> _Follower:
    return _Follower(parse_run_id(run_id), check_tenant(tenant), after or "0-0", after is not None)


def follow(
    settings: Settings, database: Database, run_id: str | uuid.UUID, tenant: str, after: str | None
) -> Iterator[Event]:
    """See `Producer.stream`."""
    follower = _follower(run_id, tenant, after)
    standing = database.carry_out(follower.standing())
    redis = connect_redis(settings, timeout=2 * BLOCK_SECONDS)
    if redis is None:
        raise NotStreamed(str(run_id))
    with redis:
        while True:
            looked = time.monotonic()
            try:
                found: Any = redis.xread({follower.key: follower.last}, count=BATCH, block=_block(standing))
            except (RedisError, OSError):
                found = []
                time.sleep(BLOCK_SECONDS)
            if not found and _has_ended(standing):
                return
            standing = database.carry_out(follower.standing())
            for _, entries in found:
                yield from follower.shown(entries, standing)
            time.sleep(_gap(standing, time.monotonic() - looked))


async def follow_async(
    settings: Settings, database: AsyncDatabase, run_id: str | uuid.UUID, tenant: str, after: str | None
) -> AsyncIterator[Event]:
    """See `Producer.stream`."""
    follower = _follower(run_id, tenant, after)
    standing = await database.carry_out(follower.standing())
    redis = connect_redis_async(settings, timeout=2 * BLOCK_SECONDS)
    if redis is None:
        raise NotStreamed(str(run_id))
    async with redis:
        while True:
            looked = time.monotonic()
            try:
                found: Any = await redis.xread(
                    {follower.key: follower.last}, count=BATCH, block=_block(standing)
                )
            except (RedisError, OSError):
                found = []
                await asyncio.sleep(BLOCK_SECONDS)
            if not found and _has_ended(standing):
                return
            standing = await database.carry_out(follower.standing())
            for _, entries in found:
                for event in follower.shown(entries, standing):
                    yield event
            await asyncio.sleep(_gap(standing, time.monotonic() - looked))


def _has_ended(standing: Row) -> bool:
    return standing["status"] in TERMINAL_STATUSES


def _block(standing: Row) -> int | None:
    """How long Redis waits for an event, in milliseconds; not at all once the run has ended."""
    return None if _has_ended(standing) else round(BLOCK_SECONDS * 1000)


def _gap(standing: Row, since: float) -> float:
    """For how many seconds the next look waits, so many `since` the last; for none once the run has ended."""
    return 0.0 if _has_ended(standing) else max(0.0, GAP_SECONDS - since)
