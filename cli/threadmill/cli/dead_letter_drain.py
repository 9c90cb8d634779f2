"""The replay worker from the command line, and what slows it down: pauses and rates."""

from __future__ import annotations

import signal
from typing import Annotated

import typer
from rich.text import Text

from threadmill.cli.dead_letter_options import BecauseOption
from threadmill.cli.dead_letter_views import rates_table
from threadmill.cli.invocation import JsonOption, invocation_of
from threadmill.cli.output import show, text
from threadmill.dlq import Desk, ReplayWorker
from threadmill.dlq.velocity import parse_rate

RateOption = Annotated[
    str | None,
    typer.Option(metavar="RATE", help="No more replays than this, such as 50/s, 100/min or 10/h."),
]
GraphName = Annotated[str | None, typer.Option("--graph", metavar="GRAPH", help="This graph's dead letters.")]
TenantName = Annotated[
    str | None, typer.Option("--tenant", metavar="TENANT", help="This tenant's dead letters.")
]
GroupName = Annotated[
    str | None, typer.Option("--group", metavar="GROUP", help="This group's, as `dlq groups` names it.")
]


def drain(context: typer.Context, rate: RateOption = None, as_json: JsonOption = False) -> None:
    """Run the replay worker in the foreground: it replays what is due, until it is told to stop."""
    settings = invocation_of(context).settings(log_format="json" if as_json else None)
    worker = ReplayWorker(settings, rate=None if rate is None else parse_rate(rate))
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: worker.stop())
    worker.run()
    show(as_json, {"status": "stopped"})


def pause(
    context: typer.Context,
    graph: GraphName = None,
    tenant: TenantName = None,
    group: GroupName = None,
    because: BecauseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the replay worker leave a graph, a tenant or a group alone, until `dlq unpause`."""
    kind, name = _one_of(graph=graph, tenant=tenant, group=group)
    with Desk(invocation_of(context).settings(of=tenant)) as desk:
        desk.pause(kind, name, because)
    show(as_json, {"kind": kind, "name": name, "paused": True}, lambda: _paused_line(kind, name, "paused"))


def unpause(
    context: typer.Context,
    graph: GraphName = None,
    tenant: TenantName = None,
    group: GroupName = None,
    as_json: JsonOption = False,
) -> None:
    """Let the replay worker go on with what was paused."""
    kind, name = _one_of(graph=graph, tenant=tenant, group=group)
    with Desk(invocation_of(context).settings(of=tenant)) as desk:
        desk.unpause(kind, name)
    show(as_json, {"kind": kind, "name": name, "paused": False}, lambda: _paused_line(kind, name, "goes on"))


def rates(context: typer.Context, as_json: JsonOption = False) -> None:
    """How many replays a second there may be: in all, of a graph, of a tenant."""
    with Desk(invocation_of(context).settings()) as desk:
        found = desk.rates()
    show(as_json, [rate.to_dict() for rate in found], lambda: rates_table(found))


def rate(
    context: typer.Context,
    value: Annotated[
        str,
        typer.Argument(metavar="RATE|none", help="Such as 50/s; `none` lifts it.", show_default=False),
    ],
    graph: GraphName = None,
    tenant: TenantName = None,
    as_json: JsonOption = False,
) -> None:
    """Set how many replays a second there may be, in all or of a graph or tenant."""
    kind, name = _one_of(graph=graph, tenant=tenant) if graph or tenant else ("all", "all")
    with Desk(invocation_of(context).settings(of=tenant)) as desk:
        desk.set_rate(kind, name, None if value == "none" else parse_rate(value))
        found = desk.rates()
    show(as_json, [rate.to_dict() for rate in found], lambda: rates_table(found))


def _one_of(**names: str | None) -> tuple[str, str]:
    """The one option that was given, and its value."""
    given = [(kind, name) for kind, name in names.items() if name is not None]
    if len(given) != 1:
        raise typer.BadParameter(f"give one of {', '.join(f'--{kind}' for kind in names)}")
    return given[0]


def _paused_line(kind: str, name: str, word: str) -> Text:
    return Text.assemble(f"{kind} ", text(name, style="bold"), f" {word}")
