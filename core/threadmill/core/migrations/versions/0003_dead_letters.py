"""Dead letters: what is recorded of them, held lanes, replay groups, pauses, rates and jobs."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TENANTS_TOO = ("held_lanes", "dead_letter_actions")
FLEET_ONLY = ("replay_groups", "replay_pauses", "replay_rates", "replay_jobs")

JSON = postgresql.JSON(astext_type=sa.Text())
JSONB = postgresql.JSONB(astext_type=sa.Text())
TIME = sa.DateTime(timezone=True)
NOW = sa.text("now()")

WORDS = (
    "strip(to_tsvector('simple'::regconfig, regexp_replace("
    "coalesce(exception_type, '') || ' ' "
    "|| regexp_replace(coalesce(exception_type, ''), '([a-z0-9])([A-Z])', '\\1 \\2', 'g') || ' ' "
    "|| coalesce(node, '') || ' ' || \"left\"(coalesce(error ->> 'message', ''), 2000), "
    "'[^[:alnum:]]+', ' ', 'g')))"
)

COLUMNS: tuple[tuple[str, sa.Column[Any]], ...] = (
    ("threads", sa.Column("base_checkpoint_id", sa.Text())),
    ("threads", sa.Column("dead_until", sa.Text())),
    ("runs", sa.Column("on_dead_letter", sa.Text())),
    ("runs", sa.Column("replays", sa.Integer(), server_default="0", nullable=False)),
    ("runs", sa.Column("replay_mode", sa.Text())),
    ("runs", sa.Column("state_patch", JSON)),
    ("runs", sa.Column("scratch", sa.UUID())),
    ("attempts", sa.Column("replay", sa.Integer(), server_default="0", nullable=False)),
    ("graphs", sa.Column("nodes", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False)),
    ("dead_letters", sa.Column("seq", sa.BigInteger())),
    ("dead_letters", sa.Column("graph_version", sa.Text())),
    ("dead_letters", sa.Column("topology_hash", sa.Text())),
    ("dead_letters", sa.Column("versions", JSONB, server_default="{}", nullable=False)),
    ("dead_letters", sa.Column("exception_type", sa.Text())),
    ("dead_letters", sa.Column("exceptions", JSONB, server_default="[]", nullable=False)),
    ("dead_letters", sa.Column("task", sa.Text())),
    ("dead_letters", sa.Column("next_nodes", postgresql.ARRAY(sa.Text()))),
    ("dead_letters", sa.Column("base_checkpoint_id", sa.Text())),
    ("dead_letters", sa.Column("original_input", JSON)),
    ("dead_letters", sa.Column("replay_why", sa.Text())),
    ("dead_letters", sa.Column("replayed_at", TIME)),
    (
        "dead_letters",
        sa.Column("words", postgresql.TSVECTOR(), sa.Computed(WORDS, persisted=True), nullable=False),
    ),
)

# What is under way keeps its order, and what held a thread holds it still.
CARRY_OVER = """
update threadmill.dead_letters as letter
    set seq = run.seq, graph_version = run.graph_version, exception_type = letter.error ->> 'type',
        reason = case when reason = 'failed' then 'exhausted' else reason end
    from threadmill.runs as run where run.id = letter.run_id;
update threadmill.runs as run set replays = letter.replays, replay_mode = letter.replay_mode
    from threadmill.dead_letters as letter where letter.run_id = run.id;
insert into threadmill.held_lanes (tenant, thread_id, seq, letter_id, since)
    select thread.tenant, thread.thread_id, letter.seq, letter.id, letter.updated_at
    from threadmill.threads as thread join threadmill.dead_letters as letter on letter.id = thread.held_by;
insert into threadmill.dead_letter_actions (letter_id, tenant, at, by, action, facts)
    select letter.id, letter.tenant, (note ->> 'at')::timestamptz, coalesce(note ->> 'by', '?'),
        coalesce(note ->> 'action', 'note'), note - 'at' - 'by' - 'action'
    from threadmill.dead_letters as letter cross join lateral jsonb_array_elements(letter.notes) as note;
