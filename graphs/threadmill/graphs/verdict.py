"""What an exception means for the run that it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from threadmill.core.errors import InvalidOption

Kind: TypeAlias = Literal["transient", "rate_limited", "permanent", "infrastructure"]
KINDS: frozenset[str] = frozenset(get_args(Kind))

# A day. A server whose clock is wrong can name a date years ahead, and the ledger has to add this to a time.
MAX_RETRY_AFTER = 86_400.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an exception means. Impossible values raise InvalidOption.

    kind: transient (the same call may succeed later), rate_limited (it will, once the time is over),
        permanent (it fails every time), infrastructure (the run did nothing wrong).
    retry_after: the seconds that the other side asked to wait, at most a day; None where it said nothing.
    why: a few words for the attempt's record, such as "HTTP 503"; never the exception's message, which may
        hold what a user wrote.
    """

    kind: Kind
    retry_after: float | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise InvalidOption("kind", self.kind, f"must be one of {', '.join(sorted(KINDS))}")
        if self.retry_after is not None and bounded(self.retry_after) != self.retry_after:
            raise InvalidOption(
                "retry_after", self.retry_after, f"must be None or 0 to {MAX_RETRY_AFTER:.0f} seconds"
            )
        if not isinstance(self.why, str):
            raise InvalidOption("why", self.why, "must be a string")


def bounded(seconds: object) -> float | None:
    """The number, brought into 0 … MAX_RETRY_AFTER; None for what is no finite number."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    if isinstance(seconds, float) and not math.isfinite(seconds):
        return None
    return float(min(max(seconds, 0), MAX_RETRY_AFTER))
