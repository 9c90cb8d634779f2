"""`threadmill enqueue`: put a run in, and wait for it if asked to."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.text import Text

from threadmill.cli.invocation import JsonOption, OwnerOption, invocation_of
from threadmill.cli.output import coloured, show, text
from threadmill.cli.runs import run_view
from threadmill.core.event_stream import StreamMode
from threadmill.core.policy import Durability, OnDeadLetter
from threadmill.producers import Producer, Run
from threadmill.producers.request import MultitaskStrategy

DOCUMENT = "JSON|@FILE|-"


def parse_document(argument: str) -> Any:
    """The JSON value that an argument is, or that the file after `@` or stdin (`-`) holds."""
    try:
        if argument == "-":
            return json.loads(sys.stdin.buffer.read())
        if argument.startswith("@"):
            return json.loads(Path(argument[1:]).read_bytes())
        return json.loads(argument)
    except OSError as error:
        raise typer.BadParameter(f"{argument[1:]}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"no JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, bytes that are no UTF-8, brackets without end.
        raise typer.BadParameter(f"no JSON: {error}") from None


def parse_time(argument: str) -> datetime.datetime:
    """An ISO 8601 time."""
    try:
        return datetime.datetime.fromisoformat(argument)
    except ValueError:
        raise typer.BadParameter("no ISO 8601 time such as 2030-01-31T12:00:00+01:00") from None


def enqueue(
    context: typer.Context,
    graph: Annotated[str, typer.Argument(metavar="GRAPH", help="The graph's name in langgraph.json.")],
    tenant: OwnerOption,
    thread: Annotated[str, typer.Option(metavar="THREAD", help="The thread that the run belongs to.")],
    input: Annotated[  # noqa: A002 - the field's word
        Any, typer.Option(parser=parse_document, metavar=DOCUMENT, help="The graph's input.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the run, and fail unless it succeeds.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="How long to wait; default: for ever.")
    ] = None,
    command: Annotated[
        Any,
        typer.Option(
            parser=parse_document, metavar=DOCUMENT, help="Instead of an input: resume, update or goto."
        ),
    ] = None,
    config: Annotated[
        Any, typer.Option(parser=parse_document, metavar=DOCUMENT, help="LangGraph's config for the run.")
    ] = None,
    run_context: Annotated[
        Any,
        typer.Option(
            "--context", parser=parse_document, metavar=DOCUMENT, help="LangGraph's runtime context."
        ),
    ] = None,
    metadata: Annotated[
        Any, typer.Option(parser=parse_document, metavar=DOCUMENT, help="Kept with the run, for yourself.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="A second run with this key of the tenant's is the first."),
    ] = None,
    priority: Annotated[int, typer.Option(help="-100 to 100; higher goes first.")] = 0,
    run_at: Annotated[
        datetime.datetime | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Not before this time (ISO 8601)."),
    ] = None,
    deadline: Annotated[
        datetime.datetime | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Not after this time (ISO 8601)."),
    ] = None,
    max_attempts: Annotated[
        int | None,
        typer.Option(metavar="N", help="Attempts before it is a dead letter; default: the graph's."),
    ] = None,
    durability: Annotated[
        Durability | None, typer.Option(help="When LangGraph saves a checkpoint; default: the graph's.")
    ] = None,
    on_dead_letter: Annotated[
        OnDeadLetter | None,
        typer.Option(
            help="If it fails for good, whether its thread's later runs go on or wait; default: the graph's."
        ),
    ] = None,
    stream_mode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODE",
            help="What it tells while it runs, for `runs stream`: values, updates, messages, custom, tasks, "
            "checkpoints or debug; may be given several times.",
        ),
    ] = None,
    stream_subgraphs: Annotated[
        bool, typer.Option("--stream-subgraphs", help="It tells that of its subgraphs, too.")
    ] = False,
    multitask_strategy: Annotated[
        MultitaskStrategy, typer.Option(help="What to do on a thread with unfinished runs.")
    ] = "enqueue",
    as_json: JsonOption = False,
) -> None:
    """Put a run in; it is committed when this returns."""
    with Producer(invocation_of(context).settings(of=tenant)) as producer:
        run = producer.enqueue(
            graph,
            input,
            tenant=tenant,
            thread_id=thread,
            command=command,
            config=config,
            context=run_context,
            metadata=metadata,
            idempotency_key=idempotency_key,
            priority=priority,
            run_at=run_at,
            deadline=deadline,
            max_attempts=max_attempts,
            durability=durability,
            on_dead_letter=on_dead_letter,
            stream_mode=cast(list[StreamMode], stream_mode) or None,
            stream_subgraphs=stream_subgraphs,
            multitask_strategy=multitask_strategy,
        )
        if not wait:
            show(as_json, run.to_dict(), lambda: _enqueued(run))
            return
        if not as_json:
            show(as_json, None, lambda: _enqueued(run))
        done = producer.wait(run.id, tenant=tenant, timeout=timeout)
    show(as_json, done.to_dict(), lambda: run_view(done))
    if done.status != "success":
        raise typer.Exit(1)


def _enqueued(run: Run) -> Text:
    where = text(f" {run.graph} on {run.tenant} / {run.thread_id}, seq {run.seq}", style="dim")
    return Text.assemble("run ", (run.id, "bold"), " ", coloured(run.status), where)
