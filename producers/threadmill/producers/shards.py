"""Which ledger a tenant's runs are in, and what a producer holds for each ledger."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from threadmill.core.database import AsyncDatabase, Database
from threadmill.core.doorbell import Doorbell
from threadmill.core.errors import ShardsApart
from threadmill.core.floors import Floors
from threadmill.core.keys import check_tenant
from threadmill.core.publisher import Publisher
from threadmill.core.settings import MAIN_SHARD, Settings
from threadmill.producers.catalogue import Catalogue
from threadmill.producers.quotas import Quotas
from threadmill.producers.waiting import AsyncNotices, Notices

T = TypeVar("T")

# An enqueue, which rings only where its tenant has nothing ready, looks at all of it after so many seconds.
LOOK_BACK_AFTER = 2.0


class Ledger:
    """One ledger for callers that block: the ways to it, and what is remembered of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings)
        self.doorbell = Doorbell(settings)
        self.notices = Notices(settings)
        self.publisher = Publisher(settings)
        self.catalogue = Catalogue(settings.graphs_refresh)
        self.quotas = Quotas(settings)
        self.floors = Floors(LOOK_BACK_AFTER)

    def close(self) -> None:
        """Gives back all connections."""
        self.database.close()
        self.notices.close()
        self.publisher.close()
        self.doorbell.close()


class AsyncLedger:
    """`Ledger` for asyncio. Made within the loop that uses it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = AsyncDatabase(settings)
        self.doorbell = Doorbell(settings)
        self.notices = AsyncNotices(settings)
        self.publisher = Publisher(settings)
        self.catalogue = Catalogue(settings.graphs_refresh)
        self.quotas = Quotas(settings)
        self.floors = Floors(LOOK_BACK_AFTER)

    async def close(self) -> None:
        """Gives back all connections."""
        await self.database.close()
        await self.notices.close()
        self.publisher.close()
        await asyncio.to_thread(self.doorbell.close)


class Shards(Generic[T]):
    """The ledgers of all shards, each made when a tenant of it is first asked for. Threads may share it."""

    def __init__(self, settings: Settings, make: Callable[[Settings], T]) -> None:
        """Raises ServicesNotFound."""
        self._homes = settings.homes()
        names = (MAIN_SHARD, *(shard.name for shard in settings.shards))
        self._settings = {name: settings.for_shard(name).located() for name in names}
        self._make = make
        self._made: dict[str, T] = {}
        self._making = threading.Lock()

    def of(self, tenant: str) -> T:
        """The ledger that has the tenant's runs. Raises InvalidTenant."""
        name = self._homes.get(check_tenant(tenant), MAIN_SHARD)
        found = self._made.get(name)
        if found is None:
            with self._making:  # threads that share a producer make one
                found = self._made.get(name)
                if found is None:
                    found = self._made[name] = self._make(self._settings[name])
        return found

    def of_all(self, tenants: Iterable[str]) -> T:
        """The ledger that has the runs of all these tenants; there must be one. Raises ShardsApart."""
        tenants = list(tenants)
        home = self._homes.get(tenants[0], MAIN_SHARD)
        for tenant in tenants:
            if self._homes.get(tenant, MAIN_SHARD) != home:
                raise ShardsApart(tenants[0], tenant)
        return self.of(tenants[0])

    @property
    def made(self) -> list[T]:
        """The ledgers that something was asked of."""
        return list(self._made.values())
