"""What people and programs get to see."""

from __future__ import annotations

import datetime
import json

import pytest
from rich.console import Console, RenderableType
from rich.text import Text

from threadmill.cli import output
from threadmill.cli.output import ago, clean, headline, listing, show, span, text


def rendered(view: RenderableType, width: int) -> list[str]:
    terminal = Console(width=width, no_color=True, highlight=False)
    with terminal.capture() as capture:
        terminal.print(view)
    return [line.strip() for line in capture.get().splitlines() if line.strip()]


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert clean("a\x1b[31mb\x9bc\nd\te\u202e") == "a\\x1b[31mb\\x9bc\nd\te\u202e"


def test_brackets_of_a_user_are_no_markup() -> None:
    assert rendered(text("[bold]x[/bold] [red]"), 80) == ["[bold]x[/bold] [red]"]


def test_json_is_one_document_on_stdout_and_the_view_is_not_made(capsys: pytest.CaptureFixture[str]) -> None:
    def view() -> str:
        raise AssertionError

    show(True, {"name": "Zoë", "n": None}, view)

    assert json.loads(capsys.readouterr().out) == {"name": "Zoë", "n": None}


def test_what_is_no_terminal_gets_no_colours_and_no_broken_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show(False, None, lambda: Text("long " * 100, style="red"))

    assert capsys.readouterr().out.strip() == ("long " * 100).strip()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "0 s"),
        (1, "1 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (200_000, "2 d"),
    ],
)
def test_a_length_of_time_is_said_in_a_unit_that_fits(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


def test_a_moment_is_said_by_its_distance() -> None:
    now = datetime.datetime.now(datetime.UTC)

    assert ago(None) == ""
    assert ago(now - datetime.timedelta(seconds=30)) == "30 s ago"
    assert ago(now + datetime.timedelta(seconds=300.5)) == "in 5 min"


def test_an_error_is_told_by_the_beginning_of_its_first_line() -> None:
    assert str(headline("first\nsecond")) == "first"
    assert len(str(headline("x" * 200))) == 80


ROWS = [{"id": "0123456789" * 3, "thread": "t" * 40, "seq": "1", "error": "e" * 60}]


def test_a_narrow_terminal_leaves_out_what_can_be_spared_and_keeps_ids_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output, "console", lambda: Console(width=60))

    head, _, row, *_ = rendered(listing(ROWS, elastic=("thread", "error"), expendable=("seq",)), 60)

    assert head.split() == ["id", "thread", "error"]
    assert row.startswith(ROWS[0]["id"] + " ")


def test_a_wide_terminal_shows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "console", lambda: Console(width=200))

    head, _, row = rendered(listing(ROWS, elastic=("thread", "error"), expendable=("seq",)), 200)

    assert head.split() == ["id", "thread", "seq", "error"]
    assert row.split() == list(ROWS[0].values())


def test_an_empty_list_says_so() -> None:
    assert rendered(listing([], elastic=()), 80) == ["none"]
