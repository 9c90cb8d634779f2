"""The bound saver: whose checkpoints it reads, what it writes, and when it refuses to."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypedDict

import ormsgpack
import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.graph import START, StateGraph
from uuid_utils.compat import uuid7

from threadmill.core.database import AsyncDatabase
from threadmill.core.errors import ForeignThread, InvalidThreadId, LeaseLost
from threadmill.core.settings import Settings
from threadmill.producers import Producer
from threadmill.workers.checkpointer import BoundSaver
from threadmill.workers.lease import Lease, Pool, bound_connection

Admin = psycopg.Connection[Any]
Hold = Callable[..., Lease]

TABLES = {
    "checkpoints": "thread_id, checkpoint_ns, checkpoint_id",
    "checkpoint_blobs": "thread_id, checkpoint_ns, channel, version",
    "checkpoint_writes": "thread_id, checkpoint_id, task_id, idx",
}


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    """Connections as a worker has them; two only, so that one that is not given back is missed."""
    database = AsyncDatabase(settings.model_copy(update={"pool_size": 2, "connect_timeout": 2}))
    yield await database.pool()
    await database.close()


@pytest.fixture
def hold(admin: Admin) -> Hold:
    """hold(tenant, thread_id): the lease of an attempt that is under way there."""

    def make(tenant: str = "acme", thread_id: str = "t") -> Lease:
        lease = Lease(uuid7(), 1, thread_id)
        admin.execute("insert into threads (tenant, thread_id) values (%s, %s)", (tenant, thread_id))
        admin.execute(
            "insert into runs (id, tenant, thread_id, seq, graph, status, attempt)"
            " values (%s, %s, %s, 1, 'g', 'running', 1)",
            (lease.run_id, tenant, thread_id),
        )
        return lease

    return make


def at(thread_id: str, checkpoint_id: str | None = None) -> RunnableConfig:
    configurable = {"thread_id": thread_id, "checkpoint_ns": ""}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def checkpoint(**values: Any) -> Checkpoint:
    made = empty_checkpoint()
    made["id"] = str(uuid6())
    made["channel_values"] = values
    made["channel_versions"] = dict.fromkeys(values, made["id"])
    return made


async def put(saver: BoundSaver, thread_id: str, **values: Any) -> RunnableConfig:
    made = checkpoint(**values)
    return await saver.aput(at(thread_id), made, {"source": "loop", "step": 1}, made["channel_versions"])


def contents(admin: Admin) -> dict[str, list[Any]]:
    """Every row of the checkpoint tables."""
    return {
        table: admin.execute(f"select t::text from {table} t order by {key}").fetchall()
        for table, key in TABLES.items()
    }


def threads(admin: Admin, table: str = "checkpoints") -> set[str]:
    return {row[0] for row in admin.execute(f"select thread_id from {table}")}


# Whose checkpoints


async def test_a_checkpoint_stands_under_the_thread_key_and_is_known_by_its_plain_id(
    pool: Pool, hold: Hold, admin: Admin
) -> None:
    saver = BoundSaver(pool, "acme", hold("acme", "a:b"))
    first = await put(saver, "a:b", items=[1])
    made = checkpoint(items=[1, 2])
    second = await saver.aput(first, made, {"source": "loop", "step": 2}, made["channel_versions"])
    await saver.aput_writes(second, [("items", [3])], "task")

    assert second == at("a:b", made["id"])
    assert all(threads(admin, table) == {"acme:a:b"} for table in TABLES)
    found = await saver.aget_tuple(at("a:b"))
    assert found is not None
    assert (found.config, found.parent_config) == (second, first)
    assert found.checkpoint["channel_values"] == {"items": [1, 2]}
    assert found.pending_writes == [("task", "items", [3])]
    assert [item.config async for item in saver.alist(None)] == [second, first]


async def test_the_saver_notes_the_newest_checkpoint_of_the_graph_itself(pool: Pool, hold: Hold) -> None:
    saver = BoundSaver(pool, "acme", hold())
    own = await put(saver, "t")
    inner = checkpoint()
    nested: RunnableConfig = {"configurable": {"thread_id": "t", "checkpoint_ns": "child:1"}}
    await saver.with_allowlist([("m", "C")]).aput(nested, inner, {"source": "loop", "step": 0}, {})

    assert saver.progress.checkpoint_id == own["configurable"]["checkpoint_id"]


async def test_of_a_delta_channels_thread_no_more_is_read_than_a_value_may_need(
    pool: Pool, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    class State(TypedDict):
        log: Annotated[list[int], DeltaChannel(lambda kept, more: sum(more, kept or []), 1_000)]

    graph = StateGraph(State).add_node("rest", lambda state: {}).add_edge(START, "rest")
    saver = BoundSaver(pool, "acme", hold())
    compiled = graph.compile(checkpointer=saver)
    for number in range(60):
        await compiled.ainvoke({"log": [number]}, at("t"))
    pages = []
    ingest = BoundSaver._ingest_stage1_page

    def watched(rows: Any, *rest: Any) -> Any:
        pages.append(len(rows))
        return ingest(rows, *rest)

    monkeypatch.setattr(BoundSaver, "_ingest_stage1_page", staticmethod(watched))

    assert (await compiled.aget_state(at("t"))).values == {"log": list(range(60))}
    assert pages == [128, 60 * 3 - 128]


async def test_another_tenants_thread_is_not_there(pool: Pool, hold: Hold) -> None:
    theirs = BoundSaver(pool, "globex", hold("globex", "shared"))
    saved = await put(theirs, "shared", secret=["s"])
    await theirs.aput_writes(saved, [("secret", "s")], "task")
    checkpoint_id = saved["configurable"]["checkpoint_id"]
    saver = BoundSaver(pool, "acme", hold("acme", "own"))
    await put(saver, "own")

    for name in ("shared", "globex:shared", "../globex:shared", "%", "%:shared"):
        assert await saver.aget_tuple(at(name)) is None
        assert await saver.aget_tuple(at(name, checkpoint_id)) is None
        assert [item async for item in saver.alist(at(name))] == []
        history = await saver.aget_delta_channel_history(config=at(name, checkpoint_id), channels=["secret"])
        assert history == {"secret": {"writes": []}}
    everything = [item.config["configurable"]["thread_id"] async for item in saver.alist(None)]
    assert everything == ["own"]
    assert [item async for item in saver.alist(None, filter={"source": "loop"}, limit=9)] != []


async def test_what_is_no_thread_id_is_refused(pool: Pool) -> None:
    with pytest.raises(InvalidThreadId):
        await BoundSaver(pool, "acme").aget_tuple(at("a\x00b"))


async def test_plain_functions_read_through_the_saver_from_their_threads(pool: Pool, hold: Hold) -> None:
    saver = BoundSaver(pool, "acme", hold())
    saved = await put(saver, "t", n=1)

    found = await asyncio.to_thread(saver.get_tuple, at("t"))
    assert found is not None
    assert found.config == saved
    listed = await asyncio.to_thread(lambda: list(saver.list(None)))
    assert [item.config for item in listed] == [saved]


async def test_a_listing_that_is_broken_off_holds_no_connection(pool: Pool, hold: Hold) -> None:
    saver = BoundSaver(pool, "acme", hold())
    for _ in range(2):
        await put(saver, "t")

    listings = [saver.alist(at("t")) for _ in range(3)]  # one more than the pool has connections
    newest = [await anext(listing) for listing in listings]

    assert await saver.aget_tuple(at("t")) == newest[0]


async def test_the_history_of_a_delta_channel_is_found_without_a_checkpoint_id(
    pool: Pool, hold: Hold
) -> None:
    saver = BoundSaver(pool, "acme", hold())
    first = await put(saver, "t")
    await saver.aput_writes(first, [("log", "a")], "task")
    made = checkpoint()
    newest = await saver.aput(first, made, {"source": "loop", "step": 2}, {})

    named = await saver.aget_delta_channel_history(config=newest, channels=["log"])

    assert named == {"log": {"writes": [("task", "log", "a")]}}
    assert await saver.aget_delta_channel_history(config=at("t"), channels=["log"]) == named


# The fence

Write = Callable[[BoundSaver, RunnableConfig], Awaitable[object]]


async def put_blobs(saver: BoundSaver, config: RunnableConfig) -> None:
    made = checkpoint(items=["new"], large="x" * 1_000_000)
    await saver.aput(config, made, {"source": "loop", "step": 2}, made["channel_versions"])


WRITES: dict[str, Write] = {
    "aput": put_blobs,
    "aput_writes": lambda saver, config: saver.aput_writes(config, [("items", ["x"])], "task"),
    "aput_writes of an error": lambda saver, config: saver.aput_writes(config, [("__error__", "x")], "task"),
    "aput_writes of many": lambda saver, config: saver.aput_writes(
        config, [("items", "x" * 5000)] * 500, "t"
    ),
    "adelete_thread": lambda saver, config: saver.adelete_thread(config["configurable"]["thread_id"]),
    "put in a thread": lambda saver, config: asyncio.to_thread(
        saver.put, config, checkpoint(items=["new"]), {"source": "loop", "step": 2}, {}
    ),
}
TAKEN = {
    "given to another attempt": "update runs set attempt = attempt + 1",
    "given back": "update runs set status = 'pending'",
    "cancelled": "update runs set status = 'interrupted'",
    "finished": "update runs set status = 'success'",
    "deleted": "delete from runs",
}


@pytest.mark.parametrize("taken", TAKEN)
async def test_an_attempt_whose_run_was_taken_away_writes_nothing(
    pool: Pool, hold: Hold, admin: Admin, taken: str
) -> None:
    lease = hold()
    saver = BoundSaver(pool, "acme", lease)
    saved = await put(saver, "t", items=["old"])
    await saver.aput_writes(saved, [("items", ["pending"])], "old task")
    before = contents(admin)
    admin.execute(TAKEN[taken])

    for name, write in WRITES.items():
        with pytest.raises(LeaseLost) as lost:
            await write(saver, saved)
        assert (lost.value.run_id, lost.value.attempt) == (str(lease.run_id), 1), name
        assert contents(admin) == before, name
    assert saver.progress.checkpoint_id == saved["configurable"]["checkpoint_id"]


async def test_a_lost_lease_leaves_the_connection_fit_for_the_next_attempt(
    pool: Pool, hold: Hold, admin: Admin
) -> None:
    lost = BoundSaver(pool, "acme", Lease(uuid.uuid4(), 1, "t"))
    held = BoundSaver(pool, "acme", hold())
    for _ in range(3):  # statements are prepared, or not, on each of the pool's connections
        outcomes = await asyncio.gather(
            *(put(saver, "t", items=["x"]) for saver in (lost, held) * 4), return_exceptions=True
        )
        assert [isinstance(outcome, LeaseLost) for outcome in outcomes] == [True, False] * 4
    assert len(contents(admin)["checkpoint_blobs"]) == len(contents(admin)["checkpoints"]) == 12


async def test_each_write_is_one_round_trip(pool: Pool, hold: Hold, tmp_path: Path) -> None:
    saver = BoundSaver(pool, "acme", hold())
    saved = await put(saver, "t")
    writes = (put_blobs, WRITES["aput_writes of many"], WRITES["adelete_thread"])
    with (tmp_path / "protocol").open("w+") as protocol:
        async with pool.connection():  # so that the writes find one connection only, which is traced
            for write in writes:  # a connection prepares each statement at its first use
                await write(saver, saved)
            async with pool.connection() as connection:
                connection.pgconn.trace(protocol.fileno())
            for write in writes:
                await write(saver, saved)
            async with pool.connection() as connection:
                connection.pgconn.untrace()
        protocol.seek(0)
        words = [line.split()[-1] for line in protocol]
    sent = [word for word in words if word in ("Sync", "Flush")]
    # psycopg asks with a Flush for what it waits for; right after a Sync it is still the same wait.
    waits = [word for before, word in pairwise(["", *sent]) if (before, word) != ("Sync", "Flush")]
    assert waits == ["Sync"] * 3


async def test_what_goes_out_together_comes_to_the_same_as_one_after_the_other(
    pool: Pool, hold: Hold
) -> None:
    """Values of all kinds, and places that are written twice."""
    saver = BoundSaver(pool, "acme", hold(), background=True)
    made = checkpoint(data=bytearray(b"ab"), raw=b"\0\xff", items=['ä"', None])
    metadata = {"source": "loop", "step": 1}
    written = await saver.aput(at("t"), made, metadata, made["channel_versions"])
    await saver.aput_writes(written, [("items", ["first"]), ("items", ["second"])], "task")
    await saver.aput_writes(written, [("items", ["again, and kept from it"])], "task")
    await saver.aput_writes(written, [("__error__", "first"), ("__error__", "second")], "task")
    await saver.aput_writes(written, [("__error__", "third")], "task")
    await saver.aput(at("t"), made, {**metadata, "step": 2}, {})
    await saver.flush()

    found = await saver.aget_tuple(at("t"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {
        "data": bytearray(b"ab"),
        "raw": b"\0\xff",
        "items": ['ä"', None],
    }
    assert found.metadata["step"] == 2
    assert sorted(found.pending_writes or []) == [
        ("task", "__error__", "third"),
        ("task", "items", ["first"]),
        ("task", "items", ["second"]),
    ]


async def test_what_takes_a_run_away_waits_for_a_write_that_is_under_way(
    pool: Pool, hold: Hold, admin: Admin
) -> None:
    admin.execute("set lock_timeout to '50ms'")
    async with bound_connection(pool, "acme", hold()) as connection:
        await (await connection.execute("select 1")).fetchone()  # the fence has been passed
        with pytest.raises(psycopg.errors.LockNotAvailable):
            admin.execute("update runs set attempt = attempt + 1")
    admin.execute("update runs set attempt = attempt + 1")


@pytest.mark.parametrize(
    ("step", "error"),
    [
        pytest.param(object(), TypeError, id="refused here"),
        pytest.param(float("nan"), psycopg.DataError, id="refused by Postgres"),
    ],
)
async def test_a_write_that_fails_halfway_leaves_nothing(
    pool: Pool, hold: Hold, admin: Admin, step: Any, error: type[Exception]
) -> None:
    saver = BoundSaver(pool, "acme", hold())
    made = checkpoint(items=["sent before the checkpoint itself"])

    with pytest.raises(error):
        await saver.aput(at("t"), made, {"source": "loop", "step": step}, made["channel_versions"])

    assert contents(admin) == {"checkpoints": [], "checkpoint_blobs": [], "checkpoint_writes": []}
    await put(saver, "t")
    assert threads(admin) == {"acme:t"}


async def test_a_write_that_is_cancelled_halfway_leaves_nothing(pool: Pool, hold: Hold, admin: Admin) -> None:
    lease = hold()
    sent = asyncio.Event()

    async def write() -> None:
        async with bound_connection(pool, "acme", lease) as connection:
            await connection.execute("insert into checkpoint_blobs values ('acme:t', '', 'c', '1', 'null')")
            sent.set()
            await asyncio.Event().wait()

    writing = asyncio.create_task(write())
    await sent.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing

    assert contents(admin)["checkpoint_blobs"] == []


async def test_an_attempt_writes_into_no_thread_but_its_own(pool: Pool, hold: Hold, admin: Admin) -> None:
    saver = BoundSaver(pool, "acme", hold())
    await three_checkpoints(pool, "acme", "other")
    before = contents(admin)

    for foreign in ("other", "globex:t", "acme:t", "T", "t "):
        for name, write in WRITES.items():
            with pytest.raises(ForeignThread, match="may not write into thread") as refused:
                await write(saver, at(foreign, str(uuid6())))
            assert (refused.value.thread_id, refused.value.own_thread_id) == (foreign, "t"), name
    assert contents(admin) == before


# Maintenance


async def three_checkpoints(pool: Pool, tenant: str, thread_id: str) -> None:
    saver = BoundSaver(pool, tenant)
    for n in range(3):
        saved = await put(saver, thread_id, items=[n])
        await saver.aput_writes(saved, [("items", [n])], "task")


def count(admin: Admin, thread_key: str) -> list[int]:
    """The thread's rows in each of the checkpoint tables."""
    return [
        admin.execute(f"select count(*) from {table} where thread_id = %s", (thread_key,)).fetchone()[0]
        for table in TABLES
    ]


