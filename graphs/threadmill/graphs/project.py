"""Which source files are a graph's own, and what each file is called wherever the graph runs."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_SITES = ("site-packages", "dist-packages")
_STANDARD = tuple(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
_SAMPLES = "threadmill/graphs/samples/"


class Place(NamedTuple):
    """A source file. file: relative, the same on every machine; own: whether it is the graph's project's."""

    file: str
    own: bool


class Project:
    """The files that a graph is written in: all but the standard library, what is installed, and Threadmill.

    Paths are given relative to the folder of langgraph.json, or with the name of the root that they are
    beneath; libraries' as they are imported. No path tells where on a machine it is.
    """

    def __init__(
        self, folder: Path | None = None, roots: Iterable[Path] = (), packages: Iterable[Path] = ()
    ) -> None:
        """folder: of langgraph.json; roots: further folders of source files; packages: folders of the
        graph's own that may be installed among the libraries."""
        self._folder = None if folder is None else os.path.realpath(folder)
        self._roots = _longest_first(os.path.realpath(root) for root in roots)
        self._packages = [os.path.realpath(package) for package in packages]
        # Of thousands of failures the frames are in the same few files, and each costs a walk of the disk.
        self.place = lru_cache(maxsize=4096)(self._place)

    def _place(self, filename: str) -> Place:
        """The file that a code object names."""
        if filename.startswith("<") or not filename.endswith((".py", ".pyc", ".pyw", ".so", ".pyx")):
            # Generated code, which may be named after anything.
            return Place(filename if filename.isprintable() and "/" not in filename else "<generated>", False)
        path = os.path.realpath(filename)
        library = _library(path)
        own = library is None or library.startswith(_SAMPLES)
        own = own or any(_is_beneath(path, package) for package in self._packages)
        return Place(library or self._named(path), own)

    def _named(self, path: str) -> str:
        if self._folder is not None and _is_beneath(path, self._folder):
            return os.path.relpath(path, self._folder).replace(os.sep, "/")
        for root in self._roots:
            if _is_beneath(path, root):
                return os.path.relpath(path, Path(root).parent).replace(os.sep, "/")
        for entry in _longest_first(os.path.realpath(entry) for entry in sys.path if entry):
            if _is_beneath(path, entry):
                return os.path.relpath(path, entry).replace(os.sep, "/")
        return Path(path).name


def package_folder(module: str) -> Path | None:
    """The folder of the outermost regular package that the module is in; None where there is none.

    Nothing is imported. Threadmill's own samples are told by their path.
    """
    top, *inner = module.split(".")
    if top == "threadmill":
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    for location in spec.submodule_search_locations:
        folder = Path(location)
        for name in inner:
            if (folder / "__init__.py").is_file() or not (folder / name).is_dir():
                break
            folder /= name  # a namespace may be shared with libraries
        if (folder / "__init__.py").is_file():
            return folder
    return None


def _library(path: str) -> str | None:
    """The path as it is imported, of a file that is installed or Python's or Threadmill's own; else None."""
    parts = Path(path).parts
    for index in range(len(parts) - 1, 0, -1):
        if parts[index] in _SITES:
            return "/".join(parts[index + 1 :])
    for root in _threadmill():
        if _is_beneath(path, root):
            return os.path.relpath(path, Path(root).parent).replace(os.sep, "/")
    for root in _STANDARD:
        if _is_beneath(path, root):
            return os.path.relpath(path, root).replace(os.sep, "/")
    return None


@lru_cache(maxsize=1)
def _threadmill() -> tuple[str, ...]:
    return tuple(os.path.realpath(folder) for folder in sys.modules["threadmill"].__path__)


def _is_beneath(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _longest_first(folders: Iterable[str]) -> list[str]:
    return sorted(set(folders), key=len, reverse=True)
