"""Retention removes what is past its time, and never what a run or a dead letter still needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from threadmill.core.database import connect
from threadmill.core.settings import Settings
from threadmill.dlq import Desk
from threadmill.producers import Producer, Run
from threadmill.workers import retention
from threadmill.workers.retention import Retention

GRAPHS = """
    import operator
    from typing import Annotated, TypedDict
    from langgraph.channels import DeltaChannel
    from langgraph.graph import StateGraph, START
    from langgraph.graph.message import _messages_delta_reducer
    from langgraph.types import interrupt

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]

    def say(state):
        if state["texts"][-1] == "fail":
            raise ValueError("no")
        return {"texts": ["said"]}

    def ask(state):
        return {"texts": [interrupt("sure?")]}

    def build(*names):
        graph = StateGraph(State)
        nodes = {"say": say, "hum": lambda state: {"texts": ["hummed"]}, "ask": ask}
        previous = START
        for name in names:
            graph.add_node(name, nodes[name])
            graph.add_edge(previous, name)
            previous = name
        return graph

    latest = aged = kept = build("say", "hum")
    inner = build("hum", "ask").compile()
    nested = (
        StateGraph(State).add_node("say", say).add_node("inner", inner)
        .add_edge(START, "say").add_edge("say", "inner")
    )
    own = build("hum").compile(checkpointer=True)
    remembering = StateGraph(State).add_node("own", own).add_edge(START, "own")

    class Deltas(TypedDict):
        texts: Annotated[list, DeltaChannel(_messages_delta_reducer)]

    deltas = (
        StateGraph(Deltas).add_node("say", lambda state: {"texts": [("ai", "said")]}).add_edge(START, "say")
    )
"""
LATEST = {"checkpoint_ttl": 0, "max_attempts": 1}
POLICIES = {
    "latest": LATEST,
    "aged": {"checkpoint_ttl": 3600, "max_attempts": 1},
    "kept": {},
    "nested": LATEST,
    "remembering": LATEST,
    "deltas": LATEST,
}
TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
WORK = Retention.work  # the workers' own sweeps do without, so that a test decides when what is removed


@pytest.fixture
def worker(
    serve: Callable[..., None], start_local: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr(Retention, "work", lambda *_: None)
    serve(GRAPHS, **POLICIES)
    return start_local(ring_again_after=60)


@pytest.fixture
def run(worker: Any, producer: Producer) -> Callable[..., Run]:
    """Enqueues and executes a run to its end."""

    def one(graph: str, *texts: str, **options: Any) -> Run:
        values: dict[str, Any] = {"tenant": "acme", "thread_id": "t", **options}
        if "command" not in options:
            values["input"] = {"texts": list(texts or ["a"])}
        run = producer.enqueue(graph, **values)
        worker.answer(run).exception(20)
        return producer.get(run.id, tenant=run.tenant)

    return one


@pytest.fixture
def retain(settings: Settings) -> Callable[..., None]:
    """Goes through one whole round of retention."""

    def one(**overrides: Any) -> None:
        retaining = Retention(settings.model_copy(update=overrides))
        with connect(settings) as connection:
            while retaining._due_at == float("-inf"):
                WORK(retaining, connection)

    return one


@pytest.fixture
def age(admin: Any) -> Callable[..., None]:
    """Has runs finished some time ago, by the database's clock, and their dead letters closed."""

    def some(seconds: float, *runs: Run) -> None:
        for table, column, key in (("runs", "finished_at", "id"), ("dead_letters", "updated_at", "run_id")):
            admin.execute(
                f"update {table} set {column} = {column} - make_interval(secs => %s)"
                f" where {key}::text = any(%s)",
                (seconds, [run.id for run in runs]),
            )

    return some


@pytest.fixture
def count(admin: Any) -> Callable[..., dict[str, int]]:
    def rows(thread_id: str = "acme:t") -> dict[str, int]:
        return {
            table: admin.execute(
                f"select count(*) from {table} where thread_id = %s", (thread_id,)
            ).fetchone()[0]
            for table in TABLES
        }

    return rows


