"""What stands in the queue and is no bell becomes a dead letter, harms no worker, and does not come back."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from threadmill.core.celery_app import RUN_TASK, create_celery_app
from threadmill.core.errors import NotReplayable
from threadmill.core.settings import Settings
from threadmill.dlq import Desk
from threadmill.producers import Producer
from threadmill.workers import undeliverable
from threadmill.workers.undeliverable import Undeliverable, UndeliverableMessages, kept, letter_id

GRAPHS = """
    from typing import TypedDict
    from langgraph.graph import StateGraph, START

    class State(TypedDict):
        text: str

    echo = StateGraph(State).add_node("say", lambda state: {"text": "said"}).add_edge(START, "say")
"""
SECRET = "secret-123"


def client_of(settings: Settings) -> redis.Redis:
    return redis.Redis.from_url(settings.broker_url.replace("redis+socket://", "unix://"))


@pytest.fixture
def queue(settings: Settings) -> Iterator[Callable[..., None]]:
    """Puts something into the queue, as it stands."""
    with client_of(settings) as client:
        yield lambda item: client.lpush(settings.queue, item)


def envelope(body: bytes, **changes: Any) -> dict[str, Any]:
    """A message as kombu writes it."""
    tag = str(uuid.uuid4())
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": RUN_TASK, "id": tag},
        "properties": {
            "correlation_id": tag,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "the-queue"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": tag,
        },
        **changes,
    }


def args(*values: Any) -> bytes:
    return json.dumps([list(values), {}, {}]).encode()


BELL = args(str(uuid.uuid4()), "acme", "t", "echo")
HEADERS = {"lang": "py", "id": "m"}
WRONG: dict[str, Any] = {
    "no JSON": SECRET,
    "no text": b"\xff\xfe" + SECRET.encode(),
    "a number": "1",
    "an object": json.dumps({"password": SECRET}),
    "no headers": json.dumps(envelope(BELL, headers=None)),
    "no task": json.dumps(envelope(json.dumps({"password": SECRET}).encode(), headers={})),
    "an unknown task": json.dumps(envelope(args(SECRET), headers={**HEADERS, "task": "mailer.send"})),
    "another content type": json.dumps(envelope(SECRET.encode(), **{"content-type": "application/x-pickle"})),
    "no JSON in it": json.dumps(envelope(SECRET.encode())),
    "null": json.dumps(envelope(b"null")),
    "no run": json.dumps(envelope(args(SECRET))),
    "no run's id": json.dumps(envelope(args(SECRET, "acme", "t", "echo"))),
    "numbers": json.dumps(envelope(args(str(uuid.uuid4()), 1, 2, 3))),
    "no base64": json.dumps({**envelope(BELL), "body": "%%%" + SECRET}),
    "no id": json.dumps(envelope(BELL, headers={"lang": "py", "task": RUN_TASK})),
}


def eventually(condition: Callable[[], Any]) -> Any:
    ends_at = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < ends_at
        time.sleep(0.05)
    return found


def count(admin: Any) -> int:
    (total,) = admin.execute("select coalesce(sum((error ->> 'count')::int), 0) from dead_letters").fetchone()
    return int(total)


@pytest.mark.parametrize("pool", ["asyncio", "prefork"])
def test_whatever_is_in_the_queue_is_recorded_and_the_worker_goes_on(
    serve: Callable[..., None],
    start_worker: Callable[..., Any],
    settings: Settings,
    producer: Producer,
    queue: Callable[..., None],
    admin: Any,
    pool: str,
) -> None:
    serve(GRAPHS, echo={})
    worker = start_worker(pool, concurrency=2)
    for item in WRONG.values():
        queue(item)

    eventually(lambda: count(admin) == len(WRONG))
    run = producer.enqueue("echo", {"text": "a"}, tenant="acme", thread_id="t")
    assert producer.wait(run.id, tenant="acme", timeout=20).status == "success"

    rows = admin.execute(
        "select to_jsonb(l), reason, status, run_id, tenant, thread_id, graph from dead_letters l"
    )
    for row, *rest in rows.fetchall():
        assert rest == ["undeliverable", "parked", None, None, None, None]
        assert SECRET not in json.dumps(row)
        assert base64.b64encode(SECRET.encode()).decode()[:-4] not in json.dumps(row)
    assert not [line for line in worker.lines if SECRET in line]
    with client_of(settings) as client:
        assert client.llen(settings.queue) == 0
    assert worker.process.poll() is None

    (error,) = admin.execute("select error from dead_letters where task = 'mailer.send'").fetchone()
    assert error == {
        "type": "NotRegistered",
        "message": "no worker here knows its task",
        "node": None,
        "task": "mailer.send",
        "message_id": "m",
        "queue": "the-queue",
        "content_type": "application/json",
        "length": len(args(SECRET)),
        "count": 1,
    }
    assert worker.stop() == 0


def test_it_is_discarded_and_noted_and_cannot_be_replayed(settings: Settings, admin: Any) -> None:
    messages = UndeliverableMessages(settings)
    messages.record(Undeliverable("NotRegistered", "no worker here knows its task", task="mailer.send"))
    messages.close()
    with Desk(settings) as desk:
        (letter,) = desk.list()
        assert (letter.reason, letter.status, letter.run_id) == ("undeliverable", "parked", None)
        for mode in ("auto", "resume", "restart", "append"):
            with pytest.raises(NotReplayable):
                desk.replay(letter.id, mode=mode)
        desk.note(letter.id, "the mailer's queue is another")
        assert desk.discard(letter.id).status == "discarded"
    actions = [
        row[0] for row in admin.execute("select action from dead_letter_actions order by id").fetchall()
    ]
    assert actions == ["park", "note", "discard"]


def test_a_flood_is_one_letter_a_minute_and_kind_of_all_processes_together(
    settings: Settings, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undeliverable.time, "time", lambda: 6000.0)
    fleet = [UndeliverableMessages(settings) for _ in range(2)]
    for messages in fleet:
        for _ in range(500):
            messages.record(Undeliverable("DecodeError", "its body cannot be decoded"))
        messages.close()

    assert admin.execute("select (error ->> 'count')::int from dead_letters").fetchall() == [(1000,)]
    assert admin.execute("select count(*) from dead_letter_actions where action = 'park'").fetchone() == (1,)
    assert admin.execute("select count(*) from replay_groups").fetchone() == (1,)


def test_many_kinds_are_told_apart_up_to_a_bound(settings: Settings, admin: Any) -> None:
    messages = UndeliverableMessages(settings)
    for number in range(1000):
        messages.record(Undeliverable("NotRegistered", "no worker here knows its task", task=f"t{number}"))
    messages.close()

    (letters,) = admin.execute("select count(*) from dead_letters").fetchone()
    assert letters <= 2 * (undeliverable.MOST_KINDS + 1), "the minute may have changed meanwhile"
    assert count(admin) == 1000


def test_while_postgres_is_away_records_wait_and_nothing_blocks(
    settings: Settings, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undeliverable, "PATIENCE", 0.05)
    admin.execute("alter table dead_letters rename to away")
    messages = UndeliverableMessages(settings)
    started = time.monotonic()
    for _ in range(100):
        messages.record(Undeliverable("DecodeError", "its body cannot be decoded"))
    assert time.monotonic() - started < 1
    admin.execute("alter table away rename to dead_letters")

    eventually(lambda: count(admin) == 100)
    messages.close()


def test_ids_are_in_the_order_of_time_and_of_version_seven() -> None:
    first, later = letter_id("a", 1), letter_id("a", 2)
    assert first < later
    assert first.version == later.version == 7
    assert letter_id("a", 1) == first != letter_id("b", 1)


def test_names_are_kept_short_and_printable() -> None:
    assert kept("a\x00b\nc\ud800") == "a?b?c?"
    assert len(kept("x" * 1000) or "") == 200
    assert kept(7) is None


def test_the_broker_app_is_as_before(settings: Settings) -> None:
    assert create_celery_app(settings).conf.worker_consumer == "threadmill.workers.consumer:Consumer"
