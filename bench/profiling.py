"""Where one Threadmill worker's CPU time goes under the load: py-spy's samples, counted."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.arena import Arena
from bench.child import ROOT
from bench.load import Load, threads_named
from bench.mill import WORKER, Mill

SAMPLES_PER_SECOND = 500
START_UP = "importlib._bootstrap"  # a stack with such a frame belongs to an import

# Whose a frame is, by a part of its file's path; the first that fits.
OWNERS = {
    "threadmill/": "threadmill",
    "langgraph/checkpoint": "langgraph checkpoint",
    "langgraph": "langgraph",
    "langchain_core": "langchain",
    "psycopg_pool": "psycopg pool",
    "psycopg": "psycopg",
    "celery": "celery",
    "kombu": "kombu",
    "billiard": "celery",
    "redis/": "redis",
    "structlog": "structlog",
    "logging/": "logging",
    "asyncio/": "asyncio",
    "concurrent/": "asyncio",
    "sqlalchemy": "sqlalchemy",
    "pydantic": "pydantic",
}


class PySpyMissing(Exception):
    """There is no py-spy on the PATH or beside this Python."""

    def __str__(self) -> str:
        return "py-spy is not installed: pip install py-spy"


class Stack(NamedTuple):
    """A stack, from its thread to its innermost frame ("function (file:line)"), and how often it was seen."""

    frames: tuple[str, ...]
    samples: int


class Profile(NamedTuple):
    """What was sampled, and the milliseconds of CPU that the worker spent on a run meanwhile."""

    stacks: list[Stack]
    cpu_ms: float
    runs: int


def profile(arena: Arena, load: Load) -> Profile:
    """The profile of one worker process that does the whole load, all of it enqueued at once."""
    found = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if found is None:
        raise PySpyMissing
    output = arena.folder / "stacks.txt"
    options = [
        "--format",
        "raw",
        "--rate",
        str(SAMPLES_PER_SECOND),
        "--threads",
        "--full-filenames",
        "--gil",
        "--nonblocking",
    ]
    argv = [found, "record", *options, "--output", str(output), "--", *WORKER]
    with Mill(workers=1, argv=argv).running(arena, load) as fleet:
        before = _cpu(fleet.workers[0])
        fleet.serve_at_once(threads_named("thread", load.threads), load.turns)
        cpu_ms = (_cpu(fleet.workers[0]) - before) / load.runs * 1e3
        (worker,) = fleet.workers[0].children()
        worker.terminate()
        worker.wait(30)
        fleet.workers[0].wait(30)
    return Profile(list(read_stacks(output.read_text().splitlines())), cpu_ms, load.runs)


def view(found: Profile, top: int) -> RenderableType:
    """The profile as tables: by thread, by owner, and by function, all of them and ours alone."""
    total = sum(stack.samples for stack in found.stacks)
    own, inclusive = counted(found.stacks)
    owners: Counter[str] = Counter()
    for frame, samples in own.items():
        owners[owner(frame)] += samples
    threads: Counter[str] = Counter()
    for stack in found.stacks:
        threads[_thread(stack.frames[0])] += stack.samples
    ours = by_part(found.stacks)

    def ms(samples: int) -> str:
        return f"{samples / total * found.cpu_ms:.3f}"

    def listed(title: str, rows: Counter[str], *more: Counter[str]) -> Table:
        made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        made.add_column("ms a run", justify="right")
        for _ in more:
            made.add_column("with callees", justify="right")
        made.add_column("", overflow="fold")
        for name, samples in rows.most_common(top):
            made.add_row(ms(samples), *(ms(column[name]) for column in more), short(name))
        return made

    return Group(
        Text(f"{found.cpu_ms:.2f} ms of CPU a run, {found.runs} runs, {total} samples"),
        listed("By thread", threads),
        listed("By owner of the innermost frame", owners),
        listed(f"The {top} functions with the most time of their own", own, inclusive),
        listed("By innermost frame of Threadmill's, what the libraries do for it included", ours, inclusive),
    )


def counted(stacks: Iterable[Stack]) -> tuple[Counter[str], Counter[str]]:
    """Samples by function: those in which it was innermost, and those in which it was there at all."""
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    for stack in stacks:
        functions = [_function(frame) for frame in stack.frames[1:]] or [stack.frames[0]]
        own[functions[-1]] += stack.samples
        inclusive.update(dict.fromkeys(functions, stack.samples))
    return own, inclusive


def by_part(stacks: Iterable[Stack]) -> Counter[str]:
    """Samples by the innermost function of Threadmill's; those without one by their thread."""
    parts: Counter[str] = Counter()
    for stack in stacks:
        functions = [_function(frame) for frame in stack.frames[1:]]
        ours = [function for function in functions if owner(function) == "threadmill"]
        parts[ours[-1] if ours else f"none ({_thread(stack.frames[0])})"] += stack.samples
    return parts


def _function(frame: str) -> str:
    """The frame without its line: "function (file)"."""
    return re.sub(r":\d+\)$", ")", frame)


def _thread(frame: str) -> str:
    """The thread's name, those of one thread pool taken together."""
    return re.sub(r"^thread \(\w+\):? ?", "", re.sub(r"[_-]\d+$", "", frame))


def owner(function: str) -> str:
    """Whose code it is."""
    return next((name for part, name in OWNERS.items() if part in function), "python")


def short(function: str) -> str:
    """The function with as much of its path as tells it apart."""
    return re.sub(r"\((?:.*/site-packages/|.*/lib/python[\d.]+/)", "(", function.replace(f"{ROOT}/", ""))


def _cpu(recorder: psutil.Process) -> float:
    (worker,) = recorder.children()
    times = worker.cpu_times()
    return float(times.user + times.system)


def read_stacks(lines: Iterable[str]) -> Iterator[Stack]:
    """The stacks of py-spy's raw format, without those of the start."""
    for line in lines:
        text, _, samples = line.rpartition(" ")
        if START_UP not in text:
            yield Stack(tuple(text.split(";")), int(samples))
