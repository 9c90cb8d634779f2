"""The doctor's check of a shard: whether the tenants that are in its ledger belong there."""

from __future__ import annotations

from threadmill.cli.finding import Connection, Finding, some
from threadmill.core.settings import MAIN_SHARD, Settings

# So many tenants are looked at, by their names.
MOST = 10_000

# A step from one tenant to the next, over the primary key.
_TENANTS = """
    with recursive found(tenant, number) as (
        (select tenant, 1 from threads order by tenant limit 1)
        union all
        select next.tenant, number + 1
        from found cross join lateral (
            select tenant from threads where tenant > found.tenant order by tenant limit 1
        ) as next
        where number < %s
    )
    select tenant from found
"""


def find_strangers(fleet: Connection, settings: Settings) -> Finding:
    """Which tenants have threads here, while by the settings their ledger is another."""
    homes = settings.homes()
    tenants = [row["tenant"] for row in fleet.execute(_TENANTS, [MOST])]
    here = settings.shard or "the main one"
    strangers = [
        f"{tenant} ({homes.get(tenant, MAIN_SHARD) or 'the main one'})"
        for tenant in tenants
        if homes.get(tenant, MAIN_SHARD) != settings.shard
    ]
    if strangers:
        return Finding(
            "shard",
            "warn",
            f"{here} has threads of tenants that belong elsewhere: {some(strangers)}",
            "see THREADMILL_SHARDS: producers ask the other ledger for them, and do not find what is here",
        )
    count = f"{MOST} or more" if len(tenants) == MOST else str(len(tenants))
    return Finding("shard", "ok", f"{here} of {len(settings.shards) + 1}; {count} tenants have threads here")
