"""`threadmill threads`: list threads, show one's state and history."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import RenderableType

from threadmill.cli.invocation import (
    AfterOption,
    JsonOption,
    LimitOption,
    OwnerOption,
    TenantOption,
    invocation_of,
)
from threadmill.cli.ledger import Ledger, RunRecord
from threadmill.cli.output import Cells, ago, coloured, facts, listing, moment, note, pretty, show, text
from threadmill.cli.runs import runs_table
from threadmill.core.keys import thread_key
from threadmill.core.statement import Row, Rows
from threadmill.producers import Producer, ThreadState
from threadmill.producers.run import timestamp

app = typer.Typer(name="threads", help="List threads, show their state and history.", no_args_is_help=True)

# How many of a thread's runs are shown with it; `runs list` has the others.
RUNS_SHOWN = 20

ThreadArgument = Annotated[str, typer.Argument(metavar="THREAD", help="The thread's id.", show_default=False)]


@app.command("list", epilog="Example: `threadmill threads list --tenant acme --held`")
def list_threads(
    context: typer.Context,
    tenant: TenantOption = None,
    status: Annotated[str | None, typer.Option(help="Only these: idle, busy, interrupted or error.")] = None,
    held: Annotated[bool, typer.Option("--held", help="Only those held by a dead letter.")] = False,
    limit: LimitOption = 20,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="The last thread of the page before; without --tenant: tenant:thread."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Threads, by tenant and id; those that a dead letter holds with since when, and how many runs wait."""
    with Ledger(invocation_of(context).settings(of=tenant)) as ledger:
        threads = ledger.threads(tenant=tenant, status=status, held=held, limit=limit, after=after)
    show(as_json, [_document(thread) for thread in threads], lambda: _threads_table(threads))
    if not as_json and len(threads) == limit:
        last = threads[-1]
        note(
            f"more: --after {last['thread_id'] if tenant else thread_key(last['tenant'], last['thread_id'])}"
        )


@app.command("show", epilog="Example: `threadmill threads show ticket-42 --tenant acme`")
def show_thread(
    context: typer.Context, thread: ThreadArgument, tenant: OwnerOption, as_json: JsonOption = False
) -> None:
    """What a thread has come to: its state, what it waits for, what holds it, its last runs."""
    settings = invocation_of(context).settings(of=tenant)
    with Producer(settings) as producer, Ledger(settings) as ledger:
        state = producer.state(tenant, thread)
        row = ledger.thread(tenant, thread)
        head = ledger.head(tenant, thread)
        records = ledger.runs(tenant=tenant, thread_id=thread, limit=RUNS_SHOWN)
    document = {
        **state.to_dict(),
        **_lane_document(row),
        "waits_for": head.run.id if head else None,
        "waits_until": timestamp(head.standing.waits_until) if head else None,
        "runs": [record.run.to_dict() for record in records],
    }
    show(as_json, document, lambda: _state_view(state, row, head), lambda: runs_table(records))


@app.command(epilog="Example: `threadmill threads history ticket-42 --tenant acme --limit 5`")
def history(
    context: typer.Context,
    thread: ThreadArgument,
    tenant: OwnerOption,
    limit: LimitOption = 20,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """A thread's checkpoints, the newest first, with the run that wrote each."""
    with Producer(invocation_of(context).settings(of=tenant)) as producer:
        checkpoints = producer.history(tenant, thread, limit=limit, after=after)
    show(as_json, checkpoints, lambda: _history_table(checkpoints))
    if not as_json and len(checkpoints) == limit:
        note(f"more: --after {checkpoints[-1]['checkpoint_id']}")


def _document(thread: Row) -> dict[str, Any]:
    return {
        "tenant": thread["tenant"],
        "thread_id": thread["thread_id"],
        "status": thread["status"],
        **_lane_document(thread),
        "next": list(thread["next_nodes"]),
        "interrupts": thread["interrupts"] or [],
        "metadata": thread["metadata"],
        "created_at": timestamp(thread["created_at"]),
        "updated_at": timestamp(thread["updated_at"]),
    }


def _lane_document(thread: Row) -> dict[str, Any]:
    """What holds the thread, and how many of its runs wait for that."""
    return {
        "held_by": str(thread["held_by"]) if thread["held_by"] else None,
        "held_since": timestamp(thread["held_since"]),
        "held_until": timestamp(thread["held_until"]),
        "held_runs": thread["held_runs"] if thread["held_by"] else 0,
    }


def _threads_table(threads: Rows) -> RenderableType:
    rows: list[Cells] = [
        {
            "tenant": text(thread["tenant"]),
            "thread": text(thread["thread_id"]),
            "status": coloured(thread["status"]),
            "runs": str(thread["last_seq"]),
            "next": text(", ".join(thread["next_nodes"])),
            "held by": text(thread["held_by"], style="red"),
            "wait": str(thread["held_runs"]) if thread["held_by"] else "",
            "since": ago(thread["held_since"]),
            "until": ago(thread["held_until"]),
            "updated": ago(thread["updated_at"]),
        }
        for thread in threads
    ]
    return listing(
        rows,
        elastic=("tenant", "thread", "next"),
        expendable=("updated", "runs", "next", "until", "status"),
        # Most threads are held by nothing, and few of those that are held until a time.
        sparse=("next", "held by", "wait", "since", "until"),
    )


def _lane_view(head: RunRecord) -> RenderableType:
    """Whose the lane is, and what that run waits for."""
    run, standing = head
    lines = [f"run {run.id}, {run.status}"]
    if run.status == "pending":
        lines += [f"which waits {line}" for line in standing.waits()]
    return text("\n".join(lines))


def _held_view(thread: Row) -> RenderableType | None:
    """By which dead letter the thread is held, since and until when; None if it is not."""
    if thread["held_by"] is None:
        return None
    lines = [f"dead letter {thread['held_by']}", f"since {moment(thread['held_since'])}"]
    if thread["held_until"] is not None:
        lines.append(f"until {moment(thread['held_until'])}")
    lines.append(f"{thread['held_runs']} runs wait")
    return text("\n".join(lines), style="red")


def _state_view(state: ThreadState, thread: Row, head: RunRecord | None) -> RenderableType:
    return facts(
        {
            "thread": text(state.thread_id),
            "tenant": text(state.tenant),
            "status": coloured(state.status),
            "held by": _held_view(thread),
            "waits for": _lane_view(head) if head else None,
            "updated": moment(state.updated_at),
            "checkpoint": state.checkpoint_id,
            "next": text(", ".join(state.next)) if state.next else None,
            "interrupts": pretty(state.interrupts) if state.interrupts else None,
            "metadata": pretty(state.metadata) if state.metadata else None,
            "values": pretty(state.values),
        }
    )


def _history_table(checkpoints: list[dict[str, Any]]) -> RenderableType:
    rows: list[Cells] = [
        {
            "checkpoint": text(checkpoint["checkpoint_id"]),
            "step": text(checkpoint["step"]),
            "source": text(checkpoint["source"]),
            "created": text(checkpoint["created_at"]),
            "run": text(checkpoint["run_id"]),
        }
        for checkpoint in checkpoints
    ]
    return listing(rows, elastic=("source",), expendable=("created", "source"))
