"""A thread's state comes back as plain JSON, to a process that has no LangGraph."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import ormsgpack
import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel, SecretStr

from threadmill.core.errors import ThreadNotFound
from threadmill.core.settings import Settings
from threadmill.producers import Producer
from threadmill.producers.state import decode
from threadmill.workers.output import as_json

UTC = datetime.UTC


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Place:
    street: str
    colours: set[Colour]


class Person(BaseModel):
    id: uuid.UUID
    born: datetime.date
    places: list[Place]
    password: SecretStr = SecretStr("not to be shown")


ID = uuid.UUID("0190b5a4-7c1e-7f00-8000-0123456789ab")
PLACE = Place("Long Lane", {Colour.RED})

VALUES = [
    None,
    True,
    7,
    2.5,
    float("nan"),
    float("-inf"),
    "text \u2028 😀",
    b"\x00\xff",
    bytearray(b"ab"),
    [b"\x00", (1, 2), []],
    {"nested": {"a": None}, 1: "int key", None: "no key"},
    {ID: 1, datetime.date(2024, 2, 29): 2, (1, 2): 3},
    {3},
    frozenset({"a"}),
    ID,
    datetime.datetime(2024, 2, 29, 12, 30, 1, 5, UTC),
    datetime.datetime(2024, 2, 29),
    datetime.date(2024, 2, 29),
    datetime.time(12, 30, 1),
    datetime.timedelta(days=1, seconds=2, microseconds=3),
    decimal.Decimal("1.50"),
    pathlib.PosixPath("/a/b c"),
    ipaddress.ip_address("::1"),
    Colour.RED,
    PLACE,
    Person(id=ID, born=datetime.date(1815, 12, 10), places=[PLACE]),
    SecretStr("not to be shown"),
    [
        HumanMessage("hello", id="1"),
        AIMessage("", id="2", tool_calls=[{"name": "t", "args": {"of": [1]}, "id": "c"}]),
        ToolMessage("done", tool_call_id="c", artifact={"id": ID}),
    ],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_in_the_state_is_shown_as_in_a_runs_output(value: object) -> None:
    shown = decode(*JsonPlusSerializer().dumps_typed(value))

    assert shown == as_json(value, 10_000)
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert "not to be shown" not in json.dumps(shown)


def test_a_queue_is_shown_as_an_array() -> None:
    assert decode(*JsonPlusSerializer().dumps_typed(collections.deque([1, {2}]))) == [1, [2]]


@pytest.mark.parametrize(
    ("extension", "shown"),
    [
        (ormsgpack.Ext(0, ormsgpack.packb(("os", "getenv", "PATH"))), "PATH"),
        (ormsgpack.Ext(1, ormsgpack.packb(("subprocess", "run", [["false"]]))), [["false"]]),
        (ormsgpack.Ext(0, ormsgpack.packb(("uuid", "UUID", "no uuid"))), "no uuid"),
        (ormsgpack.Ext(1, ormsgpack.packb(("datetime", "date", "no date"))), "no date"),
        (ormsgpack.Ext(0, ormsgpack.packb(("os", "getenv"))), {"$undecoded": "extension 0"}),
        (ormsgpack.Ext(0, ormsgpack.packb(7)), {"$undecoded": "extension 0"}),
        (ormsgpack.Ext(99, b"\xc1 no msgpack"), {"$undecoded": "extension 99"}),
    ],
)
def test_a_crafted_value_is_data_and_does_no_harm(extension: ormsgpack.Ext, shown: object) -> None:
    assert decode("msgpack", ormsgpack.packb({"crafted": [extension]})) == {"crafted": [shown]}


def test_what_cannot_be_read_without_running_code_is_said_to_be_undecoded() -> None:
    assert decode("pickle", b"cos\ngetenv\n(VPATH\ntR.") == {"$undecoded": "pickle"}
    assert decode("msgpack", ormsgpack.packb(ormsgpack.Ext(6, b""))) == {"$undecoded": "numpy array"}
    assert decode("json", b'{"lc": 1}') == {"lc": 1}


# Through a worker

RICH = """
    import datetime, operator, uuid
    from dataclasses import dataclass
    from decimal import Decimal
    from enum import Enum
    from typing import Annotated, Any, TypedDict
    from langchain_core.messages import AIMessage
    from langgraph.channels.delta import DeltaChannel
    from langgraph.graph import START, StateGraph, add_messages
    from langgraph.types import interrupt
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
        messages: Annotated[list, add_messages]
        tags: set[str]
        id: uuid.UUID
        at: datetime.datetime
        person: Person
        place: Place
        colour: Colour
        price: Decimal
        raw: bytes
        raws: list[bytes]
        count: int
        empty: Any
        log: Annotated[list, DeltaChannel(lambda values, writes: values + sum(writes, []))]

    async def fill(state):
        place = Place("Long Lane")
        return {
            "messages": [AIMessage("hi", id="2")],
            "tags": {"a"},
            "id": uuid.UUID(int=1),
            "at": datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc),
            "person": Person(name="Ada", place=place),
            "place": place,
            "colour": Colour.RED,
            "price": Decimal("1.50"),
            "raw": b"\\x00",
            "raws": [b"\\x00"],
            "count": 1,
            "empty": None,
        }

    async def left(state):
        return {"log": ["left"]}

    async def right(state):
        return {"log": ["right"]}

    async def join(state):
        return {"count": 2}

    async def ask(state):
        interrupt({"question": "go on?", "id": uuid.UUID(int=2)})

    rich = (
        StateGraph(State)
        .add_node("fill", fill).add_node("left", left).add_node("right", right)
        .add_node("join", join).add_node("ask", ask)
        .add_edge(START, "fill").add_edge("fill", "left").add_edge("fill", "right")
        .add_edge(["left", "right"], "join").add_edge("join", "ask")
    )
