"""One process of the bare contestant: the stock AsyncPostgresSaver, one pool, so many runs at once.

Started as `python -m bench.bare_loop DATABASE_URL POOL_SIZE`. Reads orders from stdin, a JSON object a line,
{"threads": […], "turns": n}, and answers each with a line: the seconds that each run took, as a JSON array.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.pregel import Pregel
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from bench.chat import chat
from bench.load import input_of


async def main(database_url: str, at_once: int) -> None:
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
        database_url, kwargs=options, min_size=at_once, max_size=at_once, open=False
    )
    async with pool:
        graph = chat.compile(checkpointer=AsyncPostgresSaver(pool))
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            taken: list[float] = []
            for turn in range(order["turns"]):
                await _wave(graph, order["threads"], turn, at_once, taken)
            print(json.dumps(taken), flush=True)


async def _wave(
    graph: Pregel[Any, Any, Any, Any], threads: list[str], turn: int, at_once: int, taken: list[float]
) -> None:
    left = iter(threads)

    async def serve() -> None:
        for thread_id in left:
            started = time.perf_counter()
            config = RunnableConfig(configurable={"thread_id": thread_id})
            await graph.ainvoke(input_of(thread_id, turn), config)
            taken.append(time.perf_counter() - started)

    await asyncio.gather(*(serve() for _ in range(at_once)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
