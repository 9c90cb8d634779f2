"""What failed for good: the lane behind it, replay by hand and by the drain, and what is run again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from threadmill.core.backoff import replay_delay
from threadmill.core.database import Database
from threadmill.core.errors import DeadLetterNotFound, InvalidOption, NotReplayable
from threadmill.core.floors import FROM_THE_FIRST
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import ring
from threadmill.dlq import DeadLetter, Desk, LetterFilter
from threadmill.producers import Producer, Run

GRAPHS = """
    import asyncio, operator, threading
    from typing import Annotated, TypedDict
    from langgraph.graph import StateGraph, START, add_messages
    from langgraph.types import interrupt

    class State(TypedDict):
        messages: Annotated[list, add_messages]

    calls = []
    # How often the node `answer` still fails, and the factory of `loaded`.
    failures = {"answer": 0, "load": 0}
    started, gate = threading.Event(), threading.Event()

    def fail(what):
        if failures[what]:
            failures[what] -= 1
            raise ValueError(f"{what} failed")

    async def think(state):
        calls.append("think")
        return {"messages": [("ai", "hm")]}

    async def answer(state):
        calls.append("answer")
        last = [m.content for m in state["messages"] if m.type == "human"][-1]
        if last == "slow":
            started.set()
            assert await asyncio.to_thread(gate.wait, 20)
        fail("answer")
        return {"messages": [("ai", f"to {last}")]}

    chat = (
        StateGraph(State).add_node("think", think).add_node("answer", answer)
        .add_edge(START, "think").add_edge("think", "answer")
    )
    strict = chat

    def ask(state):
        calls.append("ask")
        return {"messages": [("human", interrupt("sure?"))]}

    asking = (
        StateGraph(State).add_node("ask", ask).add_node("answer", answer).add_node("confirm", ask)
        .add_edge(START, "ask").add_edge("ask", "answer").add_edge("answer", "confirm")
    )

    def loaded(config):
        fail("load")
        return chat.compile()
