"""Pages of dead letters: what a filter finds, in both directions, and how far it is counted."""

from __future__ import annotations

import datetime
import itertools
import random
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import select, text

from threadmill.core.database import Database, connect
from threadmill.core.errors import DeadLetterNotFound, InvalidOption, InvalidTenant
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Step, carry_out
from threadmill.core.transitions import bind_tenant
from threadmill.dlq import letters
from threadmill.dlq.dead_letter import DeadLetter
from threadmill.dlq.detail import list_held_lanes, read_detail
from threadmill.dlq.filter import LetterFilter, first_id, time_of
from threadmill.dlq.groups import list_groups
from threadmill.dlq.letters import count_letters, list_letters, read_letter

START = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
NAMES = {"group": "fingerprint", "exception": "exception_type"}


def letter(number: int, **values: Any) -> dict[str, Any]:
    """The row of a dead letter that was recorded so many hours after START: about four are in one span."""
    at = START + datetime.timedelta(hours=number)
    given = {"tenant": "acme", "thread_id": "t", "graph": "chat", "reason": "exhausted", "status": "waiting"}
    row = {**given, "fingerprint": "f", "node": None, "exception_type": None, "message": "", **values}
    key = uuid.UUID(int=first_id(at).int + number)
    error = Jsonb({"type": row["exception_type"] or "", "message": row.pop("message")})
    return {"id": key, "created_at": at, "error": error, **row}


Insert = Callable[..., list[str]]


@pytest.fixture
def insert(admin: Any) -> Insert:
    """Inserts rows of `letter`; returns their ids."""

    def insert(*rows: dict[str, Any]) -> list[str]:
        names = list(rows[0])
        statement = (
            f"insert into dead_letters ({', '.join(names)}) "
            f"values ({', '.join(f'%({name})s' for name in names)})"
        )
        with admin.cursor() as cursor:
            cursor.executemany(statement, rows)
        return [str(row["id"]) for row in rows]

    return insert


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings)
    yield database
    database.close()


def mixed(count: int) -> list[dict[str, Any]]:
    """Dead letters of all kinds, some of them with nothing where nothing may be."""
    chance = random.Random(7)
    rows = []
    for number in range(count):
        undeliverable = chance.random() < 0.1
        exception = chance.choice(["httpx.ConnectTimeout", "ValueError", None])
        row = letter(
            number,
            tenant=None if undeliverable else chance.choice(["acme", "globex"]),
            thread_id=None if undeliverable else chance.choice(["t1", "t2"]),
            graph=None if undeliverable else chance.choice(["chat", "mail", "pay"]),
            node=None if undeliverable else chance.choice(["ask", "call_model", None]),
            exception_type=exception,
            message=chance.choice(["no route to billing", "order 17 refused", "Überlauf"]),
            fingerprint=chance.choice(["f1", "f2"]),
            reason="undeliverable" if undeliverable else chance.choice(["permanent", "exhausted", "timeout"]),
            status=chance.choice(["waiting", "parked", "resolved"]),
        )
        rows.append(row)
    return rows


def fits(row: dict[str, Any], sought: LetterFilter) -> bool:
    """What a filter means, said in Python."""
    for name, value in sought.to_dict().items():
        match name:
            case "since":
                fitting = row["created_at"] >= sought.since
            case "until":
                fitting = row["created_at"] < sought.until
            case "text":
                exception = row["exception_type"] or ""
                parts = re.sub("([a-z0-9])([A-Z])", r"\1 \2", exception)
                held = f"{exception} {parts} {row['node'] or ''} {row['error'].obj['message']}"
                words = set(re.findall(r"[^\W_]+", held.lower()))
                fitting = words.issuperset(re.findall(r"[^\W_]+", value.lower()))
            case _:
                fitting = row[NAMES.get(name, name)] == value
        if not fitting:
            return False
    return True


SOUGHT = {
    "tenant": "acme",
    "thread_id": "t1",
    "graph": "chat",
    "status": "parked",
    "reason": "timeout",
    "group": "f1",
    "node": "ask",
    "exception": "httpx.ConnectTimeout",
    "since": START + datetime.timedelta(hours=100),
    "until": START + datetime.timedelta(hours=300),
    "text": "billing",
}
FILTERS = [
    dict(zip(names, (SOUGHT[name] for name in names), strict=True))
    for size in (0, 1, 2)
    for names in itertools.combinations(SOUGHT, size)
]
FILTERS += [
    {name: SOUGHT[name] for name in names}
    for names in (
        ("tenant", "status", "reason"),
        ("tenant", "graph", "text"),
        ("graph", "node", "exception"),
        ("tenant", "group", "until"),
        ("thread_id", "node", "since"),
    )
]
TEXTS = ("ConnectTimeout", "connect", "timeout order", "call_model", "REFUSED 17", "überlauf", "giraffe")


