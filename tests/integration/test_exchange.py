"""Export and import: byte by byte the same again, all of it or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from tests.integration.failures import Failures

from threadmill.core.errors import ImportInvalid
from threadmill.core.settings import Settings
from threadmill.dlq import Desk, LetterFilter
from threadmill.dlq.operator import operator


@pytest.fixture
def failures(admin: Any) -> Failures:
    failures = Failures(admin)
    failures.announce()
    return failures


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with Desk(settings) as desk:
        yield desk


class Elsewhere:
    """Another ledger, at first an empty one."""

    def __init__(self, settings: Settings) -> None:
        self.admin = psycopg.connect(settings.database_url, autocommit=True)
        self.admin.execute("set search_path to threadmill")
        self.failures = Failures(self.admin)
        self.desk = Desk(settings)


@pytest.fixture
def elsewhere(settings: Settings, services: tuple[str, str]) -> Iterator[Elsewhere]:
    name = settings.queue + "_elsewhere"
    url = settings.database_url.replace(settings.queue, name)
    with psycopg.connect(services[0], autocommit=True) as server:
        server.execute(f"create database {name} template threadmill_template strategy file_copy")
        other = Elsewhere(settings.model_copy(update={"database_url": url}))
        yield other
        other.desk.close()
        other.admin.close()
        server.execute(f"drop database {name} with (force)")


@pytest.fixture
def exported(desk: Desk, failures: Failures, admin: Any) -> list[str]:
    """Of everything that there can be: statuses, edits, holds, no run, odd texts, a history."""
    first = failures.fail("ü \u2028 t", hold=True, traceback="Traceback\n  …\r\n", task="a:b")
    failures.attempt(first, 1)
    failures.attempt(first, 2)
    desk.note(first, "seen \u2028 and \U0001f600", by="ada")
    desk.edit(
        first, patch={"question": "how?\n", "style": {"z": 1.5, "a": [1e300, -0.0, 12345678901234567890]}}
    )
    failures.fail("t", status="resolved")
    failures.fail(
        "t", tenant="globex", status="parked", next_nodes=["answer"], versions='{"threadmill": "1"}'
    )
    failures.fail("t", reason="timeout", next_replay_at="2026-02-03T04:05:06.000007+02:00")
    replaying = failures.fail("again")
    desk.replay(replaying, by="ada")
    failures.undeliverable()
    admin.execute(
        "update runs set idempotency_key = thread_id || seq, payload_hash = '\\x00ff',"
        """ config = '{"tags": ["b"]}', metadata = '{"b": 1, "a": 2.50}' where tenant = 'acme'"""
    )
    for number in range(250):  # more than a page
        failures.fail(f"many-{number}", tenant="initech")
    return list(desk.export())


def sealed(lines: list[str]) -> list[str]:
    """The lines with a seal that fits them."""
    whole = "".join(line + "\n" for line in lines)
    seal = {"dead_letters": len(lines), "sha256": hashlib.sha256(whole.encode()).hexdigest()}
    return [*lines, json.dumps(seal, separators=(",", ":"), sort_keys=True)]


# ---------------------------------------------------------------------------------------------------
# There and back


def test_what_was_imported_into_an_empty_ledger_is_exported_byte_by_byte_the_same(
    exported: list[str], elsewhere: Elsewhere
) -> None:
    imported = elsewhere.desk.import_(line + "\n" for line in exported)

    assert imported == (len(exported) - 1, 0)
    assert list(elsewhere.desk.export()) == exported
    assert elsewhere.failures.actions() == [("import", operator(), {"letters": imported.letters, "known": 0})]


def test_a_line_is_canonical_json_with_every_column(exported: list[str], admin: Any) -> None:
    rows = admin.execute(
        "select table_name, column_name from information_schema.columns where table_schema = 'threadmill'"
    ).fetchall()

    def columns(table: str, *left_out: str) -> set[str]:
        return {column for name, column in rows if name == table} - set(left_out)

    first = json.loads(exported[0])
    assert set(first["letter"]) == columns("dead_letters", "words")
    assert set(first["run"]) == columns("runs")
    assert set(first["attempts"][0]) == columns("attempts")
    assert set(first["actions"][0]) == columns("dead_letter_actions", "id")
    assert set(first["held_lane"]) == columns("held_lanes")
    assert first["run"]["finished_at"] == "2026-01-02T03:04:05.678901+00:00"
    for line in exported:
        assert line.isascii()
        assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))


def test_what_is_being_replayed_is_exported_as_if_that_had_failed(exported: list[str]) -> None:
    (record,) = [r for r in map(json.loads, exported[:-1]) if r["letter"]["thread_id"] == "again"]

    assert (record["letter"]["status"], record["letter"]["next_replay_at"]) == ("waiting", None)
    assert record["run"]["status"] == "error"
    assert record["run"]["finished_at"] is not None


def test_a_filter_says_what_is_exported(desk: Desk, exported: list[str]) -> None:
    lines = list(desk.export(LetterFilter(tenant="globex")))

    assert len(lines) == 2
    assert lines[0] in exported
    assert list(desk.export(LetterFilter(tenant="nobody"))) == sealed([])


def test_what_was_imported_can_be_replayed_with_its_input_and_is_held_as_it_was(
    exported: list[str], elsewhere: Elsewhere
) -> None:
    elsewhere.desk.import_(exported)
    elsewhere.failures.announce()
    letter_id = json.loads(exported[0])["letter"]["id"]
    assert elsewhere.admin.execute("select letter_id::text from held_lanes").fetchall() == [(letter_id,)]

    assert elsewhere.desk.replay(letter_id).status == "replaying"

    assert elsewhere.failures.run_of(letter_id, "status") == "pending"
    assert elsewhere.failures.run_of(letter_id, "input")["question"] == "how?\n"


# ---------------------------------------------------------------------------------------------------
# What is there already


def test_what_is_there_already_is_left_alone_and_counted(
    desk: Desk, exported: list[str], failures: Failures
) -> None:
    before = failures.everything()

    assert desk.import_(exported, by="ada") == (0, len(exported) - 1)

    after = failures.everything()
    assert {name for name in after if after[name] != before[name]} == {"dead_letter_actions"}
    assert failures.actions() == [("import", "ada", {"letters": 0, "known": len(exported) - 1})]


def test_a_letter_is_attached_to_the_run_that_is_there(desk: Desk, failures: Failures, admin: Any) -> None:
    letter_id = failures.fail()
    failures.attempt(letter_id)
    lines = list(desk.export())
    run = admin.execute("select row::text from runs as row").fetchall()
    admin.execute("delete from dead_letters")

    assert desk.import_(lines) == (1, 0)

    assert list(desk.export()) == lines
    assert admin.execute("select row::text from runs as row").fetchall() == run


def test_a_letter_whose_run_succeeded_meanwhile_is_left_out(
    desk: Desk, failures: Failures, admin: Any
) -> None:
    failures.fail()
    lines = list(desk.export())
    admin.execute("delete from dead_letters")
    admin.execute("update runs set status = 'success'")

    assert desk.import_(lines) == (0, 1)
    assert desk.list() == []


def test_a_place_or_a_key_that_is_taken_is_given_anew(
    desk: Desk, failures: Failures, admin: Any, elsewhere: Elsewhere
) -> None:
    letter_id = failures.fail(hold=True)
    admin.execute("update runs set idempotency_key = 'k', payload_hash = '\\x00'")
    elsewhere.failures.fail()
    elsewhere.admin.execute("update runs set idempotency_key = 'k', payload_hash = '\\x01'")

    assert elsewhere.desk.import_(desk.export()) == (1, 0)

    assert elsewhere.failures.run_of(letter_id, "seq") == elsewhere.failures.column(letter_id, "seq") == 2
    assert elsewhere.failures.run_of(letter_id, "idempotency_key") is None
    assert elsewhere.admin.execute("select seq from held_lanes").fetchall() == [(2,)]
    assert elsewhere.admin.execute("select last_seq from threads").fetchall() == [(2,)]


# ---------------------------------------------------------------------------------------------------
# What is no file of dead letters


def changed(line: str, **values: Any) -> str:
    """The line with other values, by their paths: letter__status="odd"."""
    record = json.loads(line)
    for path, value in values.items():
        part, _, name = path.partition("__")
        if name:
            record[part][name] = value
        else:
            record[part] = value
    return json.dumps(record, sort_keys=True, separators=(",", ":"))


Spoil = Callable[[list[str]], list[str]]


@pytest.mark.parametrize(
    ("spoil", "line", "words"),
    [
        (lambda lines: [], 1, "cut off"),
        (lambda lines: lines[:-1], 3, "cut off"),
        (lambda lines: lines[:1], 2, "cut off"),
        (lambda lines: [*lines[:-1], lines[-1][:-9]], 3, "no JSON"),
        (lambda lines: [lines[0], lines[1][:-20]], 2, "no JSON"),
        (lambda lines: lines[1:], 2, "seals other lines"),
        (lambda lines: [lines[1], lines[0], lines[2]], 3, "seals other lines"),
        (lambda lines: [lines[0].replace('"why?"', '"who?"'), *lines[1:]], 3, "seals other lines"),
        (lambda lines: [*lines, lines[0]], 4, "after the line that seals"),
        (lambda lines: ["hello"], 1, "no JSON"),
        (lambda lines: ["[]"], 1, "no dead letter"),
        (lambda lines: sealed([lines[0], lines[0]]), 2, "an earlier line has it too"),
        (lambda lines: sealed([lines[0], changed(lines[1], letter__id="x")]), 2, "letter.id: is no id"),
        (lambda lines: sealed([lines[0], changed(lines[1], letter__odd=1)]), 2, "other columns .odd."),
        (lambda lines: sealed([changed(lines[0], letter__status="replaying")]), 1, "letter.status"),
        (lambda lines: sealed([changed(lines[0], run__status="pending")]), 1, "run.status"),
        (lambda lines: sealed([changed(lines[0], run=None)]), 1, "run: is missing"),
        (lambda lines: sealed([changed(lines[0], run__tenant="globex")]), 1, "run.tenant"),
        (lambda lines: sealed([lines[0], changed(lines[1], letter__reason="bored")]), 1, "that follow"),
        (lambda lines: sealed([lines[0], changed(lines[1], letter__created_at="soon")]), 1, "that follow"),
    ],
)
def test_a_file_that_is_not_whole_has_its_line_and_writes_nothing(
    desk: Desk, failures: Failures, elsewhere: Elsewhere, spoil: Spoil, line: int, words: str
) -> None:
    failures.fail("one")
    failures.fail("two")
    lines = spoil(list(desk.export()))
    elsewhere.failures.fail("mine")
    before = elsewhere.failures.everything()

    with pytest.raises(ImportInvalid, match=words) as raised:
        elsewhere.desk.import_(lines)

    assert raised.value.line == line
    assert elsewhere.failures.everything() == before


def test_empty_lines_at_the_end_are_no_matter(desk: Desk, failures: Failures, elsewhere: Elsewhere) -> None:
    failures.fail()

    assert elsewhere.desk.import_([*desk.export(), "", "\n"]) == (1, 0)


def test_a_tenants_desk_exports_its_own_letters(settings: Settings, failures: Failures) -> None:
    own = failures.fail()
    failures.fail(tenant="globex")
    failures.attempt(own)

    with Desk(settings, tenant="acme") as acme:
        lines = list(acme.export())
        assert list(acme.export(LetterFilter(tenant="globex"))) == sealed([])

    assert [json.loads(line)["letter"]["id"] for line in lines[:-1]] == [own]
    assert len(json.loads(lines[0])["attempts"]) == 1
