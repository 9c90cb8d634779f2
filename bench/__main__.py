"""`python -m bench`: Threadmill beside bare LangGraph and a naive Celery task; `python -m bench profile`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from bench import dead_letters, fairness, growth, growth_of_ledger, profiling, report
from bench import waiting as runs_that_wait
from bench.arena import arena
from bench.child import ChildFailed
from bench.contestant import Stalled, WrongState
from bench.harness import play
from bench.load import QUICK, Load
from bench.machine import describe
from threadmill.core.errors import ThreadmillError

FAILURES = (ThreadmillError, ChildFailed, Stalled, WrongState, profiling.PySpyMissing)
WIDTH = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
out = Console(width=None if Console().is_terminal else WIDTH, highlight=False)

QuickOption = Annotated[bool, typer.Option("--quick", help="A small load, to see that it works.")]
RoundsOption = Annotated[int | None, typer.Option("--rounds", min=1, help="How often everybody runs.")]
TopOption = Annotated[int, typer.Option("--top", min=1, help="How many functions are listed.")]


@app.callback(invoke_without_command=True)
def bench(context: typer.Context, quick: QuickOption = False, rounds: RoundsOption = None) -> None:
    """Measures every contestant in each round and prints one table."""
    if context.invoked_subcommand is not None:
        return
    load = QUICK if quick else Load()
    load = replace(load, rounds=rounds or load.rounds)
    with arena() as ground:
        machine = describe(ground)
        with out.status("starting") as status:
            played = play(ground, load, status.update)
            status.update("dead letters")
            pages = dead_letters.measure(ground, load.dead_letters)
    out.print(dead_letters.table(pages, load.dead_letters))
    out.print(report.table(played, machine, load))
    out.print(f"written to {report.write(played, machine, load)}", soft_wrap=True)


@app.command("dead-letters")
def pages_of_dead_letters(quick: QuickOption = False) -> None:
    """Measures how fast dead letters are found among a million, and nothing else."""
    load = QUICK if quick else Load()
    with arena() as ground, out.status("dead letters"):
        found = dead_letters.measure(ground, load.dead_letters)
    out.print(dead_letters.table(found, load.dead_letters))


@app.command()
def waiting(quick: QuickOption = False) -> None:
    """Measures runs that wait: 1,000 at once in one process, and 10,000 in two."""
    sizes = [(200, 1, 2.0)] if quick else [(1_000, 1, 10.0), (10_000, 2, 90.0)]
    with arena() as ground, out.status("waiting"):
        found = [runs_that_wait.measure(ground, *size) for size in sizes]
    out.print(runs_that_wait.table(found))


@app.command("fairness")
def fair(quick: QuickOption = False) -> None:
    """Measures what a flood of one tenant costs ten others, and the shares by weight."""
    with arena() as ground, out.status("fairness"):
        found = fairness.measure(ground, 5 if quick else 30, 2_000 if quick else fairness.FLOOD)
    out.print(fairness.table(found))


@app.command("growth")
def of_one_thread(quick: QuickOption = False) -> None:
    """Measures what a turn costs on a thread that grows, with the stock saver and with Threadmill's."""
    places = (20, 50) if quick else (10, 50, 200, 500)
    with arena() as ground, out.status("growth") as status:
        found = growth.measure(ground, places, status.update)
    out.print(growth.table(found))


@app.command("ledger")
def of_the_ledger(
    runs: Annotated[
        int, typer.Option("--runs", min=1_000, help="Finished runs to which it grows.")
    ] = 1_000_000,
    hold: Annotated[float, typer.Option("--hold", help="Seconds a transaction is held open.")] = 60,
) -> None:
    """Measures the hot transactions on a ledger that has grown, and beside a transaction held open."""
    with arena() as ground, out.status("growth of the ledger") as status:
        found = growth_of_ledger.measure(ground, runs, hold, status.update)
    out.print(growth_of_ledger.table(found))


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
