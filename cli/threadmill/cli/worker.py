"""`threadmill worker`: execute runs in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from threadmill.cli.broker import check_broker
from threadmill.cli.extras import needs
from threadmill.cli.invocation import JsonOption, invocation_of
from threadmill.cli.output import show
from threadmill.core.database import check_revision, connect


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
    """Execute runs in the foreground; told to stop (SIGTERM), it finishes those that it holds."""
    settings = (
        invocation_of(context)
        .settings(concurrency=concurrency, graphs_file=graphs, log_format="json" if as_json else None)
        .located()
    )
    with needs("worker"):
        from threadmill.graphs import Registry  # noqa: PLC0415
        from threadmill.workers.worker import run_worker  # noqa: PLC0415
    # Celery would log these as its own failures, with tracebacks, or wait for the broker without end.
    Registry.read(settings.graphs_file)
    with connect(settings) as connection:
        check_revision(connection, settings)
    check_broker(settings)
    status = run_worker(settings, pool)
    show(as_json, {"status": "stopped", "exit_status": status})
    raise typer.Exit(status)
