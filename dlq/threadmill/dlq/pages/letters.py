"""The pages of dead letters: groups, the letters of a group, one letter; and what their buttons do."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import structlog
from tornado.web import authenticated

from threadmill.core.models import DEAD_LETTER_REASONS, DEAD_LETTER_STATUSES, REPLAY_MODES
from threadmill.dlq.filter import LetterFilter
from threadmill.dlq.jobs import ReplayJob
from threadmill.dlq.pages.errand import Refusal
from threadmill.dlq.pages.handler import ActHandler, PageHandler, Services

PAGE = 50
GROUPS_SHOWN = 50
JOBS_SHOWN = 5
# As far as the letters of a list are counted.
MOST = 1_000
MAX_REASON = 1_000
MODES = ("auto", *REPLAY_MODES)
OPEN = ("waiting", "replaying", "parked")

# The filter's fields, by the name that they have in an address.
FIELDS = {
    "text": "text",
    "status": "status",
    "reason": "reason",
    "tenant": "tenant",
    "graph": "graph",
    "node": "node",
    "exception": "exception",
    "thread": "thread_id",
    "group": "group",
    "since": "since",
    "until": "until",
}

_log = structlog.get_logger("threadmill.pages")


class GroupsPage(PageHandler):
    """What failed, by cause; and the replays of many that were asked for."""

    @authenticated
    async def get(self) -> None:
        desk, after = self.services.desk, self.given("after")
        tenant, graph = self.given("tenant"), self.given("graph")
        groups = await self.read(desk.groups, tenant=tenant, graph=graph, limit=GROUPS_SHOWN, after=after)
        self.show(
            "groups.html",
            "Dead letters",
            stats=await self.read(desk.stats),
            groups=sorted(groups, key=_urgency, reverse=True),
            jobs=await self.read(desk.jobs, limit=JOBS_SHOWN),
            more=groups[-1].fingerprint if len(groups) == GROUPS_SHOWN else None,
            paged=after is not None,
            tenant=tenant,
            graph=graph,
            open_statuses=OPEN,
        )


def _urgency(group: Any) -> tuple[bool, datetime.datetime]:
    return any(group.counts.get(status) for status in OPEN), group.last_seen


class LettersPage(PageHandler):
    """Dead letters that fit a filter, the newest first; with the filter `group`, that group."""

    @authenticated
    async def get(self) -> None:
        desk = self.services.desk
        wanted = {name: value for name in FIELDS if (value := self.given(name)) is not None}
        after = self.given("after")
        filter_ = await self.read(filter_of, wanted)
        letters = await self.read(desk.list, filter_, limit=PAGE, after=after)
        group = wanted.get("group")
        self.show(
            "letters.html",
            "Dead letters",
            letters=letters,
            found=await self.read(desk.count, filter_, most=MOST),
            most=MOST,
            wanted=wanted,
            more=letters[-1].id if len(letters) == PAGE else None,
            paged=after is not None,
            group=group,
            drain=await self.read(self.services.reader.group, group) if group else None,
            jobs=_jobs_of(await self.read(desk.jobs), group) if group else [],
            statuses=DEAD_LETTER_STATUSES,
            reasons=DEAD_LETTER_REASONS,
            modes=MODES,
        )


class LetterPage(PageHandler):
    """One dead letter: what failed and where, what was tried, and what can be done."""

    @authenticated
    async def get(self, letter_id: str) -> None:
        detail = await self.read(self.services.desk.detail, letter_id)
        self.show(
            "letter.html",
            f"Dead letter {letter_id}",
            detail=detail,
            letter=detail.letter,
            modes=MODES,
        )


class LetterAct(ActHandler):
    """Something that an operator does about one dead letter."""

    async def post(self, letter_id: str, action: str) -> None:
        desk, reason, mode = self.services.desk, self.given("reason"), self.given("mode") or "auto"
        if reason is not None and len(reason) > MAX_REASON:
            raise Refusal(400, f"reason: must have at most {MAX_REASON} characters")
        if action == "replay":
            letter = await self.read(desk.replay, letter_id, mode=mode, by=self.actor)
            self.tell(f"Replaying, {letter.replay_mode}: {letter.replay_why}.")
        elif action == "scratch":
            trial = await self.carry(desk.scratch, letter_id, mode=mode, by=self.actor)
            shown = self.render_string("trial.html", trial=trial).decode()
            self.tell(f"Tried on a copy: {trial.status}.", html=shown, into="trial")
        elif action == "note":
            await self.read(desk.note, letter_id, reason or "", by=self.actor)
            self.tell("Noted.")
        else:
            done = {"discard": desk.discard, "restore": desk.restore, "park": desk.park}[action]
            letter = await self.read(done, letter_id, reason, by=self.actor)
            self.tell(f"Now {letter.status}.")


class GroupAct(ActHandler):
    """Something that an operator does about a whole group."""

    async def post(self, action: str) -> None:
        desk, group = self.services.desk, self.given("group")
        if group is None:
            raise Refusal(400, "Which group?")
        if action == "pause":
            await self.read(desk.pause, "group", group, self.given("reason"), by=self.actor)
            self.tell("Paused: the replay worker leaves this group alone.")
        elif action == "unpause":
            await self.read(desk.unpause, "group", group, by=self.actor)
            self.tell("The replay worker goes on with this group.")
        else:
            mode = self.given("mode") or "auto"
            chosen = await self.read(filter_of, {"group": group})
            job = await self.read(
                desk.start_job, chosen, mode=mode, rate=_rate(self.given("rate")), by=self.actor
            )
            run_job(self.services, job)
            self.tell(f"Replaying {job.total:,} dead letters.")


class JobAct(ActHandler):
    """Stops a replay of many, or goes on with it."""

    async def post(self, job_id: str, action: str) -> None:
        desk = self.services.desk
        if action == "stop":
            await self.read(desk.stop_job, job_id)
            self.tell("Stopped; it can be continued.")
        else:
            run_job(self.services, await self.read(desk.continue_job, job_id))
            self.tell("Goes on.")


def run_job(services: Services, job: ReplayJob) -> None:
    """Begins to do what the job says; how far it has come stands in the ledger."""

    def report(done: Future[ReplayJob]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            _log.warning("pages.job_ended", job=job.id, error=type(error).__name__, message=str(error))

    services.errands.begin(services.desk.run_job, job.id).add_done_callback(report)


def filter_of(wanted: Mapping[str, str]) -> LetterFilter:
    """The filter of an address's arguments. Raises InvalidOption, InvalidTenant and InvalidThreadId."""
    values = {FIELDS[name]: value for name, value in wanted.items()}
    for name in ("since", "until"):
        # What a browser sends has no time zone, and the pages show UTC.
        if name in values and not values[name].endswith(("Z", "+00:00")):
            values[name] += "+00:00"
    return LetterFilter.from_dict(values)


def _rate(given: str | None) -> float | None:
    try:
        return None if given is None else float(given)
    except ValueError:
        raise Refusal(400, f"rate={given!r}: must be a number, how many a second at most") from None


def _jobs_of(jobs: list[ReplayJob], group: str) -> list[ReplayJob]:
    return [job for job in jobs if job.filter.get("group") == group][:JOBS_SHOWN]


PAGES: tuple[tuple[str, type[PageHandler], str], ...] = (
    (r"/dead-letters", GroupsPage, "dead-letters"),
    (r"/dead-letters/list", LettersPage, "dead-letter-list"),
    (r"/dead-letters/group/(replay|pause|unpause)", GroupAct, "dead-letter-group-act"),
    (r"/dead-letters/job/([^/]+)/(stop|continue)", JobAct, "dead-letter-job-act"),
    (r"/dead-letters/letter/([^/]+)", LetterPage, "dead-letter"),
    (
        r"/dead-letters/letter/([^/]+)/(replay|discard|restore|park|note|scratch)",
        LetterAct,
        "dead-letter-act",
    ),
)
