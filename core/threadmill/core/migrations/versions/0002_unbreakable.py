"""Unbreakable: spent attempts, causes, breakers, and the index by which deadlines are found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


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


def downgrade() -> None:
    op.drop_index("runs_deadline_idx", table_name="runs", schema="threadmill")
    for table, column in (
        ("attempts", "fenced_writes"),
        ("attempts", "cause"),
        ("runs", "throttled"),
        ("runs", "failures"),
    ):
        op.drop_column(table, column, schema="threadmill")
    op.drop_table("breakers", schema="threadmill")
