"""What is not drained for the time being: a graph, a tenant or a group."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Text, bindparam, delete, select
from sqlalchemy.dialects.postgresql import insert

from threadmill.core.document import to_json
from threadmill.core.errors import InvalidOption
from threadmill.core.keys import check_tenant
from threadmill.core.models import REPLAY_PAUSE_KINDS, ReplayPause, table_of
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import record_action
from threadmill.producers.run import timestamp

MAX_NAME = 255

_pauses = table_of(ReplayPause)
_KIND, _NAME = bindparam("kind", type_=Text), bindparam("name", type_=Text)
_LIST = select(*_pauses.c).order_by(_pauses.c.kind, _pauses.c.name)
_ONE = select(*_pauses.c).where(_pauses.c.kind == _KIND, _pauses.c.name == _NAME)
_REMOVE = delete(_pauses).where(_pauses.c.kind == _KIND, _pauses.c.name == _NAME).returning(_pauses.c.kind)
_ADD = (
    insert(_pauses)
    .values(kind=_KIND, name=_NAME, by=bindparam("by", type_=Text), reason=bindparam("reason", type_=Text))
    .on_conflict_do_nothing(index_elements=[_pauses.c.kind, _pauses.c.name])
)


@dataclass(frozen=True, slots=True)
class Pause:
    """The replay worker leaves the dead letters of this graph, tenant or group alone. kind: which of them."""

    kind: str
    name: str
    since: datetime.datetime
    by: str
    reason: str | None

    def to_dict(self) -> dict[str, Any]:
        """The pause as JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "since": timestamp(self.since),
            "by": self.by,
            "reason": self.reason,
        }


def check_name(kind: str, name: str, kinds: tuple[str, ...]) -> None:
    """Raises InvalidOption for what is none of these kinds, and for what cannot be a name of it."""
    if kind not in kinds:
        raise InvalidOption("kind", kind, f"must be one of {', '.join(kinds)}")
    if kind == "tenant":
        check_tenant(name)
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        raise InvalidOption("name", name, f"must be 1 to {MAX_NAME} characters")
    to_json("name", name)


def add_pause(kind: str, name: str, reason: str | None, by: str) -> Plan[Pause]:
    """The plan of `Desk.pause`; one that is there already stays as it was."""
    check_name(kind, name, REPLAY_PAUSE_KINDS)
    if reason is not None:
        to_json("reason", reason)
    key = {"kind": kind, "name": name}
    _, rows, _ = yield Batch(
        [
            Step(_ADD, {**key, "by": by, "reason": reason}),
            Step(_ONE, key),
            _audit("pause", key, by, reason),
        ]
    )
    return _pause_of(rows[0])


def remove_pause(kind: str, name: str, by: str) -> Plan[bool]:
    """The plan of `Desk.unpause`."""
    check_name(kind, name, REPLAY_PAUSE_KINDS)
    key = {"kind": kind, "name": name}
    (removed,) = yield Batch([Step(_REMOVE, key)], final=False)
    if removed:
        yield Batch([_audit("unpause", key, by, None)])
    return bool(removed)


def list_pauses() -> Plan[list[Pause]]:
    """The plan of `Desk.pauses`."""
    (rows,) = yield Batch([Step(_LIST, {})])
    return [_pause_of(row) for row in rows]


def _audit(action: str, key: dict[str, str], by: str, reason: str | None) -> Step:
    tenant = key["name"] if key["kind"] == "tenant" else None
    facts = key if reason is None else {**key, "reason": reason}
    return Step(
        record_action(), {"letter_id": None, "tenant": tenant, "by": by, "action": action, "facts": facts}
    )


def _pause_of(row: Row) -> Pause:
    return Pause(row["kind"], row["name"], row["since"], row["by"], row["reason"])
