"""Groups of dead letters, and all of them in numbers."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from threadmill.core.database import Database
from threadmill.core.errors import InvalidOption
from threadmill.core.settings import Settings
from threadmill.dlq import groups
from threadmill.dlq.filter import first_id
from threadmill.dlq.groups import Group, list_groups
from threadmill.dlq.stats import read_stats

INSERT = """
    insert into dead_letters (id, tenant, thread_id, graph, node, exception_type, reason, error, fingerprint,
        status, next_replay_at, created_at)
    values (%s, %s, 't', %s, 'ask', 'ValueError', %s, json_build_object('message', %s::text), %s, %s, %s, %s)
"""


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings)
    yield database
    database.close()


class Ledger:
    """Inserts dead letters, each with its group's row."""

    def __init__(self, admin: Any) -> None:
        self._admin = admin
        self._count = 0

    def add(
        self,
        fingerprint: str,
        *,
        minutes_ago: float = 0,
        tenant: str = "acme",
        graph: str = "chat",
        status: str = "waiting",
        reason: str = "exhausted",
        due: datetime.datetime | None = None,
    ) -> str:
        self._count += 1
        at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes_ago)
        key = uuid.UUID(int=first_id(at).int + self._count)
        message = f"message {self._count}"
        self._admin.execute(INSERT, (key, tenant, graph, reason, message, fingerprint, status, due, at))
        self._admin.execute(
            "insert into replay_groups (fingerprint, graph) values (%s, %s) on conflict do nothing",
            (fingerprint, graph),
        )
        return str(key)


@pytest.fixture
def ledger(admin: Any) -> Ledger:
    return Ledger(admin)


def test_a_group_tells_how_many_when_whom_and_how_it_grows(ledger: Ledger, database: Database) -> None:
    ledger.add("f", minutes_ago=120, status="resolved")
    for minutes in (55, 54, 15, 5, 4, 3):
        ledger.add("f", minutes_ago=minutes)
    newest = ledger.add("f", minutes_ago=1, tenant="globex", status="parked", reason="permanent")

    (group,) = database.carry_out(list_groups())

    assert (group.fingerprint, group.graph, group.node, group.exception_type) == (
        "f",
        "chat",
        "ask",
        "ValueError",
    )
    assert group.counts == {"waiting": 6, "replaying": 0, "resolved": 1, "parked": 1, "discarded": 0}
    assert group.trend == (2, 0, 0, 0, 1, 4)
    assert group.tenants == 2
    assert (group.sample.id, group.sample.message, group.reason) == (newest, "message 8", "permanent")
    assert group.last_seen - group.first_seen == pytest.approx(
        datetime.timedelta(minutes=119), abs=datetime.timedelta(seconds=20)
    )
    assert (group.window, group.backoffs, group.next_at, group.paused) == (1, 0, None, None)
    assert group.to_dict()["trend"] == [2, 0, 0, 0, 1, 4]


def test_a_group_shows_where_its_draining_stands(ledger: Ledger, database: Database, admin: Any) -> None:
    for name in ("backed-off", "paused", "of-a-paused-graph"):
        ledger.add(name, graph=name)
    admin.execute(
        'update replay_groups set "window" = 8, backoffs = 2, next_at = now() '
        "where fingerprint = 'backed-off'"
    )
    admin.execute(
        "insert into replay_pauses (kind, name, by) values ('group', 'paused', 'me'), "
        "('graph', 'of-a-paused-graph', 'me'), ('tenant', 'paused', 'me')"
    )

    found = {group.fingerprint: group for group in database.carry_out(list_groups())}

    assert (found["backed-off"].window, found["backed-off"].backoffs) == (8, 2)
    assert found["backed-off"].next_at is not None
    assert {name: group.paused for name, group in found.items()} == {
        "backed-off": None,
        "paused": "group",
        "of-a-paused-graph": "graph",
    }


def names(page: list[Group]) -> list[str]:
    return [group.fingerprint for group in page]


