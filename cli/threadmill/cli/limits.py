"""`threadmill tenants`, and what `threadmill graphs` has in common with it: weights, limits, pauses."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from threadmill.cli.invocation import AfterOption, JsonOption, LimitOption, invocation_of
from threadmill.cli.output import Cells, ago, coloured, facts, listing, note, show, text
from threadmill.core.errors import InvalidOption
from threadmill.core.limits import MOST_COUNTED, Kind, Limit, Limits
from threadmill.core.statement import Row, Rows
from threadmill.producers.run import timestamp

app = typer.Typer(name="tenants", help="What tenants have to do, and what they may.", no_args_is_help=True)

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant.", show_default=False)]
GraphArgument = Annotated[str, typer.Argument(metavar="GRAPH", help="The graph.", show_default=False)]
MaxRunningOption = Annotated[
    str | None,
    typer.Option("--max-running", metavar="N", help="So many runs at once; `none` takes the limit away."),
]
RateOption = Annotated[
    str | None,
    typer.Option(
        "--rate", metavar="N", help="So many runs are started in a second; `none` takes the limit away."
    ),
]


@app.command("list", epilog="Example: `threadmill tenants list`")
def list_tenants(
    context: typer.Context,
    limit: LimitOption = 100,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tenants that have runs or limits, by name: what they have to do, and what they may."""
    with Limits(invocation_of(context).settings()) as limits:
        rows = limits.tenants(after=after, limit=limit)
    show(as_json, [_document(row) for row in rows], lambda: _table(rows))
    if not as_json and len(rows) == limit:
        note(f"more: --after {rows[-1]['name']}")


@app.command("set", epilog="Example: `threadmill tenants set acme --weight 2 --max-running 50 --rate none`")
def set_tenant(
    context: typer.Context,
    tenant: TenantArgument,
    weight: Annotated[
        float | None,
        typer.Option(help="Its share of the workers against other tenants', where there are too few."),
    ] = None,
    max_running: MaxRunningOption = None,
    rate: RateOption = None,
    max_pending: Annotated[
        str | None,
        typer.Option(
            "--max-pending",
            metavar="N",
            help="So many runs wait; `none` leaves it to the setting of that name.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Change what a tenant may; it counts for what waits already. Without an option: show it."""
    given = {"weight": weight, **_numbers(max_running=max_running, rate=rate, max_pending=max_pending)}
    change(
        context, "tenant", tenant, {k: v for k, v in given.items() if k != "weight" or v is not None}, as_json
    )


@app.command("pause", epilog="Example: `threadmill tenants pause acme`")
def pause_tenant(context: typer.Context, tenant: TenantArgument, as_json: JsonOption = False) -> None:
    """Start none of a tenant's runs; those that are running go on, and it may enqueue."""
    change(context, "tenant", tenant, {"paused": True}, as_json)


@app.command("resume", epilog="Example: `threadmill tenants resume acme`")
def resume_tenant(context: typer.Context, tenant: TenantArgument, as_json: JsonOption = False) -> None:
    """Start a tenant's runs again."""
    change(context, "tenant", tenant, {"paused": False}, as_json)


def set_graph(
    context: typer.Context,
    graph: GraphArgument,
    max_running: MaxRunningOption = None,
    rate: RateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change how many runs of a graph are started; it counts for what waits already. Without an option:
    show it."""
    change(context, "graph", graph, _numbers(max_running=max_running, rate=rate), as_json)


def pause_graph(context: typer.Context, graph: GraphArgument, as_json: JsonOption = False) -> None:
    """Start no runs of a graph; those that are running go on, and it may be enqueued."""
    change(context, "graph", graph, {"paused": True}, as_json)


def resume_graph(context: typer.Context, graph: GraphArgument, as_json: JsonOption = False) -> None:
    """Start a graph's runs again."""
    change(context, "graph", graph, {"paused": False}, as_json)


def change(context: typer.Context, kind: Kind, name: str, changes: dict[str, Any], as_json: bool) -> None:
    """Makes the change and shows what holds now."""
    with Limits(invocation_of(context).settings(of=name if kind == "tenant" else None)) as limits:
        limit = limits.set(kind, name, **changes)
    show(as_json, limit.to_dict(), lambda: _facts(limit))


def in_short(limit: Limit | None) -> Text:
    """What of a graph's limits is not as others'; nothing for most."""
    if limit is None:
        return Text()
    parts = [
        "paused" * limit.paused,
        "" if limit.max_running is None else f"{limit.max_running} at once",
        "" if limit.rate is None else f"{limit.rate:g}/s",
    ]
    return text(", ".join(filter(None, parts)), style="yellow")


def _numbers(**options: str | None) -> dict[str, float | int | None]:
    """Those that were given. Raises InvalidOption."""
    numbers: dict[str, float | int | None] = {}
    for option, given in options.items():
        if given is None:
            continue
        try:
            numbers[option] = None if given == "none" else float(given) if option == "rate" else int(given)
        except ValueError:
            raise InvalidOption(option, given, "must be a number, or none") from None
    return numbers


def _document(row: Row) -> dict[str, Any]:
    return {**row, "oldest": timestamp(row["oldest"])}


def _table(rows: Rows) -> RenderableType:
    cells: list[Cells] = [
        {
            "tenant": text(row["name"], style="bold"),
            "state": coloured("paused") if row["paused"] else Text(),
            "pending": text(f"{row['pending']}{'+' * (row['pending'] >= MOST_COUNTED)}"),
            "oldest": text(ago(row["oldest"]) if row["oldest"] else ""),
            "running": text(row["running"]),
            "weight": text(f"{row['weight']:g}"),
            "at once": _allowed(row["max_running"]),
            "per second": _allowed(row["rate"]),
            "may wait": _allowed(row["max_pending"]),
        }
        for row in rows
    ]
    return listing(cells, elastic=("tenant",), expendable=("oldest", "may wait", "per second"))


def _allowed(limit: float | None) -> Text:
    return Text("any", style="dim") if limit is None else text(f"{limit:g}")


def _facts(limit: Limit) -> RenderableType:
    document = limit.to_dict()
    return facts(
        {
            document.pop("kind"): text(document.pop("name"), style="bold"),
            "state": coloured("paused") if document.pop("paused") else text("runs are started"),
            **{name.replace("_", " "): _allowed(value) for name, value in document.items()},
        }
    )
