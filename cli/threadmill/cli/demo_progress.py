"""How far the demo is, read from the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select

from threadmill.core.models import DeadLetter, Run, Worker, table_of
from threadmill.core.statement import Batch, Plan, Step

_runs = table_of(Run)
_letters = table_of(DeadLetter)
_workers = table_of(Worker)


def _count_by_status(table: type[Run] | type[DeadLetter]) -> Step:
    rows = table_of(table)
    counts = select(rows.c.tenant, rows.c.status, func.count().label("number"))
    return Step(counts.group_by(rows.c.tenant, rows.c.status), {})


_RUNS = _count_by_status(Run)
_LETTERS = _count_by_status(DeadLetter)
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
    """All runs at one moment, by tenant."""

    shares: Mapping[str, Share]

    @property
    def whole(self) -> Share:
        shares = self.shares.values()
        return Share(
            sum((share.runs for share in shares), Counter()),
            sum((share.letters for share in shares), Counter()),
        )


def read_progress() -> Plan[Progress]:
    """The plan that counts the runs and the dead letters."""
    runs, letters = yield Batch([_RUNS, _LETTERS])
    shares: dict[str, Share] = {}
    for row in sorted(runs, key=lambda row: str(row["tenant"])):
        shares.setdefault(row["tenant"], Share(Counter(), Counter())).runs[row["status"]] = row["number"]
    for row in letters:
        shares[row["tenant"]].letters[row["status"]] = row["number"]
    return Progress(shares)


def count_workers() -> Plan[int]:
    """The plan that counts the worker processes that serve."""
    (rows,) = yield Batch([_WORKERS])
    return int(rows[0]["number"])
