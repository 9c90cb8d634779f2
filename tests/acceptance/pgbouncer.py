"""A PgBouncer of the test's own, in transaction mode, in front of the test's database."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from threadmill.cli.launcher import SystemUser, tied
from threadmill.core.settings import Settings

SIZE = 4  # sessions that it has for all together
PASSWORD = "pooled"
DEFAULTS = ("role = threadmill_fleet", "search_path = threadmill, public", "enable_seqscan = off")
INI = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users.txt
admin_users = {login}
pool_mode = transaction
default_pool_size = {size}
{more}
"""
SESSION = """
    select pg_backend_pid() as pid, current_user as role, current_setting('search_path') as search_path,
        current_setting('enable_seqscan') as enable_seqscan,
        current_setting('threadmill.tenant', true) as tenant,
        current_setting('statement_timeout') as statement_timeout,
        current_setting('lock_timeout') as lock_timeout,
        (select count(*) from pg_prepared_statements) as prepared
"""


@dataclass(frozen=True)
class Pooler:
    """past: as the login, directly. through: the settings that say that a pooler is in between."""

    folder: Path
    login: str
    past: Settings

    @property
    def through(self) -> Settings:
        return self.past.model_copy(
            update={
                "database_url": self.url(conninfo_to_dict(self.past.database_url)["dbname"]),
                "database_pooler": "transaction",
                "session_database_url": self.past.database_url,
            }
        )

    def url(self, database: Any) -> str:
        return f"postgresql://{self.login}@/{database}?host={self.folder}&port=6432"

    def overrides(self) -> dict[str, str]:
        """Of a worker process that goes through it."""
        names = ("database_url", "database_pooler", "session_database_url")
        return {name: getattr(self.through, name) for name in names}

    def console(self, command: str) -> list[dict[str, Any]]:
        with psycopg.connect(
            self.url("pgbouncer"), autocommit=True, prepare_threshold=None, row_factory=dict_row
        ) as console:
            return console.execute(command).fetchall()

    def lent(self) -> int:
        """How many sessions are lent to somebody."""
        pools = self.console("show pools")
        return sum(pool["sv_active"] for pool in pools if pool["user"] == self.login)

    def sessions(self) -> list[dict[str, Any]]:
        """What is left in each session between two transactions: as many at once as there are."""
        with ExitStack() as stack:
            found = []
            for _ in range(SIZE):
                connection = stack.enter_context(
                    psycopg.connect(self.through.database_url, row_factory=dict_row, prepare_threshold=None)
                )
                found += connection.execute(SESSION).fetchall()  # its transaction keeps the session
            return found


@contextmanager
def pgbouncer(
    settings: Settings, admin: psycopg.Connection[Any], folder: Path, more: str = ""
) -> Iterator[Pooler]:
    """Started, and a login of the fleet's that goes through it. more: lines of its configuration."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        reason = "Debian's pgbouncer is not installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    server = conninfo_to_dict(settings.database_url)
    login = f"{settings.queue}_pooled"
    with _login(admin, login, str(server["dbname"])):
        (folder / "users.txt").write_text(f'"{login}" "{PASSWORD}"\n')
        ini = folder / "pgbouncer.ini"
        host, port = server.get("host", "localhost"), server.get("port", 5432)
        ini.write_text(INI.format(folder=folder, login=login, size=SIZE, host=host, port=port, more=more))
        at = f"@/{server['dbname']}?host={host}&port={port}"
        past = settings.model_copy(update={"database_url": f"postgresql://{login}:{PASSWORD}{at}"})
        with _running([program, str(ini)], folder / "pgbouncer.log"):
            yield _answering(Pooler(folder, login, past), folder / "pgbouncer.log")


@contextmanager
def _login(admin: psycopg.Connection[Any], login: str, database: str) -> Iterator[None]:
    name = sql.Identifier(login)
    admin.execute(sql.SQL("create role {} login password {} in role threadmill_fleet").format(name, PASSWORD))
    for default in DEFAULTS:
        admin.execute(
            sql.SQL("alter role {} in database {} set " + default).format(name, sql.Identifier(database))
        )
    try:
        yield
    finally:
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [login])
        admin.execute(sql.SQL("drop role {}").format(name))


@contextmanager
def _running(argv: list[str], log: Path) -> Iterator[None]:
    # It refuses to be root, as Postgres does.
    user = SystemUser(65534, 65534) if os.geteuid() == 0 else None
    with log.open("wb") as sink:
        process = subprocess.Popen(
            tied(argv, signal.SIGTERM, user), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def _answering(pooler: Pooler, log: Path) -> Pooler:
    deadline = time.monotonic() + 10
    while True:
        try:
            pooler.console("show version")
            return pooler
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
