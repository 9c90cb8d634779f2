"""Which dead letters are meant: by tenant, graph, status, reason, group, node, exception, time and text."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, text

from threadmill.core.errors import InvalidOption
from threadmill.core.keys import check_tenant, check_thread_id
from threadmill.core.models import DEAD_LETTER_REASONS, DEAD_LETTER_STATUSES, table_of
from threadmill.core.models import DeadLetter as DeadLetterRow
from threadmill.producers.run import timestamp

MAX_TEXT = 200
# Before the id of any dead letter, and after it.
NOWHERE, EVERYWHERE = uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)
# What is compared as it is: the filter's field, and the column.
COLUMNS = {
    "tenant": "tenant",
    "thread_id": "thread_id",
    "graph": "graph",
    "status": "status",
    "reason": "reason",
    "group": "fingerprint",
    "node": "node",
    "exception": "exception_type",
}
_ONE_OF = {"status": DEAD_LETTER_STATUSES, "reason": DEAD_LETTER_REASONS}

# The words of a text as a search takes them. Parameter: text.
QUERY = "plainto_tsquery('simple', regexp_replace(:text, '[^[:alnum:]]+', ' ', 'g'))"

_letters = table_of(DeadLetterRow)


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Dead letters for which all of this holds; None for what does not matter. Raises InvalidOption.

    since, until: when it was recorded, as its id has it: from `since` on and before `until`; both with a time
    zone. text: words that all stand in its exception's type or message or in its node's name, in any order.
    """

    tenant: str | None = None
    thread_id: str | None = None
    graph: str | None = None
    status: str | None = None
    reason: str | None = None
    group: str | None = None
    node: str | None = None
    exception: str | None = None
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if self.tenant is not None:
            check_tenant(self.tenant)
        if self.thread_id is not None:
            check_thread_id(self.thread_id)
        for name in (*COLUMNS, "text"):
            _check_text(name, getattr(self, name))
        for name, words in _ONE_OF.items():
            value = getattr(self, name)
            if value is not None and value not in words:
                raise InvalidOption(name, value, f"must be one of {', '.join(words)}")
        for name in ("since", "until"):
            _check_moment(name, getattr(self, name))
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise InvalidOption("until", timestamp(self.until), "must be later than since")
        if self.text is not None and not any(character.isalnum() for character in self.text):
            raise InvalidOption("text", self.text, "holds no word")
        if self.text is not None and len(self.text) > MAX_TEXT:
            raise InvalidOption("text", self.text, f"must have at most {MAX_TEXT} characters")

    def to_dict(self) -> dict[str, Any]:
        """What is set, as JSON values; `from_dict` makes the same filter of it."""
        return {
            field.name: timestamp(value) if isinstance(value, datetime.datetime) else value
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LetterFilter:
        """The filter of what `to_dict` gave. Raises InvalidOption, also for names that it does not know."""
        names = [field.name for field in fields(cls)]
        for name, value in values.items():
            if name not in names:
                raise InvalidOption(name, value, f"is no filter; there are {', '.join(names)}")
        moments = {
            name: _parse_moment(name, values[name])
            for name in ("since", "until")
            if values.get(name) is not None
        }
        return cls(**{**values, **moments})

    def equal(self) -> dict[str, str]:
        """The columns that are to have a certain value, and the value."""
        found = {column: getattr(self, name) for name, column in COLUMNS.items()}
        return {column: value for column, value in found.items() if value is not None}

    def conditions(self) -> list[ColumnElement[bool]]:
        """All of it, as conditions on `dead_letters`."""
        return [
            *(_letters.c[column] == value for column, value in self.equal().items()),
            *self.range(),
            *self.search(),
        ]

    def range(self) -> list[ColumnElement[bool]]:
        """since and until, as bounds of the id."""
        found: list[ColumnElement[bool]] = []
        if self.since is not None:
            found.append(_letters.c.id >= first_id(self.since))
        if self.until is not None:
            found.append(_letters.c.id < first_id(self.until))
        return found

    def search(self) -> list[ColumnElement[bool]]:
        """The search for the words of `text`."""
        if self.text is None:
            return []
        return [_letters.c.words.op("@@")(text(QUERY).bindparams(text=self.text))]


def first_id(moment: datetime.datetime) -> uuid.UUID:
    """The smallest id that a dead letter of this millisecond can have (UUIDv7, RFC 9562)."""
    milliseconds = max(0, int(moment.timestamp() * 1000))
    return uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | 0x2 << 62)


def time_of(letter_id: uuid.UUID) -> datetime.datetime:
    """When the dead letter was recorded, as its id has it."""
    return datetime.datetime.fromtimestamp((letter_id.int >> 80) / 1000, datetime.UTC)


def _check_text(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value.strip():
        raise InvalidOption(name, value, "must be a text that is not empty")
    if "\x00" in value:
        raise InvalidOption(name, value, "holds the character U+0000")


def _check_moment(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, datetime.datetime) or value.tzinfo is None:
        raise InvalidOption(name, value, "must be a moment with its time zone")


def _parse_moment(name: str, value: object) -> datetime.datetime:
    if isinstance(value, datetime.datetime):
        return value
    try:
        return datetime.datetime.fromisoformat(str(value))
    except ValueError:
        raise InvalidOption(name, value, "must be a moment in ISO 8601") from None
