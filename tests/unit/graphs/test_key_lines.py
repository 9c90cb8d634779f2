"""The line of each key of a JSON text, whatever the text is laid out like."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from threadmill.graphs.key_lines import KeyPath, key_lines, line_of

SPACES = st.text(" \t\n\r", max_size=3)
# What would fool a search of the text: structure inside of strings, escapes, keys that are equal.
STRINGS = st.one_of(
    st.sampled_from(["a", "b", '"', "\\", '{"a":', '":', "]", ",", "\n"]), st.text(max_size=5)
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), STRINGS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=20,
)


class Writer:
    """Writes a value as JSON with drawn white space, and keeps on which line it put each key."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.text = ""
        self.lines: dict[KeyPath, int] = {}

    def write(self, value: Any, path: KeyPath = ()) -> None:
        self.space()
        if isinstance(value, dict):
            self.members("{}", list(value.items()), path, keyed=True)
        elif isinstance(value, list):
            self.members("[]", list(enumerate(value)), path, keyed=False)
        else:
            self.text += json.dumps(value, ensure_ascii=self.data.draw(st.booleans()))
        self.space()

    def members(self, brackets: str, members: list[tuple[Any, Any]], path: KeyPath, *, keyed: bool) -> None:
        self.text += brackets[0]
        for count, (key, value) in enumerate(members):
            self.text += "," if count else ""
            self.space()
            if keyed:
                self.lines[(*path, key)] = self.text.count("\n") + 1
                self.text += json.dumps(key)
                self.space()
                self.text += ":"
            self.write(value, (*path, key))
        self.space()
        self.text += brackets[1]

    def space(self) -> None:
        self.text += self.data.draw(SPACES)


@given(value=VALUES, data=st.data())
def test_each_key_is_found_on_its_line(value: Any, data: st.DataObject) -> None:
    writer = Writer(data)
    writer.write(value)
    json.loads(writer.text)
    assert key_lines(writer.text) == writer.lines


def test_of_a_key_that_stands_twice_it_is_the_later_one() -> None:
    assert key_lines('{"a": 1,\n"a": 2}') == {("a",): 2}


def test_a_key_that_is_not_there_has_the_line_of_what_it_would_stand_in() -> None:
    lines = key_lines('{"a":\n{"b": [\n{"c": 1}]}}')
    assert line_of(("a", "b", 0, "c"), lines) == 3
    assert line_of(("a", "b", 7, "d"), lines) == 2
    assert line_of(("a", "x", "y"), lines) == 1
    assert line_of(("x", "y"), lines) is None
    assert line_of((), lines) is None
