"""Dead letters as lines of JSON: out of one ledger, and into another."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.text import Text

from threadmill.cli.dead_letter_options import takes_filter
from threadmill.cli.invocation import JsonOption, invocation_of
from threadmill.cli.output import note, show
from threadmill.dlq import Desk
from threadmill.dlq.filter import LetterFilter


@takes_filter
def export(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where they are written to; default: stdout."),
    ] = None,
    as_json: JsonOption = False,
    *,
    chosen: LetterFilter,
) -> None:
    """Dead letters with their runs and inputs, a JSON object a line; without options all of them."""
    with Desk(invocation_of(context).settings(of=chosen.tenant)) as desk:
        lines = desk.export(chosen)
        if output is None:
            number = _write(sys.stdout, lines)
            sys.stdout.flush()
            note(f"{number} dead letters")
            return
        number = _save(output, lines)
    show(
        as_json,
        {"dead_letters": number, "output": str(output)},
        lambda: Text(f"{number} dead letters are in {output}"),
    )


def _save(output: Path, lines: Iterable[str]) -> int:
    """Writes a file that has its name only once it is whole. Returns the number of dead letters."""
    part = output.with_name(f"{output.name}.part")
    try:
        # The inputs of users: for the operator's own eyes.
        part.touch(0o600)
        with part.open("w", encoding="utf-8") as file:
            number = _write(file, lines)
    except OSError as error:
        raise typer.BadParameter(f"{output}: {error.strerror}") from None
    except BaseException:
        part.unlink()
        raise
    part.replace(output)
    return number


def _write(file: TextIO, lines: Iterable[str]) -> int:
    """Writes the lines, of which the last one seals the others. Returns the number of dead letters."""
    return sum(1 for line in lines if file.write(f"{line}\n")) - 1


def import_letters(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="What `dlq export` wrote.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Put exported dead letters into this ledger, all of them or, where one cannot be, none."""
    with Desk(invocation_of(context).settings()) as desk:
        done = desk.import_(_lines(file))
    known = f"; {done.known} were there already and are as they were" if done.known else ""
    show(
        as_json,
        {"dead_letters": done.letters, "known": done.known},
        lambda: Text(f"{done.letters} dead letters were imported{known}"),
    )


def _lines(file: str) -> Iterator[str]:
    """The lines of a file, or of stdin, without their ends; what cannot be read is bad usage."""
    try:
        with sys.stdin.buffer if file == "-" else Path(file).open("rb") as lines:
            for line in lines:
                yield line.decode().removesuffix("\n")
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{file}: is no UTF-8") from None
