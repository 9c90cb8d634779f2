"""The Celery message that tells a worker that a run may be ready. Losing it or doubling it harms nothing."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import structlog
from kombu.exceptions import LimitExceeded, OperationalError
from kombu.pools import ProducerPool

from threadmill.core.broker import ConnectionPool
from threadmill.core.celery_app import RUN_TASK, create_celery_app
from threadmill.core.errors import BrokerUnavailable
from threadmill.core.settings import Settings
from threadmill.core.statement import Row

# How long ringing waits: for each answer of the broker, of which the first ring on a connection needs a few,
# and, before that, for one of the connections that its callers share. In seconds; less than one in all.
TIMEOUT = 0.3
# So many threads ring at once; the others wait for one of them.
CONNECTIONS = 10
# After a failure nothing is rung for so long, so that a thousand callers do not wait one after another.
AWAY_SECONDS = 1.0

_log = structlog.get_logger("threadmill.doorbell")


class Bell(NamedTuple):
    """Whom to ring for. It carries ids, never data."""

    run_id: uuid.UUID
    tenant: str
    thread_id: str
    graph: str
    alone: bool = False  # it has cost workers, and is to run where it can take nobody with it

    def to_json(self) -> str:
        """The bell as the payload of a Postgres notification."""
        return json.dumps([str(self.run_id), *self[1:]])

    @classmethod
    def from_json(cls, text: str) -> Bell:
        """The bell that `to_json` wrote."""
        return cls.of(*json.loads(text))

    @classmethod
    def of(cls, run_id: str, tenant: str, thread_id: str, graph: str, alone: bool = False) -> Bell:
        """The bell of a message's arguments."""
        return cls(uuid.UUID(run_id), tenant, thread_id, graph, alone)


def bell_of(row: Row) -> Bell:
    """The bell of a row that has the columns id, tenant, thread_id, graph and perhaps alone."""
    return Bell(row["id"], row["tenant"], row["thread_id"], row["graph"], row.get("alone", False))


def bells_of(rows: Iterable[Row]) -> list[Bell]:
    """The bells of such rows; those without an id have none."""
    return [bell_of(row) for row in rows if row["id"] is not None]


def shown(tenant: str, thread_id: str, graph: str) -> str:
    """What Flower shows as a run's arguments."""
    return f"tenant={tenant} thread={thread_id} graph={graph}"


def next_bell(row: Row) -> Bell | None:
    """The bell for the thread's next run in the row of a transition that ended one; None if there is none."""
    if row["next_id"] is None:
        return None
    return Bell(
        row["next_id"], row["next_tenant"], row["next_thread_id"], row["next_graph"], row["next_alone"]
    )


class Doorbell:
    """Rings bells. A bell that cannot be rung is no error: the leader's sweep rings it later."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app = create_celery_app(settings, timeout=TIMEOUT)
        self._away_until = float("-inf")
        connection = self._app.connection_for_write()
        self._address = connection.as_uri()  # without its password
        self._connections = ConnectionPool(connection, CONNECTIONS)  # type: ignore[no-untyped-call]
        self._producers = ProducerPool(self._connections, limit=CONNECTIONS)
        # LimitExceeded: all of its connections wait for a broker that does not answer. Errors of a channel:
        # the broker refuses, as a Redis does that is full.
        errors = (*connection.connection_errors, *connection.channel_errors)
        self._broker_errors = (OperationalError, LimitExceeded, OSError, *errors)

    def ring(self, bells: Sequence[Bell]) -> int:
        """Rings each bell, blocking; gives up at the first that the broker does not take.

        Returns how many were rung: none, for a moment, after the broker has failed to answer.
        """
        rung = 0
        if not bells or time.monotonic() < self._away_until:
            return rung
        try:
            with self._producers.acquire(block=True, timeout=TIMEOUT) as producer:
                for bell in bells:
                    message = self._message(bell)
                    producer.publish(
                        message.body,
                        serializer="json",
                        headers=message.headers,
                        routing_key=self._settings.queue,  # who listens has declared it
                        retry=False,
                        **message.properties,
                    )
                    rung += 1
        except self._broker_errors as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            _log.warning("doorbell.unreachable", error=type(error).__name__, rung=rung)
        return rung

    def _message(self, bell: Bell) -> Any:
        """The bell as a call of Celery's: its body, headers and properties.

        Asked for directly, as what `send_task` adds (routes, signals, results) is nothing to a bell.
        """
        return self._app.amqp.as_task_v2(
            str(bell.run_id),
            RUN_TASK,
            args=[str(bell.run_id), *bell[1:]],
            kwargs={},
            argsrepr=shown(bell.tenant, bell.thread_id, bell.graph),
            kwargsrepr="",
            ignore_result=True,
        )

    def waiting(self) -> int:
        """How many bells wait in the queue. Raises BrokerUnavailable."""
        try:
            with self._app.connection_for_read() as connection:
                try:
                    queue = connection.default_channel.queue_declare(self._settings.queue, passive=True)
                except connection.channel_errors:  # an empty queue does not exist in Redis
                    return 0
                return int(queue.message_count)
        except self._broker_errors as error:
            raise BrokerUnavailable(self._address, str(error)) from error

    def close(self) -> None:
        self._producers.force_close_all()
        self._connections.force_close_all()  # type: ignore[no-untyped-call]
        self._app.close()
