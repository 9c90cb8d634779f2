"""What the commands print: for people tables and colours, for programs one JSON document."""

from __future__ import annotations

import datetime
import json
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.highlighter import JSONHighlighter
from rich.table import Table
from rich.text import Text

from threadmill.core.errors import ThreadmillError

# The statuses of runs, threads and dead letters, the outcomes of attempts and the doctor's findings.
STATUS_STYLES = {
    "pending": "cyan",
    "running": "blue",
    "success": "green",
    "error": "red",
    "timeout": "red",
    "interrupted": "yellow",
    "idle": "green",
    "busy": "blue",
    "waiting": "yellow",
    "replaying": "blue",
    "resolved": "green",
    "parked": "red",
    "discarded": "dim",
    "failed": "red",
    "lost": "red",
    "drained": "cyan",
    "fenced": "yellow",
    "cancelled": "yellow",
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
}

# Wider than any table: what is no terminal cuts nothing off and wraps nothing.
UNBOUND_WIDTH = 10_000

# What a column that may be folded is given at least, and the blanks between two columns.
ELASTIC_WIDTH = 12
GAP = 2

# A row of a list: what stands in each column, by the column's name.
Cells = Mapping[str, Text | str]

SPANS = ((86400, "d", 2), (3600, "h", 2), (60, "min", 2), (1, "s", 0))


def console(*, stderr: bool = False) -> Console:
    """Where people's output goes; plain and unbroken where it is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else UNBOUND_WIDTH)


def show(as_json: bool, document: Any, *views: Callable[[], RenderableType]) -> None:
    """Prints the document as JSON, or for people the views of it, which are made only then."""
    if as_json:
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
        sys.stdout.flush()
        return
    out = console()
    for view in views:
        out.print(view())


def tell(as_json: bool, document: Any, view: Callable[[], RenderableType]) -> None:
    """Prints one of many as it comes: as a JSON object on a line of its own, or for people its view."""
    if as_json:
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    else:
        console().print(view(), soft_wrap=True)


def note(text: str) -> None:
    """Says something beside the result, on stderr, so that the result can be piped on."""
    console(stderr=True).print(Text(text, style="dim"))


def report(error: ThreadmillError, as_json: bool) -> None:
    """Prints what failed on stderr; with --json as an object on a line of its own, too."""
    console(stderr=True).print(Text.assemble(("error: ", "bold red"), clean(error)), soft_wrap=True)
    if as_json:
        found = {"error": {"type": type(error).__name__, "message": str(error)}}
        sys.stderr.write(json.dumps(found, ensure_ascii=False) + "\n")


def clean(value: object) -> str:
    """The value's text without control characters: a graph's exception must not steer the terminal."""
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
        else f"\\x{ord(character):02x}"
        for character in ("" if value is None else str(value))
    )


def text(value: object, style: str = "") -> Text:
    """A user's text, in which brackets are no markup."""
    return Text(clean(value), style=style)


def coloured(word: str) -> Text:
    """A status in its colour."""
    return Text(word, style=STATUS_STYLES.get(word, ""))


def headline(message: str) -> Text:
    """The first line of an error's text, short enough for a table."""
    line = message.strip().partition("\n")[0]
    return Text(clean(line if len(line) <= 80 else line[:79] + "…"), no_wrap=True, overflow="ellipsis")


def pretty(value: Any) -> Text:
    """A JSON value over several lines."""
    return JSONHighlighter()(clean(json.dumps(value, ensure_ascii=False, indent=2)))


def table(*columns: str, fixed: Sequence[str] = ()) -> Table:
    """An empty table. The fixed columns are not folded on a narrow terminal."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    for column in columns:
        made.add_column(column, no_wrap=column in fixed, overflow="fold")
    return made


def listing(
    rows: Sequence[Cells],
    *,
    elastic: Sequence[str],
    expendable: Sequence[str] = (),
    sparse: Sequence[str] = (),
) -> RenderableType:
    """A table of rows that all have the same columns. The sparse ones are left out where no row fills them.

    Where the terminal is too narrow, the expendable columns are left out, one after the other, and then the
    elastic ones are folded. The others, ids for copying and single words, keep their width.
    """
    if not rows:
        return Text("none", style="dim")
    widths = {name: max(len(name), *(cell_len(str(row[name])) for row in rows)) for name in rows[0]}
    for name in sparse:
        if not any(str(row[name]) for row in rows):
            del widths[name]
    for name in widths.keys() & set(elastic):
        widths[name] = min(widths[name], ELASTIC_WIDTH)
    for name in expendable:
        if name in widths and sum(width + GAP for width in widths.values()) > console().width + GAP:
            del widths[name]
    made = table(*widths, fixed=[name for name in widths if name not in elastic])
    for row in rows:
        made.add_row(*(row[name] for name in widths))
    return made


def facts(pairs: Mapping[str, RenderableType | None]) -> Table:
    """Names and values in two columns, without those that are None."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs.items():
        if value is not None:
            grid.add_row(name, value)
    return grid


def ago(moment: datetime.datetime | None) -> str:
    """How far the moment is from now, in words; empty for none."""
    if moment is None:
        return ""
    seconds = (datetime.datetime.now(datetime.UTC) - moment).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def span(seconds: float) -> str:
    """A length of time in its largest unit of which there are at least two: 42 s, 90 min, 36 h."""
    for size, unit, least in SPANS:
        if seconds >= size * least:
            return f"{seconds / size:.0f} {unit}"
    return "0 s"


def took(started: datetime.datetime | None, ended: datetime.datetime | None) -> str:
    """The time between two moments; empty where one is missing."""
    if started is None or ended is None:
        return ""
    seconds = (ended - started).total_seconds()
    return f"{seconds:.2f} s" if seconds < 10 else span(seconds)


def moment(when: datetime.datetime | None) -> str | None:
    """Local time and distance, for a single thing that is looked at closely; None for none."""
    return None if when is None else f"{when.astimezone():%Y-%m-%d %H:%M:%S %Z} ({ago(when)})"
