"""The event stream of a run: what its graph tells while it runs, in Redis, for whoever follows it.

An entry of the Redis stream has the fields of FIELDS. `number` counts an attempt's events from 1, so that a
reader sees where some are missing: a stream keeps its newest only, and Redis may be away.

Anybody who once held the run's lease can write here, a worker too that was frozen and given up. So a reader
shows an event only after the ledger has told it, later than the event was read, that the event's attempt has
the lease still, or ended the run with success.
"""

from __future__ import annotations

import uuid
from typing import Literal

FIELDS = ("attempt", "number", "mode", "namespace", "data")

# LangGraph's own words for what is streamed.
StreamMode = Literal["values", "updates", "messages", "custom", "tasks", "checkpoints", "debug"]


def stream_key(run_id: uuid.UUID | str) -> str:
    """The key of the run's stream."""
    return f"threadmill:events:{run_id}"
