"""`threadmill dlq watch`: tells of dead letters as they come, to a person, a command or a URL."""

from __future__ import annotations

import datetime
import re
import signal
import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from threadmill.cli.dead_letter_options import MOMENT, parse_moment
from threadmill.cli.invocation import JsonOption, invocation_of
from threadmill.cli.output import console, note, text
from threadmill.dlq.alarm import GROUP_GROWS, HELD, NEW_GROUP, PARKED, Alarm
from threadmill.dlq.watch import Watch

_HEADLINES = {
    NEW_GROUP: "new group",
    GROUP_GROWS: "group grows",
    PARKED: "parked",
    HELD: "lanes held",
}


_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_SPAN = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})?")


def parse_span(argument: str | float) -> float:
    """Seconds, from a span such as 90s, 10m or 2h; a number alone is seconds."""
    if found := _SPAN.fullmatch(str(argument).strip()):
        return float(found[1]) * _UNITS[found[2] or "s"]
    raise typer.BadParameter("not a span such as 90s, 10m, 2h or 1d")


def watch(
    context: typer.Context,
    command: Annotated[
        str | None,
        typer.Option("--exec", metavar="CMD", help="Run this with each alarm as JSON on its standard input."),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Post each alarm there, signed with $THREADMILL_WEBHOOK_SECRET."),
    ] = None,
    held_longer_than: Annotated[
        float,
        typer.Option(parser=parse_span, metavar="SPAN", help="Tell of lanes that are held for so long."),
    ] = 600,
    growing: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tell of a group to which more than N letters come…")
    ] = 10,
    within: Annotated[float, typer.Option(parser=parse_span, metavar="SPAN", help="…within so long.")] = 600,
    interval: Annotated[float, typer.Option(parser=parse_span, metavar="SPAN", help="Look so often.")] = 5,
    since: Annotated[
        datetime.datetime | None,
        typer.Option(parser=parse_moment, metavar=MOMENT, help="Tell first of what has happened since then."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end; with --since.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell of new groups, of those that grow, of parked letters and of lanes that are held for long.

    With --json each alarm is a line of JSON.
    """
    if once and since is None:
        raise typer.BadParameter("what is there when it begins is not told: --once needs --since")
    watching = Watch(
        invocation_of(context).settings(log_format="json" if as_json else None),
        exec=command,
        webhook=webhook,
        growing=growing,
        within=within,
        held_longer_than=held_longer_than,
        interval=interval,
        since=since,
        on_alarm=_print_json if as_json else _print_line,
    )
    if once:
        watching.look()
        watching.close()
        return
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: watching.stop())
    if not as_json:
        note("watching; what is there already is not told")
    watching.run()


def _print_json(alarm: Alarm) -> None:
    sys.stdout.write(alarm.to_json() + "\n")
    sys.stdout.flush()


def _print_line(alarm: Alarm) -> None:
    console().print(_line(alarm))


def _line(alarm: Alarm) -> Text:
    data = alarm.data
    where = " ".join(str(data[name]) for name in ("graph", "node", "exception") if data.get(name))
    return Text.assemble(
        (f"{alarm.timestamp.astimezone():%H:%M:%S} ", "dim"),
        (f"{_HEADLINES[alarm.type]} ", "bold"),
        text(where or data.get("reason") or ""),
        _count(data),
        text(f"  group {data['group']}", style="dim"),
    )


def _count(data: dict[str, Any]) -> str:
    count = data.get("count")
    if count is None:
        return ""
    return f": {count}{' or more' if data.get('more') else ''}"
