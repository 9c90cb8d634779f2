"""The page of tenants: what each has pending, running and failed."""

from __future__ import annotations

from tornado.web import authenticated

from threadmill.dlq.pages.handler import PageHandler
from threadmill.dlq.pages.queries import MOST, PAGE


class TenantsPage(PageHandler):
    """The tenants that have runs, by name."""

    tab = "tenants"

    @authenticated
    async def get(self) -> None:
        after = self.given("after")
        tenants = await self.read(self.services.reader.tenants, after=after)
        self.show(
            "tenants.html",
            "Tenants",
            tenants=tenants,
            most=MOST,
            more=tenants[-1]["tenant"] if len(tenants) == PAGE else None,
            paged=after is not None,
        )


PAGES: tuple[tuple[str, type[PageHandler], str], ...] = ((r"/tenants", TenantsPage, "tenants"),)
