"""`threadmill runs`: list, show and cancel runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from threadmill.cli.invocation import (
    AfterOption,
    GraphOption,
    JsonOption,
    LimitOption,
    TenantOption,
    ThreadOption,
    invocation_of,
)
from threadmill.cli.ledger import Ledger
from threadmill.cli.output import (
    Cells,
    ago,
    coloured,
    facts,
    headline,
    listing,
    moment,
    note,
    pretty,
    show,
    text,
    took,
)
from threadmill.core.statement import Row, Rows
from threadmill.producers import Producer, Run, RunError

app = typer.Typer(name="runs", help="List, show and cancel runs.", no_args_is_help=True)

RunArgument = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run's id.", show_default=False)]


@app.command("list", epilog="Example: `threadmill runs list --tenant acme --status error`")
def list_runs(
    context: typer.Context,
    tenant: TenantOption = None,
    thread: ThreadOption = None,
    status: Annotated[
        str | None,
        typer.Option(help="Only these: pending, running, success, error, timeout or interrupted."),
    ] = None,
    graph: GraphOption = None,
    limit: LimitOption = 20,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Runs, the newest first."""
    with Ledger(invocation_of(context).settings()) as ledger:
        runs = ledger.runs(
            tenant=tenant, thread_id=thread, status=status, graph=graph, limit=limit, after=after
        )
    show(as_json, [run.to_dict() for run in runs], lambda: runs_table(runs))
    if not as_json and len(runs) == limit:
        note(f"more: --after {runs[-1].id}")


@app.command("show", epilog="Example: `threadmill runs show 0199c0de-0000-7000-8000-000000000000`")
def show_run(
    context: typer.Context,
    run_id: RunArgument,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """One run, with what became of each attempt that did not succeed."""
    with Ledger(invocation_of(context).settings()) as ledger:
        run = ledger.run(run_id, tenant)
        attempts = [] if as_json else ledger.attempts(run.id)
    show(as_json, run.to_dict(), lambda: run_view(run), lambda: _attempts_view(attempts))


@app.command(epilog="Example: `threadmill runs cancel 0199c0de-0000-7000-8000-000000000000`")
def cancel(
    context: typer.Context,
    run_id: RunArgument,
    action: Annotated[
        str, typer.Option(help="interrupt keeps what the run has done; rollback takes it back.")
    ] = "interrupt",
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """End an unfinished run as interrupted; what its attempt goes on to write is refused."""
    check_action(action)
    settings = invocation_of(context).settings()
    if tenant is None:
        with Ledger(settings) as ledger:
            tenant = ledger.run(run_id).tenant
    with Producer(settings) as producer:
        run = producer.cancel(run_id, tenant=tenant, action=action)
    show(as_json, run.to_dict(), lambda: run_view(run))


def runs_table(runs: list[Run]) -> RenderableType:
    """The runs, one a line."""
    rows: list[Cells] = [
        {
            "id": run.id,
            "tenant": text(run.tenant),
            "thread": text(run.thread_id),
            "graph": text(run.graph),
            "status": coloured(run.status),
            "seq": str(run.seq),
            "created": ago(run.created_at),
            "took": took(run.started_at, run.finished_at),
            "error": headline(f"{run.error.type}: {run.error.message}") if run.error else "",
        }
        for run in runs
    ]
    return listing(
        rows, elastic=("tenant", "thread", "graph", "error"), expendable=("took", "seq", "created", "error")
    )


def run_view(run: Run) -> RenderableType:
    """The run with its output or its error."""
    return facts(
        {
            "run": run.id,
            "status": coloured(run.status),
            "graph": text(run.graph),
            "tenant": text(run.tenant),
            "thread": text(run.thread_id),
            "seq": str(run.seq),
            "attempt": str(run.attempt),
            "created": moment(run.created_at),
            "started": moment(run.started_at),
            "finished": moment(run.finished_at),
            "took": took(run.started_at, run.finished_at) or None,
            "metadata": pretty(run.metadata) if run.metadata else None,
            "output": None if run.output is None else pretty(run.output),
            "error": error_view(run.error) if run.error else None,
        }
    )


def error_view(error: RunError) -> RenderableType:
    """Why, and at which node."""
    where = text(f" (in node {error.node})", style="dim") if error.node else Text()
    return Text.assemble(text(f"{error.type}: {error.message}", style="red"), where)


def _attempts_view(attempts: Rows) -> RenderableType:
    return Group(*(part for attempt in attempts for part in _attempt_parts(attempt)))


def _attempt_parts(attempt: Row) -> Iterator[RenderableType]:
    yield Text()
    yield Text.assemble(
        (f"attempt {attempt['attempt']} ", "bold"),
        coloured(attempt["outcome"]),
        text(f" {ago(attempt['ended_at'])}", style="dim"),
    )
    yield facts(
        {
            "worker": str(attempt["worker_id"]) if attempt["worker_id"] else None,
            "took": took(attempt["started_at"], attempt["ended_at"]) or None,
            "node": text(attempt["node"]) if attempt["node"] else None,
            "checkpoint": attempt["checkpoint_id"],
        }
    )
    if attempt["traceback"]:
        yield text(attempt["traceback"].rstrip())
    elif attempt["exception_type"]:
        yield text(f"{attempt['exception_type']}: {attempt['message']}")
