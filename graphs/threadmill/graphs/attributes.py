"""Reading what foreign exceptions carry: nothing about them is certain, and reading must not raise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def read(thing: object, name: str) -> Any:
    """The attribute; None where there is none, or where it is a property that raises."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def item(thing: object, *keys: str) -> Any:
    """What lies in nested dicts beneath these keys; None where one of them is missing or no dict."""
    for key in keys:
        thing = thing.get(key) if isinstance(thing, dict) else None
    return thing


def entries(thing: object) -> Iterator[tuple[Any, Any]]:
    """The pairs of any kind of mapping: a dict, httpx's Headers, an email.message.Message."""
    try:
        yield from thing.items()  # type: ignore[attr-defined]
    except Exception:
        return
