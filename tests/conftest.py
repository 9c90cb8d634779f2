"""Real Postgres and Redis for the tests: embedded, or those that the environment names."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from threadmill.cli.embedded import EmbeddedServices
from threadmill.core import migrate
from threadmill.core.settings import Settings
from threadmill.producers import Producer
from threadmill.workers.tables import upgrade_langgraph_tables

TEMPLATE = "threadmill_template"
# Nothing needs to outlive a crash; and what the planner knows is what a test has told it by `analyze`.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
MEMORY = Path("/dev/shm")
ROOM = 4 * 2**30

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile(
    "threadmill", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("threadmill")

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    chaos = parser.getgroup("chaos", "tests/chaos, where the fleet is attacked")
    chaos.addoption("--long", action="store_true", help="for minutes, with the default settings")
    chaos.addoption("--chaos-seconds", type=float, help="how long the attack lasts")
    chaos.addoption("--chaos-seed", type=int, help="of the schedule, to have it again")
    chaos.addoption("--chaos-report", metavar="FILE", help="where the figures go, as JSON")


def with_database(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    parts = conninfo_to_dict(url)
    port = parts.get("port", 5432)
    query = f"?host={parts['host']}&port={port}" if str(parts.get("host", "")).startswith("/") else ""
    user = parts.get("user", "postgres")
    password = f":{parts['password']}" if parts.get("password") else ""
    host = "" if query else f"{parts.get('host', 'localhost')}:{port}"
    return f"postgresql://{user}{password}@{host}/{name}{query}"


@pytest.fixture(scope="session")
def services_folder() -> Iterator[Path]:
    """Where the services keep their data: in memory where there is room, as each test copies a database."""
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
    with tempfile.TemporaryDirectory(prefix="threadmill-", dir=MEMORY if roomy else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def services(services_folder: Path) -> Iterator[tuple[str, str]]:
    """(database URL of a superuser, broker URL), with a migrated template database."""
    database_url = os.environ.get("THREADMILL_TEST_DATABASE_URL", "")
    broker_url = os.environ.get("THREADMILL_TEST_BROKER_URL", "")
    with EmbeddedServices(
        services_folder, database=not database_url, broker=not broker_url, postgres_settings=FAST
    ) as embedded:
        database_url = database_url or embedded.database_url
        broker_url = broker_url or embedded.broker_url
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"drop database if exists {TEMPLATE}")
            connection.execute(f"create database {TEMPLATE}")
        template = Settings(database_url=with_database(database_url, TEMPLATE), broker_url=broker_url)
        migrate.upgrade(template)
        upgrade_langgraph_tables(template)
        yield database_url, broker_url


@contextmanager
def database_copied(server_url: str) -> Iterator[str]:
    """The URL of a migrated and empty database on the server, for as long as the context lasts."""
    name = f"threadmill_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"create database {name} template {TEMPLATE} strategy file_copy")
        yield with_database(server_url, name)
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture
def settings(services: tuple[str, str], tmp_path: Path) -> Iterator[Settings]:
    """Settings of a database and a queue of the test's own."""
    server_url, broker_url = services
    with database_copied(server_url) as database_url:
        yield Settings(
            database_url=database_url,
            broker_url=broker_url,
            queue=str(conninfo_to_dict(database_url)["dbname"]),
            folder=tmp_path / ".threadmill",
            graphs_file=tmp_path / "langgraph.json",
            graphs_refresh=0.001,
            log_format="json",
        )


@pytest.fixture
def admin(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to the test's database, to look at what row-level security hides."""
    with psycopg.connect(settings.database_url, autocommit=True) as connection:
        connection.execute("set search_path to threadmill")
        yield connection


@pytest.fixture
def producer(settings: Settings) -> Iterator[Producer]:
    with Producer(settings) as producer:
        yield producer


@pytest.fixture
def serve(settings: Settings) -> Callable[..., None]:
    """Writes graphs.py and langgraph.json: serve(source, name={policy}, …), a graph a keyword."""

    def write(source: str, **graphs: dict[str, Any]) -> None:
        folder = settings.graphs_file.parent
        (folder / "graphs.py").write_text(textwrap.dedent(source))
        settings.graphs_file.write_text(
            json.dumps(
                {
                    "graphs": {name: f"./graphs.py:{name}" for name in graphs},
                    "dependencies": ["."],
                    "threadmill": {"graphs": {name: policy for name, policy in graphs.items() if policy}},
                }
            )
        )

    return write


class WorkerProcess:
    """A real worker process; its log lines are kept, and can be waited for. prelude: code it runs first."""

    def __init__(self, settings: Settings, pool: str, *, prelude: str = "", **overrides: Any) -> None:
        values = {**settings.model_dump(mode="json"), **overrides}
        environment = {
            **os.environ,
            **{
                f"THREADMILL_{name.upper()}": str(value)
                for name, value in values.items()
                if value is not None
            },
        }
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"{prelude}\nimport sys; from threadmill.core.settings import Settings;"
                "from threadmill.workers.worker import run_worker;"
                "sys.exit(run_worker(Settings(), sys.argv[1]))",
                pool,
            ],
            env=environment,
            cwd=settings.graphs_file.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, text: str, timeout: float = 30) -> str:
        """The first log line that holds the text, now or later."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self.process.poll() is not None, timeout)
            line = found()
        assert line is not None, f"no line with {text!r} in:\n" + "\n".join(self.lines[-40:])
        return line

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit status after this signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(30)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@pytest.fixture
def start_worker(settings: Settings) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts worker processes, ready to serve; they are stopped at the end of the test."""
    workers: list[WorkerProcess] = []

    def start(pool: str = "asyncio", **overrides: Any) -> WorkerProcess:
        worker = WorkerProcess(settings, pool, **overrides)
        workers.append(worker)
        worker.wait_for("worker.ready")
        return worker

    yield start
    for worker in workers:
        worker.stop(signal.SIGTERM)
