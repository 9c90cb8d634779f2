"""Structured logs: a table of words for people at a terminal, one JSON object a line for everything else."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

from threadmill.core.settings import Settings


def configure_logs(settings: Settings) -> None:
    """Sends structlog's and the standard library's records to stderr in one form.

    What is bound with `structlog.contextvars` (tenant, thread, run, attempt while a run is executed) stands
    on every line, of a graph's own standard-library loggers too.
    """
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderers: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    # Celery logs the arguments and the result of each task at INFO; the executor says it in its own words.
    for name in ("celery.worker.strategy", "celery.app.trace", "alembic", "kombu", "httpx", "amqp"):
        logging.getLogger(name).setLevel(logging.WARNING)
