"""The naive Celery application, and its worker: what one writes in an afternoon.

Started as `python -m bench.naive_worker BROKER_URL RESULTS_URL DATABASE_URL CONCURRENCY`.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import psycopg
from celery import Celery
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.pregel import Pregel
from psycopg.rows import dict_row

from bench.chat import chat_blocking


@cache
def compiled(database_url: str) -> Pregel[Any, Any, Any, Any]:
    """The graph over a connection of this process's own, made at its first task, after the fork."""
    # As PostgresSaver.from_conn_string connects.
    connection = psycopg.connect(database_url, autocommit=True, prepare_threshold=0, row_factory=dict_row)
    return chat_blocking.compile(checkpointer=PostgresSaver(connection))


def turn_task(broker_url: str, results_url: str, database_url: str) -> Any:
    """The task that takes a turn, of an application with Celery's own defaults."""
    app = Celery("bench", broker=broker_url, backend=results_url)

    def turn(thread_id: str, value: dict[str, Any]) -> str:
        config = RunnableConfig(configurable={"thread_id": thread_id})
        output = compiled(database_url).invoke(value, config)
        return str(output["messages"][-1].content)

    return app.task(turn, name="bench.turn", lazy=False)


if __name__ == "__main__":
    *urls, concurrency = sys.argv[1:]
    turn_task(*urls).app.worker_main(["worker", "--pool=prefork", f"--concurrency={concurrency}"])
