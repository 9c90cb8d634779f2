"""Two tenants that use the same names share nothing, whatever a node or a producer tries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from threadmill.core.errors import RunNotFound, ThreadNotFound
from threadmill.producers import Producer

Admin = psycopg.Connection[Any]

MEET = """
    import asyncio
    from typing import Annotated, TypedDict
    from langgraph.graph import START, StateGraph, add_messages

    class State(TypedDict):
        messages: Annotated[list, add_messages]

    both = asyncio.Barrier(2)

    async def answer(state, config):
        # Goes on only while another run is in this node too.
        await asyncio.wait_for(both.wait(), 15)
        said = state["messages"][-1].content
        tenant = config["configurable"]["tenant"]
        return {"messages": [("ai", f"{tenant} has {len(state['messages'])}: {said}")]}

    meet = StateGraph(State).add_node("answer", answer).add_edge(START, "answer")
"""


def test_two_tenants_with_the_same_thread_id_at_the_same_time_have_separate_states(
    serve: Callable[..., None], start_worker: Callable[..., Any], producer: Producer, admin: Admin
) -> None:
    serve(MEET, meet={})
    start_worker()
    runs = [
        producer.enqueue(
            "meet", {"messages": [("user", f"{tenant} says {n}")]}, tenant=tenant, thread_id="ticket-42"
        )
        for n in range(3)
        for tenant in ("acme", "globex")
    ]
    for run in runs:
        assert producer.wait(run.id, tenant=run.tenant, timeout=20).status == "success"

    for tenant in ("acme", "globex"):
        messages = producer.state(tenant, "ticket-42").values["messages"]
        assert [message["content"] for message in messages] == [
            text
            for n in range(3)
            for text in (f"{tenant} says {n}", f"{tenant} has {2 * n + 1}: {tenant} says {n}")
        ]
    mixed = admin.execute(
        "select thread_id from checkpoint_blobs where"
        " position(convert_to(case split_part(thread_id, ':', 1) when 'acme' then 'globex' else 'acme' end,"
        " 'UTF8') in blob) > 0"
    )
    assert mixed.fetchall() == []


SPY = """
    from typing import Annotated, Any, TypedDict
    from langgraph.checkpoint.base import empty_checkpoint
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.graph import START, StateGraph
    from langgraph.runtime import Runtime
    from langgraph.store.memory import InMemoryStore

    class State(TypedDict, total=False):
        names: list[str]
        secret: str
        checkpoints: dict[str, Any]
        writes: dict[str, str]
        items: dict[str, Any]

    def at(name):
        return {"configurable": {"thread_id": name, "checkpoint_ns": ""}}

    async def refusal(awaitable):
        try:
            await awaitable
        except Exception as error:
            return type(error).__name__
        return "nothing"

    async def read(state, config):
        saver = config["configurable"]["__pregel_checkpointer"]
        found = {name: await saver.aget_tuple(at(name)) for name in state["names"]}
        listed = {name: [item async for item in saver.alist(at(name))] for name in state["names"]}
        every = {item.config["configurable"]["thread_id"] async for item in saver.alist(None)}
        filtered = {
            item.config["configurable"]["thread_id"]
            async for item in saver.alist(None, filter={"tenant": "globex"})
        }
        return {"checkpoints": {
            "found": [name for name in found if found[name] is not None],
            "listed": [name for name in listed if listed[name]],
            "every": sorted(every),
            "filtered": sorted(filtered),
        }}

    def read_in_a_thread(state, config):
        saver = config["configurable"]["__pregel_checkpointer"]
        found = [name for name in state["names"] if saver.get_tuple(at(name)) or list(saver.list(at(name)))]
        every = {item.config["configurable"]["thread_id"] for item in saver.list(None)}
        return {"checkpoints": {**state["checkpoints"], "in a thread": [*found, *sorted(every)]}}

    child = StateGraph(State).add_node("say", lambda state: {"secret": "x"}).add_edge(START, "say").compile()

    async def write(state, config):
        saver = config["configurable"]["__pregel_checkpointer"]
        writes = {}
        for name in state["names"]:
            pending = {**at(name)["configurable"], "checkpoint_id": "1"}
            writes[name] = " ".join([
                await refusal(saver.aput(at(name), empty_checkpoint(), {"source": "fork", "step": 1}, {})),
                await refusal(saver.aput_writes({"configurable": pending}, [("secret", "x")], "task")),
                await refusal(saver.adelete_thread(name)),
                await refusal(child.ainvoke({}, {"configurable": {
                    "thread_id": name, "__pregel_checkpointer": saver,
                }})),
            ])
        return {"writes": writes}

    async def use_the_store(state, config, runtime: Runtime):
        tenant, store = config["configurable"]["tenant"], runtime.store
        seen = [item.key for item in await store.asearch(())]
        item = await store.aget(("notes",), "secret")
        namespaces = await store.alist_namespaces()
        await store.aput(("notes",), f"of {tenant}", {"of": tenant})
        return {"items": {"seen": seen, "secret": item and item.value, "namespaces": namespaces}}

    def use_the_store_in_a_thread(state, config, runtime: Runtime):
        tenant, store = config["configurable"]["tenant"], runtime.store
        store.put(("notes", "plain"), "secret", {"of": tenant})
        return {"items": {**state["items"], "in a thread": [
            store.get(("notes", "plain"), "secret").value,
            store.get(("notes",), "secret"),
            sorted([*item.namespace, item.key] for item in store.search(())),
            store.list_namespaces(),
        ]}}

    async def keep(state, config, runtime: Runtime):
        await runtime.store.aput(("notes",), "secret", {"of": config["configurable"]["tenant"]})
        return {}

    nodes = (read, read_in_a_thread, write, use_the_store, use_the_store_in_a_thread)
    spy = StateGraph(State).add_sequence(nodes).add_edge(START, "read").compile(
        # What a graph brings along all tenants would share, so it is not used.
        checkpointer=InMemorySaver(), store=InMemoryStore(),
    )
    keeper = StateGraph(State).add_node("keep", keep).add_edge(START, "keep")
