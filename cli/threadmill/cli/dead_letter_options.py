"""The options that choose dead letters, for every command of `threadmill dlq` that takes them."""

from __future__ import annotations

import datetime
import functools
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import typer

from threadmill.cli.invocation import GraphOption, TenantOption, ThreadOption
from threadmill.core.models import DEAD_LETTER_REASONS, DEAD_LETTER_STATUSES
from threadmill.dlq.filter import LetterFilter

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}

MOMENT = "TIME|SPAN"

# So many dead letters are changed without asking.
UNASKED = 100
# How far what a filter chooses is counted.
MOST_COUNTED = 10_000


def parse_moment(argument: str) -> datetime.datetime:
    """An ISO 8601 time, local where it names no offset, or a span such as 2h, which is so long ago."""
    try:
        if found := _SPAN.fullmatch(argument.strip()):
            length = datetime.timedelta(**{_UNITS[found[2]]: float(found[1])})
            return datetime.datetime.now(datetime.UTC) - length
        return datetime.datetime.fromisoformat(argument).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            "neither an ISO 8601 time such as 2030-01-31T12:00:00+01:00 nor a span: 90s, 15min, 2h or 7d"
        ) from None


StatusOption = Annotated[
    str | None, typer.Option(help=f"Only these: {', '.join(DEAD_LETTER_STATUSES)}.", show_default=False)
]
ReasonOption = Annotated[str | None, typer.Option(help=f"Only these: {', '.join(DEAD_LETTER_REASONS)}.")]
GroupOption = Annotated[
    str | None, typer.Option(metavar="GROUP", help="Only this group's, as `dlq groups` names it.")
]
NodeOption = Annotated[str | None, typer.Option(metavar="NODE", help="Only what failed at this node.")]
ExceptionOption = Annotated[
    str | None, typer.Option(metavar="TYPE", help="Only this type of exception, such as ConnectionError.")
]
SinceOption = Annotated[
    datetime.datetime | None,
    typer.Option(parser=parse_moment, metavar=MOMENT, help="Not before this time, or so long ago: 2h."),
]
UntilOption = Annotated[
    datetime.datetime | None,
    typer.Option(parser=parse_moment, metavar=MOMENT, help="Before this time, or so long ago."),
]
TextOption = Annotated[
    str | None,
    typer.Option(metavar="WORDS", help="Only those with all of these words in their exception or node."),
]

# The option of the command line, by the filter's field that it sets.
_OPTIONS: dict[str, Any] = {
    "tenant": TenantOption,
    "thread_id": ThreadOption,
    "graph": GraphOption,
    "status": StatusOption,
    "reason": ReasonOption,
    "group": GroupOption,
    "node": NodeOption,
    "exception": ExceptionOption,
    "since": SinceOption,
    "until": UntilOption,
    "text": TextOption,
}


def takes_filter(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that choose dead letters, and their filter as its argument `chosen`."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        chosen = LetterFilter(**{name: arguments.pop(name) for name in _OPTIONS})
        command(**arguments, chosen=chosen)

    signature = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name != "chosen"
    ]
    # Typer reads what a command takes off its signature.
    run.__signature__ = signature.replace(parameters=[*own[:1], *options, *own[1:]])  # type: ignore[attr-defined]
    return run


LettersArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ID", help="The dead letters' ids.", show_default=False)
]
LetterArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The dead letter's id.", show_default=False)
]
AllOption = Annotated[bool, typer.Option("--all", help="All of them, where no other option chooses.")]
YesOption = Annotated[bool, typer.Option("--yes", help=f"Do not ask, though it be more than {UNASKED}.")]
BecauseOption = Annotated[
    str | None, typer.Option("--because", metavar="WORDS", help="Why; it is kept with what was done.")
]


def check_choice(letter_ids: list[str] | None, chosen: LetterFilter, *, everything: bool) -> None:
    """Refuses what names no dead letters, or names them in two ways, as bad usage."""
    filtered = chosen != LetterFilter() or everything
    if letter_ids and filtered:
        raise typer.BadParameter("give either ids, or options that choose dead letters")
    if not letter_ids and not filtered:
        raise typer.BadParameter(
            "which dead letters? Give ids, or options that choose them such as --group, or --all for all"
        )


def conditions(chosen: LetterFilter) -> str:
    """The filter in words."""
    return ", ".join(f"{name}={value}" for name, value in chosen.to_dict().items())


def parts_of(chosen: LetterFilter, statuses: tuple[str, ...]) -> list[LetterFilter]:
    """The filter, less what has none of these statuses, as a filter for each status that is left."""
    wanted = (chosen.status,) if chosen.status else statuses
    return [replace(chosen, status=status) for status in statuses if status in wanted]


def is_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty()


def agree(number: str, many: bool, *, yes: bool, as_json: bool, question: str) -> None:
    """Asks before many dead letters are changed; where nobody can be asked that is bad usage."""
    if yes or not many:
        return
    if as_json or not is_terminal():
        raise typer.BadParameter(f"{question} {number} dead letters: more than {UNASKED} need --yes")
    typer.confirm(f"{question} {number} dead letters?", abort=True, err=True)


def counted(number: int) -> str:
    """A bounded count in words."""
    return f"{number:,} or more" if number >= MOST_COUNTED else str(number)
