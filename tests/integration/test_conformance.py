"""LangGraph's conformance suite for checkpointers, against the bound saver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.conformance import validate
from langgraph.checkpoint.conformance.initializer import RegisteredCheckpointer
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from uuid_utils.compat import uuid7

from threadmill.core.database import AsyncDatabase
from threadmill.core.settings import Settings
from threadmill.workers.checkpointer import BoundSaver
from threadmill.workers.lease import Lease, Pool

SUPPORTED = {"put", "put_writes", "get_tuple", "list", "delete_thread", "prune"}
# What the suite also knows, and why it is not there. A change of this list fails the test.
NOT_SUPPORTED = {
    "copy_thread": "LangGraph's Postgres saver, on which ours stands, does not implement it",
    "delete_for_runs": "LangGraph's Postgres saver, on which ours stands, does not implement it",
}


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    """Connections as a worker has them."""
    database = AsyncDatabase(settings)
    yield await database.pool()
    await database.close()


async def results_of(saver: BoundSaver, capabilities: set[str]) -> dict[str, Any]:
    """What the suite says of each of the capabilities."""

    async def checkpointer() -> AsyncIterator[BoundSaver]:
        yield saver

    report = await validate(RegisteredCheckpointer("bound", checkpointer), capabilities=capabilities)
    return {name: report.results[name] for name in capabilities}


def failures(results: dict[str, Any]) -> dict[str, list[str]]:
    return {name: result.failures for name, result in results.items() if result.failures}


async def test_the_bound_saver_conforms(pool: Pool, admin: psycopg.Connection[Any]) -> None:
    # Twice in one database: what the first tenant leaves there must not show in the second's listings.
    for tenant in ("acme", "globex"):
        results = await results_of(BoundSaver(pool, tenant), SUPPORTED | NOT_SUPPORTED.keys())
        assert failures(results) == {}
        assert {name for name, result in results.items() if not result.detected} == NOT_SUPPORTED.keys()
        assert all(results[name].passed and results[name].tests_passed > 3 for name in SUPPORTED)
    tenants = admin.execute("select distinct split_part(thread_id, ':', 1) from checkpoints order by 1")
    assert tenants.fetchall() == [("acme",), ("globex",)]


async def test_the_suite_knows_nothing_that_is_not_listed_here(pool: Pool) -> None:
    async def checkpointer() -> AsyncIterator[BoundSaver]:
        yield BoundSaver(pool, "acme")

    report = await validate(RegisteredCheckpointer("bound", checkpointer), capabilities=set())
    assert report.results.keys() == SUPPORTED | NOT_SUPPORTED.keys()


async def test_what_is_not_supported_is_not_supported_by_the_saver_that_ours_stands_on(pool: Pool) -> None:
    stock, bound = AsyncPostgresSaver(pool), BoundSaver(pool, "acme")
    for saver in (stock, bound):
        with pytest.raises(NotImplementedError):
            await saver.acopy_thread("a", "b")
        with pytest.raises(NotImplementedError):
            await saver.adelete_for_runs(["run"])


class FencedEverywhere(BoundSaver):
    """A saver whose lease covers whatever thread the suite makes up; the fence is as ever."""

    def _writable(self, config: RunnableConfig) -> RunnableConfig:
        return self._keyed(config)


async def test_the_bound_saver_conforms_behind_its_fence(pool: Pool, admin: psycopg.Connection[Any]) -> None:
    lease = Lease(uuid7(), 1, "t")
    admin.execute("insert into threads (tenant, thread_id) values ('acme', 't')")
    admin.execute(
        "insert into runs (id, tenant, thread_id, seq, graph, status, attempt)"
        " values (%s, 'acme', 't', 1, 'g', 'running', 1)",
        (lease.run_id,),
    )
    saver = FencedEverywhere(pool, "acme", lease)

    fenced = SUPPORTED - {"prune"}  # which an attempt does not do
    assert failures(await results_of(saver, fenced)) == {}
    admin.execute("update runs set attempt = 2")
    results = await results_of(saver, {"put", "put_writes", "delete_thread"})
    assert not any(result.tests_passed for result in results.values())
    assert all("no longer holds its lease" in each for result in results.values() for each in result.failures)
