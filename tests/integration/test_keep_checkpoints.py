"""With `keep_checkpoints` a thread keeps its newest checkpoints from one run's end to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.rows import dict_row

from threadmill.core.database import connect
from threadmill.core.keys import thread_key
from threadmill.core.settings import Settings
from threadmill.core.statement import compiled
from threadmill.core.transitions import borrow_tenant, keep_newest, pruning
from threadmill.dlq import Desk
from threadmill.producers import Producer, Run
from threadmill.workers import executor
from threadmill.workers.retention import Retention

GRAPHS = """
    import operator, threading
    from typing import Annotated, TypedDict
    from langgraph.channels import DeltaChannel
    from langgraph.graph import StateGraph, START, add_messages
    from langgraph.graph.message import _messages_delta_reducer
    from langgraph.types import interrupt

    class State(TypedDict):
        texts: Annotated[list[str], operator.add]

    broken, entered, go_on = [], threading.Event(), threading.Event()

    def say(state):
        return {"texts": ["said"]}

    def hum(state):
        if broken:
            raise ValueError("no")
        return {"texts": ["hummed"]}

    def ask(state):
        return {"texts": [interrupt("sure?")]}

    def wait(state):
        entered.set()
        assert go_on.wait(20)
        return {"texts": ["waited"]}

    def build(*names):
        graph = StateGraph(State)
        nodes = {"say": say, "hum": hum, "ask": ask, "wait": wait}
        previous = START
        for name in names:
            graph.add_node(name, nodes[name])
            graph.add_edge(previous, name)
            previous = name
        return graph

    one = three = full = build("say", "hum")
    asking = build("ask", "wait")

    class Known(State):
        facts: list[str]

    known = StateGraph(Known).add_node("say", say).add_edge(START, "say")
    inner = build("hum", "ask").compile()
    nested = nested_full = (
        StateGraph(State).add_node("say", say).add_node("inner", inner)
        .add_edge(START, "say").add_edge("say", "inner")
    )
    own = build("hum").compile(checkpointer=True)
    remembering = StateGraph(State).add_node("own", own).add_edge(START, "own")

    def chat_with(reducer):
        class Chat(TypedDict):
            messages: Annotated[list, reducer]
        return (
            StateGraph(Chat).add_node("say", lambda state: {"messages": [("ai", "said")]})
            .add_edge(START, "say")
        )

    chat, deltas = chat_with(add_messages), chat_with(DeltaChannel(_messages_delta_reducer))
"""
ONE = {"keep_checkpoints": 1, "max_attempts": 1}
POLICIES = {
    "one": ONE,
    "three": {**ONE, "keep_checkpoints": 3},
    "full": {},
    "nested_full": {},
    "known": ONE,
    "asking": ONE,
    "nested": ONE,
    "remembering": ONE,
    "chat": ONE,
    "deltas": ONE,
}
TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
TURN = ["a", "said", "hummed"]


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

    def one(graph: str, **options: Any) -> Run:
        values: dict[str, Any] = {"tenant": "acme", "thread_id": "t", **options}
        if "command" not in options:
            values.setdefault("input", {"texts": ["a"]})
        run = producer.enqueue(graph, **values)
        worker.answer(run).exception(20)
        return producer.get(run.id, tenant=run.tenant)

    return one


@pytest.fixture
def fail(run: Callable[..., Run], worker: Any) -> Callable[..., Run]:
    """A run that fails for good at its second node."""

    def one(graph: str, **options: Any) -> Run:
        worker.graphs.broken.append(True)
        failed = run(graph, **options)
        worker.graphs.broken.clear()
        assert failed.status == "error"
        return failed

    return one


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
def check_sound(admin: Any) -> Callable[[], None]:
    """Nothing hangs upon what is not there, and nothing is missing."""

    def check() -> None:
        for query in (
            "select 1 from checkpoints c where parent_checkpoint_id is not null and not exists (select"
            " from checkpoints p where (p.thread_id, p.checkpoint_ns) = (c.thread_id, c.checkpoint_ns)"
            " and p.checkpoint_id = c.parent_checkpoint_id)",
            "select 1 from checkpoint_writes w where not exists (select from checkpoints c"
            " where (c.thread_id, c.checkpoint_ns) = (w.thread_id, w.checkpoint_ns)"
            " and c.checkpoint_id = w.checkpoint_id)",
            "select 1 from checkpoint_blobs b where not exists (select from checkpoints c"
            " where (c.thread_id, c.checkpoint_ns) = (b.thread_id, b.checkpoint_ns)"
            " and c.checkpoint -> 'channel_versions' ->> b.channel = b.version)",
        ):
            assert admin.execute(query).fetchall() == [], query

    return check


@pytest.fixture
def stock(settings: Settings) -> Iterator[PostgresSaver]:
    """LangGraph's own saver, over Threadmill's tables."""
    with psycopg.connect(
        settings.database_url, autocommit=True, row_factory=dict_row, options="-c search_path=threadmill"
    ) as connection:
        yield PostgresSaver(connection)


def texts(producer: Producer, thread_id: str = "t") -> list[str]:
    found: list[str] = producer.state("acme", thread_id).values["texts"]
    return found


def ids(admin: Any, namespace: str = "") -> list[str]:
    """The checkpoints of acme's thread, newest first."""
    rows = admin.execute(
        "select checkpoint_id from checkpoints where thread_id = 'acme:t' and checkpoint_ns = %s"
        " order by checkpoint_id desc",
        (namespace,),
    )
    return [row[0] for row in rows.fetchall()]


