"""A watch tells each thing once, whatever order it is committed in, and nothing that was there before."""

from __future__ import annotations

import datetime
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from uuid_utils.compat import uuid7

from threadmill.core.errors import InvalidOption, SettingsInvalid
from threadmill.core.settings import Settings
from threadmill.dlq import action_tail, lookout
from threadmill.dlq.filter import first_id
from threadmill.dlq.watch import Watch
from threadmill.producers import Producer

HOUR = datetime.timedelta(hours=1)


class Ledger:
    """Writes dead letters as the transitions do, in a transaction that the test ends."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        connection.execute("set search_path to threadmill")

    def letters(
        self,
        count: int = 1,
        *,
        group: str = "g",
        status: str = "waiting",
        tenant: str = "acme",
        age: float = 0,
    ) -> list[uuid.UUID]:
        ids = [uuid7() for _ in range(count)]
        if age:
            then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
            first = first_id(then).int
            ids = [uuid.UUID(int=first + number) for number in range(count)]
        with self.connection.cursor() as cursor:
            cursor.execute(
                "insert into replay_groups (fingerprint) values (%s) on conflict do nothing", [group]
            )
            cursor.executemany(
                "insert into dead_letters (id, tenant, thread_id, seq, graph, node, reason, exception_type,"
                " error, fingerprint, status, traceback) values (%s, %s, %s, 1, 'chat', 'call', 'exhausted',"
                ' \'IOError\', \'{"type": "IOError", "message": "secret-123"}\', %s, %s, \'secret-123\')',
                [(letter, tenant, str(letter), group, status) for letter in ids],
            )
        return ids

    def park(self, *ids: uuid.UUID) -> None:
        self.act("park", *ids)
        self.connection.execute("update dead_letters set status = 'parked' where id = any(%s)", [list(ids)])

    def act(self, action: str, *ids: uuid.UUID) -> None:
        # As the transitions, which change the letter first.
        self.connection.execute("select from dead_letters where id = any(%s) for update", [list(ids)])
        self.connection.execute(
            "insert into dead_letter_actions (letter_id, tenant, by, action)"
            " select id, tenant, 'drain', %s from dead_letters where id = any(%s) order by id",
            [action, list(ids)],
        )

    def hold(self, letter: uuid.UUID, age: float) -> None:
        self.connection.execute(
            "insert into held_lanes (tenant, thread_id, seq, letter_id, since)"
            " select tenant, thread_id, seq, id, now() - make_interval(secs => %s) from dead_letters"
            " where id = %s",
            [age, letter],
        )


@pytest.fixture
def ledger(admin: Any) -> Ledger:
    return Ledger(admin)


@pytest.fixture
def another(settings: Settings) -> Iterator[Ledger]:
    """A transaction that is open beside the others."""
    with psycopg.connect(settings.database_url) as connection:
        yield Ledger(connection)


@pytest.fixture
def watch(settings: Settings) -> Iterator[Callable[..., Watch]]:
    made: list[Watch] = []

    def one(**options: Any) -> Watch:
        made.append(Watch(settings, **{"held_longer_than": 60, **options}))
        return made[-1]

    yield one
    for each in made:
        each.close()


def told(watch: Watch) -> list[tuple[str, str, int | None]]:
    return [(alarm.type, alarm.data["group"], alarm.data.get("count")) for alarm in watch.look()]


# ---------------------------------------------------------------------------------------------------
# What is told


def test_what_is_there_already_is_not_told_and_what_comes_is_told_once(
    ledger: Ledger, watch: Callable[..., Watch]
) -> None:
    old = ledger.letters(20, group="old")
    ledger.park(*old[:3])
    ledger.hold(old[0], 90)
    watching = watch()
    assert told(watching) == []

    ledger.letters(2, group="new")
    ledger.park(old[3], old[4])
    ledger.hold(old[5], 90)
    assert told(watching) == [
        ("group.new", "new", None),
        ("letters.parked", "old", 2),
        ("lanes.held", "old", 1),
    ]
    assert told(watching) == []


def test_an_alarm_names_what_failed_and_where_and_nothing_that_a_user_wrote(
    ledger: Ledger, watch: Callable[..., Watch]
) -> None:
    watching = watch()
    watching.look()
    (letter,) = ledger.letters(group="f")
    ledger.park(letter)

    new, parked = watching.look()

    assert new.data == {
        "group": "f",
        "graph": "chat",
        "node": "call",
        "exception": "IOError",
        "reason": "exhausted",
        "tenant": "acme",
        "letter": str(letter),
    }
    assert parked.data == {**new.data, "count": 1, "letters": [str(letter)], "tenants": ["acme"]}
    assert "secret" not in new.to_json() + parked.to_json()


def test_with_since_what_happened_from_then_on_is_told(ledger: Ledger, watch: Callable[..., Watch]) -> None:
    older, newer = ledger.letters(group="old", age=7200), ledger.letters(13, group="old")
    for table, column in (("replay_groups", "created_at"), ("dead_letter_actions", "at")):
        ledger.park(*older) if table == "dead_letter_actions" else None
        ledger.connection.execute(f"update {table} set {column} = {column} - interval '2 h'")
    ledger.park(newer[0])
    ledger.hold(older[0], 7200)
    ledger.hold(newer[0], 90)
    ledger.letters(group="new")

    assert told(watch(since=datetime.datetime.now(datetime.UTC) - HOUR)) == [
        ("group.new", "new", None),
        ("group.growing", "old", 13),
        ("letters.parked", "old", 1),
        ("lanes.held", "old", 1),
    ]


def test_a_group_grows_where_more_letters_come_than_so_many_within_a_while(
    ledger: Ledger, watch: Callable[..., Watch]
) -> None:
    ledger.letters(50)
    watching = watch(growing=3, within=600)
    watching.look()
    ledger.letters(2)
    assert told(watching) == []
    ledger.letters(1)
    assert told(watching) == []
    ledger.letters(1)
    assert told(watching) == [("group.growing", "g", 4)]
    ledger.letters(5)
    assert told(watching) == [], "it grows still"


def test_a_group_that_grows_again_is_told_again(ledger: Ledger, watch: Callable[..., Watch]) -> None:
    watching = watch(growing=1, within=0.3)
    watching.look()
    ledger.letters(3)
    assert ("group.growing", "g", 3) in told(watching)
    time.sleep(0.4)
    assert told(watching) == []
    ledger.letters(2)
    assert told(watching) == [("group.growing", "g", 2)]


def test_a_flood_is_one_alarm_of_each_kind_and_group(ledger: Ledger, watch: Callable[..., Watch]) -> None:
    watching = watch()
    watching.look()
    ids = ledger.letters(1500, group="a") + ledger.letters(30, group="b", tenant="globex")
    ledger.park(*ids)

    alarms = watching.look()

    assert [(alarm.type, alarm.data["group"], alarm.data.get("count")) for alarm in alarms] == [
        ("group.new", "a", None),
        ("group.new", "b", None),
        ("group.growing", "a", 1000),
        ("group.growing", "b", 30),
        ("letters.parked", "a", 1500),
        ("letters.parked", "b", 30),
    ]
    assert alarms[2].data["more"] is True
    assert len(alarms[4].data["letters"]) == 20


def test_a_lane_is_told_when_it_has_been_held_for_so_long(
    ledger: Ledger, watch: Callable[..., Watch]
) -> None:
    first, second = ledger.letters(2)
    watching = watch(held_longer_than=0.3)
    watching.look()
    ledger.hold(first, 0)
    assert told(watching) == []
    time.sleep(0.35)
    assert told(watching) == [("lanes.held", "g", 1)]
    ledger.hold(second, 1)
    assert told(watching) == [("lanes.held", "g", 1)]
    ledger.connection.execute("delete from held_lanes")
    ledger.hold(first, 1)
    assert told(watching) == []
    assert told(watching) == []


def test_a_group_that_was_removed_and_comes_again_is_new(ledger: Ledger, watch: Callable[..., Watch]) -> None:
    ledger.letters()
    watching = watch()
    watching.look()
    ledger.connection.execute("delete from dead_letters")
    ledger.connection.execute("delete from replay_groups")
    assert told(watching) == []
    ledger.letters()
    assert told(watching) == [("group.new", "g", None)]


def test_a_run_that_has_failed_once_too_often_is_told_as_parked(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    producer: Producer,
    watch: Callable[..., Watch],
) -> None:
    serve(
        """
        from typing import TypedDict
        from langgraph.graph import StateGraph, START

        class State(TypedDict):
            text: str

        def call(state):
            raise ConnectionError(state["text"])

        calls = StateGraph(State).add_node("call", call).add_edge(START, "call")
        """,
        calls={"max_attempts": 1},
    )
    worker = start_local(max_replays=0)
    watching = watch()
    watching.look()
    worker.answer(producer.enqueue("calls", {"text": "secret-123"}, tenant="acme", thread_id="t")).exception(
        20
    )

    new, parked = watching.look()

    assert (new.type, parked.type) == ("group.new", "letters.parked")
    assert (parked.data["graph"], parked.data["node"]) == ("calls", "call")
    assert "secret" not in new.to_json() + parked.to_json()


# ---------------------------------------------------------------------------------------------------
# Nothing is missed


def test_what_commits_late_is_told(ledger: Ledger, another: Ledger, watch: Callable[..., Watch]) -> None:
    early, late, later = ledger.letters(3)
    watching = watch()
    watching.look()
    another.park(late)  # draws its id, and does not commit
    another.letters(group="late")
    ledger.park(early)
    assert told(watching) == [("letters.parked", "g", 1)]
    ledger.park(later)
    assert told(watching) == [("letters.parked", "g", 1)]
    assert told(watching) == []

    another.connection.commit()
    assert told(watching) == [("group.new", "late", None), ("letters.parked", "g", 1)]
    assert told(watching) == []
    assert len(watching._lookout._actions._unseen) == 1, "no hole is looked into for ever"


def test_what_was_under_way_when_the_watch_began_is_told(
    ledger: Ledger, another: Ledger, watch: Callable[..., Watch]
) -> None:
    early, late = ledger.letters(2)
    another.park(late)
    ledger.park(early)
    watching = watch()
    assert told(watching) == []
    another.connection.commit()
    assert told(watching) == [("letters.parked", "g", 1)]


def test_what_is_rolled_back_is_not_waited_for(
    ledger: Ledger, another: Ledger, watch: Callable[..., Watch]
) -> None:
    early, late = ledger.letters(2)
    watching = watch()
    watching.look()
    another.park(late)
    ledger.park(early)
    assert told(watching) == [("letters.parked", "g", 1)]
    another.connection.rollback()
    assert told(watching) == []
    assert len(watching._lookout._actions._unseen) == 1


def test_pages_miss_nothing(
    ledger: Ledger, another: Ledger, watch: Callable[..., Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action_tail, "PAGE", 3)
    monkeypatch.setattr(lookout, "GROUPS_PAGE", 2)
    ids = [ledger.letters(group=f"g{number}")[0] for number in range(8)]
    ledger.act("note", *ids)
    watching = watch()
    watching.look()
    another.park(*ids[:3])
    ledger.park(*ids[3:6])
    another.park(ids[6])
    ledger.act("note", *ids[3:6])
    ledger.park(ids[7])
    assert [group for _, group, _ in told(watching)] == ["g3", "g4", "g5", "g7"]
    another.connection.commit()
    assert [group for _, group, _ in told(watching)] == ["g0", "g1", "g2", "g6"]
    assert told(watching) == []


def test_a_look_that_is_broken_off_loses_nothing(
    ledger: Ledger, watch: Callable[..., Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = watch()
    watching.look()
    ledger.park(*ledger.letters(2))
    facts = lookout._NEWEST
    monkeypatch.setattr(lookout, "_NEWEST", lookout.text("select 1 / 0"))
    with pytest.raises(psycopg.errors.DivisionByZero):
        watching.look()
    monkeypatch.setattr(lookout, "_NEWEST", facts)
    assert told(watching) == [("group.new", "g", None), ("letters.parked", "g", 2)]


# ---------------------------------------------------------------------------------------------------
# The command


def command(settings: Settings, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "threadmill.cli.main", "dlq", "watch", *arguments],
        env={
            "PATH": "/usr/bin:/bin",
            "THREADMILL_DATABASE_URL": settings.database_url,
            "THREADMILL_BROKER_URL": settings.broker_url,
            "THREADMILL_LOG_FORMAT": "json",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_tells_a_program_line_by_line_until_it_is_stopped(
    settings: Settings, ledger: Ledger, tmp_path: Any
) -> None:
    kept = tmp_path / "kept"
    writes = f"{sys.executable} -c \"import sys; open('{kept}', 'a').write(sys.stdin.read())\""
    with command(settings, "--json", "--interval", "0.1", "--exec", writes) as process:
        assert process.stdout is not None and process.stderr is not None
        while "watch.ready" not in process.stderr.readline():
            assert process.poll() is None
        ledger.letters(group="f")
        line = process.stdout.readline()
        assert json.loads(line)["data"]["group"] == "f"
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=20)
    assert process.returncode == 0, words
    assert kept.read_text() == line


def test_once_and_since_look_once(settings: Settings, ledger: Ledger) -> None:
    ledger.letters(group="f")
    with command(settings, "--once", "--since", "1h") as process:
        output, words = process.communicate(timeout=20)
    assert process.returncode == 0, words
    assert "new group" in output
    assert "IOError" in output


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--once"], 2),
        (["--growing", "0"], 2),
        (["--held-longer-than", "soon"], 2),
        (["--interval", "0"], 1),
        (["--exec", ""], 1),
        (["--webhook", "http://example.org/"], 1),
        (["--webhook", "https://example.org/"], 1),
    ],
)
def test_what_cannot_be_is_refused(settings: Settings, arguments: list[str], status: int) -> None:
    with command(settings, *arguments) as process:
        _, words = process.communicate(timeout=20)
    assert process.returncode == status, words
    assert "Traceback" not in words


def test_a_watch_is_refused_before_it_connects() -> None:
    settings = Settings(database_url="postgresql://nowhere/x", broker_url="redis://nowhere/0")
    with pytest.raises(SettingsInvalid, match="webhook_secret"):
        Watch(settings, webhook="https://example.org/")
    with pytest.raises(InvalidOption, match="growing"):
        Watch(settings, growing=0)
