"""`python -m bench`: one run that measures all, one table, one JSON document, and its curves."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import profiling
from bench.arena import arena
from bench.child import ChildFailed
from bench.contestant import Stalled, WrongState
from bench.load import QUICK, Load
from bench.machine import describe
from bench.report import RESULTS, Report
from bench.sections import SECTIONS, Name
from threadmill.core.errors import ThreadmillError

FAILURES = (ThreadmillError, ChildFailed, Stalled, WrongState, profiling.PySpyMissing)
WIDTH = 150

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
out = Console(width=None if Console().is_terminal else WIDTH, highlight=False)

QuickOption = Annotated[bool, typer.Option("--quick", help="A small load, to see that it works.")]
RoundsOption = Annotated[int | None, typer.Option("--rounds", min=1, help="How often everybody runs.")]
OnlyOption = Annotated[list[Name] | None, typer.Option("--only", help="This section; may be repeated.")]
FromOption = Annotated[
    Path | None,
    typer.Option("--from", exists=True, dir_okay=False, help="Show what this result holds; measure nothing."),
]
DrawOption = Annotated[
    Path | None, typer.Option("--draw", file_okay=False, help="Where the curves go; else beside the result.")
]
TopOption = Annotated[int, typer.Option("--top", min=1, help="How many functions are listed.")]


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    quick: QuickOption = False,
    rounds: RoundsOption = None,
    only: OnlyOption = None,
    result: FromOption = None,
    draw: DrawOption = None,
) -> None:
    """Measures every section, prints one table, writes it as JSON and draws the curves."""
    if context.invoked_subcommand is not None:
        return
    if result is None:
        load = QUICK if quick else Load()
        result = measure(replace(load, rounds=rounds or load.rounds), only or list(Name))
    report = Report.read(result)
    out.print(report.table())
    out.print(f"written to {result}", soft_wrap=True)
    try:
        from bench import curves
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        out.print("no curves: matplotlib is not installed (make bench installs it)")
        return
    for path in curves.draw(report.measured, draw or result.with_suffix("")):
        out.print(f"drawn in {path}", soft_wrap=True)


def measure(load: Load, names: list[Name]) -> Path:
    """The path of the result, which is written after each section: what fails costs no more than itself."""
    moment = datetime.datetime.now(datetime.UTC)
    path = RESULTS / f"{moment:%Y%m%dT%H%M%SZ}.json"
    with arena() as ground, out.status("starting") as status:
        report = Report.of(moment.isoformat(timespec="seconds"), describe(ground), load)
        for name in names:
            section = SECTIONS[name]
            found = section.measure(ground, load, status.update)
            report.add(name, found, section.rows(found))
            report.write(path)
    return path


@app.command()
def profile(quick: QuickOption = False, top: TopOption = 25) -> None:
    """Shows where the CPU time of one Threadmill worker goes."""
    with arena() as ground, out.status("profiling one worker"):
        found = profiling.profile(ground, QUICK if quick else Load())
    out.print(profiling.view(found, top))


if __name__ == "__main__":
    try:
        app()
    except FAILURES as error:
        Console(stderr=True).print(f"{type(error).__name__}: {error}", style="red", markup=False)
        raise SystemExit(1) from None
