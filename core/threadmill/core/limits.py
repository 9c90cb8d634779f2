"""What tenants and graphs may: their weights, their limits, and whether they are paused.

What is set here counts for what waits already, with the next run that is to be started.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from sqlalchemy import Text, bindparam, delete, false, select, text
from sqlalchemy.dialects.postgresql import insert

from threadmill.core.database import Database
from threadmill.core.document import to_json
from threadmill.core.errors import InvalidOption
from threadmill.core.keys import check_tenant
from threadmill.core.models import LIMIT_KINDS, SCHEMA, table_of
from threadmill.core.models import Limit as LimitRow
from threadmill.core.settings import Settings
from threadmill.core.statement import Batch, Plan, Row, Rows, Step

MAX_NAME = 255
MAX_COUNT = 2**31 - 1
# As far as a tenant's runs are counted.
MOST_COUNTED = 10_000

Kind = Literal["tenant", "graph"]

_limits = table_of(LimitRow)
# Only tenants share the fleet, and only they are kept from enqueueing.
_OF_TENANTS = ("weight", "max_pending")
_KEY = (_limits.c.kind == bindparam("kind", type_=Text), _limits.c.name == bindparam("name", type_=Text))
_OF_KIND = select(_limits).where(_KEY[0]).order_by(_limits.c.name)
# What allows all is not kept.
_ALLOWING_ALL = delete(_limits).where(
    *_KEY,
    _limits.c.weight == 1,
    _limits.c.max_running.is_(None),
    _limits.c.max_pending.is_(None),
    _limits.c.rate.is_(None),
    _limits.c.paused == false(),
)


def _next_after(name: str) -> str:
    """The next tenant that has runs or limits: a step from one key of an index to the following one."""
    return f"""
        select min(tenant) as tenant from (
            (select tenant from {SCHEMA}.runs where tenant > {name} order by tenant limit 1)
            union all
            (select name from {SCHEMA}.limits where kind = 'tenant' and name > {name} order by name limit 1)
        ) as either having min(tenant) is not null
    """  # noqa: S608 - constants


_TENANTS = text(
    f"""
    with recursive names as (
        (select tenant, 1 as number from ({_next_after(":after")}) as first)
        union all
        (
            select following.tenant, number + 1
            from names cross join lateral ({_next_after("names.tenant")}) as following
            where number < :limit
        )
    )
    select names.tenant as name, pending.number as pending, pending.oldest, running.number as running,
        coalesce(limits.weight, 1) as weight, limits.max_running, limits.max_pending, limits.rate,
        coalesce(limits.paused, false) as paused
    from names
    left join {SCHEMA}.limits as limits on limits.kind = 'tenant' and limits.name = names.tenant
    cross join lateral (
        select count(*) filter (where status = 'pending') as number,
            min(created_at) filter (where status = 'pending') as oldest
        from (
            select status, created_at from {SCHEMA}.runs
            where status in ('pending', 'running') and runs.tenant = names.tenant
            order by runs.tenant, thread_id, seq limit {MOST_COUNTED}
        ) as bounded
    ) as pending
    cross join lateral (
        select count(*) as number from {SCHEMA}.runs
        where status = 'running' and runs.tenant = names.tenant
    ) as running
    order by names.tenant
    """  # noqa: S608 - constants
)


@dataclass(frozen=True, slots=True)
class Limit:
    """What a tenant or a graph may; None: as much as it likes.

    weight: its share of the fleet against other tenants', where not all that is ready can run. max_running:
    runs at once. rate: runs that are started in a second. max_pending: runs that wait, in place of the
    setting of that name. paused: none of its runs is started; those that are running go on.
    """

    kind: Kind
    name: str
    weight: float = 1
    max_running: int | None = None
    rate: float | None = None
    max_pending: int | None = None
    paused: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The limit as JSON values; what only tenants have is left out for a graph."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if self.kind == "tenant" or field.name not in _OF_TENANTS
        }


class Limits:
    """The operator's hold on tenants and graphs; it connects at its first use."""

    def __init__(self, settings: Settings) -> None:
        """Raises ServicesNotFound."""
        self._database = Database(settings.located())

    def __enter__(self) -> Limits:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def set(self, kind: Kind, name: str, **changes: Any) -> Limit:
        """Changes what is named: weight, max_running, rate, max_pending or paused. None takes a limit away.

        Raises InvalidOption and InvalidTenant.
        """
        return self._database.carry_out(_set(kind, name, changes))

    def of(self, kind: Kind) -> list[Limit]:
        """Those of all graphs, or of all tenants, that are not as others are, by name."""
        return self._database.carry_out(_of(kind))

    def tenants(self, *, after: str | None = None, limit: int = 100) -> Rows:
        """A page of the tenants that have runs or limits, by name: the columns of Limit, and `pending` (up to
        MOST_COUNTED) with the `oldest` of them, and `running`."""
        parameters = {"after": "" if after is None else check_tenant(after), "limit": limit}
        return self._database.carry_out(_rows(Step(_TENANTS, parameters)))


def _set(kind: Kind, name: str, changes: Mapping[str, Any]) -> Plan[Limit]:
    key = {"kind": kind, "name": _check_name(kind, name)}
    values = {option: _check(kind, option, value) for option, value in changes.items()}
    if not values:
        rows = yield from _rows(Step(select(_limits).where(*_KEY), key))
        return _limit_of(rows[0]) if rows else Limit(kind, name)
    # A new rate begins with nothing spent.
    renewed = {"spent_until": None} if "rate" in values else {}
    new = insert(_limits).values(**key, **values)
    change = new.on_conflict_do_update(index_elements=["kind", "name"], set_={**values, **renewed})
    rows, _ = yield Batch([Step(change.returning(*_limits.c), {}), Step(_ALLOWING_ALL, key)])
    return _limit_of(rows[0])


def _of(kind: Kind) -> Plan[list[Limit]]:
    rows = yield from _rows(Step(_OF_KIND, {"kind": kind}))
    return [_limit_of(row) for row in rows]


def _rows(step: Step) -> Plan[Rows]:
    (rows,) = yield Batch([step])
    return rows


def _limit_of(row: Row) -> Limit:
    return Limit(**{field.name: row[field.name] for field in fields(Limit)})


def _check_name(kind: str, name: str) -> str:
    if kind not in LIMIT_KINDS:
        raise InvalidOption("kind", kind, f"must be one of {', '.join(LIMIT_KINDS)}")
    if kind == "tenant":
        return check_tenant(name)
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        raise InvalidOption("name", name, f"must be 1 to {MAX_NAME} characters")
    to_json("name", name)  # NUL and lone surrogates are no text
    return name


def _check(kind: str, option: str, value: Any) -> Any:
    if kind != "tenant" and option in _OF_TENANTS:
        raise InvalidOption(option, value, "is for tenants only")
    match option:
        case "paused" if isinstance(value, bool):
            return value
        case "weight" if _is_number(value) and value > 0:
            return float(value)
        case "rate" if value is None or (_is_number(value) and value > 0):
            return value if value is None else float(value)
        case "max_running" | "max_pending" if value is None or (
            isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT
        ):
            return value
    expected = {
        "paused": "must be true or false",
        "weight": "must be a number above 0",
        "rate": "must be a number above 0, or none",
        "max_running": f"must be a whole number from 0 to {MAX_COUNT}, or none",
        "max_pending": f"must be a whole number from 0 to {MAX_COUNT}, or none",
    }
    raise InvalidOption(option, value, expected.get(option, "is no limit"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
