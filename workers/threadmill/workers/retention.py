"""Retention: the leader removes what is past its time, a little in each sweep.

Outputs after `output_ttl`, closed dead letters after `dead_letter_ttl`, runs with their records after
`run_ttl`, checkpoints as the graph's policy says (`checkpoint_ttl`). The leader has more urgent things to do,
so a round goes on in the next sweep when its time is up, and the next round begins a while after this one has
found nothing more.

Threads are found by their runs, in the order in which these finished: a thread changes only when a run of it
finishes. How far a graph's threads have been pruned is kept in the ledger, and another leader goes on there.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from datetime import datetime
from typing import Any

import psycopg
import structlog
from psycopg.rows import DictRow
from sqlalchemy import Text, bindparam, func, select, true

from threadmill.core.keys import thread_key
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Row, Rows, Step, send_unpipelined
from threadmill.core.transitions import (
    bind_retention,
    empty_groups,
    expire_outputs,
    finished_threads,
    hold_groups,
    hold_thread,
    note_pruned,
    old_trials,
    prune_thread,
    pruned_graphs,
    remove_groups,
    remove_letters,
    remove_runs,
    remove_trial,
    remove_trial_thread,
)

# What a sweep spends on it, in seconds; the statement under way then is the last.
SWEEP_SECONDS = 0.1
ROUND_INTERVAL = 60.0
# Outputs and runs that one statement removes; the runs by which threads are found.
BATCH = 200
# What one thread may take, in seconds; a thread that takes longer keeps its checkpoints.
THREAD_SECONDS = 2.0
# How long the removal of empty groups may wait for runs that are being buried, and others for it, in seconds.
GROUPS_SECONDS = 0.2

_LOCK_PATIENCE = select(func.set_config("lock_timeout", bindparam("milliseconds", type_=Text), true()))

# Nobody waits that long for a trial.
TRIAL_SECONDS = 2 * 3600.0

_log = structlog.get_logger("threadmill.retention")

# Each batch is a transaction of its own. A batch that fails is raised where it was yielded.
_Round = Generator[Batch, list[Rows], None]


class Retention:
    """One leader's rounds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._round: _Round | None = None
        self._batch: Batch | None = None
        self._due_at = float("-inf")

    def work(self, connection: psycopg.Connection[DictRow]) -> None:
        """Does a little of what is due. Raises psycopg's error where the connection is broken, only."""
        if self._round is None or self._batch is None:
            if time.monotonic() < self._due_at:
                return
            self._round = self._rounds()
            self._batch = next(self._round)
        ends_at = time.monotonic() + SWEEP_SECONDS
        while True:  # once at least
            self._batch = self._advance(connection, self._round, self._batch)
            if self._batch is None:
                self._due_at = time.monotonic() + ROUND_INTERVAL
                return
            if time.monotonic() >= ends_at:
                return

    def _advance(self, connection: psycopg.Connection[DictRow], going: _Round, batch: Batch) -> Batch | None:
        """The batch that follows; None at the end of the round."""
        try:
            try:
                rows = send_unpipelined(connection, batch)
            except psycopg.Error as error:
                if connection.broken:
                    raise
                return going.throw(error)
            return going.send(rows)
        except StopIteration:
            return None
        except psycopg.Error as error:
            if connection.broken:
                raise
            # Whatever it is, it must not keep the leader from sweeping.
            _log.warning("retention.failed", error=type(error).__name__)
            return None

    def _rounds(self) -> _Round:
        yield from self._expire_outputs()
        if self._settings.dead_letter_ttl is not None:
            yield from self._remove_letters(self._settings.dead_letter_ttl)
        yield from self._remove_groups()
        yield from self._remove_trials()
        if self._settings.run_ttl is not None:
            yield from self._remove_runs(self._settings.run_ttl)
        (graphs,) = yield Batch([Step(pruned_graphs(), {})])
        for graph in graphs:
            yield from self._prune_graph(graph)

    def _expire_outputs(self) -> _Round:
        step = Step(expire_outputs(), {"ttl": self._settings.output_ttl, "limit": BATCH})
        while True:
            (expired,) = yield Batch([step])
            if len(expired) < BATCH:
                return

    def _remove_letters(self, ttl: float) -> _Round:
        step = Step(remove_letters(), {"ttl": ttl, "limit": BATCH})
        while True:
            (removed,) = yield Batch([step])
            if len(removed) < BATCH:
                return

    def _remove_groups(self) -> _Round:
        after = ""
        while True:
            (rows,) = yield Batch([Step(empty_groups(), {"after": after, "limit": BATCH})])
            if rows[0]["seen_to"] is None:
                return
            after = rows[0]["seen_to"]
            empty = [row["fingerprint"] for row in rows if row["fingerprint"] is not None]
            if not empty:
                continue
            try:
                yield Batch(
                    [
                        Step(_LOCK_PATIENCE, {"milliseconds": str(round(GROUPS_SECONDS * 1000))}),
                        Step(hold_groups(), {}),
                        Step(remove_groups(), {"fingerprints": empty}),
                    ]
                )
            except psycopg.errors.LockNotAvailable:
                _log.info("retention.groups_in_use")  # they are removed in a later round

    def _remove_trials(self) -> _Round:
        """Those that somebody asked for who has gone without removing them."""
        (trials,) = yield Batch([Step(old_trials(), {"age": TRIAL_SECONDS, "limit": BATCH})])
        for trial in trials:
            yield Batch([Step(remove_trial(), trial), Step(remove_trial_thread(), trial)])

    def _remove_runs(self, ttl: float) -> _Round:
        """Goes through all runs past their time: those with a dead letter stay, and are passed."""
        after: datetime | None = None
        while True:
            (rows,) = yield Batch([Step(remove_runs(), {"after": after, "ttl": ttl, "limit": BATCH})])
            if rows[0]["seen_to"] is None:
                return
            after = rows[0]["seen_to"]
            yield from self._prune(row for row in rows if row["tenant"] is not None)

    def _prune_graph(self, graph: Row) -> _Round:
        after = graph["pruned_to"]
        while True:
            parameters = {"graph": graph["name"], "after": after, "ttl": graph["ttl"], "limit": BATCH}
            (rows,) = yield Batch([Step(finished_threads(), parameters)])
            if rows[0]["seen_to"] is None:
                return
            after = rows[0]["seen_to"]
            threads = [{**row, "ttl": graph["ttl"]} for row in rows if row["tenant"] is not None]
            yield from self._prune(threads)
            yield Batch([Step(note_pruned(), {"graph": graph["name"], "to": after})])

    def _prune(self, threads: Any) -> _Round:
        for thread in threads:
            try:
                *_, rows = yield _pruning(thread)
            except psycopg.errors.LockNotAvailable:
                continue  # something is about to happen on it; it is found again when that has finished
            except psycopg.errors.QueryCanceled:
                _log.warning(
                    "retention.too_long",
                    tenant=thread["tenant"],
                    thread=thread["thread_id"],
                    seconds=THREAD_SECONDS,
                )
                continue
            if rows[0]["pruned"]:
                _log.info(
                    "retention.pruned",
                    tenant=thread["tenant"],
                    thread=thread["thread_id"],
                    checkpoints=rows[0]["pruned"],
                )


def _pruning(thread: Row) -> Batch:
    tenant, thread_id = thread["tenant"], thread["thread_id"]
    where = {"tenant": tenant, "thread_id": thread_id}
    return Batch(
        [
            Step(bind_retention(), {"tenant": tenant, "milliseconds": str(round(THREAD_SECONDS * 1000))}),
            Step(hold_thread(), where),
            Step(prune_thread(), {**where, "key": thread_key(tenant, thread_id), "ttl": thread["ttl"]}),
        ]
    )
