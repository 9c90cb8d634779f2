"""Replays of many dead letters from the command line: progress, and how they are stopped and continued."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from threadmill.cli.dead_letter_views import rate_words
from threadmill.cli.output import Cells, ago, coloured, console, listing, note, show, text
from threadmill.core.errors import JobNotRunning
from threadmill.dlq import Desk, ReplayJob


def follow(desk: Desk, job: ReplayJob, *, as_json: bool) -> None:
    """Runs the job until it is done or stopped, by Ctrl-C or from another terminal.

    The status is 1 where it was stopped before its end.
    """
    if not as_json:
        note(f"job {job.id}, {job.total} dead letters")
        note(f"stop it with Ctrl-C, or from elsewhere with `threadmill dlq stop {job.id}`")
    with _stopped_by_signals(desk, job.id), _bar(job) as bar:
        task = bar.add_task("replaying", total=job.total, completed=job.replayed + job.skipped)
        ended = desk.run_job(
            job.id, on_progress=lambda now: bar.update(task, completed=now.replayed + now.skipped)
        )
    show(as_json, ended.to_dict(), lambda: job_line(ended))
    if ended.status != "done":
        note(f"go on with `threadmill dlq continue {ended.id}`")
        raise typer.Exit(1)


def _bar(job: ReplayJob) -> Progress:
    out = console(stderr=True)
    return Progress(
        TextColumn("replaying"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal or not job.total,
    )


@contextmanager
def _stopped_by_signals(desk: Desk, job_id: str) -> Iterator[None]:
    """Has SIGINT and SIGTERM stop the job as `dlq stop` does, by its row: it ends between two dead letters.

    A second signal has its usual effect.
    """
    asked, over = threading.Event(), threading.Event()
    before: dict[int, Any] = {}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(*_: object) -> None:
        put_back()
        asked.set()

    def stop() -> None:
        asked.wait()
        if not over.is_set():
            with suppress(JobNotRunning):  # it was done, or somebody else has stopped it
                desk.stop_job(job_id)

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        put_back()
        over.set()
        asked.set()
        stopper.join()


def job_line(job: ReplayJob) -> RenderableType:
    """How far a job has come, in one line."""
    skipped = f", {job.skipped} skipped" if job.skipped else ""
    return Text.assemble(
        "job ",
        (job.id, "bold"),
        " ",
        coloured(job.status),
        f": {job.replayed} of {job.total} given back{skipped}",
    )


def jobs_table(jobs: list[ReplayJob]) -> RenderableType:
    """The jobs, one a line."""
    rows: list[Cells] = [
        {
            "id": job.id,
            "status": coloured(job.status),
            "replayed": str(job.replayed),
            "skipped": str(job.skipped or ""),
            "of": str(job.total),
            "mode": job.mode,
            "rate": rate_words(job.rate) if job.rate else "",
            "by": text(job.by),
            "begun": ago(job.created_at),
            "chosen by": text(filter_words(job.filter)),
        }
        for job in jobs
    ]
    return listing(
        rows,
        elastic=("by", "chosen by"),
        expendable=("begun", "by", "mode", "rate", "chosen by"),
        sparse=("rate", "skipped"),
    )


def filter_words(chosen: dict[str, Any]) -> str:
    """A job's filter as one would type it."""
    if "ids" in chosen:
        return f"{len(chosen['ids'])} ids"
    return " ".join(f"{name}={value}" for name, value in chosen.items() if value is not None) or "all"
