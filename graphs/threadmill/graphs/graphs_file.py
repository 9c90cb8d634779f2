"""langgraph.json: which graphs there are, where their code is, and what their owner decided about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from threadmill.core.errors import GraphConfigInvalid
from threadmill.core.policy import GraphPolicy
from threadmill.graphs.source import Source


@dataclass(frozen=True)
class GraphsFile:
    """A langgraph.json that was read and found right; no graph was imported for it.

    folders: the dependencies that are folders; those that are requirements are installed by others.
    env: the file that holds the environment, or the variables themselves.
    """

    path: Path
    sources: Mapping[str, Source]
    policies: Mapping[str, GraphPolicy]
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

    def read(self) -> GraphsFile:
        content = self.mapping("", self.content())
        graphs = self.mapping("graphs", content.get("graphs"))
        if not graphs:
            raise self.wrong("graphs", "names no graph")
        return GraphsFile(
            path=self.path,
            sources={name: self.source(name, value) for name, value in graphs.items()},
            policies=self.policies(self.mapping("threadmill", content.get("threadmill", {})), list(graphs)),
            folders=self.folders(content.get("dependencies", [])),
            env=self.env(content.get("env", {})),
        )

    def wrong(self, where: str, reason: str) -> GraphConfigInvalid:
        return GraphConfigInvalid(str(self.path), f"{where}: {reason}" if where else reason)

    def content(self) -> object:
        try:
            return json.loads(self.path.read_text("utf-8"))
        except OSError as error:
            raise self.wrong(
                "", f"cannot be read ({error.strerror}); it says which graphs there are"
            ) from None
        except json.JSONDecodeError as error:
            raise self.wrong(
                "", f"is no JSON: line {error.lineno}, column {error.colno}: {error.msg}"
            ) from None
        except UnicodeDecodeError as error:
            raise self.wrong("", f"is not UTF-8: {error.reason} at byte {error.start}") from None

    def mapping(self, where: str, value: object) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(where, "must be an object")
        return value

    def source(self, name: str, value: object) -> Source:
        where = f"graphs.{name}"
        if isinstance(value, dict):
            where, value = f"{where}.path", value.get("path")
        if not isinstance(value, str):
            raise self.wrong(where, 'must be a string such as "./src/agent.py:graph"')
        source = Source(name, value, self.folder)
        if not source.place or not source.attribute.isidentifier():
            raise self.wrong(where, f'{value!r} must be "./file.py:name" or "package.module:name"')
        return source

    def policies(self, content: Mapping[str, Any], graphs: list[str]) -> Mapping[str, GraphPolicy]:
        for key in content.keys() - {"defaults", "graphs"}:
            raise self.wrong(f"threadmill.{key}", "unknown key; there are `defaults` and `graphs`")
        defaults = self.mapping("threadmill.defaults", content.get("defaults", {}))
        self.policy("threadmill.defaults", defaults)
        own = self.mapping("threadmill.graphs", content.get("graphs", {}))
        for name in own.keys() - set(graphs):
            raise self.wrong(f"threadmill.graphs.{name}", f"no such graph; there are {', '.join(graphs)}")
        policies = {}
        for name in graphs:
            where = f"threadmill.graphs.{name}"
            policies[name] = self.policy(where, {**defaults, **self.mapping(where, own.get(name, {}))})
        return policies

    def policy(self, where: str, values: Mapping[str, Any]) -> GraphPolicy:
        try:
            return GraphPolicy.model_validate(values)
        except ValidationError as error:
            problems = {}
            for problem in error.errors():
                unknown = problem["type"] == "extra_forbidden"
                known = ", ".join(GraphPolicy.model_fields)
                problems[f"{where}.{problem['loc'][0]}"] = (
                    f"unknown key; there are {known}" if unknown else problem["msg"]
                )
            raise self.wrong("", "; ".join(f"{at}: {what}" for at, what in problems.items())) from None

    def folders(self, value: object) -> tuple[Path, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong("dependencies", "must be a list of strings")
        folders = []
        for index, item in enumerate(value):
            folder = (self.folder / item).resolve()
            if folder.is_dir():
                folders.append(folder)
            elif item.startswith("."):
                raise self.wrong(f"dependencies[{index}]", f"there is no folder {item}")
        return tuple(folders)

    def env(self, value: object) -> Path | Mapping[str, str]:
        if isinstance(value, str):
            return self.folder / value
        return {name: str(text) for name, text in self.mapping("env", value).items()}