def test_what_failed_last_comes_first_page_by_page(ledger: Ledger, database: Database) -> None:
    for number in range(10):
        ledger.add(f"f{number}", minutes_ago=30 - number)
    ledger.add("f3", minutes_ago=1)
    expected = ["f3", "f9", "f8", "f7", "f6", "f5", "f4", "f2", "f1", "f0"]

    assert names(database.carry_out(list_groups())) == expected
    first = database.carry_out(list_groups(limit=4))
    for after in (first[-1].fingerprint, first[-1].sample.id):
        second = database.carry_out(list_groups(limit=4, after=after))
        assert names([*first, *second]) == expected[:8]

    # By the sample's id a page begins where the one before ended, whatever has come since.
    ledger.add("f7")
    second = database.carry_out(list_groups(limit=4, after=first[-1].sample.id))
    assert names(second) == ["f6", "f5", "f4", "f2"]


def test_groups_are_those_of_a_graph_or_of_a_tenant(ledger: Ledger, database: Database) -> None:
    ledger.add("f1", graph="chat", tenant="acme")
    ledger.add("f2", graph="mail", tenant="acme")
    ledger.add("f2", graph="mail", tenant="globex", status="parked")
    ledger.add("f3", graph="mail", tenant="globex")

    assert names(database.carry_out(list_groups(graph="mail"))) == ["f3", "f2"]
    mine = database.carry_out(list_groups(tenant="acme"))
    assert names(mine) == ["f2", "f1"]
    assert [group.counts["waiting"] + group.counts["parked"] for group in mine] == [1, 1]
    assert names(database.carry_out(list_groups(tenant="acme", graph="mail"))) == ["f2"]
    assert names(database.carry_out(list_groups(tenant="acme", limit=1, after=mine[0].sample.id))) == ["f1"]
    assert database.carry_out(list_groups(tenant="nobody")) == []


def test_the_counts_of_a_group_are_bounded(ledger: Ledger, database: Database, admin: Any) -> None:
    ledger.add("f")
    admin.execute(
        "insert into dead_letters (id, tenant, thread_id, graph, reason, error, fingerprint, status) "
        "select lpad(to_hex(n), 32, '0')::uuid, 'acme', 't', 'chat', 'timeout', '{}', 'f', 'parked' "
        "from generate_series(1, 1500) n"
    )

    for plan in (list_groups(), list_groups(tenant="acme")):
        (group,) = database.carry_out(plan)
        assert (group.counts["parked"], group.counts["waiting"]) == (groups.GROUP_MOST, 1)


def test_an_impossible_page_is_refused(database: Database) -> None:
    with pytest.raises(InvalidOption):
        database.carry_out(list_groups(limit=0))


def test_all_of_it_in_numbers(ledger: Ledger, database: Database, admin: Any) -> None:
    now = datetime.datetime.now(datetime.UTC)
    ledger.add("f1", minutes_ago=50, reason="permanent")
    oldest = now - datetime.timedelta(minutes=50)
    ledger.add("f1", minutes_ago=60, status="resolved", reason="timeout")
    ledger.add("f1", due=now - datetime.timedelta(minutes=1))
    held = ledger.add("f2", status="parked", due=None)
    ledger.add("f2", due=now + datetime.timedelta(hours=1))
    admin.execute("insert into threads (tenant, thread_id) values ('acme', 't')")
    admin.execute(
        "insert into held_lanes (tenant, thread_id, seq, letter_id) values ('acme', 't', 1, %s)", (held,)
    )

    stats = database.carry_out(read_stats())

    assert stats.by_status == {"waiting": 3, "replaying": 0, "resolved": 1, "parked": 1, "discarded": 0}
    assert {name: count for name, count in stats.by_reason.items() if count} == {
        "permanent": 1,
        "exhausted": 3,
        "timeout": 1,
    }
    assert {name: count for name, count in stats.open_by_reason.items() if count} == {
        "permanent": 1,
        "exhausted": 3,
    }
    assert stats.oldest_waiting == pytest.approx(oldest, abs=datetime.timedelta(seconds=20))
    assert (stats.due, stats.groups, stats.held_lanes, stats.jobs) == (1, 2, 1, 0)
    assert stats.to_dict()["due"] == 1
