"""The bound store: one tenant's items, written while the attempt holds its lease."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, PutOp, SearchOp
from uuid_utils.compat import uuid7

from threadmill.core.database import AsyncDatabase
from threadmill.core.errors import LeaseLost
from threadmill.core.settings import Settings
from threadmill.workers.lease import Lease, Pool
from threadmill.workers.store import BoundStore

Admin = psycopg.Connection[Any]
Open = Callable[..., BoundStore]


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    """Connections as a worker has them."""
    database = AsyncDatabase(settings)
    yield await database.pool()
    await database.close()


@pytest.fixture
def open_store(pool: Pool, admin: Admin) -> Open:
    """open_store(tenant): the store of an attempt that is under way."""

    def make(tenant: str = "acme") -> BoundStore:
        lease = Lease(uuid7(), 1, str(uuid7()))
        admin.execute("insert into threads (tenant, thread_id) values (%s, %s)", (tenant, lease.thread_id))
        admin.execute(
            "insert into runs (id, tenant, thread_id, seq, graph, status, attempt)"
            " values (%s, %s, %s, 1, 'g', 'running', 1)",
            (lease.run_id, tenant, lease.thread_id),
        )
        return BoundStore(pool, tenant, lease)

    return make


def contents(admin: Admin) -> list[Any]:
    return admin.execute("select * from store order by prefix, key").fetchall()


# One tenant's items


async def test_an_item_is_found_again_under_the_name_that_it_was_given(
    open_store: Open, admin: Admin
) -> None:
    store = open_store("a.b")
    await store.aput(("users", "ada"), "profile", {"likes": ["tea"]})

    item = await store.aget(("users", "ada"), "profile")
    assert item is not None
    assert (item.namespace, item.key, item.value) == (("users", "ada"), "profile", {"likes": ["tea"]})
    assert [found.namespace for found in await store.asearch(("users",))] == [("users", "ada")]
    assert [row[0] for row in contents(admin)] == ["a/b:.users.ada"]

    await store.adelete(("users", "ada"), "profile")
    assert await store.aget(("users", "ada"), "profile") is None
    assert contents(admin) == []


TENANTS = ("acme", "globex", "a", "a.b", "a_b", "a-b", "A.B")


async def test_tenants_that_use_the_same_names_see_their_own_items_only(open_store: Open) -> None:
    stores = {tenant: open_store(tenant) for tenant in TENANTS}
    for tenant, store in stores.items():
        await store.aput(("notes",), "k", {"of": tenant})
        await store.aput(("only", tenant.replace(".", "")), "k", {"of": tenant})

    for tenant, store in stores.items():
        item = await store.aget(("notes",), "k")
        assert item is not None
        assert item.value == {"of": tenant}
        for prefix in ((), ("notes",)):
            assert {found.value["of"] for found in await store.asearch(prefix, limit=100)} == {tenant}
        assert await store.asearch((), filter={"of": {"$ne": tenant}}) == []
        assert await store.alist_namespaces() == [("notes",), ("only", tenant.replace(".", ""))]


async def test_no_namespace_leads_to_another_tenants_items(open_store: Open) -> None:
    await open_store("globex").aput(("notes",), "k", {"secret": True})
    store = open_store("acme")

    for namespace in (
        ("globex:", "notes"),
        ("globex:",),
        ("*", "notes"),
        ("%", "notes"),
        ("..", "notes")[1:],
    ):
        assert await store.aget(namespace, "k") is None
        assert await store.asearch(namespace) == []
        assert await store.alist_namespaces(prefix=namespace) == []
    for condition in ({"suffix": ("notes",)}, {"prefix": ("*",)}, {"max_depth": 1}):
        assert await store.alist_namespaces(**condition) == []
    with pytest.raises(InvalidNamespaceError):
        await store.abatch([GetOp(("globex:.notes",), "k")])
    with pytest.raises(InvalidNamespaceError):
        await store.abatch([SearchOp(("", "notes"))])

    await store.aput(("globex:", "notes"), "k", {"of": "acme"})
    theirs = await open_store("globex").aget(("notes",), "k")
    assert theirs is not None
    assert theirs.value == {"secret": True}


async def test_namespaces_are_listed_as_they_were_given(open_store: Open) -> None:
    store = open_store("acme")
    for namespace in (("a",), ("a", "b"), ("a", "b", "c"), ("x", "b")):
        await store.aput(namespace, "k", {})

    assert await store.alist_namespaces(prefix=("a",)) == [("a",), ("a", "b"), ("a", "b", "c")]
    assert await store.alist_namespaces(prefix=("*", "b")) == [("a", "b"), ("a", "b", "c"), ("x", "b")]
    assert await store.alist_namespaces(suffix=("b",)) == [("a", "b"), ("x", "b")]
    assert await store.alist_namespaces(prefix=("a",), suffix=("c",)) == [("a", "b", "c")]
    assert await store.alist_namespaces(max_depth=1) == [("a",), ("x",)]
    assert await store.alist_namespaces(max_depth=2, offset=1, limit=1) == [("a", "b")]
    # The tenant's own label takes no part in the match.
    assert await store.alist_namespaces(suffix=("*", "a")) == []


async def test_a_batch_answers_each_of_its_operations_in_its_place(open_store: Open) -> None:
    store = open_store()
    await store.aput(("n",), "old", {"v": 1})

    results = await store.abatch(
        [
            ListNamespacesOp(),
            GetOp(("n",), "old"),
            PutOp(("m",), "new", {"v": 2}),
            SearchOp(("nothing",)),
            GetOp(("n",), "missing"),
            SearchOp(()),
            ListNamespacesOp(max_depth=1),
        ]
    )

    namespaces, old, put, nothing, missing, found, shallow = results
    assert (namespaces, shallow, put, nothing, missing) == ([("n",)], [("n",)], None, [], None)
    assert [item.namespace for item in (old, *found)] == [("n",), ("n",)]
    assert await store.abatch([]) == []


# The fence

TAKEN = {
    "given to another attempt": "update runs set attempt = attempt + 1",
    "cancelled": "update runs set status = 'interrupted'",
}


@pytest.mark.parametrize("taken", TAKEN)
async def test_an_attempt_whose_run_was_taken_away_writes_nothing(
    open_store: Open, admin: Admin, taken: str
) -> None:
    store = open_store()
    await store.aput(("n",), "k", {"v": 1})
    before = contents(admin)
    admin.execute(TAKEN[taken])

    for use in (
        store.aput(("n",), "new", {"v": 2}),
        store.aput(("n",), "k", {"v": "x" * 1_000_000}),
        store.adelete(("n",), "k"),
        store.aget(("n",), "k"),
        store.asearch(()),
        store.alist_namespaces(),
        asyncio.to_thread(store.put, ("n",), "new", {"v": 2}),
    ):
        with pytest.raises(LeaseLost):
            await use
        assert contents(admin) == before


async def test_a_lost_lease_leaves_the_connection_fit_for_the_next_attempt(
    pool: Pool, open_store: Open, admin: Admin
) -> None:
    lost, held = BoundStore(pool, "acme", Lease(uuid7(), 1, "t")), open_store()
    for n in range(3):
        outcomes = await asyncio.gather(
            *(store.aput(("n",), str(n), {}) for store in (lost, held) * 4), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [LeaseLost, type(None)] * 4
    assert [row[1] for row in contents(admin)] == ["0", "1", "2"]


async def test_a_batch_that_fails_halfway_changes_nothing(open_store: Open, admin: Admin) -> None:
    store = open_store()
    await store.aput(("n",), "k", {"v": 1})
    before = contents(admin)

    for unwritable, error in ({"v": object()}, TypeError), ({"v": "\x00"}, psycopg.DataError):
        with pytest.raises(error):
            await store.abatch([PutOp(("n",), "k", None), PutOp(("n",), "new", unwritable)])
        assert contents(admin) == before


# Nodes that are plain functions


async def test_plain_functions_use_the_store_from_their_threads(open_store: Open) -> None:
    store = open_store()

    def node() -> Any:
        store.put(("n",), "k", {"v": 1})
        store.put(("n",), "gone", {"v": 2})
        store.delete(("n",), "gone")
        return store.get(("n",), "k"), store.search(()), store.list_namespaces()

    item, found, namespaces = await asyncio.to_thread(node)
    assert (item.value, [each.key for each in found], namespaces) == ({"v": 1}, ["k"], [("n",)])


async def test_a_plain_call_on_the_loop_is_refused_instead_of_stopping_every_run(open_store: Open) -> None:
    store = open_store()
    for use in (
        lambda: store.put(("n",), "k", {}),
        lambda: store.get(("n",), "k"),
        lambda: store.search(()),
        lambda: store.list_namespaces(),
        lambda: store.delete(("n",), "k"),
    ):
        with pytest.raises(asyncio.InvalidStateError, match="aput, aget, asearch"):
            use()


async def test_an_item_with_a_time_to_live_is_kept_with_its_end(open_store: Open, admin: Admin) -> None:
    store = open_store()
    await store.aput(("n",), "k", {}, ttl=5)

    assert admin.execute("select ttl_minutes, expires_at - updated_at from store").fetchall() == [
        (5, datetime.timedelta(minutes=5))
    ]
