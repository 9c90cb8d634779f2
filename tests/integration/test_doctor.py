"""`threadmill doctor` on real services: what is wrong is found, and named with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from threadmill.cli import checkup
from threadmill.cli.checkup import Checkup, Finding
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
        "breakers", "quarantine", "dead letters", "held threads",
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
