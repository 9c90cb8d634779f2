"""Embedded Postgres and Redis with real owners, which end in every way that a process can."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from threadmill.cli.embedded import EmbeddedServices, write_services_file
from threadmill.cli.folder import socket_folder
from threadmill.core.errors import EmbeddedServiceFailed, ExtraMissing, FolderInUse, SettingsInvalid
from threadmill.core.settings import SERVICES_FILE, Settings, running_services

# What a power cut would take is not what these tests are about.
QUICK = {"fsync": "off"}

OWNER = """
import os, signal, sys
from pathlib import Path
from threadmill.cli import embedded

# Where the tests run in the background, it is ignored; a terminal would not have it so.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, manner = Path(sys.argv[1]), sys.argv[2]
if manner == "no death signal":
    tied = embedded.tied
    embedded.tied = lambda argv, death_signal, user=None: tied(argv, 0, user)
with embedded.EmbeddedServices(folder, postgres_settings={"fsync": "off"}) as services:
    embedded.write_services_file(folder, services.database_url, services.broker_url)
    if manner == "handles SIGINT":
        # Not print: the signal may come while "up" is being printed, and a buffer is not reentrant.
        signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))
    print("up", flush=True)
    if sys.stdin.readline() == "raise\\n":
        raise RuntimeError("on request")
"""


@contextmanager
def owner(folder: Path, manner: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that runs the services in `folder`, up."""
    argv = [sys.executable, "-c", OWNER, str(folder), manner]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, text=True, start_new_session=True, **pipes) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n", process.communicate()[1]
            yield process
        finally:
            process.kill()


@contextmanager
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is no server, of the user that Postgres runs as."""
    with subprocess.Popen(["sleep", "60"], user="nobody" if os.geteuid() == 0 else None) as process:
        try:
            yield process
        finally:
            process.kill()


def services(folder: Path, **options: Any) -> EmbeddedServices:
    return EmbeddedServices(folder, postgres_settings=QUICK, **options)


def query(database_url: str, statement: str) -> list[Any]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return [row[0] for row in cursor] if cursor.description else []


def broker(url: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=url.removeprefix("redis+socket://"))


def processes(folder: Path) -> set[int]:
    """The pids of the servers, which have the folder in their command lines, and of their children."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in argument for argument in process.info["cmdline"] or []):
            with suppress(psutil.NoSuchProcess):
                found |= {process.pid, *(child.pid for child in process.children(recursive=True))}
    return found


