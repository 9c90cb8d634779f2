"""`threadmill doctor` on real services: what is wrong is found, and named with what to do."""

from __future__ import annotations

import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import IsolationLevel, pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row, scalar_row
from tests.chaos.servers import Postgres
from tests.conftest import FAST

from threadmill.cli import checkup, snapshot_check
from threadmill.cli.checkup import Checkup, Finding
from threadmill.cli.snapshot_check import find_old_snapshots
from threadmill.core.database import connect
from threadmill.core.notice import connect_redis
from threadmill.core.revision import REVISION
from threadmill.core.settings import Settings

Admin = psycopg.Connection[Any]


def look(settings: Settings, *, embedded: bool = True) -> dict[str, Finding]:
    return {finding.name: finding for finding in Checkup(settings, embedded=embedded).findings()}


@pytest.fixture
def worker(admin: Admin) -> None:
    """A worker that is alive as far as the ledger knows, and its graph."""
    admin.execute(
        "insert into workers (id, host, pid, queues, concurrency, versions) "
        "values (gen_random_uuid(), 'box', 42, '{q}', 7, '{}')"
    )
    admin.execute(
        "insert into graphs (name, version, topology_hash, input_schema, channels, policy) "
        "values ('agent', 'v', 't', '{}', '{}', '{}')"
    )


@contextmanager
def login(admin: Admin, settings: Settings, membership: str) -> Iterator[Settings]:
    """Settings that log in as a role of its own."""
    name = f"{settings.queue}_login"
    admin.execute(sql.SQL("create role {} login " + membership).format(sql.Identifier(name)))
    parts = {**conninfo_to_dict(settings.database_url), "user": name}
    try:
        yield settings.model_copy(update={"database_url": make_conninfo("", **parts)})
    finally:
        admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def add_run(admin: Admin, status: str = "pending") -> None:
    admin.execute("insert into threads (tenant, thread_id) values ('acme', 't')")
    admin.execute(
        "insert into runs (id, tenant, thread_id, seq, graph, status, worker_id) "
        "values (gen_random_uuid(), 'acme', 't', 1, 'agent', %s, (select id from workers limit 1))",
        [status],
    )


def add_dead_letter(admin: Admin, status: str, *, due: str | None) -> None:
    add_run(admin, "error")
    admin.execute(
        "insert into dead_letters (id, run_id, tenant, thread_id, graph, reason, error, fingerprint, status, "
        "next_replay_at) select gen_random_uuid(), id, tenant, thread_id, graph, 'exhausted', '{}', 'f', %s, "
        "now() + %s::interval from runs",
        [status, due],
    )


@pytest.mark.usefixtures("worker")
def test_a_fleet_in_order_is_found_in_order(settings: Settings) -> None:
    findings = look(settings)

    assert list(findings) == [
        "database", "roles", "migrations", "broker", "eviction policy", "workers", "graphs", "clock",
        "snapshots", "breakers", "quarantine", "dead letters", "held threads",
    ]  # fmt: skip
    assert {finding.status for finding in findings.values()} == {"ok"}
    assert not any(finding.advice for finding in findings.values())
    assert "box:42 (0 of 7 running)" in findings["workers"].detail


def test_nothing_that_answers_is_named_and_what_follows_is_not_checked(settings: Settings) -> None:
    away = settings.model_copy(
        update={
            "database_url": "postgresql://user:hunter2@127.0.0.1:1/none",
            "broker_url": "redis://:hunter2@127.0.0.1:1/0",
        }
    )

    findings = look(away)

    assert findings["database"].status == findings["broker"].status == "fail"
    assert "Connection refused" in findings["database"].detail
    unchecked = {name: f for name, f in findings.items() if name not in ("database", "broker")}
    assert all(finding.detail.startswith("not checked: ") for finding in unchecked.values())
    assert "hunter2" not in str(findings)
    assert "workers take runs from the ledger" in str(findings["broker"].advice)


def test_a_database_without_tables_is_to_be_migrated(settings: Settings, admin: Admin) -> None:
    admin.execute("drop schema threadmill cascade")

    findings = look(settings)

    assert findings["migrations"].status == "fail"
    assert findings["migrations"].detail == "the database holds no Threadmill tables, expected " + REVISION
    assert "threadmill db upgrade" in str(findings["migrations"].advice)
    assert findings["workers"].detail == "not checked: the database is not migrated"


