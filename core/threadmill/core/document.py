"""JSON documents that users hand over: checked at the door, with the place of what is wrong."""

from __future__ import annotations

import json
import math
from typing import Any

from threadmill.core.errors import InvalidInput

MAX_DEPTH = 200
# The whole numbers of msgpack, in which LangGraph keeps a state.
SMALLEST, LARGEST = -(2**63), 2**64 - 1

# `json.dumps` with these options would make one each time.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_json(field: str, value: Any, *, max_bytes: int | None = None) -> str:
    """The value as JSON text that Postgres and LangGraph both take. Raises InvalidInput.

    Refused are other types than JSON's (tuples pass as arrays), keys that are no strings, NaN and infinity,
    whole numbers beyond 64 bits, NUL and lone surrogates, nesting beyond 200 levels, and more than
    `max_bytes` of UTF-8.
    """
    _check(field, "", value, 0)
    text = _ENCODER.encode(value)
    if max_bytes is not None and len(text) * 4 > max_bytes:
        size = len(text.encode())
        if size > max_bytes:
            raise InvalidInput(field, "", f"{size} bytes of JSON, the limit is {max_bytes}")
    return text


def _check(field: str, path: str, value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInput(field, path, f"nested deeper than {MAX_DEPTH} levels")
    match value:
        case None | bool():
            pass
        case int():
            if not SMALLEST <= value <= LARGEST:
                raise InvalidInput(field, path, "a whole number beyond 64 bits, which LangGraph cannot keep")
        case str():
            _check_text(field, path, value)
        case float():
            if not math.isfinite(value):
                raise InvalidInput(field, path, f"{value} is no JSON number")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise InvalidInput(field, path, f"the key {key!r} is {type(key).__name__}, not a string")
                _check_text(field, path, key)
                _check(field, f"{path}.{key}", item, depth + 1)
        case list() | tuple():
            for index, item in enumerate(value):
                _check(field, f"{path}[{index}]", item, depth + 1)
        case _:
            raise InvalidInput(field, path, f"{type(value).__name__} is no JSON value")


def _check_text(field: str, path: str, text: str) -> None:
    if "\x00" in text:
        raise InvalidInput(field, path, "holds NUL (U+0000), which Postgres cannot keep")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise InvalidInput(field, path, f"holds the lone surrogate U+{code:04X}, which is no text") from None
