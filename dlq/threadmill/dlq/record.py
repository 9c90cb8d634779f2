"""A dead letter as a line of JSON, with its run, the run's attempts, what was done, and the lane it holds.

The JSON is canonical (keys in order, no spaces, ASCII, times in UTC with microseconds), so the same dead
letter is the same line, byte by byte.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

from threadmill.core.errors import InvalidRequest
from threadmill.core.keys import check_tenant, check_thread_id
from threadmill.core.models import (
    DEAD_LETTER_STATUSES,
    TERMINAL_STATUSES,
    Attempt,
    DeadLetterAction,
    HeldLane,
    Run,
    table_of,
)
from threadmill.core.statement import Row
from threadmill.dlq.dead_letter import LETTER_COLUMNS
from threadmill.dlq.preview import REPLAYABLE

LETTER = tuple(column.name for column in LETTER_COLUMNS)
RUN = tuple(table_of(Run).c.keys())
ATTEMPT = tuple(table_of(Attempt).c.keys())
ACTION = tuple(column.name for column in table_of(DeadLetterAction).c if column.name != "id")
LANE = tuple(table_of(HeldLane).c.keys())
PARTS = ("actions", "attempts", "held_lane", "letter", "run")


class Unfit(Exception):
    """What is wrong with a record, in words."""


class Record(NamedTuple):
    """The values of a line, each part by its columns, as JSON has them. run: None for what has none."""

    letter: dict[str, Any]
    run: dict[str, Any] | None
    attempts: list[dict[str, Any]]
    actions: list[dict[str, Any]]
    held_lane: dict[str, Any] | None

    def to_line(self) -> str:
        """The line, without its end."""
        return canonical(self._asdict())


def canonical(value: Any) -> str:
    """The value as JSON, in the one form that it has."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def part(names: Iterable[str], row: Row, prefix: str = "") -> dict[str, Any]:
    """These columns of a row, as JSON values."""
    return {name: _value(row[prefix + name]) for name in names}


def _value(value: Any) -> Any:
    match value:
        case datetime.datetime():
            return value.astimezone(datetime.UTC).isoformat(timespec="microseconds")
        case uuid.UUID():
            return str(value)
        case bytes() | memoryview():
            return "\\x" + bytes(value).hex()
    return value


def as_failed(record: Record) -> Record:
    """The record as it would stand had the replay that is under way failed.

    No two ledgers can both be running it.
    """
    letter, run = record.letter, record.run
    if letter["status"] != "replaying" or run is None:
        return record
    run = {
        **run,
        "status": "error",
        "error": letter["error"],
        "finished_at": letter["replayed_at"],
        "worker_id": None,
        "dispatched_at": None,
    }
    return record._replace(letter={**letter, "status": "waiting", "next_replay_at": None}, run=run)


def read_record(values: Any) -> Record:
    """The record of a line's values. Raises Unfit where they do not belong together."""
    if not isinstance(values, dict) or set(values) != set(PARTS):
        raise Unfit(f"is no dead letter: it must have {', '.join(PARTS)}")
    letter, run, lane = values["letter"], values["run"], values["held_lane"]
    _check_columns("letter", letter, LETTER)
    for name, columns in (("attempts", ATTEMPT), ("actions", ACTION)):
        if not isinstance(values[name], list):
            raise Unfit(f"{name}: must be a list")
        for item in values[name]:
            _check_columns(name, item, columns)
    if run is not None:
        _check_columns("run", run, RUN)
    if lane is not None:
        _check_columns("held_lane", lane, LANE)
    record = Record(letter, run, values["attempts"], values["actions"], lane)
    _check_ids(record)
    _check_statuses(record)
    return record


def _check_columns(name: str, value: Any, columns: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        raise Unfit(f"{name}: must be an object")
    if set(value) != set(columns):
        odd = sorted(set(value) ^ set(columns))
        raise Unfit(f"{name}: another version of Threadmill has other columns ({', '.join(odd)})")


def _check_ids(record: Record) -> None:
    letter, run = record.letter, record.run
    for name in ("id", *(() if run is None else ("run_id",))):
        _check_uuid(f"letter.{name}", letter[name])
    if run is None:
        if letter["run_id"] is not None or record.attempts or record.held_lane:
            raise Unfit("run: is missing")
    else:
        _check_same("run.id", run["id"], letter["run_id"])
        for name in ("tenant", "thread_id", "seq"):
            _check_same(f"run.{name}", run[name], letter[name])
        try:
            check_tenant(letter["tenant"])
            check_thread_id(letter["thread_id"])
        except InvalidRequest as error:
            raise Unfit(f"letter: {error}") from None
        if isinstance(run["seq"], bool) or not isinstance(run["seq"], int) or not 0 < run["seq"] < 2**62:
            raise Unfit("run.seq: must be a whole number above 0")
    for attempt in record.attempts:
        _check_same("attempts.run_id", attempt["run_id"], letter["run_id"])
        _check_same("attempts.tenant", attempt["tenant"], letter["tenant"])
    for action in record.actions:
        _check_same("actions.letter_id", action["letter_id"], letter["id"])
        _check_same("actions.tenant", action["tenant"], letter["tenant"])
    if record.held_lane is not None:
        _check_same("held_lane.letter_id", record.held_lane["letter_id"], letter["id"])
        for name in ("tenant", "thread_id", "seq"):
            _check_same(f"held_lane.{name}", record.held_lane[name], letter[name])


def _check_uuid(name: str, value: object) -> None:
    try:
        if str(uuid.UUID(str(value))) == value:
            return
    except ValueError:
        pass
    raise Unfit(f"{name}: is no id")


def _check_same(name: str, value: object, expected: object) -> None:
    if value != expected:
        raise Unfit(f"{name}: is another than the letter's")


def _check_statuses(record: Record) -> None:
    status = record.letter["status"]
    if status not in DEAD_LETTER_STATUSES or status == "replaying":
        raise Unfit("letter.status: must be waiting, parked, resolved or discarded")
    if record.run is None:
        return
    allowed = ("error", "timeout") if status in REPLAYABLE else TERMINAL_STATUSES
    if record.run["status"] not in allowed:
        raise Unfit(f"run.status: must be {' or '.join(allowed)}")
