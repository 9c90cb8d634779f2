"""What enqueue promises: a committed run that reaches its graph whole, or an error and nothing written."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from threadmill.core import doorbell
from threadmill.core.doorbell import Doorbell
from threadmill.core.errors import (
    DatabaseNotMigrated,
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidInput,
    InvalidOption,
    InvalidTenant,
    InvalidThreadId,
    ReservedKey,
    ThreadBusy,
    ThreadmillError,
    UnknownGraph,
)
from threadmill.core.publisher import Publisher
from threadmill.core.settings import Settings
from threadmill.producers import AsyncProducer, Producer, Run
from threadmill.producers.enqueue import AT_ONCE
from threadmill.producers.request import RunRequest
from threadmill.workers.herald import Herald

GRAPHS = """
    import operator
    from typing import Annotated, TypedDict
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import StateGraph, START
    from langgraph.runtime import Runtime
    from langgraph.types import interrupt

    class Seen(TypedDict):
        question: str
        seen: dict

    class Context(TypedDict):
        user: str

    async def look(state, config: RunnableConfig, runtime: Runtime[Context]):
        configurable = {k: v for k, v in config["configurable"].items() if not k.startswith("__")}
        return {"seen": {
            "configurable": configurable,
            "tags": config["tags"],
            "metadata": config["metadata"],
            "recursion_limit": config["recursion_limit"],
            "context": runtime.context,
        }}

    probe = StateGraph(Seen, context_schema=Context).add_node("look", look).add_edge(START, "look")

    class State(TypedDict):
        said: Annotated[list[str], operator.add]

    calls = []

    async def say(state):
        calls.append(state["said"][-1])
        return {"said": ["said"]}

    async def whisper(state):
        return {"said": [f"whispered {state.get('secret', '')}".strip()]}

    talk = (
        StateGraph(State)
        .add_node("say", say).add_node("hum", lambda state: {"said": ["hummed"]}).add_node("whisper", whisper)
        .add_edge(START, "say").add_edge("say", "hum")
    )

    def ask(question):
        async def node(state):
            return {"said": [f"{question} {interrupt(question)}"]}
        return node

    one = StateGraph(State).add_node("a", ask("sure?")).add_edge(START, "a")
    two = (
        StateGraph(State)
        .add_node("a", ask("now?")).add_node("b", ask("here?"))
        .add_edge(START, "a").add_edge(START, "b")
    )