# ---------------------------------------------------------------------------------------------------
# What is kept


@pytest.mark.parametrize(("graph", "kept"), [("one", 1), ("three", 3), ("full", None)])
def test_the_newest_so_many_are_kept_after_each_run(
    run: Callable[..., Run],
    producer: Producer,
    count: Callable[..., dict[str, int]],
    check_sound: Callable[[], None],
    graph: str,
    kept: int | None,
) -> None:
    for turn in range(1, 5):
        run(graph)
        assert count()["checkpoints"] == (kept or 4 * turn)
        assert texts(producer) == TURN * turn
    check_sound()
    steps = [entry["step"] for entry in producer.history("acme", "t")]
    assert steps == list(range(steps[0], steps[0] - (kept or 16), -1)), "the newest, and no gap"


def test_a_long_thread_does_not_grow_and_the_stock_saver_reads_all_of_it(
    run: Callable[..., Run],
    stock: PostgresSaver,
    worker: Any,
    count: Callable[..., dict[str, int]],
    check_sound: Callable[[], None],
) -> None:
    sizes = []
    for turn in range(30):
        run("chat", input={"messages": [{"role": "user", "content": f"turn {turn}"}]})
        sizes.append(count())
    assert sizes[1:] == [sizes[1]] * 29
    check_sound()

    config: Any = {"configurable": {"thread_id": thread_key("acme", "t"), "checkpoint_ns": ""}}
    graph = worker.graphs.chat.compile(checkpointer=stock)
    messages = graph.get_state(config).values["messages"]
    expected = [text for turn in range(30) for text in (f"turn {turn}", "said")]
    assert [message.content for message in messages] == expected
    graph.invoke({"messages": [("user", "more")]}, config)
    assert len(graph.get_state(config).values["messages"]) == 62


def test_a_value_that_no_run_has_changed_since_stays(
    run: Callable[..., Run], producer: Producer, check_sound: Callable[[], None]
) -> None:
    run("known", input={"texts": ["a"], "facts": ["it rains"]})
    for _ in range(3):
        run("known")
        assert producer.state("acme", "t").values["facts"] == ["it rains"]
    check_sound()


