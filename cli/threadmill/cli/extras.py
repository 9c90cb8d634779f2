"""Imports of what a plain `pip install threadmill` leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadmill.core.errors import ExtraMissing


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """For imports only: raises ExtraMissing where a module is not there that this extra brings."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module == "threadmill":
            raise
        raise ExtraMissing(extra, module) from None
