"""What `threadmill doctor` looks at: each check gives one finding, and none changes anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
from redis.exceptions import RedisError

from threadmill.cli.broker import broker_address, check_broker
from threadmill.cli.finding import Connection, Finding, one_row, some
from threadmill.cli.fleet_checks import (
    find_breakers,
    find_dead_letters,
    find_graphs,
    find_held_threads,
    find_quarantine,
    find_workers,
)
from threadmill.cli.pooler_check import find_pooler
from threadmill.cli.shard_check import find_strangers
from threadmill.cli.snapshot_check import find_old_snapshots
from threadmill.core.database import FLEET_ROLE, TENANT_ROLE, address, check_revision, connect
from threadmill.core.errors import (
    BrokerUnavailable,
    DatabaseNotMigrated,
    PoolerInTheWay,
    SettingsInvalid,
    Unavailable,
)
from threadmill.core.models import SCHEMA
from threadmill.core.notice import connect_redis
from threadmill.core.revision import REVISION
from threadmill.core.settings import Settings

# Tables that hold nothing of any tenant's.
UNGUARDED = ["revisions", "graphs", "checkpoint_migrations", "store_migrations"]
LANGGRAPH_TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "store")
MAX_SKEW = 1.0

_UPGRADE = "run `threadmill db upgrade` as the role that owns the tables"


class Checkup:
    """Looks at everything that these settings name, from the outside in.

    embedded: the services are those of a `threadmill dev`, where everybody is the superuser.
    """

    def __init__(self, settings: Settings, *, embedded: bool) -> None:
        """Raises ServicesNotFound."""
        self._given = settings
        self._settings = settings.located()
        self._embedded = embedded

    def findings(self) -> Iterator[Finding]:
        """One finding for each check. A check whose ground is missing says so."""
        with ExitStack() as stack:
            login = fleet = None
            missing = "the database does not answer"
            try:
                login = stack.enter_context(connect(self._settings, role=None))
            except PoolerInTheWay as error:
                yield _in_the_way("database", error)
            except Unavailable as error:
                yield Finding("database", "fail", str(error), "start it, or mend THREADMILL_DATABASE_URL")
            else:
                yield _checked("database", self._database, login)
            yield _checked("roles", self._roles, login)
            try:
                if login:
                    fleet = stack.enter_context(connect(self._settings))
                    check_revision(fleet, self._settings)
            except DatabaseNotMigrated as error:
                fleet, missing = None, "the database is not migrated"
                yield Finding("migrations", "fail", _stand(error), _UPGRADE)
            except PoolerInTheWay as error:
                fleet, missing = None, "the pooler is in the way"
                yield _in_the_way("migrations", error)
            except Unavailable:
                missing = f"the login may not act as {FLEET_ROLE}"
                yield _unchecked("migrations", missing)
            else:
                yield _checked("migrations", _migrations, fleet)
            if login and (pooler := find_pooler(self._settings)):
                yield pooler
            if self._given.shards:
                yield _checked("shard", lambda found: find_strangers(found, self._given), fleet, missing)
            broker = self._broker()
            yield broker
            yield self._eviction_policy(answers=broker.status == "ok")
            patience = self._settings.heartbeat_timeout
            yield _checked("workers", lambda found: find_workers(found, patience), fleet, missing)
            yield _checked("graphs", find_graphs, fleet, missing)
            yield _checked("clock", _clock, login)
            yield _checked("snapshots", find_old_snapshots, login)
            yield _checked("breakers", find_breakers, fleet, missing)
            yield _checked("quarantine", find_quarantine, fleet, missing)
            yield _checked("dead letters", find_dead_letters, fleet, missing)
            yield _checked("held threads", find_held_threads, fleet, missing)

    def _database(self, login: Connection) -> Finding:
        row = one_row(login, "select current_setting('server_version') as version")
        where = address(self._settings.database_url)
        return Finding("database", "ok", f"PostgreSQL {row['version']} at {where} answers")

    def _roles(self, login: Connection) -> Finding:
        names = [FLEET_ROLE, TENANT_ROLE]
        roles = {
            row["rolname"]: row
            for row in login.execute(
                "select rolname, rolsuper, rolbypassrls from pg_roles where rolname = any(%s)", [names]
            )
        }
        if missing := [name for name in names if name not in roles]:
            return Finding("roles", "fail", f"{' and '.join(missing)} missing", _UPGRADE)
        if free := [name for name, row in roles.items() if row["rolsuper"] or row["rolbypassrls"]]:
            return Finding(
                "roles",
                "fail",
                f"row-level security does not bind {' and '.join(free)}",
                f"alter role {free[0]} nosuperuser nobypassrls",
            )
        return self._tables(login)

    def _tables(self, login: Connection) -> Finding:
        """Whose the tables are, and whether row-level security is on."""
        tables = login.execute(
            "select relname as name, relrowsecurity as guarded, pg_get_userbyid(relowner) as owner "
            "from pg_class where relnamespace = to_regnamespace(%s) and relkind in ('r', 'p')",
            [SCHEMA],
        ).fetchall()
        if owned := sorted(t["name"] for t in tables if t["owner"] in (FLEET_ROLE, TENANT_ROLE)):
            return Finding(
                "roles",
                "fail",
                f"row-level security does not bind the owner of {some(owned)}",
                f"alter table {SCHEMA}.{owned[0]} owner to another role",
            )
        if bare := sorted(t["name"] for t in tables if not t["guarded"] and t["name"] not in UNGUARDED):
            return Finding(
                "roles",
                "fail",
                f"row-level security is off on {some(bare)}",
                f"alter table {SCHEMA}.{bare[0]} enable row level security",
            )
        owners = {table["owner"] for table in tables}
        guarded = sum(table["guarded"] for table in tables)
        return self._login(login, owners, f"row-level security binds {FLEET_ROLE} on {guarded} tables")

    def _login(self, login: Connection, owners: set[str], bound: str) -> Finding:
        """Who logs in: a member of the fleet's role, and better nothing more."""
        row = one_row(
            login,
            "select rolname as name, rolsuper, rolbypassrls, pg_has_role(oid, %s, 'member') as member "
            "from pg_roles where rolname = session_user",
            FLEET_ROLE,
        )
        name = row["name"]
        if not row["member"]:
            return Finding(
                "roles", "fail", f"{name} may not act as {FLEET_ROLE}", f'grant {FLEET_ROLE} to "{name}"'
            )
        if self._embedded:
            return Finding("roles", "ok", f"{bound}; embedded, so the login is a superuser's")
        if row["rolsuper"] or row["rolbypassrls"] or name in owners:
            what = "a superuser" if row["rolsuper"] else "bound by no row-level security"
            return Finding(
                "roles",
                "warn",
                f"{bound}, but the login {name} is {'the owner' if name in owners else what}",
                f"let workers and producers log in as a member: create role … login in role {FLEET_ROLE}",
            )
        return Finding("roles", "ok", bound)

    def _broker(self) -> Finding:
        try:
            check_broker(self._settings)
        except (BrokerUnavailable, SettingsInvalid) as error:
            return Finding(
                "broker",
                "fail",
                str(error),
                "start it, or mend THREADMILL_BROKER_URL; until then nothing is lost: workers take runs from "
                "the ledger, up to a few seconds later, and only Flower sees nothing",
            )
        return Finding("broker", "ok", f"{broker_address(self._settings)} answers")

    def _eviction_policy(self, *, answers: bool) -> Finding:
        name = "eviction policy"
        if not answers:
            return _unchecked(name, "the broker does not answer")
        redis = connect_redis(self._settings, timeout=self._settings.connect_timeout)
        if redis is None:
            return Finding(name, "ok", "the broker is no Redis")
        try:
            with redis:
                policy = redis.config_get("maxmemory-policy")["maxmemory-policy"]
        except (RedisError, KeyError) as error:
            return Finding(
                name,
                "warn",
                f"Redis does not tell its maxmemory-policy: {error}",
                "see to it that it is noeviction",
            )
        if policy != "noeviction":
            return Finding(
                name,
                "fail",
                f"maxmemory-policy is {policy}: a full Redis would drop doorbells in silence",
                "set maxmemory-policy to noeviction, in redis.conf or by `config set`",
            )
        return Finding(name, "ok", "maxmemory-policy is noeviction")


