"""Fast and fair: what a run tells, its place among those that are ready, and what limits their starting."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
COLUMNS: tuple[tuple[str, sa.Column[Any]], ...] = (
    ("runs", sa.Column("stream_mode", postgresql.ARRAY(sa.Text()))),
    ("runs", sa.Column("stream_subgraphs", sa.Boolean(), server_default=sa.text("false"), nullable=False)),
    ("runs", sa.Column("rank", TIME)),
)

# What is at the head of its thread and not held there, as the transitions keep it from now on.
RANK = """
update threadmill.runs as run set rank = run_at - make_interval(secs => 10 * priority)
where status = 'pending'
    and not exists (
        select from threadmill.runs as earlier
        where earlier.tenant = run.tenant and earlier.thread_id = run.thread_id and earlier.seq < run.seq
            and earlier.status in ('pending', 'running')
    )
    and not exists (
        select from threadmill.held_lanes as lane
        where lane.tenant = run.tenant and lane.thread_id = run.thread_id and lane.seq < run.seq
    )
"""

# Whether one more run of the tenant and of the graph may be started now, by their limits; then it is counted
# as started where there is a rate. The row of a limit is locked until the start is committed, so the next one
# sees it: a volatile function looks anew with each of its statements.
#
# patient: waits for who is about to start another one. Who is not, and holds other locks, is refused, as two
# that wait for each other would never end. A second's worth of a rate may go at once, of one that is slower
# than that, one (GCRA, ITU-T I.371). Its cost is so high that it is asked last.
MAY_START = """
create function threadmill.may_start(of_tenant text, of_graph text, patient boolean) returns boolean
language plpgsql cost 1000000 set plan_cache_mode = force_generic_plan as $$
declare
    found_limit record;
    ahead double precision;
begin
    begin
        if patient then
            perform from threadmill.limits
                where kind = 'graph' and name = of_graph or kind = 'tenant' and name = of_tenant
                order by kind for no key update;
        else
            perform from threadmill.limits
                where kind = 'graph' and name = of_graph or kind = 'tenant' and name = of_tenant
                order by kind for no key update nowait;
        end if;
    exception when lock_not_available then
        return false;
    end;
    for found_limit in
        select * from threadmill.limits
        where kind = 'graph' and name = of_graph or kind = 'tenant' and name = of_tenant
    loop
        if found_limit.paused then
            return false;
        end if;
        if found_limit.max_running <= (
            select count(*) from (
                select from threadmill.runs
                where status = 'running' and (
                    found_limit.kind = 'tenant' and tenant = of_tenant
                    or found_limit.kind = 'graph' and graph = of_graph
                )
                limit found_limit.max_running
            ) as running
        ) then
            return false;
        end if;
        ahead := extract(epoch from greatest(found_limit.spent_until, now()) - now());
        if ahead > greatest(1 / found_limit.rate, 1) - 1 / found_limit.rate then
            return false;
        end if;
    end loop;
    update threadmill.limits
        set spent_until = greatest(spent_until, now()) + make_interval(secs => 1 / rate)
        where rate is not null
            and (kind = 'graph' and name = of_graph or kind = 'tenant' and name = of_tenant);
    return true;
end
$$
"""

# As in 0002, but that a tenant's bound is in the table of limits now.
ADMIT_OLD = "coalesce((select max_pending from threadmill.tenants where name = of_tenant), allowed)"
ADMIT_NEW = (
    "coalesce("
    "(select max_pending from threadmill.limits where kind = 'tenant' and name = of_tenant), allowed)"
)
REWRITE_ADMIT = """
do $$
begin
    execute replace(
        pg_get_functiondef('threadmill.admit'::regproc), {before}, {after}
    );
end
$$
"""


def upgrade() -> None:
    for table, column in COLUMNS:
        op.add_column(table, column, schema="threadmill")
    op.execute(RANK)
    op.drop_index("runs_due_idx", table_name="runs", schema="threadmill")
    op.create_index(
        "runs_ready_idx",
        "runs",
        ["graph", "tenant", "rank"],
        schema="threadmill",
        postgresql_where=sa.text("status = 'pending' and rank is not null"),
    )
    op.create_index(
        "runs_rung_idx",
        "runs",
        ["tenant", "dispatched_at"],
        schema="threadmill",
        postgresql_where=sa.text("status = 'pending' and dispatched_at is not null"),
    )
    op.create_table(
        "limits",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("weight", sa.Float(), server_default="1", nullable=False),
        sa.Column("max_running", sa.Integer(), nullable=True),
        sa.Column("max_pending", sa.Integer(), nullable=True),
        sa.Column("rate", sa.Float(), nullable=True),
        sa.Column("spent_until", TIME, nullable=True),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint("kind in ('graph', 'tenant')", name=op.f("limits_kind_check")),
        sa.CheckConstraint("weight > 0", name=op.f("limits_weight_check")),
        sa.CheckConstraint("max_running >= 0", name=op.f("limits_max_running_check")),
        sa.CheckConstraint("max_pending >= 0", name=op.f("limits_max_pending_check")),
        sa.CheckConstraint("rate > 0", name=op.f("limits_rate_check")),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("limits_pkey")),
        schema="threadmill",
    )
    op.execute("grant select, insert, update, delete on threadmill.limits to threadmill_fleet")
    op.execute("alter table threadmill.limits enable row level security")
    op.execute("create policy fleet on threadmill.limits to threadmill_fleet using (true)")
    op.execute(
        "insert into threadmill.limits (kind, name, weight, max_running, max_pending, rate, paused) "
        "select 'tenant', name, weight, max_running, max_pending, rate, paused from threadmill.tenants "
        "where weight > 0 and coalesce(rate, 1) > 0 "
        "and coalesce(max_running, 0) >= 0 and coalesce(max_pending, 0) >= 0"
    )
    op.execute(REWRITE_ADMIT.format(before=f"'{ADMIT_OLD}'", after="$new$" + ADMIT_NEW + "$new$"))
    op.drop_table("tenants", schema="threadmill")
    op.execute(MAY_START)
    op.execute("grant execute on function threadmill.may_start to threadmill_fleet")


def downgrade() -> None:
    op.execute("drop function threadmill.may_start")
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("weight", sa.Float(), server_default="1", nullable=False),
        sa.Column("max_running", sa.Integer(), nullable=True),
        sa.Column("max_pending", sa.Integer(), nullable=True),
        sa.Column("rate", sa.Float(), nullable=True),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("tenants_pkey")),
        schema="threadmill",
    )
    op.execute("grant select, insert, update, delete on threadmill.tenants to threadmill_fleet")
    op.execute("alter table threadmill.tenants enable row level security")
    op.execute("create policy fleet on threadmill.tenants to threadmill_fleet using (true)")
    op.execute(
        "insert into threadmill.tenants (name, weight, max_running, max_pending, rate, paused) "
        "select name, weight, max_running, max_pending, rate, paused from threadmill.limits "
        "where kind = 'tenant'"
    )
    op.execute(REWRITE_ADMIT.format(before="$new$" + ADMIT_NEW + "$new$", after=f"'{ADMIT_OLD}'"))
    op.drop_table("limits", schema="threadmill")
    op.drop_index("runs_rung_idx", table_name="runs", schema="threadmill")
    op.drop_index("runs_ready_idx", table_name="runs", schema="threadmill")
    op.create_index(
        "runs_due_idx",
        "runs",
        ["run_at"],
        schema="threadmill",
        postgresql_where=sa.text("status = 'pending'"),
    )
    for table, column in reversed(COLUMNS):
        op.drop_column(table, column.name, schema="threadmill")
