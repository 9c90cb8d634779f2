"""How this process comes by runs: by a bell, by taking what is ready, and by going on with the next one."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import Enum, auto
from typing import Any

import structlog

from threadmill.core.database import AsyncDatabase
from threadmill.core.doorbell import Bell, bell_of
from threadmill.core.floors import Floors, Looks
from threadmill.core.keys import thread_key
from threadmill.core.statement import Batch, Plan, Row, Rows, Step
from threadmill.core.transitions import (
    claim,
    claim_taken,
    lock_and_bind,
    pick_many,
    pick_next,
    ring_taken,
    unring,
)
from threadmill.workers.attempts import Attempts
from threadmill.workers.heads import UNREAD, Head, read_head, read_heads, read_taken_head
from threadmill.workers.heartbeat import Heartbeat
from threadmill.workers.patience import patiently

# A slot that goes on with its tenant looks from the beginning again after so many seconds.
LOOK_BACK_AFTER = 0.5

_log = structlog.get_logger("threadmill.claims")


class BellDropped(Exception):
    """The run is not to be started now, or not here; nothing is wrong."""


class Next(Enum):
    """What becomes of the slot whose run has ended with success.

    CLAIM: it goes on with the tenant's next run. RING: that one is anybody's. LEAVE: the slot is another's,
    and the tenant's next run waits for its turn.
    """

    CLAIM = auto()
    RING = auto()
    LEAVE = auto()


class Claimed:
    """A run that this process has claimed and is about to execute.

    head: where its thread stands. since: when its slot began with the tenant, on the monotonic clock.
    """

    def __init__(self, attempts: Attempts, run: Row, head: Head = UNREAD, since: float | None = None) -> None:
        self.run = run
        self.head = head
        self.since = time.monotonic() if since is None else since
        self._expected = ExitStack()
        # The ledger knows of it already, and the heartbeat compares.
        self._expected.enter_context(attempts.claiming(run["id"]))

    def begun(self) -> None:
        """Its attempt is held by now."""
        self._expected.close()


class Claims:
    """Claims runs for one process, under the id of its worker."""

    def __init__(
        self,
        database: AsyncDatabase,
        heartbeat: Heartbeat,
        attempts: Attempts,
        versions: Mapping[str, str],
        *,
        patience: float,
        alone: bool,
    ) -> None:
        """versions: of the graphs that this process serves. patience: seconds after which a bell counts as
        lost. alone: runs that must be are let in."""
        self._database = database
        self._heartbeat = heartbeat
        self._attempts = attempts
        self._versions = json.dumps(dict(versions))
        self._look = {"graphs": list(versions), "patience": patience}
        self._alone = alone
        self.looks = Looks()
        self._floors = Floors(LOOK_BACK_AFTER)

    async def claim(self, bell: Bell) -> Claimed:
        """The run of a bell. Raises BellDropped where it is not to be had."""
        where = {"tenant": bell.tenant, "thread_id": bell.thread_id}
        steps = [
            Step(lock_and_bind(), where),
            Step(claim(), {**where, "run_id": bell.run_id, **self._claimant()}),
            read_head(thread_key(bell.tenant, bell.thread_id)),
        ]
        with self._attempts.claiming(bell.run_id):
            _, runs, heads = await patiently(lambda: self._database.carry_out(_rows(steps)))
            if not runs:
                taking_back = [Step(unring(), {"run_id": bell.run_id, "tenant": bell.tenant})]
                await patiently(lambda: self._database.carry_out(_rows(taking_back)))
                raise BellDropped
            return Claimed(self._attempts, runs[0], heads[0] if heads else None)

    async def take(self, limit: int) -> list[Claimed]:
        """Up to so many runs that are ready, fair to the tenants."""
        began = self.looks.begin()
        look = Step(pick_many(), {**self._look, "limit": limit, **began})
        steps = [look, Step(claim_taken(), self._claimant())]
        with self._attempts.claiming_some():
            (picked,), runs = await self._database.carry_out(_rows(steps))
            self.looks.learn(began, picked)
            heads = await self._heads(runs)
            return [Claimed(self._attempts, run, head) for run, head in zip(runs, heads, strict=True)]

    async def _heads(self, runs: Rows) -> list[Head]:
        """Where the threads of these runs, which are this process's by now, stand."""
        keys = [thread_key(run["tenant"], run["thread_id"]) for run in runs]
        of_tenant: dict[str, list[str]] = defaultdict(list)
        for run, key in zip(runs, keys, strict=True):
            of_tenant[run["tenant"]].append(key)
        steps = [step for tenant, asked in of_tenant.items() for step in read_heads(tenant, asked)]
        try:
            results = await self._database.carry_out(_rows(steps)) if steps else []
        except Exception as error:  # the runs are claimed: each attempt reads for itself
            _log.warning("heads.unread", error=type(error).__name__, runs=len(runs))
            return [UNREAD] * len(runs)
        found = {row["thread_id"]: row for rows in results[1::2] for row in rows}
        return [found.get(key) for key in keys]

    def next_steps(self, tenant: str, thread_id: str, how: Next) -> list[Step]:
        """What goes on with the tenant's next run, in a transaction that is bound to the tenant and has ended
        one of this thread."""
        if how is Next.LEAVE:
            return []
        where = {"tenant": tenant, "thread_id": thread_id, "floor": self._floors.of(tenant)}
        pick = Step(pick_next(), {**self._look, **where})
        if how is Next.RING:
            return [pick, Step(ring_taken(), {"patience": self._look["patience"]})]
        return [pick, Step(claim_taken(), self._claimant()), read_taken_head()]

    def following(
        self, how: Next, steps: Sequence[Step], results: Sequence[Rows], since: float
    ) -> tuple[Claimed | None, Bell | None]:
        """The tenant's next run, and the bell to be rung, if there is one. steps: `next_steps`, with results.

        since: when the slot began with the tenant.
        """
        if how is Next.LEAVE:
            return None, None
        look, (picked,) = steps[0].parameters, results[0]
        self._floors.learn(look["tenant"], look["floor"], picked["found"], picked["took"])
        if how is Next.RING:
            _, bells = results
            return None, bell_of(bells[0]) if bells else None
        _, runs, heads = results
        if not runs:
            return None, None
        return Claimed(self._attempts, runs[0], heads[0] if heads else None, since), None

    def _claimant(self) -> dict[str, Any]:
        return {
            "worker_id": self._heartbeat.worker_id,
            "versions": self._versions,
            "alone": self._alone,
        }


def _rows(steps: Sequence[Step]) -> Plan[list[Rows]]:
    """The plan of steps that need nothing of each other, in one round trip."""
    return (yield Batch(steps))