def _in_the_way(name: str, error: PoolerInTheWay) -> Finding:
    return Finding(name, "fail", f"the pooler at {error.address} is in the way: {error.reason}", error.remedy)


def _stand(error: DatabaseNotMigrated) -> str:
    at = f"is at revision {error.found}" if error.found else "holds no Threadmill tables"
    return f"the database {at}, expected {error.expected}"


def _migrations(fleet: Connection) -> Finding:
    found = one_row(
        fleet,
        "select array_agg(name order by name) as missing from unnest(%s::text[]) as name "
        "where to_regclass(name) is null",
        list(LANGGRAPH_TABLES),
    )["missing"]
    if found:
        return Finding(
            "migrations",
            "fail",
            f"LangGraph's tables are missing: {', '.join(found)}",
            f'{_UPGRADE}, where `pip install "threadmill[worker]"` was done',
        )
    return Finding("migrations", "ok", f"the tables are at revision {REVISION}")


def _clock(login: Connection) -> Finding:
    before = time.time()
    theirs = one_row(login, "select extract(epoch from clock_timestamp())::float8 as now")["now"]
    skew = theirs - (before + time.time()) / 2
    if abs(skew) > MAX_SKEW:
        return Finding(
            "clock",
            "warn",
            f"the database is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine",
            "set both by NTP: times are judged by the database's clock",
        )
    return Finding("clock", "ok", f"{abs(skew) * 1000:.0f} ms between this machine and the database")


def _checked(
    name: str,
    check: Callable[[Connection], Finding],
    connection: Connection | None,
    missing: str = "the database does not answer",
) -> Finding:
    """What the check finds; a finding of its own where it cannot look."""
    if connection is None:
        return _unchecked(name, missing)
    try:
        return check(connection)
    except psycopg.Error as error:
        return Finding(name, "fail", f"cannot be looked at: {str(error).strip()}")


def _unchecked(name: str, missing: str) -> Finding:
    return Finding(name, "warn", f"not checked: {missing}")
