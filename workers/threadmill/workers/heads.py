"""A thread's newest checkpoint, read in the transaction that claims the run which goes on from it.

LangGraph asks for it first of all. Read with the claim, it costs no round trip of its own; and it cannot be
out of date, as nobody but the attempt that has the thread may write there.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Literal

from langgraph.checkpoint.postgres.base import SELECT_SQL

from threadmill.core.statement import Compiled, Row, Step
from threadmill.core.transitions import TAKEN_KEY_SETTING


class Unread(Enum):
    """It was not read."""

    UNREAD = "unread"


UNREAD = Unread.UNREAD

# The newest checkpoint as the stock saver selects it; None where the thread has none.
Head = Row | None | Literal[Unread.UNREAD]


@cache
def _select(key: str) -> Compiled:
    where = f"where thread_id = {key} and checkpoint_ns = '' order by checkpoint_id desc limit 1"
    return Compiled(SELECT_SQL + where, binary=True)


def read_head(key: str) -> Step:
    """The newest checkpoint of the thread with this key. The transaction is bound to its tenant."""
    return Step(_select("%(key)s"), {"key": key})


def read_taken_head() -> Step:
    """That of the thread whose run was picked; none if none was. See `transitions.pick_next`."""
    return Step(_select(f"nullif(current_setting('{TAKEN_KEY_SETTING}', true), '')"), {})
