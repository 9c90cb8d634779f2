"""One dead letter in full: attempts, the state it left, what its run changed, what a replay would do."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import ormsgpack
import pytest
from psycopg.types.json import Jsonb

from threadmill.core.database import Database
from threadmill.core.errors import DeadLetterNotFound, InvalidOption
from threadmill.core.settings import Settings
from threadmill.dlq.detail import Change, changes, list_held_lanes, read_detail
from threadmill.dlq.preview import preview_letter

RUN, LETTER = uuid.UUID(int=1), uuid.UUID(int=2)
BASE, FAILED = "1-base", "2-failed"


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings)
    yield database
    database.close()


def checkpoint(admin: Any, name: str, values: dict[str, Any]) -> None:
    """A checkpoint as LangGraph keeps it: scalars within, the rest as blobs."""
    versions = {channel: f"{name}.{channel}" for channel in values}
    admin.execute(
        "insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata) values (%s, %s, %s, '{}')",
        ("acme:t", name, Jsonb({"v": 4, "channel_versions": versions, "channel_values": {}})),
    )
    for channel, value in values.items():
        admin.execute(
            "insert into checkpoint_blobs (thread_id, channel, version, type, blob) "
            "values ('acme:t', %s, %s, 'msgpack', %s)",
            (channel, versions[channel], ormsgpack.packb(value)),
        )


@pytest.fixture
def failed(admin: Any) -> str:
    """A dead letter whose run had added an answer to the messages before it failed; its id."""
    admin.execute("insert into threads (tenant, thread_id, last_seq) values ('acme', 't', 1)")
    admin.execute(
        "insert into runs (id, tenant, thread_id, seq, graph, status, input, started_at) "
        "values (%s, 'acme', 't', 1, 'chat', 'error', '{\"say\": \"hello\"}', now())",
        (RUN,),
    )
    admin.execute(
        "insert into attempts (run_id, attempt, tenant, outcome, exception_type, replay) "
        "values (%(run)s, 1, 'acme', 'failed', 'ValueError', 0), "
        "(%(run)s, 2, 'acme', 'lost', null, 1)",
        {"run": RUN},
    )
    admin.execute(
        "insert into dead_letters (id, run_id, tenant, thread_id, seq, graph, reason, error, node, "
        "fingerprint, base_checkpoint_id, checkpoint_id) "
        "values (%s, %s, 'acme', 't', 1, 'chat', 'exhausted', "
        '\'{"type": "ValueError", "message": "no"}\', \'ask\', \'f\', %s, %s)',
        (LETTER, RUN, BASE, FAILED),
    )
    admin.execute(
        "insert into graphs (name, version, topology_hash, input_schema, channels, nodes, policy) "
        "values ('chat', '1', 'h', '{}', '{}', '{ask,tell}', '{}')"
    )
    checkpoint(admin, BASE, {"messages": ["a"], "mood": "calm"})
    checkpoint(admin, FAILED, {"messages": ["a", "b"], "mood": "angry", "left": {"x/y": 1}})
    return str(LETTER)


def move(admin: Any) -> None:
    """Has a later run start on the thread."""
    admin.execute(
        "insert into runs (id, tenant, thread_id, seq, graph, status, started_at) "
        "values (gen_random_uuid(), 'acme', 't', 2, 'chat', 'success', now())"
    )


def test_the_state_at_the_failure_and_what_the_run_had_changed_are_shown(
    failed: str, database: Database
) -> None:
    detail = database.carry_out(read_detail(failed))

    assert detail.state == {"messages": ["a", "b"], "mood": "angry", "left": {"x/y": 1}}
    assert sorted((change.to_dict() for change in detail.diff), key=lambda change: change["path"]) == [
        {"path": "/left", "kind": "added", "after": {"x/y": 1}},
        {"path": "/messages/1", "kind": "added", "after": "b"},
        {"path": "/mood", "kind": "changed", "before": "calm", "after": "angry"},
    ]
    assert detail.input == {"say": "hello"}
    assert [(each.attempt, each.outcome, each.replay) for each in detail.attempts] == [
        (1, "failed", 0),
        (2, "lost", 1),
    ]
    assert detail.to_dict()["preview"]["mode"] == "resume"


def test_a_run_whose_input_was_not_applied_has_no_state(failed: str, database: Database, admin: Any) -> None:
    admin.execute("update dead_letters set checkpoint_id = null")

    detail = database.carry_out(read_detail(failed))

    assert (detail.state, detail.diff) == (None, ())


def test_what_was_done_and_what_it_holds_is_shown(failed: str, database: Database, admin: Any) -> None:
    admin.execute(
        "insert into dead_letter_actions (letter_id, tenant, by, action) "
        "values (%(id)s, 'acme', 'ann', 'note'), (%(id)s, 'acme', 'bob', 'park')",
        {"id": LETTER},
    )
    admin.execute(
        "insert into held_lanes (tenant, thread_id, seq, letter_id) values ('acme', 't', 1, %s)", (LETTER,)
    )
    for seq in (2, 3):
        admin.execute(
            "insert into runs (id, tenant, thread_id, seq, graph) "
            "values (gen_random_uuid(), 'acme', 't', %s, 'chat')",
            (seq,),
        )

    detail = database.carry_out(read_detail(failed))

    assert [(action.by, action.action) for action in detail.actions] == [("ann", "note"), ("bob", "park")]
    assert detail.held_lane is not None
    assert (detail.held_lane.waiting, detail.held_lane.letter_id) == (2, failed)
    assert database.carry_out(list_held_lanes()) == [detail.held_lane]
    assert database.carry_out(list_held_lanes(tenant="globex")) == []
    assert database.carry_out(list_held_lanes(after=failed)) == []


def test_a_message_that_was_not_delivered_has_neither_run_nor_state(database: Database, admin: Any) -> None:
    admin.execute(
        "insert into dead_letters (id, reason, error, fingerprint, status) "
        "values (%s, 'undeliverable', '{\"type\": \"X\", \"message\": \"m\"}', 'f', 'parked')",
        (LETTER,),
    )

    detail = database.carry_out(read_detail(str(LETTER)))

    assert (detail.input, detail.attempts, detail.state, detail.held_lane) == (None, (), None, None)
    assert detail.preview.refusal is not None


def preview(database: Database, letter: str, mode: str) -> tuple[str, bool]:
    found = database.carry_out(preview_letter(letter, mode))
    return found.mode, found.refusal is None


def test_the_preview_says_what_each_mode_would_come_to(failed: str, database: Database, admin: Any) -> None:
    modes = ("auto", "resume", "restart", "append", "scratch")

    assert [preview(database, failed, mode) for mode in modes] == [
        ("resume", True),
        ("resume", True),
        ("restart", True),
        ("append", True),
        ("scratch", True),
    ]
    admin.execute("update graphs set nodes = '{tell}'")
    assert [preview(database, failed, mode) for mode in modes[:2]] == [("restart", True), ("resume", False)]
    move(admin)
    assert [preview(database, failed, mode) for mode in modes[:2]] == [("append", True), ("resume", False)]
    admin.execute("update dead_letters set status = 'discarded'")
    assert [preview(database, failed, mode)[1] for mode in modes] == [False, False, False, False, True]
    with pytest.raises(InvalidOption):
        preview(database, failed, "again")


def test_what_is_not_there_is_not_found(database: Database) -> None:
    for name in ("no-uuid", str(LETTER)):
        with pytest.raises(DeadLetterNotFound, match=name):
            database.carry_out(read_detail(name))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": True}, [Change("/a", "changed", 1, True)]),
        ({"a/b~": 1}, {}, [Change("/a~1b~0", "removed", 1)]),
        ([1, 2], [1], [Change("/1", "removed", 2)]),
        ([1, 2], [2, 1], [Change("", "changed", [1, 2], [2, 1])]),
        ({"a": {"b": [1]}}, {"a": {"b": [1, 2]}}, [Change("/a/b/1", "added", after=2)]),
    ],
)
def test_a_diff_names_the_innermost_places(before: Any, after: Any, expected: list[Change]) -> None:
    assert list(changes(before, after)) == expected
