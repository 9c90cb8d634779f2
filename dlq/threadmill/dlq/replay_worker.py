"""The replay worker: takes due dead letters, gives their runs back as pending, and backs off.

Whether a replay succeeded is written by the worker that executes the run, in the transaction that ends it:
the dead letter is then resolved, or waiting again without a time. This loop gives a time to what has none,
by a tenacity wait strategy over the number of replays, and parks what was replayed `max_replays` times.
"""

from __future__ import annotations

import threading

import structlog
import tenacity
from sqlalchemy import func, literal_column, select
from sqlalchemy.sql import Executable
from tenacity.wait import wait_base

from threadmill.core.database import Database
from threadmill.core.doorbell import Doorbell
from threadmill.core.errors import NotReplayable, Unavailable
from threadmill.core.models import DeadLetter as DeadLetterRow
from threadmill.core.models import table_of
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import park, schedule_replay, thread_has_moved
from threadmill.dlq.desk import note, replay_letter

BATCH = 100

_letters = table_of(DeadLetterRow)
_log = structlog.get_logger("threadmill.replay")


def _waiting() -> Executable:
    """Dead letters that wait and have no time yet, or whose time has come; the oldest first."""
    return (
        select(
            _letters.c.id,
            _letters.c.tenant,
            _letters.c.thread_id,
            _letters.c.graph,
            _letters.c.replays,
            _letters.c.checkpoint_id,
            _letters.c.next_replay_at,
            thread_has_moved().label("moved"),
        )
        .where(
            _letters.c.status == literal_column("'waiting'"),
            func.coalesce(_letters.c.next_replay_at, func.now()) <= func.now(),
        )
        .order_by(_letters.c.id)
        .limit(BATCH)
    )


_WAITING = _waiting()


class ReplayWorker:
    """Drains dead letters until it is stopped. Several may run: each transition is a compare-and-set."""

    def __init__(self, settings: Settings) -> None:
        """Raises ServicesNotFound."""
        self._settings = settings.located()
        self._database = Database(self._settings)
        self._doorbell = Doorbell(self._settings)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Drains until `stop` is called; waits through times in which Postgres is away.

        Raises DatabaseUnavailable or DatabaseNotMigrated where it cannot even begin.
        """
        self._database.carry_out(_read())
        _log.info("replay.ready")
        while not self._stopping.wait(self._settings.replay_interval):
            try:
                self.drain_once()
            except Unavailable as error:
                _log.warning("replay.waits", error=type(error).__name__)
        self._database.close()
        self._doorbell.close()

    def stop(self) -> None:
        """Ends `run` after the step under way; may be called from a signal handler."""
        self._stopping.set()

    def drain_once(self) -> int:
        """Schedules, parks and replays what is due now; returns how many runs were given back."""
        replayed = 0
        for row in self._database.carry_out(_read()):
            if row["replays"] >= self._settings.max_replays:
                self._park(row, f"replayed {row['replays']} times without success")
            elif row["moved"] and row["checkpoint_id"] is not None:
                # The run's input is in the thread's state already; once more would double it.
                self._park(row, "the thread has moved on; replaying would append the input once more")
            elif row["next_replay_at"] is None:
                self._schedule(row)
            else:
                replayed += self._replay(row)
        return replayed

    def _park(self, row: Row, why: str) -> None:
        step = Step(park(), {"letter_id": row["id"], "note": note("park", why=why)})
        self._database.carry_out(_one(step))
        _log.warning("replay.parked", dead_letter=str(row["id"]), tenant=row["tenant"], why=why)

    def _schedule(self, row: Row) -> None:
        delay = replay_delay(self._settings, row["replays"])
        self._database.carry_out(_one(Step(schedule_replay(), {"letter_id": row["id"], "delay": delay})))

    def _replay(self, row: Row) -> bool:
        try:
            letter, bells = self._database.carry_out(replay_letter(str(row["id"]), note("drain")))
        except NotReplayable:
            return False  # another drainer or an operator was first
        self._doorbell.ring(bells)
        _log.info(
            "replay.replayed",
            dead_letter=letter.id,
            tenant=letter.tenant,
            thread=letter.thread_id,
            run=letter.run_id,
            mode=letter.replay_mode,
        )
        return True


def replay_delay(settings: Settings, replays: int) -> float:
    """Seconds until the next replay: exponential with full jitter, `replay_delay` doubling to its maximum."""
    strategy: wait_base = tenacity.wait_random_exponential(
        multiplier=settings.replay_delay, max=settings.replay_delay_max
    )
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = replays + 1
    return strategy(state)


def _read() -> Plan[list[Row]]:
    (rows,) = yield Batch([Step(_WAITING, {})])
    return list(rows)


def _one(step: Step) -> Plan[None]:
    yield Batch([step])
