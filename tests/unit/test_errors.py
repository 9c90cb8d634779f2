"""Every error keeps its fields, survives pickling, and stands in the tree at the head of its module."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from threadmill.core import errors
from threadmill.core.errors import ThreadmillError

CLASSES = [
    item for item in vars(errors).values() if inspect.isclass(item) and issubclass(item, ThreadmillError)
]
SAMPLES = {
    "str": "acme",
    "object": "no tenant!",
    "int": 3,
    "float": 2.5,
    "Sequence[str]": ["one", "two"],
    "str | None": None,
}


def made(kind: type[ThreadmillError]) -> ThreadmillError:
    if kind.__init__ is Exception.__init__:
        return kind()
    parameters = list(inspect.signature(kind).parameters.values())
    return kind(*(SAMPLES[str(parameter.annotation)] for parameter in parameters))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_with_its_fields_and_its_text(kind: type[ThreadmillError]) -> None:
    error = made(kind)

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is kind
    assert again.args == error.args
    assert vars(again) == vars(error)
    assert str(again) == str(error)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_says_each_of_its_fields_but_what_is_none(kind: type[ThreadmillError]) -> None:
    error = made(kind)

    for value in vars(error).values():
        for part in value if isinstance(value, tuple) else [value]:
            assert part is None or str(part) in str(error)


def test_an_error_without_fields_says_what_it_was_given() -> None:
    assert str(errors.Conflict("two of a kind")) == "two of a kind"


def test_a_field_that_may_be_missing_changes_the_text() -> None:
    missing = errors.DatabaseNotMigrated("db:5432/x", None, "0002")
    older = errors.DatabaseNotMigrated("db:5432/x", "0001", "0002")

    assert "holds no Threadmill tables" in str(missing)
    assert "is at revision 0001, expected 0002" in str(older)
    assert "known graphs" in str(errors.UnknownGraph("x", ["a"]))
    assert "threadmill worker" in str(errors.UnknownGraph("x", []))


def test_the_tree_at_the_head_of_the_module_is_the_tree_of_the_classes() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ((?:│   |    )*)(?:[├└]── )?([A-Z]\w+)\b", line):
            root = match[2] == "ThreadmillError"
            depth = 0 if root else len(match[1]) // 4 + 1
            path = [*path[:depth], match[2]]
            if not root:
                drawn[match[2]] = path[-2]

    assert drawn == {kind.__name__: kind.__base__.__name__ for kind in CLASSES if kind is not ThreadmillError}
