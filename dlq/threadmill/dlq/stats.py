"""How many dead letters there are, of what kind, and how old."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from threadmill.core.models import DEAD_LETTER_REASONS, DEAD_LETTER_STATUSES, SCHEMA
from threadmill.core.statement import Batch, Plan, Rows, Step
from threadmill.producers.run import timestamp

STATS_MOST = 10_000
CLOSED = ("resolved", "discarded")

_LETTERS = f"{SCHEMA}.dead_letters"


def _words(words: tuple[str, ...]) -> str:
    return f"unnest(array[{', '.join(repr(word) for word in words)}])"


_KINDS = text(
    f"""
    select status.word as status, reason.word as reason, counted.found,
        case when status.word = 'waiting' then (
            -- As a row, in the order of all its columns: so no other index can take this one's place.
            select letter.created_at from {_LETTERS} as letter
            where (letter.status, letter.reason) >= (status.word, reason.word)
                and (letter.status, letter.reason) <= (status.word, reason.word)
            order by letter.status, letter.reason, letter.id limit 1
        ) end as oldest
    from {_words(DEAD_LETTER_STATUSES)} as status(word), {_words(DEAD_LETTER_REASONS)} as reason(word),
        lateral (
            select count(*) as found from (
                select from {_LETTERS} as letter
                where (letter.status, letter.reason) >= (status.word, reason.word)
                    and (letter.status, letter.reason) <= (status.word, reason.word)
                order by letter.status, letter.reason, letter.id limit :most
            ) as part
        ) as counted
    """  # noqa: S608 - constants
)


def _bounded(rows: str) -> str:
    return f"(select count(*) from (select from {SCHEMA}.{rows} limit :most) as part)"  # noqa: S608


_OTHERS = text(
    f"""
    select {_bounded("dead_letters where status = 'waiting' and next_replay_at <= now()")} as due,
        {_bounded("replay_groups")} as groups,
        {_bounded("held_lanes")} as held_lanes,
        {_bounded("replay_jobs where status = 'running'")} as jobs
    """
)


@dataclass(frozen=True, slots=True)
class Stats:
    """Dead letters in numbers, each counted up to `STATS_MOST`.

    by_status, by_reason: of all there are. open_by_reason: of those that are neither resolved nor discarded.
    oldest_waiting: when the oldest that waits was recorded. due: how many the replay worker may take now.
    groups, held_lanes: how many there are. jobs: the bulk replays that run.
    """

    by_status: Mapping[str, int]
    by_reason: Mapping[str, int]
    open_by_reason: Mapping[str, int]
    oldest_waiting: datetime.datetime | None
    due: int
    groups: int
    held_lanes: int
    jobs: int

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {
            "by_status": dict(self.by_status),
            "by_reason": dict(self.by_reason),
            "open_by_reason": dict(self.open_by_reason),
            "oldest_waiting": timestamp(self.oldest_waiting),
            "due": self.due,
            "groups": self.groups,
            "held_lanes": self.held_lanes,
            "jobs": self.jobs,
        }


def read_stats() -> Plan[Stats]:
    """The numbers of this moment."""
    kinds, others = yield Batch([Step(_KINDS, {"most": STATS_MOST}), Step(_OTHERS, {"most": STATS_MOST})])
    still_open = [row for row in kinds if row["status"] not in CLOSED]
    return Stats(
        by_status=_sums("status", DEAD_LETTER_STATUSES, kinds),
        by_reason=_sums("reason", DEAD_LETTER_REASONS, kinds),
        open_by_reason=_sums("reason", DEAD_LETTER_REASONS, still_open),
        oldest_waiting=min((row["oldest"] for row in kinds if row["oldest"] is not None), default=None),
        **others[0],
    )


def _sums(column: str, words: tuple[str, ...], rows: Rows) -> dict[str, int]:
    return {word: min(STATS_MOST, sum(row["found"] for row in rows if row[column] == word)) for word in words}
