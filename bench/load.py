"""How much is asked of each contestant, and what must be in the states afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.chat import reply

GRAPH = "chat"


@dataclass(frozen=True)
class Load:
    """One round's runs are so many turns on each of so many threads.

    samples: runs, one at a time, for the latencies. singles: enqueued one by one for the rate; batches: of
    1,000, enqueued each at once for the rate.
    processes, at_once: of the scale-out, each with a round's runs. waiting: runs that wait, in so many
    processes, for so many seconds. idle, flooded: seconds for which the small tenants come by. flood: runs of
    the tenant that floods. weighted: runs of each that has a weight. places: turns of the thread that grows.
    finished: runs to which a ledger grows, beside which a transaction is then held open for so many seconds.
    dead_letters: among so many pages are read, each so many times (looks). replays: letters that are drained,
    with each of these windows.
    """

    threads: int = 200
    turns: int = 5
    samples: int = 400
    singles: int = 1_000
    batches: int = 5
    rounds: int = 3
    processes: Sequence[int] = (1, 2, 4)
    at_once: Sequence[int] = (1, 2, 4, 8, 16, 32)
    waiting: Sequence[tuple[int, int, float]] = ((1_000, 1, 10.0), (10_000, 2, 90.0))
    idle: int = 10
    flooded: int = 30
    flood: int = 10_000
    weighted: int = 1_000
    places: Sequence[int] = (10, 50, 100, 200, 300, 400, 500, 1_000)
    finished: int = 1_000_000
    held: float = 600
    dead_letters: int = 1_000_000
    looks: int = 15
    replays: int = 10_000
    windows: Sequence[int] = (64, 256)

    @property
    def runs(self) -> int:
        return self.threads * self.turns


QUICK = Load(
    threads=40,
    turns=2,
    samples=40,
    singles=100,
    batches=1,
    rounds=1,
    processes=(1, 2),
    at_once=(8,),
    waiting=((200, 1, 2.0),),
    idle=2,
    flooded=3,
    flood=1_000,
    weighted=800,
    places=(5, 10),
    finished=20_000,
    held=5,
    dead_letters=20_000,
    looks=3,
    replays=400,
    windows=(64,),
)

BATCH = 1_000


def threads_named(name: str, count: int) -> list[str]:
    """`count` thread ids of this name."""
    return [f"{name}-{number}" for number in range(count)]


def said(thread_id: str, turn: int) -> str:
    """What the user says at this turn, the first being 0."""
    return f"turn {turn} of {thread_id}"


def input_of(thread_id: str, turn: int) -> dict[str, Any]:
    """The graph's input at this turn."""
    return {"messages": [{"role": "user", "content": said(thread_id, turn)}]}


def transcript(thread_id: str, turns: int) -> list[str]:
    """The texts of a thread's messages after so many turns, each once and in order."""
    texts = []
    for turn in range(turns):
        text = said(thread_id, turn)
        texts += [text, reply(text, 2 * turn + 1)]
    return texts


def split(threads: Sequence[str], parts: int) -> list[list[str]]:
    """The threads in so many parts of about the same size."""
    return [list(threads[part::parts]) for part in range(parts)]
