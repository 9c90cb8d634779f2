"""Runs an operator's command with each alarm on its standard input."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from contextlib import suppress

import structlog

from threadmill.core.errors import InvalidOption
from threadmill.dlq.alarm import Alarm

COMMAND_SECONDS = 30.0
# What is left in the log of what a command that failed wrote.
WORDS_KEPT = 500

_log = structlog.get_logger("threadmill.watch")


class AlarmCommand:
    """A command line, split as a shell would and run without one."""

    def __init__(self, command: str, *, timeout: float = COMMAND_SECONDS) -> None:
        """timeout: seconds until it is killed, with what it has started. Raises InvalidOption."""
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise InvalidOption("exec", "…", str(error)) from None
        if not self._arguments:
            raise InvalidOption("exec", command, "is empty")
        self._timeout = timeout

    def tell(self, alarm: Alarm) -> bool:
        """Runs the command to its end; False, and a line in the log, where it failed or took too long."""
        # The key of the webhook is none of the command's business.
        environment = {
            name: value for name, value in os.environ.items() if name.upper() != "THREADMILL_WEBHOOK_SECRET"
        }
        try:
            process = subprocess.Popen(
                self._arguments,
                env={**environment, "THREADMILL_EVENT": alarm.type},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a group of its own, to be killed as one
            )
        except OSError as error:
            return self._failed(alarm, error=type(error).__name__)
        with process:
            try:
                _, words = process.communicate(alarm.to_json().encode() + b"\n", self._timeout)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                return self._failed(alarm, error="took too long", seconds=self._timeout)
        if process.returncode:
            return self._failed(
                alarm, status=process.returncode, stderr=words.decode(errors="replace")[-WORDS_KEPT:].strip()
            )
        return True

    # Its arguments may hold a token, so the log names the program only.
    def _failed(self, alarm: Alarm, **why: object) -> bool:
        _log.error("watch.command_failed", command=self._arguments[0], alarm=alarm.id, type=alarm.type, **why)
        return False
