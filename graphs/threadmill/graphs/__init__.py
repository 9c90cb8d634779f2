"""The graphs that a fleet serves: the registry of langgraph.json, and the samples."""

from __future__ import annotations

import os

# Before langgraph is first imported: its serialiser otherwise rebuilds whatever object a checkpoint names, so
# a crafted blob runs code. Strict, it rebuilds the types of the graph's own state, which langgraph collects
# when the graph is compiled, and it reads this variable once, at import.
os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")

from threadmill.graphs.check import GraphCheck, check
from threadmill.graphs.classifier import Classifier, GraphClassifier, Kind, Verdict, classify
from threadmill.graphs.dependency import OPEN, USED, DependencyTimeout, dependency, dependency_of
from threadmill.graphs.description import GraphDescription
from threadmill.graphs.failure_hooks import Fingerprinter, Redactor
from threadmill.graphs.project import Project
from threadmill.graphs.registry import Registry
from threadmill.graphs.retry import retry

__all__ = [
    "OPEN",
    "USED",
    "Classifier",
    "DependencyTimeout",
    "Fingerprinter",
    "GraphCheck",
    "GraphClassifier",
    "GraphDescription",
    "Kind",
    "Project",
    "Redactor",
    "Registry",
    "Verdict",
    "check",
    "classify",
    "dependency",
    "dependency_of",
    "retry",
]
