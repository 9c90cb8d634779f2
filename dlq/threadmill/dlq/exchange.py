"""Dead letters from one ledger into another, all of them or none.

A file has a line for each (see `record`); the last line seals it, by the number of the lines before it and
their SHA-256, so that what is cut off or was changed is refused.

A ledger that has the run keeps it, and the dead letter is attached to it; into one that does not, the run
comes with it, and its thread, without the checkpoints. What is there already is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO, Any, NamedTuple

import psycopg
from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY, UUID

from threadmill.core.errors import ImportInvalid
from threadmill.core.models import Attempt, DeadLetterAction, HeldLane, Run, table_of
from threadmill.core.models import DeadLetter as DeadLetterRow
from threadmill.core.statement import Batch, Plan, Row, Rows, Step
from threadmill.core.transitions import (
    enter_failed_threads,
    known_to_import,
    next_seq,
    record_action,
    stand_behind,
    take_in,
)
from threadmill.dlq.dead_letter import LETTER_COLUMNS
from threadmill.dlq.filter import LetterFilter
from threadmill.dlq.preview import REPLAYABLE
from threadmill.dlq.record import (
    ACTION,
    ATTEMPT,
    LANE,
    LETTER,
    RUN,
    Record,
    Unfit,
    as_failed,
    canonical,
    part,
    read_record,
)

PAGE = 200
# Up to so many bytes a file that is imported is kept in memory until it is checked.
SPOOLED = 32 * 1024 * 1024

_letters, _runs, _lanes = table_of(DeadLetterRow), table_of(Run), table_of(HeldLane)
_attempts, _actions = table_of(Attempt), table_of(DeadLetterAction)
_IDS = func.any(bindparam("ids", type_=ARRAY(UUID(as_uuid=True))))
_ATTEMPTS = select(*_attempts.c).where(_attempts.c.run_id == _IDS).order_by(_attempts.c.attempt)
_ACTIONS = select(*_actions.c).where(_actions.c.letter_id == _IDS).order_by(_actions.c.id)
_LANES = select(*_lanes.c).where(_lanes.c.letter_id == _IDS)
# The letters and their runs in one statement, and so at one moment.
_PAGE = (
    select(
        *LETTER_COLUMNS, *(column.label(f"run_{column.name}") for column in _runs.c if column.name != "id")
    )
    .select_from(_letters.outerjoin(_runs, _runs.c.id == _letters.c.run_id))
    .order_by(_letters.c.id)
    .limit(PAGE)
)

Place = tuple[str, str, int]  # tenant, thread and seq


class Imported(NamedTuple):
    """How many dead letters were taken in, and how many were there already and left alone."""

    letters: int
    known: int


class Seal:
    """Counts lines, and sums them up."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.sha256()

    def add(self, line: str) -> None:
        self.count += 1
        self._hash.update(line.encode() + b"\n")

    def to_line(self) -> str:
        """The last line of the file."""
        return canonical({"dead_letters": self.count, "sha256": self._hash.hexdigest()})


# ---------------------------------------------------------------------------------------------------
# Export


def export_letters(read: Callable[[Plan[list[Record]]], list[Record]], chosen: LetterFilter) -> Iterator[str]:
    """The lines without their ends, in the order of the letters' ids. read: carries out a page's plan."""
    seal = Seal()
    after: uuid.UUID | None = None
    while page := read(_page(chosen, after)):
        for record in page:
            line = record.to_line()
            seal.add(line)
            yield line
        after = uuid.UUID(page[-1].letter["id"])
    yield seal.to_line()


def _page(chosen: LetterFilter, after: uuid.UUID | None) -> Plan[list[Record]]:
    query = _PAGE.where(*chosen.conditions())
    if after is not None:
        query = query.where(_letters.c.id > after)
    (rows,) = yield Batch([Step(query, {})], final=False)
    run_ids = {"ids": [row["run_id"] for row in rows if row["run_id"] is not None]}
    letter_ids = {"ids": [row["id"] for row in rows]}
    attempts, actions, lanes = yield Batch(
        [Step(_ATTEMPTS, run_ids), Step(_ACTIONS, letter_ids), Step(_LANES, letter_ids)]
    )
    attempts_of, actions_of = _by("run_id", attempts), _by("letter_id", actions)
    lane_of = {row["letter_id"]: part(LANE, row) for row in lanes}
    return [
        as_failed(
            Record(
                letter=part(LETTER, row),
                run=_run(row),
                attempts=[part(ATTEMPT, attempt) for attempt in attempts_of[row["run_id"]]],
                actions=[part(ACTION, action) for action in actions_of[row["id"]]],
                held_lane=lane_of.get(row["id"]),
            )
        )
        for row in rows
    ]


