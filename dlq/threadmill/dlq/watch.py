"""Watches the dead letters, and tells of what a person should know.

Alarms: a group that was not there before, a group that grows, letters that were parked, lanes that are held
for long. Each is told once in the life of a watch, which remembers in memory; two watches tell twice.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Sequence

import structlog

from threadmill.core.database import Database
from threadmill.core.errors import InvalidOption, SettingsInvalid, Unavailable
from threadmill.core.settings import Settings
from threadmill.dlq.alarm import Alarm
from threadmill.dlq.alarm_command import AlarmCommand
from threadmill.dlq.lookout import Lookout
from threadmill.dlq.webhook import Webhook

_log = structlog.get_logger("threadmill.watch")


class Watch:
    """Looks again and again until it is stopped."""

    def __init__(
        self,
        settings: Settings,
        *,
        exec: str | None = None,  # noqa: A002 - the option's own name
        webhook: str | None = None,
        secret: str | None = None,
        growing: int = 10,
        within: float = 600,
        held_longer_than: float | None = 600,
        since: datetime.datetime | None = None,
        interval: float = 5,
        on_alarm: Callable[[Alarm], object] = lambda _: None,
    ) -> None:
        """exec: a command that is run with each alarm. webhook: a URL that each is posted to, signed with the
        secret; None takes the settings'. growing, within: a group grows where more letters than so many come
        within so many seconds. held_longer_than: seconds; None tells of no lanes. since: also of what has
        happened since then; None only of what happens from now on. interval: seconds between two looks.

        Raises InvalidOption, ServicesNotFound, and SettingsInvalid where a webhook has no secret.
        """
        for name, value in (("growing", growing), ("within", within), ("interval", interval)):
            if value <= 0:
                raise InvalidOption(name, value, "must be more than 0")
        if held_longer_than is not None and held_longer_than < 0:
            raise InvalidOption("held_longer_than", held_longer_than, "must not be negative")
        self._stopping = threading.Event()
        self._tells: list[Callable[[Alarm], object]] = [on_alarm]
        if exec is not None:
            self._tells.append(AlarmCommand(exec).tell)
        if webhook is not None:
            self._tells.append(Webhook(webhook, _secret(settings, secret), stopping=self._stopping).tell)
        self._interval = interval
        self._database = Database(settings.located())
        self._lookout = Lookout(
            growing=growing, within=within, held_longer_than=held_longer_than, since=since
        )

    def run(self) -> None:
        """Watches until `stop` is called; waits through times in which Postgres is away.

        Raises DatabaseUnavailable or DatabaseNotMigrated where it cannot even begin.
        """
        self.look()
        _log.info("watch.ready")
        while not self._stopping.wait(self._interval):
            try:
                self.look()
            except Unavailable as error:
                _log.warning("watch.waits", error=type(error).__name__)
        self.close()

    def look(self) -> Sequence[Alarm]:
        """Looks once, and tells what it finds. Raises what `run` raises."""
        alarms = self._database.carry_out(self._lookout.look())
        for alarm in alarms:
            for tell in self._tells:
                tell(alarm)
        return alarms

    def stop(self) -> None:
        """Ends `run` after the step under way; may be called from a signal handler."""
        self._stopping.set()

    def close(self) -> None:
        self._database.close()


def _secret(settings: Settings, given: str | None) -> str:
    if given is not None:
        return given
    if settings.webhook_secret is None:
        raise SettingsInvalid(["webhook_secret: must be set, as what is posted is signed with it"])
    return settings.webhook_secret.get_secret_value()
