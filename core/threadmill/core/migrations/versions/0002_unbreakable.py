"""Unbreakable: spent attempts, causes, breakers, bounds, and the indexes by which time limits are found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Refuses, inside the transaction of an enqueue, what would bring the pending runs of a tenant, or of the
# whole fleet, over what is allowed (null: any number). The figures are the error's detail, a JSON object.
#
# Counting 100,000 rows takes tens of milliseconds, so the caller says what it knows: of the runs whose ids
# are before `since`, `known` were pending a moment ago. These become fewer, so together with the few whose
# ids come later they are the most that can be pending, and only where that does not fit all are counted.
# Returns that number, and where all were counted, how many of them have ids before `mark`.
#
# adding: how many runs; keys: their idempotency keys, as those that exist are not added; superseding: the
# threads whose pending runs they take the place of.
ADMIT = """
create function threadmill.admit(
    fleet_wide boolean, of_tenant text, adding bigint, keys text[], superseding text[],
    allowed bigint, known bigint, since uuid, mark uuid
) returns bigint[] language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    pending bigint;
    marked bigint;
    ended bigint;
    over_seconds double precision;
begin
    if not fleet_wide then
        allowed := coalesce((select max_pending from threadmill.tenants where name = of_tenant), allowed);
    end if;
    if allowed is null then
        return null;
    end if;
    -- Younger runs are counted whatever their status: the ids have an index, and they are few.
    if known is not null and fleet_wide then
        pending := known + (select count(*) from threadmill.runs where id >= since);
    elsif known is not null then
        pending := known + (select count(*) from threadmill.runs where tenant = of_tenant and id >= since);
    end if;
    if pending + adding <= allowed then
        return array[pending, null];
    end if;
    if fleet_wide then
        select count(*), count(*) filter (where id < mark) into pending, marked
            from (select id from threadmill.runs where status = 'pending' limit allowed + 1) as counted;
    else
        select count(*), count(*) filter (where id < mark) into pending, marked
            from (
                -- In words that only the index of unfinished runs matches: by that of the pending ones,
                -- which is in the order of their times, all other tenants' would be read as well.
                select id from threadmill.runs
                where tenant = of_tenant and status in ('pending', 'running') and status || '' = 'pending'
                limit allowed + 1
            ) as counted;
    end if;
    if pending + adding <= allowed then
        return array[pending, marked];
    end if;
    adding := adding
        - (select count(*) from threadmill.runs where tenant = of_tenant and idempotency_key = any(keys))
        - (select count(*) from threadmill.runs
            where tenant = of_tenant and thread_id = any(superseding)
                and status in ('pending', 'running') and status || '' = 'pending');
    if adding <= 0 or pending + adding <= allowed then
        return array[pending, null];
    end if;
    -- The present pace: what of the runs that ended last was the tenant's, and in how long.
    select count(*) filter (where fleet_wide or tenant = of_tenant),
            extract(epoch from clock_timestamp() - min(finished_at))
        into ended, over_seconds
        from (
            select tenant, finished_at from threadmill.runs
            where finished_at > clock_timestamp() - interval '1 min' order by finished_at desc limit 1000
        ) as lately;
    raise exception using errcode = 'TM002', message = 'too many runs are pending',
        detail = json_build_object(
            'tenant', case when not fleet_wide then of_tenant end, 'pending', pending, 'limit', allowed,
            'retry_after', case when ended = 0 then 60
                else greatest(1, least(60, ceil((pending + adding - allowed) * over_seconds / ended))) end
        );
end
$$
"""


def upgrade() -> None:
    op.create_table(
        "breakers",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("graphs", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("open_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint("kind in ('graph', 'dependency')", name=op.f("breakers_kind_check")),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("breakers_pkey")),
        schema="threadmill",
    )
    op.execute("grant select, insert, update, delete on threadmill.breakers to threadmill_fleet")
    op.execute("alter table threadmill.breakers enable row level security")
    op.execute("create policy fleet on threadmill.breakers to threadmill_fleet using (true)")
    for table, column in (
        ("runs", sa.Column("failures", sa.Integer(), server_default="0", nullable=False)),
        ("runs", sa.Column("throttled", sa.Float(), server_default="0", nullable=False)),
        ("attempts", sa.Column("cause", sa.Text(), nullable=True)),
        ("attempts", sa.Column("fenced_writes", sa.Integer(), server_default="0", nullable=False)),
    ):
        op.add_column(table, column, schema="threadmill")
    op.create_index(
        "runs_deadline_idx",
        "runs",
        ["deadline"],
        unique=False,
        schema="threadmill",
        postgresql_where=sa.text("status = 'pending' and deadline is not null"),
    )
    op.create_index(
        "runs_finished_idx",
        "runs",
        ["finished_at"],
        unique=False,
        schema="threadmill",
        postgresql_where=sa.text("finished_at is not null"),
    )
    op.add_column(
        "graphs", sa.Column("pruned_to", sa.DateTime(timezone=True), nullable=True), schema="threadmill"
    )
    op.execute(ADMIT)
    op.execute("grant execute on function threadmill.admit to threadmill_fleet")


def downgrade() -> None:
    op.execute("drop function threadmill.admit")
    op.drop_column("graphs", "pruned_to", schema="threadmill")
    op.drop_index("runs_finished_idx", table_name="runs", schema="threadmill")
    op.drop_index("runs_deadline_idx", table_name="runs", schema="threadmill")
    for table, column in (
        ("attempts", "fenced_writes"),
        ("attempts", "cause"),
        ("runs", "throttled"),
        ("runs", "failures"),
    ):
        op.drop_column(table, column, schema="threadmill")
    op.drop_table("breakers", schema="threadmill")
