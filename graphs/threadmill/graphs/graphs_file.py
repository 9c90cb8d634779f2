"""langgraph.json: which graphs there are, where their code is, and what their owner decided about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from threadmill.core.errors import GraphConfigInvalid
from threadmill.core.policy import GraphPolicy
from threadmill.graphs.key_lines import KeyPath, key_lines, line_of
from threadmill.graphs.source import Source

_SOURCE_FORM = '"./file.py:name" or "package.module:name"'


@dataclass(frozen=True)
class GraphsFile:
    """A langgraph.json that was read and found right; no graph was imported for it.

    classifiers, redacts, fingerprints: of the graphs whose policy names one.
    folders: the dependencies that are folders; those that are requirements are installed by others.
    env: the file that holds the environment, or the variables themselves.
    """

    path: Path
    sources: Mapping[str, Source]
    policies: Mapping[str, GraphPolicy]
    classifiers: Mapping[str, Source]
    redacts: Mapping[str, Source]
    fingerprints: Mapping[str, Source]
    folders: tuple[Path, ...]
    env: Path | Mapping[str, str]


def read_graphs_file(path: Path) -> GraphsFile:
    """The file's content. Raises GraphConfigInvalid, which says what is wrong, and where in the file.

    Keys of LangGraph's own that mean nothing here (`python_version`, `store`, `auth`, …) are left alone.
    """
    return _Reader(path).read()


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.resolve().parent
        self.lines: Mapping[KeyPath, int] = {}

    def read(self) -> GraphsFile:
        content = self.mapping((), self.content())
        graphs = self.mapping(("graphs",), content.get("graphs"))
        if not graphs:
            raise self.wrong(("graphs",), "names no graph")
        sources = {name: self.graph_source(name, value) for name, value in graphs.items()}
        own = self.mapping(("threadmill",), content.get("threadmill", {}))
        policies = self.policies(own, list(graphs))
        return GraphsFile(
            path=self.path,
            sources=sources,
            policies=policies,
            classifiers=self.functions(own, "classifier", policies),
            redacts=self.functions(own, "redact", policies),
            fingerprints=self.functions(own, "fingerprint", policies),
            folders=self.folders(content.get("dependencies", [])),
            env=self.env(content.get("env", {})),
        )

    def wrong(self, where: KeyPath, reason: str) -> GraphConfigInvalid:
        return GraphConfigInvalid(str(self.path), self.at(where, reason))

    def at(self, where: KeyPath, reason: str) -> str:
        """The reason with the key that it is about, and the line of that key where the file holds it."""
        line = line_of(where, self.lines)
        parts = (f"line {line}" if line is not None else "", _dotted(where), reason)
        return ": ".join(part for part in parts if part)

    def content(self) -> object:
        try:
            text = self.path.read_text("utf-8")
            content = json.loads(text)
        except OSError as error:
            raise self.wrong(
                (), f"cannot be read ({error.strerror}); it says which graphs there are"
            ) from None
        except json.JSONDecodeError as error:
            raise self.wrong(
                (), f"is no JSON: line {error.lineno}, column {error.colno}: {error.msg}"
            ) from None
        except UnicodeDecodeError as error:
            raise self.wrong((), f"is not UTF-8: {error.reason} at byte {error.start}") from None
        self.lines = key_lines(text)
        return content

    def mapping(self, where: KeyPath, value: object) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(where, "must be an object")
        return value

    def graph_source(self, name: str, value: object) -> Source:
        where: KeyPath = ("graphs", name)
        if isinstance(value, dict):
            where, value = (*where, "path"), value.get("path")
        if not isinstance(value, str):
            raise self.wrong(where, 'must be a string such as "./src/agent.py:graph"')
        return self.source(name, value, where)

    def source(self, graph: str, text: str, where: KeyPath) -> Source:
        source = Source(graph, text, self.folder)
        if not source.place or not source.attribute.isidentifier():
            raise self.wrong(where, f"{text!r} must be {_SOURCE_FORM}")
        return source

    def policies(self, content: Mapping[str, Any], graphs: list[str]) -> Mapping[str, GraphPolicy]:
        for key in content.keys() - {"defaults", "graphs"}:
            raise self.wrong(("threadmill", key), "unknown key; there are `defaults` and `graphs`")
        where: KeyPath = ("threadmill", "defaults")
        defaults = self.mapping(where, content.get("defaults", {}))
        self.policy(where, defaults)
        own = self.mapping(("threadmill", "graphs"), content.get("graphs", {}))
        for name in own.keys() - set(graphs):
            raise self.wrong(("threadmill", "graphs", name), f"no such graph; there are {', '.join(graphs)}")
        policies = {}
        for name in graphs:
            where = ("threadmill", "graphs", name)
            policies[name] = self.policy(where, {**defaults, **self.mapping(where, own.get(name, {}))})
        return policies

    def policy(self, where: KeyPath, values: Mapping[str, Any]) -> GraphPolicy:
        try:
            return GraphPolicy.model_validate(values)
        except ValidationError as error:
            # By key, as a value that may be of several types fails once for each of them.
            problems = {(*where, *problem["loc"][:1]): _reason(problem) for problem in error.errors()}
        raise GraphConfigInvalid(
            str(self.path), "; ".join(self.at(key, reason) for key, reason in problems.items())
        )

    def functions(
        self, content: Mapping[str, Any], key: str, policies: Mapping[str, GraphPolicy]
    ) -> Mapping[str, Source]:
        """Where the functions are that the policies name under this key."""
        named = {name: getattr(policy, key) for name, policy in policies.items()}
        return {
            name: self.source(name, text, self.policy_key(content, name, key))
            for name, text in named.items()
            if text is not None
        }

    def policy_key(self, content: Mapping[str, Any], graph: str, key: str) -> KeyPath:
        """Where the value that holds for the graph is written: among its own, or among the defaults."""
        if key in content.get("graphs", {}).get(graph, {}):
            return ("threadmill", "graphs", graph, key)
        return ("threadmill", "defaults", key)

    def folders(self, value: object) -> tuple[Path, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(("dependencies",), "must be a list of strings")
        folders = []
        for index, item in enumerate(value):
            folder = (self.folder / item).resolve()
            if folder.is_dir():
                folders.append(folder)
            elif item.startswith("."):
                raise self.wrong(("dependencies", index), f"there is no folder {item}")
        return tuple(folders)

    def env(self, value: object) -> Path | Mapping[str, str]:
        if isinstance(value, str):
            return self.folder / value
        return {name: str(text) for name, text in self.mapping(("env",), value).items()}


def _reason(problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key; there are {', '.join(GraphPolicy.model_fields)}"
    if problem["type"] == "value_error":  # of a validator of ours; pydantic puts "Value error, " before it
        return str(problem["ctx"]["error"])
    return problem["msg"]


def _dotted(where: KeyPath) -> str:
    """graphs.agent.path, dependencies[0]."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in where).removeprefix(".")