def _run(row: Row) -> dict[str, Any] | None:
    if row["run_id"] is None:
        return None
    return {**part((name for name in RUN if name != "id"), row, "run_"), "id": str(row["run_id"])}


def _by(name: str, rows: Rows) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[row[name]].append(row)
    return found


# ---------------------------------------------------------------------------------------------------
# Import


class Parcel(NamedTuple):
    """A file that was found whole.

    seqs: of each of its threads, the greatest seq. pages: the first lines of the pages that were taken in.
    """

    records: Iterator[tuple[int, Record]]
    seqs: dict[tuple[str, str], int]
    pages: list[int]


def import_letters(
    carry_out: Callable[[Plan[Imported]], Imported], lines: Iterable[str], by: str
) -> Imported:
    """Checks all of the lines, then takes them in, in one transaction. Raises ImportInvalid."""
    with tempfile.SpooledTemporaryFile(SPOOLED, "w+", encoding="utf-8", newline="\n") as kept:
        parcel = _check(lines, kept)
        try:
            return carry_out(_take_in(parcel, by))
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            first = parcel.pages[-1] if parcel.pages else 1
            what = str(error).splitlines()[0]
            raise ImportInvalid(first, f"here, or in the {PAGE - 1} lines that follow: {what}") from error


def _check(lines: Iterable[str], kept: IO[str]) -> Parcel:
    """Keeps the lines before the seal, if they are what was sealed."""
    seal, last, number = Seal(), None, 0
    ids: set[str] = set()
    places: dict[Place, int] = {}
    seqs: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if last is not None:
            if line:
                raise ImportInvalid(number, "stands after the line that seals the file")
            continue
        values = _parse(number, line)
        if isinstance(values, dict) and "sha256" in values:
            last = line
            continue
        record = _record(number, values)
        for name in ("id", "run_id"):
            if record.letter[name] in ids:
                raise ImportInvalid(number, f"letter.{name}: an earlier line has it too")
            ids.update(filter(None, [record.letter[name]]))
        _enter(number, record, places, seqs)
        seal.add(line)
        kept.write(line + "\n")
    if last is None:
        raise ImportInvalid(number + 1, "is missing: the file is cut off before the line that seals it")
    if last != seal.to_line():
        raise ImportInvalid(seal.count + 1, f"seals other lines than the {seal.count} before it")
    return Parcel(_again(kept), seqs, [])


