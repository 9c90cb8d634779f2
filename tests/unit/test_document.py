"""A value becomes JSON text that says the same, or an error that says what is wrong and where."""

from __future__ import annotations

import datetime
import enum
import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.core.document import MAX_DEPTH, to_json
from threadmill.core.errors import InvalidInput

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_every_json_value_comes_back_as_it_was(value: Any) -> None:
    assert json.loads(to_json("input", value)) == value


def test_a_tuple_is_an_array() -> None:
    assert to_json("input", {"goto": ("a", ("b",))}) == '{"goto":["a",["b"]]}'


class Word(enum.StrEnum):
    HELLO = "hello"


class Digit(enum.IntEnum):
    SEVEN = 7


def test_words_and_numbers_of_an_enum_are_what_they_stand_for() -> None:
    assert to_json("input", {Word.HELLO: Digit.SEVEN}) == '{"hello":7}'


@pytest.mark.parametrize(
    "value",
    [
        {1},
        frozenset(),
        b"bytes",
        object(),
        1j,
        uuid.UUID(int=0),
        datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC),
        ValueError("no value"),
        range(3),
        iter(()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_json_is_named_with_its_type_and_its_place(value: object) -> None:
    with pytest.raises(InvalidInput) as raised:
        to_json("input", {"messages": [{"content": "x"}, {"content": [None, value]}]})

    error = raised.value
    assert (error.field, error.path) == ("input", ".messages[1].content[1]")
    assert error.reason == f"{type(value).__name__} is no JSON value"
    assert str(error).startswith("input.messages[1].content[1]: ")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused(number: float) -> None:
    with pytest.raises(InvalidInput, match=r"^context\.score: (nan|inf|-inf) is no JSON number$"):
        to_json("context", {"score": number})


@pytest.mark.parametrize("key", [1, None, True, 1.5, (), b"k"], ids=repr)
def test_a_key_that_is_no_string_is_refused(key: object) -> None:
    with pytest.raises(InvalidInput, match=r"^input\.a: the key .* not a string$"):
        to_json("input", {"a": {key: 1}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\x00b", r"holds NUL \(U\+0000\), which Postgres cannot keep"),
        ("é\ud800", r"holds the lone surrogate U\+D800, which is no text"),
        ("\udfff", r"holds the lone surrogate U\+DFFF, which is no text"),
    ],
)
def test_text_that_nothing_can_keep_is_refused_in_values_and_keys(text: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^input\[1\]: {reason}$"):
        to_json("input", ["fine", text])
    with pytest.raises(InvalidInput, match=rf"^input\.a: {reason}$"):
        to_json("input", {"a": {text: 1}})


def test_a_pair_of_surrogates_that_python_joined_is_text() -> None:
    assert json.loads(to_json("input", "\U0001f600")) == "\U0001f600"


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def test_nesting_is_limited() -> None:
    to_json("input", nested(MAX_DEPTH))
    with pytest.raises(InvalidInput, match="nested deeper than 200 levels"):
        to_json("input", nested(MAX_DEPTH + 1))


def test_a_value_that_holds_itself_is_refused() -> None:
    value: dict[str, Any] = {}
    value["self"] = value
    with pytest.raises(InvalidInput, match="nested deeper"):
        to_json("input", value)


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**5000], ids=["2^64", "-2^63-1", "10^5000"])
def test_a_whole_number_that_langgraph_cannot_keep_is_refused(number: int) -> None:
    to_json("input", {"least": -(2**63), "most": 2**64 - 1})
    with pytest.raises(InvalidInput, match=r"^input\.n: a whole number beyond 64 bits"):
        to_json("input", {"n": number})


@given(st.text("aé€😀", max_size=40))
def test_the_limit_counts_bytes_of_utf_8_to_the_last(text: str) -> None:
    size = len(json.dumps(text, ensure_ascii=False).encode())

    assert len(to_json("input", text, max_bytes=size).encode()) == size
    with pytest.raises(InvalidInput, match=f"^input: {size} bytes of JSON, the limit is {size - 1}$"):
        to_json("input", text, max_bytes=size - 1)
