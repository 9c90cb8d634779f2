"""A worker that does nothing: it claims what is ready and ends it with success, and runs no graph.

It goes the way of a real one through the ledger: the look for what is ready, the claim, and the end together
with the claim of the tenant's next run. Settings from the environment, the graphs as arguments.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from uuid_utils.compat import uuid7

from bench.contestant import WrongState
from threadmill.core.database import AsyncDatabase
from threadmill.core.floors import BEGINNING, FROM_THE_FIRST
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Rows, Step
from threadmill.core.transitions import (
    claim_taken,
    enlist,
    lock_and_bind,
    pick_many,
    pick_next,
    succeed,
)

READY = "idle_worker.ready"
# So many are claimed in one look, and wait for one that ends runs.
TAKEN = 16
# Seconds between two looks where there was nothing. A bell would wake a real worker as soon.
REST = 0.01


class IdleWorker:
    """Claims and ends runs of these graphs, as many at once as it has connections."""

    def __init__(self, settings: Settings, graphs: Sequence[str]) -> None:
        self._settings = settings
        self._database = AsyncDatabase(settings)
        self._versions = dict.fromkeys(graphs, "1")
        self._look = {"graphs": list(graphs), "patience": settings.ring_again_after}
        self._claimant = {"worker_id": uuid7(), "versions": json.dumps(self._versions), "alone": False}
        self._claimed: asyncio.Queue[Row] = asyncio.Queue(TAKEN)

    async def run(self) -> None:
        """Until it is killed. Raises WrongState for a run that it had claimed and could not end."""
        await self._database.carry_out(self._enlist())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take())
            for _ in range(self._settings.pool_size - 1):
                tasks.create_task(self._finish())
            print(READY, file=sys.stderr, flush=True)

    async def _take(self) -> None:
        while True:
            if not (runs := await self._database.carry_out(self._claim())):
                await asyncio.sleep(REST)
            for run in runs:
                await self._claimed.put(run)

    async def _finish(self) -> None:
        while True:
            run: Row | None = await self._claimed.get()
            while run is not None:
                run = await self._database.carry_out(self._end(run))

    def _enlist(self) -> Plan[None]:
        worker = {
            "worker_id": self._claimant["worker_id"],
            "host": platform.node(),
            "pid": os.getpid(),
            "queues": [self._settings.queue],
            "concurrency": self._settings.pool_size,
            "versions": self._versions,
        }
        yield Batch([Step(enlist(), worker)])

    def _claim(self) -> Plan[Rows]:
        pick = Step(pick_many(), {**self._look, "limit": TAKEN, **FROM_THE_FIRST})
        _, runs = yield Batch([pick, Step(claim_taken(), self._claimant)])
        return runs

    def _end(self, run: Row) -> Plan[Row | None]:
        """Returns the tenant's next run, which is claimed."""
        lane = {"tenant": run["tenant"], "thread_id": run["thread_id"]}
        _, ended, _, following = yield Batch(
            [
                Step(lock_and_bind(), lane),
                Step(succeed(), _success(run)),
                Step(pick_next(), {**self._look, **lane, "floor": BEGINNING}),
                Step(claim_taken(), self._claimant),
            ]
        )
        if not ended:
            raise WrongState(f"the lease of {run['id']} was lost")
        return following[0] if following else None


def _success(run: Row) -> dict[str, Any]:
    return {
        "run_id": run["id"],
        "attempt": run["attempt"],
        "output": {},
        "checkpoint_id": None,
        "thread_status": "idle",
        "interrupts": None,
        "next_nodes": [],
        "dependencies": [],
    }


if __name__ == "__main__":
    asyncio.run(IdleWorker(Settings(), sys.argv[1:]).run())
