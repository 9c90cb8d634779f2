"""Where runs go that have cost workers: a child process that executes one run at a time.

What such a run may kill is the child, and nobody beside it; and the parent sees how the child ended, which
nobody sees of a worker. The child is a worker of its own, with its own heartbeat: a parent that is lost takes
nothing with it, as the child then hands over its run and ends.

The two talk in lines of JSON. To the child: first the settings, then one bell after the other. From it: its
worker's id before each run, each node that it begins, and that it is done. The end of its input tells the
child to drain and leave.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import uuid
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Any

import structlog

from threadmill.core.database import AsyncDatabase
from threadmill.core.doorbell import Bell
from threadmill.core.floors import BEGINNING
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Rows, Step
from threadmill.core.transitions import runs_of_worker, strike_off
from threadmill.workers.burial import Policies
from threadmill.workers.herald import Herald
from threadmill.workers.patience import patiently
from threadmill.workers.rescue import rescue

IDLE_SECONDS = 30.0
COMMAND = (sys.executable, "-P", "-m", "threadmill.workers.quarantine_process")

_log = structlog.get_logger("threadmill.quarantine")


class ChildEnded(Exception):
    """The child process is gone."""


class Quarantine:
    """The line before the child, and the child while it is needed. Belongs to the loop."""

    def __init__(
        self, settings: Settings, database: AsyncDatabase, herald: Herald, policies: Policies
    ) -> None:
        self._settings = settings
        self._database = database
        self._herald = herald
        self._policies = policies
        self._line: asyncio.Queue[Bell] = asyncio.Queue()
        self._lined_up: set[uuid.UUID] = set()
        self._child: Process | None = None
        self._worker_id: uuid.UUID | None = None
        self._node: str | None = None

    def line_up(self, bell: Bell) -> None:
        """Has the run executed when it is its turn. It is claimed only then, so others may be faster."""
        if bell.run_id not in self._lined_up:
            self._lined_up.add(bell.run_id)
            self._line.put_nowait(bell)

    async def work(self) -> None:
        """Executes what is lined up, until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS if self._child else None):
                    bell = await self._line.get()
            except TimeoutError:
                await self.close()
                continue
            try:
                await self._answer(bell)
            except Exception as error:  # whatever it is, it must not be the last that is executed here
                _log.warning("quarantine.failed", error=type(error).__name__)
                await self.close()
            finally:
                self._lined_up.discard(bell.run_id)

    async def _answer(self, bell: Bell) -> None:
        try:
            await self._execute(bell)
        except ChildEnded:
            await self._mourn()

    async def close(self) -> None:
        """Has the child hand over what it runs and end."""
        child = self._child
        if child is None:
            return
        assert child.stdin is not None
        child.stdin.close()
        try:
            async with asyncio.timeout(self._settings.drain_timeout + 10):
                await child.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                child.kill()
        self._child = None

    async def _execute(self, bell: Bell) -> None:
        if self._child is None or self._child.returncode is not None:  # it may have ended by itself
            self._child = await asyncio.create_subprocess_exec(*COMMAND, stdin=PIPE, stdout=PIPE)
            await self._send(self._settings.model_dump(mode="json"))
        await self._send([str(bell.run_id), *bell[1:]])
        while True:
            message = await self._hear()
            self._worker_id = uuid.UUID(message["worker"]) if "worker" in message else self._worker_id
            self._node = message.get("node")
            if "done" in message:
                return

    async def _send(self, message: Any) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(message).encode() + b"\n")
        try:
            await self._child.stdin.drain()
        except OSError:
            raise ChildEnded from None

    async def _hear(self) -> dict[str, Any]:
        assert self._child is not None
        assert self._child.stdout is not None
        line = await self._child.stdout.readline()
        if not line:
            raise ChildEnded
        message: dict[str, Any] = json.loads(line)
        return message

    async def _mourn(self) -> None:
        """Rescues at once what the child had claimed, and says how it ended."""
        assert self._child is not None
        status = await self._child.wait()
        self._child = None
        cause = f"exit code {status}" if status >= 0 else f"signal {-status} ({_signal_name(-status)})"
        _log.error("quarantine.child_lost", cause=cause, node=self._node)
        if self._worker_id is None:
            return
        step = Step(runs_of_worker(), {"worker_id": self._worker_id, "since": BEGINNING})
        gone = Step(strike_off(), {"worker_id": self._worker_id})
        _, runs = await patiently(lambda: self._database.carry_out(_rows(gone, step)))
        for run in runs:
            _, bell = await patiently(
                lambda run=run: self._database.carry_out(  # type: ignore[misc]
                    rescue(self._settings, run, cause, self._policies(run["graph"]), self._node)
                )
            )
            self._herald.announce(run["id"], bell)  # who waits for it, looks whether it has ended


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _rows(*steps: Step) -> Plan[list[Rows]]:
    return (yield Batch(steps))
