"""What the demo shows while it runs, and at its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from threadmill.cli.catalogue_service import CatalogueState
from threadmill.cli.demo_progress import Progress, Share
from threadmill.cli.demo_verdict import Accident, Check
from threadmill.cli.output import table, text

LINE_EVERY = 1.0
RATE_OVER = 2.0  # seconds; shorter jumps about, longer hides the outage
MAX_FAULTS = 5


class Moment(NamedTuple):
    """What there is to show at one moment. elapsed: seconds since the runs were enqueued."""

    elapsed: float
    progress: Progress
    catalogue: CatalogueState


class Rate:
    """How many runs succeed in a second, over the last RATE_OVER seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, elapsed: float, done: int) -> float:
        """The rate now that `done` runs have succeeded."""
        self._seen.append((elapsed, done))
        while len(self._seen) > 2 and self._seen[1][0] <= elapsed - RATE_OVER:
            self._seen.popleft()
        since, before = self._seen[0]
        return (done - before) / (elapsed - since) if elapsed > since else 0.0


@contextmanager
def live_view(out: Console) -> Iterator[Callable[[Moment], None]]:
    """A function that shows a moment: a picture that changes on a terminal, elsewhere a line each second."""
    rate = Rate()
    if out.is_terminal and not out.is_dumb_terminal:
        with Live(console=out, auto_refresh=False) as live:
            yield lambda moment: live.update(_picture(moment, rate), refresh=True)
        return
    shown_at = 0.0

    def show(moment: Moment) -> None:
        nonlocal shown_at
        line = _line(moment, rate)
        if moment.elapsed >= shown_at + LINE_EVERY or moment.progress.is_over:
            shown_at = moment.elapsed
            out.print(line)

    yield show


def accident_view(accident: Accident, successor: str) -> RenderableType:
    """Who was killed, with how many runs."""
    line = (
        f"{accident.worker} is killed (SIGKILL) with {len(accident.held)} runs under way; {successor} starts"
    )
    return Text(line, style="bold red")


def verdict_view(checks: Sequence[Check], seconds: float) -> RenderableType:
    """The checks with their figures; under the table what speaks against those that do not hold."""
    rows = table("", "what must hold", "found in the ledger and the checkpoints")
    faults: list[Text] = []
    for check in checks:
        mark = Text("✓", style="green") if check.holds else Text("✗", style="bold red")
        rows.add_row(mark, Text(check.name), Text(check.found))
        if not check.holds:
            faults.append(Text(f"✗ {check.name}:", style="red"))
            faults += [text(f"    {fault}") for fault in check.faults[:MAX_FAULTS]]
            if len(check.faults) > MAX_FAULTS:
                faults.append(Text(f"    … and {len(check.faults) - MAX_FAULTS} more"))
    if faults:
        ending = Text(f"Something promised was not so ({seconds:.0f} s).", style="bold red")
    else:
        ending = Text(f"All of it holds ({seconds:.0f} s).", style="bold green")
    return Group(rows, *faults, ending)


def _picture(moment: Moment, rate: Rate) -> RenderableType:
    whole = moment.progress.whole
    head = Table.grid(padding=(0, 2))
    head.add_row(
        ProgressBar(total=whole.total, completed=whole.done, width=40),
        f"{whole.done} of {whole.total} runs",
        f"{rate.at(moment.elapsed, whole.done):.0f} runs/s",
        f"{moment.elapsed:.0f} s",
    )
    tenants = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("tenant", "done", "running", "to do", "dead letters waiting", "resolved"):
        tenants.add_column(name, justify="left" if name == "tenant" else "right")
    for tenant, share in moment.progress.shares.items():
        tenants.add_row(text(tenant), *_figures(share))
    return Group(Text(), head, tenants, _catalogue_line(moment), Text())


def _figures(share: Share) -> list[Text]:
    return [
        Text(f"{share.done}/{share.total}", style="green" if share.done == share.total else ""),
        Text(str(share.runs["running"])),
        Text(str(share.runs["pending"])),
        Text(_waiting(share), style="yellow" if share.waiting_letters else "dim"),
        Text(str(share.letters["resolved"]), style="green" if share.letters["resolved"] else "dim"),
    ]


def _waiting(share: Share) -> str:
    parked = share.letters["parked"]
    return f"{share.waiting_letters} and {parked} parked" if parked else str(share.waiting_letters)


def _catalogue_line(moment: Moment) -> Text:
    return Text.assemble(("The catalogue that the graph calls: ", "dim"), _catalogue_words(moment))


def _catalogue_words(moment: Moment) -> Text:
    """How the catalogue fares, and whether its breaker holds runs back."""
    words = _state_words(moment.catalogue)
    held = moment.progress.held_back_for
    return Text.assemble(words, (f"; its breaker is open for {held:.1f} s", "yellow")) if held else words


def _state_words(catalogue: CatalogueState) -> Text:
    if catalogue.down_for > 0:
        return Text(
            f"DOWN for {catalogue.down_for:.0f} more s, {catalogue.refused} refused", style="bold red"
        )
    if catalogue.refused:
        return Text(f"up again, {catalogue.refused} were refused", style="green")
    return Text("up", style="green")


def _line(moment: Moment, rate: Rate) -> Text:
    whole = moment.progress.whole
    by_tenant = ", ".join(f"{tenant} {share.done}" for tenant, share in moment.progress.shares.items())
    return Text.assemble(
        f"{moment.elapsed:5.1f} s  {whole.done:3} of {whole.total} runs ({by_tenant}), "
        f"{rate.at(moment.elapsed, whole.done):.0f}/s  dead letters waiting: {_waiting(whole)}, "
        f"resolved: {whole.letters['resolved']}  catalogue: ",
        _catalogue_words(moment),
    )
