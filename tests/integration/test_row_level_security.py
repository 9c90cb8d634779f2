"""Row-level security is on for the roles that workers and producers act as: tests connect as them and try."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as options
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from psycopg.errors import InsufficientPrivilege

from threadmill.core.database import FLEET_ROLE, TENANT_ROLE, connect
from threadmill.core.keys import store_label, thread_key
from threadmill.core.settings import Settings

Connection = psycopg.Connection[Any]

CHECKPOINT_TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
LANGGRAPH_TABLES = (*CHECKPOINT_TABLES, "store")
# The ledger's tables of which a tenant-bound transaction sees its own rows, and those that it cannot read.
TENANT_TABLES = ("threads", "runs", "attempts", "dead_letters", "held_lanes", "dead_letter_actions")
REPLAY_TABLES = ("replay_groups", "replay_pauses", "replay_rates", "replay_jobs")
FLEET_TABLES = ("crons", "workers", "limits", "api_keys", "breakers", *REPLAY_TABLES)
# What holds no tenant's data. Every other table has row-level security.
WITHOUT_TENANTS = {"revisions", "graphs", "checkpoint_migrations", "store_migrations"}

INSERTS = {
    "checkpoints": "insert into checkpoints (thread_id, checkpoint_id, checkpoint)"
    " values (%(key)s, '1', '{}')",
    "checkpoint_blobs": "insert into checkpoint_blobs (thread_id, channel, version, type)"
    " values (%(key)s, 'c', '1', 'null')",
    "checkpoint_writes": "insert into checkpoint_writes"
    " (thread_id, checkpoint_id, task_id, idx, channel, blob) values (%(key)s, '1', 't', 0, 'c', '')",
    "store": "insert into store (prefix, key, value) values (%(prefix)s, 'k', '{}')",
    "threads": "insert into threads (tenant, thread_id) values (%(tenant)s, %(thread_id)s)",
    "runs": "insert into runs (id, tenant, thread_id, seq, graph)"
    " values (gen_random_uuid(), %(tenant)s, %(thread_id)s, 1, 'g')",
    "attempts": "insert into attempts (run_id, attempt, tenant, outcome)"
    " select id, 1, tenant, 'failed' from runs where tenant = %(tenant)s and thread_id = %(thread_id)s",
    "dead_letters": "insert into dead_letters"
    " (id, run_id, tenant, thread_id, graph, reason, error, fingerprint)"
    " select id, id, tenant, thread_id, 'g', 'permanent', '{}', 'f' from runs"
    " where tenant = %(tenant)s and thread_id = %(thread_id)s",
    "held_lanes": "insert into held_lanes (tenant, thread_id, seq, letter_id)"
    " select tenant, thread_id, 1, id from dead_letters"
    " where tenant = %(tenant)s and thread_id = %(thread_id)s",
    "dead_letter_actions": "insert into dead_letter_actions (letter_id, tenant, by, action)"
    " select id, tenant, 'ada', 'note' from dead_letters"
    " where tenant = %(tenant)s and thread_id = %(thread_id)s",
    "replay_groups": "insert into replay_groups (fingerprint) values (%(tenant)s)",
    "replay_pauses": "insert into replay_pauses (kind, name, by) values ('tenant', %(tenant)s, 'ada')",
    "replay_rates": "insert into replay_rates (kind, name, rate) values ('tenant', %(tenant)s, 1)",
    "replay_jobs": "insert into replay_jobs (id, filter, mode, by, last, total)"
    " values (gen_random_uuid(), '{}', 'auto', 'ada', gen_random_uuid(), 1)",
    "crons": "insert into crons (id, tenant, graph, schedule, payload)"
    " values (gen_random_uuid(), %(tenant)s, 'g', '@daily', '{}')",
    "workers": "insert into workers (id, host, pid, queues, concurrency, versions)"
    " values (gen_random_uuid(), 'h', 1, '{}', 1, '{}')",
    "limits": "insert into limits (kind, name) values ('tenant', %(tenant)s)",
    "breakers": "insert into breakers (kind, name, graphs) values ('graph', %(tenant)s, '{}')",
    "api_keys": "insert into api_keys (id, tenant, name, key_hash)"
    " values (gen_random_uuid(), %(tenant)s, 'n', convert_to(%(tenant)s, 'UTF8'))",
}


def values(tenant: str, thread_id: str = "t") -> dict[str, str]:
    return {
        "tenant": tenant,
        "thread_id": thread_id,
        "key": thread_key(tenant, thread_id),
        "prefix": f"{store_label(tenant)}.notes",
    }


def bind(connection: Connection, tenant: str) -> None:
    connection.execute("select set_config('threadmill.tenant', %s, false)", (tenant,))


def count(connection: Connection, table: str) -> int:
    row = connection.execute(f"select count(*) as rows from {table}").fetchone()
    return next(iter(row.values())) if isinstance(row, dict) else row[0]


def ledger(admin: Connection) -> dict[str, list[Any]]:
    """Every row of the tables that a tenant-bound transaction sees."""
    return {
        table: admin.execute(f"select * from {table} order by tenant").fetchall() for table in TENANT_TABLES
    }


@pytest.fixture
def rows(admin: Connection) -> None:
    """A row of acme's and one of globex's in every table that has tenants."""
    for tenant in ("acme", "globex"):
        for statement in INSERTS.values():
            admin.execute(statement, values(tenant))


@pytest.fixture
def fleet(settings: Settings) -> Iterator[Connection]:
    """A connection as workers and producers make them."""
    with connect(settings) as connection:
        yield connection


@pytest.fixture
def tenant_bound(fleet: Connection) -> Connection:
    """The same, gone down to the role in which everything is done that is done for one tenant."""
    fleet.execute(f"set role {TENANT_ROLE}")
    return fleet


# The roles


def test_connections_act_as_a_role_that_row_level_security_binds(fleet: Connection) -> None:
    role = fleet.execute(
        "select rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolcanlogin"
        " from pg_roles where rolname = current_user"
    ).fetchone()
    assert role is not None
    assert tuple(role.values()) == (FLEET_ROLE, False, False, False, False, False)
    owned = fleet.execute(
        "select tablename from pg_tables where schemaname = 'threadmill'"
        " and pg_has_role(current_user, tableowner, 'member')"
    ).fetchall()
    assert owned == []


def test_the_tenant_bound_role_cannot_go_up_again_by_membership(admin: Connection) -> None:
    members = admin.execute(
        "select rolname from pg_roles where rolname <> %s and pg_has_role(%s, oid, 'member')",
        (TENANT_ROLE, TENANT_ROLE),
    ).fetchall()
    assert members == []


def test_a_login_that_is_only_a_member_of_the_fleet_cannot_get_round_it(
    rows: None, settings: Settings, admin: Connection
) -> None:
    login = f"{settings.queue}_app"
    admin.execute(f"create role {login} login password 'app' in role {FLEET_ROLE}")
    try:
        url = make_conninfo(settings.database_url, user=login, password="app")
        with connect(settings.model_copy(update={"database_url": url})) as connection:
            for way_out in (
                f"set role {admin.info.user}",
                f"set session authorization {admin.info.user}",
                "set row_security to off; select from checkpoints",
                "alter table checkpoints disable row level security",
                f"alter role {FLEET_ROLE} bypassrls",
            ):
                with pytest.raises(InsufficientPrivilege):
                    connection.execute(way_out)
            for role in (FLEET_ROLE, "none"):
                connection.execute(f"set role {role}")
                assert [count(connection, table) for table in LANGGRAPH_TABLES] == [0, 0, 0, 0]
    finally:
        admin.execute(f"drop role {login}")


def test_every_table_that_holds_a_tenants_data_has_row_level_security(admin: Connection) -> None:
    tables = dict(
        admin.execute(
            "select relname, relrowsecurity from pg_class"
            " where relnamespace = 'threadmill'::regnamespace and relkind in ('r', 'p')"
        ).fetchall()
    )
    assert {name for name, secured in tables.items() if not secured} == WITHOUT_TENANTS
    assert tables.keys() - WITHOUT_TENANTS == {*LANGGRAPH_TABLES, *TENANT_TABLES, *FLEET_TABLES}


def test_no_view_and_no_function_goes_round_it(admin: Connection) -> None:
    views = admin.execute(
        "select relname from pg_class"
        " where relnamespace = 'threadmill'::regnamespace and relkind in ('v', 'm')"
    ).fetchall()
    definers = admin.execute(
        "select proname from pg_proc where pronamespace = 'threadmill'::regnamespace and prosecdef"
    ).fetchall()
    assert views == definers == []


def test_policies_are_given_to_the_two_roles_and_nobody_else(admin: Connection) -> None:
    policies = admin.execute(
        "select tablename, unnest(roles::text[]) from pg_policies"
        " where schemaname = 'threadmill' and cmd = 'ALL'"
    ).fetchall()
    assert set(policies) == {
        *((table, FLEET_ROLE) for table in (*LANGGRAPH_TABLES, *TENANT_TABLES, *FLEET_TABLES)),
        *((table, TENANT_ROLE) for table in (*LANGGRAPH_TABLES, *TENANT_TABLES, "crons")),
    }


# What the workers' role sees of LangGraph's tables


@pytest.mark.parametrize("unbound", ["never bound", "bound before", "bound to nothing"])
def test_without_a_tenant_nothing_of_any_tenant_is_there(rows: None, fleet: Connection, unbound: str) -> None:
    if unbound == "bound before":  # afterwards Postgres has the setting as an empty string
        with fleet.transaction():
            fleet.execute("select set_config('threadmill.tenant', 'acme', true)")
            assert count(fleet, "checkpoints") == 1
    if unbound == "bound to nothing":
        bind(fleet, "")
    for table in LANGGRAPH_TABLES:
        assert count(fleet, table) == 0
        assert fleet.execute(f"delete from {table}").rowcount == 0
        for tenant in ("acme", "globex", "new"):
            with pytest.raises(InsufficientPrivilege, match="row-level security"):
                fleet.execute(INSERTS[table], values(tenant, "other"))


def test_a_bound_transaction_reads_writes_and_deletes_its_tenants_rows_only(
    rows: None, fleet: Connection, admin: Connection
) -> None:
    bind(fleet, "acme")
    for table in LANGGRAPH_TABLES:
        own, name = ("prefix", "prefix") if table == "store" else ("thread_id", "key")
        mine, theirs = values("acme")[name], values("globex")[name]

        assert [row[own] for row in fleet.execute(f"select * from {table}")] == [mine]
        assert fleet.execute(f"update {table} set {own} = {own} where {own} = %s", (theirs,)).rowcount == 0
        assert fleet.execute(f"delete from {table} where {own} = %s", (theirs,)).rowcount == 0
        for statement in (INSERTS[table], f"{INSERTS[table]} on conflict do nothing"):
            with pytest.raises(InsufficientPrivilege, match="row-level security"):
                fleet.execute(statement, values("globex"))
        with pytest.raises(InsufficientPrivilege, match="row-level security"):
            fleet.execute(f"update {table} set {own} = %s", (f"{theirs}x",))
        assert fleet.execute(f"delete from {table}").rowcount == 1
        assert [row[0] for row in admin.execute(f"select {own} from {table}")] == [theirs]


TENANTS = st.text("aA._-", min_size=1, max_size=3)
THREAD_IDS = st.text("%_:./\\aA é\u0301😀'", min_size=1, max_size=4)


@options(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sets(st.tuples(TENANTS, THREAD_IDS), min_size=2, max_size=6))
def test_no_tenants_rows_are_readable_under_another_tenants_name(
    admin: Connection, pairs: set[tuple[str, str]]
) -> None:
    # Every example leaves the database as it was, so that one does for all.
    with admin.transaction(force_rollback=True), admin.pipeline():
        for tenant, thread_id in pairs:
            for table in (*CHECKPOINT_TABLES, "store", "threads"):
                admin.execute(f"{INSERTS[table]} on conflict do nothing", values(tenant, thread_id))
        for tenant in {tenant for tenant, _ in pairs}:
            bind(admin, tenant)
            mine = {thread_key(*pair) for pair in pairs if pair[0] == tenant}
            for role in (FLEET_ROLE, TENANT_ROLE):
                admin.execute(f"set local role {role}")
                for table in CHECKPOINT_TABLES:
                    found = admin.execute(f"select thread_id from {table}").fetchall()
                    assert sorted(key for (key,) in found) == sorted(mine)
                assert admin.execute("select prefix from store").fetchall() == [(values(tenant)["prefix"],)]
            found = admin.execute("select tenant, thread_id from threads").fetchall()
            assert set(found) == {pair for pair in pairs if pair[0] == tenant}
            admin.execute("set local role none")


# What the tenant-bound role sees of the ledger


def test_the_tenant_bound_role_sees_its_own_part_of_the_ledger_only(
    rows: None, tenant_bound: Connection
) -> None:
    for table in TENANT_TABLES:
        assert count(tenant_bound, table) == 0
    bind(tenant_bound, "acme")
    for table in TENANT_TABLES:
        found = tenant_bound.execute(f"select tenant from {table}").fetchall()
        assert found == [{"tenant": "acme"}], table


def test_the_tenant_bound_role_changes_nothing_of_anothers(
    rows: None, tenant_bound: Connection, admin: Connection
) -> None:
    before = ledger(admin)
    bind(tenant_bound, "acme")
    for table in ("threads", "runs", "dead_letters"):
        changed = tenant_bound.execute(f"update {table} set tenant = tenant where tenant = 'globex'")
        assert changed.rowcount == 0
        with pytest.raises(InsufficientPrivilege, match="row-level security"):
            tenant_bound.execute(f"update {table} set tenant = 'globex'")
    for statement in (
        INSERTS["threads"],
        INSERTS["runs"],
        "insert into attempts (run_id, attempt, tenant, outcome)"
        " values (gen_random_uuid(), 1, %(tenant)s, 'failed')",
    ):
        with pytest.raises(InsufficientPrivilege, match="row-level security"):
            tenant_bound.execute(statement, values("globex", "new"))
    with pytest.raises(InsufficientPrivilege, match="row-level security"):
        tenant_bound.execute(
            f"{INSERTS['threads']} on conflict (tenant, thread_id) do update set status = 'error'",
            values("globex"),
        )
    # Its cancel lets go what its own dead letter held.
    assert tenant_bound.execute("delete from held_lanes where tenant = 'globex'").rowcount == 0
    for table in set(TENANT_TABLES) - {"held_lanes"}:
        with pytest.raises(InsufficientPrivilege, match="permission denied"):
            tenant_bound.execute(f"delete from {table}")
    assert ledger(admin) == before


def test_the_tenant_bound_role_knows_nothing_of_the_fleet(rows: None, tenant_bound: Connection) -> None:
    bind(tenant_bound, "acme")
    for table in FLEET_TABLES:
        for statement in (f"select from {table}", INSERTS[table], f"delete from {table}"):
            with pytest.raises(InsufficientPrivilege, match="permission denied"):
                tenant_bound.execute(statement, values("acme") if statement == INSERTS[table] else None)


def test_the_tenant_bound_role_reads_its_own_checkpoints_and_may_take_them_back(
    rows: None, tenant_bound: Connection, admin: Connection
) -> None:
    bind(tenant_bound, "acme")
    for table in CHECKPOINT_TABLES:
        assert count(tenant_bound, table) == 1
        for statement in (
            INSERTS[table],
            f"update {table} set thread_id = thread_id",
            f"update {table} set checkpoint_ns = 'x'",
        ):
            with pytest.raises(InsufficientPrivilege, match="permission denied"):
                tenant_bound.execute(statement, values("acme", "new") if "insert" in statement else None)
        theirs = (values("globex")["key"],)
        assert tenant_bound.execute(f"delete from {table} where thread_id = %s", theirs).rowcount == 0
        assert tenant_bound.execute(f"delete from {table}").rowcount == 1
        assert admin.execute(f"select thread_id from {table}").fetchall() == [theirs]


def test_what_it_may_put_back_of_a_pending_write_is_its_own_tenants(
    rows: None, tenant_bound: Connection, admin: Connection
) -> None:
    before = admin.execute("select * from checkpoint_writes order by thread_id").fetchall()
    bind(tenant_bound, "acme")

    back = "update checkpoint_writes set run_id = replaced_run_id, type = replaced_type"
    assert tenant_bound.execute(f"{back} where thread_id = %s", (values("globex")["key"],)).rowcount == 0
    assert tenant_bound.execute(back).rowcount == 1

    assert admin.execute("select * from checkpoint_writes order by thread_id").fetchall() == before


def test_the_tenant_bound_role_reads_its_own_items_and_writes_none(
    rows: None, tenant_bound: Connection
) -> None:
    bind(tenant_bound, "acme")
    assert count(tenant_bound, "store") == 1
    for statement in (INSERTS["store"], "update store set key = key", "delete from store"):
        with pytest.raises(InsufficientPrivilege, match="permission denied"):
            tenant_bound.execute(statement, values("acme", "new") if "insert" in statement else None)


def test_nobody_changes_the_revision_and_a_tenant_announces_no_graph(fleet: Connection) -> None:
    for role, tables in ((FLEET_ROLE, WITHOUT_TENANTS - {"graphs"}), (TENANT_ROLE, WITHOUT_TENANTS)):
        fleet.execute(f"set role {role}")
        for table in tables:
            with pytest.raises(InsufficientPrivilege, match="permission denied"):
                fleet.execute(f"delete from {table}")
