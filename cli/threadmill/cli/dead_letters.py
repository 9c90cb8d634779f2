"""`threadmill dlq`: look at dead letters, replay and discard them, and run the replay worker."""

from __future__ import annotations

import signal
from collections.abc import Callable
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
from threadmill.cli.output import (
    Cells,
    ago,
    coloured,
    facts,
    headline,
    listing,
    moment,
    note,
    report,
    show,
    text,
)
from threadmill.cli.runs import error_view
from threadmill.core.errors import Conflict, NotFound
from threadmill.dlq import DeadLetter, Desk, ReplayWorker

app = typer.Typer(name="dlq", help="Dead letters: the runs that failed for good.", no_args_is_help=True)

LetterArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The dead letter's id.", show_default=False)
]
LettersArgument = Annotated[
    list[str], typer.Argument(metavar="ID…", help="The dead letters' ids.", show_default=False)
]


@app.command("list", epilog="Example: `threadmill dlq list --status parked --graph librarian`")
def list_letters(
    context: typer.Context,
    tenant: TenantOption = None,
    thread: ThreadOption = None,
    graph: GraphOption = None,
    status: Annotated[
        str | None,
        typer.Option(help="Only these: waiting, replaying, resolved, parked or discarded."),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.")] = None,
    limit: LimitOption = 20,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Dead letters, the newest first."""
    with Desk(invocation_of(context).settings()) as desk:
        letters = desk.list(
            tenant=tenant,
            thread_id=thread,
            graph=graph,
            status=status,
            reason=reason,
            limit=limit,
            after=after,
        )
    show(as_json, [letter.to_dict() for letter in letters], lambda: _letters_table(letters))
    if not as_json and len(letters) == limit:
        note(f"more: --after {letters[-1].id}")


@app.command("show", epilog="Example: `threadmill dlq show 0199c0de-0000-7000-8000-000000000000`")
def show_letter(context: typer.Context, letter_id: LetterArgument, as_json: JsonOption = False) -> None:
    """One dead letter, with its traceback and what was done about it."""
    with Desk(invocation_of(context).settings()) as desk:
        letter = desk.get(letter_id)
    show(as_json, letter.to_dict(), lambda: _letter_view(letter))


@app.command(epilog="Example: `threadmill dlq replay 0199c0de-0000-7000-8000-000000000000`")
def replay(context: typer.Context, letter_ids: LettersArgument, as_json: JsonOption = False) -> None:
    """Give the runs of waiting or parked dead letters back as pending, now."""
    with Desk(invocation_of(context).settings()) as desk:
        _change_each(letter_ids, desk.replay, as_json)


@app.command(epilog="Example: `threadmill dlq discard 0199c0de-0000-7000-8000-000000000000`")
def discard(context: typer.Context, letter_ids: LettersArgument, as_json: JsonOption = False) -> None:
    """Give dead letters up for good; the threads that they held go on."""
    with Desk(invocation_of(context).settings()) as desk:
        _change_each(letter_ids, desk.discard, as_json)


@app.command(epilog="Example: `threadmill dlq drain`")
def drain(context: typer.Context, as_json: JsonOption = False) -> None:
    """Run the replay worker in the foreground: it replays what is due, until it is told to stop."""
    worker = ReplayWorker(invocation_of(context).settings(log_format="json" if as_json else None))
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: worker.stop())
    worker.run()
    show(as_json, {"status": "stopped"})


def _change_each(letter_ids: list[str], change: Callable[[str], DeadLetter], as_json: bool) -> None:
    """Changes what can be changed; one that cannot does not keep the others from it."""
    changed = []
    for letter_id in letter_ids:
        try:
            changed.append(change(letter_id))
        except (NotFound, Conflict) as error:
            report(error, as_json)
    show(as_json, [letter.to_dict() for letter in changed], lambda: _changed_view(changed))
    if len(changed) < len(letter_ids):
        raise typer.Exit(1)


def _changed_view(letters: list[DeadLetter]) -> RenderableType:
    return Group(
        *(
            Text.assemble("dead letter ", (letter.id, "bold"), " ", coloured(letter.status))
            for letter in letters
        )
    )


def _letters_table(letters: list[DeadLetter]) -> RenderableType:
    rows: list[Cells] = [
        {
            "id": letter.id,
            "tenant": text(letter.tenant),
            "thread": text(letter.thread_id),
            "graph": text(letter.graph),
            "status": coloured(letter.status),
            "reason": text(letter.reason),
            "replays": str(letter.replays),
            "next": ago(letter.next_replay_at) if letter.status == "waiting" else "",
            "created": ago(letter.created_at),
            "error": headline(f"{letter.error.type}: {letter.error.message}"),
        }
        for letter in letters
    ]
    return listing(
        rows,
        elastic=("tenant", "thread", "graph", "reason", "error"),
        expendable=("created", "reason", "replays", "next", "error"),
    )


def _letter_view(letter: DeadLetter) -> RenderableType:
    pairs = facts(
        {
            "dead letter": letter.id,
            "status": coloured(letter.status),
            "reason": text(letter.reason),
            "error": error_view(letter.error),
            "graph": text(letter.graph),
            "tenant": text(letter.tenant),
            "thread": text(letter.thread_id),
            "run": letter.run_id,
            "checkpoint": letter.checkpoint_id,
            "fingerprint": letter.fingerprint,
            "replays": str(letter.replays),
            "mode": letter.replay_mode,
            "next replay": moment(letter.next_replay_at) if letter.status == "waiting" else None,
            "created": moment(letter.created_at),
        }
    )
    parts: list[RenderableType] = [pairs]
    if letter.notes:
        parts += [Text("\nnotes", style="bold"), *(_note_line(entry) for entry in letter.notes)]
    if letter.traceback:
        parts += [Text("\ntraceback", style="bold"), text(letter.traceback.rstrip())]
    return Group(*parts)


def _note_line(entry: dict[str, object]) -> Text:
    facts = {name: value for name, value in entry.items() if name not in ("at", "action", "by")}
    more = "".join(f" {name}={value}" for name, value in facts.items())
    return Text.assemble(
        text(f"{entry.get('at', '')} ", style="dim"),
        text(entry.get("action", ""), style="bold"),
        text(f" by {entry.get('by', '?')}{more}"),
    )
