"""What of one transaction goes out as one statement, and what must not."""

from __future__ import annotations

import json
from typing import Any

from threadmill.workers.checkpoint_writes import Binding, CheckpointWrite, TaskWrites, Write, statements

KEY = "acme:t"
BINDING = Binding("acme")


def checkpoint(name: str, *channels: str, key: str = KEY) -> CheckpointWrite:
    blobs = [(key, "", channel, "1", "bytes", channel.encode()) for channel in channels]
    return CheckpointWrite(key, "", name, None, {"id": name}, {}, blobs)


def beside(name: str, *indexes: int, task: str = "task", replaces: bool = False) -> TaskWrites:
    rows = [
        (KEY, "", name, task, "", index, "channel", "bytes", bytes([number]))
        for number, index in enumerate(indexes)
    ]
    return TaskWrites(rows, replaces=replaces)


def made(*writes: Write) -> list[dict[str, Any]]:
    """The documents of each statement, and the contents."""
    return [
        {
            name: json.loads(value) if isinstance(value, str) else value
            for name, value in step.parameters.items()
            if name in ("checkpoints", "blobs", "writes", "replacing", "contents")
        }
        for step in statements(BINDING, writes)
    ]


def test_all_that_touches_different_rows_is_one_statement() -> None:
    (only,) = made(
        checkpoint("c1", "a", "b"), beside("c1", 0, 1), checkpoint("c2", "a"), beside("c2", -1, replaces=True)
    )

    assert [row["id"] for row in only["checkpoints"]] == ["c1", "c2"]
    assert [only["contents"][row["place"] - 1] for row in only["blobs"]] == [b"a", b"b", b"a"]
    assert [only["contents"][row["place"] - 1] for row in only["writes"]] == [b"\0", b"\1"]
    assert [row["index"] for row in only["replacing"]] == [-1]


def test_what_writes_to_the_same_place_is_a_statement_of_its_own() -> None:
    assert len(made(checkpoint("c1"), checkpoint("c2"), checkpoint("c1"))) == 2
    assert len(made(beside("c1", 0), beside("c1", 0, task="another"), beside("c1", 0))) == 2
    assert len(made(beside("c1", -1), beside("c1", -1, replaces=True))) == 2


def test_of_several_at_one_index_of_a_task_that_replaces_the_last_counts() -> None:
    (only,) = made(beside("c1", -1, -1, replaces=True))

    (row,) = only["replacing"]
    assert only["contents"][row["place"] - 1] == b"\1"


def test_another_threads_rows_are_a_statement_of_their_own() -> None:
    assert len(made(checkpoint("c1"), checkpoint("c2", key="acme:another"))) == 2


def test_only_the_first_statement_of_a_transaction_binds() -> None:
    steps = statements(BINDING, [checkpoint("c1"), checkpoint("c1")])

    assert ["set_config" in str(step.statement) for step in steps] == [True, False]