"""
TALK: dict[str, Any] = {"graph": "talk", "input": {"said": ["hi"]}, "tenant": "acme", "thread_id": "t"}
SOON = datetime.timedelta(seconds=0.6)
HOUR = datetime.timedelta(hours=1)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    """A worker that serves the graphs and answers only what it is asked to."""
    serve(GRAPHS, probe={}, talk={"max_attempts": 7}, one={}, two={})
    return start_local()


@pytest.fixture
def listening(worker: Any) -> Any:
    worker.listen()
    return worker


@pytest.fixture
def finish(listening: Any, producer: Producer) -> Callable[..., Run]:
    """Enqueues, with the arguments of enqueue, and gives the finished run."""

    def finished(*args: Any, **options: Any) -> Run:
        run = producer.enqueue(*args, **{"tenant": "acme", "thread_id": "t", **options})
        return producer.wait(run.id, tenant="acme", timeout=20)

    return finished


@pytest.fixture
def written(admin: Any, settings: Settings) -> Iterator[Callable[[], tuple[int, ...]]]:
    """How many threads, runs, attempts and dead letters there are, the sum of the last seqs, the bells."""
    doorbell = Doorbell(settings)

    def count() -> tuple[int, ...]:
        row = admin.execute(
            "select (select count(*) from threads), (select count(*) from runs),"
            " (select count(*) from attempts), (select count(*) from dead_letters),"
            " (select coalesce(sum(last_seq), 0)::int from threads)"
        ).fetchone()
        return (*row, doorbell.waiting())

    yield count
    doorbell.close()


# ---------------------------------------------------------------------------------------------------
# What reaches the node


def test_config_and_context_reach_the_node(finish: Callable[..., Run]) -> None:
    done = finish(
        "probe",
        {"question": "?"},
        context={"user": "ada"},
        config={
            "configurable": {"model": "small", "deep": {"a": [1]}},
            "tags": ["vip"],
            "metadata": {"source": "mail"},
            "recursion_limit": 7,
        },
    )

    seen = done.output["seen"]
    assert seen["context"] == {"user": "ada"}
    assert (
        seen["configurable"].items()
        >= {
            "model": "small",
            "deep": {"a": [1]},
            "tenant": "acme",
            "thread_id": "t",
            "run_id": done.id,
        }.items()
    )
    assert seen["tags"] == ["vip"]
    assert seen["metadata"]["source"] == "mail"
    assert seen["recursion_limit"] == 7


def test_metadata_stays_with_the_run_and_options_with_its_row(
    listening: Any, producer: Producer, admin: Any
) -> None:
    run = producer.enqueue(
        **TALK, metadata={"ticket": 42}, priority=5, durability="sync", deadline=now() + HOUR, max_attempts=2
    )
    done = producer.wait(run.id, tenant="acme", timeout=20)
    plain = producer.enqueue(**TALK)

    assert run.metadata == done.metadata == {"ticket": 42}
    assert plain.metadata == {}
    rows = admin.execute(
        "select priority, durability, deadline > now(), max_attempts from runs order by seq"
    ).fetchall()
    assert rows == [(5, "sync", True, 2), (0, None, None, 7)]


def test_what_is_returned_of_a_new_run_is_what_the_ledger_says_of_it(worker: Any, producer: Producer) -> None:
    requests = [
        TALK,
        {**TALK, "metadata": {"large": 1e20, "pair": (1, 2.5), "text": "é", "none": None}},
        {**TALK, "thread_id": "other", "idempotency_key": "k", "metadata": {"ticket": 42}},
        {**TALK, "tenant": "globex", "run_at": now() + HOUR, "multitask_strategy": "reject"},
    ]

    runs = producer.enqueue_many(requests)

    assert [run.seq for run in runs] == [1, 2, 1, 1]
    assert runs == [producer.get(run.id, tenant=run.tenant) for run in runs]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"idempotency_key": "k"},
        {"multitask_strategy": "reject"},
        {"multitask_strategy": "interrupt"},
        {"multitask_strategy": "rollback"},
    ],
    ids=str,
)
def test_a_thread_is_busy_once_a_run_has_entered(
    worker: Any, producer: Producer, options: dict[str, Any]
) -> None:
    new = producer.enqueue(**TALK, **options)
    assert producer.state("acme", "t").status == "busy"
    assert worker.answer(new).result(20) == "success"
    left = producer.state("acme", "t")
    assert left.status == "idle"

    producer.enqueue(
        **{**TALK, **options, **({"idempotency_key": "l"} if "idempotency_key" in options else {})}
    )

    entered = producer.state("acme", "t")
    assert entered.status == "busy"
    assert entered.updated_at > left.updated_at


def test_a_thread_is_busy_with_a_run_that_follows_one_that_is_known(worker: Any, producer: Producer) -> None:
    known = producer.enqueue(**TALK, idempotency_key="k")
    assert worker.answer(known).result(20) == "success"

    again, new = producer.enqueue_many([{**TALK, "idempotency_key": "k"}, TALK])

    assert (again.id, new.status) == (known.id, "pending")
    assert producer.state("acme", "t").status == "busy"
    assert worker.answer(new).result(20) == "success"


def test_what_follows_a_known_run_that_has_ended_is_ready(
    worker: Any, producer: Producer, admin: Any
) -> None:
    known = {**TALK, "idempotency_key": "k"}
    assert worker.answer(producer.enqueue(**known)).result(20) == "success"

    _, following = producer.enqueue_many([known, TALK])

    ready = admin.execute(
        "select id::text from runs where status = 'pending' and rank is not null"
    ).fetchall()
    assert ready == [(following.id,)]


def test_durability_says_when_checkpoints_are_saved(finish: Callable[..., Run], producer: Producer) -> None:
    finish("talk", {"said": ["hi"]}, thread_id="steps", durability="sync")
    finish("talk", {"said": ["hi"]}, thread_id="end", durability="exit")

    assert len(producer.history("acme", "steps")) == 4  # input, say, hum, and the empty start
    assert len(producer.history("acme", "end")) == 1


# ---------------------------------------------------------------------------------------------------
# Commands


def test_a_plain_answer_resumes_the_one_open_question(finish: Callable[..., Run], producer: Producer) -> None:
    asked = finish("one", {"said": []})
    state = producer.state("acme", "t")
    assert (asked.status, state.status, state.next) == ("success", "interrupted", ("a",))
    assert [question["value"] for question in state.interrupts] == ["sure?"]

    done = finish("one", command={"resume": "yes"})

    assert done.output == {"said": ["sure? yes"]}
    after = producer.state("acme", "t")
    assert (after.status, after.next, after.interrupts) == ("idle", (), ())


def test_answers_find_their_questions_by_id(finish: Callable[..., Run], producer: Producer) -> None:
    finish("two", {"said": []})
    ids = {question["value"]: question["id"] for question in producer.state("acme", "t").interrupts}

    refused = finish("two", command={"resume": "which?"})
    first = finish("two", command={"resume": {ids["here?"]: "yes"}})
    between = producer.state("acme", "t")
    second = finish("two", command={"resume": {ids["now?"]: "no"}})

    assert refused.status == "error"
    assert first.status == "success"
    assert (between.status, between.next) == ("interrupted", ("a",))
    assert [question["value"] for question in between.interrupts] == ["now?"]
    assert sorted(second.output["said"]) == ["here? yes", "now? no"]
    assert producer.state("acme", "t").status == "idle"


@pytest.mark.parametrize(
    ("goto", "whispered"),
    [
        ("whisper", "whispered"),
        (["whisper"], "whispered"),
        ({"node": "whisper", "input": {"secret": "shh"}}, "whispered shh"),
    ],
    ids=["a node", "nodes", "a node with its input"],
)
def test_a_command_updates_the_state_and_goes_to_a_node(
    finish: Callable[..., Run], goto: Any, whispered: str
) -> None:
    finish("talk", {"said": ["hi"]})

    done = finish("talk", command={"update": {"said": ["between"]}, "goto": goto})

    assert done.output == {"said": ["hi", "said", "hummed", "between", whispered]}


# ---------------------------------------------------------------------------------------------------
# Idempotency


def test_the_same_key_with_the_same_payload_is_the_same_run(
    listening: Any, producer: Producer, written: Callable[[], tuple[int, ...]]
) -> None:
    first = producer.enqueue(**TALK, idempotency_key="k")
    producer.wait(first.id, tenant="acme", timeout=20)

    again = producer.enqueue(**TALK, idempotency_key="k")
    elsewhere = producer.enqueue(**{**TALK, "tenant": "globex"}, idempotency_key="k")
    producer.wait(elsewhere.id, tenant="globex", timeout=20)

    assert (again.id, again.status) == (first.id, "success")
    assert elsewhere.id != first.id
    assert written()[1] == 2
    assert listening.graphs.calls == ["hi", "hi"]  # one for each tenant
    assert producer.state("acme", "t").values == {"said": ["hi", "said", "hummed"]}


def test_asking_again_leaves_the_thread_as_it_stands(finish: Callable[..., Run], producer: Producer) -> None:
    finish("one", {"said": []}, thread_id="asks", idempotency_key="a")
    finish("talk", {"said": ["hi"]}, thread_id="idles", idempotency_key="b")

    producer.enqueue("one", {"said": []}, tenant="acme", thread_id="asks", idempotency_key="a")
    producer.enqueue("talk", {"said": ["hi"]}, tenant="acme", thread_id="idles", idempotency_key="b")

    assert producer.state("acme", "asks").status == "interrupted"
    assert producer.state("acme", "idles").status == "idle"


def test_the_same_key_with_another_payload_is_a_conflict(
    worker: Any, producer: Producer, written: Callable[[], tuple[int, ...]]
) -> None:
    run = producer.enqueue(**TALK, idempotency_key="k")
    before = written()

    for other in ({"input": {"said": ["else"]}}, {"thread_id": "new"}, {"graph": "one"}):
        with pytest.raises(IdempotencyConflict) as raised:
            producer.enqueue(**{**TALK, **other}, idempotency_key="k")
        assert (raised.value.idempotency_key, raised.value.run_id) == ("k", run.id)

    assert written() == before


def test_the_same_key_at_once_is_one_run(
    listening: Any, producer: Producer, written: Callable[[], tuple[int, ...]]
) -> None:
    producer.list(tenant="acme")  # connected, so that they really meet
    callers = 8
    barrier = threading.Barrier(callers)

    def call(_: int) -> str:
        barrier.wait(10)
        return producer.enqueue(**TALK, idempotency_key="k").id

    with ThreadPoolExecutor(callers) as pool:
        ids = set(pool.map(call, range(callers)))

    assert len(ids) == 1
    producer.wait(ids.pop(), tenant="acme", timeout=20)
    assert written()[1] == 1
    assert listening.graphs.calls == ["hi"]


def test_the_same_key_twice_in_one_call_is_one_run(
    worker: Any, producer: Producer, written: Callable[[], tuple[int, ...]]
) -> None:
    first, second, other = producer.enqueue_many(
        [{**TALK, "idempotency_key": "k"}, {**TALK, "idempotency_key": "k"}, TALK]
    )

    assert first.id == second.id != other.id
    assert written()[1] == 2


def test_a_call_of_several_statements_is_as_if_it_were_one(
    worker: Any, producer: Producer, admin: Any, written: Callable[[], tuple[int, ...]]
) -> None:
    count, threads = 2 * AT_ONCE + 50, 7
    assert count % threads  # so that threads go on in the middle of a statement
    requests = [
        {**TALK, "input": {"said": [str(number)]}, "thread_id": f"t{number % threads}"}
        for number in range(count)
    ]
    known = {**TALK, "thread_id": "t0", "input": {"said": ["again"]}, "idempotency_key": "k"}

    first, *runs, last = producer.enqueue_many([known, *requests, known])

    assert first.id == last.id
    for number in range(threads):
        of_thread = [run for run in [first, *runs] if run.thread_id == f"t{number}"]
        assert [run.seq for run in of_thread] == list(range(1, len(of_thread) + 1))
    assert [run.thread_id for run in runs] == [request["thread_id"] for request in requests]
    heads = admin.execute("select thread_id, seq from runs where rank is not null order by 1").fetchall()
    assert heads == [(f"t{number}", 1) for number in range(threads)]
    assert written() == (threads, 1 + count, 0, 0, 1 + count + 1, 1)  # one worker: one bell


# ---------------------------------------------------------------------------------------------------
# All or nothing


def test_a_busy_thread_rejects(
    worker: Any, producer: Producer, written: Callable[[], tuple[int, ...]]
) -> None:
    run = producer.enqueue(**TALK, multitask_strategy="reject")
    before = written()

    with pytest.raises(ThreadBusy) as raised:
        producer.enqueue(**TALK, multitask_strategy="reject")

    assert (raised.value.tenant, raised.value.thread_id) == ("acme", "t")
    assert written() == before
    assert worker.answer(run).result(20) == "success"
    assert producer.enqueue(**TALK, multitask_strategy="reject").status == "pending"


def test_a_thread_rejects_within_one_call_too(
    worker: Any, producer: Producer, written: Callable[[], tuple[int, ...]]
) -> None:
    before = written()

    with pytest.raises(ThreadBusy):
        producer.enqueue_many([{**TALK, "multitask_strategy": "reject"}] * 2)

    assert written() == before


def test_one_bad_request_keeps_all_of_them_out(
    worker: Any, producer: Producer, written: Callable[[], tuple[int, ...]]
) -> None:
    producer.enqueue(**TALK, idempotency_key="k")
    before = written()
    fresh = [{**TALK, "thread_id": f"new-{n}"} for n in range(3)]
    bad: list[tuple[dict[str, Any], type[ThreadmillError]]] = [
        ({**TALK, "graph": "tlak"}, UnknownGraph),
        ({**TALK, "input": {"said": "hi"}}, InvalidInput),
        ({**TALK, "tenant": "a:b"}, InvalidTenant),
        ({**TALK, "multitask_strategy": "reject"}, ThreadBusy),
        ({**TALK, "input": {"said": ["other"]}, "idempotency_key": "k"}, IdempotencyConflict),
        ({"graph": "talk", "input": {"said": []}, "tenant": "acme"}, InvalidOption),
        ({**TALK, "colour": "red"}, InvalidOption),
    ]

    for request, error in bad:
        with pytest.raises(error):
            producer.enqueue_many([*fresh, request, *fresh])

    assert written() == before


def test_what_goes_wrong_between_two_statements_of_a_call_leaves_nothing_written(
    worker: Any,
    producer: Producer,
    written: Callable[[], tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = written()
    requests = [{**TALK, "thread_id": f"t{number}"} for number in range(AT_ONCE + 1)]
    record, last = RunRequest.record, requests[-1]["thread_id"]

    def failing(self: RunRequest, back: int, **options: Any) -> str:
        if self.thread_id == last:
            raise RuntimeError("whatever it is")
        return record(self, back, **options)

    with monkeypatch.context() as broken, pytest.raises(RuntimeError):
        broken.setattr(RunRequest, "record", failing)
        producer.enqueue_many(requests)

    assert written() == before
    assert len(producer.enqueue_many(requests)) == len(requests)


def test_a_request_that_enqueue_does_not_understand_is_counted(worker: Any, producer: Producer) -> None:
    with pytest.raises(InvalidOption, match=r"requests\[1\]=.*unexpected keyword argument 'colour'"):
        producer.enqueue_many([TALK, {**TALK, "colour": "red"}])


def test_no_requests_are_no_runs(producer: Producer) -> None:
    assert producer.enqueue_many([]) == []


# ---------------------------------------------------------------------------------------------------
# Later


def test_a_run_that_is_not_due_is_not_started(
    worker: Any, producer: Producer, admin: Any, written: Callable[[], tuple[int, ...]]
) -> None:
    later = producer.enqueue(**TALK, run_at=now() + HOUR)
    after = producer.enqueue(**TALK)

    assert written()[-1] == 0  # bells
    assert worker.drops(later)
    assert worker.drops(after), "a run must not overtake the one before it"

    admin.execute("update runs set run_at = now(), rank = now() where id = %s", (later.id,))
    worker.listen()
    done = [producer.wait(run.id, tenant="acme", timeout=20) for run in (later, after)]

    assert [run.status for run in done] == ["success", "success"]
    assert done[0].finished_at is not None
    assert done[1].started_at is not None
    assert done[0].finished_at <= done[1].started_at


def test_the_leader_starts_a_run_when_it_is_due(listening: Any, producer: Producer) -> None:
    due = now() + SOON
    run = producer.enqueue(**TALK, run_at=due)

    done = producer.wait(run.id, tenant="acme", timeout=20)

    assert done.started_at is not None
    assert due <= done.started_at <= due + datetime.timedelta(seconds=5)


def test_a_time_that_is_past_is_now(listening: Any, producer: Producer) -> None:
    run = producer.enqueue(**TALK, run_at=now() - HOUR)

    assert producer.wait(run.id, tenant="acme", timeout=20).status == "success"


# ---------------------------------------------------------------------------------------------------
# Bad input

LARGE = 4 * 1024 * 1024
BAD_INPUT: list[tuple[dict[str, Any], type[ThreadmillError], str]] = [
    ({"graph": "tlak"}, UnknownGraph, "no graph 'tlak'; known graphs: one, probe, talk, two"),
    ({"input": {"said": [{1}]}}, InvalidInput, "input.said[0]: set is no JSON value"),
    ({"input": {"said": [object()]}}, InvalidInput, "input.said[0]: object is no JSON value"),
    ({"input": {"said": [float("nan")]}}, InvalidInput, "input.said[0]: nan is no JSON number"),
    ({"input": {"said": [1]}}, InvalidInput, "input.said[0]: must be of type string"),
    ({"input": {"said": "hi"}}, InvalidInput, "input.said: must be of type array or must be of type object"),
    ({"input": {}}, InvalidInput, "input: 'said' is missing"),
    ({"graph": "probe", "input": {}}, InvalidInput, "input: 'question' is missing or 'seen' is missing"),
    ({"input": ["hi"]}, InvalidInput, "input: must be of type object"),
    ({"input": {"said": ["a\x00"]}}, InvalidInput, "input.said[0]: holds NUL"),
    ({"input": {"said": ["\ud83d"]}}, InvalidInput, "input.said[0]: holds the lone surrogate U+D83D"),
    ({"input": {"said": ["x" * LARGE]}}, InvalidInput, f"input: {LARGE + 13} bytes of JSON, the limit is "),
    ({"input": {"said": [2**70]}}, InvalidInput, "input.said[0]: a whole number beyond 64 bits"),
    ({"tenant": "a:b"}, InvalidTenant, "tenant 'a:b' must match"),
    ({"tenant": "x" * 65}, InvalidTenant, "tenant 'xxx"),
    ({"thread_id": ""}, InvalidThreadId, "thread_id '' must not be empty"),
    ({"thread_id": "t" * 256}, InvalidThreadId, "thread_id 'ttt"),
    ({"thread_id": "a\tb"}, InvalidThreadId, "thread_id 'a\\tb' holds the character U+0009"),
    ({"config": {"configurable": {"thread_id": "u"}}}, ReservedKey, "config.configurable['thread_id']"),
    (
        {"config": {"configurable": {"checkpoint_id": "u"}}},
        ReservedKey,
        "config.configurable['checkpoint_id']",
    ),
    ({"config": {"configurable": {"__pregel_x": 1}}}, ReservedKey, "config.configurable['__pregel_x']"),
    ({"config": {"metadata": {"run_id": "u"}}}, ReservedKey, "config.metadata['run_id']"),
    ({"deadline": datetime.datetime(1999, 1, 1, tzinfo=datetime.UTC)}, InvalidOption, "deadline='1999"),
    ({"run_at": datetime.datetime(2999, 1, 1)}, InvalidOption, "run_at='2999"),
    ({"metadata": []}, InvalidInput, "metadata: must be an object"),
]


def test_bad_input_is_refused_by_name_and_nothing_is_written(
    worker: Any, producer: Producer, written: Callable[[], tuple[int, ...]]
) -> None:
    before = written()

    for changes, error, text in BAD_INPUT:
        with pytest.raises(error) as raised:
            producer.enqueue(**{**TALK, **changes})
        assert str(raised.value).startswith(text)

    assert written() == before == (0, 0, 0, 0, 0, 0)


async def test_bad_input_is_refused_by_the_asyncio_producer_too(
    worker: Any, settings: Settings, written: Callable[[], tuple[int, ...]]
) -> None:
    async with AsyncProducer(settings) as producer:
        for changes, error, text in BAD_INPUT:
            with pytest.raises(error) as raised:
                await producer.enqueue(**{**TALK, **changes})
            assert str(raised.value).startswith(text)

    assert written() == (0, 0, 0, 0, 0, 0)


def test_the_largest_input_is_taken_and_comes_back(finish: Callable[..., Run]) -> None:
    text = "x" * (LARGE - len('{"said":[""]}'))

    done = finish("talk", {"said": [text]})

    assert done.status == "success"
    assert done.output["$omitted"]["reason"] == "larger than max_output_bytes"


def test_without_any_announced_graph_the_error_says_what_to_start(producer: Producer) -> None:
    with pytest.raises(UnknownGraph, match="no worker has announced any graph"):
        producer.enqueue(**TALK)


# ---------------------------------------------------------------------------------------------------
# What does not answer


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, so nobody else opens it, and refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]


def test_a_database_that_is_not_migrated_is_named(settings: Settings, admin: Any) -> None:
    admin.execute("create database empty_one")
    bare = settings.database_url.replace(f"/{settings.queue}", "/empty_one")  # both have the test's name
    try:
        with (
            Producer(settings.model_copy(update={"database_url": bare})) as producer,
            pytest.raises(DatabaseNotMigrated, match=r"holds no Threadmill tables.*`threadmill db upgrade`"),
        ):
            producer.enqueue(**TALK)
    finally:
        admin.execute("drop database empty_one with (force)")


def test_a_database_at_another_revision_is_named(settings: Settings, admin: Any) -> None:
    admin.execute("update revisions set version_num = '0000'")

    with Producer(settings) as producer, pytest.raises(DatabaseNotMigrated, match="is at revision 0000"):
        producer.enqueue(**TALK)


def test_a_database_that_refuses_is_named_at_once(settings: Settings, closed_port: int) -> None:
    url = f"postgresql://app:secret@127.0.0.1:{closed_port}/x"
    started = time.monotonic()

    with (
        Producer(settings.model_copy(update={"database_url": url})) as producer,
        pytest.raises(DatabaseUnavailable) as raised,
    ):
        producer.enqueue(**TALK)

    assert time.monotonic() - started < 2
    assert raised.value.address == f"127.0.0.1:{closed_port}/x"
    assert "secret" not in str(raised.value)


async def test_a_database_that_never_answers_is_named_after_the_timeout(
    settings: Settings, black_hole: int
) -> None:
    url = f"postgresql://app:secret@127.0.0.1:{black_hole}/x"
    silent = settings.model_copy(update={"database_url": url, "connect_timeout": 2})

    def blocking() -> None:
        with Producer(silent) as producer:
            producer.enqueue(**TALK)

    async def awaited() -> None:
        async with AsyncProducer(silent) as producer:
            await producer.enqueue(**TALK)

    started = time.monotonic()
    errors = await asyncio.gather(asyncio.to_thread(blocking), awaited(), return_exceptions=True)

    assert time.monotonic() - started < 4
    assert [type(error) for error in errors] == [DatabaseUnavailable, DatabaseUnavailable]


def test_connections_that_the_server_closed_are_named_and_replaced(
    worker: Any, settings: Settings, admin: Any
) -> None:
    with Producer(settings.model_copy(update={"pool_size": 2})) as producer:
        producer.list(tenant="acme")
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )

        with pytest.raises(DatabaseUnavailable):
            producer.enqueue(**TALK)
        # The pool may hold a second one.
        with contextlib.suppress(DatabaseUnavailable):
            producer.enqueue(**TALK)
        assert producer.enqueue(**TALK).status == "pending"


@pytest.fixture
def unanswered() -> Iterator[int]:
    """A port at which a connection is not even taken: as where no route leads."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):  # more than it lets wait
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()[1]


