"""The folder of the embedded services: whose it is, what a killed owner left in it, where its sockets are."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from threadmill.cli.extras import needs
from threadmill.core.errors import EmbeddedServiceFailed, FolderInUse, SettingsInvalid
from threadmill.core.settings import SERVICES_FILE

# Seconds until a server that was asked to end is ended by force.
STOP_TIMEOUT = 30.0
LOOK_AGAIN_AFTER = 0.02

# sun_path holds 104 bytes on macOS and 108 on Linux; Postgres adds `.s.PGSQL.5432`, the longest of the names.
LONGEST_SOCKET_FOLDER = 85


@contextmanager
def owned(folder: Path) -> Iterator[None]:
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


def end_stray(pid_file: Path, folder: Path, ending: signal.Signals) -> None:
    """Ends the server that a killed owner left in `folder` and waits for it: two must not share its data."""
    if not pid_file.exists():
        return
    with needs("dev"):
        import psutil  # noqa: PLC0415

    try:
        process = psutil.Process(int(pid_file.read_text().split()[0]))
        if f"{folder}/" in " ".join(process.cmdline()):
            process.send_signal(ending)
            deadline = time.monotonic() + STOP_TIMEOUT
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > deadline:
                    process.kill()
                time.sleep(LOOK_AGAIN_AFTER)
    except (OSError, ValueError, IndexError):
        return
    except psutil.ZombieProcess:
        pass
    except psutil.NoSuchProcess:
        return
    # The pid is now of somebody else, or of a dead one that nobody buries (a container without an init).
    # Postgres would take either for its own server, still alive.
    pid_file.unlink(missing_ok=True)


@contextmanager
def socket_folder(folder: Path) -> Iterator[Path]:
    """An empty folder for sockets that is ours alone: under `folder`, or else in the temporary folder.

    Elsewhere when the path is too long for a socket, or holds what a URL or libpq's list of hosts would not
    carry unchanged (a comma, a blank, a percent sign).
    """
    name = f"threadmill-{os.geteuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    for candidate in (folder / "run", Path(tempfile.gettempdir()) / name, Path("/tmp") / name):  # noqa: S108
        if len(str(candidate)) <= LONGEST_SOCKET_FOLDER and re.fullmatch(r"[A-Za-z0-9._/-]+", str(candidate)):
            break
    else:
        raise EmbeddedServiceFailed("Postgres", f"no path is short enough for a socket; {candidate} is not")
    candidate.mkdir(mode=0o700, exist_ok=True)
    found = candidate.lstat()
    # In the temporary folder anybody may have made it before us, to listen where we expect our servers.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise EmbeddedServiceFailed("Postgres", f"{candidate} is not this user's folder; remove it")
    candidate.chmod(0o700)
    for left_over in candidate.iterdir():
        left_over.unlink()
    try:
        yield candidate
    finally:
        shutil.rmtree(candidate, ignore_errors=True)
