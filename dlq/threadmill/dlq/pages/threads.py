"""The pages of threads: which are busy, which are held, and what one of them went through."""

from __future__ import annotations

from tornado.web import authenticated

from threadmill.dlq.pages.errand import Refusal
from threadmill.dlq.pages.handler import PageHandler
from threadmill.dlq.pages.queries import MOST, PAGE, RUNS_SHOWN
from threadmill.dlq.pages.timeline import timeline


class ThreadsPage(PageHandler):
    """The threads that have something to do, and those that a dead letter holds."""

    tab = "threads"

    @authenticated
    async def get(self) -> None:
        tenant = self.given("tenant")
        after_tenant, after_thread = self.given("after_tenant"), self.given("after_thread")
        place = (after_tenant, after_thread) if after_tenant and after_thread else None
        held = await self.read(
            self.services.desk.held_lanes, tenant=tenant, limit=PAGE, after=self.given("after_letter")
        )
        busy = await self.read(self.services.reader.busy_threads, tenant=tenant, after=place)
        self.show(
            "threads.html",
            "Threads",
            held=held,
            busy=busy,
            tenant=tenant,
            page=PAGE,
            most=MOST,
            paged=place is not None or self.given("after_letter") is not None,
        )


class ThreadPage(PageHandler):
    """One thread: what holds it, and its runs as a timeline."""

    tab = "threads"

    @authenticated
    async def get(self) -> None:
        tenant, thread_id = self.given("tenant"), self.given("thread")
        if tenant is None or thread_id is None:
            raise Refusal(400, "Which thread? Both its tenant and its id are needed.")
        thread, held = await self.read(self.services.reader.thread, tenant, thread_id)
        runs, attempts = await self.read(
            self.services.reader.runs, tenant, thread_id, after=self.given("after")
        )
        self.show(
            "thread.html",
            f"Thread {thread_id}",
            thread=thread,
            held=held,
            timeline=timeline(runs, attempts, thread["now"]),
            more=runs[-1]["seq"] if len(runs) == RUNS_SHOWN else None,
            paged=self.given("after") is not None,
        )


PAGES: tuple[tuple[str, type[PageHandler], str], ...] = (
    (r"/threads", ThreadsPage, "threads"),
    (r"/threads/one", ThreadPage, "thread"),
)
