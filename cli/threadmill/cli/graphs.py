"""`threadmill graphs`: what langgraph.json names, what workers have announced, and whether it loads."""

from __future__ import annotations

import asyncio
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from threadmill.cli.extras import needs
from threadmill.cli.invocation import AfterOption, JsonOption, LimitOption, invocation_of
from threadmill.cli.ledger import Ledger
from threadmill.cli.limits import in_short, pause_graph, resume_graph, set_graph
from threadmill.cli.output import Cells, ago, listing, note, show, text
from threadmill.core.errors import GraphConfigInvalid, Unavailable
from threadmill.core.limits import Limit, Limits
from threadmill.core.policy import GraphPolicy
from threadmill.core.settings import Settings
from threadmill.core.statement import Row
from threadmill.producers.run import timestamp

if TYPE_CHECKING:
    from threadmill.graphs import GraphCheck, Registry

app = typer.Typer(name="graphs", help="The graphs that the fleet serves.", no_args_is_help=True)
app.command("set", epilog="Example: `threadmill graphs set agent --max-running 20 --rate 5`")(set_graph)
app.command("pause", epilog="Example: `threadmill graphs pause agent`")(pause_graph)
app.command("resume", epilog="Example: `threadmill graphs resume agent`")(resume_graph)


@app.command("list", epilog="Example: `threadmill graphs list`")
def list_graphs(
    context: typer.Context,
    limit: LimitOption = 100,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """The graphs of langgraph.json in this folder and those that workers have announced, by name."""
    settings = invocation_of(context).settings()
    registry = _registry_if_any(settings)
    try:
        with Ledger(settings) as ledger:
            announced = {row["name"]: row for row in ledger.graphs()}
        with Limits(settings) as known:
            limits = {limit.name: limit for limit in known.of("graph")}
    except Unavailable as error:
        # What is in the file can be told without the ledger.
        if registry is None:
            raise
        note(f"what is announced is not known: {error}")
        announced, limits = {}, {}
    names = sorted({*(registry.names if registry else ()), *announced, *limits})
    page = [name for name in names if after is None or name > after][:limit]
    graphs = [_document(name, registry, announced.get(name), limits.get(name)) for name in page]
    show(as_json, graphs, lambda: _graphs_table(graphs, announced, limits))


@app.command(epilog="Example: `threadmill graphs check`")
def check(context: typer.Context, as_json: JsonOption = False) -> None:
    """Load every graph of langgraph.json, and say of those that fail where and why."""
    settings = invocation_of(context).settings()
    with needs("worker"):
        from threadmill.graphs import Registry, check  # noqa: PLC0415
    registry = Registry.read(settings.graphs_file)
    # What the graphs' modules print as they are imported must not get into the result.
    with redirect_stdout(sys.stderr):
        registry.activate()
        checks = asyncio.run(check(registry))
    show(as_json, [_check_document(found) for found in checks], lambda: _checks_view(checks))
    if not all(found.ok for found in checks):
        raise typer.Exit(1)


def require_graphs_file(settings: Settings, way_out: str) -> None:
    """Raises GraphConfigInvalid, which says what can be done, where there is no langgraph.json."""
    if not settings.graphs_file.exists():
        raise GraphConfigInvalid(
            str(settings.graphs_file.absolute()),
            "is not there, and names the graphs to serve; go to the folder that has it, write one, such as "
            f'{{"graphs": {{"agent": "./agent.py:graph"}}}}, or {way_out}',
        )


def _registry_if_any(settings: Settings) -> Registry | None:
    """The registry of this folder; None where there is no langgraph.json. Raises GraphConfigInvalid."""
    if not settings.graphs_file.exists():
        return None
    with needs("worker"):
        from threadmill.graphs import Registry  # noqa: PLC0415
    return Registry.read(settings.graphs_file)


def _document(
    name: str, registry: Registry | None, announced: Row | None, limit: Limit | None
) -> dict[str, Any]:
    """location is of langgraph.json, version of the ledger, policy of the first that has the graph."""
    local = registry is not None and name in registry.names
    policy = announced["policy"] if announced else {}
    if registry is not None and local:
        policy = registry.policy(name).model_dump(mode="json")
    return {
        "name": name,
        "location": registry.location(name) if registry is not None and local else None,
        "announced": announced is not None,
        "version": announced["version"] if announced else None,
        "announced_at": timestamp(announced["announced_at"]) if announced else None,
        "policy": policy,
        "limits": (limit or Limit("graph", name)).to_dict(),
    }


def _graphs_table(
    graphs: list[dict[str, Any]], announced: dict[str, Row], limits: dict[str, Limit]
) -> RenderableType:
    rows: list[Cells] = [
        {
            "graph": text(graph["name"], style="bold"),
            "langgraph.json": text(graph["location"]) if graph["location"] else Text("not here", style="dim"),
            "announced": _announced(announced.get(graph["name"])),
            "version": text(graph["version"]),
            "policy": _policy(graph["policy"]),
            "limits": in_short(limits.get(graph["name"])),
        }
        for graph in graphs
    ]
    return listing(rows, elastic=("graph", "langgraph.json", "policy"), expendable=("policy", "version"))


def _announced(row: Row | None) -> Text:
    return text(ago(row["announced_at"]), style="green") if row else Text("no", style="yellow")


def _policy(policy: dict[str, Any]) -> Text:
    """What the graph's owner decided otherwise than the defaults."""
    defaults = GraphPolicy().model_dump(mode="json")
    own = {key: value for key, value in policy.items() if value != defaults.get(key)}
    return text(", ".join(f"{key}={value}" for key, value in own.items()), style="dim")


def _check_document(found: GraphCheck) -> dict[str, Any]:
    described = found.description
    return {
        "name": found.name,
        "location": found.location,
        "ok": found.ok,
        "version": described.version if described else None,
        "channels": list(described.channels) if described else None,
        "error": found.error,
    }


def _checks_view(checks: list[GraphCheck]) -> RenderableType:
    return Group(*(_check_line(found) for found in checks))


def _check_line(found: GraphCheck) -> Text:
    if found.ok:
        return Text.assemble(("ok   ", "green"), text(found.name, style="bold"), "  ", text(found.location))
    return Text.assemble(("fail ", "red"), text(found.error))