@pytest.fixture
def ids(admin: Any) -> Callable[[], list[str]]:
    return lambda: [row[0] for row in admin.execute("select id::text from runs order by id").fetchall()]


# ---------------------------------------------------------------------------------------------------
# Outputs and runs


def test_outputs_are_forgotten_and_runs_removed_each_after_its_time(
    run: Callable[..., Run],
    age: Callable[..., None],
    retain: Callable[..., None],
    producer: Producer,
    ids: Callable[[], list[str]],
    admin: Any,
) -> None:
    young, older, oldest = run("kept"), run("kept"), run("kept", "fail")
    admin.execute("update dead_letters set status = 'resolved'")
    age(100, older)
    age(1000, oldest)

    retain(output_ttl=50, run_ttl=500, dead_letter_ttl=500)

    assert ids() == [young.id, older.id]
    assert producer.get(young.id, tenant="acme").output is not None
    assert producer.get(older.id, tenant="acme").output is None
    for table in ("attempts", "dead_letters"):
        assert admin.execute(f"select count(*) from {table}").fetchone() == (0,)
    assert producer.state("acme", "t").values["texts"], "the thread and its state stay"


@pytest.mark.parametrize(
    ("status", "goes"),
    [("waiting", False), ("replaying", False), ("parked", False), ("resolved", True), ("discarded", True)],
)
def test_closed_dead_letters_go_after_their_time_and_their_runs_with_them(
    run: Callable[..., Run],
    age: Callable[..., None],
    retain: Callable[..., None],
    admin: Any,
    ids: Callable[[], list[str]],
    status: str,
    goes: bool,
) -> None:
    failed, after = run("kept", "fail"), run("kept")
    admin.execute("update dead_letters set status = %s", (status,))
    age(1000, failed, after)
    letters = "select count(*) from dead_letters"

    retain(run_ttl=500, dead_letter_ttl=2000)
    assert ids() == [failed.id], "a run stays as long as its dead letter"
    assert admin.execute(letters).fetchone() == (1,)
    retain(run_ttl=500, dead_letter_ttl=None)
    assert admin.execute(letters).fetchone() == (1,)

    retain(run_ttl=500, dead_letter_ttl=500)
    assert ids() == ([] if goes else [failed.id])
    for table in ("attempts", "dead_letters", "replay_groups"):
        assert admin.execute(f"select count(*) from {table}").fetchone() == (0 if goes else 1,), table


def test_a_run_may_outlive_its_dead_letter_and_what_is_recorded_goes_with_the_letter(
    run: Callable[..., Run],
    age: Callable[..., None],
    retain: Callable[..., None],
    settings: Settings,
    ids: Callable[[], list[str]],
    admin: Any,
) -> None:
    failed = run("kept", "fail")
    with Desk(settings) as desk:
        desk.discard(desk.list()[0].id)
    assert admin.execute("select count(*) from dead_letter_actions").fetchone()[0] >= 1
    age(1000, failed)

    retain(run_ttl=None, dead_letter_ttl=500)

    assert ids() == [failed.id]
    for table in ("dead_letters", "dead_letter_actions"):
        assert admin.execute(f"select count(*) from {table}").fetchone() == (0,), table


def test_unfinished_runs_stay_however_old_and_none_removes_nothing(
    run: Callable[..., Run],
    age: Callable[..., None],
    retain: Callable[..., None],
    producer: Producer,
    ids: Callable[[], list[str]],
    admin: Any,
) -> None:
    done = run("kept")
    age(10**9, done)
    pending = producer.enqueue("kept", {"texts": ["a"]}, tenant="acme", thread_id="u")
    admin.execute(
        "update runs set created_at = '2000-01-01', run_at = '2000-01-01' where id = %s", (pending.id,)
    )

    retain(run_ttl=None)
    assert ids() == [done.id, pending.id]
    retain(run_ttl=1)
    assert ids() == [pending.id]


