"""Where an attack takes place: servers of its own, a fleet behind proxies, and a diary in the database."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import structlog
from tests.chaos import evidence as evidence_module
from tests.chaos.evidence import Evidence
from tests.chaos.fleet import Fleet
from tests.chaos.proxy import Proxies, Proxy
from tests.chaos.servers import Postgres, Redis

from threadmill.core import migrate
from threadmill.core.policy import History
from threadmill.core.settings import Settings
from threadmill.producers import Producer
from threadmill.workers.tables import upgrade_langgraph_tables

SERVED = Path(__file__).with_name("served.py")
UNFINISHED = "select count(*) from threadmill.runs where status in ('pending', 'running')"


class Arena:
    """settings: of those who enqueue. They reach Postgres directly and Redis by the proxy `ours`."""

    def __init__(
        self, settings: Settings, postgres: Postgres, redis: Redis, ours: Proxy, fleet: Fleet
    ) -> None:
        self.settings, self.postgres, self.redis = settings, postgres, redis
        self.ours, self.fleet = ours, fleet

    def settle(self, patience: float) -> None:
        """Returns when nothing is pending or running, or the patience is at its end."""
        ends_at = time.monotonic() + patience
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            while time.monotonic() < ends_at:
                self.fleet.tick()
                if connection.execute(UNFINISHED).fetchone() == (0,):
                    return
                time.sleep(0.1)

    def gather(self) -> Evidence:
        """What is to be known once the workers have stopped."""
        with (
            psycopg.connect(self.postgres.url, autocommit=True) as connection,
            Producer(self.settings) as producer,
        ):
            evidence = evidence_module.gather(connection, producer)
        evidence.lives = self.fleet.lives
        return evidence


@contextmanager
def arena(
    folder: Path, workers: int, nap: float, history: History = "full", **overrides: Any
) -> Iterator[Arena]:
    """An arena with a fleet that is ready to be started. history: the graph's policy.
    overrides: of the settings."""
    with ExitStack() as stack:
        # That bells cannot be rung is what the attack is about, and no news.
        stack.enter_context(structlog.testing.capture_logs())
        sockets = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # a socket's path is short
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        postgres, redis = Postgres(folder, sockets), Redis(folder, sockets)
        stack.callback(postgres.stop)
        postgres.create()
        stack.callback(redis.stop)
        redis.start()
        proxies = Proxies()
        stack.callback(proxies.close)
        ours = proxies.to(redis.socket)
        settings = _settings(folder, postgres, ours, history, overrides)
        migrate.upgrade(settings)
        upgrade_langgraph_tables(settings)
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(evidence_module.DIARY.encode())
        environment = {"CHAOS_DATABASE_URL": postgres.url, "CHAOS_NAP": str(nap)}
        fleet = Fleet(settings, workers, proxies, postgres, redis, environment)
        stack.callback(fleet.stop)
        yield Arena(settings, postgres, redis, ours, fleet)


def _settings(
    folder: Path, postgres: Postgres, ours: Proxy, history: History, overrides: dict[str, Any]
) -> Settings:
    shutil.copy(SERVED, folder / "graphs.py")
    graphs_file = folder / "langgraph.json"
    served = {"graphs": {"ledger": "./graphs.py:ledger"}, "dependencies": ["."]}
    policies = {"graphs": {"ledger": {"history": history}}}
    graphs_file.write_text(json.dumps({**served, "threadmill": policies}))
    return Settings(
        database_url=postgres.url,
        broker_url=f"redis://127.0.0.1:{ours.port}/0",
        queue="chaos",
        folder=folder / ".threadmill",
        graphs_file=graphs_file,
        log_format="json",
        **overrides,
    )