"""


def test_a_node_gets_nothing_of_another_tenants_and_writes_into_its_own_thread_only(
    serve: Callable[..., None], start_worker: Callable[..., Any], producer: Producer, admin: Admin
) -> None:
    serve(SPY, spy={}, keeper={})
    start_worker()
    for tenant, thread_id in (("globex", "theirs"), ("acme", "other")):
        run = producer.enqueue("keeper", {"secret": tenant}, tenant=tenant, thread_id=thread_id)
        assert producer.wait(run.id, tenant=tenant, timeout=20).status == "success"
    admin.execute("delete from store where prefix like 'acme:%'")
    others = (
        "select 'checkpoint', thread_id, checkpoint_id, '' from checkpoints where thread_id <> 'acme:own'"
        " union all select 'blob', thread_id, channel, version from checkpoint_blobs"
        " where thread_id <> 'acme:own'"
        " union all select 'item', prefix, key, value::text from store where prefix not like 'acme:%'"
    )
    before = admin.execute(others).fetchall()
    assert {row[1].split(":")[0] for row in before} == {"acme", "globex"}

    foreign = ["theirs", "globex:theirs", "acme:other", "other:", "%"]
    run = producer.enqueue("spy", {"names": [*foreign, "other"]}, tenant="acme", thread_id="own")
    done = producer.wait(run.id, tenant="acme", timeout=20)

    assert done.error is None
    assert done.output["checkpoints"] == {
        "found": ["other"],  # of its own tenant
        "listed": ["other"],
        "every": ["other", "own"],
        "filtered": [],
        "in a thread": ["other", "other", "own"],
    }
    assert done.output["writes"] == dict.fromkeys([*foreign, "other"], " ".join(["ForeignThread"] * 4))
    assert done.output["items"] == {
        "seen": [],
        "secret": None,
        "namespaces": [],
        "in a thread": [
            {"of": "acme"},
            None,
            [["notes", "of acme"], ["notes", "plain", "secret"]],
            [["notes"], ["notes", "plain"]],
        ],
    }
    assert admin.execute(others).fetchall() == before


def test_a_producer_reads_lists_and_cancels_nothing_of_another_tenants(
    producer: Producer, admin: Admin
) -> None:
    admin.execute(
        "insert into graphs (name, version, topology_hash, input_schema, channels, policy)"
        " values ('g', '', '', '{}', '{}', '{}')"
    )
    runs = {
        tenant: producer.enqueue("g", {"of": tenant}, tenant=tenant, thread_id="t", idempotency_key="same")
        for tenant in ("acme", "globex")
    }
    theirs = runs["globex"]

    assert runs["acme"].id != theirs.id
    assert [run.id for run in producer.list(tenant="acme")] == [runs["acme"].id]
    with pytest.raises(RunNotFound):
        producer.get(theirs.id, tenant="acme")
    with pytest.raises(RunNotFound):
        producer.cancel(theirs.id, tenant="acme")
    with pytest.raises(RunNotFound):
        producer.wait(theirs.id, tenant="acme", timeout=1)
    producer.enqueue("g", {}, tenant="globex", thread_id="theirs")
    for read in (producer.state, producer.history):
        with pytest.raises(ThreadNotFound):
            read("acme", "theirs")
    assert producer.get(theirs.id, tenant="globex").status == "pending"


CACHED = """
    from typing import TypedDict
    from langgraph.cache.memory import InMemoryCache
    from langgraph.graph import StateGraph, START
    from langgraph.types import CachePolicy

    class State(TypedDict):
        question: str
        answer: str

    async def answer(state, config):
        return {"answer": config["configurable"]["tenant"]}

    cached = (
        StateGraph(State)
        .add_node("answer", answer, cache_policy=CachePolicy())
        .add_edge(START, "answer")
        .compile(cache=InMemoryCache())
    )
"""


def test_a_cache_that_a_graph_was_compiled_with_hands_no_tenant_anothers_result(
    serve: Callable[..., None], start_worker: Callable[..., Any], producer: Producer
) -> None:
    serve(CACHED, cached={})
    start_worker()
    for tenant in ("acme", "globex"):
        run = producer.enqueue("cached", {"question": "who am I?"}, tenant=tenant, thread_id="t")
        assert producer.wait(run.id, tenant=tenant, timeout=20).output["answer"] == tenant
