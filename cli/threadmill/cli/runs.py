"""`threadmill runs`: list, show, follow and cancel runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

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
from threadmill.cli.ledger import Ledger, RunRecord
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
    span,
    tell,
    text,
    took,
)
from threadmill.cli.standing import Standing
from threadmill.core.statement import Row, Rows
from threadmill.producers import CancelAction, Event, Producer, Run, RunError
from threadmill.producers.run import timestamp

app = typer.Typer(name="runs", help="List, show, follow and cancel runs.", no_args_is_help=True)

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
    with Ledger(invocation_of(context).settings(of=tenant)) as ledger:
        records = ledger.runs(
            tenant=tenant, thread_id=thread, status=status, graph=graph, limit=limit, after=after
        )
    show(as_json, [record.run.to_dict() for record in records], lambda: runs_table(records))
    if not as_json and len(records) == limit:
        note(f"more: --after {records[-1].run.id}")


@app.command("show", epilog="Example: `threadmill runs show 0199c0de-0000-7000-8000-000000000000`")
def show_run(
    context: typer.Context,
    run_id: RunArgument,
    tenant: TenantOption = None,
    attempts: Annotated[
        bool,
        typer.Option("--attempts", help="With each attempt in full; with --json, what else is known of it."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """One run: how it stands, what it waits for, and what became of each attempt that did not succeed."""
    with Ledger(invocation_of(context).settings(of=tenant)) as ledger:
        run, standing = ledger.record(run_id, tenant)
        rows = ledger.attempts(run.id) if attempts or not as_json else []
    document = run.to_dict()
    if attempts:
        document |= {**standing.to_dict(), "attempts": [_attempt_document(row) for row in rows]}
    show(
        as_json,
        document,
        lambda: run_view(run, standing),
        lambda: _attempts_view(rows, standing, in_full=attempts),
    )


@app.command(epilog="Example: `threadmill runs stream 0199c0de-0000-7000-8000-000000000000`")
def stream(
    context: typer.Context,
    run_id: RunArgument,
    after: Annotated[
        str | None, typer.Option(metavar="EVENT_ID", help="Only what was told after this event.")
    ] = None,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a run tells while it runs, as it comes, until it has ended; with --json, an object a line.

    It must have been enqueued with `--stream-mode`.
    """
    settings = invocation_of(context).settings(of=tenant)
    if tenant is None:
        with Ledger(settings) as ledger:
            tenant = ledger.run(run_id).tenant
    with Producer(settings) as producer:
        for event in producer.stream(run_id, tenant=tenant, after=after):
            tell(as_json, asdict(event), partial(_event_line, event))


def _event_line(event: Event) -> RenderableType:
    where = text(f" {'/'.join(event.namespace)}" if event.namespace else "", style="dim")
    missed = text(f" ({event.missed} before it are lost)" if event.missed else "", style="yellow")
    data = text(json.dumps(event.data, ensure_ascii=False))
    return Text.assemble((event.mode, "bold"), where, missed, " ", data)


