"""Postgres and Redis of the benchmark's own, and a fresh database for each contestant's round."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
from langgraph.checkpoint.postgres import PostgresSaver
from redis import Redis

from threadmill.cli.embedded import EmbeddedServices
from threadmill.core import migrate
from threadmill.core.notice import connect_redis
from threadmill.core.settings import Settings
from threadmill.workers.tables import upgrade_langgraph_tables

STOCK = "bench_stock"  # a database that holds what the stock saver's setup() makes
LEDGER = "bench_ledger"  # one that holds what `threadmill db upgrade` makes
# With the time of each commit one can tell how long a waiter waits after it.
POSTGRES_SETTINGS = {"track_commit_timestamp": "on"}
RESULTS_DATABASE = 1  # of Redis, for Celery's results


@dataclass(frozen=True)
class Arena:
    """Where all contestants run. cores: how many this process may use; each gets as many worker processes."""

    folder: Path
    database_url: str
    broker_url: str
    postgres: psutil.Process
    redis: psutil.Process
    cores: int

    @property
    def results_url(self) -> str:
        """Where the naive Celery application keeps its results."""
        return f"{self.broker_url}?virtual_host={RESULTS_DATABASE}"

    def database(self, name: str) -> str:
        """The URL of the database of this name, as a superuser."""
        return urlsplit(self.database_url)._replace(path=f"/{name}").geturl()

    @contextmanager
    def fresh_database(self, template: str, name: str = "round") -> Iterator[str]:
        """The URL of a copy of STOCK or LEDGER, and an empty Redis. name: of one among several at a time.

        Ends with a Postgres checkpoint, so that no contestant writes what another left dirty.
        """
        name = f"{template}_{name}"
        self.connect_redis().flushall()
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute(f"create database {name} template {template}")
            connection.execute("checkpoint")
            try:
                yield self.database(name)
            finally:
                connection.execute(f"drop database {name} with (force)")

    def settings(self, database_url: str) -> Settings:
        """Threadmill's settings: the defaults, on these services."""
        return Settings(
            folder=self.folder / "threadmill",
            database_url=database_url,
            broker_url=self.broker_url,
            graphs_file=Path(__file__).parent / "langgraph.json",
        )

    def connect_redis(self) -> Redis:
        client = connect_redis(self.settings(""), timeout=10)
        assert client is not None
        return client


@contextmanager
def arena() -> Iterator[Arena]:
    """Starts the services in a temporary folder, with fsync on; stops them and removes it at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="threadmill-bench-") as folder,
        EmbeddedServices(Path(folder), postgres_settings=POSTGRES_SETTINGS) as services,
    ):
        made = Arena(
            Path(folder),
            services.database_url,
            services.broker_url,
            _process(Path(folder) / "postgres" / "postmaster.pid"),
            _process(Path(folder) / "redis.pid"),
            _cores(),
        )
        _make_templates(made)
        yield made


def _process(pid_file: Path) -> psutil.Process:
    return psutil.Process(int(pid_file.read_text().split()[0]))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_templates(made: Arena) -> None:
    with psycopg.connect(made.database_url, autocommit=True) as connection:
        connection.execute(f"create database {STOCK}")
        connection.execute(f"create database {LEDGER}")
    with PostgresSaver.from_conn_string(made.database(STOCK)) as saver:
        saver.setup()
    settings = made.settings(made.database(LEDGER))
    migrate.upgrade(settings)
    upgrade_langgraph_tables(settings)