def test_runs_with_open_dead_letters_are_passed_by(
    run: Callable[..., Run],
    age: Callable[..., None],
    retain: Callable[..., None],
    ids: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "BATCH", 1)
    failed = [run("kept", "fail", thread_id=str(number)) for number in range(3)]
    done = run("kept")
    age(1000, *failed, done)

    retain(run_ttl=500)

    assert ids() == [letter.id for letter in failed]


# ---------------------------------------------------------------------------------------------------
# Checkpoints


def test_the_latest_checkpoint_of_a_thread_is_all_that_it_needs(
    run: Callable[..., Run],
    retain: Callable[..., None],
    producer: Producer,
    count: Callable[..., dict[str, int]],
) -> None:
    for _ in range(3):
        run("latest")
    before = producer.state("acme", "t")
    assert count()["checkpoints"] == 12

    retain()

    after = count()
    assert after["checkpoints"] == 1
    assert after["checkpoint_writes"] == 0
    assert after["checkpoint_blobs"] < 6, "those of one checkpoint"
    assert producer.state("acme", "t") == before
    assert [entry["parent_checkpoint_id"] for entry in producer.history("acme", "t")] == [None]
    run("latest", "more")
    assert producer.state("acme", "t").values["texts"] == [
        *before.values["texts"], "more", "said", "hummed"
    ]  # fmt: skip


def test_a_thread_of_a_graph_that_keeps_all_is_left_alone(
    run: Callable[..., Run], retain: Callable[..., None], count: Callable[..., dict[str, int]]
) -> None:
    run("kept")
    run("latest", thread_id="both")
    run("kept", thread_id="both")
    before = count(), count("acme:both")

    retain()

    assert (count(), count("acme:both")) == before


def test_checkpoints_are_kept_for_their_time_after_their_runs_end(
    run: Callable[..., Run],
    age: Callable[..., None],
    retain: Callable[..., None],
    producer: Producer,
) -> None:
    first, second, third = run("aged"), run("aged"), run("aged")
    assert len(producer.history("acme", "t")) == 12
    retain()
    assert len(producer.history("acme", "t")) == 12

    age(7200, first)
    retain()
    assert {entry["run_id"] for entry in producer.history("acme", "t")} == {second.id, third.id}

    age(7200, second, third)
    retain()
    assert [entry["run_id"] for entry in producer.history("acme", "t")] == [third.id]


def test_a_thread_with_a_question_keeps_it_and_the_answer_goes_on_from_there(
    run: Callable[..., Run],
    retain: Callable[..., None],
    producer: Producer,
    admin: Any,
) -> None:
    for answer in ("yes", "indeed"):
        run("nested", "a")
        retain()
        (question,) = producer.state("acme", "t").interrupts
        done = run("nested", command={"resume": {question["id"]: answer}})
        assert done.status == "success"
    namespaces = "select count(distinct checkpoint_ns) from checkpoints where checkpoint_ns <> ''"
    assert admin.execute(namespaces).fetchone() == (1,), "the first call's has gone with its question"
    texts = producer.state("acme", "t").values["texts"]
    retain()
    assert admin.execute(namespaces).fetchone() == (0,)
    assert producer.state("acme", "t").values["texts"] == texts
    assert texts[-1] == "indeed"


def test_a_subgraph_with_a_memory_of_its_own_keeps_its_latest(
    run: Callable[..., Run],
    retain: Callable[..., None],
    producer: Producer,
    admin: Any,
) -> None:
    counted = "select count(*) from checkpoints where checkpoint_ns = 'own'"
    run("remembering")
    run("remembering")
    assert admin.execute(counted).fetchone()[0] > 1

    retain()

    assert admin.execute(counted).fetchone() == (1,)
    remembered = len(producer.state("acme", "t").values["texts"])
    run("remembering")
    assert len(producer.state("acme", "t").values["texts"]) > remembered + 2


