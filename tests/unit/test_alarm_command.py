"""A command gets each alarm, is bounded in time, and its failure is the log's."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from threadmill.core.errors import InvalidOption
from threadmill.dlq.alarm import PARKED, Alarm
from threadmill.dlq.alarm_command import AlarmCommand

ALARM = Alarm(PARKED, datetime.datetime.now(datetime.UTC), {"group": "f", "count": 3})


def python(source: str, *arguments: object) -> str:
    return shlex.join([sys.executable, "-c", source, *map(str, arguments)])


def test_a_command_reads_the_alarm_and_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADMILL_WEBHOOK_SECRET", "whsec_x")
    kept = tmp_path / "kept"
    source = (
        "import json, os, sys; json.dump([sys.stdin.read(), os.environ.get('THREADMILL_EVENT'),"
        "os.environ.get('THREADMILL_WEBHOOK_SECRET')], open(sys.argv[1], 'w'))"
    )
    assert AlarmCommand(python(source, kept)).tell(ALARM)
    body, event, secret = json.loads(kept.read_text())
    assert json.loads(body) == ALARM.to_dict()
    assert event == "letters.parked"
    assert secret is None


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    assert AlarmCommand(f"echo $(touch {tmp_path}/made); touch {tmp_path}/made").tell(ALARM)
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_fails_is_logged_without_its_arguments() -> None:
    with capture_logs() as lines:
        assert not AlarmCommand(python("import sys; sys.exit('oh' + ' no')", "token-123")).tell(ALARM)
    assert lines[0]["event"] == "watch.command_failed"
    assert lines[0]["status"] == 1
    assert lines[0]["stderr"] == "oh no"
    assert "token-123" not in str(lines)


def test_a_command_that_does_not_read_is_no_failure() -> None:
    large = Alarm(PARKED, ALARM.timestamp, {"letters": ["x" * 100] * 10_000})
    assert AlarmCommand("true").tell(large)


def test_a_command_that_is_not_there_is_logged() -> None:
    with capture_logs() as lines:
        assert not AlarmCommand("/no/such/command").tell(ALARM)
    assert lines[0]["error"] == "FileNotFoundError"


def test_a_command_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path) -> None:
    kept = tmp_path / "alive"
    child = "import sys, time; time.sleep(1.5); open(sys.argv[1], 'w').close()"
    source = (
        "import subprocess, sys, time;"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, sys.argv[1]]); time.sleep(60)"
    )
    started = time.monotonic()
    with capture_logs() as lines:
        assert not AlarmCommand(python(source, kept), timeout=0.5).tell(ALARM)
    assert time.monotonic() - started < 10
    assert lines[0]["error"] == "took too long"
    time.sleep(1.5)
    assert not kept.exists()


@pytest.mark.parametrize("command", ["", "  ", "echo 'unfinished"])
def test_what_is_no_command_is_refused(command: str) -> None:
    with pytest.raises(InvalidOption):
        AlarmCommand(command)
