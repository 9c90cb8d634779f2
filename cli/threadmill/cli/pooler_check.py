"""The doctor's check of a pooler before Postgres: whether it is declared, and there is a way past it."""

from __future__ import annotations

from threadmill.cli.finding import Connection, Finding, one_row
from threadmill.core.database import address, connect
from threadmill.core.errors import Unavailable
from threadmill.core.settings import Settings

# So often two connections are asked which session they have. A busy pooler may have one for each at first.
LOOKS = 20

_NAME = "pooler"
_WHERE = "select current_database() as database, pg_postmaster_start_time() as since"


def find_pooler(settings: Settings) -> Finding | None:
    """What is wrong with the way to Postgres, or that it is as declared; None where there is no pooler."""
    if settings.database_pooler == "none":
        return _undeclared(settings) if _sessions_are_shared(settings) else None
    if not settings.session_database_url:
        return Finding(
            _NAME,
            "warn",
            "no way past the pooler is set: producers need none, but workers and migrations do",
            "set THREADMILL_SESSION_DATABASE_URL to the URL of the same database past the pooler",
        )
    past = settings.for_sessions()
    try:
        with connect(past) as session, connect(settings) as pooled:
            same = one_row(session, _WHERE) == one_row(pooled, _WHERE)
        shared = same and _sessions_are_shared(past)
    except Unavailable as error:
        return Finding(_NAME, "fail", str(error), "start it, or mend THREADMILL_SESSION_DATABASE_URL")
    if not same:
        return Finding(
            _NAME,
            "fail",
            f"{address(past.database_url)} is another database than {address(settings.database_url)}",
            "let THREADMILL_SESSION_DATABASE_URL lead to the same one",
        )
    if shared:
        return Finding(
            _NAME,
            "fail",
            f"at {address(past.database_url)} there is a pooler in transaction mode, too",
            "let THREADMILL_SESSION_DATABASE_URL lead past it",
        )
    where = f"transactions at {address(settings.database_url)}, sessions at {address(past.database_url)}"
    return Finding(_NAME, "ok", where)


def _undeclared(settings: Settings) -> Finding:
    return Finding(
        _NAME,
        "fail",
        f"at {address(settings.database_url)} there is a pooler in transaction mode",
        "set THREADMILL_DATABASE_POOLER=transaction and THREADMILL_SESSION_DATABASE_URL",
    )


def _sessions_are_shared(settings: Settings) -> bool:
    """Whether two connections that are open at once have been seen in one session, which proves a pooler.

    That they have not proves nothing. Raises Unavailable.
    """
    with connect(settings, role=None) as one, connect(settings, role=None) as other:
        one.prepare_threshold = other.prepare_threshold = None  # it may have been prepared there by the other
        seen = [(_session(one), _session(other)) for _ in range(LOOKS)]
    return bool({first for first, _ in seen} & {second for _, second in seen})


def _session(connection: Connection) -> int:
    return int(one_row(connection, "select pg_backend_pid() as pid")["pid"])