@pytest.mark.parametrize(("strategy", "left"), [("keep_latest", [1, 1, 1]), ("delete", [0, 0, 0])])
async def test_pruning_reaches_the_tenants_own_threads_only(
    pool: Pool, admin: Admin, strategy: str, left: list[int]
) -> None:
    for tenant in ("acme", "globex"):
        await three_checkpoints(pool, tenant, "t")
    await three_checkpoints(pool, "acme", "untouched")

    await BoundSaver(pool, "acme").aprune(["t", "globex:t"], strategy=strategy)

    assert count(admin, "acme:t") == left
    assert count(admin, "acme:untouched") == count(admin, "globex:t") == [3, 3, 3]


async def test_deleting_a_thread_reaches_the_tenants_own_only(pool: Pool, admin: Admin) -> None:
    for tenant in ("acme", "globex"):
        await three_checkpoints(pool, tenant, "t")

    await BoundSaver(pool, "acme").adelete_thread("globex:t")
    assert count(admin, "acme:t") == count(admin, "globex:t") == [3, 3, 3]
    await BoundSaver(pool, "acme").adelete_thread("t")

    assert count(admin, "acme:t") == [0, 0, 0]
    assert count(admin, "globex:t") == [3, 3, 3]


async def test_an_attempt_prunes_nothing(pool: Pool, hold: Hold, admin: Admin) -> None:
    lease = hold()
    await three_checkpoints(pool, "acme", "t")
    before = contents(admin)

    for strategy in ("keep_latest", "delete"):
        with pytest.raises(NotImplementedError, match="without a lease"):
            await BoundSaver(pool, "acme", lease).aprune(["t"], strategy=strategy)
    assert contents(admin) == before


