"""How many runs may be pending: what a producer asks of each enqueue, and what it remembers of the answers.

The check itself is the function `admit` of migration 0002, in the transaction of the enqueue. It is derived
from the rows and may be passed by those only who enqueue at the same moment, which do not see each other.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from threadmill.core.errors import QuotaExceeded, TenantQuotaExceeded
from threadmill.core.settings import Settings
from threadmill.core.statement import Row, Step
from threadmill.core.transitions import QUOTA_EXCEEDED, admit, admit_and_bind
from threadmill.producers.request import SUPERSEDING, RunRequest

# To count takes as long as so many runs take that are younger, at the least: what has just ended is read too.
_AT_LEAST = 2_000
# Of so many tenants it is known how many runs they have pending; then all are forgotten.
_TENANTS = 10_000
# Pending runs that come back (replayed, rescued, tried again) are not among the younger ones: what is known
# is not relied upon for longer, in seconds.
_KNOWN_FOR = 10.0
# From so many pending runs on counting takes milliseconds: whoever was refused is then refused for a while
# without being counted again.
_MANY = 10_000
_REFUSED_FOR = 1.0

_FLEET = ""  # no tenant's name


@dataclass(frozen=True)
class _Count:
    """So many runs with ids before `since` were pending at that moment."""

    known: int
    since: uuid.UUID
    at: float


class Quotas:
    """The bounds of one producer. Threads may share it: a lost memory only costs counting again."""

    def __init__(self, settings: Settings) -> None:
        self._allowed = {"tenant": settings.max_pending_per_tenant, "fleet": settings.max_pending}
        self._counts: dict[str, _Count] = {}
        self._refusals: dict[str, tuple[float, QuotaExceeded]] = {}

    def steps(self, groups: Sequence[Sequence[RunRequest]], *, bind: bool) -> list[Step]:
        """Admits the requests of each tenant, and binds the transaction to the tenant if there is one only.

        Raises QuotaExceeded.
        """
        total = sum(len(group) for group in groups)
        # Before the ids of these requests, which are counted from then on.
        mark = uuid.UUID(min(request.id for group in groups for request in group))
        return [self._step(group, total, mark, bind=bind and len(groups) == 1) for group in groups]

    def _step(self, group: Sequence[RunRequest], total: int, mark: uuid.UUID, *, bind: bool) -> Step:
        tenant = group[0].tenant
        for name in (tenant, _FLEET):
            self._refuse_again(name)
        fleet = self._allowed["fleet"] is not None
        parameters: dict[str, Any] = {
            "tenant": tenant,
            # Null for none, as psycopg takes its time with every array.
            "keys": [r.idempotency_key for r in group if r.idempotency_key is not None] or None,
            "superseding": [r.thread_id for r in group if r.multitask_strategy in SUPERSEDING] or None,
            "mark": mark,
        }
        bounds = [("tenant", tenant, len(group)), ("fleet", _FLEET, total)]
        for bound, name, adding in bounds if fleet else bounds[:1]:
            count = self._counts.get(name)
            if count is not None and time.monotonic() - count.at > _KNOWN_FOR:
                self._counts.pop(name, None)
                count = None
            parameters[f"{bound}_adding"] = adding
            parameters[f"{bound}_allowed"] = self._allowed[bound]
            parameters[f"{bound}_known"] = count.known if count else None
            parameters[f"{bound}_since"] = count.since if count else None
        return Step((admit_and_bind if bind else admit)(fleet=fleet), parameters)

    def learn(self, step: Step, row: Row) -> None:
        """Remembers what the step has found out."""
        names = {"tenant": step.parameters["tenant"], "fleet": _FLEET}
        for bound, name in names.items():
            pending, marked = row.get(f"{bound}_pending") or (None, None)
            count = self._counts.get(name)
            if marked is not None:
                if len(self._counts) >= _TENANTS:
                    self._counts.clear()
                self._counts[name] = _Count(marked, step.parameters["mark"], time.monotonic())
            elif count is not None and (
                pending is None or _worth_counting(count.known, pending, step.parameters[f"{bound}_adding"])
            ):
                self._counts.pop(name, None)

    def _refuse_again(self, name: str) -> None:
        if name not in self._refusals:
            return
        until, refusal = self._refusals[name]
        if time.monotonic() < until:
            raise type(refusal)(*refusal.args)
        self._refusals.pop(name, None)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Raises TenantQuotaExceeded or QuotaExceeded for what Postgres or SQLAlchemy raise for them."""
        try:
            yield
        except Exception as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            name = refusal.tenant if isinstance(refusal, TenantQuotaExceeded) else _FLEET
            self._counts.pop(name, None)
            if refusal.pending >= _MANY:
                self._refusals[name] = (time.monotonic() + _REFUSED_FOR, refusal)
            raise refusal from None


def _worth_counting(known: int, pending: int, adding: int) -> bool:
    """Whether counting all once more costs less than counting the younger ones each time from now on.

    Of calls that add so many each, the n-th counts n * adding younger ones: that is best begun anew when it
    has come to as much in all as to count those that are known.
    """
    return (pending - known) ** 2 > 2 * max(known, _AT_LEAST) * adding


def _refusal(error: Exception) -> QuotaExceeded | None:
    raised = getattr(error, "orig", None) or error  # SQLAlchemy wraps psycopg's
    if not isinstance(raised, psycopg.Error) or raised.sqlstate != QUOTA_EXCEEDED:
        return None
    figures = json.loads(raised.diag.message_detail or "{}")
    values = (figures["pending"], figures["limit"], float(figures["retry_after"]))
    if figures["tenant"] is None:
        return QuotaExceeded(*values)
    return TenantQuotaExceeded(figures["tenant"], *values)
