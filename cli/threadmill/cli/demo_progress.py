"""How far the demo is, read from the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Select, Table, Text, func, literal_column, select, union_all

from threadmill.core.models import DeadLetter, Run, Worker, table_of
from threadmill.core.statement import Batch, Plan, Step
from threadmill.core.transitions import open_breakers

_runs = table_of(Run)
_letters = table_of(DeadLetter)
_workers = table_of(Worker)


def _count_by_status(rows: Table) -> Select[tuple[object, ...]]:
    counts: Select[tuple[object, ...]] = select(
        literal_column(f"'{rows.name}'", Text).label("kind"),
        rows.c.tenant,
        rows.c.status,
        func.count().label("number"),
    )
    return counts.group_by(rows.c.tenant, rows.c.status)


# One statement, so that runs and dead letters are seen at the same moment.
_COUNTS = Step(union_all(_count_by_status(_runs), _count_by_status(_letters)).order_by("tenant"), {})
_WORKERS = Step(select(func.count().label("number")).select_from(_workers), {})


@dataclass(frozen=True)
class Share:
    """One tenant's part, or the whole: how many runs and dead letters there are in each status."""

    runs: Counter[str]
    letters: Counter[str]

    @property
    def total(self) -> int:
        return self.runs.total()

    @property
    def done(self) -> int:
        return self.runs["success"]

    @property
    def waiting_letters(self) -> int:
        """Dead letters that the replay worker still has to do with."""
        return self.letters["waiting"] + self.letters["replaying"]


@dataclass(frozen=True)
class Progress:
    """All runs at one moment, by tenant. held_back_for: the seconds for which a breaker is still open."""

    shares: Mapping[str, Share]
    held_back_for: float = 0

    @property
    def whole(self) -> Share:
        shares = self.shares.values()
        return Share(
            sum((share.runs for share in shares), Counter()),
            sum((share.letters for share in shares), Counter()),
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do, because all is well or what is not was given up."""
        whole = self.whole
        return not (whole.runs["pending"] or whole.runs["running"] or whole.waiting_letters)


def read_progress() -> Plan[Progress]:
    """The plan that counts the runs and the dead letters."""
    rows, breakers = yield Batch([_COUNTS, Step(open_breakers(), {})])
    shares: dict[str, Share] = {}
    for row in rows:
        share = shares.setdefault(row["tenant"], Share(Counter(), Counter()))
        counts = share.runs if row["kind"] == _runs.name else share.letters
        counts[row["status"]] = row["number"]
    return Progress(shares, max((row["open_for"] for row in breakers), default=0))


def count_workers() -> Plan[int]:
    """The plan that counts the worker processes that serve."""
    (rows,) = yield Batch([_WORKERS])
    return int(rows[0]["number"])