def test_missing_tables_of_langgraph_are_named(settings: Settings, admin: Admin) -> None:
    admin.execute("drop table checkpoint_writes")

    finding = look(settings)["migrations"]

    assert (finding.status, finding.detail) == ("fail", "LangGraph's tables are missing: checkpoint_writes")


def test_a_table_without_row_level_security_is_named(settings: Settings, admin: Admin) -> None:
    admin.execute("alter table runs disable row level security")

    finding = look(settings)["roles"]

    assert (finding.status, finding.detail) == ("fail", "row-level security is off on runs")
    assert finding.advice == "alter table threadmill.runs enable row level security"


def test_a_table_that_the_fleet_owns_is_named(settings: Settings, admin: Admin) -> None:
    admin.execute("alter table threads owner to threadmill_fleet")

    finding = look(settings)["roles"]

    assert (finding.status, finding.detail) == (
        "fail",
        "row-level security does not bind the owner of threads",
    )


def test_a_login_that_is_a_superuser_is_warned_of(settings: Settings) -> None:
    finding = look(settings, embedded=False)["roles"]

    assert finding.status == "warn"
    assert "create role … login in role threadmill_fleet" in str(finding.advice)


def test_a_login_that_is_a_member_of_the_fleet_is_as_it_should_be(settings: Settings, admin: Admin) -> None:
    with login(admin, settings, "in role threadmill_fleet") as member:
        findings = look(member, embedded=False)

    assert findings["roles"].status == "ok"
    assert findings["held threads"].status == "ok"


def test_a_login_that_may_not_act_as_the_fleet_is_named(settings: Settings, admin: Admin) -> None:
    with login(admin, settings, "") as stranger:
        findings = look(stranger, embedded=False)

    assert findings["roles"].status == "fail"
    assert str(findings["roles"].advice).startswith("grant threadmill_fleet to")
    assert findings["migrations"].detail == "not checked: the login may not act as threadmill_fleet"


def test_a_redis_that_evicts_is_named(settings: Settings) -> None:
    redis = connect_redis(settings)
    assert redis is not None
    with redis:
        redis.config_set("maxmemory-policy", "allkeys-lru")
        try:
            finding = look(settings)["eviction policy"]
        finally:
            redis.config_set("maxmemory-policy", "noeviction")

    assert finding.status == "fail"
    assert "allkeys-lru" in finding.detail


def test_no_worker_is_a_warning_until_a_run_waits_for_one(settings: Settings, admin: Admin) -> None:
    before = look(settings)["workers"]
    add_run(admin)
    after = look(settings)["workers"]

    assert (before.status, before.detail) == ("warn", "none is alive, 0 runs wait")
    assert (after.status, after.detail) == ("fail", "none is alive, 1 runs wait")


@pytest.mark.usefixtures("worker")
def test_a_lost_worker_that_holds_runs_is_named(settings: Settings, admin: Admin) -> None:
    admin.execute("update workers set heartbeat_at = now() - interval '1 hour'")
    add_run(admin, "running")
    admin.execute(
        "insert into workers (id, host, pid, queues, concurrency, versions) "
        "values (gen_random_uuid(), 'box', 43, '{q}', 7, '{}')"
    )

    finding = look(settings)["workers"]

    assert finding.status == "warn"
    assert "lost: box:42 (1 runs, silent 60 min)" in finding.detail
    assert "the leader gives its runs to others within seconds" in str(finding.advice)


@pytest.mark.usefixtures("worker")
def test_a_run_whose_worker_was_struck_off_is_named(settings: Settings, admin: Admin) -> None:
    add_run(admin, "running")
    admin.execute("update runs set worker_id = gen_random_uuid()")

    finding = look(settings)["workers"]

    assert finding.status == "warn"
    assert finding.detail.endswith("lost: a worker that was struck off (1 runs)")


@pytest.mark.usefixtures("worker")
def test_without_any_worker_nobody_rescues(settings: Settings, admin: Admin) -> None:
    add_run(admin, "running")
    admin.execute("update workers set heartbeat_at = now() - interval '1 hour'")

    finding = look(settings)["workers"]

    assert (finding.status, finding.advice) == (
        "fail",
        "start `threadmill worker`; it rescues the lost one's runs, too",
    )