def test_a_thread_whose_state_is_in_its_older_checkpoints_is_left_alone(
    run: Callable[..., Run],
    retain: Callable[..., None],
    count: Callable[..., dict[str, int]],
    worker: Any,
    producer: Producer,
) -> None:
    for _ in range(2):
        made = producer.enqueue(
            "deltas", {"texts": [{"role": "user", "content": "a"}]}, tenant="acme", thread_id="t"
        )
        assert worker.answer(made).result(20) == "success"
    before = count()
    assert before["checkpoints"] > 2

    retain()

    assert count() == before


def test_a_thread_with_an_open_dead_letter_is_left_alone_until_it_is_closed(
    run: Callable[..., Run],
    age: Callable[..., None],
    retain: Callable[..., None],
    settings: Settings,
    count: Callable[..., dict[str, int]],
) -> None:
    failed = run("latest", "fail")
    run("latest")
    before = count()
    retain()
    assert count() == before

    with Desk(settings) as desk:
        desk.discard(desk.list()[0].id)
    retain()
    assert count() == before, "nothing has finished on it since"
    age(1000, failed)
    retain(run_ttl=500, dead_letter_ttl=500)
    assert count()["checkpoints"] == 1, "it is looked at again when the run itself is removed"


def test_a_thread_with_an_unfinished_run_is_left_alone_and_done_when_that_has_finished(
    run: Callable[..., Run],
    retain: Callable[..., None],
    producer: Producer,
    worker: Any,
    count: Callable[..., dict[str, int]],
) -> None:
    run("latest")
    pending = producer.enqueue("latest", {"texts": ["a"]}, tenant="acme", thread_id="t")
    before = count()
    retain()
    assert count() == before

    worker.answer(pending).result(20)
    retain()
    assert count()["checkpoints"] == 1


def test_a_thread_whose_lane_is_locked_is_passed_by_and_the_others_are_done(
    run: Callable[..., Run],
    retain: Callable[..., None],
    settings: Settings,
    count: Callable[..., dict[str, int]],
) -> None:
    run("latest", thread_id="t")
    run("latest", thread_id="u")
    with psycopg.connect(settings.database_url) as other:
        other.execute("select from threadmill.threads where thread_id = 't' for update")
        started = time.monotonic()
        retain()
        assert time.monotonic() - started < 5
    assert count("acme:t")["checkpoints"] > 1
    assert count("acme:u")["checkpoints"] == 1
    run("latest", thread_id="t")
    retain()
    assert count("acme:t")["checkpoints"] == 1


def test_a_claim_waits_for_the_thread_to_be_pruned(
    run: Callable[..., Run],
    producer: Producer,
    worker: Any,
    settings: Settings,
    admin: Any,
) -> None:
    run("latest")
    run_now = producer.enqueue("latest", {"texts": ["b"]}, tenant="acme", thread_id="t")
    with psycopg.connect(settings.database_url) as pruning:  # holds the lane, as the prune does
        pruning.execute("select from threadmill.threads where thread_id = 't' for update")
        answer = worker.answer(run_now)
        waits = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        while admin.execute(waits).fetchone() is None:
            assert not answer.done()
        assert producer.get(run_now.id, tenant="acme").status == "pending"
    assert answer.result(20) == "success"


def test_other_tenants_threads_of_the_same_name_are_not_touched(
    run: Callable[..., Run], retain: Callable[..., None], count: Callable[..., dict[str, int]]
) -> None:
    run("latest")
    run("kept", tenant="globex")
    before = count("globex:t")

    retain()

    assert count()["checkpoints"] == 1
    assert count("globex:t") == before


def test_another_leader_goes_on_where_the_last_one_was(
    run: Callable[..., Run],
    retain: Callable[..., None],
    admin: Any,
) -> None:
    run("latest")
    retain()
    to, finished = admin.execute(
        "select pruned_to, (select max(finished_at) from runs) from graphs where name = 'latest'"
    ).fetchone()
    assert to == finished
    run("latest", thread_id="u")
    # What is known to be pruned is not looked at again.
    admin.execute(
        "insert into checkpoints select thread_id, checkpoint_ns, '0', null, type, checkpoint, metadata"
        " from checkpoints where thread_id = 'acme:t'"
    )
    retain()
    counts = admin.execute("select thread_id, count(*) from checkpoints group by 1 order by 1").fetchall()
    assert counts == [("acme:t", 2), ("acme:u", 1)]


