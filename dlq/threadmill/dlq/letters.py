"""Pages of dead letters, and how many there are."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import any_, bindparam, select
from sqlalchemy.dialects.postgresql import ARRAY, UUID

from threadmill.core.errors import DeadLetterNotFound, InvalidOption
from threadmill.core.models import DeadLetter as DeadLetterRow
from threadmill.core.models import table_of
from threadmill.core.statement import Batch, Plan, Step
from threadmill.dlq import walk
from threadmill.dlq.dead_letter import LETTER_COLUMNS, DeadLetter, letter_of
from threadmill.dlq.filter import EVERYWHERE, NOWHERE, LetterFilter, first_id
from threadmill.dlq.preview import parse_letter_id
from threadmill.dlq.walk import Shape
from threadmill.producers.queries import check_page

MOST = 10_000
# So many of the newest are looked at before the spans of time are walked.
WINDOW = 2_000
LARGEST_MOST = 1_000_000


_letters = table_of(DeadLetterRow)
_BY_ID = select(*LETTER_COLUMNS).where(_letters.c.id == bindparam("letter_id", type_=UUID(as_uuid=True)))
_BY_IDS = select(*LETTER_COLUMNS).where(
    _letters.c.id == any_(bindparam("ids", type_=ARRAY(UUID(as_uuid=True))))
)

Values = dict[str, Any]


def list_letters(
    filter: LetterFilter,  # noqa: A002 - the field's word
    limit: int = 100,
    after: str | None = None,
    newest_first: bool = True,
) -> Plan[list[DeadLetter]]:
    """A page of dead letters in the order of their ids, which is that of their recording.

    after: the id of the last one of the page before. Raises InvalidOption.
    """
    check_page(limit, after)
    position = None if after is None else uuid.UUID(after)
    ids = yield from find_ids(filter, limit, position, newest_first)
    if not ids:
        return []
    (rows,) = yield Batch([Step(_BY_IDS, {"ids": ids})])
    return [letter_of(row) for row in sorted(rows, key=lambda row: row["id"], reverse=newest_first)]


def find_ids(
    filter: LetterFilter,  # noqa: A002 - the field's word
    limit: int,
    after: uuid.UUID | None = None,
    newest_first: bool = True,
) -> Plan[list[uuid.UUID]]:
    """The ids of a page, as part of a plan whose last batch is yet to come."""
    shape, values = _shape(filter, newest_first), _values(filter, after, newest_first)
    values["limit"] = limit
    first = {name: value for name, value in values.items() if name != "start"}
    (rows,) = yield Batch([Step(walk.near(shape), {**first, "window": max(limit, WINDOW)})], final=False)
    if len(rows) < limit:
        (rows,) = yield Batch([Step(walk.page(shape), values)], final=False)
    return [row["id"] for row in rows]


def count_letters(filter: LetterFilter, most: int = MOST) -> Plan[int]:  # noqa: A002 - the field's word
    """How many there are; `most` where there are so many or more. Raises InvalidOption."""
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= LARGEST_MOST:
        raise InvalidOption("most", most, f"must be a whole number from 1 to {LARGEST_MOST}")
    shape, values = _shape(filter, newest_first=True), _values(filter, None, newest_first=True)
    (rows,) = yield Batch([Step(walk.count(shape), {**values, "limit": most})])
    return int(rows[0]["found"])


def read_letter(letter_id: str, *, final: bool = True) -> Plan[DeadLetter]:
    """The dead letter. final: nothing follows in its transaction. Raises DeadLetterNotFound."""
    (rows,) = yield Batch([Step(_BY_ID, {"letter_id": parse_letter_id(letter_id)})], final)
    if not rows:
        raise DeadLetterNotFound(letter_id)
    return letter_of(rows[0])


def _shape(filter: LetterFilter, newest_first: bool) -> Shape:  # noqa: A002 - the field's word
    return Shape(frozenset(filter.equal()), filter.text is not None, newest_first)


def _values(
    filter: LetterFilter,  # noqa: A002 - the field's word
    after: uuid.UUID | None,
    newest_first: bool,
) -> Values:
    """What is sought; of the ids those from `low` on and before `high`, from next to `start` on."""
    low = NOWHERE if filter.since is None else first_id(filter.since)
    high = EVERYWHERE if filter.until is None else first_id(filter.until)
    if after is not None and newest_first:
        high = min(high, after)
    elif after is not None:
        low = max(low, uuid.UUID(int=min(after.int + 1, EVERYWHERE.int)))
    start = high if newest_first else uuid.UUID(int=max(0, low.int - 1))
    text = {} if filter.text is None else {"text": filter.text}
    return {**filter.equal(), **text, "low": low, "high": high, "start": start}