def _parse(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise ImportInvalid(number, "is no JSON; the file is cut off, or was changed") from None


def _record(number: int, values: Any) -> Record:
    try:
        return read_record(values)
    except Unfit as error:
        raise ImportInvalid(number, str(error)) from None


def _enter(number: int, record: Record, places: dict[Place, int], seqs: dict[tuple[str, str], int]) -> None:
    if record.run is None:
        return
    tenant, thread_id, seq = (record.run[name] for name in ("tenant", "thread_id", "seq"))
    if (first := places.setdefault((tenant, thread_id, seq), number)) != number:
        raise ImportInvalid(number, f"run.seq: is the place of line {first} on its thread")
    seqs[tenant, thread_id] = max(seq, seqs.get((tenant, thread_id), 0))


def _again(kept: IO[str]) -> Iterator[tuple[int, Record]]:
    kept.seek(0)
    for number, line in enumerate(kept, 1):
        yield number, read_record(json.loads(line))


def _take_in(parcel: Parcel, by: str) -> Plan[Imported]:
    letters, known = 0, 0
    threads = sorted(parcel.seqs)
    for start in range(0, max(len(threads), 1), PAGE):
        some = threads[start : start + PAGE]
        lanes = {"tenants": [tenant for tenant, _ in some], "thread_ids": [thread for _, thread in some]}
        seqs = {"seqs": [parcel.seqs[thread] for thread in some]}
        yield Batch([Step(enter_failed_threads(), {**lanes, **seqs})], final=False)
    while page := list(islice(parcel.records, PAGE)):
        parcel.pages.append(page[0][0])
        fresh = yield from _take_in_page(page)
        letters += fresh
        known += len(page) - fresh
    facts = {"letters": letters, "known": known}
    audit = {"letter_id": None, "tenant": None, "by": by, "action": "import", "facts": facts}
    yield Batch([Step(record_action(), audit)], final=False)
    return Imported(letters, known)


def _take_in_page(page: list[tuple[int, Record]]) -> Plan[int]:
    """How many of them were not there."""
    (rows,) = yield Batch([Step(known_to_import(), _wanted([record for _, record in page]))], final=False)
    there = _There.of(rows)
    fresh: list[Record] = []
    runs: list[dict[str, Any]] = []
    for number, record in page:
        run = record.run
        if record.letter["id"] in there.letters or (run is not None and run["id"] in there.lettered):
            continue
        present = None if run is None else there.runs.get(run["id"])
        if run is not None and present is None:
            record, run = yield from _placed(record, run, there)
            runs.append(run)
        elif present is not None:
            if not _fits(number, record, present):
                continue
            record = _at(record, present["seq"])
        fresh.append(record)
    yield Batch(_steps(fresh, runs), final=False)
    return len(fresh)


class _There(NamedTuple):
    """What the ledger has of a page already. lettered: the runs that have a dead letter."""

    letters: set[str]
    lettered: set[str]
    runs: dict[str, Row]
    places: set[Place]
    keys: set[tuple[str, str]]

    @classmethod
    def of(cls, rows: Rows) -> _There:
        """The rows of `known_to_import`."""
        kinds = {
            kind: [row for row in rows if row["kind"] == kind] for kind in ("letter", "run", "seq", "key")
        }
        return cls(
            letters={str(row["id"]) for row in kinds["letter"]},
            lettered={str(row["run_id"]) for row in kinds["letter"]},
            runs={str(row["id"]): row for row in kinds["run"]},
            places={(row["tenant"], row["thread_id"], row["seq"]) for row in kinds["seq"]},
            keys={(row["tenant"], row["key"]) for row in kinds["key"]},
        )


def _wanted(records: list[Record]) -> dict[str, Any]:
    runs = [record.run for record in records if record.run is not None]
    keyed = [run for run in runs if run["idempotency_key"] is not None]
    return {
        "letter_ids": [record.letter["id"] for record in records],
        "run_ids": [run["id"] for run in runs],
        "tenants": [run["tenant"] for run in runs],
        "thread_ids": [run["thread_id"] for run in runs],
        "seqs": [run["seq"] for run in runs],
        "key_tenants": [run["tenant"] for run in keyed],
        "keys": [run["idempotency_key"] for run in keyed],
    }


def _fits(number: int, record: Record, present: Row) -> bool:
    """Whether the dead letter can be attached to the run that is there."""
    for name in ("tenant", "thread_id"):
        if present[name] != record.letter[name]:
            raise ImportInvalid(number, f"run.{name}: this ledger has the run on another thread")
    return record.letter["status"] not in REPLAYABLE or present["status"] in ("error", "timeout")


def _placed(record: Record, run: dict[str, Any], there: _There) -> Plan[tuple[Record, dict[str, Any]]]:
    """The record and its run, with a place and an idempotency key that are free here."""
    tenant, thread_id = run["tenant"], run["thread_id"]
    if (tenant, run["idempotency_key"]) in there.keys:
        run = {**run, "idempotency_key": None, "payload_hash": None}
    if (tenant, thread_id, run["seq"]) in there.places:
        place = {"tenant": tenant, "thread_id": thread_id}
        (rows,) = yield Batch([Step(next_seq(), place)], final=False)
        run = {**run, "seq": rows[0]["last_seq"]}
    return _at(record, run["seq"]), run


def _at(record: Record, seq: int) -> Record:
    """The record at this place of its thread."""
    lane = None if record.held_lane is None else {**record.held_lane, "seq": seq}
    return record._replace(letter={**record.letter, "seq": seq}, held_lane=lane)


def _steps(fresh: list[Record], runs: list[dict[str, Any]]) -> list[Step]:
    groups = {record.letter["fingerprint"]: record.letter["graph"] for record in fresh}
    tables: tuple[tuple[str, tuple[str, ...], list[dict[str, Any]], bool], ...] = (
        ("runs", RUN, runs, False),
        ("dead_letters", LETTER, [record.letter for record in fresh], False),
        ("attempts", ATTEMPT, [attempt for record in fresh for attempt in record.attempts], True),
        ("dead_letter_actions", ACTION, [action for record in fresh for action in record.actions], False),
        ("held_lanes", LANE, [record.held_lane for record in fresh if record.held_lane], True),
        (
            "replay_groups",
            ("fingerprint", "graph"),
            [{"fingerprint": name, "graph": graph} for name, graph in sorted(groups.items())],
            True,
        ),
    )
    lanes = [record.held_lane for record in fresh if record.held_lane]
    threads = {
        "tenants": [lane["tenant"] for lane in lanes],
        "thread_ids": [lane["thread_id"] for lane in lanes],
    }
    taken = [
        Step(take_in(table, columns, leave=leave), {"rows": json.dumps(rows)})
        for table, columns, rows, leave in tables
    ]
    return [*taken, Step(stand_behind(), threads)]
