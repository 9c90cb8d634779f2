"""`dependency` in nodes of real graphs: what it asks, what it notes and what it marks."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import httpx
import pytest
from langgraph.graph import START, StateGraph

from threadmill.core.errors import DependencyUnavailable, InvalidOption
from threadmill.graphs import OPEN, USED, classify, dependency, dependency_of, retry


@contextmanager
def attempt(is_open: Callable[[str], float | None] = lambda name: None) -> Iterator[set[str]]:
    """Sets what a worker sets for an attempt; gives the names that were used."""
    used: set[str] = set()
    tokens = OPEN.set(is_open), USED.set(used)
    try:
        yield used
    finally:
        OPEN.reset(tokens[0])
        USED.reset(tokens[1])


class State(TypedDict, total=False):
    text: Annotated[str, lambda old, new: old + new]


def graph_of(**nodes: Callable[..., Any]) -> Any:
    """A graph whose nodes run side by side."""
    builder: Any = StateGraph(State)
    for name, node in nodes.items():
        builder.add_node(name, node).add_edge(START, name)
    return builder.compile()


def plain(state: State) -> State:
    assert threading.current_thread() is not threading.main_thread()
    with dependency("plain"):
        return {"text": "p"}


async def coroutine(state: State) -> State:
    async with dependency("async"):
        await asyncio.sleep(0)
    with dependency("sync-in-async"):
        return {"text": "c"}


@dependency("decorated-plain")
def decorated(state: State) -> State:
    return {"text": "d"}


@dependency("decorated-async")
async def decorated_async(state: State) -> State:
    await asyncio.sleep(0)
    return {"text": "e"}


async def sub(state: State) -> State:
    inner = graph_of(
        inner=lambda state: dependency("in-a-subgraph")(lambda: {"text": "s"})(),
    )
    return {"text": (await inner.ainvoke({"text": ""}))["text"]}


async def thread_of_its_own(state: State) -> State:
    def work() -> State:
        with dependency("to-thread"):
            return {"text": "t"}

    return await asyncio.to_thread(work)


NODES: dict[str, Callable[..., Any]] = {
    "plain": plain,
    "coroutine": coroutine,
    "decorated": decorated,
    "decorated_async": decorated_async,
    "sub": sub,
    "thread_of_its_own": thread_of_its_own,
}
NAMES = {
    "plain", "async", "sync-in-async", "decorated-plain", "decorated-async", "in-a-subgraph", "to-thread",
}  # fmt: skip


async def test_all_that_nodes_call_is_noted_in_the_attempts_set() -> None:
    with attempt() as used:
        result = await graph_of(**NODES).ainvoke({"text": ""})
    assert sorted(result["text"]) == sorted("pcdest")
    assert used == NAMES


async def test_attempts_at_the_same_time_keep_their_names_apart() -> None:
    both = asyncio.Barrier(2)

    async def run(name: str) -> set[str]:
        async def node(state: State) -> State:
            await both.wait()
            async with dependency(name):
                await both.wait()
            return {"text": "x"}

        with attempt() as used:
            await graph_of(node=node).ainvoke({"text": ""})
        return used

    assert await asyncio.gather(run("one"), run("two")) == [{"one"}, {"two"}]


@pytest.mark.parametrize("node", [plain, coroutine, decorated, decorated_async, sub, thread_of_its_own])
async def test_an_open_breaker_is_told_before_the_call_in_every_kind_of_node(node: Any) -> None:
    with attempt(lambda name: 12.5) as used, pytest.raises(DependencyUnavailable) as caught:
        await graph_of(node=node).ainvoke({"text": ""})
    assert caught.value.dependency in NAMES
    assert caught.value.retry_after == 12.5
    assert classify(caught.value).kind == "infrastructure"
    assert dependency_of(caught.value) == caught.value.dependency
    assert used == set()


async def test_only_the_dependency_whose_breaker_is_open_is_held_back() -> None:
    with attempt(lambda name: 3 if name == "openai" else None):
        with dependency("search"):
            pass
        with pytest.raises(DependencyUnavailable), dependency("openai"):
            pytest.fail("the call was made")


async def test_outside_a_worker_a_name_changes_nothing() -> None:
    assert sorted((await graph_of(**NODES).ainvoke({"text": ""}))["text"]) == sorted("pcdest")


async def test_what_is_raised_in_a_node_is_marked_with_the_dependency_that_it_called() -> None:
    async def node(state: State) -> State:
        async with dependency("openai"):
            raise httpx.ReadTimeout("…")

    def in_a_thread(state: State) -> State:
        with dependency("search"):
            raise httpx.ReadTimeout("…")

    for function, name in ((node, "openai"), (in_a_thread, "search")):
        with attempt(), pytest.raises(httpx.ReadTimeout) as caught:
            await graph_of(node=function).ainvoke({"text": ""})
        assert dependency_of(caught.value) == name


async def test_a_timeout_that_leaves_a_thread_keeps_its_dependency() -> None:
    """asyncio replaces a plain TimeoutError on its way out of a thread by a new one without attributes."""
    came = TimeoutError("the read operation timed out")

    def node(state: State) -> State:
        with dependency("gateway"), dependency("openai"):
            raise came

    with attempt(), pytest.raises(TimeoutError) as caught:
        await graph_of(node=node).ainvoke({"text": ""})
    assert dependency_of(caught.value) == "openai"
    assert (caught.value.args, caught.value.__cause__) == (came.args, came)
    assert classify(caught.value).kind == "transient"


async def test_a_timeout_on_the_loop_is_raised_as_it_came() -> None:
    came = TimeoutError()
    with pytest.raises(TimeoutError) as caught:
        async with dependency("openai"):
            raise came
    assert caught.value is came
    assert dependency_of(came) == "openai"


def test_the_innermost_dependency_is_named() -> None:
    with pytest.raises(TimeoutError) as caught, dependency("gateway"), dependency("openai"):
        raise TimeoutError
    assert dependency_of(caught.value) == "openai"


def test_an_open_breaker_inside_another_dependency_is_the_inner_ones() -> None:
    with (
        attempt(lambda name: 3 if name == "openai" else None),
        pytest.raises(DependencyUnavailable) as caught,
        dependency("gateway"),
        dependency("openai"),
    ):
        pass
    assert dependency_of(caught.value) == "openai"


def test_a_dependency_is_found_beneath_what_was_raised_from_it_and_in_groups() -> None:
    with pytest.raises(TimeoutError) as caught, dependency("openai"):
        raise TimeoutError
    error = caught.value
    wrapped = RuntimeError()
    wrapped.__cause__ = error
    assert dependency_of(wrapped) == "openai"
    assert dependency_of(ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [wrapped])])) == "openai"
    assert dependency_of(ExceptionGroup("g", [ValueError()])) is None
    assert dependency_of(TimeoutError()) is None


def test_a_ring_of_causes_ends() -> None:
    member = RuntimeError()
    group = ExceptionGroup("g", [member])
    member.__cause__ = group
    assert dependency_of(group) is None
    assert dependency_of(member) is None


class Slotted(Exception):
    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@dataclass(frozen=True)
class Frozen(Exception):
    status_code: int


@pytest.mark.parametrize("error", [Slotted(), Frozen(503)])
def test_an_exception_that_cannot_be_marked_is_raised_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, dependency("openai"):
        raise error
    assert caught.value is error
    assert dependency_of(error) is None


def test_a_cancelled_call_is_not_the_dependencys_fault() -> None:
    with pytest.raises(asyncio.CancelledError) as caught, attempt() as used, dependency("openai"):
        raise asyncio.CancelledError
    assert dependency_of(caught.value) is None
    assert used == set()


def test_a_call_whose_failure_the_node_survives_does_not_count_as_used() -> None:
    with attempt() as used:
        with pytest.raises(TimeoutError), dependency("openai"):
            raise TimeoutError
        with dependency("fallback"):
            pass
        assert used == {"fallback"}
        with dependency("openai"):
            assert used == {"fallback", "openai"}
    assert used == {"fallback", "openai"}


async def test_it_stands_inside_of_retry_and_counts_the_call_that_went_through() -> None:
    failures = [TimeoutError(), TimeoutError()]

    @retry(delay=0.001)
    @dependency("openai")
    async def ask() -> str:
        if failures:
            raise failures.pop()
        return "yes"

    with attempt() as used:
        assert await ask() == "yes"
    assert used == {"openai"}


async def test_one_object_serves_many_calls_at_the_same_time() -> None:
    openai = dependency("openai")

    @openai
    async def ask(number: int) -> int:
        await asyncio.sleep(0)
        with openai:
            return number

    with attempt() as used:
        assert await asyncio.gather(*map(ask, range(20))) == list(range(20))
    assert used == {"openai"}
    assert (ask.__name__, inspect.iscoroutinefunction(ask)) == ("ask", True)


@pytest.mark.parametrize("name", ["", "a" * 65, "open ai", "open:ai", "é", "openai\n", None, 3, b"openai"])
def test_a_name_outside_the_alphabet_is_refused(name: Any) -> None:
    with pytest.raises(InvalidOption, match=r"^dependency="):
        dependency(name)


@pytest.mark.parametrize("name", ["a", "a" * 64, "api.openai.com", "Search_2-eu"])
def test_a_name_inside_the_alphabet_is_taken(name: str) -> None:
    assert dependency(name).name == name


def test_a_generator_is_refused_as_its_body_runs_after_the_call() -> None:
    def stream() -> Iterator[int]:
        yield 1

    with pytest.raises(InvalidOption, match="is a generator"):
        dependency("openai")(stream)