@pytest.mark.parametrize(
    ("until", "waits", "status", "state"),
    [
        ("20 seconds", 0, "warn", "open for another 20 s"),
        ("20 seconds", 1, "warn", "open for another 20 s"),
        ("-5 seconds", 1, "warn", "half-open (3 runs at a time are let through)"),
        ("-5 seconds", 0, "ok", "half-open (3 runs at a time are let through)"),
    ],
    ids=["open", "open, with a run behind it", "half-open, with a run behind it", "half-open"],
)
def test_a_breaker_is_named_with_what_it_holds_back(
    settings: Settings, admin: Admin, until: str, waits: int, status: str, state: str
) -> None:
    admin.execute(
        "insert into breakers (kind, name, graphs, failures, open_until, opened_at, reason) "
        "values ('dependency', 'search', '{agent,chat}', 12, now() + %s::interval, "
        "now() - interval '10 s', 'HTTPError')",
        [until],
    )
    if waits:
        add_run(admin)

    finding = look(settings)["breakers"]

    assert finding.status == status
    assert finding.detail == (
        f"dependency search is {state}; {waits} runs of agent, chat wait; "
        "12 failures in a row, at last HTTPError, 10 s ago"
    )
    assert (finding.advice is None) == (status == "ok")


def test_failures_in_a_row_that_opened_no_breaker_are_in_order(settings: Settings, admin: Admin) -> None:
    admin.execute(
        "insert into breakers (kind, name, graphs, failures) values ('graph', 'agent', '{agent}', 3)"
    )

    finding = look(settings)["breakers"]

    assert (finding.status, finding.detail) == ("ok", "none is open")


def test_a_run_that_has_cost_two_workers_is_named(settings: Settings, admin: Admin) -> None:
    add_run(admin)
    assert look(settings)["quarantine"].status == "ok"
    admin.execute("update runs set worker_losses = 2")

    finding = look(settings)["quarantine"]

    assert finding.status == "warn"
    assert finding.detail.startswith("1 runs have cost 2 workers each and run alone: ")
    assert "one loss more makes it a dead letter" in str(finding.advice)


def test_a_clock_that_is_off_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    now = checkup.time.time
    monkeypatch.setattr(checkup.time, "time", lambda: now() + 90)

    finding = look(settings)["clock"]

    assert finding.status == "warn"
    assert finding.detail == "the database is 90.0 s behind this machine"


@pytest.mark.parametrize(
    ("status", "due", "found", "advice"),
    [
        ("waiting", "1 hour", "ok", "None"),
        ("waiting", "-1 hour", "warn", "threadmill dlq drain"),
        ("waiting", None, "warn", "threadmill dlq list --status waiting"),
        ("parked", None, "warn", "threadmill dlq list --status parked"),
    ],
    ids=["waiting", "overdue", "by hand", "parked"],
)
def test_dead_letters_that_nobody_takes_care_of_are_named(
    settings: Settings, admin: Admin, status: str, due: str | None, found: str, advice: str
) -> None:
    add_dead_letter(admin, status, due=due)

    finding = look(settings)["dead letters"]

    assert finding.status == found
    assert advice in str(finding.advice)


@pytest.mark.parametrize(
    "left_alone",
    [
        "insert into replay_pauses (kind, name, by) values ('graph', 'agent', 'me')",
        "insert into replay_pauses (kind, name, by) values ('tenant', 'acme', 'me')",
        "insert into replay_pauses (kind, name, by) values ('group', 'f', 'me')",
        "insert into replay_groups (fingerprint, next_at) values ('f', now() + interval '1 hour')",
        "insert into replay_groups (fingerprint, drainer, drainer_until) "
        "values ('other', gen_random_uuid(), now() + interval '1 hour')",
        "insert into breakers (kind, name, graphs, failures, reason, opened_at, open_until) "
        "values ('graph', 'agent', '{agent}', 9, 'down', now(), now() + interval '1 hour')",
    ],
    ids=["graph paused", "tenant paused", "group paused", "backed off", "drained", "breaker open"],
)
def test_what_a_replay_worker_leaves_alone_or_works_on_is_not_overdue(
    settings: Settings, admin: Admin, left_alone: str
) -> None:
    add_dead_letter(admin, "waiting", due="-1 hour")
    admin.execute(left_alone)

    assert look(settings)["dead letters"].status == "ok"


