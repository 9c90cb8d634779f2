"""The graphs that langgraph.json names, ready to run."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from dotenv import dotenv_values
from langchain_core.runnables import RunnableConfig
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel

from threadmill.core.errors import GraphLoadFailed
from threadmill.core.policy import GraphPolicy
from threadmill.graphs.classifier import Classifier, checked, classify
from threadmill.graphs.description import GraphDescription, digest, topology_hash
from threadmill.graphs.failure_hooks import Fingerprinter, Redactor, checked_fingerprint, checked_redact
from threadmill.graphs.graphs_file import GraphsFile, read_graphs_file
from threadmill.graphs.input_schema import input_schema
from threadmill.graphs.project import Project, package_folder
from threadmill.graphs.source import Source

AnyPregel: TypeAlias = Pregel[Any, Any, Any, Any]


class Registry:
    """The graphs of one langgraph.json. Reading it imports none of them; asking for one does."""

    def __init__(self, file: GraphsFile) -> None:
        self._file = file
        self._graphs: dict[str, AnyPregel] = {}
        self._loading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._classifiers: dict[str, Classifier] = {}
        self._redactors: dict[str, Redactor] = {}
        self._fingerprinters: dict[str, Fingerprinter] = {}
        self._projects: dict[str, Project] = {}

    @classmethod
    def read(cls, path: Path) -> Registry:
        """The registry of this file. Raises GraphConfigInvalid."""
        return cls(read_graphs_file(path))

    @property
    def names(self) -> tuple[str, ...]:
        """The graphs' names, in the file's order."""
        return tuple(self._file.sources)

    def activate(self) -> None:
        """Make this process one in which the graphs can be imported.

        The dependencies that are folders go to the end of `sys.path`, where they hide no installed module;
        the file's `env` goes into the environment, where what is already set wins. A missing env file is no
        error: in production the variables are set by other means.
        """
        for folder in self._file.folders:
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        env = self._file.env
        for name, value in (dotenv_values(env) if isinstance(env, Path) else env).items():
            if value is not None:
                os.environ.setdefault(name, value)

    def location(self, name: str) -> str:
        """Where the file says that the graph is, as written there. Raises GraphLoadFailed if it does not."""
        return self._source(name).text

    def policy(self, name: str) -> GraphPolicy:
        """What the graph's owner decided. Raises GraphLoadFailed for an unknown graph."""
        self._source(name)
        return self._file.policies[name]

    def classifier(self, name: str) -> Classifier:
        """What says of an exception what it means for a run of the graph. Raises GraphLoadFailed.

        The one that the graph's policy names, made safe to call (see `checked`), or Threadmill's own.
        """
        self._source(name)
        if name not in self._classifiers:
            source = self._file.classifiers.get(name)
            self._classifiers[name] = (
                classify
                if source is None
                else checked(_function(source, "classifier", "the exception"), name)
            )
        return self._classifiers[name]

    def redactor(self, name: str) -> Redactor | None:
        """What the graph's policy names to take secrets out of the text of a failure, made safe to call;
        None if it names nothing. Raises GraphLoadFailed."""
        self._source(name)
        source = self._file.redacts.get(name)
        if source is not None and name not in self._redactors:
            function = _function(source, "redact", "the text")
            self._redactors[name] = checked_redact(function, name)
        return self._redactors.get(name)

    def fingerprinter(self, name: str) -> Fingerprinter | None:
        """What the graph's policy names to name the group of a failure, made safe to call; None if it names
        nothing. Raises GraphLoadFailed."""
        self._source(name)
        source = self._file.fingerprints.get(name)
        if source is not None and name not in self._fingerprinters:
            function = _function(source, "fingerprint", "the exception", "the node")
            self._fingerprinters[name] = checked_fingerprint(function, name)
        return self._fingerprinters.get(name)

    def project(self, name: str) -> Project:
        """Which files are the graph's own. Raises GraphLoadFailed for an unknown graph."""
        source = self._source(name)
        if name not in self._projects:
            folders = self._file.folders if source.file is None else (*self._file.folders, source.file.parent)
            package = package_folder(source.place) if source.file is None else None
            packages = () if package is None else (package,)
            self._projects[name] = Project(source.folder, folders, packages)
        return self._projects[name]

    async def graph(self, name: str, config: RunnableConfig | None = None) -> AnyPregel:
        """The compiled graph. Raises GraphLoadFailed.

        It is loaded once; only a factory that takes a config is called each time, with this config.
        """
        if name in self._graphs:
            return self._graphs[name]
        source = self._source(name)
        async with self._loading[name]:
            if name in self._graphs:  # it was loaded while this caller waited
                return self._graphs[name]
            value = _attribute(source)
            if not _is_factory(value):
                self._graphs[name] = _compiled(source, value)
            elif not _takes_config(source, value):
                self._graphs[name] = _compiled(source, await _call(source, value))
            if name in self._graphs:
                return self._graphs[name]
        return _compiled(source, await _call(source, value, config or RunnableConfig(configurable={})))

    async def describe(self, name: str) -> GraphDescription:
        """What workers announce about the graph. Raises GraphLoadFailed.

        The functions that the graph's policy names are loaded too: one that cannot be is found before the
        first run needs it.
        """
        graph = await self.graph(name)
        self.classifier(name)
        self.redactor(name)
        self.fingerprinter(name)
        source = self._source(name)
        try:
            return GraphDescription(
                name=name,
                version=_version(source),
                topology_hash=topology_hash(graph),
                input_schema=input_schema(graph),
                channels=tuple(graph.stream_channels_list),
                nodes=tuple(graph.nodes),
                policy=self.policy(name),
            )
        except Exception as error:
            raise source.failure(error) from error

    def _source(self, name: str) -> Source:
        if name not in self._file.sources:
            raise GraphLoadFailed(name, str(self._file.path), f"not there; it names {', '.join(self.names)}")
        return self._file.sources[name]


