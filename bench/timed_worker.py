"""One worker process of Threadmill's that writes down how long each hot transaction took.

Each line of the file that it is given is a word and the seconds from the first statement's sending to the
answer: `claim` (for a bell), `take` (of what is ready), `finish` (with the claim of the next), `checkpoint`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from threadmill.core import statement
from threadmill.core.settings import Settings
from threadmill.core.transitions import claim, pick_many, succeed
from threadmill.workers.worker import run_worker
from threadmill.workers.write_group import WriteGroup

Call = Callable[..., Coroutine[Any, Any, Any]]


def timed(call: Call, name: Callable[..., str | None], tell: Callable[[str], object]) -> Call:
    """The call, which tells how long it took where `name` has a word for its arguments."""

    async def timing(*args: Any) -> Any:
        begun = time.perf_counter()
        result = await call(*args)
        if (word := name(*args)) is not None:
            tell(f"{word} {time.perf_counter() - begun:.7f}\n")
        return result

    return timing


def main(file: Path) -> int:
    # A transition is built once, so it is known by its identity.
    words = {id(claim()): "claim", id(pick_many()): "take", id(succeed()): "finish"}

    def word_of(_: Any, batch: statement.Batch) -> str | None:
        return next((words[id(step.statement)] for step in batch.steps if id(step.statement) in words), None)

    with file.open("a", buffering=1) as times:
        statement.send_async = timed(statement.send_async, word_of, times.write)
        WriteGroup._send = timed(WriteGroup._send, lambda *_: "checkpoint", times.write)  # type: ignore[method-assign]
        return run_worker(Settings())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
