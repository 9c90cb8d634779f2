"""What a worker tells the others about a graph, so that nobody has to import it to enqueue."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from langgraph.pregel import Pregel

from threadmill.core.policy import GraphPolicy


@dataclass(frozen=True)
class GraphDescription:
    """A graph without its code.

    version: a digest of the file that holds it; it changes with any edit of that file.
    topology_hash: a digest of its nodes and edges; it changes when a checkpoint may no longer fit.
    input_schema: the JSON schema of an input; `{}` accepts all.
    channels: the keys of its state.
    nodes: the names of its nodes.
    """

    name: str
    version: str
    topology_hash: str
    input_schema: Mapping[str, Any]
    channels: tuple[str, ...]
    nodes: tuple[str, ...]
    policy: GraphPolicy


def digest(content: bytes) -> str:
    """16 hexadecimal digits of the content's SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def topology_hash(graph: Pregel[Any, Any, Any, Any]) -> str:
    """A digest of the nodes, the edges and their conditions, subgraphs included; equal in all processes."""
    return digest("\n".join(sorted(_topology(graph, ""))).encode())


def _topology(graph: Pregel[Any, Any, Any, Any], prefix: str) -> Iterator[str]:
    drawn = graph.get_graph()
    for node in drawn.nodes:
        yield f"node {prefix}{node}"
    for edge in drawn.edges:
        condition = f" if {edge.data}" if edge.conditional else ""
        yield f"edge {prefix}{edge.source} -> {prefix}{edge.target}{condition}"
    for name, subgraph in graph.get_subgraphs():
        # A remote graph would have to be asked over the network.
        if isinstance(subgraph, Pregel):
            yield from _topology(subgraph, f"{prefix}{name}:")
