"""JSON documents that users hand over: checked at the door, with the place of what is wrong."""

from __future__ import annotations

import math
from typing import Any

import pydantic_core

from threadmill.core.errors import InvalidInput

MAX_DEPTH = 200
# The whole numbers of msgpack, in which LangGraph keeps a state.
SMALLEST, LARGEST = -(2**63), 2**64 - 1


def to_json(field: str, value: Any, *, max_bytes: int | None = None) -> str:
    """The value as JSON text that Postgres and LangGraph both take. Raises InvalidInput.

    Refused are other types than JSON's (tuples pass as arrays), keys that are no strings, NaN and infinity,
    whole numbers beyond 64 bits, NUL and lone surrogates, nesting beyond 200 levels, and more than
    `max_bytes` of UTF-8.
    """
    _check(field, None, value, 0)
    text = pydantic_core.to_json(value)  # a fifth of what `json` takes, most of it for each call
    if max_bytes is not None and len(text) > max_bytes:
        raise InvalidInput(field, "", f"{len(text)} bytes of JSON, the limit is {max_bytes}")
    return text.decode()


# Where a value stands, innermost first: made for every value, and read for one that is wrong.
_Place = tuple["_Place", str | int] | None


def _check(field: str, place: _Place, value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInput(field, _path(place), f"nested deeper than {MAX_DEPTH} levels")
    match value:
        case str():
            if "\x00" in value or not value.isascii():
                _check_text(field, place, value)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    reason = f"the key {key!r} is {type(key).__name__}, not a string"
                    raise InvalidInput(field, _path(place), reason)
                if "\x00" in key or not key.isascii():
                    _check_text(field, place, key)
                _check(field, (place, key), item, depth + 1)
        case list() | tuple():
            for index, item in enumerate(value):
                _check(field, (place, index), item, depth + 1)
        case None | bool():
            pass
        case int():
            if not SMALLEST <= value <= LARGEST:
                reason = "a whole number beyond 64 bits, which LangGraph cannot keep"
                raise InvalidInput(field, _path(place), reason)
        case float():
            if not math.isfinite(value):
                raise InvalidInput(field, _path(place), f"{value} is no JSON number")
        case _:
            raise InvalidInput(field, _path(place), f"{type(value).__name__} is no JSON value")


def _path(place: _Place) -> str:
    parts = []
    while place is not None:
        place, part = place
        parts.append(f"[{part}]" if isinstance(part, int) else f".{part}")
    return "".join(reversed(parts))


def _check_text(field: str, place: _Place, text: str) -> None:
    if "\x00" in text:
        raise InvalidInput(field, _path(place), "holds NUL (U+0000), which Postgres cannot keep")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"holds the lone surrogate U+{ord(text[error.start]):04X}, which is no text"
        raise InvalidInput(field, _path(place), reason) from None
