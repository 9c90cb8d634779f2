"""What an operator does with dead letters: list, show, replay, discard."""

from __future__ import annotations

import datetime
import getpass
import os
import uuid
from typing import Any

from sqlalchemy import Select, bindparam, select
from sqlalchemy.dialects.postgresql import UUID

from threadmill.core.database import Database
from threadmill.core.doorbell import Bell, Doorbell, bell_of, next_bell
from threadmill.core.errors import DeadLetterNotFound, InvalidOption, NotReplayable
from threadmill.core.keys import check_tenant, check_thread_id
from threadmill.core.models import DEAD_LETTER_STATUSES, table_of
from threadmill.core.models import DeadLetter as DeadLetterRow
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Step
from threadmill.core.transitions import discard, lock_thread, replay
from threadmill.dlq.dead_letter import LETTER_COLUMNS, DeadLetter, letter_of
from threadmill.producers.queries import check_page

_letters = table_of(DeadLetterRow)
_BY_ID = select(*LETTER_COLUMNS).where(_letters.c.id == bindparam("letter_id", type_=UUID(as_uuid=True)))


def note(action: str, **facts: Any) -> dict[str, Any]:
    """An entry of a dead letter's notes: what was done, when and by whom."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return {"at": datetime.datetime.now(datetime.UTC).isoformat(), "action": action, "by": user, **facts}


class Desk:
    """The operator's view over all tenants; it connects at its first use."""

    def __init__(self, settings: Settings) -> None:
        """Raises ServicesNotFound."""
        self._settings = settings.located()
        self._database = Database(self._settings)
        self._doorbell = Doorbell(self._settings)

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._doorbell.close()

    def list(
        self,
        *,
        tenant: str | None = None,
        thread_id: str | None = None,
        graph: str | None = None,
        status: str | None = None,
        reason: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[DeadLetter]:
        """A page of dead letters, newest first. after: the id of the last one of the page before."""
        check_page(limit, after)
        if status is not None and status not in DEAD_LETTER_STATUSES:
            raise InvalidOption("status", status, f"must be one of {', '.join(DEAD_LETTER_STATUSES)}")
        query: Select[tuple[object, ...]] = select(*LETTER_COLUMNS)
        if tenant is not None:
            query = query.where(_letters.c.tenant == check_tenant(tenant))
        if thread_id is not None:
            query = query.where(_letters.c.thread_id == check_thread_id(thread_id))
        for column, value in (
            (_letters.c.graph, graph),
            (_letters.c.status, status),
            (_letters.c.reason, reason),
        ):
            if value is not None:
                query = query.where(column == value)
        if after is not None:
            query = query.where(_letters.c.id < uuid.UUID(after))
        return self._database.carry_out(_read(query.order_by(_letters.c.id.desc()).limit(limit)))

    def get(self, letter_id: str) -> DeadLetter:
        """The dead letter. Raises DeadLetterNotFound."""
        return self._database.carry_out(_find(_parse(letter_id), letter_id, final=True))

    def replay(self, letter_id: str) -> DeadLetter:
        """The dead letter, now `replaying`; its run is pending again.

        Raises DeadLetterNotFound, and NotReplayable unless it is waiting or parked.
        """
        letter, bells = self._database.carry_out(replay_letter(letter_id, note("replay")))
        self._doorbell.ring(bells)
        return letter

    def discard(self, letter_id: str) -> DeadLetter:
        """The dead letter, now `discarded`; the lane it held goes on. Raises what `replay` raises."""
        letter, bells = self._database.carry_out(discard_letter(letter_id, note("discard")))
        self._doorbell.ring(bells)
        return letter


def _parse(letter_id: str) -> uuid.UUID:
    try:
        return uuid.UUID(letter_id)
    except ValueError:
        raise DeadLetterNotFound(letter_id) from None


def _read(query: Select[tuple[object, ...]]) -> Plan[list[DeadLetter]]:
    (rows,) = yield Batch([Step(query, {})])
    return [letter_of(row) for row in rows]


def _find(key: uuid.UUID, shown: str, *, final: bool) -> Plan[DeadLetter]:
    (rows,) = yield Batch([Step(_BY_ID, {"letter_id": key})], final)
    if not rows:
        raise DeadLetterNotFound(shown)
    return letter_of(rows[0])


def _change(letter_id: str, step: Step) -> Plan[tuple[DeadLetter, list[Any]]]:
    """Applies a transition under the lock of the dead letter's thread."""
    key = _parse(letter_id)
    before = yield from _find(key, letter_id, final=False)
    parameters = {**step.parameters, "letter_id": key}
    _, changed, after = yield Batch(
        [
            Step(lock_thread(), {"tenant": before.tenant, "thread_id": before.thread_id}),
            Step(step.statement, parameters),
            Step(_BY_ID, {"letter_id": key}),
        ]
    )
    letter = letter_of(after[0])
    if not changed:
        raise NotReplayable(letter.id, letter.status)
    return letter, list(changed)


def replay_letter(letter_id: str, entry: dict[str, Any]) -> Plan[tuple[DeadLetter, list[Bell]]]:
    """The plan of `Desk.replay`, with the bell to ring."""
    letter, rows = yield from _change(letter_id, Step(replay(), {"note": entry}))
    return letter, [bell_of(row) for row in rows]


def discard_letter(letter_id: str, entry: dict[str, Any]) -> Plan[tuple[DeadLetter, list[Bell]]]:
    """The plan of `Desk.discard`, with the bell of the thread's next run."""
    letter, rows = yield from _change(letter_id, Step(discard(), {"note": entry}))
    bell = next_bell(rows[0])
    return letter, [bell] if bell else []
