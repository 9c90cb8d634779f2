"""How many replays a second there may be: in all, of a graph, of a tenant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, Text, bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from threadmill.core.errors import InvalidOption
from threadmill.core.models import REPLAY_RATE_KINDS, ReplayRate, table_of
from threadmill.core.statement import Batch, Plan, Row, Step
from threadmill.core.transitions import record_action
from threadmill.dlq.pauses import check_name
from threadmill.dlq.velocity import check_rate

ALL = "all"

_rates = table_of(ReplayRate)
_KIND, _NAME = bindparam("kind", type_=Text), bindparam("name", type_=Text)
_LIST = select(_rates.c.kind, _rates.c.name, _rates.c.rate).order_by(_rates.c.kind, _rates.c.name)
_REMOVE = delete(_rates).where(_rates.c.kind == _KIND, _rates.c.name == _NAME).returning(_rates.c.kind)
_new = insert(_rates).values(kind=_KIND, name=_NAME, rate=bindparam("rate", type_=Float))
# What an older, slower rate had let through does not hold up those that the new one lets through.
_SET = _new.on_conflict_do_update(
    index_elements=[_rates.c.kind, _rates.c.name],
    set_={"rate": _new.excluded.rate, "spent_until": func.least(_rates.c.spent_until, func.now())},
).returning(_rates.c.kind, _rates.c.name, _rates.c.rate)


@dataclass(frozen=True, slots=True)
class Rate:
    """A velocity limit. kind: all, graph or tenant; the name of `all` is "all". rate: replays a second."""

    kind: str
    name: str
    rate: float

    def to_dict(self) -> dict[str, Any]:
        """The rate as JSON values."""
        return {"kind": self.kind, "name": self.name, "rate": self.rate}


def set_rate(kind: str, name: str, rate: float | None, by: str) -> Plan[Rate | None]:
    """The plan of `Desk.set_rate`."""
    check_name(kind, name, REPLAY_RATE_KINDS)
    if kind == ALL and name != ALL:
        raise InvalidOption("name", name, f'must be "{ALL}" where the rate is of all')
    key = {"kind": kind, "name": name}
    change = Step(_REMOVE, key) if rate is None else Step(_SET, {**key, "rate": check_rate(rate)})
    facts = {**key, "rate": rate}
    tenant = name if kind == "tenant" else None
    audit = {"letter_id": None, "tenant": tenant, "by": by, "action": "rate", "facts": facts}
    rows, _ = yield Batch([change, Step(record_action(), audit)])
    return None if rate is None else _rate_of(rows[0])


def list_rates() -> Plan[list[Rate]]:
    """The plan of `Desk.rates`."""
    (rows,) = yield Batch([Step(_LIST, {})])
    return [_rate_of(row) for row in rows]


def _rate_of(row: Row) -> Rate:
    return Rate(row["kind"], row["name"], row["rate"])
