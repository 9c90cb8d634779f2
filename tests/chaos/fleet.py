"""Worker processes in slots, each behind proxies of its own, started again whenever they end."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from tests.chaos.evidence import Life
from tests.chaos.proxy import Proxies, Proxy
from tests.chaos.servers import DATABASE, Postgres, Redis

from threadmill.cli.launcher import tied
from threadmill.core.settings import Settings

RESTART_AFTER = 0.5
LOOK_EVERY = 0.2
# A drain takes 30 s at the most; who has not ended by then did not drain.
LAST_PATIENCE = 45.0
COMMAND = (
    "import sys; from threadmill.core.settings import Settings;"
    "from threadmill.workers.worker import run_worker;"
    "sys.exit(run_worker(Settings(), 'asyncio'))"
)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Slot:
    """A place for one worker process. Its connections outlive the process."""

    def __init__(self, number: int, postgres: Proxy, redis: Proxy) -> None:
        self.number, self.postgres, self.redis = number, postgres, redis
        self.process: subprocess.Popen[bytes] | None = None
        self.life: Life | None = None
        self.log: Path | None = None
        self.frozen = False
        self.start_at = 0.0
        self.look_at = 0.0

    @property
    def is_up(self) -> bool:
        """Whether its process serves, as far as is known, and nothing is being done to it."""
        return (
            self.life is not None and self.life.ready is not None and not self.frozen and not self.life.asked
        )


class Fleet:
    """`size` workers with these settings; `tick` keeps them running."""

    def __init__(
        self,
        settings: Settings,
        size: int,
        proxies: Proxies,
        postgres: Postgres,
        redis: Redis,
        environment: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._stopping = False
        self.lives: list[Life] = []
        self.slots = [Slot(n, proxies.to(postgres.socket), proxies.to(redis.socket)) for n in range(size)]

    def start(self, timeout: float = 60) -> None:
        """Returns when all of them serve."""
        ends_at = time.monotonic() + timeout
        while not all(slot.is_up for slot in self.slots):
            self.tick()
            words = [life.last_words for life in self.lives if life.ended]
            assert not words, f"a worker did not start: {words[0]}"
            assert time.monotonic() < ends_at, "the workers do not start in time"
            time.sleep(0.05)

    def tick(self) -> None:
        """Looks who has ended, who serves now and who is to be started."""
        for slot in self.slots:
            _note_children(slot)
            if slot.process is None:
                if not self._stopping and time.monotonic() >= slot.start_at:
                    self._launch(slot)
            elif slot.process.poll() is not None:
                self._bury(slot)
            elif slot.life is not None and slot.life.ready is None and _serves(slot):
                slot.life.ready = now()

    def kill(self, slot: Slot) -> None:
        self._signal(slot, signal.SIGKILL, asked=True)

    def ask_to_end(self, slot: Slot) -> None:
        self._signal(slot, signal.SIGTERM, asked=True)

    def freeze(self, slot: Slot) -> None:
        slot.frozen = True
        self._signal(slot, signal.SIGSTOP)

    def thaw(self, slot: Slot) -> None:
        slot.frozen = False
        self._signal(slot, signal.SIGCONT)

    def stop(self) -> None:
        """Ends all, by SIGTERM; by SIGKILL who does not."""
        self._stopping = True
        for slot in self.slots:
            slot.postgres.heal()
            slot.redis.heal()
            self.thaw(slot)
            self.ask_to_end(slot)
        ends_at = time.monotonic() + LAST_PATIENCE
        while any(slot.process for slot in self.slots):
            self.tick()
            if time.monotonic() > ends_at:
                for slot in self.slots:
                    self.kill(slot)
            time.sleep(0.05)

    def _launch(self, slot: Slot) -> None:
        values = {
            **self._settings.model_dump(mode="json"),
            "database_url": f"postgresql://postgres@127.0.0.1:{slot.postgres.port}/{DATABASE}",
            "broker_url": f"redis://127.0.0.1:{slot.redis.port}/0",
        }
        folder = self._settings.graphs_file.parent
        slot.log = folder / f"worker-{slot.number}-{len(self.lives)}.log"
        with slot.log.open("wb") as sink:
            slot.process = subprocess.Popen(
                tied([sys.executable, "-c", COMMAND], signal.SIGKILL),
                env={
                    **os.environ,
                    **{f"THREADMILL_{name.upper()}": _text(value) for name, value in values.items()},
                    **self._environment,
                },
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        slot.life = Life(slot.number, slot.process.pid, now())
        self.lives.append(slot.life)

    def _bury(self, slot: Slot) -> None:
        assert slot.process is not None and slot.life is not None and slot.log is not None
        slot.life.ended, slot.life.status = now(), slot.process.returncode
        slot.life.last_words = " / ".join(slot.log.read_text(errors="replace").splitlines()[-5:])[-2000:]
        slot.process, slot.frozen = None, False
        slot.start_at = time.monotonic() + RESTART_AFTER

    def _signal(self, slot: Slot, number: signal.Signals, *, asked: bool = False) -> None:
        if slot.process is None or slot.life is None or slot.process.poll() is not None:
            return
        slot.life.asked = slot.life.asked or asked
        slot.process.send_signal(number)


def _note_children(slot: Slot) -> None:
    """A quarantined run has a process of its own, a child of its worker's."""
    if slot.process is None or slot.life is None or time.monotonic() < slot.look_at:
        return
    slot.look_at = time.monotonic() + LOOK_EVERY
    with suppress(psutil.Error):
        slot.life.children |= {
            child.pid for child in psutil.Process(slot.process.pid).children(recursive=True)
        }


def _serves(slot: Slot) -> bool:
    return slot.log is not None and b"worker.ready" in slot.log.read_bytes()


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
