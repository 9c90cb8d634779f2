"""Which modules a question is about, be it only by way of what was said before."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from threadmill.graphs.samples.library import MODULES, Library

# Module names that are also plain words; they count only if marked: `re`, re.sub, "the re module".
_PLAIN_WORDS = frozenset(
    {"array", "calendar", "code", "collections", "copy", "decimal", "email", "fractions", "html", "inspect"}
    | {"keyword", "locale", "numbers", "operator", "platform", "profile", "queue", "random", "re", "secrets"}
    | {"select", "selectors", "signal", "site", "socket", "statistics", "string", "time", "trace", "types"}
    | {"traceback", "typing", "warnings", "wave"}
)
_TOKEN = re.compile(r"(?P<tick>`?)(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?P<call>\(?)")
_LOOKS_LIKE_CODE = re.compile(r"_|[a-z][A-Z]")
_MARK_AFTER = re.compile(r"`?\s+(?:module|package|library)\b")
_REFERENCE = re.compile(
    r"\b(?:it|its|they|them|their|that|this|these|those|one|ones|there|both|each)\b", re.I
)
_ELLIPSIS = re.compile(r"(?:and|or|but|also|then|what about|how about|what else|why not|which of)\b", re.I)
_COMPARISON = re.compile(
    r"\b(?:differ|differs|difference|compare|compares|compared|versus|vs|prefer)\b", re.I
)


def resolve(question: str, earlier: Sequence[Sequence[str]], library: Library) -> list[str]:
    """The modules, in the order of their mention; empty if nothing can be found.

    earlier: the modules of the thread's earlier turns, oldest first.
    """
    last = list(earlier[-1]) if earlier else []
    refers = bool(last) and bool(_ELLIPSIS.match(question) or _REFERENCE.search(question))
    named = mentioned(question)
    if named:
        return _unique([*last, *named]) if refers and len(named) == 1 and _compares(question) else named
    defined = _defined(question, last, library)
    if refers and not (defined and _compares(question)):
        return [module for module in last if module in defined] or last
    if defined:
        return _unique([*last, *defined]) if refers else defined
    found = library.find_module(question)
    return [found] if found else last


def mentioned(question: str) -> list[str]:
    """The modules that the question names."""
    found = []
    for token in _TOKEN.finditer(question):
        name = token["name"]
        module = next((prefix for prefix in _prefixes(name) if prefix in MODULES), None)
        if module is None:
            continue
        marked = token["tick"] or name != module or _MARK_AFTER.match(question, token.end("name"))
        if marked or module not in _PLAIN_WORDS:
            found.append(module)
    return _unique(found)


def _defined(question: str, last: Sequence[str], library: Library) -> list[str]:
    """The modules of what looks like code: `namedtuple`, run_in_executor, DictReader, gather(."""
    found = []
    for token in _TOKEN.finditer(question):
        if not (token["tick"] or token["call"] or _LOOKS_LIKE_CODE.search(token["name"])):
            continue
        for part in token["name"].split("."):
            if modules := library.defining(part):
                found.append(next((module for module in modules if module in last), modules[0]))
                break
    return _unique(found)


def _compares(question: str) -> bool:
    return bool(_COMPARISON.search(question))


def _prefixes(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
