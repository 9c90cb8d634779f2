"""One thread that grows: what a turn costs, and what it leaves in the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row

from bench.arena import STOCK, Arena
from bench.footprint import wal_position
from bench.growth_graph import noise, whole
from bench.load import Load
from bench.mill import TENANT, fleet_of
from bench.row import Row, compared, ratio_at_most
from threadmill.core.models import SCHEMA

SECTION = "one thread that grows"
AIMED_AT = 500  # turns
STOCK_SAVER = "stock saver, list"
DELTA = "Threadmill, DeltaChannel"
# What Threadmill runs: each graph of bench/langgraph.json with the policy that stands there.
GRAPHS = {
    "Threadmill, list, history full": "whole",
    "Threadmill, list, history durable": "whole_durable",
    "Threadmill, list, keep_checkpoints 1": "whole_short",
    DELTA: "changes",
}
# A figure is the mean of so many turns before its place: as many as lie between two of a DeltaChannel's
# snapshots, which hold the whole list.
MEAN_OF = 50
_TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")

Turn = Callable[[], None]


@dataclass(frozen=True)
class Growth:
    """At so many turns: milliseconds and bytes of WAL for a turn, and bytes of the thread in the database."""

    name: str
    turns: int
    ms: float
    wal: float
    size: int


def measure(arena: Arena, load: Load, tell: Callable[[str], None]) -> list[Growth]:
    found: list[Growth] = []
    tell(f"growth: {STOCK_SAVER}")
    with _stock(arena) as (turn, connection):
        found += _measured(STOCK_SAVER, turn, connection, "public", load.places)
    for name, graph in GRAPHS.items():
        tell(f"growth: {name}")
        with (
            fleet_of(arena, 1) as (fleet, _),
            psycopg.connect(fleet.saver_url, autocommit=True) as connection,
        ):

            def turn(graph: str = graph, producer: Any = fleet.producer) -> None:
                run = producer.enqueue(graph, _input(), tenant=TENANT, thread_id="grows")
                assert producer.wait(run.id, tenant=TENANT, timeout=60).status == "success"

            found += _measured(name, turn, connection, SCHEMA, load.places)
    return found


def _measured(
    name: str, turn: Turn, connection: psycopg.Connection[Any], schema: str, places: Sequence[int]
) -> Iterator[Growth]:
    done = 0
    for place in places:
        counted = min(place - done, MEAN_OF)
        for _ in range(place - done - counted):
            turn()
        began, lsn = time.perf_counter(), wal_position(connection)
        for _ in range(counted):
            turn()
        took, written = time.perf_counter() - began, wal_position(connection) - lsn
        done = place
        yield Growth(name, place, took / counted * 1e3, written / counted, _size(connection, schema))


@contextmanager
def _stock(arena: Arena) -> Iterator[tuple[Turn, psycopg.Connection[Any]]]:
    """LangGraph by itself with its own saver, one turn after the other."""
    with (
        arena.fresh_database(STOCK) as url,
        asyncio.Runner() as runner,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        saver = runner.run(_saver(url))
        graph = whole.compile(checkpointer=saver)

        def turn() -> None:
            runner.run(_invoked(graph, {"configurable": {"thread_id": "grows"}}))

        yield turn, connection
        runner.run(saver.conn.close())


async def _saver(url: str) -> AsyncPostgresSaver:
    """As its own `from_conn_string` makes it."""
    connection = await psycopg.AsyncConnection.connect(
        url, autocommit=True, prepare_threshold=0, row_factory=dict_row
    )
    return AsyncPostgresSaver(connection)


async def _invoked(graph: Any, config: Any) -> None:
    await graph.ainvoke(_input(), config)


def _input() -> Mapping[str, Any]:
    return {"messages": [{"role": "user", "content": noise()}]}


def _size(connection: psycopg.Connection[Any], schema: str) -> int:
    sizes = " + ".join(f"pg_total_relation_size('{schema}.{table}')" for table in _TABLES)
    row: Any = connection.execute(f"select {sizes}".encode()).fetchone()
    return int(row[0])


def rows(found: Sequence[Growth]) -> list[Row]:
    """Each at the turns that are aimed at and at the most, beside the stock saver at as many."""
    shown = {AIMED_AT, max(one.turns for one in found)}
    stocks = {one.turns: one for one in found if one.name == STOCK_SAVER}
    made = []
    for one in sorted(found, key=lambda one: one.turns):
        turns, stock = one.turns, stocks[one.turns]
        if turns not in shown or one is stock:
            continue
        aimed = one.name == DELTA and turns == AIMED_AT
        label = f"{one.name}, {turns} turns: "
        for name, value, base, unit, bound in (
            ("a turn", one.ms, stock.ms, "ms", 1 / 3),
            ("WAL a turn", one.wal / 1e3, stock.wal / 1e3, "kB", 1 / 50),
            ("database", one.size / 1e6, stock.size / 1e6, "MB", 1 / 20),
        ):
            aim = ratio_at_most(bound) if aimed else None
            made.append(compared(SECTION, label + name, value, unit, STOCK_SAVER, base, aim))
            label = "  "
    return made
