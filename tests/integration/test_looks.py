"""Who looks soon again begins where the last look has found something, and misses nothing of its own."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Mapping
from typing import Any, cast

import psycopg
import pytest
from sqlalchemy.sql import Executable

from threadmill.core.database import connect
from threadmill.core.floors import BEGINNING, FROM_THE_FIRST
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Rows, compiled
from threadmill.core.transitions import pick_next, ring_taken
from threadmill.workers import sweeper
from threadmill.workers.attempts import Attempts
from threadmill.workers.claims import Claims, Next
from threadmill.workers.heartbeat import Heartbeat
from threadmill.workers.sweeper import Sweeper

RUN = uuid.uuid4()
MOMENT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LATER = MOMENT + datetime.timedelta(seconds=1)
TOOK = 0.05  # seconds, which is much


def seen(**more: Any) -> Row:
    """What a look from the beginning tells that was dear and has found nothing."""
    return {"saw_all": True, "floor": MOMENT, "since": LATER, "took": TOOK, **more}


# ---------------------------------------------------------------------------------------------------
# The threads' own runs


def test_the_next_run_of_a_thread_is_found_however_long_ago_it_became_due(
    settings: Settings, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("insert into threads (tenant, thread_id, last_seq) values ('acme', 't', 1)")
    admin.execute(
        "insert into runs (id, tenant, thread_id, seq, graph, run_at, rank)"
        " values (%s, 'acme', 't', 1, 'g', now() - interval '1 h', now() - interval '1 h')",
        [RUN],
    )
    (now,) = admin.execute("select now()").fetchone() or ()

    def picked(thread_id: str) -> list[uuid.UUID]:
        look = {"tenant": "acme", "thread_id": thread_id, "graphs": ["g"], "floor": now, "patience": 5.0}
        with connect(settings) as connection, connection.transaction(force_rollback=True):
            for statement in (pick_next(), ring_taken()):
                rows = execute(connection, statement, look)
        return [row["id"] for row in rows]

    assert picked("another") == []
    assert picked("t") == [RUN]


def execute(
    connection: psycopg.Connection[Any], statement: Executable, parameters: Mapping[str, Any]
) -> Rows:
    query = compiled(statement)
    return connection.execute(query.sql, query.bind(parameters)).fetchall()


# ---------------------------------------------------------------------------------------------------
# What is handed on of what a look has taken


class Asked:
    """A database that gives the same rows for all statements of a kind, and keeps what it was asked."""

    def __init__(self, *results: Rows) -> None:
        self.looks: list[Mapping[str, Any]] = []
        self._results = results

    async def carry_out(self, plan: Plan[Any]) -> Any:
        self.looks.append(next(iter(next(plan).steps)).parameters)
        try:
            plan.send(list(self._results))
        except StopIteration as stop:
            return stop.value


@pytest.fixture
def claims_on() -> Callable[[Asked], Claims]:
    def claims_on(database: Asked) -> Claims:
        heartbeat = cast(Any, type("Worker", (), {"worker_id": uuid.uuid4()}))
        versions = {"g": "1"}
        return Claims(cast(Any, database), heartbeat, Attempts(), versions, patience=5, alone=False)

    return claims_on


async def test_a_worker_begins_its_next_look_where_a_dear_one_has_found_something(
    claims_on: Callable[[Asked], Claims],
) -> None:
    database = Asked([seen()], [])
    claims = claims_on(database)
    for _ in range(2):
        assert await claims.take(4) == []

    first, second = ({name: look[name] for name in FROM_THE_FIRST} for look in database.looks)
    assert first == FROM_THE_FIRST
    assert second == {**FROM_THE_FIRST, "floor": MOMENT, "since": LATER}


def test_a_slot_begins_its_next_look_where_a_dear_one_has_found_something(
    claims_on: Callable[[Asked], Claims], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    claims = claims_on(Asked())
    steps = claims.next_steps("acme", "t", Next.RING)
    claims.following(Next.RING, steps, [[{"found": MOMENT, "took": TOOK}], []], since=0)
    now += 9.9

    def floor(tenant: str) -> Any:
        return claims.next_steps(tenant, "t", Next.RING)[0].parameters["floor"]

    assert (floor("acme"), floor("globex")) == (MOMENT, BEGINNING)


def test_the_leader_begins_its_next_look_where_a_dear_one_has_found_something_and_else_rests(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = 100.0, []

    def send(_: object, batch: Batch) -> list[Rows]:
        ((_, parameters),) = batch.steps
        looks.append({name: parameters[name] for name in FROM_THE_FIRST})
        return [[seen(id=None)]]

    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(sweeper, "send_unpipelined", send)
    leader = Sweeper(settings, cast(Any, None), cast(Any, None), cast(Any, None))
    for _ in range(3):  # the third comes while it rests, as the second was dear, too
        leader._ring(cast(Any, None), 10)

    assert looks == [FROM_THE_FIRST, {**FROM_THE_FIRST, "floor": MOMENT, "since": LATER}]
    now += 2.1
    leader._ring(cast(Any, None), 10)
    assert looks[2:] == [FROM_THE_FIRST]


# ---------------------------------------------------------------------------------------------------
# What a worker holds


def test_what_a_worker_has_held_for_long_it_holds_at_each_beat_and_what_it_does_not_know_it_gives_back(
    settings: Settings, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    known, unknown = uuid.uuid4(), uuid.uuid4()
    taken: list[tuple[uuid.UUID, int]] = []

    class Held(Attempts):
        def held(self) -> dict[uuid.UUID, int]:
            return {known: 1}

        def knows(self, run_id: uuid.UUID, number: int) -> bool:
            return run_id == known

    heartbeat = Heartbeat(
        settings,
        Held(),
        on_cut_off=lambda: None,
        on_taken=lambda run_id, number: taken.append((run_id, number)),
        on_given_back=lambda bell: None,
    )
    since: list[datetime.datetime] = []
    send = heartbeat._send

    def sending(*steps: Any) -> list[Rows]:
        since.extend(step.parameters["since"] for step in steps if "since" in step.parameters)
        return send(*steps)

    monkeypatch.setattr(heartbeat, "_send", sending)

    def claim(run_id: uuid.UUID, ago: str) -> None:
        admin.execute("insert into threads (tenant, thread_id) values ('acme', %s)", [str(run_id)])
        admin.execute(
            "insert into runs (id, tenant, thread_id, seq, graph, status, attempt, worker_id, dispatched_at)"
            " values (%s, 'acme', %s, 1, 'g', 'running', 1, %s, now() - %s::interval)",
            [run_id, str(run_id), heartbeat.worker_id, ago],
        )

    heartbeat._beat()  # it enters
    taken.clear()
    try:
        claim(known, "1 h")
        heartbeat._since_until = 0.0
        for _ in range(3):
            heartbeat._beat()
        claim(unknown, "0")
        heartbeat._beat()
    finally:
        heartbeat._disconnect()

    assert taken == []
    (claimed,) = admin.execute("select dispatched_at from runs where id = %s", [known]).fetchone() or ()
    assert since[1:] == [BEGINNING, claimed, claimed, claimed]
    assert admin.execute("select status from runs where id = %s", [unknown]).fetchone() == ("pending",)
    assert admin.execute("select status from runs where id = %s", [known]).fetchone() == ("running",)