"""

PROGRAM = """
import json, sys

class NoLangGraph:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("langgraph", "langchain", "langchain_core", "langsmith"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, NoLangGraph())
from threadmill.producers import Producer

with Producer() as producer:
    state = producer.state("acme", "t").to_dict()
    history = producer.history("acme", "t")
json.dump({"state": state, "history": history}, sys.stdout, allow_nan=False)
"""


def test_a_process_without_langgraph_reads_every_kind_of_value(
    serve: Callable[..., None],
    start_worker: Callable[..., Any],
    producer: Producer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve(RICH, rich={})
    start_worker()
    message = {"role": "user", "content": "hello", "id": "1"}
    run = producer.enqueue("rich", {"messages": [message]}, tenant="acme", thread_id="t")
    done = producer.wait(run.id, tenant="acme", timeout=20)
    assert done.status == "success", done.error

    for name in ("database_url", "broker_url"):
        monkeypatch.setenv(f"THREADMILL_{name.upper()}", getattr(settings, name))
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    read = json.loads(ran.stdout)

    state = read["state"]
    assert [(m["type"], m["content"], m["id"]) for m in state["values"].pop("messages")] == [
        ("human", "hello", "1"),
        ("ai", "hi", "2"),
    ]
    assert state["values"] == {
        "tags": ["a"],
        "id": "00000000-0000-0000-0000-000000000001",
        "at": "2024-02-29T00:00:00+00:00",
        "person": {"name": "Ada", "place": {"street": "Long Lane"}},
        "place": {"street": "Long Lane"},
        "colour": "red",
        "price": "1.50",
        "raw": "AA==",
        "raws": ["AA=="],
        "count": 2,
        "empty": None,
        "log": {"$undecoded": "DeltaChannel"},
    }
    output = {name: value for name, value in done.output.items() if name not in ("messages", "log")}
    assert output == {name: value for name, value in state["values"].items() if name != "log"}
    assert (state["status"], state["next"]) == ("interrupted", ["ask"])
    assert [question["value"] for question in state["interrupts"]] == [
        {"question": "go on?", "id": "00000000-0000-0000-0000-000000000002"}
    ]
    newest, *older = read["history"]
    assert (newest["checkpoint_id"], newest["run_id"]) == (state["checkpoint_id"], run.id)
    assert [entry["step"] for entry in (newest, *older)] == [3, 2, 1, 0, -1]
    assert [entry["parent_checkpoint_id"] for entry in (newest, *older)] == [
        *(entry["checkpoint_id"] for entry in older),
        None,
    ]


# Without one


def test_a_thread_that_no_worker_has_touched_has_no_values(
    producer: Producer, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("insert into threads (tenant, thread_id) values ('acme', 't')")

    state = producer.state("acme", "t")

    assert (state.values, state.next, state.interrupts, state.checkpoint_id) == ({}, (), (), None)
    assert producer.history("acme", "t") == []
    for tenant, thread_id in (("acme", "T"), ("globex", "t"), ("globex", "acme:t")):
        with pytest.raises(ThreadNotFound):
            producer.state(tenant, thread_id)


def test_the_state_is_the_newest_checkpoint_of_the_graph_itself(
    producer: Producer, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("insert into threads (tenant, thread_id) values ('acme', 't')")
    for namespace, checkpoint_id, value in (("", "1", "old"), ("", "2", "new"), ("child:1", "3", "inner")):
        checkpoint = json.dumps({"channel_values": {"a": value, "__start__": 1, "branch:to:b": None}})
        admin.execute(
            "insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint)"
            " values ('acme:t', %s, %s, %s)",
            (namespace, checkpoint_id, checkpoint),
        )

    state = producer.state("acme", "t")

    assert (state.checkpoint_id, state.values) == ("2", {"a": "new"})
    assert [entry["checkpoint_id"] for entry in producer.history("acme", "t", limit=1)] == ["2"]
    assert [entry["checkpoint_id"] for entry in producer.history("acme", "t", after="2")] == ["1"]