def test_a_thread_that_is_longer_than_it_should_be_is_worked_off_by_its_next_runs(
    run: Callable[..., Run],
    producer: Producer,
    count: Callable[..., dict[str, int]],
    check_sound: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(4):
        run("full")
    assert count()["checkpoints"] == 16
    little = keep_newest().text.replace(f"limit {pruning.REMOVED_AT_ONCE}", "limit 10")  # type: ignore[attr-defined]
    monkeypatch.setattr(executor, "keep_newest", lambda: pruning.text(little))

    left = []
    for _ in range(3):
        run("one")
        left.append(count()["checkpoints"])
        check_sound()

    assert left == [10, 4, 1]
    assert texts(producer) == TURN * 7


def test_a_long_thread_of_which_the_planner_knows_nothing_is_not_compared_with_itself(
    run: Callable[..., Run], settings: Settings
) -> None:
    done = run("full")
    where = {"tenant": "acme", "thread_id": "t", "key": "acme:t"}
    keep, bind = compiled(keep_newest()), compiled(borrow_tenant())
    parameters = keep.bind({**where, "run_id": done.id, "attempt": 1, "keep": 1})
    with connect(settings) as connection, connection.transaction():
        connection.execute(bind.sql, bind.bind({"tenant": "acme"}))
        connection.execute(
            "insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)"
            " select 'acme:t', '0' || n, jsonb_build_object('v', 4, 'channel_versions',"
            "   jsonb_build_object('a', n::text, 'b', n::text)), '{}' from generate_series(1, 1000) n"
        )
        connection.execute(
            "insert into checkpoint_blobs (thread_id, channel, version, type)"
            " select 'acme:t', 'a', n::text, 'null' from generate_series(1, 1000) n"
        )
        connection.execute("update runs set finished_at = now() where id = %s", (done.id,))
        row: Any = connection.execute(f"explain (analyze, format json) {keep.sql}", parameters).fetchone()
        left: Any = connection.execute("select count(*) as number from checkpoint_blobs").fetchone()

    assert left["number"] < 1000
    todo = [row["QUERY PLAN"][0]["Plan"]]
    while todo:
        node = todo.pop()
        todo += node.get("Plans", [])
        compared = node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"]
        assert compared < 100_000, node


def test_the_run_that_ends_decides_where_a_thread_has_runs_of_several_graphs(
    run: Callable[..., Run], count: Callable[..., dict[str, int]]
) -> None:
    run("one")
    run("full")
    assert count()["checkpoints"] == 5
    run("three")
    assert count()["checkpoints"] == 3


def test_other_threads_and_tenants_are_not_touched(
    run: Callable[..., Run], count: Callable[..., dict[str, int]]
) -> None:
    run("full", tenant="globex")
    run("full", thread_id="u")
    before = count("globex:t"), count("acme:u")
    run("one")
    assert (count("globex:t"), count("acme:u")) == before


def test_the_run_that_is_claimed_in_the_same_transaction_goes_on_from_what_is_kept(
    worker: Any,
    start_local: Callable[..., Any],
    producer: Producer,
    count: Callable[..., dict[str, int]],
) -> None:
    worker.stop()
    runs = [
        producer.enqueue("one", {"texts": ["a"]}, tenant="acme", thread_id=thread)
        for _ in range(5)
        for thread in ("t", "u")
    ]
    start_local(takes=True)
    for made in runs:
        assert producer.wait(made.id, tenant="acme", timeout=20).status == "success"
    for thread in ("t", "u"):
        assert texts(producer, thread) == TURN * 5
        assert count(f"acme:{thread}")["checkpoints"] == 1


# ---------------------------------------------------------------------------------------------------
# Questions and subgraphs


def test_a_question_stays_with_its_subgraph_and_is_answered(
    run: Callable[..., Run], producer: Producer, admin: Any, check_sound: Callable[[], None]
) -> None:
    namespaces = "select count(distinct checkpoint_ns) from checkpoints where checkpoint_ns <> ''"

    def answer_question(graph: str, thread_id: str, answer: str) -> None:
        (question,) = producer.state("acme", thread_id).interrupts
        command = {"resume": {question["id"]: answer}}
        assert run(graph, thread_id=thread_id, command=command).status == "success"

    for answer in ("yes", "indeed"):
        run("nested")
        assert len(ids(admin)) == 1
        assert admin.execute(namespaces).fetchone() == (1,), "that of the question, none of an earlier one"
        answer_question("nested", "t", answer)
        assert len(ids(admin)) == 1
        assert admin.execute(namespaces).fetchone() == (0,)
        check_sound()
    for answer in ("yes", "indeed"):
        run("nested_full", thread_id="u")
        answer_question("nested_full", "u", answer)
    assert texts(producer) == texts(producer, "u")


def test_an_answer_that_is_rolled_back_leaves_the_question(
    run: Callable[..., Run], producer: Producer, worker: Any, admin: Any, check_sound: Callable[[], None]
) -> None:
    run("one")
    run("asking")
    before = ids(admin)
    assert len(before) == 1
    (question,) = producer.state("acme", "t").interrupts
    answer = producer.enqueue(
        "asking", tenant="acme", thread_id="t", command={"resume": {question["id"]: "no"}}
    )
    answered = worker.answer(answer)
    assert worker.graphs.entered.wait(20)
    producer.cancel(answer.id, tenant="acme", action="rollback")
    worker.graphs.go_on.set()
    answered.exception(20)
    assert ids(admin) == before
    assert [one["id"] for one in producer.state("acme", "t").interrupts] == [question["id"]]

    assert run("asking", command={"resume": {question["id"]: "yes"}}).status == "success"
    assert texts(producer) == [*TURN, "a", "yes", "waited"]
    assert len(ids(admin)) == 1
    check_sound()


def test_a_subgraph_with_a_memory_of_its_own_keeps_its_newest(
    run: Callable[..., Run], producer: Producer, admin: Any
) -> None:
    lengths = []
    for _ in range(3):
        run("remembering")
        assert len(ids(admin, "own")) == 1
        lengths.append(len(texts(producer)))
    assert lengths[2] - lengths[1] > lengths[1] - lengths[0] > lengths[0], "it remembers"


def test_a_thread_whose_state_is_in_its_older_checkpoints_is_left_alone_and_reads_right(
    run: Callable[..., Run], stock: PostgresSaver, worker: Any, admin: Any
) -> None:
    for turn in range(3):
        said = {"messages": [{"role": "user", "content": f"turn {turn}"}]}
        assert run("deltas", input=said).status == "success"
    assert len(ids(admin)) == 9
    config: Any = {"configurable": {"thread_id": thread_key("acme", "t"), "checkpoint_ns": ""}}
    state = worker.graphs.deltas.compile(checkpointer=stock).get_state(config)
    expected = [text for turn in range(3) for text in (f"turn {turn}", "said")]
    assert [message.content for message in state.values["messages"]] == expected


# ---------------------------------------------------------------------------------------------------
# Runs that did not succeed


def test_a_run_that_failed_removes_nothing(
    run: Callable[..., Run], fail: Callable[..., Run], admin: Any
) -> None:
    run("full")
    before = ids(admin)
    fail("one")
    assert set(before) < set(ids(admin))


@pytest.mark.parametrize(
    ("mode", "others"),  # `resume` is refused where the thread has moved on
    [("resume", 0), ("restart", 0), ("append", 0), ("restart", 2), ("append", 2)],
)
def test_what_an_open_dead_letter_needs_stays_and_it_is_replayed(
    run: Callable[..., Run],
    fail: Callable[..., Run],
    settings: Settings,
    producer: Producer,
    worker: Any,
    admin: Any,
    check_sound: Callable[[], None],
    mode: str,
    others: int,
) -> None:
    run("one")
    failed = fail("one", input={"texts": ["b"]})
    for _ in range(others):
        run("one", input={"texts": ["c"]})
    with Desk(settings) as desk:
        letter = desk.list()[0]
        base, reached = admin.execute("select base_checkpoint_id, checkpoint_id from dead_letters").fetchone()
        assert {base, reached} <= set(ids(admin))
        desk.replay(letter.id, mode=mode)
    worker.answer(failed).exception(20)
    assert producer.get(failed.id, tenant="acme").status == "success"

    later = [] if mode == "restart" else ["c", "said", "hummed"] * others
    assert texts(producer) == [*TURN, *later, "b", "said", "hummed"]
    assert len(ids(admin)) == 1, "the letter is resolved, by this very run"
    check_sound()


@pytest.mark.parametrize("status", ["waiting", "replaying", "parked"])
def test_a_thread_with_an_open_dead_letter_is_done_by_the_first_run_after_that_is_closed(
    run: Callable[..., Run],
    fail: Callable[..., Run],
    producer: Producer,
    admin: Any,
    check_sound: Callable[[], None],
    status: str,
) -> None:
    failed = fail("one")
    admin.execute("update dead_letters set status = %s", (status,))
    if status == "replaying":  # it is pending, behind one that has not begun
        admin.execute(
            "update runs set status = 'pending', rank = null, finished_at = null, attempt = 0,"
            " seq = 100 where id = %s",
            (failed.id,),
        )
    run("one")
    everything = len(ids(admin))
    assert everything > 5
    admin.execute("update dead_letters set status = 'resolved'")
    admin.execute("update runs set status = 'error', finished_at = now() where id = %s", (failed.id,))

    run("one")

    assert len(ids(admin)) == 1
    assert texts(producer) == TURN * 2
    check_sound()


def test_what_a_discarded_letter_stands_upon_stays_and_can_be_restored(
    run: Callable[..., Run],
    fail: Callable[..., Run],
    settings: Settings,
    producer: Producer,
    worker: Any,
    admin: Any,
) -> None:
    run("one")
    failed = fail("one", input={"texts": ["b"]})
    with Desk(settings) as desk:
        letter = desk.list()[0].id
        desk.discard(letter)
    needed = admin.execute("select base_checkpoint_id, checkpoint_id from dead_letters").fetchone()
    for _ in range(2):
        run("one")
        newest, *rest = ids(admin)
        assert {*rest} == {*needed}
        assert newest not in needed

    with Desk(settings) as desk:
        desk.restore(letter)
        desk.replay(letter, mode="restart")
    worker.answer(failed).exception(20)
    assert texts(producer) == [*TURN, "b", "said", "hummed"]
    assert len(ids(admin)) == 1


def test_a_run_that_has_begun_and_waits_keeps_where_it_began(
    run: Callable[..., Run], producer: Producer, admin: Any
) -> None:
    run("full")
    before = len(ids(admin))
    # As a run that waits for its retry while an earlier one is replayed.
    waiting = producer.enqueue("one", {"texts": ["b"]}, tenant="acme", thread_id="t")
    admin.execute("update runs set attempt = 1, seq = 100, rank = null where id = %s", (waiting.id,))
    admin.execute("update threads set last_seq = 50 where thread_id = 't'")
    run("one")
    assert len(ids(admin)) == before + 4

    admin.execute("update runs set attempt = 0 where id = %s", (waiting.id,))
    run("one")
    assert len(ids(admin)) == 1


# ---------------------------------------------------------------------------------------------------
# Who does it


def test_a_graph_that_keeps_all_pays_nothing(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    keep = executor.keep_newest
    monkeypatch.setattr(executor, "keep_newest", lambda: asked.append(True) or keep())
    run("full")
    assert asked == []
    run("one")
    assert asked == [True]


@pytest.mark.parametrize(
    "took", ["status = 'pending'", "attempt = attempt + 1", "status = 'interrupted', finished_at = now()"]
)
def test_an_attempt_that_has_lost_its_lease_removes_nothing(
    run: Callable[..., Run],
    worker: Any,
    admin: Any,
    count: Callable[..., dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    took: str,
) -> None:
    run("full")
    before = count()
    # Taken away between its last write and its end.
    finish = worker.runtime._executor._finish_and_go_on

    async def late(attempt: Any, end: Any, writes: Any, policy: Any) -> None:
        admin.execute(f"update runs set {took} where status = 'running'")
        await finish(attempt, end, [], policy)

    monkeypatch.setattr(worker.runtime._executor, "_finish_and_go_on", late)
    run("one")
    after = count()
    assert all(after[table] >= before[table] for table in TABLES)


def test_what_a_worker_that_was_killed_has_not_removed_the_next_end_removes(
    run: Callable[..., Run],
    worker: Any,
    producer: Producer,
    admin: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:  # it ends its run and prunes, or does neither; so as if it never did
        patch.setattr(executor, "_pruning", lambda *_: [])
        for _ in range(3):
            run("one")
    assert len(ids(admin)) == 12

    run("one")

    assert len(ids(admin)) == 1
    assert texts(producer) == TURN * 4
