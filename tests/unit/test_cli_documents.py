"""What `threadmill enqueue` takes for a JSON value and for a time."""

from __future__ import annotations

import datetime
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from threadmill.cli.enqueue import parse_document, parse_time


class Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_a_document_is_given_as_json() -> None:
    assert parse_document('{"a": [1, "ü", null]}') == {"a": [1, "ü", None]}


def test_a_document_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text('{"a": 1}', "utf-8")

    assert parse_document(f"@{tmp_path / 'input.json'}") == {"a": 1}


def test_a_document_is_read_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b'{"a": 1}'))

    assert parse_document("-") == {"a": 1}


@pytest.mark.parametrize("text", ["", "{", "yes", "[" * 100_000, "1" * 5000], ids=len)
def test_what_is_no_json_is_bad_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no JSON"):
        parse_document(text)


def test_bytes_that_are_no_text_are_bad_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b'{"a": "\xff"}'))

    with pytest.raises(typer.BadParameter, match="no JSON"):
        parse_document("-")


def test_a_missing_file_is_bad_usage_and_is_named() -> None:
    with pytest.raises(typer.BadParameter, match=r"missing\.json: No such file"):
        parse_document("@missing.json")


@pytest.mark.parametrize("text", ["2030-01-31T12:00:00Z", "2030-01-31T13:00:00+01:00"])
def test_a_time_is_iso_8601(text: str) -> None:
    assert parse_time(text) == datetime.datetime(2030, 1, 31, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize("text", ["", "tomorrow", "12:00"])
def test_another_time_is_bad_usage(text: Any) -> None:
    with pytest.raises(typer.BadParameter, match="no ISO 8601 time"):
        parse_time(text)
