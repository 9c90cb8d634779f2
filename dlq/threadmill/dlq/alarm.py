"""What `Watch` tells of: what happened, and to which dead letters."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, field
from typing import Any

from uuid_utils.compat import uuid7

NEW_GROUP = "group.new"
GROUP_GROWS = "group.growing"
PARKED = "letters.parked"
HELD = "lanes.held"


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that happened. It names a group, ids and numbers; no message, input or state of a run.

    id: stays the same however often it is sent.
    """

    type: str
    timestamp: datetime.datetime
    data: dict[str, Any]
    id: str = field(default_factory=lambda: str(uuid7()))

    def to_dict(self) -> dict[str, Any]:
        """The alarm as JSON values."""
        return {
            "id": self.id,
            "type": self.type,
            "timestamp": self.timestamp.isoformat(),
            "data": self.data,
        }

    def to_json(self) -> str:
        """The alarm on one line."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))