# As it is (most are among the newest), and as it goes where there are very many of them.
@pytest.mark.parametrize("window", [letters.WINDOW, 1])
def test_every_filter_finds_what_fits_it_in_both_directions(
    insert: Insert, database: Database, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    rows = mixed(400)
    insert(*rows)
    monkeypatch.setattr(letters, "WINDOW", window)

    for values in [*FILTERS, *({"text": words} for words in TEXTS)]:
        sought = LetterFilter(**values)
        ids = [str(row["id"]) for row in rows if fits(row, sought)]
        for newest_first in (True, False):
            expected = sorted(ids, reverse=newest_first)
            page = database.carry_out(list_letters(sought, 7, None, newest_first))
            assert [each.id for each in page] == expected[:7], (values, newest_first)
            if len(page) == 7:
                page = database.carry_out(list_letters(sought, 7, page[-1].id, newest_first))
                assert [each.id for each in page] == expected[7:14], (values, newest_first)
        assert database.carry_out(count_letters(sought)) == len(ids), values
        assert database.carry_out(count_letters(sought, 3)) == min(3, len(ids)), values


def test_the_conditions_of_a_filter_are_what_its_pages_show(insert: Insert, database: Database) -> None:
    insert(*mixed(200))
    for values in FILTERS:
        sought = LetterFilter(**values)
        page = database.carry_out(list_letters(sought, 1000))

        def by_conditions(sought: LetterFilter = sought) -> Any:
            query = select(letters._letters.c.id).where(*sought.conditions())
            (found,) = yield Batch([Step(query.order_by(letters._letters.c.id.desc()), {})])
            return [str(row["id"]) for row in found]

        assert database.carry_out(by_conditions()) == [each.id for each in page], values


def walk(
    database: Database, sought: LetterFilter, newest_first: bool, between: Callable[[], Any]
) -> list[str]:
    seen: list[str] = []
    page: list[DeadLetter] = []
    while not seen or page:
        page = database.carry_out(list_letters(sought, 10, seen[-1] if seen else None, newest_first))
        seen += [each.id for each in page]
        between()
    return seen


def test_pages_neither_miss_nor_repeat_what_was_there_while_more_come(
    insert: Insert, database: Database
) -> None:
    before = insert(*(letter(number) for number in range(55)))
    numbers = itertools.count(55)

    def add() -> None:
        if next(numbers) < 65:
            insert(*(letter(1000 + next(numbers)) for _ in range(3)))

    backwards = walk(database, LetterFilter(tenant="acme"), True, add)
    assert backwards == before[::-1]
    forwards = walk(database, LetterFilter(status="waiting"), False, add)
    assert forwards[:55] == before
    assert len(forwards) == len(set(forwards)) > 55


def test_a_count_ends_at_its_bound(insert: Insert, database: Database) -> None:
    insert(*(letter(number, message="refused") for number in range(30)))

    for sought in (LetterFilter(), LetterFilter(tenant="acme"), LetterFilter(text="refused")):
        assert database.carry_out(count_letters(sought, 20)) == 20
        assert database.carry_out(count_letters(sought, 30)) == 30
        assert database.carry_out(count_letters(sought, 31)) == 30


def test_a_page_is_found_across_a_gap_of_years_and_within_a_burst(
    insert: Insert, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "WINDOW", 1)
    old = insert(*(letter(-90_000 - number, node="ask") for number in range(3)))
    burst = [letter(0, node="ask" if number % 10 == 0 else "answer") for number in range(100)]
    for number, row in enumerate(burst):
        row["id"] = uuid.UUID(int=row["id"].int + number)
    new = [key for key, row in zip(insert(*burst), burst, strict=True) if row["node"] == "ask"]
    expected = [*new[::-1], *old]

    for newest_first in (True, False):
        page = database.carry_out(list_letters(LetterFilter(node="ask"), 20, None, newest_first))
        assert [each.id for each in page] == (expected if newest_first else expected[::-1])
    assert database.carry_out(count_letters(LetterFilter(node="ask"))) == len(expected)


def test_a_time_is_a_place_among_the_ids() -> None:
    moment = START + datetime.timedelta(milliseconds=5)

    assert time_of(first_id(moment)) == moment
    assert first_id(START) < first_id(moment)
    assert first_id(moment).version == 7
    assert first_id(moment) <= uuid.UUID(int=first_id(moment).int + 99)


def test_a_filter_survives_being_written_down() -> None:
    full = LetterFilter(**{**SOUGHT, "text": "no route"})

    assert LetterFilter.from_dict(full.to_dict()) == full
    assert LetterFilter.from_dict({}) == LetterFilter()
    assert LetterFilter().to_dict() == {}


@pytest.mark.parametrize(
    "values",
    [
        {"status": "gone"},
        {"reason": "lost"},
        {"graph": ""},
        {"node": "a\x00b"},
        {"text": "  "},
        {"text": "?!"},
        {"text": "x" * 201},
        {"since": datetime.datetime(2026, 1, 1)},  # without a time zone
        {"since": START, "until": START},
    ],
)
def test_an_impossible_filter_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption) as raised:
        LetterFilter(**values)
    assert raised.value.option in values


