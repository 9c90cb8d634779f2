"""However transitions commit, a reader of the actions sees each once and misses none."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from threadmill.core.statement import Batch
from threadmill.dlq import action_tail
from threadmill.dlq.action_tail import END, ActionTail, Range, left_unseen

NOW = datetime.datetime.now(datetime.UTC)


class Table:
    """The actions and the transactions that write them, as Postgres shows them to a reader."""

    def __init__(self) -> None:
        self.next_xid, self.next_id = 100, 1
        self.open: dict[int, list[int]] = {}
        self.committed: set[int] = set()

    def begin(self) -> None:
        self.open[self.next_xid] = []
        self.next_xid += 1

    def draw(self, xid: int) -> None:
        self.open[xid].append(self.next_id)
        self.next_id += 1

    def end(self, xid: int, *, commits: bool) -> None:
        ids = self.open.pop(xid)
        if commits:
            self.committed |= set(ids)

    def page(self, lows: list[int], highs: list[int], after: int, page: int) -> list[dict[str, Any]]:
        snapshot = {"xmin": min(self.open, default=self.next_xid), "xmax": self.next_xid}
        ids = [
            number
            for number in sorted(self.committed)
            if number > after and any(low <= number <= high for low, high in zip(lows, highs, strict=True))
        ]
        found = [
            {**snapshot, "id": number, "at": NOW, "letter_id": uuid.UUID(int=number), "action": "park"}
            for number in ids[:page]
        ]
        return found or [{**snapshot, "id": None, "at": None, "letter_id": None, "action": None}]


def read(tail: ActionTail, table: Table, then: Any = lambda: None) -> list[int]:
    """The numbers of what the tail finds; `then` happens after each page."""
    plan = tail.read("park")
    batch: Batch = next(plan)
    while True:
        (step,) = batch.steps
        rows = table.page(**step.parameters)
        then()
        try:
            batch = plan.send([rows])
        except StopIteration as stop:
            return [action.letter_id.int for action in stop.value]


acts = st.lists(
    st.tuples(st.sampled_from(["begin", "draw", "draw", "commit", "roll back", "read"]), st.integers(0, 5)),
    max_size=60,
)


def act(table: Table, name: str, which: int) -> None:
    if name == "begin" or not table.open:
        table.begin()
        return
    xid = sorted(table.open)[which % len(table.open)]
    if name == "draw":
        table.draw(xid)
    else:
        table.end(xid, commits=name == "commit")


@given(acts, st.integers(1, 4))
def test_each_action_is_seen_once_whatever_order_they_commit_in(
    steps: list[tuple[str, int]], page: int
) -> None:
    table, tail = Table(), ActionTail()
    tail._unseen = [Range(0, END)]
    seen: list[int] = []
    between = iter(steps[len(steps) // 2 :])

    def meanwhile() -> None:
        if (step := next(between, None)) is not None and step[0] != "read":
            act(table, *step)

    before, action_tail.PAGE = action_tail.PAGE, page
    try:
        for name, which in steps:
            if name == "read":
                seen += read(tail, table, meanwhile)
            else:
                act(table, name, which)
        for xid in list(table.open):
            table.end(xid, commits=True)
        seen += read(tail, table)
    finally:
        action_tail.PAGE = before
    assert sorted(seen) == sorted(table.committed)


@given(acts)
def test_what_was_never_committed_is_forgotten(steps: list[tuple[str, int]]) -> None:
    table, tail = Table(), ActionTail()
    tail._unseen = [Range(0, END)]
    for name, which in steps:
        if name == "read":
            read(tail, table)
        else:
            act(table, name, which)
    for xid in list(table.open):
        table.end(xid, commits=False)

    read(tail, table)
    read(tail, table)

    assert len(tail._unseen) == 1, "the end of the table, and no hole"


def test_a_hole_that_is_settled_is_left() -> None:
    assert list(left_unseen([Range(3, 9, settled_at=50)], [4], -1, END, xmin=50, xmax=60)) == []
    assert list(left_unseen([Range(3, 9, settled_at=50)], [4], -1, END, xmin=49, xmax=60)) == [
        Range(3, 3, 50),
        Range(5, 9, 50),
    ]
