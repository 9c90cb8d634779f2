"""`threadmill dlq replay`: one by one by id, or many as a job that can be stopped and continued."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import typer
from rich.console import Group

from threadmill.cli.dead_letter_acts import InputOption, change_each, letters_of
from threadmill.cli.dead_letter_detail import trial_view
from threadmill.cli.dead_letter_drain import RateOption
from threadmill.cli.dead_letter_jobs import follow, job_line, jobs_table
from threadmill.cli.dead_letter_options import (
    MOST_COUNTED,
    UNASKED,
    AllOption,
    LettersArgument,
    YesOption,
    agree,
    check_choice,
    conditions,
    counted,
    parts_of,
    takes_filter,
)
from threadmill.cli.dead_letter_plan import plan_document, plan_replays, plan_view
from threadmill.cli.enqueue import DOCUMENT, parse_document
from threadmill.cli.invocation import AfterOption, JsonOption, LimitOption, invocation_of
from threadmill.cli.output import note, report, show
from threadmill.core.errors import Conflict, InvalidInput, NotFound, NothingMatches, WaitTimeout
from threadmill.core.settings import Settings
from threadmill.dlq import DeadLetter, Desk
from threadmill.dlq.filter import LetterFilter
from threadmill.dlq.velocity import parse_rate

Mode = Literal["auto", "resume", "restart", "append", "scratch"]

REPLAYABLE = ("waiting", "parked")
# Of a trial: it ended, or its graph asks something.
CAME_OUT_WELL = ("success", "interrupted")

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]


@takes_filter
def replay(
    context: typer.Context,
    letters: LettersArgument = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="resume where it failed; restart from before its input; append its input to the thread as "
            "it stands; or scratch, try it on a copy that is thrown away."
        ),
    ] = "auto",
    input: InputOption = None,  # noqa: A002 - the field's word
    patch: Annotated[
        Any,
        typer.Option(
            parser=parse_document,
            metavar=DOCUMENT,
            help="What is changed in the input: a JSON merge patch; with resume, in the state.",
        ),
    ] = None,
    rate: RateOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    everything: AllOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    *,
    chosen: LetterFilter,
) -> None:
    """Give the runs of waiting or parked dead letters back as pending, now.

    Those that are named by id one after the other; those that options choose as a job.
    """
    check_choice(letters, chosen, everything=everything)
    edited = input is not None or patch is not None
    if not letters and (edited or mode == "scratch"):
        raise typer.BadParameter("--input, --patch and --mode scratch go with ids")
    if edited and dry_run:
        raise typer.BadParameter("--dry-run does not edit; use --mode scratch to try an --input or a --patch")
    speed = None if rate is None else parse_rate(rate)
    settings = invocation_of(context).settings(of=chosen.tenant)
    with Desk(settings) as desk:
        if dry_run:
            _show_plan(settings, desk, letters, chosen, mode, as_json=as_json)
        elif mode == "scratch":
            _try_each(desk, letters or [], input, patch, as_json)
        elif letters and speed is None:
            agree(str(len(letters)), len(letters) > UNASKED, yes=yes, as_json=as_json, question="replay")
            change_each(letters, lambda id_: desk.replay(id_, mode=mode, input=input, patch=patch), as_json)
        else:
            _start(desk, letters or chosen, mode, speed, yes=yes, as_json=as_json)


def _start(
    desk: Desk,
    which: list[str] | LetterFilter,
    mode: Mode,
    speed: float | None,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Begins a job and goes through it."""
    if isinstance(which, LetterFilter):
        number = sum(desk.count(part, most=MOST_COUNTED) for part in parts_of(which, REPLAYABLE))
    else:
        number = len(which)
    agree(counted(number), number > UNASKED, yes=yes, as_json=as_json, question="replay")
    follow(desk, desk.start_job(which, mode=mode, rate=speed), as_json=as_json)


def _try_each(desk: Desk, letter_ids: list[str], input: Any, patch: Any, as_json: bool) -> None:  # noqa: A002
    """Tries each on a copy. The status is 1 unless all of them came out well."""
    documents, views, failed = [], [], False
    for letter_id in letter_ids:
        try:
            trial = desk.scratch(letter_id, input=input, patch=patch)
        except (NotFound, Conflict, InvalidInput, WaitTimeout) as error:
            failed = True
            report(error, as_json)
            continue
        failed = failed or trial.status not in CAME_OUT_WELL
        documents.append({"letter_id": letter_id, **trial.to_dict()})
        views.append(trial_view(letter_id, trial))
    show(as_json, documents, lambda: Group(*views))
    if failed:
        raise typer.Exit(1)


def _show_plan(
    settings: Settings,
    desk: Desk,
    letter_ids: list[str] | None,
    chosen: LetterFilter,
    mode: Mode,
    *,
    as_json: bool,
) -> None:
    """What a replay would do, and to which. The status is 1 where one that is named by its id is refused."""
    missing: list[str] = []
    if letter_ids:
        letters: Iterable[DeadLetter] = _found(desk, letter_ids, missing, as_json)
    else:
        letters = (letter for part in parts_of(chosen, REPLAYABLE) for letter in letters_of(desk, part))
    planned = plan_replays(settings, letters, mode)
    if not planned and not letter_ids:
        raise NothingMatches(conditions(chosen))
    show(as_json, plan_document(planned), lambda: plan_view(planned))
    if letter_ids and (missing or any(plan.preview.refusal for plan in planned)):
        raise typer.Exit(1)


def _found(desk: Desk, letter_ids: list[str], missing: list[str], as_json: bool) -> Iterator[DeadLetter]:
    for letter_id in letter_ids:
        try:
            yield desk.get(letter_id)
        except NotFound as error:
            missing.append(letter_id)
            report(error, as_json)


def jobs(
    context: typer.Context, limit: LimitOption = 20, after: AfterOption = None, as_json: JsonOption = False
) -> None:
    """Replays of many dead letters: how far they have come, the newest first."""
    with Desk(invocation_of(context).settings()) as desk:
        found = desk.jobs(limit=limit, after=after)
    show(as_json, [job.to_dict() for job in found], lambda: jobs_table(found))
    if not as_json and len(found) == limit:
        note(f"more: --after {found[-1].id}")


def stop(context: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Stop a replay of many, from whichever terminal; what was given back stays so."""
    with Desk(invocation_of(context).settings()) as desk:
        stopped = desk.stop_job(job)
    show(as_json, stopped.to_dict(), lambda: job_line(stopped))
    if not as_json:
        note(f"go on with `threadmill dlq continue {stopped.id}`")


def continue_job(context: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Go on with a replay of many where it was stopped, or where its terminal was closed."""
    with Desk(invocation_of(context).settings()) as desk:
        follow(desk, desk.continue_job(job), as_json=as_json)
