"""`retry` around a function of a node: what it calls again, how long it waits, and what it raises."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict

import httpx
import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from structlog.testing import capture_logs

from threadmill.core.errors import DependencyUnavailable, InvalidOption
from threadmill.graphs import Verdict, retry


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


@contextlib.contextmanager
def stopped_clock() -> Any:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tenacity, "time", clock)
        patch.setattr(tenacity.nap, "time", clock)
        patch.setattr(asyncio, "sleep", clock.sleep_async)
        yield clock


@pytest.fixture
def clock() -> Any:
    with stopped_clock() as clock:
        yield clock


class Calls:
    """A function that raises these one after the other, and then returns."""

    def __init__(self, *raised: BaseException) -> None:
        self.raised = list(raised)
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self.raised:
            raise self.raised.pop(0)
        return "done"


def limited(seconds: str) -> Exception:
    request = httpx.Request("GET", "https://api.example.com")
    response = httpx.Response(429, headers={"Retry-After": seconds}, request=request)
    return httpx.HTTPStatusError("…", request=request, response=response)


def plain(calls: Calls, **options: Any) -> Callable[[], Awaitable[str]]:
    """The helper around a plain function, called where a node of that kind is: in a thread."""

    @retry(**options)
    def call() -> str:
        return calls()

    async def outside() -> str:
        return await asyncio.to_thread(call)

    return outside


def coroutine(calls: Calls, **options: Any) -> Callable[[], Awaitable[str]]:
    @retry(**options)
    async def call() -> str:
        return calls()

    return call


BOTH = pytest.mark.parametrize("kind", [plain, coroutine])


@BOTH
async def test_what_is_transient_is_called_again(kind: Any, clock: Clock) -> None:
    calls = Calls(ConnectionResetError(), httpx.ReadTimeout("…"), limited("1"))
    assert await kind(calls)() == "done"
    assert calls.count == 4
    assert len(clock.sleeps) == 3


@BOTH
@pytest.mark.parametrize(
    "error", [ValueError("no"), RuntimeError(), DependencyUnavailable("openai", 3), asyncio.CancelledError()]
)
async def test_what_else_is_raised_at_once_as_it_came(kind: Any, error: BaseException, clock: Clock) -> None:
    cause = error.__cause__ = KeyError()
    calls = Calls(error)
    with pytest.raises(type(error)) as caught:
        await kind(calls)()
    assert (caught.value, caught.value.__cause__, calls.count, clock.sleeps) == (error, cause, 1, [])


@BOTH
async def test_when_the_budget_is_used_up_the_last_exception_is_raised_as_it_came(
    kind: Any, clock: Clock
) -> None:
    errors = [ConnectionResetError(n) for n in range(10_000)]
    calls = Calls(*errors)
    with pytest.raises(ConnectionResetError) as caught:
        await kind(calls, budget=20, delay=1, delay_max=4)()
    assert caught.value is errors[calls.count - 1]
    assert calls.count > 3
    assert clock.now < 20


@BOTH
async def test_it_waits_no_less_than_it_was_told(kind: Any, clock: Clock) -> None:
    assert await kind(Calls(limited("7"), limited("9")))() == "done"
    first, second = clock.sleeps
    assert 7 <= first <= 7.5
    assert 9 <= second <= 10


@BOTH
async def test_a_wait_beyond_the_budget_is_not_begun(kind: Any, clock: Clock) -> None:
    error = limited("31")
    with pytest.raises(httpx.HTTPStatusError) as caught:
        await kind(Calls(error))()
    assert caught.value is error
    assert clock.sleeps == []


@given(delay=st.floats(0.01, 10), factor=st.floats(1, 100))
def test_each_wait_is_drawn_from_a_span_that_doubles_up_to_its_limit(delay: float, factor: float) -> None:
    calls = Calls(*[TimeoutError() for _ in range(8)])

    @retry(budget=1e9, delay=delay, delay_max=delay * factor)
    def call() -> str:
        return calls()

    with stopped_clock() as clock:
        call()
    for turn, slept in enumerate(clock.sleeps):
        assert 0 <= slept <= min(delay * 2**turn, delay * factor) * 1.000001


def test_waits_are_jittered_over_the_whole_span(clock: Clock) -> None:
    for _ in range(200):
        retry(delay=1)(Calls(TimeoutError()).__call__)()
    assert min(clock.sleeps) < 0.1
    assert max(clock.sleeps) > 0.9


@BOTH
async def test_the_classifier_can_be_replaced(kind: Any, clock: Clock) -> None:
    def judge(error: BaseException) -> Any:
        return Verdict("transient", 2) if isinstance(error, ValueError) else None

    assert await kind(Calls(ValueError(), TimeoutError()), classifier=judge)() == "done"
    assert clock.sleeps[0] >= 2


async def test_arguments_and_results_pass_through_and_the_functions_stay_what_they_were() -> None:
    @retry
    def add(a: int, *, b: int) -> int:
        """Adds."""
        return a + b

    class Client:
        @retry(budget=1)
        async def ask(self, question: str) -> tuple[Client, str]:
            return self, question

        @staticmethod
        @retry
        def static() -> int:
            return 3

    client = Client()
    assert await asyncio.to_thread(add, 1, b=2) == 3
    assert await client.ask("why") == (client, "why")
    assert await asyncio.to_thread(client.static) == 3
    assert (add.__name__, add.__doc__, str(inspect.signature(add))) == (
        "add",
        "Adds.",
        "(a: 'int', *, b: 'int') -> 'int'",
    )
    assert inspect.iscoroutinefunction(Client.ask)


async def test_a_plain_function_on_the_loops_own_thread_is_refused_before_it_is_called() -> None:
    calls = Calls()
    with pytest.raises(RuntimeError, match="make it `async def`"):
        retry(calls.__call__)()
    assert calls.count == 0


async def test_calls_at_the_same_time_do_not_share_their_waits(clock: Clock) -> None:
    """Each has its own count of calls: ten that fail twice each are not one that fails twenty times."""

    @retry(delay=1, delay_max=1000)
    async def call(calls: Calls) -> str:
        return calls()

    many = [Calls(TimeoutError(), TimeoutError()) for _ in range(10)]
    assert await asyncio.gather(*map(call, many)) == ["done"] * 10
    assert max(clock.sleeps) <= 2


def test_calls_in_several_threads_do_not_disturb_each_other() -> None:
    barrier = threading.Barrier(8, timeout=30)
    results = []

    @retry(delay=0.001, delay_max=0.001)
    def call(calls: Calls) -> str:
        if not calls.count:
            barrier.wait()
        return calls()

    def run() -> None:
        results.append(call(Calls(*[TimeoutError() for _ in range(20)])))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == ["done"] * 8


async def test_a_retry_is_told_without_the_message(clock: Clock) -> None:
    @retry
    async def ask() -> str:
        return calls()

    calls = Calls(TimeoutError("a user's words"))
    with capture_logs() as logs:
        await ask()
    (log,) = logs
    assert (log["event"], log["error"], log["calls"]) == ("call.retried", "TimeoutError", 1)
    assert log["function"].endswith("ask")
    assert "a user's words" not in str(log)


class State(TypedDict, total=False):
    asked: str
    answer: str


async def test_an_interrupt_inside_it_stops_the_graph_and_is_no_failure(clock: Clock) -> None:
    calls = Calls(ConnectionResetError())

    @retry
    async def ask(question: str) -> str:
        calls()
        return str(interrupt(question))

    async def node(state: State) -> State:
        return {"answer": await ask(state["asked"])}

    graph = StateGraph(State).add_node("node", node).add_edge(START, "node").compile(InMemorySaver())
    result = await graph.ainvoke({"asked": "may I?"}, {"configurable": {"thread_id": "t"}})
    assert result["__interrupt__"][0].value == "may I?"
    assert calls.count == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget=0: must be finite and more than 0 seconds"),
        ({"budget": -1}, "budget=-1: must be"),
        ({"budget": float("nan")}, "budget=nan: must be finite"),
        ({"budget": float("inf")}, "budget=inf: must be finite"),
        ({"budget": "30"}, "budget='30': must be a number of seconds"),
        ({"budget": True}, "budget=True: must be a number of seconds"),
        ({"delay": 0}, "delay=0: must be finite and more than 0"),
        ({"delay_max": None}, "delay_max=None: must be a number"),
        ({"delay": 11}, "delay=11: is longer than delay_max=10"),
        ({"classifier": "judge"}, "classifier='judge': must be a function"),
    ],
)
def test_impossible_options_are_refused_where_it_decorates(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption) as error:
        retry(**options)
    assert str(error.value).startswith(message)


def generator() -> Any:
    yield 1


async def async_generator() -> Any:
    yield 1


@pytest.mark.parametrize("function", [generator, async_generator, 30, staticmethod(generator), object()])
def test_what_cannot_be_called_again_is_refused_where_it_decorates(function: Any) -> None:
    with pytest.raises(InvalidOption, match=r"^function="):
        retry(function)
