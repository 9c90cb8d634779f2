"""Dead letters as tables: letters, their groups, what slows their replay, and all of them in numbers."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

from rich.console import Group as Parts
from rich.console import RenderableType
from rich.text import Text

from threadmill.cli.dead_letter_options import counted
from threadmill.cli.output import Cells, ago, coloured, facts, headline, listing, moment, text
from threadmill.dlq import DeadLetter, Pause, Rate
from threadmill.dlq.groups import Group
from threadmill.dlq.stats import Stats

OPEN = ("waiting", "replaying", "parked")
# What failed for these reasons is replayed without anybody asking for it.
DRAINED_BY_THEMSELVES = ("exhausted", "timeout", "breaker")

_BARS = "▁▂▃▄▅▆▇█"
# Of an exception in a table.
MAX_NAME = 24


def letters_table(letters: Sequence[DeadLetter]) -> RenderableType:
    """The dead letters, one a line."""
    rows: list[Cells] = [
        {
            "id": letter.id,
            "tenant": text(letter.tenant),
            "thread": text(letter.thread_id),
            "graph": text(letter.graph),
            "status": coloured(letter.status),
            "reason": letter.reason,
            "replays": str(letter.replays or ""),
            "next": _next_replay(letter),
            "created": ago(letter.created_at),
            "error": headline(f"{letter.error.type}: {letter.error.message}"),
        }
        for letter in letters
    ]
    return listing(
        rows,
        elastic=("tenant", "thread", "graph", "error"),
        expendable=("replays", "created", "reason", "next", "error"),
        sparse=("tenant", "thread", "graph", "replays", "next"),
    )


def _next_replay(letter: DeadLetter) -> str:
    if letter.status != "waiting":
        return ""
    return ago(letter.next_replay_at) if letter.next_replay_at else "by hand"


def groups_table(groups: Sequence[Group]) -> RenderableType:
    """The groups, one a line, each with its course over the last hour and how its drain stands."""
    rows: list[Cells] = [
        {
            "group": group.fingerprint,
            "graph": text(group.graph),
            "node": text(group.node),
            "exception": _shortened(group.exception_type),
            "open": counted(open_count(group.counts)),
            "tenants": counted(group.tenants),
            "first": ago(group.first_seen),
            "last": ago(group.last_seen),
            "trend": sparkline(group.trend),
            "drain": drain_state(group),
            "newest": headline(group.sample.message),
        }
        for group in groups
    ]
    return listing(
        rows,
        elastic=("graph", "node", "drain", "newest"),
        expendable=("newest", "first", "tenants", "node", "last", "graph"),
        sparse=("graph", "node", "exception"),
    )


def _shortened(name: str | None) -> Text:
    """A name that is not folded: what is longer than any of the common ones loses its end."""
    name = name or ""
    return text(name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…")


def open_count(counts: Mapping[str, int]) -> int:
    """How many are neither resolved nor discarded."""
    return sum(counts.get(status, 0) for status in OPEN)


def sparkline(counts: Sequence[int]) -> str:
    """A bar for each count, as high as its share of the highest; a dot for none."""
    highest = max(counts, default=0)
    return "".join(
        _BARS[(count * (len(_BARS) - 1) + highest - 1) // highest] if count else "·" for count in counts
    )


def drain_state(group: Group) -> Text:
    """What the replay worker does about a group now."""
    waiting, replaying = group.counts.get("waiting", 0), group.counts.get("replaying", 0)
    if group.paused:
        return Text(f"paused ({group.paused})", style="yellow")
    if replaying:
        return Text(f"{replaying}/{group.window} replaying", style="blue")
    if not waiting:
        return Text("parked", style="red") if group.counts.get("parked") else Text("drained", style="green")
    if group.backoffs:
        return Text(f"{group.backoffs} failed, {_next_canary(group)}", style="yellow")
    if group.reason not in DRAINED_BY_THEMSELVES:
        return Text("by hand", style="yellow")
    return Text("canary next" if group.window == 1 else f"window {group.window}")


def _next_canary(group: Group) -> str:
    if group.next_at is None or group.next_at <= datetime.datetime.now(datetime.UTC):
        return "canary next"
    return f"canary {ago(group.next_at)}"


def stats_view(stats: Stats, pauses: Sequence[Pause], rates: Sequence[Rate]) -> RenderableType:
    """All dead letters in numbers, and what slows their replay."""
    parts: list[RenderableType] = [
        facts(
            {
                "statuses": _numbers(stats.by_status),
                "open": _numbers(stats.open_by_reason),
                "oldest waiting": moment(stats.oldest_waiting),
                "due": counted(stats.due),
                "groups": counted(stats.groups),
                "held threads": counted(stats.held_lanes),
                "jobs": f"{stats.jobs} running" if stats.jobs else "none is running",
                "rates": None if rates else "unlimited",
                "paused": None if pauses else "nothing",
            }
        )
    ]
    if rates:
        parts += [Text("\nrates", style="bold"), rates_table(rates)]
    if pauses:
        parts += [Text("\npaused", style="bold"), pauses_table(pauses)]
    return Parts(*parts)


def _numbers(counts: Mapping[str, int]) -> Text:
    parts = [
        Text.assemble((counted(number), "bold"), " ", coloured(name))
        for name, number in counts.items()
        if number
    ]
    return Text(", ").join(parts) if parts else Text("none", style="dim")


def pauses_table(pauses: Sequence[Pause]) -> RenderableType:
    """What the replay worker leaves alone."""
    rows: list[Cells] = [
        {
            "kind": pause.kind,
            "name": text(pause.name),
            "since": ago(pause.since),
            "by": text(pause.by),
            "because": text(pause.reason),
        }
        for pause in pauses
    ]
    return listing(rows, elastic=("name", "by", "because"), expendable=("by",))


def rates_table(rates: Sequence[Rate]) -> RenderableType:
    """How many replays a second there may be, of what."""
    if not rates:
        return Text("unlimited", style="dim")
    rows: list[Cells] = [
        {
            "kind": rate.kind,
            "name": "" if rate.kind == "all" else text(rate.name),
            "rate": rate_words(rate.rate),
        }
        for rate in rates
    ]
    return listing(rows, elastic=("name",))


def rate_words(rate: float) -> str:
    """A rate in the unit in which it is one at least, if there is one."""
    units = ((1, "s"), (60, "min"), (3600, "h"))
    seconds, unit = next((each for each in units if rate * each[0] >= 1), units[-1])
    return f"{round(rate * seconds, 3):g}/{unit}"