# ---------------------------------------------------------------------------------------------------
# Threads on which a run has failed for good


def live(admin: Any, thread_id: str = "t") -> tuple[str | None, str | None]:
    """(the newest live checkpoint, the newest of all) of acme's thread."""
    row = admin.execute(
        "select max(checkpoint_id) filter (where dead_until is null or checkpoint_id > dead_until"
        " or checkpoint_id <= base_checkpoint_id), max(checkpoint_id)"
        " from threads join checkpoints c on c.thread_id = tenant || ':' || threads.thread_id"
        " where threads.thread_id = %s",
        (thread_id,),
    ).fetchone()
    return row[0], row[1]


def close_letters(admin: Any, status: str = "resolved") -> None:
    admin.execute("update dead_letters set status = %s", (status,))
    admin.execute("delete from held_lanes")


def test_a_thread_keeps_where_it_stands_when_its_last_run_failed_for_good(
    run: Callable[..., Run],
    retain: Callable[..., None],
    producer: Producer,
    admin: Any,
) -> None:
    run("latest", "a")
    run("latest", "fail")
    stands, newest = live(admin)
    assert stands is not None
    assert newest is not None and newest > stands, "the failed run's own are newer, and dead"
    close_letters(admin)

    retain()

    kept = admin.execute("select checkpoint_id from checkpoints").fetchall()
    assert kept == [(stands,)]
    run("latest", "b")
    assert producer.state("acme", "t").values["texts"] == ["a", "said", "hummed", "b", "said", "hummed"]


def test_a_thread_that_never_succeeded_keeps_nothing_and_begins_anew(
    run: Callable[..., Run], retain: Callable[..., None], producer: Producer, admin: Any
) -> None:
    run("latest", "fail")
    assert live(admin)[0] is None
    close_letters(admin)

    retain()

    assert admin.execute("select count(*) from checkpoints").fetchone() == (0,)
    run("latest", "b")
    assert producer.state("acme", "t").values["texts"] == ["b", "said", "hummed"]


def test_what_a_discarded_letter_stands_upon_stays_until_it_is_removed(
    run: Callable[..., Run],
    retain: Callable[..., None],
    age: Callable[..., None],
    settings: Settings,
    producer: Producer,
    worker: Any,
    admin: Any,
) -> None:
    run("latest", "a")
    failed = run("latest", "fail")
    with Desk(settings) as desk:
        desk.discard(desk.list()[0].id)
    run("latest", "b")
    needed = admin.execute("select base_checkpoint_id, checkpoint_id from dead_letters").fetchone()
    assert None not in needed

    retain()
    kept = {row[0] for row in admin.execute("select checkpoint_id from checkpoints").fetchall()}
    assert kept == {*needed, live(admin)[0]}

    with Desk(settings) as desk:
        letter = desk.list()[0].id
        desk.restore(letter)
        desk.replay(letter, mode="restart")
    worker.answer(failed).exception(20)
    with Desk(settings) as desk:
        desk.discard(letter)
    age(1000, failed)
    retain(run_ttl=500, dead_letter_ttl=500)
    kept = [row[0] for row in admin.execute("select checkpoint_id from checkpoints").fetchall()]
    assert kept == [needed[0]], "the restarted run has failed again, and the thread stands before its input"