insert into threadmill.replay_groups (fingerprint, graph)
    select distinct on (fingerprint) fingerprint, graph from threadmill.dead_letters
    order by fingerprint, graph;
"""


def upgrade() -> None:
    op.drop_index("dead_letters_due_idx", table_name="dead_letters", schema="threadmill")
    for table, column in COLUMNS:
        op.add_column(table, column, schema="threadmill")
    for name in ("run_id", "tenant", "thread_id", "graph"):
        op.alter_column("dead_letters", name, nullable=True, schema="threadmill")
    create_tables()
    op.execute(CARRY_OVER)
    op.drop_column("threads", "held_by", schema="threadmill")
    op.drop_column("dead_letters", "notes", schema="threadmill")
    op.create_check_constraint(
        op.f("runs_replay_mode_check"),
        "runs",
        "replay_mode in ('resume', 'restart', 'append')",
        schema="threadmill",
    )
    op.create_check_constraint(
        op.f("dead_letters_reason_check"),
        "dead_letters",
        "reason in ('permanent', 'exhausted', 'timeout', 'worker_lost', 'breaker', 'undeliverable')",
        schema="threadmill",
    )
    create_indexes()
    for table in (*TENANTS_TOO, *FLEET_ONLY):
        op.execute(f"grant select, insert, update, delete on threadmill.{table} to threadmill_fleet")
        op.execute(f"alter table threadmill.{table} enable row level security")
        op.execute(f"create policy fleet on threadmill.{table} to threadmill_fleet using (true)")
    for table in TENANTS_TOO:
        op.execute(
            f"create policy tenant on threadmill.{table} to threadmill_tenant "
            "using (tenant = current_setting('threadmill.tenant', true))"
        )
    # A tenant's cancel closes the dead letter that was being replayed, and with it what this one held.
    op.execute("grant select, delete on threadmill.held_lanes to threadmill_tenant")
    op.execute("grant select on threadmill.dead_letter_actions to threadmill_tenant")


def create_tables() -> None:
    op.create_table(
        "held_lanes",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("letter_id", sa.UUID(), nullable=False),
        sa.Column("since", TIME, server_default=NOW, nullable=False),
        sa.Column("until", TIME),
        sa.ForeignKeyConstraint(
            ["letter_id"],
            ["threadmill.dead_letters.id"],
            name=op.f("held_lanes_letter_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant", "thread_id", "seq", name=op.f("held_lanes_pkey")),
        sa.UniqueConstraint("letter_id", name=op.f("held_lanes_letter_id_key")),
        schema="threadmill",
    )
    op.create_index(
        "held_lanes_until_idx",
        "held_lanes",
        ["until"],
        schema="threadmill",
        postgresql_where=sa.text("until is not null"),
    )
    op.create_index("held_lanes_since_idx", "held_lanes", ["since"], schema="threadmill")
    op.create_table(
        "dead_letter_actions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("letter_id", sa.UUID()),
        sa.Column("tenant", sa.Text()),
        sa.Column("at", TIME, server_default=NOW, nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("facts", JSONB, server_default="{}", nullable=False),
        sa.ForeignKeyConstraint(
            ["letter_id"],
            ["threadmill.dead_letters.id"],
            name=op.f("dead_letter_actions_letter_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("dead_letter_actions_pkey")),
        schema="threadmill",
    )
    op.create_index(
        "dead_letter_actions_letter_id_idx", "dead_letter_actions", ["letter_id", "id"], schema="threadmill"
    )
    op.create_table(
        "replay_groups",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("graph", sa.Text()),
        sa.Column("window", sa.Integer(), server_default="1", nullable=False),
        sa.Column("backoffs", sa.Integer(), server_default="0", nullable=False),
        sa.Column("strays", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", TIME),
        sa.Column("drainer", sa.UUID()),
        sa.Column("drainer_until", TIME),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("replay_groups_pkey")),
        schema="threadmill",
    )
    op.create_table(
        "replay_pauses",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("since", TIME, server_default=NOW, nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.CheckConstraint("kind in ('graph', 'tenant', 'group')", name=op.f("replay_pauses_kind_check")),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("replay_pauses_pkey")),
        schema="threadmill",
    )
    op.create_table(
        "replay_rates",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("rate", sa.Float(), nullable=False),
        sa.Column("spent_until", TIME),
        sa.CheckConstraint("kind in ('all', 'graph', 'tenant')", name=op.f("replay_rates_kind_check")),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("replay_rates_pkey")),
        schema="threadmill",
    )
    op.create_table(
        "replay_jobs",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("filter", JSONB, nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("rate", sa.Float()),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="running", nullable=False),
        sa.Column("last", sa.UUID(), nullable=False),
        sa.Column("position", sa.UUID()),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("replayed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("skipped", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("updated_at", TIME, server_default=NOW, nullable=False),
        sa.CheckConstraint("status in ('running', 'stopped', 'done')", name=op.f("replay_jobs_status_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("replay_jobs_pkey")),
        schema="threadmill",
    )


# By name: the columns, and which rows it holds.
INDEXES = {
    "dead_letters_due_idx": (
        ["fingerprint", "tenant", "next_replay_at"],
        "status = 'waiting' and next_replay_at is not null",
    ),
    "dead_letters_lane_idx": (["tenant", "thread_id", "seq"], "status in ('waiting', 'replaying')"),
    "dead_letters_closed_idx": (["updated_at"], "status in ('resolved', 'discarded')"),
}


# What groups and figures are read by: the columns, and what the index holds besides.
COUNT_INDEXES = {
    "dead_letters_group_idx": (["fingerprint", "status", "reason", "id"], ["tenant"]),
    "dead_letters_status_idx": (["status", "reason", "id"], []),
}
MARKS = (
    "(array['span=' || left(cast(id as text), 6), 'tenant=' || tenant, 'thread_id=' || thread_id, "
    "'graph=' || graph, 'status=' || status, 'reason=' || reason, 'fingerprint=' || fingerprint, "
    "'node=' || node, 'exception_type=' || exception_type])"
)


def create_indexes() -> None:
    for name, (columns, where) in INDEXES.items():
        op.create_index(name, "dead_letters", columns, schema="threadmill", postgresql_where=sa.text(where))
    op.create_index(
        "runs_scratch_idx",
        "runs",
        ["created_at"],
        schema="threadmill",
        postgresql_where=sa.text("scratch is not null"),
    )
    for name, (columns, included) in COUNT_INDEXES.items():
        op.create_index(
            name, "dead_letters", columns, schema="threadmill", postgresql_include=included or None
        )
    op.create_index(
        "dead_letters_marks_idx",
        "dead_letters",
        ["words", sa.text(MARKS)],
        schema="threadmill",
        postgresql_using="gin",
        postgresql_with={"gin_pending_list_limit": 64},
    )


def downgrade() -> None:
    for name in (*INDEXES, *COUNT_INDEXES, "dead_letters_marks_idx"):
        op.drop_index(name, table_name="dead_letters", schema="threadmill")
    op.drop_constraint("dead_letters_reason_check", "dead_letters", schema="threadmill")
    op.drop_constraint("runs_replay_mode_check", "runs", schema="threadmill")
    op.add_column("threads", sa.Column("held_by", sa.UUID()), schema="threadmill")
    op.add_column(
        "dead_letters",
        sa.Column("notes", JSONB, server_default=sa.text("'[]'"), nullable=False),
        schema="threadmill",
    )
    op.execute(
        "update threadmill.threads as thread set held_by = held.letter_id from threadmill.held_lanes as held "
        "where held.tenant = thread.tenant and held.thread_id = thread.thread_id"
    )
    op.execute("delete from threadmill.dead_letters where run_id is null")
    for name in ("run_id", "tenant", "thread_id", "graph"):
        op.alter_column("dead_letters", name, nullable=False, schema="threadmill")
    for table in (*FLEET_ONLY, *TENANTS_TOO):
        op.drop_table(table, schema="threadmill")
    for table, column in reversed(COLUMNS):
        op.drop_column(table, column.name, schema="threadmill")
    op.create_index(
        "dead_letters_due_idx",
        "dead_letters",
        ["next_replay_at"],
        schema="threadmill",
        postgresql_where=sa.text("status = 'waiting'"),
    )