def test_a_held_thread_is_named(settings: Settings, admin: Admin) -> None:
    add_dead_letter(admin, "waiting", due="1 hour")
    admin.execute(
        "insert into held_lanes (tenant, thread_id, seq, letter_id, since) "
        "select tenant, thread_id, 1, id, now() - interval '300 s' from dead_letters"
    )

    finding = look(settings)["held threads"]

    assert finding.status == "warn"
    assert finding.detail == "1 held by a dead letter, the longest first: acme/t (5 min)"


SECRET = "an input that nobody is to see"


@contextmanager
def holding(url: str, query: LiteralString = "select %s::text") -> Iterator[psycopg.Connection[Any]]:
    """A transaction that has done this, and is left open."""
    with psycopg.connect(url, application_name="report") as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.execute(query, [SECRET])
        yield connection
        if not connection.closed:
            connection.rollback()


def test_a_snapshot_of_the_moment_is_in_order(settings: Settings) -> None:
    with holding(settings.database_url):
        finding = look(settings)["snapshots"]

    assert (finding.status, finding.advice) == ("ok", None)
    assert finding.detail.startswith("the oldest is held for 0.")


def test_a_transaction_that_holds_an_old_snapshot_is_named_and_how_to_end_it(
    settings: Settings, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_check, "OLD", 0)
    with holding(settings.database_url) as holder:
        pid = holder.info.backend_pid
        finding = look(settings)["snapshots"]
        since = admin.execute(
            "select to_char(xact_start at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS') "
            "from pg_stat_activity where pid = %s",
            [pid],
        ).fetchone()
        assert since is not None

        assert finding.status == "warn"
        assert f"pid {pid} (report of postgres, idle in transaction) since {since[0]} UTC" in finding.detail
        assert f"`select pg_terminate_backend({pid})`" in str(finding.advice)
        assert "idle_in_transaction_session_timeout" in str(finding.advice)
        assert SECRET not in str(finding)

        admin.execute("select pg_terminate_backend(%s, 10000)", [pid])
        assert look(settings)["snapshots"].detail == "none is held"
        holder.close()


@pytest.mark.usefixtures("worker")
def test_a_transaction_that_has_written_and_is_left_open_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_check, "OLD", 0)
    with psycopg.connect(settings.database_url, application_name="writer") as connection:
        pid = connection.info.backend_pid
        connection.execute("insert into threadmill.threads (tenant, thread_id) values ('acme', 't')")
        written = look(settings)["snapshots"]
        connection.rollback()
        connection.execute("select from threadmill.threads")
        read = look(settings)["snapshots"]

    assert written.status == "warn"
    assert f"pid {pid} (writer of postgres, idle in transaction)" in written.detail
    assert read.detail == "none is held"


def test_a_snapshot_in_another_database_keeps_no_rows_of_this_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_check, "OLD", 0)
    elsewhere = make_conninfo("", **{**conninfo_to_dict(settings.database_url), "dbname": "postgres"})
    with holding(elsewhere):
        finding = look(settings)["snapshots"]

    assert (finding.status, finding.detail) == ("ok", "none is held")