def no_process_within(folder: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while processes(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the services ran before, for tests to which a first start would add but time."""
    folder = tmp_path_factory.mktemp("used")
    with services(folder):
        pass
    return folder


def test_data_are_kept_between_starts(tmp_path: Path) -> None:
    with services(tmp_path) as first:
        query(first.database_url, "create table kept as select 42 as answer")
        with broker(first.broker_url) as client:
            client.rpush("bells", "one")
    with services(tmp_path) as second:
        assert query(second.database_url, "select answer from kept") == [42]
        with broker(second.broker_url) as client:
            assert client.lrange("bells", 0, -1) == [b"one"]
        assert (second.database_url, second.broker_url) == (first.database_url, first.broker_url)


def test_two_folders_run_side_by_side_and_share_nothing(tmp_path: Path) -> None:
    with services(tmp_path / "a") as a, services(tmp_path / "b") as b:
        query(a.database_url, "create table only_in_a ()")
        assert query(b.database_url, "select to_regclass('only_in_a')") == [None]
        with broker(a.broker_url) as client_a, broker(b.broker_url) as client_b:
            client_a.set("only", "in a")
            assert client_b.get("only") is None


def test_what_is_promised_of_the_servers_is_so(tmp_path: Path) -> None:
    with EmbeddedServices(tmp_path) as embedded:
        shown = "select current_setting(name) from unnest(array['fsync', 'listen_addresses']) name"
        assert query(embedded.database_url, shown) == ["on", ""]
        assert query(embedded.database_url, "select current_database()") == ["threadmill"]
        assert int(query(embedded.database_url, "show max_connections")[0]) == 200
        with broker(embedded.broker_url) as client:
            settings = client.config_get()
            assert settings["maxmemory-policy"] == "noeviction"
            assert settings["port"] == "0"


def test_variables_that_are_meant_for_another_postgres_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere", "PGUSER": "nobody", "PGDATA": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    with services(tmp_path, broker=False) as embedded:
        assert query(embedded.database_url, "select current_user") == ["postgres"]


def test_only_what_was_asked_for_runs(tmp_path: Path) -> None:
    with services(tmp_path, database=False) as embedded:
        assert embedded.database_url == ""
        assert embedded.broker_url != ""
        assert not (tmp_path / "postgres").exists()
    with services(tmp_path, broker=False) as embedded:
        assert embedded.broker_url == ""
        assert embedded.database_url != ""


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("end of the block", 0),
        ("exception", 1),
        (signal.SIGINT, -signal.SIGINT),
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGHUP, 128 + signal.SIGHUP),
    ],
)
def test_no_process_is_left_when_the_owner_ends_by(
    ending: str | signal.Signals, status: int, used: Path
) -> None:
    with owner(used) as process:
        # A client that stays connected does not hold up the end.
        with psycopg.connect(running_services(used)["database_url"]):
            started = processes(used) - {process.pid}
            assert len(started) > 5
            if isinstance(ending, signal.Signals):
                process.send_signal(ending)
                process.wait()
            else:
                process.communicate("raise\n" if ending == "exception" else "\n", timeout=20)
        assert process.returncode == status
    assert processes(used) == set()
    assert not any(psutil.pid_exists(pid) for pid in started)
    assert not (used / SERVICES_FILE).exists()
    assert not (used / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the signal that Linux sends at a parent's death")
def test_no_process_is_left_when_the_owner_is_killed(used: Path) -> None:
    with owner(used) as process:
        process.kill()
        process.wait()
        assert no_process_within(used, 10)


@pytest.mark.parametrize("manner", ["", "no death signal"])
def test_a_start_after_a_killed_owner_finds_the_data_and_no_second_server(
    manner: str, tmp_path: Path
) -> None:
    with owner(tmp_path, manner) as process:
        urls = running_services(tmp_path)
        query(urls["database_url"], "create table kept as select 42 as answer")
        with broker(urls["broker_url"]) as client:
            client.rpush("bells", "one")
        left = processes(tmp_path) - {process.pid}
        process.kill()
        process.wait()
    with services(tmp_path) as embedded:
        assert not left & processes(tmp_path)
        assert query(embedded.database_url, "select answer from kept") == [42]
        with broker(embedded.broker_url) as client:
            assert client.lrange("bells", 0, -1) == [b"one"]
    assert processes(tmp_path) == set()


def test_a_pid_that_was_given_to_somebody_else_is_left_alone_and_does_not_bar_the_start(
    used: Path,
) -> None:
    with stranger() as somebody:
        (used / "redis.pid").write_text(f"{somebody.pid}\n")
        (used / "postgres" / "postmaster.pid").write_text(f"{somebody.pid}\n{used}/postgres\n")
        with services(used) as embedded:
            assert query(embedded.database_url, "select 1") == [1]
        assert somebody.poll() is None


def test_what_an_interrupted_first_start_left_is_done_anew(tmp_path: Path) -> None:
    (tmp_path / "postgres.new").mkdir()
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
    with services(tmp_path, broker=False) as embedded:
        assert query(embedded.database_url, "select 1") == [1]
    assert not (tmp_path / "postgres.new").exists()


def test_a_second_owner_is_refused_and_told_who_holds_the_folder(used: Path) -> None:
    with owner(used) as process:
        with pytest.raises(FolderInUse) as caught, services(used):
            pass
        assert caught.value.pid == str(process.pid)
        assert str(process.pid) in str(caught.value)
        assert str(used) in str(caught.value)
        assert query(running_services(used)["database_url"], "select 1") == [1]


def test_a_ctrl_c_that_the_owner_handles_does_not_reach_the_servers(used: Path) -> None:
    with owner(used, "handles SIGINT") as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "interrupted\n"
        urls = running_services(used)
        assert query(urls["database_url"], "select 1") == [1]
        with broker(urls["broker_url"]) as client:
            assert client.ping()


def test_a_server_that_does_not_start_is_named_with_its_reason_and_leaves_nothing(tmp_path: Path) -> None:
    failing = EmbeddedServices(tmp_path, postgres_settings={"shared_buffers": "lots"})
    with (
        pytest.raises(EmbeddedServiceFailed, match=r"embedded Postgres did not start.*shared_buffers"),
        failing,
    ):
        pass
    assert processes(tmp_path) == set()
    with services(tmp_path) as embedded:
        assert query(embedded.database_url, "select 1") == [1]


def test_a_missing_wheel_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExtraMissing, match="dev"), services(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsInvalid, match="file/folder"), services(tmp_path / "file" / "folder"):
        pass


@pytest.mark.parametrize("name", ["long/" * 30 + "path", "a blank, a comma; 100% ünicode & ?=#"])
def test_a_path_that_no_socket_or_url_can_hold_works(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    with services(folder) as embedded:
        query(embedded.database_url, "create table kept ()")
        sockets = Path(embedded.broker_url.removeprefix("redis+socket://")).parent
        assert sockets.parent == Path(tempfile.gettempdir())
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert not sockets.exists()
    assert processes(folder) == set()
    with services(folder) as embedded:
        assert query(embedded.database_url, "select to_regclass('kept')::text") == ["kept"]


def test_a_socket_folder_that_somebody_else_laid_ready_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        folder = tmp_path / ("long/" * 30)
        with socket_folder(folder) as sockets:
            assert sockets.parent == Path(temporary)
        sockets.symlink_to(tmp_path)
        with pytest.raises(EmbeddedServiceFailed, match="not this user's"), socket_folder(folder):
            pass


def test_sockets_that_were_left_make_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in (".s.PGSQL.5432", "redis.sock"):
        # By its name alone, since the whole may be too long for a socket.
        with socket.socket(socket.AF_UNIX) as left, pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path / "run")
            left.bind(name)
    with stranger() as somebody:
        (tmp_path / "run" / ".s.PGSQL.5432.lock").write_text(f"{somebody.pid}\n{tmp_path}\n0\n5432\n\n")
        with services(tmp_path) as embedded:
            assert query(embedded.database_url, "select 1") == [1]


def test_no_folder_is_opened_to_others(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with services(closed / "folder") as embedded:
        assert query(embedded.database_url, "select 1") == [1]
        assert stat.S_IMODE((closed / "folder").stat().st_mode) == 0o700
        assert stat.S_IMODE((closed / "folder" / "postgres.log").stat().st_mode) == 0o600
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_running_services_finds_a_running_owner_and_not_a_dead_one(used: Path) -> None:
    assert running_services(used) == {}
    with owner(used) as process:
        found = running_services(used)
        assert query(found["database_url"], "select 1") == [1]
        assert Settings(folder=used).located().broker_url == found["broker_url"]
        process.kill()
        process.wait()
    assert (used / SERVICES_FILE).exists()
    assert running_services(used) == {}


def test_the_services_file_is_for_the_users_eyes_only_and_goes_with_the_services(tmp_path: Path) -> None:
    with services(tmp_path, database=False, broker=False):
        write_services_file(tmp_path, "postgresql://user:secret@there/db", "redis://there")
        file = tmp_path / SERVICES_FILE
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert running_services(tmp_path) == {
            "database_url": "postgresql://user:secret@there/db",
            "broker_url": "redis://there",
        }
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitignore", "lock"]
