"""Of the checkpoints of one transaction the last is kept, with all that it needs; nothing else is lost."""

from __future__ import annotations

from typing import Any

import pytest

from threadmill.workers.checkpoint_writes import CheckpointWrite, TaskWrites, Write, condensed

KEY = "acme:t"


def checkpoint(
    name: str, parent: str | None, versions: dict[str, str], *first: str, namespace: str = "", **metadata: Any
) -> CheckpointWrite:
    """first: the channels whose version it is the first to use."""
    blobs = [(KEY, namespace, channel, versions[channel], "bytes", channel.encode()) for channel in first]
    return CheckpointWrite(KEY, namespace, name, parent, {"channel_versions": versions}, metadata, blobs)


def beside(name: str, task: str, namespace: str = "") -> TaskWrites:
    return TaskWrites([(KEY, namespace, name, task, "", 0, "channel", "bytes", b"value")], replaces=False)


def test_the_last_takes_over_its_predecessors_place_and_the_blobs_that_it_uses() -> None:
    writes: list[Write] = [
        checkpoint("c1", "c0", {"a": "1", "b": "1"}, "a", "b"),
        beside("c1", "t1"),
        checkpoint("c2", "c1", {"a": "2", "b": "1"}, "a"),
        beside("c2", "t2"),
        checkpoint("c3", "c2", {"a": "3", "b": "1", "c": "1"}, "a", "c"),
        beside("c3", "t3"),
    ]

    last, left = condensed(writes)

    assert left is writes[-1]
    assert isinstance(last, CheckpointWrite)
    assert (last.checkpoint_id, last.parent_id) == ("c3", "c0")
    assert sorted((blob[2], blob[3]) for blob in last.blobs) == [("a", "3"), ("b", "1"), ("c", "1")]


def test_what_stands_beside_an_earlier_checkpoint_stays() -> None:
    """An answer, which is saved beside the checkpoint that asked."""
    answer, first, second = (
        beside("c0", "t0"),
        checkpoint("c1", "c0", {}),
        checkpoint("c2", "c1", {}),
    )

    assert [write.checkpoint_id for write in condensed([answer, first, second])] == ["c0", "c2"]


def test_two_that_do_not_follow_each_other_both_stay() -> None:
    writes = [checkpoint("c1", "c0", {}), checkpoint("d1", "c0", {})]
    assert condensed(writes) == writes


@pytest.mark.parametrize(
    "other",
    [
        beside("s1", "t", namespace="child:1"),
        checkpoint("s1", None, {}, namespace="child:1"),
        checkpoint("s1", None, {}, counters_since_delta_snapshot={"log": [1, 1]}),
    ],
    ids=["a write of a subgraph", "a checkpoint of a subgraph", "a DeltaChannel"],
)
def test_what_hangs_together_is_left_as_it_is(other: Write) -> None:
    writes = [checkpoint("c1", "c0", {}), other, checkpoint("c2", "c1", {})]
    assert condensed(writes) == writes
