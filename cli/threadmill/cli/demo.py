"""`threadmill demo`: a fleet, three tenants, 300 questions, an outage, a worker killed, and a verdict.

Thirty conversations of ten turns are enqueued at once. Each is a thread; most questions can only be
understood with the turns before them, so order and state matter. A quarter of the way the catalogue that the
graph calls goes down: on every thread the next run fails, and its breaker opens and holds them back. The few
that it lets through from time to time fail again, become dead letters, which hold their threads, and are
replayed until the catalogue is back. Later a worker is killed in the midst of its runs, and they go on
elsewhere. What then stands in the ledger and in the checkpoints is judged.
"""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
from psycopg import sql
from rich.console import Console
from rich.text import Text

from threadmill.cli.catalogue_service import CatalogueService
from threadmill.cli.database import upgrade_database
from threadmill.cli.demo_accident import cause_accident
from threadmill.cli.demo_evidence import gather
from threadmill.cli.demo_fleet import DemoFleet
from threadmill.cli.demo_progress import count_workers, read_progress
from threadmill.cli.demo_verdict import Accident, Check, Question, judge
from threadmill.cli.demo_view import Moment, accident_view, live_view, verdict_view
from threadmill.cli.embedded import DATABASE, EmbeddedServices
from threadmill.cli.output import console, show
from threadmill.core.database import Database
from threadmill.core.logs import configure_logs
from threadmill.core.settings import Settings
from threadmill.graphs.samples.questions import conversations
from threadmill.producers import Producer

TENANTS = ("acme", "globex", "initech")
WORKERS = 2
GRAPHS_FILE = {
    "graphs": {"librarian": "threadmill.graphs.samples.librarian:graph"},
    "dependencies": [],
    "threadmill": {
        "graphs": {
            "librarian": {
                "on_dead_letter": "hold",
                # Shorter than the defaults, so that a few runs fail for good during so short an outage.
                "max_attempts": 2,
                "retry_delay": 0.5,
                "retry_delay_max": 0.5,
                "breaker_cooldown": 1.5,
            }
        }
    },
}

# Requests, about a quarter of all, and seconds.
CATALOGUE_UP_FOR = 80
CATALOGUE_OUTAGE = 6.0

# One of these is killed when so many runs are done, which is after the outage; and who takes its place.
KILLED_AT = 160
VICTIMS, SUCCESSOR = [f"worker-{number}" for number in range(1, WORKERS + 1)], f"worker-{WORKERS + 1}"

# Seconds. A demo that is not done by then is judged as it stands.
START_TIMEOUT = 40.0
RUN_TIMEOUT = 70.0
LOOK_AGAIN_AFTER = 0.1


def run_demo(folder: Path, *, json: bool = False) -> int:
    """The exit status: 0 if everything that the demo promises was found to be so, 1 otherwise.

    Services, database and logs are in `folder`/demo; a `threadmill dev` of the same folder is not touched.
    The database is a new one each time. With `json` the verdict is one JSON document on stdout, and all
    else is on stderr. To be called on the main thread: Ctrl-C raises KeyboardInterrupt, SIGTERM and SIGHUP
    SystemExit, once everything is stopped. Raises FolderInUse, EmbeddedServiceFailed and ProcessEnded.
    """
    started = time.monotonic()
    home = folder.resolve() / "demo"
    out = console(stderr=json)
    checks = _play(home, out)
    seconds = time.monotonic() - started
    holds = all(check.holds for check in checks)
    document = {
        "holds": holds,
        "seconds": round(seconds, 1),
        "folder": str(home),
        "checks": [check.to_dict() for check in checks],
    }
    show(json, document, lambda: verdict_view(checks, seconds))
    if not holds:
        out.print(Text(f"The logs are in {home / 'logs'}", style="dim"))
    return 0 if holds else 1