def test_a_login_without_rights_says_of_the_snapshots_of_others_what_it_sees(
    settings: Settings, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    with login(admin, settings, "in role threadmill_fleet") as member, holding(settings.database_url) as held:
        monkeypatch.setattr(snapshot_check, "OLD", 0)
        name, pid = f"{settings.queue}_login", held.info.backend_pid
        young = look(member, embedded=False)["snapshots"]
        monkeypatch.setattr(snapshot_check, "MANY", 20)
        for _ in range(20):
            admin.execute("select pg_current_xact_id()")
        old = look(member, embedded=False)["snapshots"]
        admin.execute(sql.SQL("grant pg_read_all_stats to {}").format(sql.Identifier(name)))
        seen = look(member, embedded=False)["snapshots"]

    hidden = f"pid {pid} (report of postgres, not visible to {name}) for "
    assert (young.status, young.advice) == ("ok", None)
    assert young.detail.startswith(f"of 1 it is not known since when, the oldest by {hidden}")
    assert old.status == "warn"
    assert hidden in old.detail
    assert f"`grant pg_read_all_stats to {name}` shows since when" in str(old.advice)
    assert f"`select pg_terminate_backend({pid})`" in str(old.advice)
    assert f"pid {pid} (report of postgres, idle in transaction) since " in seen.detail
    assert SECRET not in str([young, old, seen])


def test_a_login_sees_since_when_its_own_processes_hold_a_snapshot(
    settings: Settings, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_check, "OLD", 0)
    with (
        login(admin, settings, "in role threadmill_fleet") as member,
        connect(member) as fleet,
        fleet.transaction(),
    ):
        pid = fleet.info.backend_pid
        fleet.execute("set transaction isolation level repeatable read")
        fleet.execute("select from runs")
        finding = look(member, embedded=False)["snapshots"]

    assert finding.status == "warn"
    assert f"pid {pid} (threadmill of {settings.queue}_login, idle in transaction) since " in finding.detail


def test_a_vacuum_under_way_holds_nothing(
    settings: Settings, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_check, "OLD", 0)
    admin.execute("create table public.large as select n, repeat('x', 900) from generate_series(1, 2000) n")
    with psycopg.connect(settings.database_url, autocommit=True) as connection:
        connection.execute("set vacuum_cost_delay = 100; set vacuum_cost_limit = 1")

        def vacuum() -> None:
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute("vacuum public.large")

        thread = threading.Thread(target=vacuum)
        thread.start()
        until(admin, "select count(*) = 1 from pg_stat_progress_vacuum where datname = current_database()")
        finding = look(settings)["snapshots"]
        connection.cancel_safe()
        thread.join()

    assert (finding.status, finding.detail) == ("ok", "none is held")


def until(connection: psycopg.Connection[Any], query: LiteralString) -> None:
    """Returns when the query says that it is so."""
    ends_at = time.monotonic() + 30
    while connection.cursor(row_factory=scalar_row).execute(query).fetchone() is not True:
        assert time.monotonic() < ends_at, query
        time.sleep(0.01)


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A Postgres of the test's own: a slot holds back all databases of a server."""
    sockets = Path(tempfile.mkdtemp(prefix="doctor-", dir="/tmp"))  # a socket's path is short
    server = Postgres(tmp_path, sockets, {"fsync": FAST["fsync"], "max_prepared_transactions": "2"})
    try:
        server.create()
        yield server
    finally:
        server.stop()
        shutil.rmtree(sockets, ignore_errors=True)


@contextmanager
def standby_of(connection: psycopg.Connection[Any], slot: str) -> Iterator[None]:
    """A standby that asks for what it reads to be kept, as `hot_standby_feedback` has it.

    Its message: https://www.postgresql.org/docs/current/protocol-replication.html
    """
    look = connection.cursor(row_factory=scalar_row)
    begin = look.execute("select pg_current_wal_lsn()::text").fetchone()
    oldest = look.execute("select pg_snapshot_xmin(pg_current_snapshot())::text::bigint").fetchone()
    assert begin is not None
    assert oldest is not None
    standby = pq.PGconn.connect(make_conninfo(connection.info.dsn, replication="true").encode())
    try:
        started = standby.exec_(f"START_REPLICATION SLOT {slot} PHYSICAL {begin}".encode())
        assert started.status == pq.ExecStatus.COPY_BOTH, started.error_message
        epoch, xmin = divmod(oldest, 2**32)
        standby.put_copy_data(struct.pack("!cqIIII", b"h", 0, xmin, epoch, 0, 0))
        standby.flush()
        until(connection, "select xmin is not null from pg_replication_slots")
        yield
    finally:
        standby.finish()


def test_what_holds_a_snapshot_without_a_session_is_named(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_check, "OLD", 0)
    with psycopg.connect(own_postgres.url, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("begin; select pg_current_xact_id(); prepare transaction 'it''s'")
        prepared = find_old_snapshots(connection)
        connection.execute("rollback prepared 'it''s'")

        connection.execute("select pg_create_physical_replication_slot('standby', true)")
        with standby_of(connection, "standby"):
            in_use = find_old_snapshots(connection)
        until(connection, "select not active from pg_replication_slots")
        abandoned = find_old_snapshots(connection)
        connection.execute("select pg_drop_replication_slot('standby')")
        nothing = find_old_snapshots(connection)

    assert "the prepared transaction 'it''s' since " in prepared.detail
    assert "`rollback prepared 'it''s'`" in str(prepared.advice)
    assert in_use.status == "ok"
    assert "the replication slot standby (in use) for 0 transactions" in in_use.detail
    assert "the replication slot standby (not in use) since " in abandoned.detail
    assert "`select pg_drop_replication_slot('standby')`" in str(abandoned.advice)
    assert (nothing.status, nothing.detail) == ("ok", "none is held")
