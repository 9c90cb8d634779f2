"""What `enqueue` takes: each impossible value is refused by name, with its field and its place."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.core.errors import (
    InvalidInput,
    InvalidOption,
    InvalidRequest,
    InvalidTenant,
    InvalidThreadId,
    ReservedKey,
)
from threadmill.core.policy import GraphPolicy
from threadmill.core.settings import Settings
from threadmill.producers.request import RunRequest, check_request

SETTINGS = Settings(max_input_bytes=100)
LATER = datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC)
PAST = datetime.datetime(1999, 1, 1, tzinfo=datetime.UTC)
NAIVE = datetime.datetime(2999, 1, 1)


def check(**changes: Any) -> RunRequest:
    return check_request(
        SETTINGS, **{"graph": "echo", "input": {"n": 1}, "tenant": "acme", "thread_id": "t", **changes}
    )


def command(**fields: Any) -> dict[str, Any]:
    return {"input": None, "command": fields}


@pytest.mark.parametrize(
    ("changes", "error", "place"),
    [
        ({"input": {"a": [{1, 2}]}}, InvalidInput, "input.a[0]: set"),
        ({"input": {"a": object()}}, InvalidInput, "input.a: object"),
        ({"input": {"a": float("nan")}}, InvalidInput, "input.a: nan"),
        ({"input": {"a": "\x00"}}, InvalidInput, "input.a: holds NUL"),
        ({"input": {"a": "\ud800"}}, InvalidInput, "input.a: holds the lone surrogate"),
        ({"input": "x" * 99}, InvalidInput, "input: 101 bytes of JSON, the limit is 100"),
        ({"context": {"a": "x" * 100}}, InvalidInput, "context: 108 bytes"),
        ({"metadata": {"a": "\x00"}}, InvalidInput, "metadata.a: holds NUL"),
        ({"config": {"configurable": {"a": {1}}}}, InvalidInput, "config.configurable.a: set"),
        (command(update={"a": {1}}), InvalidInput, "command.update.a: set"),
        ({"metadata": ["a"]}, InvalidInput, "metadata: must be an object, not list"),
        ({"metadata": ""}, InvalidInput, "metadata: must be an object, not str"),
        ({"context": [1]}, InvalidInput, "context: must be an object, not list"),
        ({"config": []}, InvalidInput, "config: must be an object, not list"),
        ({"config": {"confgurable": {}}}, InvalidInput, "config.confgurable: unknown; known are config"),
        (
            {"config": {"configurable": None}},
            InvalidInput,
            "config.configurable: must be an object, not None",
        ),
        ({"config": {"metadata": "x"}}, InvalidInput, "config.metadata: must be an object, not str"),
        ({"config": {"configurable": {1: 2}}}, InvalidInput, "config.configurable: the key 1 is int"),
        (command(), InvalidInput, "command: is empty"),
        (command(resume=1, jump="a"), InvalidInput, "command.jump: unknown"),
        (command(goto=["a", 7]), InvalidInput, "command.goto[1]: must be a node"),
        (command(goto={"node": "a"}), InvalidInput, "command.goto[0]: must be a node"),
        ({"command": {"resume": 1}}, InvalidOption, "command='…': give either input or command"),
        ({"command": "resume", "input": None}, InvalidInput, "command: must be an object, not str"),
        ({"graph": ""}, InvalidOption, "graph='': must be the name"),
        ({"graph": 7}, InvalidOption, "graph=7: must be the name"),
        ({"deadline": PAST}, InvalidOption, "deadline='1999-01-01T00:00:00+00:00': lies in the past"),
        (
            {"deadline": LATER, "run_at": LATER},
            InvalidOption,
            "deadline='2999-01-01T00:00:00+00:00': lies bef",
        ),
        ({"deadline": NAIVE}, InvalidOption, "deadline='2999-01-01T00:00:00': has no time zone"),
        ({"run_at": NAIVE}, InvalidOption, "run_at='2999-01-01T00:00:00': has no time zone"),
        ({"run_at": "2999-01-01"}, InvalidOption, "run_at='2999-01-01': must be a datetime"),
        ({"run_at": 17}, InvalidOption, "run_at=17: must be a datetime"),
        ({"priority": 101}, InvalidOption, "priority=101: must be a whole number from -100 to 100"),
        ({"priority": True}, InvalidOption, "priority=True: must be a whole number"),
        ({"priority": 1.0}, InvalidOption, "priority=1.0: must be a whole number"),
        ({"max_attempts": 0}, InvalidOption, "max_attempts=0: must be a whole number from 1 to 100"),
        (
            {"durability": "sometimes"},
            InvalidOption,
            "durability='sometimes': must be one of sync, async, exit",
        ),
        ({"durability": []}, InvalidOption, "durability=[]: must be one of"),
        ({"multitask_strategy": "queue"}, InvalidOption, "multitask_strategy='queue': must be one of"),
        ({"multitask_strategy": None}, InvalidOption, "multitask_strategy=None: must be one of"),
        ({"idempotency_key": ""}, InvalidOption, "idempotency_key='': must be 1 to 255"),
        ({"idempotency_key": "k" * 256}, InvalidOption, "idempotency_key='kkk"),
        ({"idempotency_key": "a\x00"}, InvalidOption, "idempotency_key='a\\x00': must be"),
        ({"idempotency_key": "\ud800"}, InvalidOption, "idempotency_key='\\ud800': must be"),
        ({"idempotency_key": 7}, InvalidOption, "idempotency_key=7: must be"),
    ],
)
def test_what_cannot_be_accepted_is_named(
    changes: dict[str, Any], error: type[InvalidRequest], place: str
) -> None:
    with pytest.raises(error) as raised:
        check(**changes)

    assert str(raised.value).startswith(place)


@pytest.mark.parametrize("tenant", ["", "a" * 65, "a:b", "a b", "é", "a\n", "a/b", "%", None, 7])
def test_a_tenant_outside_the_alphabet_is_refused(tenant: object) -> None:
    with pytest.raises(InvalidTenant, match=r"must match \[A-Za-z0-9\._-\]\{1,64\}"):
        check(tenant=tenant)


@pytest.mark.parametrize(
    ("thread_id", "reason"),
    [
        ("", "must not be empty"),
        ("t" * 256, "is longer than 255 characters"),
        ("a\x00", "holds the character U+0000"),
        ("a\nb", "holds the character U+000A"),
        ("\x7f", "holds the character U+007F"),
        ("\x85", "holds the character U+0085"),
        ("\ud800", "holds the character U+D800"),
        (None, "must be a string"),
        (7, "must be a string"),
    ],
)
def test_a_thread_id_that_names_no_thread_is_refused(thread_id: object, reason: str) -> None:
    with pytest.raises(InvalidThreadId) as raised:
        check(thread_id=thread_id)

    assert raised.value.reason == reason


@pytest.mark.parametrize("thread_id", ["t" * 255, "a:b", "%_", "ticket 42", "Ж", "😀", "‮", "\ue000"])
def test_any_other_text_is_a_thread_id(thread_id: str) -> None:
    assert check(thread_id=thread_id).thread_id == thread_id


@pytest.mark.parametrize("part", ["configurable", "metadata"])
@pytest.mark.parametrize(
    "key",
    [
        "tenant",
        "thread_id",
        "run_id",
        "checkpoint_id",
        "checkpoint_ns",
        "checkpoint_map",
        "__pregel_checkpointer",
        "__x",
        "__",
    ],
)
def test_a_key_that_reaches_other_threads_state_is_refused(part: str, key: str) -> None:
    with pytest.raises(ReservedKey) as raised:
        check(config={part: {"mine": 1, key: "x"}})

    assert (raised.value.key, raised.value.part) == (key, part)
    assert str(raised.value).startswith(f"config.{part}['{key}'] is set by Threadmill or LangGraph")


@given(st.text(min_size=1, max_size=12))
def test_the_reserved_keys_are_all_that_is_reserved(key: str) -> None:
    try:
        request = check(config={"configurable": {key: 1}})
    except ReservedKey:
        assert key.startswith("__")
    except InvalidInput:
        assert not key.isprintable()
    else:
        assert json.loads(request.documents["config"]) == {"configurable": {key: 1}}


def test_documents_are_kept_as_json_text_with_the_order_of_their_keys() -> None:
    request = check(input={"b": 1, "a": (2, None)}, metadata={"é": 1}, context={}, config=None)

    assert request.documents == {"input": '{"b":1,"a":[2,null]}', "metadata": '{"é":1}', "context": "{}"}


def test_a_run_with_neither_input_nor_command_goes_on_from_where_the_thread_stands() -> None:
    assert set(check(input=None).documents) == {"metadata"}


def test_a_record_is_one_json_object_that_holds_everything() -> None:
    request = check(
        input={'quote"': "\u2028"},
        idempotency_key='k"',
        priority=-3,
        run_at=PAST,
        deadline=LATER,
        durability="sync",
        multitask_strategy="reject",
        on_dead_letter="hold",
        stream_mode=["values", "custom", "values"],
        stream_subgraphs=True,
    )

    policy = GraphPolicy(max_attempts=5, deadline=60)
    record = json.loads(request.record(4, first=False, policy=policy))

    assert record["input"] == {'quote"': "\u2028"}
    assert record["metadata"] == {}
    assert {name: record[name] for name in record if name not in ("input", "metadata", "payload_hash")} == {
        "id": str(request.id),
        "thread_id": "t",
        "back": 4,
        "first": False,
        "graph": "echo",
        "priority": -3,
        "max_attempts": 5,
        "run_at": "1999-01-01T00:00:00+00:00",
        "deadline": "2999-01-01T00:00:00+00:00",
        "lifetime": 60,
        "idempotency_key": 'k"',
        "stream_mode": ["custom", "values"],
        "stream_subgraphs": True,
        "multitask_strategy": "reject",
        "durability": "sync",
        "on_dead_letter": "hold",
    }
    assert json.loads(check(max_attempts=7).record(0, first=True, policy=policy))["max_attempts"] == 7


def test_a_record_leaves_out_what_most_runs_have() -> None:
    request = check(input={"a": None})

    record = request.record(0, first=True, policy=GraphPolicy(max_attempts=3))

    assert json.loads(record) == {
        "id": request.id,
        "thread_id": "t",
        "graph": "echo",
        "max_attempts": 3,
        "input": {"a": None},
        "metadata": {},
    }


def test_the_payload_is_what_the_run_would_do() -> None:
    def payload(**changes: Any) -> str | None:
        return check(idempotency_key="k", **changes).payload_hash

    same = payload(input={"a": 1, "b": 2})
    assert payload(input={"b": 2, "a": 1}) == same
    assert payload(input={"a": 1, "b": 2}, metadata={"trace": "x"}, priority=5) == same
    others = [
        payload(input={"a": 1, "b": 3}),
        payload(input={"a": 1, "b": 2}, thread_id="u"),
        payload(input={"a": 1, "b": 2}, graph="other"),
        payload(input={"a": 1, "b": 2}, context={"k": 1}),
        payload(input={"a": 1, "b": 2}, config={"tags": ["x"]}),
        payload(input=None, command={"resume": {"a": 1, "b": 2}}),
        payload(input=None),
    ]
    assert len({same, *others}) == 8
    assert check(input={"a": 1}).payload_hash is None
