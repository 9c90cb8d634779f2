"""The Celery app that rings and hears doorbells; the same for producers and workers."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu.entity import Queue

from threadmill.core.settings import Settings

RUN_TASK = "threadmill.run"


def create_celery_app(settings: Settings, *, timeout: float | None = None) -> Celery:
    """A Celery app of these settings. Nothing is connected yet.

    timeout: seconds for the broker to take a connection, and to answer; None takes `connect_timeout`.
    What differs from Celery's defaults follows from Postgres being the truth: a message is a hint that
    may be lost or doubled, so there are no results, no late acknowledgement, no prefetching and no ETA.
    """
    app = Celery("threadmill", broker=settings.broker_url, set_as_current=False)
    patience = settings.connect_timeout if timeout is None else timeout
    app.conf.update(
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        result_backend=None,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue=settings.queue,
        # One queue on the default exchange: the routing key is the queue's name and nothing is declared.
        task_queues=[Queue(settings.queue, routing_key=settings.queue)],
        task_default_exchange="",
        task_default_routing_key=settings.queue,
        task_create_missing_queues=False,
        broker_connection_timeout=patience,
        broker_connection_retry_on_startup=True,
        broker_transport_options=_transport_options(settings, patience),
        worker_pool="threadmill.workers.pool:AsyncioPool",
        worker_consumer="threadmill.workers.consumer:Consumer",
        broker_connection_max_retries=None,  # for ever: meanwhile runs are taken from the ledger
        worker_concurrency=settings.concurrency,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # Flower switches task events on in the workers while it watches; unwatched, they cost nothing.
        worker_send_task_events=False,
        task_send_sent_event=False,
        # The run's lease decides who may go on, not the connection to the broker.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        enable_utc=True,
    )
    return app


def _transport_options(settings: Settings, timeout: float) -> dict[str, Any]:
    if not settings.broker_url.startswith(("redis", "rediss", "sentinel")):
        return {}
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "retry_on_timeout": False,
        # A bell that finds nobody is given up at once: the leader rings it later.
        "max_retries": 0,
    }