HOLES = pytest.mark.parametrize("hole", ["closed_port", "black_hole", "unanswered"])


@pytest.fixture
def lonely(settings: Settings, request: pytest.FixtureRequest, hole: str) -> Settings:
    """Settings with a broker that does not answer."""
    url = f"redis://127.0.0.1:{request.getfixturevalue(hole)}/0"
    return settings.model_copy(update={"broker_url": url})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each bell and each notice kept its caller, in seconds."""
    waits: list[float] = []

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started = time.monotonic()
            try:
                return method(*args)
            finally:
                waits.append(time.monotonic() - started)

        return call

    monkeypatch.setattr(Doorbell, "ring", timed(Doorbell.ring))
    monkeypatch.setattr(Publisher, "tell_cancelled", timed(Publisher.tell_cancelled))
    return waits


@HOLES
async def test_a_bell_that_nobody_takes_is_no_error_and_is_not_waited_for(
    worker: Any, lonely: Settings, producer: Producer, waits: list[float]
) -> None:
    def blocking() -> Run:
        with Producer(lonely) as alone:
            return alone.enqueue(**TALK)

    async def awaited() -> Run:
        async with AsyncProducer(lonely) as alone:
            return await alone.enqueue(**{**TALK, "thread_id": "u"})

    runs = await asyncio.gather(asyncio.to_thread(blocking), awaited())

    assert waits
    assert max(waits) < 1, waits
    worker.listen()
    for run in runs:
        done = await asyncio.to_thread(producer.wait, run.id, tenant="acme", timeout=20)
        assert done.status == "success"


@HOLES
def test_cancelling_does_not_wait_for_redis_either(worker: Any, lonely: Settings, waits: list[float]) -> None:
    with Producer(lonely) as producer:
        runs = producer.enqueue_many([TALK, TALK])
        time.sleep(doorbell.AWAY_SECONDS)  # until Redis is tried again
        waits.clear()
        assert producer.cancel(runs[0].id, tenant="acme").status == "interrupted"
        assert max(waits) < 1, waits


@HOLES
def test_a_thousand_enqueues_do_not_wait_one_after_another(
    worker: Any, lonely: Settings, waits: list[float]
) -> None:
    with Producer(lonely) as producer:
        started = time.monotonic()
        for number in range(300):
            producer.enqueue(**{**TALK, "thread_id": f"t{number}"})
        took = time.monotonic() - started
    # One in a while finds out that the broker is still away.
    assert sum(waits) < 1 + took / doorbell.AWAY_SECONDS, waits


def test_more_callers_than_connections_to_a_silent_broker_do_not_wait_for_each_other(
    worker: Any, settings: Settings, black_hole: int, waits: list[float]
) -> None:
    callers = 40  # Celery's pool holds ten
    barrier = threading.Barrier(callers)
    url = f"redis://127.0.0.1:{black_hole}/0"
    silent = settings.model_copy(update={"broker_url": url, "pool_size": 2})
    with Producer(silent) as producer, ThreadPoolExecutor(callers) as pool:
        producer.list(tenant="acme")  # connects to Postgres

        def enqueue(number: int) -> Run:
            barrier.wait(20)
            return producer.enqueue(**{**TALK, "thread_id": f"t{number}"})

        runs = list(pool.map(enqueue, range(callers)))

    assert {run.status for run in runs} == {"pending"}
    assert max(waits) < 1, waits


def test_a_bell_is_rung_again_as_soon_as_the_broker_is_back(
    worker: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorbell, "AWAY_SECONDS", 0.2)
    bell = doorbell.Bell(uuid.uuid4(), "acme", "t", "talk")
    ringing = Doorbell(settings)
    try:
        ringing._away_until = time.monotonic() + 0.2
        assert ringing.ring([bell]) == 0
        time.sleep(0.2)
        assert ringing.ring([bell]) == 1
    finally:
        ringing.close()


@HOLES
def test_a_worker_that_stops_does_not_wait_for_a_broker_that_does_not_answer(lonely: Settings) -> None:
    ringing = Doorbell(lonely)
    herald = Herald(lonely, ringing)
    herald.start()
    for _ in range(1_000):
        herald.announce(uuid.uuid4(), doorbell.Bell(uuid.uuid4(), "acme", "t", "talk"))
        herald.announce_cancelled(uuid.uuid4())
    started = time.monotonic()

    herald.stop()

    assert time.monotonic() - started < 2
    ringing.close()


def test_a_graphs_own_deadline_counts_from_when_the_run_is_due(
    serve: Callable[..., None], start_local: Callable[..., Any], producer: Producer, admin: Any
) -> None:
    serve(
        """
        from langgraph.graph import START, StateGraph
        from typing_extensions import TypedDict

        class State(TypedDict):
            text: str

        late = StateGraph(State).add_node("one", lambda state: state).add_edge(START, "one")
        """,
        late={"deadline": 60},
    )
    start_local()
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    own = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)

    for thread, options in {"now": {}, "later": {"run_at": later}, "own": {"deadline": own}}.items():
        producer.enqueue("late", {"text": "a"}, tenant="acme", thread_id=thread, **options)

    found = dict(
        admin.execute(
            "select thread_id, extract(epoch from deadline - greatest(run_at, created_at))::int from runs"
        ).fetchall()
    )
    assert (found["now"], found["later"]) == (60, 60)
    assert found["own"] == pytest.approx(7200, abs=5)