def _play(home: Path, out: Console) -> list[Check]:
    say = _speaker(out)
    with ExitStack() as stack:
        say(f"Postgres and Redis start in {home}")
        services = stack.enter_context(EmbeddedServices(home))
        settings = _prepare(home, services)
        say(f"{WORKERS} workers and a replay worker start, with their logs in {home / 'logs'}")
        catalogue = stack.enter_context(CatalogueService(up_for=CATALOGUE_UP_FOR, outage=CATALOGUE_OUTAGE))
        environment = {"LIBRARIAN_CATALOGUE_URL": catalogue.url}
        fleet = stack.enter_context(DemoFleet(settings, home / "logs", workers=WORKERS, env=environment))
        database = stack.enter_context(closing(Database(settings)))
        producer = stack.enter_context(Producer(settings))
        _wait_for_workers(fleet, database)
        questions = _enqueue(producer)
        threads = {question.place for question in questions}
        say(
            f"{len(questions)} questions are enqueued, of {len(TENANTS)} tenants on {len(threads)} threads. "
            f"After {CATALOGUE_UP_FOR} requests the catalogue that the answers need goes down for "
            f"{CATALOGUE_OUTAGE:g} s: runs are tried again, a breaker holds them back, and those that fail "
            f"for good become dead letters, which the replay worker brings back. After {KILLED_AT} runs "
            f"a worker is killed, and the runs that it holds go on elsewhere when its lease has run out, "
            f"after {settings.heartbeat_timeout:g} s."
        )
        accident = _watch(fleet, database, catalogue, out)
        return judge(gather(settings, database, producer, questions, accident))


def _speaker(out: Console) -> Callable[[str], None]:
    return lambda line: out.print(Text(line, style="dim"))


def _prepare(home: Path, services: EmbeddedServices) -> Settings:
    """The settings of a database that is new and migrated, and the langgraph.json that they name."""
    # Bells of an earlier demo may still be in Redis. They name runs that no longer are, so workers drop them.
    with psycopg.connect(services.database_url, dbname="postgres", autocommit=True) as connection:
        name = sql.Identifier(DATABASE)
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(name))
        connection.execute(sql.SQL("create database {}").format(name))
    graphs_file = home / "langgraph.json"
    graphs_file.write_text(json_format.dumps(GRAPHS_FILE, indent=2) + "\n")
    # Named here is what must be so for the demo, whatever the environment says.
    settings = Settings(
        folder=home,
        database_url=services.database_url,
        broker_url=services.broker_url,
        graphs_file=graphs_file,
        replay_delay=1,
        replay_delay_max=2,
        max_replays=20,
        heartbeat_interval=2,
        heartbeat_timeout=6,
        sweep_interval=1,
        drain_timeout=5,
        max_pending=None,
        max_pending_per_tenant=None,
    )
    # Below a warning, this process has nothing to say beside its view.
    configure_logs(settings.model_copy(update={"log_level": "WARNING"}))
    upgrade_database(settings)
    return settings


def _wait_for_workers(fleet: DemoFleet, database: Database) -> None:
    """Returns when all serve, or at the time limit: then those that do have to do."""
    deadline = time.monotonic() + START_TIMEOUT
    while database.carry_out(count_workers()) < WORKERS and time.monotonic() < deadline:
        fleet.check()
        time.sleep(LOOK_AGAIN_AFTER)


def _enqueue(producer: Producer) -> list[Question]:
    """Enqueues the first question of all conversations, then the second of all, and so on."""
    lanes = [(*_place(number), conversation) for number, conversation in enumerate(conversations())]
    turns = range(max(len(conversation.turns) for _, _, conversation in lanes))
    asked = [
        (tenant, thread_id, conversation.turns[turn])
        for turn in turns
        for tenant, thread_id, conversation in lanes
        if turn < len(conversation.turns)
    ]
    runs = producer.enqueue_many(
        {"graph": "librarian", "input": {"question": turn.question}, "tenant": tenant, "thread_id": thread_id}
        for tenant, thread_id, turn in asked
    )
    return [
        Question(run.id, tenant, thread_id, turn.question, frozenset(turn.modules))
        for run, (tenant, thread_id, turn) in zip(runs, asked, strict=True)
    ]


def _place(number: int) -> tuple[str, str]:
    """Tenant and thread id of a conversation. All tenants use the same thread ids, on purpose."""
    return TENANTS[number % len(TENANTS)], f"conversation-{number // len(TENANTS) + 1}"


def _watch(
    fleet: DemoFleet, database: Database, catalogue: CatalogueService, out: Console
) -> Accident | None:
    """Shows the progress until nothing is left to do, or the time is over; and has the accident happen."""
    started = time.monotonic()
    accident = None
    with live_view(out) as show_moment:
        while True:
            fleet.check()
            elapsed = time.monotonic() - started
            progress = database.carry_out(read_progress())
            show_moment(Moment(elapsed, progress, catalogue.state()))
            if progress.is_over or elapsed > RUN_TIMEOUT:
                return accident
            if accident is None and progress.whole.done >= KILLED_AT:
                accident = cause_accident(fleet, database, VICTIMS, successor=SUCCESSOR)
                if accident is not None:
                    out.print(accident_view(accident, SUCCESSOR))
            time.sleep(LOOK_AGAIN_AFTER)
