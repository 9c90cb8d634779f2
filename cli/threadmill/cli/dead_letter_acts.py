"""What an operator does with dead letters by hand: edit, discard, restore, park and note."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from threadmill.cli.dead_letter_options import (
    MOST_COUNTED,
    UNASKED,
    AllOption,
    BecauseOption,
    LetterArgument,
    LettersArgument,
    YesOption,
    agree,
    check_choice,
    conditions,
    counted,
    parts_of,
    takes_filter,
)
from threadmill.cli.enqueue import DOCUMENT, parse_document
from threadmill.cli.invocation import JsonOption, invocation_of
from threadmill.cli.output import coloured, report, show
from threadmill.core.errors import Conflict, InvalidInput, NotFound, NothingMatches
from threadmill.dlq import DeadLetter, Desk
from threadmill.dlq.filter import LetterFilter

PAGE = 500

Act = Callable[[str], DeadLetter]

InputOption = Annotated[
    Any,
    typer.Option("--input", parser=parse_document, metavar=DOCUMENT, help="The input instead of the run's."),
]
PatchOption = Annotated[
    Any,
    typer.Option(
        "--patch",
        parser=parse_document,
        metavar=DOCUMENT,
        help="What is changed in the input: a JSON merge patch.",
    ),
]


def edit(
    context: typer.Context,
    letter: LetterArgument,
    input: InputOption = None,  # noqa: A002 - the field's word
    patch: PatchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a dead letter's run another input, or a changed one; the first one is kept."""
    if (input is None) is (patch is None):
        raise typer.BadParameter("give either --input or --patch")
    with Desk(invocation_of(context).settings()) as desk:
        edited = desk.edit(letter, input=input, patch=patch)
    show(as_json, edited.to_dict(), lambda: Text.assemble("edited dead letter ", (edited.id, "bold")))


@takes_filter
def discard(
    context: typer.Context,
    letters: LettersArgument = None,
    because: BecauseOption = None,
    everything: AllOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    *,
    chosen: LetterFilter,
) -> None:
    """Give dead letters up; the threads that they held go on. `dlq restore` takes it back."""
    check_choice(letters, chosen, everything=everything)
    with Desk(invocation_of(context).settings(of=chosen.tenant)) as desk:
        found = _agreed(desk, letters, chosen, ("waiting", "parked"), "discard", yes=yes, as_json=as_json)
        change_each(found, lambda letter: desk.discard(letter, because), as_json)


@takes_filter
def park(
    context: typer.Context,
    letters: LettersArgument = None,
    because: BecauseOption = None,
    everything: AllOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    *,
    chosen: LetterFilter,
) -> None:
    """Take waiting dead letters away from the replay worker: they wait for a person from now on."""
    check_choice(letters, chosen, everything=everything)
    with Desk(invocation_of(context).settings(of=chosen.tenant)) as desk:
        found = _agreed(desk, letters, chosen, ("waiting",), "park", yes=yes, as_json=as_json)
        change_each(found, lambda letter: desk.park(letter, because), as_json)


def restore(
    context: typer.Context,
    letters: Annotated[
        list[str], typer.Argument(metavar="ID…", help="The dead letters' ids.", show_default=False)
    ],
    because: BecauseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take discarded dead letters back: they are parked, and hold no thread."""
    with Desk(invocation_of(context).settings()) as desk:
        change_each(letters, lambda letter: desk.restore(letter, because), as_json)


def note(
    context: typer.Context,
    letter: LetterArgument,
    words: Annotated[str, typer.Argument(metavar="TEXT", help="What there is to say.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Write something down with a dead letter; it is shown with it, with your name and the time."""
    with Desk(invocation_of(context).settings()) as desk:
        desk.note(letter, words)
        noted = desk.get(letter)
    show(as_json, noted.to_dict(), lambda: Text.assemble("noted with dead letter ", (noted.id, "bold")))


def change_each(letter_ids: Iterable[str], act: Act, as_json: bool) -> None:
    """Changes what can be changed; one that cannot does not keep the others from it, and the status is 1."""
    changed, failed = [], False
    for letter_id in letter_ids:
        try:
            changed.append(act(letter_id))
        except (NotFound, Conflict, InvalidInput) as error:
            failed = True
            report(error, as_json)
    show(as_json, [letter.to_dict() for letter in changed], lambda: changed_view(changed))
    if failed:
        raise typer.Exit(1)


def changed_view(letters: list[DeadLetter]) -> RenderableType:
    """How each of the letters stands now; of many only how many do."""
    if len(letters) <= UNASKED:
        return Group(
            *(
                Text.assemble("dead letter ", (letter.id, "bold"), " ", coloured(letter.status))
                for letter in letters
            )
        )
    by_status = dict.fromkeys(sorted({letter.status for letter in letters}), 0)
    for letter in letters:
        by_status[letter.status] += 1
    return Group(
        *(
            Text.assemble((str(number), "bold"), " dead letters ", coloured(status))
            for status, number in by_status.items()
        )
    )


def _agreed(
    desk: Desk,
    letter_ids: list[str] | None,
    chosen: LetterFilter,
    statuses: tuple[str, ...],
    question: str,
    *,
    yes: bool,
    as_json: bool,
) -> Iterable[str]:
    """The ids of what is to be changed, after asking if they are many. Raises NothingMatches."""
    if letter_ids:
        agree(str(len(letter_ids)), len(letter_ids) > UNASKED, yes=yes, as_json=as_json, question=question)
        return letter_ids
    parts = parts_of(chosen, statuses)
    number = sum(desk.count(part, most=MOST_COUNTED) for part in parts)
    if not number:
        raise NothingMatches(conditions(chosen))
    agree(counted(number), number > UNASKED, yes=yes, as_json=as_json, question=question)
    # All of the ids first: what is changed would otherwise shift under the reading, and what fails meanwhile
    # nobody has agreed to.
    return [letter.id for part in parts for letter in letters_of(desk, part)]


def letters_of(desk: Desk, chosen: LetterFilter) -> Iterator[DeadLetter]:
    """All that the filter chooses, the oldest first."""
    after = None
    while page := desk.list(chosen, limit=PAGE, after=after, newest_first=False):
        yield from page
        after = page[-1].id