def test_a_memory_of_a_subgraph_keeps_what_is_live_of_it(
    run: Callable[..., Run], retain: Callable[..., None], producer: Producer, admin: Any
) -> None:
    run("remembering", "a")
    remembered = admin.execute("select max(checkpoint_id) from checkpoints where checkpoint_ns = 'own'")
    newest = remembered.fetchone()[0]
    run("remembering", "b")
    # As if the second run had failed for good after its subgraph was done.
    admin.execute(
        "update threads set base_checkpoint_id = (select max(checkpoint_id) from checkpoints"
        " where checkpoint_ns = '' and checkpoint_id < (select max(checkpoint_id) from checkpoints"
        "   where checkpoint_ns = '' and metadata ->> 'source' = 'input')),"
        " dead_until = (select max(checkpoint_id) from checkpoints where checkpoint_ns = '')"
    )

    retain()

    kept = admin.execute("select checkpoint_id from checkpoints where checkpoint_ns = 'own'").fetchall()
    assert (newest,) in kept


# ---------------------------------------------------------------------------------------------------
# Groups


def test_a_group_goes_with_its_last_letter_and_the_others_stay(
    run: Callable[..., Run], retain: Callable[..., None], admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    run("kept", "fail")
    admin.execute("insert into replay_groups (fingerprint) select 'empty-' || n from generate_series(1, 5) n")

    retain()

    assert (
        admin.execute("select fingerprint from replay_groups").fetchall()
        == admin.execute("select fingerprint from dead_letters").fetchall()
    )


def test_a_group_into_which_a_letter_is_just_put_is_not_removed(
    run: Callable[..., Run], retain: Callable[..., None], settings: Settings, admin: Any
) -> None:
    failed = run("kept", "fail")
    letter = admin.execute("delete from dead_letters returning id, fingerprint").fetchone()
    with psycopg.connect(settings.database_url) as burying:  # as `bury` does; it commits late
        burying.execute("set search_path to threadmill")
        burying.execute(
            "insert into replay_groups (fingerprint) values (%s) on conflict do nothing", (letter[1],)
        )
        burying.execute(
            "insert into dead_letters (id, run_id, tenant, thread_id, graph, reason, error, fingerprint)"
            " values (%s, %s, 'acme', 't', 'kept', 'permanent', '{}', %s)",
            (letter[0], failed.id, letter[1]),
        )
        retain()  # it gives up, and tries again in its next round
    retain()

    assert admin.execute("select fingerprint from replay_groups").fetchall() == [(letter[1],)]


# ---------------------------------------------------------------------------------------------------
# The leader


def test_a_sweep_does_a_little_and_the_next_goes_on(
    run: Callable[..., Run],
    settings: Settings,
    age: Callable[..., None],
    ids: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    age(1000, *(run("kept", thread_id=str(number)) for number in range(4)))
    monkeypatch.setattr(retention, "BATCH", 1)
    monkeypatch.setattr(retention, "SWEEP_SECONDS", 1e-9)  # one batch in each
    retaining = Retention(settings.model_copy(update={"run_ttl": 500}))
    left = []
    with connect(settings) as connection:
        while retaining._due_at == float("-inf"):
            WORK(retaining, connection)
            left.append(len(ids()))

        assert sorted(set(left), reverse=True) == [4, 3, 2, 1, 0]
        age(1000, run("kept"))
        WORK(retaining, connection)
        assert len(ids()) == 1, "the next round begins a while later"


def test_what_fails_does_not_keep_the_leader_from_sweeping(
    run: Callable[..., Run], settings: Settings, admin: Any, age: Callable[..., None]
) -> None:
    age(1000, run("kept"))
    admin.execute(
        "create function no() returns trigger language plpgsql as 'begin raise exception $$no$$; end'"
    )
    admin.execute("create trigger no before delete on runs for each row execute function no()")
    retaining = Retention(settings.model_copy(update={"run_ttl": 500}))
    with connect(settings) as connection:
        WORK(retaining, connection)
        assert retaining._due_at > time.monotonic(), "it is tried again in the next round"

        admin.execute("drop trigger no on runs")
        retaining._due_at = 0
        while retaining._due_at == 0:
            WORK(retaining, connection)
    assert admin.execute("select count(*) from runs").fetchone() == (0,)
