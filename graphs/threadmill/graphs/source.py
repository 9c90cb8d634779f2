"""Where a graph's code is, and how it is imported."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from threadmill.core.errors import GraphLoadFailed


@dataclass(frozen=True)
class Source:
    """One value under `graphs` in langgraph.json: `./src/agent.py:graph` or `package.module:graph`.

    text: the value as written; folder: the folder of langgraph.json, to which a file is relative.
    """

    graph: str
    text: str
    folder: Path

    @property
    def attribute(self) -> str:
        """The name of the graph, or of its factory, in the module."""
        return self.text.rpartition(":")[2]

    @property
    def place(self) -> str:
        """What stands before the colon: a path or a dotted module name."""
        return self.text.rpartition(":")[0]

    @property
    def file(self) -> Path | None:
        """The Python file that is named; None for a module."""
        if "/" in self.place or self.place.endswith(".py"):
            return (self.folder / self.place).resolve()
        return None

    def load(self) -> ModuleType:
        """The module, imported at most once in this process. Raises GraphLoadFailed."""
        try:
            return importlib.import_module(self.place) if self.file is None else self._load_file(self.file)
        except GraphLoadFailed:
            raise
        except (Exception, SystemExit) as error:
            raise self.failure(error) from error

    def failure(self, error: BaseException) -> GraphLoadFailed:
        """The error by which the caller learns what the user's code raised, and at which line."""
        return GraphLoadFailed(self.graph, self._origin(error), f"{type(error).__name__}: {error}")

    def show(self, file: str | Path) -> str:
        """The file's path as its owner knows it: relative to langgraph.json where it lies beneath."""
        path = Path(file)
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)

    def _load_file(self, file: Path) -> ModuleType:
        if file.suffix != ".py":
            raise GraphLoadFailed(self.graph, self.place, "is no Python file")
        if not file.is_file():
            raise GraphLoadFailed(self.graph, self.place, "there is no such file")
        name = module_name(file, self.folder)
        loaded = sys.modules.get(name)
        if loaded is not None and loaded.__file__ == str(file):
            return loaded
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Before it runs: its classes are looked up by module name while they are being defined.
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    def _origin(self, error: BaseException) -> str:
        """`file:line` of the innermost frame in the user's own code, else where the graph is said to be."""
        if isinstance(error, SyntaxError) and error.filename:
            return f"{self.show(error.filename)}:{error.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if self._is_users(Path(frame.filename)):
                return f"{self.show(frame.filename)}:{frame.lineno}"
        return self.place

    def _is_users(self, file: Path) -> bool:
        if file == self.file:
            return True
        module = sys.modules.get(self.place) if self.file is None else None
        if module is not None and module.__file__ == str(file):
            return True
        return file.is_relative_to(self.folder) and "site-packages" not in file.parts


def module_name(file: Path, folder: Path) -> str:
    """The name under which a graph's file is in `sys.modules`.

    Checkpoints name the types that they hold by module, so it must be the same in every process and on
    every machine: it is made from the path relative to langgraph.json. The digest keeps `a/b.py` and
    `a_b.py` apart.
    """
    relative = Path(os.path.relpath(file, folder)).as_posix()
    words = re.sub(r"\W+", "_", relative.removesuffix(".py")).strip("_")
    return f"graph_{words}_{hashlib.sha256(relative.encode()).hexdigest()[:8]}"