@app.command(epilog="Example: `threadmill runs cancel 0199c0de-0000-7000-8000-000000000000`")
def cancel(
    context: typer.Context,
    run_id: RunArgument,
    action: Annotated[
        CancelAction, typer.Option(help="interrupt keeps what the run has done; rollback takes it back.")
    ] = "interrupt",
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """End an unfinished run as interrupted; what its attempt goes on to write is refused."""
    settings = invocation_of(context).settings(of=tenant)
    if tenant is None:
        with Ledger(settings) as ledger:
            tenant = ledger.run(run_id).tenant
    with Producer(settings) as producer:
        run = producer.cancel(run_id, tenant=tenant, action=action)
    show(as_json, run.to_dict(), lambda: run_view(run))


def runs_table(records: list[RunRecord]) -> RenderableType:
    """The runs, one a line."""
    rows: list[Cells] = [
        {
            "id": run.id,
            "tenant": text(run.tenant),
            "thread": text(run.thread_id),
            "graph": text(run.graph),
            "status": coloured(run.status),
            "waits": _waits_cell(run, standing),
            "spent": f"{standing.failures}/{standing.max_attempts}" if standing.failures else "",
            "seq": str(run.seq),
            "created": ago(run.created_at),
            "took": took(run.started_at, run.finished_at),
            "error": headline(f"{run.error.type}: {run.error.message}") if run.error else "",
        }
        for run, standing in records
    ]
    return listing(
        rows,
        elastic=("tenant", "thread", "graph", "error"),
        expendable=("took", "seq", "created", "spent", "error"),
        # Most runs succeed at once and wait for nothing.
        sparse=("waits", "spent"),
    )


def _waits_cell(run: Run, standing: Standing) -> str:
    alone = "alone" if standing.is_alone and not run.is_finished else ""
    return ", ".join(part for part in (standing.wait, alone) if part)


def run_view(run: Run, standing: Standing | None = None) -> RenderableType:
    """The run with its output or its error, and where that is known how it stands."""
    return facts(
        {
            "run": run.id,
            "status": coloured(run.status),
            **(_standing_facts(run, standing) if standing else {"attempt": str(run.attempt)}),
            "graph": text(run.graph),
            "tenant": text(run.tenant),
            "thread": text(run.thread_id),
            "seq": str(run.seq),
            "created": moment(run.created_at),
            "started": moment(run.started_at),
            "finished": moment(run.finished_at),
            "took": took(run.started_at, run.finished_at) or None,
            "metadata": pretty(run.metadata) if run.metadata else None,
            "output": None if run.output is None else pretty(run.output),
            "error": error_view(run.error) if run.error else None,
        }
    )


def _standing_facts(run: Run, standing: Standing) -> dict[str, RenderableType | None]:
    spent = f", {standing.failures} of {standing.max_attempts} spent" if run.attempt else ""
    losses = str(standing.worker_losses)
    if standing.is_alone and not run.is_finished:
        losses += "; so it runs alone, and one loss more makes it a dead letter"
    return {
        "waits": text("\n".join(standing.waits()), style="cyan") if run.status == "pending" else None,
        "attempt": f"{run.attempt}{spent}",
        "workers lost": losses if standing.worker_losses else None,
        "throttled": f"{span(standing.throttled)} in all" if standing.throttled else None,
        "replays": f"{standing.replays}, at last by {standing.replay_mode}" if standing.replays else None,
    }


def error_view(error: RunError) -> RenderableType:
    """Why, and at which node."""
    where = text(f" (in node {error.node})", style="dim") if error.node else Text()
    return Text.assemble(text(f"{error.type}: {error.message}", style="red"), where)


def _attempts_view(attempts: Rows, standing: Standing, *, in_full: bool) -> RenderableType:
    """A line for each attempt; under it the newest, or all of them, with what was raised."""
    if not attempts:
        return Group()
    shown = attempts if in_full else attempts[-1:]
    parts = (part for row in shown for part in _attempt_parts(row, standing))
    return Group(Text(), _attempts_table(attempts), *parts)


def _attempts_table(attempts: Rows) -> RenderableType:
    rows: list[Cells] = [
        {
            "attempt": str(row["attempt"]),
            "replay": str(row["replay"] or ""),
            "outcome": coloured(row["outcome"]),
            "cause": text(row["cause"]),
            "node": text(row["node"]),
            "ended": ago(row["ended_at"]),
            "took": took(row["started_at"], row["ended_at"]),
            "refused": str(row["fenced_writes"]) if row["fenced_writes"] else "",
            "worker": str(row["worker_id"] or ""),
        }
        for row in attempts
    ]
    return listing(
        rows, elastic=("cause", "node"), expendable=("worker", "refused", "ended"), sparse=("replay",)
    )


def _attempt_parts(attempt: Row, standing: Standing) -> Iterator[RenderableType]:
    yield Text()
    yield Text.assemble(
        (f"attempt {attempt['attempt']} ", "bold"),
        coloured(attempt["outcome"]),
        text(f" {ago(attempt['ended_at'])}", style="dim"),
        text(_replay_words(attempt, standing), style="dim"),
    )
    refused = attempt["fenced_writes"]
    yield facts(
        {
            "cause": text(attempt["cause"]) if attempt["cause"] else None,
            "worker": str(attempt["worker_id"]) if attempt["worker_id"] else None,
            "took": took(attempt["started_at"], attempt["ended_at"]) or None,
            "node": text(attempt["node"]) if attempt["node"] else None,
            "checkpoint": attempt["checkpoint_id"],
            "refused": f"{refused} writes, after it had lost its lease" if refused else None,
        }
    )
    if attempt["traceback"]:
        yield text(attempt["traceback"].rstrip())
    elif attempt["exception_type"]:
        yield text(f"{attempt['exception_type']}: {attempt['message']}")


def _replay_words(attempt: Row, standing: Standing) -> str:
    """In which replay the attempt was made; in which mode is known of the last one."""
    if not attempt["replay"]:
        return ""
    mode = standing.replay_mode if attempt["replay"] == standing.replays else None
    return f", in replay {attempt['replay']}" + (f" ({mode})" if mode else "")


def _attempt_document(attempt: Row) -> dict[str, Any]:
    return {
        "attempt": attempt["attempt"],
        "replay": attempt["replay"],
        "outcome": attempt["outcome"],
        "cause": attempt["cause"],
        "node": attempt["node"],
        "checkpoint_id": attempt["checkpoint_id"],
        "worker_id": str(attempt["worker_id"]) if attempt["worker_id"] else None,
        "started_at": timestamp(attempt["started_at"]),
        "ended_at": timestamp(attempt["ended_at"]),
        "fenced_writes": attempt["fenced_writes"],
        "exception_type": attempt["exception_type"],
        "message": attempt["message"],
        "traceback": attempt["traceback"],
    }
