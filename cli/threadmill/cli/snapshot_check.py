"""The doctor's check of old snapshots: what keeps Postgres from removing dead rows, and how to end it.

What looks for ready runs walks the index entries of all runs that were started since the oldest snapshot was
taken. The text of a query is not looked at: it may hold inputs.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from psycopg.rows import DictRow

from threadmill.cli.finding import SHOWN, Connection, Finding, one_row, some
from threadmill.cli.output import span

# Seconds. Threadmill's own transactions are over in moments.
OLD = 60.0
# Where it is not visible since when: so many transactions were begun meanwhile.
MANY = 10_000

_NAME = "snapshots"
_TIMEOUT = "`idle_in_transaction_session_timeout` ends transactions that are forgotten"

# Vacuum itself holds nothing back. What has no database sends a standby the log, and counts for all of them.
# A transaction that has written counts from its own id on, whether it has a snapshot at the moment or not.
_SESSIONS = """
    select pid, coalesce(nullif(application_name, ''), 'no application name') as application, usename, state,
        xact_start as since, extract(epoch from clock_timestamp() - xact_start)::float8 as seconds,
        greatest(age(backend_xid), age(backend_xmin), 0) as transactions
    from pg_stat_activity as activity
    where coalesce(datname = current_database(), true) and pid <> pg_backend_pid()
        and coalesce(backend_xid, backend_xmin) is not null and coalesce(leader_pid, pid) = pid
        and pid not in (select pid from pg_stat_progress_vacuum)
"""
_PREPARED = """
    select quote_literal(gid) as name, prepared as since,
        extract(epoch from clock_timestamp() - prepared)::float8 as seconds,
        greatest(age(transaction), 0) as transactions
    from pg_prepared_xacts where database = current_database()
"""
# Of one in use the snapshot is the standby's, and nothing here says since when.
_SLOTS = """
    select slot_name as name, active, inactive_since as since,
        extract(epoch from clock_timestamp() - inactive_since)::float8 as seconds,
        greatest(age(xmin), 0) as transactions
    from pg_replication_slots where xmin is not null
"""


@dataclass(frozen=True)
class Holder:
    """What holds a snapshot. seconds: how long, since is when; None where that is not known.

    transactions: how many were begun meanwhile.
    """

    who: str
    since: datetime.datetime | None
    seconds: float | None
    transactions: int
    remedy: str

    @property
    def is_old(self) -> bool:
        return self.transactions >= MANY if self.seconds is None else self.seconds >= OLD

    def __str__(self) -> str:
        if self.since is None or self.seconds is None:
            return f"{self.who} for {self.transactions} transactions"
        since = self.since.astimezone(datetime.UTC)
        return f"{self.who} since {since:%Y-%m-%d %H:%M:%S} UTC ({span(self.seconds)})"


def find_old_snapshots(login: Connection) -> Finding:
    """How old the oldest snapshot is, and who holds those that are too old."""
    with login.transaction():
        # Others of its login are visible to the login, and not to the role that it may take on.
        login.execute("set local role none")
        name = one_row(login, "select quote_ident(session_user) as name")["name"]
        holders = [
            *(_session(row, name) for row in login.execute(_SESSIONS)),
            *(_prepared(row) for row in login.execute(_PREPARED)),
            *(_slot(row) for row in login.execute(_SLOTS)),
        ]
    if old := [holder for holder in holders if holder.is_old]:
        old.sort(key=lambda holder: (holder.transactions, holder.seconds or 0), reverse=True)
        return Finding(
            _NAME,
            "warn",
            f"dead rows cannot be removed, and runs are found ever more slowly: {some(list(map(str, old)))}",
            "; ".join([*dict.fromkeys(holder.remedy for holder in old[:SHOWN]), _TIMEOUT]),
        )
    return Finding(_NAME, "ok", _young(holders))


def _young(holders: list[Holder]) -> str:
    """What is said of snapshots none of which is too old."""
    if not holders:
        return "none is held"
    parts = []
    if known := [holder.seconds for holder in holders if holder.seconds is not None]:
        parts.append(f"the oldest is held for {max(known):.1f} s")
    if unknown := [holder for holder in holders if holder.seconds is None]:
        oldest = max(unknown, key=lambda holder: holder.transactions)
        parts.append(f"of {len(unknown)} it is not known since when, the oldest by {oldest}")
    return "; ".join(parts)


def _session(row: DictRow, login: str) -> Holder:
    # Of others' sessions only a member of pg_read_all_stats sees more.
    state = row["state"] or f"not visible to {login}"
    remedy = f"`select pg_terminate_backend({row['pid']})`"
    if row["state"] is None:
        remedy = f"`grant pg_read_all_stats to {login}` shows since when; {remedy}"
    return Holder(
        f"pid {row['pid']} ({row['application']} of {row['usename']}, {state})",
        row["since"],
        row["seconds"],
        row["transactions"],
        remedy,
    )


def _prepared(row: DictRow) -> Holder:
    who = f"the prepared transaction {row['name']}"
    remedy = f"`rollback prepared {row['name']}`"
    return Holder(who, row["since"], row["seconds"], row["transactions"], remedy)


def _slot(row: DictRow) -> Holder:
    who = f"the replication slot {row['name']} ({'in use' if row['active'] else 'not in use'})"
    remedy = f"if nothing will come back for it, `select pg_drop_replication_slot('{row['name']}')`"
    return Holder(who, row["since"], row["seconds"], row["transactions"], remedy)
