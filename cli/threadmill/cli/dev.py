"""`threadmill dev`: everything in one foreground, with embedded services where no URL is set."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import Annotated, TextIO, cast

import typer

from threadmill.cli.broker import broker_address, check_broker
from threadmill.cli.database import upgrade_database
from threadmill.cli.embedded import EmbeddedServices, write_services_file
from threadmill.cli.graphs import require_graphs_file
from threadmill.cli.invocation import JsonOption, invocation_of
from threadmill.cli.output import console, note, show
from threadmill.cli.supervisor import Child, Supervisor
from threadmill.core.celery_app import create_celery_app
from threadmill.core.database import address
from threadmill.core.settings import Settings

FLOWER_READY = "flower.ready"
EVENTS_TIMEOUT = 10.0
# What a worker may need beyond its `drain_timeout`, in seconds: to give up what reached no checkpoint, to see
# the process of its quarantine end, and to end itself.
ENDING_TIMEOUT = 30.0
_URL = re.compile(r"http://[^\s\"']+")


def dev(
    context: typer.Context,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Worker processes.")] = 1,
    concurrency: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs at once in each worker; default: 100.")
    ] = None,
    flower_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help="Default: 5555; a free one where it is taken."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run Postgres, Redis, workers, replay and Flower in the foreground, for work on your graphs.

    Services whose URL is set are used; the others are embedded, and keep their data under .threadmill.
    While it runs, the other commands find them from the same folder. At Ctrl-C workers stop each run at its
    next step, and the next start goes on from there; a second Ctrl-C ends everything at once.
    """
    settings = invocation_of(context).settings(concurrency=concurrency, flower_port=flower_port)
    if workers:
        require_graphs_file(settings, "start with --workers 0")
    started = time.monotonic()
    folder = settings.folder.absolute()
    note(f"starting in {folder} …")
    with EmbeddedServices(
        folder, database=not settings.database_url, broker=not settings.broker_url
    ) as services:
        found = {
            "folder": folder,
            "database_url": settings.database_url or services.database_url,
            "broker_url": settings.broker_url or services.broker_url,
        }
        urls = {
            "database": services.database_url or address(settings.database_url),
            "broker": services.broker_url or broker_address(settings),
        }
        running = settings.model_copy(update=found)
        check_broker(running)
        upgrade_database(running)
        write_services_file(folder, running.database_url, running.broker_url)
        status = _supervise(running, workers, urls, started, as_json)
    raise typer.Exit(status)


def _supervise(settings: Settings, workers: int, urls: dict[str, str], started: float, as_json: bool) -> int:
    """Runs the processes until one ends or we are told to stop, and gives the exit status."""
    lines = _FlowerLines(sys.stderr if as_json else sys.stdout)

    def ready() -> None:
        _let_flower_see_runs(settings, workers)
        found = {**urls, "flower": lines.url}
        document = {f"{name}_url": url for name, url in found.items()}
        show(
            as_json,
            {"status": "ready", **document, "workers": workers},
            *_ready_lines(found, workers, started),
        )

    children = _children(settings, workers, as_console=not as_json and sys.stdout.isatty())
    grace = settings.drain_timeout + ENDING_TIMEOUT
    return Supervisor(children, on_ready=ready, output=cast(TextIO, lines), grace=grace).run()


def _let_flower_see_runs(settings: Settings, workers: int) -> None:
    """Switches task events on in the workers: Flower does within seconds, and misses what runs before."""
    if workers:
        app = create_celery_app(settings)
        app.control.enable_events(reply=True, limit=workers, timeout=EVENTS_TIMEOUT)
        app.close()


def _ready_lines(urls: dict[str, str], workers: int, started: float) -> list[Callable[[], str]]:
    took = time.monotonic() - started
    last = f"ready after {took:.1f} s with {workers} worker{'' if workers == 1 else 's'}; Ctrl-C stops it all"
    return [lambda: "\n".join([*(f"{name:<10}{url}" for name, url in urls.items()), last])]


def _children(settings: Settings, workers: int, *, as_console: bool) -> list[Child]:
    environment = {
        "THREADMILL_FOLDER": str(settings.folder),
        "THREADMILL_DATABASE_URL": settings.database_url,
        "THREADMILL_BROKER_URL": settings.broker_url,
    }
    if settings.log_level in ("WARNING", "ERROR"):  # that a process is ready is told at INFO
        environment["THREADMILL_LOG_LEVEL"] = "INFO"
    if as_console and settings.log_format == "auto":  # to the children their pipe to us is no terminal
        environment["THREADMILL_LOG_FORMAT"] = "console"

    def child(name: str, ready: str, *arguments: str) -> Child:
        return Child(
            name, [sys.executable, "-P", "-m", "threadmill.cli.main", *arguments], environment, ready
        )

    concurrency = ["--concurrency", str(settings.concurrency)]
    return [
        *(
            child(f"worker-{number}" if workers > 1 else "worker", "worker.ready", "worker", *concurrency)
            for number in range(1, workers + 1)
        ),
        child("replay", "replay.ready", "dlq", "drain"),
        child("flower", FLOWER_READY, "flower", "--port", str(settings.flower_port), "--any-port"),
    ]


class _FlowerLines:
    """A stream for the processes' lines, out of which Flower's address is read as it passes.

    Which port is free is known when Flower has taken it: two that start side by side would both find the
    same one free beforehand.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.url = ""

    def write(self, line: str) -> int:
        if FLOWER_READY in line and (found := _URL.search(line)):
            self.url = found[0]
        return self._stream.write(line)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        """Whether the lines may have colours."""
        return self._stream.isatty() and not console().no_color
