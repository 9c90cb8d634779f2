"""Messages in the queue that are no doorbells: recorded as dead letters, by a thread of their own.

The message itself is acknowledged, so that it does not come back, and nothing of its body is kept: whoever
may write into the broker may write anything. A flood is bounded: messages of one kind (what was wrong, the
task's name) are one dead letter a minute for the whole fleet, with their number, as its id is made of the
kind and the minute; and a process tells no more than so many kinds apart in a minute.

The consumer never waits for Postgres. While that is away the records wait in memory, as many as there may be
kinds; more are only counted together.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

import psycopg
import structlog

from threadmill.core.database import connect
from threadmill.core.errors import ThreadmillError
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Step, carry_out
from threadmill.core.transitions import record_undeliverable

MINUTE = 60
# Kinds of messages that are told apart in a minute, and records that wait while Postgres is away.
MOST_KINDS = 100
# Between two tries to write, in seconds.
PATIENCE = 1.0
# How long the last records may take when the process stops, in seconds.
LAST_WORDS = 2.0
# What is kept of a name that came with a message.
MOST_CHARACTERS = 200

_log = structlog.get_logger("threadmill.worker")


@dataclass(frozen=True)
class Undeliverable:
    """What is known of a message. type: the error's name. message: our own words, as the error's text may
    quote the body."""

    type: str
    message: str
    task: str | None = None
    message_id: str | None = None
    queue: str | None = None
    content_type: str | None = None
    length: int | None = None

    def fingerprint(self) -> str:
        """The name of its group."""
        kind = json.dumps(["undeliverable", self.type, self.message, self.task])
        return hashlib.sha256(kind.encode()).hexdigest()[:16]

    def error(self) -> dict[str, Any]:
        """The dead letter's error; of several messages it shows the first."""
        return {
            "type": self.type,
            "message": self.message,
            "node": None,
            "task": self.task,
            "message_id": self.message_id,
            "queue": self.queue,
            "content_type": self.content_type,
            "length": self.length,
        }


def kept(name: object) -> str | None:
    """What is kept of a name that came with a message; None for what is no text."""
    if not isinstance(name, str):
        return None
    printable = "".join(character if character.isprintable() else "?" for character in name)
    return printable[:MOST_CHARACTERS].encode(errors="replace").decode()


def letter_id(fingerprint: str, minute: int) -> uuid.UUID:
    """The same id for all messages of a kind in a minute, in the order of time (UUIDv7, RFC 9562)."""
    digest = int.from_bytes(hashlib.sha256(f"{fingerprint} {minute}".encode()).digest()[:10], "big")
    high, low = digest >> 62 & 0xFFF, digest & (1 << 62) - 1
    return uuid.UUID(int=minute * MINUTE * 1000 << 80 | 0x7 << 76 | high << 64 | 0x2 << 62 | low)


class UndeliverableMessages:
    """The records of one process that are still to be written."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: dict[uuid.UUID, tuple[Undeliverable, int]] = {}
        self._minute, self._kinds = 0, set[str]()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def record(self, found: Undeliverable) -> None:
        """Takes the record; it is written soon. Blocks nothing, and never raises."""
        _log.warning(
            "worker.undeliverable",
            error=found.type,
            reason=found.message,
            task=found.task,
            message=found.message_id,
            content_type=found.content_type,
            length=found.length,
        )
        with self._changed:
            minute = int(time.time()) // MINUTE
            if minute != self._minute:
                self._minute, self._kinds = minute, set()
            fingerprint = found.fingerprint()
            if fingerprint not in self._kinds and len(self._kinds) >= MOST_KINDS:
                found = Undeliverable(found.type, f"{found.message} (of many kinds)")
                fingerprint = found.fingerprint()
            self._kinds.add(fingerprint)
            self._add(letter_id(fingerprint, minute), found, 1)
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(
                    target=self._work, name="threadmill-undeliverable", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def _add(self, key: uuid.UUID, found: Undeliverable, count: int) -> None:
        if key not in self._waiting and len(self._waiting) >= 2 * MOST_KINDS:
            key = next(reversed(self._waiting))  # Postgres has been away for long
        first, known = self._waiting.get(key, (found, 0))
        self._waiting[key] = first, known + count

    def close(self) -> None:
        """Writes what waits, if that can be done at once."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(LAST_WORDS)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                batch, self._waiting = self._waiting, {}
                stopping = self._stopping
            if batch and not self._write(batch) and not stopping:
                with self._changed:
                    for key, (found, count) in batch.items():
                        self._add(key, found, count)
                    self._changed.wait_for(lambda: self._stopping, PATIENCE)
            if stopping:
                return

    def _write(self, batch: dict[uuid.UUID, tuple[Undeliverable, int]]) -> bool:
        """Whether it was written. All or nothing, so that what is tried again is not counted twice."""
        try:
            with connect(self._settings.for_sessions()) as connection:
                connection.execute(f"set statement_timeout = {round(LAST_WORDS * 1000)}")
                carry_out(connection, _records(batch))
        except (ThreadmillError, psycopg.Error) as error:
            _log.warning("worker.undeliverable_unwritten", error=type(error).__name__, kinds=len(batch))
            return False
        return True


def _records(batch: dict[uuid.UUID, tuple[Undeliverable, int]]) -> Plan[None]:
    # In the order of ids: two processes that write the same ones must not wait for each other.
    yield Batch(
        [
            Step(
                record_undeliverable(),
                {
                    "letter_id": key,
                    "fingerprint": found.fingerprint(),
                    "error": json.dumps(found.error()),
                    "exception_type": found.type,
                    "task": found.task,
                    "count": count,
                },
            )
            for key, (found, count) in sorted(batch.items())
        ]
    )
