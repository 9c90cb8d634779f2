"""A thread's newest checkpoint, read in the transaction that claims the run which goes on from it.

LangGraph asks for it first of all. Read with the claim, it costs no round trip of its own; those of several
that are claimed at once cost one together. It cannot be out of date, as nobody but the attempt that has the
thread may write there.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import cache
from typing import Literal

from langgraph.checkpoint.postgres.base import SELECT_SQL

from threadmill.core.statement import Compiled, Row, Step
from threadmill.core.transitions import TAKEN_KEY_SETTING, TENANT_SETTING


class Unread(Enum):
    """It was not read."""

    UNREAD = "unread"


UNREAD = Unread.UNREAD

# The newest checkpoint as the stock saver selects it; None where the thread has none.
Head = Row | None | Literal[Unread.UNREAD]


_BIND = Compiled(f"select set_config('{TENANT_SETTING}', %(tenant)s, true)")


def _newest(key: str) -> str:
    return f"{SELECT_SQL} where thread_id = {key} and checkpoint_ns = '' order by checkpoint_id desc limit 1"


@cache
def _select(key: str) -> Compiled:
    return Compiled(_newest(key), binary=True)


@cache
def _select_each() -> Compiled:
    keys = "unnest(%(keys)s::text[]) as asked(key)"
    return Compiled(
        f"select head.* from {keys} cross join lateral ({_newest('asked.key')}) as head",  # noqa: S608
        binary=True,
    )


def read_head(key: str) -> Step:
    """The newest checkpoint of the thread with this key. The transaction is bound to its tenant."""
    return Step(_select("%(key)s"), {"key": key})


def read_taken_head() -> Step:
    """That of the thread whose run was picked; none if none was. See `transitions.pick_next`."""
    return Step(_select(f"nullif(current_setting('{TAKEN_KEY_SETTING}', true), '')"), {})


def read_heads(tenant: str, keys: Sequence[str]) -> list[Step]:
    """Those of several threads of a tenant, of the ones that have any; binds the transaction to it.

    The last step gives them, each with its `thread_id`, the key.
    """
    return [Step(_BIND, {"tenant": tenant}), Step(_select_each(), {"keys": list(keys)})]