async def test_a_connection_that_pruned_is_bound_to_no_tenant_afterwards(pool: Pool) -> None:
    await three_checkpoints(pool, "acme", "t")
    saver = BoundSaver(pool, "acme")
    await asyncio.gather(*(saver.aprune(["t"]) for _ in range(2)), return_exceptions=True)

    async with pool.connection() as one, pool.connection() as other:
        for connection in (one, other):
            rows = await (await connection.execute("select thread_id from checkpoints")).fetchall()
            assert rows == []


# What a blob may name

CALL = ormsgpack.Ext(0, ormsgpack.packb(("os", "getenv", "PATH")))


CRAFTED = [
    (ormsgpack.Ext(0, ormsgpack.packb(("os", "getenv", "PATH"))), "PATH"),
    (ormsgpack.Ext(1, ormsgpack.packb(("os", "getenv", ["PATH", "x"]))), ["PATH", "x"]),
    (ormsgpack.Ext(2, ormsgpack.packb(("os", "getenv", {"key": "PATH"}))), {"key": "PATH"}),
    (ormsgpack.Ext(3, ormsgpack.packb(("os", "environ", "PATH", "get"))), "PATH"),
    (ormsgpack.Ext(5, ormsgpack.packb(("subprocess", "Popen", {"args": "false"}, ""))), {"args": "false"}),
]