def test_what_is_no_filter_is_refused_by_name() -> None:
    with pytest.raises(InvalidOption, match="colour"):
        LetterFilter.from_dict({"colour": "red"})
    with pytest.raises(InvalidOption, match="since"):
        LetterFilter.from_dict({"since": "yesterday"})
    with pytest.raises(InvalidTenant):
        LetterFilter(tenant="no tenant")


def test_an_impossible_page_or_bound_is_refused(database: Database) -> None:
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after": "x"}):
        with pytest.raises(InvalidOption):
            database.carry_out(list_letters(LetterFilter(), **wrong))  # type: ignore[arg-type]
    with pytest.raises(InvalidOption):
        database.carry_out(count_letters(LetterFilter(), 0))


def test_one_is_read_by_its_id(insert: Insert, database: Database) -> None:
    (key,) = insert(letter(1, exception_type="ValueError", message="no"))

    found = database.carry_out(read_letter(key))

    assert (found.id, found.run_id, found.error.message) == (key, None, "no")
    for name in ("no-uuid", str(uuid.uuid4())):
        with pytest.raises(DeadLetterNotFound, match=name):
            database.carry_out(read_letter(name))


def bound(plan: Any, tenant: str) -> Any:
    """The plan in a transaction that is bound to the tenant."""
    yield Batch([Step(bind_tenant(), {"tenant": tenant})], final=False)
    return (yield from plan)


def test_a_tenant_bound_connection_sees_its_own_only(insert: Insert, settings: Settings, admin: Any) -> None:
    mine = insert(*(letter(number, message="refused") for number in range(3)))
    theirs = insert(
        *(letter(number, tenant="globex", message="refused") for number in range(3, 6)),
        letter(6, tenant=None, thread_id=None, graph=None, reason="undeliverable", status="parked"),
    )
    admin.execute("insert into threads (tenant, thread_id) values ('acme', 't'), ('globex', 't')")
    admin.execute(
        "insert into held_lanes (tenant, thread_id, seq, letter_id) "
        "select tenant, thread_id, row_number() over (), id from dead_letters where tenant is not null"
    )
    admin.execute(
        "insert into dead_letter_actions (letter_id, tenant, by, action) "
        "select id, tenant, 'me', 'note' from dead_letters"
    )
    with connect(settings) as connection:

        def see(plan: Any) -> Any:
            return carry_out(connection, bound(plan, "acme"))

        for sought in (LetterFilter(), LetterFilter(tenant="acme"), LetterFilter(text="refused")):
            assert [each.id for each in see(list_letters(sought))] == mine[::-1]
            assert see(count_letters(sought)) == 3
        assert see(list_letters(LetterFilter(tenant="globex"))) == []
        assert {lane.letter_id for lane in see(list_held_lanes())} == set(mine)
        assert [group.counts["waiting"] for group in see(list_groups(tenant="acme"))] == [3]
        detail = see(read_detail(mine[0]))
        assert [action.by for action in detail.actions] == ["me"]
        for other in theirs:
            with pytest.raises(DeadLetterNotFound):
                see(read_detail(other))
        seen = carry_out(connection, bound(_actions(), "acme"))
        assert seen == {"acme"}


def _actions() -> Any:
    (rows,) = yield Batch([Step(text("select tenant from threadmill.dead_letter_actions"), {})])
    return {row["tenant"] for row in rows}
