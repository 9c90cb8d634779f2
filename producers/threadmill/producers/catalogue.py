"""What the workers have announced that they serve, as a producer keeps it for a few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jsonschema_rs
from sqlalchemy import select

from threadmill.core.errors import InvalidInput, UnknownGraph
from threadmill.core.models import Graph, table_of
from threadmill.core.policy import GraphPolicy
from threadmill.core.statement import Batch, Plan, Row, Step

_graphs = table_of(Graph)
_ALL = select(
    _graphs.c.name, _graphs.c.version, _graphs.c.input_schema, _graphs.c.channels, _graphs.c.policy
).order_by(_graphs.c.name)


class Announced(NamedTuple):
    """One graph: its version, what its input must fit, the channels of its state, and its policy."""

    version: str
    validator: Any
    channels: tuple[str, ...]
    policy: GraphPolicy

    def check_input(self, value: Any) -> None:
        """Raises InvalidInput with the place and the reason where the value does not fit the schema."""
        for error in self.validator.iter_errors(value):
            leaves = list(_leaves(error))
            # Where there are alternatives, the value is likely meant to be the one that it fits furthest.
            place = max((leaf.instance_path for leaf in leaves), key=len)
            path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
            reasons = dict.fromkeys(_reason(leaf) for leaf in leaves if leaf.instance_path == place)
            raise InvalidInput("input", path, " or ".join(reasons))


def _leaves(error: Any) -> Iterator[Any]:
    """The error itself, or those of the alternatives of which the value fits none."""
    alternatives = [leaf for branch in getattr(error.kind, "context", ()) for leaf in branch]
    if not alternatives:
        yield error
    for alternative in alternatives:
        yield from _leaves(alternative)


def _reason(error: Any) -> str:
    """What the schema asks for, without the value itself, which must not reach logs."""
    match error.kind.name:
        case "required":
            return f"{error.kind.property!r} is missing"
        case "type":
            return f"must be of type {' or '.join(error.kind.types)}"
        case name:
            return f"does not fit the graph's input schema ({name})"


class Catalogue:
    """The announced graphs, read again after `refresh` seconds or when an unknown one is asked for."""

    def __init__(self, refresh: float) -> None:
        self._refresh = refresh
        self._graphs: dict[str, Announced] = {}
        self._read_at = float("-inf")

    def knows(self, name: str) -> bool:
        """Whether it can tell of this one without asking the database."""
        return name in self._graphs and time.monotonic() - self._read_at < self._refresh

    def read(self) -> Plan[None]:
        """The plan that reads the graphs anew."""
        (rows,) = yield Batch([Step(_ALL, {})])
        self._graphs = {row["name"]: _announced(row, self._graphs.get(row["name"])) for row in rows}
        self._read_at = time.monotonic()

    def graph(self, name: str) -> Announced:
        """The graph. Raises UnknownGraph, naming the known ones."""
        try:
            return self._graphs[name]
        except KeyError:
            raise UnknownGraph(name, tuple(self._graphs)) from None


def _announced(row: Row, known: Announced | None) -> Announced:
    if known is not None and known.version == row["version"]:
        validator = known.validator
    else:
        validator = jsonschema_rs.validator_for(row["input_schema"])
    return Announced(
        row["version"], validator, tuple(row["channels"]), GraphPolicy.model_validate(row["policy"])
    )
