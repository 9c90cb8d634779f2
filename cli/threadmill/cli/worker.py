"""`threadmill worker`: execute runs in the foreground."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import structlog
import typer

from threadmill.cli.broker import check_broker
from threadmill.cli.extras import needs
from threadmill.cli.graphs import require_graphs_file
from threadmill.cli.invocation import JsonOption, invocation_of
from threadmill.cli.output import show
from threadmill.core.database import check_revision, connect
from threadmill.core.errors import BrokerUnavailable
from threadmill.core.settings import Settings

_log = structlog.get_logger("threadmill.worker")


def worker(
    context: typer.Context,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Runs at once; default: 100, or the number of cores."),
    ] = None,
    pool: Annotated[
        Literal["asyncio", "prefork"],
        typer.Option(help="One loop for all runs, or for graphs that block or burn CPU a process for each."),
    ] = "asyncio",
    graphs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What to serve; default: $THREADMILL_GRAPHS_FILE or langgraph.json."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Execute runs in the foreground.

    Told to stop, by SIGTERM or Ctrl-C, it claims no more, hands over each run that it holds at the next step
    of its graph, and ends with status 0; what reaches none within THREADMILL_DRAIN_TIMEOUT goes on elsewhere
    from its last checkpoint. A second Ctrl-C ends it at once: its runs go on elsewhere, seconds later.

    Postgres must answer when it starts. Redis need not: meanwhile runs are taken from the ledger.
    """
    settings = (
        invocation_of(context)
        .settings(concurrency=concurrency, graphs_file=graphs, log_format="json" if as_json else None)
        .located()
    )
    if pool == "prefork" and "concurrency" not in settings.model_fields_set:
        settings = settings.model_copy(update={"concurrency": os.cpu_count() or 1})
    with needs("worker"):
        from threadmill.graphs import Registry  # noqa: PLC0415
        from threadmill.workers.worker import leave, run_worker  # noqa: PLC0415
    require_graphs_file(settings, "name another with --graphs")
    # Celery would log these as its own failures, with tracebacks.
    Registry.read(settings.graphs_file)
    with connect(settings) as connection:
        check_revision(connection, settings)
    _warn_of_a_broker_that_is_away(settings)
    with _nothing_on_stdout() if as_json else nullcontext():
        status = run_worker(settings, pool)
    show(as_json, {"status": "stopped", "exit_status": status})
    leave(status)
    raise typer.Exit(status)


def _warn_of_a_broker_that_is_away(settings: Settings) -> None:
    """Says so by name, once. Celery then waits for it without end, and the runs are taken from the ledger."""
    try:
        check_broker(settings)
    except BrokerUnavailable as error:
        _log.warning("worker.broker_away", broker=error.address, reason=error.reason)


@contextmanager
def _nothing_on_stdout() -> Iterator[None]:
    """What Celery and the graphs print goes to stderr: by its number, as Celery keeps the stream itself."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
