"""Whether each graph that langgraph.json names can be served, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass

from threadmill.core.errors import GraphLoadFailed
from threadmill.graphs.description import GraphDescription
from threadmill.graphs.registry import Registry


@dataclass(frozen=True)
class GraphCheck:
    """What was found for one graph.

    location: its value in langgraph.json; description: None if it cannot be loaded; error: then why not,
    with file, line and exception.
    """

    name: str
    location: str
    ok: bool
    description: GraphDescription | None
    error: str | None


async def check(registry: Registry) -> list[GraphCheck]:
    """One entry for each graph, in the file's order; all of them are imported."""
    return [await _check(registry, name) for name in registry.names]


async def _check(registry: Registry, name: str) -> GraphCheck:
    location = registry.location(name)
    try:
        return GraphCheck(name, location, True, await registry.describe(name), None)
    except GraphLoadFailed as error:
        return GraphCheck(name, location, False, None, str(error))
