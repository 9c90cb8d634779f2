"""What an operator does with dead letters: look, replay, edit, discard, pause, export."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import psycopg

from threadmill.core.database import Database
from threadmill.core.doorbell import Doorbell
from threadmill.core.errors import FleetOnly, JobNotRunning
from threadmill.core.keys import check_tenant
from threadmill.core.settings import Settings
from threadmill.core.statement import Plan, Step
from threadmill.core.transitions import bind_tenant, continue_job, stop_job
from threadmill.dlq.dead_letter import DeadLetter
from threadmill.dlq.detail import HeldLane, LetterDetail, list_held_lanes, read_detail
from threadmill.dlq.editing import Edit, Editor
from threadmill.dlq.exchange import Imported, export_letters, import_letters
from threadmill.dlq.filter import LetterFilter
from threadmill.dlq.groups import Group, list_groups
from threadmill.dlq.jobs import (
    LOOK_AGAIN,
    Progress,
    ReplayJob,
    Runner,
    list_jobs,
    read_job,
    restatus_job,
    start_job,
)
from threadmill.dlq.letters import count_letters, list_letters, read_letter
from threadmill.dlq.operator import operator
from threadmill.dlq.pauses import Pause, add_pause, list_pauses, remove_pause
from threadmill.dlq.preview import Preview, preview_letter
from threadmill.dlq.rates import Rate, list_rates, set_rate
from threadmill.dlq.replaying import (
    Act,
    Done,
    discard_letter,
    note_letter,
    park_letter,
    restore_letter,
)
from threadmill.dlq.scratch import Trial, run_trial
from threadmill.dlq.stats import Stats, read_stats
from threadmill.producers.catalogue import Catalogue

T = TypeVar("T")

Letters = list[DeadLetter]  # named here, as `list` is a method of the desk
Groups = list[Group]
Lanes = list[HeldLane]
Jobs = list[ReplayJob]
Pauses = list[Pause]
Rates = list[Rate]


class Desk:
    """The operator's desk; it connects at its first use. Threads may share one.

    Over all tenants, or bound to one: then others' dead letters are not found, by row-level security, and
    what concerns every tenant raises FleetOnly. `by` is who stands in the record of what was done; without
    it that is the user whose process this is.
    """

    def __init__(self, settings: Settings, tenant: str | None = None) -> None:
        """Raises ServicesNotFound and InvalidTenant."""
        self._tenant = None if tenant is None else check_tenant(tenant)
        self._settings = (settings if tenant is None else settings.for_tenant(tenant)).located()
        self._database = Database(self._settings)
        self._doorbell = Doorbell(self._settings)
        catalogue = Catalogue(self._settings.graphs_refresh)
        self._editor = Editor(catalogue, self._settings.max_input_bytes)

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the connections."""
        self._database.close()
        self._doorbell.close()

    # -- looking ------------------------------------------------------------------------------------

    def list(
        self,
        filter: LetterFilter | None = None,  # noqa: A002 - the field's word
        *,
        limit: int = 100,
        after: str | None = None,
        newest_first: bool = True,
    ) -> Letters:
        """A page of dead letters. after: the id of the last one of the page before. Raises InvalidOption."""
        return self._read(list_letters(self._within(filter), limit, after, newest_first))

    def count(self, filter: LetterFilter | None = None, *, most: int = 10_000) -> int:  # noqa: A002
        """How many there are; `most` where there are so many or more."""
        return self._read(count_letters(self._within(filter), most))

    def groups(
        self,
        *,
        tenant: str | None = None,
        graph: str | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Groups:
        """A page of groups: the dead letters of one cause each."""
        tenant = tenant or self._tenant
        return self._read(list_groups(tenant=tenant, graph=graph, limit=limit, after=after))

    def stats(self) -> Stats:
        """How many there are of which kind, bounded."""
        self._fleet_only("what is counted over all")
        return self._read(read_stats())

    def get(self, letter_id: str) -> DeadLetter:
        """The dead letter. Raises DeadLetterNotFound."""
        return self._read(read_letter(letter_id))

    def detail(self, letter_id: str) -> LetterDetail:
        """The dead letter with its attempts, actions, state and what a replay would do.

        Raises DeadLetterNotFound.
        """
        return self._read(read_detail(letter_id))

    def held_lanes(self, *, tenant: str | None = None, limit: int = 100, after: str | None = None) -> Lanes:
        """A page of the threads that a dead letter holds."""
        return self._read(list_held_lanes(tenant=tenant, limit=limit, after=after))

    def preview(self, letter_id: str, mode: str = "auto") -> Preview:
        """What `replay` would do now. Raises DeadLetterNotFound and InvalidOption."""
        return self._read(preview_letter(letter_id, mode))

    # -- acting on one ------------------------------------------------------------------------------

    def replay(
        self,
        letter_id: str,
        *,
        mode: str = "auto",
        input: Any = None,  # noqa: A002 - the field's word
        patch: Any = None,
        by: str | None = None,
    ) -> DeadLetter:
        """The dead letter, now `replaying`; its run is pending again, at its own place.

        input: instead of the run's. patch: a JSON merge patch (RFC 7386) of the run's input; with the mode
        resume, which applies no input, what is written into the state first. Raises DeadLetterNotFound,
        InvalidOption, InvalidInput, UnknownGraph, and NotReplayable, which says why.
        """
        act, edit = self._act(letter_id, by), Edit(input, patch)
        return self._do(self._editor.replay(act, mode, edit))

    def edit(
        self,
        letter_id: str,
        *,
        input: Any = None,  # noqa: A002 - the field's word
        patch: Any = None,
        by: str | None = None,
    ) -> DeadLetter:
        """Gives the run another input, or patches it as `replay` does; the first one is kept.

        Raises what `replay` raises.
        """
        return self._database.carry_out(self._editor.edit(self._act(letter_id, by), Edit(input, patch)))

    def discard(self, letter_id: str, reason: str | None = None, by: str | None = None) -> DeadLetter:
        """The dead letter, now `discarded`; the lane that it held goes on. Raises what `replay` raises."""
        return self._do(discard_letter(self._act(letter_id, by), reason))

    def restore(self, letter_id: str, reason: str | None = None, by: str | None = None) -> DeadLetter:
        """The discarded dead letter, now `parked`. Raises what `replay` raises."""
        return self._do(restore_letter(self._act(letter_id, by), reason))

    def park(self, letter_id: str, reason: str | None = None, by: str | None = None) -> DeadLetter:
        """The waiting dead letter, now `parked`: only a person replays it. Raises what `replay` raises."""
        return self._do(park_letter(self._act(letter_id, by), reason))

    def note(self, letter_id: str, text: str, by: str | None = None) -> None:
        """Writes a note beside what was done. Raises DeadLetterNotFound and InvalidOption."""
        self._database.carry_out(note_letter(self._act(letter_id, by), text))

    def scratch(
        self,
        letter_id: str,
        *,
        input: Any = None,  # noqa: A002 - the field's word
        patch: Any = None,
        mode: str = "auto",
        timeout: float = 60,
        by: str | None = None,
    ) -> Trial:
        """What a replay would come to, tried on a copy of the thread that is then removed.

        It takes a worker, and waits for it. timeout: seconds. Raises what `replay` raises.
        """
        act, edit = self._act(letter_id, by), Edit(input, patch)
        ring, carry_out = self._doorbell.ring, self._database.carry_out
        return run_trial(carry_out, ring, self._editor, act, edit, mode=mode, timeout=timeout)

    # -- acting on many -----------------------------------------------------------------------------

    def start_job(
        self,
        which: LetterFilter | Sequence[str],
        *,
        mode: str = "auto",
        rate: float | None = None,
        by: str | None = None,
    ) -> ReplayJob:
        """A job that replays what fits the filter, or these; `run_job` does it. rate: at most, a second.

        Raises NothingMatches, InvalidOption, and for ids DeadLetterNotFound and NotReplayable.
        """
        return self._database.carry_out(start_job(which, mode, rate, by or operator(), self._tenant))

    def run_job(self, job_id: str, on_progress: Callable[[ReplayJob], object] | None = None) -> ReplayJob:
        """The job once it is done or was stopped, from here or elsewhere.

        on_progress: told how it stands after each batch, and while it waits for room ten times a second.
        Several may run one job: each dead letter is replayed once. Raises JobNotFound and JobNotRunning.
        """
        job = self.job(job_id)
        if job.status != "running":
            raise JobNotRunning(job.id, job.status)
        runner = Runner(self._settings)
        while job.status == "running":
            job, bells, wait = self._advance(runner, job)
            self._doorbell.ring(bells)
            if on_progress is not None:
                on_progress(job)
            if wait:
                time.sleep(wait)
        return job

    def stop_job(self, job_id: str) -> ReplayJob:
        """The job, now `stopped`: no further batch is begun. Raises JobNotFound and JobNotRunning."""
        return self._database.carry_out(restatus_job(job_id, stop_job(), self._tenant))

    def continue_job(self, job_id: str) -> ReplayJob:
        """The job, `running` again from where it stood; `run_job` goes on with it.

        One that is called running, but whose runner is gone, is taken up as well. Raises JobNotFound, and
        JobNotRunning for one that is done.
        """
        return self._database.carry_out(restatus_job(job_id, continue_job(), self._tenant))

    def job(self, job_id: str) -> ReplayJob:
        """The job. Raises JobNotFound."""
        return self._database.carry_out(read_job(job_id, self._tenant))

    def jobs(self, *, limit: int = 50, after: str | None = None) -> Jobs:
        """A page of jobs, the newest first. after: the id of the last one of the page before."""
        return self._database.carry_out(list_jobs(limit, after, self._tenant))

    # -- the replay worker's bounds -----------------------------------------------------------------

    def pause(self, kind: str, name: str, reason: str | None = None, by: str | None = None) -> Pause:
        """Has the replay worker leave a graph, a tenant or a group alone. Raises InvalidOption."""
        self._fleet_only("a pause")
        return self._database.carry_out(add_pause(kind, name, reason, by or operator()))

    def unpause(self, kind: str, name: str, by: str | None = None) -> bool:
        """Whether it was paused; now it is not. Raises InvalidOption."""
        self._fleet_only("a pause")
        return self._database.carry_out(remove_pause(kind, name, by or operator()))

    def pauses(self) -> Pauses:
        """What is paused."""
        self._fleet_only("a pause")
        return self._database.carry_out(list_pauses())

    def set_rate(self, kind: str, name: str, rate: float | None, by: str | None = None) -> Rate | None:
        """Bounds the replays a second in all, of a graph or of a tenant; None takes the bound away.

        Raises InvalidOption.
        """
        self._fleet_only("a rate")
        return self._database.carry_out(set_rate(kind, name, rate, by or operator()))

    def rates(self) -> Rates:
        """The bounds that are set."""
        self._fleet_only("a rate")
        return self._database.carry_out(list_rates())

    # -- taking elsewhere ---------------------------------------------------------------------------

    def export(self, filter: LetterFilter | None = None) -> Iterator[str]:  # noqa: A002
        """The dead letters with their runs, attempts and actions, as lines of JSON without their ends."""
        return export_letters(self._read, self._within(filter))

    def import_(self, lines: Iterable[str], by: str | None = None) -> Imported:
        """Takes in what `export` gave, all of it or nothing.

        Raises ImportInvalid, and FleetOnly where the desk is bound to a tenant.
        """
        self._fleet_only("an import")
        return import_letters(self._database.carry_out, lines, by or operator())

    # -----------------------------------------------------------------------------------------------

    def _act(self, letter_id: str, by: str | None) -> Act:
        return Act(letter_id, by or operator(), self._tenant)

    def _do(self, plan: Plan[Done]) -> DeadLetter:
        done = self._database.carry_out(plan)
        self._doorbell.ring(done.bells)
        return done.letter

    def _advance(self, runner: Runner, job: ReplayJob) -> Progress:
        try:
            return self._database.carry_out(runner.advance(uuid.UUID(job.id)))
        except psycopg.errors.LockNotAvailable:  # nothing was done
            return Progress(job, [], LOOK_AGAIN)

    def _read(self, plan: Plan[T]) -> T:
        return self._database.carry_out(plan if self._tenant is None else _bound(self._tenant, plan))

    def _within(self, filter: LetterFilter | None) -> LetterFilter:  # noqa: A002 - the field's word
        """The filter; the tenant's own letters are found by the tenant's index."""
        filter = filter or LetterFilter()  # noqa: A001
        if self._tenant is None or filter.tenant is not None:
            return filter
        return replace(filter, tenant=self._tenant)

    def _fleet_only(self, what: str) -> None:
        if self._tenant is not None:
            raise FleetOnly(what, self._tenant)


def _bound(tenant: str, plan: Plan[T]) -> Plan[T]:
    """The plan as the role that sees nothing of any other tenant."""
    batch = next(plan)
    _, *rows = yield batch._replace(steps=[Step(bind_tenant(), {"tenant": tenant}), *batch.steps])
    while True:
        try:
            batch = plan.send(rows)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        rows = yield batch