def _attribute(source: Source) -> Any:
    module = source.load()
    if not hasattr(module, source.attribute):
        where = source.show(module.__file__ or source.place)
        raise GraphLoadFailed(source.graph, where, f"holds nothing named {source.attribute!r}")
    return getattr(module, source.attribute)


def _function(source: Source, key: str, *takes: str) -> Callable[..., Any]:
    """The function that a policy's key names. takes: what its arguments are."""
    try:
        value: Callable[..., Any] = _attribute(source)
        if not callable(value) or inspect.iscoroutinefunction(value):
            kind = "an async function" if callable(value) else type(value).__name__
            raise source.failure(TypeError(f"must be a plain function, this is {kind}"))
        if not _takes(value, len(takes)):
            number = "one argument" if len(takes) == 1 else f"{len(takes)} arguments"
            raise source.failure(TypeError(f"must take {number}, {' and '.join(takes)}"))
    except GraphLoadFailed as error:
        raise GraphLoadFailed(error.graph, error.location, f"{key}: {error.reason}") from error
    return value


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # written in C, with nothing to be read of what it takes
        return True
    return True


def _is_factory(value: object) -> bool:
    return callable(value) and not isinstance(value, Pregel | StateGraph)


def _takes_config(source: Source, factory: Callable[..., Any]) -> bool:
    """Whether the factory wants a config: it has one parameter that must be given, or one named config."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError as error:
        raise source.failure(error) from error
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
        names = ", ".join(p.name for p in required)
        raise source.failure(TypeError(f"a factory takes a config or nothing, this one wants {names}"))
    return bool(required) or any(p.name == "config" for p in positional[:1])


async def _call(source: Source, factory: Callable[..., Any], *arguments: object) -> object:
    try:
        made = factory(*arguments)
        return await made if inspect.isawaitable(made) else made
    except (Exception, SystemExit) as error:
        raise source.failure(error) from error


def _compiled(source: Source, value: object) -> AnyPregel:
    try:
        graph = value.compile(name=source.graph) if isinstance(value, StateGraph) else value
    except Exception as error:
        raise source.failure(error) from error
    if not isinstance(graph, Pregel):
        raise source.failure(TypeError(f"{type(graph).__name__} is neither a graph nor a factory of one"))
    if graph.checkpointer is False:
        raise source.failure(ValueError("compiled with checkpointer=False, so its runs would not be durable"))
    return graph


def _version(source: Source) -> str:
    file = source.load().__file__
    return digest(Path(file).read_bytes()) if file else ""