"""
Enqueue = Callable[..., Run]


@pytest.fixture
def worker(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    """A worker that answers what it is told to; `chat` lets later runs go on, `strict` holds them."""
    serve(GRAPHS, chat={}, strict={"on_dead_letter": "hold"}, asking={}, loaded={})
    return start_local()


@pytest.fixture
def enqueue(producer: Producer) -> Enqueue:
    def enqueue(text: str, graph: str = "chat", thread_id: str = "t", **options: Any) -> Run:
        messages = None if "command" in options else {"messages": [["user", text]]}
        return producer.enqueue(graph, messages, tenant="acme", thread_id=thread_id, **options)

    return enqueue


@pytest.fixture
def bury(worker: Any, enqueue: Enqueue) -> Enqueue:
    """Enqueues a run and lets its node `answer` fail."""

    def bury(*args: Any, **options: Any) -> Run:
        run = enqueue(*args, **options)
        worker.graphs.failures["answer"] = 1
        assert worker.answer(run).exception(20) is not None
        assert worker.graphs.failures["answer"] == 0
        return run

    return bury


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with Desk(settings) as desk:
        yield desk


@pytest.fixture
def rung_again(settings: Settings) -> Iterator[Callable[[], set[str]]]:
    """For whom the leader would ring, all bells having been lost."""
    database = Database(settings)

    def sweep() -> Plan[list[Row]]:
        look = {"limit": 1000, "patience": -1.0, **FROM_THE_FIRST}
        (rows,) = yield Batch([Step(ring(), look)])
        return list(rows)

    yield lambda: {str(row["id"]) for row in database.carry_out(sweep()) if row["id"]}
    database.close()


def texts(producer: Producer, thread_id: str = "t") -> list[str]:
    messages = producer.state("acme", thread_id).values["messages"]
    return [message["content"] if isinstance(message, dict) else message[1] for message in messages]


def only(desk: Desk) -> DeadLetter:
    (letter,) = desk.list()
    return letter


# ---------------------------------------------------------------------------------------------------
# The lane behind a dead letter


def test_hold_keeps_later_runs_waiting_until_a_replay_succeeds(
    worker: Any,
    bury: Enqueue,
    enqueue: Enqueue,
    producer: Producer,
    desk: Desk,
    rung_again: Callable[[], set[str]],
) -> None:
    failed = bury("one", "strict")
    followers = [enqueue(text, "strict") for text in ("two", "three")]
    letter = only(desk)

    assert all(worker.drops(run) for run in followers)
    assert rung_again() == set()
    worker.graphs.failures["answer"] = 1
    desk.replay(letter.id)
    assert all(worker.drops(run) for run in followers), "a replay's turn comes first"
    assert worker.answer(failed).exception(20) is not None
    assert all(worker.drops(run) for run in followers), "a replay that failed holds the lane again"

    desk.replay(letter.id)
    worker.listen()

    done = [producer.wait(run.id, tenant="acme", timeout=20) for run in (failed, *followers)]
    assert [run.status for run in done] == ["success"] * 3
    assert texts(producer) == ["one", "hm", "to one", "two", "hm", "to two", "three", "hm", "to three"]
    assert only(desk).status == "resolved"
    assert producer.state("acme", "t").status == "idle"


def test_a_run_that_fails_while_others_wait_behind_it_holds_them_too(
    worker: Any, bury: Enqueue, enqueue: Enqueue, producer: Producer, rung_again: Callable[[], set[str]]
) -> None:
    first = enqueue("one", "strict")
    second = enqueue("two", "strict")
    worker.graphs.failures["answer"] = 1

    assert worker.answer(first).exception(20) is not None

    assert worker.drops(second)
    assert rung_again() == set()
    other = enqueue("elsewhere", "strict", thread_id="u")
    assert worker.answer(other).result(20) == "success"


def test_discarding_frees_a_held_lane(
    worker: Any, bury: Enqueue, enqueue: Enqueue, producer: Producer, desk: Desk
) -> None:
    failed = bury("one", "strict")
    follower = enqueue("two", "strict")

    letter = desk.discard(only(desk).id)
    assert letter.status == "discarded"
    worker.listen()

    assert producer.wait(follower.id, tenant="acme", timeout=20).status == "success"
    assert producer.get(failed.id, tenant="acme").status == "error"
    assert texts(producer) == ["two", "hm", "to two"], "what failed for good has no effect on what follows"


def test_skip_lets_later_runs_go_on(
    worker: Any, bury: Enqueue, enqueue: Enqueue, producer: Producer, desk: Desk
) -> None:
    follower = enqueue("two", thread_id="waits")  # behind the one that fails
    producer.cancel(follower.id, tenant="acme")
    bury("one")
    assert producer.state("acme", "t").status == "error"
    worker.listen()

    later = enqueue("two")

    assert producer.wait(later.id, tenant="acme", timeout=20).status == "success"
    assert producer.state("acme", "t").status == "idle"
    assert only(desk).status == "waiting"


def test_with_skip_the_next_run_is_rung_for_at_once(
    worker: Any, enqueue: Enqueue, producer: Producer
) -> None:
    first, second = enqueue("one"), enqueue("two")
    worker.graphs.failures["answer"] = 1
    assert worker.answer(first).exception(20) is not None

    worker.listen()

    assert producer.wait(second.id, tenant="acme", timeout=20).status == "success"


# ---------------------------------------------------------------------------------------------------
# What a replay runs


def test_a_replay_goes_on_at_the_failed_node(
    worker: Any, bury: Enqueue, producer: Producer, desk: Desk
) -> None:
    run = bury("one")
    letter = only(desk)
    assert (letter.run_id, letter.node, letter.error.message) == (run.id, "answer", "answer failed")

    replayed = desk.replay(letter.id)
    assert (replayed.status, replayed.replays, replayed.replay_mode) == ("replaying", 1, "resume")
    assert producer.get(run.id, tenant="acme").status == "pending"
    assert worker.answer(run).result(20) == "success"

    done = producer.get(run.id, tenant="acme")
    assert (done.status, done.attempt, done.error) == ("success", 2, None)
    assert worker.graphs.calls == ["think", "answer", "answer"]
    assert texts(producer) == ["one", "hm", "to one"]
    resolved = only(desk)
    assert (resolved.status, resolved.next_replay_at) == ("resolved", None)
    assert [action.action for action in desk.detail(letter.id).actions] == ["replay"]


def test_a_replay_that_fails_is_the_same_dead_letter_with_the_new_failure(
    worker: Any, bury: Enqueue, desk: Desk, admin: Any
) -> None:
    run = bury("one")
    before = only(desk)
    desk.replay(before.id)
    worker.graphs.failures["answer"] = 1

    assert worker.answer(run).exception(20) is not None

    after = only(desk)
    assert (after.id, after.status, after.replays) == (before.id, "waiting", 1)
    assert admin.execute("select attempt, outcome, node from attempts order by attempt").fetchall() == [
        (1, "failed", "answer"),
        (2, "failed", "answer"),
    ]
    assert worker.graphs.calls == ["think", "answer", "answer"]


def test_a_replay_applies_a_commands_update_once(
    worker: Any, bury: Enqueue, enqueue: Enqueue, producer: Producer, desk: Desk
) -> None:
    assert worker.answer(enqueue("one")).result(20) == "success"
    command = {"update": {"messages": [["user", "more"]]}, "goto": "answer"}
    run = bury("", command=command)

    desk.replay(only(desk).id)
    assert worker.answer(run).result(20) == "success"

    assert texts(producer) == ["one", "hm", "to one", "more", "to more"]


def test_a_replay_gives_an_answer_to_its_own_question_only(
    worker: Any, bury: Enqueue, enqueue: Enqueue, producer: Producer, desk: Desk
) -> None:
    assert worker.answer(enqueue("one", "asking")).result(20) == "success"
    run = bury("", "asking", command={"resume": "yes"})

    desk.replay(only(desk).id)
    worker.answer(run).exception(20)

    assert producer.get(run.id, tenant="acme").status == "success"
    assert texts(producer) == ["one", "yes", "to yes"]
    state = producer.state("acme", "t")
    assert (state.status, state.next) == ("interrupted", ("confirm",)), "the second question is not answered"


def test_a_replay_on_a_thread_that_moved_applies_the_input_at_its_head(
    worker: Any, bury: Enqueue, enqueue: Enqueue, producer: Producer, desk: Desk
) -> None:
    run = bury("one")
    assert worker.answer(enqueue("two")).result(20) == "success"

    letter = desk.replay(only(desk).id)
    assert letter.replay_mode == "append"
    assert worker.answer(run).result(20) == "success"

    assert texts(producer) == ["two", "hm", "to two", "one", "hm", "to one"]


def test_a_replay_waits_for_the_run_that_is_running(
    worker: Any, bury: Enqueue, enqueue: Enqueue, producer: Producer, desk: Desk
) -> None:
    failed = bury("one")
    running = worker.answer(enqueue("slow"))
    assert worker.graphs.started.wait(20)

    desk.replay(only(desk).id)
    assert worker.drops(failed)
    worker.graphs.gate.set()
    assert running.result(20) == "success"
    worker.listen()

    assert producer.wait(failed.id, tenant="acme", timeout=20).status == "success"
    assert only(desk).status == "resolved"


# ---------------------------------------------------------------------------------------------------
# The delay


@pytest.mark.parametrize("replays", [0, 1, 2, 5, 10_000])
def test_the_delay_is_spread_over_a_time_that_doubles_up_to_its_maximum(
    settings: Settings, replays: int
) -> None:
    bounds = settings.model_copy(update={"replay_delay": 10, "replay_delay_max": 100})
    most = min(10 * 2**replays, 100)

    delays = [replay_delay(bounds, replays) for _ in range(300)]

    assert 0 <= min(delays) < most * 0.2
    assert most * 0.8 < max(delays) <= most


# ---------------------------------------------------------------------------------------------------
# The desk


def test_only_what_waits_or_is_parked_can_be_replayed_or_discarded(
    worker: Any, bury: Enqueue, desk: Desk
) -> None:
    run = bury("one")
    letter = desk.replay(only(desk).id)

    def refused(status: str) -> None:
        for action in (desk.replay, desk.discard):
            with pytest.raises(NotReplayable) as raised:
                action(letter.id)
            assert (raised.value.dead_letter_id, raised.value.status) == (letter.id, status)
        assert only(desk).status == status

    refused("replaying")
    assert worker.answer(run).result(20) == "success"
    refused("resolved")


def test_a_discarded_dead_letter_stays_so(worker: Any, bury: Enqueue, desk: Desk) -> None:
    run = bury("one")
    letter = desk.discard(only(desk).id)

    for action in (desk.replay, desk.discard):
        with pytest.raises(NotReplayable, match="is discarded"):
            action(letter.id)
    assert worker.drops(run)
    assert only(desk) == letter


def test_of_a_replay_and_a_discard_at_once_one_is_done(worker: Any, bury: Enqueue, desk: Desk) -> None:
    for number in range(5):
        bury("one", thread_id=f"t{number}")
    for letter in desk.list():
        barrier = threading.Barrier(2)

        def act(
            action: Callable[[str], DeadLetter], letter: DeadLetter = letter, barrier: Any = barrier
        ) -> bool:
            barrier.wait(10)
            try:
                action(letter.id)
            except NotReplayable:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            done = dict(
                zip(("replaying", "discarded"), pool.map(act, (desk.replay, desk.discard)), strict=True)
            )
        assert sum(done.values()) == 1
        assert done[desk.get(letter.id).status]


def test_what_is_not_there_is_not_found(desk: Desk) -> None:
    for action in (desk.get, desk.replay, desk.discard):
        for name in ("no-uuid", "00000000-0000-0000-0000-000000000000"):
            with pytest.raises(DeadLetterNotFound, match=name):
                action(name)


def test_dead_letters_are_listed_by_page_and_by_what_they_are(worker: Any, bury: Enqueue, desk: Desk) -> None:
    runs = [bury("one", graph, thread_id=f"{graph}-{n}") for n in range(2) for graph in ("chat", "strict")]
    newest = [letter.run_id for letter in desk.list()]

    assert newest == [run.id for run in reversed(runs)]
    first = desk.list(limit=3)
    assert [letter.run_id for letter in [*first, *desk.list(limit=3, after=first[-1].id)]] == newest
    assert [letter.run_id for letter in desk.list(LetterFilter(graph="strict"))] == [runs[3].id, runs[1].id]
    assert [letter.run_id for letter in desk.list(LetterFilter(tenant="acme", thread_id="chat-0"))] == [
        runs[0].id
    ]
    assert desk.list(LetterFilter(tenant="globex")) == desk.list(LetterFilter(status="parked")) == []
    assert len(desk.list(LetterFilter(status="waiting", reason="permanent"))) == 4
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after": "x"}):
        with pytest.raises(InvalidOption):
            desk.list(**wrong)  # type: ignore[arg-type]