async def test_a_crafted_blob_comes_back_as_data(pool: Pool, hold: Hold, admin: Admin) -> None:
    saver = BoundSaver(pool, "acme", hold())
    saved = await put(saver, "t", crafted=["replaced"])
    await saver.aput_writes(saved, [("crafted", "replaced")], "task")

    for extension, left in CRAFTED:
        for table in ("checkpoint_blobs", "checkpoint_writes"):
            admin.execute(f"update {table} set blob = %s", (ormsgpack.packb([extension]),))
        found = await saver.aget_tuple(saved)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"crafted": [left]}
        assert found.pending_writes == [("task", "crafted", [left])]


async def test_a_crafted_blob_of_an_older_format_calls_nothing(pool: Pool, hold: Hold, admin: Admin) -> None:
    saver = BoundSaver(pool, "acme", hold())
    await put(saver, "t", crafted=["replaced"])
    replace = "update checkpoint_blobs set type = %s, blob = %s"

    call = {"lc": 2, "type": "constructor", "id": ["os", "getenv"], "args": ["PATH"]}
    admin.execute(replace, ("json", json.dumps(call).encode()))
    found = await saver.aget_tuple(at("t"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"crafted": call}

    admin.execute(replace, ("json", json.dumps({**call, "lc": 1, "kwargs": {"key": "PATH"}}).encode()))
    with pytest.raises(ValueError, match="not allowed"):
        await saver.aget_tuple(at("t"))

    admin.execute(replace, ("pickle", b"cos\ngetenv\n(VPATH\ntR."))
    with pytest.raises(NotImplementedError, match="pickle"):
        await saver.aget_tuple(at("t"))


TYPED = """
    from dataclasses import dataclass
    from enum import Enum
    from typing import Any, TypedDict
    from langgraph.graph import START, StateGraph
    from pydantic import BaseModel

    class Colour(Enum):
        RED = "red"

    @dataclass
    class Place:
        street: str

    class Person(BaseModel):
        name: str
        place: Place

    class State(TypedDict, total=False):
        person: Person
        places: list[Place]
        colour: Colour
        crafted: Any
        seen: list[str]

    def note(state):
        if "person" not in state:
            place = Place("Long Lane")
            return {
                "person": Person(name="Ada", place=place), "places": [place], "colour": Colour.RED,
                "crafted": ["replaced"],
            }
        return {"seen": [repr(state[name]) for name in ("person", "places", "colour", "crafted")]}

    typed = StateGraph(State).add_node("note", note).add_edge(START, "note")
"""


def test_types_of_a_graphs_own_state_come_back_as_objects_and_no_others_do(
    serve: Callable[..., None], start_worker: Callable[..., Any], producer: Producer, admin: Admin
) -> None:
    serve(TYPED, typed={"output": ["seen"]})
    start_worker()
    run = producer.enqueue("typed", {"seen": []}, tenant="acme", thread_id="t")
    assert producer.wait(run.id, tenant="acme", timeout=20).status == "success"
    crafted = ormsgpack.packb([extension for extension, _ in CRAFTED])
    admin.execute("update checkpoint_blobs set blob = %s where channel = 'crafted'", (crafted,))

    run = producer.enqueue("typed", {"seen": []}, tenant="acme", thread_id="t")

    assert producer.wait(run.id, tenant="acme", timeout=20).output == {
        "seen": [
            "Person(name='Ada', place=Place(street='Long Lane'))",
            "[Place(street='Long Lane')]",
            "<Colour.RED: 'red'>",
            repr([left for _, left in CRAFTED]),
        ]
    }
