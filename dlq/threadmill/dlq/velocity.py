"""How fast dead letters are replayed: limits in the ledger, for all drainers, and a drainer's own."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from threadmill.core.errors import InvalidOption
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import BURST, lock_rates, spend_rates

_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "hour": 3600.0}


def parse_rate(text: str) -> float:
    """Replays a second: "50/s", "10/min", "100/h"; "5" is "5/s". Raises InvalidOption."""
    number, _, unit = text.partition("/")
    try:
        rate = float(number) / _UNITS[unit.strip() or "s"]
    except (ValueError, KeyError):
        raise InvalidOption("rate", text, "must be a number a time, such as 50/s, 10/min or 100/h") from None
    return check_rate(rate, text)


def check_rate(rate: float, shown: object = None) -> float:
    """The rate, if anything gets through. Raises InvalidOption."""
    if not (math.isfinite(rate) and rate > 0):
        raise InvalidOption(
            "rate", rate if shown is None else shown, "must be above 0; to let nothing through, pause"
        )
    return rate


class Admission(NamedTuple):
    """letters: those that may go. steps: what they spend. waits: seconds, one of which the others wait."""

    letters: list[Row]
    steps: list[Step]
    waits: list[float]


def admit(letters: Sequence[Row]) -> Plan[Admission]:
    """Those of the letters, in their order, that the limits in the ledger let through.

    Before any thread's lock, and in the transaction that carries out the steps. letters: with graph, tenant.
    """
    names = {
        "graphs": sorted({letter["graph"] for letter in letters}),
        "tenants": sorted({letter["tenant"] for letter in letters}),
    }
    (limits,) = yield Batch([Step(lock_rates(), names)], final=False)
    left = {(limit["kind"], limit["name"]): limit["allowed"] for limit in limits}
    general = [key for key in left if key[0] == "all"]
    spent: Counter[tuple[str, str]] = Counter()
    admitted = []
    for letter in letters:
        own = [("graph", letter["graph"]), ("tenant", letter["tenant"])]
        concerned = [*general, *(key for key in own if key in left)]
        if all(spent[key] < left[key] for key in concerned):
            spent.update(concerned)
            admitted.append(letter)
    # What is used up only now allows the next one within moments.
    waits = [limit["next_in"] for limit in limits if spent[limit["kind"], limit["name"]] >= limit["allowed"]]
    steps = [_spend(spent)] if spent else []
    return Admission(admitted, steps, waits if len(admitted) < len(letters) else [])


def _spend(spent: Counter[tuple[str, str]]) -> Step:
    return Step(
        spend_rates(),
        {
            "kinds": [kind for kind, _ in spent],
            "names": [name for _, name in spent],
            "counts": list(spent.values()),
        },
    )


class Bucket:
    """The limit of one drainer: so many a second, evenly (GCRA, ITU-T I.371). rate: None for no limit."""

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises InvalidOption."""
        self._rate = None if rate is None else check_rate(rate)
        self._clock = clock
        self._spent_until = float("-inf")

    def allowed(self, wanted: int) -> int:
        """How many of them may go now."""
        if self._rate is None:
            return wanted
        return min(wanted, math.floor(self._room(self._rate) * self._rate + 1e-6))

    def next_in(self) -> float:
        """Seconds until one more may go."""
        return 0.0 if self._rate is None else max(1 / self._rate - self._room(self._rate), 0.0)

    def _room(self, rate: float) -> float:
        """How many seconds' worth of the rate may go now."""
        return max(1 / rate, BURST) - max(self._spent_until - self._clock(), 0)

    def spend(self, number: int) -> None:
        if self._rate is not None:
            self._spent_until = max(self._spent_until, self._clock()) + number / self._rate
