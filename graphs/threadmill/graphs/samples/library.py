"""The docstrings of Python's standard library, searchable."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Modules that import everywhere without a side effect or a warning. That leaves out what opens a browser or a
# window, what is deprecated, and what one platform lacks.
_MODULES = """
    abc argparse array ast asyncio atexit base64 binascii bisect bz2 calendar cmath cmd code codecs
    collections collections.abc colorsys compileall concurrent.futures configparser contextlib
    contextvars copy csv ctypes dataclasses datetime decimal difflib dis doctest email email.message
    email.utils enum errno faulthandler filecmp fileinput fnmatch fractions ftplib functools gc getopt
    getpass gettext glob graphlib gzip hashlib heapq hmac html html.parser http.client http.cookies
    http.server imaplib importlib importlib.metadata importlib.resources inspect io ipaddress itertools
    json keyword linecache locale logging logging.config logging.handlers lzma mailbox marshal math
    mimetypes mmap multiprocessing numbers operator os os.path pathlib pdb pickle pickletools pkgutil
    platform plistlib poplib pprint pstats queue quopri random re reprlib runpy sched secrets select
    selectors shelve shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat statistics
    string stringprep struct subprocess symtable sys sysconfig tarfile tempfile textwrap threading time
    timeit tokenize tomllib trace traceback tracemalloc types typing unicodedata unittest unittest.mock
    urllib.error urllib.parse urllib.request urllib.robotparser uuid venv warnings wave weakref
    webbrowser xml.dom.minidom xml.etree.ElementTree xml.sax xmlrpc.client xmlrpc.server zipapp zipfile
    zipimport zlib zoneinfo
"""
MODULES = tuple(_MODULES.split())

_INDEXED_CHARACTERS = 1500
_STOPWORDS = """
    a about actually an and answer any are as at back be between but by called can class classes compare
    comparing could did differ difference different differs do does doing done each else equivalent for
    from function functions get give given going happen happens has have how i if in into is it its just
    library like make me mean module modules my need of on one or out over python really same should so
    some standard such tell than that the their them then there these they this those to up use used
    using want was way what when where which who why will with without work works would you your
"""
_IGNORED = frozenset(_STOPWORDS.split())
_ENDINGS = ("ations", "ation", "ions", "ion", "ings", "ing", "ers", "er", "ed", "ies", "es", "s", "e", "y")
_SYNONYMS = {"dictionary": "dict", "dictionaries": "dict", "folder": "directory", "folders": "directory"}


@dataclass(frozen=True)
class Passage:
    """One docstring. name: dotted, beginning with the module; line: its first line, "" if it has none."""

    module: str
    name: str
    line: str


class Library:
    """A BM25 index over the docstrings of MODULES. Takes a second or so to build."""

    def __init__(self) -> None:
        try:
            import bm25s  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'the sample graphs search with bm25s: pip install "threadmill[dev]"', name=error.name
            ) from error
        # On import it sets its own logger to DEBUG.
        logging.getLogger("bm25s").setLevel(logging.WARNING)
        self._passages: list[Passage] = []
        self._shelves: dict[str, range] = {}
        self._definers: dict[str, list[str]] = defaultdict(list)
        corpus: list[list[str]] = []
        for module in MODULES:
            start = len(corpus)
            for name, docstring in _docstrings(module):
                self._passages.append(Passage(module, name, _first_line(docstring)))
                corpus.append([*words(name), *words(docstring[:_INDEXED_CHARACTERS])])
            self._shelves[module] = range(start, len(corpus))
            for passage in self._passages[start:]:
                self._definers[passage.name.rpartition(".")[2]].append(module)
        self._index = bm25s.BM25()
        self._index.index(corpus, show_progress=False)

    def search(self, question: str, module: str, limit: int = 3) -> list[Passage]:
        """The passages of one module that answer best, best first; its own docstring if none does."""
        shelf = self._shelves[module]
        named = set(words(module))  # in every name there, so they tell nothing apart
        scores = self._scores([word for word in words(question) if word not in named])
        ranked = sorted(shelf, key=lambda number: -scores[number])[:limit]
        return [self._passages[n] for n in ranked if scores[n] > 0] or [self._passages[shelf.start]]

    def find_module(self, question: str) -> str | None:
        """The module whose docstrings answer best; None if no word of the question is in any."""
        scores = self._scores(words(question))
        best = {
            module: sum(sorted(scores[shelf.start : shelf.stop])[-3:])
            for module, shelf in self._shelves.items()
        }
        module = max(best, key=lambda name: best[name])
        return module if best[module] > 0 else None

    def defining(self, name: str) -> Sequence[str]:
        """The modules that hold a function, class or method of this name; none if it is unknown."""
        return self._definers.get(name, ())

    def _scores(self, query: list[str]) -> Any:
        return self._index.get_scores_from_ids(self._index.get_tokens_ids(query))


_building = threading.Lock()
_built: list[Library] = []


async def library() -> Library:
    """The library of this process; the first call builds it, in a thread so that the event loop goes on."""
    return _built[0] if _built else await asyncio.to_thread(_build)


def _build() -> Library:
    with _building:
        if not _built:
            _built.append(Library())
        return _built[0]


def words(text: str) -> list[str]:
    """The words that are searched for: `csv.DictReader` gives csv, dictreader, dict, reader."""
    found = []
    for word in re.findall(r"[A-Za-z0-9]+", text):
        parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", word)
        found += [word] if len(parts) < 2 else [word, *parts]
    return [_stem(_SYNONYMS.get(word, word)) for word in map(str.lower, found) if word not in _IGNORED]


def _stem(word: str) -> str:
    """The word without its ending: write, writes, writer and writing are one."""
    ending = next((e for e in _ENDINGS if word.endswith(e) and len(word) - len(e) >= 3), "")
    return word if word.endswith("ss") else word.removesuffix(ending)


def _docstrings(module_name: str) -> Iterator[tuple[str, str]]:
    """The module's docstring first, then those of its public functions and classes, and of their methods."""
    module = importlib.import_module(module_name)
    yield module_name, _own_docstring(module)
    # Not getattr: the hook by which a module offers a deprecated name also warns about it.
    for name in getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]:
        value = vars(module).get(name)
        if not (inspect.isclass(value) or inspect.isroutine(value)) or not _belongs(value, module):
            continue
        yield f"{module_name}.{name}", _own_docstring(value)
        if inspect.isclass(value):
            for method, function in vars(value).items():
                if not method.startswith("_") and callable(function) and _own_docstring(function):
                    yield f"{module_name}.{name}.{method}", _own_docstring(function)


def _own_docstring(value: object) -> str:
    """The docstring, "" if there is none; inspect.getdoc would give the base class's then."""
    return inspect.cleandoc(value.__doc__) if isinstance(value.__doc__, str) else ""


def _belongs(value: Any, module: Any) -> bool:
    if hasattr(module, "__all__"):
        return True
    defined = getattr(value, "__module__", None) or module.__name__
    return bool(defined.strip("_") == module.__name__ or defined.startswith("_"))


def _first_line(docstring: str) -> str:
    return next((line.strip() for line in docstring.splitlines() if line.strip()), "")
